"""How sharp a tile is: fine contrast over all its contrast, whatever its tissue and stain."""

from __future__ import annotations

import numpy as np

LEAST_VARIANCE = 9.0
"""Grey levels squared: a tile that varies less shows nothing whose focus could be judged."""


def sharpness(tiles: np.ndarray) -> np.ndarray:
    """Return (n,) float64: ln of the variance of the Laplacian over the variance, of the green channel.

    The variance of the Laplacian (Pech-Pacheco et al. 2000) falls with blur, and with how little tissue there is. Over
    the variance it tells the first from the second. It falls by about 1.3 where a tile is smoothed by a Gaussian of one
    pixel, by 2.7 where by two, and rises where a tile holds more tissue than it should.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, raw colours; an array, or the data set of an open tile file, which is read tile by tile.

    Returns
    -------
    numpy.ndarray
        NaN for a tile that is all but of one colour (`LEAST_VARIANCE`).
    """
    found = np.full(len(tiles), np.nan)
    for i in range(len(tiles)):
        green = np.asarray(tiles[i])[..., 1].astype(np.int16)
        variance = float(green.var())
        if variance < LEAST_VARIANCE:
            continue
        middle = green[1:-1, 1:-1]
        curved = green[:-2, 1:-1] + green[2:, 1:-1] + green[1:-1, :-2] + green[1:-1, 2:] - 4 * middle
        found[i] = np.log(max(float(curved.var()), 1e-3) / variance)
    return found
