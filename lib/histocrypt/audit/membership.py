"""Membership attacks that need losses alone, and how well an attack's scores tell who was trained on from who was not.

A score is a number for each record; higher means "more likely a member". What is judged is always the same: the area
under the ROC curve, the balanced accuracy of a threshold that was found on other patients, and the share of members
found at a small false positive rate. Records of a patient resemble one another, so intervals come from drawing
patients, and records within them, the members' and the non-members' apart.

Loss threshold: Yeom et al., "Privacy risk in machine learning", CSF 2018. Calibration by reference models: Watson et
al., "On the importance of difficulty calibration in membership inference attacks", ICLR 2022. LiRA and the rates asked
for: Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_table, write_table

SMALLEST_LOSS = 1e-8
"""A smaller loss counts as this: a label that was learnt by heart must not become infinite evidence."""
SMALLEST_SD = 1e-3
"""Of scaled losses; shadows of a model without chance would otherwise agree exactly."""
SHADOWS_FOR_OWN_VARIANCE = 16
"""With fewer shadows in or out, the records share one variance (Carlini et al. do so below about 64 in all)."""
LEAST_GAIN = 0.1
"""In standard deviations from model to model: how much surer of a record a model is at least held to be that saw it."""

RATES = (0.001, 0.01, 0.05)
"""False positive rates at which the true positive rate is asked for."""
FALSE_POSITIVES = 10
"""A rate is spoken of only where at least so many non-members lie beyond its threshold."""
FEWEST_PATIENTS = 3
"""With fewer on a side, drawing patients says nothing, and only what lies within them is drawn."""
FEW_PATIENTS = 10
"""With fewer on a side, an interval from drawing patients is known to be too narrow (test_membership.py)."""
HALVINGS = 10
"""Ways of dealing the patients into two halves, over which the balanced accuracy is averaged."""
CHUNK = 4_000_000
"""Weights held at once while drawing."""

Scale = Literal["squared", "cross_entropy", "as_is"]


def loss_threshold(loss: np.ndarray) -> np.ndarray:
    """Return (n,) scores of the simplest attack: who has a small loss was trained on."""
    return -np.asarray(loss, dtype=np.float64)


def calibrated(loss: np.ndarray, reference_loss: np.ndarray) -> np.ndarray:
    """Return (n,) by how much the loss is smaller than models that never saw the record would make it.

    Parameters
    ----------
    loss
        (n,).
    reference_loss
        (n,) or (models, n), NaN where a model saw the record.

    Raises
    ------
    InputError
        If a record has no reference at all.
    """
    reference = np.atleast_2d(np.asarray(reference_loss, dtype=np.float64))
    known = np.isfinite(reference)
    needed(known.any(axis=0), "reference model that never saw it")
    return np.where(known, reference, 0).sum(axis=0) / known.sum(axis=0) - np.asarray(loss, dtype=np.float64)


def confidence(loss: np.ndarray, scale: Scale = "squared") -> np.ndarray:
    """Return losses as numbers that are about normal from model to model; higher where the model is surer.

    Parameters
    ----------
    loss
        Any shape; NaN stays NaN.
    scale
        ``squared``: a mean squared error becomes minus its logarithm. ``cross_entropy``: the logit of the probability
        that the model gives the truth, as in LiRA. ``as_is``: minus the loss.
    """
    loss = np.asarray(loss, dtype=np.float64)
    if scale == "as_is":
        return -loss
    loss = np.where(np.isnan(loss), loss, np.maximum(loss, SMALLEST_LOSS))
    if scale == "squared":
        return -np.log(loss)
    if scale == "cross_entropy":
        return -loss - np.log(-np.expm1(-loss))
    raise unknown_name("scale", scale, ["squared", "cross_entropy", "as_is"])


def in_and_out(loss: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split shadow losses (shadows, n) by who was inside: two arrays of that shape, NaN where it does not apply."""
    loss = np.asarray(loss, dtype=np.float64)
    return np.where(inside, loss, np.nan), np.where(inside, np.nan, loss)


