"""How well a predicted distribution matches what was measured, from samples; all numbers gene by gene.

Throughout, ``true`` is (n spots, g genes) and ``samples`` (n, K, g) in the same units; results are (g,) float64, NaN
for a gene that is constant in the truth, as in `evaluation.metrics`.
"""

from __future__ import annotations

import numpy as np

from histocrypt.evaluation.metrics import is_constant, relative_variance_distance


def crps(true: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return the continuous ranked probability score: 0 is perfect; for a single certain value, the absolute error.

    Estimated without bias from samples: the mean distance to the truth, less half the mean distance between two
    different samples (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 2007). It
    hence does not depend on how many were drawn, but for chance; and it can fall a little below zero.
    """
    samples = np.sort(np.asarray(samples, dtype=np.float64), axis=1)
    n_samples = samples.shape[1]
    to_truth = np.abs(samples - np.asarray(true, dtype=np.float64)[:, None]).mean(axis=1)
    # Of sorted values, the sum over pairs of x_j - x_i counts each value by its place.
    place = 2 * np.arange(n_samples) - n_samples + 1
    between = 2 * np.einsum("nkg,k->ng", samples, place) / (n_samples * (n_samples - 1))
    return _known(true, (to_truth - between / 2).mean(axis=0))


def coverage(true: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the share of spots whose true value lies within ``low`` to ``high``, (n, g) each."""
    inside = (np.asarray(low) <= true) & (true <= np.asarray(high))
    return _known(true, inside.mean(axis=0))


def single_sample_rvd(true: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return the relative variance distance of single samples, averaged over the K of them.

    A mean is always smoother than what it is the mean of; what single samples score is the model's own variation.
    """
    each = [relative_variance_distance(true, samples[:, k]) for k in range(samples.shape[1])]
    return np.mean(each, axis=0)


def correlations(values: np.ndarray) -> np.ndarray:
    """Return the (g, g) correlation between genes over spots; 0 with a gene that is constant."""
    values = np.asarray(values, dtype=np.float64)
    flat = is_constant(values)
    centred = values - values.mean(axis=0)
    norm = np.sqrt(np.square(centred).sum(axis=0))
    centred = np.divide(centred, norm, out=np.zeros_like(centred), where=~flat & (norm > 0))
    return centred.T @ centred


def correlation_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean absolute difference between true and predicted correlation, over all pairs of genes.

    Genes that are constant in the truth are left out; NaN where fewer than two are left.
    """
    known = ~is_constant(true)
    if known.sum() < 2:
        return float("nan")
    difference = np.abs(correlations(predicted[:, known]) - correlations(true[:, known]))
    return float(difference[np.triu_indices(known.sum(), 1)].mean())


def _known(true: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(is_constant(true), np.nan, values)
