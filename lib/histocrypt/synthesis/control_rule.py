"""Masks of drawn control tiles: their generator makes pictures alone, so what is outlined in them is found by rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from histocrypt.synthesis.tissue_pairs import BACKGROUND, LEAST_STAIN_OD, NUCLEI, STROMA, haematoxylin, section_levels
from histocrypt.tissue.stain import estimate


def tissue_rule(um_per_px: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the rule for tiles of H&E without tumour: (n, s, s, 3) uint8 to masks (n, s, s) uint8 of `scheme.TISSUE`.

    As `tissue_pairs` does with a section, but with stains estimated from all given tiles together, as drawn tiles have
    no section, and without removing specks, which at a few micrometres a pixel are nuclei.

    Parameters
    ----------
    um_per_px
        Micrometres per pixel of the tiles.
    """

    def masks(images: np.ndarray) -> np.ndarray:
        stain = estimate(images.reshape(-1, 3))
        light, threshold = section_levels(images, stain=stain, um_per_px=um_per_px)
        found = np.full(images.shape[:3], STROMA, dtype=np.uint8)
        found[haematoxylin(images, stain=stain, um_per_px=um_per_px) > threshold] = NUCLEI
        found[images.min(axis=3) > light * np.exp(-LEAST_STAIN_OD)] = BACKGROUND
        return found

    return masks
