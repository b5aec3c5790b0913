"""What one path gives to predict: a section, a grid over a slide, or the sections of a folder of patches.

And how a section is prepared, as the model's training sections were.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.features import normalised_chunks, section_features
from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.data.load import Spots, spot_names
from histocrypt.errors import InputError
from histocrypt.pipeline.views import mapped
from histocrypt.targets.matrix import depth
from histocrypt.tissue.grid import grid_section, is_patch_folder, patch_sections, widest
from histocrypt.tissue.tiles import read_places

if TYPE_CHECKING:
    from anndata import AnnData

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
        raise InputError("is not of a format that is summed over squares", file=path, field="--bin-um", value=bin_um)
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


def prepare_section(
    about: dict[str, Any],
    section: Section,
    folder: Path,
    outputs: tuple[str, ...],
    *,
    every: bool = False,
    align: bool | None = None,
    around_um: float = 0.0,
) -> tuple[Spots, np.ndarray, Any]:
    """Preprocess a section as a model's training sections were.

    Parameters
    ----------
    about
        What ``model.json`` says of preprocessing, seed, stain and geometry.
    section
        With an image.
    folder
        Temporary; tiles are memory-mapped from there.
    outputs
        Names of the model's outputs.
    every
        Keep spots off tissue, too.
    align
        Whether spots are aligned to the tissue; None: as those of the training sections were.
    around_um
        Around which spots rings of tiles are cut, see `tissue.ring.ring_reach`.

    Returns
    -------
    spots, (n, 2) coordinates in full-resolution pixels, report of the preprocessing
    """
    import h5py

    from histocrypt.options import Preprocessing
    from histocrypt.tissue.preprocess import preprocess_section
    from histocrypt.tissue.stain import StainStatistics

    least = {"min_counts": 0, **({"min_tissue": 0.0} if every else {}), **({} if align is None else {"align": align})}
    settings = Preprocessing(**{**about["preprocessing"], **least})
    files = {
        "section_path": folder / "section.h5ad",
        "tiles_path": folder / "tiles.h5",
        "stain_path": folder / "s.json",
    }
    report = preprocess_section(section, settings=settings, seed=about["seed"], around_um=around_um, **files)
    cleaned: AnnData = read_clean_section(files["section_path"])
    own = StainStatistics.load(files["stain_path"])
    reference = StainStatistics.from_dict(about["stain"]["reference"], file="model")
    method, side = about["stain"]["method"], about["geometry"]["input_px"]
    names = spot_names(section.id, cleaned.obs_names.to_numpy().astype(str))

    @cache
    def pixels() -> np.ndarray:
        with h5py.File(files["tiles_path"], "r") as file:
            chunks = normalised_chunks(file["img"], source=own, reference=reference, method=method, side=side)
            return mapped(folder / "tiles.bin", chunks, n=len(names), side=side)

    def features(encoder: str) -> np.ndarray:
        how = {"stain": own, "method": method, "names": names, "places": read_places(files["tiles_path"])}
        with h5py.File(files["tiles_path"], "r") as file:
            return section_features(file["img"], encoder=encoder, **how)  # read chunk by chunk

    spots = Spots(
        names=names,
        sections=np.full(len(names), section.id),
        patients=np.full(len(names), section.patient or ""),
        depth=depth(cleaned),
        outputs=outputs,
        pixels=pixels,
        features=features,
    )
    return spots, np.asarray(cleaned.obsm["spatial"]), report
