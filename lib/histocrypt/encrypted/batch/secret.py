"""What only the holder of the secret key can do: samples of zero, their seeded form, and decryption.

The secret and its errors are the engine's own: each sample is a public key that the engine makes for it, that is
(b, a) with b = e - a s, a uniform and e of the engine's Gaussian. Every sample serves one message.
"""

from __future__ import annotations

import numpy as np

from histocrypt.encrypted import engine
from histocrypt.encrypted.batch.ring import Ring


def read_secret(stored: bytes, ring: Ring) -> np.ndarray:
    """Return the secret key's values from the engine's serialised form, (L, N) uint64."""
    return _plain(_limbs(stored, ring, len(ring.moduli), at=0), ring)


def fresh(owner: engine.KeyOwner, ring: Ring, count: int, level: int) -> np.ndarray:
    """Return encryptions of zero under the secret key, (count, 2, level + 1, N) uint64."""
    out = np.empty((count, 2, level + 1, ring.n), dtype=np.uint64)
    for target in out:
        stored = owner.zero()
        half = (len(stored) - 8) // 2
        for part in range(2):
            target[part] = _limbs(stored, ring, level + 1, at=8 + part * half)
    return _plain(out, ring)


def seeded(sample: np.ndarray, seed: bytes, secret: np.ndarray, ring: Ring) -> np.ndarray:
    """Return the b (L, N) of a sample (2, L, N) whose a is replaced by ``ring.uniform(seed, level)``.

    b' = b + (a - a') s = e - a' s: the error stays the engine's. The seed is public and must never serve twice.
    """
    level = sample.shape[1] - 1
    moved = ring.subtract(sample[1], ring.uniform(seed, level))
    return ring.add(sample[0], ring.multiply(moved, secret[: level + 1]))


def decrypt(ciphertexts: np.ndarray, secret: np.ndarray, ring: Ring) -> np.ndarray:
    """Return the messages (..., L, N) of ciphertexts (..., 2, L, N), as residues."""
    number = ciphertexts.shape[-2]
    return ring.add(ciphertexts[..., 0, :, :], ring.multiply(ciphertexts[..., 1, :, :], secret[:number]))


def _limbs(stored: bytes, ring: Ring, number: int, *, at: int) -> np.ndarray:
    """Return the first limbs of a polynomial in the engine's serialised form, (number, N) uint64."""
    words = np.frombuffer(stored, "<u8", 1 + number * (1 + ring.n), at)
    rows = words[1:].reshape(number, 1 + ring.n)
    if words[0] != len(ring.moduli) or (rows[:, 0] != ring.n).any():
        raise ValueError("the engine's polynomial is of another ring")
    return rows[:, 1:]


def _plain(values: np.ndarray, ring: Ring) -> np.ndarray:
    """Take residues out of Montgomery's form."""
    number = values.shape[-2]
    inverses = np.array([pow(1 << 64, -1, prime) for prime in ring.moduli[:number]], dtype=np.uint64)
    return ring.multiply(values, np.broadcast_to(inverses[:, None], (number, ring.n)))
