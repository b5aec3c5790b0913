"""Colour-only ridge: what the colours of a tile tell, without any shape or texture.

A model of histology has to beat it; where colour shifts between centres or patients, it shows how far colour leads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from histocrypt.models.fitted import Fitted, inner_folds, mean_and_sd, standardise
from histocrypt.models.ridge import fit_ridge
from histocrypt.models.spots import Spots

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SIDE = 48
"""About as many pixels a side are looked at, evenly spaced: enough for statistics of colour."""


class ColourRidge(Fitted):
    """Ridge regression on `colour_features`, the penalty chosen by inner cross-validation by patient or section."""

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit; chooses ``penalty``."""
        features = colour_features(train.tiles)
        mean, sd = mean_and_sd(features, train.sections, by_section=self.normalise_by_section)
        scores = standardise(features, train.sections, mean, sd, by_section=self.normalise_by_section)
        coefficient, intercept, penalty = fit_ridge(
            scores, train.targets, inner_folds(train), penalty=(chosen or {}).get("penalty")
        )
        self._state = {"mean": mean, "sd": sd, "coefficient": coefficient, "intercept": intercept}
        return {"penalty": penalty}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32."""
        state = self._state
        features = colour_features(spots.tiles)
        scores = standardise(features, spots.sections, state["mean"], state["sd"], by_section=self.normalise_by_section)
        return scores @ state["coefficient"] + state["intercept"]


def colour_features(tiles: np.ndarray) -> np.ndarray:
    """Return (n, 42) float32: mean, standard deviation and five quantiles of six channels.

    The channels are R, G, B (0 to 1) and the optical densities of haematoxylin, eosin and DAB (Ruifrok and Johnston
    2001). Pixels are taken one by one: shuffling the pixels that are looked at changes nothing.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8.
    """
    from skimage.color import rgb2hed

    features = np.empty((len(tiles), 6 * (2 + len(QUANTILES))), dtype=np.float32)
    step = max(1, tiles.shape[1] // SIDE)
    for start in range(0, len(tiles), 256):
        sample = np.asarray(tiles[start : start + 256, step // 2 :: step, step // 2 :: step])
        rgb = sample.reshape(len(sample), -1, 3).astype(np.float32) / np.float32(255)
        channels = np.concatenate([rgb, rgb2hed(rgb).astype(np.float32)], axis=-1)
        parts = [channels.mean(axis=1), channels.std(axis=1), *np.quantile(channels, QUANTILES, axis=1)]
        features[start : start + 256] = np.concatenate(parts, axis=-1)
    return features
