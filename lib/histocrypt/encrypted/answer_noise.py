"""Noise that the evaluator adds to outputs, still encrypted, so that clients see a model less exactly.

It is added as a plaintext: any ciphertext of outputs takes the sum of noise that is the same in all copies of an
output. It slows down who trains a copy, and blurs what outputs tell of training patients. It protects no linear head:
who may choose inputs chooses large ones, beside which the noise is small. And what a key owner cannot tell from a lie
it must refuse or bear: `key_owner` compares spots that were sent twice, whose noise differs here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histocrypt.encrypted.bundle import Bundle
from histocrypt.encrypted.messages import METADATA
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError


@dataclass(frozen=True, eq=False)
class AnswerNoise:
    """Gaussian noise for the outputs of one compiled model."""

    client: Client
    share: float
    """Standard deviation, as a share of each output's own over the training spots."""
    spread: np.ndarray
    """(outputs,) those standard deviations, in the outputs' units."""

    @classmethod
    def of(cls, bundle: Bundle, share: float) -> AnswerNoise:
        """Return the noise for a compiled model; `InputError` where it does not tell its outputs' spread."""
        client, spread = bundle.client, bundle.server.get("output_sd")
        if client.parameters.ring != "conjugate_invariant" or not isinstance(spread, list):
            problem, fix = "lacks the spread of the outputs, which noise is relative to", "compile the model again"
            raise InputError(problem, file=bundle.folder, field="output_sd", fix=fix)
        return cls(client, share, np.array(spread, dtype=np.float64))

    def draw(self, spots: int) -> np.ndarray:
        """Return (outputs, spots) float64, from the operating system's randomness."""
        from scipy.special import ndtri

        count = len(self.spread) * spots
        words = np.frombuffer(os.urandom(8 * count), dtype="<u8") >> np.uint64(11)  # 53 bits, as doubles have
        return (self.share * self.spread)[:, None] * ndtri((words + 0.5) / 2.0**53).reshape(-1, spots)

    def add(self, ciphertexts: Sequence[bytes]) -> list[bytes]:
        """Return the ciphertexts of one message's outputs, at level 0, with fresh noise added to each output.

        What they say of their scale is believed: they are the engine's.
        """
        from histocrypt.encrypted.batch.embedding import encode
        from histocrypt.encrypted.batch.ring import Ring

        client, layout = self.client, self.client.output
        ring = Ring(client.parameters.logn, client.moduli[:1])
        noise = layout.pack(self.draw(client.batch)).reshape(layout.ciphertexts, -1, layout.span)
        noisy = []
        for data, slots in zip(ciphertexts, noise, strict=True):
            said = METADATA.match(data)
            whole = encode(np.tile(slots[0], len(slots)), float(said["scale"]))
            changed = bytearray(data)  # after the form: polynomials, then limbs and degree of the first one
            first = np.frombuffer(changed, "<u8", ring.n, said.end() + 8 * 3)
            first[:] = ring.add(first[None], ring.residues(whole, 0))[0]
            noisy.append(bytes(changed))
        return noisy


def score_left(share: float, explained: float) -> float:
    """Return the factor by which noise lowers the correlation of predictions with what was measured.

    Parameters
    ----------
    share
        Standard deviation of the noise, as a share of an output's own over spots.
    explained
        Standard deviation of the predictions, as the same share; predictions vary less than what they predict.
    """
    return float(1 / np.sqrt(1 + (share / explained) ** 2))
