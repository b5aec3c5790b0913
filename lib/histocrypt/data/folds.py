"""Folds: who is held out when. A patient is never on two sides, unless a study asks for sections to be held out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json, write_json
from histocrypt.sections.identity import same_name

if TYPE_CHECKING:
    from histocrypt.options import Folds

FINAL = "final"
"""The fold that trains on every patient and tests nobody: what is handed on after a study."""

BY_SECTION = "leave_one_section_out"
"""The scheme that trains on other sections of the tested patient. It has to be asked for, and says nothing of a new
patient."""

BY_LABORATORY = "leave_one_laboratory_out"
"""The scheme that holds out all patients of a laboratory."""

NEW_LABORATORY, KNOWN_LABORATORY = "new laboratory", "new patient, known laboratory"
UNKNOWN_LABORATORY, KNOWN_PATIENT = "laboratory unknown", "new section, known patient"
QUESTIONS = (KNOWN_LABORATORY, NEW_LABORATORY, UNKNOWN_LABORATORY, KNOWN_PATIENT)
"""What a score on a held-out section can answer."""

BY_TASK = "hest_splits"
"""The scheme that holds out what a task of hest-bench holds out."""


def caveat(scheme: str) -> str:
    """Return what a reader must know of scores under a scheme; empty where patients are held out."""
    if scheme != BY_SECTION:
        return ""
    return "Other sections of the tested patient were trained on: nothing here is said about a new patient."


@dataclass(frozen=True)
class Fold:
    """One split of a study's sections."""

    name: str
    """Safe in file names; ``fold_<patient>``, ``fold_<number>``, ``fold_<section>`` or ``final``."""
    test_patients: tuple[str, ...]
    train_sections: tuple[str, ...]
    validation_sections: tuple[str, ...]
    """Sections for early stopping: those of one training patient, or one section where only one patient is left."""
    test_sections: tuple[str, ...]

    @property
    def training_sections(self) -> tuple[str, ...]:
        """Sections of the fold's training patients: training and validation together."""
        return tuple(sorted((*self.train_sections, *self.validation_sections)))


def questions(folds: Iterable[Fold], patients: dict[str, str], laboratories: dict[str, str]) -> dict[str, str]:
    """Return which of `QUESTIONS` a score on each tested section answers.

    A laboratory is new only where that of every training section is known, and none is the tested one's.

    Parameters
    ----------
    patients
        Patient of each section.
    laboratories
        Laboratory of each section of which it is stated.
    """
    asked = {}
    for fold in folds:
        learnt = {laboratories.get(section) for section in fold.training_sections}
        people = {patients[section] for section in fold.training_sections}
        for section in fold.test_sections:
            own = laboratories.get(section)
            if patients[section] in people:
                asked[section] = KNOWN_PATIENT
            elif own is None or (own not in learnt and None in learnt):
                asked[section] = UNKNOWN_LABORATORY
            else:
                asked[section] = KNOWN_LABORATORY if own in learnt else NEW_LABORATORY
    return asked


def make_folds(
    patients: dict[str, str],
    folds: Folds,
    seed: int,
    *,
    folder: str | Path | None = None,
    laboratories: dict[str, str] | None = None,
) -> list[Fold]:
    """Split sections into folds by patient.

    The validation patient of a fold is the training patient that follows the fold's test patients in an order shuffled
    by ``seed``; it hence rotates with the fold, and with leave-one-patient-out each patient validates once.
    With leave-one-section-out the same is done with sections, whosever they are.

    Parameters
    ----------
    patients
        Patient of each section, by section id.
    folds
        The study's ``folds``: leave-one-patient-out, group k-fold (`group_k_fold`), leave-one-section-out, or the
        splits of a task of hest-bench.
    seed
        Seed of the order of validation patients (and sections).
    folder
        Where the path of a task starts, if it is relative.
    laboratories
        Laboratory of each section of which it is stated; leave-one-laboratory-out needs all of them.

    Raises
    ------
    InputError
        If there is one patient only, fewer patients than folds, or nothing left to validate on; if a task's splits name
        a section that is not there, or have a patient on two sides; if two laboratory names differ only in spelling.
    """
    _check_spelling(laboratories or {})
    if folds.scheme == BY_SECTION:
        return _by_section(patients, seed)
    sections = np.array(sorted(patients))
    groups = np.array([patients[section] for section in sections])
    everyone = sorted(set(patients.values()))
    if len(everyone) < 2:
        raise InputError(
            f"all {len(sections)} sections come from one patient, {everyone[0]!r}"
            if everyone
            else "there is no section",
            field="sections",
            expected="two patients or more, because a predictor is tested on a patient that it was not trained on",
            fix="add sections of another patient; folds.scheme leave_one_section_out takes one, but its scores say "
            "nothing about a new one",
        )
    if folds.scheme == BY_TASK:
        return _by_task(patients, folds.splits, seed, folder)
    if folds.scheme == BY_LABORATORY:
        held_out = _laboratories(patients, laboratories or {})
        order = [everyone[i] for i in np.random.default_rng(seed).permutation(len(everyone))]
        names = _names([[laboratory] for laboratory in held_out], one_each=True)
        return [_fold(name, test, patients, order, seed) for name, test in zip(names, held_out.values(), strict=True)]
    if folds.scheme == "leave_one_patient_out":
        parts = [np.flatnonzero(groups == patient) for patient in everyone]
    elif folds.scheme == "group_k_fold":
        if folds.n is None or folds.n > len(everyone):
            expected = f"a number from 2 to {len(everyone)}, the number of patients"
            raise InputError(
                "group_k_fold cannot make this number of folds from these patients",
                field="folds.n",
                value=folds.n,
                expected=expected,
            )
        parts = group_k_fold(groups, folds.n)
    else:
        known = ["leave_one_patient_out", "group_k_fold", BY_SECTION, BY_LABORATORY, BY_TASK]
        raise unknown_name("fold scheme", folds.scheme, known, field="folds.scheme")

    held_out = sorted(sorted(set(groups[part])) for part in parts)
    names = _names(held_out, one_each=folds.scheme == "leave_one_patient_out")
    order = [everyone[i] for i in np.random.default_rng(seed).permutation(len(everyone))]
    return [_fold(name, test, patients, order, seed) for name, test in zip(names, held_out, strict=True)]


