"""Nuclei and tissue, described by hand: numbers that a pathologist could check, from no training.

A tile is unmixed into haematoxylin and eosin with the stains of its own section, in units of a published reference.
Nuclei are what is darker in haematoxylin than a limit that the section's own pixels set (Otsu 1979), cut apart by
watershed from the local maxima. A section is described together, since the limits are its own; no label is looked at.
Whatever the scan, tiles are looked at with `UM` micrometres a pixel.

Sources
-------
Macenko et al. 2009 (stains: `tissue.stain`); Otsu 1979; Ojala et al. 2002 (local binary patterns); Haralick et al. 1973
(co-occurrence). The choice of numbers follows what graders of breast cancer look at: how many nuclei, how large, how
round, how they lie to one another, and what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.machine import in_threads

if TYPE_CHECKING:
    from histocrypt.tissue.stain import StainStatistics

UM = 0.675
"""Micrometres a pixel at which tiles are looked at: 20x."""
NEAR = 0.05
"""Tiles whose resolution differs by less than this share are taken as they are."""
SMOOTH_UM = 0.8
"""Width of the Gaussian before nuclei are looked for."""
APART_UM = 2.7
"""Two nuclei's darkest points are at least so far apart."""
LEAST_HAEMATOXYLIN = 0.5
"""The limit of nuclei is not below this: in a section without nuclei there are none."""
LEAST_UM2 = 7.0
"""Specks below are no nuclei."""
CLASSES = (7, 12, 20, 32, 50, 80)
"""Lower ends of the size classes of nuclei, um2."""
CLEAR_OD = (0.134, 0.35)
"""The least and the most that a section may call the density of its glass. A fixed limit does not do: glass is grey or
pink on some scanners, and differs between the fields of one mosaic."""
FLAT_UM, FLAT_OD = 6.0, 0.015
"""Glass is flat: over so many micrometres its density deviates by less than this. Pale stroma deviates more."""
LEAST_FLAT = 0.002
"""Share of a section that must be flat and bright to say what its glass is like; with less, the least limit stands."""
FAT_UM2 = 800.0
"""Clear holes larger than this are fat cells or wide lumina."""
DISTANCES = (1, 4, 10)
"""Of co-occurrence, pixels of `UM`."""
LEVELS = 16
CELL = 16
"""Pixels a side of the cells in which the direction of fibres is taken."""
MOST, BINS = 6.0, 601
"""Stain is cut off above this; the histograms that set a section's limits have so many bins below."""
SPREAD = ("mean", "sd", "p10", "median", "p90")
FAR_UM = 60.0
"""Distance that stands where a tile has too few nuclei to have one."""


