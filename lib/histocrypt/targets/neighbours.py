"""Which spots lie beside one another, as an edge list: any array works, and no edge crosses sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.neighbours import touching

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

SQUARE = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Offsets (row, column) of the eight neighbours on a square array."""
HEXAGONAL = ((0, -2), (0, 2), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Offsets (row, column) of the six neighbours on Visium's array, whose columns count half steps."""


def section_edges(adata: AnnData) -> np.ndarray:
    """Return the edges of one section, (2, m) int: spot ``edges[0, k]`` has the neighbour ``edges[1, k]``.

    Every edge is there in both directions. ``obs["array_row"]`` and ``obs["array_col"]`` are used where they are whole
    numbers and no place is taken twice; else spots within 1.5 pitches of one another touch.
    """
    grid = array_of(adata)
    if grid is not None:
        return lattice_edges(grid)
    if adata.n_obs < 2:
        return np.empty((2, 0), dtype=np.int64)
    return np.stack(touching(np.asarray(adata.obsm["spatial"], dtype=np.float64)).nonzero()).astype(np.int64)


def array_of(adata: AnnData) -> np.ndarray | None:
    """Return (n, 2) int array rows and columns of a section's spots; None where there are none that can be used."""
    if not {"array_row", "array_col"} <= set(adata.obs):
        return None
    try:
        values = adata.obs[["array_row", "array_col"]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        return None
    grid = values.astype(np.int64)
    return grid if len(np.unique(grid, axis=0)) == len(grid) else None


def is_hexagonal(grid: np.ndarray) -> bool:
    """Return whether an array counts as Visium's does: row + column is even for all spots, or odd for all of them."""
    return len(grid) > 2 and len(np.unique(grid.sum(axis=1) % 2)) == 1


def lattice_edges(grid: np.ndarray, *, hexagonal: bool | None = None) -> np.ndarray:
    """Return the edges of spots on an array, (2, m) int, sorted by spot.

    Parameters
    ----------
    grid
        (n, 2) int: row and column of each spot of one section, no place twice.
    hexagonal
        Six neighbours or eight; None: as `is_hexagonal` finds.

    Raises
    ------
    InputError
        If two spots lie at one place of the array.
    """
    grid = np.asarray(grid, dtype=np.int64).reshape(-1, 2)
    place = {tuple(one): index for index, one in enumerate(grid.tolist())}
    if len(place) < len(grid):
        raise InputError("two spots lie at one place of the array", field="array_row, array_col")
    offsets = HEXAGONAL if (is_hexagonal(grid) if hexagonal is None else hexagonal) else SQUARE
    found = [
        (index, place[row + down, column + right])
        for index, (row, column) in enumerate(grid.tolist())
        for down, right in offsets
        if (row + down, column + right) in place
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2).T


def graph_of(edges: list[np.ndarray], sizes: list[int]) -> csr_matrix:
    """Return one graph of several sections, (n, n) CSR of True, from each section's edges and number of spots."""
    from scipy.sparse import csr_matrix

    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    moved = [one + start for one, start in zip(edges, starts, strict=False)]
    both = np.concatenate(moved, axis=1) if moved else np.empty((2, 0), dtype=np.int64)
    n = int(starts[-1])
    return csr_matrix((np.ones(both.shape[1], dtype=bool), (both[0], both[1])), shape=(n, n))
