"""From the tiles of a study to images with masks: class by a label of the spot, mask by rule.

A mask's levels are those of `manifest.TISSUE`. They are **not a pathologist's outlines**: nuclei are what holds much
haematoxylin, whatever it is; the tumour region is as coarse as the spots, and as true as their label, which may be a
proxy (`Label.is_proxy`); stroma is all tissue that is neither, blood and tinted lumens among it. Touching nuclei are
one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.errors import InputError
from histocrypt.synthesis.manifest import TISSUE, Pairs, resized
from histocrypt.tissue.stain import INCIDENT_LIGHT, StainStatistics, estimate
from histocrypt.tissue.tiles import read_tiles

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study import Study
    from histocrypt.targets.matrix import Label

BACKGROUND, STROMA, NUCLEI, TUMOUR = range(4)
SMOOTH_UM = 1.0
"""Standard deviation of the smoothing before a pixel is called a nucleus: less than a nucleus, more than noise."""
GROUND_UM = 3.0
"""The same before a pixel is called background: a gap between two fibres is no background."""
SMALLEST_NUCLEUS_UM2 = 12.0
"""Smaller pieces are specks; a lymphocyte's nucleus has about 30."""
LEAST_STAIN_OD = 0.12
"""Optical density of the darkest channel, against the section's own light, below which there is no tissue."""
_SAMPLED_TILES = 150
_AT_ONCE = 64
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / INCIDENT_LIGHT)


def tissue_pairs(study: Study, sections: Sequence[str], *, label: Label, side: int) -> Pairs:
    """Return the labelled spots of some sections as images with masks.

    Spots without a label are left out. Colours are as scanned.

    Parameters
    ----------
    study
        A study whose sections are preprocessed.
    sections
        Section ids; spots follow in their order.
    label
        What makes a spot tumour.
    side
        Side of images and masks, pixels; at most the tiles' own.

    Returns
    -------
    Pairs
        ids ``<section>:<barcode>``, patients, classes normal and tumour; images (n, side, side, 3).

    Raises
    ------
    InputError
        If preprocessing is missing, ``side`` is larger than the tiles, or no spot has a label.
    """
    parts = [_section(study, section, label, side) for section in sections]
    parts = [part for part in parts if len(part)]
    if not parts:
        raise InputError(
            f"no spot of {', '.join(sections) or 'no section'} has a label",
            field=label.source,
            fix="name another label, or sections that have it",
        )
    return Pairs.join(parts)


def apart(study: Study, pairs: Pairs) -> np.ndarray:
    """Return (n,) bool: tiles chosen such that no two of a section overlap, in the order given, first come first kept.

    Neighbouring spots' tiles may share pixels. A tile that shares pixels with a training tile is no second witness.
    """
    kept = np.zeros(len(pairs), dtype=bool)
    sections = pairs.sections
    for section in np.unique(sections).tolist():
        rows = np.flatnonzero(sections == section)
        corners, side, stored = _corners(study.run.tiles(section))
        place = dict(zip(stored.tolist(), corners, strict=True))
        chosen: list[np.ndarray] = []
        for row in rows.tolist():
            corner = place[str(pairs.ids[row]).split(":", 1)[1]]
            if all(np.abs(corner - other).max() >= side - 0.5 for other in chosen):
                chosen.append(corner)
                kept[row] = True
    return kept


def rule_masks(
    tiles: np.ndarray, *, stain: StainStatistics, um_per_px: float, light: float, threshold: float, tumour: np.ndarray
) -> np.ndarray:
    """Return masks of tiles by rule.

    Parameters
    ----------
    tiles
        (n, s, s, 3) uint8 of one section, as scanned.
    stain
        The section's stain statistics.
    um_per_px
        Micrometres per pixel of the tiles.
    light, threshold
        The section's, from `section_levels`.
    tumour
        (n, s, s) bool: whether the nearest labelled spot is tumour.

    Returns
    -------
    (n, s, s) uint8, indices into ``TISSUE.levels``
    """
    from scipy.ndimage import binary_opening, gaussian_filter
    from skimage.morphology import remove_small_objects

    smallest = max(2, round(SMALLEST_NUCLEUS_UM2 / um_per_px**2))
    brightest = light * np.exp(-LEAST_STAIN_OD)
    masks = np.where(tumour, np.uint8(TUMOUR), np.uint8(STROMA))
    amounts = haematoxylin(tiles, stain=stain, um_per_px=um_per_px)
    for mask, tile, amount in zip(masks, tiles, amounts, strict=True):
        ground = gaussian_filter(tile.min(axis=2).astype(np.float32), GROUND_UM / um_per_px) > brightest
        nuclei = remove_small_objects(binary_opening(amount > threshold), max_size=smallest)
        mask[nuclei] = NUCLEI
        mask[ground] = BACKGROUND
    return masks


def haematoxylin(tiles: np.ndarray, *, stain: StainStatistics, um_per_px: float) -> np.ndarray:
    """Return the amount of haematoxylin (n, s, s) float32, unmixed with the section's own stains and smoothed.

    Colour deconvolution: Ruifrok and Johnston, Anal Quant Cytol Histol 23, 2001.
    """
    from scipy.ndimage import gaussian_filter

    unmix = np.linalg.pinv(stain.stain_matrix)[0].astype(np.float32)
    sigma = SMOOTH_UM / um_per_px
    return np.stack([gaussian_filter(_DENSITY[tile] @ unmix, sigma) for tile in tiles])