def _names() -> dict[str, str]:
    def spread(name: str, meaning: str) -> dict[str, str]:
        return {f"{name}_{part}": f"{meaning}: {part}" for part in SPREAD}

    ends = [*(f"{low}_{high}" for low, high in zip(CLASSES, CLASSES[1:], strict=False)), f"{CLASSES[-1]}_up"]
    found = {"nuclei": "square root of nuclei per 10,000 um2"}
    found |= {
        f"nuclei_{end}": f"square root of nuclei per 10,000 um2, of {end.replace('_', ' to ')} um2" for end in ends
    }
    found |= {f"share_{end}": f"share of the nuclei that have {end.replace('_', ' to ')} um2" for end in ends}
    found |= spread("log_area", "ln of a nucleus's area, um2")
    found |= spread("eccentricity", "of the ellipse with a nucleus's moments, 0 to 1")
    found |= spread("roundness", "area over that of a circle as long around, about 1 for a disc")
    found |= spread("darkness", "mean haematoxylin of a nucleus, reference units")
    found |= {"chromatin_mean": "deviation of haematoxylin within a nucleus: mean", "chromatin_sd": "the same: sd"}
    for kind, meaning in (
        ("lymphoid", "nuclei of 12 to 45 um2, round and darker than the median"),
        ("spindle", "nuclei of eccentricity above .9"),
        ("large", "nuclei above 60 um2, not elongated"),
    ):
        found |= {kind: f"square root of {meaning}, per 10,000 um2", f"{kind}_share": f"share of {meaning}"}
    found["spindle_order"] = "how far elongated nuclei point one way, 0 to 1"
    found |= {
        "nearest_mean": "distance of a nucleus to the nearest, um: mean", "nearest_sd": "the same: sd",
        "third_mean": "distance to the third nearest, um: mean",
        "edge_median": "edges between neighbouring nuclei (Delaunay), um: median",
        "edge_variation": "the same: sd over mean",
        "crowding": "other nuclei within 20 um of one: mean",
    }  # fmt: skip
    found |= {
        "clear": "share of the tile without stain", "holes": "square root of clear holes per 10,000 um2",
        "largest_hole": "square root of its area, um", "fat": "share of the tile in clear holes above 800 um2",
        "stroma": "share: no nucleus, not clear, eosin above the section's median",
        "pale_stroma": "the same, haematoxylin below the section's median",
        "nuclear": "share of the tile in nuclei", "nuclear_eosin": "share in nuclei with eosin above the median",
    }  # fmt: skip
    for stain in ("h", "e"):
        found |= spread(stain, f"{'haematoxylin' if stain == 'h' else 'eosin'}, reference units")
    found["h_e"] = "correlation of the two stains over the pixels"
    for stain in ("h", "e"):
        word = "haematoxylin" if stain == "h" else "eosin"
        for sigma in (1, 3):
            found[f"{stain}_edges_{sigma}"] = f"mean gradient of {word} smoothed by {sigma} pixels"
            found[f"{stain}_direction_{sigma}"] = "how far its gradients point one way within 11 um, 0 to 1"
        for radius in (1, 3):
            for pattern in range(10):
                found[f"{stain}_pattern_{radius}_{pattern}"] = (
                    f"square root of the share of local binary pattern {pattern} of {word} at {radius} pixels"
                )
        for distance in DISTANCES:
            for part in ("contrast", "homogeneity", "correlation", "energy"):
                found[f"{stain}_{part}_{distance}"] = f"co-occurrence of {word} {distance} pixels apart: {part}"
    return found


FEATURES: dict[str, str] = _names()
"""Name -> meaning and unit, in the order of the columns."""


@dataclass(frozen=True)
class Limits:
    """What a section's own pixels set, reference units."""

    nuclei: float
    """Smoothed haematoxylin above this is a nucleus."""
    haematoxylin: float
    eosin: float
    """Medians."""
    clear: float = CLEAR_OD[0]
    """Optical density, not reference units, below which every channel is in glass, a lumen or fat."""


def concentrations(tiles: np.ndarray, stain: StainStatistics) -> np.ndarray:
    """Return (..., 2) float32 haematoxylin and eosin of (..., 3) uint8 pixels, in units of the published reference."""
    from histocrypt.tissue.stain import DEFAULT_CONCENTRATIONS, INCIDENT_LIGHT

    density = -np.log((np.arange(256, dtype=np.float32) + 1) / np.float32(INCIDENT_LIGHT))
    unmix = np.linalg.pinv(stain.stain_matrix).T * (DEFAULT_CONCENTRATIONS / stain.max_concentrations)
    return np.clip(density[tiles] @ unmix.astype(np.float32), 0, MOST)


def limits_of(tiles: Iterable[np.ndarray], stain: StainStatistics) -> Limits:
    """Return the limits of a section from all pixels of its tiles, whichever way these are turned."""
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    def counted(tile: np.ndarray) -> np.ndarray:
        held, density = concentrations(tile, stain), density_of(tile)
        smooth = gaussian_filter(held[..., 0], SMOOTH_UM / UM)
        return np.stack([_histogram(one) for one in (smooth, held[..., 1], density, density[_is_flat(density)])])

    dark, eosin, dense, flat = sum(in_threads(counted, tiles), start=np.zeros((4, BINS), dtype=np.int64))
    centres = (np.arange(BINS) + 0.5) * MOST / BINS

    def below(counts: np.ndarray, share: float) -> float:
        return float(centres[np.searchsorted(np.cumsum(counts), share * counts.sum())])

    limit = threshold_otsu(hist=(dark, centres)) if (dark > 0).sum() > 1 else LEAST_HAEMATOXYLIN
    flat[centres > below(dense, 0.5)] = 0  # an even stain is flat too, but not bright
    known = flat.sum() >= LEAST_FLAT * max(dense.sum(), 1)
    glass = np.clip(below(flat, 0.9) + 2 * MOST / BINS, *CLEAR_OD) if known else CLEAR_OD[0]
    return Limits(max(float(limit), LEAST_HAEMATOXYLIN), below(dark, 0.5), below(eosin, 0.5), float(glass))


