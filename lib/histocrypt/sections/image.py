"""The one door to the pixels of a section: whole images, slides, mosaics of patches, and which of them a file is."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from histocrypt.errors import InputError, unreadable
from histocrypt.files import regular
from histocrypt.hdf5 import open_h5
from histocrypt.kinds import kind_of
from histocrypt.sections.pixels import (
    SIGNATURE_SIDE,
    WHITE,
    ImageSource,
    ScannedImage,
    TurnedImage,
    as_rgb,
    check_colours,
    opened,
)
from histocrypt.sections.slide import CziImage, SlideImage, ZarrImage, is_czi, is_ome_zarr
from histocrypt.sections.tiff import TiffImage, is_tiff

MAX_PATCH_PIXELS = 4096 * 4096
KEPT_PATCHES = 64
"""Decoded patches that a mosaic keeps."""
DECODED_WHOLE = 64_000_000
"""Pixels up to which a plain TIFF is decoded whole, as that is quicker."""
SLIDE_CODECS = (1, 5, 7, 8, 32773, 32946)
"""Compressions of tiled TIFF that openslide decodes: none, LZW, JPEG, deflate, PackBits."""
LIKELY_PIXELS, LIKELY_SHARE = 256_000_000, 2000
"""Beyond so many pixels, an image that has more of them a byte than this is a bomb, or damaged."""
PIL_CODECS = (*SLIDE_CODECS, 6, 34925, 50000)
"""Compressions of TIFF that PIL decodes: those, old JPEG, LZMA and Zstandard."""
TILE_NAME = re.compile(r"^(?P<section>.+)_(?P<x>-?\d+)_(?P<y>-?\d+)$")
TILE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
IMAGE_SUFFIXES = (
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"),
    *(".ome.tif", ".ome.tiff", ".ome.btf", ".ome.zarr", ".tif", ".tiff", ".btf", ".tf2", ".tf8", ".qptiff"),
    *(".jpg", ".jpeg", ".png", ".jp2", ".j2k", ".jpf", ".webp", ".bmp"),
)
"""How images are called, whatever the case of the letters: those of scanners first, then by what they can hold."""


class WholeImage(ScannedImage):
    """A JPEG, PNG or plain TIFF, decoded whole, once, when first asked for pixels.

    A JPEG's thumbnail is decoded at reduced size (PIL's draft mode), without the whole image in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened(self.path) as image:
            self.width, self.height = image.size
            self._format = image.format
            self.orientation = _orientation(image)
            self.notes = _profile(image)
        size, stored = self.width * self.height, self.path.stat().st_size
        if size > LIKELY_PIXELS and size > LIKELY_SHARE * stored:
            raise InputError(
                f"image claims {size:,} pixels in {stored:,} bytes, which is impossible",
                file=self.path,
                value=f"{self.width} x {self.height} px",
                fix="copy it again from its source",
            )

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
        path = Path(path)
        try:
            file = open_h5(path, what="patches file cannot be read")
            encoded = "jpeg" in file
            pixels = file["jpeg" if encoded else "img"]
            coords = np.asarray(file["coords"][:], dtype=np.float64).reshape(-1, 2)
            barcodes = [_text(name) for name in file["barcode"][:].ravel()] if "barcode" in file else None
            attributes = {**file.attrs, **file["coords"].attrs, **pixels.attrs}
        except InputError:  # is a ValueError, and says what is wrong
            raise
        except KeyError as error:
            raise InputError(
                f"patches file lacks a field ({str(error).strip(chr(39) + chr(34))})",
                file=path,
                expected="coords, barcode, and img or jpeg",
            ) from error
        except OSError as error:
            raise unreadable("patches file cannot be read", error, file=path) from error
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"patches file is damaged ({error})", file=path, expected="coords, barcode, and img or jpeg"
            ) from error
        if not np.isfinite(coords).all():
            raise InputError("patch has no position", file=path, field="coords", expected="numbers")
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
            raise InputError("lists a spot twice", file=path, field="barcode", value=twice)

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
        return self._small(max_side)[:2]

    @cached_property
    def signature(self) -> tuple[np.ndarray, float]:
        """See `ImageSource.signature`."""
        return self._looked_at[:2]

    @cached_property
    def _looked_at(self) -> tuple[np.ndarray, float, np.ndarray]:
        return self._small(SIGNATURE_SIDE)

    def _small(self, max_side: int) -> tuple[np.ndarray, float, np.ndarray]:
        """Return the thumbnail, its scale, and (n, 3) colours of all patches, also of those too small to be seen."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        out, colours = np.full((height, width, 3), WHITE, dtype=np.uint8), []
        for index, corner in enumerate(self.coords):
            patch = _decoded(self._load(index), self._name(index), at_least=round(2 * self.side * scale))
            colours.append(patch[::8, ::8].reshape(-1, 3))
            # Only thumbnail pixels that lie wholly in the patch, each from exactly the pixels below it.
            first = np.maximum(np.ceil(corner * scale), 0).astype(int)
            last = np.minimum(np.floor((corner + self.side) * scale), (width, height)).astype(int)
            if (last <= first).any():
                continue
            zoom = patch.shape[0] / self.side
            box = np.clip(np.concatenate([first / scale - corner, last / scale - corner]) * zoom, 0, patch.shape[0])
            small = Image.fromarray(patch).resize(tuple(last - first), Image.Resampling.HAMMING, box=tuple(box))
            out[first[1] : last[1], first[0] : last[0]] = np.asarray(small)
        return out, scale, np.concatenate(colours)

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
        """Raise `InputError` where a patch cannot be decoded, or all of them show no stained section."""
        check_colours(self._looked_at[2], self.path)

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
        self.um_per_px = image.um_per_px * self.scale if image.um_per_px else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the image at hand."""
        return self.image.notes

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


