"""Intervals whose promise is per patient, from training patients whom a fit had not seen.

Spots of a patient resemble one another, so that spots promise nothing of another patient: ordinary intervals, set for
90 %, covered 39 to 76 % of the spots of the next one. Here the patient is what is exchanged. A patient's score is the
error that a stated share of his spots stays within (`SHARE`); of K patients and a new one, each is as likely as any
other to have the largest, so the k-th smallest score bounds the new one's with probability k / (K + 1). The promise:

    with probability ``level`` over new patients, at least ``share`` of the spots lie within +- the half-width.

No level above K / (K + 1) = 1 - 1 / (K + 1) can be had of K patients, whatever is assumed of spots, and none is given.
It holds for each output alone, not for all at once, and for patients like those: the same tissue, platforms and
laboratories. Calibration patients are predicted by fits without them, and the model that is used has learnt from them
as well: as with the jackknife, the level then holds for stable fits, and 2 * level - 1 in the worst case.

Sources: Dunn, Wasserman and Ramdas, "Distribution-free prediction sets for two-layer hierarchical models", JASA 118
(2023); Lee, Barber and Willett, "Distribution-free inference with hierarchical data", arXiv:2306.06342 (2023); Barber
et al., "Predictive inference with the jackknife+", Annals of Statistics 49 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from histocrypt.errors import InputError

SHARE = 0.9
"""Share of a patient's spots that an interval is about."""
DIGITS = 4
"""Significant ones, of a score in ``model.json``."""


def highest_level(patients: int) -> float:
    """Return the highest level that so many calibration patients support: 1 - 1 / (K + 1)."""
    return 1 - 1 / (patients + 1)


def patient_scores(
    errors: np.ndarray, patients: Sequence[str] | np.ndarray, *, share: float = SHARE
) -> dict[str, np.ndarray]:
    """Return each patient's score of every output: the least bound that ``share`` of the spots' errors keep.

    Parameters
    ----------
    errors
        (n, n_outputs) measured minus predicted, by fits that had not seen the patient. Any unit.
    patients
        (n,) patient of each spot.
    share
        Above 0, at most 1.

    Returns
    -------
    dict
        Patient -> (n_outputs,) float64, in order of their names. A spot without a number counts as outside: infinity.
    """
    names, absolute = np.asarray(patients).astype(str), np.abs(np.asarray(errors, dtype=np.float64))
    absolute = np.where(np.isfinite(absolute), absolute, np.inf)
    scores = {}
    for name in np.unique(names):
        own = absolute[names == name]
        kept = max(1, math.ceil(share * len(own) - 1e-9))
        scores[str(name)] = np.partition(own, kept - 1, axis=0)[kept - 1]
    return scores


def half_widths(scores: np.ndarray, level: float | None = None) -> np.ndarray:
    """Return (n_outputs,) float64 half-widths of intervals, infinite for an output that is without a score.

    Parameters
    ----------
    scores
        (K, n_outputs) of as many calibration patients.
    level
        Probability over new patients; None: the highest there is, `highest_level`.

    Raises
    ------
    InputError
        If the level is none, or more than so many patients support.
    """
    scores = np.asarray(scores, dtype=np.float64)
    count = len(scores)
    highest = highest_level(count)
    level = highest if level is None else level
    if not 0 < level <= highest + 1e-9:
        raise InputError(
            f"is not a level that {count} calibration patients support",
            field="level",
            value=level,
            expected=f"above 0, at most {math.floor(1000 * highest) / 1000:g}",
        )
    place = max(1, math.ceil(level * (count + 1) - 1e-9))
    return np.sort(np.where(np.isfinite(scores), scores, np.inf), axis=0)[place - 1]


def held_out_errors(
    measured: np.ndarray, predicted: np.ndarray, patients: np.ndarray, sections: np.ndarray, *, centred: bool
) -> np.ndarray:
    """Return (n, n_outputs) errors of predictions of patients left out, in the units of ``measured``.

    Parameters
    ----------
    measured
        (n, n_outputs) targets.
    predicted
        (n, n_outputs) what was predicted of spots of patients left out, less the training mean: differences from it.
    patients, sections
        (n,) of each spot.
    centred
        Errors of differences from a section's own mean; else of values: a patient's level is then the mean of the
        others, which is all that was known of it.
    """
    measured, predicted = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    errors = np.empty(measured.shape)
    if centred:
        for section in np.unique(sections):
            own = sections == section
            errors[own] = measured[own] - measured[own].mean(axis=0) - predicted[own] + predicted[own].mean(axis=0)
        return errors
    for patient in np.unique(patients):
        own = patients == patient
        errors[own] = measured[own] - measured[~own].mean(axis=0) - predicted[own]
    return errors


def to_dict(scores: Mapping[str, np.ndarray], *, share: float = SHARE) -> dict[str, Any]:
    """Return what ``model.json`` holds: the share, and each patient's scores in the order of the outputs."""

    def plain(values: np.ndarray) -> list[float | None]:
        return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values]

    return {"share": share, "by_patient": {patient: plain(values) for patient, values in scores.items()}}


def scores_of(said: Mapping[str, Any]) -> np.ndarray:
    """Return (K, n_outputs) float64 from what `to_dict` made; NaN where nothing is known."""
    return np.array([[np.nan if v is None else v for v in values] for values in said["by_patient"].values()])


def without_patients(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `to_dict` made without each patient's scores: of how many, and half-widths at their highest level."""
    widths = half_widths(scores_of(said))
    plain = [float(value) if np.isfinite(value) else None for value in widths]
    return {"share": said["share"], "patients": len(said["by_patient"]), "half_widths": plain}


def widths_of(said: Mapping[str, Any], level: float | None = None) -> np.ndarray:
    """Return `half_widths` from what `to_dict` or `without_patients` made.

    Raises
    ------
    InputError
        As `half_widths`; or if a level is asked for where patients' scores are not told.
    """
    if "by_patient" in said:
        return half_widths(scores_of(said), level)
    if level is not None:
        raise InputError("patients' scores stay with the model's owner", field="level", value=level, fix="name none")
    return np.array([np.inf if value is None else value for value in said["half_widths"]], dtype=np.float64)


def promise(said: Mapping[str, Any], level: float | None = None) -> str:
    """Return what the intervals promise, in words."""
    count = len(said["by_patient"]) if "by_patient" in said else said["patients"]
    level = highest_level(count) if level is None else level
    return (
        f"in {level:.0%} of new patients like the {count} that were left out, at least {said['share']:.0%} of the "
        "spots of one lie within the interval, gene by gene"
    )
