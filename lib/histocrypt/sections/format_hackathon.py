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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.sections.array_image import ArrayImage
from histocrypt.sections.section import Loaded, SectionFiles

if TYPE_CHECKING:
    import h5py

TRAIN, TEST = "Train", "Test"
MATRIX = "cell_types"
"""Abundances are ``obsm["cell_types"]``: a study names them as ``target.matrix: obsm:cell_types``."""
LABEL = re.compile(r"C([1-9]\d*)")
SUFFIXES = (".h5", ".hdf5")


def split_slide(path: Path) -> tuple[Path, str]:
    """Return the file and the slide that ``FILE.h5/S_1`` names; the slide is empty where none is named."""
    if path.parent.suffix in SUFFIXES and path.parent.is_file():
        return path.parent, path.name
    return path, ""


def is_hackathon(path: Path) -> bool:
    """Return whether an HDF5 file has the groups ``images`` or ``spots``."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return any(isinstance(file.get(name), h5py.Group) for name in ("images", "spots"))
    except OSError:
        return False


def hackathon_sections(path: Path, slide: str = "", *, unlabelled: bool = False) -> list[SectionFiles]:
    """Return the training slides of a file, or the one that is named.

    Parameters
    ----------
    path
        The HDF5 file.
    slide
        Slide to take, of either group; all training slides by default.
    unlabelled
        Take the test slides by default, for prediction; the training slides where there is no test slide.

    Raises
    ------
    InputError
        If a group is missing or the slide unknown.
    """
    with _opened(path) as file:
        slides = {part: sorted(_group(file, f"spots/{part}", path, optional=True)) for part in (TRAIN, TEST)}
        if not slides[TRAIN] and not (unlabelled and slides[TEST]):
            _group(file, f"spots/{TRAIN}", path)
            msg = "holds no training slide"
            raise InputError(msg, file=path, field=f"spots/{TRAIN}")
    every = [(part, name) for part in (TRAIN, TEST) for name in slides[part]]
    if slide:
        wanted = [pair for pair in every if pair[1] == slide]
        if not wanted:
            raise unknown_name("slide", slide, [name for _, name in every], file=path)
    else:
        chosen = TEST if unlabelled and slides[TEST] else TRAIN
        wanted = [pair for pair in every if pair[0] == chosen]
    return [
        SectionFiles(name, "hackathon", path, patient=name if part == TRAIN else None, part=f"{part}/{name}")
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
            msg = f"abundances of {column} are negative"
            raise InputError(msg, **where, value=float(low))
        adata.obsm[MATRIX] = values.astype(np.float32)
    notes = [f"{path}: {files.id}: the file states neither resolution nor technology; give um_per_px if it is known."]
    if files.patient == files.id:
        notes.append(
            f"{path}: {files.id}: the file does not say of which patient a slide is, so each slide counts as a patient "
            "of its own; where two are of one patient, scores are too good."
        )
    image = ArrayImage(path, f"images/{part}")
    return Loaded(adata, image, files.patient, [path], notes=notes, uncounted=True)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        msg = f"cannot be read as HDF5, it may be truncated ({' '.join(str(error).split())[:160]})"
        raise InputError(msg, file=path, fix="copy it again from its source") from error


def _node(file: h5py.File, name: str, path: Path, *, optional: bool = False) -> Any:
    """Return what lies in the file itself at ``name``; links that lead elsewhere are refused."""
    import h5py

    node: Any = file
    for step in name.split("/"):
        if step not in node:
            if optional:
                return None
            msg = "is missing"
            raise InputError(msg, file=path, field=name, expected="images/Train/S_1, spots/Train/S_1, ...")
        if not isinstance(node.get(step, getlink=True), h5py.HardLink):
            msg = "is a link to another place"
            raise InputError(msg, file=path, field=name, expected="data in the file itself")
        node = node[step]
    if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual):
        msg = "lies in another file"
        raise InputError(msg, file=path, field=name, expected="data in the file itself")
    return node


def _group(file: h5py.File, name: str, path: Path, *, optional: bool = False) -> Any:
    import h5py

    node = _node(file, name, path, optional=optional)
    if node is not None and not isinstance(node, h5py.Group):
        msg = "is not a group of slides"
        raise InputError(msg, file=path, field=name)
    return node or {}


def _table(file: h5py.File, part: str, path: Path) -> np.ndarray:
    """Return the spots of a slide, checked to be a table with x and y."""
    import h5py

    name = f"spots/{part}"
    node = _node(file, name, path)
    columns = getattr(node, "dtype", np.dtype(float)).names
    if not isinstance(node, h5py.Dataset) or columns is None or node.ndim != 1:
        msg = "is not a table with named columns"
        raise InputError(msg, file=path, field=name, expected="a structured array x, y, C1, C2, ...")
    for column in ("x", "y"):
        if column not in columns:
            msg = f"column {column} is missing"
            raise InputError(msg, file=path, field=name, value=list(columns)[:5])
    if not len(node):
        msg = "slide has no spot"
        raise InputError(msg, file=path, field=name)
    return node[:]


def _labels(file: h5py.File, part: str, path: Path) -> list[str]:
    """Return the abundance columns of a training slide, which every training slide has to have."""
    own = _label_columns(file, part, path)
    for other in file[f"spots/{TRAIN}"]:
        missing = [name for name in _label_columns(file, f"{TRAIN}/{other}", path) if name not in own]
        if missing:
            msg = f"column {missing[0]} is missing, which slide {other} has"
            raise InputError(msg, file=path, field=f"spots/{part}")
    return own


def _label_columns(file: h5py.File, part: str, path: Path) -> list[str]:
    node = _node(file, f"spots/{part}", path)
    columns = [name for name in getattr(node, "dtype", np.dtype(float)).names or () if LABEL.fullmatch(name)]
    if not columns:
        msg = "training slide has no labels"
        raise InputError(msg, file=path, field=f"spots/{part}", expected="columns C1, C2, ...")
    numbers = {int(name[1:]) for name in columns}
    gap = next((number for number in range(1, max(numbers)) if number not in numbers), None)
    if gap is not None:
        msg = f"column C{gap} is missing"
        raise InputError(msg, file=path, field=f"spots/{part}", expected=f"C1 to C{max(numbers)}")
    return columns


def _numbers(table: np.ndarray, column: str, where: dict[str, Any]) -> np.ndarray:
    if not (np.issubdtype(table[column].dtype, np.number) and table[column].ndim == 1):
        msg = f"column {column} is not numbers"
        raise InputError(msg, **where, value=str(table[column].dtype))
    values = table[column].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        msg = f"column {column} is not finite in {bad.size} rows, first in row {bad[0]}"
        raise InputError(msg, **where, value=float(values[bad[0]]))
    return values
