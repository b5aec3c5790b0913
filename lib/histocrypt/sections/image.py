"""Lazy access to the pixels of a section: whole images, slide pyramids, and mosaics of patches."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 4_000_000_000
"""A whole image beyond this is refused before it is decoded (12 GB in memory): such images belong in a pyramid."""

WHITE = 255
SIGNATURE_SIDE = 256


class ImageSource(ABC):
    """Pixels of one section, addressed in full resolution."""

    path: Path
    width: int
    height: int

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

    def _thumbnail_size(self, max_side: int) -> tuple[int, int, float]:
        scale = min(1.0, max_side / max(self.width, self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale)), scale

    def _window(self, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, slice, slice, int, int, int, int]:
        """Return a white canvas, where the image lies on it, and the part of the image that does (x0, y0, x1, y1)."""
        canvas = np.full((height, width, 3), WHITE, dtype=np.uint8)
        x0, y0 = min(max(x, 0), self.width), min(max(y, 0), self.height)
        x1, y1 = max(x0, min(x + width, self.width)), max(y0, min(y + height, self.height))
        return canvas, slice(y0 - y, y1 - y), slice(x0 - x, x1 - x), x0, y0, x1, y1


class WholeImage(ImageSource):
    """A JPEG, PNG or plain TIFF, decoded whole, once, when first asked for pixels.

    A JPEG's thumbnail is decoded at reduced size (PIL's draft mode), without the whole image in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pixels: np.ndarray | None = None
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
        if self._pixels is None:
            with opened(self.path) as image:
                rgb = as_rgb(image, self.path)
                pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
                for top in range(0, self.height, 512):  # in strips: at once, PIL would copy all pixels twice more
                    strip = rgb.crop((0, top, self.width, min(top + 512, self.height)))
                    pixels[top : top + 512] = np.asarray(strip)
                self._pixels = pixels
        return self._pixels

    def release(self) -> None:
        """Forget the decoded pixels; they are decoded again when asked for."""
        self._pixels = None

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window, uint8 (height, width, 3), white outside the image."""
        canvas, rows, columns, x0, y0, x1, y1 = self._window(x, y, width, height)
        canvas[rows, columns] = self.pixels[y0:y1, x0:x1]
        return canvas

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


class SlideImage(ImageSource):
    """A slide pyramid (SVS, NDPI, MRXS, tiled TIFF, ...), read through openslide, never whole."""

    def __init__(self, path: str | Path) -> None:
        import openslide

        self.path = Path(path)
        with self._readable():
            self._slide = openslide.OpenSlide(str(path))
        self.width, self.height = self._slide.dimensions
        mpp = self._slide.properties.get("openslide.mpp-x")
        self.um_per_px = _plausible(float(mpp)) if mpp else None

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window, uint8 (height, width, 3), white outside the image."""
        canvas, rows, columns, x0, y0, x1, y1 = self._window(x, y, width, height)
        if x1 > x0 and y1 > y0:
            canvas[rows, columns] = np.asarray(self._level_region(0, x0, y0, x1 - x0, y1 - y0))
        return canvas

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
            msg = f"slide cannot be read, it may be truncated ({error})"
            raise InputError(msg, file=self.path, fix="copy it again from its source") from error


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
        msg = "image is missing"
        raise InputError(msg, file=path)
    if path.is_dir():
        msg = "is a folder, not an image"
        raise InputError(msg, file=path, expected="an image file, a slide, or patches in an .h5 file")
    if path.suffix.lower() in {".h5", ".hdf5"}:
        from histocrypt.sections.patches import PatchMosaic

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
        msg = f"image has more than {max_pixels:,} pixels"
        raise InputError(msg, file=name, fix="convert it to a tiled pyramid, e.g. with vips tiffsave") from error
    except UnidentifiedImageError as error:
        msg = "is not an image that can be read"
        raise InputError(msg, file=name, expected="JPEG, PNG, TIFF or a slide format of openslide") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        msg = f"image cannot be decoded, it may be truncated ({error})"
        raise InputError(msg, file=name, fix="copy it again from its source") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def as_rgb(image: Image, name: str | Path) -> Image:
    """Return an image as 8-bit RGB; transparency becomes white; images of other depths are refused."""
    from PIL import Image

    if image.mode in {"F", "I"} or image.mode.startswith("I;"):
        msg = "image is not 8-bit colour"
        raise InputError(msg, file=name, field="mode", value=image.mode, expected="an 8-bit RGB H&E image")
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
