"""Polynomials modulo large primes, in the order and form in which the engine stores secret keys.

The engine keeps a polynomial of degree N as its values at the odd powers of a primitive 2N-th root of unity, in bit
reversed order, times 2^64 (Montgomery's form). The root is a power of the prime's smallest generator. All of it is
checked against the engine's own keys in the tests.
"""

from __future__ import annotations

from functools import cache

import numpy as np


def multiply(a: np.ndarray, b: np.ndarray | int, prime: int) -> np.ndarray:
    """Return a * b modulo a prime below 2^62, uint64; the quotient is taken in extended precision and corrected."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.uint64), np.asarray(b, dtype=np.uint64))
    quotient = (a.astype(np.longdouble) * b / np.longdouble(prime)).astype(np.uint64)
    rest = (a * b - quotient * np.uint64(prime)).astype(np.int64)
    rest[rest < 0] += prime
    rest[rest >= prime] -= prime
    return rest.astype(np.uint64)


def values(coefficients: np.ndarray, prime: int) -> np.ndarray:
    """Return the engine's form of small signed coefficients, (N,) uint64."""
    number = len(coefficients)
    root = _root(prime, 2 * number)
    spun = multiply(np.mod(coefficients, prime).astype(np.uint64), _powers(root, number, prime), prime)
    found = _transform(spun, pow(root, 2, prime), prime)[_reversed(number)]
    return multiply(found, pow(2, 64, prime), prime)


def coefficients(stored: np.ndarray, prime: int) -> np.ndarray:
    """Return the signed coefficients of what is stored in the engine's form, (N,) int64."""
    number = len(stored)
    root = _root(prime, 2 * number)
    plain = multiply(stored, pow(2, -64, prime), prime)[_reversed(number)]
    spun = multiply(_transform(plain, pow(root, -2, prime), prime), pow(number, -1, prime), prime)
    found = multiply(spun, _powers(pow(root, -1, prime), number, prime), prime).astype(np.int64)
    return np.where(found > prime // 2, found - prime, found)


def _transform(a: np.ndarray, root: int, prime: int) -> np.ndarray:
    """Return the discrete Fourier transform modulo a prime for a root of order len(a)."""
    number, size = len(a), 1
    a = a[_reversed(number)]
    while size < number:
        twiddles = _powers(pow(root, number // (2 * size), prime), size, prime)
        halves = a.reshape(-1, 2, size)
        left, right = halves[:, 0].copy(), multiply(halves[:, 1], twiddles, prime)
        total = left + right
        halves[:, 0] = np.where(total >= prime, total - np.uint64(prime), total)
        halves[:, 1] = np.where(left >= right, left - right, left + np.uint64(prime) - right)
        size *= 2
    return a


def _powers(base: int, number: int, prime: int) -> np.ndarray:
    found = np.ones(1, dtype=np.uint64)
    while len(found) < number:
        found = np.concatenate([found, multiply(found, pow(base, len(found), prime), prime)])
    return found


def _reversed(number: int) -> np.ndarray:
    """Return the numbers below a power of two in bit reversed order."""
    found = np.zeros(1, dtype=np.int64)
    while len(found) < number:
        found = np.concatenate([2 * found, 2 * found + 1])
    return found


@cache
def _root(prime: int, order: int) -> int:
    """Return the engine's primitive root of unity of an order that divides prime - 1."""
    factors, rest, factor = [], prime - 1, 2
    while factor * factor <= rest:
        if rest % factor == 0:
            factors.append(factor)
            while rest % factor == 0:
                rest //= factor
        factor += 1
    factors += [rest] if rest > 1 else []
    generator = 2
    while any(pow(generator, (prime - 1) // factor, prime) == 1 for factor in factors):
        generator += 1
    return pow(generator, (prime - 1) // order, prime)
