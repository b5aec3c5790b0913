"""The key owner: makes keys, encrypts a section's spots, decrypts what comes back. All in the clear happens here."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import Client, load_client
from histocrypt.encrypted.messages import check_ciphertext
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, read_json, write_json

# ---- inputs
# The client's side of a prediction, in the clear: cut tiles, normalise them, check them against the public part.


@dataclass(frozen=True)
class Prepared:
    """A section ready to be encrypted."""

    section: str
    names: np.ndarray
    """(n,) ``"<section>:<barcode>"``."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    patient: str
    values: np.ndarray
    """(n, channels, side, side) or (n, features) float32, as the network sees them."""
    about: dict[str, Any]
    """Resolution, unmeasured genes, spots without prediction: goes into the prediction file."""

    def only(self, rows: np.ndarray, *, reason: str = "") -> Prepared:
        """Return these spots alone; the others are counted as without prediction for a ``reason``, if one is given."""
        about = self.about
        if reason and (left := len(self.names) - len(rows)):
            about = {**about, "without_prediction": {**about["without_prediction"], reason: left}}
        return replace(self, names=self.names[rows], coords=self.coords[rows], values=self.values[rows], about=about)


def evenly(count: int, most: int | None) -> np.ndarray:
    """Return at most so many of the numbers below ``count``, evenly spread; all where ``most`` is None."""
    return np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int))


def network_inputs(values: np.ndarray, sees: str, normalisation: dict[str, Any]) -> np.ndarray:
    """Return one section's tiles or features as the network sees them, float32.

    Parameters
    ----------
    values
        (n, side, side, 3) uint8 tiles, or (n, d) features, of all spots of one section.
    sees
        ``tiles`` or ``features``.
    normalisation
        ``by_section``: with this section's own mean and deviation; else with ``mean`` and ``sd`` of the training spots.
    """
    mean, sd = (np.asarray(normalisation[name], dtype=np.float32) for name in ("mean", "sd"))
    if sees == "features":
        from histocrypt.predictors.closed_form import standardise

        sections = np.zeros(len(values), dtype=int)
        return standardise(values, sections, mean, sd, by_section=normalisation["by_section"])
    if normalisation["by_section"]:  # as `predictors.network.PixelMoments` has them, without torch
        grey = values.reshape(-1, 3).astype(np.int64)
        mean = grey.sum(axis=0) / len(grey)
        sd = np.sqrt(np.maximum((grey * grey).sum(axis=0) / len(grey) - mean**2, 0)).clip(1.0)
        mean, sd = (np.stack([mean, sd]) / 255).astype(np.float32)
    scaled = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    return (scaled - mean[:, None, None]) / sd[:, None, None]


def prepare(
    client: Client,
    section_path: str | Path,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    panel: str | Path | None = None,
    skip_out_of_range: bool = False,
    spots: int | None = None,
) -> Prepared:
    """Prepare a section for encryption, or refuse it; nothing is encrypted and no key is needed.

    Parameters
    ----------
    client
        The public part of the compiled model.
    section_path
        A section in any readable format.
    image, um_per_px
        Where the section does not tell them.
    panel
        A list of gene ids, one a line, that the client expects to get, in this order.
    skip_out_of_range
        Leave out spots whose values are outside the calibrated range, instead of refusing the section.
    spots
        Of the section, evenly spread in the order of its file; all if not given. The section is standardised whole.

    Raises
    ------
    InputError
        If the section cannot be read, its pixels are too coarse, the panel is another one, or a spot's values are
        outside the range that the model was calibrated for.
    """
    from histocrypt.pipeline.predict import check_fit, prepare_section
    from histocrypt.sections.read import read_path
    from histocrypt.targets.panels import Panel, read_gene_list

    about = client.about
    offered = Panel.from_dict(about["panel"])
    if panel is not None:
        wanted = list(read_gene_list(panel))
        if wanted != list(offered.genes):
            other = next((pair for pair in zip(wanted, offered.genes, strict=False) if pair[0] != pair[1]), None)
            raise InputError(
                "this model predicts another panel",
                file=panel,
                field="panel",
                value=other[0] if other else f"{len(wanted)} genes",
                expected=f"{other[1] if other else len(offered)} (model: {len(offered)} genes)",
                fix="ask the model's owner for the panel you need",
            )
    section = read_path(section_path, image=image, um_per_px=um_per_px, for_prediction=True)
    missing = check_fit(about, section, offered)
    with tempfile.TemporaryDirectory(prefix="histocrypt-") as folder:
        cut, coords, report = prepare_section(about, section, Path(folder), tuple(about["outputs"]))
        sees = about["sees"]
        raw = cut.features(about["input"]["encoder"]) if sees == "features" else np.array(cut.tiles)
        values = network_inputs(raw, sees, about["normalisation"])
        names = cut.names
    keep = _in_range(values, client, names, section_path, skip=skip_out_of_range)
    dropped = {**report.dropped, **({"out of range": int((~keep).sum())} if not keep.all() else {})}
    if not keep.any():
        raise InputError("no spot is left", file=section_path, value=dropped)
    prepared = Prepared(
        section=section.id,
        names=names[keep],
        coords=coords[keep],
        patient=section.patient or "",
        values=values[keep],
        about={
            "um_per_px": float(section.um_per_px),
            "um_per_px_source": section.um_per_px_source,
            "unmeasured_genes": missing,
            "without_prediction": {str(key): int(n) for key, n in dropped.items()},
        },
    )
    return prepared if spots is None else prepared.only(evenly(len(prepared.names), spots), reason="not asked for")


