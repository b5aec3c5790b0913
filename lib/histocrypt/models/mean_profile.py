"""Mean profile: every spot gets the training mean. What a predictor that looks at nothing achieves."""

from __future__ import annotations

from typing import Any

import numpy as np

from histocrypt.models.fitted import Fitted
from histocrypt.models.spots import Spots


class MeanProfile(Fitted):
    """Predict the mean of each output over the training spots. ``normalise_by_section`` changes nothing."""

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Take the mean of each output; there is nothing to choose."""
        self._state = {"mean": train.targets.mean(axis=0, dtype=np.float64).astype(np.float32)}
        return {}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return the training mean for every spot, (n, n_outputs) float32."""
        return np.tile(self._state["mean"], (len(spots), 1))
