"""What is here already: sections in a folder, and those that a study asks for. Only names are read, no counts."""

from __future__ import annotations

from pathlib import Path

from histocrypt.download.catalogue import SOURCES
from histocrypt.errors import InputError
from histocrypt.sections.read import DEMO, find_sections, watched
from histocrypt.sections.section import SectionFiles
from histocrypt.study import Study
from histocrypt.study_parts import SectionSource


def catalogue_rows() -> list[dict[str, object]]:
    """Return what can be downloaded, one row a source, as people read it."""
    return [
        {
            "name": source.name,
            "what": source.title,
            "licence": source.licence,
            "asks for": ", ".join(
                [*(["--accept-licence"] if source.terms else []), *(["your token"] if source.gated else [])]
            ) or "a citation",
            "page": source.homepage,
        }
        for source in SOURCES.values()
    ]  # fmt: skip


def local_rows(folder: Path) -> list[dict[str, object]]:
    """Return the sections in a folder and in the folders just below it, one row each; empty where there are none.

    A folder that holds something unusable of a known layout gets a row that says why.
    """
    rows = []
    for place in [folder, *sorted(path for path in folder.glob("[!.]*") if path.is_dir())] if folder.is_dir() else []:
        try:
            found = find_sections(SectionSource(path=str(place)))
        except InputError as error:
            if not error.problem.startswith("folder holds no section"):
                rows.append(_row(place.name, note=str(error)))
            continue
        rows += [_row(files.id, files) for files in found]
    unique = {(row["section"], row["where"]): row for row in rows}  # a run of Space Ranger is found from two places
    return list(unique.values())


def study_rows(study: Study) -> list[dict[str, object]]:
    """Return the sections that a study asks for, and for each entry that is not here what is wrong."""
    rows = []
    for source in study.sections:
        if DEMO in (source.path, source.format):
            rows.append({**_row("demo tissue", note="simulated when the study runs"), "here": True})
            continue
        try:
            rows += [_row(files.id, files) for files in find_sections(source, study=study)]
        except InputError as error:
            rows.append(_row(source.id or source.path, note=str(error)))
    return rows


def _row(section: str, files: SectionFiles | None = None, *, note: str = "") -> dict[str, object]:
    size = sum(_bytes(path) for path in watched(files)) if files is not None else 0
    return {
        "section": section,
        "patient": (files.patient if files is not None else None) or "",
        "format": files.format if files is not None else "",
        "MB": round(size / 1e6, 1),
        "where": str(files.path) if files is not None else "",
        "here": files is not None,
        "note": note,
    }


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0
