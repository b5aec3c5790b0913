"""``histocrypt compare``: two prediction files on one section, spot by spot and gene by gene, with paired intervals.

Either file may be of others. Both are scored on the spots and genes that they share, on the same bootstrap draws of
blocks of tissue (`evaluation.bootstrap`), so that their difference has an interval of its own. It speaks of other spots
of this section, not of other patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap, metrics
from histocrypt.evaluation.metrics import METRICS, finite_mean
from histocrypt.evaluation.score_file import join_file
from histocrypt.pipeline.foreign import AGAINST, UNITS, is_foreign, knows_units
from histocrypt.pipeline.predictions import Joined, matrix_of, read_h5ad, transforms_of
from histocrypt.spatial import spot_pitch, squares
from histocrypt.targets.matrix import columns_of, noun

FEW_BLOCKS = 4
"""Below so many blocks an interval covers less often than it says."""
SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """What one metric says of two files: means over genes, and how far they are apart."""

    transform: str
    metric: str
    first: float
    second: float
    difference: float
    """First less second."""
    low: float
    high: float
    """95 % interval of the difference; NaN where there is one block."""


@dataclass(frozen=True)
class Comparison:
    """Two prediction files on one section."""

    names: tuple[str, str]
    section: str
    spots: int
    """Measured, and predicted by both; so are the genes."""
    genes: int
    blocks: int
    block: float
    """Side of a block, in distances of neighbouring spots."""
    draws: int
    rows: list[Difference]
    per_gene: dict[str, tuple[float, float]]
    """Symbol (and id, where two share it) -> Pearson's of the first and of the second, on the first transform."""
    noun: str
    notes: list[str]


