"""The sections of a study, surveyed: found, recognised, cross-checked, and listed in one table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from histocrypt import paths
from histocrypt.demo.tissue import centre_of
from histocrypt.demo.write import MARGIN, PITCH, demo_in, is_demo_in
from histocrypt.errors import InputError
from histocrypt.explore.registration import laid_otherwise
from histocrypt.files import write_json
from histocrypt.options import DEMO, Preprocessing, SectionSource
from histocrypt.sections.identity import Fingerprint, conflicts, fingerprint_of
from histocrypt.sections.read import BINNED, find_sections, read_section, summed, watched
from histocrypt.sections.section import SectionFiles, SectionSize
from histocrypt.study import load_study
from histocrypt.tissue.tiles import coarse_note

if TYPE_CHECKING:
    from histocrypt.study import Study


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
    sections: list[SectionFiles] = []
    sizes: dict[SectionFiles, SectionSize] = {}
    for source in study.sections:
        if DEMO in (source.path, source.format) and not keep and not (tissue and _is_simulated(study)):
            sizes |= _to_be_simulated(study)
        else:
            sections += _sections_of(source, study)
    # Names first: they cost nothing, and the reading below may take a while.
    named = [Fingerprint(files.id, files.patient, str(files.path)) for files in (*sizes, *sections)]
    for _, _, error in conflicts(named):
        raise error
    shown = tqdm(sections, desc="sections", unit="section", leave=False, disable=None)
    prints = [fingerprint(files, keep=keep) for files in shown]
    for _, _, error in conflicts(prints):
        raise error
    return sizes | {
        replace(files, id=known.id, patient=known.patient, laboratory=known.laboratory or None): known.size
        for files, known in zip(sections, prints, strict=True)
    }


def input_files(study: Study) -> list[Path]:
    """Return the files a study's sections are read from, as far as names tell, without reading any.

    The workflow watches them: sections are read again when one of them changes. The demo tissue has none.
    """
    real = [source for source in study.sections if DEMO not in (source.path, source.format)]
    return sorted({path for source in real for files in _sections_of(source, study) for path in watched(files)})


def fingerprint(files: SectionFiles, *, keep: bool = True) -> Fingerprint:
    """Return the fingerprint of a section, which is read and validated for it; with ``keep`` the result is cached."""
    cached = fingerprint_file(files)
    try:
        known = json.loads(cached.read_text(encoding="utf-8"))
        if known["stats"] == file_stats(known["files"]):
            return Fingerprint(**{**known["fingerprint"], "size": SectionSize(**known["fingerprint"]["size"])})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or of another version
    section = read_section(files)
    result = fingerprint_of(section, files)
    names = sorted({str(path) for path in section.files})
    if keep:
        write_json(cached, {"files": names, "stats": file_stats(names), "fingerprint": asdict(result)})
    return result


def fingerprint_file(files: SectionFiles) -> Path:
    """Return where a section's fingerprint is cached: by how it is read, and size and time of the files at hand.

    How it is read is also the code that reads: what it took for sound may be refused by a later one.
    """
    stats = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in watched(files) if path.is_file()]
    key = json.dumps([{name: str(value) for name, value in asdict(files).items()}, stats, _reading_code()])
    return paths.cache() / "fingerprints" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


@cache
def _reading_code() -> str:
    """Return a hash of the code that reads sections."""
    code = sorted((Path(__file__).parents[1] / "sections").rglob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in code)).hexdigest()


def file_stats(names: list[str]) -> list[list[int]]:
    """Return size and time of every file; of a folder, of all files in it."""
    every = (file for path in map(Path, names) for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    return [[file.stat().st_size, file.stat().st_mtime_ns] for file in every if file.is_file()]


def _sections_of(source: SectionSource, study: Study) -> list[SectionFiles]:
    if DEMO not in (source.path, source.format):
        return find_sections(source, folder=study.folder)
    written = demo_in(study.run.demo_tissue, **study.demo.model_dump(), seed=study.seed)
    return [files for path in written for files in find_sections(SectionSource(path=str(path)))]


def _is_simulated(study: Study) -> bool:
    return is_demo_in(study.run.demo_tissue, **study.demo.model_dump(), seed=study.seed)


def _to_be_simulated(study: Study) -> dict[SectionFiles, SectionSize]:
    side, folder = study.demo.spots_per_side, study.run.demo_tissue
    spots, megapixels = side**2, (side * PITCH + 2 * MARGIN) ** 2 / 1e6
    size = SectionSize(spots, study.demo.genes, spots * study.demo.genes, megapixels)
    names = range(1, study.demo.sections + 1)
    return {
        SectionFiles(f"S_{k}", "h5ad", folder / f"S_{k}.h5ad", patient=f"P_{k}", laboratory=centre_of(k - 1)): size
        for k in names
    }


# The table behind `histocrypt check`: what is there, what was dropped, and what forbids its use.

HEADER = ("section", "spots", "genes", "image, px", "µm/px", "patient", "")


@dataclass
class CheckRow:
    """One section, or one path that holds none."""

    section: str
    patient: str = ""
    spots: int | None = None
    genes: int | None = None
    image_width_px: int | None = None
    """At full resolution; so is the height."""
    image_height_px: int | None = None
    um_per_px: float | None = None
    """Micrometres per full-resolution pixel."""
    um_per_px_source: str = ""
    problems: list[str] = field(default_factory=list)
    """Sentences: first what forbids the use, then what was dropped or assumed."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where in the files each of `sections.section.ORIGINS` was read."""
    unusable: bool = False


