"""Images with masks as files: read by a manifest, written with one, or written in the layout of nnU-Net.

The manifest is a JSON list that says of each image its id, its class, and the files of its pixels and its mask.

``[{"id": "S_1:3x4", "label": "tumour", "image_path": "images/0.png", "mask_path": "masks/0.png", "patient": "P_1"}]``

The four first keys are those of DiffGuard (npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7); the patient is
optional, for who is hidden in a set is what an audit asks. So is ``MIA_label``, by which DiffGuard's shadow data say
who is a member: 1 for the private half, 0 for the public one. Paths are relative to the manifest's folder and stay in
it.

nnU-Net v2 is no dependency; its layout is for who wants to train it (benchmarks/nnunet.py does):
``nnUNet_raw/Dataset<id>_<name>/`` with ``imagesTr/<case>_0000.png``, ``labelsTr/<case>.png``, the same for ``Ts``, and
``dataset.json``; as documented by nnU-Net (documentation/dataset_format.md). A colour image is one file of three
channels, read by its ``NaturalImage2DIO``. ``cases.json`` says which id, patient and class every case has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path, read_json, write_json

NAME = "manifest.json"
REQUIRED = ("id", "label", "image_path", "mask_path")
OPTIONAL = ("patient", "MIA_label")
SUFFIXES = (".png", ".npy")
WINDOW_HU = (400.0, 0.0)
"""Width and level of the window through which Hounsfield units become grey levels, as in DiffGuard."""
OFF_LEVEL = 0.02
"""How far, in shares of a step, a grey level of floats may lie off its level: rounding, no more."""
CHANNELS = {1: ("grey",), 3: ("R", "G", "B")}
"""Names of the channels that nnU-Net is told, by their number."""


@dataclass(frozen=True)
class Scheme:
    """Classes of images, and levels of their masks.

    Parameters
    ----------
    classes
        What a record's label may be.
    levels
        What the values 0, 1, ... of a mask mean, from background on.
    control
        The class that has nothing to outline: its records may lack a mask, and it has a generator of its own.
    """

    classes: tuple[str, ...]
    levels: tuple[str, ...]
    control: str | None = None

    def __post_init__(self) -> None:
        """Check that names are unique and the control is a class."""
        for field, names in (("classes", self.classes), ("levels", self.levels)):
            if len(set(names)) != len(names) or len(names) < 2:
                raise InputError("are not at least two different names", field=field, value=list(names))
        if self.control is not None and self.control not in self.classes:
            raise InputError(
                "is not among the classes", field="control", value=self.control, expected=", ".join(self.classes)
            )

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Scheme:
        """Return the scheme of a description that was read from JSON."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})

    def encode(self, mask: np.ndarray) -> np.ndarray:
        """Return levels (..., h, w) integers as one grey map, float32 from -1 (level 0) to 1 (the last level)."""
        if mask.size and not (0 <= mask.min() and mask.max() < len(self.levels)):
            found = f"{mask.min()} to {mask.max()}"
            raise InputError("mask has levels that are not known", value=found, expected=f"0 to {len(self.levels) - 1}")
        return (mask.astype(np.float32) / (len(self.levels) - 1)) * 2 - 1

    def decode(self, grey: np.ndarray) -> np.ndarray:
        """Return the nearest level of each pixel of grey maps (..., h, w) in [-1, 1]; uint8. Inverse of `encode`."""
        steps = len(self.levels) - 1
        return np.clip(np.rint((np.asarray(grey, dtype=np.float64) + 1) / 2 * steps), 0, steps).astype(np.uint8)


TISSUE = Scheme(("normal", "tumour"), ("background", "stroma", "nuclei", "tumour region"), "normal")
"""Tiles of H&E. Nuclei are nuclei wherever they lie; tumour region is what of the tumour is no nucleus."""

CHEST = Scheme(
    ("normal", "thymoma", "benign cysts", "germ cell tumor", "neurogenic tumor", "thymic carcinoma"),
    (
        "background",
        "body",
        "thymoma",
        "benign cysts",
        "germ cell tumor",
        "neurogenic tumor",
        "thymic carcinoma",
    ),
    "normal",
)
"""Axial slices of the chest, as in DiffGuard (npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7)."""


