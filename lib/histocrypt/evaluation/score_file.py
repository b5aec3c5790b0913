"""``histocrypt score``: one prediction file against measured counts, joined by the names of spots and genes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.evaluation import metrics
from histocrypt.evaluation.metrics import METRICS, finite_mean
from histocrypt.pipeline.foreign import adopted, is_foreign, knows_units
from histocrypt.pipeline.predictions import Joined, join, matrix_of, read_h5ad, some, transforms_of
from histocrypt.spatial import touching
from histocrypt.targets.matrix import noun

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.sections.section import Section

UNITLESS = ("pearson", "spearman")
"""Metrics of values whose units nobody states."""


@dataclass(frozen=True)
class ScoreResult:
    """Scores of one prediction on one section."""

    prediction: str
    truth: str
    section: str
    patient: str
    model: str
    spots: int
    genes: int
    means: dict[str, dict[str, float]]
    """Transform -> metric -> mean over genes; flat predictions count as 0 correlation."""
    per_gene: dict[str, dict[str, dict[str, float]]]
    """Transform -> gene -> metric -> value."""
    flat: dict[str, int]
    """Transform -> genes predicted flat."""
    within_spot: dict[str, dict[str, float]]
    """Of panels of cell types, transform -> ``mean`` correlation within spots, ``mean_profile``: that of the training
    mean (NaN where the prediction does not tell it), ``spots`` scored and ``undefined`` (constant in the truth)."""
    matrix: str | None
    """The named matrix that is predicted; None for counts."""
    symbols: dict[str, str]
    """Gene -> symbol."""
    notes: list[str] = field(default_factory=list)
    """What could not be scored, by name."""


def score_files(
    prediction: Path, truth: str, *, name: str | None = None, bin_um: float | None = None, units: str | None = None
) -> ScoreResult:
    """Score a prediction file against a section with its counts.

    Parameters
    ----------
    prediction
        An ``.h5ad`` written by ``histocrypt predict`` or by a run, or any of spots x genes, see `pipeline.foreign`.
    truth
        The section, in any readable format.
    name
        What the prediction calls it, where that is not its own id.
    bin_um
        Side of the squares that Visium HD or Xenium is summed to, micrometres; else the format's own.
    units
        What the values of a file of others are, of `foreign.UNITS`; None: unknown, and only `UNITLESS` are scored.

    Raises
    ------
    InputError
        If either cannot be read, the first is on a grid, or they share no spot or no gene.
    """
    from histocrypt.sections.read import read_path

    read = read_h5ad(Path(prediction), what="prediction file")
    if units is not None and not is_foreign(read):
        raise InputError("states its own units", file=prediction, field="--units", value=units, fix="leave it out")
    section = read_path(truth, bin_um=bin_um, counts_only=True)
    predicted, pair, joined = join_file(read, section, file=prediction, name=name, units=units)
    unscored = [metric for metric in METRICS if metric not in UNITLESS and not knows_units(predicted)]
    graph = touching(pair.coords)
    matrix = matrix_of(predicted)
    if pair.section in np.asarray(predicted.uns["prediction"].get("trained_on", []), dtype=str):
        joined = [*joined, "By its name, the model was trained on this patient: this says nothing about new patients."]
    means, genes, flat, within = {}, {}, {}, {}
    for transform in transforms_of(predicted):
        true, values = pair.true[transform], pair.predicted[transform]
        scored = metrics.per_gene(true, values, graph)
        scored |= {metric: np.full(len(pair.genes), np.nan) for metric in unscored}
        usable = ~scored["constant_truth"]
        means[transform] = {name: finite_mean(scored[name][usable]) for name in METRICS}
        flat[transform] = int((scored["constant_prediction"] & usable).sum())
        if matrix is not None:
            within[transform] = _within(true, values, predicted.var, pair.genes, transform)
        genes[transform] = {
            gene: {name: float(scored[name][i]) for name in METRICS} for i, gene in enumerate(pair.genes.tolist())
        }
    return ScoreResult(
        prediction=str(prediction),
        truth=str(truth),
        section=pair.section,
        patient=section.patient,
        model=str(predicted.uns["prediction"].get("model", "unknown")),
        spots=len(pair.spots),
        genes=len(pair.genes),
        means=means,
        per_gene=genes,
        flat=flat,
        within_spot=within,
        matrix=matrix,
        symbols=dict(zip(pair.genes.tolist(), pair.symbols.tolist(), strict=True)),
        notes=joined + _notes(pair, scored["constant_truth"], section.dropped, f"{noun(matrix)}s"),
    )


def join_file(
    read: AnnData, section: Section, *, file: str | Path, name: str | None, **how: Any
) -> tuple[AnnData, Joined, list[str]]:
    """Put what was read of a prediction file, of this project or of others, beside a section's counts.

    Parameters
    ----------
    read
        As read from ``file``.
    name
        What the prediction calls the section, where that is not its own id.
    how
        To `foreign.adopted`.

    Returns
    -------
    The predictions; those beside what was measured; notes on how a file of others was joined.

    Raises
    ------
    InputError
        If it is on a grid, or they share no spot or no gene.
    """
    return join_counts(read, section.adata, file=file, name=name or section.id, **how)


def join_counts(
    read: AnnData, counts: AnnData, *, file: str | Path, name: str, **how: Any
) -> tuple[AnnData, Joined, list[str]]:
    """Put predictions beside counts (spots x genes, ``obsm["spatial"]``) of a section's id, as `join_file` does."""
    predicted, notes = adopted(read, counts, name=name, path=file, **how)
    if "points" in predicted.uns["prediction"]:  # their names may be those of an ST array's spots elsewhere
        raise InputError(
            "is predicted on a grid, whose points are not measured spots",
            file=file,
            field="uns['prediction']['points']",
            fix="predict the section without --spacing",
        )
    try:
        return predicted, join(predicted, counts, name), notes
    except InputError as error:
        raise error.of_file(file) from error


