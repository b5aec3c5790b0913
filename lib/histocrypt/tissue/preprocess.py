"""One section, from checked files to what models read: mask, alignment, spots kept, stain statistics, tiles."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.figure_style import CYCLE, bare, canvas, style
from histocrypt.files import atomic_path, without_folders
from histocrypt.machine import peak_gib
from histocrypt.spatial import FEW, few_around, spot_pitch
from histocrypt.tissue import stain
from histocrypt.tissue.alignment import Alignment, align
from histocrypt.tissue.artefacts import looked_over
from histocrypt.tissue.mask import SMALLEST_PIECE_UM2, spot_tissue_share, tissue_mask
from histocrypt.tissue.ring import lay_rings
from histocrypt.tissue.tiles import centres_um, coarse_note, read_tiles, write_tiles

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from histocrypt.options import Preprocessing
    from histocrypt.sections.image import ImageSource
    from histocrypt.sections.section import Section

MASK_UM_PER_PX = 8.0
"""Resolution of the thumbnail on which tissue is found."""
MASK_MAX_SIDE = 4096
PIECE_OF_PATCH = 0.25
"""Tissue in a patch that lies apart ends where the patch does: less than this share of one is dust there."""
_WINDOWS, _WINDOW_PX = 2000, 12  # many small windows: neighbouring pixels are alike


@dataclass
class PreprocessReport:
    """What preprocessing did to one section."""

    section: str
    patient: str
    spots_in: int
    """Spots in the files, before the reader dropped any."""
    spots_out: int
    dropped: dict[str, int]
    """Reason -> spots, the reader's reasons first."""
    alignment: Alignment
    um_per_px: float
    um_per_px_source: str
    detail_um: float
    """Micrometres per pixel of the image at hand, which may be a reduced one."""
    spot_diameter_um: float
    tissue_share: float
    """Share of the image that is tissue."""
    stain_note: str
    """Empty, or why the section's own stain vectors could not be estimated."""
    notes: list[str] = field(default_factory=list)
    """What is worth attention: the reader's notes, and tiles of too few real pixels."""
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float | None = None
    """Peak resident memory of this process so far, where the system tells."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a later stage may want to know, as plain values (also kept in ``uns["preprocessing"]``)."""
        kept = ("um_per_px", "um_per_px_source", "detail_um", "spot_diameter_um", "spots_in", "spots_out", "dropped")
        values = {name: getattr(self, name) for name in (*kept, "tissue_share", "stain_note")}
        return values | {"alignment": self.alignment.to_dict()}

    def words(self) -> str:
        """Say in one sentence how many spots are kept, and whether they were moved."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        shift = self.alignment
        moved = (
            f"they were moved by {shift.dx_um:.0f}, {shift.dy_um:.0f} µm" if shift.applied else "they were not moved"
        )
        kept = f"{self.section} keeps {self.spots_out} of {self.spots_in} spots" + (f" ({dropped})" if dropped else "")
        return f"{kept}; {moved}, and tissue fills {self.tissue_share:.0%} of the image."

    def as_row(self) -> dict[str, Any]:
        """Return one row of a table that people read."""
        return {
            "patient": self.patient,
            "spots in": self.spots_in,
            "spots kept": self.spots_out,
            "dropped": ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none",
            "µm/px": f"{self.um_per_px:.4f} ({self.um_per_px_source})",
            "shift µm": f"{self.alignment.dx_um:.0f}, {self.alignment.dy_um:.0f}" if self.alignment.applied else "none",
            "alignment": self.alignment.reason,
            "gain": f"{self.alignment.gain:.3f}",
            "confidence": f"{self.alignment.confidence:.2f}",
            "stain": self.stain_note or "estimated",
            "notes": without_folders(" ".join(self.notes)) or "none",
            "seconds": f"{sum(self.seconds.values()):.1f}",
            "peak MiB": "unknown" if self.peak_mib is None else f"{self.peak_mib:.0f}",
        }


def preprocess_section(
    section: Section,
    *,
    settings: Preprocessing,
    section_path: str | Path,
    tiles_path: str | Path,
    stain_path: str | Path,
    seed: int = 0,
    study_hash: str = "",
    around_um: float = 0.0,
    progress: bool = True,
) -> PreprocessReport:
    """Clean one section and write its three artifacts, each atomically.

    Nothing here is learned from another section, and counts are only used to drop near-empty spots.

    Parameters
    ----------
    section
        The checked section, with its image.
    settings
        The study's ``preprocessing`` part.
    section_path, tiles_path, stain_path
        Where the cleaned ``.h5ad``, the tiles ``.h5`` and the stain statistics go.
    seed
        Seed of the pixel sample and of the alignment's bootstrap.
    study_hash
        Kept in the tile file, if given.
    around_um
        How far surroundings reach that a model reads (`tissue.ring.ring_reach`): around spots of which fewer than
        `spatial.FEW` others were kept there, rings of tiles are cut, too. 0: none. A mosaic of patches has no image
        around its spots, and no rings.
    progress
        Show a progress bar on stderr.

    Raises
    ------
    InputError
        If the section has no image, its image shows no tissue, or no spot remains.
    """
    import h5py

    seconds: dict[str, float] = {}
    um_per_px, image = section.um_per_px, section.picture()
    diameter_um = spot_diameter_um(section)
    with _timed(seconds, "image and mask"):
        mask, scale = find_tissue(image, um_per_px=um_per_px)
        if not mask.any():
            raise InputError(
                "the image shows no tissue",
                file=image.path,
                field=section.id,
                fix="check that the image belongs to the section",
            )
    with _timed(seconds, "alignment"):
        alignment = _align(section, mask, scale, diameter_um, settings, seed)
        coords = alignment.apply(section.coords, um_per_px)
    with _timed(seconds, "spots"):
        share = spot_tissue_share(mask, coords, scale, diameter_um / um_per_px)
        counted = section.adata.n_vars > 0
        totals = np.asarray(section.adata.X.sum(axis=1), dtype=np.float64).reshape(-1)
        totals = totals if counted else np.full(section.n_spots, np.nan)  # not known, which is not zero
        off_tissue = share < settings.min_tissue
        shallow = ~off_tissue & (totals < settings.min_counts)
        kept = ~(off_tissue | shallow)
        dropped = {reason: int(count) for reason, count in section.dropped.items()}
        for reason, gone in (("off tissue", off_tissue), ("low depth", shallow)):
            if gone.any():
                dropped[reason] = dropped.get(reason, 0) + int(gone.sum())
        if not kept.any():
            counted = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise InputError(
                f"no spot of {section.id} remains ({counted})",
                file=section.file,
                fix="check image and coordinates, or lower preprocessing.min_tissue and preprocessing.min_counts",
            )
    with _timed(seconds, "stain"):
        pixels = sample_tissue_pixels(image, mask, scale, seed=seed)
        statistics = stain.estimate(pixels)
    coarse = coarse_note(section, tile_um=settings.tile_um, tile_px=settings.tile_px)
    report = PreprocessReport(
        section=section.id,
        patient=section.patient,
        spots_in=int(section.n_spots + sum(section.dropped.values())),
        spots_out=int(kept.sum()),
        dropped=dropped,
        alignment=alignment,
        um_per_px=float(um_per_px),
        um_per_px_source=section.um_per_px_source,
        detail_um=float(section.detail_um),
        spot_diameter_um=float(diameter_um),
        tissue_share=float(mask.mean()),
        stain_note=statistics.note,
        notes=[*section.notes, *([f"{coarse}."] if coarse else [])],
        seconds=seconds,
    )
    cleaned = _clean(section, kept, coords, share, totals, report)
    size = {"um_per_px": um_per_px, "tile_um": settings.tile_um}
    ring = None
    if around_um:
        least = max(settings.min_tissue, 1e-6)
        places = {"mask": mask, "scale": scale, "diameter_um": diameter_um, "least": least}
        ring, note = _rings(section, centres_um(coords[kept], **size), around_um, **places)
        report.notes += [note] if note else []
    with _timed(seconds, "tiles"):
        attrs = {"section": section.id, "patient": section.patient, "study_hash": study_hash}
        write_tiles(
            tiles_path,
            image,
            cleaned.obs_names,
            cleaned.obsm["spatial"],
            **size,
            tile_px=settings.tile_px,
            attrs=attrs,
            ring=ring,
            progress=progress,
        )
    with _timed(seconds, "artefacts"), h5py.File(tiles_path, "r") as file:
        looked = looked_over(file["img"], um_per_px=settings.tile_um / settings.tile_px)
        cleaned.obs[list(looked)] = looked.to_numpy()
    with _timed(seconds, "write"):
        statistics.save(stain_path)
        with atomic_path(section_path) as temporary:
            cleaned.write_h5ad(temporary)
    peak = peak_gib()
    report.peak_mib = None if peak is None else 1024 * peak
    image.release()  # a study's sections must not pile up in memory
    return report


def _rings(
    section: Section,
    um: np.ndarray,
    around_um: float,
    *,
    mask: np.ndarray,
    scale: float,
    diameter_um: float,
    least: float,
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Return the rings around the (n, 2) spots, micrometres, as `write_tiles` takes them; and what is to be said."""
    few, um_per_px = len(few_around(um, around_um)), section.um_per_px
    if not few:
        return None, ""
    told = f"{section.id}: {few} of {len(um)} spots have fewer than {FEW} others within {around_um:g} µm"
    if section.image.side is not None:
        return None, f"{told}, and patches show nothing around them."

    def is_tissue(places: np.ndarray) -> np.ndarray:
        return spot_tissue_share(mask, places / um_per_px, scale, diameter_um / um_per_px) >= least

    places, pairs = lay_rings(um, around_um, is_tissue=is_tissue)
    return (places / um_per_px, pairs), f"{told}; their surroundings are read from {len(places)} more tiles, too."


