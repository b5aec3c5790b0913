"""Two real ciphertexts in one bootstrapping: tensors a and b are refreshed as a + i b, and told apart again.

Refreshing happens in the standard ring of degree 2N, whose slots are complex, while layers are evaluated in the
conjugate-invariant ring of degree N, whose slots are real. The engine's circuit takes one real ciphertext at a time and
leaves the imaginary part empty. So it is given standard parameters here, and the way between the rings is taken by this
file, with the key owner's keys for it (`keys`), as Lattigo's own domain switcher does for one ciphertext:

- there: ``c = a + i b`` is a ciphertext of the larger ring under the smaller ring's secret; a key switch.
- back: a key switch to the smaller ring's secret s, which conjugation leaves alone; then ``z + conj z`` and
  ``-i (z - conj z)`` of both parts are ciphertexts of 2 a and 2 b. The engine's scale is halved, which undoes it.

A polynomial modulo a prime q is kept as two of the smaller ring, ``re + i im``: ``i = X^N`` is a number modulo q at
each root of unity, I at the first half of the engine's values and -I at the others. So transforms are those of
`histocrypt.encrypted.batch.field`. Key switching is hybrid (Han and Ki, 2020), with one digit.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine
from histocrypt.encrypted.batch.ring import Ring
from histocrypt.encrypted.parameters import Parameters
from histocrypt.encrypted.residues import root_of_unity
from histocrypt.encrypted.resnet import residual
from histocrypt.errors import InputError

LIMBS = 2
"""Primes of what is refreshed: it has level 1."""


class Refresher:
    """Refreshes ciphertexts of the conjugate-invariant ring, two at a time. Not for two threads at once.

    Parameters
    ----------
    parameters
        Of the network.
    primes, special
        Of the bootstrapping ring, from `histocrypt.encrypted.resnet.keys.bootstrapping_primes`.
    keys, start
        File of the bootstrapping keys, and where they begin.

    Raises
    ------
    InputError
        If the keys are of other parameters, or of a version whose keys gave the secret away.
    """

    def __init__(
        self, parameters: Parameters, primes: Sequence[int], special: Sequence[int], keys: Path, *, start: int
    ) -> None:
        kept = len(parameters.logq)
        with keys.open("rb") as file:
            file.seek(start + 2)  # there are no keys between two standard rings
            there = _read_key(file, parameters, (len(primes), len(special)), LIMBS)
            back = _read_key(file, parameters, (kept, kept), kept)
        self._there = _Switch(parameters.logn, primes[:LIMBS], special, there)
        self._back = _Switch(parameters.logn, primes[:kept], special[:kept], back)
        self._scale = f"{float(1 << parameters.log_scale):.39e}"
        again = parameters.bootstrapping
        standard = replace(parameters, logn=again.logn, ring="standard", log_scale=parameters.log_scale - 1)
        node = engine.Node("refresh", "bootstrap", LIMBS - 1, (), residual.refresh_config(standard))
        with tempfile.TemporaryDirectory() as folder:
            engine.write_model(Path(folder) / "refresh.orion", standard, [node], set())
            self._model = engine.load_model(Path(folder) / "refresh.orion")
        none = np.zeros(
            2, dtype=np.uint8
        )  # neither a relinearisation key nor rotation keys beside those of the circuit
        self._evaluator = engine.Evaluator(standard, none, keys, bootstrapping_start=start)

    def __call__(self, ciphertexts: Sequence[bytes]) -> list[bytes]:
        """Return all of them refreshed; the last of an odd number goes alone."""
        return [one for at in range(0, len(ciphertexts), 2) for one in self._together(ciphertexts[at : at + 2])]

    def _together(self, ciphertexts: Sequence[bytes]) -> list[bytes]:
        """Refresh one or two."""
        head, first = _unpack(ciphertexts[0], LIMBS)
        other, second = _unpack(ciphertexts[-1], LIMBS)
        if head["PlaintextMetaData"]["Scale"] != other["PlaintextMetaData"]["Scale"]:
            raise ValueError("the ciphertexts to be refreshed together have other scales")
        joined = np.stack([first, second if len(ciphertexts) > 1 else np.zeros_like(first)], axis=1)
        given = self._there(joined, fold=False)
        packed = _pack(head, np.concatenate([given[:, 0], given[:, 1, :, ::-1]], axis=-1))
        (refreshed,) = self._evaluator(self._model, [packed])
        head, values = _unpack(refreshed, len(self._back.primes))
        halves = values.reshape(*values.shape[:2], 2, -1)
        parts = self._back(np.stack([halves[:, :, 0], halves[:, :, 1, ::-1]], axis=1), fold=True)
        head["PlaintextMetaData"]["Scale"]["Value"] = self._scale
        return [_pack(head, parts[:, number]) for number in range(len(ciphertexts))]

    def close(self) -> None:
        """Free keys and buffers."""
        self._evaluator.close()
        self._model.close()


class _Switch:
    """Switches ciphertexts between secrets. Arrays are (2: b, a; 2: first half, second half reversed; primes; N)."""

    def __init__(self, logn: int, primes: Sequence[int], special: Sequence[int], key: np.ndarray) -> None:
        self.primes, self.special = list(primes), list(special)
        self._ring, self._rest = Ring(logn, [*primes, *special]), Ring(logn, special)
        self._kept = Ring(logn, primes)
        every = self._ring.moduli
        inverse = [pow(1 << 64, -1, prime) for prime in every]
        self._key = self._ring.multiply(key, self._constant(inverse))  # out of Montgomery's form
        self._i = self._constant([pow(root_of_unity(prime, 4 << logn), 1 << logn, prime) for prime in every])
        self._half = self._constant([pow(2, -1, prime) for prime in every])
        product = math.prod(special)
        self._divide = self._constant([pow(product, -1, prime) for prime in primes])

    def _constant(self, numbers: Sequence[int]) -> np.ndarray:
        """Return one number a prime, (primes, N) uint64."""
        return np.broadcast_to(np.array(numbers, dtype=np.uint64)[:, None], (len(numbers), self._ring.n))

    def __call__(self, ciphertext: np.ndarray, *, fold: bool) -> np.ndarray:
        """Switch a ciphertext.

        Parameters
        ----------
        ciphertext
            Real and imaginary part (2: b, a; 2: re, im; primes; N) where not folded; the halves of values where folded.
        fold
            Return twice the real part and twice the imaginary part, not the halves of values.
        """
        ring, number = self._ring, len(self.primes)
        b, a = ciphertext
        if fold:
            b, a = self._parts(b, double=True), self._parts(a)
        digit = np.stack([np.concatenate([part, _extend(part, self._kept, self._rest)]) for part in a])
        halves = self._halves(digit)
        found = []
        for key in self._key:
            parts = self._parts(ring.multiply(halves, key), double=fold)
            rounded = np.stack([_extend(part[number:], self._rest, self._kept) for part in parts])
            found.append(self._kept.multiply(self._kept.subtract(parts[:, :number], rounded), self._divide))
        found[0] = self._kept.add(found[0], b)
        out = np.stack(found)
        return out if fold else np.stack([self._halves(part) for part in out])

    def _halves(self, parts: np.ndarray) -> np.ndarray:
        """Return the halves of values of re + i im: (2, primes, N)."""
        ring = self._ring if parts.shape[1] == len(self._ring.moduli) else self._kept
        turned = ring.multiply(parts[1], self._i[: parts.shape[1]])
        return np.stack([ring.add(parts[0], turned), ring.subtract(parts[0], turned)])

    def _parts(self, halves: np.ndarray, *, double: bool = False) -> np.ndarray:
        """Return re and im of halves of values, or twice both."""
        number = halves.shape[1]
        ring = self._ring if number == len(self._ring.moduli) else self._kept
        again = ring.multiply(ring.subtract(halves[1], halves[0]), self._i[:number])  # 1 / I is -I
        parts = np.stack([ring.add(halves[0], halves[1]), again])
        return parts if double else ring.multiply(parts, self._half[:number])


def _extend(values: np.ndarray, source: Ring, target: Ring) -> np.ndarray:
    """Return a polynomial's centred values modulo the product of some primes, modulo others: (L, N) to (K, N)."""
    product, spare = math.prod(source.moduli), np.empty(source.n, dtype=np.uint64)
    coefficients, shares = np.empty_like(values), np.zeros(source.n)
    for each, value, out in zip(source.fields, values, coefficients, strict=True):
        each.backward(np.ascontiguousarray(value), spare, out)
    rest = [[pow(product // prime, -1, prime)] for prime in source.moduli]
    scaled = source.multiply(coefficients, np.array(rest, dtype=np.uint64))
    for row, prime in zip(scaled, source.moduli, strict=True):
        shares += row / prime
    terms = [(row, product // prime) for row, prime in zip(scaled, source.moduli, strict=True)]
    terms.append((np.rint(shares).astype(np.uint64), -product))
    total = np.zeros((len(target.moduli), source.n), dtype=np.uint64)
    for row, factor in terms:
        factors = np.array([[factor % prime] for prime in target.moduli], dtype=np.uint64)
        total = target.add(total, target.multiply(row[None], factors))
    out = np.empty_like(total)
    for each, value, place in zip(target.fields, total, out, strict=True):
        each.forward(value, each, spare, place)
    return out


def _read_key(file: Any, parameters: Parameters, limbs: tuple[int, int], taken: int) -> np.ndarray:
    """Read a key of so many primes and special primes: halves of its first row's values for ``taken`` of the former.

    Returns
    -------
    (2: b, a; 2: first half, second half reversed; primes; N) uint64.
    """
    n = 2 << parameters.logn
    rows = -(-limbs[0] // limbs[1])
    each = 2 + 2 * (2 + sum(limbs) * (1 + n))
    data = file.read(1 + 8 * (2 + rows * each))
    if len(data) < 1 + 8 * (2 + rows * each):
        raise InputError("is cut off within a key", file=file.name, field="bytes", fix="send the evaluation keys again")
    words = np.frombuffer(data, "<u8", offset=1)
    row = words[2 : 2 + each]
    polynomials, found = row[2:].reshape(2, -1), []
    sizes = [int(words[1]), *(int(part[0]) for part in polynomials)]
    sizes += [int(part[1 + limbs[0] * (1 + n)]) for part in polynomials]
    wanted = [rows, limbs[0], limbs[0], limbs[1], limbs[1]]
    if data[:1] != b"\x01" or sizes != wanted:
        problem = "are not bootstrapping keys of these parameters, or come from a version that leaked the secret key"
        fix, field = "make new keys for this network; treat everything encrypted with the old ones as readable", "limbs"
        raise InputError(problem, file=file.name, field=field, value=sizes, expected=str(wanted), fix=fix)
    for part in polynomials:
        first, second = np.split(part[1:], [limbs[0] * (1 + n)])
        chains = first.reshape(-1, 1 + n)[:taken, 1:], second[1:].reshape(-1, 1 + n)[:, 1:]
        values = np.concatenate(chains).reshape(-1, 2, n // 2)
        found.append([values[:, 0], values[:, 1, ::-1]])
    return np.array(found)


def _unpack(ciphertext: bytes, limbs: int) -> tuple[dict[str, Any], np.ndarray]:
    """Return the description of a ciphertext as the engine stores it, and its first primes' values (2, limbs, N)."""
    head, end = json.JSONDecoder().raw_decode(ciphertext[1:4096].decode("latin-1"))
    count, found, size = struct.unpack_from("<3Q", ciphertext, 1 + end)
    values = np.frombuffer(ciphertext, "<u8", offset=9 + end).reshape(2, 1 + found * (1 + size))
    if count != 2 or found < limbs:
        raise ValueError(f"a ciphertext of {found} primes cannot be refreshed")
    return head, values[:, 1:].reshape(2, found, 1 + size)[:, :limbs, 1:]


def _pack(head: dict[str, Any], values: np.ndarray) -> bytes:
    """Return a ciphertext (2, limbs, N) as the engine stores it."""
    words = np.empty((2, 1 + values.shape[1] * (1 + values.shape[2])), dtype="<u8")
    words[:, 0] = values.shape[1]
    limbs = words[:, 1:].reshape(2, values.shape[1], -1)
    limbs[:, :, 0], limbs[:, :, 1:] = values.shape[2], values
    return b"\x01" + json.dumps(head, separators=(",", ":")).encode() + struct.pack("<Q", 2) + words.tobytes()
