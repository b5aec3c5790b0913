"""Bootstrapping keys within the memory of a laptop.

The engine makes all keys of the bootstrapping ring in one call, under a secret that it draws and throws away, and holds
them three times over when it serialises them: ten gigabytes. But the key owner can find that secret out, for one of the
keys encrypts it under the key owner's own: so the engine is asked for the few keys that a bootstrapping of 16 slots
needs, the secret is read out of them, and the engine's ordinary key generator makes the rest, one key at a time.

Like `engine`, this file knows the engine's formats; it fits the same versions.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from histocrypt.encrypted import engine
from histocrypt.encrypted.parameters import CIRCUIT_LOGQ, Parameters
from histocrypt.encrypted.residues import coefficients, multiply, values

FEW = 4
"""log2 of the slots of the small bootstrapping: the fewest keys of any with the same chain of primes."""
ROTATIONS = {
    10: (
        -1020, -8, -4, 1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 128, 192, 256, 512, 768, 896, 960, 992, 1008, 1016, 1020,
        1022, 1024,
    ),
    14: (
        -16376, -16, -8, 1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 192, 256, 384, 512, 768,
        1024, 1536, 2048, 3072, 4096, 6144, 8192, 10240, 12288, 14336, 15360, 15616, 15872, 16000, 16128, 16256,
        16320, 16352, 16368, 16376, 16380, 16384,
    ),
}  # fmt: skip
"""log2 of slots, in a ring of four times as many coefficients, to the rotations that its bootstrapping needs."""
OTHER_KEYS = 5
"""As large as those for rotations, together: for conjugation, for products, between the rings and their secrets."""


def bootstrapping_key_bytes(parameters: Parameters) -> int:
    """Return about how large the keys of the bootstrapping ring are; 0 where there is none."""
    again = parameters.bootstrapping
    if again is None:
        return 0
    limbs = len(parameters.logq) + len(CIRCUIT_LOGQ)
    each = 2 * -(-limbs // len(again.logp)) * (limbs + len(again.logp)) * (8 << again.logn)
    return (len(ROTATIONS.get(again.log_slots, ROTATIONS[14])) + OTHER_KEYS) * each


def bootstrapping_piece_number(parameters: Parameters) -> int:
    """Return about how many pieces `bootstrapping_pieces` yields, for a bar of progress."""
    return len(ROTATIONS.get(parameters.bootstrapping.log_slots, ROTATIONS[14])) + 14


def bootstrapping_pieces(owner: engine.KeyOwner, scratch: Path) -> Iterator[bytes]:
    """Make the keys of the bootstrapping ring and yield them piece by piece.

    Parameters
    ----------
    owner
        Holds the secret key.
    scratch
        A folder, in which some of the keys lie for a while: they say nothing to who has no secret key.
    """
    again = owner.parameters.bootstrapping
    known = again.log_slots in ROTATIONS and again.logn == again.log_slots + 2
    some = scratch / ".bootstrapping.keys"
    try:
        owner.bootstrapping_keys(some, log_slots=FEW if known else None)
        with some.open("rb") as start:
            yield from _pieces(owner, start) if known else iter(partial(start.read, 1 << 26), b"")
    finally:
        some.unlink(missing_ok=True)


def _pieces(owner: engine.KeyOwner, few: BinaryIO) -> Iterator[bytes]:
    """Yield the file of keys: everything but the rotation keys from the small set, and those made one by one."""
    from lattigo import ckks, rlwe

    again = owner.parameters.bootstrapping
    ring = ckks.Parameters(
        again.logn,
        [*owner.parameters.logq, *CIRCUIT_LOGQ],
        list(again.logp),
        owner.parameters.log_scale,
        "standard",
        h=again.h,
        log_nth_root=again.logn + 1,
    )
    primes, special = ring.moduli_chain(), ring.aux_moduli_chain()
    if primes[: len(owner.parameters.logq)] != owner.moduli():
        raise RuntimeError("the engine did not choose the same primes for both rings")
    secret = b""
    for number in range(6):  # to the ring of other kind and back, real to complex and back, dense, sparse
        flag = few.read(1)
        yield flag
        if flag == b"\x01":
            key = _read_key(few)
            yield key
            if number == 3:
                secret = _secret(key, owner.secret_bytes(), primes, special, again.h)
    yield few.read(2)
    yield _read_key(few)  # the relinearisation key
    two_n = 2 << again.logn
    elements = [pow(engine.GENERATOR, rotation % two_n, two_n) for rotation in ROTATIONS[again.log_slots]] + [two_n - 1]
    yield b"\x01" + struct.pack("<I", len(elements))
    generator = rlwe.KeyGenerator(ring)
    with rlwe.SecretKey.unmarshal_binary(secret) as key_of_ring:
        for element in elements:
            with generator.gen_galois_key(key_of_ring, element) as made:
                yield struct.pack("<Q", element) + made.marshal_binary()


def _read_key(file: BinaryIO) -> bytes:
    """Read one switching key: rows of columns of pairs of polynomials, each modulo both sets of primes."""
    parts: list[bytes] = []

    def word() -> int:
        parts.append(file.read(8))
        return struct.unpack("<Q", parts[-1])[0]

    word()
    for _ in range(word()):
        for _ in range(word()):
            for _ in range(word()):
                for _ in range(2):
                    for _ in range(word()):
                        parts.append(file.read(8 * word()))
    return b"".join(parts)


def _limb(data: bytes, polynomial: int, degree: int, limbs: Sequence[int]) -> np.ndarray:
    """Return the values modulo the first prime of polynomial 0 or 1 of a switching key's first row."""
    start = 8 * (4 + polynomial * (2 + sum(limbs) * (1 + degree)) + 2)
    return np.frombuffer(data, "<u8", degree, start)


def _secret(key: bytes, own: bytes, primes: list[int], special: list[int], weight: int) -> bytes:
    """Return the secret of the bootstrapping ring, as the engine stores it.

    The key's first row is ``(b, a)`` with ``b + a * own = P * secret + error``, P the product of the special primes.

    Parameters
    ----------
    key
        From the bootstrapping ring to the key owner's.
    own
        The key owner's secret key.
    primes, special
        Of the bootstrapping ring.
    weight
        How many coefficients of the secret are not zero.
    """
    first = primes[0]
    half = struct.unpack_from("<Q", own, 8)[0]
    inside = np.frombuffer(own, "<u8", half, 16)
    mapped = np.concatenate([inside, inside[::-1]])  # the conjugate-invariant ring in the one of twice its degree
    limbs = (len(primes), len(special))
    b, a = (_limb(key, number, 2 * half, limbs) for number in (0, 1))
    product = multiply(a, multiply(mapped, pow(2, -64, first), first), first)
    total = coefficients((b + product) % np.uint64(first), first)
    factor = math.prod(special) % first
    scaled = np.mod(total, first)
    ternary = np.zeros(2 * half, dtype=np.int64)
    for value in (1, -1):
        distance = np.abs(scaled - value * factor % first)
        ternary[np.minimum(distance, first - distance) < 64] = value
    near_zero = np.minimum(scaled, first - scaled) < 64
    if np.count_nonzero(ternary) != weight or not (near_zero | (ternary != 0)).all():
        raise RuntimeError("the secret of the bootstrapping ring could not be read from its keys")
    out = []
    for chain in (primes, special):
        out.append(struct.pack("<Q", len(chain)))
        out += [struct.pack("<Q", 2 * half) + values(ternary, prime).astype("<u8").tobytes() for prime in chain]
    return b"".join(out)
