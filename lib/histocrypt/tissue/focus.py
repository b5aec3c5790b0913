"""How sharp a tile is: fine contrast over all its contrast, whatever its tissue and stain."""

from __future__ import annotations

import numpy as np

LEAST_VARIANCE = 9.0
"""Grey levels squared: a tile that varies less shows nothing whose focus could be judged."""
COARSE = 4
"""Side in pixels of squares that blur which predictions survive hardly changes: 3 um where tiles of 150 um have 222."""


def squares(tiles: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean colours (n, b, b, 3) and deviations of green (n, b, b) of squares of ``side`` pixels, float32."""
    n, b = len(tiles), tiles.shape[1] // side
    cut = tiles[:, : b * side, : b * side].reshape(n, b, side, b, side, 3).astype(np.float32)
    return cut.mean(axis=(2, 4)), cut[..., 1].std(axis=(2, 4))


def sharpness(tiles: np.ndarray, *, every: int = 1) -> np.ndarray:
    """Return (n,) float64: ln of the variance of the Laplacian over the variance, of the green channel.

    The variance of the Laplacian (Pech-Pacheco et al. 2000) falls with blur, and with how little tissue there is. Over
    the variance it tells the first from the second. It falls by about 1.3 where a tile is smoothed by a Gaussian of one
    pixel, by 2.7 where by two, and rises where a tile holds more tissue than it should.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, raw colours; an array, or the data set of an open tile file, which is read tile by tile.
    every
        Side in pixels of squares that are averaged first: blur that nuclei survive no longer counts.

    Returns
    -------
    numpy.ndarray
        NaN for a tile that is all but of one colour (`LEAST_VARIANCE`).
    """
    found = np.full(len(tiles), np.nan)
    for i in range(len(tiles)):
        tile = np.asarray(tiles[i])
        green = tile[..., 1].astype(np.int16) if every == 1 else squares(tile[None], every)[0][0, ..., 1]
        variance = float(green.var())
        if variance < LEAST_VARIANCE:
            continue
        middle = green[1:-1, 1:-1]
        curved = green[:-2, 1:-1] + green[2:, 1:-1] + green[1:-1, :-2] + green[1:-1, 2:] - 4 * middle
        found[i] = np.log(max(float(curved.var()), 1e-3) / variance)
    return found