@dataclass(frozen=True)
class Pairs:
    """n images of one side with their masks; rows belong together and are named."""

    scheme: Scheme
    ids: np.ndarray
    """(n,) str, unique."""
    labels: np.ndarray
    """(n,) str, each one of ``scheme.classes``."""
    patients: np.ndarray
    """(n,) str; of synthetic images ``""``."""
    images: np.ndarray
    """(n, side, side, channels) uint8; 1 channel (grey) or 3 (RGB)."""
    masks: np.ndarray
    """(n, side, side) uint8, indices into ``scheme.levels``; all 0 where `has_mask` is False."""
    has_mask: np.ndarray
    """(n,) bool."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.ids)

    @property
    def sections(self) -> np.ndarray:
        """(n,) str: what stands before the colon of an id, of real tiles their section."""
        return np.array([name.split(":", 1)[0] for name in self.ids.tolist()], dtype=str)

    def subset(self, keep: np.ndarray) -> Pairs:
        """Return the rows chosen by a boolean mask or by indices."""
        rows = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "scheme"}
        return Pairs(self.scheme, **rows)

    @classmethod
    def join(cls, parts: list[Pairs]) -> Pairs:
        """Return all rows of several, in order; their schemes must be equal."""
        if any(part.scheme != parts[0].scheme for part in parts):
            raise ValueError("pairs of different schemes cannot be joined")
        names = [f.name for f in fields(cls) if f.name != "scheme"]
        return cls(parts[0].scheme, **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    def signals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images (n, channels, side, side) and masks (n, 1, side, side), both float32 in [-1, 1]."""
        images = np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1
        return images, self.scheme.encode(self.masks)[:, None]


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
    member: bool | None = None
    """``MIA_label``: True of private, False of public; None where the manifest does not say."""


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
        with _said_of(path, f"record {record.id}, image_path"):
            image = read_image(record.image_path)
            if images and image.shape[2] != images[0].shape[2]:
                now, before = (("grey", "coloured")[pixels.shape[2] == 3] for pixels in (image, images[0]))
                raise InputError(f"is {now}, and those before it are {before}", fix="make all of one kind")
            images.append(resized(image, side))
        if record.mask_path is not None:
            with _said_of(path, f"record {record.id}, mask_path"):
                mask, size = read_mask(record.mask_path, len(scheme.levels)), image.shape[:2]
                if mask.shape != size:
                    expected = f"{size}, as the image"
                    raise InputError("mask and image differ in size", value=mask.shape, expected=expected)
                masks[row] = resized_mask(mask, side)
    ids, labels, patients = (
        np.array([getattr(record, name) for record in records], dtype=str) for name in ("id", "label", "patient")
    )
    has_mask = np.array([record.mask_path is not None for record in records])
    return Pairs(scheme, ids, labels, patients, np.stack(images), masks, has_mask)


def members_of(path: str | Path, records: Sequence[Record]) -> np.ndarray:
    """Return who is a member by ``MIA_label``, (n,) bool, of the records that were read from ``path``.

    Raises
    ------
    InputError
        If a record does not say.
    """
    for record in records:
        if record.member is None:
            where = {"file": _file(path), "field": f"record {record.id}, MIA_label"}
            raise InputError("is missing", **where, expected="1 (private) or 0 (public) in every record")
    return np.array([record.member for record in records], dtype=bool)


