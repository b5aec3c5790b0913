"""The picture under a map: the section's own small image, else one put together from its tiles, else none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

LONGEST_SIDE = 640


def backdrop(section: AnnData, tiles: Path) -> tuple[np.ndarray | None, float]:
    """Return a picture of the section and its scale.

    Parameters
    ----------
    section
        A cleaned section; ``uns["spatial"]`` may hold a small image.
    tiles
        Its tile file, which may be absent.

    Returns
    -------
    (h, w, 3) uint8 and picture pixels per full-resolution pixel; (None, 1.0) where there is no picture.
    """
    found = _stored(section)
    if found is None and Path(tiles).is_file():
        found = _from_tiles(tiles)
    if found is None:
        return None, 1.0
    image, scale = found
    step = max(1, max(image.shape[:2]) // LONGEST_SIDE)
    return np.ascontiguousarray(image[::step, ::step]), scale / step


def _stored(section: AnnData) -> tuple[np.ndarray, float] | None:
    libraries = section.uns.get("spatial")
    for library in libraries.values() if isinstance(libraries, Mapping) else ():
        if not isinstance(library, Mapping):
            continue
        for name in ("hires", "lowres", "downscaled_fullres"):
            image = library.get("images", {}).get(name)
            scale = library.get("scalefactors", {}).get(f"tissue_{name}_scalef")
            if image is None or scale is None or np.ndim(image) != 3:
                continue
            image = np.asarray(image)[..., :3]
            if image.dtype != np.uint8:
                image = np.clip(image * (255 if image.max() <= 1 else 1), 0, 255).astype(np.uint8)
            return image, float(scale)
    return None


def _from_tiles(path: Path) -> tuple[np.ndarray, float]:
    import h5py

    with h5py.File(path) as file:
        coords = np.asarray(file["coords"], dtype=np.float64)
        side_px = float(file.attrs["tile_um"]) / float(file.attrs["um_per_px"])
        scale = LONGEST_SIDE / float((coords.max(axis=0) + side_px).max())
        side = max(1, round(side_px * scale))
        width, height = np.ceil((coords.max(axis=0) + side_px) * scale).astype(int) + 1
        canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        rows = np.linspace(0, file["img"].shape[1] - 1, side).astype(int)
        for tile, (x, y) in zip(file["img"], np.round(coords * scale).astype(int), strict=True):
            top, left = max(y, 0), max(x, 0)
            piece = tile[rows][:, rows][top - y :, left - x :][: height - top, : width - left]
            canvas[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return canvas, scale
