"""One door in: find sections, read them, and cross-check those of a study."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.files import write_json
from histocrypt.options import SectionSource
from histocrypt.sections.section import Section, SectionFiles, SectionSize, size_of
from histocrypt.study import load_study

if TYPE_CHECKING:
    from histocrypt.study import Study

# ---- fingerprint
# What makes a section recognisable, and the conflicts between sections that would let a patient leak.


SEPARATORS = re.compile(r"[\s_\-]+")


@dataclass(frozen=True)
class Fingerprint:
    """What a section is known by."""

    id: str
    patient: str | None
    file: str
    counts: str = ""
    """Hash of the counts, whatever the order of spots and genes; empty where not computed."""
    image: str = ""
    """Hash of the image content; empty where not computed."""
    size: SectionSize | None = None
    """None where the section was not read."""


@dataclass(frozen=True)
class Conflict:
    """Two sections that cannot be in one study."""

    first: int
    second: int
    error: InputError


def fingerprint(files: SectionFiles, *, content: bool = True, keep: bool = True) -> Fingerprint:
    """Return the fingerprint of a section; with ``content`` it is read and validated, and with ``keep`` also cached."""
    if not content:
        return Fingerprint(files.id, files.patient, str(files.path))
    cached = paths.cache() / "fingerprints" / f"{hashlib.sha256(_key(files).encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(cached.read_text(encoding="utf-8"))
        if known["stats"] == _stats(known["files"]):
            return Fingerprint(**{**known["fingerprint"], "size": SectionSize(**known["fingerprint"]["size"])})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or of another version
    section = read_section(files)
    result = fingerprint_of(section, files)
    names = sorted({str(path) for path in section.files})
    if keep:
        write_json(cached, {"files": names, "stats": _stats(names), "fingerprint": asdict(result)})
    return result


def fingerprint_of(section: Section, files: SectionFiles) -> Fingerprint:
    """Return the fingerprint of a section that has been read."""
    image = section.image.content_hash() if section.image is not None else ""
    return Fingerprint(section.id, section.patient, str(files.path), counts_hash(section), image, size_of(section))


def counts_hash(section: Section) -> str:
    """Return a hash of gene names, counts per gene and counts per spot, whatever their order."""
    counts = section.adata.X
    by_gene = np.asarray(counts.sum(axis=0, dtype=np.int64)).ravel()
    by_spot = np.sort(np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel())
    if not by_spot.any():
        return ""
    genes = section.genes
    order = np.argsort(genes)
    content = ("\n".join(genes[order]).encode(), by_gene[order].tobytes(), by_spot.tobytes())
    return hashlib.sha256(b"\0".join(content)).hexdigest()


@cache
def same_name(patient: str) -> str:
    """Return a patient id without what people write differently: case, separators, a dash before the number."""
    plain = SEPARATORS.sub("-", patient.strip().casefold()).strip("-")
    return re.sub(r"(?<=[a-z])-(?=\d)|(?<=\d)-(?=[a-z])", "", plain)


def conflicts(prints: list[Fingerprint]) -> list[Conflict]:
    """Return every pair of sections that cannot be in one study, with the sentence that says why."""
    found = []
    for (i, one), (j, two) in combinations(enumerate(prints), 2):
        error = _conflict(one, two)
        if error is not None:
            found.append(Conflict(i, j, error))
    return found


def _conflict(one: Fingerprint, two: Fingerprint) -> InputError | None:
    apart = bool(one.patient and two.patient and one.patient != two.patient)
    both = f"{one.file} (section {one.id}, patient {one.patient})"
    if one.id == two.id:
        return InputError(
            f"section id occurs twice, also in {one.file}",
            file=two.file,
            field="section",
            value=two.id,
            fix="give each section its own `id:`",
        )
    if apart and same_name(one.patient) == same_name(two.patient):
        return InputError(
            f"one patient seems to have two names: {one.patient!r} in {one.file} and {two.patient!r} here",
            file=two.file,
            field="patient",
            value=two.patient,
            fix="write the patient alike in both sections",
        )
    if one.counts and one.counts == two.counts:
        msg = f"counts are those of {both}: " + (
            "one patient under two names" if apart else "the same section is there twice"
        )
        fix = "give both sections the true patient, or remove one" if apart else "remove one"
        return InputError(
            msg, file=two.file, field="patient" if apart else "section", value=two.patient if apart else two.id, fix=fix
        )
    if apart and one.image and one.image == two.image:
        return InputError(
            f"image is that of {both}: one image under two patients",
            file=two.file,
            field="patient",
            value=two.patient,
            fix="give both sections the true patient or image",
        )
    return None


def _key(files: SectionFiles) -> str:

    return settings_key(files)


def _stats(names: list[str]) -> list[list[int]]:
    """Return size and time of every file; of a folder, of all files in it."""
    stats = []
    for name in names:
        path = Path(name)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                stats.append([file.stat().st_size, file.stat().st_mtime_ns])
    return stats


# ---- read


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
            raise InputError(
                "the demo tissue belongs to a study",
                value=source.path,
                fix="run `histocrypt demo-tissue FOLDER` and name that folder",
            )
        from histocrypt.demo.write import demo_in

        written = demo_in(study.run.demo_tissue, **study.demo.model_dump(), seed=study.seed)
        return [_peeked(path) for path in written]
    found = [files for path in _paths(source, study) for files in _in_path(path, source.format)]
    for given in ("id", "image"):
        if getattr(source, given) and len(found) > 1:
            raise InputError(
                f"entry names {len(found)} sections but gives one {given}",
                file=source.path,
                field=given,
                value=getattr(source, given),
                fix="list them apart",
            )
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
    from histocrypt.sections.formats.h5ad import load_h5ad
    from histocrypt.sections.formats.hackathon import load_hackathon
    from histocrypt.sections.formats.hest import load_hest
    from histocrypt.sections.formats.space_ranger import load_space_ranger
    from histocrypt.sections.formats.st_array import load_st_array
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
        raise InputError(
            f"holds {len(found)} sections where one is needed",
            file=path,
            value=[files.id for files in found][:5],
            fix="name one of them",
        )
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


def survey(study: Study, *, keep: bool = True, tissue: bool = True) -> dict[SectionFiles, SectionSize]:
    """Return all sections of a study with their sizes, cross-checked: ids, patients and content.

    Every section is read once for its fingerprint, which is cached until its files change. The demo tissue is written
    if needed.

    Parameters
    ----------
    study
        The study.
    keep
        Whether anything may be written. If not, nothing is cached, and demo tissue that is not there is told from the
        study's settings, its sizes roughly.
    tissue
        Whether demo tissue that is there is whole.

    Raises
    ------
    InputError
        If a section cannot be used, an id occurs twice, a patient seems to have two names, or the same image or
        counts belong to two patients.
    """
    found: list[SectionFiles] = []
    sizes: dict[SectionFiles, SectionSize] = {}
    for source in study.sections:
        if DEMO in (source.path, source.format) and not keep and not (tissue and _is_simulated(study)):
            sizes |= _to_be_simulated(study)
        else:
            found += find_sections(source, study=study)
    # Names first: they cost nothing, and the reading below may take a while.
    for conflict in conflicts([fingerprint(files, content=False) for files in (*sizes, *found)]):
        raise conflict.error
    shown = tqdm(found, desc="sections", unit="section", leave=False, disable=None)
    prints = [fingerprint(files, keep=keep) for files in shown]
    for conflict in conflicts(prints):
        raise conflict.error
    return sizes | {
        replace(files, id=known.id, patient=known.patient): known.size
        for files, known in zip(found, prints, strict=True)
    }


def _is_simulated(study: Study) -> bool:
    from histocrypt.demo.write import is_demo_in

    return is_demo_in(study.run.demo_tissue, **study.demo.model_dump(), seed=study.seed)


def _to_be_simulated(study: Study) -> dict[SectionFiles, SectionSize]:
    from histocrypt.demo.write import MARGIN, PITCH

    side, folder = study.demo.spots_per_side, study.run.demo_tissue
    spots, megapixels = side**2, (side * PITCH + 2 * MARGIN) ** 2 / 1e6
    size = SectionSize(spots, study.demo.genes, spots * study.demo.genes, megapixels)
    names = range(1, study.demo.sections + 1)
    return {SectionFiles(f"S_{k}", "h5ad", folder / f"S_{k}.h5ad", patient=f"P_{k}"): size for k in names}


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
        raise InputError("no file matches", file=source.path, field="path", value=str(path))
    return found


def _in_path(path: Path, form: str, *, unlabelled: bool = False) -> list[SectionFiles]:
    """Return the sections of one existing file or folder; ``form`` may be ``auto``."""
    from histocrypt.sections.formats.hackathon import SUFFIXES, hackathon_sections, is_hackathon, split_slide
    from histocrypt.sections.formats.hest import hest_sections, is_hest
    from histocrypt.sections.formats.space_ranger import is_space_ranger, space_ranger_sections
    from histocrypt.sections.formats.st_array import is_st_array, st_array_sections

    path, slide = split_slide(path)
    if not path.exists():
        raise InputError("no such file or folder", file=path)
    if path.is_file():
        if form == "hackathon" or (form == "auto" and path.suffix in SUFFIXES and is_hackathon(path)):
            return hackathon_sections(path, slide, unlabelled=unlabelled)
        if path.suffix != ".h5ad":
            kind = "patches or another HDF5 file" if path.suffix in {".h5", ".hdf5"} else f"a {path.suffix} file"
            raise InputError(
                f"is not a section: it is {kind}",
                file=path,
                expected=".h5ad, or a folder in the HEST or ST array layout",
            )
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
    raise InputError(
        "folder holds no section" + ("" if form == "auto" else f" of format {form}"),
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

    from histocrypt.sections.formats.h5ad import unreadable

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
    from histocrypt.sections.formats.space_ranger import space_ranger_inputs

    return space_ranger_inputs(files)


# ---- check
# The table behind `histocrypt check`: what is there, what was dropped, and what forbids its use.


HEADER = ("section", "spots", "genes", "image", "µm/px", "patient", "problems")


@dataclass
class CheckRow:
    """One section, or one path that holds none."""

    section: str
    patient: str = ""
    spots: int | None = None
    genes: int | None = None
    image: str = ""
    """Width x height in full-resolution pixels."""
    um_per_px: str = ""
    """Micrometres per full-resolution pixel and where it is from."""
    problems: list[str] = field(default_factory=list)
    """Sentences: first what forbids the use, then what was dropped or assumed."""
    unusable: bool = False


def check_sections(paths: list[str]) -> list[CheckRow]:
    """Check sections, one after the other, and then against each other.

    Parameters
    ----------
    paths
        Section files, folders, globs, or study files (``.yaml``: all sections of the study).
    """
    rows: list[CheckRow] = []
    known: dict[int, Fingerprint] = {}
    found = [item for path in paths for item in _find(path)]
    for item in tqdm(found, desc="check", unit="section", leave=False, disable=None):
        if isinstance(item, CheckRow):
            rows.append(item)
            continue
        row, own = _checked(item)
        known[len(rows)] = own
        rows.append(row)
    positions = list(known)
    for conflict in conflicts([known[position] for position in positions]):
        for side in (conflict.first, conflict.second):
            rows[positions[side]].unusable = True
            rows[positions[side]].problems.insert(0, str(conflict.error))
    return rows


def render(rows: list[CheckRow]) -> str:
    """Return the rows as aligned plain text; a section with several problems takes several lines."""
    lines = [HEADER]
    for row in rows:
        cells = (
            row.section,
            "-" if row.spots is None else str(row.spots),
            "-" if row.genes is None else str(row.genes),
            row.image or "-",
            row.um_per_px or "-",
            row.patient or "-",
        )
        for number, problem in enumerate(row.problems or ["none"]):
            marked = f"UNUSABLE: {problem}" if row.unusable and number == 0 else problem
            lines.append((*(cells if number == 0 else ("",) * len(cells)), marked))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER) - 1)]
    table = "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )
    bad = sum(row.unusable for row in rows)
    return f"{table}\n{len(rows)} sections, {bad} unusable"


def _find(path: str) -> Iterator[SectionFiles | CheckRow]:
    """Yield the sections that a path stands for; what cannot be found is a row that says so."""
    if path.endswith((".yaml", ".yml")):
        study = load_study(path)
        sources = [(source, study) for source in study.sections]
    else:
        sources = [(SectionSource(path=path), None)]
    for source, study in sources:
        try:
            yield from find_sections(source, study=study)
        except InputError as error:
            yield CheckRow(source.path, problems=[str(error)], unusable=True)


def _checked(files: SectionFiles) -> tuple[CheckRow, Fingerprint]:
    """Read one section, and let go of it."""
    try:
        section = read_section(files)
        own = fingerprint_of(section, files)
    except InputError as error:
        row = CheckRow(files.id, files.patient or "", problems=[str(error)], unusable=True)
        return row, Fingerprint(files.id, files.patient, str(files.path))
    row = CheckRow(
        section.id,
        section.patient,
        section.n_spots,
        section.adata.n_vars,
        f"{section.image.width} x {section.image.height}",
        f"{section.um_per_px:.4f} ({section.um_per_px_source})",
        problems=list(section.notes),
    )
    return row, own