def _in_range(values: np.ndarray, client: Client, names: np.ndarray, file: Any, *, skip: bool) -> np.ndarray:
    low, high = client.about["input_range"]
    flat = values.reshape(len(values), -1)
    lowest, highest = flat.min(axis=1), flat.max(axis=1)
    keep = (lowest >= low) & (highest <= high) & np.isfinite(flat).all(axis=1)
    if not keep.all() and not skip:
        first = int(np.flatnonzero(~keep)[0])
        worst = lowest[first] if lowest[first] < low else highest[first]
        raise InputError(
            f"{(~keep).sum()} of {len(keep)} spots are outside the range that the model was calibrated for",
            file=file,
            field=str(names[first]),
            value=round(float(worst), 2),
            expected=f"{low:.2f} to {high:.2f}",
            fix="check the image's stain and focus there, or leave such spots out with --skip-out-of-range",
        )
    return keep


# ---- request
# One section's request at the key owner: which spot lies where, its ciphertexts, and what the answers to it say.


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
            "section": prepared.section,
            "patient": prepared.patient,
            "names": prepared.names.tolist(),
            "coords": prepared.coords.tolist(),
            "order": order.tolist(),
            "about": prepared.about,
        }
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
            raise InputError(
                "a spot that was sent twice came back different: the evaluator mixed up spots or made up results",
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
        raise InputError(
            "does not decrypt to plausible values",
            file=file,
            value=float(np.abs(slots).max()),
            expected=f"{low:.2f} to {high:.2f}",
            fix=wrong,
        )
    span = layout.span
    used = np.zeros((layout.ciphertexts, span if layout.ciphertexts == 1 else layout.slots))
    used.reshape(-1)[layout.index] = outputs.T.reshape(-1)
    copies = slots.reshape(layout.ciphertexts, -1, used.shape[1])
    if np.abs(copies - used[:, None]).max() > TOLERANCE * _spread(client):
        raise InputError("holds something else than copies of the outputs in its spare slots", file=file, fix=wrong)
    return outputs


def check_output(output: str | Path) -> Path:
    """Refuse a name that predictions are not written to, before work is done for them."""
    output = Path(output)
    if output.suffix != ".h5ad" or output.is_dir():
        raise InputError(
            "predictions are written as .h5ad", file=output, field="output", expected="a name that ends in .h5ad"
        )
    return output


def write_result(output: Path, values: np.ndarray, request: Request, *, noise: float = NOISE) -> str:
    """Write decrypted values as predictions, with noise added; see `key_owner.decrypt_response`."""
    from histocrypt.data.spots import Spots
    from histocrypt.pipeline.predictions import write_predictions
    from histocrypt.targets.panels import Panel

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
            "model": about["model"],
            "title": about["title"],
            "fold": about["fold"],
            "part": "encrypted",
            "study": about["study"]["name"],
            "study_hash": about["study"]["hash"],
            "seed": about["seed"],
            "section": note["section"],
            "um_per_px": note["about"]["um_per_px"],
            "um_per_px_source": note["about"]["um_per_px_source"],
            "unmeasured_genes": np.array(note["about"]["unmeasured_genes"], dtype=str),
            "weights_sha256": about["weights_sha256"],
            "encrypted": "CKKS",
            "security_bits": SECURITY_BITS,
            "noise": float(noise),
        },
    )
    gone = "".join(f"; {count} {reason}" for reason, count in note["about"]["without_prediction"].items())
    return (
        f"{output}: {len(names)} spots x {len(about['panel']['genes'])} genes of {note['section']}, "
        f"predicted encrypted by {about['title']}{gone}"
    )


# ---- key owner


KEY_BYTES_PER_SECOND = 50e6
"""For the estimate before keys are made."""


def describe_keys(client: Client) -> str:
    """Return the sentences that a key owner reads before keys are made."""
    p, size = client.parameters, client.evaluation_key_bytes()
    return (
        f"parameters: N = 2^{p.logn} ({p.ring} ring), log QP = {p.log_qp}, scale 2^{p.log_scale}, {p.levels} levels; "
        f"at least {SECURITY_BITS} bits of security\n"
        f"evaluation keys: 1 relinearisation + {len(client.rotations)} rotations, {size / 2**20:.0f} MiB, "
        f"about {max(1, size / KEY_BYTES_PER_SECOND):.0f} s"
    )


