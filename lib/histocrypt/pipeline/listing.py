"""Which slides a folder or a list holds: each is one input of `histocrypt predict`, with an id of its own."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import mode_of, near, regular
from histocrypt.pipeline.predictions import is_loose_prediction
from histocrypt.sections.identity import patient_text, safe_id
from histocrypt.sections.image import IMAGE_SUFFIXES, TILE_NAME, TILE_SUFFIXES, is_image
from histocrypt.sections.read import names_in, watched
from histocrypt.sections.section import SectionFiles
from histocrypt.tissue.grid import is_patch_folder

OURS = "folder.json"
"""Marks a folder of predictions that `histocrypt predict FOLDER` made."""
WITHIN = ("outs", "binned_outputs", "st", "counts")
"""Folders inside a section's own folder."""
FILES = (".h5ad", ".h5", ".hdf5", ".csv", ".tsv", ".json", ".zarr", ".html")
"""Endings of what is meant as a file."""
DEEPEST = 8
"""Levels of folders that are looked into."""
COLUMNS = {
    "path": ("slide", "file", "section"),
    "um_per_px": ("mpp", "micrometres_per_pixel", "micrometers_per_pixel", "microns_per_pixel", "um/px", "µm/px"),
    "patient": ("patient_id",),
    "laboratory": ("lab",),
    "image": (),
    "regions": ("geojson",),
    "measured": ("counts",),
}
"""Columns of a list, and what else people call them."""


@dataclass(frozen=True)
class Slide:
    """One input of many."""

    id: str
    """Unique among them, whatever the case of letters; safe as a file name."""
    path: str
    """As `predict` takes it: a file, a folder, or ``FILE.h5/SLIDE``."""
    files: tuple[Path, ...] = ()
    """What it is read from, as far as names tell: if these change, it is another slide."""
    um_per_px: float | None = None
    """As the list gives it."""
    patient: str | None = None
    laboratory: str | None = None
    image: str | None = None
    regions: str | None = None
    measured: str | None = None
    """Counts of some of its spots, see `pipeline.measured`."""


