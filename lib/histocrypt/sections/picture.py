"""Is this the picture that the coordinates refer to? What the files themselves tell, before anything is learnt from it.

Three witnesses speak. The array index says which way rows and columns run. A reduced picture that the files carry (as
``uns["spatial"][...]["images"]`` or in ``spatial/``) shows what lies where. And spots were put on tissue, so that the
picture is dark below them. What is certain is refused; what is merely odd is a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.image import ImageSource, ScaledImage, ScannedImage
from histocrypt.sections.pixels import SIGNATURE_SIDE
from histocrypt.spatial import array_of, array_steps, spot_pitch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

SAME_SIZE = 0.01
"""Largest relative difference in size of two pictures of one slide: small images are rounded to whole pixels."""
ALIKE = 0.9
"""Correlation of two thumbnails from which they show the same."""
FAR = 0.02
"""Shift of two thumbnails, as a share of the side, from which the picture is displaced."""
DARKER = 1.25
"""Ratio of darkness below the spots from which another way to lay the picture is the likelier one."""
ASTRAY = 0.75
"""In pitches: how far a spot may lie from where its array index puts it; spots found on the image lie up to 0.3 off."""
FEWEST = 9
"""Spots below which an array tells nothing."""

TURNS = {
    "turned by 180 degrees": lambda pixels: pixels[::-1, ::-1],
    "mirrored left to right": lambda pixels: pixels[:, ::-1],
    "mirrored top to bottom": lambda pixels: pixels[::-1],
    "turned by 90 degrees": lambda pixels: np.rot90(pixels, -1),
    "turned by 90 degrees to the left": lambda pixels: np.rot90(pixels),
    "mirrored, with x and y exchanged": lambda pixels: np.swapaxes(pixels, 0, 1),
    "mirrored along the other diagonal": lambda pixels: np.swapaxes(pixels[::-1, ::-1], 0, 1),
}


@dataclass(frozen=True)
class Carried:
    """A reduced picture of the section that its files carry."""

    where: str
    """How errors call the place."""
    image: ImageSource
    scale: float
    """Its pixels per full-resolution pixel."""

    @property
    def full_size(self) -> tuple[float, float]:
        """Width and height of the full-resolution image that size and scale imply."""
        return self.image.width / self.scale, self.image.height / self.scale


class PixelImage(ScannedImage):
    """A picture in memory.

    Parameters
    ----------
    path
        The file that holds it.
    pixels
        (h, w), (h, w, 3) or (h, w, 4): uint8, or floats from 0 to 1.
    where
        How errors call the place in the file.

    Raises
    ------
    InputError
        If that is no such picture.
    """

    def __init__(self, path: Path, pixels: np.ndarray, *, where: str) -> None:
        pixels = np.asarray(pixels)
        here = {"file": path, "field": where}
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.ndim != 3 or pixels.shape[2] not in {3, 4} or 0 in pixels.shape:
            raise InputError("is not a picture", **here, value=pixels.shape, expected="(height, width, 3)")
        if pixels.dtype != np.uint8:
            low, high = (float(pixels.min()), float(pixels.max())) if pixels.dtype.kind in "fiub" else (np.nan, np.nan)
            whole = pixels.dtype.kind in "iu" or high > 1.001
            if not (low >= -0.001 and high <= (255.5 if whole else 1.001)):
                raise InputError("pixels are not colours", **here, value=f"{low:.4g} to {high:.4g}", expected="0 to 1")
            pixels = np.rint(np.clip(pixels * (1 if whole else 255), 0, 255)).astype(np.uint8)
        if pixels.shape[2] == 4:  # on white, as everywhere
            alpha = pixels[..., 3:].astype(np.float32) / 255
            pixels = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        self.path, self._pixels = path, np.ascontiguousarray(pixels)
        self.height, self.width = pixels.shape[:2]

    @property
    def decoded_mpx(self) -> float:
        """Millions of pixels: all are in memory."""
        return self.width * self.height / 1e6

    def _inside(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return self._pixels[y0:y1, x0:x1]

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole picture, its longer side at most ``max_side``, and the scale."""
        from PIL import Image

        width, height, scale = self._thumbnail_size(max_side)
        return np.asarray(Image.fromarray(self._pixels).resize((width, height), Image.Resampling.HAMMING)), scale


