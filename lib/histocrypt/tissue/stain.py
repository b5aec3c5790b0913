"""Stain statistics of a section, and the normalisation of tiles to a reference.

Both methods are split into an estimate (from a sample of tissue pixels; a small JSON file) and an application (tile by
tile, in bounded memory), so that the reference of a fold can be made from training sections alone.

Sources
-------
Macenko M. et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
Reinhard E. et al., "Color transfer between images", IEEE CG&A 21(5), 2001; here in CIELAB, as torchstain does.
torchstain (MIT) is the yardstick of the tests: given the same pixels, both agree to about two grey levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from histocrypt import files
from histocrypt.errors import InputError, unknown_name

METHODS = ("macenko", "reinhard", "none")

INCIDENT_LIGHT = 240.0
"""Grey level of light that met no stain (Macenko's I0)."""
LEAST_OD = 0.15
"""Optical density below which a pixel counts as unstained (Macenko's beta)."""
ANGLE_PERCENTILE = 1.0
"""Percentile of the angles that are taken as the pure stains (Macenko's alpha)."""
LEAST_PIXELS = 500
"""Stained pixels needed to estimate stain vectors."""
LEAST_ANGLE_DEG = 3.0
"""Stain vectors closer than this are one stain: unmixing them would only amplify noise."""

# The reference stain matrix and concentrations published with Macenko's method (rows R, G, B; columns H, E).
DEFAULT_MATRIX = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
DEFAULT_CONCENTRATIONS = np.array([1.9705, 1.0308])

_OD = -np.log((np.arange(256) + 1.0) / INCIDENT_LIGHT)
_OD32 = _OD.astype(np.float32)
_CHUNK = 1 << 16  # pixels handled at once: about a MiB of float32, which stays in the cache


@dataclass(frozen=True, eq=False)
class StainStatistics:
    """What both normalisation methods need to know about a section's (or a reference's) colours."""

    method: Literal["macenko", "default"]
    """How the stain matrix came about: estimated, or the published default (`note` says why)."""
    stain_matrix: np.ndarray
    """(3, 2) float64, unit columns haematoxylin and eosin in optical density (rows R, G, B)."""
    max_concentrations: np.ndarray
    """(2,) float64, 99th percentile of the concentration of each stain."""
    lab_mean: np.ndarray
    """(3,) float64, mean CIELAB colour of tissue pixels."""
    lab_sd: np.ndarray
    """(3,) float64, its standard deviation."""
    n_pixels: int
    """Pixels the statistics were estimated from."""
    note: str = ""
    """Empty, or why Macenko's estimate could not be made and what stands in its place."""

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any], *, file: str | Path | None = None) -> StainStatistics:
        """Return the statistics that `to_dict` described; a damaged description is an `InputError`."""
        shapes = {"stain_matrix": (3, 2), "max_concentrations": (2,), "lab_mean": (3,), "lab_sd": (3,)}
        arrays = {}
        for field, shape in shapes.items():
            try:
                array = np.asarray(content[field], dtype=np.float64)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    "is missing or not numeric", file=file, field=field, fix="run preprocessing again"
                ) from error
            if array.shape != shape or not np.isfinite(array).all():
                raise InputError(
                    "has the wrong shape or is not finite",
                    file=file,
                    field=field,
                    value=array.tolist(),
                    expected=f"shape {shape}",
                )
            arrays[field] = array
        return cls(
            method=content.get("method", "macenko"),
            n_pixels=int(content.get("n_pixels", 0)),
            note=str(content.get("note", "")),
            **arrays,
        )

    def save(self, path: str | Path) -> None:
        """Write the statistics as JSON, atomically."""
        files.write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> StainStatistics:
        """Read statistics written by `save`."""
        return cls.from_dict(files.read_json(path), file=path)


