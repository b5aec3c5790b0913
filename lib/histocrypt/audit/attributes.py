"""What a predictor's outputs tell of a patient, beside what the patient's image tells by itself.

The attacker sees predicted expression, as a client of a service or whoever reads its answers does, knows an attribute
(laboratory, subtype) of some patients, and guesses it of others. A guess from outputs alone says little: outputs are
made from the image, and who holds the image could have guessed as well. So the same attacker is given the image, then
both: what a model adds, because it was trained on expression or has learnt patients by heart, is the difference.

The unit is the patient, of whom there is one row: mean and deviation of every output, or image feature, over their
spots. Attackers are ridge classifiers (Hoerl and Kennard 1970) whose penalty is chosen by leave-one-out on the patients
that they learn from. Patients are dealt into parts again and again; two patients are compared only where both were
left out together, so that one and the same attacker ranked them. Attribute inference: Fredrikson et al., "Privacy in
pharmacogenetics", USENIX Security 2014; against a baseline without the model: Jayaraman and Evans, "Are attribute
inference attacks just imputation?", CCS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.audit.membership import FEW_PATIENTS, FEWEST_PATIENTS
from histocrypt.errors import InputError
from histocrypt.files import write_json

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from histocrypt.audit.subjects import Auditable

OUTPUTS, IMAGE, BOTH = "outputs", "image", "outputs and image"
PARTS = 5
"""Parts that patients are dealt into; of fewer than ten patients, half as many as there are."""
PENALTIES = np.logspace(-2, 4, 7)
"""Of the ridge attackers; each family of features is scaled to a variance of 1 in all."""
LEAST_PER_VALUE = 2
"""Patients of each value without whom no attacker can be trained on others."""
LEAST_PLANTED = 0.9
"""AUC that an attribute made from the outputs must be guessed with."""
ATTRIBUTES = ("laboratory", "subtype")
"""Columns of ``obs`` that are asked of a study's patients, where its sections have them."""


@dataclass(frozen=True)
class Told:
    """How well an attribute is guessed. Intervals are of 95 %, over patients; ends are None where there are too few."""

    auc: float
    low: float | None
    high: float | None
    p_value: float | None
    """Share of deals of the attribute among patients, the real one among them, that are guessed as well; None for a
    difference, on whose absence such deals say nothing."""


@dataclass(frozen=True)
class Inferred:
    """What was asked of one attribute."""

    attribute: str
    value: str
    """The guess: this value against all others."""
    patients: dict[str, int]
    """``with`` and ``without`` it."""
    told: dict[str, Told]
    """By what the attacker sees: `OUTPUTS`, each family of image features, `IMAGE` (all of them), `BOTH`. Empty where
    nothing can be said; `notes` say why."""
    beyond: dict[str, Told]
    """Differences of AUC: ``outputs - image``, and ``both - image``, what outputs add for who holds the image."""
    planted: float | None
    """Positive control: AUC of guessing, from the outputs, an attribute that was made from the outputs."""
    dealt: tuple[float, float] | None
    """Negative control: the middle 95 % of AUCs from outputs where the attribute is permuted."""
    smallest_p: float
    """No deal of so few patients could give a smaller one."""
    notes: list[str]

    @property
    def controls_passed(self) -> bool:
        """Whether the planted attribute was found and the dealt one was not."""
        planted = self.planted is not None and self.planted >= LEAST_PLANTED
        return planted and self.dealt[0] <= 0.5 <= self.dealt[1]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, as JSON can hold it."""
        return asdict(self) | {"controls_passed": self.controls_passed}


def by_patient(values: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the names of the patients, sorted, and (patients, 2 d) mean and deviation of (n, d) values of spots."""
    patients = np.asarray(patients).astype(str)
    names, person = np.unique(patients, return_inverse=True)
    rows = [np.asarray(values, np.float64)[person == index] for index in range(len(names))]
    return names, np.stack([np.concatenate([own.mean(axis=0), own.std(axis=0)]) for own in rows])


