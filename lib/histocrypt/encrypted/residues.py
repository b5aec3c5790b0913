"""Residues modulo the engine's primes, in the engine's form.

The engine keeps a polynomial of degree N modulo a large prime as its values at the odd powers of a primitive 2N-th root
of unity, in bit reversed order, times 2^64 (Montgomery's form). The root is a power of the prime's smallest generator.
All of it is checked against the engine's own keys in the tests.
"""

from __future__ import annotations

import math
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
    root = root_of_unity(prime, 2 * number)
    spun = multiply(np.mod(coefficients, prime).astype(np.uint64), powers(root, number, prime), prime)
    found = _transform(spun, pow(root, 2, prime), prime)[bit_reversed(number)]
    return multiply(found, pow(2, 64, prime), prime)


def coefficients(stored: np.ndarray, prime: int) -> np.ndarray:
    """Return the signed coefficients of what is stored in the engine's form, (N,) int64."""
    number = len(stored)
    root = root_of_unity(prime, 2 * number)
    plain = multiply(stored, pow(2, -64, prime), prime)[bit_reversed(number)]
    spun = multiply(_transform(plain, pow(root, -2, prime), prime), pow(number, -1, prime), prime)
    found = multiply(spun, powers(pow(root, -1, prime), number, prime), prime).astype(np.int64)
    return np.where(found > prime // 2, found - prime, found)


def _transform(a: np.ndarray, root: int, prime: int) -> np.ndarray:
    """Return the discrete Fourier transform modulo a prime for a root of order len(a)."""
    number, size = len(a), 1
    a = a[bit_reversed(number)]
    while size < number:
        twiddles = powers(pow(root, number // (2 * size), prime), size, prime)
        halves = a.reshape(-1, 2, size)
        left, right = halves[:, 0].copy(), multiply(halves[:, 1], twiddles, prime)
        total = left + right
        halves[:, 0] = np.where(total >= prime, total - np.uint64(prime), total)
        halves[:, 1] = np.where(left >= right, left - right, left + np.uint64(prime) - right)
        size *= 2
    return a


def powers(base: int, number: int, prime: int) -> np.ndarray:
    """Return base^0, base^1, ... modulo a prime, (number,) uint64."""
    found = np.ones(1, dtype=np.uint64)
    while len(found) < number:
        found = np.concatenate([found, multiply(found, pow(base, len(found), prime), prime)])
    return found


def bit_reversed(number: int) -> np.ndarray:
    """Return the numbers below a power of two in bit reversed order."""
    found = np.zeros(1, dtype=np.int64)
    while len(found) < number:
        found = np.concatenate([2 * found, 2 * found + 1])
    return found


@cache
def root_of_unity(prime: int, order: int) -> int:
    """Return the engine's primitive root of unity of an order that divides prime - 1."""
    factors, generator = prime_factors(prime - 1), 2
    while any(pow(generator, (prime - 1) // factor, prime) == 1 for factor in factors):
        generator += 1
    return pow(generator, (prime - 1) // order, prime)


def prime_factors(number: int) -> set[int]:
    """Return the primes that divide a number below 2^64, by Pollard's rho method."""
    found = {prime for prime in WITNESSES if number % prime == 0}
    for prime in found:
        while number % prime == 0:
            number //= prime
    open_parts = [number] if number > 1 else []
    while open_parts:
        part = open_parts.pop()
        if _is_prime(part):
            found.add(part)
        else:
            divisor = _divisor(part)
            open_parts += [divisor, part // divisor]
    return found


WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""Miller and Rabin's test with these bases is right for every number below 2^64."""


def _is_prime(number: int) -> bool:
    """Whether an odd number without factors up to 37 is prime."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in WITNESSES:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def _divisor(number: int) -> int:
    """Return a divisor of an odd composite number, neither 1 nor itself."""
    for constant in range(1, number):
        slow = fast = 2
        divisor = 1
        while divisor == 1:
            slow = (slow * slow + constant) % number
            fast = (fast * fast + constant) % number
            fast = (fast * fast + constant) % number
            divisor = math.gcd(slow - fast, number)
        if divisor != number:
            return divisor
    raise ValueError(f"{number} is not composite")
