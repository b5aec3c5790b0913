"""The manifest: a JSON list that says of each image its id, its class, and the files of its pixels and its mask.

``[{"id": "S_1:3x4", "label": "tumour", "image_path": "images/0.png", "mask_path": "masks/0.png", "patient": "P_1"}]``

The four first keys are those of DiffGuard (npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7); the patient is
optional, for who is hidden in a set is what an audit asks. Paths are relative to the manifest's folder and stay in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt import files as atomic
from histocrypt.errors import InputError, unknown_name
from histocrypt.synthesis.pairs import Pairs, Scheme

# ---- pixel files
# Images and masks from single files, ``.png`` or ``.npy``: what their numbers mean, decided by rule.


SUFFIXES = (".png", ".npy")
WINDOW_HU = (400.0, 0.0)
"""Width and level of the window through which Hounsfield units become grey levels, as in DiffGuard."""
_OFF_LEVEL = 0.02  # how far, in shares of a step, a grey level of floats may lie off its level: rounding, no more


def read_image(path: Path, **where: Any) -> np.ndarray:
    """Return a file's image, (side, side, channels) uint8, channels 1 or 3.

    A ``.png`` is grey or colour with 8 bits. A ``.npy`` of uint8 holds grey levels, (h, w), (h, w, 1) or (h, w, 3); any
    other type of numbers is a slice in Hounsfield units and is windowed (`WINDOW_HU`).

    Parameters
    ----------
    path
        The file; it is there.
    where
        ``file`` and ``field`` for the error.

    Raises
    ------
    InputError
        If it is not such an image, holds NaN, or is not square.
    """
    values = _from_png(path, where) if path.suffix.lower() == ".png" else _from_npy(path, where)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or values.size == 0:
        raise InputError(
            f"{path.name} is not an image", **where, value=values.shape, expected="(h, w) grey or (h, w, 3) colour"
        )
    if values.dtype != np.uint8:
        values = _windowed(values, path, where)
    if values.shape[0] != values.shape[1]:
        raise InputError(
            f"{path.name} is not square", **where, value=values.shape[:2], expected="as many rows as columns"
        )
    return values


def read_mask(path: Path, levels: int, **where: Any) -> np.ndarray:
    """Return a file's mask, (h, w) uint8 of indices of levels.

    Integers (and palettes) are indices, 0 to ``levels`` - 1. Floats are the reference's grey map, i / (levels - 1). A
    ``.png`` whose values are not all indices is that grey map in 8 bits, 255 i / (levels - 1), up to rounding; the two
    cannot be confused for up to 16 levels, and with more only indices are read.

    Parameters
    ----------
    path
        The file; it is there.
    levels
        Number of levels.
    where
        ``file`` and ``field`` for the error.

    Raises
    ------
    InputError
        If it is not such a mask, holds NaN, or a level that does not exist.
    """
    png = path.suffix.lower() == ".png"
    values = _from_png(path, where, palette=True) if png else _from_npy(path, where)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 or values.size == 0:
        raise InputError(
            f"{path.name} is not a mask", **where, value=values.shape, expected="one number a pixel, (h, w)"
        )
    steps = levels - 1
    if np.issubdtype(values.dtype, np.floating):
        return _from_grey(values.astype(np.float64) * steps, steps, _OFF_LEVEL, path, where)
    if values.min() >= 0 and values.max() <= steps:
        return values.astype(np.uint8)
    if png and levels <= 16:
        step = 255 / steps
        return _from_grey(values / step, steps, 0.51 / step, path, where)
    raise InputError(
        f"{path.name} has a level that does not exist", **where, value=_outside(values, steps), expected=f"0 to {steps}"
    )


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (s, s, channels) uint8 at another side: means of areas where it shrinks, else bilinear."""
    from PIL import Image

    if len(image) == side:
        return image
    way = Image.Resampling.BOX if side < len(image) else Image.Resampling.BILINEAR
    found = np.asarray(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).resize((side, side), way))
    return found.reshape(side, side, image.shape[2])


