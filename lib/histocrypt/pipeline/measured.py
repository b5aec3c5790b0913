"""Spots of a section that were measured correct the predictions of the others: joined, corrected, and said.

Nothing that was measured of a spot is in its own prediction: measured spots hold what the others predict of them, and
are marked in ``obs["measured"]``, so that no score counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.pipeline.predictions import MEASURED, join, some, transforms_of
from histocrypt.spatial import spot_pitch
from histocrypt.targets.matrix import noun
from histocrypt.trust import conformal
from histocrypt.trust import measured as trust

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.sections.section import Section
    from histocrypt.targets.panels import Panel

RAW = "raw:"
"""How the layer of a transform is called that holds what the model predicts by itself."""
ALPHA = 0.05
"""Measured spots lie together where fewer random draws leave the others as far from them."""
SAME = 0.02
"""Spots that are called alike may lie so far apart, in distances of neighbours: eight real sections of one array differ
by 0.04 at the least (median over the spots that two share), and their spots are called alike, too."""
FIELD = "--measured"


@dataclass(frozen=True)
class Measured:
    """Counted spots, as a section's spots are called."""

    file: Path
    section: str
    spots: np.ndarray
    """(n,) str, ``"<section>:<barcode>"``."""
    genes: np.ndarray
    """(g,) str: those of the panel that were measured."""
    values: dict[str, np.ndarray]
    """(n, g) by transform."""
    joined: str
    """How spots were joined, in words."""


def read_measured(
    path: str | Path,
    sections: Sequence[Section],
    panel: Panel,
    transforms: list[str],
    *,
    kind: str = "section",
    within_um: float | None = None,
    submission: bool = False,
) -> Measured:
    """Read measured spots and join them to those of a section that is to be predicted, before any work.

    Parameters
    ----------
    path
        In any readable format, and it may be the section's own file: spots with counts are measured, others are not.
    sections
        What is predicted: there must be one.
    panel, transforms
        The model's.
    kind
        ``section``, ``grid`` (its points have no barcodes) or ``patches``, which are refused.
    within_um
        How far a spot and what it is joined to may lie apart, micrometres; None: half as far as the predicted points
        lie from each other, and `SAME` where they are called alike.
    submission
        One is asked for as well, which is refused: it is of all spots, by the model alone.

    Raises
    ------
    InputError
        If it cannot be read, is of another patient, no spot or gene is in both, names and places of spots disagree,
        there are fewer than `trust.measured.LEAST`, or all are measured.
    """
    from histocrypt.sections.read import read_path

    if len(sections) != 1 or kind == "patches" or submission:
        problem = "works with the spots of one section, not with patches or a submission"
        raise InputError(problem, file=path, field=FIELD, value=len(sections), expected="one section, or slide")
    (section,) = sections
    if within_um is not None and not within_um > 0:
        raise InputError(
            "is not a distance", field="--measured-within", value=within_um, expected="micrometres above 0"
        )
    read = read_path(path, counts_only=True)
    if read.patient and section.patient and read.patient != section.patient:
        expected, fix = f"{section.patient!r}, as of {section.id}", "name the counts of this section"
        raise InputError(
            "belongs to another patient", file=path, field="patient", value=read.patient, expected=expected, fix=fix
        )
    adata = read.adata[_counted(read.adata, panel.matrix)].copy()
    rows, theirs, joined = _matched(adata, section, grid=kind == "grid", within_um=within_um, path=path)
    _enough(len(rows), section.n_spots, path)
    names = section.adata.obs_names.to_numpy().astype(str)[rows]
    adata = adata[theirs].copy()
    adata.obs_names = names
    try:
        pair = join(_empty(names, section.id, panel, transforms), adata, section.id)
    except InputError as error:
        raise error.of_file(path) from error
    return Measured(Path(path), section.id, pair.spots, pair.genes, pair.true, joined)


def _counted(adata: AnnData, matrix: str | None) -> np.ndarray:
    """Return (n,) bool: spots that hold anything of what is predicted."""
    if matrix is None:
        return np.asarray(adata.X.sum(axis=1)).ravel() > 0
    key = matrix.removeprefix("obsm:")
    if key not in adata.obsm:
        return np.ones(adata.n_obs, dtype=bool)  # the join says what is missing
    values = np.asarray(adata.obsm[key], dtype=np.float64)
    return np.isfinite(values).all(axis=1) & (values != 0).any(axis=1)


