"""``histocrypt trust``: what labelled sections say of a model that others made, for its predictions of other sections.

A model of others says nothing of how well it predicts which gene. Sections that have counts do: of each gene the
correlation, its interval, the share of the noise ceiling and whether it is beyond chance, as `trust.genes` tells of our
own models, and how far errors reach. All of it goes into ``var`` of another file that the same model predicted.

Two things it cannot know. Whether those who made the model had seen a labelled section, or its patient: then it is
flattered. And how it does on another patient: of K labelled ones, `trust.conformal` promises 1 - 1 / (K + 1) at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.correlation import error_by_chance, pearson
from histocrypt.errors import InputError
from histocrypt.evaluation.metrics import finite_mean
from histocrypt.evaluation.score_file import join_file
from histocrypt.files import claim, same_file
from histocrypt.pipeline.foreign import is_foreign, knows_units, var_of
from histocrypt.pipeline.predictions import matrix_of, read_h5ad, some, transforms_of, write_h5ad
from histocrypt.predictors.predictability import BY, mean_of_known
from histocrypt.sections.genes import GeneNames, places
from histocrypt.targets.ceiling import section_ceiling, share
from histocrypt.trust import conformal, genes

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.pipeline.predictions import Joined
    from histocrypt.sections.section import Section

MARK = "labelled"
"""Key of ``uns`` that says what was learnt of which sections, and first word of the columns of ``var``."""
AT_ONCE = 2048
"""Genes whose values are held at a time."""
NOT_KNOWN = (
    "whether the makers of the model saw these sections, or their patients, is not known: then trust is too high"
)


@dataclass(frozen=True)
class Labelled:
    """One labelled section beside what was predicted of it."""

    pair: Joined
    patient: str
    section: Section
    known_units: bool


@dataclass(frozen=True)
class Trust:
    """What labelled sections say of the genes of a prediction file."""

    output: Path
    var: pd.DataFrame
    """One row per gene; `trust_from_labelled` names the columns."""
    about: dict[str, Any]
    """As in ``uns["labelled"]``."""
    transform: str
    notes: list[str]


def trust_from_labelled(
    prediction: Path,
    labelled: Sequence[tuple[Path, str]],
    output: Path,
    *,
    units: str | None = None,
    bin_um: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Trust:
    """Write predictions with the trust that labelled sections give in the model behind them.

    Parameters
    ----------
    prediction
        An ``.h5ad`` of spots or tiles x genes; everything in it is kept as it is.
    labelled
        (predictions by the same model, the section with its counts) pairs.
    output
        ``.h5ad`` to write. ``var`` gets, for each transform, ``labelled_pearson``, ``labelled_pearson_low`` and
        ``_high``, ``labelled_ceiling``, ``labelled_share``, ``labelled_q`` and ``better_than_chance``, and where units
        are known ``half_width`` and ``half_width_within``, each followed by ``:<transform>``; ``uns["labelled"]`` says
        of what.
    units
        What values are that do not state it, of `foreign.UNITS`; None: unknown, and no half-widths are given.
    bin_um
        As in `score_file.score_files`.
    seed
        Of the halves of counts that the noise ceiling is estimated from.
    overwrite
        Replace a file that lies there.

    Returns
    -------
    What was found; `render` puts it into words.

    Raises
    ------
    InputError
        If nothing is labelled, a file cannot be read or joined, or no gene of the prediction is in a labelled one.
    """
    if not labelled:
        problem, fix = (
            "no labelled section is named",
            "name predictions with --labelled and their section with --counts",
        )
        raise InputError(problem, file=prediction, field="--labelled", fix=fix)
    if Path(output).suffix != ".h5ad":
        raise InputError("predictions are written as .h5ad", file=output, field="--output")
    claim(output, inputs=[prediction, *(path for path, _ in labelled)], mine=_is_mine, overwrite=overwrite)
    target = read_h5ad(Path(prediction), what="prediction file")
    if not is_foreign(target) and matrix_of(target) is not None:
        raise InputError("trust needs predictions of genes", file=prediction, value=matrix_of(target), expected="genes")
    var, notes = var_of(target, prediction), []
    wanted, found = GeneNames.of(var), []
    for path, truth in labelled:
        found.append(_read(Path(path), truth, units, bin_um, notes))
    transforms = [name for name in found[0].pair.true if all(name in one.pair.true for one in found)]
    if not is_foreign(target):
        transforms = [name for name in transforms if name in transforms_of(target)]
    if not transforms:
        raise InputError(
            "the files use different units", file=labelled[-1][0], expected="a transform that all files have"
        )
    columns = [places(wanted, GeneNames.of(one.pair.genes, one.pair.symbols)) for one in found]
    if not any((own >= 0).any() for own in columns):
        raise InputError("shares no gene with the labelled predictions", file=prediction, field="var_names")
    table: dict[str, np.ndarray] = {}
    for transform in transforms:
        parts = []
        for start in range(0, len(wanted), AT_ONCE):
            some_columns = [own[start : start + AT_ONCE] for own in columns]
            part = _evidence(found, some_columns, transform, seed=seed)
            if all(one.known_units for one in found):
                part |= _half_widths(found, some_columns, transform)
            parts.append(part)
        every = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
        each, error = every.pop("each"), every.pop("error")
        rates = genes.false_discovery(each, error)
        low, high = genes.interval(each, error)
        r, ceiling = mean_of_known(list(each)), every.pop("ceiling")
        told = {"pearson": r, "pearson_low": low, "pearson_high": high, "ceiling": ceiling, "share": share(r, ceiling)}
        table |= {f"{MARK}_{name}:{transform}": values for name, values in {**told, "q": rates}.items()}
        table |= {f"{genes.BETTER}:{transform}": np.nan_to_num(rates, nan=1.0) <= genes.FALSE_DISCOVERY, **every}
    if any(same_file(prediction, path) for path, _ in labelled):
        notes.append("the labelled section is in the file itself: to its own values trust is no news")
    about = _about(found, transforms)
    for name, values in table.items():
        target.var[name] = values
    target.uns[MARK] = about
    write_h5ad(output, target)
    return Trust(output, target.var, about, transforms[0], notes)


def _is_mine(path: Path) -> bool:
    from histocrypt.hdf5 import open_h5

    try:
        with open_h5(path) as file:
            return f"uns/{MARK}/promise" in file
    except (OSError, InputError):
        return False


def _read(path: Path, truth: str, units: str | None, bin_um: float | None, notes: list[str]) -> Labelled:
    from histocrypt.sections.read import read_path

    section = read_path(truth, bin_um=bin_um, counts_only=True)
    read = read_h5ad(path, what="prediction file")
    predicted, pair, said = join_file(read, section, file=path, name=None, units=units)
    if matrix_of(predicted) is not None:
        raise InputError("trust needs predictions of genes", file=path, value=matrix_of(predicted), expected="genes")
    notes += said
    return Labelled(pair, section.patient or "", section, knows_units(predicted))


def _rows(one: Labelled) -> np.ndarray:
    """Return which spots of a section are predicted, in the order of the predictions."""
    barcodes = [spot.removeprefix(f"{one.pair.section}:") for spot in one.pair.spots]
    return one.section.adata.obs_names.astype(str).get_indexer(barcodes)


def _both(one: Labelled, columns: np.ndarray, transform: str, *, absent: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, genes) measured and predicted values, ``absent`` where a section lacks a gene."""
    values = []
    for known in (one.pair.true[transform], one.pair.predicted[transform]):
        filled = np.full((len(known), len(columns)), absent)
        filled[:, columns >= 0] = known[:, columns[columns >= 0]]
        values.append(filled)
    return values[0], values[1]


