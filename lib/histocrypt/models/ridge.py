"""Ridge regression of many outputs in closed form, with one penalty chosen by inner cross-validation.

Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", Technometrics 12(1), 1970.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PENALTIES = tuple(float(10.0**power) for power in np.arange(-4, 4.01, 0.5))
"""Penalties tried, per training spot: the same value means the same shrinkage for any number of spots."""


def ridge(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Fit ridge regression for several penalties with one singular value decomposition.

    Minimises, with an intercept that is not penalised, ``|y - x b - a|^2 + n * penalty * |b|^2``: scikit-learn's
    ``Ridge(alpha=n * penalty)``.

    Parameters
    ----------
    x
        (n, d) features.
    y
        (n, q) outputs.
    penalties
        p penalties.

    Returns
    -------
    coefficients
        (p, d, q) float64.
    intercepts
        (p, q) float64.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - x_mean, full_matrices=False)
    uy = u.T @ (y - y_mean)
    coefficients = np.empty((len(penalties), x.shape[1], y.shape[1]))
    for i, penalty in enumerate(penalties):
        shrunk = np.divide(s, s**2 + len(x) * penalty, out=np.zeros_like(s), where=s > 0)
        coefficients[i] = vt.T @ (shrunk[:, None] * uy)
    return coefficients, y_mean - x_mean @ coefficients


def choose_penalty(
    x: np.ndarray,
    y: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    penalties: Sequence[float] = PENALTIES,
) -> tuple[float, np.ndarray]:
    """Choose one penalty for all outputs by cross-validation.

    Parameters
    ----------
    x
        (n, d) features.
    y
        (n, q) outputs; each counts by its share of variance explained, whatever its scale.
    folds
        (train, held out) index pairs; see `fitted.inner_folds`.
    penalties
        Penalties to choose among.

    Returns
    -------
    penalty
        The one with the least error; the strongest of equals.
    errors
        (p,) mean squared error relative to each output's variance; empty where there are no folds.
    """
    if not folds:
        return float(max(penalties)), np.empty(0)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    sd = y.std(axis=0)
    scaled = y / np.where(sd > 1e-8, sd, 1.0)
    errors = np.zeros(len(penalties))
    for train, held_out in folds:
        coefficients, intercepts = ridge(x[train], scaled[train], penalties)
        for i in range(len(penalties)):
            errors[i] += np.square(scaled[held_out] - (x[held_out] @ coefficients[i] + intercepts[i])).sum()
    errors /= y.size
    best = max(np.flatnonzero(errors == errors.min()), key=lambda i: penalties[i])
    return float(penalties[best]), errors


def fit_ridge(
    x: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], *, penalty: float | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit at the given penalty, or at the one that cross-validation chooses.

    Returns
    -------
    coefficient
        (d, q) float32.
    intercept
        (q,) float32.
    penalty
        The penalty used.
    """
    if penalty is None:
        penalty, _ = choose_penalty(x, y, folds)
    coefficients, intercepts = ridge(x, y, [penalty])
    return coefficients[0].astype(np.float32), intercepts[0].astype(np.float32), penalty
