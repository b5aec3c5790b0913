"""``histocrypt new``: a commented study file for the sections that it is given, after they were looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from histocrypt.errors import InputError
from histocrypt.explore.survey import CheckRow, check_sections
from histocrypt.files import claim, write_text
from histocrypt.study import NAME, load_study

MADE = "# Written by `histocrypt new`"


def new_study(name: str, sections: Sequence[str], *, output: Path | None = None, overwrite: bool = False) -> str:
    """Write ``<name>.yaml`` and return what it holds.

    Folds hold out patients where there are two or more; with one, sections, and the file says what that is worth.

    Parameters
    ----------
    name
        Of the study, and of its folder in the outputs.
    sections
        Files, folders or globs, as a study's ``sections`` take them.
    output
        Where to write; ``<name>.yaml`` if not given.

    Raises
    ------
    InputError
        If the name cannot be a folder's, no section can be used, or something else lies at ``output``.
    """
    if not re.fullmatch(NAME, name):
        raise InputError("cannot be the name of a study", field="NAME", value=name, expected="letters, digits, - and _")
    path = claim(output or Path(f"{name}.yaml"), overwrite=overwrite)  # one of ours may have been edited since
    sections = [_meant(one) for one in sections]
    rows = check_sections(sections)
    usable = [row for row in rows if not row.unusable]
    if not usable:
        said = rows[0].problems[0].rstrip(".") if rows and rows[0].problems else "nothing was found"
        raise InputError(f"no section can be used: {said}", field="SECTION", value=list(sections))
    write_text(path, _written(name, sections, usable))
    load_study(path)
    left = [row for row in rows if row.unusable]
    lines = [f"wrote {path}: {_counted(usable)}"]
    lines += [f"not usable, and refused in a run: {row.section} ({'; '.join(row.problems[:1])})" for row in left]
    return "\n".join(lines)


def _meant(given: str) -> str:
    """Return a path as a study file takes it, which looks for others beside itself and not in the current folder."""
    named = given == "demo" or given.startswith("data:")
    return given if named else str(Path(given).expanduser().absolute())


def _counted(rows: list[CheckRow]) -> str:
    patients, spots = {row.patient for row in rows if row.patient}, sum(row.spots or 0 for row in rows)
    of = f"{len(patients)} patient{'s' * (len(patients) != 1)}" if patients else "unknown patients"
    return f"{len(rows)} section{'s' * (len(rows) != 1)} of {of}, {spots} spots"


def _written(name: str, sections: Sequence[str], rows: list[CheckRow]) -> str:
    patients = sorted({row.patient for row in rows if row.patient})
    listed = "\n".join(f"  - path: {json.dumps(one, ensure_ascii=False)}" for one in sections)
    genes = min((row.genes for row in rows if row.genes), default=200)
    if len(patients) >= 2:
        scheme, why = "leave_one_patient_out", "each patient is held out in turn; large cohorts: group_k_fold with n"
    else:
        scheme, why = "leave_one_section_out", "ONE PATIENT: scores say nothing about a new one; add a second patient"
    return f"""{MADE}: {_counted(rows)}.
# Every key with its default and meaning: docs/reference/study.md of the documentation, or lib/histocrypt/options.py.
name: {name}
title: ""               # stands on top of the report
seed: 0

sections:               # files, folders or globs; add patient: ID where a file does not name its patient
{listed}

preprocessing:
  min_counts: 200       # spots with fewer counts are dropped
  tile_um: 150          # side of a tile around each spot, micrometres

panel:                  # which genes, chosen on training patients only
  method: hmhvg         # highly variable and highly expressed; file: a list of your own
  size: {min(200, genes)}

folds:
  scheme: {scheme}      # {why}

models:                 # five baselines are always trained beside these
  fusion_ridge: {{}}      # frozen features, seconds; the best of ours on patients never seen
  # resnet18: {{average_pool: true}}     # a network, minutes to hours

# encrypted: {{sections: 1}}       # with models fhe_head or fhe_cnn: predict on ciphertexts, too
# audit: {{}}                      # what the models reveal about their patients
evaluation:
  bootstrap: 1000       # draws for the intervals
"""
