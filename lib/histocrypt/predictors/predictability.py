"""Genes worth trusting: how well each output is predicted on training sections that a fit did not see.

The inner folds that choose a hyper-parameter give it for little: every training spot is predicted by a fit that has not
seen its patient (or its section, where there is one patient). The penalty is chosen on the same folds, one for all
outputs, so the correlations are a little high; their order over genes is what they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.correlation import pearson

if TYPE_CHECKING:
    from histocrypt.data.load import Spots

DIGITS = 4
"""Of a correlation in ``model.json``."""
BY = ("patient", "section", "part of a section")
"""What was left out at a time, the best evidence first."""


@dataclass(frozen=True)
class Predictability:
    """The held-out correlation of every output on training sections."""

    by: str
    """One of `BY`: only by patient does it speak of a patient who was not seen."""
    patients: int
    """Patients that it is the mean over."""
    sections: int
    correlation: np.ndarray
    """(n_outputs,) float64: Pearson's within sections, mean over the sections of a patient, then over patients; NaN for
    an output that varies in none."""
    by_patient: dict[str, np.ndarray]
    """The same of each patient alone."""
    owners: dict[str, str]
    """Whose each section is."""
    predicted: np.ndarray
    """(n, n_outputs) float32: what was predicted of each training spot by a fit that had not seen it, in the order of
    the spots and the unit of the targets that were fitted. Not kept in ``model.json``."""

    def to_dict(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Return what ``model.json`` holds; an output without a correlation is None. Patients' lists are in order."""
        return {
            "by": self.by,
            "patients": self.patients,
            "sections": self.sections,
            "correlation": dict(zip(outputs, plain(self.correlation), strict=True)),
            "by_patient": {patient: plain(values) for patient, values in self.by_patient.items()},
        }


def predictability(
    spots: Spots,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Predictability | None:
    """Return how well each output is predicted out of fold; None where there is nothing to leave out.

    Parameters
    ----------
    spots
        Training spots with targets.
    folds
        (train, held out) index pairs, as of `closed_form.inner_folds`: every spot is held out once.
    predict
        Fits to the first of such a pair and returns predictions of the second, (held out, n_outputs).
    """
    if not folds:
        return None
    predicted = np.empty(spots.targets.shape, dtype=np.float32)
    for train, held_out in folds:
        predicted[held_out] = predict(train, held_out)
    names = np.unique(spots.sections)
    owners = {name: spots.patients[spots.sections == name][0] for name in names}
    each = {name: pearson(spots.targets[own], predicted[own]) for name in names for own in [spots.sections == name]}
    patients = sorted(set(owners.values()))
    of = {
        str(patient): mean_of_known([each[name] for name in names if owners[name] == patient]) for patient in patients
    }
    owned = {str(name): str(owner) for name, owner in owners.items()}
    by = BY[0] if len(patients) > 1 else BY[1] if len(names) > 1 else BY[2]
    return Predictability(by, len(patients), len(names), mean_of_known(list(of.values())), of, owned, predicted)


def without_patients(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Predictability.to_dict` made without what it says of each patient, for who need not know it."""
    return {name: value for name, value in said.items() if name != "by_patient"}


def plain(values: np.ndarray) -> list[float | None]:
    """Return values as ``model.json`` holds them; None for what is not finite."""
    return [round(float(value), DIGITS) if np.isfinite(value) else None for value in values]


def correlations_of(said: Mapping[str, Any] | None, outputs: Sequence[str]) -> np.ndarray:
    """Return (len(outputs),) float64 from what ``model.json`` holds; NaN where it says nothing of one."""
    known = (said or {}).get("correlation", {})
    return np.array([np.nan if known.get(name) is None else known[name] for name in outputs], dtype=np.float64)


def mean_of_known(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over rows of what is known, column by column."""
    values = np.stack(rows)
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
