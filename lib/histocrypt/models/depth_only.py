"""Sequencing depth only: how much of a score is explained by how many molecules a spot yielded.

A yardstick for confounding, not a predictor: it reads the total counts of the very spots that it predicts, which no
image gives. Where it scores as well as a model, that model's score may be tissue density alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from histocrypt.models.fitted import Fitted
from histocrypt.models.spots import Spots


class DepthOnly(Fitted):
    """Linear regression of each output on ln(1 + total count of the spot).

    The slope is the one within training sections, the same whether targets are centred by section or not.
    ``normalise_by_section`` changes nothing: differences in depth between sections are part of what it measures.
    """

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit one line per output; there is nothing to choose."""
        depth = np.log1p(np.asarray(train.depth, dtype=np.float64))
        targets = np.asarray(train.targets, dtype=np.float64)
        within = np.empty_like(depth)
        for section in np.unique(train.sections):
            rows = train.sections == section
            within[rows] = depth[rows] - depth[rows].mean()
        spread = within @ within
        slope = within @ targets / spread if spread > 1e-12 else np.zeros(targets.shape[1])
        self._state = {
            "slope": slope.astype(np.float32),
            "intercept": (targets.mean(axis=0) - depth.mean() * slope).astype(np.float32),
        }
        return {}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32 from the spots' own total counts."""
        depth = np.log1p(np.asarray(spots.depth, dtype=np.float32))
        return depth[:, None] * self._state["slope"] + self._state["intercept"]
