"""One door in: find sections, read them, and cross-check those of a study."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.sections.section import Section, SectionFiles

if TYPE_CHECKING:
    from histocrypt.sections.size import SectionSize
    from histocrypt.study import Study
    from histocrypt.study_parts import SectionSource

DEMO = "demo"


def find_sections(source: SectionSource, *, study: Study | None = None) -> list[SectionFiles]:
    """Return the sections that one entry of a study names: a file, a folder, a glob, or ``demo``.

    Raises
    ------
    InputError
        If nothing is there, if what is there is no section, or if an entry of many sections gives one id or image.
    """
    if source.path == DEMO or source.format == DEMO:
        if study is None:
            msg = "the demo tissue belongs to a study"
            raise InputError(msg, value=source.path, fix="run `histocrypt demo-tissue FOLDER` and name that folder")
        return [_peeked(path) for path in _demo_tissue(study)]
    found = [files for path in _paths(source, study) for files in _in_path(path, source.format)]
    for field in ("id", "image"):
        if getattr(source, field) and len(found) > 1:
            msg = f"entry names {len(found)} sections but gives one {field}"
            raise InputError(msg, file=source.path, field=field, value=getattr(source, field), fix="list them apart")
    image = _path(source.image, study) if source.image else None
    return [
        replace(
            files,
            id=source.id or files.id,
            patient=source.patient or files.patient,
            image=image or files.image,
            um_per_px=source.um_per_px or files.um_per_px,
        )
        for files in found
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
    from histocrypt.sections.format_h5ad import load_h5ad
    from histocrypt.sections.format_hackathon import load_hackathon
    from histocrypt.sections.format_hest import load_hest
    from histocrypt.sections.format_space_ranger import load_space_ranger
    from histocrypt.sections.format_st_array import load_st_array
    from histocrypt.sections.validate import validated

    load = {
        "h5ad": load_h5ad,
        "hest": load_hest,
        "st_array": load_st_array,
        "space_ranger": load_space_ranger,
        "hackathon": load_hackathon,
    }[files.format]
    section = validated(
        files,
        load(files),
        require_image=require_image,
        require_patient=require_patient,
        require_counts=require_counts,
    )
    if section.image is not None:
        section.image.verify()
    return section


def read_path(
    path: str | Path,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    patient: str | None = None,
    require_image: bool = False,
    for_prediction: bool = False,
) -> Section:
    """Read one section in any format, outside of a study: for prediction and scoring.

    The patient may be unknown (then ``""``), and so may the image (then None) unless ``require_image``. With
    ``for_prediction``, counts are not needed, and a hackathon file stands for its test slide.

    Raises
    ------
    InputError
        If the path holds no section, or several, or one that cannot be used.
    """
    found = _in_path(_path(str(path), None), "auto", unlabelled=for_prediction)
    if len(found) != 1:
        msg = f"holds {len(found)} sections where one is needed"
        raise InputError(msg, file=path, value=[files.id for files in found][:5], fix="name one of them")
    files = replace(
        found[0],
        image=_path(str(image), None) if image is not None else found[0].image,
        um_per_px=um_per_px if um_per_px is not None else found[0].um_per_px,
        patient=patient or found[0].patient,
    )
    return read_section(files, require_image=require_image, require_patient=False, require_counts=not for_prediction)


def study_sections(study: Study) -> list[SectionFiles]:
    """Return all sections of a study, cross-checked as in `survey`."""
    return list(survey(study))


def survey(study: Study) -> dict[SectionFiles, SectionSize]:
    """Return all sections of a study with their sizes, cross-checked: ids, patients and content.

    The demo tissue is written if needed. Every section is read once for its fingerprint, which is cached until its
    files change.

    Raises
    ------
    InputError
        If a section cannot be used, an id occurs twice, a patient seems to have two names, or the same image or
        counts belong to two patients.
    """
    from histocrypt.sections.fingerprint import conflicts, fingerprint

    found = [files for source in study.sections for files in find_sections(source, study=study)]
    # Names first: they cost nothing, and the reading below may take a while.
    for conflict in conflicts([fingerprint(files, content=False) for files in found]):
        raise conflict.error
    prints = [fingerprint(files) for files in tqdm(found, desc="sections", unit="section", leave=False, disable=None)]
    for conflict in conflicts(prints):
        raise conflict.error
    return {
        replace(files, id=known.id, patient=known.patient): known.size
        for files, known in zip(found, prints, strict=True)
    }


def _path(text: str, study: Study | None) -> Path:
    if study is not None:
        return Path(os.path.normpath(study.resolve(text)))
    return paths.data() / text.removeprefix("data:") if text.startswith("data:") else Path(text).expanduser()


def _paths(source: SectionSource, study: Study | None) -> list[Path]:
    path = _path(source.path, study)
    parts = path.absolute().parts
    magic = next((number for number, part in enumerate(parts) if any(sign in part for sign in "*?[")), None)
    if path.exists() or magic is None:
        return [path]
    found = sorted(Path(*parts[:magic]).glob("/".join(parts[magic:])))
    found = [match for match in found if match.is_dir() or match.suffix == ".h5ad"]
    if not found:
        msg = "no file matches"
        raise InputError(msg, file=source.path, field="path", value=str(path))
    return found


def _in_path(path: Path, form: str, *, unlabelled: bool = False) -> list[SectionFiles]:
    """Return the sections of one existing file or folder; ``form`` may be ``auto``."""
    from histocrypt.sections.format_hackathon import SUFFIXES, hackathon_sections, is_hackathon, split_slide
    from histocrypt.sections.format_hest import hest_sections, is_hest
    from histocrypt.sections.format_space_ranger import is_space_ranger, space_ranger_sections
    from histocrypt.sections.format_st_array import is_st_array, st_array_sections

    path, slide = split_slide(path)
    if not path.exists():
        msg = "no such file or folder"
        raise InputError(msg, file=path)
    if path.is_file():
        if form == "hackathon" or (form == "auto" and path.suffix in SUFFIXES and is_hackathon(path)):
            return hackathon_sections(path, slide, unlabelled=unlabelled)
        if path.suffix != ".h5ad":
            kind = "patches or another HDF5 file" if path.suffix in {".h5", ".hdf5"} else f"a {path.suffix} file"
            msg = f"is not a section: it is {kind}"
            raise InputError(msg, file=path, expected=".h5ad, or a folder in the HEST or ST array layout")
        in_hest = path.parent.name == "st" and any((path.parents[1] / name).is_dir() for name in ("wsis", "patches"))
        if form == "hest" or (form == "auto" and in_hest):
            return [SectionFiles(path.stem, "hest", path)]
        return [_peeked(path)]
    if form in {"auto", "hest"} and is_hest(path):
        return hest_sections(path)
    if form in {"auto", "space_ranger"} and is_space_ranger(path):
        return space_ranger_sections(path)  # before .h5ad: people keep results beside what they were made from
    if form in {"auto", "h5ad"} and (own := sorted(path.glob("[!.]*.h5ad"))):
        return [_peeked(file) for file in own]
    if form in {"auto", "space_ranger"} and (runs := [one for one in _folders(path) if is_space_ranger(one)]):
        return [files for folder in runs for files in space_ranger_sections(folder)]
    if form in {"auto", "st_array"} and is_st_array(path):
        return st_array_sections(path)
    msg = "folder holds no section" + ("" if form == "auto" else f" of format {form}")
    raise InputError(
        msg,
        file=path,
        expected="*.h5ad, the HEST layout (st/*.h5ad or splits/*.csv), Space Ranger's output (spatial/ and "
        "filtered_feature_bc_matrix.h5), or counts/**/<section>_<x>_<y>.npz",
    )


def _folders(path: Path) -> list[Path]:
    return [folder for folder in sorted(path.glob("[!.]*")) if folder.is_dir()]


def _peeked(path: Path) -> SectionFiles:
    """Return an ``.h5ad`` section with the id and patient that it names, without reading its counts."""
    import h5py
    from anndata.io import read_elem

    from histocrypt.sections.format_h5ad import unreadable

    known = {}
    try:
        with h5py.File(path, "r") as file:
            for name in ("section", "patient"):
                values = {str(value) for value in read_elem(file["obs"][name])} if name in file["obs"] else set()
                if not values and "uns" in file and name in file["uns"]:
                    values = {str(read_elem(file["uns"][name]))}
                if len(values - {"nan", "None", ""}) == 1:
                    known[name] = next(iter(values - {"nan", "None", ""}))
    except unreadable():  # said properly when the section is read
        known = {}
    return SectionFiles(known.get("section", path.stem), "h5ad", path, patient=known.get("patient"))


def _demo_tissue(study: Study) -> list[Path]:
    """Write the demo tissue into the study's run folder, unless it is there with the same settings, and list it."""
    import hashlib

    from histocrypt.atomic import partial_path, read_json, write_json
    from histocrypt.sections.demo import write_demo

    folder, stamp = study.run.demo_tissue, "demo_tissue.json"
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("demo*.py"))))
    settings = {**study.demo.model_dump(), "seed": study.seed, "simulator": code.hexdigest()[:16]}
    if not (folder / stamp).exists() or read_json(folder / stamp).get("settings") != settings:
        draft = partial_path(folder)
        shutil.rmtree(draft, ignore_errors=True)
        written = write_demo(
            draft,
            n_sections=study.demo.sections,
            spots_per_side=study.demo.spots_per_side,
            n_genes=study.demo.genes,
            seed=study.seed,
        )
        write_json(draft / stamp, {"settings": settings, "sections": [path.name for path in written]})
        shutil.rmtree(folder, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError:  # another process wrote the same tissue meanwhile
            shutil.rmtree(draft, ignore_errors=True)
    return [folder / name for name in read_json(folder / stamp)["sections"]]


def settings_key(files: SectionFiles) -> str:
    """Return what the reading of a section depends on: its settings, and size and time of the files at hand."""
    known = _parts(files) if files.format == "space_ranger" else [files.path, *([files.image] if files.image else [])]
    stats = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in known if path.is_file()]
    return json.dumps([{name: str(value) for name, value in asdict(files).items()}, stats])


def input_files(study: Study) -> list[Path]:
    """Return the files a study's sections are read from, as far as names tell, without reading any.

    The workflow watches them: sections are read again when one of them changes. The demo tissue has none.
    """
    real = [source for source in study.sections if source.path != DEMO and source.format != DEMO]
    return sorted({path for source in real for files in find_sections(source, study=study) for path in watched(files)})


def watched(files: SectionFiles) -> list[Path]:
    """Return the files whose change makes a section another one: its own, its image, and siblings of the same stem."""
    if files.format == "space_ranger":
        return _parts(files)
    named = [path for path in (files.path, files.image) if path is not None]
    siblings = [
        path for one in named if one.is_file() for path in one.parent.glob(f"{one.stem}[._]*") if path.is_file()
    ]
    return sorted({*named, *siblings})


def _parts(files: SectionFiles) -> list[Path]:
    from histocrypt.sections.format_space_ranger import space_ranger_inputs

    return space_ranger_inputs(files)