@dataclass
class Listing:
    """What was found."""

    slides: list[Slide] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Path -> why it is no slide of its own, of what looks like one."""


def is_list(path: Path) -> bool:
    """Return whether a path is a list of slides by its name."""
    return path.name.lower().endswith((".csv", ".tsv"))


def are_many(path: str | Path, output: Path | None) -> bool:
    """Return whether an input is to be taken as a folder or a list of slides, whose predictions go to a folder.

    A single input whose predictions go to one file is not, though it be a folder.

    Raises
    ------
    InputError
        If nothing is there, or there are many, and they are to go to one file.
    """
    path = paths.resolve(str(path))
    if mode_of(path) is None and not any(parent.is_file() for parent in path.parents):  # FILE.h5/S_1 is of a file
        raise InputError("no such file or folder", file=path, fix=near(path))
    if not is_list(path) and not path.is_dir():
        return False
    if output is not None and (output.is_dir() or output.suffix.lower() not in FILES):
        return True
    if not is_list(path) and (is_patch_folder(path) or is_image(path) or len(_named(path)) == 1):
        return False
    raise InputError(
        f"is a {'list' if is_list(path) else 'folder'} of slides",
        file=path,
        field="--output",
        value=None if output is None else str(output),
        expected="a folder for their predictions, e.g. -o predictions",
        fix=None if is_list(path) else "or name one of them",
    )


def _named(path: Path) -> dict[str, SectionFiles]:
    try:
        return names_in(path)
    except InputError:  # said when it is predicted
        return {}


def slides_at(path: str | Path, *, but: Collection[Path] = ()) -> Listing:
    """Return the slides that a folder, a list, or a single input stands for; no pixel is read.

    A folder is searched with those in it. A run of Space Ranger or Xenium, a folder of patches, of DICOM or of OME-Zarr
    is one slide. An image that lies beside a section under its name is the section's.

    Parameters
    ----------
    path
        Folder; ``.csv`` with a column ``path`` (see `COLUMNS`), relative to the list's own folder; or one input.
    but
        Folders that are not looked into.

    Raises
    ------
    InputError
        If nothing is there, the folder holds no slide, or a row of the list cannot be meant so.
    """
    path = paths.resolve(str(path)).absolute()
    if is_list(path):
        return Listing(_with_ids(_listed(path)))
    found, left_out = _search(path, {Path(one).resolve() for one in but})
    if not found and path.is_dir():
        raise InputError(
            "folder holds no slide", file=path, expected=f"sections, or images ({', '.join(IMAGE_SUFFIXES[:4])} ...)"
        )
    return Listing(_with_ids(found or [_slide(str(path), {})]), left_out)


def _search(path: Path, closed: set[Path], depth: int = 0) -> tuple[list[Slide], dict[str, str]]:
    """Return the slides at and below a path, by name, and what is left out of them."""
    if path.resolve() in closed or depth > DEEPEST:
        return [], {}
    if (path / OURS).is_file():
        return [], {str(path): "predictions of an earlier command"}
    own, left_out = _own(path)
    if own or left_out or not path.is_dir():
        return own, left_out
    closed = closed | {path.resolve()}  # which a link may lead back to
    found: list[Slide] = []
    for entry in sorted(path.glob("[!.]*")):
        slides, others = _search(entry, closed, depth + 1)
        found += slides
        left_out |= others
    taken = {(file, _stem(slide.path)): slide for slide in found for file in slide.files if str(file) != slide.path}
    for slide in [one for one in found if (Path(one.path), _stem(one.path)) in taken]:
        left_out[slide.path] = f"the image of {taken[Path(slide.path), _stem(slide.path)].path}"
        found.remove(slide)
    return found, left_out


def _own(path: Path) -> tuple[list[Slide], dict[str, str]]:
    """Return the slides that a path is by itself, not by what lies below it."""
    if path.is_dir() and _holds_patches(path):
        return [_slide(str(path), {})], {}
    if is_image(path):
        return [_slide(str(path), {})], {}
    if path.is_file() and is_loose_prediction(path):
        return [], {str(path): "a prediction"}
    try:
        names = names_in(path)
    except InputError:  # what is wrong is said when it is predicted
        return ([_slide(str(path), {})] if path.is_file() else []), {}
    if path.is_dir():
        names = {name: files for name, files in names.items() if _is_home(path, files)}
    return [_slide(name, {}, files) for name, files in names.items()], {}


def _holds_patches(folder: Path) -> bool:
    """Return whether the images of a folder itself are all patches ``<section>_<x>_<y>``."""
    images = [file for file in folder.glob("[!.]*") if file.name.lower().endswith(IMAGE_SUFFIXES) and file.is_file()]
    named = (TILE_NAME.match(file.stem) and file.suffix.lower() in TILE_SUFFIXES for file in images)
    return bool(images) and all(named) and is_patch_folder(folder)


def _is_home(folder: Path, files: SectionFiles) -> bool:
    """Return whether a folder is a section, or a layout of several, and does not merely hold it beside others."""
    place = files.path.absolute()
    if place.is_file() and files.format != "h5ad":
        place = place.parent
    while place != folder and (place.name in WITHIN or place.name.startswith("square_")):
        place = place.parent
    return place == folder


def _slide(path: str, row: Mapping[str, Any], files: SectionFiles | None = None) -> Slide:
    there = Path(path)
    if files is not None:
        read = watched(files)
    elif there.is_dir():
        read = [file for file in sorted(there.rglob("*")) if file.is_file()]
    else:
        read = [there]
    beside = [Path(row[name]) for name in ("image", "regions", "measured") if row.get(name)]
    return Slide("", path, tuple(dict.fromkeys([*read, *beside])), **row)


def _listed(path: Path) -> list[Slide]:
    """Return the slides of a list, without ids."""
    text = regular(path).read_bytes()
    try:
        lines = io.StringIO(text.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", file=path, fix="save it as CSV UTF-8") from error
    first = lines.readline()
    sign = max(",;\t", key=first.count)
    header = [_column(name, path) for name in next(csv.reader([first], delimiter=sign), [])]
    if "path" not in header:
        raise InputError("list has no column of paths", file=path, field="path", value=header)
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError("has two columns of the same name", file=path, field=repeated[0])
    found = []
    for number, cells in enumerate(csv.reader(lines, delimiter=sign), start=2):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"row {number}"
        if len(cells) > len(header):
            raise InputError(f"has {len(cells)} cells for {len(header)} columns", file=path, field=where)
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        if not row.get("path"):
            raise InputError("has no path", file=path, field=f"{where}: path")
        found.append(_slide_of(row, path, where))
    if not found:
        raise InputError("lists no slide", file=path, expected="one row per slide below the header")
    return found


def _slide_of(row: Mapping[str, str], listing: Path, where: str) -> Slide:
    given: dict[str, Any] = {name: patient_text(row[name]) for name in ("patient", "laboratory") if row.get(name)}
    for name in ("image", "regions", "measured"):
        if row.get(name):
            given[name] = str(paths.resolve(row[name], listing.parent))
    if row.get("um_per_px"):
        try:
            given["um_per_px"] = float(row["um_per_px"].replace(",", "."))
        except ValueError as error:
            raise InputError(
                "is not a number",
                file=listing,
                field=f"{where}: um_per_px",
                value=row["um_per_px"],
                expected="micrometres per pixel, e.g. 0.5",
            ) from error
    path = paths.resolve(row["path"], listing.parent)
    names = {} if is_image(path) else _named(path)
    files = names.get(str(path)) or (next(iter(names.values())) if len(names) == 1 else None)
    return _slide(str(path), given, files)


def _column(name: str, path: Path) -> str:
    plain = "_".join(name.strip().lower().split())
    for column, others in COLUMNS.items():
        if plain == column or plain in others:
            return column
    raise unknown_name("column", name.strip(), COLUMNS, file=path)


def _with_ids(slides: Iterable[Slide]) -> list[Slide]:
    """Return slides with ids by their names; where two have one name, by their folders' too, and then by number."""
    slides = list(slides)
    names = [_stem(slide.path) for slide in slides]
    count = Counter(name.lower() for name in names)
    for number, slide in enumerate(slides):
        folder = safe_id(Path(slide.path).absolute().parent.name or "root")
        names[number] = f"{folder}_{names[number]}" if count[names[number].lower()] > 1 else names[number]
    taken: set[str] = set()
    found = []
    for slide, name in zip(slides, names, strict=True):
        own, number = name, 2
        while own.lower() in taken:
            own, number = f"{name}-{number}", number + 1
        taken.add(own.lower())
        found.append(replace(slide, id=own))
    return found


def _stem(path: str) -> str:
    name = Path(path).name
    endings = sorted((*IMAGE_SUFFIXES, ".h5ad.gz", ".h5ad", ".h5", ".zarr"), key=len, reverse=True)
    ending = (
        ""
        if Path(path).is_dir() and not name.lower().endswith(".zarr")
        else next((ending for ending in endings if name.lower().endswith(ending)), "")
    )
    return safe_id(name[: len(name) - len(ending)]).lstrip("._-") or "slide"