def keygen(client_file: str | Path, output: str | Path) -> str:
    """Make keys for a compiled model.

    ``output`` gets ``secret.key`` (mode 0600; never give it away), ``public.key``, ``evaluation.keys`` (for the
    evaluator) and a copy of the client part.

    Raises
    ------
    InputError
        If the client part is damaged or insecure, the folder already holds keys, or the disk is too small.
    """
    from tqdm.auto import tqdm

    client, output = load_client(client_file), Path(output)
    if (output / "secret.key").exists():
        raise InputError(
            "already holds keys, which would be lost",
            file=output,
            field="secret.key",
            fix="choose another folder, or delete it",
        )
    print(describe_keys(client), file=sys.stderr)
    need_disk(output, client.evaluation_key_bytes() + (64 << 20))
    owner = engine.KeyOwner(client.parameters)
    if [str(prime) for prime in owner.moduli()] != client.about["moduli"]:
        raise InputError(
            "lists other primes than this engine makes from its parameters",
            file=client.file,
            field="moduli",
            fix="use the engine's version that the model's owner has",
        )
    output.mkdir(parents=True, exist_ok=True)
    output.chmod(0o700)
    started = time.monotonic()
    secret, public = owner.generate()
    key = hashlib.sha256(public).hexdigest()[:32]
    bound = {"client": client.hash, "key": key}
    messages.write_message(output / "public.key", "public key", public, **bound)
    pieces = tqdm(
        owner.evaluation_keys(client.rotations), total=len(client.rotations) + 2, desc="evaluation keys", unit="key"
    )
    write_pieces(output / "evaluation.keys", "evaluation keys", pieces, **bound)
    shutil.copyfile(client.file, output / "client.json")
    messages.write_message(output / "secret.key", "secret key", secret, **bound)  # last: its presence says all is there
    size = (output / "evaluation.keys").stat().st_size
    return (
        f"{output}: keys {key[:8]} for {client.about['title']}, {size / 2**20:.0f} MiB of evaluation keys, "
        f"{time.monotonic() - started:.1f} s"
    )


def write_pieces(path: Path, kind: str, pieces: Any, **header: Any) -> None:
    """Write a large message piece by piece; its header, of fixed length, is filled in at the end."""
    content = {"kind": kind, **header, "bytes": 0, "sha256": "0" * 64}
    room = len(json.dumps(content, sort_keys=True)) + 20
    digest, size = hashlib.sha256(), 0
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("r+b") as file:
            file.seek(len(messages.MAGIC) + 4 + room)
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                file.write(piece)
            encoded = json.dumps({**content, "bytes": size, "sha256": digest.hexdigest()}, sort_keys=True).encode()
            file.seek(0)
            file.write(messages.MAGIC + struct.pack("<I", room) + encoded.ljust(room))


class Keys:
    """A key owner's folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "secret.key").is_file():
            raise InputError(
                "holds no keys",
                file=folder,
                field="secret.key",
                fix="make them: histocrypt fhe keygen --client FILE -o FOLDER",
            )
        self.client = load_client(self.folder / "client.json")
        self.key: str = messages.read_header(self.folder / "public.key").get("key", "")
        if (self.folder / "secret.key").stat().st_mode & 0o077:
            raise InputError(
                "can be read by others on this machine",
                file=self.folder / "secret.key",
                field="mode",
                fix="chmod 600 it, and make new keys if others have read it",
            )

    @property
    def bound(self) -> dict[str, str]:
        """What every message under these keys is bound to."""
        return {"client": self.client.hash, "key": self.key}

    def encryptor(self) -> engine.KeyOwner:
        """Return what encrypts; it has no secret key."""
        public = messages.read_message(self.folder / "public.key", "public key", **self.bound)
        return engine.KeyOwner(self.client.parameters, public=public)

    def decryptor(self) -> engine.KeyOwner:
        """Return what decrypts."""
        secret = messages.read_message(self.folder / "secret.key", "secret key", **self.bound)
        return engine.KeyOwner(self.client.parameters, secret=secret)

    def note(self, request: str) -> Path:
        """Return where it is kept which spot lies at which place of a request; it never leaves this folder."""
        if not request.isalnum():
            raise InputError("is not the name of a request", field="request", value=request)
        return self.folder / "requests" / f"{request}.json"


def encrypt_section(
    section: str | Path,
    keys: str | Path,
    output: str | Path,
    *,
    canaries: int = CANARIES,
    **how: Any,
) -> str:
    """Encrypt a section's spots into a request folder. ``how`` goes to `inputs.prepare`."""
    opened = Keys(keys)
    output = Path(output)
    refuse_existing(output, "request.json")
    prepared = prepare(opened.client, section, **how)
    started = time.monotonic()
    request = encrypt(prepared, opened, output, canaries=canaries)
    size = sum(path.stat().st_size for path in output.glob("*.ct"))
    note = prepared.about["without_prediction"]
    gone = "".join(f"; {count} {reason}" for reason, count in note.items())
    return (
        f"{output}: request {request[:8]}, {len(prepared.names)} spots of {prepared.section}, {size / 2**20:.0f} MiB, "
        f"{time.monotonic() - started:.1f} s{gone}"
    )


