"""Pixels of one section, addressed in full resolution: what every kind of image offers, and what is asked of all.

How large a pixel is, which way up the image lies, and whether it shows colours of H&E at all, is the same question for
every format; it is answered here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError, unreadable
from histocrypt.files import regular

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 4_000_000_000
"""A whole image beyond this is refused before it is decoded (12 GB in memory): such images belong in a pyramid."""
MAX_PACKED = 2**28
"""Bytes that a picture packed by gzip may have: it is unpacked in memory whenever it is read."""
WHITE = 255
SIGNATURE_SIDE = 256
SAME_AXES = 0.01
"""Largest relative difference of a pixel's width and height."""
PLAUSIBLE_UM = (0.05, 10.0)
"""Micrometres per pixel of microscopes; a printer's 72, 96 or 300 dots per inch lie far beyond."""
UM = {
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-6),
    **dict.fromkeys(("\u00e5", "\u212b", "angstrom"), 1e-4),
    **dict.fromkeys(("in", "inch", "inches"), 25_400.0),
}
"""Micrometres per unit of length, as OME-XML, OME-Zarr and ImageJ write it, in lower case."""
GREY = 3
"""Colour channels that differ by no more than this everywhere make a grey picture; a JPEG's rounding is smaller."""
LEAST_CONTRAST = 16
BAND_PIXELS = 8_000_000
"""Pixels that are read at a time where a whole level is gone through."""
DARK, BRIGHT, BRIGHT_SHARE = 64, 128, 0.002
"""Light comes through a stained section, so some of it is pale; fluorescence lies on black."""
GREENEST_BY, GREENEST_SHARE = 20, 0.5
"""Colour that counts, and the share of it that green may lead: it leads nowhere on the sections at hand."""


class ImageSource(ABC):
    """Pixels of one section, addressed in full resolution; a kind of image adds `read_region` and `thumbnail`."""

    path: Path
    width: int
    height: int
    um_per_px: float | None = None
    """Micrometres per pixel, where the file states it."""
    um_from: str = ""
    """Where the file states it, in a few words."""
    orientation: int = 1
    """How what is shown was turned from what is stored, 1 (not at all) to 8, as EXIF and TIFF number it."""
    notes: tuple[str, ...] = ()
    """Clauses on what had to be guessed of the pixels, and on what was done to them."""
    side: int | None = None
    """Side of the squares around spots that alone have pixels; None: the whole section was scanned."""
    _decoded: np.ndarray | None = None

    @property
    def um_field(self) -> str:
        """How errors and origins call the place of ``um_per_px``."""
        return f"resolution of {self.path.name}" + (f" ({self.um_from})" if self.um_from else "")

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

    @cached_property
    def signature(self) -> tuple[np.ndarray, float]:
        """The thumbnail that the image is known and judged by, and its scale; made once, not to be written to."""
        return self.thumbnail(SIGNATURE_SIDE)

    def verify(self) -> None:
        """Raise `InputError` where the pixels cannot be decoded, or show no stained section: see `check_colours`."""
        check_colours(self.signature[0], self.path)

    def content_hash(self) -> str:
        """Return a hash of what the image shows: the same for a copy under another name or in another lossless file."""
        thumbnail, _ = self.signature
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


