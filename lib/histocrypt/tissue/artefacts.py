"""What lies in the way of a spot: pen, a fold, glass where there should be tissue; and how sharp its tile is.

Plain rules on means of squares of about `SQUARE_UM`, in optical density over the section's own light, so that a pink or
grey glass does not matter. `benchmarks/gate.py --spots` measures them on real tissue that is drawn on and folded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.tissue.focus import COARSE, sharpness, squares

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("sharpness", "coarse_sharpness", "pen_share", "fold_share", "background_share")
"""What preprocessing writes into ``obs``."""
PEN, FOLD = 0.1, 0.25
"""Shares of a tile beyond which a spot lies under pen, in a fold."""
SQUARE_UM = 4.0
"""Side of the squares: smaller than a nucleus."""
SAMPLED = 200
"""Tiles, evenly spread, that tell a section's light and how dense its tissue is."""
LIGHT = 99.5
"""Percentile of squares that is taken for the section's light."""
PALE = 0.15
"""Optical density below which a square may be glass (as Macenko's beta)."""
SMOOTH = 3.0
"""Grey levels that glass varies by within a square; pale stroma varies more."""
FOLDED = 2.5
"""Two layers absorb twice what one does: the palest square around is so many times denser than the section's median."""
BLUE, GREEN = 0.14, 0.29
"""Shares of optical density that haematoxylin and eosin never fall below: of blue light (blue ink), of green light."""
NEUTRAL = 0.29
"""Black ink absorbs at least this share in each channel; nuclei, however dark, absorb less blue."""
INKED, BLACKENED = 0.9, 3.0
"""Optical density (sum of the channels) of ink with a hue, and of black ink."""
CHUNK = 256
"""Tiles that are looked at together."""


@dataclass(frozen=True)
class _Levels:
    light: np.ndarray
    """(3,) grey levels."""
    folded: float
    """Mean optical density of the palest square around, beyond which tissue is folded."""


def looked_over(tiles: np.ndarray, *, um_per_px: float) -> pd.DataFrame:
    """Return what is to be known of each tile before a prediction of it is believed.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, raw colours, all of one section; an array, or the data set of an open tile file, which is
        read chunk by chunk.
    um_per_px
        Of the tiles.

    Returns
    -------
    pandas.DataFrame
        `COLUMNS`, n rows, float64: `tissue.focus.sharpness` of the tile and of squares of `COARSE` pixels, and shares
        of the tile's squares that are inked, folded, and glass (around tissue, in ducts and vessels, in fat cells).
    """
    import pandas as pd

    side = max(1, round(SQUARE_UM / um_per_px))
    spread = np.unique(np.linspace(0, len(tiles) - 1, min(SAMPLED, len(tiles))).astype(int))
    levels = _levels(squares(np.stack([np.asarray(tiles[i]) for i in spread]), side)[0])
    found = []
    for start in range(0, len(tiles), CHUNK):
        chunk = np.asarray(tiles[start : start + CHUNK])
        means, deviations = squares(chunk, side)
        shares = [one.mean(axis=(1, 2)) for one in _marks(means, deviations, levels)]
        found.append(np.column_stack([sharpness(chunk), sharpness(chunk, every=COARSE), *shares]))
    return pd.DataFrame(np.concatenate(found), columns=list(COLUMNS))


def _density(means: np.ndarray, light: np.ndarray) -> np.ndarray:
    return np.maximum(-np.log((means + 1) / light), 0)


def _palest_around(density: np.ndarray) -> np.ndarray:
    """Return the least mean density of each square and those around it: gaps between nuclei are seen, not nuclei."""
    from scipy.ndimage import minimum_filter

    return minimum_filter(density.mean(axis=-1), size=(1, 3, 3), mode="nearest")


def _levels(means: np.ndarray) -> _Levels:
    light = np.percentile(means.reshape(-1, 3), LIGHT, axis=0)
    density = _density(means, light)
    tissue = density.mean(axis=-1) >= PALE
    usual = float(np.median(_palest_around(density)[tissue])) if tissue.any() else np.inf
    return _Levels(light, FOLDED * max(usual, PALE))


def _marks(means: np.ndarray, deviations: np.ndarray, levels: _Levels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (n, b, b) bool: squares that are inked, folded, glass."""
    density = _density(means, levels.light)
    total = density.sum(axis=-1)
    share = density / np.maximum(total, 1e-6)[..., None]
    hue = (total > INKED) & ((share[..., 2] < BLUE) | (share[..., 1] < GREEN))
    pen = hue | ((total > BLACKENED) & (share.min(axis=-1) > NEUTRAL))
    fold = (_palest_around(density) > levels.folded) & ~pen
    return pen, fold, (density.max(axis=-1) < PALE) & (deviations < SMOOTH)
