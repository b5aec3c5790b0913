"""What a key owner does with results: copies are compared, noise is added, predictions are written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import claim

if TYPE_CHECKING:
    from histocrypt.encrypted.key_owner import Request

NOISE = 1e-2
"""Noise added to decrypted values: standard deviation, as a share of the output's own over the section."""
APART = 10.0
"""How far copies of a spot may be apart, in standard deviations of the honest error, measured on the copies."""
FEW = 30
"""Copies that say as much of one output's error as all outputs together do: loud ones err four times as much."""
FLOOD = 50.0
"""Noise is at least so many times what copies may be apart. See ``docs/threat_model.md`` for what follows from it."""
COARSE = 0.1
"""Copies that differ by more than this share of a usual output's spread are refused, whatever the others do."""
NORMAL = 0.6745
"""Median of the absolute value of a normal variable, in its standard deviations."""
SAID = ("model", "title", "fold", "seed", "weights_sha256")
"""What a prediction file says of the model in its own words."""


@dataclass(frozen=True)
class Checked:
    """Decrypted values whose copies agree."""

    values: np.ndarray
    """(spots, outputs) float64, the mean of what a spot's copies decrypted to."""
    limit: np.ndarray
    """(outputs,) how far copies might have been apart."""
    checked: float
    """Share of the places that hold a spot which lies in another place, too."""


class Answers:
    """The results of a request, decrypted and checked one by one."""

    def __init__(self, request: Request, owner: engine.KeyOwner) -> None:
        self.request, self._owner = request, owner
        self._values = np.empty((len(request.note["order"]), len(request.client.about["outputs"])))

    def add(self, index: int, payload: messages.Data, *, file: Any) -> None:
        """Decrypt what an output message holds.

        Raises
        ------
        InputError
            If it is no ciphertext of outputs, or does not decrypt to plausible ones and nothing else.
        """
        request = self.request
        outputs = request.client.decrypt(payload, self._owner, file=file)
        places = self._values[index * request.each : (index + 1) * request.each]
        places[:] = outputs[: len(places)]

    def values(self, *, file: Any) -> Checked:
        """Return each spot's outputs once all were added, after comparing copies.

        Honest copies differ by the error of the arithmetic alone, whose size is measured on them, output by output.

        Raises
        ------
        InputError
            If a copy stands out, or copies differ so much that nothing can be believed.
        """
        order = np.array(self.request.note["order"])
        n = len(self.request.note["names"])
        number = np.bincount(order, minlength=n)
        mean = np.zeros((n, self._values.shape[1]))
        np.add.at(mean, order, self._values)
        mean /= number[:, None]
        several = number[order] > 1
        error = (self._values - mean[order]) * np.sqrt(number / np.maximum(number - 1, 1))[order, None]
        error = error[several]
        usual = float(np.median(_spreads(mean, self.request.client)))
        typical = np.median(np.abs(error))
        limit = (len(error) * np.median(np.abs(error), axis=0) + FEW * 4 * typical) / (len(error) + FEW)
        limit *= APART / NORMAL
        limit = np.minimum(limit, COARSE * usual)
        apart = np.abs(error).max(axis=1)
        if not (np.abs(error) <= limit).all():  # what is no number, too
            worst = int(np.argmax((np.abs(error) / limit).max(axis=1)))
            problem = "a spot that was sent twice came back different: the evaluator mixed up spots or made up results"
            value = f"{apart[worst] / usual:.2g} standard deviations"
            expected, fix = f"at most {limit.max() / usual:.2g}", "do not use this response; make new keys"
            field = f"spot {order[several][worst]}"
            raise InputError(problem, file=file, field=field, value=value, expected=expected, fix=fix)
        return Checked(mean, limit, float(several.mean()))


def _spread(client: Client) -> float:
    low, high = client.about["output_range"]
    return high - low


def check_output(output: str | Path, *inputs: str | Path | None, overwrite: bool = False) -> Path:
    """Refuse a name that predictions are not written to, before work is done for them; see `claim`."""
    from histocrypt.pipeline.predictions import is_loose_prediction

    output = Path(output)
    if output.suffix != ".h5ad":
        wanted = "a name that ends in .h5ad"
        raise InputError("predictions are written as .h5ad", file=output, field="--output", expected=wanted)
    return claim(output, inputs=inputs, mine=is_loose_prediction, overwrite=overwrite)