def find_tissue(image: ImageSource, *, um_per_px: float) -> tuple[np.ndarray, float]:
    """Return the tissue mask of an image on a thumbnail (h, w) bool, and thumbnail pixels per image pixel."""
    longest = max(image.width, image.height)
    side = int(np.clip(longest * um_per_px / MASK_UM_PER_PX, 256, MASK_MAX_SIDE))
    thumbnail, scale = image.thumbnail(min(side, longest))
    patch_um2 = np.inf if image.side is None else (image.side * um_per_px) ** 2
    smallest = min(SMALLEST_PIECE_UM2, PIECE_OF_PATCH * patch_um2)
    return tissue_mask(thumbnail, um_per_px=um_per_px / scale, smallest_um2=smallest), scale


def sample_tissue_pixels(image: ImageSource, mask: np.ndarray, scale: float, *, seed: int) -> np.ndarray:
    """Return (n, 3) uint8 pixels at full resolution from small windows all over the tissue; seeded, memory bounded."""
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(mask)
    chosen = rng.choice(len(rows), size=_WINDOWS)
    centres = (np.column_stack([columns[chosen], rows[chosen]]) + rng.random((_WINDOWS, 2))) / scale
    corners = np.floor(centres - _WINDOW_PX / 2).astype(int)
    offsets = (np.arange(_WINDOW_PX) + 0.5) * scale
    samples = []
    for x, y in corners[np.lexsort((corners[:, 0], corners[:, 1]))].tolist():  # from top to bottom: kind to pyramids
        inside_x = np.floor(x * scale + offsets).astype(int)
        inside_y = np.floor(y * scale + offsets).astype(int)
        known = np.ix_(np.clip(inside_y, 0, mask.shape[0] - 1), np.clip(inside_x, 0, mask.shape[1] - 1))
        samples.append(image.read_region(x, y, _WINDOW_PX, _WINDOW_PX)[mask[known]])
    return np.concatenate(samples)


