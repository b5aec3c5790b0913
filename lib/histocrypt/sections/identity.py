"""Who is who: ids of sections and patients, and the conflicts between sections that would let a patient leak."""

from __future__ import annotations

import hashlib
import re
import unicodedata
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

SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
NO_ID = {"", "nan", "NaN", "None", "<NA>", "NaT"}
"""What tables hold where nothing was written, as text."""
WHOLE = re.compile(r"(\d+)\.0+\Z")


def safe_id(name: str) -> str:
    """Return a name with a dash for whatever a section id must not hold.

    A name of which the start, or nothing, is left gets a few digits of its hash, so that others stay apart from it.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    if SAFE_ID.match(plain):
        return plain
    digits = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{plain.strip('-.') or 'section'}-{digits}"


def check_id(section: str, file: Path) -> None:
    """Refuse a section id that cannot be a file name or part of a spot name."""
    if not SAFE_ID.match(section):
        raise InputError(
            "section id cannot be a file name",
            file=file,
            field="section",
            value=section,
            expected="letters, digits, dot, dash and underscore, neither dot nor dash first",
            setting="id",
        )


def id_text(value: object) -> str:
    """Return an id as its writer meant it: 7.0 is 7, bytes are text, a day is ``2021-03-04``; "" where none is."""
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
    elif isinstance(value, (float, np.floating)) and float(value).is_integer():
        text = str(int(value))
    elif hasattr(value, "isoformat"):
        text = str(value.isoformat()).removesuffix("T00:00:00")
    else:
        text = str(value)
    text = unicodedata.normalize("NFC", text).strip("\0").strip()
    return "" if text in NO_ID else text


def patient_text(given: str) -> str:
    """Return a patient id as it is compared: without space around it, in one Unicode form, 7.0 as 7."""
    return WHOLE.sub(r"\1", unicodedata.normalize("NFC", given).strip())


def ids_in(values: Iterable[object]) -> list[str]:
    """Return the different ids in a column, sorted; those of empty cells are left out."""
    return sorted({patient_text(id_text(value)) for value in values} - {""})


def one_value(adata: AnnData, name: str, file: Path) -> str | None:
    """Return what ``obs`` or ``uns`` says about the whole section; two different values are an error."""
    values = ids_in(adata.obs[name].unique()) if name in adata.obs else []
    if len(values) > 1:
        raise InputError(
            f"a section has one {name}, this file has {len(values)}",
            file=file,
            field=f"obs[{name!r}]",
            value=values[:5],
            fix="write one file per section",
        )
    stated = adata.uns.get(name)
    whole = (
        ids_in(np.ravel(stated).tolist())
        if isinstance(stated, (str, bytes, int, float, np.generic, np.ndarray))
        else []
    )
    if values and len(whole) == 1 and values != whole:
        raise InputError(
            f"obs[{name!r}] names another {name}",
            file=file,
            field=f"uns[{name!r}]",
            value=whole[0],
            expected=f"{values[0]!r} as in obs",
            fix="correct the wrong one",
        )
    found = values or (whole if len(whole) == 1 else [])
    return found[0] if found else None


NAMELESS = ("space_ranger", "visium_hd", "xenium")
"""Formats of which a section is a run of 10x Genomics, a folder of many files with no place for a patient."""


def missing_patient(adata: AnnData, file: Path, layout: str = "") -> InputError:
    """Return the error for a section whose patient is not known; ``layout`` is its format."""
    if layout in NAMELESS:
        return InputError(
            "patient is missing, and files of this layout name none",
            file=file,
            field="patient",
            fix="add `patient:` to the section's entry in a study",
            setting="patient",
        )
    written = sorted({str(value) for value in adata.obs["patient"].unique()} - {""}) if "patient" in adata.obs else []
    if written:  # "None" or "nan", which a person may be called, but hardly is
        return InputError(
            "patient is a placeholder, not a name",
            file=file,
            field="obs['patient']",
            value=written[0],
            setting="patient",
        )
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
    """Return a patient id without what people write differently: case, separators, zeros before a number."""
    plain = re.sub(r"[\s_\-.,/#:]+", "-", unicodedata.normalize("NFKC", patient).strip().casefold()).strip("-")
    plain = re.sub(r"(?<=[^\W\d])-(?=\d)|(?<=\d)-(?=[^\W\d])", "", plain)
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


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
    laboratory: str = ""
    """Empty where neither the study nor the file states it."""


def fingerprint_of(section: Section, files: SectionFiles) -> Fingerprint:
    """Return the fingerprint of a section that has been read."""
    image = section.image.content_hash() if section.image is not None else ""
    laboratory = str(section.adata.obs["laboratory"].iloc[0]) if "laboratory" in section.adata.obs else ""
    counts, size = counts_hash(section.adata), size_of(section)
    return Fingerprint(section.id, section.patient, str(files.path), counts, image, size, laboratory)


def counts_hash(adata: AnnData) -> str:
    """Return a hash of counts per gene and per spot, whatever their order and names; "" without counts.

    Genes that no spot has are left out: a file may list more of them than its copy.
    """
    by_gene, by_spot = (np.sort(np.asarray(adata.X.sum(axis=axis, dtype=np.int64)).ravel()) for axis in (0, 1))
    if not by_spot.any():
        return ""
    return hashlib.sha256(b"\0".join([by_gene[by_gene > 0].tobytes(), by_spot.tobytes()])).hexdigest()


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
            fix="use one name in both sections; if they are two patients, use clearly different names",
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
            f"counts are those of {both}: the same section appears twice",
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
