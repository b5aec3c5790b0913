"""The form ``single``: a tile, or a few vectors of features, in a set of ciphertexts of the engine's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.messages import LONGEST_HEADER
from histocrypt.encrypted.packing import Layout, blocked, spots_side_by_side
from histocrypt.encrypted.parameters import Parameters
from histocrypt.encrypted.resnet.keys import bootstrapping_key_bytes
from histocrypt.encrypted.resnet.shifted import Shifted, cells
from histocrypt.errors import InputError

PLAUSIBLE = 4.0
"""Outputs may leave their range over the training tiles by so many times that range."""
TOLERANCE = 1e-2
"""How far copies of one output within a ciphertext may be apart, as a share of that range."""
FIX = "check that evaluation keys and ciphertexts belong together, and that the evaluator is sound"


class Sliced(Protocol):
    """An array, or what makes a slice of one when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, which: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Client:
    """The public part of a compiled model, and its form ``single``."""

    about: dict[str, Any]
    parameters: Parameters
    file: Path

    form = "single"
    alike = True
    """Whether a place of one message has the same slots, of the secret key too, as a place of another."""

    @property
    def hash(self) -> str:
        """What keys and messages are bound to."""
        return hash_of(self.about)

    @property
    def places(self) -> int:
        """How many spots share a message."""
        return self.batch

    def encrypt(self, values: Sliced, owner: engine.KeyOwner) -> Iterator[bytes]:
        """Yield the payload of an input message for at most `places` spots, (n, ...) as the network sees them."""
        values = values[:]
        if self.about["sees"] == "features":
            padded = np.zeros((self.batch, values.shape[1]))
            padded[: len(values)] = values
            values = padded.T
        for slots in self.input.pack(values):
            ciphertext = owner.encrypt(slots, self.level)
            yield messages.pack_list([ciphertext])

    def decrypt(self, payload: messages.Data, owner: engine.KeyOwner, *, file: Any) -> np.ndarray:
        """Return (places, outputs) from the payload of an output message.

        Raises
        ------
        InputError
            If it is no ciphertext of outputs, or holds anything but copies of outputs.
        """
        parts = messages.unpack_list(payload, count=self.output.ciphertexts, file=file)
        for part in parts:
            messages.check_ciphertext(part, self.parameters, self.moduli, 0, file=file)
        return self._copies(np.stack([owner.decrypt(bytes(part)) for part in parts]), file)

    def _copies(self, slots: np.ndarray, file: Any) -> np.ndarray:
        """Return (batch, outputs) from decrypted slots, after checking that nothing but copies of them is there."""
        layout = self.output
        outputs = layout.unpack(slots).T
        self.check_plausible(outputs, file=file)
        used = np.zeros((layout.ciphertexts, layout.span))
        used.reshape(-1)[layout.index] = outputs.T.reshape(-1)
        copies = slots.reshape(layout.ciphertexts, -1, used.shape[1])
        low, high = self.about["output_range"]
        if not np.abs(copies - used[:, None]).max() <= TOLERANCE * (high - low):  # NaN, too
            problem = "holds something else than copies of the outputs in its spare slots"
            raise InputError(problem, file=file, field="spare slots", fix=FIX)
        return outputs

    def check_plausible(self, outputs: np.ndarray, *, file: Any) -> None:
        """Refuse what no network of this kind gives: what decrypts to noise does not get far."""
        low, high = self.about["output_range"]
        low, high = low - PLAUSIBLE * (high - low), high + PLAUSIBLE * (high - low)
        if not np.isfinite(outputs).all() or outputs.min() < low or outputs.max() > high:
            value, plausible = float(np.abs(outputs).max()), f"{low:.2f} to {high:.2f}"
            problem = "does not decrypt to plausible values"
            raise InputError(problem, file=file, field="slots", value=value, expected=plausible, fix=FIX)

    @property
    def batch(self) -> int:
        """Spots that share one set of ciphertexts in the form ``single``."""
        return self.about["batch"]

    @property
    def input(self) -> Layout | Shifted:
        """Where inputs lie: (channels, side, side), or (features, batch)."""
        return input_layout(self.about["input"], self.parameters.slots)

    @property
    def output(self) -> Layout:
        """Where outputs lie: (outputs, batch)."""
        return spots_side_by_side(len(self.about["outputs"]), self.batch, self.parameters.slots)

    @property
    def level(self) -> int:
        """Level at which inputs are encrypted."""
        return self.about["level"]

    @property
    def rotations(self) -> list[int]:
        """Rotations whose keys the evaluator needs."""
        return self.about["rotations"]

    @property
    def moduli(self) -> list[int]:
        """The ciphertext primes."""
        return [int(prime) for prime in self.about["moduli"]]

    @property
    def most_input_bytes(self) -> int:
        """The largest input message that is read."""
        return self._most_bytes(self.input, self.level)

    @property
    def most_output_bytes(self) -> int:
        """The largest output message that is read."""
        return self._most_bytes(self.output, 0)

    @property
    def input_bytes(self) -> int:
        """Size of an input message's payload."""
        return self.input.ciphertexts * self.parameters.ciphertext_bytes

    def evaluation_keys(self, owner: engine.KeyOwner) -> Iterator[bytes]:
        """Yield the evaluator's keys piece by piece."""
        return owner.evaluation_keys(self.rotations)

    def _most_bytes(self, layout: Layout | Shifted, level: int) -> int:
        ciphertext = 2 * (level + 1) * (self.parameters.limb_bytes + 64) + 2048  # generously
        return layout.ciphertexts * ciphertext + LONGEST_HEADER

    def evaluation_key_bytes(self) -> int:
        """Return the size of all evaluation keys."""
        return (len(self.rotations) + 1) * self.parameters.switching_key_bytes + bootstrapping_key_bytes(
            self.parameters
        )


def input_layout(described: dict[str, Any], slots: int) -> Layout | Shifted:
    """Return the layout that a client part describes."""
    if described["kind"] == "cells":
        return cells(tuple(described["shape"]), slots, described["factor"], minor=False)
    if described["kind"] == "tiles":
        return blocked(tuple(described["shape"]), slots, factors=described["factors"])
    return spots_side_by_side(*described["shape"], slots)


def hash_of(about: dict[str, Any]) -> str:
    """Return a hash of everything in the client part."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
