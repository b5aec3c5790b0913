"""How high a score can be: what the noise of counting leaves, estimated from the counts themselves.

Counts of one spot are split in two halves as if half of the molecules had been caught by each of two experiments. For
counts that are Poisson about their rate, binomial halves are independent of one another given the rate, so that their
correlation over spots is the share of a half's variance that is no noise of counting. Spearman and Brown's formula
says what that share is at the whole depth, and its square root is the correlation between the measured values and the
true ones: what a predictor that knew every spot's rate would score.

Three limits, measured by ``benchmarks/ceiling_bias.py`` and told in ``docs/ceiling.md``: Spearman and Brown assume that
the whole is the sum of its halves, which logarithms and ranks are not; the square root of what chance leaves of a gene
without any signal is above zero; and whatever varies from spot to spot beyond counting, seen by an image or not, counts
as signal. The ceiling says what cannot be passed, not what can be reached.

Sources: Spearman, "Correlation calculated from faulty data", and Brown, "Some experimental results in the correlation
of mental abilities", British Journal of Psychology 3 (1910). Halves of counts: Gerard, "Data-based RNA-seq simulations
by binomial thinning", BMC Bioinformatics 21:206 (2020); Neufeld et al., "Inference after latent variable estimation
for single-cell RNA sequencing data", Biostatistics 25:270 (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.correlation import is_constant, pearson
from histocrypt.errors import InputError
from histocrypt.targets.matrix import columns_of, depth, has_counts
from histocrypt.targets.transforms import TRANSFORMS, transform

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import spmatrix

RATE = "rate"
"""Layer of simulated sections: the expected counts before the noise of counting."""
REPEATS = 10
"""Splits that are averaged: more than these change a section's mean in its third digit at most."""

LOW_CEILING = 0.05
"""A share of less than this correlation is not told: chance alone leaves more (`docs/ceiling.md`)."""


def halves(
    counts: np.ndarray | spmatrix, totals: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Split every count by a fair coin for each molecule.

    Parameters
    ----------
    counts
        (n, g) whole counts of the panel, dense or sparse.
    totals
        (n,) whole total counts over all genes of the section. The molecules of other genes are split, too.
    rng
        The coin.

    Returns
    -------
    Two pairs of counts (n, g) and totals (n,), int64, that sum to what was given.

    Raises
    ------
    InputError
        If a count is negative or not whole, or a total is less than the panel's own sum.
    """
    counts = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    why = why_no_halves(counts, totals)
    if why:
        raise InputError(why, field="counts", expected="raw counts, and totals over all genes")
    counts, totals = np.rint(counts).astype(np.int64), np.rint(totals).astype(np.int64)
    first = np.zeros_like(counts)
    there = counts > 0
    first[there] = rng.binomial(counts[there], 0.5)
    first_total = first.sum(axis=1) + rng.binomial(totals - counts.sum(axis=1), 0.5)
    return (first, first_total), (counts - first, totals - first_total)


def why_no_halves(counts: np.ndarray | spmatrix, totals: np.ndarray) -> str:
    """Return in words why counts cannot be split; empty where they can."""
    values = np.asarray(counts.data) if hasattr(counts, "indptr") else np.asarray(counts)
    totals = np.asarray(totals, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.rint(values)).any():
        return "its counts are not whole numbers"
    if not np.isfinite(totals).all() or (totals != np.rint(totals)).any():
        return "its total counts are not whole numbers"
    if (totals < np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()).any():
        return "its total counts are less than the sum of the panel's"
    return ""


def noise_ceiling(
    counts: np.ndarray | spmatrix,
    totals: np.ndarray,
    transforms: Iterable[str],
    *,
    rng: np.random.Generator,
    repeats: int = REPEATS,
) -> dict[str, np.ndarray]:
    """Return the correlation that no predictor of single spots can be expected to pass, gene by gene.

    Parameters
    ----------
    counts
        (n, g) whole counts of the panel's genes over the spots of one section, dense or sparse.
    totals
        (n,) total counts of each spot over **all** genes.
    transforms
        Names of `targets.transforms.TRANSFORMS`. Both halves are transformed as the whole is; a rank within a spot
        needs the whole panel.
    rng
        Splits the counts; the same seed gives the same ceiling.
    repeats
        Splits whose correlations are averaged before the formula.

    Returns
    -------
    transform -> (g,) float64 from 0 to 1: sqrt(2 r / (1 + r)) of the mean correlation r between halves. 0 where r is
    negative; NaN where a gene is constant over the spots.

    Raises
    ------
    InputError
        If counts or totals cannot be split (see `halves`), or a transform is not one of counts.
    """
    counts = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    names = list(transforms)
    total = {name: np.zeros(counts.shape[1]) for name in names}
    for _ in range(repeats):
        one, other = halves(counts, totals, rng)
        for name in names:
            both = [transform(*half, name) for half in (one, other)]
            # A half in which a gene is constant tells nothing of it: no correlation.
            total[name] += np.nan_to_num(pearson(*both))
    return {
        name: np.where(is_constant(transform(counts, totals, name)), np.nan, corrected(summed / repeats))
        for name, summed in total.items()
    }


def corrected(between: np.ndarray) -> np.ndarray:
    """Return the correlation of the whole with its noiseless value, from that ``between`` its halves.

    Spearman and Brown: the whole, twice as long as a half, has reliability 2 r / (1 + r). A measurement correlates
    with its noiseless value by the square root of its reliability.
    """
    between = np.clip(between, 0, 1)
    return np.sqrt(2 * between / (1 + between))


def share(score: np.ndarray | float, ceiling: np.ndarray | float) -> np.ndarray | float:
    """Return the part of a ceiling that a score reaches; NaN where there is no ceiling, or one of hardly anything.

    Of a section or patient it is the ratio of two means over genes, not the mean of their ratios: a gene of which
    counting leaves nearly nothing would rule that.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(ceiling) >= LOW_CEILING, np.divide(score, ceiling), np.nan)[()]


