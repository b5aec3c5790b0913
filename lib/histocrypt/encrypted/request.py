"""One section's request at the key owner: which spot lies where, its ciphertexts, and what the answers to it say."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import Client
from histocrypt.encrypted.ciphertext_form import check_ciphertext
from histocrypt.encrypted.inputs import Prepared
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.errors import InputError

NOISE = 1e-3
"""Noise added to decrypted values: standard deviation, as a share of the output's own over the section."""
CANARIES = 2
"""Spots that are sent twice, freshly encrypted and in random places, to notice an evaluator that mixes up spots."""
PLAUSIBLE = 4.0
"""Outputs may leave their range over the training tiles by so many times that range."""
TOLERANCE = 1e-2
"""How far copies of one output within a ciphertext may be apart, as a share of that range."""
APART = 0.1
"""How far the two results of a spot that was sent twice may be apart, in standard deviations over the section."""


@dataclass(frozen=True)
class Request:
    """What the key owner knows of a request; the evaluator learns its name and the number of ciphertexts."""

    name: str
    client: Client
    bound: dict[str, str]
    """Client part and key that every message is bound to."""
    note: dict[str, Any]
    """Section, patient, names and coordinates of the spots, and ``order``: spot of each place, some of them twice."""

    @classmethod
    def of(cls, prepared: Prepared, client: Client, bound: dict[str, str], *, canaries: int = CANARIES) -> Request:
        """Lay out prepared spots in random order, ``canaries`` of them twice."""
        chance = np.random.default_rng(secrets.randbits(128))
        n = len(prepared.names)
        order = np.concatenate([np.arange(n), chance.choice(n, size=min(canaries, n), replace=False)])
        chance.shuffle(order)
        note = {
            "section": prepared.section, "patient": prepared.patient, "names": prepared.names.tolist(),
            "coords": prepared.coords.tolist(), "order": order.tolist(), "about": prepared.about,
        }  # fmt: skip
        return cls(secrets.token_hex(16), client, bound, note)

    @property
    def batches(self) -> int:
        """Messages that make up the request."""
        return -(-len(self.note["order"]) // self.client.batch)

    def place(self, index: int) -> dict[str, Any]:
        """Return what the header of a message at one place must say."""
        return {**self.bound, "request": self.name, "index": index, "of": self.batches}

    def spots(self, index: int) -> np.ndarray:
        """Return the spots at one place."""
        return np.array(self.note["order"][index * self.client.batch : (index + 1) * self.client.batch])

    def encrypt(self, index: int, values: np.ndarray, owner: engine.KeyOwner) -> bytes:
        """Return the payload of one input message, from the network's inputs of all spots."""
        chosen = values[self.spots(index)]
        if self.client.about["sees"] == "features":
            padded = np.zeros((self.client.batch, values.shape[1]))
            padded[: len(chosen)] = chosen
            chosen = padded.T
        return messages.pack_list([owner.encrypt(slots, self.client.level) for slots in self.client.input.pack(chosen)])


class Answers:
    """The results of a request, decrypted and checked one by one."""

    def __init__(self, request: Request, owner: engine.KeyOwner) -> None:
        self.request, self._owner = request, owner
        client = request.client
        self._moduli = [int(prime) for prime in client.about["moduli"]]
        self._found = np.empty((len(request.note["order"]), len(client.about["outputs"])))
        self.most_bytes = client.output.ciphertexts * client.ciphertext_bytes(0) + messages.LONGEST_HEADER
        """The largest output message that is read."""

    def add(self, index: int, payload: bytes, *, file: Any) -> None:
        """Decrypt what an output message holds.

        Raises
        ------
        InputError
            If it is no ciphertext of outputs, or does not decrypt to copies of plausible ones.
        """
        client = self.request.client
        parts = messages.unpack_list(payload, count=client.output.ciphertexts, file=file)
        for part in parts:
            check_ciphertext(part, client.parameters, self._moduli, 0, file=file)
        outputs = _outputs(np.stack([self._owner.decrypt(part) for part in parts]), client, file)
        spots = self._found[index * client.batch : (index + 1) * client.batch]
        spots[:] = outputs[: len(spots)]

    def values(self, *, file: Any) -> np.ndarray:
        """Return (spots, outputs) once all were added, after comparing the results of spots that were sent twice."""
        order = np.array(self.request.note["order"])
        values = np.empty((len(self.request.note["names"]), self._found.shape[1]))
        values[order] = self._found
        spread = _each_spread(values, self.request.client)
        apart = (np.abs(values[order] - self._found) / spread).max(axis=1)
        if apart.max() > APART:
            msg = "a spot that was sent twice came back different: the evaluator mixed up spots or made up results"
            raise InputError(
                msg,
                file=file,
                field=f"spot {int(apart.argmax())}",
                value=f"{apart.max():.2g} standard deviations",
                expected=f"at most {APART}",
                fix="do not use this response",
            )
        return values


def _spread(client: Client) -> float:
    low, high = client.about["output_range"]
    return high - low


def _each_spread(values: np.ndarray, client: Client) -> np.ndarray:
    """Return (outputs,) standard deviations over spots, never zero: a section may have one spot, or a constant gene."""
    return np.maximum(values.std(axis=0), 1e-2 * _spread(client))


def _outputs(slots: np.ndarray, client: Client, file: Any) -> np.ndarray:
    """Return (batch, outputs) from decrypted slots, after checking that nothing but copies of them is there."""
    layout = client.output
    outputs = layout.unpack(slots).T
    low, high = client.about["output_range"]
    low, high = low - PLAUSIBLE * (high - low), high + PLAUSIBLE * (high - low)
    wrong = "check that evaluation keys and ciphertexts belong together, and that the evaluator is sound"
    if not np.isfinite(slots).all() or outputs.min() < low or outputs.max() > high:
        msg = "does not decrypt to plausible values"
        raise InputError(
            msg, file=file, value=float(np.abs(slots).max()), expected=f"{low:.2f} to {high:.2f}", fix=wrong
        )
    span = layout.span
    used = np.zeros((layout.ciphertexts, span if layout.ciphertexts == 1 else layout.slots))
    used.reshape(-1)[layout.index] = outputs.T.reshape(-1)
    copies = slots.reshape(layout.ciphertexts, -1, used.shape[1])
    if np.abs(copies - used[:, None]).max() > TOLERANCE * _spread(client):
        msg = "holds something else than copies of the outputs in its spare slots"
        raise InputError(msg, file=file, fix=wrong)
    return outputs


def check_output(output: str | Path) -> Path:
    """Refuse a name that predictions are not written to, before work is done for them."""
    output = Path(output)
    if output.suffix != ".h5ad" or output.is_dir():
        msg = "predictions are written as .h5ad"
        raise InputError(msg, file=output, field="output", expected="a name that ends in .h5ad")
    return output


def write_result(output: Path, values: np.ndarray, request: Request, *, noise: float = NOISE) -> str:
    """Write decrypted values as predictions, with noise added; see `key_owner.decrypt_response`."""
    from histocrypt.models.spots import Spots
    from histocrypt.targets.panels import Panel
    from histocrypt.training.predictions import write_predictions

    about, note = request.client.about, request.note
    if noise:
        chance = np.random.default_rng(secrets.randbits(128))
        values = values + chance.normal(size=values.shape) * noise * _each_spread(values, request.client)
    names = np.array(note["names"])
    spots = Spots(
        names=names,
        sections=np.full(len(names), note["section"]),
        patients=np.full(len(names), note["patient"]),
        tiles=np.empty((len(names), 0, 0, 3), np.uint8),
        depth=np.zeros(len(names)),
        outputs=tuple(about["outputs"]),
    )
    write_predictions(
        output,
        values.astype(np.float32),
        spots=spots,
        coords=np.array(note["coords"]),
        panel=Panel.from_dict(about["panel"]),
        transforms=list(about["transforms"]),
        about={
            "model": about["model"], "title": about["title"], "fold": about["fold"], "part": "encrypted",
            "study": about["study"]["name"], "study_hash": about["study"]["hash"], "seed": about["seed"],
            "section": note["section"], "um_per_px": note["about"]["um_per_px"],
            "um_per_px_source": note["about"]["um_per_px_source"],
            "unmeasured_genes": np.array(note["about"]["unmeasured_genes"], dtype=str),
            "weights_sha256": about["weights_sha256"], "encrypted": "CKKS", "security_bits": SECURITY_BITS,
            "noise": float(noise),
        },
    )  # fmt: skip
    gone = "".join(f"; {count} {reason}" for reason, count in note["about"]["without_prediction"].items())
    return (
        f"{output}: {len(names)} spots x {len(about['panel']['genes'])} genes of {note['section']}, "
        f"predicted encrypted by {about['title']}{gone}"
    )