def resized_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Return a mask (s, s) uint8 at another side, every pixel that of its nearest: levels are never mixed."""
    from PIL import Image

    if len(mask) == side:
        return mask
    return np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))


def _from_png(path: Path, where: dict[str, Any], *, palette: bool = False) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} cannot be read as PNG", **where) from error
    if image.mode == "P" and not palette:
        image = image.convert("RGB")
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB"):
        raise InputError(
            f"{path.name} has pixels of an unknown kind",
            **where,
            value=image.mode,
            expected="8-bit grey or RGB, without transparency",
        )
    grey = image.mode == "1" and not palette
    return np.asarray(image.convert("L") if grey else image)


def _from_npy(path: Path, where: dict[str, Any]) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read as an array of numbers", **where) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        raise InputError(
            f"{path.name} does not hold numbers", **where, value=str(getattr(values, "dtype", type(values).__name__))
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path.name} holds NaN or infinite values", **where)
    return values


def _windowed(values: np.ndarray, path: Path, where: dict[str, Any]) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if values.shape[2] != 1 or (low >= 0 and high <= 1):
        msg = f"{path.name} holds neither grey levels nor Hounsfield units"
        found = f"{values.dtype} from {low:g} to {high:g}, {values.shape[2]} channels"
        raise InputError(msg, **where, value=found, expected="uint8 from 0 to 255, or one channel in Hounsfield units")
    width, level = WINDOW_HU
    share = (values.astype(np.float64) - (level - width / 2)) / width
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _from_grey(steps: np.ndarray, last: int, tolerance: float, path: Path, where: dict[str, Any]) -> np.ndarray:
    """Return the nearest of the levels 0 to ``last``; further off than ``tolerance`` there is none."""
    level = np.clip(np.rint(steps), 0, last)
    off = np.abs(steps - level) > tolerance
    if off.any():
        value = float(steps[off].flat[0] / last)
        msg = f"{path.name} has a level that does not exist"
        expected = f"whole numbers 0 to {last}, or grey levels i / {last}"
        raise InputError(msg, **where, value=f"{value:.3g} of the brightest", expected=expected)
    return level.astype(np.uint8)


def _outside(values: np.ndarray, last: int) -> int:
    return int(values[(values < 0) | (values > last)].flat[0])


# ---- manifest


NAME = "manifest.json"
REQUIRED = ("id", "label", "image_path", "mask_path")
OPTIONAL = ("patient", "MIA_label")
"""``MIA_label`` stands in manifests of the reference's shadow data; here who is a member is said by patient instead."""


@dataclass(frozen=True)
class Record:
    """One image of a manifest."""

    id: str
    """Unique in its manifest."""
    label: str
    """One of the scheme's classes."""
    image_path: Path
    mask_path: Path | None
    """None only for the control class."""
    patient: str = ""
    """Empty where nobody is named, as of synthetic images."""


def read_manifest(path: str | Path, *, scheme: Scheme, allow_outside: bool = False) -> list[Record]:
    """Return the records of a manifest, checked; pixels are not read yet.

    Parameters
    ----------
    path
        The file, or the folder that holds ``manifest.json``.
    scheme
        Which classes there are, and which of them may lack a mask.
    allow_outside
        Accept absolute paths, and paths that leave the manifest's folder. Only for a manifest that you wrote yourself.

    Raises
    ------
    InputError
        One sentence that names the file, the record and the field.
    """
    path = _file(path)
    content = atomic.read_json(path)
    if not isinstance(content, list):
        raise InputError(
            "is not a list of records",
            file=path,
            value=type(content).__name__,
            expected=f"[{{{', '.join(REQUIRED)}}}, ...]",
        )
    if not content:
        raise InputError("names no image", file=path, expected="at least one record")
    records = [
        _record(entry, number, path, scheme, allow_outside=allow_outside) for number, entry in enumerate(content)
    ]
    _check_unique(records, path)
    return records


def write_manifest(path: str | Path, records: Sequence[Record]) -> None:
    """Write a manifest, atomically; its paths are stored relative to its folder.

    Raises
    ------
    InputError
        If an id stands twice, or a file lies outside the manifest's folder.
    """
    path = Path(path)
    _check_unique(records, path)
    folder, content = path.parent.resolve(), []
    for record in records:
        entry: dict[str, Any] = {"id": record.id, "label": record.label}
        for field in ("image_path", "mask_path"):
            given = getattr(record, field)
            if given is not None and not given.resolve().is_relative_to(folder):
                raise InputError(
                    "lies outside the manifest's folder", file=path, field=_field(record.id, field), value=str(given)
                )
            entry[field] = None if given is None else given.resolve().relative_to(folder).as_posix()
        if record.patient:
            entry["patient"] = record.patient
        content.append(entry)
    atomic.write_json(path, content)


def load_pairs(path: str | Path, *, scheme: Scheme, side: int, allow_outside: bool = False) -> Pairs:
    """Return the images and masks that a manifest names, at one side.

    Images are reduced by means of areas, masks by the nearest pixel, so that no level appears that was not there.

    Parameters
    ----------
    path
        The manifest, or its folder.
    scheme
        Classes and levels.
    side
        Side of all images, pixels.
    allow_outside
        As of `read_manifest`.

    Raises
    ------
    InputError
        As of `read_manifest`; or if a file is no image or mask, sizes disagree, a level does not exist, or some images
        are grey and others coloured.
    """
    path = _file(path)
    records = read_manifest(path, scheme=scheme, allow_outside=allow_outside)
    images, masks = [], np.zeros((len(records), side, side), dtype=np.uint8)
    for row, record in enumerate(records):
        image = read_image(record.image_path, file=path, field=_field(record.id, "image_path"))
        if images and image.shape[2] != images[0].shape[2]:
            kinds = {1: "grey", 3: "coloured"}
            raise InputError(
                f"is {kinds[image.shape[2]]}, and those before it are {kinds[images[0].shape[2]]}",
                file=path,
                field=_field(record.id, "image_path"),
                fix="make all of one kind",
            )
        images.append(resized(image, side))
        if record.mask_path is None:
            continue
        where = {"file": path, "field": _field(record.id, "mask_path")}
        mask = read_mask(record.mask_path, len(scheme.levels), **where)
        if mask.shape != image.shape[:2]:
            raise InputError(
                "mask and image differ in size", **where, value=mask.shape, expected=f"{image.shape[:2]}, as the image"
            )
        masks[row] = resized_mask(mask, side)
    return Pairs(
        scheme,
        ids=np.array([record.id for record in records], dtype=str),
        labels=np.array([record.label for record in records], dtype=str),
        patients=np.array([record.patient for record in records], dtype=str),
        images=np.stack(images),
        masks=masks,
        has_mask=np.array([record.mask_path is not None for record in records]),
    )


