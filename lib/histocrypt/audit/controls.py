"""Controls of an audit: a figure says something only where a planted leak is found and shuffled membership is not.

The positive control is a model that was made to leak, attacked and judged as the audited one. The negative control
deals membership out anew and judges the same scores again. Neither raises anything: they say whether they passed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np

from histocrypt.audit.membership import FEWEST_PATIENTS, Judged, auc, divisible, judge
from histocrypt.errors import unknown_name

LEAST_AUC = 0.9
"""What the attack must reach on a model that was made to leak."""
COMPONENTS, WIDTH, STEPS, LEARNING_RATE = 128, 512, 300, 3e-3
"""Of the overfitted network: enough for a training error near zero of about a thousand records, in seconds."""


@dataclass(frozen=True)
class Shuffled:
    """What the attack's scores give when membership is permuted."""

    auc: float
    """Mean over the deals."""
    interval: tuple[float, float]
    """The middle 95 % of the deals."""
    p_value: float | None
    """Share of the deals, the real one among them, whose AUC is at least the real one's; None where membership was
    permuted within patients, which says nothing of the differences between them."""
    deals: int
    by: Literal["patient", "section", "record"]
    """``patient`` or ``section``: whole ones; ``record``: halves of each patient's blocks or records."""
    aucs: np.ndarray = field(compare=False, repr=False)
    """(deals,) of each deal; the same deals for every attack on the same records with the same seed."""
    all_ways: bool = False
    """Whether these are all ways of dealing, the real one among them; else they were drawn."""


@dataclass(frozen=True)
class Controls:
    """Both controls of one attack on one thing."""

    positive: Judged
    """The attack on the model that was made to leak."""
    negative: Shuffled
    notes: list[str]

    @property
    def positive_passed(self) -> bool:
        """Whether the AUC is at least `LEAST_AUC`."""
        return self.positive.auc >= LEAST_AUC

    @property
    def negative_passed(self) -> bool:
        """Whether the interval contains 0.5."""
        return self.negative.interval[0] <= 0.5 <= self.negative.interval[1]