FULL = "fullres"
"""Name of a picture of full resolution that lies in the file itself, as CELLxGENE's schema of Visium asks for."""


def carried_in(content: Mapping[str, Any], where: str, file: Path) -> tuple[list[Carried], str]:
    """Return the reduced pictures in a library of ``uns["spatial"]``, the largest first; and why there are none.

    Each needs its ``tissue_<name>_scalef``, as Space Ranger, scanpy, squidpy and HEST write it.

    Raises
    ------
    InputError
        If one is no picture, or its scale is no number above 0.
    """
    images, factors = content.get("images"), content.get("scalefactors")
    images = images if isinstance(images, Mapping) else {}
    factors = factors if isinstance(factors, Mapping) else {}
    found, missing = [], ""
    for name, pixels in images.items():
        if not hasattr(pixels, "shape"):
            continue
        key, place = f"tissue_{name}_scalef", f"{where}['images'][{name!r}]"
        scale = factors.get(key, 1.0 if name == FULL else None)
        if scale is None:
            missing = f"{place} is there, but not its scale, {key!r}"
            continue
        try:
            scale = float(scale)
        except (TypeError, ValueError):
            scale = np.nan
        if not (np.isfinite(scale) and scale > 0):
            raise InputError(
                "scale factor is not a positive number",
                file=file,
                field=f"{where}['scalefactors'][{key!r}]",
                value=factors[key],
            )
        if scale <= 1:
            found.append(Carried(place, PixelImage(file, pixels, where=place), scale))
    return sorted(found, key=lambda one: -one.scale), missing


def at_own_scale(
    image: ImageSource, pictures: Sequence[Carried], factors: Mapping[str, Any], coords: np.ndarray | None
) -> ImageSource:
    """Return an image, or where it is a reduced picture of the section, the same at its own scale.

    It is one where it is as large as a picture that the files carry; or where its name says ``hires`` or ``lowres``,
    the files state the scale, and spots lie outside unless they are reduced by it.
    """
    if image.side is not None or isinstance(image, ScaledImage):
        return image
    size = image.width, image.height
    for picture in pictures:
        if picture.scale < 0.99 and alike(size, (picture.image.width, picture.image.height)):
            return ScaledImage(image, picture.scale)
    named = re.search(r"hires|lowres", image.path.name.lower())
    scale = factors.get(f"tissue_{named[0]}_scalef") if named else None
    if isinstance(scale, (int, float, np.number)) and 0 < scale < 0.99 and coords is not None:
        finite = np.asarray(coords, dtype=float)
        finite = finite[np.isfinite(finite).all(axis=1)]
        if len(finite) and not image.covers(finite).all() and image.covers(finite * scale).mean() > 0.9:
            return ScaledImage(image, float(scale))
    return image


def alike(one: Sequence[float], two: Sequence[float]) -> bool:
    """Return whether two sizes are the same but for rounding to whole pixels."""
    return all(abs(a - b) <= max(SAME_SIZE * b, 1.5) for a, b in zip(one, two, strict=True))


def reduced_note(image: ScaledImage, um_per_px: float) -> str:
    """Say what a reduced picture in the place of the full-resolution image is worth."""
    return (
        f"{image.path}: a reduced image of {um_per_px / image.scale:.1f} um per pixel stands for the full-resolution "
        f"one ({um_per_px:.2f} um per pixel): tiles hold no finer detail."
    )


