"""Pearson's correlation of columns, what counts as constant, and how far chance reaches where neighbours resemble.

Throughout, ``true`` and ``predicted`` are (n spots, g genes) floats, columns in the same order, and every function
gives (g,) float64.
"""

from __future__ import annotations

import numpy as np

from histocrypt.spatial import spot_pitch

RELATIVE_SPREAD_OF_A_CONSTANT = 1e-6  # float32 rounding of one value written many times
AT_ONCE = 2**22
"""Values of maps, padded for the Fourier transform, that are held at a time."""


def is_constant(values: np.ndarray) -> np.ndarray:
    """Return (g,) bool: columns whose spread is no more than rounding."""
    values = np.asarray(values, dtype=np.float64)
    return np.ptp(values, axis=0) <= RELATIVE_SPREAD_OF_A_CONSTANT * np.abs(values).max(axis=0)


def pearson(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation over spots, gene by gene: 0 of a constant prediction, NaN of a constant truth."""
    true, predicted = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    usable = ~is_constant(true) & ~is_constant(predicted)
    correlation = np.zeros(true.shape[1])
    if len(true) >= 2:
        product = _standardised(true[:, usable]) * _standardised(predicted[:, usable])
        correlation[usable] = np.clip(product.sum(axis=0), -1, 1)
    return np.where(is_constant(true), np.nan, correlation)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return deviations from the mean, each column of length 1."""
    deviations = values - values.mean(axis=0)
    largest = np.abs(deviations).max(axis=0)  # squares of very small numbers would vanish
    return deviations / (largest * np.linalg.norm(deviations / largest, axis=0))


def error_by_chance(true: np.ndarray, predicted: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the correlation of two unrelated maps that are as smooth as these.

    Neighbouring spots resemble one another, in what was measured and in what is predicted: chance reaches further than
    1 / sqrt(n). With C(d) the covariance of a map with itself at distance d, in classes one pitch wide, and N(d) the
    pairs of spots at that distance, the variance is the sum over d of N C_true C_predicted, over n^2 and both
    variances (Clifford, Richardson and Hemon, "Assessing the significance of the correlation between two spatial
    processes", Biometrics 45, 1989, equation 2.4). C comes of all pairs at once, by Fourier transform.

    Parameters
    ----------
    true, predicted
        (n, g) of one section.
    coords
        (n, 2) places of the spots, in any unit.

    Returns
    -------
    From 1 / sqrt(n) to 1; 1 where either is constant.
    """
    from scipy import fft

    cells = np.rint((coords - np.min(coords, axis=0)) / (spot_pitch(coords) / 2)).astype(np.int64)
    shape = [fft.next_fast_len(int(2 * side + 1), real=True) for side in cells.max(axis=0)]
    row, column = (fft.fftfreq(side, 1 / side) for side in shape)
    distance = np.rint(np.hypot(row[:, None], column) / 2).astype(np.int64).ravel()
    order = np.argsort(distance, kind="stable")
    starts = np.flatnonzero(np.diff(distance[order], prepend=-1))

    def products(values: np.ndarray) -> np.ndarray:
        """Return (classes, g) sums of products over pairs: of a spot with itself first, then by distance."""
        placed = np.zeros((values.shape[1], *shape))
        np.add.at(placed, (slice(None), cells[:, 0], cells[:, 1]), values.T)
        paired = fft.irfft2(np.abs(fft.rfft2(placed, workers=1)) ** 2, s=shape, workers=1)
        by_class = np.add.reduceat(paired.reshape(len(placed), -1)[:, order], starts, axis=1).T
        own = np.square(values).sum(axis=0)
        return np.concatenate([own[None], by_class[:1] - own, by_class[1:]])

    true, predicted = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    flat = is_constant(true) | is_constant(predicted)
    pairs = np.rint(products(np.ones((len(coords), 1))))
    found = np.ones(true.shape[1])
    usable = np.flatnonzero(~flat)
    step = max(1, AT_ONCE // int(np.prod(shape)))
    for start in range(0, len(usable), step):
        some = usable[start : start + step]
        both = [values[:, some] - values[:, some].mean(axis=0) for values in (true, predicted)]
        one, other = (products(values) for values in both)
        total = np.divide(one * other, pairs, out=np.zeros_like(one), where=pairs > 0).sum(axis=0)
        variance = total / (one[0] * other[0])
        found[some] = np.sqrt(np.clip(variance, 1 / len(coords), 1))
    return found


def p_of(correlation: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the one-sided p-value of correlations whose standard deviation by chance is known: Dutilleul's t-test.

    Student's t with 1 / error^2 - 1 degrees of freedom: two less than as many independent spots as would be that
    uncertain (Dutilleul, "Modifying the t test for assessing the correlation between two spatial processes", Biometrics
    49, 1993). NaN where the correlation is.
    """
    from scipy.stats import t

    freedom = np.maximum(1 / np.square(error) - 1, 1)
    return t.sf(correlation * np.sqrt(freedom / np.maximum(1 - np.square(correlation), 1e-12)), freedom)