def density_of(tile: np.ndarray) -> np.ndarray:
    """Return (S, S) float32, the optical density of the channel that absorbs most, of (S, S, 3) uint8 as scanned."""
    from histocrypt.tissue.stain import INCIDENT_LIGHT

    light = (tile.min(axis=-1).astype(np.float32) + 1) / np.float32(INCIDENT_LIGHT)
    return np.maximum(-np.log(light), 0)


def _is_flat(density: np.ndarray) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    side = 2 * round(FLAT_UM / UM / 2) + 1
    return uniform_filter(density * density, side) - uniform_filter(density, side) ** 2 < FLAT_OD**2


def _histogram(values: np.ndarray) -> np.ndarray:
    return np.bincount((values * np.float32((BINS - 1) / MOST)).astype(np.int32).ravel(), minlength=BINS)


def morphology(tiles: Any, *, stain: StainStatistics, um_per_px: float, of: Any = None) -> np.ndarray:
    """Describe the tiles of one section.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, raw colours; an array, or the data set of an open file, which is read tile by tile.
    stain
        Of the section that they come from.
    um_per_px
        Micrometres per pixel of the tiles.
    of
        Tiles of that section that its limits are taken from, in the same size; None: these.

    Returns
    -------
    (n, len(FEATURES)) float32; finite, whatever the tile

    Raises
    ------
    InputError
        If these are no tiles, or the resolution is none.
    """
    if len(tiles.shape) != 4 or tiles.shape[-1] != 3 or tiles.dtype != np.uint8:
        raise InputError(
            "tiles cannot be described", value=f"{tiles.shape} {tiles.dtype}", expected="(n, S, S, 3) uint8"
        )
    if not (np.isfinite(um_per_px) and um_per_px > 0):
        raise InputError("is not a resolution", field="um_per_px", value=um_per_px, expected="micrometres, above 0")
    limits = limits_of(at_scale(tiles if of is None else of, um_per_px), stain)
    rows = in_threads(lambda tile: describe(tile, stain, limits), at_scale(tiles, um_per_px))
    return np.array(list(rows), dtype=np.float32).reshape(-1, len(FEATURES))


def at_scale(tiles: Any, um_per_px: float) -> Iterator[np.ndarray]:
    """Yield tiles (n, S, S, 3), one by one, with `UM` micrometres a pixel."""
    from histocrypt.tissue.resize import resize

    side = tiles.shape[1]
    wanted = max(round(side * um_per_px / UM), 8) if abs(um_per_px / UM - 1) > NEAR else side
    for index in range(len(tiles)):
        tile = np.asarray(tiles[index : index + 1])
        yield (tile if wanted == side else resize(tile, wanted))[0]


def nuclei_of(haematoxylin: np.ndarray, limits: Limits) -> np.ndarray:
    """Return the nucleus of each pixel, int32 of the image's shape; 0 where there is none."""
    from scipy.ndimage import gaussian_filter, label, maximum_filter
    from skimage.segmentation import watershed

    smooth = gaussian_filter(haematoxylin, SMOOTH_UM / UM)
    inside = smooth > limits.nuclei
    if not inside.any():
        return np.zeros(haematoxylin.shape, dtype=np.int32)
    reach = 2 * round(APART_UM / UM) + 1
    markers, _ = label(inside & (maximum_filter(smooth, reach) == smooth), structure=np.ones((3, 3)))
    nuclei = watershed(-smooth, markers, mask=inside)
    area = np.bincount(nuclei.ravel()) * UM**2
    kept = area >= LEAST_UM2
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[nuclei]


def describe(tile: np.ndarray, stain: StainStatistics, limits: Limits) -> list[float]:
    """Return the numbers of one tile in the order of `FEATURES`, from (S, S, 3) uint8 at `UM` micrometres a pixel."""
    held, clear = concentrations(tile, stain), clear_of(tile, limits)
    haematoxylin, eosin = np.ascontiguousarray(held[..., 0]), np.ascontiguousarray(held[..., 1])
    nuclei = nuclei_of(haematoxylin, limits)
    found = [*_of_nuclei(nuclei, haematoxylin), *_of_tissue(nuclei, haematoxylin, eosin, clear, limits)]
    found += [*_spread(haematoxylin), *_spread(eosin), _correlation(haematoxylin[::3, ::3], eosin[::3, ::3])]
    for one in (haematoxylin, eosin):
        found += [*_edges(one), *_patterns(one), *_co_occurrence(one)]
    return np.nan_to_num(np.array(found)).tolist()


