"""Neighbours on square, hexagonal and unknown arrays."""

import anndata
import numpy as np
import pytest

from histocrypt.errors import InputError
from histocrypt.spatial import graph_of, is_hexagonal, lattice_edges, section_edges


def square(n=3):
    return np.array([(row, column) for row in range(n) for column in range(n)])


def hexagonal():
    return np.array([(row, column) for row in range(4) for column in range(row % 2, 8, 2)])


def degrees(edges, n):
    return np.bincount(edges[0], minlength=n)


def test_square_array_has_eight_neighbours_fewer_at_its_rim():
    edges = lattice_edges(square())
    assert not is_hexagonal(square())
    assert degrees(edges, 9).tolist() == [3, 5, 3, 5, 8, 5, 3, 5, 3]


def test_hexagonal_array_has_six():
    grid = hexagonal()
    assert is_hexagonal(grid)
    edges = lattice_edges(grid)
    inner = grid.tolist().index([1, 3])
    assert sorted(map(tuple, grid[edges[1][edges[0] == inner]].tolist())) == [
        (0, 2), (0, 4), (1, 1), (1, 5), (2, 2), (2, 4),
    ]  # fmt: skip


def test_every_edge_is_there_in_both_directions():
    for grid in (square(4), hexagonal()):
        pairs = set(map(tuple, lattice_edges(grid).T.tolist()))
        assert pairs == {(b, a) for a, b in pairs}


def test_isolated_spot_has_none():
    assert degrees(lattice_edges(np.array([(0, 0), (0, 1), (9, 9)])), 3).tolist() == [1, 1, 0]


def test_coordinates_serve_where_there_is_no_array_and_where_it_cannot_be_trusted():
    grid = square()
    adata = anndata.AnnData(np.zeros((9, 1)))
    adata.obsm["spatial"] = grid[:, ::-1] * 200.0
    for rows in (None, grid[:, 0] + 0.5, np.where(grid[:, 0] > 1, np.nan, grid[:, 0]), np.zeros(9)):
        if rows is not None:
            adata.obs["array_row"], adata.obs["array_col"] = rows, grid[:, 1]
        assert degrees(section_edges(adata), 9).tolist() == [3, 5, 3, 5, 8, 5, 3, 5, 3]


def test_no_edge_crosses_sections():
    edges = lattice_edges(square())
    graph = graph_of([edges, edges], [9, 9]).tocoo()
    assert graph.nnz == 2 * edges.shape[1]
    assert ((graph.row < 9) == (graph.col < 9)).all()


def test_one_place_taken_twice_is_refused():
    with pytest.raises(InputError, match="two spots"):
        lattice_edges(np.array([(0, 0), (0, 0)]))
