"""Spots among their neighbours, in training: connected patches of tissue as batches, the spatial term of the loss."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEIGHBOURS = ("label", "predicted", "image")
"""By what neighbours count: the same label; the same label as predicted; how alike their images are."""


def spatial_term(predicted: torch.Tensor, edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the mean, over spots with a neighbour, of ||y_i - mean of its neighbours' y||^2 / outputs.

    Gradients flow through the spot and its neighbours. Where no spot has a neighbour the term is 0, and so is its
    gradient.

    Parameters
    ----------
    predicted
        (n, k).
    edges
        (2, m) int: spot and neighbour.
    weights
        (m,) non-negative: what each neighbour counts; 0 for none.
    """
    spot, neighbour = edges
    total = predicted.new_zeros(len(predicted)).index_add(0, spot, weights)  # (n,)
    mean = torch.zeros_like(predicted).index_add(0, spot, weights[:, None] * predicted[neighbour])  # (n, k)
    known = total > 0
    if not known.any():
        return (predicted * 0).sum()
    mean = mean[known] / total[known, None]
    return (predicted[known] - mean).square().mean(dim=1).mean()


def same_label(labels: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return (m,) 1 where both ends of an edge have the same label, else 0; an unknown label (NaN) is like no other."""
    return (labels[edges[0]] == labels[edges[1]]).float()


def same_predicted(probability: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return (m,) the probability that both ends are of one class, from (n,) predicted probabilities; no gradient."""
    a, b = (probability.detach()[end] for end in edges)
    return a * b + (1 - a) * (1 - b)


def same_image(embedded: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return (m,) how alike the images of both ends are, 0 to 1: the cosine of their embeddings about the batch's mean.

    No gradient. ``embedded`` is (n, d).
    """
    values = embedded.detach().float()
    values = torch.nn.functional.normalize(values - values.mean(dim=0), dim=1)
    return (values[edges[0]] * values[edges[1]]).sum(dim=1).clamp_min(0)


def inner_edges(graph: csr_matrix, index: np.ndarray) -> torch.Tensor:
    """Return the (2, m) edges among the spots ``index`` of a graph, numbered by their place in ``index``."""
    part = graph[index][:, index].tocoo()
    return torch.from_numpy(np.stack([part.row, part.col]).astype(np.int64))


def connected_batches(graph: csr_matrix, order: np.ndarray, n_batches: int, *, patch: int) -> list[np.ndarray]:
    """Deal spots into batches of connected patches: each spot once, so that a neighbour's prediction is computed once.

    A patch grows from a seed over spots not yet taken, nearest first, until it is full or its piece of tissue is used
    up. Several patches make a batch, so that one batch sees more than one corner of one section.

    Parameters
    ----------
    graph
        (n, n) CSR.
    order
        (n,) the spots in random order: where patches start.
    n_batches
        Number of batches, of sizes that differ by one at most.
    patch
        Spots in a patch.
    """
    free = np.ones(len(order), dtype=bool)
    seeds = iter(order.tolist())
    drawn: list[int] = []
    while len(drawn) < len(order):
        seed = next(seed for seed in seeds if free[seed])
        free[seed] = False
        waiting, taken = deque([seed]), 1
        while waiting:
            spot = waiting.popleft()
            drawn.append(spot)
            for near in graph.indices[graph.indptr[spot] : graph.indptr[spot + 1]].tolist():
                if taken < patch and free[near]:
                    free[near] = False
                    waiting.append(near)
                    taken += 1
    return np.array_split(np.array(drawn), n_batches)
