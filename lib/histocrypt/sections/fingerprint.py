"""What makes a section recognisable, and the conflicts between sections that would let a patient leak."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt import paths
from histocrypt.atomic import write_json
from histocrypt.errors import InputError
from histocrypt.sections.size import SectionSize, size_of

if TYPE_CHECKING:
    from histocrypt.sections.section import Section, SectionFiles

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


def fingerprint(files: SectionFiles, *, content: bool = True) -> Fingerprint:
    """Return the fingerprint of a section; with ``content`` it is read and validated, and the result is cached."""
    from histocrypt.sections.read import read_section

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
        msg = f"section id occurs twice, also in {one.file}"
        return InputError(msg, file=two.file, field="section", value=two.id, fix="give each section its own `id:`")
    if apart and same_name(one.patient) == same_name(two.patient):
        msg = f"one patient seems to have two names: {one.patient!r} in {one.file} and {two.patient!r} here"
        return InputError(
            msg, file=two.file, field="patient", value=two.patient, fix="write the patient alike in both sections"
        )
    if one.counts and one.counts == two.counts:
        msg = f"counts are those of {both}: " + (
            "one patient under two names" if apart else "the same section is there twice"
        )
        fix = "give both sections the true patient, or remove one" if apart else "remove one"
        return InputError(msg, file=two.file, field="patient" if apart else "section",
                          value=two.patient if apart else two.id, fix=fix)  # fmt: skip
    if apart and one.image and one.image == two.image:
        msg = f"image is that of {both}: one image under two patients"
        return InputError(
            msg, file=two.file, field="patient", value=two.patient, fix="give both sections the true patient or image"
        )
    return None


def _key(files: SectionFiles) -> str:
    from histocrypt.sections.read import settings_key

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
