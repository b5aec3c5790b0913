"""Mean and spread of columns that come section by section, put together without the values themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared deviations of the rows of a matrix, column by column; float64.

    Parts are joined as in Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American
    Statistician 37:242 (1983): exact but for rounding, whatever the means.
    """

    n: int
    mean: np.ndarray
    """(g,)."""
    squares: np.ndarray
    """(g,) sum over rows of the squared distance to the mean."""

    @classmethod
    def none(cls, columns: int) -> Moments:
        """Return the moments of no row."""
        return cls(0, np.zeros(columns), np.zeros(columns))

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Return the moments of (n, g) ``values``."""
        values = np.asarray(values, dtype=np.float64)
        mean = values.mean(axis=0)
        return cls(len(values), mean, np.square(values - mean).sum(axis=0))

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of matrices of the same rows, set side by side."""
        return cls(
            parts[0].n, np.concatenate([one.mean for one in parts]), np.concatenate([one.squares for one in parts])
        )

    def of_columns(self, columns: np.ndarray) -> Moments:
        """Return the moments of some columns."""
        return Moments(self.n, self.mean[columns], self.squares[columns])

    def with_more(self, other: Moments) -> Moments:
        """Return the moments of these rows and the other's."""
        n = self.n + other.n
        if not self.n or not n:
            return other
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.n / n)
        return Moments(n, mean, self.squares + other.squares + np.square(apart) * (self.n * other.n / n))

    @property
    def sd(self) -> np.ndarray:
        """(g,) standard deviation over the rows."""
        return np.sqrt(self.squares / max(self.n, 1))
