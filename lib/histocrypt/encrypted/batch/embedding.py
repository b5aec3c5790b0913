"""Slots of the conjugate-invariant ring: real values to coefficients and back, and sums over slots.

Slot j is the polynomial's value at X = zeta^(5^j), zeta = exp(2 pi i / 4N); since the polynomial is in X + 1/X, that is
a discrete cosine transform of its coefficients.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from histocrypt.encrypted.batch import kernels
from histocrypt.encrypted.batch.field import field
from histocrypt.encrypted.batch.ring import Ring
from histocrypt.encrypted.engine import GENERATOR


@cache
def nodes(count: int) -> np.ndarray:
    """Return which value of the cosine transform each slot is, (count,) int64."""
    order, powers = 4 * count, np.ones(1, dtype=np.int64)
    while len(powers) < count:
        powers = np.concatenate([powers, powers * pow(GENERATOR, len(powers), order) % order])
    return (np.minimum(powers, order - powers) - 1) // 2


def encode(values: np.ndarray, scale: float) -> np.ndarray:
    """Return the whole coefficients of polynomials that have these slots, times the scale.

    Parameters
    ----------
    values
        (..., N) float64.
    scale
        What one becomes.

    Returns
    -------
    (..., N) float64.
    """
    from scipy import fft

    placed = np.empty(np.shape(values))
    placed[..., nodes(placed.shape[-1])] = values
    return np.rint(fft.idct(placed, type=3) * scale)


def decode(coefficients: np.ndarray, scale: float) -> np.ndarray:
    """Return the slots (..., N) float64 of polynomials of (..., N) float64 coefficients, divided by the scale."""
    from scipy import fft

    coefficients = np.asarray(coefficients, dtype=np.float64)
    return fft.dct(coefficients, type=3)[..., nodes(coefficients.shape[-1])] / scale


def sum_orbits(ring: Ring, polynomials: np.ndarray, count: int) -> np.ndarray:
    """Sum a polynomial and its rotations by every multiple of N / count slots.

    In the engine's order a rotation by a multiple of N / count slots moves values inside blocks of ``count`` neighbours
    only, and every value of such a block comes to every place of it: the sum is each block's. Adding numbers that sum
    to zero in each block therefore hides all but this sum.

    Parameters
    ----------
    ring
        Of N values.
    polynomials
        (K, N) uint64 modulo the first prime.
    count
        A power of two.

    Returns
    -------
    (K, N / count) uint64: values of a polynomial of the ring of that degree.
    """
    out = np.empty((len(polynomials), ring.n // count), dtype=np.uint64)
    kernels.sum_blocks(np.ascontiguousarray(polynomials), np.uint64(ring.moduli[0]), out)
    return out


def slots(ring: Ring, polynomials: np.ndarray, scale: float) -> np.ndarray:
    """Return the slots of polynomials at level 0, after decryption or `sum_orbits`.

    Parameters
    ----------
    ring
        Of degree N or of a multiple: its first prime serves.
    polynomials
        (K, n) uint64, n at least 64.
    scale
        Of the message.

    Returns
    -------
    (K, n) float64. After `sum_orbits`, slot t is the sum over all slots t + k n.
    """
    size = polynomials.shape[-1]
    first, out = field(ring.moduli[0], size.bit_length() - 1), np.empty(polynomials.shape)
    spare, found = np.empty((2, size), dtype=np.uint64)
    for polynomial, target in zip(np.ascontiguousarray(polynomials), out, strict=True):
        first.backward(polynomial, spare, found)
        kernels.centre(found, first.prime, target)
    return decode(out, scale)


def zero_sums(ring: Ring, seed: bytes, count: int) -> np.ndarray:
    """Return a mask (N,) uint64 modulo the first prime: uniform, but each ``count`` neighbours sum to zero."""
    mask = ring.uniform(seed, 0).reshape(-1, count)
    mask[:, -1] = 0
    rest = sum_orbits(ring, mask.reshape(1, -1), count)[0]
    mask[:, -1] = np.where(rest == 0, rest, np.uint64(ring.moduli[0]) - rest)
    return mask.reshape(-1)
