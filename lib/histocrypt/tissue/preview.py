"""Pictures of what preprocessing did to one section; for the notebook, not for general use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from histocrypt.sections.section import Section


def alignment(section: Section, cleaned: Path, *, max_side: int = 700) -> Figure:
    """Draw the spots as given and as kept over the H&E, beside the tissue mask.

    Parameters
    ----------
    section
        The section as read.
    cleaned
        Its cleaned file, written by `preprocess_section`.
    max_side
        Longer side of the thumbnail, pixels.
    """
    import anndata as ad
    import matplotlib.pyplot as plt

    from histocrypt.tissue.mask import tissue_mask

    kept = ad.read_h5ad(cleaned, backed="r").obsm["spatial"]
    thumbnail, scale = section.image.thumbnail(max_side)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
    for axis, coords, title in (
        (axes[0], section.coords, f"as given: {section.n_spots} spots"),
        (axes[1], kept, f"as kept: {len(kept)} spots, outline of the tissue mask"),
    ):
        axis.imshow(thumbnail)
        axis.scatter(*(coords * scale).T, s=10, facecolors="none", edgecolors="tab:blue", linewidths=0.9)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    axes[1].contour(
        tissue_mask(thumbnail, um_per_px=section.um_per_px / scale), levels=[0.5], colors="crimson", linewidths=0.8
    )
    return figure


def tiles(tiles_path: Path, stain_path: Path, *, method: str, n: int = 8, seed: int = 0) -> Figure:
    """Draw ``n`` random tiles as scanned (top) and normalised to the default reference (bottom)."""
    import matplotlib.pyplot as plt

    from histocrypt.tissue.stain import DEFAULT_REFERENCE, StainStatistics, normalise
    from histocrypt.tissue.tiles import read_tiles

    images, names = read_tiles(tiles_path)
    chosen = np.sort(np.random.default_rng(seed).choice(len(names), size=min(n, len(names)), replace=False))
    images = images[chosen]
    normalised = normalise(images, source=StainStatistics.load(stain_path), reference=DEFAULT_REFERENCE, method=method)
    figure, axes = plt.subplots(2, len(images), figsize=(1.5 * len(images), 3.2), layout="constrained", squeeze=False)
    for row, shown in zip(axes, (images, normalised), strict=True):
        for axis, image in zip(row, shown, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
    return figure
