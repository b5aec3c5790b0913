"""Bootstrap over spatial blocks, paired between models.

Neighbouring spots resemble one another, so drawing single spots would pretend to more evidence than there is. Squares
of tissue are drawn instead, with replacement, within each section; all models are scored on the same draws, so that
their difference has an interval of its own. Correlations come from sums per block (counts, sums, squares, products): a
draw is a weight per block, and a thousand draws are one matrix product.

A draw repeats some blocks and misses others, so it varies less than the section did and its correlations are lower: on
simulated sections of 4 to 16 blocks a plain percentile interval covers 29 to 64 times of 100, not 95, and may leave
out the very score it stands beside. That bias, the mean of the draws less the score of all blocks, is taken off
(`interval`); then it covers 91 to 95 times. What is covered is the expected score of sections of this size
(test_bootstrap.py repeats one case).

The interval speaks of other spots **of these patients**. It says nothing about new patients; the spread over patients
is reported beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from histocrypt.correlation import RELATIVE_SPREAD_OF_A_CONSTANT, is_constant

PARTS_IN_1E12 = 1e-12  # of a gene's whole variance: below it, a draw's variance is rounding
Key = tuple[str, str, str]
"""Transform, metric, model."""


def draw_weights(n_blocks: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return (draws, n_blocks) float: how often each block was drawn; every row sums to ``n_blocks``.

    A single block is NaN: it could only be drawn as it is, which would pass for certainty.
    """
    if n_blocks == 1:
        return np.full((draws, 1), np.nan)
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=draws).astype(np.float64)


@dataclass(frozen=True)
class BlockSums:
    """Sums per block of one section under one model: all that a draw's correlations and errors need.

    Both matrices are centred on their section means first, so that differences of large squares stay exact.
    """

    spots: np.ndarray
    """(blocks,)."""
    sums: np.ndarray
    """(5, blocks, genes): true, predicted, true^2, predicted^2, true * predicted."""
    errors: np.ndarray
    """(blocks, genes): squared errors."""
    true_floor: np.ndarray
    """(genes,) variance of the truth below which a draw counts as constant."""
    predicted_floor: np.ndarray
    """(genes,) the same for the prediction; infinite where it is constant everywhere."""
    scored: np.ndarray
    """(genes,) bool: the truth varies."""


def block_sums(true: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> BlockSums:
    """Return the sums per block of (n, g) ``true`` and ``predicted``; ``labels`` is (n,) int from `spatial.squares`."""
    true, predicted = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    member = np.zeros((labels.max() + 1, len(labels)))
    member[labels, np.arange(len(labels))] = 1
    t, p = true - true.mean(axis=0), predicted - predicted.mean(axis=0)

    def floor(values: np.ndarray, centred: np.ndarray) -> np.ndarray:
        rounding = (RELATIVE_SPREAD_OF_A_CONSTANT * np.abs(values).max(axis=0)) ** 2 / 12
        return np.where(is_constant(values), np.inf, np.maximum(PARTS_IN_1E12 * centred.var(axis=0), rounding))

    return BlockSums(
        spots=member.sum(axis=1),
        sums=np.stack([member @ part for part in (t, p, t * t, p * p, t * p)]),
        errors=member @ (predicted - true) ** 2,
        true_floor=floor(true, t),
        predicted_floor=floor(predicted, p),
        scored=~is_constant(true),
    )


def correlations_of_draws(sums: BlockSums, weights: np.ndarray) -> np.ndarray:
    """Return (draws, genes) Pearson's correlation of every gene in every draw of blocks.

    As in `metrics.pearson`, a constant prediction counts as 0; a gene whose truth is constant in a draw is NaN.
    """
    n = (weights @ sums.spots)[:, None]
    t, p, tt, pp, tp = (weights @ part / n for part in sums.sums)
    true_variance, predicted_variance = tt - t * t, pp - p * p
    true_varies = true_variance > sums.true_floor
    both = true_varies & (predicted_variance > sums.predicted_floor)
    correlation = np.zeros_like(tp)
    np.divide(tp - t * p, np.sqrt(np.where(both, true_variance * predicted_variance, 1.0)), out=correlation, where=both)
    return np.where(true_varies, correlation, np.nan)


def pearson_of_draws(sums: BlockSums, weights: np.ndarray) -> np.ndarray:
    """Return (draws,) the mean over genes of Pearson's correlation in every draw of blocks, `correlations_of_draws`."""
    correlation = correlations_of_draws(sums, weights)
    known = np.isfinite(correlation)
    genes = known.sum(axis=1)
    return np.where(genes > 0, np.where(known, correlation, 0).sum(axis=1) / np.maximum(genes, 1), np.nan)


def mse_of_draws(sums: BlockSums, weights: np.ndarray) -> np.ndarray:
    """Return (draws,) the mean squared error over spots and scored genes in every draw of blocks."""
    spots = (weights @ sums.spots)[:, None]
    if not sums.scored.any():
        return np.full(len(weights), np.nan)
    return (weights @ sums.errors[:, sums.scored] / spots).mean(axis=1)


OF_DRAWS = {"pearson": pearson_of_draws, "mse": mse_of_draws}
"""How each metric that has an interval is scored in every draw: from `BlockSums` and weights."""


def mean_of_draws(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (draws,) the mean over spots of (n,) ``values``, one a spot and NaN where it has none, in every draw."""
    known = np.isfinite(values)
    blocks = weights.shape[1]
    spots = weights @ np.bincount(labels[known], minlength=blocks)
    total = weights @ np.bincount(labels[known], weights=values[known], minlength=blocks)
    return np.where(spots > 0, total / np.maximum(spots, 1), np.nan)


def interval(draws: np.ndarray, estimate: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of ``draws``, moved so that the draws' mean lies on ``estimate``.

    Parameters
    ----------
    draws
        (draws,) scores or differences of scores; NaN where a draw could not be scored.
    estimate
        The same from all blocks, each once.
    level
        Nominal coverage.

    Returns
    -------
    Lower and upper end; NaN where no draw could be scored.
    """
    draws = draws[np.isfinite(draws)]
    if not draws.size:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) - draws.mean() + estimate
    return float(low), float(high)


class Draws:
    """Means over sections of every draw; a section that a draw cannot score is left out of that draw.

    Parameters
    ----------
    pairs
        (model, baseline) pairs whose differences are wanted.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = list(pairs)
        self._total: dict[tuple[str, ...], np.ndarray] = {}
        self._known: dict[tuple[str, ...], np.ndarray] = {}

    def add(self, section: dict[Key, np.ndarray]) -> None:
        """Take in one section: (draws,) scores by transform, metric and model; NaN where a draw has none."""
        by_model: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)
        for (transform, metric, model), scores in section.items():
            self._take((transform, metric, model), scores)
            by_model[transform, metric][model] = scores
        for (transform, metric), scores in by_model.items():
            for model, baseline in self._pairs:
                if model in scores and baseline in scores:
                    self._take((transform, metric, model, baseline), scores[model] - scores[baseline])

    def _take(self, key: tuple[str, ...], scores: np.ndarray) -> None:
        known = ~np.isnan(scores)
        self._total[key] = self._total.get(key, 0.0) + np.where(known, scores, 0.0)
        self._known[key] = self._known.get(key, 0) + known

    def mean(self, transform: str, metric: str, model: str, baseline: str | None = None) -> np.ndarray:
        """Return (draws,) the mean over sections of a model's score, or of its difference to a baseline's."""
        key = (transform, metric, model) if baseline is None else (transform, metric, model, baseline)
        known = self._known[key]
        return np.where(known > 0, self._total[key] / np.maximum(known, 1), np.nan)
