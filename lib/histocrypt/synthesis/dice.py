"""How well predicted masks agree with true ones: Dice of each level, with an interval.

Dice of a level is 2 |truth and prediction| / (|truth| + |prediction|), pixels pooled over all images of a patient;
then the mean over patients. A level that is neither in a patient's truth nor in its prediction is left out there:
nothing was asked, and nothing is counted as right. Records without a mask are left out.

Mean Dice is the mean over levels but background of these means.
"""

from __future__ import annotations

import numpy as np

from histocrypt.evaluation.bootstrap import draw_weights

BACKGROUND = 0


def pixel_counts(truth: np.ndarray, predicted: np.ndarray, n_levels: int) -> np.ndarray:
    """Return (n, 3, n_levels) float64 pixels of each image: in both, in the truth, in the prediction.

    Parameters
    ----------
    truth, predicted
        (n, h, w) integers, 0 to ``n_levels`` - 1.
    """
    if truth.shape != predicted.shape:
        msg = f"masks of {truth.shape} and predictions of {predicted.shape} do not belong together"
        raise ValueError(msg)
    flat = (truth.reshape(len(truth), -1), predicted.reshape(len(truth), -1))
    counts = np.empty((len(truth), 3, n_levels))
    for level in range(n_levels):
        true, found = (values == level for values in flat)
        counts[:, :, level] = np.column_stack([(true & found).sum(1), true.sum(1), found.sum(1)])
    return counts


def dice(counts: np.ndarray) -> np.ndarray:
    """Return Dice (..., n_levels) of counts (..., 3, n_levels); NaN where a level is in neither."""
    both, true, found = np.moveaxis(counts, -2, 0)
    total = true + found
    return np.where(total > 0, 2 * both / np.maximum(total, 1), np.nan)


def over_patients(each: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis, patients, of those that are numbers; NaN where none is."""
    known = np.isfinite(each)
    total = np.where(known, each, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def mean_dice(levels: np.ndarray) -> np.ndarray:
    """Return the mean (...) of Dice (..., n_levels) over levels but background that are numbers."""
    return over_patients(np.moveaxis(np.delete(levels, BACKGROUND, axis=-1), -1, 0))


def score(counts: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return Dice of each level, (n_levels,): pooled over a patient's images, then the mean over patients."""
    return over_patients(np.stack([dice(counts[patients == patient].sum(axis=0)) for patient in np.unique(patients)]))


def draws_of(counts: np.ndarray, weights: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return `score` in every draw, (draws, n_levels).

    Parameters
    ----------
    counts
        (n, 3, n_levels).
    weights
        From `patient_draws`.
    """
    each = []
    for rows, drawn in weights.values():
        own = counts[rows]
        each.append(dice((drawn @ own.reshape(len(own), -1)).reshape(-1, *own.shape[1:])))
    return over_patients(np.stack(each))


def patient_draws(
    patients: np.ndarray, blocks: np.ndarray | None, *, draws: int, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each patient its rows, (m,) int, and how often each draw has them, (draws, m) float.

    Parameters
    ----------
    patients
        (n,) str.
    blocks
        (n,) names of what is drawn together: squares of tissue, since neighbouring tiles resemble one another (and may
        overlap). None: each image by itself.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for patient in np.unique(patients).tolist():
        rows = np.flatnonzero(patients == patient)
        names = rows if blocks is None else blocks[rows]
        code = np.unique(names, return_inverse=True)[1].ravel()
        found[patient] = rows, draw_weights(code.max() + 1, draws, rng)[:, code]
    return found