def _spread(values: np.ndarray) -> list[float]:
    if not values.size:
        return [0.0] * len(SPREAD)
    return [values.mean(), values.std(), *np.percentile(values, (10, 50, 90))]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if a.std() > 1e-6 and b.std() > 1e-6 else 0.0


def _of_nuclei(nuclei: np.ndarray, haematoxylin: np.ndarray) -> list[float]:
    count = int(nuclei.max())
    if not count:
        none = dict.fromkeys(list(FEATURES)[: list(FEATURES).index("clear")], 0.0)
        return list((none | dict.fromkeys(("nearest_mean", "third_mean", "edge_median"), FAR_UM)).values())
    field = nuclei.size * UM**2 / 1e4  # in 10,000 um2
    at = np.flatnonzero(nuclei)
    which, (y, x), dark = nuclei.ravel()[at] - 1, np.divmod(at, nuclei.shape[1]), haematoxylin.ravel()[at]

    def total(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(which, weights, minlength=count).astype(float)

    pixels = total()
    area, my, mx = pixels * UM**2, total(y) / pixels, total(x) / pixels
    dy, dx = y - my[which], x - mx[which]
    yy, xx, xy = total(dy * dy) / pixels + 1 / 12, total(dx * dx) / pixels + 1 / 12, total(dx * dy) / pixels
    root = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    eccentricity = np.sqrt(1 - (xx + yy - root) / (xx + yy + root))
    orientation = 0.5 * np.arctan2(2 * xy, xx - yy)
    roundness = 4 * np.pi * pixels / _outlines(nuclei, count) ** 2
    mean = total(dark) / pixels
    chromatin = np.sqrt(np.maximum(total(dark * dark) / pixels - mean**2, 0))
    classes = np.histogram(area, (*CLASSES, np.inf))[0]
    lymphoid = (area > 12) & (area < 45) & (eccentricity < 0.8) & (mean > np.median(mean))
    spindle, large = eccentricity > 0.9, (area > 60) & (eccentricity < 0.85)
    found = [np.sqrt(count / field), *np.sqrt(classes / field), *(classes / count)]
    found += [*_spread(np.log(area)), *_spread(eccentricity), *_spread(roundness), *_spread(mean)]
    found += [chromatin.mean(), chromatin.std()]
    for kind in (lymphoid, spindle, large):
        found += [np.sqrt(kind.sum() / field), kind.mean()]
    found.append(abs(np.exp(2j * orientation[spindle]).mean()) if spindle.sum() > 2 else 0.0)
    return [*found, *_of_places(np.column_stack([mx, my]) * UM)]


def _outlines(nuclei: np.ndarray, count: int) -> np.ndarray:
    """Return the length of each nucleus's outline, pixels: its sides, by the mean over directions (Cauchy, Crofton)."""
    sides = np.zeros(count + 1)
    padded = np.pad(nuclei, 1)
    for step, weight in (((0, 1), 1.0), ((1, 0), 1.0), ((1, 1), np.sqrt(0.5)), ((1, -1), np.sqrt(0.5))):
        other = np.roll(padded, step, axis=(0, 1))
        apart = padded != other
        sides += weight * (
            np.bincount(padded[apart], minlength=count + 1) + np.bincount(other[apart], minlength=count + 1)
        )
    return np.maximum(sides[1:] * np.pi / 8, 1.0)


def _of_places(um: np.ndarray) -> list[float]:
    from scipy.spatial import Delaunay, QhullError, cKDTree

    if len(um) < 5:
        return [FAR_UM, 0.0, FAR_UM, FAR_UM, 0.0, 0.0]
    tree = cKDTree(um)
    away = tree.query(um, k=4)[0]
    try:
        corners = Delaunay(um).simplices
        edges = np.unique(
            np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]), axis=1), axis=0
        )
        length = np.linalg.norm(um[edges[:, 0]] - um[edges[:, 1]], axis=1)
        length = length[length < FAR_UM] if (length < FAR_UM).any() else length
        between = [np.median(length), length.std() / max(length.mean(), 1e-6)]
    except QhullError:  # all in one line
        between = [FAR_UM, 0.0]
    crowd = 2 * len(tree.query_pairs(20.0, output_type="ndarray")) / len(um)
    return [away[:, 1].mean(), away[:, 1].std(), away[:, 3].mean(), *between, crowd]


