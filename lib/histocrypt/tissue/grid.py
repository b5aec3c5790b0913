"""Sections that nobody has measured: a folder of patches, or a slide with a regular grid laid over its tissue."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.identity import safe_id
from histocrypt.sections.image import PatchMosaic, tiles_in
from histocrypt.sections.pixels import opened
from histocrypt.sections.resolution import resolution_of_image
from histocrypt.sections.section import Section
from histocrypt.tissue.mask import spot_tissue_share
from histocrypt.tissue.preprocess import find_tissue

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.sections.image import ImageSource

MOST_SPOTS = 1_000_000


def is_patch_folder(path: Path) -> bool:
    """Return whether a folder holds patches ``<section>_<x>_<y>.*`` and neither counts nor section files."""
    if not path.is_dir() or any(next(path.rglob(kind), None) is not None for kind in ("*.npz", "*.h5ad", "*.h5")):
        return False
    return bool(tiles_in(path))


def patch_sections(folder: Path, *, um_per_px: float | None, tile_um: float) -> list[Section]:
    """Return the sections of a folder of patches, each with its patches as spots, in the order of their file names.

    A patch's place on the slide is not known: its ``x`` and ``y`` become ``array_col`` and ``array_row``, and patches
    are laid side by side on that array. Without ``um_per_px`` a patch is taken to be as wide as the model's tiles.

    Raises
    ------
    InputError
        If patches of one section differ in size, two have one place, or they are narrower than the model's tiles.
    """
    grouped: dict[str, list[tuple[Path, int, int]]] = defaultdict(list)
    for file, (section, x, y) in tiles_in(folder).items():
        grouped[section].append((file, x, y))
    sections = []
    for name, patches in grouped.items():
        files = {file.stem.removeprefix(f"{name}_"): file for file, _, _ in patches}
        if len(files) < len(patches):
            raise InputError("two patches have the same position", file=folder, value=name)
        grid = np.array([(x, y) for _, x, y in patches], dtype=np.int64)
        side = _one_side(patches)
        centres = (grid - grid.min(axis=0) + 0.5) * side
        barcodes = [f"{x}_{y}" for x, y in grid.tolist()]
        image = PatchMosaic.from_tiles(folder, files, dict(zip(barcodes, centres, strict=True)))
        um = um_per_px if um_per_px is not None else tile_um / side
        if not np.isfinite(um) or side * um < 0.99 * tile_um:
            raise InputError(
                f"patches of {name} are {side * um:.0f} µm wide, and the model looks at {tile_um:g} µm",
                file=folder,
                field="um_per_px",
                value=um,
                fix="cut larger patches",
            )
        adata = _unmeasured(barcodes, grid, centres)
        source = "given" if um_per_px is not None else "taken to be the width of the model's tiles"
        sections.append(Section(name, "", adata, image, float(um), source, [folder]))
    return sections


def _one_side(patches: list[tuple[Path, int, int]]) -> int:
    first = None
    for file, _, _ in patches:
        with opened(file) as image:
            size = image.size
        first = first or size
        if size != first or size[0] != size[1]:
            raise InputError(
                "patches of a section are squares of one size",
                file=file,
                value=f"{size[0]} x {size[1]} px",
                expected=f"{first[0]} x {first[0]} px",
            )
    return first[0]


def grid_section(
    image: ImageSource,
    *,
    spacing_um: float,
    min_tissue: float,
    um_per_px: float | None = None,
    of: Section | None = None,
) -> Section:
    """Lay a regular square grid over the tissue of an image; spots are discs of half the spacing.

    Parameters
    ----------
    image
        Any readable image.
    spacing_um
        Distance between neighbouring spots, micrometres.
    min_tissue
        Least share of tissue below a spot's disc.
    um_per_px
        Micrometres per full-resolution pixel as given, of an image alone; else as the image says.
    of
        The section that the image belongs to: id, resolution and what is to be said of it are taken from there.

    Raises
    ------
    InputError
        If the resolution is not known, what is given contradicts the image, the spacing is not a distance, or there is
        no tissue or too much of it.
    """
    own, source = (of.um_per_px, of.um_per_px_source) if of is not None else resolution_of_image(image, given=um_per_px)
    if not np.isfinite(spacing_um) or spacing_um <= 0:
        raise InputError("is not a distance", field="--spacing", value=spacing_um, expected="micrometres, above 0")
    step = spacing_um / own
    if (image.width / step) * (image.height / step) > MOST_SPOTS:
        raise InputError(
            f"a grid this fine has more than {MOST_SPOTS:,} spots",
            file=image.path,
            field="--spacing",
            value=spacing_um,
            fix="give a larger distance",
        )
    mask, scale = find_tissue(image, um_per_px=own)
    if not mask.any():
        raise InputError("the image shows no tissue", file=image.path)
    columns, rows = (np.arange(step / 2, size, step) for size in (image.width, image.height))
    x, y = (axis.ravel() for axis in np.meshgrid(columns, rows))
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(len(columns)), np.arange(len(rows))))
    coords = np.column_stack([x, y])
    kept = spot_tissue_share(mask, coords, scale, step / 2) >= max(min_tissue, 1e-6)
    if not kept.any():
        raise InputError(
            "no spot of the grid is on tissue",
            file=image.path,
            field="--spacing",
            value=spacing_um,
            fix="give a smaller distance",
        )
    barcodes = [f"{c}x{r}" for c, r in zip(column[kept], row[kept], strict=True)]
    adata = _unmeasured(barcodes, np.column_stack([column, row])[kept], coords[kept])
    adata.uns["spatial"] = {"grid": {"metadata": {"spot_diameter_um": spacing_um / 2}}}
    if of is not None:
        return Section(of.id, of.patient, adata, image, own, source, of.files, notes=of.notes)
    name = safe_id(Path(image.path).stem.removesuffix(".ome")).lstrip("._-") or "slide"
    notes = [f"{image.path}: {note}." for note in image.notes]
    return Section(name, "", adata, image, own, source, [Path(image.path)], notes=notes)


def _unmeasured(barcodes: list[str], grid: np.ndarray, coords: np.ndarray) -> AnnData:
    """Return spots without genes, of (n, 2) places on the array (column, row) and in full-resolution pixels."""
    import anndata
    import pandas as pd

    return anndata.AnnData(
        np.zeros((len(barcodes), 0), dtype=np.int32),
        obs=pd.DataFrame({"array_row": grid[:, 1], "array_col": grid[:, 0]}, index=pd.Index(barcodes, name="barcode")),
        obsm={"spatial": coords},
    )


def widest(section: Section) -> float:
    """Return how wide a window around a spot may be, micrometres; without bound where there is a whole image."""
    side = section.image.side if section.image is not None else None
    return side * section.um_per_px if side is not None else float("inf")