def infer(
    outputs: np.ndarray,
    image: Mapping[str, np.ndarray],
    attribute: np.ndarray,
    *,
    name: str,
    value: str | None = None,
    repeats: int = 20,
    deals: int = 199,
    draws: int = 1000,
    seed: int = 0,
) -> Inferred:
    """Guess an attribute of patients from outputs, from the image, and from both.

    Parameters
    ----------
    outputs
        (patients, d) of `by_patient`.
    image
        (patients, d) of each family of image features, by its name.
    attribute
        (patients,) values, compared as text.
    name
        What the attribute is called.
    value
        The one that is guessed; the rarer of two, if not given.
    repeats
        Ways of dealing patients into parts.
    deals
        Of the attribute among patients, for p-values and the negative control.
    draws
        Of patients, for intervals.
    seed
        Of everything random.

    Raises
    ------
    InputError
        If lengths differ, a number is not finite, there is no image, or the attribute has one value, or more than two
        and none is named.
    """
    attribute = np.asarray(attribute).astype(str)
    families = {OUTPUTS: outputs, **image}
    for family, rows in families.items():
        if len(rows) != len(attribute):
            raise InputError("must have one row per patient", field=family, value=len(rows), expected=len(attribute))
        if not np.isfinite(rows).all():
            raise InputError("holds a number that is not finite", field=family, fix="leave that patient out")
    if not image:
        raise InputError("there is no image to compare outputs with", field="image", expected="a family of features")
    value = _guessed(attribute, name, value)
    has = attribute == value
    count = {"with": int(has.sum()), "without": int((~has).sum())}
    fewest, smallest = min(count.values()), 1 / min(comb(len(has), count["with"]), deals + 1)
    if fewest < LEAST_PER_VALUE:
        note = (
            f"{count['with']} of {len(has)} patients have the {name} {value}: nobody with it, or without, is left to "
            "learn from, so whatever tells these patients apart would pass for it. Nothing can be said."
        )
        return Inferred(name, value, count, {}, {}, None, None, smallest, [note])

    axes = {family: _axes(np.asarray(rows, np.float64)) for family, rows in families.items()}
    axes |= {IMAGE: np.hstack([axes[family] for family in image])}
    axes |= {BOTH: np.hstack([axes[OUTPUTS], axes[IMAGE]])}
    rng = np.random.default_rng([seed, 11])
    dealt = np.stack([has, *(rng.permutation(has) for _ in range(deals))], axis=1)
    parts = [_parts(len(has), rng) for _ in range(repeats)]
    compared = {family: _compared(rows, dealt, parts) for family, rows in axes.items()}
    weights = None if fewest < FEWEST_PATIENTS else _drawn(has, draws, rng)
    wider = {family: _wider(nulls[1:], count) for family, (_, _, nulls) in compared.items()}
    told = {
        family: Told(*_auc(won, times, has, weights, wider=wider[family]), _share_above(nulls))
        for family, (won, times, nulls) in compared.items()
    }
    (reference, times, _), beyond = compared[IMAGE], {}
    for family, word in ((OUTPUTS, "outputs - image"), (BOTH, "both - image")):
        by, apart = max(wider[family], wider[IMAGE]), compared[family][0] - reference
        beyond[word] = Told(*_auc(apart, times, has, weights, wider=by, least=-1), None)

    first = axes[OUTPUTS][:, 0]
    made = np.argsort(np.argsort(first)) >= len(first) // 2
    won, times, _ = _compared(axes[OUTPUTS], made[:, None], parts)
    low, high = np.quantile(compared[OUTPUTS][2][1:], [0.025, 0.975])
    notes = []
    if fewest < FEWEST_PATIENTS:
        notes.append(f"{fewest} patients on a side: no interval over patients.")
    elif fewest < FEW_PATIENTS:
        notes.append(
            f"{fewest} patients on a side: intervals are too narrow, and one patient more may change a figure."
        )
    if told[IMAGE].auc == 1:
        notes.append("The image tells all patients apart, so outputs could add nothing.")
    if smallest > 0.05:
        notes.append(f"No p-value below {smallest:.2g} can be had from so few patients, whatever outputs tell.")
    planted = _auc(won, times, made, None)[0]
    return Inferred(name, value, count, told, beyond, planted, (float(low), float(high)), smallest, notes)