def save_pairs(folder: str | Path, pairs: Pairs) -> Path:
    """Write images and masks as PNG (a mask's pixels are indices of levels) with their manifest; return its path.

    The inverse of `load_pairs` at the same side. The manifest is written last. What an earlier manifest in this folder
    named and this one does not is deleted: an image that was taken out of a set must not stay beside it.
    """
    folder = Path(folder)
    earlier = _named(folder)
    records = []
    for row, name in enumerate(pairs.ids.tolist()):
        image, mask = folder / "images" / f"{row:06d}.png", folder / "masks" / f"{row:06d}.png"
        _write_png(image, pairs.images[row])
        if pairs.has_mask[row]:
            _write_png(mask, pairs.masks[row])
        patient = str(pairs.patients[row])
        records.append(Record(name, str(pairs.labels[row]), image, mask if pairs.has_mask[row] else None, patient))
    write_manifest(folder / NAME, records)
    kept = {file.resolve() for record in records for file in (record.image_path, record.mask_path) if file}
    for file in earlier - kept:
        file.unlink(missing_ok=True)
    return folder / NAME


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / NAME if path.is_dir() else path


def _field(record: str, key: str) -> str:
    return f"record {record}, {key}"


def _record(entry: Any, number: int, path: Path, scheme: Scheme, *, allow_outside: bool) -> Record:
    if not isinstance(entry, dict):
        raise InputError(
            "is not a record", file=path, field=f"entry {number}", value=entry, expected=", ".join(REQUIRED)
        )
    name = entry.get("id")
    where = {"file": path, "field": f"record {name}" if name not in (None, "") else f"entry {number}"}
    for key in REQUIRED:
        if key not in entry:
            raise InputError(f"lacks {key}", **where, expected=", ".join(REQUIRED))
    for key in entry:
        if key not in REQUIRED + OPTIONAL:
            raise unknown_name("key", key, REQUIRED + OPTIONAL, **where)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise InputError("has no id", **where, value=name, expected="a word or a whole number")
    name, patient = str(name), entry.get("patient") or ""
    if not isinstance(patient, str):
        raise InputError("is not a word", file=path, field=_field(name, "patient"), value=patient)
    if entry["label"] not in scheme.classes:
        known = f"one of {', '.join(scheme.classes)}"
        raise InputError(
            "is no known class", file=path, field=_field(name, "label"), value=entry["label"], expected=known
        )
    files = {}
    for key in ("image_path", "mask_path"):
        place = {"file": path, "field": _field(name, key)}
        if key == "mask_path" and entry[key] is None:
            if entry["label"] != scheme.control:
                raise InputError(
                    f"is null, and a record of class {entry['label']} needs a mask",
                    **place,
                    expected=f"null only for {scheme.control}" if scheme.control else "a file",
                )
            files[key] = None
            continue
        files[key] = _confined(entry[key], path.parent, place, allow_outside=allow_outside)
    return Record(name, entry["label"], files["image_path"], files["mask_path"], patient)


def _confined(given: Any, folder: Path, where: dict[str, Any], *, allow_outside: bool) -> Path:
    if not isinstance(given, str) or not given or "\0" in given:
        raise InputError("is not a path", **where, value=given)
    if Path(given).suffix.lower() not in SUFFIXES:
        raise InputError("is of an unknown format", **where, value=given, expected=" or ".join(SUFFIXES))
    found = (folder / given).resolve()
    if not allow_outside and (Path(given).is_absolute() or not found.is_relative_to(folder.resolve())):
        fix = "copy the file into that folder"
        raise InputError("leaves the manifest's folder", **where, value=given, expected="a path inside it", fix=fix)
    if not found.is_file():
        raise InputError("is not there", **where, value=given)
    return found


def _check_unique(records: Sequence[Record], path: Path) -> None:
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise InputError("stands twice", file=path, field=f"record {record.id}", expected="every id once")
        seen.add(record.id)


def _named(folder: Path) -> set[Path]:
    """Return the files inside a folder that its manifest names; none where it has no readable manifest."""
    try:
        content = atomic.read_json(folder / NAME)
        given = [entry[key] for entry in content for key in ("image_path", "mask_path") if entry[key] is not None]
    except (InputError, TypeError, KeyError):
        return set()
    found = {(folder / name).resolve() for name in given if isinstance(name, str)}
    return {file for file in found if file.is_relative_to(folder.resolve())}


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with atomic.atomic_path(path) as temporary:
        Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(temporary)
