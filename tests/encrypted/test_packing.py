"""Layouts and diagonals against brute force: the matrix itself."""

import numpy as np
import pytest
import scipy.sparse as sp
from tests.encrypted.serving import in_the_clear

from histocrypt.encrypted.lowering import average_pool, convolution
from histocrypt.encrypted.packing import (
    Layout,
    best_ratio,
    blocked,
    diagonals,
    spots_side_by_side,
    steps,
)


def flat(length, slots):
    return Layout((length,), slots, np.arange(length))


def through(one, source, target, x):
    blocks, folds = diagonals(one, source, target)
    return in_the_clear(blocks, folds, source.pack(x)), blocks, folds


@pytest.mark.parametrize(("channels", "factors", "side"), [(1, (), 5), (3, (2,), 8), (5, (4, 2), 16), (3, (3,), 9)])
def test_layout_holds_every_value_once(channels, factors, side):
    shape = (channels, side, side)
    layout = blocked(shape, 2048, factors=factors)
    assert len(np.unique(layout.index)) == np.prod(shape)
    values = np.random.default_rng(0).normal(size=shape)
    assert np.array_equal(layout.unpack(layout.pack(values)), values)


def test_layout_puts_channel_then_cells_then_positions():
    layout = blocked((1, 4, 4), 64, factors=(2,))
    assert layout.index.reshape(4, 4).tolist() == [[0, 4, 1, 5], [8, 12, 9, 13], [2, 6, 3, 7], [10, 14, 11, 15]]


@pytest.mark.parametrize(("shape", "factors"), [((3, 10, 10), (4,)), ((1, 64, 64), ())])
def test_layouts_that_cannot_be_are_refused(shape, factors):
    with pytest.raises(ValueError, match="cells of 4|slots"):
        blocked(shape, 2048, factors=factors)


@pytest.mark.parametrize(
    ("stride", "kernel", "padding", "outputs", "hierarchical", "slots"),
    [
        (1, 3, 1, 4, False, 256),  # tensors take several ciphertexts
        (2, 2, 0, 5, True, 256),
        (2, 3, 1, 3, True, 1024),
        (2, 3, 1, 3, False, 1024),
        (4, 4, 0, 7, True, 1024),
        (1, 1, 0, 6, False, 1024),
        (2, 7, 3, 2, True, 256),
    ],
)
def test_convolution_by_diagonals(stride, kernel, padding, outputs, hierarchical, slots):
    rng = np.random.default_rng(1)
    shape = (3, 8, 8)
    one = convolution(rng.normal(size=(outputs, 3, kernel, kernel)), None, shape, stride=stride, padding=padding)
    factors = (stride,) if hierarchical and stride > 1 else ()
    source, target = blocked(shape, slots, factors=factors), blocked(one.target, slots)
    x = rng.normal(size=shape)
    result, blocks, folds = through(one.matrix, source, target, x)
    assert np.allclose(target.unpack(result), one(x[None])[0])
    assert len(blocks) == source.ciphertexts * target.ciphertexts
    if folds:  # spare slots hold copies of the outputs and nothing else
        copies = result.reshape(-1, target.span)
        assert np.allclose(copies, copies[0])
        assert set(np.round(np.unique(copies), 9)) <= {*np.round(one(x[None]).ravel(), 9), 0.0}


def test_stride_equal_to_kernel_costs_one_diagonal_per_channel_and_cell():
    rng = np.random.default_rng(2)
    one = convolution(rng.normal(size=(8, 3, 4, 4)), None, (3, 32, 32), stride=4)
    source = blocked((3, 32, 32), 4096, factors=(4, 2))
    target = blocked(one.target, 4096, factors=(2,))
    blocks, folds = diagonals(one.matrix, source, target)
    assert len(blocks[0, 0]) == 8  # output channels: the cells to come are multiples of the same offsets
    assert folds == 3
    rows, _ = diagonals(one.matrix, blocked((3, 32, 32), 4096), blocked(one.target, 4096))
    assert len(rows[0, 0]) > 10 * len(blocks[0, 0])


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 30), (64, 64), (250, 100), (3, 700)])
def test_dense_matrix_by_diagonals(outputs, inputs):
    rng = np.random.default_rng(3)
    matrix = sp.csr_matrix(rng.normal(size=(outputs, inputs)))
    source, target = flat(inputs, 256), flat(outputs, 256)
    x = rng.normal(size=inputs)
    result, blocks, _ = through(matrix, source, target, x)
    assert np.allclose(target.unpack(result), matrix @ x)
    if target.ciphertexts == source.ciphertexts == 1:
        assert len(blocks[0, 0]) <= target.span


def test_several_spots_share_diagonals():
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(10, 24))
    source, target = spots_side_by_side(24, 8, 64), spots_side_by_side(10, 8, 64)
    x = rng.normal(size=(24, 8))
    result, _, _ = through(sp.kron(weight, sp.eye(8)), source, target, x)
    assert np.allclose(target.unpack(result), weight @ x)


def test_empty_block_is_kept():
    source, target = flat(8, 4), flat(8, 4)
    blocks, _ = diagonals(sp.eye(8), source, target)
    assert {key: len(found) for key, found in blocks.items()} == {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1}
    assert not blocks[0, 1][0].any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not map"):
        diagonals(sp.eye(3), flat(4, 8), flat(3, 8))


def test_average_pool_is_a_matrix():
    import torch

    x = np.random.default_rng(5).normal(size=(2, 3, 9, 9))
    one = average_pool((3, 9, 9), 3, stride=2, padding=1)
    expected = torch.nn.functional.avg_pool2d(torch.tensor(x), 3, stride=2, padding=1).numpy()
    assert np.allclose(one(x), expected)


@pytest.mark.parametrize("log_ratio", [0, 2, 4])
def test_steps_cover_all_offsets(log_ratio):
    offsets = np.unique(np.random.default_rng(6).integers(0, 1024, 90))
    n1, giant, baby = steps(offsets, 1024, log_ratio)
    assert {g + b for g in giant for b in baby} >= set(offsets.tolist())
    assert all(g % n1 == 0 for g in giant)
    assert all(b < n1 for b in baby)


def test_best_ratio_needs_few_rotations():
    found = {0: np.ones(1)} | {offset: np.ones(1) for offset in range(256)}
    _, rotations = best_ratio({(0, 0): found}, 1024)
    assert len(rotations) <= 40
    assert 0 not in rotations


def test_span_of_a_layout():
    assert Layout((1,), 16, np.array([0])).span == 1
    assert flat(5, 16).span == 8
    assert flat(16, 16).span == 16
