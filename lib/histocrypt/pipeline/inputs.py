"""What one path gives to predict: a section, a grid over a slide, or the sections of a folder of patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.tissue.grid import grid_section, is_patch_folder, patch_sections, widest

if TYPE_CHECKING:
    from histocrypt.sections.section import Section

GRID_UM = 200.0
"""Micrometres between the points of a grid where nobody says: the array that the model in the box was trained on."""


def sections_to_predict(
    about: dict[str, Any],
    path: Path,
    *,
    image: Any = None,
    um_per_px: float | None = None,
    bin_um: float | None = None,
    spacing_um: float | None = None,
    name: str | None = None,
    patient: str | None = None,
) -> list[Section]:
    """Return what is to be predicted.

    Parameters
    ----------
    about
        What ``model.json`` says.
    path
        A section in any readable format, an image, or a folder of patches.
    image, um_per_px, bin_um
        As `pipeline.predict.predict_section` takes them.
    spacing_um
        Distance of a grid's points; an image needs it.
    name
        What an image is called instead of its file's name; sections and patches have ids of their own.
    patient
        Whose it is, where no file says so.

    Raises
    ------
    InputError
        If it cannot be read, or a grid, squares or a window are asked of what has none.
    """
    found = _found(about, path, image, um_per_px, bin_um, spacing_um, name)
    return [replace(section, patient=section.patient or patient or "") for section in found]


def _found(
    about: dict[str, Any],
    path: Path,
    image: Any,
    um_per_px: float | None,
    bin_um: float | None,
    spacing_um: float | None,
    name: str | None,
) -> list[Section]:
    from histocrypt.sections.image import is_image, open_image
    from histocrypt.sections.read import read_path

    tile_um = about["geometry"]["tile_um"]
    if bin_um is not None and (is_patch_folder(path) or is_image(path)):
        raise InputError("is no section that is summed over squares", file=path, field="--bin-um", value=bin_um)
    if is_patch_folder(path):
        if spacing_um is not None:
            raise InputError(
                "patches are predicted as they are, and a grid needs a slide",
                file=path,
                field="--spacing",
                value=spacing_um,
                fix="leave it out",
            )
        return patch_sections(path, um_per_px=um_per_px, tile_um=tile_um)
    least = about["preprocessing"]["min_tissue"]
    if is_image(path):
        slide = open_image(path)
        slide.verify()
        section = grid_section(slide, spacing_um=spacing_um, um_per_px=um_per_px, min_tissue=least)
        return [replace(section, id=name or section.id)]
    section = read_path(path, image=image, um_per_px=um_per_px, bin_um=bin_um, for_prediction=True)
    if spacing_um is None:
        return [section]
    if section.image is None or np.isfinite(widest(section)):
        raise InputError(
            "a grid needs an image of the whole section",
            file=path,
            field="--spacing",
            value=spacing_um,
            fix="name it with --image",
        )
    return [grid_section(section.image, spacing_um=spacing_um, min_tissue=least, of=section)]
