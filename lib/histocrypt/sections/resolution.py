"""How large a pixel is: by facts before guesses.

What a study gives and what files and the image state are facts, and so is a spot pitch whose distance is stated; where
the distance is only what arrays of such a shape mostly have, the pitch makes a guess. A fact beats a guess, and a note
says where they differ; a guess is said; two facts that contradict each other are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.spatial import array_of, array_pitch, array_steps, is_visium

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from histocrypt.sections.image import ImageSource
    from histocrypt.sections.section import Loaded

ST_PITCH_UM = 200.0
VISIUM_PITCH_UM = 100.0
TOLERANCE = 0.10
"""Largest relative difference between two facts about the resolution, and between the scales of x and y."""
LARGEST_ST = 80
"""Spots along a side beyond which a square array is none of ST's, which has 33 x 35 or 64 x 66."""
COARSEST_UM = 30.0
"""Micrometres per pixel beyond which coordinates are no pixels of an image that shows tissue."""
SPOT_SIZES_UM = {"visium": (65.0, 55.0), "st": (100.0,)}
"""What ``spot_diameter_fullres`` spans: 65 um by 10x Genomics' definition, or with some tools the printed spot."""
_RIGHT_ONE = (
    "correct or leave out the wrong one, or confirm what is given by the true distance of the spots (`inter_spot_um` "
    "in uns['spatial'][...]['metadata'])"
)
HD_BIN = re.compile(r"(?:^|[_-])s_(\d{3})um_\d+_\d+(?:-\d+)?$")
STATED = ("pixel_size_um", "microns_per_pixel", "um_per_px", "mpp")
"""Names under which files state micrometres per full-resolution pixel."""


@dataclass(frozen=True)
class Fact:
    """A resolution that somebody stated."""

    um_per_px: float
    where: str
    """The place where it is stated."""

    def contradicts(self, other: Fact) -> bool:
        """Return whether two facts differ by more than `TOLERANCE`."""
        return abs(self.um_per_px / other.um_per_px - 1) > TOLERANCE


