"""Lazy access to the pixels of a section: whole images, slide pyramids, and mosaics of patches."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 4_000_000_000
"""A whole image beyond this is refused before it is decoded (12 GB in memory): such images belong in a pyramid."""
MAX_PATCH_PIXELS = 4096 * 4096
KEPT_PATCHES = 64
"""Decoded patches that a mosaic keeps."""
WHITE = 255
SIGNATURE_SIDE = 256
TILE_NAME = re.compile(r"^(?P<section>.+)_(?P<x>-?\d+)_(?P<y>-?\d+)$")
TILE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


class ImageSource(ABC):
    """Pixels of one section, addressed in full resolution; a kind of image adds `read_region` and `thumbnail`."""

    path: Path
    width: int
    height: int
    um_per_px: float | None = None
    """Micrometres per pixel, where the file states it."""
    side: int | None = None
    """Side of the squares around spots that alone have pixels; None: the whole section was scanned."""
    _decoded: np.ndarray | None = None

    @property
    def decoded_mpx(self) -> float:
        """Millions of pixels that reading a window holds in memory beyond the window; 0 where it reads no more."""
        return 0.0

    @abstractmethod
    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window, uint8 (height, width, 3), white outside the image.

        Parameters
        ----------
        x, y
            Top-left corner, full-resolution pixels; may be negative.
        width, height
            Size in full-resolution pixels.
        """

    @abstractmethod
    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, its longer side at most ``max_side``.

        Returns
        -------
        uint8 (h, w, 3), and the scale: thumbnail pixels per full-resolution pixel.
        """

    def covers(self, coords: np.ndarray) -> np.ndarray:
        """Return which points, float (n, 2) x, y in full-resolution pixels, have pixels: bool (n,)."""
        x, y = np.asarray(coords, dtype=float).T
        return (x >= 0) & (y >= 0) & (x < self.width) & (y < self.height)

    def verify(self) -> None:
        """Raise `InputError` where the pixels cannot be decoded."""
        self.thumbnail(SIGNATURE_SIDE)

    def content_hash(self) -> str:
        """Return a hash of what the image shows: the same for a copy under another name or in another lossless file."""
        thumbnail, _ = self.thumbnail(SIGNATURE_SIDE)
        return hashlib.sha256(f"{self.width}x{self.height}".encode() + thumbnail.tobytes()).hexdigest()

    def release(self) -> None:
        """Forget the decoded pixels, if any are kept; they are decoded again when asked for."""
        self._decoded = None

    def _thumbnail_size(self, max_side: int) -> tuple[int, int, float]:
        scale = min(1.0, max_side / max(self.width, self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale)), scale


class ScannedImage(ImageSource):
    """An image with pixels all over; a kind of it adds `_inside` and `thumbnail`."""

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window; see `ImageSource.read_region`."""
        canvas = np.full((height, width, 3), WHITE, dtype=np.uint8)
        x0, y0 = min(max(x, 0), self.width), min(max(y, 0), self.height)
        x1, y1 = max(x0, min(x + width, self.width)), max(y0, min(y + height, self.height))
        if x1 > x0 and y1 > y0:
            canvas[y0 - y : y1 - y, x0 - x : x1 - x] = self._inside(x0, y0, x1, y1)
        return canvas

    @abstractmethod
    def _inside(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return a window that lies in the image, uint8 (y1 - y0, x1 - x0, 3)."""


class WholeImage(ScannedImage):
    """A JPEG, PNG or plain TIFF, decoded whole, once, when first asked for pixels.

    A JPEG's thumbnail is decoded at reduced size (PIL's draft mode), without the whole image in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened(self.path) as image:
            self.width, self.height = image.size
            self._format = image.format
            self.um_per_px = _tiff_um_per_px(image)

    @property
    def decoded_mpx(self) -> float:
        """Millions of pixels: the whole image."""
        return self.width * self.height / 1e6

    @property
    def pixels(self) -> np.ndarray:
        """All pixels, uint8 (height, width, 3)."""
        if self._decoded is None:
            with opened(self.path) as image:
                rgb = as_rgb(image, self.path)
                pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
                for top in range(0, self.height, 512):  # in strips: at once, PIL would copy all pixels twice more
                    strip = rgb.crop((0, top, self.width, min(top + 512, self.height)))
                    pixels[top : top + 512] = np.asarray(strip)
                self._decoded = pixels
        return self._decoded

    def _inside(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self.pixels[y0:y1, x0:x1]

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, its longer side at most ``max_side``, and the scale."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        if self._format == "JPEG":  # always from the file, so that the result does not depend on what was read before
            with opened(self.path) as image:
                image.draft("RGB", (2 * width, 2 * height))
                small = as_rgb(image, self.path).resize((width, height), Image.Resampling.HAMMING)
        else:
            small = Image.fromarray(self.pixels).resize((width, height), Image.Resampling.HAMMING)
        return np.asarray(small), scale


class SlideImage(ScannedImage):
    """A slide pyramid (SVS, NDPI, MRXS, tiled TIFF, ...), read through openslide, never whole."""

    def __init__(self, path: str | Path) -> None:
        import openslide

        self.path = Path(path)
        with self._readable():
            self._slide = openslide.OpenSlide(str(path))
        self.width, self.height = self._slide.dimensions
        mpp = self._slide.properties.get("openslide.mpp-x")
        self.um_per_px = _plausible(float(mpp)) if mpp else None

    def _inside(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return np.asarray(self._level_region(0, x0, y0, x1 - x0, y1 - y0))

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole slide, block by block, its longer side at most ``max_side``, and the scale."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        level = self._slide.get_best_level_for_downsample(1 / scale)
        level_width, level_height = self._slide.level_dimensions[level]
        step = max(1, int(2048 * width / level_width))  # so that a block of the level has about 2048 px a side
        out = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(0, height, step):
            for left in range(0, width, step):
                right, bottom = min(left + step, width), min(top + step, height)
                x0, x1 = left * level_width / width, right * level_width / width
                y0, y1 = top * level_height / height, bottom * level_height / height
                fx, fy = int(x0), int(y0)
                block = self._level_region(
                    level, fx, fy, min(int(np.ceil(x1)), level_width) - fx, min(int(np.ceil(y1)), level_height) - fy
                )
                box = (x0 - fx, y0 - fy, min(x1 - fx, block.width), min(y1 - fy, block.height))
                size = (right - left, bottom - top)
                out[top:bottom, left:right] = np.asarray(block.resize(size, Image.Resampling.HAMMING, box=box))
        return out, scale

    def _level_region(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Return a window of a level (x, y in the level's own pixels) as RGB, white where the slide has no pixels."""
        from PIL import Image

        downsample = self._slide.level_downsamples[level]
        with self._readable():
            region = self._slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        ground = Image.new("RGB", region.size, (WHITE, WHITE, WHITE))
        ground.paste(region, mask=region.getchannel("A"))
        return ground

    @contextmanager
    def _readable(self) -> Iterator[None]:
        import openslide

        try:
            yield
        except (openslide.OpenSlideError, OSError) as error:
            raise unreadable("slide cannot be read", error, file=self.path) from error


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
    ) -> None:
        self.path = Path(path)
        self.coords = np.asarray(coords, dtype=np.int64)
        self.side = int(side)
        self.barcodes = None if barcodes is None else np.asarray(barcodes, dtype=str)
        self.um_per_px = um_per_px
        reach = self.coords.max(axis=0) + self.side
        self.width, self.height = (int(value) for value in (size if size is not None else reach))
        self._load, self.patch = load, lru_cache(KEPT_PATCHES)(self._patch)

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
            barcodes = [_text(name) for name in file["barcode"][:].ravel()] if "barcode" in file else None
            attributes = {**file.attrs, **file["coords"].attrs, **pixels.attrs}
        except KeyError as error:
            raise InputError(
                f"patches file lacks a field ({str(error).strip(chr(39) + chr(34))})",
                file=path,
                expected="coords, barcode, and img or jpeg",
            ) from error
        except OSError as error:
            raise unreadable("patches file cannot be read", error, file=path) from error
        count = len(pixels)
        for field, length in (("coords", len(coords)), ("barcode", count if barcodes is None else len(barcodes))):
            if length != count:
                raise InputError(f"has {length} rows for {count} patches", file=path, field=field)
        if not count:
            raise InputError("patches file holds no patch", file=path, field="jpeg" if encoded else "img", value=0)
        if not encoded and (pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8):
            raise InputError(
                "is not an array of 8-bit RGB patches", file=path, field="img", value=f"{pixels.shape} {pixels.dtype}"
            )
        if barcodes is not None and len(set(barcodes)) < count:
            twice = next(name for number, name in enumerate(barcodes) if name in barcodes[:number])
            raise InputError("names a spot twice", file=path, field="barcode", value=twice)

        def load(index: int) -> object:
            try:
                return pixels[index].tobytes() if encoded else pixels[index]
            except OSError as error:
                raise InputError(
                    f"patch cannot be read ({error})", file=path, field=f"{pixels.name}[{index}]"
                ) from error

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

    def _patch(self, index: int) -> np.ndarray:
        """Return one patch at full resolution, uint8 (side, side, 3); as `patch`, the last ones are kept."""
        from PIL import Image

        patch = _decoded(self._load(index), self._name(index))
        if patch.shape[:2] != (self.side, self.side):
            if patch.shape[0] != patch.shape[1]:
                raise InputError(
                    "patch is not square", file=self._name(index), value=f"{patch.shape[1]} x {patch.shape[0]} px"
                )
            patch = np.asarray(Image.fromarray(patch).resize((self.side, self.side), Image.Resampling.BICUBIC))
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
        digests = sorted(hashlib.sha256(_stored(self._load(index))).digest() for index in range(len(self.coords)))
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def verify(self) -> None:
        """Raise `InputError` where a patch cannot be decoded."""
        for index in range(len(self.coords)):
            _decoded(self._load(index), self._name(index), at_least=1)

    def _name(self, index: int) -> str:
        return f"{self.path}: patch {index if self.barcodes is None else self.barcodes[index]}"


class ScaledImage(ImageSource):
    """An image at hand that is smaller than the one the coordinates refer to.

    Windows are given in full-resolution pixels and enlarged on reading, so that everything else may go on speaking of
    full resolution; there is no more detail in them than the image at hand has.

    Parameters
    ----------
    image
        The image at hand.
    scale
        Its pixels per full-resolution pixel, at most 1.
    """

    def __init__(self, image: ImageSource, scale: float) -> None:
        self.image, self.scale, self.path = image, float(scale), image.path
        self.width, self.height = round(image.width / scale), round(image.height / scale)

    @property
    def decoded_mpx(self) -> float:
        """Millions of pixels: those of the image at hand."""
        return self.image.decoded_mpx

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window, uint8 (height, width, 3), interpolated bilinearly, white outside the image."""
        from PIL import Image

        # One pixel more on each side: interpolation looks at neighbours.
        left, top = int(np.floor(x * self.scale)) - 1, int(np.floor(y * self.scale)) - 1
        right, bottom = int(np.ceil((x + width) * self.scale)) + 1, int(np.ceil((y + height) * self.scale)) + 1
        own = self.image.read_region(left, top, right - left, bottom - top)
        box = (
            x * self.scale - left,
            y * self.scale - top,
            (x + width) * self.scale - left,
            (y + height) * self.scale - top,
        )
        return np.asarray(Image.fromarray(own).resize((width, height), Image.Resampling.BILINEAR, box=box))

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, never enlarged, and the thumbnail's pixels per full-resolution pixel."""
        small, scale = self.image.thumbnail(min(max_side, max(self.image.width, self.image.height)))
        return small, scale * self.scale

    def release(self) -> None:
        """Forget decoded pixels."""
        self.image.release()


def open_image(path: str | Path) -> ImageSource:
    """Open an image with the kind that suits it; pixels are read later.

    Parameters
    ----------
    path
        JPEG, PNG, TIFF, slide pyramid, or an ``.h5`` of patches.

    Raises
    ------
    InputError
        If the file is missing, is no image, or is larger than `MAX_PIXELS` without being a pyramid.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("image is missing", file=path)
    if path.is_dir():
        raise InputError(
            "is a folder, not an image", file=path, expected="an image file, a slide, or patches in an .h5 file"
        )
    if path.suffix.lower() in {".h5", ".hdf5"}:
        return PatchMosaic.from_h5(path)
    if path.suffix.lower() not in {".jpg", ".jpeg", ".png"}:
        import openslide

        if openslide.OpenSlide.detect_format(str(path)) is not None:
            return SlideImage(path)
    return WholeImage(path)


@contextmanager
def opened(file: object, *, name: str | Path | None = None, max_pixels: int = MAX_PIXELS) -> Iterator[Image]:
    """Open an image with PIL; every way in which it can be unreadable is an `InputError` that names ``name``."""
    from PIL import Image, UnidentifiedImageError

    name = file if name is None else name
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"image has more than {max_pixels:,} pixels",
            file=name,
            fix="convert it to a tiled pyramid, e.g. with vips tiffsave",
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            "is not an image that can be read", file=name, expected="JPEG, PNG, TIFF or a slide format of openslide"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable("image cannot be decoded", error, file=name) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def as_rgb(image: Image, name: str | Path) -> Image:
    """Return an image as 8-bit RGB; transparency becomes white; images of other depths are refused."""
    from PIL import Image

    if image.mode in {"F", "I"} or image.mode.startswith("I;"):
        raise InputError(
            "image is not 8-bit colour", file=name, field="mode", value=image.mode, expected="an 8-bit RGB H&E image"
        )
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, (WHITE, WHITE, WHITE))
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _tiff_um_per_px(image: Image) -> float | None:
    """Micrometres per pixel by the TIFF resolution tags, where they speak of a microscope and not of a printer."""
    if image.format != "TIFF":
        return None
    tags = image.tag_v2
    per_unit, unit = tags.get(282), {2: 25_400.0, 3: 10_000.0}.get(tags.get(296, 2))
    return _plausible(unit / float(per_unit)) if per_unit and unit else None


def _plausible(um_per_px: float) -> float | None:
    return um_per_px if 0.05 <= um_per_px <= 10 else None


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