def section_levels(tiles: np.ndarray, *, stain: StainStatistics, um_per_px: float) -> tuple[float, float]:
    """Return a section's light (grey level of what is unstained) and its least haematoxylin of a nucleus.

    The light is the brightest darkest channel of the sampled tiles, as far as it can be unstained; the threshold is
    Otsu's, over the pixels that are not background.
    """
    from skimage.filters import threshold_otsu

    darkest = tiles.min(axis=3)
    light = float(np.clip(np.percentile(darkest, 99.5), 215, INCIDENT_LIGHT))
    amount = haematoxylin(tiles, stain=stain, um_per_px=um_per_px)
    stained = amount[darkest <= light * np.exp(-LEAST_STAIN_OD)]
    if stained.size < 2 or np.ptp(stained) == 0:
        return light, float("inf")  # nothing is stained: nothing is a nucleus
    return light, max(0.0, float(threshold_otsu(stained)))


def tissue_rule(um_per_px: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the rule for drawn tiles of H&E without tumour: (n, s, s, 3) uint8 to masks (n, s, s) uint8 of `TISSUE`.

    Their generator makes pictures alone, so what is outlined in them is found by rule. As `tissue_pairs` does with a
    section, but with stains estimated from all given tiles together, as drawn tiles have no section, and without
    removing specks, which at a few micrometres a pixel are nuclei.

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


def _section(study: Study, section: str, label: Label, side: int) -> Pairs:
    adata = read_clean_section(study.run.section(section))
    found = label.of(adata, section=section)
    known = np.isfinite(found)
    names = adata.obs_names.to_numpy(dtype=str)[known]
    images = np.zeros((len(names), side, side, 3), dtype=np.uint8)
    masks = np.zeros((len(names), side, side), dtype=np.uint8)
    for rows, tiles, levels in _masked(study, section, adata, names, found[known] > 0.5) if len(names) else ():
        if side > tiles.shape[1]:
            raise InputError(
                f"tiles of {section} have fewer pixels than asked for",
                value=side,
                expected=f"at most {tiles.shape[1]}",
                fix="raise preprocessing.tile_px",
            )
        images[rows] = np.stack([resized(tile, side) for tile in tiles])
        masks[rows] = _voted(levels, side)
    return Pairs(
        TISSUE,
        ids=np.array([f"{section}:{name}" for name in names], dtype=str),
        labels=np.where(found[known] > 0.5, "tumour", "normal").astype(str),
        patients=adata.obs["patient"].to_numpy(dtype=str)[known],
        images=images,
        masks=masks,
        has_mask=np.ones(len(names), dtype=bool),
    )


def _masked(
    study: Study, section: str, adata: AnnData, names: np.ndarray, tumour: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield rows, tiles (k, s, s, 3) and their masks (k, s, s), some at a time."""
    from scipy.spatial import cKDTree

    path, stain = study.run.tiles(section), StainStatistics.load(study.run.stain(section))
    corners, window_px, stored = _corners(path)
    place = dict(zip(stored.tolist(), corners, strict=True))
    spots = adata[names].obsm["spatial"]
    sampled = np.random.default_rng(0).permutation(len(names))[:_SAMPLED_TILES]
    some, _ = read_tiles(path, names[np.sort(sampled)])
    um_per_px = study.preprocessing.tile_um / some.shape[1]
    light, threshold = section_levels(some, stain=stain, um_per_px=um_per_px)
    nearest = cKDTree(spots)
    grid = (np.arange(some.shape[1]) + 0.5) * window_px / some.shape[1]
    offsets = np.stack(np.meshgrid(grid, grid), axis=-1)  # x, y by row and column
    for start in range(0, len(names), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(names)))
        tiles, _ = read_tiles(path, names[rows])
        pixels = np.stack([place[name] for name in names[rows].tolist()])[:, None, None] + offsets
        region = tumour[nearest.query(pixels)[1]]
        yield (
            rows,
            tiles,
            rule_masks(tiles, stain=stain, um_per_px=um_per_px, light=light, threshold=threshold, tumour=region),
        )


def _voted(masks: np.ndarray, side: int) -> np.ndarray:
    """Return masks (n, side, side): of each pixel the level that fills most of it; of equal ones the first."""
    if masks.shape[1] == side:
        return masks
    shares = [
        np.stack([resized((mask == level).astype(np.uint8)[:, :, None] * 255, side)[:, :, 0] for mask in masks])
        for level in range(len(TISSUE.levels))
    ]
    return np.argmax(shares, axis=0).astype(np.uint8)


def _corners(path: Path) -> tuple[np.ndarray, float, np.ndarray]:
    """Return tiles' corners (n, 2) x, y and their side in full-resolution pixels, and their barcodes (n,)."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = np.array([name.decode() for name in np.asarray(file["barcode"]).reshape(-1)], dtype=str)
            return np.asarray(file["coords"]), float(file.attrs["tile_um"] / file.attrs["um_per_px"]), names
    except (OSError, KeyError) as error:
        raise InputError(f"tiles cannot be read ({error})", file=path, fix="run preprocessing again") from error