@dataclass
class Witnesses:
    """What is looked at of one section; spots that are kept, coordinates in full-resolution pixels."""

    file: Path
    section: str
    adata: AnnData
    image: ImageSource | None
    pictures: Sequence[Carried] = ()
    places: str = "obsm['spatial']"
    """How errors call where the coordinates stand."""
    laid: bool = False
    """Whether the array was laid over the section afterwards: then it may lie any way on the picture."""
    notes: list[str] = field(default_factory=list)

    def check(self) -> list[str]:
        """Return notes on what is odd.

        Raises
        ------
        InputError
            If x and y are swapped, positions do not follow the array index, or the picture is turned, mirrored, shifted
            or of another scale than the picture that the files carry.
        """
        darkness = _Darkness(self.image) if self.image is not None and self.image.side is None else None
        self._index(darkness)
        told = self._carried()
        if darkness is not None and len(self._coords) >= FEWEST:
            self._reach(darkness)
            if not told:
                self._dark(darkness)
        return self.notes

    @property
    def _coords(self) -> np.ndarray:
        return np.asarray(self.adata.obsm["spatial"], dtype=float)

    def _index(self, darkness: _Darkness | None) -> None:
        """Compare the array index with where spots lie."""
        index = array_of(self.adata, whole=False)
        if index is None or len(index) < FEWEST:
            return
        steps = array_steps(self._coords, index)
        if steps is None:
            return
        here = {"file": self.file, "field": self.places}
        pitch = spot_pitch(self._coords)
        astray = steps.away > ASTRAY * pitch
        if steps.explained < 0.5:
            raise InputError(
                f"spot positions do not follow the array index: it explains {max(0, steps.explained):.0%} of them",
                **here,
                expected="array_row and array_col of the same spots",
                fix="join positions and spots by barcode, or remove array_row and array_col if they are of another one",
            )
        if astray.any():
            first = self.adata.obs_names[astray.argmax()]
            self.notes.append(
                f"{astray.sum()} of {len(astray)} spots lie far from where their array index puts them (first: {first})"
            )
        turn = _turn_of(steps.vectors)
        if turn == "exchanged":
            self._exchanged(darkness)
        elif turn and not self.laid:
            self.notes.append(
                f"the array is {turn} on the picture, as slides may be: look whether the spots lie on their tissue"
            )

    def _exchanged(self, darkness: _Darkness | None) -> None:
        """Judge rows that run along x and columns along y: the places are exchanged, or the names of the index are."""
        by_name = _index_by_name(self.adata.obs_names)
        if by_name is not None:
            steps = array_steps(self._coords, by_name)
            if steps is not None and _turn_of(steps.vectors) == "":
                self.notes.append("array_row runs along x and array_col along y: their names look exchanged")
                return
        if self.image is not None:
            both = (self._coords, self._coords[:, ::-1])
            if darkness is not None:
                given, swapped = map(darkness.under, both)
            else:  # patches lie where spots are
                given, swapped = (self.image.covers(places).mean() for places in both)
            if given > (1.05 if by_name is None else DARKER) * swapped:
                self.notes.append(
                    "array_row runs along x and array_col along y: their names look exchanged, since the picture shows "
                    "more tissue below the spots as given than with x and y exchanged"
                )
                return
        raise InputError(
            "x and y of the spots seem to be swapped: array_row grows along x and array_col along y",
            file=self.file,
            field=self.places,
            value=self._coords[0].round(1).tolist(),
            expected="x, y in pixels: array_col grows with x, array_row with y",
            fix="swap x and y, or array_row and array_col if the positions are right",
        )

    def _carried(self) -> bool:
        """Compare the image with the largest picture that the files carry; return whether they show the same."""
        if not self.pictures or self.image is None or isinstance(self.image, ScaledImage):
            return isinstance(self.image, ScaledImage)
        picture = self.pictures[0]
        size = (self.image.width, self.image.height)
        here = {"file": self.image.path, "field": self.section}
        turned = not alike(size, picture.full_size) and alike(size[::-1], picture.full_size)
        if not alike(size, picture.full_size) and not turned:
            width, height = picture.full_size
            on_it = (self._coords < picture.full_size).all(axis=1).mean()
            if on_it < 0.5 < self.image.covers(self._coords).mean():  # then it is the picture carried that is another
                self.notes.append(
                    f"{picture.where} does not reach to most spots, which lie on {self.image.path.name}: it is of "
                    "another image and was not compared"
                )
                return False
            if self.image.side is None:
                raise InputError(
                    "image is not the one that the coordinates refer to",
                    **here,
                    value=f"{size[0]} x {size[1]} px",
                    expected=f"about {width:.0f} x {height:.0f} px by {picture.where} and its scale factor",
                    fix="give the full-resolution image that belongs to the coordinates",
                )
            return False
        own, reference = _grey(self.image.signature[0]), _grey(picture.image.signature[0])
        if min(own.std(), reference.std()) < 3:  # nothing to be seen
            return False
        same = 0.0 if turned else _correlation(own, reference)
        if same >= ALIKE:
            self._shifted(own, reference, picture, here)
            return True
        if self.image.side is not None:
            return False
        others = {name: _correlation(turn(own), reference) for name, turn in TURNS.items()}
        best = max(others, key=others.get)
        if others[best] >= ALIKE or (others[best] > 0.75 and others[best] > same + 0.2):
            raise InputError(
                f"image is {best} against {picture.where}, the picture that the file carries",
                **here,
                value=f"agreement {same:.2f}, and {others[best]:.2f} the other way",
                fix="give the image in the orientation of the coordinates",
            )
        self._shifted(own, reference, picture, here)
        self.notes.append(
            f"{self.image.path.name} does not look like {picture.where}, the picture that the file carries (agreement "
            f"{same:.2f}): look whether it is of this section"
        )
        return False

    def _shifted(self, own: np.ndarray, reference: np.ndarray, picture: Carried, here: dict[str, Any]) -> None:
        """Refuse an image that shows the same elsewhere."""
        reference = _fitted(reference, own.shape)
        x, y = _shift(own, reference)
        if np.hypot(x, y) <= max(FAR * SIGNATURE_SIDE, 2) or _moved(own, reference, x, y) < ALIKE:
            return
        scale = max(self.image.width, self.image.height) / SIGNATURE_SIDE
        raise InputError(
            f"image is shifted against {picture.where}, the picture that the file carries",
            **here,
            value=f"by about {x * scale:+.0f}, {y * scale:+.0f} px",
            fix="give the image that belongs to the coordinates, uncropped",
        )

    def _dark(self, darkness: _Darkness) -> None:
        """Note where the picture, laid another way, is clearly darker below the spots."""
        size = np.array([self.image.width, self.image.height], dtype=float)
        given = darkness.under(self._coords)
        centred = self._coords / size
        ways = {
            "turned by 180 degrees": 1 - centred,
            "mirrored left to right": np.column_stack([1 - centred[:, 0], centred[:, 1]]),
            "mirrored top to bottom": np.column_stack([centred[:, 0], 1 - centred[:, 1]]),
            "turned by 90 degrees": np.column_stack([1 - centred[:, 1], centred[:, 0]]),
            "turned by 90 degrees to the left": np.column_stack([centred[:, 1], 1 - centred[:, 0]]),
            "of x and y exchanged": centred[:, ::-1],
        }
        below = {name: darkness.under(places * size) for name, places in ways.items()}
        best = max(below, key=below.get)
        if below[best] > DARKER * max(given, 1) and below[best] > given + 15:
            self.notes.append(
                f"the spots would lie on more tissue if the picture were {best} (darkness {below[best]:.0f} below "
                f"them instead of {given:.0f}): look whether picture and coordinates belong together"
            )

    def _reach(self, darkness: _Darkness) -> None:
        """Refuse or note spots that fill but one corner of the picture: coordinates of a reduced one look so."""
        share = self._coords.max(axis=0) / (self.image.width, self.image.height)
        if share.max() >= 0.5:
            return
        given = darkness.under(self._coords)
        for picture in self.pictures:
            meant = darkness.under(self._coords / picture.scale)
            if meant > DARKER * given and meant > given + 15:
                raise InputError(
                    f"coordinates are those of the reduced picture {picture.where}, not of the full-resolution image",
                    file=self.file,
                    field=self.places,
                    value=f"up to {self._coords.max():.0f} px of {max(self.image.width, self.image.height)}",
                    fix=f"divide them by its scale factor, {picture.scale:.4g}",
                )
        self.notes.append(
            f"all spots lie in the upper left corner of the picture ({share[0]:.0%} of its width, {share[1]:.0%} "
            "of its height): coordinates of a reduced picture look so"
        )