def estimate(pixels: np.ndarray) -> StainStatistics:
    """Estimate the stain statistics of a section from a sample of its tissue pixels.

    Never fails on odd tissue: where Macenko's estimate cannot be made (too few stained pixels, or only one stain), the
    published default matrix is used, `method` is "default" and `note` says why.

    Parameters
    ----------
    pixels
        (n, 3) uint8 RGB; a few hundred thousand are plenty.

    Raises
    ------
    ValueError
        If the array is not (n, 3) uint8.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 2 or pixels.shape[1] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be (n, 3) uint8, not {pixels.shape} {pixels.dtype}")
    od = _OD[pixels]
    stained = od[(od >= LEAST_OD).all(axis=1)]
    matrix, why = _stain_matrix(stained)
    note = ""
    if matrix is None:
        matrix = DEFAULT_MATRIX
        note = f"Macenko's stain vectors could not be estimated ({why}); the published default matrix is used"
    concentrations = DEFAULT_CONCENTRATIONS
    if matrix is DEFAULT_MATRIX and len(stained):
        # Unmixing by vectors that do not fit would trade one stain for the other: change the strength alone.
        usual = (DEFAULT_MATRIX[:, 0] * DEFAULT_CONCENTRATIONS[0]).sum()
        concentrations = DEFAULT_CONCENTRATIONS * np.clip(np.percentile(stained.sum(axis=1), 99) / usual, 0.2, 5.0)
    elif len(stained):
        found = np.percentile(od @ np.linalg.pinv(matrix).T, 99, axis=0)
        # A stain that is all but absent would be amplified without bound: keep it within a fifth of the usual range.
        concentrations = np.maximum(found, 0.2 * DEFAULT_CONCENTRATIONS)
        if (concentrations > found).any():
            note = "a stain is almost absent: its strength is taken as a fifth of the usual"
    if len(pixels):
        lab = rgb_to_lab(pixels)
        mean, sd = lab.mean(axis=0, dtype=np.float64), lab.std(axis=0, dtype=np.float64)
    else:
        mean, sd = np.array([100.0, 0.0, 0.0]), np.zeros(3)
    return StainStatistics(
        "default" if matrix is DEFAULT_MATRIX else "macenko", matrix, concentrations, mean, sd, len(pixels), note
    )


def _stain_matrix(stained: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Return Macenko's (3, 2) stain matrix from stained optical densities, or None and the reason."""
    if len(stained) < LEAST_PIXELS:
        return None, f"{len(stained)} stained pixels, {LEAST_PIXELS} needed"
    _, vectors = np.linalg.eigh(np.cov(stained.T))  # ascending: the last two span the plane of the stains
    plane = vectors[:, 1:] * np.where(vectors[:, 1:].sum(axis=0) < 0, -1.0, 1.0)
    projected = stained @ plane
    angle = np.arctan2(projected[:, 1], projected[:, 0])
    low, high = np.percentile(angle, [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE])
    if np.degrees(high - low) < LEAST_ANGLE_DEG:
        return None, f"the stains differ by {np.degrees(high - low):.1f} degrees only, as if there were one"
    pair = plane @ np.array([[np.cos(low), np.cos(high)], [np.sin(low), np.sin(high)]])
    if pair.min() < -0.2:
        return None, "an estimated stain would emit light"
    return pair[:, np.argsort(-pair[0])], ""  # haematoxylin absorbs more red than eosin does


def pool(statistics: Sequence[StainStatistics]) -> StainStatistics:
    """Return the statistics of a reference made of several sections, each with the same weight.

    Sections whose stain matrix is the default one take part in the colours, and in the matrix only where no section has
    an estimated one.

    Raises
    ------
    ValueError
        If there is nothing to pool.
    """
    if not statistics:
        raise ValueError("no stain statistics to pool")
    estimated = [one for one in statistics if one.method == "macenko"]
    chosen = estimated or list(statistics)
    matrix = np.mean([one.stain_matrix for one in chosen], axis=0)
    left_out = len(statistics) - len(estimated)
    return StainStatistics(
        method="macenko" if estimated else "default",
        stain_matrix=matrix / np.linalg.norm(matrix, axis=0),
        max_concentrations=np.mean([one.max_concentrations for one in chosen], axis=0),
        lab_mean=np.mean([one.lab_mean for one in statistics], axis=0),
        lab_sd=np.sqrt(np.mean([np.square(one.lab_sd) for one in statistics], axis=0)),
        n_pixels=sum(one.n_pixels for one in statistics),
        note=f"stain vectors of {left_out} of {len(statistics)} sections could not be estimated" if left_out else "",
    )


def normalise(
    tiles: np.ndarray, *, source: StainStatistics, reference: StainStatistics, method: str = "macenko"
) -> np.ndarray:
    """Return tiles with the reference's colours.

    Pixels brighter than the incident light hold no stain and are kept, so that white background stays white.

    Parameters
    ----------
    tiles
        (..., 3) uint8 RGB of one section.
    source
        Statistics of that section.
    reference
        Statistics to match, usually `pool` of the training sections.
    method
        "macenko", "reinhard" or "none".

    Returns
    -------
    numpy.ndarray
        uint8 of the same shape; ``tiles`` itself for "none".
    """
    if method not in METHODS:
        raise unknown_name("stain method", method, METHODS)
    if tiles.dtype != np.uint8 or tiles.shape[-1] != 3:
        raise ValueError(f"tiles must be (..., 3) uint8, not {tiles.shape} {tiles.dtype}")
    if method == "none":
        return tiles
    change = _macenko(source, reference) if method == "macenko" else _reinhard(source, reference)
    flat = np.ascontiguousarray(tiles).reshape(-1, 3)
    out = np.empty_like(flat)
    for start in range(0, len(flat), _CHUNK):
        change(flat[start : start + _CHUNK], out[start : start + _CHUNK])
    return out.reshape(tiles.shape)


