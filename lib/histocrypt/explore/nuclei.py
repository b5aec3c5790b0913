"""What the family `morphology` finds on tiles: nuclei, and the tissue between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.figure_style import bare, canvas, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENOUGH = 40
"""Tiles that set the limits of what is drawn; features take all of them."""
CLEAR, STROMA, OUTLINE = (90, 200, 250), (255, 190, 60), (0, 90, 60)


def nuclei_figure(tiles_path: str | Path, stain_path: str | Path, *, n: int = 6, seed: int = 0) -> Figure:
    """Draw tiles of a section as scanned, and below what is found on them.

    Parameters
    ----------
    tiles_path, stain_path
        Of the section, as `tissue.preprocess.preprocess_section` writes them.
    n
        Tiles drawn, at most.
    seed
        Of the choice of tiles.
    """
    from histocrypt.encoders import morphology
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import read_places, read_tiles

    names = read_tiles(tiles_path)[1]
    some = np.random.default_rng(seed).permutation(len(names))[: max(n, ENOUGH)]
    tiles, stain = read_tiles(tiles_path, names[some])[0], StainStatistics.load(stain_path)
    seen = list(morphology.at_scale(tiles, read_places(tiles_path).tile_um / tiles.shape[1]))
    limits = morphology.limits_of(seen, stain)
    n = min(n, len(seen))
    with style():
        figure, axes = canvas(2, n, figsize=(7.4, 2 * 7.4 / max(n, 4) + 0.9), squeeze=False)
        for axis in axes.ravel():
            bare(axis)
        for column, tile in enumerate(seen[:n]):
            drawn, count = found_on(tile, stain, limits)
            axes[0, column].imshow(tile)
            axes[1, column].imshow(drawn)
            axes[0, column].set_title(names[some[column]].split(":")[-1], fontsize=7.5)
            axes[1, column].set_title(f"{count} nuclei", fontsize=7.5)
        figure.supxlabel("green: outlines of nuclei; blue: clear (lumen, fat, glass); orange: stroma", fontsize=8)
    return figure


def found_on(tile: np.ndarray, stain: object, limits: object) -> tuple[np.ndarray, int]:
    """Return a (S, S, 3) uint8 tile with what was found drawn into it, and the number of nuclei."""
    from skimage.segmentation import find_boundaries

    from histocrypt.encoders import morphology

    held = morphology.concentrations(tile, stain)
    nuclei, clear = morphology.nuclei_of(held[..., 0], limits), morphology.clear_of(tile, limits)
    stroma = (nuclei == 0) & ~clear & (held[..., 1] > limits.eosin)
    drawn = tile.astype(float)
    for where, colour in ((clear, CLEAR), (stroma, STROMA)):
        drawn[where] = 0.6 * drawn[where] + 0.4 * np.array(colour)
    drawn[find_boundaries(nuclei, mode="inner")] = OUTLINE
    return drawn.round().astype(np.uint8), int(nuclei.max())