class _Darkness:
    """How dark a picture is, at places in full-resolution pixels."""

    def __init__(self, image: ImageSource) -> None:
        self.image = image
        self._map: np.ndarray | None = None
        self._scale = 1.0

    def under(self, coords: np.ndarray) -> float:
        """Return the mean darkness, 0 to 255, of the darkest channel at (n, 2) places; 0 outside."""
        if self._map is None:
            small, self._scale = self.image.signature
            self._map = 255.0 - small.min(axis=2)
        column, row = np.floor(coords * self._scale).astype(np.intp).T
        height, width = self._map.shape
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        return float(self._map[row[inside], column[inside]].sum() / len(coords))


def _turn_of(vectors: np.ndarray) -> str:
    """Return how an array lies, from the (2, 2) steps in x and y of a row and a column; "" where as is usual."""
    (row_x, row_y), (column_x, column_y) = vectors
    straight = min(abs(row_y), abs(column_x)) > 2 * max(abs(row_x), abs(column_y))
    across = min(abs(row_x), abs(column_y)) > 2 * max(abs(row_y), abs(column_x))
    if straight:
        down, right = row_y > 0, column_x > 0
        return {(True, True): "", (False, False): "turned by 180 degrees", (True, False): "mirrored left to right"}.get(
            (down, right), "mirrored top to bottom"
        )
    if across:
        if row_x > 0 and column_y > 0:
            return "exchanged"
        if row_x < 0 and column_y < 0:
            return "mirrored and turned by 90 degrees"
        return "turned by 90 degrees"
    return "turned by an odd angle"


