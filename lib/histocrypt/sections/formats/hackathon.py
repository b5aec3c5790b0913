"""The hackathon's HDF5 file: slides as arrays, spots with cell-type abundances, and a test slide without them.

``images/Train/S_k`` (height, width, 3); ``spots/Train/S_k``, a structured array x, y, C1, C2, ...; ``images/Test/S_k``
and ``spots/Test/S_k`` with x, y, Test_Set. Layout of the Elucidata AI challenge of 2025. There are no counts, no
resolution, no patients and no barcodes in it: a spot is called by its row, 0, 1, 2, ..., which is also its ID in a
submission.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, reading, unknown_name
from histocrypt.hdf5 import open_h5
from histocrypt.sections.identity import safe_id
from histocrypt.sections.pixels import MAX_PIXELS, ScannedImage
from histocrypt.sections.section import Format, Loaded, SectionFiles

if TYPE_CHECKING:
    import h5py

TRAIN, TEST = "Train", "Test"
MATRIX = "cell_types"
"""Abundances are ``obsm["cell_types"]``: a study names them as ``target.matrix: obsm:cell_types``."""
LABEL = re.compile(r"C([1-9]\d*)")
SUFFIXES = (".h5", ".hdf5")
ROUNDING = 1e-3
"""How far beyond 0 and 1 a pixel may lie: resampling in floats overshoots a little."""
BAND_PIXELS = 2**22


def _file_and_slide(path: Path) -> tuple[Path, str]:
    """Return the file and the slide that ``FILE.h5/S_1`` names; the slide is empty where none is named."""
    return (path.parent, path.name) if path.parent.suffix in SUFFIXES and path.parent.is_file() else (path, "")


def _recognises(path: Path) -> bool:
    """Return whether a path is, or names a slide of, an HDF5 file that has the groups ``images`` or ``spots``."""
    import h5py

    path, _ = _file_and_slide(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    try:
        with h5py.File(path, "r") as file:
            return any(_may_be_slides(file, name) for name in ("images", "spots"))
    except (OSError, RuntimeError):
        return False


def _may_be_slides(file: h5py.File, name: str) -> bool:
    """Return whether there is a group of a name, or a link: that is not followed here, and refused on reading."""
    import h5py

    link = file.get(name, getlink=True)
    return link is not None and (not isinstance(link, h5py.HardLink) or file.get(name, getclass=True) is h5py.Group)


def _sections_in(path: Path, *, unlabelled: bool = False) -> list[SectionFiles]:
    """Return the slide that is named, else all training slides, or the test slides if ``unlabelled`` and there are any.

    Raises
    ------
    InputError
        If a group is missing or the slide unknown.
    """
    path, slide = _file_and_slide(path)
    if not path.is_file():
        return []
    with _opened(path) as file:
        slides = {part: sorted(_group(file, f"spots/{part}", path, optional=True)) for part in (TRAIN, TEST)}
        if not slides[TRAIN] and not (unlabelled and slides[TEST]):
            _group(file, f"spots/{TRAIN}", path)
            raise InputError("holds no training slide", file=path, field=f"spots/{TRAIN}")
    every = [(part, name) for part in (TRAIN, TEST) for name in slides[part]]
    if slide:
        wanted = [pair for pair in every if pair[1] == slide]
        if not wanted:
            raise unknown_name("slide", slide, [name for _, name in every], file=path)
    else:
        chosen = TEST if unlabelled and slides[TEST] else TRAIN
        wanted = [pair for pair in every if pair[0] == chosen]
    return [
        SectionFiles(safe_id(name), "hackathon", path, patient=name if part == TRAIN else None, part=f"{part}/{name}")
        for part, name in wanted
    ]


def load_hackathon(files: SectionFiles) -> Loaded:
    """Read one slide: abundances to ``obsm["cell_types"]``, no counts."""
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    path, part = files.path, files.part
    training = part.startswith(f"{TRAIN}/")
    with _opened(path) as file:
        table = _table(file, part, path)
        labels = _labels(file, part, path) if training else []
        _node(file, f"images/{part}", path)
    where = {"file": path, "field": f"spots/{part}"}
    coords = np.column_stack([_numbers(table, name, where) for name in ("x", "y")])
    rows = pd.Index([str(row) for row in range(len(table))], name="barcode")
    adata = anndata.AnnData(csr_matrix((len(table), 0), dtype=np.int32), obs=pd.DataFrame(index=rows))
    adata.obsm["spatial"] = coords
    if "Test_Set" in table.dtype.names:
        adata.obs["Test_Set"] = table["Test_Set"].astype(np.int64)
    if labels:
        values = pd.DataFrame({name: _numbers(table, name, where) for name in labels}, index=rows)
        low = values.to_numpy().min()
        if low < 0:
            column = str(values.columns[int(values.to_numpy().min(axis=0).argmin())])
            raise InputError(f"abundances of {column} are negative", **where, value=float(low))
        adata.obsm[MATRIX] = values.astype(np.float32)
    notes = [f"{path}: {files.id}: the file states neither resolution nor technology; give um_per_px if it is known."]
    if files.patient == files.id:
        notes.append(
            f"{path}: {files.id}: the file does not say of which patient a slide is, so each slide counts as a patient "
            "of its own; where two are of one patient, scores are too good."
        )
    image = None if files.counts_only else ArrayImage(path, f"images/{part}")
    return Loaded(adata, image, files.patient, [path], notes=notes, uncounted=True)


class ArrayImage(ScannedImage):
    """A data set (height, width, 3) of floats from 0 to 1, or of uint8.

    Parameters
    ----------
    path
        The HDF5 file.
    name
        Path of the data set in it.

    Raises
    ------
    InputError
        If the data set is no such image; pixels are judged when they are read.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path, self.name = Path(path), name
        self._file = open_h5(path)
        self._pixels = self._file[name]
        where = {"file": self.path, "field": name}
        if not hasattr(self._pixels, "shape"):
            raise InputError("is a group where an image belongs", **where)
        shape, kind = self._pixels.shape, self._pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or not (kind == np.uint8 or np.issubdtype(kind, np.floating)):
            raise InputError(
                "is not an image",
                **where,
                value=f"{shape} {kind}",
                expected="(height, width, 3), floats from 0 to 1 or uint8",
            )
        if shape[0] * shape[1] > MAX_PIXELS:
            raise InputError(f"image has more than {MAX_PIXELS:,} pixels", **where, value=shape)
        self.height, self.width = shape[:2]

    def _inside(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._read(slice(y0, y1), slice(x0, x1))

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, a band of rows at a time, its longer side at most ``max_side``, and the scale."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        per_row = self.height / height
        step = max(1, int(BAND_PIXELS / self.width / per_row))
        out = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            first, last = int(top * per_row), min(int(np.ceil(bottom * per_row)), self.height)
            band = Image.fromarray(self._read(slice(first, last), slice(None)))
            box = (0, top * per_row - first, self.width, min(bottom * per_row - first, band.height))
            out[top:bottom] = np.asarray(band.resize((width, bottom - top), Image.Resampling.HAMMING, box=box))
        return out, scale

    def _read(self, rows: slice, columns: slice) -> np.ndarray:
        with reading("image cannot be read", OSError, file=self.path, field=self.name):
            pixels = self._pixels[rows, columns]
        if pixels.dtype == np.uint8:
            return pixels
        low, high = float(pixels.min()), float(pixels.max())  # NaN if any pixel is
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            msg = "pixels are not numbers" if np.isnan(low) else "pixels lie outside 0 to 1"
            value = None if np.isnan(low) else f"{low:.4g} to {high:.4g}"
            raise InputError(msg, file=self.path, field=self.name, value=value, expected="floats from 0 to 1, or uint8")
        return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with reading("cannot be read as HDF5", OSError, file=path), open_h5(path) as file:
        yield file


def _node(file: h5py.File, name: str, path: Path, *, optional: bool = False) -> Any:
    """Return what lies in the file itself at ``name``; links that lead elsewhere are refused."""
    import h5py

    node: Any = file
    for step in name.split("/"):
        if step not in node:
            if optional:
                return None
            raise InputError("is missing", file=path, field=name, expected="images/Train/S_1, spots/Train/S_1, ...")
        if not isinstance(node.get(step, getlink=True), h5py.HardLink):
            raise InputError("is a link to another place", file=path, field=name, expected="data in the file itself")
        node = node[step]
    if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual):
        raise InputError("is stored in another file", file=path, field=name, expected="data in the file itself")
    return node