def is_image(path: Path) -> bool:
    """Return whether a path is an image by its name: a file, an OME-Zarr folder, or a folder of DICOM files."""
    if path.is_dir():
        return is_ome_zarr(path) or any(path.glob("*.dcm"))
    return path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES)


def image_beside(folder: Path, stems: Sequence[str], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return what lies in a folder under one of the stems and an image's suffix, in the order of both."""
    if not folder.is_dir():
        return []
    present = sorted(folder.iterdir())
    return [
        path
        for stem in stems
        for suffix in suffixes
        for path in present
        if path.name.startswith(stem) and path.name[len(stem) :].lower() == suffix
    ]


def open_image(path: str | Path) -> ImageSource:
    """Open an image with the kind that suits it; pixels are read later.

    Parameters
    ----------
    path
        JPEG, PNG, JPEG 2000, WebP, TIFF, slide pyramid, CZI, a folder of OME-Zarr or DICOM, or an ``.h5`` of patches.
        What it is is told by its content; its name says little.

    Raises
    ------
    InputError
        If the file is missing, is no image, has pixels that are not square or no colours, or is larger than
        `MAX_PIXELS` without being a pyramid.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    regular(path, missing="image is missing")
    if path.suffix.lower() in {".h5", ".hdf5"}:
        return PatchMosaic.from_h5(path)
    if path.name.lower().endswith((".png.gz", ".jpg.gz", ".jpeg.gz")):
        return WholeImage(path)
    _refuse_disguised(path)
    if is_tiff(path):
        return _open_tiff(path)
    if is_czi(path):
        return _open_czi(path)
    if path.suffix.lower() not in {".jpg", ".jpeg", ".png"} and SlideImage.recognises(path):
        return SlideImage(path)
    image = WholeImage(path)
    return TurnedImage(image, image.orientation) if image.orientation > 1 else image


def _open_folder(path: Path) -> ImageSource:
    if is_ome_zarr(path):
        return ZarrImage(path)
    for file in sorted(path.glob("*.[dD][cC][mM]")):
        if SlideImage.recognises(file):
            return SlideImage(file)
    raise InputError(
        "is a folder, not an image",
        file=path,
        expected="an image file, a slide, a folder of OME-Zarr or DICOM, or patches in an .h5 file",
    )


def _open_tiff(path: Path) -> ImageSource:
    """Open a TIFF: slides and 8-bit tiled ones by openslide, small plain ones whole, all others in pieces."""
    vendor = SlideImage.recognises(path)
    if vendor and vendor != "generic-tiff":
        return SlideImage(path)
    image: ImageSource = (tiff := TiffImage(path))
    simple = tiff.simple and tiff.orientation == 1  # where a tile is to be turned, libtiff turns it in its place
    if vendor and simple and tiff.compression in SLIDE_CODECS:
        image = SlideImage(path)
    elif simple and tiff.compression in PIL_CODECS:
        if tiff.whole or tiff.width * tiff.height <= DECODED_WHOLE:
            image = WholeImage(path)
    if image is not tiff:
        image.um_per_px, image.um_from, image.notes = tiff.um_per_px, tiff.um_from, (*tiff.notes, *image.notes)
        tiff.close()
    return TurnedImage(image, tiff.orientation) if 1 < tiff.orientation <= 8 else image


def _open_czi(path: Path) -> ImageSource:
    """Open a CZI by openslide, which knows some of its compressions, else by Zeiss's own library."""
    if SlideImage.recognises(path):
        try:
            slide = SlideImage(path)
            slide.signature  # noqa: B018  which decodes it
            return slide
        except InputError:
            pass
    return CziImage(path)


def _refuse_disguised(path: Path) -> None:
    """Refuse what is no image and says so in its first bytes."""
    kind = kind_of(path)
    if kind is not None and not kind.image:
        raise InputError(f"is not an image: {kind.words}", file=path, fix=kind.fix)
    with path.open("rb") as file:
        start = file.read(256)
    if not start.strip(b"\0"):
        raise InputError("image is empty", file=path, value=f"{path.stat().st_size} bytes", fix="copy it again")
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<", b"{")):
        fix = "download it again, signed in where that is asked for"
        raise InputError("is not an image: it is text", file=path, fix=fix)


def _orientation(image: object) -> int:
    """Return how a picture is to be turned, 1 to 8, by its EXIF; PIL turns TIFF itself."""
    if image.format == "TIFF":
        return 1
    try:
        turn = image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, LookupError):  # EXIF is decoration: the picture can be read without
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _profile(image: object) -> tuple[str, ...]:
    """Say that a colour profile other than sRGB is not applied."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile:
        return ()
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError):
        return ()
    return () if "srgb" in name.lower() else (f"has the colour profile {name!r}, which is not applied",)


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