def save_pairs(folder: str | Path, pairs: Pairs, *, member: np.ndarray | None = None) -> Path:
    """Write images and masks as PNG (a mask's pixels are indices of levels) with their manifest; return its path.

    ``member``, (n,) bool, is written as ``MIA_label``.

    The inverse of `load_pairs` at the same side. The manifest is written last. What an earlier manifest in this folder
    named and this one does not is deleted: an image that was taken out of a set must not stay beside it.
    """
    folder = Path(folder)
    earlier, records = _named(folder), []
    for row, name in enumerate(pairs.ids.tolist()):
        image, mask = folder / "images" / f"{row:06d}.png", folder / "masks" / f"{row:06d}.png"
        _write_png(image, pairs.images[row])
        if pairs.has_mask[row]:
            _write_png(mask, pairs.masks[row])
        label, patient = str(pairs.labels[row]), str(pairs.patients[row])
        private = None if member is None else bool(member[row])
        records.append(Record(name, label, image, mask if pairs.has_mask[row] else None, patient, private))
    write_manifest(folder / NAME, records)
    kept = {file.resolve() for record in records for file in (record.image_path, record.mask_path) if file}
    for file in earlier - kept:
        file.unlink(missing_ok=True)
    return folder / NAME


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
    content = read_json(path)
    if not isinstance(content, list):
        expected = f"[{{{', '.join(REQUIRED)}}}, ...]"
        raise InputError("is not a list of records", file=path, value=type(content).__name__, expected=expected)
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
        If an id appears twice, or a file lies outside the manifest's folder.
    """
    path = Path(path)
    _check_unique(records, path)
    folder, content = path.parent.resolve(), []
    for record in records:
        entry: dict[str, Any] = {"id": record.id, "label": record.label}
        for field in ("image_path", "mask_path"):
            given = getattr(record, field)
            if given is not None and not given.resolve().is_relative_to(folder):
                where = {"file": path, "field": f"record {record.id}, {field}"}
                raise InputError("lies outside the manifest's folder", **where, value=str(given))
            entry[field] = None if given is None else given.resolve().relative_to(folder).as_posix()
        if record.patient:
            entry["patient"] = record.patient
        if record.member is not None:
            entry["MIA_label"] = int(record.member)
        content.append(entry)
    write_json(path, content)


def read_image(path: Path) -> np.ndarray:
    """Return a file's image, (side, side, channels) uint8, channels 1 or 3.

    A ``.png`` is grey or colour with 8 bits. A ``.npy`` of uint8 holds grey levels, (h, w), (h, w, 1) or (h, w, 3); any
    other type of numbers is a slice in Hounsfield units and is windowed (`WINDOW_HU`).

    Raises
    ------
    InputError
        If it is not such an image, holds NaN, or is not square.
    """
    values = _from_png(path) if path.suffix.lower() == ".png" else _from_npy(path)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or values.size == 0:
        expected = "(h, w) grey or (h, w, 3) colour"
        raise InputError(f"{path.name} is not an image", value=values.shape, expected=expected)
    if values.dtype != np.uint8:
        values = _windowed(values, path)
    if values.shape[0] != values.shape[1]:
        raise InputError(f"{path.name} is not square", value=values.shape[:2], expected="a square image")
    return values


def read_mask(path: Path, levels: int) -> np.ndarray:
    """Return a file's mask, (h, w) uint8 of indices of levels.

    Integers (and palettes) are indices, 0 to ``levels`` - 1. Floats are the reference's grey map, i / (levels - 1). A
    ``.png`` whose values are not all indices is that grey map in 8 bits, 255 i / (levels - 1), up to rounding; the two
    cannot be confused for up to 16 levels, and with more only indices are read.

    Raises
    ------
    InputError
        If it is not such a mask, holds NaN, or a level that does not exist.
    """
    png, last = path.suffix.lower() == ".png", levels - 1
    values = _from_png(path, palette=True) if png else _from_npy(path)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"{path.name} is not a mask", value=values.shape, expected="one number per pixel, (h, w)")
    if np.issubdtype(values.dtype, np.floating):
        return _from_grey(values.astype(np.float64) * last, last, OFF_LEVEL, path)
    outside = values[(values < 0) | (values > last)]
    if not outside.size:
        return values.astype(np.uint8)
    if png and levels <= 16:
        return _from_grey(values / (255 / last), last, 0.51 / (255 / last), path)
    raise InputError(f"{path.name} has a level that does not exist", value=int(outside[0]), expected=f"0 to {last}")


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (s, s, channels) uint8 at another side: means of areas where it shrinks, else bilinear."""
    from PIL import Image

    if len(image) == side:
        return image
    way = Image.Resampling.BOX if side < len(image) else Image.Resampling.BILINEAR
    other = np.asarray(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).resize((side, side), way))
    return other.reshape(side, side, image.shape[2])


