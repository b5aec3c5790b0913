"""How large a pixel is. What a study gives and what a file states are facts; the spot pitch makes a guess.

A fact beats a guess, a guess is said, and a fact that contradicts the guess is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.spatial import array_of, array_pitch, is_visium

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from histocrypt.sections.section import Loaded

ST_PITCH_UM = 200.0
VISIUM_PITCH_UM = 100.0
TOLERANCE = 0.10
"""Largest relative difference between a stated resolution and the one that the spot pitch gives."""


@dataclass(frozen=True)
class Guess:
    """What the distance of neighbouring spots says of the resolution."""

    um_per_px: float
    pitch_px: float
    why: str
    """The physical pitch and how it is known, as a clause."""

    def contradicts(self, um_per_px: float) -> bool:
        """Return whether a stated resolution differs by more than `TOLERANCE`."""
        return abs(um_per_px / self.um_per_px - 1) > TOLERANCE


def guess(adata: AnnData, *, pitch_um: float | None = None, technology: str = "") -> Guess | None:
    """Return what the spots of a section say of its resolution; None where they form no array of a known pitch.

    Parameters
    ----------
    adata
        ``obsm["spatial"]`` in pixels; ``obs["array_row"]`` and ``obs["array_col"]`` are used where they are there.
    pitch_um
        Distance of neighbouring spots, micrometres, where a file states it.
    technology
        Name of the technology, where a file states it.
    """
    coords = np.asarray(adata.obsm["spatial"], dtype=float)
    index = array_of(adata, whole=False)
    known = (pitch_um, "by the file") if pitch_um else _known_pitch(coords, index, technology)
    measured = array_pitch(coords, index) if known is not None else None
    if measured is None:
        return None
    pitch_um, why = known
    return Guess(pitch_um / measured[0], measured[0], f"{pitch_um:g} um {why}")


def _known_pitch(coords: np.ndarray, index: np.ndarray | None, technology: str) -> tuple[float, str] | None:
    name = " ".join(technology.lower().replace("-", " ").replace("_", " ").split())
    if name:
        if "visium" in name and "hd" not in name.split():
            return VISIUM_PITCH_UM, "as it is Visium"
        if "spatial transcriptomics" in name or name in {"st", "st v1", "legacy st", "1k array"}:
            return ST_PITCH_UM, "as it is an ST array"
        return None
    if len(coords) < 9:
        return None
    if index is not None:
        if is_visium(index):
            return VISIUM_PITCH_UM, "as the array index is Visium's"
        return ST_PITCH_UM, "as the array is square, like ST's"
    measured = array_pitch(coords)
    if measured is None:
        return None
    if measured[1] > 4.5:
        return VISIUM_PITCH_UM, "as the array is hexagonal, like Visium's"
    return ST_PITCH_UM, "as the array is square, like ST's"


def resolve(loaded: Loaded, *, given: float | None, file: Path) -> tuple[float, str, str]:
    """Return micrometres per full-resolution pixel, its source, and how it was guessed (a clause, or "").

    Parameters
    ----------
    given
        What the study gives; it beats what the files state.
    file
        The file that errors name.

    Raises
    ------
    InputError
        If nothing tells the resolution, or if what is stated differs from the spot pitch by more than `TOLERANCE`.
    """
    guessed = guess(loaded.adata, pitch_um=loaded.pitch_um, technology=loaded.technology)
    if given is not None:
        stated, source, field = float(given), "given", "um_per_px as given"
    elif loaded.um_per_px is not None:
        stated, source, field = float(loaded.um_per_px), "file", loaded.um_field
    elif guessed is not None:
        how = f"{guessed.um_per_px:.4f} um/px estimated: spots lie {guessed.pitch_px:.1f} px apart, {guessed.why}"
        return guessed.um_per_px, "spot pitch", how
    else:
        raise InputError(
            "resolution is neither given nor in the files, and the spot pitch does not tell it",
            file=file,
            field="um_per_px",
            setting="um_per_px",
        )
    if not np.isfinite(stated) or stated <= 0:
        raise InputError(
            "resolution is not a positive number",
            file=file,
            field=field,
            value=stated,
            expected="micrometres per pixel, e.g. 0.5",
        )
    if guessed is not None and guessed.contradicts(stated):
        raise InputError(
            f"resolution of {stated:.4g} um/px contradicts the spot pitch: spots lie {guessed.pitch_px:.1f} px apart, "
            f"{guessed.why}, which makes {guessed.um_per_px:.4g} um/px",
            file=file,
            field=field,
            fix="correct it, or state the true distance of the spots as `inter_spot_um` in uns['spatial'][...]"
            "['metadata']",
        )
    return stated, source, ""