def _check_spelling(laboratories: dict[str, str]) -> None:
    """Refuse names that are probably one laboratory's: it would be new to itself."""
    known: dict[str, str] = {}
    for name in sorted(set(laboratories.values())):
        if (other := known.setdefault(same_name(name), name)) != name:
            problem, fix = (
                "two laboratory names differ only in spelling",
                "spell it the same way everywhere in the study",
            )
            raise InputError(problem, field="laboratory", value=f"{other!r} and {name!r}", fix=fix)


def _laboratories(patients: dict[str, str], laboratories: dict[str, str]) -> dict[str, list[str]]:
    """Return the patients of each laboratory, both sorted; none may be unknown, and no patient may be of two."""
    of: dict[str, set[str]] = {}
    where = {"field": "laboratory", "fix": "add `laboratory:` to the section's entry in the study"}
    for section, patient in sorted(patients.items()):
        if section not in laboratories:
            raise InputError("the laboratory of a section is not stated", value=section, **where)
        of.setdefault(patient, set()).add(laboratories[section])
    for patient, own in of.items():
        if len(own) > 1:
            problem = f"patient has sections of {len(own)} laboratories, so neither can be held out alone"
            raise InputError(problem, field="laboratory", value=patient, expected="one laboratory per patient")
    held_out = {name: sorted(p for p, own in of.items() if name in own) for name in sorted(set(laboratories.values()))}
    if len(held_out) < 2:
        raise InputError("all sections are of one laboratory", field="laboratory", value=next(iter(held_out), None))
    return held_out


