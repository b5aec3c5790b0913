"""Residues on their way between the parties: as many bits each as their prime has, one after the other.

What is encrypted is uniform modulo each prime, so no shorter form exists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def packed_bytes(moduli: Sequence[int], slots: int) -> int:
    """Return the bytes of a polynomial of so many values, a multiple of 64, modulo each prime."""
    return sum(prime.bit_length() for prime in moduli) * slots // 8


def pack_residues(values: np.ndarray, moduli: Sequence[int]) -> bytes:
    """Return polynomials as bytes.

    Parameters
    ----------
    values
        (L, N) uint64, each row below its prime.
    moduli
        L primes, or more: the first ones count.
    """
    from histocrypt.encrypted.batch import kernels

    parts = []
    for row, prime in zip(np.ascontiguousarray(values), moduli, strict=False):
        out = np.empty(packed_bytes([prime], len(row)) // 8, dtype=np.uint64)
        kernels.squeeze(row, prime.bit_length(), out)
        parts.append(out.astype("<u8").tobytes())
    return b"".join(parts)


def unpack_residues(data: bytes | memoryview, moduli: Sequence[int], slots: int) -> np.ndarray:
    """Return what `pack_residues` packed, (L, N) uint64; values may be as large as their bits allow."""
    from histocrypt.encrypted.batch import kernels

    out, start = np.empty((len(moduli), slots), dtype=np.uint64), 0
    for row, prime in zip(out, moduli, strict=True):
        words = packed_bytes([prime], slots) // 8
        kernels.spread(np.frombuffer(data, "<u8", words, start).astype(np.uint64), prime.bit_length(), row)
        start += 8 * words
    return out
