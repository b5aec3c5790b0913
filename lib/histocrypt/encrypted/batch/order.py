"""Which prime divides what: after a square, or after a map and before its square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """The ciphertext primes, the first one first, and when each goes.

    With a prime for each square and one that stays, every square is divided by one. With one prime more, the first
    square is, then every map before its square, and the last map after useless slots were blotted out.
    """

    moduli: Sequence[int]
    squares: int

    @property
    def before(self) -> bool:
        """Whether primes go before squares."""
        return len(self.moduli) > self.squares + 1

    def primes(self, number: int) -> int:
        """Return how many primes map ``number`` has, before anything it gives is divided."""
        return len(self.moduli) - number

    def of_map(self, number: int) -> int:
        """Return the prime that the outcome of a map is divided by, or 1."""
        return self.moduli[self.primes(number) - 1] if self.before and number else 1

    def of_square(self, number: int) -> int:
        """Return the prime that the square after a map is divided by, or 1."""
        return 1 if self.before and number else self.moduli[self.primes(number) - 1]