def _group(file: h5py.File, name: str, path: Path, *, optional: bool = False) -> Any:
    import h5py

    node = _node(file, name, path, optional=optional)
    if node is not None and not isinstance(node, h5py.Group):
        raise InputError("is not a group of slides", file=path, field=name)
    return node or {}


def _table(file: h5py.File, part: str, path: Path) -> np.ndarray:
    """Return the spots of a slide, checked to be a table with x and y."""
    import h5py

    name = f"spots/{part}"
    node = _node(file, name, path)
    columns = getattr(node, "dtype", np.dtype(float)).names
    if not isinstance(node, h5py.Dataset) or columns is None or node.ndim != 1:
        raise InputError(
            "is not a table with named columns", file=path, field=name, expected="a structured array x, y, C1, C2, ..."
        )
    for column in ("x", "y"):
        if column not in columns:
            raise InputError(f"column {column} is missing", file=path, field=name, value=list(columns)[:5])
    if not len(node):
        raise InputError("slide has no spot", file=path, field=name)
    return node[:]


def _labels(file: h5py.File, part: str, path: Path) -> list[str]:
    """Return the abundance columns of a training slide, which every training slide has to have."""
    own = _label_columns(file, part, path)
    for other in file[f"spots/{TRAIN}"]:
        missing = [name for name in _label_columns(file, f"{TRAIN}/{other}", path) if name not in own]
        if missing:
            raise InputError(
                f"column {missing[0]} is missing, which slide {other} has", file=path, field=f"spots/{part}"
            )
    return own


def _label_columns(file: h5py.File, part: str, path: Path) -> list[str]:
    node = _node(file, f"spots/{part}", path)
    columns = [name for name in getattr(node, "dtype", np.dtype(float)).names or () if LABEL.fullmatch(name)]
    if not columns:
        raise InputError(
            "training slide has no labels", file=path, field=f"spots/{part}", expected="columns C1, C2, ..."
        )
    numbers = {int(name[1:]) for name in columns}
    gap = next((number for number in range(1, max(numbers)) if number not in numbers), None)
    if gap is not None:
        raise InputError(
            f"column C{gap} is missing", file=path, field=f"spots/{part}", expected=f"C1 to C{max(numbers)}"
        )
    return columns


def _numbers(table: np.ndarray, column: str, where: dict[str, Any]) -> np.ndarray:
    if not (np.issubdtype(table[column].dtype, np.number) and table[column].ndim == 1):
        raise InputError(f"column {column} does not hold numbers", **where, value=str(table[column].dtype))
    values = table[column].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InputError(
            f"column {column} is not finite in {bad.size} rows, first in row {bad[0]}",
            **where,
            value=float(values[bad[0]]),
        )
    return values


FORMAT = Format(
    layout="an .h5 file with images/Train and spots/Train",
    recognises=_recognises,
    sections_in=_sections_in,
    read=load_hackathon,
    predicted_in=partial(_sections_in, unlabelled=True),
)
