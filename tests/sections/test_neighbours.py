"""Distances between spots, and smoothed ranks worked out by hand."""

import numpy as np
import pytest

from histocrypt.errors import InputError
from histocrypt.spatial import smoothed_ranks, spacing, spacing_figure, touching

#   A . B . C      one row, 100 apart, and D far from all
ROW = np.array([[0.0, 0], [100, 0], [200, 0], [1000, 0]])


def test_smoothed_ranks_by_hand_with_an_isolated_spot():
    """Ranks 1, 4, 2, 3 of four spots are 1/8, 7/8, 3/8, 5/8; A and C average with B, B with both, D stays."""
    found = smoothed_ranks(np.array([10.0, 90, 20, 30]), ROW)
    np.testing.assert_allclose(found, [4 / 8, (1 / 8 + 7 / 8 + 3 / 8) / 3, 5 / 8, 5 / 8])


def test_ties_share_their_rank():
    found = smoothed_ranks(np.array([0.0, 0, 0, 5]), ROW)
    np.testing.assert_allclose(found, [3 / 8, 3 / 8, 3 / 8, 7 / 8])
    np.testing.assert_allclose(smoothed_ranks(np.zeros(4), ROW), 0.5)


def test_columns_are_smoothed_apart_and_ranks_heed_no_units():
    values = np.array([[10.0, 1], [90, 1], [20, 1], [30, 9]])
    both = smoothed_ranks(values, ROW)
    np.testing.assert_allclose(both[:, 0], smoothed_ranks(values[:, 0], ROW))
    np.testing.assert_allclose(both[:, 1], smoothed_ranks(values[:, 1], ROW))
    np.testing.assert_allclose(both, smoothed_ranks(np.exp(values / 10), 3.5 * ROW))


def test_neighbours_of_a_square_and_of_a_hexagonal_array():
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(5.0), np.arange(5.0)))
    square = np.column_stack([x, y])
    hexagonal = np.column_stack([x + 0.5 * (y % 2), y * np.sqrt(3) / 2])
    assert touching(square)[12].sum() == 8
    assert touching(hexagonal)[12].sum() == 6


def test_spacing_counts_doubled_and_isolated_spots():
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(6.0), np.arange(6.0)))
    coords = 100 * np.column_stack([x, y])
    found = spacing("A", np.vstack([coords, [[700.0, 250.0], [3.0, 2.0]]]))
    assert found.pitch_um == 100
    assert found.isolated == 1
    assert found.crowded == 2  # the doubled spot and the one it lies on
    assert found.nearest_um.shape == (38,)
    assert 4 < found.neighbours < 8
    assert len(spacing_figure([found] * 5).axes) == 6


def test_bad_input_is_one_sentence():
    with pytest.raises(InputError, match="3 values, 4 coordinates"):
        smoothed_ranks(np.zeros(3), ROW)
    with pytest.raises(InputError, match="not all finite"):
        smoothed_ranks(np.array([1, np.nan, 2, 3]), ROW)
    with pytest.raises(InputError, match="A: has too few spots"):
        spacing("A", np.zeros((1, 2)))
