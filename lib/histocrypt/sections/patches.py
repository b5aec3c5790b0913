"""A section whose image exists only as patches around its spots: mosaicked on demand."""

from __future__ import annotations

import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.image import WHITE, ImageSource, as_rgb, opened

MAX_PATCH_PIXELS = 4096 * 4096
TILE_NAME = re.compile(r"^(?P<section>.+)_(?P<x>-?\d+)_(?P<y>-?\d+)$")
TILE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


class PatchMosaic(ImageSource):
    """Patches with known places, read as if they were one image.

    Where patches overlap, a window takes each pixel from the patch whose centre is nearest to the window's centre: a
    window around a spot is the spot's own patch, to the bit.

    Parameters
    ----------
    path
        The file or folder that errors name.
    coords
        Top-left corners, int (n, 2): x, y in full-resolution pixels.
    side
        Side of the square that one patch covers, full-resolution pixels.
    load
        Returns patch ``i`` as encoded bytes, as a path, or as uint8 (h, w, 3).
    barcodes
        Barcodes of the patches' spots, where known.
    size
        Width and height of the whole image, where known; else just large enough for all patches.
    cache
        Number of decoded patches that are kept.
    """

    def __init__(
        self,
        path: str | Path,
        coords: np.ndarray,
        side: int,
        load: Callable[[int], object],
        *,
        barcodes: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        um_per_px: float | None = None,
        cache: int = 64,
    ) -> None:
        self.path = Path(path)
        self.coords = np.asarray(coords, dtype=np.int64)
        self.side = int(side)
        self.barcodes = None if barcodes is None else np.asarray(barcodes, dtype=str)
        self.um_per_px = um_per_px
        reach = self.coords.max(axis=0) + self.side
        self.width, self.height = (int(value) for value in (size if size is not None else reach))
        self._load, self._cache, self._kept = load, OrderedDict(), cache

    @classmethod
    def from_h5(cls, path: str | Path, *, size: tuple[int, int] | None = None, side: int | None = None) -> PatchMosaic:
        """Open a patches file.

        Parameters
        ----------
        path
            HDF5 with ``coords`` (n, 2; top-left, full-resolution pixels), ``barcode``, and either ``img``
            (n, S, S, 3; HEST) or ``jpeg`` (n; one encoded image each).
        size
            Width and height of the whole image, where known.
        side
            Full-resolution pixels that a patch covers; default: as its attributes say, else its own pixels.
        """
        import h5py

        path = Path(path)
        try:
            file = h5py.File(path, "r")
            encoded = "jpeg" in file
            pixels = file["jpeg" if encoded else "img"]
            coords = np.asarray(file["coords"][:]).reshape(-1, 2)
            barcodes = [_text(value) for value in file["barcode"][:].ravel()] if "barcode" in file else None
            attributes = {**file.attrs, **file["coords"].attrs, **pixels.attrs}
        except KeyError as error:
            msg = f"patches file lacks a field ({str(error).strip(chr(39) + chr(34))})"
            raise InputError(msg, file=path, expected="coords, barcode, and img or jpeg") from error
        except OSError as error:
            msg = f"patches file cannot be read, it may be truncated ({error})"
            raise InputError(msg, file=path, fix="copy it again from its source") from error
        count = len(pixels)
        for field, length in (("coords", len(coords)), ("barcode", count if barcodes is None else len(barcodes))):
            if length != count:
                msg = f"has {length} rows for {count} patches"
                raise InputError(msg, file=path, field=field)
        if not count:
            msg = "patches file holds no patch"
            raise InputError(msg, file=path, field="jpeg" if encoded else "img", value=0)
        if not encoded and (pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8):
            msg = "is not an array of 8-bit RGB patches"
            raise InputError(msg, file=path, field="img", value=f"{pixels.shape} {pixels.dtype}")
        if barcodes is not None and len(set(barcodes)) < count:
            msg = "names a spot twice"
            raise InputError(msg, file=path, field="barcode", value=_first_repeat(barcodes))

        def load(index: int) -> object:
            try:
                return pixels[index].tobytes() if encoded else pixels[index]
            except OSError as error:
                msg = f"patch cannot be read ({error})"
                raise InputError(msg, file=path, field=f"{pixels.name}[{index}]") from error

        own = _decoded(load(0), f"{path}: patch 0").shape[0] if encoded else int(pixels.shape[1])
        stated = next((attributes[key] for key in ("patch_size_level0", "patch_size_src") if key in attributes), None)
        um = attributes.get("pixel_size_um")
        return cls(
            path,
            coords,
            side or (int(stated) if stated is not None else own),
            load,
            barcodes=barcodes,
            size=size,
            um_per_px=float(um) if um is not None and stated is None else None,
        )

    @classmethod
    def from_tiles(
        cls,
        folder: str | Path,
        tiles: Mapping[str, Path],
        centres: Mapping[str, tuple[float, float]],
        *,
        size: tuple[int, int] | None = None,
    ) -> PatchMosaic:
        """Make a mosaic of image files, one a spot.

        Parameters
        ----------
        tiles
            Barcode -> tile file.
        centres
            Barcode -> spot centre x, y in full-resolution pixels, for every barcode of ``tiles``.
        """
        barcodes = sorted(tiles)
        files = [tiles[barcode] for barcode in barcodes]
        with opened(files[0], max_pixels=MAX_PATCH_PIXELS) as first:
            side = first.size[0]
        corners = np.array([np.round(np.asarray(centres[barcode]) - side / 2) for barcode in barcodes], dtype=np.int64)
        return cls(folder, corners, side, lambda index: files[index], barcodes=barcodes, size=size)

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return len(self.coords)

    def patch(self, index: int) -> np.ndarray:
        """Return one patch at full resolution, uint8 (side, side, 3)."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        from PIL import Image

        patch = _decoded(self._load(index), self._name(index))
        if patch.shape[:2] != (self.side, self.side):
            if patch.shape[0] != patch.shape[1]:
                msg = "patch is not square"
                raise InputError(msg, file=self._name(index), value=f"{patch.shape[1]} x {patch.shape[0]} px")
            resized = Image.fromarray(patch).resize((self.side, self.side), Image.Resampling.BICUBIC)
            patch = np.asarray(resized)
        self._cache[index] = patch
        while len(self._cache) > self._kept:
            self._cache.popitem(last=False)
        return patch

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window, uint8 (height, width, 3), white where no patch lies."""
        canvas = np.full((height, width, 3), WHITE, dtype=np.uint8)
        empty = np.ones((height, width), dtype=bool)
        left, top = self.coords.T
        near = np.flatnonzero((left < x + width) & (left + self.side > x) & (top < y + height) & (top + self.side > y))
        offsets = self.coords[near] + self.side / 2 - (x + width / 2, y + height / 2)
        for index in near[np.argsort((offsets**2).sum(axis=1), kind="stable")]:
            dx, dy = self.coords[index] - (x, y)
            rows = slice(max(dy, 0), min(dy + self.side, height))
            columns = slice(max(dx, 0), min(dx + self.side, width))
            wanted = empty[rows, columns]
            if not wanted.any():
                continue
            part = self.patch(int(index))[rows.start - dy : rows.stop - dy, columns.start - dx : columns.stop - dx]
            np.copyto(canvas[rows, columns], part, where=wanted[..., None])
            empty[rows, columns] = False
            if not empty.any():
                break
        return canvas

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return all patches in their places, decoded small one at a time, on white, and the scale."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        out = np.full((height, width, 3), WHITE, dtype=np.uint8)
        for index, corner in enumerate(self.coords):
            # Only thumbnail pixels that lie wholly in the patch, each from exactly the pixels below it.
            first = np.maximum(np.ceil(corner * scale), 0).astype(int)
            last = np.minimum(np.floor((corner + self.side) * scale), (width, height)).astype(int)
            if (last <= first).any():
                continue
            patch = _decoded(self._load(index), self._name(index), at_least=round(2 * self.side * scale))
            zoom = patch.shape[0] / self.side
            box = np.clip(np.concatenate([first / scale - corner, last / scale - corner]) * zoom, 0, patch.shape[0])
            small = Image.fromarray(patch).resize(tuple(last - first), Image.Resampling.HAMMING, box=tuple(box))
            out[first[1] : last[1], first[0] : last[0]] = np.asarray(small)
        return out, scale

    def covers(self, coords: np.ndarray) -> np.ndarray:
        """Return which points, float (n, 2), lie in some patch: bool (n,)."""
        points = np.asarray(coords, dtype=float)
        covered = np.zeros(len(points), dtype=bool)
        for corner in self.coords:
            covered |= ((points >= corner) & (points < corner + self.side)).all(axis=1)
        return covered

    def content_hash(self) -> str:
        """Return a hash of all patches as stored, whatever their order."""
        digests = sorted(hashlib.sha256(_stored(self._load(index))).digest() for index in range(self.n_patches))
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def verify(self) -> None:
        """Raise `InputError` where a patch cannot be decoded."""
        for index in range(self.n_patches):
            _decoded(self._load(index), self._name(index), at_least=1)

    def _name(self, index: int) -> str:
        return f"{self.path}: patch {index if self.barcodes is None else self.barcodes[index]}"


def tiles_in(folder: Path) -> dict[Path, tuple[str, int, int]]:
    """Return the tiles below a folder: file -> (section, x, y) as their names ``<section>_<x>_<y>.*`` say."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = TILE_NAME.match(file.stem)
        if name and file.suffix.lower() in TILE_SUFFIXES:
            found[file] = (name["section"], int(name["x"]), int(name["y"]))
    return found


def _decoded(stored: object, name: str, *, at_least: int | None = None) -> np.ndarray:
    """Decode a stored patch; ``at_least``: a JPEG may be decoded smaller, down to this side."""
    if isinstance(stored, np.ndarray):
        return stored
    file = io.BytesIO(stored) if isinstance(stored, bytes) else stored
    with opened(file, name=name, max_pixels=MAX_PATCH_PIXELS) as image:
        if at_least is not None and image.format == "JPEG":
            image.draft("RGB", (at_least, at_least))
        return np.asarray(as_rgb(image, name))


def _stored(stored: object) -> bytes:
    if isinstance(stored, bytes):
        return stored
    return stored.tobytes() if isinstance(stored, np.ndarray) else Path(stored).read_bytes()


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _first_repeat(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))