def _by_task(patients: dict[str, str], splits: str | None, seed: int, folder: str | Path | None) -> list[Fold]:
    """Return the folds of a task of hest-bench: ``fold_<number>``; a section that no half names takes no part in it."""
    from histocrypt.sections.formats.hest import hest_splits
    from histocrypt.sections.identity import safe_id

    if splits is None:
        expected = "the folder of a task of hest-bench, with its splits/train_0.csv and test_0.csv"
        raise InputError(
            "does not name the task whose splits to use", field="folds.splits", value=splits, expected=expected
        )
    task = paths.resolve(splits, folder)
    halves = hest_splits(task)
    if not halves:
        raise InputError("holds no splits", file=task, field="folds.splits", expected="splits/train_0.csv, test_0.csv")
    found, tested_by = [], {}
    known = sorted(set(patients.values()))
    everyone = [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
    for number, split in halves.items():
        where = {"file": task / "splits" / f"test_{number}.csv", "field": "sample_id"}
        train, test = ([safe_id(row["sample_id"]) for row in split[half]] for half in ("train", "test"))
        own = {section: patients[section] for section in (*train, *test) if section in patients}
        for section in (*train, *test):
            if section not in own:
                raise InputError("names a section that the study does not have", **where, value=section)
        held_out = sorted({own[section] for section in test})
        if both := {own[section] for section in train} & set(held_out):
            raise InputError("patient is trained on and tested in one split", **where, value=min(both))
        for section in test:
            if tested_by.setdefault(section, number) != number:
                raise InputError(f"section is also tested in split {tested_by[section]}", **where, value=section)
        found.append(_fold(f"fold_{number}", held_out, own, [one for one in everyone if one in own.values()], seed))
    return found


def group_k_fold(groups: np.ndarray, n: int) -> list[np.ndarray]:
    """Deal groups into ``n`` parts of about one size, the largest first; the indices of each part.

    As ``sklearn.model_selection.GroupKFold`` does it, which takes a second to import.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    held, part_of = np.zeros(n, dtype=int), np.zeros(len(sizes), dtype=int)
    for largest in np.argsort(sizes, kind="stable")[::-1]:
        part_of[largest] = np.argmin(held)
        held[part_of[largest]] += sizes[largest]
    return [np.flatnonzero(part_of[group] == part) for part in range(n)]


def inner_parts(fold: Fold, patients: dict[str, str], *, number: int, scheme: str) -> tuple[list[tuple[str, ...]], str]:
    """Deal a fold's training sections into at most ``number`` parts, by patient if there are two or more.

    Returns
    -------
    parts
        The sections of each, sorted.
    by
        ``patient``, or ``section`` where one training patient is left (or the study holds out sections).
    """
    sections = np.array(fold.training_sections)
    groups, by = np.array([patients[section] for section in sections]), "patient"
    if len(set(groups)) == 1 or scheme == BY_SECTION:
        groups, by = sections, "section"
    parts = group_k_fold(groups, min(number, len(set(groups))))
    return sorted(tuple(sections[part].tolist()) for part in parts), by


def _by_section(patients: dict[str, str], seed: int) -> list[Fold]:
    sections = sorted(patients)
    if len(sections) < 3:
        raise InputError(
            f"{len(sections)} sections are too few to train, validate and test",
            field="folds.scheme",
            value=BY_SECTION,
            expected="three sections or more",
        )
    order = [sections[i] for i in np.random.default_rng(seed).permutation(len(sections))]
    found = []
    for section, name in zip(sections, _names([[section] for section in sections], one_each=True), strict=True):
        validation = order[(order.index(section) + 1) % len(order)]
        train = tuple(other for other in sections if other not in (section, validation))
        found.append(Fold(name, (patients[section],), train, (validation,), (section,)))
    return found


def final_fold(patients: dict[str, str]) -> Fold:
    """Return the fold that trains on every section and holds out none."""
    return Fold(FINAL, (), tuple(sorted(patients)), (), ())


def _fold(name: str, test: list[str], patients: dict[str, str], order: list[str], seed: int) -> Fold:
    tested = set(test)
    after = max(order.index(patient) for patient in test) + 1
    left = [patient for patient in order[after:] + order[:after] if patient not in tested]
    training = sorted(section for section, patient in patients.items() if patient not in tested)
    if len(left) > 1:
        validation = [section for section in training if patients[section] == left[0]]
    elif len(training) > 1:
        validation = [training[int(np.random.default_rng(seed).integers(len(training)))]]
    else:
        raise InputError(
            f"with {', '.join(test)} held out, one section of one patient ({training[0]}) is left: "
            "it cannot serve both for training and for validation",
            field="folds",
            fix="add a patient, or another section of this one",
        )
    return Fold(
        name,
        tuple(test),
        tuple(section for section in training if section not in validation),
        tuple(validation),
        tuple(sorted(section for section, patient in patients.items() if patient in tested)),
    )


def _names(held_out: list[list[str]], *, one_each: bool) -> list[str]:
    if not one_each:
        return [f"fold_{i}" for i in range(1, len(held_out) + 1)]
    names: list[str] = []
    for (patient,) in held_out:
        name = "fold_" + re.sub(r"[^A-Za-z0-9._-]+", "-", patient)
        same = sum(other.lower() == name.lower() or other.lower().startswith(f"{name.lower()}~") for other in names)
        names.append(f"{name}~{same + 1}" if same else name)  # two patients must never share a folder
    return names


def save_folds(
    path: str | Path,
    folds: list[Fold],
    patients: dict[str, str],
    *,
    scheme: str = "",
    uncounted: Iterable[str] = (),
    laboratories: dict[str, str] | None = None,
) -> None:
    """Write the folds, and the patient of every section, as JSON; atomically.

    Parameters
    ----------
    scheme
        The study's ``folds.scheme``; kept where it lets a patient be on two sides, or no laboratory.
    uncounted
        Sections without counts; kept where there are any, since what predicts from depth cannot be used then.
    laboratories
        Laboratory of each section that states one; kept where there are any, with the question that each tested
        section answers.
    """
    uncounted = sorted(uncounted)
    _check(folds, patients, path, scheme=scheme, laboratories=laboratories or {})
    content = {
        **({"scheme": scheme} if scheme in (BY_SECTION, BY_LABORATORY) else {}),
        **({"uncounted": uncounted} if uncounted else {}),
        "patients": dict(sorted(patients.items())),
        **(
            {
                "laboratories": dict(sorted(laboratories.items())),
                "questions": dict(sorted(questions(folds, patients, laboratories).items())),
            }
            if laboratories
            else {}
        ),
        "folds": [asdict(fold) for fold in folds],
    }
    write_json(path, content)


def read_questions(path: str | Path) -> dict[str, str]:
    """Return which of `QUESTIONS` each tested section of a run answers."""
    content = read_json(path)
    return questions(load_folds(path), content["patients"], content.get("laboratories", {}))


def uncounted_sections(path: str | Path) -> list[str]:
    """Return the sections without counts, as `save_folds` noted them."""
    return list(read_json(path).get("uncounted", []))


RUN_FIRST = "run the study first: histocrypt run STUDY.yaml"
"""What to do where a part of a run is not made yet."""


def load_folds(path: str | Path) -> list[Fold]:
    """Read the folds of a run, ``final`` among them, and check that no patient is on two sides of any.

    Raises
    ------
    InputError
        If the file is unreadable, or a patient or section is on two sides of a fold (a patient may be, where the study
        asked for leave-one-section-out), or a laboratory, where the study holds these out.
    """
    if not Path(path).exists():
        raise InputError("this study has no folds yet", file=path, fix=RUN_FIRST)
    content = read_json(path)
    try:
        patients, laboratories = dict(content["patients"]), dict(content.get("laboratories", {}))
        folds = [
            Fold(**{key: value if key == "name" else tuple(value) for key, value in fold.items()})
            for fold in content["folds"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "does not hold folds", file=path, expected="the keys patients and folds", fix=RUN_FIRST
        ) from error
    _check(folds, patients, path, scheme=str(content.get("scheme", "")), laboratories=laboratories)
    return folds


def load_fold(path: str | Path, name: str) -> Fold:
    """Read one fold by name; an unknown name is an `InputError` that lists the known ones."""
    folds = {fold.name: fold for fold in load_folds(path)}
    if name not in folds:
        raise unknown_name("fold", name, folds, file=path)
    return folds[name]


def chosen_fold(names: list[str], name: str | None, *, field: str) -> str:
    """Return the fold that a field of the study names, the first if it names none; an unknown one is an `InputError`.

    Parameters
    ----------
    names
        Of the folds that hold patients out.
    """
    if name is not None and name not in names:
        raise unknown_name("fold", name, names, field=field)
    return name or names[0]


def held_out_sections(folds: list[Fold], number: int) -> dict[str, str]:
    """Return the fold that tests a section, for ``number`` sections: one of each fold before a second of any.

    Fewer, where no more are tested; the fold ``final`` tests none.
    """
    found: dict[str, str] = {}
    for each in zip_longest(*(fold.test_sections for fold in folds)):
        for fold, section in zip(folds, each, strict=True):
            if section is not None:
                found.setdefault(section, fold.name)
    return dict(islice(found.items(), number))


def _check(
    folds: list[Fold], patients: dict[str, str], path: str | Path, *, scheme: str, laboratories: dict[str, str]
) -> None:
    for fold in folds:
        where = {"file": path, "field": fold.name}
        sides = (fold.train_sections, fold.validation_sections, fold.test_sections)
        every = [section for side in sides for section in side]
        unknown = [section for section in every if section not in patients]
        if unknown:
            raise InputError(f"section {unknown[0]!r} has no patient", **where)
        twice = [section for section, times in Counter(every).items() if times > 1]
        if twice:
            raise InputError(
                f"section {twice[0]!r} appears on two sides of the fold", **where, fix="run preprocessing again"
            )
        trained = {patients[section] for section in fold.training_sections}
        tested = {patients[section] for section in fold.test_sections}
        if trained & tested and scheme != BY_SECTION:
            raise InputError(
                f"patient {min(trained & tested)!r} is both trained on and tested",
                **where,
                fix="run preprocessing again",
            )
        shared = {laboratories.get(one) for one in fold.training_sections} & {
            laboratories.get(one) for one in fold.test_sections
        }
        if shared and scheme == BY_LABORATORY:
            problem = f"laboratory {min(map(str, shared))!r} is both trained on and tested"
            raise InputError(problem, **where, fix="run preprocessing again")
        if tested != set(fold.test_patients):
            raise InputError(
                f"test_patients {sorted(fold.test_patients)} are not the patients of the test sections",
                **where,
                fix="run preprocessing again",
            )
