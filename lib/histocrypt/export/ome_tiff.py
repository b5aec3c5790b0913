"""OME-TIFF of gene maps: one channel a gene, over the slide from its top left corner.

A pixel holds the value of the spot that its centre lies in, and NaN where there is none. It is as wide as a square of a
grid, and a quarter of the distance of neighbouring spots where those are discs. ``PhysicalSizeX`` and ``Y`` are
its micrometres, so that a viewer which knows the slide's lays the maps over it. Written by tifffile, in the model of
the Open Microscopy Environment (https://docs.openmicroscopy.org/ome-model/), gene by gene.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from histocrypt.errors import InputError
from histocrypt.export.content import MADE, Content, Format
from histocrypt.spatial import spot_pitch

STEPS = 4
"""Pixels from one disc to the next."""
MOST_PIXELS = 100_000_000
"""Of a map."""


def write(content: Content, path: Path) -> None:
    """Write (genes, height, width) float32 maps."""
    import tifffile

    pixel_px, spots = raster(content)
    um = pixel_px * content.um_per_px
    about = {
        "axes": "CYX",
        "Name": content.section,
        "Channel": {"Name": content.names.tolist()},
        "Description": f"{content.model}, predicted, {content.transform}; NaN: no spot",
    }
    for axis in "XY":
        about |= {f"PhysicalSize{axis}": um, f"PhysicalSize{axis}Unit": "µm"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=content.values.shape[1] * spots.size * 4 > 2**31) as file:
        shape = (content.values.shape[1], *spots.shape)
        how = {"photometric": "minisblack", "compression": "zlib", "software": MADE, "metadata": about}
        file.write(_maps(content, spots), shape=shape, dtype=np.float32, **how)


def _maps(content: Content, spots: np.ndarray) -> Iterator[np.ndarray]:
    for column in content.values.T:
        yield np.where(spots >= 0, column[spots], np.float32(np.nan)).astype(np.float32)


def raster(content: Content) -> tuple[float, np.ndarray]:
    """Return the side of a map's pixel in pixels of the slide, and (height, width) int which spot it shows, or -1.

    Raises
    ------
    InputError
        If the map would have more than `MOST_PIXELS`.
    """
    from scipy.spatial import cKDTree

    pitch = content.size_px if content.square else spot_pitch(content.coords, alone=2 * content.size_px)
    side = pitch if content.square else pitch / STEPS
    width, height = np.ceil((content.coords.max(axis=0) + pitch / 2) / side - 1e-6).astype(int)
    if width * height > MOST_PIXELS:
        expected = f"at most {MOST_PIXELS:,} pixels"
        raise InputError("a map would be too large", field="--to", value=f"{width} x {height} px", expected=expected)
    x, y = np.meshgrid((np.arange(width) + 0.5) * side, (np.arange(height) + 0.5) * side)
    norm = np.inf if content.square else 2
    away, spots = cKDTree(content.coords).query(np.column_stack([x.ravel(), y.ravel()]), p=norm)
    inside = away <= content.size_px / 2 * (1 + 1e-9)
    return float(side), np.where(inside, spots, -1).reshape(height, width)


def is_ours(path: Path) -> bool:
    """Return whether a TIFF says that `write` made it."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return file.pages[0].software == MADE
    except (OSError, ValueError, LookupError):
        return False


FORMAT = Format(".ome.tif", write, mine=is_ours, on_slide=True, in_um=True)
