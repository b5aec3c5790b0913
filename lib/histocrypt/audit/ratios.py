"""RMIA for regression: how much likelier the attacked model makes a record than models in general do, beside strangers.

The ratio of a record is Pr(x | model) / Pr(x). Its score is the share of a population of non-members whose own ratio it
exceeds `gamma` times: Zarifzadeh et al., "Low-cost high-power membership inference attacks", ICML 2024 (arXiv
2312.03262), equations 2 to 4 and, offline, appendix B.2.2 (their function ``run_rmia``).

There, Pr(x | model) is the probability that a classifier gives the truth. A regression gives none. What its squared
error stands for is a normal density of the residuals, exp(-loss / (2 variance)) but for its peak. Three choices follow:

- The peak is left out. It is the same for every model and cancels from Pr(x | model) / Pr(x). What is left lies in
  (0, 1], 1 for a record known by heart, as the offline rule needs, which holds that a model that saw a record gives it
  more of what is missing to 1.
- The variance is the record's own: its mean loss under models that never saw it, which maximises the likelihood of
  their residuals. Spots differ in depth, so their noise differs, and one for all would let the noisiest decide.
- The loss is a mean over the outputs, so all outputs count as one observation. Residuals of genes in a spot move
  together. Counted as independent, they would make the ratio of two models astronomical either way.

All records are compared with the same population. Hence a score orders records as its ratio does, and the population
gives it a scale: 1 - score is about the share of false alarms of a threshold there. Beyond the population's largest
ratio all scores are 1.
"""

from __future__ import annotations

import numpy as np

from histocrypt.audit.membership import SMALLEST_LOSS, needed
from histocrypt.errors import InputError, unknown_name

OFFLINE_A = 0.3
"""How a model that saw a record is thought to follow one that did not, as a share; the authors' own for CIFAR-10.
With a variance of each record's own it hardly matters: strangers' mean likelihood is then about the same for all."""


def likelihood_ratio(
    loss: np.ndarray,
    loss_in: np.ndarray | None,
    loss_out: np.ndarray,
    *,
    variance: str = "own",
    a: float = OFFLINE_A,
) -> np.ndarray:
    """Return (n,) logarithms of Pr(x | model) / Pr(x).

    Parameters
    ----------
    loss
        (n,) mean squared errors under the attacked model, of standardised outputs.
    loss_in, loss_out
        (shadows, n) under models that saw the record, and that did not; NaN where a shadow is of the other kind
        (`membership.in_and_out`). ``loss_in`` None: offline, Pr(x) is ((1 + a) out + (1 - a)) / 2. Else it is the mean
        of in and out, each a mean over its shadows, so that unequal counts do not tilt it.
    variance
        ``own``: of each record; ``shared``: one for all.
    a
        Between 0 (who saw a record knows it by heart) and 1 (who saw it knows no more).

    Raises
    ------
    InputError
        If a record lacks a shadow of a kind, or an option is unknown.
    """
    if variance not in ("own", "shared"):
        raise unknown_name("variance", variance, ["own", "shared"])
    if not 0 <= a <= 1:
        raise InputError("is out of range", field="a", value=a, expected="0 to 1")
    loss, outside = np.asarray(loss, dtype=np.float64), np.asarray(loss_out, dtype=np.float64)
    known = np.isfinite(outside)
    needed(known.any(axis=0), "shadow model of each kind")
    own = np.where(known, outside, 0).sum(axis=0) / known.sum(axis=0)
    spread = np.maximum(own if variance == "own" else np.full(len(own), own.mean()), SMALLEST_LOSS)
    out = _mean_likelihood(outside, spread)
    if loss_in is None:
        with np.errstate(divide="ignore"):  # a = 1 leaves nothing beside `out`
            general = np.logaddexp(np.log1p(a) + out, np.log1p(-a)) - np.log(2)
    else:
        inside = np.asarray(loss_in, dtype=np.float64)
        needed(np.isfinite(inside).any(axis=0), "shadow model of each kind")
        general = np.logaddexp(_mean_likelihood(inside, spread), out) - np.log(2)
    return -loss / (2 * spread) - general


def rmia(
    loss: np.ndarray,
    loss_in: np.ndarray | None,
    loss_out: np.ndarray,
    *,
    population: np.ndarray,
    gamma: float = 1.0,
    variance: str = "own",
    a: float = OFFLINE_A,
) -> np.ndarray:
    """Return (n,) the share of the population that a record beats: Pr over z of (ratio of x / ratio of z > gamma).

    Strictly, as the authors' function has it and not their equation 4: a stranger of the population would else beat
    itself, and the surest of them would pass for as sure as all members beyond.

    Parameters
    ----------
    loss, loss_in, loss_out, variance, a
        See `likelihood_ratio`; the population's ratios are formed as all others are.
    population
        (n,) bool: records that are known not to be members of the attacked model.
    gamma
        How many times likelier; above 0.

    Raises
    ------
    InputError
        As `likelihood_ratio`, or if the population is empty.
    """
    population = np.asarray(population)
    if population.dtype != bool or population.shape != np.shape(loss) or not population.any():
        raise InputError(
            "marks no non-member to compare with",
            field="population",
            value=f"{population.dtype} {population.shape}",
            expected=f"bool {np.shape(loss)}, some of them true",
        )
    if not gamma > 0:
        raise InputError("is not a ratio", field="gamma", value=gamma, expected="a number above 0")
    ratio = likelihood_ratio(loss, loss_in, loss_out, variance=variance, a=a)
    strangers = np.sort(ratio[population])
    return np.searchsorted(strangers, ratio - np.log(gamma), side="left") / len(strangers)


def _mean_likelihood(loss: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return (n,) the logarithm of the mean likelihood over the shadows that there are."""
    from scipy.special import logsumexp

    known = np.isfinite(loss)
    exponent = np.where(known, -loss / (2 * spread), -np.inf)
    return logsumexp(exponent, axis=0) - np.log(known.sum(axis=0))
