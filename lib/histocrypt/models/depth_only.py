"""Sequencing depth only: how much of a score is explained by how many molecules a spot yielded.

A yardstick for confounding, not a predictor: it reads the total counts of the very spots that it predicts, which no
image gives. Where it scores as well as a model, that model's score may be tissue density alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from histocrypt.models.fitted import Fitted
from histocrypt.models.ridge import ridge
from histocrypt.models.spots import Spots


class DepthOnly(Fitted):
    """Linear regression of each output on ln(1 + total count of the spot).

    ``normalise_by_section`` changes nothing: differences in depth between sections are part of what it measures.
    """

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit one line per output; there is nothing to choose."""
        coefficients, intercepts = ridge(_log_depth(train), train.targets, [0.0])
        self._state = {
            "coefficient": coefficients[0].astype(np.float32),
            "intercept": intercepts[0].astype(np.float32),
        }
        return {}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32 from the spots' own total counts."""
        return _log_depth(spots) @ self._state["coefficient"] + self._state["intercept"]


def _log_depth(spots: Spots) -> np.ndarray:
    return np.log1p(spots.depth).astype(np.float32)[:, None]
