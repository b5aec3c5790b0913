"""Features that are described by hand, no network: families beside the encoders, named and cached as these are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encoders.morphology import morphology

if TYPE_CHECKING:
    from histocrypt.tissue.stain import StainStatistics

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SIDE = 48
"""About as many pixels a side are looked at, evenly spaced: enough for statistics of colour."""


@dataclass(frozen=True)
class Described:
    """One family of features."""

    title: str
    """How tables call it."""
    version: int
    """Raised when its numbers change, so that cached ones are not taken for them."""
    describe: Callable[..., np.ndarray]
    """From raw tiles of one section (n, S, S, 3), its ``stain``, ``um_per_px`` of the tiles and ``of``, the tiles that
    limits are taken from (None: these), to (n, d) float32."""


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


def _colour(tiles: Any, *, stain: StainStatistics, um_per_px: float, of: Any = None) -> np.ndarray:
    return colour_features(tiles)


DESCRIBED = {
    "colour": Described("Colour of the raw tile", 1, _colour),
    "morphology": Described("Nuclei and tissue", 2, morphology),
}
"""By name."""
