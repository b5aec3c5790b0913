"""What a lying evaluator can read of the secret key in a published prediction: `python benchmarks/key_recovery.py`.

Sections of the sizes that are asked for are laid out by the library, their results are made up (numbers in the clear,
with honest errors of a size that was measured), forged as an evaluator can forge them, and handed to the library's own
comparison of copies, noise and rounding. Nothing is encrypted here: that such forgeries can be made, and what comes of
them with real ciphertexts, is tested in ``tests/encrypted/test_key_recovery.py``. A minute of one core.

A forgery adds to the outputs of the tile at place t multiples of a number that the evaluator makes of the key's slots
there. It puts them along a direction of the outputs that nothing honest reaches, where the hospital's noise is all that
is left. What n values, each with a forged part of f and noise of deviation s, tell is at most ``n / 2 log2(1 + f^2 /
s^2)`` bits (Shannon, 1949). What so many bits help a lattice attack is estimated as for
"approximate hints" (Dachman-Soled et al., 2020, "LWE with side information"): they shrink the ellipsoid in which the
secret lies by as many bits.
"""

from __future__ import annotations

import argparse
import math
from types import SimpleNamespace

import numpy as np
from scipy.sparse import coo_array

from histocrypt.encrypted.answers import Answers, flooded
from histocrypt.encrypted.key_owner import places_of
from histocrypt.errors import InputError

OUTPUTS, RANK = 250, 16
"""Outputs, and directions that honest values take: a model's owner can choose as few as it likes."""
PLACES, POSITIONS = 512, 16
"""Of a batch at depth 5: tiles, and slots of the key under each."""
HONEST = 1e-5
"""Honest error, in an output's standard deviation."""
LOG_N, LOG_QP = 13, 214


