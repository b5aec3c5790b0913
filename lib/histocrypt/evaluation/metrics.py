"""How well predictions match measurements: one number per gene, from arrays of spots x genes.

Throughout, ``true`` and ``predicted`` are (n spots, g genes) floats in the same units, columns in the same order, and
every function gives (g,) float64. Two rules hold everywhere, so that no score hides a failure:

- a **constant prediction** has no correlation; it is counted as 0, and `is_constant` lets callers say how many;
- a gene that is **constant in the truth** cannot be scored by anyone: NaN, left out of means for all models alike.

A function under `metric` is in `METRICS`, from which every table of scores is made, and has a line in the glossary
(`wording.METRIC_WORDS`). Functions of samples take (n, K, g), K draws for each spot.

A rank needs all values of a gene, those of every section. `Pool` sets the values of each section aside in an unnamed
file of the cache folder, gene by gene, and reads a few genes at a time: memory grows with the spots of one gene, not
with all that was predicted.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from histocrypt import paths
from histocrypt.correlation import is_constant, pearson
from histocrypt.pipeline.predictions import Joined

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

POOLED = "pooled"
"""The section under which scores of all test spots together stand."""
AT_ONCE = 2**20
"""Values (spots x genes) of all sections that a `Pool` has in memory at a time."""


@dataclass(frozen=True)
class Metric:
    """One score of every gene, and how tables show it."""

    name: str
    """Its column in ``scores.csv`` and ``summary.csv``."""
    of: Callable[..., np.ndarray]
    """Of (n, g) measured and predicted values; of a spatial metric, of the graph of neighbours too."""
    title: str
    better: Literal["higher", "lower"]
    unit: str
    """``target`` for the units of the target, ``target²`` for their square; empty for a pure number."""
    tables: tuple[str, ...]
    """Where the report shows it: ``main`` (beside the mean correlation), ``more`` (the second table), ``card``."""
    digits: int
    spatial: bool


METRICS: dict[str, Metric] = {}
"""Every metric by name, in the order of the tables' columns."""


