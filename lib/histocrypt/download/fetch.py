"""``histocrypt download``: what may be fetched, under which licence, and fetching it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from histocrypt import paths
from histocrypt.download.sources import HER2ST_SECTIONS, VISIUM_VERSIONS, Hbcis, Her2st, Hest, Source, Visium, block_of
from histocrypt.download.transfer import Fetched, Web, fetch, left_to_fetch, need_space
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import regular
from histocrypt.options import DEMO, SectionSource
from histocrypt.sections.identity import SAFE_ID
from histocrypt.sections.read import find_sections, watched
from histocrypt.sections.section import SectionFiles
from histocrypt.study import Study

SOURCES = {
    source.name: source
    for source in (
        Her2st(
            "her2st",
            "HER2-positive breast tumours: 36 sections of 8 patients, ST arrays",
            homepage="https://github.com/almaan/her2st",
            hosts={
                "api": "https://api.github.com/repos/almaan/her2st",
                "raw": "https://raw.githubusercontent.com/almaan/her2st",
            },
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            citation="Andersson A. et al., Spatial deconvolution of HER2-positive breast cancer delineates "
            "tumor-associated cell type interactions, Nat Commun 12:6012 (2021), doi:10.1038/s41467-021-26271-2; "
            "archived at zenodo.org/records/4751624",
            names=HER2ST_SECTIONS,
            example="C2",
            note="from the authors' repository, as the archive's zip files are encrypted; genes are named by symbol.",
        ),
        Hbcis(
            "hbcis",
            "Human breast cancer in situ: 68 sections of 23 patients, ST arrays",
            homepage="https://data.mendeley.com/datasets/29ntw7sh4r/5",
            hosts={"api": "https://data.mendeley.com/public-api/datasets/29ntw7sh4r"},
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            citation="He B. et al., Integrating spatial gene expression and breast tumour morphology via deep "
            "learning, Nat Biomed Eng 4:827 (2020), doi:10.1038/s41551-020-0578-x; data: doi:10.17632/29ntw7sh4r.5",
            example="BC23209_C1",
        ),
        Visium(
            "visium",
            "10x Genomics' public Visium sections",
            homepage="https://www.10xgenomics.com/datasets",
            hosts={"samples": "https://cf.10xgenomics.com/samples/spatial-exp"},
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            citation="10x Genomics, Spatial Gene Expression data set <name>, 10xgenomics.com/datasets",
            names=tuple(sorted(VISIUM_VERSIONS)),
            example="V1_Breast_Cancer_Block_A_Section_1",
            note="no checksum is published: the first download's is written beside each file.",
        ),
        Hest(
            "hest",
            "HEST-1k: 1229 sections of many organs and technologies",
            homepage="https://huggingface.co/datasets/MahmoodLab/hest",
            hosts={"hub": "https://huggingface.co"},
            licence="CC BY-NC-SA 4.0",
            licence_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
            citation="Jaume G. et al., HEST-1k: A Dataset for Spatial Transcriptomics and Histology Image Analysis, "
            "NeurIPS 2024, arXiv:2406.16192",
            terms="non-commercial use only; what is made from it is shared alike; access is granted by its authors",
            gated=True,
            example="TENX99",
            note="needs your own Hugging Face token (HF_TOKEN or --token-file), after accepting the terms on its page.",
        ),
    )
}
"""What can be downloaded, by the name used on the command line: the one list of addresses, licences and citations.

