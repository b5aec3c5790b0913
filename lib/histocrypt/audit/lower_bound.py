"""Lower bounds on epsilon from one training: what an attack proves against a promise of differential privacy.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023 (arXiv 2305.08846). Each of m
canaries goes into the training by a coin of its own. An attack sees what was trained, and guesses some of the coins.
Under (epsilon, delta) too many right guesses are unlikely (Theorem 5.2), so that many right guesses refute small
epsilons. What is said is "with 95 % confidence the training is not (epsilon, delta)-private for any smaller epsilon".

What the theorem asks for, and what breaks it:

- **Coins.** Every canary is inside with chance 1/2, independently of all others (`toss`). The folds of a study are no
  coins, and neither are halves of fixed size. An audit of this kind trains anew.
- **Guesses see outputs alone.** A score may use what was trained, and how other canaries fare under it, but no coin of
  a canary that is counted. Shadow models of the same canaries tell the coins of one run to the guesses of the next.
- **The number of guesses is fixed before.** Of several numbers the best is taken at a price: each is asked for with
  its share of the error (Bonferroni).
- **The unit is the canary.** A whole patient as canary bounds the epsilon of a patient, a tile that of a tile.

Runs of the same training with fresh coins are one larger audit: R runs on K canaries give R K coins, for what is
trained R times is as private for each single coin as each run is. The bound is then one of the *training*, as
differential privacy is, and not of one of its models.

A bound of 0 says that this attack proved nothing. It never says that the training is private.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from histocrypt.audit.shadow import TrainOne, own_seed, train_or_read
from histocrypt.errors import InputError

CONFIDENCE = 0.95
LARGEST = 100.0
"""Epsilons are searched up to here: no number of canaries that is audited here reaches it."""
TOLERANCE = 1e-6


@dataclass(frozen=True)
class LowerBound:
    """What an attack's guesses prove."""

    epsilon: float
    """No smaller epsilon holds at `delta`, with `confidence`; 0: nothing was shown."""
    most: float
    """What the same number of guesses would prove if all were right: nothing above it can be shown."""
    delta: float
    confidence: float
    canaries: int
    """Coins in all, m."""
    guesses: int
    """Of these, not abstained from; of several numbers tried the one with the largest bound."""
    right: int
    tried: list[int]
    """All numbers of guesses that were tried, in each run."""

    def sentence(self, unit: str = "patient") -> str:
        """Return the finding in words, ``unit`` being what a canary is."""
        counted = f"{self.right} of {self.guesses} guesses were right"
        proof = f"{counted}; {self.canaries} coins can show {self.most:.2f} at most."
        if self.epsilon == 0:
            return f"No lower bound on epsilon per {unit} was found, which does not say that there is none: {proof}"
        return (
            f"With {self.confidence:.0%} confidence epsilon per {unit} is at least {self.epsilon:.2f} at delta "
            f"{self.delta:g}: {proof}"
        )


def toss(canaries: np.ndarray, *, seed: int) -> np.ndarray:
    """Return who is inside, (n,) bool: a fair coin for each canary, the same for all of its records.

    Parameters
    ----------
    canaries
        (n,) str, the canary that each record is of, e.g. its patient.
    """
    names, own = np.unique(np.asarray(canaries).astype(str), return_inverse=True)
    return np.random.default_rng([seed, 7]).integers(2, size=len(names)).astype(bool)[own]


