"""Tiles of a stated physical size around spots: cut by region reads, stored as a HEST-style ``.h5``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.files import atomic_path
from histocrypt.tissue.ring import Ring

if TYPE_CHECKING:
    from histocrypt.sections.image import ImageSource
    from histocrypt.sections.section import Section


FEWEST_SHARE = 0.25
"""Share of a tile's pixels that must be real; below, its detail is mostly interpolated."""


def coarse_note(section: Section, *, tile_um: float, tile_px: int) -> str:
    """Say that tiles hold far fewer real pixels than they have; "" where they do not."""
    real = tile_um / section.detail_um
    if real >= FEWEST_SHARE * tile_px:
        return ""
    return (
        f"{section.id}: a tile of {tile_um:g} um spans {real:.0f} real pixels of {section.detail_um:.1f} um, which are "
        f"enlarged to {tile_px}: nuclei cannot be told apart"
    )


def window(coords_px: np.ndarray, *, um_per_px: float, tile_um: float) -> tuple[np.ndarray, float]:
    """Return the top-left corners (n, 2) int64 and the side (float) of the tiles' windows, in full-resolution pixels.

    Corners are whole pixels (as HEST's ``coords`` are); the side need not be.
    """
    side = tile_um / um_per_px
    return np.round(np.asarray(coords_px, dtype=np.float64) - side / 2).astype(np.int64), side


def iter_tiles(
    image: ImageSource, coords_px: np.ndarray, *, um_per_px: float, tile_um: float, tile_px: int
) -> Iterator[np.ndarray]:
    """Yield one tile per spot, in order; only the window of one tile is in memory at a time.

    Windows are resampled with Pillow's Lanczos filter, whose support grows with the reduction (antialiasing); a window
    that already has the right number of pixels is passed on untouched. Outside the image, tiles are white.

    Parameters
    ----------
    image
        Where `read_region` reads from.
    coords_px
        (n, 2) spot centres x, y in pixels of full resolution.
    um_per_px
        Micrometres per full-resolution pixel.
    tile_um
        Side of a tile, micrometres.
    tile_px
        Side of a tile, pixels.

    Yields
    ------
    numpy.ndarray
        (tile_px, tile_px, 3) uint8.
    """
    from PIL import Image

    corners, side = window(coords_px, um_per_px=um_per_px, tile_um=tile_um)
    exact = abs(side - tile_px) < 0.01
    # Lanczos looks three output pixels beyond the window: read that margin, so that edges see their true neighbours.
    margin = 0 if exact else int(np.ceil(3 * max(1.0, side / tile_px)))
    extent = tile_px if exact else int(np.ceil(side)) + 2 * margin
    box = (margin, margin, margin + side, margin + side)
    for x, y in corners.tolist():
        region = image.read_region(x - margin, y - margin, extent, extent)
        if exact:
            yield region
        else:
            tile = Image.fromarray(region).resize((tile_px, tile_px), Image.Resampling.LANCZOS, box=box)
            yield np.asarray(tile)


def write_tiles(
    path: str | Path,
    image: ImageSource,
    barcodes: Sequence[str],
    coords_px: np.ndarray,
    *,
    um_per_px: float,
    tile_um: float,
    tile_px: int,
    attrs: dict[str, Any] | None = None,
    ring: tuple[np.ndarray, np.ndarray] | None = None,
    progress: bool = False,
) -> None:
    """Cut the tiles of a section and write them, one at a time and atomically.

    The file holds ``img`` (n, S, S, 3) uint8 in raw colours, ``barcode`` (n, 1) bytes and ``coords`` (n, 2) top-left
    corners in pixels of full resolution; geometry and ``attrs`` (e.g. section, patient) are attributes. Tiles are
    uncompressed and chunked one by one, so that any of them is read alone and at the speed of the disk.

    ``ring`` are (m, 2) centres of further tiles, pixels, and (k, 2) which spot has which of them in its ring. They go
    to a group ``ring`` with ``img``, ``coords`` and ``pairs``: who reads the spots' tiles does not see them.
    """
    import h5py
    from tqdm.auto import tqdm

    names = np.array([str(barcode).encode() for barcode in barcodes])
    how = {"um_per_px": um_per_px, "tile_um": tile_um}
    bar = {} if progress else {"disable": True}  # else as the environment says

    def cut(into: h5py.Group, centres: np.ndarray, what: str) -> None:
        shape = (len(centres), tile_px, tile_px, 3)
        img = into.create_dataset("img", shape, dtype=np.uint8, chunks=(1, *shape[1:]))
        tiles = iter_tiles(image, centres, tile_px=tile_px, **how)
        for index, tile in enumerate(tqdm(tiles, total=len(centres), desc=what, unit="tile", **bar)):
            img[index] = tile
        into["coords"] = window(centres, **how)[0]

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        cut(file, coords_px, "tiles")
        file["barcode"] = names[:, None]
        if ring is not None and len(ring[0]):
            cut(group := file.create_group("ring"), ring[0], "ring")
            group["pairs"] = ring[1]
        values = {**(attrs or {}), "um_per_px": um_per_px, "tile_um": tile_um, "tile_px": tile_px}
        file.attrs.update(values)


