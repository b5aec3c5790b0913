"""Whether a section fits a model: pixels, sizes of spots and genes, looked at before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.predictors.registry import NEEDS_COUNTS
from histocrypt.sections.genes import GeneNames, why_apart
from histocrypt.targets.matrix import columns_of, has_counts, noun

if TYPE_CHECKING:
    from histocrypt.sections.section import Section
    from histocrypt.targets.panels import Panel

COARSEST = 2.0
"""A section may have pixels up to this many times coarser than what the model learnt from."""
ALIKE = 1.2
"""Ratio of sizes beyond which a difference is said: Visium's spots measure 55 um by one definition, 65 by another."""


def check_fit(about: dict[str, Any], section: Section, panel: Panel) -> list[str]:
    """Check that a model fits a section, before any work; return the panel's genes that the section did not measure.

    Raises
    ------
    InputError
        If there is no image, what it really holds is too coarse for the model, or depth is needed and there are no
        counts.
    """
    file = section.files[0] if section.files else section.id
    if section.image is None:
        raise InputError(
            "has no image, but the model needs one", file=file, field=section.id, fix="name it with --image"
        )
    geometry = about["geometry"]
    detail, (_, coarsest) = section.detail_um, _seen_detail(geometry)
    if detail > COARSEST * coarsest:
        reduced = f", as the picture is a reduced one of {detail:.3g} µm/px" if detail > section.um_per_px else ""
        raise InputError(
            f"the image is too coarse for this model: a tile of {geometry['tile_um']:g} µm has "
            f"{geometry['tile_um'] / detail:.0f} pixels{reduced}",
            file=section.image.path,
            field="um_per_px",
            value=round(float(detail), 4),
            expected=f"at most {COARSEST * coarsest:.3g} µm/px, twice that of the training images ({coarsest:.3g})",
            fix="give the full-resolution image" + (" with --image" if reduced else ", or the right --um-per-px"),
        )
    if about["model"] == NEEDS_COUNTS and not (has_counts(section.adata) and section.adata.X.sum() > 0):
        raise InputError(
            "depth_only predicts from total counts, and this section has none",
            file=file,
            field="X",
            fix="use another model",
        )
    key = (panel.matrix or "").removeprefix("obsm:")
    known = panel.matrix is None or key in section.adata.obsm
    if not known:
        return list(panel.genes)
    columns = columns_of(section.adata, panel.genes, panel.symbols, matrix=panel.matrix, section=section.id)
    return [gene for gene, column in zip(panel.genes, columns, strict=True) if column < 0]


def absent_genes(about: dict[str, Any], section: Section, panel: Panel) -> list[str]:
    """Return the panel's genes that a section with counts did not measure; none where it predicts a named matrix."""
    return check_fit(about, section, panel) if panel.matrix is None else []


def missing_genes(about: dict[str, Any], section: Section, panel: Panel, say: Callable[[str], None]) -> list[str]:
    """Check that a model fits a section; return, and say, what of the panel it did not measure."""
    missing = check_fit(about, section, panel)
    labelled = has_counts(section.adata) if panel.matrix is None else len(missing) < len(panel)
    if missing and labelled:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        note = f"{len(missing)} of {len(panel)} {noun(panel.matrix)}s are not measured in {section.id} ({some})"
        if panel.matrix is None and 2 * len(missing) > len(panel):
            own, measured = GeneNames.of(panel.genes, panel.symbols), GeneNames.of(section.adata.var)
            note += f"; {why_apart(own, 'the model', measured, section.id)[0]}"
        say(f"{note}; they are predicted all the same, and scoring skips them")
    return missing


def unlike_training(about: dict[str, Any], section: Section, *, spots: bool = True) -> list[str]:
    """Return notes on how a section differs from those that a model learnt from: detail of pixels, size of spots.

    Parameters
    ----------
    about
        What ``model.json`` says.
    section
        With an image.
    spots
        Whether spots are such as are measured, and not points of a grid or patches.
    """
    from histocrypt.tissue.preprocess import spot_diameter_um

    geometry, notes = about["geometry"], []
    finest, coarsest = _seen_detail(geometry)
    detail = max(section.detail_um, _tile_detail(geometry))
    seen = f"{finest:.3g}" if finest == coarsest else f"{finest:.3g} to {coarsest:.3g}"
    if detail > ALIKE * coarsest or detail * COARSEST < finest:
        way = f"holds {section.detail_um:.3g} µm/px, {'coarser' if detail > coarsest else 'finer'}"
        notes.append(f"{section.image.path}: {way} than what the model learnt from ({seen}).")
    low, high = geometry.get("spot_um", (0.0, np.inf))
    size = spot_diameter_um(section) if spots else low
    if size * ALIKE < low or size > ALIKE * high:
        learnt = f"{low:.3g} µm" if low == high else f"{low:.3g} to {high:.3g} µm"
        fix = "; --bin-um asks for another size" if section.bin_um is not None else ""
        notes.append(f"{section.id}: spots of {size:.3g} µm, where the model learnt from spots of {learnt}{fix}.")
    return notes


def trained_on(about: dict[str, Any], section: Section) -> str:
    """Return a note where a model was trained on a section's patient, as far as names tell; else an empty text."""
    if section.patient and section.patient in about.get("train_patients", ()):
        whom = f"this patient ({section.patient})"
    elif section.id in (*about.get("train_sections", ()), *about.get("validation_sections", ())):
        whom = "a section of this name"
    else:
        return ""
    return f"{section.id}: the model was trained on {whom}; how well it does here says nothing about new patients"


def _seen_detail(geometry: dict[str, Any]) -> tuple[float, float]:
    """Return the finest and the coarsest detail that a model learnt from, micrometres per pixel.

    A tile holds no more than its pixels, and no more than the pictures that it was cut from.
    """
    own = _tile_detail(geometry)
    low, high = geometry.get("detail_um", (own, own))  # which models of the first version do not say
    return max(own, low), max(own, high)


def _tile_detail(geometry: dict[str, Any]) -> float:
    return geometry["tile_um"] / min(geometry["tile_px"], geometry["input_px"])