def coin_runs(
    train_one: TrainOne,
    canaries: np.ndarray,
    *,
    runs: int,
    seed: int,
    folder: Path | None = None,
    fingerprint: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Train with fresh coins again and again; return scores and coins for `lower_bound`, (runs, canaries) each.

    A canary's score is by how much its mean loss is smaller than it is on average over the runs: how hard a canary is
    hides what a run knows of it, and that average tells no coin to a guess. (With one run it is minus the loss.)

    Parameters
    ----------
    train_one
        As for `shadow.shadow_losses`: called with a (n,) bool mask of the records to train on and a seed; returns (n,)
        losses of all records, e.g. errors of a predictor or `memorisation.denoising_loss` of a generator. It is not
        called where the coins leave nobody inside: nothing is trained then, and all canaries score alike.
    canaries
        (n,) str of each record, e.g. its patient.
    runs
        How many trainings.
    seed
        Of the coins, and of each training's own seed.
    folder, fingerprint
        As for `shadow.shadow_losses`: where finished runs are kept, and what they depend on.

    Raises
    ------
    InputError
        If a training gives losses of another number, or not finite ones, or there is no run.
    """
    canaries = np.asarray(canaries).astype(str)
    _need(runs >= 1, "runs", runs, "at least 1")
    facts = hashlib.sha256("\n".join([fingerprint, "coins", str(seed), *canaries.tolist()]).encode()).hexdigest()
    losses, coins = [], []
    for run in range(runs):
        own = own_seed(seed, run)
        inside = toss(canaries, seed=own)
        file = None if folder is None else Path(folder) / f"coins_{run:03d}.safetensors"
        nothing = np.zeros(len(inside))
        found = train_or_read(train_one, inside, own, file=file, facts=facts) if inside.any() else nothing
        losses.append(of_canaries(found, canaries)[0])
        coins.append(of_canaries(inside, canaries)[0] == 1)
    scores = -np.array(losses)
    return scores - (scores.mean(axis=0) if runs > 1 else 0), np.array(coins)


def of_canaries(values: np.ndarray, canaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each canary's records, (k,), and the canaries' names, (k,), in order.

    Parameters
    ----------
    values
        (n,) numbers of records, e.g. scores.
    canaries
        (n,) str.
    """
    names, own = np.unique(np.asarray(canaries).astype(str), return_inverse=True)
    return np.bincount(own, np.asarray(values, np.float64)) / np.bincount(own), names


def p_value(canaries: int, guesses: int, right: int, *, epsilon: float, delta: float = 0.0) -> float:
    """Return how likely so many right guesses are, at most, if the training is (epsilon, delta)-private.

    Theorem 5.2 of Steinke et al. with their choice of f (Corollary 5.4, appendix D): where W is Binomial(r,
    e^epsilon / (1 + e^epsilon)), P[right >= v] <= P[W >= v] + 2 m delta max_{1 <= i <= v} P[v - i <= W < v] / i.

    Parameters
    ----------
    canaries, guesses, right
        m, r, v: 0 <= v <= r <= m.

    Raises
    ------
    InputError
        If the numbers are not in this order, or epsilon or delta is out of range.
    """
    from scipy.stats import binom

    _check(canaries, guesses, delta=delta)
    _need(0 <= right <= guesses, "right", right, f"0 to {guesses}")
    _need(epsilon >= 0, "epsilon", epsilon, "at least 0")
    accuracy = 1 / (1 + math.exp(-epsilon))  # of randomised response
    tail = float(binom.sf(right - 1, guesses, accuracy))
    if delta == 0 or right == 0:
        return min(tail, 1.0)
    just_below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))
    steepest = float((just_below / np.arange(1, right + 1)).max())
    return min(tail + 2 * canaries * delta * steepest, 1.0)


@lru_cache(maxsize=4096)
def epsilon_at_least(
    canaries: int, guesses: int, right: int, *, delta: float = 0.0, confidence: float = CONFIDENCE
) -> float:
    """Return the largest epsilon that so many right guesses refute, 0 if none.

    Parameters
    ----------
    canaries, guesses, right
        As of `p_value`.
    confidence
        Chance that the true epsilon is not below the returned one, whatever it is.

    Raises
    ------
    InputError
        As `p_value`, or if the confidence is not between 0 and 1.
    """
    from scipy.optimize import bisect

    _need(0 < confidence < 1, "confidence", confidence, "between 0 and 1")

    def slack(epsilon: float) -> float:
        return p_value(canaries, guesses, right, epsilon=epsilon, delta=delta) - (1 - confidence)

    if slack(0.0) >= 0:
        return 0.0
    # Where delta > 0 the p-value need not rise everywhere. Any crossing is valid, for who is (e, d)-private is so for
    # every larger e; the first one from below is the smallest.
    above = next((end for end in np.arange(0.5, LARGEST, 0.5).tolist() if slack(end) >= 0), None)
    if above is None:
        raise InputError(
            "is beyond the range that is searched", field="epsilon", value=LARGEST, expected="fewer canaries"
        )
    return max(0.0, float(bisect(slack, above - 0.5, above, xtol=TOLERANCE)) - TOLERANCE)