def spot_diameter_um(section: Section) -> float:
    """Return the diameter of a spot in micrometres: as the file says, else half the pitch (as of ST and Visium)."""
    pitch_um = spot_pitch(section.coords, alone=np.inf) * section.um_per_px
    for library in section.adata.uns.get("spatial", {}).values():
        given = (library.get("metadata") or {}).get("spot_diameter_um")
        if given is None:
            pixels = (library.get("scalefactors") or {}).get("spot_diameter_fullres")
            given = None if pixels is None else float(pixels) * section.um_per_px
        # A diameter beyond the pitch belongs to another resolution: believe the coordinates. Squares touch.
        if given is not None and 0 < float(given) <= 1.01 * pitch_um:
            return float(given)
    return pitch_um / 2 if np.isfinite(pitch_um) else 55.0


def _align(
    section: Section, mask: np.ndarray, scale: float, diameter_um: float, settings: Preprocessing, seed: int
) -> Alignment:
    if not settings.align:
        return Alignment(reason="left alone: switched off in the study")
    if section.image.side is not None:
        # Pixels exist around the spots as given only, so that any other place looks empty.
        return Alignment(reason="left alone: the image is a mosaic of patches cut around the spots")
    return align(
        mask,
        scale,
        section.coords,
        um_per_px=section.um_per_px,
        spot_diameter_um=diameter_um,
        max_shift_um=settings.align_max_shift_um,
        max_rotation_deg=settings.align_rotation_deg,
        max_scale=settings.align_scale,
        seed=seed,
    )