def section_ceiling(
    section: AnnData,
    genes: Iterable[str],
    symbols: Iterable[str],
    transforms: Iterable[str],
    *,
    name: str,
    matrix: str | None = None,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], str]:
    """Return the ceiling of a cleaned section, and why there is none.

    Parameters
    ----------
    section
        Counts in ``X``, totals over all genes in ``obs["total_counts"]``.
    genes, symbols
        (g,) the scored panel, in order; all of them measured.
    transforms
        Of the study; what is not a transform of counts has no ceiling.
    name
        Its id.
    matrix
        The study's ``target.matrix``: shares of cell types are no counts.
    rng
        See `noise_ceiling`.

    Returns
    -------
    transform -> (g,) float64, and an empty text; or an empty dictionary, and the reason in words.
    """
    if matrix is not None:
        return {}, f"what is predicted is {matrix}, not counts, and only counts can be halved"
    if not has_counts(section):
        return {}, "it has no counts"
    counts, totals = section.X[:, columns_of(section, genes, symbols, section=name)], depth(section)
    why = why_no_halves(counts, totals)
    named = [one for one in transforms if one in TRANSFORMS]
    return ({}, why) if why else (noise_ceiling(counts, totals, named, rng=rng), "")


def beside_truth(genes: pd.DataFrame, read: Callable[[str], AnnData]) -> pd.DataFrame:
    """Return how far estimated ceilings are from what the true rates score, where sections know their rates.

    Parameters
    ----------
    genes
        Rows with section, transform, gene, symbol and noise_ceiling, of one model or several.
    read
        Gives a cleaned section, with all of its genes, by its id.

    Returns
    -------
    One row per section and transform: means over genes of ``truth`` (correlation between the measured values and the
    transformed true rates) and ``estimate``, their ``difference``, and their ``agreement`` (correlation over genes).
    Empty where no section has the layer ``rate``.
    """
    import pandas as pd

    rows = []
    known = genes[genes["noise_ceiling"].notna()].drop_duplicates(["section", "transform", "gene"])
    for name, own in known.groupby("section"):
        section = read(name)
        if RATE not in section.layers:
            continue
        rates = np.asarray(section.layers[RATE], dtype=np.float64)
        for transformed, part in own.groupby("transform", sort=False):
            columns = columns_of(section, part["gene"], part["symbol"], section=name)
            measured = transform(section.X[:, columns], depth(section), transformed)
            truth = pearson(measured, transform(rates[:, columns], rates.sum(axis=1), transformed))
            estimate = part["noise_ceiling"].to_numpy()
            means = {"truth": truth.mean(), "estimate": estimate.mean(), "difference": (estimate - truth).mean()}
            agreement = np.corrcoef(truth, estimate)[0, 1]
            rows.append({"section": name, "transform": transformed, **means, "agreement": agreement})
    return pd.DataFrame(rows, columns=["section", "transform", "truth", "estimate", "difference", "agreement"])