def lira(
    loss: np.ndarray,
    loss_in: np.ndarray | None,
    loss_out: np.ndarray,
    *,
    scale: Scale = "squared",
    variance: Literal["auto", "own", "shared"] = "auto",
) -> np.ndarray:
    """Return how much likelier each loss is under models that saw the record than under models that did not.

    Unlike the published score, this one never falls as the model grows surer. The published one does where models that
    saw a record vary less: a model that knows its members by heart then passes for one that never saw them.

    Parameters
    ----------
    loss
        (n,) under the attacked model.
    loss_in, loss_out
        (shadows, n) under models that saw the record, and that did not; NaN where a shadow is of the other kind
        (`in_and_out`). ``loss_in`` None: the offline variant, for who has no model that saw the record.
    scale
        See `confidence`.
    variance
        ``own``: every record has its own; ``shared``: one for all records (the pooled one, in and out apart);
        ``auto``: own from `SHADOWS_FOR_OWN_VARIANCE` shadows of each kind on.

    Returns
    -------
    scores
        (n,) online: the logarithm of the likelihood ratio. Offline: by how many standard deviations the record is surer
        than without it; this orders records as the probability of Carlini et al. does, and has no ceiling.
    """
    found, unseen = confidence(loss, scale), confidence(loss_out, scale)
    if loss_in is None:
        out_mean, out_sd = _normal(unseen, _variance(variance, unseen))
        return (found - out_mean) / out_sd
    seen = confidence(loss_in, scale)
    chosen = _variance(variance, seen, unseen)
    (in_mean, in_sd), (out_mean, out_sd) = _normal(seen, chosen), _normal(unseen, chosen)
    in_mean = np.maximum(in_mean, out_mean + LEAST_GAIN * np.sqrt(in_sd * out_sd))
    # The ratio of two normals turns where the wider one takes over, at `turn`; beyond, it stays what it is there.
    with np.errstate(divide="ignore"):
        turn = (in_mean / in_sd**2 - out_mean / out_sd**2) / (in_sd**-2.0 - out_sd**-2.0)
    found = np.where(in_sd < out_sd, np.minimum(found, turn), np.maximum(found, np.where(in_sd > out_sd, turn, found)))

    def log_density(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        return -0.5 * ((found - mean) / sd) ** 2 - np.log(sd)

    return log_density(in_mean, in_sd) - log_density(out_mean, out_sd)


def _variance(asked: str, *values: np.ndarray) -> str:
    """Return ``own`` or ``shared``."""
    if asked not in ("auto", "own", "shared"):
        raise unknown_name("variance", asked, ["auto", "own", "shared"])
    if asked != "auto":
        return asked
    fewest = min(int(np.isfinite(each).sum(axis=0).min()) for each in values)
    return "own" if fewest >= SHADOWS_FOR_OWN_VARIANCE else "shared"


def _normal(values: np.ndarray, variance: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) means and (n,) standard deviations over shadows."""
    shadows = np.isfinite(values).sum(axis=0)
    needed(shadows > 0, "shadow model of each kind")
    mean = np.nanmean(values, axis=0)
    if variance == "own":
        needed(shadows > 1, "second shadow model of each kind")
        sd = np.nanstd(values, axis=0, ddof=1)
    else:
        freedom = np.maximum(shadows - 1, 0).sum()
        if freedom == 0:
            raise InputError("one shadow model of each kind has no variance", fix="train more shadow models")
        sd = np.full(len(mean), np.sqrt(np.nansum((values - mean) ** 2) / freedom))
    return mean, np.maximum(sd, SMALLEST_SD)


def needed(there: np.ndarray, what: str) -> None:
    """Refuse records that lack something: ``there``, (n,) bool, says which have it."""
    if not there.all():
        raise InputError(
            f"{int((~there).sum())} of {len(there)} records have no {what}",
            fix="train more shadow models, or leave those records out",
        )


@dataclass(frozen=True)
class Audit:
    """One attack on one thing, record by record."""

    scores: np.ndarray
    """(n,) float, higher: more likely a member."""
    member: np.ndarray
    """(n,) bool."""
    patients: np.ndarray
    """(n,) str."""
    group: np.ndarray
    """(n,) str, e.g. the centre; ``""`` where it is not known."""
    blocks: np.ndarray | None = None
    """(n,) str, e.g. squares of tissue, drawn whole within a patient; None: records are drawn one by one."""


def write_scores(path: Path, audits: dict[str, Audit]) -> None:
    """Write every attack's scores as one CSV, a row for each record: what ROC curves are drawn from."""
    import pandas as pd

    columns = ("member", "patients", "group", "blocks", "scores")
    tables = [
        pd.DataFrame({"attack": name, **{column: getattr(audit, column) for column in columns}})
        for name, audit in audits.items()
    ]
    write_table(path, pd.concat(tables), index=False)


def read_scores(path: Path) -> dict[str, Audit]:
    """Return what `write_scores` wrote, by the name of the attack."""
    import pandas as pd

    words = dict.fromkeys(("attack", "patients", "group", "blocks"), str)
    table = read_table(path, dtype=words, keep_default_na=False, float_precision="round_trip")

    def audit(own: pd.DataFrame) -> Audit:
        patients, group, blocks = (own[name].to_numpy(dtype=str) for name in ("patients", "group", "blocks"))
        member, scores = own["member"].to_numpy(dtype=bool), own["scores"].to_numpy(dtype=np.float64)
        return Audit(scores, member, patients, group, blocks if (blocks != "").all() else None)

    return {str(name): audit(own) for name, own in table.groupby("attack", sort=False)}


@dataclass(frozen=True)
class Judged:
    """How well an attack's scores tell members from non-members. Intervals are of 95 %."""

    auc: float
    auc_interval: tuple[float, float]
    balanced_accuracy: float
    """At thresholds found on the other half of the patients, averaged over `HALVINGS` halvings."""
    balanced_accuracy_interval: tuple[float, float]
    """The thresholds are held fixed in the draws."""
    advantage: float
    """The largest TPR - FPR of all thresholds. Its threshold is the best for the judged records themselves: an upper
    bound, above 0 by chance alone."""
    tpr_at: dict[float, tuple[float, float, float] | None]
    """By false positive rate: (value, low, high), or None where the non-members are too few; `notes` says so."""
    n_members: int
    n_non_members: int
    patients_members: int
    patients_non_members: int
    interval_over: str
    """What was drawn for the intervals: ``patients``, ``blocks`` or ``records``."""
    notes: list[str]
    """What a reader has to know about the figures."""
    auc_drawn: np.ndarray = field(compare=False, repr=False)
    """(draws,) what ``auc_interval`` is of. Attacks on the same records with the same seed have the same draws."""


def judge(
    scores: np.ndarray,
    member: np.ndarray,
    patients: np.ndarray,
    *,
    blocks: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Judged:
    """Judge an attack's scores.

    Parameters
    ----------
    scores
        (n,), higher: more likely a member.
    member
        (n,) bool.
    patients
        (n,) str.
    blocks
        (n,) str, units within a patient that are drawn whole, e.g. squares of tissue; None: single records.
    draws
        Bootstrap draws. Patients are drawn with replacement among the members' and among the non-members' apart, then
        blocks or records within each. With fewer than `FEWEST_PATIENTS` on a side no patients are drawn, only what lies
        within them, and `Judged.notes` says so.
    seed
        Of the draws and of the halves of patients.

    Raises
    ------
    InputError
        If lengths differ, scores are not finite, or a side is empty.
    """
    from sklearn.metrics import roc_auc_score

    scores, member, patients, blocks = _checked(scores, member, patients, blocks)
    rng = np.random.default_rng([seed, 1])
    sides = [len(np.unique(patients[member])), len(np.unique(patients[~member]))]
    notes = []
    by_patient = min(sides) >= FEWEST_PATIENTS
    blocks = blocks if by_patient else divisible(patients, blocks)
    over = "patients" if by_patient else "records" if blocks is None else "blocks"
    if not by_patient:
        notes.append(
            f"Patients among members: {sides[0]}, among non-members: {sides[1]}. The intervals are over {over} of "
            "these patients and say nothing of other patients; that two patients differ may pass for membership."
        )
    elif min(sides) < FEW_PATIENTS:
        notes.append(f"From only {min(sides)} patients on a side the intervals are somewhat too narrow.")
    right, shared = _cross_fitted(scores, member, patients, blocks, rng)
    if shared:
        notes.append("A side has one patient: the threshold was found on other records of the same patient.")
    n_members, n_non = int(member.sum()), int((~member).sum())
    allowed = [rate for rate in RATES if n_non >= round(FALSE_POSITIVES / rate)]
    for rate in RATES:
        if rate not in allowed:
            least = round(FALSE_POSITIVES / rate)
            notes.append(f"No TPR at {rate:.1%} FPR: {n_non:,} non-members, at least {least:,} are needed.")

    drawn: dict[Any, list[np.ndarray]] = {"auc": [], "accuracy": [], **{rate: [] for rate in allowed}}
    for weights in draw_weights(member, patients, blocks, by_patient=by_patient, draws=draws, rng=rng):
        fpr, tpr = curves(scores, member, weights)
        drawn["auc"].append(np.trapezoid(tpr, fpr, axis=1))
        halves = [(weights[:, side] @ right[side]) / weights[:, side].sum(axis=1) for side in (member, ~member)]
        drawn["accuracy"].append((halves[0] + halves[1]) / 2)
        for rate in allowed:
            drawn[rate].append(_found_at(fpr, tpr, rate))

    def ends(key: Any) -> tuple[float, float]:
        low, high = np.quantile(np.concatenate(drawn[key]), [0.025, 0.975])
        return float(low), float(high)

    fpr, tpr = curves(scores, member)
    return Judged(
        auc=float(roc_auc_score(member, scores)),
        auc_interval=ends("auc"),
        balanced_accuracy=float((right[member].mean() + right[~member].mean()) / 2),
        balanced_accuracy_interval=ends("accuracy"),
        advantage=float((tpr - fpr).max()),
        tpr_at={r: (float(_found_at(fpr, tpr, r)[0]), *ends(r)) if r in allowed else None for r in RATES},
        n_members=n_members,
        n_non_members=n_non,
        patients_members=sides[0],
        patients_non_members=sides[1],
        interval_over=over,
        notes=notes,
        auc_drawn=np.concatenate(drawn["auc"]),
    )


def divisible(patients: np.ndarray, blocks: np.ndarray | None) -> np.ndarray | None:
    """Return the blocks if every patient has several, else None: of a single block, drawn whole, nothing can vary."""
    if blocks is None:
        return None
    several = all(len(np.unique(blocks[patients == name])) > 1 for name in np.unique(patients))
    return blocks if several else None


def judge_groups(audit: Audit, *, draws: int = 1000, seed: int = 0) -> dict[str, Judged]:
    """Judge members against non-members of their own groups, and against each other group apart.

    Returns
    -------
    dict
        ``"same"``, the main figure: the groups that have both members and non-members (absent where there are none).
        Where they are several, each score is first replaced by its place among the non-members of its own group, so
        that a difference between centres is not taken for membership. Then ``"members against <group>"`` for each
        group of non-members only: such a row may show the centre and not membership, and its notes say so.
    """
    scores, member, patients, blocks = _checked(audit.scores, audit.member, audit.patients, audit.blocks)
    group = np.asarray(audit.group).astype(str)
    inside, outside = set(group[member].tolist()), set(group[~member].tolist())
    rows: dict[str, Judged] = {}

    def judged(keep: np.ndarray, values: np.ndarray) -> Judged:
        part = None if blocks is None else blocks[keep]
        return judge(values[keep], member[keep], patients[keep], blocks=part, draws=draws, seed=seed)

    both = sorted(inside & outside)
    if both:
        placed = scores
        if len(both) > 1:
            placed = scores.copy()
            for name in both:
                own = np.sort(scores[(group == name) & ~member])
                here = group == name
                ranks = [np.searchsorted(own, scores[here], side=side) for side in ("left", "right")]
                placed[here] = (ranks[0] + ranks[1]) / (2 * len(own))
        rows["same"] = judged(np.isin(group, both), placed)
    for name in sorted(outside - inside):
        found = judged(member | (group == name), scores)
        found.notes.append(f"No member comes from {name or 'the unnamed group'}: this may show the centre instead.")
        rows[f"members against {name}"] = found
    return rows


def bands(
    audit: Audit, grid: np.ndarray, *, draws: int = 400, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the true positive rate, and its interval of 95 %, at each false positive rate of an ascending grid.

    Drawn as in `judge`; at each rate the value is that of the last threshold whose own rate is no larger.
    """
    scores, member, patients, blocks = _checked(audit.scores, audit.member, audit.patients, audit.blocks)
    sides = [len(np.unique(patients[side])) for side in (member, ~member)]
    by_patient = min(sides) >= FEWEST_PATIENTS
    rng = np.random.default_rng([seed, 7])

    def on_grid(fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
        return np.stack([t[np.searchsorted(f, grid + 1e-12, side="right") - 1] for f, t in zip(fpr, tpr, strict=True)])

    drawn = [
        on_grid(*curves(scores, member, weights))
        for weights in draw_weights(member, patients, blocks, by_patient=by_patient, draws=draws, rng=rng)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975], axis=0)
    return on_grid(*curves(scores, member))[0], low, high


def curves(scores: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates, each (draws, thresholds + 1), of falling thresholds from (0, 0) to (1, 1).

    Parameters
    ----------
    scores, member
        (n,).
    weights
        (draws, n) how often each record counts; None: once, one row. Equal scores share a threshold.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    weights = np.ones((1, len(scores))) if weights is None else weights
    rates = []
    for side in (~member, member):
        summed = np.cumsum(np.where(side, weights, 0)[:, order], axis=1)
        rate = summed[:, ends] / summed[:, -1:]
        rates.append(np.concatenate([np.zeros((len(rate), 1)), rate], axis=1))
    return rates[0], rates[1]


def auc(scores: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the area under the ROC curve, (draws,); arguments as of `curves`."""
    fpr, tpr = curves(scores, member, weights)
    return np.trapezoid(tpr, fpr, axis=1)


def draw_weights(
    member: np.ndarray,
    patients: np.ndarray,
    blocks: np.ndarray | None,
    *,
    by_patient: bool,
    draws: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Yield bootstrap weights (some draws, n) float64, the two sides drawn apart; a few million numbers at a time."""
    units = np.arange(len(member)) if blocks is None else np.unique(blocks, return_inverse=True)[1]
    at_once = max(1, CHUNK // len(member))
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        weights = np.empty((some, len(member)))
        for side in (member, ~member):
            names = np.unique(patients[side])
            if not len(names):
                continue
            times = np.ones((some, len(names)), dtype=np.int64)
            if by_patient:
                times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=some)
            for column, name in enumerate(names):
                rows = np.flatnonzero(side & (patients == name))
                distinct, unit = np.unique(units[rows], return_inverse=True)
                n = len(distinct)
                weights[:, rows] = rng.multinomial(times[:, column] * n, np.full(n, 1 / n))[:, unit.ravel()]
        yield weights


def _found_at(fpr: np.ndarray, tpr: np.ndarray, rate: float) -> np.ndarray:
    """Return (draws,) the largest true positive rate of thresholds whose false positive rate is at most ``rate``."""
    return np.where(fpr <= rate + 1e-12, tpr, 0).max(axis=1)


def _cross_fitted(
    scores: np.ndarray,
    member: np.ndarray,
    patients: np.ndarray,
    blocks: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, bool]:
    """Return (n,) how often each record was told rightly, and whether a patient had to be on both halves.

    The patients are dealt into two halves; the threshold of each half is the one that tells the other half best.
    """
    units, shared = patients, False
    for side in (member, ~member):
        if len(np.unique(patients[side])) == 1:
            shared = True
            inner = np.arange(len(patients)).astype(str) if blocks is None else blocks
            units = np.where(side, np.char.add(np.char.add(patients, ":"), inner), units)
            if len(np.unique(units[side])) == 1:  # one block: nothing but its records is left to deal
                units = np.where(side, np.arange(len(patients)).astype(str), units)
    right = np.zeros(len(scores))
    for _ in range(HALVINGS):
        first = _half(units, member, rng)
        for judged in (first, ~first):
            threshold = _best_threshold(scores[~judged], member[~judged])
            right[judged] += (scores[judged] >= threshold) == member[judged]
    return right / HALVINGS, shared


def _half(units: np.ndarray, member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (n,) bool, a random half of the units, so that both halves have members and non-members."""
    names, unit = np.unique(units, return_inverse=True)
    unit = unit.ravel()
    has = np.stack([np.bincount(unit[side], minlength=len(names)) > 0 for side in (member, ~member)])
    first, dealt = np.zeros(len(names), dtype=bool), np.zeros((2, 2), dtype=int)  # (side, half)
    for sides in ([True, True], [True, False], [False, True]):
        for index in rng.permutation(np.flatnonzero((has.T == sides).all(axis=1))):
            more = dealt[sides].sum(axis=0)
            half = int(rng.integers(2)) if more[0] == more[1] else int(more[1] < more[0])
            dealt[sides, half] += 1
            first[index] = half == 0
    return first[unit]


def _best_threshold(scores: np.ndarray, member: np.ndarray) -> float:
    """Return the threshold of the best balanced accuracy, midway to the next lower score."""
    fpr, tpr = curves(scores, member)
    values = np.unique(scores)[::-1]
    best = int(np.argmax(tpr[0] - fpr[0]))
    if best == 0:
        return float(np.nextafter(values[0], np.inf))
    lower = values[best] if best < len(values) else values[-1]
    return float((values[best - 1] + lower) / 2)


def _checked(
    scores: np.ndarray, member: np.ndarray, patients: np.ndarray, blocks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    scores, member = np.asarray(scores, dtype=np.float64), np.asarray(member)
    patients = np.asarray(patients).astype(str)
    blocks = None if blocks is None else np.asarray(blocks).astype(str)
    for name, values in (("member", member), ("patients", patients), ("blocks", blocks)):
        if values is not None and values.shape != scores.shape:
            raise InputError(
                "must have one value per score", field=name, value=values.shape, expected=str(scores.shape)
            )
    if member.dtype != bool:
        raise InputError(
            "must be true or false for each record", field="member", value=str(member.dtype), expected="bool"
        )
    if not np.isfinite(scores).all():
        raise InputError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite",
            field="scores",
            fix="leave those records out and say how many",
        )
    if min(member.sum(), (~member).sum()) < 2:
        value = f"{member.sum()} members and {(~member).sum()} non-members"
        raise InputError(
            "there are too few members or non-members to judge",
            field="member",
            value=value,
            expected="at least 2 of each",
        )
    return scores, member, patients, blocks
