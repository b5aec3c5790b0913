"""One prime of the ring: its constants, its roots of unity, and the transforms between coefficients and values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from histocrypt.encrypted.batch import kernels
from histocrypt.encrypted.residues import root_of_unity

WORD = 1 << 64


class Field:
    """Residues modulo a prime below 2^61 that is one more than a multiple of 4N. All arrays are (N,) uint64."""

    def __init__(self, prime: int, logn: int) -> None:
        self.number = prime
        self.prime = np.uint64(prime)
        self.inverse = np.uint64(pow(prime, -1, WORD))
        self.square = np.uint64(WORD * WORD % prime)
        self.reciprocal = np.uint64(WORD // prime)
        self._scale = np.array(self.pair(pow(2 << logn, -1, prime)))
        root = root_of_unity(prime, 4 << logn)
        self._roots = self._table(root, logn)
        self._inverse_roots = self._table(pow(root, -1, prime), logn)

    def pair(self, constant: int) -> tuple[np.uint64, np.uint64]:
        """Return a constant modulo the prime, and its Shoup quotient."""
        constant %= self.number
        return np.uint64(constant), np.uint64(constant * WORD // self.number)

    def forward(self, coefficients: np.ndarray, origin: Field, spare: np.ndarray, out: np.ndarray) -> None:
        """Write the values of reduced coefficients, which may be those of another prime: then centred first."""
        kernels.forward(coefficients, origin.prime, spare, out, self.prime, self.reciprocal, *self._roots)

    def backward(self, values: np.ndarray, spare: np.ndarray, out: np.ndarray) -> None:
        """Write the reduced coefficients of reduced values."""
        kernels.backward(values, spare, out, self.prime, self._scale, *self._inverse_roots)

    def _table(self, root: int, logn: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the roots of all stages but the last five, and of these in the order in which lanes take them."""
        size, rows = 1 << logn, (1 << logn) // kernels.TAIL
        lanes = min(kernels.LANES, rows)
        factors = np.array([self.pair(pow(root, size >> k, self.number)) for k in range(logn + 1)]).T.copy()
        pairs = np.empty((2, size), dtype=np.uint64)
        kernels.root_table(*factors, self.prime, self.inverse, self.square, pairs)
        stages = [
            pairs[:, rows * blocks : 2 * rows * blocks].reshape(2, -1, lanes, blocks).transpose(0, 1, 3, 2)
            for blocks in (1, 2, 4, 8, 16)
        ]
        return pairs[:, :rows].copy(), np.ascontiguousarray(np.concatenate(stages, axis=2))


field = lru_cache(maxsize=64)(Field)
"""Fields are made once: (prime, log2(N))."""
