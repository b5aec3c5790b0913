"""Arithmetic of the conjugate-invariant ring on raw residues, as the engine keeps them, without the engine.

A polynomial of N coefficients modulo L primes is an array (L, N) uint64: its values in the engine's order, see
`kernels`. A ciphertext is (2, L, N): (b, a) with b + a s the message, at level L - 1. All loops run without the
interpreter's lock, so that threads of a pool share one `Ring` and one `Keys`; each thread keeps its own room, about
(L + 1)(L + 2) polynomials.

Key switching follows Han and Ki (2020, "Better bootstrapping for approximate homomorphic encryption"), one digit for
each prime; several rotations of one ciphertext share its digits (Halevi and Shoup, 2018, "Faster homomorphic linear
transformations in HElib").
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.batch import kernels
from histocrypt.encrypted.batch.field import WORD, field
from histocrypt.encrypted.batch.products import product_with
from histocrypt.encrypted.engine import GENERATOR
from histocrypt.encrypted.residues import bit_reversed
from histocrypt.errors import InputError

LARGEST_PRIME = 1 << 61
LARGEST_WHOLE = 1 << 53
"""Up to here doubles hold every whole number."""
COLUMNS = 512
"""Values of each polynomial that one matrix product takes."""
STRETCHES = 4
"""Pieces of each polynomial that threads share."""


class Ring:
    """Tables for the primes of one parameter set.

    Parameters
    ----------
    logn
        log2 of N, at least 6; keys need 8.
    moduli
        The ciphertext primes, below 2^61, each one more than a multiple of 4N.
    special
        The special prime of key switching, if there is one.

    Raises
    ------
    ValueError
        If a prime does not fit the ring or the machine's words.
    """

    def __init__(self, logn: int, moduli: Sequence[int], special: int | None = None) -> None:
        self.logn, self.n = logn, 1 << logn
        self.moduli, self.special = tuple(map(int, moduli)), special
        self.primes = (*self.moduli, *([] if special is None else [int(special)]))
        largest = max(self.primes)
        if logn < 6 or any(prime % (4 * self.n) != 1 for prime in self.primes):
            raise ValueError(f"the primes {self.primes} have no transform of {self.n} values")
        if largest >= LARGEST_PRIME or (len(self.moduli) + 2) * largest >= WORD:
            raise ValueError(f"{len(self.moduli)} primes of up to {largest.bit_length()} bits overflow 64 bits")
        self.fields = [field(prime, logn) for prime in self.primes]
        self._primes, self._inverses, self._squares = (
            np.array([getattr(each, name) for each in self.fields]) for name in ("prime", "inverse", "square")
        )
        self._rooms = threading.local()
        self._inverse = cache(lambda prime, number: field(prime, logn).pair(pow(number, -1, prime)))

    def room(self, polynomials: int) -> np.ndarray:
        """Return this thread's room for intermediate values, (polynomials, N) uint64, without clearing it."""
        held = getattr(self._rooms, "held", None)
        if held is None or len(held) < polynomials:
            self._rooms.held = held = np.empty((polynomials, self.n), dtype=np.uint64)
        return held[:polynomials]

    def residues(self, coefficients: np.ndarray, level: int) -> np.ndarray:
        """Return polynomials of whole coefficients as residues.

        Parameters
        ----------
        coefficients
            (..., N) float64 or int64, whole, below 2^62 in absolute value.
        level
            Of the result.

        Returns
        -------
        (..., level + 1, N) uint64.
        """
        rows = np.ascontiguousarray(coefficients).reshape(-1, self.n)
        out = np.empty((len(rows), level + 1, self.n), dtype=np.uint64)
        reduced, spare = self.room(2)
        for row, targets in zip(rows, out, strict=True):
            for each, target in zip(self.fields, targets, strict=False):
                kernels.reduce_whole(row, each.prime, each.reciprocal, reduced)
                each.forward(reduced, each, spare, target)
        return out.reshape(*np.shape(coefficients)[:-1], level + 1, self.n)

    def uniform(self, seed: bytes, level: int) -> np.ndarray:
        """Return a uniform polynomial, (level + 1, N) uint64: everybody who has the seed gets the same.

        For each prime, SHAKE-128 of the seed and the prime's place (4 bytes, little endian) gives words, little endian.
        Those from the last whole multiple of the prime on are left out, so that the rest of each is unbiased.
        """
        out = np.empty((level + 1, self.n), dtype=np.uint64)
        for place, prime in enumerate(self.moduli[: level + 1]):
            digest = hashlib.shake_128(seed + place.to_bytes(4, "little"))
            last = WORD // prime * prime - 1
            drawn = self.n * WORD // last + 64
            while len(kept := _below(last, digest.digest(8 * drawn))) < self.n:
                drawn += drawn // 8  # the longer output begins with the shorter one
            out[place] = kept[: self.n] % np.uint64(prime)
        return out

    def multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Multiply (..., L, N) polynomials or ciphertext parts; leading axes are broadcast."""
        return self._each(kernels.multiply, a, b, self._primes, self._inverses, self._squares)

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Add (..., L, N)."""
        return self._each(kernels.add, a, b, self._primes)

    def subtract(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Subtract (..., L, N)."""
        return self._each(kernels.subtract, a, b, self._primes)

    def _each(self, kernel: Any, a: np.ndarray, b: np.ndarray, *constants: np.ndarray) -> np.ndarray:
        a, b = np.broadcast_arrays(a, b)
        out = np.empty(a.shape, dtype=np.uint64)
        rows = (np.ascontiguousarray(each).reshape(-1, *a.shape[-2:]) for each in (a, b))
        kernel(*rows, *constants, out.reshape(-1, *a.shape[-2:]))
        return out

    def rescale(self, ciphertext: np.ndarray) -> np.ndarray:
        """Divide (..., L, N) by the last prime and round: (..., L - 1, N)."""
        number = ciphertext.shape[-2]
        rows = np.ascontiguousarray(ciphertext).reshape(-1, number, self.n)
        out = np.empty((len(rows), number - 1, self.n), dtype=np.uint64)
        for row, target in zip(rows, out, strict=True):
            self._drop(row, (number - 1,), self.room(5), target)
        return out.reshape(*ciphertext.shape[:-2], number - 1, self.n)

    def _drop(self, values: np.ndarray, dropped: tuple[int, ...], room: np.ndarray, out: np.ndarray) -> None:
        """Divide by one prime or two and round, the same as one after the other, with one transform a kept prime.

        Parameters
        ----------
        values
            (L + 1 or 2, N) modulo the kept primes, then the dropped ones.
        dropped
            Their places, the first to be divided by first.
        room
            (5, N).
        out
            (L, N).
        """
        kept, first = len(out), self.fields[dropped[0]]
        spare, rest, more, joined, image = room
        first.backward(values[kept], spare, rest)
        if len(dropped) == 2:
            second = self.fields[dropped[1]]
            second.backward(values[kept + 1], spare, joined)
            inverse = self._inverse(second.number, first.number)
            kernels.difference(joined, rest, first.prime, *inverse, second.prime, second.reciprocal, more)
        divisor = math.prod(self.primes[place] for place in dropped)
        for each, value, target in zip(self.fields, values[:kept], out, strict=False):
            if len(dropped) == 2:
                factor = each.pair(first.number)
                kernels.combine(rest, first.prime, more, second.prime, *factor, each.prime, each.reciprocal, joined)
                each.forward(joined, each, spare, image)
            else:
                each.forward(rest, first, spare, image)
            inverse = self._inverse(each.number, divisor)
            kernels.difference(value, image, each.prime, *inverse, each.prime, each.reciprocal, target)

    @property
    def largest_weight_sum(self) -> int:
        """What the absolute weights of one output of `linear` may sum to at most, about 2^24."""
        return LARGEST_WHOLE // max(1 << 29, *(((prime >> 1) + (1 << 29) >> 30) + 1 for prime in self.moduli))

    def linear(
        self,
        weights: np.ndarray,
        ciphertexts: np.ndarray,
        biases: Sequence[int] | None = None,
        *,
        columns: int = COLUMNS,
        pool: Executor | None = None,
        device: str | None = None,
    ) -> np.ndarray:
        """Return whole combinations of ciphertexts, exactly: matrix products of halves of residues in doubles.

        Besides the result, each thread takes 16 (I + O) ``columns`` bytes.

        Parameters
        ----------
        weights
            (O, I) float64, whole.
        ciphertexts
            (I, 2, L, N) uint64.
        biases
            O whole numbers of any size, times the result's scale: added to every slot.
        columns
            Values of a polynomial that one product takes, a power of two.
        pool
            Threads that share the work; every product of theirs should take one.
        device
            Of the products, see `products.product_with`.

        Returns
        -------
        (O, 2, L, N) uint64, at the same level, whatever the threads.

        Raises
        ------
        ValueError
            If weights are not whole, or one output's are too large for sums of products to be exact.
        """
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        outputs, inputs = weights.shape
        largest = np.abs(weights).sum(axis=1).max()
        if not (weights == np.rint(weights)).all() or not largest <= self.largest_weight_sum:
            raise ValueError(f"weights must be whole and sum to {self.largest_weight_sum} at most, not {largest}")
        number, columns = ciphertexts.shape[2], min(columns, self.n)
        ciphertexts = np.ascontiguousarray(ciphertexts)
        out = np.empty((outputs, 2, number, self.n), dtype=np.uint64)
        none = np.zeros(outputs, dtype=np.uint64)
        shifts = [none if biases is None else _modulo(biases, prime) for prime in self.moduli[:number]]
        stretch, multiply = max(columns, self.n // STRETCHES), product_with(weights, device=device)

        def combine(limb: int, part: int, first: int) -> None:
            halves, products = np.empty((inputs, 2 * columns)), np.empty((outputs, 2 * columns))
            prime, shift = np.uint64(self.moduli[limb]), none if part else shifts[limb]
            for start in range(first, first + stretch, columns):
                kernels.halve(ciphertexts, part, limb, start, prime, halves)
                multiply(halves, products)
                kernels.join(products, shift, part, limb, start, prime, out)

        parts = product(range(number), range(2), range(0, self.n, stretch))
        for _ in (map if pool is None else pool.map)(combine, *zip(*parts, strict=True)):
            pass
        return out

    def automorphism(self, rotation: int) -> np.ndarray:
        """Return where each value comes from when slots rotate to the left, (N,) int64."""
        order, bits = 4 * self.n, bit_reversed(self.n)
        exponents = (4 * bits + 1) * pow(GENERATOR, rotation % order, order) % order
        return bits[(exponents - 1) // 4]


def _modulo(numbers: Sequence[int], prime: int) -> np.ndarray:
    """Return whole numbers of any size modulo a prime."""
    return np.array([int(number) % prime for number in numbers], dtype=np.uint64)


def _below(last: int, data: bytes) -> np.ndarray:
    """Return the words of data, little endian, up to ``last``."""
    words = np.frombuffer(data, dtype="<u8")
    return words[words <= np.uint64(last)]


@dataclass
class Keys:
    """A client's evaluation keys, and what is done with them. One object serves several threads.

    Each key is (L, 2, L + 1, N) uint64 in Montgomery's form: digit, (b, a), prime.
    """

    ring: Ring
    relinearisation: np.ndarray
    rotations: dict[int, np.ndarray]
    """Slots to the left, modulo N, to the key."""

    def __post_init__(self) -> None:
        ring = self.ring
        if ring.special is None or ring.n < kernels.BLOCK:
            raise ValueError("key switching needs a special prime, and 256 slots at least")
        lifted = [[many * ring.special * WORD * WORD % prime for prime in ring.moduli] for many in (1, 2)]
        self._lifted = np.array(lifted, dtype=np.uint64)
        self._places = {rotation: ring.automorphism(rotation) for rotation in self.rotations}
        self._none = np.empty(0, dtype=np.uint64)
        self._ones = np.ones(ring.n, dtype=np.uint64)

    @classmethod
    def read(
        cls,
        source: Path | bytes | np.ndarray,
        ring: Ring,
        rotations: Sequence[int] = (),
        *,
        start: int = 0,
        after: int = 0,
    ) -> Keys:
        """Read the engine's keys and check every length and value; memory: the keys once, and one key more.

        Parameters
        ----------
        source
            A file, or its bytes.
        ring
            With a special prime.
        rotations
            That the model needs; the keys must be these and no others.
        start, after
            Where the keys begin, and bytes that follow them.

        Raises
        ------
        InputError
            Naming what differs.
        """
        file = source if isinstance(source, Path) else None

        def check(field: str, found: Any, wanted: Any) -> None:
            if not np.array_equal(found, wanted):
                problem, fix = "are not evaluation keys for these parameters", "make keys again for this model"
                raise InputError(problem, file=file, field=field, value=str(found)[:80], expected=str(wanted), fix=fix)

        form = _key_form(ring)
        order = 4 * ring.n
        elements = {pow(GENERATOR, rotation % ring.n, order): rotation % ring.n for rotation in rotations}
        size = 1 + form.itemsize + 5 + len(elements) * (24 + form.itemsize)
        check("bytes", (file.stat().st_size if file else memoryview(source).nbytes) - start - after, size)
        at = start

        def take(kind: Any) -> Any:
            """Read one item; not by a map, whose pages would count as memory."""
            nonlocal at
            kind = np.dtype(kind)
            part = np.fromfile(file, kind, 1, offset=at) if file else np.frombuffer(source, kind, 1, at)
            at += kind.itemsize
            return part[0]

        def take_key(field: str) -> np.ndarray:
            stored = take(form)
            check(field, [stored["zero"], stored["digits"]], [0, len(ring.moduli)])
            rows = stored["rows"]
            parts = rows["parts"]
            for found, wanted in (
                (rows["height"], 1),
                (rows["width"], 2),
                (parts["limbs"], len(ring.moduli)),
                (parts["degrees"]["size"], ring.n),
                (parts["special_limbs"], 1),
                (parts["special"]["size"], ring.n),
            ):
                check(field, np.unique(found), [wanted])
            key = np.empty((len(ring.moduli), 2, len(ring.primes), ring.n), dtype=np.uint64)
            key[:, :, :-1], key[:, :, -1] = parts["degrees"]["values"], parts["special"]["values"]
            most = key.max(axis=(0, 1, 3))
            wrong = most >= np.array(ring.primes, dtype=np.uint64)
            if wrong.any():
                check(field, int(most[wrong][0]), f"below {ring.primes[int(np.flatnonzero(wrong)[0])]}")
            return key

        check("relinearisation key", take("u1"), 1)
        relinearisation, found = take_key("relinearisation key"), {}
        check("rotation keys", [take("u1"), take("<u4")], [1, len(elements)])
        for element in sorted(elements):
            field = f"rotation key {element}"
            check(field, [take("<u8") for _ in range(3)], [element, element, order])
            found[elements[element]] = take_key(field)
        return cls(ring, relinearisation, found)

    def square(self, ciphertext: np.ndarray, *, rescale: bool = True) -> np.ndarray:
        """Square (2, L, N) and relinearise; rescale by the last prime: (2, L - 1, N), scale^2 / prime, or leave it.

        The square, times the special prime, joins the sum of the relinearisation; one division by one or both primes
        ends it.
        """
        ring, number = self.ring, ciphertext.shape[1]
        if number < 2 and rescale:
            raise ValueError("a square that is rescaled needs two primes at least")
        kept = number - rescale
        limbs = (*range(kept), len(ring.moduli), *range(kept, number))
        b, a = np.ascontiguousarray(ciphertext)
        room = ring.room(number * (number + 1) + 2 * number + 6)
        digits, scaled, sums, spare = np.split(room, np.cumsum([number * (number + 1), number, number + 1]))
        digits = digits.reshape(number + 1, number, ring.n)
        self._decompose(ring.multiply(a, a), limbs, spare, digits)
        out = np.empty((2, kept, ring.n), dtype=np.uint64)
        for part, other in enumerate((b, a)):
            self._scale(b, self._lifted[part], scaled)
            self._sum(part, self.relinearisation, digits, limbs, (scaled, other), sums)
            ring._drop(sums, limbs[kept:], spare, out[part])
        return out

    def rotate(self, ciphertext: np.ndarray, rotations: Sequence[int]) -> list[np.ndarray]:
        """Rotate the slots of (2, L, N) to the left, once for each of ``rotations``; none needs no key."""
        ring, number = self.ring, ciphertext.shape[1]
        ciphertext = np.ascontiguousarray(ciphertext)
        limbs = (*range(number), len(ring.moduli))
        room = ring.room(number * (number + 1) + 3 * number + 6)
        digits, scaled, sums, dropped, spare = np.split(
            room, np.cumsum([number * (number + 1), number, number + 1, number])
        )
        digits = digits.reshape(number + 1, number, ring.n)
        if any(rotation % ring.n for rotation in rotations):
            self._decompose(ciphertext[1], limbs, spare, digits)
            self._scale(ciphertext[0], self._lifted[0], scaled)
        found = []
        for rotation in rotations:
            out = ciphertext.copy()
            if rotation % ring.n:
                key, place = self.rotations[rotation % ring.n], self._places[rotation % ring.n]
                for part, more in enumerate(((scaled, [self._ones] * number), None)):
                    self._sum(part, key, digits, limbs, more, sums)
                    ring._drop(sums, limbs[-1:], spare, dropped)
                    np.take(dropped, place, axis=1, out=out[part], mode="clip")
            found.append(out)
        return found

    def _scale(self, values: np.ndarray, factors: np.ndarray, out: np.ndarray) -> None:
        kernels.scale_rows(values, factors, self.ring._primes, self.ring._inverses, out)

    def _decompose(self, values: np.ndarray, limbs: Sequence[int], room: np.ndarray, out: np.ndarray) -> None:
        """Write the digits of values (L, N), one a prime, modulo every prime of ``limbs``: out (limbs, L, N)."""
        fields = self.ring.fields
        coefficients, spare = room[:2]
        for k, value in enumerate(values):
            fields[k].backward(value, spare, coefficients)
            for place, j in enumerate(limbs):
                if j == k:
                    out[place, k] = value
                else:
                    fields[j].forward(coefficients, fields[k], spare, out[place, k])

    def _sum(
        self, part: int, key: np.ndarray, digits: np.ndarray, limbs: Sequence[int], more: Any, out: np.ndarray
    ) -> None:
        """Write the sums of digits times a key, and of a product ``more`` modulo all but the special prime."""
        number = digits.shape[1]
        for place, j in enumerate(limbs):
            each = self.ring.fields[j]
            pair = (self._none, self._none) if more is None or j >= number else (more[0][j], more[1][j])
            kernels.inner_product(digits[place], key[:number, part, j], *pair, each.prime, each.inverse, out[place])


def _key_form(ring: Ring) -> np.dtype:
    """Return the layout of a switching key in the engine's files: all lengths stand before what they count."""
    polynomial = np.dtype([("size", "<u8"), ("values", "<u8", (ring.n,))])
    part = np.dtype(
        [
            ("limbs", "<u8"),
            ("degrees", polynomial, (len(ring.moduli),)),
            ("special_limbs", "<u8"),
            ("special", polynomial),
        ]
    )
    row = np.dtype([("height", "<u8"), ("width", "<u8"), ("parts", part, (2,))])
    return np.dtype([("zero", "<u8"), ("digits", "<u8"), ("rows", row, (len(ring.moduli),))])