def _index_by_name(names: pd.Index) -> np.ndarray | None:
    """Return (n, 2) row and column from barcodes ``<x>x<y>``, as ST names its spots; None for others."""
    found = [re.fullmatch(r"(\d+)x(\d+)", name) for name in names]
    if not all(found):
        return None
    return np.array([(float(match[2]), float(match[1])) for match in found])


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32).mean(axis=2)


def _fitted(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a grey picture resized to a shape."""
    from PIL import Image

    if pixels.shape == tuple(shape):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BILINEAR))


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Return the correlation of two grey pictures; 0 where their shapes are those of different slides."""
    if abs((one.shape[0] / one.shape[1]) / (two.shape[0] / two.shape[1]) - 1) > 0.05:
        return 0.0
    return float(np.corrcoef(np.ravel(one), np.ravel(_fitted(two, one.shape)))[0, 1])


def _shift(one: np.ndarray, two: np.ndarray) -> tuple[int, int]:
    """Return by how many pixels x, y ``one`` shows things farther right and down than ``two``, by cross-correlation."""
    a, b = one - one.mean(), two - two.mean()
    shape = [2 * side for side in a.shape]
    product = np.fft.irfft2(np.fft.rfft2(a, shape) * np.conj(np.fft.rfft2(b, shape)), shape)
    y, x = np.unravel_index(product.argmax(), product.shape)
    return int(x - shape[1] * (x > a.shape[1])), int(y - shape[0] * (y > a.shape[0]))


def _moved(one: np.ndarray, two: np.ndarray, x: int, y: int) -> float:
    """Return the correlation of two grey pictures where they overlap, the first moved back by x, y.

    Both are blurred: the shift is known to whole pixels only.
    """
    from scipy.ndimage import gaussian_filter

    one, two = gaussian_filter(one, 1.5), gaussian_filter(two, 1.5)
    height, width = one.shape
    a = one[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
    b = two[max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)]
    if min(a.shape) < 0.3 * min(height, width):
        return 0.0
    return _correlation(a, b)