def encrypt(prepared: Prepared, keys: Keys, output: Path, *, canaries: int = CANARIES) -> str:
    """Encrypt prepared spots; return the request's name.

    The request tells the evaluator how many spots there are and nothing else: no names, no coordinates, and spots in
    random order, with ``canaries`` of them repeated.
    """
    from tqdm.auto import tqdm

    client = keys.client
    request = Request.of(prepared, client, keys.bound, canaries=canaries)
    count = request.batches
    need_disk(output, count * client.input.ciphertexts * client.parameters.ciphertext_bytes + (16 << 20))
    owner = keys.encryptor()
    output.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(count), desc="encrypting", unit="ciphertext"):
        payload = request.encrypt(index, prepared.values, owner)
        messages.write_message(output / f"{index:05d}.ct", "input", payload, **request.place(index))
    keys.note(request.name).parent.mkdir(mode=0o700, exist_ok=True)
    write_json(keys.note(request.name), request.note)
    write_json(output / "request.json", {**keys.bound, "request": request.name, "of": count})
    return request.name


def decrypt_response(response: str | Path, keys: str | Path, output: str | Path, *, noise: float = NOISE) -> str:
    """Decrypt a response folder into predictions (``.h5ad``), as `histocrypt predict` writes them.

    Parameters
    ----------
    response
        What the evaluator gave back.
    keys
        The key owner's folder.
    output
        Predictions are written here.
    noise
        Standard deviation of the noise that is added to every value before it is written, as a share of the output's
        standard deviation over the section. CKKS errors depend on the secret key, so that exact decrypted values in the
        hands of the evaluator could help to find it (Li and Micciancio, 2021).

    Raises
    ------
    InputError
        If a ciphertext is missing, damaged, out of place, of another request or key, or does not decrypt to copies of
        plausible outputs.
    """
    output = check_output(output)
    answers = _read_response(Path(response), Keys(keys))
    return write_result(output, answers.values(file=response), answers.request, noise=noise)


def decrypt(response: Path, keys: Keys) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is known of a request's spots, and their (n, outputs) values without added noise."""
    answers = _read_response(response, keys)
    return answers.request.note, answers.values(file=response)


def _read_response(response: Path, keys: Keys) -> Answers:
    from tqdm.auto import tqdm

    content = read_json(response / "response.json")
    if not isinstance(content, dict) or not isinstance(content.get("request"), str):
        raise InputError("does not describe a response", file=response / "response.json")
    for field, wanted in keys.bound.items():
        if content.get(field) != wanted:
            raise InputError(
                "was made for other keys" if field == "key" else "was made for another compiled model",
                file=response / "response.json",
                field=field,
                value=content.get(field),
                expected=wanted,
            )
    name = content["request"]
    if not keys.note(name).is_file():
        raise InputError(
            "answers a request that was not made with these keys",
            file=response / "response.json",
            field="request",
            value=name,
        )
    request = Request(name, keys.client, keys.bound, read_json(keys.note(name)))
    paths = [response / f"{index:05d}.ct" for index in range(request.batches)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        msg = f"{len(missing)} of {len(paths)} ciphertexts are missing"
        fix = "run the evaluation again; it goes on where it stopped"
        raise InputError(msg, file=response, field=missing[0], fix=fix)
    answers = Answers(request, keys.decryptor())
    for index, path in enumerate(tqdm(paths, desc="decrypting", unit="ciphertext")):
        payload = messages.read_message(path, "output", most=answers.most_bytes, **request.place(index))
        answers.add(index, payload, file=path)
    return answers


def refuse_existing(folder: Path, name: str) -> None:
    """Refuse to write a request or response over another one."""
    if (folder / name).exists() or (folder.exists() and not folder.is_dir()):
        raise InputError("already holds something", file=folder, field=name, fix="choose another folder")


def need_disk(folder: Path, wanted: int) -> None:
    """Refuse early where the disk is too small."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < wanted or not os.access(there, os.W_OK):
        raise InputError(
            "the disk has too little room" if free < wanted else "cannot be written to",
            file=folder,
            value=f"{free / 2**30:.2f} GiB free",
            expected=f"{wanted / 2**30:.2f} GiB",
        )
