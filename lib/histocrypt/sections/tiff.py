"""TIFF as people have it, read window by window: strips or tiles, colours side by side or as planes, levels, any depth.

`openslide` reads the slides of scanners and 8-bit tiled TIFF, and PIL a small plain one; this reads the rest. tifffile
says what is where. Segments are decoded by it, and by PIL's libtiff where it lacks the codec.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from histocrypt.errors import InputError, unreadable
from histocrypt.sections.pixels import (
    BAND_PIXELS,
    MAX_PIXELS,
    WHITE,
    LevelledImage,
    as_rgb,
    in_um,
    not_colours,
    opened,
    plausible,
    square_um,
)

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
KEPT_BYTES = 64_000_000
"""Decoded segments that an image keeps."""
LARGEST_SEGMENT = 256_000_000
"""Bytes of a strip or tile; beyond, a window would not be cheaper than the whole image."""
RAW, LZW, OLD_JPEG, JPEG, ZSTD = 1, 5, 6, 7, 50000
JPEG_2000 = (33003, 33004, 33005, 34712)
WEBP = (34927, 50001)
BITS = (8, 10, 12, 14, 16)
"""Depths of cameras and scanners, whose values are kept in 8 or 16 bits."""
GREY_KINDS = ("MINISBLACK", "MINISWHITE")


@dataclass(frozen=True)
class Stated:
    """What a TIFF says of its resolution, its channels and its depth."""

    um_per_px: float | None = None
    where: str = ""
    bits: int | None = None
    channels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class TiffImage(LevelledImage):
    """The largest picture of a TIFF, with the levels that its SubIFDs or later pages hold.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InputError
        If the file is damaged, its picture is grey or has other channels than red, green and blue, its numbers are no
        whole ones of 8 or 16 bits, or there are several pictures of one size.
    """

    def __init__(self, path: str | Path) -> None:
        import tifffile

        self.path = Path(path)
        with self._readable(), _complaints() as complaints:
            self._tiff = tifffile.TiffFile(self.path, _multifile=False)
            series = _largest(self._tiff)
            self.stated = stated(self._tiff, self.path)
            self._pages = [_planes(level) for level in series.levels]
        if broken := next((one for one in complaints if "invalid" in one and "offset" in one), ""):
            raise unreadable("image cannot be read as TIFF", EOFError(broken), file=self.path)
        with self._readable():
            self._settle(series)
        self._kept: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._kept_bytes = 0

    def _settle(self, series: TiffPageSeries) -> None:
        """Take from the pages what is shown and how; refuse what is not known."""
        page = self._page = self._pages[0][0].keyframe
        self.compression, self.orientation = int(page.compression), int(page.tags.valueof(274, default=1) or 1)
        if not page.imagewidth or not page.imagelength:
            raise InputError("image has no pixels", file=self.path)
        self._refuse_foreign(series)
        self.levels = [
            (int(planes[0].keyframe.imagewidth), int(planes[0].keyframe.imagelength)) for planes in self._pages
        ]
        self.width, self.height = self.levels[0]
        self.um_per_px, self.um_from, self.notes = self.stated.um_per_px, self.stated.where, self.stated.notes
        self._order: list[int] | None = None
        if page.photometric.name in GREY_KINDS:
            self._order = _order(self.stated.channels)
            how = "by their names" if self._order else "in this order"
            self.notes = (*self.notes, f"has three grey planes, read as red, green and blue {how}")
        if self.width * self.height > MAX_PIXELS and len(self.levels) == 1:
            raise InputError(
                f"image has more than {MAX_PIXELS:,} pixels and no smaller levels",
                file=self.path,
                value=f"{self.width} x {self.height} px",
                fix="convert it to a tiled pyramid, e.g. with vips tiffsave",
            )
        self._bits: int | None = 8 if page.dtype.itemsize == 1 else self.stated.bits
        every = [page for pages in self._pages for page in pages]
        for each in every:
            if 0 in _segment_size(each.keyframe) or not 0 < len(each.dataoffsets) == len(each.databytecounts):
                raise EOFError("does not say where its pixels are")
        # The largest strip or tile, decoded; 0 where rows can be read one by one.
        self.segment_bytes = max(0 if _plain(page) else _segment_bytes(page.keyframe) for page in every)
        if self.segment_bytes > 3 * MAX_PIXELS:
            raise InputError("a strip or tile is too large", file=self.path, value=f"{self.segment_bytes:,} bytes")

    @property
    def simple(self) -> bool:
        """Whether it is one picture of 8-bit colours, the only one of its file, as every library reads it."""
        kind = getattr(self._page.photometric, "name", "")
        return (
            len(self._pages[0]) == 1
            and self._tiff.pages.first is self._page
            and self._page.dtype.itemsize == 1
            and kind in {"RGB", "YCBCR", "PALETTE", "SEPARATED"}
        )

    @property
    def whole(self) -> bool:
        """Whether its parts are as large as itself, or of a kind that only libtiff reads."""
        page = self._page
        return page.bitspersample not in (8, 16) or self.compression == OLD_JPEG or self.segment_bytes > LARGEST_SEGMENT

    @property
    def decoded_mpx(self) -> float:
        """Millions of pixels: the segments that are kept."""
        return max(KEPT_BYTES, self.segment_bytes) / 3e6

    def close(self) -> None:
        """Close the file; nothing can be read after."""
        self._tiff.close()

    def release(self) -> None:
        """Forget decoded segments."""
        self._kept.clear()
        self._kept_bytes = 0

    def _refuse_foreign(self, series: TiffPageSeries) -> None:
        page, path = self._page, self.path
        kind = getattr(page.photometric, "name", str(page.photometric))
        several = {
            axis: size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS" and size > 1
        }
        samples = int(page.samplesperpixel)
        names = ", ".join(self.stated.channels)
        count = math.prod(several.values())
        if set(several) & set("ZT") or (several and samples >= 3):
            raise InputError(
                f"holds {count} pictures of one size (axes {series.axes})",
                file=path,
                field="axes",
                value=several,
                expected="one plane of the slide",
                fix="export one of them",
            )
        channels = count * samples
        if channels < 3 and kind != "PALETTE":
            raise not_colours(path, channels, names)
        if channels > 4 or (channels == 4 and kind in GREY_KINDS):
            raise not_colours(path, channels, names)
        if kind in GREY_KINDS and _fluorescent(self.stated.channels):
            raise not_colours(path, channels, names)
        if kind not in {*GREY_KINDS, "RGB", "YCBCR", "PALETTE", "SEPARATED"}:
            raise InputError(
                f"colours are {kind}", file=path, field="photometric", expected="RGB", fix="convert it to RGB"
            )
        if kind == "YCBCR" and int(page.compression) not in {OLD_JPEG, JPEG, *JPEG_2000, *WEBP}:
            raise InputError(f"colours are {kind} without JPEG", file=path, field="photometric", expected="RGB")
        if (page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16)) and kind != "PALETTE":
            raise InputError(
                "image is not 8- or 16-bit colour",
                file=path,
                field="dtype",
                value=f"{page.bitspersample} bits, {page.dtype}",
                expected="an 8-bit RGB H&E image",
                fix="convert it",
            )

    # From a window to segments.

    def _level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        with self._readable():
            rgb = self._rgb(self._stored(level, x0, y0, x1, y1))
            if rgb.shape[2] != 3:
                raise EOFError("colours are missing")
            return rgb

    def _stored(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Return a window as the file has it: (height, width, samples) of its own type."""
        window = (x0, y0, x1, y1)
        parts = [
            self._rows(page, *window) if _plain(page) else self._from_segments(level, number, page, *window)
            for number, page in enumerate(self._pages[level])
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _rows(self, page: TiffPage, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Read rows of an uncompressed page, none of which is kept."""
        about = page.keyframe
        samples, size = int(about.samplesperpixel), about.dtype.itemsize
        planar = int(about.planarconfig) == 2 and samples > 1
        inner, planes = (1, samples) if planar else (samples, 1)
        width, length = int(about.imagewidth), int(about.imagelength)
        dtype = about.dtype.newbyteorder(self._tiff.byteorder)
        whole = x1 - x0 == width
        out = np.empty((planes, y1 - y0, x1 - x0, inner), dtype=dtype)
        for plane in range(planes):
            for row in range(1 if whole else y1 - y0):
                at = page.dataoffsets[0] + (((plane * length + y0 + row) * width) + x0) * inner * size
                target = out[plane] if whole else out[plane, row]
                self._tiff.filehandle.seek(at)
                data = self._tiff.filehandle.read(target.nbytes)
                if len(data) < target.nbytes:
                    raise EOFError(f"ends within row {y0 + row}")
                target[...] = np.frombuffer(data, dtype=dtype).reshape(target.shape)
        return np.moveaxis(out[..., 0], 0, -1) if planar else out[0]

    def _from_segments(self, level: int, number: int, page: TiffPage, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        about = page.keyframe
        length, width = _segment_size(about)
        across, down = -(-about.imagewidth // width), -(-about.imagelength // length)
        samples = int(about.samplesperpixel)
        planar = int(about.planarconfig) == 2 and samples > 1
        out = np.empty((y1 - y0, x1 - x0, samples), dtype=about.dtype)
        for row in range(y0 // length, -(-y1 // length)):
            for column in range(x0 // width, -(-x1 // width)):
                top, left = row * length, column * width
                inner = (slice(max(y0 - top, 0), y1 - top), slice(max(x0 - left, 0), x1 - left))
                outer = (slice(max(top - y0, 0), top + length - y0), slice(max(left - x0, 0), left + width - x0))
                for sample in range(samples if planar else 1):
                    index = sample * across * down + row * across + column
                    segment = self._segment(level, number, page, index)
                    out[(*outer, sample if planar else slice(None))] = (
                        segment[inner][..., 0] if planar else segment[inner]
                    )
        return out

    def _segment(self, level: int, number: int, page: TiffPage, index: int) -> np.ndarray:
        """Return a strip or tile, decoded, (height, width, samples); the last ones are kept."""
        key = (level, number, index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        with self._readable(page.keyframe):
            segment = self._decoded(page, index)
        self._kept[key] = segment
        self._kept_bytes += segment.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= gone.nbytes
        return segment

    def _decoded(self, page: TiffPage, index: int) -> np.ndarray:
        about = page.keyframe
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        samples = 1 if int(about.planarconfig) == 2 else int(about.samplesperpixel)
        length, width = _segment_size(about)
        rows = min(length, about.imagelength - (index % -(-about.imagelength // length)) * length)
        shape = (length if about.is_tiled else rows, width, samples)
        if not count:  # a sparse file: nothing was written there
            return np.full(shape, np.iinfo(about.dtype).max, dtype=about.dtype)
        self._tiff.filehandle.seek(offset)
        data = self._tiff.filehandle.read(count)
        if len(data) < count:
            raise EOFError(f"ends within segment {index}")
        codec = int(about.compression)
        if codec in (LZW, ZSTD):
            return self._by_bytes(about, data, shape)
        if codec in (JPEG, *JPEG_2000, *WEBP):
            return _by_pil(about, data, shape, self.path)
        segment = about.decode(data, index)[0]
        if segment is None:
            return np.full(shape, np.iinfo(about.dtype).max, dtype=about.dtype)
        return np.asarray(segment).reshape(-1, *segment.shape[-2:])[: shape[0]]

    def _by_bytes(self, about: TiffPage, data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        """Unpack with libtiff what it sees as rows of grey bytes; then what a sample is does not matter."""
        height, width, samples = shape
        row = width * samples * about.dtype.itemsize
        tags = {258: 8, 259: int(about.compression), 262: 1, 277: 1, 317: 1}
        with opened(io.BytesIO(_little_tiff(data, row, height, tags)), name=self.path) as image:
            content = np.asarray(image).tobytes()
        dtype = about.dtype.newbyteorder(self._tiff.byteorder)
        values = np.frombuffer(content, dtype=dtype).reshape(shape).astype(about.dtype)
        predictor = int(about.predictor)
        if predictor == 2:
            return np.cumsum(values, axis=1, dtype=about.dtype)
        if predictor != 1:
            raise ValueError(f"predictor {predictor} is not known")
        return values

    # From what is stored to colours.

    def _rgb(self, stored: np.ndarray) -> np.ndarray:
        from PIL import Image

        page = self._page
        kind = page.photometric.name
        if kind == "PALETTE":
            return np.ascontiguousarray((np.asarray(page.colormap) >> 8).astype(np.uint8).T[stored[..., 0]])
        eight = self._eight_bits(stored)
        if kind == "MINISWHITE":
            eight = WHITE - eight
        if self._order is not None:
            eight = eight[..., self._order]
        if kind == "SEPARATED":
            return np.asarray(Image.fromarray(np.ascontiguousarray(eight[..., :4]), "CMYK").convert("RGB"))
        extra = [int(value) for value in np.atleast_1d(page.extrasamples)] if page.extrasamples else []
        colours = eight[..., :3]
        if eight.shape[2] == 4 and extra and extra[0] in (1, 2):
            alpha = eight[..., 3:].astype(np.uint16)
            over = colours.astype(np.uint16) * (alpha if extra[0] == 2 else 255) + (255 - alpha) * WHITE
            return np.minimum((over + 127) // 255, 255).astype(np.uint8)
        return np.ascontiguousarray(colours)

    def _eight_bits(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype == np.uint8:
            return stored
        bits = self.bits
        highest = (1 << bits) - 1
        if stored.size and stored.max() > highest:
            raise InputError(
                f"value is beyond the {bits} bits that the image states",
                file=self.path,
                field="SignificantBits",
                value=int(stored.max()),
                expected=f"at most {highest}",
            )
        return ((stored.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)

    @property
    def bits(self) -> int:
        """Bits that the values use: as stated, else the fewest of `BITS` that hold the largest value of the image."""
        if self._bits is None:
            highest, step = 0, max(16, BAND_PIXELS // self.width)
            for top in range(0, self.height, step):
                highest = max(highest, int(self._stored(0, 0, top, self.width, min(top + step, self.height)).max()))
                if highest >> BITS[-2]:
                    break
            self._bits = next(bits for bits in BITS if highest < 1 << bits)
            if self._bits < BITS[-1]:
                self.notes = (
                    *self.notes,
                    f"keeps values up to {highest} in 16 bits, which was taken as {self._bits} bits a channel",
                )
        return self._bits

    @contextmanager
    def _readable(self, page: TiffPage | None = None) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            codec = getattr(page.compression, "name", page.compression) if page is not None else None
            if codec and ("imagecodecs" in str(error) or "cannot decompress" in str(error)):
                raise InputError(
                    f"pixels are compressed by {codec}, which needs the package imagecodecs",
                    file=self.path,
                    field="compression",
                    value=str(codec),
                    fix="install it (pip install imagecodecs), or save the image with LZW or deflate",
                ) from error
            if isinstance(error, MemoryError):
                raise InputError("image does not fit in memory", file=self.path, fix="give a tiled pyramid") from error
            if "known COMPRESSION" in str(error):
                raise InputError(
                    f"pixels are compressed in a way that is not known ({error})",
                    file=self.path,
                    field="compression",
                    fix="save the image with LZW or deflate",
                ) from error
            raise unreadable("image cannot be read as TIFF", error, file=self.path) from error


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Yield what tifffile logs, in place of its printing it: a chain of pages that breaks off is no error to it."""
    found: list[str] = []
    logger, handler = logging.getLogger("tifffile"), logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    kept, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = kept


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF does, whatever its name."""
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def stated(tiff: TiffFile, path: Path) -> Stated:
    """Return what a TIFF says of itself: OME-XML first, then a scanner's description, ImageJ's and the tags.

    Raises
    ------
    InputError
        If pixels are not square.
    """
    found = [one for one in (_by_ome(tiff, path), _by_description(tiff), _by_tags(tiff, path)) if one is not None]
    if not found:
        return Stated()
    first = found[0]
    sizes = [one for one in found if one.um_per_px]
    if not sizes:
        return first
    best, notes = sizes[0], ()
    for other in sizes[1:]:
        if abs(other.um_per_px / best.um_per_px - 1) > 0.1:
            notes = (
                f"states {best.um_per_px:.4g} um per pixel ({best.where}) and {other.um_per_px:.4g} ({other.where}); "
                "the first was taken",
            )
    return replace(first, um_per_px=best.um_per_px, where=best.where, notes=notes)


def _by_ome(tiff: TiffFile, path: Path) -> Stated | None:
    text = tiff.ome_metadata
    if not text:
        return None
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    every = [node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"]
    if not every:
        return None
    pixels = max(every, key=lambda node: _whole(node.get("SizeX")) * _whole(node.get("SizeY")))
    x, y = (
        in_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit"))
        if pixels.get(f"PhysicalSize{axis}")
        else None
        for axis in "XY"
    )
    names = [node.get("Name") or "" for node in pixels if node.tag.rpartition("}")[2] == "Channel"]
    bits = _whole(pixels.get("SignificantBits"))
    um = square_um(x, y, path, "OME-XML PhysicalSizeX, PhysicalSizeY")
    return Stated(
        um,
        "OME-XML PhysicalSizeX" if um else "",
        bits if 8 <= bits <= 16 else None,
        tuple(names) if any(names) else (),
    )


def _by_description(tiff: TiffFile) -> Stated | None:
    """Read ``MPP = 0.25`` of Aperio's description, which others copy."""
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", tiff.pages.first.description or "")
    um = plausible(float(found[1])) if found and found[1].strip(".") and found[1].count(".") < 2 else None
    return Stated(um, "MPP of the description") if um else None


def _by_tags(tiff: TiffFile, path: Path) -> Stated | None:
    """Read the resolution tags; the unit is ImageJ's where it names one."""
    tags = tiff.pages.first.tags
    unit = {2: "inch", 3: "cm"}.get(int(tags.valueof(296, default=2) or 2), "")
    where = f"TIFF tags, per {unit}"
    if tiff.is_imagej and (tiff.imagej_metadata or {}).get("unit"):
        unit = str(tiff.imagej_metadata["unit"]).replace("\\u00B5", "\u00b5")
        where = f"ImageJ metadata, {unit}"
    sizes = []
    for tag in (282, 283):
        value = tags.valueof(tag)
        top, bottom = value if isinstance(value, tuple) and len(value) == 2 else (0, 0)
        sizes.append(in_um(bottom / top, unit) if top and bottom and unit else None)
    um = square_um(sizes[0], sizes[1], path, "XResolution, YResolution")
    return Stated(um, where) if um else None


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _fluorescent(names: tuple[str, ...]) -> bool:
    """Return whether channels have names, and these are not of colours."""
    plain = [re.sub(r"[^a-z]", "", name.lower()) for name in names]
    colours = {"", "r", "g", "b", "red", "green", "blue", "channel", "ch", "c", "rgb", "brightfield", "tl", "bf"}
    stained = any(word in name for name in plain for word in ("dapi", "hoechst", "fitc", "cy", "alexa", "af", "tritc"))
    return stained and not set(plain) <= colours


def _order(names: tuple[str, ...]) -> list[int] | None:
    """Return where red, green and blue are among channels that are named so."""
    initials = [name.strip().lower() for name in names]
    initials = [name[0] if name in ("red", "green", "blue") else name for name in initials]
    return [initials.index(colour) for colour in "rgb"] if sorted(initials) == ["b", "g", "r"] else None


def _largest(tiff: TiffFile) -> TiffPageSeries:
    """Return the series of the largest picture; a label and an overview are smaller."""
    if not tiff.series:
        raise ValueError("no picture in it")
    return max(tiff.series, key=lambda one: one.keyframe.imagewidth * one.keyframe.imagelength)


def _planes(level: TiffPageSeries) -> list[TiffPage]:
    pages = [page for page in level.pages if page is not None]
    return pages[:3] if len(pages) >= 3 else pages[:1]


def _plain(page: TiffPage) -> bool:
    """Return whether rows lie in the file one after the other, uncompressed."""
    about = page.keyframe
    if int(about.compression) != RAW or about.is_tiled or about.bitspersample not in (8, 16):
        return False
    if int(about.tags.valueof(266, default=1) or 1) != 1:
        return False
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return list(page.dataoffsets[1:]) == ends[:-1]


def _segment_size(about: TiffPage) -> tuple[int, int]:
    """Return rows and columns of a strip or tile."""
    if about.is_tiled:
        return int(about.tilelength), int(about.tilewidth)
    return min(int(about.rowsperstrip or about.imagelength), int(about.imagelength)), int(about.imagewidth)


def _segment_bytes(about: TiffPage) -> int:
    samples = 1 if int(about.planarconfig) == 2 else int(about.samplesperpixel)
    return math.prod(_segment_size(about)) * samples * about.dtype.itemsize


def _by_pil(about: TiffPage, data: bytes, shape: tuple[int, int, int], path: Path) -> np.ndarray:
    """Decode a segment of a codec for pictures: JPEG by libtiff, which knows its tables; the others as they are."""
    from PIL import Image

    height, width, samples = shape
    codec = int(about.compression)
    if codec == JPEG:
        tags = {258: (8,) * samples, 259: JPEG, 262: int(about.photometric), 277: samples}
        for tag in (347, 530):  # its tables, and how far colours are thinned out
            value = about.tags.valueof(tag)
            tags |= {tag: value} if value is not None else {}
        data = _little_tiff(data, width, height, tags)
    with opened(io.BytesIO(data), name=path) as image:
        pixels = np.asarray(as_rgb(image, path) if samples == 3 else image)
    if codec == JPEG_2000[0]:  # Aperio's, in YCbCr without saying so
        pixels = np.asarray(Image.frombytes("YCbCr", pixels.shape[1::-1], pixels.tobytes()).convert("RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[1] != width or pixels.shape[0] < height or pixels.shape[2] != samples:
        raise ValueError(f"segment of {pixels.shape} where {shape} was expected")
    return pixels[:height]


def _little_tiff(data: bytes, width: int, height: int, tags: dict[int, Any]) -> bytes:
    """Return a TIFF of one strip, made of a strip or tile of another, for a library that reads whole files."""
    every = {256: width, 257: height, 273: 0, 278: height, 279: len(data), 284: 1, **tags}
    directory, extra = [], b""
    start = 8 + 2 + 12 * len(every) + 4
    for tag, value in sorted(every.items()):
        if isinstance(value, bytes):
            kind, content, count = 7, value, len(value)
        else:
            values = value if isinstance(value, tuple) else (value,)
            kind, content, count = 4, struct.pack(f"<{len(values)}I", *values), len(values)
            if tag in (258, 259, 262, 277, 284, 317, 530):
                kind, content = 3, struct.pack(f"<{len(values)}H", *values)
        if len(content) > 4:
            content, extra = struct.pack("<I", start + len(extra)), extra + content
        directory.append([tag, kind, count, content.ljust(4, b"\0")])
    for entry in directory:
        if entry[0] == 273:
            entry[3] = struct.pack("<I", start + len(extra))
    packed = b"".join(struct.pack("<HHI", tag, kind, count) + content for tag, kind, count, content in directory)
    return struct.pack("<2sHIH", b"II", 42, 8, len(directory)) + packed + b"\0\0\0\0" + extra + data