def _evidence(
    found: Sequence[Labelled], columns: Sequence[np.ndarray], transform: str, *, seed: int
) -> dict[str, np.ndarray]:
    """Return ``each`` patient's correlation of every gene and its ``error`` by chance, (K, genes); the ``ceiling``.

    Means over the sections of a patient, of the ceiling over patients, too.
    """
    known: dict[str, list[np.ndarray]] = {"each": [], "error": [], "ceiling": []}
    rng = np.random.default_rng(seed)
    for one, own in zip(found, columns, strict=True):
        pair, there = one.pair, own >= 0
        true, predicted = (values[:, own[there]] for values in (pair.true[transform], pair.predicted[transform]))
        names = pair.genes[own[there]], pair.symbols[own[there]]
        section = one.section.adata[_rows(one)]
        ceiling, _ = section_ceiling(section, *names, [transform], name=pair.section, rng=rng)
        values = {
            "each": pearson(true, predicted),
            "error": error_by_chance(true, predicted, pair.coords),
            "ceiling": ceiling.get(transform, np.full(there.sum(), np.nan)),
        }
        for name, row in values.items():
            placed = np.full(len(own), np.nan)
            placed[there] = row
            known[name].append(placed)
    patients = [one.patient for one in found]
    by = {name: np.stack(list(genes.by_patient(rows, patients).values())) for name, rows in known.items()}
    return {**by, "ceiling": mean_of_known(list(by["ceiling"]))}