def of_predictor(able: Auditable, names: tuple[str, ...] = ATTRIBUTES, **how: Any) -> list[Inferred]:
    """Ask what a trained predictor's outputs tell of the patients of its fold, members and non-members together.

    Image features are those of spots' tiles: of colour, and of the frozen encoder that comes with the library.

    Parameters
    ----------
    able
        The predictor with its records.
    names
        Columns of ``obs`` of the cleaned sections, e.g. `ATTRIBUTES`. One that a section lacks, or that is one and the
        same everywhere, is left out; so is one that differs within a patient.
    how
        As for `infer`.

    Returns
    -------
    One for each attribute; of more than two values, one for each value.
    """
    from histocrypt.data.fold_statistics import read_clean_section

    records, spots = able.records, able.spots()
    people, outputs = by_patient(records.prediction, records.patients)
    image = {family: by_patient(spots.features(family), records.patients)[1] for family in ("colour", ENCODER)}
    facts = {name: read_clean_section(able.study.run.section(name), parts=["obs"]).obs for name in able.sections}
    of_patient = {section: str(obs["patient"].iloc[0]) for section, obs in facts.items()}
    found = []
    for name in names:
        said: dict[str, set[str]] = {person: set() for person in people.tolist()}
        for section, obs in facts.items():
            said[of_patient[section]] |= set(obs[name].astype(str)) if name in obs else {""}
        if any(len(values) != 1 or "" in values for values in said.values()):
            continue
        attribute = np.array([next(iter(said[person])) for person in people.tolist()])
        values = np.unique(attribute).tolist()
        chosen = [None] if len(values) == 2 else values if len(values) > 2 else []
        found += [infer(outputs, image, attribute, name=name, value=value, **how) for value in chosen]
    return found


ENCODER = "efficientnet_lite0"
"""The frozen encoder whose features stand for the image."""


def table(found: Mapping[str, list[Inferred]]) -> pd.DataFrame:
    """Return one row for each attribute of each predictor: what is guessed from what, and the differences."""
    import pandas as pd

    rows = [
        {
            "predictor": predictor,
            "attribute": f"{one.attribute}: {one.value}",
            "patients": f"{one.patients['with']} against {one.patients['without']}",
            **{source: _said(one.told.get(source)) for source in (OUTPUTS, IMAGE)},
            **{word: _said(one.beyond.get(word)) for word in ("outputs - image", "both - image")},
            "controls": "passed" if one.controls_passed else "failed" if one.told else "none",
            "notes": " ".join(one.notes),
        }
        for predictor, asked in found.items()
        for one in asked
    ]
    return pd.DataFrame(rows)


def sentence(one: Inferred) -> str:
    """Return what was found of one attribute, for a card."""
    whose = f"Beside membership: the {one.attribute} {one.value} of {one.patients['with']} patients against "
    whose += f"{one.patients['without']} "
    if not one.told:
        return f"{whose}cannot be asked about: too few patients."
    guessed = (
        f"is guessed from outputs with an AUC of {_said(one.told[OUTPUTS])}, from the image {_said(one.told[IMAGE])}"
    )
    failed = "" if one.controls_passed else " A control failed, so this says little."
    return f"{whose}{guessed}; outputs less image {_said(one.beyond['outputs - image'])}.{failed}"


def write(folder: Path, fold: str, found: Mapping[str, list[Inferred]]) -> Path:
    """Write ``attributes.json`` into an audit's folder: what was asked of each predictor, by its name."""
    path = folder / "attributes.json"
    asked = {name: [one.to_dict() for one in rows] for name, rows in found.items()}
    write_json(path, {"fold": fold, "image": ["colour", ENCODER], "predictors": asked})
    return path


def _said(told: Told | None) -> str:
    if told is None:
        return "cannot be said"
    span = "no interval" if told.low is None else f"{told.low:.2f} to {told.high:.2f}"
    return f"{told.auc:.2f} ({span}){'' if told.p_value is None else f', p = {told.p_value:.2g}'}"


def _guessed(attribute: np.ndarray, name: str, value: str | None) -> str:
    values, counts = np.unique(attribute, return_counts=True)
    if len(values) == 1:
        raise InputError("is the same for all patients", field=name, value=str(values[0]))
    if value is None and len(values) > 2:
        raise InputError("has more than two values", field=name, value=values.tolist(), fix="name the one to guess")
    if value is not None and value not in values:
        raise InputError("no patient has this value", field=name, value=value, expected=values.tolist())
    return str(values[counts.argmin()]) if value is None else value


def _axes(rows: np.ndarray) -> np.ndarray:
    """Return (n, at most n) principal axes of standardised rows, of a variance of 1 in all; nothing linear is lost.

    No attribute is looked at: an attacker has the outputs of those whose attribute it guesses.
    """
    rows = rows - rows.mean(axis=0)
    spread = rows.std(axis=0)
    rows = rows[:, spread > 1e-12] / spread[spread > 1e-12]
    left, size, _ = np.linalg.svd(rows, full_matrices=False)
    return left * size / max(np.sqrt(np.square(size).sum() / len(rows)), 1e-12)