def run_controls(
    scores: np.ndarray,
    member: np.ndarray,
    patients: np.ndarray,
    *,
    overfitted: np.ndarray,
    rows: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Controls:
    """Judge the positive and the negative control of an attack.

    Parameters
    ----------
    scores, member, patients
        (n,) of the audited thing, as for `membership.judge`.
    overfitted
        (n,) scores of the same attack on a model of the same records that was made to leak, e.g. the attack on
        `overfitted_losses`, or minus the distance to the nearest of `copied_features`.
    rows
        (k,) indices: the records that ``overfitted`` is of, where such a model is too costly for all; None: all.
    blocks
        (n,) units within a patient, as for `membership.judge`.
    draws
        Bootstrap draws, and permutations of membership.
    """
    some = np.arange(len(member)) if rows is None else rows
    own = None if blocks is None else np.asarray(blocks)[some]
    positive = judge(overfitted, member[some], patients[some], blocks=own, draws=draws, seed=seed)
    negative = shuffled(scores, member, patients, blocks=blocks, deals=draws, seed=seed)
    notes = []
    if negative.by == "record":
        notes.append(
            "Too few patients to permute membership among them: half of each patient's records became members."
        )
    elif negative.deals < draws:
        notes.append(
            f"Membership was permuted in all {negative.deals} ways that these patients allow: no p-value below "
            f"{1 / negative.deals:.2g} can be found."
        )
    return Controls(positive, negative, notes)


def shuffled(
    scores: np.ndarray,
    member: np.ndarray,
    patients: np.ndarray,
    *,
    blocks: np.ndarray | None = None,
    deals: int = 1000,
    seed: int = 0,
) -> Shuffled:
    """Judge an attack's scores under permuted membership.

    Whole patients change sides, as many on each as there are: all ways if they are not more than ``deals``. Patients
    differ, so these AUCs spread as widely as those of a model that leaks nothing would, and `Shuffled.p_value` is a
    test of the real membership that trusts no bootstrap. With fewer than `FEWEST_PATIENTS` on a side, or a patient on
    both, half of each patient's blocks become members instead, or of the records where a patient has a single block.
    """
    scores, member, patients = np.asarray(scores, np.float64), np.asarray(member), np.asarray(patients).astype(str)
    rng = np.random.default_rng([seed, 4])
    names, person = np.unique(patients, return_inverse=True)
    n_in, n_out = len(np.unique(patients[member])), len(np.unique(patients[~member]))
    by_patient = min(n_in, n_out) >= FEWEST_PATIENTS and n_in + n_out == len(names)
    dealt = []
    listed = by_patient and comb(len(names), n_in) <= deals
    if listed:
        dealt = [np.isin(person, half) for half in combinations(range(len(names)), n_in)]
    elif by_patient:
        dealt = [np.isin(person, rng.permutation(len(names))[:n_in]) for _ in range(deals)]
    else:
        known = None if blocks is None else divisible(patients, np.asarray(blocks))
        unit = np.unique(np.arange(len(member)) if known is None else known, return_inverse=True)[1]
        dealt = [_half_of_each(person, unit.ravel(), rng) for _ in range(deals)]
    aucs = np.array([auc(scores, members)[0] for members in dealt])
    p_value = None
    if by_patient:
        at_least = int((aucs >= auc(scores, member)[0] - 1e-12).sum())
        # The list of all ways holds the real one; drawn ones need it added.
        p_value = at_least / len(aucs) if listed else (at_least + 1) / (len(aucs) + 1)
    low, high = np.quantile(aucs, [0.025, 0.975])
    by: Literal["patient", "record"] = "patient" if by_patient else "record"
    return Shuffled(float(aucs.mean()), (float(low), float(high)), p_value, len(aucs), by, aucs, listed)


def overfitted_losses(
    features: np.ndarray,
    targets: np.ndarray,
    member: np.ndarray,
    *,
    kind: Literal["network", "memory"] = "network",
    seed: int = 0,
) -> np.ndarray:
    """Return the (n,) losses of a model of the members that was made to leak.

    Parameters
    ----------
    features
        (n, d), e.g. of a frozen encoder, or flattened pixels.
    targets
        (n, q), what the audited model predicts, e.g. standardised expression.
    member
        (n,) bool: who it learns from.
    kind
        ``network``: one wide hidden layer on the members' first principal components, trained on the members to an
        error near zero, without weight decay, dropout, augmentation or early stopping. ``memory``: the answer of the
        nearest member, an exact copy for members.
    seed
        Of the network's start.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    x = (x - x[member].mean(axis=0)) / np.maximum(x[member].std(axis=0), 1e-6)
    y = (y - y[member].mean(axis=0)) / np.maximum(y[member].std(axis=0), 1e-6)
    if kind == "memory":
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(n_neighbors=1).fit(x[member]).kneighbors(x, return_distance=False)[:, 0]
        return np.square(y[member][nearest] - y).mean(axis=1)
    if kind != "network":
        raise unknown_name("kind", kind, ["network", "memory"])
    return np.square(_network(x, y, member, seed) - y).mean(axis=1)


def _network(x: np.ndarray, y: np.ndarray, member: np.ndarray, seed: int) -> np.ndarray:
    """Return (n, q) predictions of a network that was trained on the members until it knew them by heart."""
    import torch
    from sklearn.decomposition import PCA

    from histocrypt.training.loop import Trainer

    if x.shape[1] > COMPONENTS:
        x = (
            PCA(min(COMPONENTS, member.sum() - 1), svd_solver="randomized", random_state=seed)
            .fit(x[member])
            .transform(x)
        )
        x /= np.maximum(x[member].std(axis=0), 1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, y.shape[1])
        )
    every = torch.tensor(x, dtype=torch.float32)
    known, said = every[torch.tensor(member)], torch.tensor(y[member], dtype=torch.float32)
    Trainer(
        network=network,
        optimiser=torch.optim.Adam(network.parameters(), lr=LEARNING_RATE),
        device=torch.device("cpu"),
        batches=lambda *_: range(STEPS),
        loss=lambda *_: torch.nn.functional.mse_loss(network(known), said),
        steps=STEPS,
        epochs=1,
    ).fit()
    with torch.no_grad():
        return network(every).double().numpy()


def copied_features(features: np.ndarray, member: np.ndarray, *, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return (members, d) features of a synthetic set that was made to leak: the members' own, a little disturbed.

    Parameters
    ----------
    features
        (n, d) of real records.
    member
        (n,) bool.
    noise
        In standard deviations of each feature over the members.
    """
    own = np.asarray(features, dtype=np.float64)[member]
    return own + np.random.default_rng([seed, 5]).normal(0, noise, own.shape) * own.std(axis=0)


def _half_of_each(person: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chosen = np.zeros(len(person), dtype=bool)
    for one in range(person.max() + 1):
        own = np.unique(unit[person == one])
        half = rng.permutation(own)[: (len(own) + int(rng.integers(2))) // 2]
        chosen |= (person == one) & np.isin(unit, half)
    return chosen
