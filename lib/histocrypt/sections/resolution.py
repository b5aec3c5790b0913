"""How large a pixel is: as given, as the files say, or from the spot pitch; and whether these agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from histocrypt.sections.section import Loaded, SectionFiles

ST_PITCH_UM = 200.0
VISIUM_PITCH_UM = 100.0
TOLERANCE = 0.10
"""Largest relative difference between a stated resolution and the one that the spot pitch gives."""


def resolve(files: SectionFiles, loaded: Loaded, *, stated_in: str) -> tuple[float, str, str]:
    """Return micrometres per full-resolution pixel, its source, and a sentence that tells how it was found.

    Parameters
    ----------
    stated_in
        The file that errors name.

    Raises
    ------
    InputError
        If nothing tells the resolution, or if what is stated differs from the spot pitch by more than `TOLERANCE`.
    """
    pitch_um, why = _pitch_um(loaded)
    pitch_px = spot_pitch_px(loaded) if pitch_um else None
    estimate = pitch_um / pitch_px if pitch_um and pitch_px else None
    if files.um_per_px is not None:
        stated, source, field = float(files.um_per_px), "given", "um_per_px as given"
    elif loaded.um_per_px is not None:
        stated, source, field = float(loaded.um_per_px), "file", loaded.um_field
    else:
        if estimate is None:
            msg = "resolution is neither given nor in the files, and the spot pitch does not tell it"
            raise InputError(
                msg,
                file=stated_in,
                field="um_per_px",
                fix="add `um_per_px:` (micrometres per full-resolution pixel) to the section's entry in the study",
            )
        return estimate, "spot pitch", f"{estimate:.4f} um/px estimated: spots lie {pitch_px:.1f} px apart, {why}"
    if not np.isfinite(stated) or stated <= 0:
        msg = "resolution is not a positive number"
        raise InputError(msg, file=stated_in, field=field, value=stated, expected="micrometres per pixel, e.g. 0.5")
    if estimate is not None and abs(stated / estimate - 1) > TOLERANCE:
        msg = (
            f"resolution of {stated:.4g} um/px contradicts the spot pitch: spots lie {pitch_px:.1f} px apart, {why}, "
            f"which makes {estimate:.4g} um/px"
        )
        raise InputError(
            msg,
            file=stated_in,
            field=field,
            fix="correct it, or state the true distance of the spots as `inter_spot_um` in uns['spatial'][...]"
            "['metadata']",
        )
    return stated, source, ""


def spot_pitch_px(loaded: Loaded) -> float | None:
    """Return the distance between neighbouring spots in full-resolution pixels; None where they form no array."""
    adata = loaded.adata
    coords = np.asarray(adata.obsm["spatial"], dtype=float)
    if len(coords) < 4:
        return None
    near = _neighbour_distance(coords)
    if near is None:
        return None
    index = _array_index(adata)
    if index is None:
        return near[0]
    design = np.column_stack([np.ones(len(index)), index])
    if np.linalg.matrix_rank(design) < 3:
        return near[0]
    weights = np.linalg.lstsq(design, coords, rcond=None)[0]
    by_row, by_column = np.linalg.norm(weights[1:], axis=1)
    # A Visium column index steps by half a pitch, and rows lie sqrt(3)/2 of a pitch apart.
    fitted = (by_row * 2 / np.sqrt(3) + by_column * 2) / 2 if _is_visium(index) else (by_row + by_column) / 2
    residual = np.median(np.linalg.norm(coords - design @ weights, axis=1))
    return float(fitted) if residual < 0.25 * fitted else near[0]


def _pitch_um(loaded: Loaded) -> tuple[float | None, str]:
    """Return the physical spot pitch and how it is known, as a clause."""
    if loaded.pitch_um:
        return float(loaded.pitch_um), f"{loaded.pitch_um:g} um by the file"
    name = " ".join(loaded.technology.lower().replace("-", " ").replace("_", " ").split())
    if name:
        if "visium" in name and "hd" not in name.split():
            return VISIUM_PITCH_UM, f"{VISIUM_PITCH_UM:g} um as it is Visium"
        if "spatial transcriptomics" in name or name in {"st", "st v1", "legacy st", "1k array"}:
            return ST_PITCH_UM, f"{ST_PITCH_UM:g} um as it is an ST array"
        return None, ""
    index = _array_index(loaded.adata)
    if index is not None and len(index) >= 9:
        if _is_visium(index):
            return VISIUM_PITCH_UM, f"{VISIUM_PITCH_UM:g} um as the array index is Visium's"
        return ST_PITCH_UM, f"{ST_PITCH_UM:g} um as the array is square, like ST's"
    coords = np.asarray(loaded.adata.obsm["spatial"], dtype=float)
    near = _neighbour_distance(coords) if len(coords) >= 9 else None
    if near is None:
        return None, ""
    if near[1] > 4.5:
        return VISIUM_PITCH_UM, f"{VISIUM_PITCH_UM:g} um as the array is hexagonal, like Visium's"
    return ST_PITCH_UM, f"{ST_PITCH_UM:g} um as the array is square, like ST's"


def _array_index(adata: object) -> np.ndarray | None:
    """Return array row and column of each spot, float (n, 2), where the file has them."""
    if not {"array_row", "array_col"} <= set(adata.obs):
        return None
    try:
        index = adata.obs[["array_row", "array_col"]].to_numpy(dtype=float)
    except (TypeError, ValueError):
        return None
    return index if np.isfinite(index).all() else None


def _is_visium(index: np.ndarray) -> bool:
    """Return whether rows and columns are of one parity throughout, as on a Visium slide."""
    return bool(((index.sum(axis=1) % 2) == 0).all() and len(np.unique(index[:, 1] % 2)) == 2)


def _neighbour_distance(coords: np.ndarray) -> tuple[float, float] | None:
    """Return the mean distance of array neighbours and how many a spot inside has; None for an irregular cloud."""
    from scipy.spatial import cKDTree

    tree = cKDTree(coords)
    nearest = tree.query(coords, k=2)[0][:, 1]
    middle = np.median(nearest)
    if middle <= 0 or np.mean(np.abs(nearest - middle) > 0.25 * middle) > 0.25:
        return None
    pairs = tree.query_pairs(1.3 * middle, output_type="ndarray")
    if not len(pairs):
        return None
    distance = np.linalg.norm(coords[pairs[:, 0]] - coords[pairs[:, 1]], axis=1)
    degree = np.bincount(pairs.ravel(), minlength=len(coords))
    return float(distance.mean()), float(np.quantile(degree, 0.9))
