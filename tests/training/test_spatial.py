"""The spatial term by hand, and batches of connected patches."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from histocrypt.predictors.he2gene import (
    connected_batches,
    inner_edges,
    same_image,
    same_label,
    same_predicted,
    spatial_term,
)
from histocrypt.spatial import graph_of, lattice_edges

GRID = np.array([(row, column) for row in range(3) for column in range(3)])
EDGES = torch.from_numpy(lattice_edges(GRID))


def by_hand(predicted, labels, edges):
    """The definition, spot by spot."""
    terms = []
    for spot in range(len(predicted)):
        near = [b for a, b in edges.T.tolist() if a == spot and labels[a] == labels[b]]
        if near:
            terms.append(((predicted[spot] - predicted[near].mean(axis=0)) ** 2).mean())
    return np.mean(terms) if terms else 0.0


def test_corner_by_hand():
    """Only the corner differs: it is 1 away from its neighbours, and moves the mean of its three neighbours' own."""
    predicted = torch.zeros(9, 1)
    predicted[0] = 1.0
    term = spatial_term(predicted, EDGES, same_label(torch.zeros(9), EDGES))
    # the corner: 1; beside it two spots of five neighbours (1/5)^2, the centre of eight (1/8)^2; the others 0
    assert term.item() == pytest.approx((1 + 2 * (1 / 5) ** 2 + (1 / 8) ** 2) / 9)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_labels_as_defined(seed):
    rng = np.random.default_rng(seed)
    predicted, labels = rng.normal(size=(9, 4)), rng.integers(0, 2, 9).astype(float)
    labels[rng.integers(9)] = np.nan
    weights = same_label(torch.from_numpy(labels), EDGES)
    found = spatial_term(torch.from_numpy(predicted).float(), EDGES, weights)
    assert found.item() == pytest.approx(by_hand(predicted, labels, EDGES), rel=1e-5)


def test_isolated_spots_and_a_label_of_its_own_count_for_nothing():
    grid = np.array([(0, 0), (0, 1), (9, 9)])
    edges = torch.from_numpy(lattice_edges(grid))
    predicted = torch.tensor([[1.0], [3.0], [100.0]])
    assert spatial_term(predicted, edges, same_label(torch.zeros(3), edges)).item() == pytest.approx(4.0)


def test_without_any_neighbour_term_and_gradient_are_zero_not_nan():
    for edges, labels in ((EDGES[:, :0], torch.zeros(9)), (EDGES, torch.full((9,), torch.nan))):
        predicted = torch.randn(9, 4, requires_grad=True)
        term = spatial_term(predicted, edges, same_label(labels, edges))
        term.backward()
        assert term.item() == 0.0
        assert torch.equal(predicted.grad, torch.zeros(9, 4))


def test_gradient_flows_through_spot_and_neighbour():
    predicted = torch.tensor([[0.0], [1.0]], requires_grad=True)
    edges = torch.tensor([[0], [1]])
    spatial_term(predicted, edges, torch.ones(1)).backward()
    assert predicted.grad.flatten().tolist() == [-2.0, 2.0]


def test_variants_weigh_between_none_and_all():
    torch.manual_seed(0)
    alike = same_image(torch.randn(9, 5), EDGES)
    assert 0 <= alike.min() < alike.max() <= 1
    agree = same_predicted(torch.tensor([1.0, 0.0, *[0.5] * 7]), EDGES)
    pairs = dict(zip(map(tuple, EDGES.T.tolist()), agree.tolist(), strict=True))
    assert (pairs[0, 1], pairs[0, 3]) == (0.0, 0.5)


def test_each_spot_once_in_connected_patches():
    side = 12
    grid = np.array([(row, column) for row in range(side) for column in range(side)])
    graph = graph_of([lattice_edges(grid)] * 2, [side**2] * 2)
    order = np.random.default_rng(0).permutation(2 * side**2)
    batches = connected_batches(graph, order, 9, patch=8)
    assert sorted(np.concatenate(batches).tolist()) == list(range(2 * side**2))
    assert {len(batch) for batch in batches} == {32}
    random = [inner_edges(graph, part).shape[1] for part in np.array_split(order, 9)]
    patches = [inner_edges(graph, part).shape[1] for part in batches]
    assert np.mean(patches) > 2 * np.mean(random), "patches hold far more neighbours than random spots do"
    first = graph[batches[0][:8]][:, batches[0][:8]]
    assert connected_components(first)[0] == 1