def _of_tissue(
    nuclei: np.ndarray, haematoxylin: np.ndarray, eosin: np.ndarray, clear: np.ndarray, limits: Limits
) -> list[float]:
    from scipy.ndimage import label

    inside = nuclei > 0
    holes, count = label(clear)
    areas = np.bincount(holes.ravel())[1:] * UM**2 if count else np.zeros(0)
    stroma = ~inside & ~clear & (eosin > limits.eosin)
    pale = stroma & (haematoxylin < limits.haematoxylin)
    return [
        clear.mean(), np.sqrt(count / (clear.size * UM**2 / 1e4)), np.sqrt(areas.max(initial=0.0)),
        areas[areas > FAT_UM2].sum() / (clear.size * UM**2), stroma.mean(), pale.mean(), inside.mean(),
        (inside & (eosin > limits.eosin)).mean(),
    ]  # fmt: skip


def clear_of(tile: np.ndarray, limits: Limits) -> np.ndarray:
    """Return (S, S) bool: where there is no stain, of (S, S, 3) uint8 as scanned."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter((density_of(tile) < limits.clear).astype(np.float32), 1.5) > 0.5


def _edges(one: np.ndarray) -> list[float]:
    from scipy.ndimage import gaussian_filter, sobel

    found = []
    for sigma in (1, 3):
        smooth = gaussian_filter(one, sigma)
        gx, gy = sobel(smooth, 1), sobel(smooth, 0)
        xx, yy, xy = (_cells(part) for part in (gx * gx, gy * gy, gx * gy))
        found.append(np.sqrt(gx**2 + gy**2).mean())
        found.append((np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-6)).mean())
    return found


def _cells(values: np.ndarray) -> np.ndarray:
    """Return means over cells of `CELL` pixels a side; what does not fill one is left out."""
    cell = min(CELL, *values.shape)
    rows, columns = (size // cell for size in values.shape)
    return values[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell).mean(axis=(1, 3))


@cache
def _uniform() -> np.ndarray:
    """Return the class of each of 256 patterns: ones in a pattern of at most two changes, else 9 (Ojala et al.)."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9).astype(np.uint8)


def _patterns(one: np.ndarray) -> list[float]:
    from scipy.ndimage import gaussian_filter

    grey = np.clip(gaussian_filter(one, 0.7) * 80, 0, 255).astype(np.uint8)
    found = []
    for radius in (1, 3):
        diagonal = max(1, round(radius * np.sqrt(0.5)))
        middle = grey[radius:-radius, radius:-radius]
        code = np.zeros(middle.shape, dtype=np.uint8)
        around = ((0, radius), (diagonal, diagonal), (radius, 0), (diagonal, -diagonal),
                  (0, -radius), (-diagonal, -diagonal), (-radius, 0), (-diagonal, diagonal))  # fmt: skip
        for bit, (down, right) in enumerate(around):
            rows, columns = radius + down, radius + right
            other = grey[rows : rows + middle.shape[0], columns : columns + middle.shape[1]]
            code |= (other >= middle).view(np.uint8) << np.uint8(bit)
        found += np.sqrt(np.bincount(_uniform()[code].ravel(), minlength=10) / code.size).tolist()
    return found


def _co_occurrence(one: np.ndarray) -> list[float]:
    level = np.clip(one / 3 * LEVELS, 0, LEVELS - 1).astype(np.uint8)
    i, j = np.mgrid[:LEVELS, :LEVELS]
    found = []
    for distance in DISTANCES:
        parts = []
        for a, b in ((level[:-distance], level[distance:]), (level[:, :-distance], level[:, distance:])):
            pairs = np.bincount((a * np.uint8(LEVELS) + b).ravel(), minlength=LEVELS**2).reshape(LEVELS, LEVELS)
            share = (pairs + pairs.T) / (2 * pairs.sum())
            mean = (share * i).sum()
            variance = (share * (i - mean) ** 2).sum()
            contrast, alike = (share * (i - j) ** 2).sum(), (share / (1 + (i - j) ** 2)).sum()
            correlation = 1.0 if variance < 1e-12 else (share * (i - mean) * (j - mean)).sum() / variance
            parts.append((contrast, alike, correlation, np.sqrt((share**2).sum())))
        found += np.mean(parts, axis=0).tolist()
    return found
