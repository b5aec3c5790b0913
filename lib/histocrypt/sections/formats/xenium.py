"""Xenium: counts of cells, summed over squares of tissue that stand for spots, on the H&E image of the same section.

A run holds ``cell_feature_matrix.h5``, ``cells.parquet`` or ``cells.csv.gz`` (``cell_id``, ``x_centroid``,
``y_centroid`` in um, ...) and ``experiment.xenium`` (JSON, ``pixel_size`` in um). Layout by 10x Genomics,
"Understanding Xenium Outputs",
https://www.10xgenomics.com/support/software/xenium-onboard-analysis/latest/analysis/xoa-output-understanding-outputs.
As 10x hands data sets out, names may have a prefix: ``X_cell_feature_matrix.h5``, ``X_he_image.ome.tif``, ....

The H&E image has a matrix of its own, 3 x 3, in a CSV file that Xenium Explorer exports. It takes x, y of the H&E
image in pixels to x, y of the Xenium morphology image in pixels; times ``pixel_size`` these are the um of the cells'
table. So 10x Genomics, "How can I convert coordinates between H&E image and Xenium data?",
https://kb.10xgenomics.com/hc/en-us/articles/35386990499853. The resolution of the H&E image follows from it.

A cell belongs to the square that holds its centroid. Squares of 100 um are the default: Visium spots lie as far apart,
some 50 to 100 cells make a square, and it lies within a tile of the default 150 um (``preprocessing.tile_um``), so
that the tile shows all cells whose counts it is to predict. Transcripts outside of cells are in no cell's counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.sections.identity import safe_id
from histocrypt.sections.image import ImageSource, is_image, open_image
from histocrypt.sections.pooling import lattice_section, pooled_counts, square_metadata
from histocrypt.sections.resolution import TOLERANCE
from histocrypt.sections.section import Format, Loaded, SectionFiles
from histocrypt.sections.tables import delimiter_of, is_parquet, numbers, opened_text, read_parquet, read_table

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_UM = 100.0
MATRIX = "cell_feature_matrix.h5"
CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
CROWD = 20
"""Cells that may lie together by chance."""
COLUMNS = ("cell_id", "x_centroid", "y_centroid")
EXPERIMENT = "experiment.xenium"
PIXEL_UM = 0.2125
"""Pixel of the morphology image where ``experiment.xenium`` is not at hand: that of every instrument so far."""
HE = re.compile(r"(^|[^a-z])(h&?e|h_e|hematoxylin)([^a-z]|$)", re.IGNORECASE)
ALIGNMENT = re.compile(r"(align.*|(^|[_-])matrix)\.csv$", re.IGNORECASE)
INSIDE = 0.5
"""At least this share of the squares lies in the H&E image, or image and matrix do not belong together."""


def _root(folder: Path) -> Path | None:
    if folder.suffix == ".xenium":
        folder = folder.parent
    return next((root for root in (folder, folder / "outs") if _matrices(root)), None)


def _matrices(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob(f"*{MATRIX}")) if not path.name.startswith(".")]


def _recognises(path: Path) -> bool:
    return _root(path) is not None or any(_root(child) for child in path.glob("[!.]*") if child.is_dir())


def _sections_in(path: Path) -> list[SectionFiles]:
    """Return a section for each count matrix of a run, or of the runs in a folder; its id is prefix or folder name."""
    sections = []
    for folder in [path] if _root(path) is not None else sorted(path.glob("[!.]*")):
        root = _root(folder) if folder.is_dir() or folder.suffix == ".xenium" else None
        for matrix in _matrices(root) if root is not None else ():
            prefix, place = matrix.name.removesuffix(MATRIX), root.absolute()
            name = prefix.rstrip("_-. ") or (place.parent if place.name == "outs" else place).name
            sections.append(SectionFiles(safe_id(name), "xenium", root, part=prefix))
    return sections


def load_xenium(files: SectionFiles) -> Loaded:
    """Read cells and their counts, sum them over squares, and place these on the H&E image."""
    root, side = files.path, float(files.bin_um or DEFAULT_UM)
    cells_path, matrix = _cells_path(files), root / f"{files.part}{MATRIX}"
    pixel_um, experiment = _pixel_um(files)
    cells = _cells(cells_path)
    place = np.floor(cells[["x_centroid", "y_centroid"]].to_numpy() / side).astype(np.int64)
    corner = place.min(axis=0)
    place -= corner
    width = int(place[:, 0].max()) + 1
    square = place[:, 1] * width + place[:, 0]
    counted = 0

    def square_of(barcodes: np.ndarray) -> np.ndarray:
        nonlocal counted
        found = cells.index.get_indexer(barcodes.astype(str))
        if (found < 0).any():
            raise InputError(
                f"{int((found < 0).sum())} cells of the count matrix are not in the table of cells",
                file=cells_path,
                field="cell_id",
                value=str(barcodes[(found < 0).argmax()], "utf-8", "replace"),
                fix="take both from one Xenium run",
            )
        counted += len(found)
        return square[found]

    counts, squares, genes, left_out = pooled_counts(matrix, square_of)
    row, column = np.divmod(squares, width)
    centres_um = (np.column_stack([column, row]) + corner + 0.5) * side
    image_path, note = _image_path(files)
    to_pixels = np.diag([1 / pixel_um, 1 / pixel_um, 1.0])  # of the morphology image
    image, read, um_per_px, field = None, [], pixel_um, f"{EXPERIMENT}: pixel_size"
    if image_path is not None:
        image, alignment = open_image(image_path), _alignment_path(files, image_path)
        transform = read_alignment(alignment)
        to_pixels = np.linalg.inv(transform) @ to_pixels
        um_per_px = float(np.sqrt(abs(np.linalg.det(transform[:2, :2])))) * pixel_um
        field = f"{alignment.name} x pixel_size of {pixel_um:g} um"
        read = [image_path, alignment]
        if files.um_per_px is None:
            _check_scale(image, um_per_px, pixel_um, alignment)
    coords = centres_um @ to_pixels[:2, :2].T + to_pixels[:2, 2]
    if image is not None and (inside := image.covers(coords).mean()) < INSIDE:
        raise InputError(
            f"only {inside:.0%} of the squares are inside the H&E image",
            file=read[1],
            value=f"{image.width} x {image.height} px",
            expected="the matrix that takes pixels of this image to pixels of the Xenium morphology image",
            fix="export it again from Xenium Explorer for this image",
        )
    adata = lattice_section(counts, genes, row, column, coords, side_um=side)
    adata.uns["spatial"] = {files.id: {"metadata": square_metadata(side)}}
    notes = [f"{matrix}: features that are no genes were left out: {left_out}."] if left_out else []
    if experiment is None:
        notes.append(
            f"{root}: {EXPERIMENT} is missing, so {PIXEL_UM} um was taken for a pixel of the morphology image."
        )
    return Loaded(
        adata,
        image,
        None,
        [matrix, cells_path, *([experiment] if experiment else []), *read],
        um_per_px=um_per_px,
        um_field=field,
        pitch_um=side,
        bin_um=side,
        technology="Xenium",
        image_note=note,
        notes=notes,
        origins={
            "counts": f"{matrix.name}, {counted} cells summed over squares of {side:g} um",
            "spots": f"{cells_path.name}: centroids" + (f" through {read[1].name}" if read else ""),
            "image": str(image_path) if image_path is not None else "",
        },
    )


def read_alignment(path: Path) -> np.ndarray:
    """Read the matrix that takes an H&E image's pixels to those of the morphology image, float64 (3, 3).

    Raises
    ------
    InputError
        If it is not 3 x 3 numbers, or stretches, shears or flattens the image.
    """
    with opened_text(path) as file:
        lines = [line.strip() for line in file if line.strip()]
    cells = [[cell.strip().strip('"') for cell in line.rstrip(",;").split(delimiter_of(line))] for line in lines]
    wanted = {"file": path, "expected": "3 x 3 numbers, the last row 0, 0, 1, as Xenium Explorer exports them"}
    if [len(row) for row in cells] != [3, 3, 3]:
        raise InputError("is not an alignment matrix", value=[len(row) for row in cells][:5], **wanted)
    transform = numbers(np.ravel(cells).tolist()).reshape(3, 3)
    if not np.isfinite(transform).all() or not np.allclose(transform[2], [0, 0, 1], atol=1e-9):
        raise InputError("is not an alignment matrix", value=cells[2], **wanted)
    long, short = np.linalg.svd(transform[:2, :2], compute_uv=False)
    if short <= 0 or long / short - 1 > TOLERANCE:
        raise InputError("matrix stretches the image", value=f"{long:.4g} and {short:.4g} along its axes", **wanted)
    return transform


def _check_scale(image: ImageSource, um_per_px: float, pixel_um: float, alignment: Path) -> None:
    """Refuse a matrix of another scale than the image itself states."""
    stated = image.um_per_px
    if stated is None or abs(um_per_px / stated - 1) <= TOLERANCE:
        return
    fix = "export the matrix again for this image, or give the true `um_per_px:`"
    if abs(um_per_px / pixel_um / stated - 1) <= TOLERANCE:
        fix = f"its matrix seems to lead to um: divide its first two rows by the pixel size of {pixel_um:g} um"
    elif abs(pixel_um * pixel_um / um_per_px / stated - 1) <= TOLERANCE:
        fix = "it seems to be the inverse: give the matrix from H&E to Xenium"
    raise InputError(
        f"makes {um_per_px:.4g} um per pixel of the H&E image, where {image.path.name} states {stated:.4g}",
        file=alignment,
        fix=fix,
    )


def _cells_path(files: SectionFiles) -> Path:
    found = [path for name in CELLS if (path := files.path / f"{files.part}{name}").is_file()]
    if not found:
        raise InputError("table of cells is missing", file=files.path, expected=" or ".join(CELLS[:2]))
    return found[0]


def _cells(path: Path) -> pd.DataFrame:
    """Return centroids in um, indexed by cell."""
    import pandas as pd

    table = read_parquet(path) if is_parquet(path) else read_table(path, COLUMNS)
    for name in COLUMNS:
        if name not in table:
            raise InputError("column is missing", file=path, field=name, expected=", ".join(COLUMNS))
    ids = table["cell_id"]
    ids = ids.map(lambda name: name.decode() if isinstance(name, bytes) else str(name))
    if ids.duplicated().any():
        raise InputError("cell appears twice", file=path, field="cell_id", value=ids[ids.duplicated()].iloc[0])
    centres = pd.DataFrame({name: numbers(table[name]) for name in COLUMNS[1:]}, index=pd.Index(ids, dtype=object))
    bad = ~np.isfinite(centres.to_numpy()).all(axis=1)
    if bad.any() or not len(centres):
        first = centres.index[bad.argmax()] if len(centres) else None
        raise InputError("centroid is not a number", file=path, field="x_centroid, y_centroid", value=first)
    area = float(np.prod(np.ptp(centres.to_numpy(), axis=0)))
    if len(centres) > CROWD and len(centres) > area:
        raise InputError(
            f"there is more than one cell per square micrometre: {len(centres)} on {area:.3g}",
            file=path,
            field="x_centroid, y_centroid",
            expected="micrometres",
        )
    return centres


def _pixel_um(files: SectionFiles) -> tuple[float, Path | None]:
    path = files.path / f"{files.part}{EXPERIMENT}"
    if not path.is_file():
        path = next(iter(sorted(files.path.glob(f"*{EXPERIMENT}"))), path) if not files.part else path
    if not path.is_file():
        return PIXEL_UM, None
    content = read_json(path)
    size = content.get("pixel_size") if isinstance(content, dict) else None
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0.01 < size < 10:
        raise InputError(
            "pixel size is not a number of um", file=path, field="pixel_size", value=size, expected="0.2125"
        )
    return float(size), path


def _image_path(files: SectionFiles) -> tuple[Path | None, str]:
    """Return the H&E image, or None and why."""
    if files.counts_only:
        return None, ""
    if files.image is not None:
        if not files.image.exists():
            raise InputError("the given image does not exist", file=files.path, field="image", value=str(files.image))
        return files.image, ""
    found = [path for path in _beside(files) if is_image(path) and HE.search(path.stem)]
    own = [path for path in found if files.part and path.name.startswith(files.part)] or found
    if len(own) > 1:
        raise InputError(
            "folder holds several H&E images",
            file=files.path,
            value=[path.name for path in own],
            setting="image",
        )
    return (own[0], "") if own else (None, f"H&E image is missing: no *_he_image.ome.tif is in {files.path}")


def _alignment_path(files: SectionFiles, image: Path) -> Path:
    """Return the alignment matrix of the H&E image."""
    places = dict.fromkeys([*sorted(image.parent.glob("[!.]*")), *_beside(files)])
    found = [path for path in places if path.is_file() and ALIGNMENT.search(path.name)]
    stem = re.sub(r"(\.ome)?\.[^.]+$", "", image.name)
    own = [path for path in found if path.name.startswith(stem)] or found
    if len(own) == 1:
        return own[0]
    if own:
        raise InputError(
            "several alignment matrices may be the H&E image's",
            file=files.path,
            value=[path.name for path in own],
            fix=f"rename the right one to {stem}alignment.csv",
        )
    raise InputError(
        "alignment matrix of the H&E image is missing",
        file=image,
        expected=f"{stem}alignment.csv beside it",
        fix="align the image in Xenium Explorer and export the matrix",
    )


def _beside(files: SectionFiles) -> list[Path]:
    """Return the files of a run, and those beside its folder ``outs``."""
    root = files.path
    places = (root, root.absolute().parent) if root.absolute().name == "outs" else (root,)
    return [path for place in places for path in sorted(place.glob("[!.]*")) if path.is_file()]


def _inputs(files: SectionFiles) -> list[Path]:
    found = {files.path / f"{files.part}{MATRIX}", _cells_path(files)}
    image, _ = _image_path(files)
    if image is not None:
        found |= {image, _alignment_path(files, image)}
    return sorted(found | set(files.path.glob(f"*{EXPERIMENT}")))


FORMAT = Format(
    layout="Xenium's output (cell_feature_matrix.h5, cells.parquet and an H&E image)",
    recognises=_recognises,
    sections_in=_sections_in,
    read=load_xenium,
    inputs=_inputs,
)
