"""The one door to sections: find them, whatever their format, and read them."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from histocrypt import paths
from histocrypt.errors import InputError, said_with, unknown_name
from histocrypt.files import mode_of, near, regular
from histocrypt.kinds import ANNDATA, kind_of
from histocrypt.options import DEMO, FORMATS, SectionSource
from histocrypt.sections.identity import NAMELESS, patient_text
from histocrypt.sections.section import Format, Section, SectionFiles

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z", ".rar")
CELLS_OF_HD = "segmented_outputs"
BINNED = ("visium_hd", "xenium")
"""Formats that are summed over squares of a stated size."""
SMALLEST_UM, LARGEST_UM = 1.0, 5000.0
"""Sides of squares that mean something: no bins are finer, and few pieces of tissue are much larger."""
BY_OPTION = {
    "id": "rename the file or the folder",
    "patient": "write it into the file",
    "image": "name it with --image, or put it beside the section under the same name",
    "um_per_px": "give --um-per-px, micrometres per full-resolution pixel",
    "bin_um": "give --bin-um, micrometres",
}
"""What to do about a setting that a section lacks, for commands that predict; see `errors.IN_STUDY`."""
BY_FILE = {
    "id": "rename the file or the folder",
    "patient": "write it into the file",
    "image": "put it beside the section under the same name",
    "um_per_px": "write it into the file: `pixel_size_um` in uns['spatial'][...]['metadata']",
    "bin_um": BY_OPTION["bin_um"],
}
"""The same for commands without such options."""


def find_sections(source: SectionSource, *, folder: str | Path | None = None) -> list[SectionFiles]:
    """Return the sections that one entry of a study names: a file, a folder or a glob.

    Parameters
    ----------
    folder
        Where relative paths start: the study file's folder; default: the working directory.

    Raises
    ------
    InputError
        If nothing is there, if what is there is no section, or if an entry of many sections gives one id or image.
    """
    if DEMO in (source.path, source.format):
        raise InputError(
            "the demo tissue belongs to a study",
            value=source.path,
            fix="run `histocrypt demo-tissue FOLDER` and name that folder",
        )
    formats = _formats(source.format)
    sections = [files for path in _matching(source, folder, formats) for files in _sections_at(path, formats)]
    for given in ("id", "image"):
        if getattr(source, given) and len(sections) > 1:
            raise InputError(
                f"entry names {len(sections)} sections but gives one {given}",
                file=source.path,
                field=given,
                value=getattr(source, given),
                fix="list them separately",
            )
    image = paths.resolve(source.image, folder) if source.image else None
    return [
        replace(
            summed(files, source.bin_um),
            id=source.id or files.id,
            patient=patient_text(source.patient or "") or files.patient,
            laboratory=patient_text(source.laboratory or "") or None,
            image=image or files.image,
            um_per_px=source.um_per_px or files.um_per_px,
        )
        for files in sections
    ]


def read_section(
    files: SectionFiles, *, require_image: bool = True, require_patient: bool = True, require_counts: bool = True
) -> Section:
    """Read and validate one section; its image is checked to be decodable, but not kept decoded if it is a JPEG.

    Counts may be absent where ``require_counts`` is False, or where the section has a named matrix in their stead.

    Raises
    ------
    InputError
        One sentence that names file, field and value, for everything that makes the section unusable.
    """
    from histocrypt.sections.validate import validated

    section = validated(
        files,
        _format(files.format).read(files),
        require_image=require_image,
        require_patient=require_patient,
        require_counts=require_counts,
    )
    if section.image is not None:
        section.image.verify()
        section.notes += [f"{section.image.path}: {note}." for note in section.image.notes]
    return section


def read_path(
    path: str | Path,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    bin_um: float | None = None,
    require_image: bool = False,
    for_prediction: bool = False,
    counts_only: bool = False,
) -> Section:
    """Read one section in any format, outside of a study: for prediction and scoring.

    The patient may be unknown (then ``""``), and so may the image (then None) unless ``require_image``. With
    ``for_prediction``, counts are not needed, and a hackathon file stands for its test slide. With ``counts_only``,
    neither image nor resolution are looked for.

    Raises
    ------
    InputError
        If the path holds no section, or several, or one that cannot be used.
    """
    with said_with(BY_OPTION if for_prediction else BY_FILE):
        sections = _sections_at(paths.resolve(str(path)), _formats("auto"), for_prediction=for_prediction)
        if len(sections) != 1:
            raise InputError(
                f"holds {len(sections)} sections where one is needed",
                file=path,
                value=[files.id for files in sections][:5],
                fix=f"name one of them, such as {_name_of(sections[0], sections)}" if sections else None,
            )
        (files,) = sections
        files = replace(
            summed(files, bin_um),
            image=paths.resolve(str(image)) if image is not None else files.image,
            um_per_px=um_per_px if um_per_px is not None else files.um_per_px,
            counts_only=counts_only,
        )
        return read_section(
            files, require_image=require_image, require_patient=False, require_counts=not for_prediction
        )


def summed(files: SectionFiles, bin_um: float | None) -> SectionFiles:
    """Return a section that is summed over squares of a stated side, micrometres; None leaves it as it is.

    Raises
    ------
    InputError
        If its format has no squares, or that is no side of one.
    """
    if bin_um is None:
        return files
    where = {"file": files.path, "field": "bin_um", "value": bin_um}
    if files.format not in BINNED:
        expected = "it for " + " and ".join(BINNED) + " only"
        raise InputError(f"sections of format {files.format} are not summed over squares", **where, expected=expected)
    if not SMALLEST_UM <= bin_um <= LARGEST_UM:  # nor is NaN
        expected = f"micrometres from {SMALLEST_UM:g} to {LARGEST_UM:g}"
        raise InputError("is not a valid side of a square", **where, expected=expected)
    return replace(files, bin_um=float(bin_um))


def watched(files: SectionFiles) -> list[Path]:
    """Return the files whose change makes a section another one, as far as names tell."""
    return _format(files.format).inputs(files)


def names_in(path: str | Path) -> dict[str, SectionFiles]:
    """Return what `read_path` can be asked for at a path, to predict it: by the names that it takes.

    None where no format knows the path.

    Raises
    ------
    InputError
        If nothing is there, or what is there cannot be listed.
    """
    path, formats = Path(path), _formats("auto")
    if mode_of(path) is not None and not any(form.recognises(path) for form in formats):
        return {}
    found = _sections_at(path, formats, for_prediction=True)
    return {_name_of(files, found): files for files in found}


def _format(name: str) -> Format:
    return import_module(f"histocrypt.sections.formats.{name}").FORMAT


def _formats(name: str) -> list[Format]:
    return [_format(known) for known in FORMATS if name in ("auto", known)]


OF_AN_IMAGE = "name the section that it is the image of; an image alone is for `histocrypt predict --spacing`"


def _no_section(path: Path, layouts: str) -> InputError:
    from histocrypt.sections.image import is_image

    kind = kind_of(path)
    if kind is not None:
        fix = f"rename it to {path.stem}.h5ad" if kind is ANNDATA else kind.fix
        return InputError(f"is not a section: {kind.words}", file=path, expected=layouts, fix=fix)
    known = "patches or another HDF5 file" if path.suffix in {".h5", ".hdf5"} else f"a {path.suffix or 'nameless'} file"
    fix = _run_around(path) or (OF_AN_IMAGE if is_image(path) else None)
    return InputError(f"is not a section: it is {known}", file=path, expected=layouts, fix=fix)


def _matching(source: SectionSource, folder: str | Path | None, formats: list[Format]) -> list[Path]:
    """Return the paths that an entry names; a glob leaves out files that are no sections."""
    path = paths.resolve(source.path, folder)
    parts = path.absolute().parts
    there = next(
        (n for n in range(len(parts)) if mode_of(Path(*parts[: n + 1])) is None), len(parts)
    )  # "[1]" is a name
    magic = next((n for n in range(there, len(parts)) if any(sign in parts[n] for sign in "*?[")), None)
    if magic is None:
        return [path]
    matches = sorted(Path(*parts[:magic]).glob("/".join(parts[magic:])))
    matches = [match for match in matches if match.is_dir() or any(form.recognises(match) for form in formats)]
    if not matches:
        raise InputError("no file matches", file=source.path, field="path", value=str(path))
    return matches


def _sections_at(path: Path, formats: list[Format], *, for_prediction: bool = False) -> list[SectionFiles]:
    """Return the sections of one path: by the one format that was named, else by the first that recognises it."""
    mode = mode_of(path)
    slide_of_file = mode is None and mode_of(path.parent) is not None and path.parent.is_file()
    if mode is None and not slide_of_file:
        if sections := _named_in_folder(path, formats):
            return [replace(files, patient=patient_text(files.patient or "") or None) for files in sections]
        regular(path, missing="no such file or folder")
    if mode is not None and not path.is_dir():
        regular(path)
    able = formats if len(formats) == 1 else [form for form in formats if form.recognises(path)]
    if able:
        sections_in = for_prediction and able[0].predicted_in or able[0].sections_in
        if sections := sections_in(path):
            return [replace(files, patient=patient_text(files.patient or "") or None) for files in sections]
    layouts = " or ".join(form.layout for form in formats)
    if path.is_file():
        raise _no_section(path, layouts)
    if mode is None:
        raise InputError("no such file or folder", file=path, fix=near(path))
    raise InputError(
        "folder holds no section",
        file=path,
        value=_names_in(path),
        expected=layouts,
        fix=_unpacked(path) or _run_around(path),
    )


def _name_of(files: SectionFiles, among: list[SectionFiles]) -> str:
    """Return the path that stands for one section alone: its own, or its id below what it shares with others."""
    shared = sum(other.path == files.path for other in among) > 1
    return str(files.path / files.id if shared else files.path)


def _named_in_folder(path: Path, formats: list[Format]) -> list[SectionFiles]:
    """Return the section that ``FOLDER/ID`` names where files of several lie in one folder, as those of GEO do.

    Raises
    ------
    InputError
        If the folder is such a one, and none of its sections is called so.
    """
    folder = path.parent
    form = next((form for form in formats if folder.is_dir() and form.recognises(folder)), None)
    try:
        found = form.sections_in(folder) if form is not None else []
    except InputError:  # of what was not asked for
        return []
    sharing = [files for files in found if files.part and files.path == folder]
    if len(sharing) > 1 and all(files.id != path.name for files in sharing):
        raise unknown_name("section", path.name, [files.id for files in sharing], file=folder)
    return [files for files in sharing if files.id == path.name]


def _names_in(folder: Path) -> list[str] | None:
    """Return the first names in a folder, or in its ``outs``, for an error."""
    return [path.name for path in _within(folder)][:5] or None


def _unpacked(folder: Path) -> str | None:
    """Return what to unpack in a folder, or which other to name, where that may be what is missing."""
    names = [path.name for path in _within(folder)]
    archives = [name for name in names if name.endswith(ARCHIVES)]
    if archives:
        return f"unpack {', '.join(archives[:3])} first"
    if folder.name == CELLS_OF_HD or CELLS_OF_HD in names:
        return "segmented cells of Visium HD are not read: name the folder that holds binned_outputs"
    return None


def _run_around(path: Path) -> str | None:
    """Return the run of 10x Genomics that a path is a part of, as a guess at what was meant."""
    runs = (
        up for up in (path.parent, path.parent.parent) for name in NAMELESS if _is_within_run(path, up, _format(name))
    )
    run = next(runs, None)
    return f"did you mean {run}?" if run is not None else None


def _is_within_run(path: Path, folder: Path, form: Format) -> bool:
    """Return whether a path lies in a run of ``folder``; that folder may just hold runs beside it."""
    try:
        found = form.sections_in(folder) if form.recognises(folder) else []
    except InputError:
        return False
    return any(path.absolute().is_relative_to(files.path.absolute()) for files in found)


def _within(folder: Path) -> list[Path]:
    """Return what lies in a folder; of a folder that holds ``outs`` alone, what lies in that."""
    found = sorted(folder.glob("[!.]*"))
    return sorted(found[0].glob("[!.]*")) if [path.name for path in found] == ["outs"] else found
