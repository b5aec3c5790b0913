"""Scores of masks and labels on test images, and their intervals.

All scores are taken within each test patient, then averaged over patients; where a score cannot be had of a patient
(one class only, a level that is nowhere), the patient is left out of it. Intervals are bootstraps over blocks (or
images) within each test patient, all rows on the same draws: they speak of other tissue **of these patients**, not of
new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.synthesis import dice

if TYPE_CHECKING:
    from histocrypt.synthesis.pairs import Pairs


def judge(
    masks: Mapping[str, np.ndarray],
    probabilities: Mapping[str, np.ndarray],
    test: Pairs,
    *,
    blocks: np.ndarray | None = None,
    draws: int = 500,
    seed: int = 0,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Score predicted masks (n, side, side) and probabilities (n, classes) of the test images, by name.

    Test images without a mask count for their labels alone; at least one must have a mask.

    Returns
    -------
    Scores by row and name; and the same in every draw of the bootstrap, each (draws,).
    """
    weights = dice.patient_draws(test.patients, blocks, draws=draws, seed=seed)
    scores: dict[str, dict[str, float]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    masked = {}
    for patient, (rows, given) in weights.items():
        if (own := test.has_mask[rows]).any():
            masked[patient] = rows[own], given[:, own]
    chosen = test.patients[test.has_mask]
    named = [(number, level) for number, level in enumerate(test.scheme.levels) if number != dice.BACKGROUND]
    for name in masks:
        counts = dice.pixel_counts(test.masks, masks[name], len(test.scheme.levels))
        whole, each = dice.score(counts[test.has_mask], chosen), dice.draws_of(counts, masked)
        scores[name] = {f"dice_{level}": float(whole[number]) for number, level in named}
        drawn[name] = {f"dice_{level}": each[:, number] for number, level in named}
        scores[name]["mean_dice"] = float(dice.mean_dice(whole))
        drawn[name]["mean_dice"] = dice.mean_dice(each)
        for score, function in (("balanced_accuracy", balanced_accuracy), ("auc", macro_auc)):
            scores[name][score], drawn[name][score] = _by_patient(function, probabilities[name], test, weights)
    return scores, drawn


def balanced_accuracy(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean share of each class that is called right.

    NaN with fewer than two classes, without probabilities, and where a draw has lost a class: a score over other
    classes is another score.

    Parameters
    ----------
    truth
        (n,) int, columns of ``probability``.
    probability
        (n, classes).
    weights
        (n,) how often each image counts.
    """
    if _unscorable(truth, probability, weights):
        return float("nan")
    right = truth == probability.argmax(axis=1)
    total = np.bincount(truth, weights, minlength=probability.shape[1])
    hits = np.bincount(truth, weights * right, minlength=probability.shape[1])
    return float((hits[total > 0] / total[total > 0]).mean())


def macro_auc(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean area under the curve of each class against the rest.

    Arguments, and where it is NaN, as in `balanced_accuracy`. Equal probabilities count as half.
    """
    from scipy.stats import rankdata

    if _unscorable(truth, probability, weights):
        return float("nan")
    areas = []
    for column in np.unique(truth):
        # Weighted Mann-Whitney: for each positive, the weight of negatives below it and half of those beside it.
        rank = rankdata(probability[:, column], method="dense") - 1
        yes, no = (np.bincount(rank, weights * part, minlength=rank.max() + 1) for part in _sides(truth, column))
        areas.append((yes * (np.cumsum(no) - no / 2)).sum() / (yes.sum() * no.sum()))
    return float(np.mean(areas[:1] if probability.shape[1] == 2 else areas))  # of two classes both areas are the same


def _unscorable(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> bool:
    lost = np.bincount(truth, weights)[np.unique(truth)] == 0
    return bool(np.isnan(probability).any() or len(lost) < 2 or lost.any())


def _sides(truth: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    return truth == column, truth != column


def _by_patient(
    function: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    probability: np.ndarray,
    test: Pairs,
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[float, np.ndarray]:
    """Return a score within patients, averaged over those that have it, and the same in every draw, (draws,)."""
    column = {name: number for number, name in enumerate(test.scheme.classes)}
    truth = np.array([column[name] for name in test.labels.tolist()], dtype=np.intp)
    whole, each = [], []
    for rows, given in weights.values():
        whole.append(function(truth[rows], probability[rows], np.ones(len(rows))))
        each.append([function(truth[rows], probability[rows], one) for one in given])
    return float(dice.over_patients(np.array(whole))), dice.over_patients(np.array(each))
