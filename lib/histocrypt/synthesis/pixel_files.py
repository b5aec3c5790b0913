"""Images and masks from single files, ``.png`` or ``.npy``: what their numbers mean, decided by rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.errors import InputError

SUFFIXES = (".png", ".npy")
WINDOW_HU = (400.0, 0.0)
"""Width and level of the window through which Hounsfield units become grey levels, as in DiffGuard."""
_OFF_LEVEL = 0.02  # how far, in shares of a step, a grey level of floats may lie off its level: rounding, no more


def read_image(path: Path, **where: Any) -> np.ndarray:
    """Return a file's image, (side, side, channels) uint8, channels 1 or 3.

    A ``.png`` is grey or colour with 8 bits. A ``.npy`` of uint8 holds grey levels, (h, w), (h, w, 1) or (h, w, 3); any
    other type of numbers is a slice in Hounsfield units and is windowed (`WINDOW_HU`).

    Parameters
    ----------
    path
        The file; it is there.
    where
        ``file`` and ``field`` for the error.

    Raises
    ------
    InputError
        If it is not such an image, holds NaN, or is not square.
    """
    values = _from_png(path, where) if path.suffix.lower() == ".png" else _from_npy(path, where)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or values.size == 0:
        msg = f"{path.name} is not an image"
        raise InputError(msg, **where, value=values.shape, expected="(h, w) grey or (h, w, 3) colour")
    if values.dtype != np.uint8:
        values = _windowed(values, path, where)
    if values.shape[0] != values.shape[1]:
        msg = f"{path.name} is not square"
        raise InputError(msg, **where, value=values.shape[:2], expected="as many rows as columns")
    return values


def read_mask(path: Path, levels: int, **where: Any) -> np.ndarray:
    """Return a file's mask, (h, w) uint8 of indices of levels.

    Integers (and palettes) are indices, 0 to ``levels`` - 1. Floats are the reference's grey map, i / (levels - 1). A
    ``.png`` whose values are not all indices is that grey map in 8 bits, 255 i / (levels - 1), up to rounding; the two
    cannot be confused for up to 16 levels, and with more only indices are read.

    Parameters
    ----------
    path
        The file; it is there.
    levels
        Number of levels.
    where
        ``file`` and ``field`` for the error.

    Raises
    ------
    InputError
        If it is not such a mask, holds NaN, or a level that does not exist.
    """
    png = path.suffix.lower() == ".png"
    values = _from_png(path, where, palette=True) if png else _from_npy(path, where)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 or values.size == 0:
        msg = f"{path.name} is not a mask"
        raise InputError(msg, **where, value=values.shape, expected="one number a pixel, (h, w)")
    steps = levels - 1
    if np.issubdtype(values.dtype, np.floating):
        return _from_grey(values.astype(np.float64) * steps, steps, _OFF_LEVEL, path, where)
    if values.min() >= 0 and values.max() <= steps:
        return values.astype(np.uint8)
    if png and levels <= 16:
        step = 255 / steps
        return _from_grey(values / step, steps, 0.51 / step, path, where)
    msg = f"{path.name} has a level that does not exist"
    raise InputError(msg, **where, value=_outside(values, steps), expected=f"0 to {steps}")


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (s, s, channels) uint8 at another side: means of areas where it shrinks, else bilinear."""
    from PIL import Image

    if len(image) == side:
        return image
    way = Image.Resampling.BOX if side < len(image) else Image.Resampling.BILINEAR
    found = np.asarray(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).resize((side, side), way))
    return found.reshape(side, side, image.shape[2])


def resized_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Return a mask (s, s) uint8 at another side, every pixel that of its nearest: levels are never mixed."""
    from PIL import Image

    if len(mask) == side:
        return mask
    return np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))


def _from_png(path: Path, where: dict[str, Any], *, palette: bool = False) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        msg = f"{path.name} cannot be read as PNG"
        raise InputError(msg, **where) from error
    if image.mode == "P" and not palette:
        image = image.convert("RGB")
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB"):
        msg = f"{path.name} has pixels of an unknown kind"
        raise InputError(msg, **where, value=image.mode, expected="8-bit grey or RGB, without transparency")
    grey = image.mode == "1" and not palette
    return np.asarray(image.convert("L") if grey else image)


def _from_npy(path: Path, where: dict[str, Any]) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"{path.name} cannot be read as an array of numbers"
        raise InputError(msg, **where) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        msg = f"{path.name} does not hold numbers"
        raise InputError(msg, **where, value=str(getattr(values, "dtype", type(values).__name__)))
    if not np.isfinite(values).all():
        msg = f"{path.name} holds NaN or infinite values"
        raise InputError(msg, **where)
    return values


def _windowed(values: np.ndarray, path: Path, where: dict[str, Any]) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if values.shape[2] != 1 or (low >= 0 and high <= 1):
        msg = f"{path.name} holds neither grey levels nor Hounsfield units"
        found = f"{values.dtype} from {low:g} to {high:g}, {values.shape[2]} channels"
        raise InputError(msg, **where, value=found, expected="uint8 from 0 to 255, or one channel in Hounsfield units")
    width, level = WINDOW_HU
    share = (values.astype(np.float64) - (level - width / 2)) / width
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _from_grey(steps: np.ndarray, last: int, tolerance: float, path: Path, where: dict[str, Any]) -> np.ndarray:
    """Return the nearest of the levels 0 to ``last``; further off than ``tolerance`` there is none."""
    level = np.clip(np.rint(steps), 0, last)
    off = np.abs(steps - level) > tolerance
    if off.any():
        value = float(steps[off].flat[0] / last)
        msg = f"{path.name} has a level that does not exist"
        expected = f"whole numbers 0 to {last}, or grey levels i / {last}"
        raise InputError(msg, **where, value=f"{value:.3g} of the brightest", expected=expected)
    return level.astype(np.uint8)


def _outside(values: np.ndarray, last: int) -> int:
    return int(values[(values < 0) | (values > last)].flat[0])
