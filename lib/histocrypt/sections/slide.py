"""Slides that a library reads window by window: openslide's formats, OME-Zarr and CZI."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.sections.pixels import (
    WHITE,
    LevelledImage,
    ScannedImage,
    in_um,
    not_colours,
    plausible,
    square_um,
)

if TYPE_CHECKING:
    from PIL.Image import Image

NO_ZARR = "OME-Zarr image cannot be read"


class SlideImage(ScannedImage):
    """A slide pyramid (SVS, NDPI, MRXS, tiled TIFF, ...), read through openslide, never whole."""

    def __init__(self, path: str | Path) -> None:
        import openslide

        self.path = Path(path)
        with self._readable():
            self._slide = openslide.OpenSlide(str(path))
        self.width, self.height = self._slide.dimensions
        stated = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        x, y = (plausible(float(mpp)) if mpp else None for mpp in stated)
        self.um_per_px, self.um_from = square_um(x, y, self.path, "openslide.mpp-x, openslide.mpp-y"), "openslide"

    @staticmethod
    def recognises(path: Path) -> str | None:
        """Return which vendor's format openslide takes a file for, ``generic-tiff`` for no vendor's; None for none."""
        import openslide

        return openslide.OpenSlide.detect_format(str(path))

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

    def _readable(self) -> AbstractContextManager[None]:
        import openslide

        return reading("slide cannot be read", openslide.OpenSlideError, OSError, file=self.path)


class ZarrImage(LevelledImage):
    """An OME-Zarr image (OME-NGFF 0.4 in Zarr 2, 0.5 in Zarr 3) with three 8-bit channels, read by zarr.

    Raises
    ------
    InputError
        If the folder holds no image, or one that is not red, green and blue.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        group, about = _multiscales(self.path)
        if about is None:
            raise InputError("holds no image", file=self.path, expected="an OME-Zarr image, with `multiscales`")
        with reading(NO_ZARR, LookupError, TypeError, ValueError, file=self.path):
            self._levels = [group[part["path"]] for part in about["datasets"]]
            axes = about.get("axes") or list("tczyx")
            self._axes = [str(axis["name"] if isinstance(axis, Mapping) else axis).lower() for axis in axes]
            sizes = dict(zip(self._axes, self._levels[0].shape, strict=True))
            self.levels = [(int(level.shape[-1]), int(level.shape[-2])) for level in self._levels]
        if self._axes[-2:] != ["y", "x"] or self._levels[0].dtype != np.uint8:
            raise InputError(
                "is not an 8-bit image with the axes c, y, x",
                file=self.path,
                value=f"{', '.join(self._axes)}; {self._levels[0].dtype}",
            )
        if sizes.get("c", 1) != 3:
            raise not_colours(self.path, sizes.get("c", 1))
        if deep := {name: size for name, size in sizes.items() if name not in "cyx" and size > 1}:
            raise InputError("holds several pictures", file=self.path, field="axes", value=deep, expected="one plane")
        self.width, self.height = self.levels[0]
        self.um_per_px, self.um_from = self._stated(about), "OME-Zarr scale"

    def _stated(self, about: Mapping[str, Any]) -> float | None:
        scales = [
            *about["datasets"][0].get("coordinateTransformations", []),
            *about.get("coordinateTransformations", []),
        ]
        sizes = np.ones(len(self._axes))
        for scale in scales:
            if scale.get("type") == "scale":
                sizes = sizes * np.asarray(scale["scale"], dtype=float)
        units = [axis.get("unit") if isinstance(axis, Mapping) else None for axis in about.get("axes", [])]
        y, x = (in_um(sizes[at], units[at]) if units and units[at] else None for at in (-2, -1))
        return square_um(x, y, self.path, "coordinateTransformations")

    def _level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        where = tuple(slice(None) if axis == "c" else 0 for axis in self._axes[:-2])
        with reading(NO_ZARR, OSError, ValueError, RuntimeError, LookupError, file=self.path):
            return np.moveaxis(self._levels[level][(*where, slice(y0, y1), slice(x0, x1))], 0, -1)


def is_ome_zarr(path: Path) -> bool:
    """Return whether a folder is an OME-Zarr image, or a series of them as bioformats2raw writes it."""
    return any((path / name).is_file() for name in (".zattrs", "zarr.json")) and _multiscales(path)[1] is not None


def _multiscales(path: Path) -> tuple[Any, Mapping[str, Any] | None]:
    """Return the group of the image, and what it says of its levels; None where there is none."""
    import zarr

    with reading(NO_ZARR, OSError, ValueError, LookupError, TypeError, file=path):
        group = zarr.open_group(path, mode="r")
        for _ in range(2):
            attributes = dict(group.attrs)
            about = attributes.get("ome", attributes)
            if not isinstance(about, Mapping):
                break
            if about.get("multiscales"):
                return group, about["multiscales"][0]
            if "bioformats2raw.layout" not in about:
                break
            group = group["0"]
    return None, None


def is_czi(path: Path) -> bool:
    """Return whether a file begins as a CZI does."""
    with path.open("rb") as file:
        return file.read(10) == b"ZISRAWFILE"


class CziImage(ScannedImage):
    """A Zeiss slide, read by libCZI; that library is an extra of its own.

    Raises
    ------
    InputError
        If the library is missing, or the file holds no colour image.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from pylibCZIrw import czi
        except ImportError as error:
            raise InputError(
                "a .czi needs the package pylibCZIrw, which is not installed",
                file=path,
                fix="install it (pip install pylibCZIrw), or export the slide as OME-TIFF",
            ) from error
        self.path = Path(path)
        with self._readable():
            self._file = czi.CziReader(str(path))
            kinds = set(self._file.pixel_types.values())
            self._x, self._y, self.width, self.height = self._file.total_bounding_rectangle
            scaling = self._file.metadata["ImageDocument"]["Metadata"].get("Scaling", {})
        if kinds != {"Bgr24"}:
            deep = sorted(kind for kind in kinds if kind.startswith("Bgr"))
            if deep:
                raise InputError("is not 8-bit colour", file=path, field="pixel type", value=deep[0], expected="Bgr24")
            raise not_colours(self.path, len(kinds))
        items = scaling.get("Items", {}).get("Distance", []) if isinstance(scaling, Mapping) else []
        stated = {item.get("@Id"): item.get("Value") for item in items if isinstance(item, Mapping)}
        x, y = (in_um(stated[axis], "m") if stated.get(axis) else None for axis in "XY")
        self.um_per_px, self.um_from = square_um(x, y, self.path, "Scaling"), "CZI scaling"

    def _read(self, x: int, y: int, width: int, height: int, zoom: float) -> np.ndarray:
        with self._readable():
            bgr = self._file.read(
                roi=(self._x + x, self._y + y, width, height), zoom=zoom, background_pixel=(1.0, 1.0, 1.0)
            )
        return np.ascontiguousarray(bgr[..., ::-1])

    def _inside(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._read(x0, y0, x1 - x0, y1 - y0, 1.0)

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole slide by its pyramid, its longer side at most ``max_side``, and the scale."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        small = self._read(0, 0, self.width, self.height, scale)
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.HAMMING)), scale

    def _readable(self) -> AbstractContextManager[None]:
        return reading(
            "slide cannot be read", OSError, RuntimeError, ValueError, LookupError, TypeError, file=self.path
        )