def _matched(
    adata: AnnData, section: Section, *, grid: bool, within_um: float | None, path: str | Path
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return rows of the section and of the measured spots that are one, and how they were joined: names come first."""
    from scipy.spatial import cKDTree

    um, places = section.um_per_px, np.asarray(adata.obsm["spatial"], dtype=np.float64)
    pitch = spot_pitch(section.coords) * um
    if not len(places):
        raise InputError("has no spot with counts", file=path, field="X")
    if not grid:
        rows = section.adata.obs_names.astype(str).get_indexer(adata.obs_names.astype(str))
        theirs = np.flatnonzero(rows >= 0)
        rows = rows[theirs]
        if len(rows):
            apart = float(np.median(np.linalg.norm(places[theirs] - section.coords[rows], axis=1))) * um
            most = max(SAME * pitch, 2 * um) if within_um is None else within_um
            if apart > most:
                raise InputError(
                    f"spots of the same name are {apart:.4g} um apart",
                    file=path,
                    field="obsm['spatial']",
                    value=str(adata.obs_names[theirs[0]]),
                    expected=f"places in the full-resolution pixels of this section, at most {most:.4g} um apart",
                    fix="name the counts of this section, or raise --measured-within",
                )
            return rows, theirs, f"{len(rows)} of {adata.n_obs} spots joined by barcode"
    within_um = pitch / 2 if within_um is None else within_um
    distance, nearest = cKDTree(section.coords).query(places)
    distance, order = distance * um, np.argsort(distance, kind="stable")
    rows, first = np.unique(nearest[order], return_index=True)  # the nearest spot of each point
    theirs = order[first]
    near = distance[theirs] <= within_um
    if not near.any():
        raise InputError(
            f"no measured spot lies within {within_um:.4g} um of a predicted one, and none has its barcode",
            file=path,
            field="obsm['spatial']",
            value=f"{distance.min():.4g} um at the least",
            expected=f"spots of {section.id}, places in its full-resolution pixels",
            fix="name the counts of this section, or raise --measured-within",
        )
    said = f"{int(near.sum())} of {adata.n_obs} spots joined to the nearest point within {within_um:.4g} um"
    return rows[near], theirs[near], said


def _enough(count: int, of: int, path: str | Path) -> None:
    if count >= of:
        raise InputError(
            "every predicted spot is measured, and there is nothing to predict",
            file=path,
            field=FIELD,
            value=count,
            expected=f"counts of some of the {of} spots, none or zeros of the others",
        )
    if count < trust.LEAST:
        raise InputError(
            "measures too few of the predicted spots", file=path, field=FIELD, value=count, expected=trust.LEAST
        )


def _empty(barcodes: np.ndarray, section: str, panel: Panel, transforms: list[str]) -> AnnData:
    """Return a prediction of zeros, for `predictions.join` to find spots and genes in."""
    import pandas as pd
    from anndata import AnnData

    zeros = np.zeros((len(barcodes), len(panel)), dtype=np.float32)
    obs = pd.DataFrame({"section": section, "barcode": barcodes}, index=[f"{section}:{name}" for name in barcodes])
    var = pd.DataFrame({"symbol": list(panel.symbols)}, index=list(panel.genes))
    about = {"transforms": transforms, **({} if panel.matrix is None else {"matrix": panel.matrix})}
    return AnnData(zeros, obs=obs, var=var, layers=dict.fromkeys(transforms, zeros), uns={"prediction": about})


def correct(adata: AnnData, measured: Measured, *, seed: int) -> list[str]:
    """Correct the predictions of one section in place, add intervals, and return what is to be noted.

    ``layers["<transform>"]`` and ``X`` become the corrected predictions, ``layers["raw:<transform>"]`` are the model's
    own; ``obs["measured"]`` marks the measured spots; ``var`` holds ``half_width:<transform>``, ``level:<transform>``
    and ``slope:<transform>`` of the correction; ``uns["measured"]`` holds the rest, with the promise. What the model
    said of its own intervals is kept with ``raw_`` before its name. Genes that were not measured stay as predicted,
    without an interval.

    Parameters
    ----------
    adata
        As `predictions.write_predictions` makes it.
    measured
        Of `read_measured`.
    seed
        Of folds, draws and resamples.

    Raises
    ------
    InputError
        If too few measured spots, or all, were predicted.
    """
    um, about = float(adata.uns["prediction"]["um_per_px"]), dict(adata.uns["prediction"])
    rows = adata.obs_names.get_indexer(measured.spots)
    known = np.flatnonzero(rows >= 0)
    rows, columns = rows[known], adata.var_names.get_indexer(measured.genes)
    _enough(len(rows), adata.n_obs, measured.file)
    coords = np.asarray(adata.obsm["spatial"]) * um
    mine = np.zeros(adata.n_obs, dtype=bool)
    mine[rows] = True
    chance = trust.lie_together(coords, mine, seed=seed)
    promise = trust.promise(len(rows), together=chance < ALPHA)
    for name in [name for name in adata.var if name.startswith("half_width")]:
        adata.var[f"raw_{name}"] = adata.var.pop(name)
    said: dict[str, Any] = {
        "file": str(measured.file.absolute()),
        "joined": measured.joined,
        "spots": len(rows),
        "unmeasured_genes": np.setdiff1d(adata.var_names.to_numpy(dtype=str), measured.genes),
        "level": trust.level_of(len(rows)),
        "lie_together_p": chance,
        "promise": promise,
    }
    notes = [measured.joined, f"intervals promise: {promise}"]
    for transform in transforms_of(adata):
        raw = np.asarray(adata.layers[transform])
        found, told = _corrected(raw[:, columns], measured.values[transform][known], rows, coords, seed)
        new, half, correction = found
        corrected = raw.copy()
        corrected[:, columns] = new
        adata.layers[f"{RAW}{transform}"], adata.layers[transform] = raw, corrected
        for column, values in (("half_width", half), ("level", correction.level), ("slope", correction.slope)):
            every = np.full(adata.n_vars, np.nan)
            every[columns] = values
            adata.var[f"{column}:{transform}"] = every
        said[transform] = told
        notes.append(f"{transform}: {told['said']}")
    adata.X = adata.layers[transforms_of(adata)[0]].copy()
    adata.obs[MEASURED] = mine
    if len(said["unmeasured_genes"]):
        one = noun(about.get("matrix"))
        absent = some(said["unmeasured_genes"])
        notes.append(f"{len(said['unmeasured_genes'])} {one}s were not measured and stay as predicted: {absent}")
    adata.uns["measured"] = said
    own = {"raw_intervals": about["intervals"]} if "intervals" in about else {}
    adata.uns["prediction"] = {**about, **own, "intervals": promise}
    return notes


def _corrected(
    raw: np.ndarray, values: np.ndarray, rows: np.ndarray, coords: np.ndarray, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray, trust.Correction], dict[str, Any]]:
    """Return corrected predictions (n, g), half-widths (g,) and the correction of one transform; and what it did."""
    here = raw[rows], values, coords[rows]
    correction = trust.fit(*here)
    new, without = correction.apply(raw, coords), trust.left_out(*here, seed=seed)
    new[rows] = without
    errors = values - without
    half = conformal.half_widths(np.abs(errors), trust.level_of(len(rows)))
    told: dict[str, Any] = {"reach_um": correction.reach_um, "share_of_place": correction.share}
    words = []
    alone = values - trust.left_out(*here, fitted=trust.fit_alone, seed=seed)
    for name, other, what in (
        ("model", values - raw[rows], "the model's own"),
        ("alone", alone, "that of the measured spots alone"),
    ):
        lower, low, high = trust.lower_error(errors, other, seed=seed)
        told[f"lower_than_{name}"] = np.array([lower, low, high])
        words.append(f"{-lower:+.1%} ({-high:+.1%} to {-low:+.1%}) beside {what}")
    told["said"] = f"mean absolute error on measured spots left out in turn: {', '.join(words)}"
    return (new, half, correction), told