@dataclass(frozen=True)
class Places:
    """Where the tiles of a section lie, and how wide they are."""

    um: np.ndarray
    """(n, 2) centres x, y, micrometres; NaN where nobody knows, as of single patches."""
    tile_um: float
    """Side of a tile."""
    ring: Ring | None = None
    """What else was cut around spots that have few neighbours, if anything."""


def centres_um(coords_px: np.ndarray, *, um_per_px: float, tile_um: float) -> np.ndarray:
    """Return the centres (n, 2), micrometres, of the tiles of (n, 2) spots as they are cut: from whole pixels on."""
    corners, _ = window(coords_px, um_per_px=um_per_px, tile_um=tile_um)
    return _centres(corners, um_per_px, tile_um)


def _centres(corners: np.ndarray, um_per_px: float, tile_um: float) -> np.ndarray:
    return np.asarray(corners, dtype=np.float64) * um_per_px + tile_um / 2


def read_places(path: str | Path, barcodes: Sequence[str] | None = None) -> Places:
    """Return where the tiles of a file lie, in the order asked for (default: as stored); see `write_tiles`."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            um_per_px, tile_um = float(file.attrs["um_per_px"]), float(file.attrs["tile_um"])
            um = _centres(file["coords"][()], um_per_px, tile_um)
            names = [name.decode() for name in np.asarray(file["barcode"]).reshape(-1)]
            ring = None
            if "ring" in file:
                beside, pairs = _centres(file["ring/coords"][()], um_per_px, tile_um), file["ring/pairs"][()]
                ring = Ring(beside, pairs, partial(_ring_tiles, Path(path)))
    except (OSError, KeyError) as error:
        problem = f"lacks the positions of its tiles ({error})"
        raise InputError(problem, file=path, fix="run preprocessing again") from error
    if barcodes is None:
        return Places(um, tile_um, ring)
    position = {name: index for index, name in enumerate(names)}
    chosen = [position[str(name)] for name in barcodes]
    if ring is not None:
        now = np.full(len(names), -1)
        now[chosen] = np.arange(len(chosen))
        spot, tile = now[ring.pairs[:, 0]], ring.pairs[:, 1]
        ring = replace(ring, pairs=np.column_stack([spot, tile])[spot >= 0])
    return Places(um[chosen], tile_um, ring)


@contextmanager
def _ring_tiles(path: Path) -> Iterator[Any]:
    import h5py

    with h5py.File(path, "r") as file:
        yield file["ring/img"]


def read_tiles(path: str | Path, barcodes: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return tiles (n, S, S, 3) uint8 and their barcodes (n,) str, in the order asked for (default: as stored).

    Raises
    ------
    InputError
        If the file cannot be read, is not a tile file, or lacks one of the barcodes.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "img" not in file or "barcode" not in file:
                raise InputError("is not a tile file", file=path, expected="datasets img, barcode and coords")
            stored = np.array([name.decode() for name in np.asarray(file["barcode"]).reshape(-1)], dtype=str)
            img = file["img"]
            if barcodes is None:
                return img[()], stored
            position = {name: index for index, name in enumerate(stored.tolist())}
            wanted = [str(barcode) for barcode in barcodes]
            missing = [name for name in wanted if name not in position]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(wanted)} spots have no tile",
                    file=path,
                    field="barcode",
                    value=missing[0],
                    fix="run preprocessing again",
                )
            tiles = np.empty((len(wanted), *img.shape[1:]), dtype=np.uint8)
            for index, name in enumerate(wanted):
                img.read_direct(tiles, np.s_[position[name]], np.s_[index])
            return tiles, np.array(wanted, dtype=str)
    except OSError as error:
        raise InputError(f"tiles cannot be read ({error})", file=path, fix="run preprocessing again") from error