def _half_widths(found: Sequence[Labelled], columns: Sequence[np.ndarray], transform: str) -> dict[str, np.ndarray]:
    """Return half-widths at the highest level that the labelled patients support; NaN where one of them lacks a gene.

    They are of predictions as they stand: nothing is fitted here, so that a labelled patient needs no leaving out.
    """
    both = [_both(one, own, transform, absent=np.nan) for one, own in zip(found, columns, strict=True)]
    true, predicted = (np.concatenate(parts) for parts in zip(*both, strict=True))
    sizes = [len(one.pair.spots) for one in found]
    patients = np.repeat([one.patient for one in found], sizes)
    sections = np.repeat(np.arange(len(found)), sizes)
    within = conformal.held_out_errors(true, predicted, patients, sections, centred=True)
    made = {}
    for name, errors in (("half_width", true - predicted), ("half_width_within", within)):
        widths = conformal.half_widths(np.stack(list(conformal.patient_scores(errors, patients).values())))
        made[f"{name}:{transform}"] = np.where(np.isfinite(widths), widths, np.nan)
    return made


def _about(found: Sequence[Labelled], transforms: Sequence[str]) -> dict[str, Any]:
    """Return what ``uns["labelled"]`` says."""
    patients = list(dict.fromkeys(one.patient for one in found))
    known = all(one.known_units for one in found)
    return {
        "sections": np.array([one.pair.section for one in found], dtype=str),
        "patients": len(patients),
        "spots": sum(len(one.pair.spots) for one in found),
        "transforms": np.array(transforms, dtype=str),
        "promise": promise(len(patients)) if known else "no intervals: what the values are is not stated (--units)",
        "interval": genes.promise({"patients": len(patients), "by": BY[0] if len(patients) > 1 else BY[1]}),
        "not_known": NOT_KNOWN,
    }


def promise(patients: int) -> str:
    """Return what half-widths from so many labelled patients promise, in words."""
    share, level = f"{conformal.SHARE:.0%}", conformal.highest_level(patients)
    if patients == 1:
        return (
            f"1 labelled patient promises nothing of another: {share} of that one's spots lie within the half-width, "
            f"and a new patient's are as likely to as not"
        )
    return (
        f"of {patients} labelled patients: in {level:.0%} of new patients like them, at least {share} of the spots of "
        "one lie within the half-width, gene by gene; nothing above that can be promised"
    )


def document(found: Trust) -> dict[str, Any]:
    """Return what was found, for programs: every gene with its columns of the file."""
    own = [name for name in found.var if name.startswith((f"{MARK}_", genes.BETTER, "half_width"))]
    table = found.var[own].to_dict("index")
    return {"output": found.output, **found.about, "per_gene": table, "notes": found.notes}


def render(found: Trust) -> str:
    """Return what was found, for people."""
    output, var, about, transform, notes = found.output, found.var, found.about, found.transform, found.notes
    symbols = GeneNames.of(var)
    names = np.where(symbols.symbols != "", symbols.symbols, symbols.names).astype(str)
    r = var[f"{MARK}_pearson:{transform}"].to_numpy(dtype=float)
    known = np.isfinite(r)
    order = [place for place in np.argsort(-r, kind="stable") if known[place]]
    ceiling = var[f"{MARK}_ceiling:{transform}"].to_numpy(dtype=float)
    reached = share(finite_mean(r[np.isfinite(ceiling)]), finite_mean(ceiling))
    better = int(var[f"better_than_chance:{transform}"].sum())
    lines = [
        f"{output}: trust in {int(known.sum())} of {len(r)} genes, from {about['spots']} spots of "
        f"{some(about['sections'])} ({about['patients']} patient{'s' * (about['patients'] != 1)})",
        f"Correlation ({transform}): mean {finite_mean(r):.3f}"
        + (f", {reached:.0%} of the noise ceiling" if np.isfinite(reached) else "")
        + f"; {better} genes better than chance (false discovery rate {genes.FALSE_DISCOVERY:g})",
    ]
    if order:
        shown = [f"{names[place]} {r[place]:.2f}" for place in order]
        lines.append(f"Most trusted: {', '.join(shown[:5])}; least: {', '.join(shown[-5:])}")
    lines += [f"Intervals: {about['promise']}", f"Not known: {NOT_KNOWN}", *notes]
    return "\n".join(lines)
