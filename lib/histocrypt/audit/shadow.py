"""Shadow models: the audited training repeated on random halves of the patients, so that membership is known.

Their losses calibrate an attack on one given model (`membership.lira`, `ratios.rmia`). They also say what the
*training procedure* leaks: each shadow in turn is attacked with the help of the others (`as_targets`). Members and
non-members are then random halves of the same patients, alike in everything but membership.

Who could do so holds tiles and truth of all audited patients and can repeat the training: the strongest attacker that
is asked for here. Where a study has too few patients, sections can stand in for them (give sections as ``patients``,
and ``unit="section"``); other sections of the same patient are then on the other side, and the figure is of sections.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.audit.controls import Shuffled
from histocrypt.audit.membership import (
    FEWEST_PATIENTS,
    auc,
    calibrated,
    divisible,
    draw_weights,
    in_and_out,
    lira,
    loss_threshold,
)
from histocrypt.audit.ratios import rmia
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path

TrainOne = Callable[[np.ndarray, int], np.ndarray]
"""Trains on the records of a (n,) bool mask with a seed; returns the (n,) losses of all records."""
MOST_TO_LIST = 5000
"""So many halves are listed and shuffled; beyond, halves are drawn until new ones are found."""
ATTACKS = ("loss threshold", "calibrated", "LiRA", "LiRA, offline", "RMIA", "RMIA, offline")


def halves(patients: np.ndarray, n_shadows: int, *, seed: int) -> np.ndarray:
    """Return (shadows, n) bool: who is inside each shadow's training set.

    A half of the patients is followed by the other half, so that each patient is inside exactly every second shadow. No
    half comes twice: a model without chance would otherwise meet its own copy among the shadows. Few patients have few
    halves (4 patients: 6, 6 patients: 20); then there are fewer shadows than asked for.

    Raises
    ------
    InputError
        If there are fewer than two patients, or fewer than two shadows are asked for.
    """
    names = np.unique(patients)
    if len(names) < 2:
        raise InputError(
            "one patient cannot be split into halves", field="patients", value=names.tolist(), expected="at least 2"
        )
    if n_shadows < 2:
        raise InputError("is too few", field="n_shadows", value=n_shadows, expected="at least 2")
    rng = np.random.default_rng([seed, 2])
    size = len(names) // 2
    pairs = comb(len(names), size) // (1 if len(names) % 2 else 2)
    wanted = min(-(-n_shadows // 2), pairs)
    found: dict[frozenset[int], None] = {}  # in the order of drawing
    if comb(len(names), size) <= MOST_TO_LIST:
        every = [frozenset(half) for half in combinations(range(len(names)), size)]
        draws = iter([every[index] for index in rng.permutation(len(every))])
    else:
        draws = iter(lambda: frozenset(rng.permutation(len(names))[:size].tolist()), None)
    everyone = frozenset(range(len(names)))
    for half in draws:
        if len(found) == wanted:
            break
        if half not in found and everyone - half not in found:
            found[half] = None
    person = np.searchsorted(names, patients)
    rows = []
    for half in found:
        inside = np.isin(person, list(half))
        rows += [inside, ~inside] if rng.random() < 0.5 else [~inside, inside]
    return np.stack(rows)


def shadow_losses(
    train_one: TrainOne,
    patients: np.ndarray,
    n_shadows: int,
    seed: int,
    *,
    folder: Path | None = None,
    fingerprint: str = "",
    label: str = "shadow models",
) -> tuple[np.ndarray, np.ndarray]:
    """Train shadow models on random halves of the patients.

    Parameters
    ----------
    train_one
        Called with a (n,) bool mask of the records to train on and a seed; returns (n,) losses, or (n, ...)
        predictions where an attack is to learn from those (`learned.on_shadows`).
    patients
        (n,) str, patient of each record.
    n_shadows
        How many, rounded up to an even number; fewer where the patients have fewer halves (`halves`).
    seed
        Of the halves; each shadow's own seed follows from it.
    folder
        Where each finished shadow's losses are kept, so that a repeated call goes on where it ended. None: nowhere.
    fingerprint
        What the losses depend on beyond patients and seed, e.g. the study's hash and the model's name; losses that
        were kept under another one are made again.
    label
        Shown beside the progress bar.

    Returns
    -------
    loss
        (shadows, n) float64, or (shadows, n, ...).
    inside
        (shadows, n) bool. Shadows 0 and 1, 2 and 3, ... are each other's complements.
    """
    from tqdm.auto import tqdm

    patients = np.asarray(patients).astype(str)
    inside = halves(patients, n_shadows, seed=seed)
    if len(inside) < n_shadows:
        people = len(np.unique(patients))
        print(f"note: {people} patients have {len(inside)} halves, hence {len(inside)} shadows", file=sys.stderr)
    facts = hashlib.sha256("\n".join([fingerprint, str(seed), *patients.tolist()]).encode()).hexdigest()
    losses = []
    for number, mask in enumerate(tqdm(inside, desc=label, unit="model")):
        file = None if folder is None else Path(folder) / f"shadow_{number:03d}.safetensors"
        losses.append(train_or_read(train_one, mask, own_seed(seed, number), file=file, facts=facts))
    return np.stack(losses), inside


def own_seed(seed: int, number: int) -> int:
    """Return the seed of one of several trainings."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def train_or_read(train_one: TrainOne, mask: np.ndarray, seed: int, *, file: Path | None, facts: str) -> np.ndarray:
    """Return what a training gives of all records, float64; or read it, where ``file`` holds it of these very facts.

    Raises
    ------
    InputError
        If the training gives losses of another number, or not finite ones.
    """
    found = None if file is None else _kept(file, mask, facts)
    if found is None:
        found = np.asarray(train_one(mask, seed), dtype=np.float64)
        if found.shape[:1] != mask.shape or not np.isfinite(found).all():
            raise InputError(
                "a training returned losses of the wrong number",
                field="train_one",
                value=f"{found.shape}, {int((~np.isfinite(found)).sum())} not finite",
                expected=f"{mask.shape}, all finite",
            )
        if file is not None:
            _keep(file, found, mask, facts)
    return found