def stated_number(content: Mapping[str, Any], name: str, where: str, file: Path) -> float | None:
    """Return a number that a file states: as a number, as text, or as x and y that agree; None where it says nothing.

    Raises
    ------
    InputError
        If it is no number, or if x and y differ.
    """
    value = content.get(name)
    if value is None or (isinstance(value, (str, bytes)) and not value.strip()):
        return None
    here = {"file": file, "field": where}
    try:
        numbers = np.atleast_1d(np.asarray(value.decode() if isinstance(value, bytes) else value)).astype(np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if isinstance(value, (bool, np.bool_)) or numbers.shape not in {(1,), (2,)}:
        raise InputError("is not a number", **here, value=value, expected="one number, e.g. 0.5")
    if abs(numbers[0] / numbers[-1] - 1) > 0.01:
        raise InputError(
            f"x and y differ: {numbers[0]:g} and {numbers[1]:g}",
            **here,
            expected="square pixels",
            fix="resample the image to square pixels, and its coordinates with it",
        )
    return float(numbers[0])


def bin_size(names: Iterable[str]) -> float | None:
    """Return the side of Visium HD's bins, micrometres, where all barcodes tell it: ``s_016um_00010_00020-1``."""
    sizes = {match and match[1] for match in map(HD_BIN.search, names)}
    size = sizes.pop() if len(sizes) == 1 else None
    return float(size) if size else None


def technology_kind(technology: str) -> str:
    """Return ``visium``, ``visium hd``, ``st``, ``other``, or "" where nothing is stated."""
    name = " ".join(re.sub(r"[-_]+", " ", technology.lower()).split())
    if "visium" in name:
        return "visium hd" if re.search(r"hd\b", name) else "visium"
    if re.match(r"spatial [35]' ", name):  # 10x's chemistry_description of a Visium slide
        return "visium"
    if "spatial transcriptomics" in name or name in {"st", "st v1", "legacy st", "1k array"}:
        return "st"
    return "other" if name else ""


@dataclass(frozen=True)
class Guess:
    """What the distance of neighbouring spots says of the resolution."""

    um_per_px: float
    pitch_px: float
    why: str
    """The physical pitch and how it is known, as a clause."""
    certain: bool = False
    """Whether files state the pitch, or the technology that has it: then it is a fact."""

    def contradicts(self, um_per_px: float) -> bool:
        """Return whether a stated resolution differs by more than `TOLERANCE`."""
        return abs(um_per_px / self.um_per_px - 1) > TOLERANCE

    @property
    def said(self) -> str:
        """The distance in pixels and in micrometres, and why, as a clause."""
        return f"spots lie {self.pitch_px:.1f} px apart, {self.why}"


def guess(adata: AnnData, *, pitch_um: float | None = None, technology: str = "", why: str = "") -> Guess | None:
    """Return what the spots of a section say of its resolution; None where they form no array of a known pitch.

    Parameters
    ----------
    adata
        ``obsm["spatial"]`` in pixels; ``obs["array_row"]`` and ``obs["array_col"]`` are used where they are there.
    pitch_um
        Distance of neighbouring spots, micrometres, where a file states it.
    technology
        Name of the technology, where a file states it.
    why
        How ``pitch_um`` is known.
    """
    coords = np.asarray(adata.obsm["spatial"], dtype=float)
    index = array_of(adata, whole=False)
    kind = technology_kind(technology)
    known = (pitch_um, why or "by the file") if pitch_um else _known_pitch(coords, index, kind)
    measured = array_pitch(coords, index) if known is not None else None
    if measured is None:
        return None
    certain = bool(pitch_um or kind)
    pitch_um, why = known
    if not certain and not _is_likely(coords, measured[0], pitch_um):
        return None
    return Guess(pitch_um / measured[0], measured[0], f"{pitch_um:g} um {why}", certain)


def _known_pitch(coords: np.ndarray, index: np.ndarray | None, kind: str) -> tuple[float, str] | None:
    if kind:
        known = {"visium": (VISIUM_PITCH_UM, "as it is Visium"), "st": (ST_PITCH_UM, "as it is an ST array")}
        return known.get(kind)
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


def _is_likely(coords: np.ndarray, pitch_px: float, pitch_um: float) -> bool:
    """Return whether a section may be of the technology that only the shape of its array suggests."""
    side = np.ptp(coords, axis=0).max() / pitch_px
    return pitch_um / pitch_px <= COARSEST_UM and (pitch_um != ST_PITCH_UM or side <= LARGEST_ST)


def spot_size(diameter_px: float, *, technology: str, guessed: Guess | None) -> float | None:
    """Return micrometres per pixel by ``spot_diameter_fullres``; None where the technology is not stated.

    Where two definitions of the diameter are in use, the one is taken that the spot pitch agrees with.
    """
    sizes = (
        [size / diameter_px for size in SPOT_SIZES_UM.get(technology_kind(technology), ())] if diameter_px > 0 else []
    )
    if not sizes or guessed is None:
        return sizes[0] if sizes else None
    return next((size for size in sizes if not guessed.contradicts(size)), sizes[0])


def resolve(loaded: Loaded, *, given: float | None, file: Path) -> tuple[float, str, str, list[str]]:
    """Return micrometres per full-resolution pixel, its source, where it stands or how it was guessed, and notes.

    Parameters
    ----------
    given
        What the study gives; it comes first, and where another fact confirms it, a third that disagrees is only noted.
    file
        The file that errors name.

    Raises
    ------
    InputError
        If nothing tells the resolution, or if two facts differ by more than `TOLERANCE`; the sentence names both.
    """
    guessed = guess(loaded.adata, pitch_um=loaded.pitch_um, technology=loaded.technology, why=loaded.pitch_why)
    facts = [Fact(float(given), "um_per_px as given")] if given is not None else []
    facts += [Fact(float(loaded.um_per_px), loaded.um_field)] if loaded.um_per_px is not None else []
    facts += loaded.stated
    diameter = loaded.spot_diameter_px
    size = spot_size(diameter, technology=loaded.technology, guessed=guessed) if diameter else None
    facts += [Fact(size, f"{loaded.spot_field} ({size * diameter:.0f} um)")] if size else []
    if loaded.image is not None and loaded.image.um_per_px:
        facts.append(Fact(float(loaded.image.um_per_px), loaded.image.um_field))
    for fact in facts:
        _check_positive(fact, file)
    notes = _check_stretch(loaded.adata, file, certain=guessed is not None and guessed.certain)
    if not facts:
        if guessed is None:
            raise _unknown(loaded, file)
        how = f"{guessed.um_per_px:.4f} um/px estimated: {guessed.said}"
        return guessed.um_per_px, "spot pitch", how, notes
    chosen = facts[0]
    pitch_agrees = guessed is not None and guessed.certain and not guessed.contradicts(chosen.um_per_px)
    agreeing = sum(not chosen.contradicts(other) for other in facts[1:]) + pitch_agrees
    confirmed = given is not None and agreeing > 0
    for other in facts[1:]:
        if not chosen.contradicts(other):
            continue
        both = f"{chosen.um_per_px:.4g} um/px contradicts {other.um_per_px:.4g} um/px ({other.where})"
        if not confirmed:
            hint = f"; the spot pitch makes {guessed.um_per_px:.4g} um/px ({guessed.said})" if guessed else ""
            raise InputError(f"resolution of {both}{hint}", file=file, field=chosen.where, fix=_RIGHT_ONE)
        notes.append(f"{chosen.where}: {both}, and was taken, since another fact agrees with it")
    if guessed is not None and guessed.contradicts(chosen.um_per_px):
        pitch = f"the spot pitch: {guessed.said}, which makes {guessed.um_per_px:.4g} um/px"
        if guessed.certain and not confirmed:
            raise InputError(
                f"resolution of {chosen.um_per_px:.4g} um/px contradicts {pitch}",
                file=file,
                field=chosen.where,
                fix="correct it, or state the true distance of the spots as `inter_spot_um` in uns['spatial'][...]"
                "['metadata']",
            )
        notes.append(
            f"{chosen.where}: resolution of {chosen.um_per_px:.4g} um/px was taken; it differs from {pitch}, "
            + ("but another fact agrees with it" if guessed.certain else "which is only a guess")
        )
    if given is not None:
        return chosen.um_per_px, "given", "as given", notes
    return chosen.um_per_px, "file", chosen.where, notes


def resolution_of_image(image: ImageSource, *, given: float | None) -> tuple[float, str]:
    """Return micrometres per pixel of an image that no section belongs to, and its source: ``given`` or ``file``.

    Raises
    ------
    InputError
        If neither tells the resolution, or if the two differ by more than `TOLERANCE`.
    """
    facts = [Fact(float(given), "um_per_px as given")] if given is not None else []
    facts += [Fact(float(image.um_per_px), image.um_field)] if image.um_per_px else []
    if not facts:
        raise InputError(
            "the image does not say how large a pixel is", file=image.path, field="um_per_px", fix="give --um-per-px"
        )
    chosen, other = facts[0], facts[-1]
    _check_positive(chosen, image.path)
    if chosen.contradicts(other):
        raise InputError(
            f"resolution of {chosen.um_per_px:.4g} um/px contradicts {other.um_per_px:.4g} um/px ({other.where})",
            file=image.path,
            field=chosen.where,
            fix="leave out --um-per-px where the image is right, else correct what the image says",
        )
    return chosen.um_per_px, "given" if given is not None else "file"


def _check_positive(fact: Fact, file: Path) -> None:
    if not np.isfinite(fact.um_per_px) or fact.um_per_px <= 0:
        raise InputError(
            "resolution is not a positive number",
            file=file,
            field=fact.where,
            value=fact.um_per_px,
            expected="micrometres per pixel, e.g. 0.5",
        )


def _check_stretch(adata: AnnData, file: Path, *, certain: bool) -> list[str]:
    """Refuse coordinates whose x and y are of different scales, or note it where only the array's shape tells."""
    index = array_of(adata, whole=False)
    steps = array_steps(np.asarray(adata.obsm["spatial"], dtype=float), index) if index is not None else None
    if steps is None or steps.explained < 0.99:
        return []
    row, column = np.linalg.norm(steps.vectors, axis=1)
    if is_visium(index):
        row, column = row * 2 / np.sqrt(3), column * 2
    unequal = max(row, column) / max(min(row, column), 1e-9) - 1
    if unequal <= TOLERANCE:
        return []
    said = f"rows of spots lie {row:.1f} px apart and columns {column:.1f} px, where they should lie equally far"
    if certain and unequal < 0.7:  # beyond, the index may count in half steps
        raise InputError(
            f"coordinates are stretched: {said}",
            file=file,
            field="obsm['spatial']",
            value=[round(float(row), 2), round(float(column), 2)],
            fix="give coordinates, and the image, with x and y of one scale",
        )
    return [f"coordinates may be stretched: {said}"]


def _unknown(loaded: Loaded, file: Path) -> InputError:
    coords, index = np.asarray(loaded.adata.obsm["spatial"], dtype=float), array_of(loaded.adata, whole=False)
    measured = array_pitch(coords, index)
    said = ""
    if measured is not None and measured[0] < VISIUM_PITCH_UM / COARSEST_UM:
        said = f": they lie {measured[0]:.3g} apart, as micrometres, array positions or pixels of a reduced image do"
    elif measured is not None:
        known = (
            f"technology {loaded.technology!r} does not say how far" if loaded.technology else "nothing says how far"
        )
        said = f": spots lie {measured[0]:.1f} px apart, and {known} that is"
    return InputError(
        f"resolution is neither given nor in the files, and the spot pitch does not give it{said}",
        file=file,
        field="um_per_px",
        setting="um_per_px",
    )
