"""Keys of the bootstrapping ring, made one at a time within the memory of a laptop, and made here.

The engine can make them all in one call, but must not. In its key from the bootstrapping ring to the key owner's it
extends the key owner's secret to seven primes only: the other residues hold the secret of the bootstrapping ring in the
clear, and the error that hides the key owner's own (Lattigo 6.2.0, found in November 2026). That key also has more
modulus than the key owner's smaller ring can bear. So the engine draws secrets, samples of zero, relinearisation and
rotation keys; the four other keys are made here of samples and a secret:

``(b, a)`` with ``b + a * out = P * given + error``, ``P`` the product of the special primes, and zero modulo the primes
of other digits.

Like `engine`, this file knows the engine's formats; it fits the same versions.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from histocrypt.encrypted import engine
from histocrypt.encrypted.parameters import CIRCUIT_LOGQ, Parameters
from histocrypt.encrypted.residues import coefficients, multiply, values

SPARSE_WEIGHT = 32
"""Of the ephemeral secret that the engine's circuit passes through (Bossuat et al., 2022)."""
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
    """Return how many pieces `bootstrapping_pieces` yields, for a bar of progress."""
    return len(ROTATIONS.get(parameters.bootstrapping.log_slots, ROTATIONS[14])) + 9


def bootstrapping_pieces(owner: engine.KeyOwner) -> Iterator[bytes]:
    """Make the keys of the bootstrapping ring and yield them piece by piece.

    Parameters
    ----------
    owner
        Holds the secret key.

    Raises
    ------
    ValueError
        If it is not known which rotations the parameters need.
    """
    from lattigo import rlwe

    again = owner.parameters.bootstrapping
    if again.log_slots not in ROTATIONS or again.logn != again.log_slots + 2:
        raise ValueError(f"no rotations are known for 2^{again.log_slots} slots in the ring of 2^{again.logn}")
    ring = _Ring(owner.parameters, again.h)
    everything, kept = (len(ring.primes), len(ring.special)), len(owner.parameters.logq)
    secret, sparse = ring.draw(), _Ring(owner.parameters, SPARSE_WEIGHT).draw()
    own = ring.unfolded(owner)
    yield b"\x00\x00\x01"  # no keys between two standard rings; from the key owner's ring to the larger one
    yield ring.switching_key(own, secret, *everything)
    yield b"\x01" + ring.switching_key(secret, own, kept, kept)  # in the smaller ring: no larger modulus than needed
    yield b"\x01" + ring.switching_key(secret, sparse, 1, 1)
    yield b"\x01" + ring.switching_key(sparse, secret, *everything)
    two_n = 2 << again.logn
    elements = [pow(engine.GENERATOR, rotation % two_n, two_n) for rotation in ROTATIONS[again.log_slots]] + [two_n - 1]
    with rlwe.SecretKey.unmarshal_binary(ring.stored(secret)) as key_of_ring:
        with ring.generator.gen_relin_key(key_of_ring) as made:
            yield b"\x01\x01" + made.marshal_binary()
        yield b"\x01" + struct.pack("<I", len(elements))
        for element in elements:
            with ring.generator.gen_galois_key(key_of_ring, element) as made:
                yield struct.pack("<Q", element) + made.marshal_binary()


def bootstrapping_primes(parameters: Parameters) -> tuple[list[int], list[int]]:
    """Return the primes and the special primes of the bootstrapping ring."""
    ring = _Ring(parameters, parameters.bootstrapping.h)
    return ring.primes, ring.special


class _Ring:
    """The bootstrapping ring of N coefficients. Secrets are (N,) int64 in {-1, 0, 1}."""

    def __init__(self, parameters: Parameters, weight: int) -> None:
        from lattigo import ckks, rlwe

        again = parameters.bootstrapping
        made = ckks.Parameters(
            again.logn,
            [*parameters.logq, *CIRCUIT_LOGQ],
            list(again.logp),
            parameters.log_scale,
            "standard",
            h=weight,
            log_nth_root=again.logn + 1,
        )
        self.n, self.generator = 1 << again.logn, rlwe.KeyGenerator(made)
        self.primes, self.special = made.moduli_chain(), made.aux_moduli_chain()

    def draw(self) -> np.ndarray:
        """Draw a secret of this ring's weight."""
        with self.generator.gen_secret_key() as made:
            return coefficients(np.frombuffer(made.marshal_binary(), "<u8", self.n, 16), self.primes[0])

    def unfolded(self, owner: engine.KeyOwner) -> np.ndarray:
        """Return the key owner's secret, of the conjugate-invariant ring of half the degree, as one of this ring."""
        if self.primes[: len(owner.parameters.logq)] != owner.moduli():
            raise RuntimeError("the engine did not choose the same primes for both rings")
        inside = np.frombuffer(owner.secret_bytes(), "<u8", self.n // 2, 16)
        return coefficients(np.concatenate([inside, inside[::-1]]), self.primes[0])

    def stored(self, secret: np.ndarray) -> bytes:
        """Return a secret as the engine stores it."""
        return _polynomial(*([values(secret, prime) for prime in chain] for chain in (self.primes, self.special)))

    def switching_key(self, given: np.ndarray, out: np.ndarray, number: int, special: int) -> bytes:
        """Return a key from the secret ``given`` to ``out`` as the engine stores it.

        Parameters
        ----------
        given, out
            Secrets.
        number, special
            How many primes and special primes it has, the first ones: what is switched has no more of the former. With
            fewer, the key is a sample of a smaller modulus.
        """
        from lattigo import rlwe

        factor, rows = math.prod(self.special[:special]), -(-number // special)
        found = [struct.pack("<QQ", 0, rows)]
        with rlwe.SecretKey.unmarshal_binary(self.stored(out)) as key:
            for row in range(rows):
                with self.generator.gen_public_key(key) as made:
                    words = np.frombuffer(made.marshal_binary(), "<u8")[1:].reshape(2, -1)
                count = len(self.primes) * (1 + self.n)
                limbs = [
                    (part[1:][:count].reshape(-1, 1 + self.n)[:number, 1:].copy(),
                     part[1 + count + 1 :].reshape(-1, 1 + self.n)[:special, 1:])
                    for part in words
                ]  # fmt: skip
                for place in range(row * special, min((row + 1) * special, number)):
                    prime = self.primes[place]
                    b = limbs[0][0][place]
                    limbs[0][0][place] = (b + multiply(values(given, prime), factor % prime, prime)) % np.uint64(prime)
                found += [struct.pack("<QQ", 1, 2), *(_polynomial(*part) for part in limbs)]
        return b"".join(found)


def _polynomial(*chains: Any) -> bytes:
    """Return a polynomial's values modulo primes and special primes as the engine stores them."""
    out = []
    for chain in chains:
        out.append(struct.pack("<Q", len(chain)))
        out += [struct.pack("<Q", len(limb)) + np.ascontiguousarray(limb, "<u8").tobytes() for limb in chain]
    return b"".join(out)
