"""How far the noise ceiling is from the truth, where the truth is known: simulated low counts, and the demo tissue.

    python benchmarks/ceiling_bias.py [--spots 250] [--genes 200] [--repeats 10]

Each row is a section whose rates are known. ``truth`` is the mean over genes of the correlation between what was
counted and the transform of the true rates; ``best`` the same for the mean of the transform over 200 counts drawn anew
from those rates, which no predictor can beat; ``estimate`` is `targets.ceiling.noise_ceiling`, which sees the counts
alone. ``docs/ceiling.md`` holds the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from histocrypt.demo.counts import draw_counts, draw_genes
from histocrypt.evaluation.metrics import pearson
from histocrypt.targets.ceiling import noise_ceiling
from histocrypt.targets.transforms import transform

TRANSFORMS = ("log1p_cp10k", "log1p", "rank")
DRAWN = 200


def sections(spots: int, genes: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, rates (n, g) and counts (n, g)."""
    waves = rng.normal(0, 1, (spots, 5)) @ rng.normal(0, 1, (5, genes)) / 5**0.5
    for mean in (0.1, 0.3, 1.0, 3.0, 10.0):
        for spread in (0.0, 0.3, 0.8):
            rates = mean * np.exp(spread * waves - spread**2 / 2) * rng.gamma(8, 1 / 8, (spots, 1))
            yield f"{mean:g} counts per gene, log-sd {spread:g}", rates, rng.poisson(rates)
    model = draw_genes(genes, rng)
    drivers = np.column_stack([rng.dirichlet(np.full(5, 0.6), spots), rng.normal(0, 1, (spots, 3))])
    for depth in (300.0, 1000.0, 4500.0):
        drawn = draw_counts(
            model, drivers, rng.normal(0, 1, (spots, 6)), drivers[:, 5], rng, depth=rng.gamma(8, depth / 8, spots)
        )
        yield f"demo, {depth:g} counts per spot", drawn.rate, drawn.counts


def means(rates: np.ndarray, counts: np.ndarray, name: str, rng: np.random.Generator, repeats: int) -> list[float]:
    """Return truth, best and estimate: means over the genes that vary."""
    totals = counts.sum(axis=1)
    measured = transform(counts, totals, name)
    best = np.zeros(rates.shape)
    for _ in range(DRAWN):
        again = rng.poisson(rates)
        best += transform(again, again.sum(axis=1), name) / DRAWN
    known = pearson(measured, transform(rates, rates.sum(axis=1), name)), pearson(measured, best)
    estimate = noise_ceiling(counts, totals, [name], rng=rng, repeats=repeats)[name]
    return [float(np.nanmean(one)) for one in (*known, estimate)]


def main() -> None:
    """Print one line a section and transform."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=250)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'section':<34}{'target':<14}{'truth':>8}{'best':>8}{'estimate':>10}{'bias':>8}")
    for title, rates, counts in sections(asked.spots, asked.genes, rng):
        for name in TRANSFORMS:
            truth, best, estimate = means(rates, counts, name, rng, asked.repeats)
            print(f"{title:<34}{name:<14}{truth:8.3f}{best:8.3f}{estimate:10.3f}{estimate - best:+8.3f}")


if __name__ == "__main__":
    main()
