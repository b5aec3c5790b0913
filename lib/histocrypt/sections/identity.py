"""Who is who: ids of sections and patients, and the conflicts between sections that would let a patient leak."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.section import SectionSize, size_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from anndata import AnnData

    from histocrypt.sections.section import Section, SectionFiles

SAFE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


def safe_id(name: str) -> str:
    """Return a name with a dash for whatever a section id must not hold."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def check_id(section: str, file: Path) -> None:
    """Refuse a section id that cannot be a file name or part of a spot name."""
    if not SAFE_ID.match(section):
        raise InputError(
            "section id cannot be a file name",
            file=file,
            field="section",
            value=section,
            expected="letters, digits, dot, dash and underscore",
            setting="id",
        )


def one_value(adata: AnnData, name: str, file: Path) -> str | None:
    """Return what ``obs`` or ``uns`` says about the whole section; two different values are an error."""
    if name in adata.obs:
        values = sorted({str(value) for value in adata.obs[name].dropna().unique()} - {"", "nan", "None"})
        if len(values) > 1:
            raise InputError(
                f"a section has one {name}, this file has {len(values)}",
                file=file,
                field=f"obs[{name!r}]",
                value=values[:5],
                fix="write one file a section",
            )
        if values:
            return values[0]
    value = adata.uns.get(name)
    return str(value) if isinstance(value, (str, int, np.integer)) and str(value) else None


def missing_patient(adata: AnnData, file: Path) -> InputError:
    """Return the error for a section whose patient is not known."""
    near = near_name("patient", adata.obs.columns, "donor", "subject", "case", "individual")
    return InputError(
        "patient is missing" + (f"; did you mean obs[{near!r}]?" if near else ""),
        file=file,
        field="obs['patient']",
        setting="patient",
    )


def near_name(name: str, present: Iterable[str], *synonyms: str) -> str | None:
    """Return the name that is there and was probably meant."""
    by_lower = {str(other).lower(): str(other) for other in present}
    holding = (other for other in by_lower if any(word in other for word in (name, *synonyms)))
    near = next(holding, None) or next(iter(get_close_matches(name, by_lower, n=1, cutoff=0.7)), None)
    return by_lower.get(near)


@cache
def same_name(patient: str) -> str:
    """Return a patient id without what people write differently: case, separators, a dash before the number."""
    plain = re.sub(r"[\s_\-]+", "-", patient.strip().casefold()).strip("-")
    return re.sub(r"(?<=[a-z])-(?=\d)|(?<=\d)-(?=[a-z])", "", plain)


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


def fingerprint_of(section: Section, files: SectionFiles) -> Fingerprint:
    """Return the fingerprint of a section that has been read."""
    image = section.image.content_hash() if section.image is not None else ""
    return Fingerprint(
        section.id, section.patient, str(files.path), counts_hash(section.adata), image, size_of(section)
    )


def counts_hash(adata: AnnData) -> str:
    """Return a hash of gene names, counts per gene and counts per spot, whatever their order; "" without counts."""
    by_gene = np.asarray(adata.X.sum(axis=0, dtype=np.int64)).ravel()
    by_spot = np.sort(np.asarray(adata.X.sum(axis=1, dtype=np.int64)).ravel())
    if not by_spot.any():
        return ""
    genes = adata.var_names.to_numpy(dtype=str)
    order = np.argsort(genes)
    content = ("\n".join(genes[order]).encode(), by_gene[order].tobytes(), by_spot.tobytes())
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def conflicts(prints: list[Fingerprint]) -> list[tuple[int, int, InputError]]:
    """Return every pair of sections, by position, that cannot be in one study, with the sentence that says why."""
    pairs = ((i, j, _conflict(one, two)) for (i, one), (j, two) in combinations(enumerate(prints), 2))
    return [(i, j, error) for i, j, error in pairs if error is not None]


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
        if apart:
            return InputError(
                f"counts are those of {both}: one patient under two names",
                file=two.file,
                field="patient",
                value=two.patient,
                fix="give both sections the true patient, or remove one",
            )
        return InputError(
            f"counts are those of {both}: the same section is there twice",
            file=two.file,
            field="section",
            value=two.id,
            fix="remove one",
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
