"""How much haematoxylin lies where: a coarse map of a section, unmixed with the section's own stain vectors.

Haematoxylin stains nuclei, so its local amount is a stand-in for how densely cells lie. The map is made from a
thumbnail and only serves to look at a section; nothing is trained on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.tissue import stain
from histocrypt.tissue.mask import disc_share, sample, tissue_mask

if TYPE_CHECKING:
    from histocrypt.sections.section import Section
    from histocrypt.tissue.stain import StainStatistics

UM_PER_PX = 2.5
"""Fine enough to part a nucleus from its surroundings; a section of 6.5 mm has 2600 px a side."""
MAX_SIDE = 4096
_COARSER = 4  # tissue is found, and stains are estimated, on every fourth pixel
_PIXELS = 200_000
_STRIP = 256
_BRIGHTEST = 99.9  # percentile that counts as full: dust and folds are darker than any nucleus


@dataclass(frozen=True)
class Haematoxylin:
    """The map of one section."""

    amount: np.ndarray
    """(h, w) float32 from 0 (none) to 1 (as much as the darkest nuclei hold)."""
    known: np.ndarray
    """(h, w) bool: the image has pixels there. Patches cut around spots leave gaps."""
    scale: float
    """Map pixels per full-resolution pixel."""
    um_per_px: float
    """Micrometres per map pixel."""
    statistics: StainStatistics
    """The section's stains; their ``note`` says so where its own vectors could not be estimated."""


def haematoxylin(section: Section, *, um_per_px: float = UM_PER_PX) -> Haematoxylin:
    """Map the haematoxylin of a section.

    Colour deconvolution (Ruifrok and Johnston, Anal Quant Cytol Histol 23, 2001) with the stain vectors that Macenko's
    method finds in the section's own tissue, or the published ones where it finds none.

    Parameters
    ----------
    section
        A section with an image.
    um_per_px
        Micrometres per pixel of the map, at least; a large slide is mapped more coarsely.

    Raises
    ------
    InputError
        If the section has no image.
    """
    if section.image is None:
        msg = "has no image"
        raise InputError(msg, field=section.id, fix="name it with `image:` in the study")
    longest = max(section.image.width, section.image.height)
    side = int(np.clip(longest * section.um_per_px / um_per_px, 64, MAX_SIDE))
    thumbnail, scale = section.image.thumbnail(min(side, longest))
    coarse = thumbnail[::_COARSER, ::_COARSER]
    tissue = coarse[tissue_mask(coarse, um_per_px=_COARSER * section.um_per_px / scale)]
    chosen = np.random.default_rng(0).permutation(len(tissue))[:_PIXELS]
    statistics = stain.estimate(tissue[chosen])
    unmix = np.linalg.pinv(statistics.stain_matrix)[0].astype(np.float32)
    density = np.maximum(-np.log((np.arange(256, dtype=np.float32) + 1) / stain.INCIDENT_LIGHT), 0)
    amount = np.empty(thumbnail.shape[:2], dtype=np.float32)
    for top in range(0, len(thumbnail), _STRIP):  # in strips: optical density takes twelve bytes a pixel
        amount[top : top + _STRIP] = density[thumbnail[top : top + _STRIP]] @ unmix
    full = float(np.percentile(amount, _BRIGHTEST))
    amount = np.clip(amount / full if full > 0 else amount, 0, 1)
    return Haematoxylin(
        amount, _known(section, thumbnail.shape[:2], scale), scale, section.um_per_px / scale, statistics
    )


def over_discs(stained: Haematoxylin, diameter_um: float) -> Haematoxylin:
    """Return the map of means over discs of ``diameter_um``; known is where the whole disc has pixels."""
    diameter = diameter_um / stained.um_per_px
    known = stained.known if stained.known.all() else disc_share(stained.known, diameter) > 0.99
    return replace(stained, amount=disc_share(stained.amount, diameter), known=known)


def at(stained: Haematoxylin, coords_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the amount at (n, 2) full-resolution points, (n,) float64 from 0 to 1, and where it is known, (n,) bool.

    Outside the image nothing is known, and the amount is 0.
    """
    points = np.asarray(coords_px, dtype=np.float64) * stained.scale
    column, row = np.floor(points).astype(np.intp).T
    height, width = stained.known.shape
    known = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    known[known] = stained.known[row[known], column[known]]
    return sample(stained.amount, points), known


def _known(section: Section, shape: tuple[int, int], scale: float) -> np.ndarray:
    from histocrypt.sections.patches import PatchMosaic

    if not isinstance(section.image, PatchMosaic):
        return np.ones(shape, dtype=bool)
    known = np.zeros(shape, dtype=bool)
    for corner in section.image.coords:
        left, top = np.maximum(np.ceil(corner * scale), 0).astype(int)
        right, bottom = np.maximum(np.floor((corner + section.image.side) * scale), 0).astype(int)
        known[top:bottom, left:right] = True
    return known