def _clean(
    section: Section,
    kept: np.ndarray,
    coords: np.ndarray,
    share: np.ndarray,
    totals: np.ndarray,
    report: PreprocessReport,
) -> AnnData:
    """Return the section of kept spots, in the order given, with aligned coordinates and what was done to it."""
    from scipy.sparse import csr_matrix

    cleaned = section.adata[kept].copy()
    cleaned.X = csr_matrix(cleaned.X)
    cleaned.obs["section"] = section.id
    cleaned.obs["patient"] = section.patient
    cleaned.obs["total_counts"] = totals[kept]
    cleaned.obs["n_genes"] = np.asarray((cleaned.X > 0).sum(axis=1)).reshape(-1).astype(np.int64)
    cleaned.obs["tissue_share"] = share[kept]
    cleaned.obs.index.name = "barcode"
    cleaned.obsm["spatial_as_given"] = section.coords[kept].astype(np.float64)
    cleaned.obsm["spatial"] = coords[kept]
    dropped = {reason.replace("/", "-"): count for reason, count in report.dropped.items()}  # HDF5 names
    cleaned.uns["preprocessing"] = {**report.to_dict(), "dropped": dropped}
    return cleaned


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 3)


# Pictures of what preprocessing did to one section; for the notebook, not for general use.


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

    kept = ad.read_h5ad(cleaned, backed="r").obsm["spatial"]
    thumbnail, scale = section.image.thumbnail(max_side)
    with style():
        figure, axes = canvas(1, 2, figsize=(7.4, 3.9))
        for axis, coords, title in (
            (axes[0], section.coords, f"as given: {section.n_spots} spots"),
            (axes[1], kept, f"as kept: {len(kept)} spots, outline of the tissue mask"),
        ):
            axis.imshow(thumbnail)
            axis.scatter(*(coords * scale).T, s=10, facecolors="none", edgecolors=CYCLE[0], linewidths=0.8)
            axis.set_title(title, fontsize=9)
            bare(axis)
        axes[1].contour(
            tissue_mask(thumbnail, um_per_px=section.um_per_px / scale), levels=[0.5], colors=CYCLE[1], linewidths=0.8
        )
    return figure


def tiles(tiles_path: Path, stain_path: Path, *, method: str, n: int = 8, seed: int = 0) -> Figure:
    """Draw ``n`` random tiles as scanned (top) and normalised to the default reference (bottom)."""
    images, names = read_tiles(tiles_path)
    chosen = np.sort(np.random.default_rng(seed).choice(len(names), size=min(n, len(names)), replace=False))
    images = images[chosen]
    source = stain.StainStatistics.load(stain_path)
    normalised = stain.normalise(images, source=source, reference=stain.DEFAULT_REFERENCE, method=method)
    with style():
        figure, axes = canvas(2, len(images), figsize=(7.4, 2 * 7.4 / max(len(images), 4)), squeeze=False)
        for row, shown, name in zip(axes, (images, normalised), ("as scanned", "normalised"), strict=True):
            row[0].set_ylabel(name, fontsize=8.5)
            for axis, image in zip(row, shown, strict=True):
                axis.imshow(image)
                bare(axis)
    return figure
