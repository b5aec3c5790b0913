"""An image stored as an array in an HDF5 file, read window by window, never whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.image import MAX_PIXELS, ImageSource

ROUNDING = 1e-3
"""How far beyond 0 and 1 a pixel may lie: resampling in floats overshoots a little."""
BAND_PIXELS = 2**22


class ArrayImage(ImageSource):
    """A data set (height, width, 3) of floats from 0 to 1, or of uint8.

    Parameters
    ----------
    path
        The HDF5 file.
    name
        Path of the data set in it.

    Raises
    ------
    InputError
        If the data set is no such image; pixels are judged when they are read.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        import h5py

        self.path, self.name = Path(path), name
        self._file = h5py.File(path, "r")
        self._pixels = self._file[name]
        where = {"file": self.path, "field": name}
        shape, kind = self._pixels.shape, self._pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or not (kind == np.uint8 or np.issubdtype(kind, np.floating)):
            msg = "is not an image"
            raise InputError(
                msg, **where, value=f"{shape} {kind}", expected="(height, width, 3), floats from 0 to 1 or uint8"
            )
        if shape[0] * shape[1] > MAX_PIXELS:
            msg = f"image has more than {MAX_PIXELS:,} pixels"
            raise InputError(msg, **where, value=shape)
        self.height, self.width = shape[:2]

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window, uint8 (height, width, 3), white outside the image."""
        canvas, rows, columns, x0, y0, x1, y1 = self._window(x, y, width, height)
        if x1 > x0 and y1 > y0:
            canvas[rows, columns] = self._read(slice(y0, y1), slice(x0, x1))
        return canvas

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, a band of rows at a time, its longer side at most ``max_side``, and the scale."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        per_row = self.height / height
        step = max(1, int(BAND_PIXELS / self.width / per_row))
        out = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            first, last = int(top * per_row), min(int(np.ceil(bottom * per_row)), self.height)
            band = Image.fromarray(self._read(slice(first, last), slice(None)))
            box = (0, top * per_row - first, self.width, min(bottom * per_row - first, band.height))
            out[top:bottom] = np.asarray(band.resize((width, bottom - top), Image.Resampling.HAMMING, box=box))
        return out, scale

    def _read(self, rows: slice, columns: slice) -> np.ndarray:
        try:
            pixels = self._pixels[rows, columns]
        except OSError as error:
            msg = f"image cannot be read, it may be truncated ({error})"
            raise InputError(msg, file=self.path, field=self.name, fix="copy it again from its source") from error
        if pixels.dtype == np.uint8:
            return pixels
        low, high = float(pixels.min()), float(pixels.max())  # NaN if any pixel is
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            msg = "pixels are not numbers" if np.isnan(low) else "pixels lie outside 0 to 1"
            value = None if np.isnan(low) else f"{low:.4g} to {high:.4g}"
            raise InputError(msg, file=self.path, field=self.name, value=value, expected="floats from 0 to 1, or uint8")
        return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