def compare_files(
    first: Path,
    second: Path,
    truth: str,
    *,
    name: str | None = None,
    bin_um: float | None = None,
    units: str | None = None,
    block: float = 5.0,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two prediction files on a section with its counts.

    Parameters
    ----------
    first, second
        ``.h5ad`` of this project, or any of spots x genes.
    truth
        The section, in any readable format.
    name, bin_um, units
        As in `score_file.score_files`; ``units`` are of files that do not state their own.
    block
        Side of the blocks that are drawn, in distances of neighbouring spots.
    draws, seed
        How often they are drawn, and by which seed.

    Raises
    ------
    InputError
        If a file cannot be read or joined, or the two share no spot, no gene or no transform.
    """
    from histocrypt.sections.read import read_path

    if not 1 <= block < np.inf:
        raise InputError("is out of range", field="--block", value=block, expected="spots, 1 or more")
    read = [read_h5ad(Path(path), what="prediction file") for path in (first, second)]
    section = read_path(truth, bin_um=bin_um, counts_only=True)
    stated = [transforms_of(one) for one in read if not is_foreign(one)]
    against = [transform for transform in (stated[0] if stated else ()) if transform in UNITS] or list(AGAINST)
    pairs, known, matrices, notes = [], [], [], []
    for one, path in zip(read, (first, second), strict=True):
        predicted, pair, said = join_file(one, section, file=path, name=name, units=units, against=against)
        pairs.append(pair)
        known.append(knows_units(predicted))
        matrices.append(matrix_of(predicted))
        notes += said
        if pair.used_spots:
            notes.append(f"{path}: {pair.used_spots} spots are left out: their counts corrected the predictions")
    if matrices[0] != matrices[1]:
        both = " and ".join(noun(matrix) + "s" for matrix in matrices)
        raise InputError(
            "the two files predict different things", file=second, value=both, expected="genes, or one matrix"
        )
    transforms = [transform for transform in pairs[0].true if transform in pairs[1].true]
    if not transforms:
        both = " and ".join(", ".join(pair.true) for pair in pairs)
        raise InputError(
            "the two files use different units", file=second, value=both, expected="a transform that both have"
        )
    rows, columns, symbols, coords = shared(pairs, section.adata, matrices[0], second)
    notes += _left_out(pairs, rows, columns)
    labels = squares(coords, block * spot_pitch(coords))
    blocks = int(labels.max() + 1)
    if blocks < FEW_BLOCKS:
        notes.append(f"{blocks} blocks are few: an interval of them covers less often than 95 times of 100")
    weights = bootstrap.draw_weights(blocks, draws, np.random.default_rng(seed))
    found, per_gene = [], {}
    for transform in transforms:
        true = pairs[0].true[transform][rows[0]][:, columns[0]]
        values = [
            pair.predicted[transform][row][:, column] for pair, row, column in zip(pairs, rows, columns, strict=True)
        ]
        found += _differences(transform, true, values, labels, weights, errors=all(known))
        if not per_gene:
            both = zip(*(metrics.pearson(true, one).tolist() for one in values), strict=True)
            per_gene = dict(zip(symbols.tolist(), both, strict=True))
    return Comparison(
        names=_called(Path(first), Path(second)),
        section=pairs[0].section,
        spots=len(coords),
        genes=len(symbols),
        blocks=blocks,
        block=block,
        draws=draws,
        rows=found,
        per_gene=per_gene,
        noun=noun(matrices[0]),
        notes=notes,
    )


def shared(
    pairs: Sequence[Joined], section: Any, matrix: str | None, second: Path
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
    """Return each one's rows and columns that the other has too, the symbols, and the places of the spots.

    Raises
    ------
    InputError
        If two predictions share no spot or no gene; it names the file of the ``second``.
    """
    _, *rows = np.intersect1d(pairs[0].spots, pairs[1].spots, return_indices=True)
    if not len(rows[0]):
        raise InputError("has no spot in common with the first file", file=second, field="obs_names")
    of_section = [columns_of(section, p.genes, p.symbols, matrix=matrix, section=p.section) for p in pairs]
    _, *columns = np.intersect1d(*of_section, return_indices=True)
    if not len(columns[0]):
        raise InputError("has no gene in common with the first file", file=second, field="var_names")
    symbols, genes = pairs[0].symbols[columns[0]].tolist(), pairs[0].genes[columns[0]].tolist()
    often = Counter(symbols)
    names = [name if often[name] == 1 else f"{name} ({gene})" for name, gene in zip(symbols, genes, strict=True)]
    return rows, columns, np.array(names), pairs[0].coords[rows[0]]


def _left_out(pairs: list[Joined], rows: list[np.ndarray], columns: list[np.ndarray]) -> list[str]:
    notes = []
    for pair, row, column, one in zip(pairs, rows, columns, ("first", "second"), strict=True):
        spots, genes = len(pair.spots) - len(row), len(pair.genes) - len(column)
        if spots or genes:
            notes.append(f"of the {one}, {spots} spots and {genes} genes are left out: the other does not predict them")
    return notes


def _differences(
    transform: str, true: np.ndarray, values: list[np.ndarray], labels: np.ndarray, weights: np.ndarray, *, errors: bool
) -> list[Difference]:
    ranked, ranks = metrics.ranks(true), [metrics.ranks(one) for one in values]
    ways = [
        ("pearson", true, values, bootstrap.pearson_of_draws),
        ("spearman", ranked, ranks, bootstrap.pearson_of_draws),
    ]
    ways += [("mse", true, values, bootstrap.mse_of_draws)] if errors else []
    scored = ~metrics.is_constant(true)
    found = []
    for metric, measured, both, of_draws in ways:
        drawn = [of_draws(bootstrap.block_sums(measured, one, labels), weights) for one in both]
        means = [finite_mean(METRICS[metric].of(true, one)[scored]) for one in values]
        low, high = bootstrap.interval(drawn[0] - drawn[1], means[0] - means[1])
        found.append(Difference(transform, metric, *means, means[0] - means[1], low, high))
    return found


def _called(first: Path, second: Path) -> tuple[str, str]:
    """Return what tells two files apart: their stems, with the folder where those are alike."""
    if first.stem != second.stem:
        return first.stem, second.stem
    return f"{first.resolve().parent.name}/{first.stem}", f"{second.resolve().parent.name}/{second.stem}"


def render(found: Comparison) -> str:
    """Return the differences as a table."""
    first, second = found.names
    lines = [
        f"{first} (A) and {second} (B) on section {found.section}: {found.spots} spots, {found.genes} {found.noun}s",
        "",
        f"{'':<14}{'':<10}{'A':>9}{'B':>9}{'A - B':>9}   95 % interval",
    ]
    for row in found.rows:
        numbers = "".join(f"{value:>9.3f}" if np.isfinite(value) else f"{'-':>9}" for value in (row.first, row.second))
        there = np.isfinite(row.low)
        between = f"{row.low:.3f} to {row.high:.3f}" if there else "none: one block"
        title = METRICS[row.metric].title
        lines.append(f"{row.transform:<14}{title:<10}{numbers}{row.difference:>+9.3f}   {between}")
    apart = sorted(
        ((one - two, name) for name, (one, two) in found.per_gene.items() if np.isfinite(one - two)), reverse=True
    )
    if apart:
        ahead = sum(difference > 0 for difference, _ in apart)
        lines += ["", f"By Pearson ({found.rows[0].transform}) A is ahead on {ahead} of {len(apart)} {found.noun}s"]
        lines.append("Most for A: " + ", ".join(f"{name} {difference:+.2f}" for difference, name in apart[:SHOWN]))
        lines.append(
            "Most for B: " + ", ".join(f"{name} {difference:+.2f}" for difference, name in apart[::-1][:SHOWN])
        )
    lines += ["", *found.notes] if found.notes else []
    how = f"{found.draws} draws of {found.blocks} blocks of {found.block:g} x {found.block:g} spots"
    lines += [
        "",
        f"Means over {found.noun}s; paired intervals by {how}: of other spots of this section, not of patients.",
    ]
    return "\n".join(lines)