def _keep(file: Path, loss: np.ndarray, mask: np.ndarray, facts: str) -> None:
    from safetensors.numpy import save_file

    with atomic_path(file) as temporary:
        save_file(
            {"loss": np.ascontiguousarray(loss), "inside": np.ascontiguousarray(mask)},
            temporary,
            metadata={"facts": facts},
        )


def _kept(file: Path, mask: np.ndarray, facts: str) -> np.ndarray | None:
    """Return the losses kept in a file, or None if there are none of this very shadow."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as kept:
            if (kept.metadata() or {}).get("facts") != facts or not np.array_equal(kept.get_tensor("inside"), mask):
                return None
            return kept.get_tensor("loss")
    except (OSError, SafetensorError):
        return None


@dataclass(frozen=True)
class Procedure:
    """What attacks on the shadows, each in turn, say of the training procedure."""

    aucs: np.ndarray
    """(shadows,) of each attacked shadow."""
    auc: float
    """Their mean."""
    interval: tuple[float, float]
    """Of 95 %, from drawing patients (and records within them) once for all shadows."""
    interval_over: str
    """``patients`` (``sections``), or ``blocks`` or ``records`` where there are too few of them to draw."""
    patients: int
    """How many patients (or sections) were dealt into halves."""
    notes: list[str]
    drawn: np.ndarray = field(compare=False, repr=False)
    """(draws,) what ``interval`` is of; the same draws for every attack on the same shadows."""


def target_scores(loss: np.ndarray, inside: np.ndarray, *, attack: str = "LiRA", **options: Any) -> np.ndarray:
    """Attack each shadow with the help of the others.

    The attacked shadow's complement is left out too. Each record is then inside as many of the others as it is
    outside, whether it is a member or not; otherwise the counts alone would tilt the likelihood ratio.

    Parameters
    ----------
    loss, inside
        (shadows, n) from `shadow_losses`.
    attack
        One of `ATTACKS`.
    options
        For `membership.lira`, or `ratios.rmia`, whose population are the shadow's own non-members.

    Returns
    -------
    scores
        (shadows, n).
    """
    if attack not in ATTACKS:
        raise unknown_name("attack", attack, ATTACKS)
    scores = []
    for number in range(len(loss)):
        if attack == "loss threshold":
            scores.append(loss_threshold(loss[number]))
            continue
        others = np.arange(len(loss)) // 2 != number // 2
        loss_in, loss_out = in_and_out(loss[others], inside[others])
        if attack == "calibrated":
            scores.append(calibrated(loss[number], loss_out))
            continue
        seen = None if attack.endswith("offline") else loss_in
        if attack.startswith("RMIA"):
            scores.append(rmia(loss[number], seen, loss_out, population=~inside[number], **options))
        else:
            scores.append(lira(loss[number], seen, loss_out, **options))
    return np.stack(scores)


def dealt_anew(
    attack: np.ndarray | Callable[[np.ndarray], np.ndarray],
    inside: np.ndarray,
    patients: np.ndarray,
    *,
    unit: str = "patient",
    deals: int = 60,
    seed: int = 0,
) -> Shuffled:
    """Repeat an attack on all shadows with the patients' names exchanged: the negative control of a repeated training.

    The halves stay as they were drawn, but of other patients, so that attack and attacked still fit each other and only
    the link between losses and membership is gone. (Exchanging shadows instead would often give the real halves again.)

    Parameters
    ----------
    attack
        From who is inside (shadows, n) to scores (shadows, n); or losses (shadows, n), for LiRA.
    inside
        (shadows, n) bool.
    patients
        (n,) str.
    unit
        What ``patients`` are: ``patient`` or ``section``.
    deals
        How many times the names are permuted.
    """
    names, person = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    first = np.array([np.flatnonzero(person == one)[0] for one in range(len(names))])
    rng = np.random.default_rng([seed, 6])

    def mean_auc(members: np.ndarray) -> float:
        scores = attack(members) if callable(attack) else target_scores(attack, members)
        return float(np.mean([auc(score, own)[0] for score, own in zip(scores, members, strict=True)]))

    real = mean_auc(inside)
    aucs = np.array([mean_auc(inside[:, first][:, rng.permutation(len(names))][:, person]) for _ in range(deals)])
    low, high = np.quantile(aucs, [0.025, 0.975])
    p_value = (int((aucs >= real - 1e-12).sum()) + 1) / (deals + 1)
    return Shuffled(float(aucs.mean()), (float(low), float(high)), p_value, deals, unit, aucs)


def as_targets(
    scores: np.ndarray,
    inside: np.ndarray,
    patients: np.ndarray,
    *,
    unit: str = "patient",
    blocks: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Procedure:
    """Judge the attacks on all shadows together: the AUC of the training procedure over random splits of the patients.

    Parameters
    ----------
    scores
        (shadows, n) from `target_scores` (or of another attack on the shadows), higher: more likely inside.
    inside
        (shadows, n) bool.
    patients
        (n,) str.
    unit
        What ``patients`` are, for the notes: ``patient`` or ``section``.
    blocks
        (n,) units within a patient that are drawn whole, as for `membership.judge`; None: single records.
    draws
        Bootstrap draws of patients, and of blocks or records within them; the same for all shadows, since they share
        patients. A draw in which a shadow has one side only leaves that shadow out.
    """
    patients = np.asarray(patients).astype(str)
    people = len(np.unique(patients))
    by_patient = people >= 2 * FEWEST_PATIENTS
    blocks = blocks if by_patient or blocks is None else divisible(patients, np.asarray(blocks))
    rng = np.random.default_rng([seed, 3])
    everyone = np.ones(len(patients), dtype=bool)
    means = []
    for weights in draw_weights(everyone, patients, blocks, by_patient=by_patient, draws=draws, rng=rng):
        each = np.full((len(scores), len(weights)), np.nan)
        for number, (score, member) in enumerate(zip(scores, inside, strict=True)):
            there = (weights[:, member].sum(axis=1) > 0) & (weights[:, ~member].sum(axis=1) > 0)
            each[number, there] = auc(score, member, weights[there])
        means.append(np.nanmean(each[:, np.isfinite(each).any(axis=0)], axis=0))
    drawn = np.concatenate(means)
    low, high = np.quantile(drawn, [0.025, 0.975])
    aucs = np.array([auc(score, member)[0] for score, member in zip(scores, inside, strict=True)])
    notes = [f"{len(scores)} trainings on halves of {people} {unit}s."]
    over = f"{unit}s" if by_patient else "records" if blocks is None else "blocks"
    if not by_patient:
        notes.append(f"Too few {unit}s to draw: the interval is over {over} of these {unit}s.")
    return Procedure(aucs, float(aucs.mean()), (float(low), float(high)), over, people, notes, drawn)