class LevelledImage(ScannedImage):
    """An image of one or more levels, each read window by window; a kind of it sets ``levels`` and adds `_level`."""

    levels: list[tuple[int, int]]
    """Width and height of each level, full resolution first."""

    @abstractmethod
    def _level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return a window that lies in a level, in its own pixels, uint8 (y1 - y0, x1 - x0, 3)."""

    def _inside(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._level(0, x0, y0, x1, y1)

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, a band of rows at a time, its longer side at most ``max_side``, and the scale.

        It is what PIL makes of the whole level at once, to the bit: PIL too shrinks rows first and columns then.
        """
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        enough = [number for number, size in enumerate(self.levels) if size[0] >= width and size[1] >= height]
        level = max(enough, default=0)
        level_width, level_height = self.levels[level]
        step = max(16, BAND_PIXELS // level_width)
        narrow = np.empty((level_height, width, 3), dtype=np.uint8)
        for top in range(0, level_height, step):
            band = Image.fromarray(self._level(level, 0, top, level_width, min(top + step, level_height)))
            narrow[top : top + step] = np.asarray(band.resize((width, band.height), Image.Resampling.HAMMING))
        out = np.empty((height, width, 3), dtype=np.uint8)
        for left in range(0, width, 256):  # by columns, so that PIL's copies stay small
            slab = Image.fromarray(np.ascontiguousarray(narrow[:, left : left + 256]))
            out[:, left : left + 256] = np.asarray(slab.resize((slab.width, height), Image.Resampling.HAMMING))
        return out, scale


class TurnedImage(ImageSource):
    """An image that its file says to turn or mirror before it is shown.

    Parameters
    ----------
    image
        The image as stored.
    orientation
        2 to 8, as EXIF and TIFF number them.
    """

    def __init__(self, image: ImageSource, orientation: int) -> None:
        self.image, self.orientation, self.path = image, orientation, image.path
        self.um_per_px, self.um_from = image.um_per_px, image.um_from
        size = (image.width, image.height)
        self.width, self.height = size[::-1] if orientation > 4 else size

    @property
    def decoded_mpx(self) -> float:
        """Millions of pixels: those of the image as stored."""
        return self.image.decoded_mpx

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the image as stored, and that it was turned."""
        return (*self.image.notes, f"was turned as it says (orientation {self.orientation}), as viewers show it")

    def _turned(self, stored: np.ndarray) -> np.ndarray:
        rows, columns = self.orientation in (3, 4, 7, 8), self.orientation in (2, 3, 6, 7)
        turned = stored.swapaxes(0, 1) if self.orientation > 4 else stored
        return np.ascontiguousarray(turned[:: -1 if rows else 1, :: -1 if columns else 1])

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window; see `ImageSource.read_region`."""
        if self.orientation in (3, 4, 7, 8):
            y = self.height - y - height
        if self.orientation in (2, 3, 6, 7):
            x = self.width - x - width
        if self.orientation > 4:
            x, y, width, height = y, x, height, width
        return self._turned(self.image.read_region(x, y, width, height))

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, its longer side at most ``max_side``, and the scale."""
        stored, scale = self.image.thumbnail(max_side)
        return self._turned(stored), scale

    def release(self) -> None:
        """Forget decoded pixels."""
        self.image.release()


def check_colours(rgb: np.ndarray, file: str | Path) -> None:
    """Refuse a picture that cannot be a stained section in transmitted light.

    Parameters
    ----------
    rgb
        uint8 (..., 3), the whole picture small.

    Raises
    ------
    InputError
        If it is of one colour or grey, shows bright things on black, or is greenest nearly everywhere: haematoxylin and
        eosin both take away green, so that such a picture is inverted or its channels are in another order.
    """
    darkest, brightest = rgb.min(axis=-1), rgb.max(axis=-1)
    if brightest.max() < DARK // 4:
        raise InputError(
            "picture is black",
            file=file,
            field="colours",
            value=f"at most {brightest.max()} of 255",
            fix="export it again with 8 bits per channel",
        )
    if brightest.max() - darkest.min() < LEAST_CONTRAST:
        raise InputError(
            "picture shows nothing: it is of one colour",
            file=file,
            field="colours",
            value=rgb.reshape(-1, 3)[0].tolist(),
            fix="export it again",
        )
    if (brightest - darkest).max() <= GREY:
        raise InputError(
            "picture is grey, where the colours of H&E are needed",
            file=file,
            field="colours",
            expected="red, green and blue",
            fix="give the colour image of the slide",
        )
    if np.median(brightest) < DARK and (darkest >= BRIGHT).mean() < BRIGHT_SHARE:
        raise InputError(
            "picture is bright on black, as fluorescence and inverted pictures are",
            file=file,
            field="colours",
            expected="an H&E image in transmitted light, whose ground is bright",
            fix="give the H&E image of the slide",
        )
    coloured = rgb[brightest - darkest > GREENEST_BY]
    if len(coloured) and (coloured[:, 1] >= coloured[:, (0, 2)].max(axis=1)).mean() > GREENEST_SHARE:
        raise InputError(
            "green is the strongest colour, which haematoxylin and eosin take away: the picture is inverted, or its "
            "channels are in another order",
            file=file,
            field="colours",
            expected="red, green and blue of transmitted light",
            fix="export it again",
        )


def not_colours(file: str | Path, channels: int, names: str = "") -> InputError:
    """Return the error for an image whose channels are not red, green and blue."""
    if channels == 1:
        return InputError(
            "picture is grey, where the colours of H&E are needed",
            file=file,
            field="channels",
            value=1,
            expected="red, green and blue",
            fix="give the colour image of the slide",
        )
    return InputError(
        f"picture has {channels} channels{f' ({names})' if names else ''}, as fluorescence has, and is not H&E",
        file=file,
        field="channels",
        value=channels,
        expected="red, green and blue",
        fix="give the H&E image of the slide",
    )


def in_um(length: object, unit: object) -> float | None:
    """Return a stated pixel size in micrometres; None where it is no microscope's, or the unit is not known."""
    try:
        um = float(str(length)) * UM[str(unit or "\u00b5m").strip().lower()]
    except (ValueError, KeyError):
        return None
    return plausible(um)


def plausible(um_per_px: float) -> float | None:
    """Return micrometres per pixel where a microscope may have that."""
    return um_per_px if PLAUSIBLE_UM[0] <= um_per_px <= PLAUSIBLE_UM[1] else None


def square_um(x: float | None, y: float | None, file: str | Path, where: str) -> float | None:
    """Return micrometres per pixel of square pixels.

    Parameters
    ----------
    x, y
        Width and height of a pixel in micrometres, None where not stated.

    Raises
    ------
    InputError
        If both are stated and differ by more than `SAME_AXES`.
    """
    if x and y and abs(x / y - 1) > SAME_AXES:
        raise InputError(
            "pixels are not square",
            file=file,
            field=where,
            value=f"{x:.4g} x {y:.4g} um",
            expected="one size in both directions",
            fix="scale the image to square pixels, or correct what it states",
        )
    return x or y


@contextmanager
def opened(file: object, *, name: str | Path | None = None, max_pixels: int = MAX_PIXELS) -> Iterator[Image]:
    """Open an image with PIL; every way in which it can be unreadable is an `InputError` that names ``name``."""
    from PIL import Image, UnidentifiedImageError

    name = file if name is None else name
    if isinstance(file, str | Path):
        regular(file, missing="image is missing")
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            packed = isinstance(file, str | Path) and str(file).lower().endswith(".gz")
            with Image.open(io.BytesIO(_inflated(Path(file))) if packed else file) as image:
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


def _inflated(path: Path) -> bytes:
    """Return what gzip packed: a small picture, as GEO hands them out."""
    with gzip.open(path, "rb") as file:
        content = file.read(MAX_PACKED + 1)
    if len(content) > MAX_PACKED:
        raise InputError(f"packed image has more than {MAX_PACKED:,} bytes", file=path, fix="unpack it with gunzip")
    return content


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