def resized_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Return a mask (s, s) uint8 at another side, every pixel that of its nearest: levels are never mixed."""
    from PIL import Image

    if len(mask) == side:
        return mask
    return np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))


def export_nnunet(folder: str | Path, pairs_train: Pairs, pairs_test: Pairs, *, dataset_id: int, name: str) -> Path:
    """Write a data set; return its folder. Records without a mask are left out.

    Parameters
    ----------
    folder
        nnU-Net's ``nnUNet_raw``.
    pairs_train, pairs_test
        Images and masks of one scheme, side and number of channels.
    dataset_id
        1 to 999; nnU-Net's own challenges have the first ten.
    name
        Letters, digits and underscores.

    Raises
    ------
    InputError
        If a name or number does not fit, a patient is on both sides, or the sets differ in kind.
    """
    if not 1 <= dataset_id <= 999:
        raise InputError("is not the number of a data set", field="dataset_id", value=dataset_id, expected="1 to 999")
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise InputError(
            "is not the name of a data set", field="name", value=name, expected="letters, digits, underscores"
        )
    shapes = [pairs.images.shape[1:] for pairs in (pairs_train, pairs_test)]
    if pairs_train.scheme != pairs_test.scheme or shapes[0] != shapes[1]:
        raise InputError("training and test images differ in scheme, side or channels", value=shapes)
    both = sorted(set(pairs_train.patients.tolist()) & set(pairs_test.patients.tolist()) - {""})
    if both:
        raise InputError(
            f"patient {both[0]} is both among the training and the test images", fix="hold out whole patients"
        )
    root, cases = Path(folder) / f"Dataset{dataset_id:03d}_{name}", {}
    if root.exists() and any(root.iterdir()):
        raise InputError("is not empty", file=root, fix="delete it, or choose another dataset_id or name")
    for part, pairs in (("Tr", pairs_train), ("Ts", pairs_test)):
        for row in np.flatnonzero(pairs.has_mask).tolist():
            case = f"{name}_{part}_{row:06d}"
            _write_png(root / f"images{part}" / f"{case}_0000.png", pairs.images[row])
            _write_png(root / f"labels{part}" / f"{case}.png", pairs.masks[row])
            said = {"id": pairs.ids, "patient": pairs.patients, "label": pairs.labels}
            cases[case] = {name: str(values[row]) for name, values in said.items()}
    write_json(root / "cases.json", cases)
    about = {
        "channel_names": {str(i): channel for i, channel in enumerate(CHANNELS[shapes[0][2]])},
        "labels": {level: i for i, level in enumerate(pairs_train.scheme.levels)},
        "numTraining": int(pairs_train.has_mask.sum()),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    write_json(root / "dataset.json", about)
    return root


@contextmanager
def _said_of(file: Path, field: str) -> Iterator[None]:
    """Say of which record's file it is that an error inside is about."""
    try:
        yield
    except InputError as error:
        said = {name: getattr(error, name) for name in ("value", "expected", "fix")}
        raise InputError(error.problem, file=file, field=field, **said) from error


def _from_png(path: Path, *, palette: bool = False) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} cannot be read as PNG") from error
    opaque = image.mode == "RGBA" and image.getextrema()[3] == (255, 255)
    if opaque or (image.mode == "P" and not palette):
        image = image.convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB"):
        expected = "8-bit grey or RGB, without transparency"
        raise InputError(f"{path.name} has pixels of an unknown kind", value=image.mode, expected=expected)
    return np.asarray(image.convert("L") if image.mode == "1" and not palette else image)


