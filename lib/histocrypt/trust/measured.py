"""A section of which some spots were measured: a correction of the others' predictions, and intervals, from those.

**Level and slope.** Of each gene the measured spots give the mean error of the predictions and the slope of measured on
predicted. Of few spots both are noise, so each is shrunk towards the identity (no error; slope 1) by as much as the
genes of this section say: over genes, the mean square of what was estimated, less what sampling alone explains, is the
variance of what is there to be corrected (the estimator of DerSimonian and Laird 1986, about a known mean; empirical
Bayes as in Efron and Morris, JASA 70, 1975). Where measured spots say nothing, the predictions stay as they are.
No slope is below 0: few spots are not let turn a prediction upside down.

**Place.** What is left may resemble that of measured spots nearby. One exponential covariance for all genes, plus what
is of each spot alone, is chosen among `REACHES_UM` and `SHARES` by leaving each measured spot out (of a Gaussian
process in closed form: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, eq. 5.12), and is used
only where it lowers the squared error by more than its standard error over spots: regression kriging.

**Intervals.** All of this is fitted again without each tenth of the measured spots; the errors of the spots left out
rank with that of a new spot. The promise is per section:

    of the spots that were not measured, ``level`` lie within +- the half-width, gene by gene, in the mean over draws.

It stands on the draw: where measured spots were drawn at random from all of a section's, they and the others are
exchangeable, however spots resemble their neighbours. No level above n / (n + 1) can be had of n spots. The level holds
for fits that one tenth of the spots moves little (Barber et al., "Predictive inference with the jackknife+", Annals of
Statistics 49, 2021). Where measured spots lie together the promise fails, and `lie_together` tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from histocrypt.trust.conformal import highest_level

LEAST = 6
"""Measured spots, at least: a fit without one of them has three degrees of freedom, the fewest with a known noise."""
FOLDS = 10
LEVEL = 0.9
"""Of intervals, where so many spots support it."""
REACHES_UM = (100.0, 200.0, 400.0, 800.0)
"""Micrometres in which the covariance falls to 1/e."""
SHARES = (0.1, 0.2, 0.35, 0.5, 0.7)
"""Share of the remaining variance that has to do with place."""
MOST_IN_SPACE = 1000
"""Measured spots, evenly taken, that what is left is looked at in space of: the work grows with their third power."""
DRAWS = 199
"""Random draws that `lie_together` holds the measured spots against, and `improvement` resamples ten times as many."""
CHUNK = 4096
"""Spots at a time whose neighbours are looked at."""


@dataclass(frozen=True, eq=False)
class Correction:
    """How predictions of a section are corrected."""

    centre: np.ndarray
    """(g,) mean prediction of the measured spots."""
    level: np.ndarray
    """(g,) what is added at the centre."""
    slope: np.ndarray
    """(g,) by which differences from the centre are multiplied."""
    reach_um: float = 0.0
    """Of the covariance; 0: place tells nothing."""
    share: float = 0.0
    """Of the remaining variance that has to do with place."""
    weighted: np.ndarray | None = None
    """(k, g) remaining errors of the measured spots, weighted by the inverse of their covariance."""
    coords_um: np.ndarray | None = None
    """(k, 2) where these spots lie."""

    def apply(self, predicted: np.ndarray, coords_um: np.ndarray) -> np.ndarray:
        """Return (m, g) float64 corrected predictions of spots, measured or not.

        Parameters
        ----------
        predicted
            (m, g) as the model predicts.
        coords_um
            (m, 2) places, micrometres.
        """
        predicted = np.asarray(predicted, dtype=np.float64)
        corrected = self.centre + self.level + self.slope * (predicted - self.centre)
        if self.weighted is not None:
            for start in range(0, len(corrected), CHUNK):
                rows = slice(start, start + CHUNK)
                near = self.share * np.exp(-_apart(np.asarray(coords_um)[rows], self.coords_um) / self.reach_um)
                corrected[rows] += near @ self.weighted
        return corrected


def fit(predicted: np.ndarray, measured: np.ndarray, coords_um: np.ndarray, *, spatial: bool = True) -> Correction:
    """Return the correction that measured spots give.

    Parameters
    ----------
    predicted, measured
        (n, g) of the measured spots, in one unit; at least `LEAST` - 1 spots.
    coords_um
        (n, 2) where they lie, micrometres.
    spatial
        Whether to look at what is left in space.

    Raises
    ------
    ValueError
        If there are fewer spots.
    """
    predicted, measured = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    n = len(predicted)
    if n < LEAST - 1:
        msg = f"{n} measured spots are too few; at least {LEAST - 1} are needed"
        raise ValueError(msg)
    centre, mean = predicted.mean(axis=0), measured.mean(axis=0)
    x, y = predicted - centre, measured - mean
    spread = np.square(x).sum(axis=0)
    varies = spread > 1e-12 * n
    raw = np.divide((x * y).sum(axis=0), spread, out=np.ones(len(spread)), where=varies)
    noise = np.square(y - raw * x).sum(axis=0) / (n - 2)
    about_slope = np.divide(noise, spread, out=np.zeros(len(spread)), where=varies)
    slope = np.maximum(1 + _shrunk(raw - 1, about_slope, varies, n - 2), 0.0)
    level = _shrunk(mean - centre, noise / n, noise > 0, n - 2)
    plain = Correction(centre, np.where(noise > 0, level, mean - centre), slope)
    return _in_space(plain, measured - plain.apply(predicted, coords_um), coords_um) if spatial else plain


def fit_alone(
    predicted: np.ndarray, measured: np.ndarray, coords_um: np.ndarray, *, spatial: bool = True
) -> Correction:
    """Return what measured spots say without the model: their mean, and what is left in space; as `fit` takes them."""
    measured = np.asarray(measured, dtype=np.float64)
    nothing = np.zeros(measured.shape[1])
    plain = Correction(nothing, measured.mean(axis=0), nothing)
    return _in_space(plain, measured - plain.level, coords_um) if spatial else plain


def _shrunk(found: np.ndarray, variance: np.ndarray, use: np.ndarray, freedom: int) -> np.ndarray:
    """Return estimates shrunk towards 0 by what is left of their spread over genes when sampling is taken off.

    Estimates are held against their own errors; the mean of a squared t of ``f`` degrees of freedom is f / (f - 2).
    """
    use = use & (variance > 0)
    if not use.any():
        return np.zeros(len(found))
    weight = np.divide(1.0, variance, out=np.zeros(len(found)), where=use)
    excess = (weight * np.square(found)).sum() * (freedom - 2) / freedom - use.sum()
    there = max(0.0, excess / weight.sum())
    return np.where(use, found * there / np.where(use, there + variance, 1.0), 0.0)


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(one[:, None, :] - other[None, :, :]).sum(axis=-1))


def _in_space(plain: Correction, left: np.ndarray, coords_um: np.ndarray) -> Correction:
    """Return the correction with what is left in space, where leaving spots out says that it helps."""
    n, coords_um = len(left), np.asarray(coords_um, dtype=np.float64)
    if n > MOST_IN_SPACE:
        rows = np.linspace(0, n - 1, MOST_IN_SPACE).astype(np.int64)
        left, coords_um, n = left[rows], coords_um[rows], MOST_IN_SPACE
    sd = np.sqrt(np.square(left).mean(axis=0))
    scaled = left[:, sd > 1e-9] / sd[sd > 1e-9]
    if not scaled.shape[1]:
        return plain
    without, apart = np.square(scaled).mean(axis=1), _apart(coords_um, coords_um)
    best: tuple[float, float, float, np.ndarray] | None = None
    for reach in REACHES_UM:
        values, vectors = np.linalg.eigh(np.exp(-apart / reach))
        turned = vectors.T @ scaled
        for share in SHARES:
            scale = 1 / (share * np.maximum(values, 0.0) + 1 - share)
            errors = (vectors @ (scale[:, None] * turned)) / (np.square(vectors) @ scale)[:, None]
            gain = without - np.square(errors).mean(axis=1)
            if best is None or gain.mean() > best[0]:
                best = float(gain.mean()), reach, share, gain
    gained, reach, share, gain = best
    if gained <= gain.std(ddof=1) / math.sqrt(n):
        return plain
    covariance = share * np.exp(-apart / reach) + (1 - share) * np.eye(n)
    weighted = np.linalg.solve(covariance, left)
    return Correction(plain.centre, plain.level, plain.slope, reach, share, weighted, coords_um)


def left_out(
    predicted: np.ndarray,
    measured: np.ndarray,
    coords_um: np.ndarray,
    *,
    fitted: Callable[..., Correction] = fit,
    seed: int = 0,
    spatial: bool = True,
) -> np.ndarray:
    """Return (n, g) float64 predictions of measured spots, each by a fit that had not seen it.

    Parameters
    ----------
    predicted, measured, coords_um
        Of the measured spots, as `fit` takes them; at least `LEAST`.
    fitted
        `fit` or `fit_alone`.
    seed
        Of the folds: `FOLDS` parts at random, or single spots where there are fewer.
    """
    n = len(predicted)
    fold = np.random.default_rng(seed).permutation(n) % min(FOLDS, n)
    found = np.empty(np.shape(predicted), dtype=np.float64)
    for number in range(fold.max() + 1):
        out = fold == number
        one = fitted(predicted[~out], measured[~out], coords_um[~out], spatial=spatial)
        found[out] = one.apply(predicted[out], coords_um[out])
    return found


def level_of(spots: int) -> float:
    """Return the level of intervals: `LEVEL`, or the highest that so many measured spots support."""
    return min(LEVEL, highest_level(spots))


def promise(spots: int, *, together: bool) -> str:
    """Return what intervals from so many measured spots promise, in words.

    The share that one draw covers is Beta distributed about the level (Vovk, "Conditional validity of inductive
    conformal predictors", ACML 2012): its deviation is said.

    Parameters
    ----------
    together
        Whether measured spots lie together, see `lie_together`.
    """
    level = level_of(spots)
    about = math.sqrt(level * (1 - level) / (spots + 2))
    kept = (
        f"in this section {level:.0%} of the spots that were not measured lie within the interval, gene by gene, in "
        f"the mean over random draws of {spots} measured spots; of one draw {about:.0%} more or less"
    )
    if together:
        return f"none: the {spots} measured spots lie together; had they been drawn at random it would be: {kept}"
    return f"{kept}; it holds where they were drawn at random from the section"


def lie_together(coords_um: np.ndarray, measured: np.ndarray, *, seed: int = 0) -> float:
    """Return the share of random draws of spots to which the others lie as far: small where measured ones lie together.

    Parameters
    ----------
    coords_um
        (n, 2) places of all spots of a section.
    measured
        (n,) bool; some, not all.
    seed
        Of the draws. It is a permutation test: of measured spots drawn at random, one in 20 gets less than .05.
    """
    from scipy.spatial import cKDTree

    coords, rng, count = np.asarray(coords_um, dtype=np.float64), np.random.default_rng(seed), int(measured.sum())
    looked_at = coords[:: max(1, len(coords) // CHUNK)]

    def far(rows: np.ndarray) -> float:
        return float(cKDTree(coords[rows]).query(looked_at)[0].mean())

    own = far(np.flatnonzero(measured))
    drawn = [far(rng.choice(len(coords), count, replace=False)) for _ in range(DRAWS)]
    return (1 + sum(one >= own for one in drawn)) / (1 + DRAWS)


def lower_error(errors: np.ndarray, than: np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Return by what share a mean absolute error is lower than another, and the 95 % interval over measured spots.

    Parameters
    ----------
    errors, than
        (n, g) of the same spots, in the unit of the values.
    seed
        Of the bootstrap over spots (percentiles): spots are drawn again, not tissue.
    """
    one, other = (np.abs(values).mean(axis=1) for values in (errors, than))
    rows = np.random.default_rng(seed).integers(len(one), size=(10 * DRAWS, len(one)))
    drawn = 1 - one[rows].mean(axis=1) / np.maximum(other[rows].mean(axis=1), 1e-12)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(1 - one.mean() / max(other.mean(), 1e-12)), float(low), float(high)