def most_shown(
    canaries: int, *, guesses: int | None = None, delta: float = 0.0, confidence: float = CONFIDENCE
) -> float:
    """Return the largest bound that these canaries can give: that of all guesses right.

    Parameters
    ----------
    guesses
        How many are guessed; as many as there are canaries if not given.
    """
    guesses = canaries if guesses is None else guesses
    return epsilon_at_least(canaries, guesses, guesses, delta=delta, confidence=confidence)


def lower_bound(
    scores: np.ndarray,
    inside: np.ndarray,
    *,
    guesses: int | Sequence[int] | None = None,
    delta: float = 0.0,
    confidence: float = CONFIDENCE,
) -> LowerBound:
    """Return the lower bound on epsilon that an attack's scores prove.

    The highest scores are guessed to be inside, the lowest to be outside, as many of each (one more inside if the
    number is odd); the attack abstains from the rest. Where all are guessed, they are cut where the scores themselves
    fall into two groups. Ties are dealt by a canary's place, which no coin moves.

    Parameters
    ----------
    scores
        (m,) one for each canary, or (runs, k) of runs with fresh coins, guessed run by run: higher is likelier inside.
    inside
        As ``scores``, bool: what the coins said (`toss`).
    guesses
        How many of the canaries are guessed in each run; all if not given; of several the best, at its price.
    delta
        Of the statement: well below one in the number of canaries.
    confidence
        Of the bound.

    Raises
    ------
    InputError
        If shapes differ, scores are not finite, there are more guesses than canaries, or delta or the confidence is
        out of range.
    """
    scores, inside = np.atleast_2d(np.asarray(scores, np.float64)), np.atleast_2d(np.asarray(inside))
    if scores.ndim != 2 or scores.shape != inside.shape or inside.dtype != bool or not np.isfinite(scores).all():
        raise InputError(
            "scores and coins differ in number or kind",
            field="scores",
            value=f"{scores.shape}, {inside.dtype} {inside.shape}",
            expected="finite numbers, and one coin (bool) per score",
        )
    runs, k = scores.shape
    tried = (k,) if guesses is None else (guesses,) if isinstance(guesses, int) else tuple(guesses)
    _need(len(tried) > 0, "guesses", tried, "at least one number")
    shared = 1 - (1 - confidence) / len(tried)
    found = []
    for number in tried:
        right = int(sum(_right(*run, number) for run in zip(scores, inside, strict=True)))
        bound = epsilon_at_least(runs * k, runs * number, right, delta=delta, confidence=shared)
        found.append((bound, runs * number, right))
    epsilon, guessed, right = max(found)
    most = max(most_shown(runs * k, guesses=runs * number, delta=delta, confidence=shared) for number in tried)
    return LowerBound(epsilon, most, delta, confidence, runs * k, guessed, right, list(tried))


def _right(scores: np.ndarray, inside: np.ndarray, guesses: int) -> int:
    """Return how many of the coins of one run are guessed right."""
    k = len(scores)
    _check(k, guesses)
    order = np.argsort(scores, kind="stable")
    low = guesses // 2 if guesses < k else _cut(scores[order])
    return int((~inside[order[:low]]).sum() + inside[order[k - (guesses - low) :]].sum())


def _cut(ordered: np.ndarray) -> int:
    """Return how many of the ordered scores are guessed outside: where two groups differ most (Otsu 1979).

    Coins seldom fall half and half. The cut lies in the middle half, so that one far score does not make a group.
    """
    k = len(ordered)
    below = np.arange(max(1, k // 4), min(k - 1, k - k // 4) + 1)
    if not len(below):  # a single canary
        return 0
    sums = np.cumsum(ordered)
    gap = (sums[-1] - sums[below - 1]) / (k - below) - sums[below - 1] / below
    return int(below[np.argmax(below * (k - below) * gap**2)])


def _check(canaries: int, guesses: int, *, delta: float = 0.0) -> None:
    _need(1 <= guesses <= canaries, "guesses", guesses, f"1 to {canaries}")
    _need(0 <= delta < 1, "delta", delta, "at least 0, well below one in the number of canaries")


def _need(good: object, field: str, value: object, expected: str) -> None:
    if not good:
        raise InputError("is out of range", field=field, value=value, expected=expected)
