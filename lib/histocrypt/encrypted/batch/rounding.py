"""Weights to whole numbers, so that what rounding does to one input is made good by the others.

What a network sees is far from arbitrary: neighbouring pixels are alike, and squares are never negative. Rounding each
weight to its nearest whole number ignores that. Here they are rounded one after the other, and the weights that are
still to come take over the error of each as far as their inputs vary with it (Frantar et al., 2023, "GPTQ: Accurate
post-training quantization for generative pre-trained transformers"; Hassibi and Stork, 1993, "Second order derivatives
for network pruning"). On the networks of ``docs/encrypted_speed.md`` the error of outputs falls four to fifteen times.
"""

from __future__ import annotations

import numpy as np

DAMPING = 1e-2
"""Share of the mean variance that is added to every input's: no weight takes over what few tiles happen to show."""


def rounded(weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return whole numbers near the weights that change their products with these inputs little, but for a constant.

    Parameters
    ----------
    weights
        (O, I) float64, in the units in which they are rounded.
    inputs
        (n, I) float64, what they are multiplied by; means do not count, since a bias makes up for them.

    Returns
    -------
    (O, I) float64, whole.
    """
    varying = inputs - inputs.mean(axis=0)
    moments = varying.T @ varying / max(len(inputs), 1)
    variances = np.diag(moments).copy()
    if not variances.sum() > 0:
        return np.rint(weights)
    moments[np.diag_indices_from(moments)] += DAMPING * variances.mean()
    order = np.argsort(-variances, kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T
    rest, found = weights[:, order].copy(), np.empty_like(weights)
    for column, place in enumerate(order):
        found[:, place] = np.rint(rest[:, column])
        error = (rest[:, column] - found[:, place]) / factor[column, column]
        rest[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return found