def _parts(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return a random deal of n patients into parts."""
    return np.array_split(rng.permutation(n), PARTS if n >= 2 * PARTS else n // 2)


def _compared(
    rows: np.ndarray, dealt: np.ndarray, parts: list[list[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, of (n, deals) attributes, for the first how often each patient was ranked above each other, cross-fitted.

    Returns
    -------
    won, times
        (n, n): how often patient i was ranked above patient j, of how many comparisons.
    aucs
        (deals,): of every deal.
    """
    from sklearn.linear_model import RidgeCV

    n, deals = dealt.shape
    won, times, right, pairs = np.zeros((n, n)), np.zeros((n, n)), np.zeros(deals), np.zeros(deals)
    for way in parts:
        for out in way:
            learnt = np.setdiff1d(np.arange(n), out)
            ridge = RidgeCV(PENALTIES, alpha_per_target=True).fit(rows[learnt], 2.0 * dealt[learnt] - 1)
            scores = ridge.predict(rows[out]).reshape(len(out), deals)
            above = (np.sign(scores[:, None] - scores[None]) + 1) / 2
            won[np.ix_(out, out)] += above[..., 0]
            times[np.ix_(out, out)] += 1
            pair = dealt[out][:, None] & ~dealt[out][None]
            right += (above * pair).sum(axis=(0, 1))
            pairs += pair.sum(axis=(0, 1))
    return won, times, np.divide(right, pairs, out=np.full(deals, 0.5), where=pairs > 0)


def _wider(nulls: np.ndarray, count: Mapping[str, int]) -> float:
    """Return by how much AUCs of dealt attributes spread more than those of scores that were not learnt.

    Patients who are compared were learnt from in other parts, so cross-fitted scores hang together, which drawing them
    again does not show: intervals would be too narrow. The spread of scores that were not learnt is Mann and Whitney's.
    """
    plain = np.sqrt((sum(count.values()) + 1) / (12 * count["with"] * count["without"]))
    return max(1.0, float(nulls.std() / plain))


def _auc(
    won: np.ndarray,
    times: np.ndarray,
    has: np.ndarray,
    weights: np.ndarray | None,
    *,
    wider: float = 1.0,
    least: float = 0.0,
) -> tuple[float, float | None, float | None]:
    """Return the share of comparisons of patients with and without that were won, and its interval over patients.

    The interval is widened about the share, and ends between ``least`` and 1; of an AUC it is at least `newcombe`.
    """
    won, times = (matrix[np.ix_(has, ~has)] for matrix in (won, times))
    value = float(won.sum() / times.sum())
    if weights is None:
        return value, None, None
    with_it, without = weights[:, has], weights[:, ~has]
    total = np.einsum("di,ij,dj->d", with_it, times, without, optimize=True)
    share = np.einsum("di,ij,dj->d", with_it, won, without, optimize=True)[total > 0] / total[total > 0]
    low, high = np.clip(value + wider * (np.quantile(share, [0.025, 0.975]) - value), least, 1)
    if least == 0:
        ends = newcombe(value, int(has.sum()), int((~has).sum()))
        low, high = min(low, ends[0]), max(high, ends[1])
    return value, float(low), float(high)


def newcombe(auc: float, n: int, others: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUC of so many against so many (Newcombe 2006, method 5).

    It has a width where all were told apart, too, of which drawing them again gives none.
    """
    from scipy.optimize import brentq

    def beyond(true: float) -> float:
        shape = (n + others) / 2 - 1
        spread = true * (1 - true) * (1 + shape * ((1 - true) / (2 - true) + true / (1 + true))) / (n * others)
        return (auc - true) ** 2 - 1.96**2 * spread

    low = 0.0 if auc <= 0 else brentq(beyond, 0, auc - 1e-9)
    high = 1.0 if auc >= 1 else brentq(beyond, auc + 1e-9, 1)
    return float(low), float(high)


def _drawn(has: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return (draws, n) how often each patient counts: drawn with replacement, with and without the value apart."""
    weights = np.zeros((draws, len(has)))
    for side in (has, ~has):
        weights[:, side] = rng.multinomial(side.sum(), np.full(side.sum(), 1 / side.sum()), size=draws)
    return weights


def _share_above(aucs: np.ndarray) -> float:
    return float((aucs >= aucs[0] - 1e-12).mean())