def _macenko(source: StainStatistics, reference: StainStatistics):
    # Unmix, rescale each stain, mix again: three linear maps of optical density, multiplied out once.
    scale = np.diag(reference.max_concentrations / source.max_concentrations)
    linear = reference.stain_matrix @ scale @ np.linalg.pinv(source.stain_matrix)
    weights = -linear.astype(np.float32)
    incident = np.float32(np.log(INCIDENT_LIGHT))

    def change(rgb: np.ndarray, out: np.ndarray) -> None:
        planes = [_OD32[rgb[:, channel]] for channel in range(3)]
        for channel, (r, g, b) in enumerate(weights):
            level = planes[0] * r
            level += planes[1] * g
            level += planes[2] * b
            level += incident
            np.exp(level, out=level)
            level += np.float32(0.5)
            np.minimum(level, np.float32(255.0), out=level)
            out[:, channel] = level
        bright = (rgb[:, 0] >= INCIDENT_LIGHT) & (rgb[:, 1] >= INCIDENT_LIGHT) & (rgb[:, 2] >= INCIDENT_LIGHT)
        if bright.any():
            out[bright] = rgb[bright]

    return change


def _reinhard(source: StainStatistics, reference: StainStatistics):
    # A channel without any spread (one colour only) is moved, not stretched.
    ratio = np.where(source.lab_sd > 1e-3, reference.lab_sd / np.maximum(source.lab_sd, 1e-3), 1.0)
    ratio, offset = ratio.astype(np.float32), (reference.lab_mean - ratio * source.lab_mean).astype(np.float32)

    def change(rgb: np.ndarray, out: np.ndarray) -> None:
        lab = rgb_to_lab(rgb) * ratio + offset
        moved = lab_to_rgb(lab)
        # Fade out over the last twenty grey levels below the incident light: white keeps its place without a seam.
        weight = np.clip((np.float32(INCIDENT_LIGHT) - rgb.min(axis=1)) / np.float32(20.0), 0, 1)[:, None]
        out[:] = (moved * weight + rgb * (1 - weight) + np.float32(0.5)).astype(np.uint8)

    return change


_GREY = np.arange(256) / 255.0
_LINEAR = np.where(_GREY > 0.04045, ((_GREY + 0.055) / 1.055) ** 2.4, _GREY / 12.92).astype(np.float32)
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_XYZ = (_XYZ / _WHITE[:, None]).T.astype(np.float32)
_FROM_XYZ = np.linalg.inv(_XYZ / _WHITE[:, None]).T.astype(np.float32)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Return (n, 3) uint8 sRGB as CIELAB (D65), float32."""
    xyz = _LINEAR[rgb] @ _TO_XYZ
    f = np.where(xyz > 0.008856, np.cbrt(xyz), np.float32(7.787) * xyz + np.float32(16 / 116))
    x, y, z = f[:, 0], f[:, 1], f[:, 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """Return (n, 3) CIELAB as sRGB grey levels 0 to 255, float32, clipped to what a screen shows."""
    y = (lab[:, 0] + 16) / 116
    f = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 0.2068966, f**3, (f - np.float32(16 / 116)) / np.float32(7.787))
    linear = np.clip(xyz @ _FROM_XYZ, 0, 1)
    rgb = np.where(linear > 0.0031308, 1.055 * linear ** np.float32(1 / 2.4) - 0.055, 12.92 * linear)
    return np.clip(rgb, 0, 1).astype(np.float32) * np.float32(255)


def _default_reference() -> StainStatistics:
    levels = [np.linspace(0.0, most, 16) for most in DEFAULT_CONCENTRATIONS]
    mixtures = np.stack(np.meshgrid(*levels), axis=-1).reshape(-1, 2)
    rgb = np.clip(INCIDENT_LIGHT * np.exp(-mixtures @ DEFAULT_MATRIX.T), 0, 255).astype(np.uint8)
    lab = rgb_to_lab(rgb).astype(np.float64)
    note = "published reference, learnt from no section"
    mean, sd = lab.mean(axis=0), lab.std(axis=0)
    return StainStatistics("default", DEFAULT_MATRIX, DEFAULT_CONCENTRATIONS, mean, sd, 0, note)


DEFAULT_REFERENCE = _default_reference()
"""A reference that depends on no study: Macenko's published stains, and the CIELAB statistics of even mixtures."""
