"""Nearest neighbours on frozen features: the mean of the k training spots that look most alike.

Its state holds the targets of the training spots themselves: whoever has the model file has them, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from histocrypt.models.encoder_ridge import OnEncoder
from histocrypt.models.fitted import inner_folds
from histocrypt.models.spots import Spots

NEIGHBOURS = (3, 5, 10, 20, 40, 80, 160)
"""Values of k that are tried."""


class NearestNeighbours(OnEncoder):
    """Mean target of the k nearest training spots (Euclidean, principal components of frozen features)."""

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit; chooses ``neighbours`` by inner cross-validation by patient or section."""
        components = self._fit_components(train)
        k = (chosen or {}).get("neighbours") or _choose(components, train)
        self._state |= {
            "components": components,
            "targets": np.asarray(train.targets, dtype=np.float32),
            "neighbours": np.array([min(k, len(train))]),
        }
        return {"neighbours": int(k)}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32."""
        state, k = self._state, int(self._state["neighbours"][0])
        nearest = _nearest(state["components"], self._components(spots), k)
        return state["targets"][nearest].mean(axis=1, dtype=np.float64).astype(np.float32)


def _choose(components: np.ndarray, train: Spots) -> int:
    folds = inner_folds(train)
    least = min((len(known) for known, _ in folds), default=0)
    tried = [k for k in NEIGHBOURS if k <= least]
    if not tried:
        return max(1, least)
    targets = np.asarray(train.targets, dtype=np.float64)
    sd = targets.std(axis=0)
    scaled = targets / np.where(sd > 1e-8, sd, 1.0)
    errors = np.zeros(len(tried))
    for known, held_out in folds:
        nearest = known[_nearest(components[known], components[held_out], tried[-1])]
        total, done = np.zeros((len(held_out), targets.shape[1])), 0
        for i, k in enumerate(tried):
            total += scaled[nearest[:, done:k]].sum(axis=1)
            done = k
            errors[i] += np.square(scaled[held_out] - total / k).sum()
    return tried[int(np.argmin(errors))]


def _nearest(known: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(known).kneighbors(asked, return_distance=False)