def _from_npy(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read as an array of numbers") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        kind = str(getattr(values, "dtype", type(values).__name__))
        raise InputError(f"{path.name} does not hold numbers", value=kind)
    if not np.isfinite(values).all():
        raise InputError(f"{path.name} holds NaN or infinite values")
    return values


def _windowed(values: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if values.shape[2] != 1 or (low >= 0 and high <= 1):
        raise InputError(
            f"{path.name} holds neither grey levels nor Hounsfield units",
            value=f"{values.dtype} from {low:g} to {high:g}, {values.shape[2]} channels",
            expected="uint8 from 0 to 255, or one channel in Hounsfield units",
        )
    width, level = WINDOW_HU
    share = (values.astype(np.float64) - (level - width / 2)) / width
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _from_grey(steps: np.ndarray, last: int, tolerance: float, path: Path) -> np.ndarray:
    """Return the nearest of the levels 0 to ``last``; further off than ``tolerance`` there is none."""
    level = np.clip(np.rint(steps), 0, last)
    off = np.abs(steps - level) > tolerance
    if off.any():
        value = f"{float(steps[off].flat[0] / last):.3g} of the brightest"
        expected = f"whole numbers 0 to {last}, or grey levels i / {last}"
        raise InputError(f"{path.name} has a level that does not exist", value=value, expected=expected)
    return level.astype(np.uint8)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / NAME if path.is_dir() else path


def _record(entry: Any, number: int, path: Path, scheme: Scheme, *, allow_outside: bool) -> Record:
    expected = ", ".join(REQUIRED)
    if not isinstance(entry, dict):
        raise InputError("is not a record", file=path, field=f"entry {number}", value=entry, expected=expected)
    name = entry.get("id")
    record = f"record {name}" if name not in (None, "") else f"entry {number}"
    where = {"file": path, "field": record}
    for key in REQUIRED:
        if key not in entry:
            raise InputError(f"lacks {key}", **where, expected=expected)
    for key in entry:
        if key not in REQUIRED + OPTIONAL:
            raise unknown_name("key", key, REQUIRED + OPTIONAL, **where)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise InputError("has no id", **where, value=name, expected="a word or a whole number")
    label, patient = entry["label"], entry.get("patient") or ""
    with _said_of(path, f"{record}, patient"):
        if not isinstance(patient, str):
            raise InputError("is not a word", value=patient)
    with _said_of(path, f"{record}, label"):
        if label not in scheme.classes:
            raise InputError("is not a known class", value=label, expected=f"one of {', '.join(scheme.classes)}")
    member = entry.get("MIA_label")
    with _said_of(path, f"{record}, MIA_label"):
        if "MIA_label" in entry and (type(member) is not int or member not in (0, 1)):
            raise InputError("does not say whether it is a member", value=member, expected="1 (private) or 0 (public)")
    files: dict[str, Path | None] = {"mask_path": None}
    for key in ("image_path", "mask_path"):
        with _said_of(path, f"{record}, {key}"):
            if key == "image_path" or entry[key] is not None:
                files[key] = _confined(entry[key], path.parent, allow_outside=allow_outside)
            elif label != scheme.control:
                lacking = f"null only for {scheme.control}" if scheme.control else "a file"
                raise InputError(f"is null, and a record of class {label} needs a mask", expected=lacking)
    private = None if member is None else bool(member)
    return Record(str(name), label, files["image_path"], files["mask_path"], patient, private)


def _confined(given: Any, folder: Path, *, allow_outside: bool) -> Path:
    if not isinstance(given, str) or not given or "\0" in given:
        raise InputError("is not a path", value=given)
    if Path(given).suffix.lower() not in SUFFIXES:
        raise InputError("is of an unknown format", value=given, expected=" or ".join(SUFFIXES))
    path = (folder / given).resolve()
    if not allow_outside and (Path(given).is_absolute() or not path.is_relative_to(folder.resolve())):
        fix = "copy the file into that folder"
        raise InputError("leads outside the manifest's folder", value=given, expected="a path inside it", fix=fix)
    if not path.is_file():
        raise InputError("does not exist", value=given)
    return path


def _check_unique(records: Sequence[Record], path: Path) -> None:
    name, times = Counter(record.id for record in records).most_common(1)[0] if records else ("", 0)
    if times > 1:
        raise InputError("appears twice", file=path, field=f"record {name}", expected="each id once")


def _named(folder: Path) -> set[Path]:
    """Return the files inside a folder that its manifest names; none where it has no readable manifest."""
    try:
        content = read_json(folder / NAME)
        given = [entry[key] for entry in content for key in ("image_path", "mask_path") if entry[key] is not None]
    except (InputError, TypeError, KeyError):
        return set()
    files = {(folder / name).resolve() for name in given if isinstance(name, str)}
    return {file for file in files if file.is_relative_to(folder.resolve())}


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(temporary)