def _within(true: np.ndarray, values: np.ndarray, var: Any, names: np.ndarray, transform: str) -> dict[str, float]:
    """Return the correlation within spots, and that of the training mean, which every spot could be given."""
    found = metrics.within_spot(true, values)
    column = f"training_mean:{transform}"
    profile = np.full(len(true), np.nan)
    if column in var:
        profile = metrics.within_spot(true, np.tile(var.loc[names, column].to_numpy(dtype=float), (len(true), 1)))
    known = np.isfinite(found)
    counts = {"spots": int(known.sum()), "undefined": int((~known).sum())}
    return {"mean": finite_mean(found), "mean_profile": finite_mean(profile), **counts}


def _notes(pair: Any, constant: np.ndarray, dropped: dict[str, int], genes: str) -> list[str]:
    notes = []
    if pair.used_spots:
        notes.append(f"{pair.used_spots} spots are left out: their counts corrected the predictions (--measured)")
    if pair.renamed_genes:
        notes.append(f"{pair.renamed_genes} {genes} are called differently in the section: joined by id or symbol")
    if pair.unscored_genes:
        notes.append(f"{len(pair.unscored_genes)} predicted {genes} are not measured: {some(pair.unscored_genes)}")
    if constant.any():
        notes.append(f"{int(constant.sum())} {genes} do not vary in the section: {some(pair.symbols[constant])}")
    if pair.unpredicted_spots:
        notes.append(f"{len(pair.unpredicted_spots)} measured spots have no prediction: {some(pair.unpredicted_spots)}")
    if pair.unmeasured_spots:
        notes.append(f"{len(pair.unmeasured_spots)} predicted spots are not measured: {some(pair.unmeasured_spots)}")
    notes += [f"{count} spots were dropped on reading: {reason}" for reason, count in dropped.items() if count]
    return notes


def render(result: ScoreResult) -> str:
    """Return the scores as a table."""
    one = noun(result.matrix)
    heads = [(metric.title, max(11, len(metric.title) + 2)) for metric in METRICS.values()]
    lines = [
        f"{result.model} on section {result.section} (patient {result.patient or 'unknown'}): "
        f"{result.spots} spots, {result.genes} {one}s",
        "",
        f"{'':<14}" + "".join(f"{head:>{width}}" for head, width in heads) + f"{'flat ' + one.split()[-1] + 's':>12}",
    ]
    for transform, means in result.means.items():
        cells = [f"{means[name]:.3f}" if np.isfinite(means[name]) else "-" for name in METRICS]
        numbers = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, heads, strict=True))
        lines.append(f"{transform:<14}{numbers}{result.flat[transform]:>12}")
    if result.within_spot:
        lines += ["", *(_within_line(transform, found) for transform, found in result.within_spot.items())]
    main = next(iter(result.per_gene))
    ranked = sorted(
        (gene for gene, row in result.per_gene[main].items() if np.isfinite(row["pearson"])),
        key=lambda gene: -result.per_gene[main][gene]["pearson"],
    )
    if ranked:
        shown = [f"{result.symbols[gene]} {result.per_gene[main][gene]['pearson']:.2f}" for gene in ranked]
        best, worst = ", ".join(shown[:5]), ", ".join(shown[-5:])
        lines += ["", f"Best {one}s by Pearson ({main}): {best}", f"Worst: {worst}"]
    lines += ["", *result.notes] if result.notes else []
    lines += ["", f"Means over {one}s; a flat prediction counts as correlation 0."]
    return "\n".join(lines)


def _within_line(transform: str, found: dict[str, float]) -> str:
    profile = found["mean_profile"]
    beside = f"{profile:.3f} by the training mean alone" if np.isfinite(profile) else "the training mean is not known"
    gone = f", {found['undefined']} constant spots left out" if found["undefined"] else ""
    return f"Within spots ({transform}): Spearman {found['mean']:.3f}; {beside} ({found['spots']} spots{gone})"