def block_size(bits: float) -> float:
    """Return the smallest block size of lattice reduction that finds the key, if so many bits of it are known."""
    n, best = 1 << LOG_N, math.inf

    def log_delta(size: float) -> float:
        return math.log2(size / (2 * math.pi * math.e) * (math.pi * size) ** (1 / size)) / (2 * (size - 1))

    for samples in range(n // 2, 2 * n, n // 16):
        dimension = n + samples + 1
        volume = samples * (LOG_QP - math.log2(3.2)) - n * math.log2(math.sqrt(2 / 3)) + bits
        low, high = 50.0, 2000.0
        while high - low > 1e-4:
            size = (low + high) / 2
            found = 0.5 * math.log2(size) <= (2 * size - dimension - 1) * log_delta(size) + volume / dimension
            low, high = (low, size) if found else (size, high)
        best = min(best, high)
    return best


def lost(bits: float) -> float:
    """Return how many bits of security that costs: 2^(.292 block size), Becker et al. (2016)."""
    return 0.292 * (block_size(0) - block_size(bits))


class Section:
    """A section's request, honest results of all its places, and the numbers of the key under them."""

    def __init__(self, spots: int, chance: np.random.Generator) -> None:
        self.chance, self.order = chance, places_of(spots, PLACES, apart=True)
        number = np.bincount(self.order)
        self.shown = coo_array((1 / number[self.order], (self.order, np.arange(len(self.order))))).tocsr()
        """(spots, places): what is shown of a spot is the mean over its places."""
        table = chance.normal(size=(RANK, OUTPUTS)) / np.sqrt(RANK)
        self.values = (chance.normal(size=(spots, RANK)) @ table)[self.order]
        self.values += HONEST * chance.normal(size=self.values.shape)
        free = np.linalg.svd(table.T)[0][:, RANK:]
        along = free @ (free.T @ np.sign(chance.normal(size=OUTPUTS)))
        self.along = along / np.sqrt((along**2).mean())
        """(outputs,) what a place's number is multiplied with: nothing honest is along it."""
        self.key = chance.normal(size=PLACES)
        about = {"outputs": [""] * OUTPUTS, "output_range": (-4.0, 4.0)}
        note = {"order": self.order.tolist(), "names": [""] * spots, "noise": "5a" * 32}
        self.request = SimpleNamespace(note=note, client=SimpleNamespace(about=about, alike=False))

    def forgery(self, which: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return (places, outputs), of standard deviation one at the chosen places and zero elsewhere."""
        number = np.zeros(len(self.order))
        number[which] = self.key[np.arange(len(self.order)) % PLACES][which]
        return number[:, None] * self.along

    def publish(self, forged: np.ndarray, **how: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (spots, outputs) as published and the noise's deviations, or None where the hospital refuses."""
        answers = Answers(self.request, None)
        answers._values = self.values + forged
        try:
            checked = answers.values(file="response")
        except InputError:
            return None
        return flooded(checked, self.request, **how)

    def told(self, forged: np.ndarray, deviation: np.ndarray) -> float:
        """Return how many bits of the key the published values can hold at most."""
        return float(0.5 * np.log2(1 + (self.shown @ forged / deviation) ** 2).sum())

    def correlation(self, published: np.ndarray) -> float:
        """Return how well least squares find what spots say of the key, for an evaluator that knows which lay where.

        Messages put the same place of theirs on the same slots of the key.
        """
        spot, place = self.shown.tocoo().coords
        said = coo_array((self.shown.tocoo().data, (spot, place % PLACES)), (len(published), PLACES)).toarray()
        found = np.linalg.lstsq(said, published @ self.along, rcond=None)[0]
        return float(np.corrcoef(said @ found, said @ self.key)[0, 1])


def largest(section: Section, which: np.ndarray | slice) -> float:
    """Return the largest size of a forgery at these places that is accepted, to a quarter; 0 where none is."""
    found = 0.0
    for size in HONEST * 1.25 ** np.arange(-4, 40):
        if section.publish(size * section.forgery(which)) is not None:
            found = size
        elif found and size > 4 * found:
            break
    return found


def inside(name: str, section: Section, which: np.ndarray | slice) -> list[str]:
    """Return a row of the table: a forgery that stays within what copies may be apart."""
    size = largest(section, which)
    forged = size * section.forgery(which)
    published, deviation = section.publish(forged)
    bits = section.told(forged, deviation)
    cells = (f"{size:.1e}", f"{np.median(deviation):.3f}", f"{section.correlation(published):.3f}")
    return [name, *cells, f"{bits:.2f}", f"{lost(bits):.4f}"]


def strong(section: Section, places: int, trials: int, size: float = 1.0) -> list[str]:
    """Return a row of the table: a few places forged strongly, in the hope that they hold spots that were sent once."""
    accepted, bits = 0, 0.0
    for _ in range(trials):
        which = section.chance.choice(len(section.order), places, replace=False)
        result = section.publish(size * section.forgery(which))
        if result is not None:
            accepted += 1
            signal = (OUTPUTS - RANK) / POSITIONS * (size / np.median(result[1])) ** 2
            bits = places * POSITIONS / 2 * np.log2(1 + signal)  # all slots of each place, as well as can be
    alone = (np.bincount(section.order)[section.order] == 1).mean()
    cells = (f"{accepted / trials:.3f}", f"{alone**places:.3f}")
    return [str(places), *cells, f"{bits:.0f}" if bits else "", f"{lost(bits):.2f}" if bits else ""]


def table(heads: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--spots", type=int, nargs="+", default=[244, 1000, 5000])
    parser.add_argument("--trials", type=int, default=200)
    given = parser.parse_args()
    chance = np.random.default_rng(0)
    for spots in given.spots:
        section = Section(spots, chance)
        several = (np.bincount(section.order)[section.order] > 1).mean()
        print(f"## {spots} spots at {len(section.order)} places; {several:.0%} of them hold what was sent again\n")
        heads = [
            "forged within what is accepted",
            "size, sd",
            "noise, sd",
            "correlation",
            "bits at most",
            "security lost, bits",
        ]
        rows = [
            inside(name, section, which)
            for name, which in (
                ("all places", slice(None)),
                ("9 in 20", chance.random(len(section.order)) < 0.45),
                ("1 in 5", chance.random(len(section.order)) < 0.2),
            )
        ]
        table(heads, rows)
        heads = ["places forged by 1 sd", "accepted", "formula", "bits, if accepted", "security lost, bits"]
        table(heads, [strong(section, places, given.trials) for places in (1, 2, 4, 8)])


if __name__ == "__main__":
    main()
