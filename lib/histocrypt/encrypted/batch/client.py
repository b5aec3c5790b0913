"""The key owner's side of a batch: hundreds of tiles in one message."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted.batch.layout import Layout
from histocrypt.encrypted.batch.packed import pack_residues, packed_bytes, unpack_residues
from histocrypt.encrypted.batch.plan import LOG_SCALE
from histocrypt.encrypted.messages import LONGEST_HEADER, Data
from histocrypt.encrypted.parameters import Parameters, check_security
from histocrypt.encrypted.single import Client, Sliced, hash_of
from histocrypt.errors import InputError

if TYPE_CHECKING:
    from histocrypt.encrypted import engine
    from histocrypt.encrypted.batch.ring import Ring

SEED = 32
"""Bytes of a message's seed: the second half of every ciphertext comes out of it, and is not sent."""
LINE = 30e6
"""Bytes a second, where layouts are compared."""
AT_ONCE = 16
"""Ciphertexts that are made before they are handed on."""
SMALLEST = 64
"""Places of a message, at least: what sums over positions are read with."""
LOG_MOST, MOST_INPUTS, MOST_LAYOUTS = 61, 1 << 16, 16
"""Bits of a prime, ciphertexts of a message, and layouts: at most."""


@dataclass(frozen=True)
class BatchClient(Client):
    """The form ``batch`` of a compiled model's public part."""

    batched: dict[str, Any] = field(default_factory=dict)
    """``parameters``, ``moduli``, ``special``, ``layouts`` (how many convolutions each folds, and its cost) and
    ``scale`` of the outputs."""
    number: int = 0
    """Of the layout: each is a form of its own, with keys of its own."""

    form = "batch"
    alike = False

    @classmethod
    def of(cls, about: dict[str, Any], file: Path) -> list[BatchClient]:
        """Return the forms of a public part, one for each layout; none where a model has none.

        Raises
        ------
        InputError
            If its parameters give less than 128 bits, or it does not fit together.
        """
        batched = about.get("batch_form")
        if batched is None:
            return []
        try:
            parameters = Parameters.from_dict(batched["parameters"])
            check_security(parameters, file=file)
            every = [cls(about, parameters, file, batched, number) for number in range(len(batched["layouts"]))]
            sound = 0 < len(every) <= MOST_LAYOUTS and all(form.is_sound() for form in every)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            sound = False
        if not sound:
            problem, fix = "does not fit together", "ask the model's owner for it again"
            raise InputError(problem, file=file, field="batch_form", fix=fix)
        return every

    def is_sound(self) -> bool:
        """Whether all that it says of itself can be true; what cannot be read raises one of Python's own errors."""
        p, one, cost = self.parameters, self.layout, self.batched["layouts"][self.number]["cost"]
        return (
            (p.ring, p.bootstrapping, p.log_scale) == ("conjugate_invariant", None, LOG_SCALE)
            and len(self.moduli) == len(p.logq)
            and len(self.moduli) - self.squares in ((2,) if one.folded else (1, 2) if self.squares else (1,))
            and all(prime >> LOG_MOST == 0 and prime % (4 * p.slots) == 1 for prime in (*self.moduli, self.special))
            and type(one.folded) is int
            and 0 <= one.folded <= max(self.squares - 1, 0)
            and one.grid > 0
            and one.tiles >= SMALLEST
            and one.inputs <= MOST_INPUTS
            and 0 < cost < math.inf
            and 0 < self.batched["scale"] < math.inf
        )

    @property
    def hash(self) -> str:
        """What keys and messages of this form are bound to."""
        return hash_of({**self.about, "form": self.form, "layout": self.number})

    @cached_property
    def layout(self) -> Layout:
        """Where tiles lie. What keys that needs follows from it alone: rotations never leave a tile's own slots."""
        inputs, slots = self.about["input"], self.parameters.slots
        tiles = inputs["kind"] == "tiles"
        side, strides = (inputs["shape"][1], tuple(inputs["factors"])) if tiles else (1, ())
        folded = self.batched["layouts"][self.number]["folded"]
        return Layout(inputs["shape"][0], side, strides, folded, slots)

    @property
    def rotations(self) -> list[int]:
        """Rotations whose keys the evaluator needs."""
        return self.layout.rotations

    @property
    def moduli(self) -> list[int]:
        """The ciphertext primes."""
        return [int(prime) for prime in self.batched["moduli"]]

    @property
    def squares(self) -> int:
        """Squares of the network, each of which takes a prime."""
        return len(self.layout.strides)

    @property
    def special(self) -> int:
        """The prime of key switching."""
        return int(self.batched["special"])

    @cached_property
    def ring(self) -> Ring:
        """The arithmetic."""
        from histocrypt.encrypted.batch.ring import Ring

        return Ring(self.parameters.logn, self.moduli, self.special)

    @property
    def level(self) -> int:
        """Level at which inputs are encrypted."""
        return len(self.moduli) - 1

    @property
    def places(self) -> int:
        """How many spots share a message."""
        return self.layout.tiles

    def seconds(self, spots: int) -> float:
        """Return about how long so many spots take: CPU seconds of both sides together, and the line."""
        messages = -(-spots // self.places)
        sent = messages * self.input_bytes + self.evaluation_key_bytes()
        return messages * self.batched["layouts"][self.number]["cost"] + sent / LINE

    @property
    def input_bytes(self) -> int:
        """Size of an input message's payload."""
        return SEED + self.layout.inputs * packed_bytes(self.moduli, self.parameters.slots)

    @property
    def output_bytes(self) -> int:
        """Size of an output message's payload."""
        return len(self.about["outputs"]) * 2 * packed_bytes(self.moduli[:1], self.parameters.slots)

    @property
    def most_input_bytes(self) -> int:
        """The largest input message that is read."""
        return self.input_bytes + LONGEST_HEADER

    @property
    def most_output_bytes(self) -> int:
        """The largest output message that is read."""
        return self.output_bytes + LONGEST_HEADER

    def evaluation_key_bytes(self) -> int:
        """Return the size of all evaluation keys, the public key modulo the first prime among them."""
        switching = (len(self.rotations) + 1) * self.parameters.switching_key_bytes if self.squares else 0
        return switching + 2 * self.parameters.limb_bytes

    def evaluation_keys(self, owner: engine.KeyOwner) -> Iterator[bytes]:
        """Yield the evaluator's keys piece by piece: what switches keys, then the public key modulo the first prime."""
        from histocrypt.encrypted.batch.secret import fresh

        if self.squares:
            yield from owner.evaluation_keys(self.rotations)
        yield fresh(owner, self.ring, 1, 0).astype("<u8").tobytes()

    def encrypt(self, values: Sliced, owner: engine.KeyOwner) -> Iterator[bytes]:
        """Yield the payload of an input message: a seed, then the first half of every ciphertext, prime by prime.

        Ciphertexts are made under the secret key. The engine draws their errors; the second half of each, which is
        uniform, is then exchanged for one that everybody can make from the seed, and the first half follows it.
        """
        from histocrypt.encrypted.batch.embedding import encode
        from histocrypt.encrypted.batch.secret import fresh, read_secret, seeded
        from histocrypt.paths import threads

        seed = os.urandom(SEED)
        yield seed
        one, level, ring = self.layout, self.level, self.ring
        slots, secret = one.pack(values), read_secret(owner.secret_bytes(), ring)

        def make(number: int) -> bytes:
            zero = seeded(fresh(owner, ring, 1, level)[0], part_of(seed, number), secret, ring)
            plain = ring.residues(encode(slots[number].astype(np.float64), 2.0**LOG_SCALE), level)
            return pack_residues(ring.add(zero, plain), ring.moduli)

        with ThreadPoolExecutor(threads()) as pool:
            for start in range(0, one.inputs, AT_ONCE):
                yield from pool.map(make, range(start, min(start + AT_ONCE, one.inputs)))

    def decrypt(self, payload: Data, owner: engine.KeyOwner, *, file: Any) -> np.ndarray:
        """Return (places, outputs) from the payload of an output message: sums over the positions.

        Raises
        ------
        InputError
            If it has another size, values outside the prime field, or sums that are not plausible.
        """
        from histocrypt.encrypted.batch.embedding import slots, sum_orbits
        from histocrypt.encrypted.batch.secret import decrypt, read_secret

        if len(payload) != self.output_bytes:
            problem, fix = "is not a list of results", "have it evaluated again"
            raise InputError(problem, file=file, field="bytes", value=len(payload), expected=self.output_bytes, fix=fix)
        one, ring = self.layout, self.ring
        key, size = read_secret(owner.secret_bytes(), ring), 2 * packed_bytes(self.moduli[:1], ring.n)
        outputs = np.empty((one.tiles, len(self.about["outputs"])))
        for number, target in enumerate(outputs.T):  # one at a time: all are larger than anything else here
            part = memoryview(payload)[number * size : (number + 1) * size]
            result = unpack_residues(part, self.moduli[:1] * 2, ring.n).reshape(2, 1, ring.n)
            if result.max() >= self.moduli[0]:
                problem, value, limit = "is not a ciphertext under these parameters", int(result.max()), self.moduli[0]
                raise InputError(problem, file=file, field="coefficients", value=value, expected=f"below {limit}")
            target[:] = slots(ring, sum_orbits(ring, decrypt(result, key, ring), one.positions), self.batched["scale"])
        self.check_plausible(outputs, file=file)
        return outputs


def part_of(seed: bytes, number: int) -> bytes:
    """Return the seed of one ciphertext of a message."""
    return hashlib.sha256(seed + number.to_bytes(4, "little")).digest()
