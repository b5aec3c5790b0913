"""Bilinear, antialiased resizing of 8-bit images, bit for bit as torch does it, without torch."""

from __future__ import annotations

from functools import cache

import numpy as np

BITS, LARGEST = 22, 1 << 15
"""Of the whole weights: as many bits as keep the largest one below this, and no more."""


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """Return images of another side.

    ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)`` gives the same on bytes: rows first, rounded to
    bytes, then columns, with whole weights as Pillow has them.

    Parameters
    ----------
    images
        (n, S, S, 3) uint8.
    side
        Of the result, pixels.

    Returns
    -------
    (n, side, side, 3) uint8; the images themselves where sizes agree.
    """
    n, size, _, colours = images.shape
    if size == side:
        return images
    weights, bits = _weights(size, side)

    def weighed(values: np.ndarray) -> np.ndarray:
        """Return the weighed sums over the axis before the last one, rounded to bytes."""
        sums = np.matmul(weights, values.astype(weights.dtype)).astype(np.int32)  # whole, and exact
        return ((sums + (1 << (bits - 1))) >> bits).clip(0, 255)

    out = np.empty((n, side, side, colours), dtype=np.uint8)
    for image, target in zip(images, out, strict=True):
        target[:] = weighed(weighed(image).reshape(size, -1)).reshape(target.shape)
    return out


@cache
def _weights(size: int, side: int) -> tuple[np.ndarray, int]:
    """Return whole weights (side, size), as floats that hold all sums exactly, and what they are shifted by."""
    scale = size / side
    reach, centre = max(scale, 1.0), scale * (np.arange(side)[:, None] + 0.5)
    place = np.arange(size)
    within = (place >= (centre - reach + 0.5).astype(int)) & (place < (centre + reach + 0.5).astype(int))
    weights = np.maximum(1 - np.abs((place - centre + 0.5) / reach), 0) * within
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 0
    while bits < BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < LARGEST:
        bits += 1
    kind = np.float32 if bits <= 16 else np.float64  # sums reach 255 * 2^bits
    return np.floor(0.5 + weights * (1 << bits)).astype(kind), bits
