"""The table behind `histocrypt check`: what is there, what was dropped, and what forbids its use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from histocrypt.errors import InputError
from histocrypt.sections.fingerprint import Fingerprint, conflicts, fingerprint_of
from histocrypt.sections.read import find_sections, read_section
from histocrypt.sections.section import SectionFiles
from histocrypt.study import load_study
from histocrypt.study_parts import SectionSource

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
