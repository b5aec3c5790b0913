"""Where the tissue is, on a thumbnail of about 8 to 16 micrometres per pixel."""

from __future__ import annotations

import numpy as np

LEAST_CONTRAST = 18.0
"""Grey levels between tissue and background below which an image counts as blank."""
SMALLEST_PIECE_UM2 = 20_000.0
"""Smaller pieces are dust, or the dots of a fiducial frame."""
LARGEST_HOLE_UM2 = 20_000.0
"""Smaller holes (vessels, ducts, fat cells) belong to the tissue."""

BAND = 512
"""Rows of a mask that are averaged over discs together."""


def tissue_mask(
    rgb_thumb: np.ndarray, *, um_per_px: float = 10.0, smallest_um2: float = SMALLEST_PIECE_UM2
) -> np.ndarray:
    """Return where a thumbnail shows tissue.

    Otsu's threshold on the smoothed darkest channel: staining lowers it whether it darkens a pixel or colours it, so
    pale eosin counts and a grey cast of the background does not matter. Thin dark lines on a bright ground are added,
    so that the membranes of fat close into tissue. Then small gaps, holes and pieces go.

    Parameters
    ----------
    rgb_thumb
        (h, w, 3) uint8.
    um_per_px
        Micrometres per pixel of the thumbnail.
    smallest_um2
        Area below which a piece is taken for dust.

    Returns
    -------
    numpy.ndarray
        (h, w) bool; nothing is set where the image is blank.
    """
    from scipy.ndimage import gaussian_filter, grey_closing
    from skimage.filters import threshold_otsu
    from skimage.morphology import closing, disk, opening, remove_small_holes, remove_small_objects

    darkest = rgb_thumb.min(axis=2)  # whole numbers of 8 bits: a section's thumbnail is large
    smooth = gaussian_filter(darkest, sigma=max(0.5, 8.0 / um_per_px), output=np.float32)
    blank = np.zeros(darkest.shape, dtype=bool)
    if np.ptp(smooth) < LEAST_CONTRAST:
        return blank
    dark = smooth < threshold_otsu(smooth)
    contrast, level_bright = float(smooth[~dark].mean() - smooth[dark].mean()), float(smooth[~dark].mean())
    if contrast < LEAST_CONTRAST:
        return blank
    del smooth
    if level_bright < 150:  # no background in view: what Otsu parted is dark tissue from pale tissue
        return ~blank
    # Lines: darker than all that surrounds them within a cell's radius. A smooth stain of the background is no line.
    window = 2 * max(1, round(16.0 / um_per_px)) + 1
    lines = grey_closing(darkest, size=(window, window)) - darkest > max(LEAST_CONTRAST, 0.2 * contrast)
    radius = max(1, round(16.0 / um_per_px))
    piece, hole = (max(1, round(area / um_per_px**2)) for area in (smallest_um2, LARGEST_HOLE_UM2))
    filled = remove_small_holes(closing(dark | lines, disk(radius)), max_size=hole)
    return remove_small_objects(opening(filled, disk(radius)), max_size=piece)


def spot_tissue_share(mask: np.ndarray, coords_px: np.ndarray, scale: float, diameter_px: float) -> np.ndarray:
    """Return the share of tissue below each spot's disc; outside the image there is none.

    Parameters
    ----------
    mask
        (h, w) bool, tissue on the thumbnail.
    coords_px
        (n, 2) float, spot centres x, y in pixels of full resolution.
    scale
        Thumbnail pixels per full-resolution pixel.
    diameter_px
        Diameter of a spot in pixels of full resolution.

    Returns
    -------
    numpy.ndarray
        (n,) float64 in [0, 1].
    """
    return sample(disc_share(mask, diameter_px * scale), np.asarray(coords_px, dtype=np.float64) * scale)


def disc_share(mask: np.ndarray, diameter: float) -> np.ndarray:
    """Return, for a disc centred on each pixel of the mask, the share of it that is tissue; (h, w) float32."""
    from scipy.signal import fftconvolve

    kernel, out = _disc(diameter), np.empty(mask.shape, dtype=np.float32)
    reach = len(kernel) // 2
    for start in range(0, len(mask), BAND):  # a transform of the whole mask is many times as large as the mask
        before = min(start, reach)
        rows = mask[start - before : start + BAND + reach].astype(np.float32)
        band = out[start : start + BAND]
        band[:] = fftconvolve(rows, kernel, mode="same")[before : before + len(band)].clip(0, 1)
    return out


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return (..., ) bilinear samples at (..., 2) points x, y, where pixel 0 spans 0 to 1; zero outside."""
    from scipy.ndimage import map_coordinates

    flat = points.reshape(-1, 2) - 0.5
    values = map_coordinates(image, [flat[:, 1], flat[:, 0]], order=1, mode="constant", cval=0.0, output=np.float64)
    return values.reshape(points.shape[:-1])


def _disc(diameter: float) -> np.ndarray:
    """Return a disc of unit sum; its rim is weighted by how much of each pixel it covers."""
    fine = 8
    half = max(0, int(np.ceil(diameter / 2 - 0.5)))
    centres = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
    inside = np.hypot(*np.meshgrid(centres, centres)) <= max(diameter, 1.0) / 2
    disc = inside.reshape(2 * half + 1, fine, 2 * half + 1, fine).mean(axis=(1, 3))
    return (disc / disc.sum()).astype(np.float32)