def check_sections(paths: list[str], *, bin_um: float | None = None) -> list[CheckRow]:
    """Check sections, one after the other, and then against each other.

    Parameters
    ----------
    paths
        Section files, folders, globs, or study files (``.yaml``: all sections of the study).
    bin_um
        Side of the squares that Visium HD and Xenium are summed to, micrometres; else as the study says, or the
        format's own.
    """
    listed = [item for path in paths for item in _listed(path, bin_um)]
    rows, prints, printed = [], [], []
    for item, settings in tqdm(listed, desc="check", unit="section", leave=False, disable=None):
        if isinstance(item, CheckRow):
            rows.append(item)
            continue
        row, own = _checked(item, settings)
        rows.append(row)
        prints.append(own)
        printed.append(row)
    for *pair, error in conflicts(prints):
        for position in pair:
            printed[position].unusable = True
            printed[position].problems.insert(0, str(error))
    return rows


def document(rows: list[CheckRow]) -> dict[str, Any]:
    """Return the rows for programs."""
    return {"sections": rows, "unusable": sum(row.unusable for row in rows)}


def render(rows: list[CheckRow]) -> str:
    """Return a line per section, then for each what there is to say of it and what was read from where.

    Sentences stand below the table, so that it fits a terminal.
    """
    lines = [HEADER]
    for row in rows:
        ended = "UNUSABLE" if row.unusable else f"{len(row.problems)} note{'s' * (len(row.problems) != 1)}"
        lines.append(
            (
                row.section,
                "-" if row.spots is None else str(row.spots),
                "-" if row.genes is None else str(row.genes),
                "-" if row.image_width_px is None else f"{row.image_width_px} x {row.image_height_px}",
                "-" if row.um_per_px is None else f"{row.um_per_px:.4f} ({row.um_per_px_source})",
                row.patient or "-",
                ended if row.problems else "ok",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    count = f"{len(rows)} section{'s' * (len(rows) != 1)}, {sum(row.unusable for row in rows)} unusable"
    return "\n".join([*table, count, *(text for row in rows for text in _details(row))])


def _details(row: CheckRow) -> list[str]:
    """Return what is wrong with a section or was assumed, and what was read from where."""
    said = [f"  {'UNUSABLE: ' if row.unusable and not at else ''}{problem}" for at, problem in enumerate(row.problems)]
    said += [f"  {name:<11}{origin}" for name, origin in row.origins.items()]
    return ["", row.section, *said] if said else []


def _listed(path: str, bin_um: float | None) -> Iterator[tuple[SectionFiles | CheckRow, Preprocessing]]:
    """Yield the sections that a path stands for, with how their tiles are cut; what is not found is a row."""
    study = load_study(path) if path.endswith((".yaml", ".yml")) else None
    settings = study.preprocessing if study is not None else Preprocessing()
    for source in study.sections if study is not None else [SectionSource(path=path)]:
        try:
            found = find_sections(source) if study is None else _sections_of(source, study)
            found = [summed(files, bin_um) if files.format in BINNED else files for files in found]
        except InputError as error:
            found = [CheckRow(source.path, problems=[str(error)], unusable=True)]
        yield from ((item, settings) for item in found)


def _checked(files: SectionFiles, settings: Preprocessing) -> tuple[CheckRow, Fingerprint]:
    """Read one section, and let go of it."""
    faults: list[str] = []
    try:
        try:
            section = read_section(files)
        except InputError as error:
            if error.setting != "patient":
                raise
            faults = [str(error)]  # and what else there is to see
            section = read_section(files, require_patient=False)
        own = fingerprint_of(section, files)
        odd = (coarse_note(section, tile_um=settings.tile_um, tile_px=settings.tile_px), laid_otherwise(section))
    except InputError as error:
        row = CheckRow(files.id, files.patient or "", problems=[*faults, str(error)], unusable=True)
        return row, Fingerprint(files.id, files.patient, str(files.path))
    row = CheckRow(
        section.id,
        section.patient,
        section.n_spots,
        section.adata.n_vars,
        section.image.width,
        section.image.height,
        section.um_per_px,
        section.um_per_px_source,
        problems=[*faults, *section.notes, *(f"{section.file}: {note}." for note in odd if note)],
        origins=section.origins,
        unusable=bool(faults),
    )
    return row, own
