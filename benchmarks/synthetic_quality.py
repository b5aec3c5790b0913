"""How often the intervals of `synthesis.quality` hold what they should, on Gaussians of which the truth is known.

    python benchmarks/synthetic_quality.py [--repeats 200] [--draws 200] [--seed 0]

Real tiles are blocks of tiles that resemble one another, drawn ones are independent; both are Gaussians in eight
dimensions. The kernel distance and the Fréchet distance of two Gaussians are known in closed form; what precision and
recall should be at these sizes is their mean over all repeats. A row is a pair of distributions at one size: the truth,
the mean of the estimates, and how often the 95 % interval held the truth. Beside the Fréchet distance stands the plain
one, to show the bias that is taken off. 200 repeats take about two minutes of one core.
"""

from __future__ import annotations

import argparse
from math import comb

import numpy as np

from histocrypt.evaluation.bootstrap import interval
from histocrypt.synthesis.quality import Sample, frechet, frechet_infinity, kid, within

D = 8
CHANGES = {"alike": (0.0, 1.0), "shifted a little": (0.2, 1.0), "shifted": (0.7, 1.0), "wider": (0.0, 1.7)}
"""Shift of every mean, and factor of the covariance, of drawn tiles beside real ones."""
SIZES = {"12 blocks of 7": (12, 7), "30 blocks of 4": (30, 4), "100 blocks of 2": (100, 2)}
DRAWN = 80
ALIKE = 0.4
"""Share of the variance that tiles of a block have in common."""

Gaussian = tuple[np.ndarray, np.ndarray]


def moments(one: Gaussian) -> list[np.ndarray]:
    """Return the first three raw moments of a Gaussian: (D,), (D, D), (D, D, D)."""
    mean, cov = one
    third = np.einsum("i,j,k", mean, mean, mean) + np.einsum("i,jk", mean, cov)
    return [
        mean,
        cov + np.outer(mean, mean),
        third + np.einsum("j,ik->ijk", mean, cov) + np.einsum("k,ij->ijk", mean, cov),
    ]


def true_kid(a: Gaussian, b: Gaussian) -> float:
    """Return the kernel distance: (x.y / D + 1)^3 compares the first three moments, weighed."""
    pairs = zip(moments(a), moments(b), strict=True)
    return sum(comb(3, k) / D**k * ((x - y) ** 2).sum() for k, (x, y) in enumerate(pairs, 1))


def true_frechet(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Fréchet distance of two Gaussians (Dowson and Landau 1982)."""
    from scipy.linalg import sqrtm

    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * sqrtm(a[1] @ b[1]).real))


def draw(one: Gaussian, blocks: int, each: int, rng: np.random.Generator) -> Sample:
    """Return blocks of tiles that are alike."""
    shared = np.repeat(rng.normal(size=(blocks, D)), each, axis=0)
    share = ALIKE if each > 1 else 0.0
    values = np.sqrt(share) * shared + np.sqrt(1 - share) * rng.normal(size=shared.shape)
    values = one[0] + values @ np.linalg.cholesky(one[1]).T
    return Sample(values, np.full(len(values), "P"), np.repeat(np.arange(blocks), each))


def estimates(real: Sample, drawn: Sample, *, draws: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Return each measure with its interval; the plain Fréchet distance with none."""
    weights = real.weights(draws, seed), drawn.weights(draws, seed + 1)
    plain, each = float(frechet(real, drawn)[0]), frechet(real, drawn, weights)
    values = {
        "kid": (float(kid(real, drawn)[0]), kid(real, drawn, weights)),
        "precision": (float(within(real, drawn)[0]), within(real, drawn, weights)),
        "recall": (float(within(drawn, real)[0]), within(drawn, real, weights[::-1])),
    }
    if len(real.sizes) // 2 > D:
        values["fd"] = frechet_infinity(real, drawn, seed=seed), each
    found = {name: (value, *interval(one, value)) for name, (value, one) in values.items()}
    return found | {"plain": (plain, np.nan, np.nan)}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    wide = np.random.default_rng(1).normal(size=(D, D))
    real = np.zeros(D), wide @ wide.T / D + 0.3 * np.eye(D)
    print(f"| drawn tiles ({DRAWN}) | real tiles | measure | truth | mean | held by 95 % | mean width |")
    print("|---|---|---|---|---|---|---|")
    for change, (shift, factor) in CHANGES.items():
        other = np.full(D, shift), real[1] * factor
        truth = {"kid": true_kid(real, other), "fd": true_frechet(real, other)}
        for size, (blocks, each) in SIZES.items():
            found = []
            for repeat in range(asked.repeats):
                rng = np.random.default_rng([asked.seed, blocks, repeat])
                sets = draw(real, blocks, each, rng), draw(other, DRAWN, 1, rng)
                found.append(estimates(*sets, draws=asked.draws, seed=asked.seed + 2 * repeat))
            for measure in ("kid", "fd", "precision", "recall"):
                if measure not in found[0]:
                    continue
                values = np.array([one[measure] for one in found])
                true = truth.get(measure, values[:, 0].mean())
                held = ((values[:, 1] <= true) & (true <= values[:, 2])).mean()
                plain = f" (plain: {np.mean([one['plain'][0] for one in found]):.2f})" if measure == "fd" else ""
                print(
                    f"| {change} | {size} | {measure} | {true:.2f} | {values[:, 0].mean():.2f}{plain} | {held:.2f} | "
                    f"{(values[:, 2] - values[:, 1]).mean():.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