def flooded(checked: Checked, request: Request, *, noise: float = NOISE) -> tuple[np.ndarray, np.ndarray]:
    """Return (spots, outputs) values to be shown, and (outputs,) the standard deviation of the noise in them.

    Noise is normal, drawn from the request's own seed: who decrypts twice gets the same file, so nothing averages out.
    Its deviation is ``noise`` of an output's spread over the section and, where that says something, at least `FLOOD`
    times what copies might have been apart; then values are rounded to the power of two below it.
    """
    values = checked.values
    deviation = noise * _spreads(values, request.client)
    if not request.client.alike:
        deviation = np.maximum(deviation, FLOOD * checked.limit)
    grid = 2.0 ** np.floor(np.log2(deviation))
    drawn = _normal(bytes.fromhex(request.note["noise"]) + np.float64(noise).tobytes(), values.shape)
    return np.round((values + deviation * drawn) / grid) * grid, deviation


def _spreads(values: np.ndarray, client: Client) -> np.ndarray:
    """Return (outputs,) standard deviations over the section, which may have one spot."""
    return np.maximum(values.std(axis=0), 1e-2 * _spread(client))


def write_result(output: Path, checked: Checked, request: Request, *, noise: float = NOISE) -> str:
    """Write decrypted values as predictions, with noise added (`flooded`), and say what may be done with them."""
    from histocrypt.data.load import Spots
    from histocrypt.encrypted.told import gate_of
    from histocrypt.pipeline.gating import add_trust
    from histocrypt.pipeline.predictions import write_predictions
    from histocrypt.targets.panels import Panel

    about, note, values, added, bits = request.client.about, request.note, checked.values, "", None
    if noise:
        values, deviation = flooded(checked, request, noise=noise)
        bits = 0.5 * len(values) * np.log2(1 + (checked.limit / deviation) ** 2).sum()
        share_of_spread = np.median(deviation / _spreads(checked.values, request.client))
        added = f"noise of {share_of_spread:.1%} of a gene's spread was added; "
    share = _share(request.client, bits, checked.checked)
    names, of_section = np.array(note["names"]), note["about"]
    spots = Spots(
        names=names,
        sections=np.full(len(names), note["section"]),
        patients=np.full(len(names), note["patient"]),
        depth=np.zeros(len(names)),
        outputs=tuple(about["outputs"]),
    )
    said = {
        **{name: about[name] for name in SAID},
        **_arrays({name: value for name, value in of_section.items() if name != "without_prediction"}),
        "part": "encrypted",
        "study": about["study"]["name"],
        "study_hash": about["study"]["hash"],
        "section": note["section"],
        "encrypted": "CKKS",
        "security_bits": SECURITY_BITS,
        "noise": float(noise),
        "share": share,
    }
    panel, coords = Panel.from_dict(about["panel"]), np.array(note["coords"])
    looked = note.get("looked_over")  # not in earlier versions' notes
    looked = None if looked is None else {name: np.array(values, dtype=float) for name, values in looked.items()}
    chosen = {"coords": coords, "panel": panel, "transforms": list(about["transforms"])}
    chosen |= {"trust": about.get("predictability")}
    chosen |= {"extra": lambda adata: add_trust(adata, about, gate_of(about), looked)}
    write_predictions(output, values.astype(np.float32), spots=spots, about=said, **chosen)
    return (
        f"{output}: {len(names)} spots x {len(panel)} genes of {note['section']}, "
        f"predicted encrypted by {about['title']}{gone(of_section)}\n{added}share this file {share}"
    )


def _arrays(said: dict[str, Any]) -> dict[str, Any]:
    """Return what a request's note says with arrays of words for lists, as ``uns`` holds them."""
    words = {name: np.array(value, dtype=str) for name, value in said.items() if isinstance(value, list)}
    within = {name: _arrays(value) for name, value in said.items() if isinstance(value, dict)}
    return {**said, **words, **within}


def _normal(seed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return normal values that follow from a secret seed, and from which it does not follow."""
    from scipy.special import ndtri

    drawn = np.frombuffer(hashlib.shake_256(seed).digest(8 * int(np.prod(shape))), "<u8")
    return ndtri(((drawn >> np.uint64(12)) + 0.5) / 2.0**52).reshape(shape)


def _share(client: Client, bits: float | None, checked: float) -> str:
    """Return with whom predictions may be shared, and why; see ``docs/threat_model.md``."""
    if bits is None:
        return "with nobody: without noise it tells of the secret key"
    if client.alike:
        return (
            "with those who may see the slide, and not with the evaluator: tiles went one by one, where a lying "
            "evaluator can make all copies agree and hide its way to the key, or pixels, in the values"
        )
    unless = (
        "" if checked == 1 else f", unless the evaluator guessed which places were not sent twice ({checked:.0%} were)"
    )
    return (
        "with those who may see the slide: a lying evaluator can have hidden pixels in the values, which no copy "
        f"tells; of the secret key at most {np.ceil(bits):.0f} bits are in it{unless}"
    )


def gone(of_section: dict[str, Any]) -> str:
    """Return how many spots have no prediction, and why."""
    return "".join(f"; {count} {reason}" for reason, count in of_section["without_prediction"].items())
