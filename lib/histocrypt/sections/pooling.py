"""Counts of a 10x matrix, read piece by piece and summed over squares: of bins (Visium HD) or of cells (Xenium).

No more than `PIECE` values of the file are held at once beside the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.hdf5 import open_h5
from histocrypt.sections.genes import counted_kinds, other_features
from histocrypt.sections.stores import h5_errors

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from scipy.sparse import csr_matrix

PIECE = 2**22
"""Values read at once: 32 MB of counts and gene numbers."""
COLUMNS = 2**18
"""Barcodes read at once."""


def pooled_counts(
    path: Path, square_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[csr_matrix, np.ndarray, pd.DataFrame, str]:
    """Sum the gene expression of a 10x ``.h5`` over squares.

    Parameters
    ----------
    path
        10x's HDF5 of version 3 or later: features x barcodes, compressed by barcode.
    square_of
        Takes barcodes, bytes (n,), and returns the number of the square of each, int64 (n,); -1: left out.

    Returns
    -------
    squares x genes, int32, without features other than gene expression; the number of each row's square, ascending;
    genes: index ``gene_id``, column ``symbol``; and in words what was left out since it is no gene, perhaps nothing.

    Raises
    ------
    InputError
        If the file is damaged, or its counts are negative or no whole numbers.
    """
    import pandas as pd

    what = "is not a readable 10x count matrix"
    with reading(what, *h5_errors(), file=path), open_h5(path, what=what) as file:
        matrix = file["matrix"]
        features = matrix["features"]
        ids, symbols, kinds = (features[name].asstr()[:] for name in ("id", "name", "feature_type"))
        var = pd.DataFrame({"feature_types": kinds}, index=ids)
        other, kinds = other_features(var)
        expression, left_out = ~other, counted_kinds(other, kinds)
        genes = pd.DataFrame(
            {"symbol": symbols[expression]}, index=pd.Index(ids[expression], name="gene_id", dtype=object)
        )
        pieces = [piece for piece in _pieces(matrix, expression, square_of, path) if len(piece[0])]
    if not pieces:
        raise InputError("count matrix holds nothing of this section", file=path, field="matrix/barcodes")
    return (*_joined(pieces, len(genes)), genes, left_out)


def _pieces(matrix: h5py.Group, expression: np.ndarray, square_of: Callable, path: Path):
    """Yield the sums of one stretch of barcodes after another: squares, values of each, gene numbers, counts."""
    from scipy.sparse import csr_matrix

    column_of = np.where(expression, np.cumsum(expression) - 1, -1).astype(np.int32)
    starts = matrix["indptr"][:].astype(np.int64)
    if len(starts) != len(matrix["barcodes"]) + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
        raise InputError("barcodes and counts do not belong together", file=path, field="matrix/indptr")
    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + PIECE, side="right")) - 1
        last = min(max(last, first + 1), first + COLUMNS, len(starts) - 1)
        squares = np.asarray(square_of(np.asarray(matrix["barcodes"][first:last], dtype="S")))
        values = matrix["data"][starts[first] : starts[last]]
        if not np.issubdtype(values.dtype, np.integer) and (values != np.rint(values)).any():
            raise InputError("counts are not whole numbers", file=path, field="matrix/data")
        if values.size and values.min() < 0:
            raise InputError("counts are negative", file=path, field="matrix/data", value=int(values.min()))
        features = matrix["indices"][starts[first] : starts[last]]
        if features.size and not (features.min() >= 0 and features.max() < len(column_of)):
            raise InputError("names a feature that is not there", file=path, field="matrix/indices")
        columns = column_of[features]
        rows, inverse = np.unique(squares, return_inverse=True)
        row = np.repeat(inverse.ravel().astype(np.int32), np.diff(starts[first : last + 1]))
        kept = columns >= 0
        if not kept.all():
            row, columns, values = row[kept], columns[kept], values[kept]
        summed = csr_matrix((values.astype(np.int32), (row, columns)), shape=(len(rows), int(expression.sum())))
        outside = int(rows[0] < 0)
        begin = summed.indptr[outside]
        parts = _smallest(summed.indices[begin:]), _smallest(summed.data[begin:])
        yield rows[outside:], np.diff(summed.indptr[outside:]), *parts
        first = last


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return whole numbers, zero or more, in half the memory where they fit: all pieces wait for one another."""
    return values.astype(np.uint16) if values.max(initial=0) < 2**16 else values.copy()


def _joined(pieces: list[tuple[np.ndarray, ...]], genes: int) -> tuple[csr_matrix, np.ndarray]:
    """Return one matrix of all pieces and the squares of its rows; pieces are freed as they are taken over."""
    from scipy.sparse import csr_matrix

    squares = np.unique(np.concatenate([piece[0] for piece in pieces]))
    lengths = np.zeros(len(squares), dtype=np.int64)
    for rows, sizes, *_ in pieces:
        lengths[np.searchsorted(squares, rows)] += sizes
    starts = np.concatenate([[0], np.cumsum(lengths)])
    columns, values = np.empty(starts[-1], dtype=np.int32), np.empty(starts[-1], dtype=np.int32)
    free = starts[:-1].copy()
    pieces.reverse()
    while pieces:
        rows, sizes, own_columns, own_values = pieces.pop()
        place = np.searchsorted(squares, rows)
        into = np.repeat(free[place] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        columns[into], values[into] = own_columns, own_values
        free[place] += sizes
    counts = csr_matrix((values, columns, starts), shape=(len(squares), genes))
    counts.sum_duplicates()
    return counts, squares


def lattice_section(
    counts: csr_matrix,
    genes: pd.DataFrame,
    rows: np.ndarray,
    columns: np.ndarray,
    coords: np.ndarray,
    *,
    side_um: float,
):
    """Return squares as an ``AnnData``: named as Space Ranger names bins, with array index and centres in pixels."""
    import anndata
    import pandas as pd

    names = [f"s_{side_um:03.0f}um_{row:05d}_{column:05d}-1" for row, column in zip(rows, columns, strict=True)]
    return anndata.AnnData(
        counts,
        obs=pd.DataFrame(
            {"array_row": rows, "array_col": columns}, index=pd.Index(names, name="barcode", dtype=object)
        ),
        var=genes,
        obsm={"spatial": coords},
    )


def square_metadata(side_um: float) -> dict[str, object]:
    """Return what ``uns["spatial"][section]["metadata"]`` says of squares that touch one another."""
    return {"spot_diameter_um": side_um, "inter_spot_um": side_um, "lattice": "square", "neighbours": 8}