def metric(
    name: str,
    title: str,
    *,
    better: Literal["higher", "lower"],
    unit: str = "",
    tables: tuple[str, ...] = ("more",),
    digits: int = 3,
    spatial: bool = False,
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Register the function below it as a metric; fields as in `Metric`."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        METRICS[name] = Metric(name, function, title, better, unit, tables, digits, spatial)
        return function

    return register


def per_gene(
    true: np.ndarray, predicted: np.ndarray, graph: csr_matrix | None = None, *, moran_true: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return every metric and what it stands on (variances, constants, Moran's I), by name, each (g,).

    Parameters
    ----------
    true, predicted
        (n, g), of one section.
    graph
        From `spatial.touching`; without it, no spatial metric.
    moran_true
        `morans_i` of ``true``, where it is known already.
    """
    scores = {name: one.of(true, predicted) for name, one in METRICS.items() if not one.spatial}
    scores |= {
        "variance_true": np.var(np.asarray(true, dtype=np.float64), axis=0),
        "variance_predicted": np.var(np.asarray(predicted, dtype=np.float64), axis=0),
        "constant_prediction": is_constant(predicted),
        "constant_truth": is_constant(true),
    }
    if graph is None:
        return scores
    scores["moran_true"] = morans_i(true, graph) if moran_true is None else moran_true
    scores["moran_predicted"] = morans_i(predicted, graph)
    scores["moran_error"] = np.abs(scores["moran_predicted"] - scores["moran_true"])
    spatial = {name: one for name, one in METRICS.items() if one.spatial and name not in scores}
    return scores | {name: one.of(true, predicted, graph) for name, one in spatial.items()}


def _known(true: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return ``values`` (g,) with NaN where the truth is constant."""
    return np.where(is_constant(true), np.nan, values)


metric("pearson", "Pearson", better="higher", tables=())(pearson)  # the tables' main column, with its interval


@metric("spearman", "Spearman", better="higher", tables=("main",))
def spearman(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation over spots, gene by gene; ties get average ranks."""
    return pearson(ranks(true), ranks(predicted))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each spot within its column of (n, g) values, float64; ties get average ranks."""
    from scipy.stats import rankdata

    return np.where(is_constant(values), 1.0, rankdata(values, axis=0))  # rounding noise has ranks too


def within_spot(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return (n,) Spearman's correlation over the panel, spot by spot: how right the order of cell types is.

    The other way round than all else here, with the same two rules: a spot whose prediction is constant counts as 0, a
    spot that is constant in the truth is NaN. A predictor that gives every spot the mean composition scores well, since
    some cell types are common everywhere; without that baseline beside it the number says little.
    """
    return spearman(np.asarray(true).T, np.asarray(predicted).T)


@metric("mse", "MSE", better="lower", unit="target²", tables=("more", "card"))
def mse(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the mean squared error, gene by gene."""
    return np.mean((np.asarray(predicted, dtype=np.float64) - true) ** 2, axis=0)


@metric("mae", "MAE", better="lower", unit="target")
def mae(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the mean absolute error, gene by gene."""
    return np.mean(np.abs(np.asarray(predicted, dtype=np.float64) - true), axis=0)


@metric("r2", "R²", better="higher", digits=2)
def r2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return 1 - squared error / variance: 0 for the scored section's own mean, negative for worse than that."""
    variance = np.var(np.asarray(true, dtype=np.float64), axis=0)
    result = np.full(variance.shape, np.nan)
    known = ~is_constant(true)
    result[known] = 1 - mse(true, predicted)[known] / variance[known]
    return result


@metric("rvd", "RVD", better="lower", tables=("more", "card"), digits=2)
def relative_variance_distance(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return (variance predicted - variance true)^2 / variance true^2, gene by gene; its mean over genes is RVD.

    0 for the right variance, 1 for a constant prediction and for twice the variance. Random numbers of the right
    variance score 0 as well, so it means nothing without a correlation beside it. Source: Zhu et al., "Diffusion
    Generative Modeling for Spatially Resolved Gene Expression Inference from Histology Images", ICLR 2025.
    """
    variance = np.var(np.asarray(true, dtype=np.float64), axis=0)
    result = np.full(variance.shape, np.nan)
    known = ~is_constant(true)
    result[known] = ((np.var(predicted, axis=0, dtype=np.float64)[known] - variance[known]) / variance[known]) ** 2
    return result


@metric("moran_error", "Moran’s I error", better="lower", spatial=True)
def moran_error(true: np.ndarray, predicted: np.ndarray, graph: csr_matrix) -> np.ndarray:
    """Return the absolute difference between the predicted and the measured Moran's I; ``graph`` of `spatial.touching`.

    A gene that is constant in the truth has a Moran's I of 0 there, and an error: leave it out of means yourself.
    """
    return np.abs(morans_i(predicted, graph) - morans_i(true, graph))


def morans_i(values: np.ndarray, graph: csr_matrix) -> np.ndarray:
    """Return Moran's I of every column of ``values`` (n, g) on ``graph``; 0 for a constant column, NaN without edges.

    Source: Moran, "Notes on continuous stochastic phenomena", Biometrika 37:17 (1950); equal to scanpy's.
    """
    values = np.asarray(values, dtype=np.float64)
    if graph.nnz == 0:
        return np.full(values.shape[1], np.nan)
    z = values - values.mean(axis=0)
    squares = np.square(z).sum(axis=0)
    flat = is_constant(values) | (squares == 0)
    result = len(z) / graph.sum() * ((graph @ z) * z).sum(axis=0) / np.where(flat, 1.0, squares)
    return np.where(flat, 0.0, result)


def mean_of_top(scores: np.ndarray, ranking: np.ndarray, k: int) -> float:
    """Return the mean of ``scores`` over the ``k`` genes with the largest ``ranking``; NaN scores are left out.

    With ``ranking`` from validation data this is "PCC-k (chosen on training data)"; with ``ranking = scores`` it is
    "PCC-k (published way)", which picks its genes after seeing the test result and can only be larger or equal.
    Ties keep the panel's order.
    """
    scores, ranking = np.asarray(scores, dtype=np.float64), np.asarray(ranking, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(scores))
    if not known.size:
        return float("nan")
    order = np.argsort(-np.nan_to_num(ranking[known], nan=-np.inf), kind="stable")
    return float(scores[known[order[:k]]].mean())


def finite_mean(values: np.ndarray) -> float:
    """Return the mean of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def crps(true: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return the continuous ranked probability score: 0 is perfect; for a single certain value, the absolute error.

    Estimated without bias from (n, K, g) samples: the mean distance to the truth, less half the mean distance between
    two different samples (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA
    2007). It hence does not depend on how many were drawn, but for chance; and it can fall a little below zero.
    """
    samples = np.sort(np.asarray(samples, dtype=np.float64), axis=1)
    n_samples = samples.shape[1]
    to_truth = np.abs(samples - np.asarray(true, dtype=np.float64)[:, None]).mean(axis=1)
    # Of sorted values, the sum over pairs of x_j - x_i counts each value by its place.
    place = 2 * np.arange(n_samples) - n_samples + 1
    between = 2 * np.einsum("nkg,k->ng", samples, place) / (n_samples * (n_samples - 1))
    return _known(true, (to_truth - between / 2).mean(axis=0))


def coverage(true: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the share of spots whose true value lies within ``low`` to ``high``, (n, g) each."""
    inside = (np.asarray(low) <= true) & (true <= np.asarray(high))
    return _known(true, inside.mean(axis=0))


def single_sample_rvd(true: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return the relative variance distance of single samples, averaged over the K of them.

    A mean is always smoother than what it is the mean of; what single samples score is the model's own variation.
    """
    each = [relative_variance_distance(true, samples[:, k]) for k in range(samples.shape[1])]
    return np.mean(each, axis=0)


def correlations(values: np.ndarray) -> np.ndarray:
    """Return the (g, g) correlation between genes over spots; 0 with a gene that is constant."""
    values = np.asarray(values, dtype=np.float64)
    flat = is_constant(values)
    centred = values - values.mean(axis=0)
    norm = np.sqrt(np.square(centred).sum(axis=0))
    centred = np.divide(centred, norm, out=np.zeros_like(centred), where=~flat & (norm > 0))
    return centred.T @ centred


def correlation_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean absolute difference between true and predicted correlation, over all pairs of genes.

    Genes that are constant in the truth are left out; NaN where fewer than two are left.
    """
    known = ~is_constant(true)
    if known.sum() < 2:
        return float("nan")
    difference = np.abs(correlations(predicted[:, known]) - correlations(true[:, known]))
    return float(difference[np.triu_indices(known.sum(), 1)].mean())


@dataclass(frozen=True)
class _Block:
    """Where the values of one section lie in the pool's file: genes x spots."""

    offset: int
    genes: np.ndarray
    """(g,) str, sorted."""
    spots: int
    dtype: np.dtype


class Pool:
    """Measured and predicted values of every section, transform and model, on disk; use as a context manager."""

    def __init__(self) -> None:
        paths.cache().mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=paths.cache())
        # By section: one model may be scored on some sections only, as the ceiling is.
        self._true: dict[str, dict[str, _Block]] = defaultdict(dict)
        self._predicted: dict[tuple[str, str], dict[str, _Block]] = defaultdict(dict)
        self._symbols: dict[str, str] = {}
        self._last = np.empty(0, dtype=str)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, transform: str, model: str, pair: Joined) -> None:
        """Set aside one section under one model, spots in the order that all models share."""
        if pair.section not in self._true[transform]:  # what was measured is the same for all models
            self._true[transform][pair.section] = self._written(pair.genes, pair.true[transform])
            self._symbols = {**dict(zip(pair.genes.tolist(), pair.symbols.tolist(), strict=True)), **self._symbols}
        self._predicted[transform, model][pair.section] = self._written(pair.genes, pair.predicted[transform])

    def _written(self, genes: np.ndarray, values: np.ndarray) -> _Block:
        order = np.argsort(genes)
        if not np.array_equal(genes[order], self._last):
            self._last = genes[order]  # one copy of the names for all that have the same
        block = np.ascontiguousarray(values[:, order].T)
        single = block.astype(np.float32)
        if np.array_equal(single, block):  # as nearly always: targets and predictions are of single precision
            block = single
        offset = self._file.seek(0, 2)
        self._file.write(block.data)
        return _Block(offset, self._last, block.shape[1], block.dtype)

    def _values(self, blocks: list[_Block], genes: np.ndarray) -> np.ndarray:
        """Return (n, len(genes)) float64, spots section by section."""
        self._file.flush()
        parts = []
        for block in blocks:
            shape = (len(block.genes), block.spots)
            stored = np.memmap(self._file, block.dtype, "r", block.offset, shape)
            parts.append(stored[np.searchsorted(block.genes, genes)].T.astype(np.float64))
        return np.concatenate(parts)

    def common(self) -> list[str]:
        """Return the genes that every fold predicted and every section measured."""
        every = {id(block.genes): block.genes for blocks in self._true.values() for block in blocks.values()}
        return sorted(set.intersection(*(set(genes.tolist()) for genes in every.values()))) if every else []

    def tables(self) -> list[pd.DataFrame]:
        """Return the scores of all test spots together, one table a transform and model; none without a common gene."""
        common = np.array(self.common(), dtype=str)
        tables = []
        for (transform, model), predicted in self._predicted.items() if len(common) else ():
            true, blocks = [self._true[transform][section] for section in predicted], list(predicted.values())
            parts = np.array_split(common, -(-len(common) // max(1, AT_ONCE // sum(block.spots for block in true))))
            scored = pd.concat(
                pd.DataFrame(per_gene(self._values(true, part), self._values(blocks, part))) for part in parts
            )
            keys = {"model": model, "fold": "all", "section": POOLED, "patient": "all", "transform": transform}
            symbols = [self._symbols[gene] for gene in common.tolist()]
            tables.append(scored.assign(**keys, gene=common, symbol=symbols))
        return tables