Addresses are those publicly known. The code that uses them is tested against a local server only.
"""
NEAR = 12
"""How many names a message lists where there are too many for all."""


def source_named(name: str) -> Source:
    """Return a source; an unknown name lists the known ones."""
    if name not in SOURCES:
        raise unknown_name("data set", name, SOURCES)
    return SOURCES[name]


def accept(source: Source, *, accepted: bool) -> None:
    """Refuse to go on where a licence must be accepted by hand and is not."""
    if source.terms and not accepted:
        raise InputError(
            f"{source.name} is under {source.licence}: {source.terms}",
            file=source.licence_url,
            fix="repeat with --accept-licence if you accept that",
        )


def facts(source: Source) -> dict[str, object]:
    """Return licence and citation as a program reads them."""
    names = ("name", "title", "homepage", "licence", "licence_url", "terms", "citation", "gated", "note")
    return {name: getattr(source, name) for name in names}


def about(source: Source) -> str:
    """Return licence and citation as a person reads them."""
    lines = [
        f"{source.name}: {source.title}",
        f"  page      {source.homepage}",
        f"  licence   {source.licence} ({source.licence_url})" + (f"; {source.terms}" if source.terms else ""),
        f"  cite      {source.citation}",
    ]
    return "\n".join([*lines, *([f"  note      {source.note}"] if source.note else [])])


@dataclass(frozen=True)
class Downloaded:
    """What ``histocrypt download`` ends with: a document for programs, the same for people, what was fetched."""

    document: dict[str, object]
    words: str
    sections: Sequence[Section] = ()


def download_by_name(
    source: str | None,
    names: list[str],
    to: Path | None,
    *,
    accepted: bool,
    small: bool,
    token_file: Path | None,
    mirror: str | None,
    timeout_s: float,
    overwrite: bool = False,
    say: Callable[[str], None],
) -> Downloaded:
    """Do what ``histocrypt download`` was asked for: list data sets, list sections of one, or fetch some."""
    if source is None:
        words = "\n\n".join(about(known) for known in SOURCES.values())
        return Downloaded({"sources": [facts(known) for known in SOURCES.values()]}, words)
    chosen = source_named(source).mirrored(mirror)
    say(about(chosen))
    if names:
        accept(chosen, accepted=accepted)
    token = read_token(token_file) if chosen.gated else None
    if names and chosen.gated and token is None:
        raise InputError(
            f"{chosen.name} needs your access token, and none is set",
            file=chosen.homepage,
            fix="accept its terms there, then set HF_TOKEN or --token-file",
        )
    with Web(token=token, token_host=next(iter(chosen.hosts.values())), read_s=timeout_s) as web:
        if not names:
            known = list(chosen.names or chosen.sections(web))
            return Downloaded({**facts(chosen), "sections": known}, "\n" + "\n".join(known))
        folder = to if to is not None else paths.data() / chosen.name
        how = {"accepted": accepted, "small": small, "overwrite": overwrite, "say": say}
        sections = download_sections(chosen, names, folder, web=web, **how)
    entries = "\n".join(study_entry(chosen.name, section.name, section.path) for section in sections)
    return Downloaded({**facts(chosen), "fetched": sections}, f"\nIn a study:\nsections:\n{entries}", sections)


def study_entry(source: str, name: str, path: Path) -> str:
    """Return the lines of a study that name a fetched section; sections of one block have one patient."""
    lines = [f"  - path: {path.absolute()}"]
    if source == "visium":  # Space Ranger knows no patients
        lines.append(f"    patient: {block_of(name)}      # as far as the name tells: correct it if you know better")
    return "\n".join(lines)


def read_token(file: Path | None) -> str | None:
    """Return the user's Hugging Face token from a file, else from where the hub's own tools keep it; never shown."""
    if file is None:
        return paths.hugging_face_token()
    try:
        token = regular(file, missing="token file is missing").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("token file cannot be read", file=file) from error
    if not token or not token.isascii() or len(token.split()) != 1:
        raise InputError("file does not hold one token", file=file, expected="the token alone, on one line")
    return token


@dataclass(frozen=True)
class Section:
    """One section that is now on disk."""

    name: str
    path: Path
    """What a study names, and `histocrypt check`."""
    files: list[Fetched]


def download_sections(
    source: Source,
    names: Iterable[str],
    folder: Path,
    *,
    web: Web,
    accepted: bool = False,
    small: bool = False,
    progress: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[Section]:
    """Fetch sections into a folder, in a layout that the readers know; what is there and right is left alone.

    Parameters
    ----------
    source
        Where from; `Source.mirrored` for another address.
    names
        Sections, as `Source.sections` returns them.
    folder
        Where to; made if needed.
    web
        The client, with the user's token where the source is gated.
    accepted
        Whether the user accepts a licence that forbids silent use.
    small
        Leave out whole-slide images where something smaller serves: the 2000 px image of Visium, the patches of HEST.
    overwrite
        Replace files of these names that are others than those published.
    say
        Takes one line at a time.

    Raises
    ------
    InputError
        If the licence is not accepted, a name is unknown (near ones are listed), the disk is too small, or a file
        cannot be fetched.
    """
    accept(source, accepted=accepted)
    names = list(dict.fromkeys(names))
    known = source.sections(web)
    for name in names:
        if name not in known:
            raise _unknown(source, name, known)
        if not SAFE_ID.match(name):  # a listing may hold anything
            raise InputError("the section's name cannot be used as a file name", file=source.homepage, value=name)
    listed = {name: source.files(web, name, small=small) for name in names}
    needed = sum(left_to_fetch(file, folder) for files in listed.values() for file in files)
    need_space(folder, needed, ", ".join(names[:5]) + (", ..." if len(names) > 5 else ""))
    found = []
    for name, files in listed.items():
        fetched = []
        for file in files:
            result = fetch(web, file, folder, progress=progress, overwrite=overwrite)
            say(f"{result.how:8} {result.path}  ({result.path.stat().st_size:,} bytes; checked: {result.checked})")
            fetched.append(result)
        found.append(Section(name, source.finish(folder, name), fetched))
    return found


def _unknown(source: Source, name: str, known: list[str]) -> InputError:
    """Return the error for an unknown name; where there are many names it lists the nearest only."""
    from difflib import get_close_matches

    if len(known) <= 40:
        return unknown_name(f"section of {source.name}", name, known)
    near = get_close_matches(name, known, n=NEAR, cutoff=0.5) or known[:NEAR]
    return InputError(
        f"unknown section {name!r} of {source.name}, which has {len(known)}",
        expected=f"such as {', '.join(near)}",
        fix=f"`histocrypt download {source.name}` lists them",
    )


# What is here already: sections in a folder, and those that a study asks for. Only names are read, no counts.


def catalogue_rows() -> list[dict[str, object]]:
    """Return what can be downloaded, one row a source, as people read it."""
    return [
        {
            "name": source.name,
            "what": source.title,
            "licence": source.licence,
            "asks for": ", ".join(
                [*(["--accept-licence"] if source.terms else []), *(["your token"] if source.gated else [])]
            )
            or "a citation",
            "page": source.homepage,
        }
        for source in SOURCES.values()
    ]


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
            rows += [_row(files.id, files) for files in find_sections(source, folder=study.folder)]
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
