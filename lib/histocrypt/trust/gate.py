"""Whether a model may be used on a slide: how far the slide is from those that the model learnt from.

The slide is the unit. A model standardises every section by its own spots, so that what it sees afterwards always looks
alike: a classifier cannot tell laboratories apart there (AUC .5). Before that, three plain numbers can:

- ``shift``: how far the section's mean lies from the nearest training section's, in the model's own features, in
  deviations within sections; root mean square over features, each cut off at `MOST`. A two-sample classifier and a
  kernel test see no more and saturate: of eight real sections, another patient of the same laboratory reached .45 to
  .61, another laboratory .82 to 1.22, where the classifier's AUC was .90 to .94 and .99 to 1.
- ``colour``: distance of mean and deviation in CIELAB to those of the nearest training section.
- ``sharpness``: `tissue.focus.sharpness`, the median over spots, beyond those of the training sections. Blur and a
  wrong resolution move it.
- ``coarse``: the same of squares of `tissue.focus.COARSE` pixels, where blur that does not harm is not seen.

Likeness is not harm: a slide beyond a limit is ``with care``. ``do not use`` is for what costs a quarter of the
correlation, as `benchmarks/gate.py --harm` measured on one section (`FAR_CONTRAST`), and for another stain.

Limits come from training patients who are left out in turn: those of laboratories that cut another patient's tissue,
too, where there are any. Of K of them, a new patient of these laboratories passes the largest by chance once in K + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.tissue.focus import COARSE

if TYPE_CHECKING:
    from histocrypt.tissue.stain import StainStatistics

WORDS = ("fine", "with care", "do not use")
"""Verdicts, the best first."""
MOST = 5.0
"""Deviations beyond which a feature counts no more: one that hardly varies in training would outweigh all others."""
LEAST_COLOUR = 5.0
"""CIELAB units: training sections that are more alike than this say nothing of how others may differ."""
LEAST_SHARPNESS = float(np.log(1.5))
"""The same of sharpness: a factor of 1.5."""
CENTRE_STEP = 0.1
"""Deviations to which the centre of training sections is rounded before others get it: it moves the shift by .03."""
FAR_COLOUR = 30.0
"""CIELAB units to the nearest training section beyond which nothing is H&E any more: another laboratory is 13 away, its
slides inverted 43."""
FAR_CONTRAST = float(np.log(4))
"""Coarse contrast so far below that of every training section, or fine contrast so far above it, is refused. On
HER2ST_C2 this lies between what costs a tenth of the correlation (blur by 2 pixels, pixels 2x finer than said: .7) and
what costs a quarter (4x finer: 2.4). Pixels 2x coarser than said lie 1 to 1.8 above, and cost .04 to .31."""
BROWN = 1.2
"""A second stain that absorbs so many times as much blue as green is brown. Eosin: .5 to .7, up to 1 where scanned
yellow; diaminobenzidine: 1.3 to 2."""
ARTEFACTS = {"pen": "lie under pen", "fold": "lie in folds", "out_of_focus": "are out of focus"}
"""What lies in the way of spots (`tissue.artefacts`), in words."""
FLAWED = 0.05
"""Share of flawed spots that is said of a slide: of eight real sections, 0 to 2 % are taken for folded, 0 for inked."""
BLURRED = 0.01
"""A spot below this quantile of every training section's sharpness is out of focus."""


@dataclass(frozen=True, eq=False)
class Look:
    """What a section looks like before it is standardised."""

    colour: np.ndarray
    """(6,) mean and deviation of tissue pixels in CIELAB."""
    sharpness: float
    """Median over spots; NaN: not looked at."""
    stained: bool
    """Whether two stains could be told apart in it."""
    blurred: float = float("nan")
    """`BLURRED` quantile of sharpness over spots."""
    coarse: float = float("nan")
    """Median over spots of sharpness in coarse squares; NaN: not looked at, as by models of earlier versions."""
    second: np.ndarray | None = None
    """(3,) optical density of the stain that absorbs less red, R, G, B, unit length; None: not estimated, not known."""
    features: np.ndarray | None = None
    """(d,) mean over spots of the features that the model reads; None for a model that reads tiles."""
    patient: str = ""
    laboratory: str = ""
    """Empty where it is not stated."""

    @classmethod
    def of(
        cls,
        stain: StainStatistics,
        sharpness: np.ndarray | None = None,
        features: np.ndarray | None = None,
        *,
        coarse: np.ndarray | None = None,
        patient: str = "",
        laboratory: str = "",
    ) -> Look:
        """Return the look of a section from its stain, its spots' sharpness (n,), fine and coarse, and features."""

        def quantile(values: np.ndarray | None, q: float) -> float:
            known = np.empty(0) if values is None else np.asarray(values, dtype=np.float64)
            known = known[np.isfinite(known)]
            return float(np.quantile(known, q)) if len(known) else float("nan")

        stained = stain.method != "default"
        return cls(
            np.concatenate([stain.lab_mean, stain.lab_sd]),
            quantile(sharpness, 0.5),
            stained,
            blurred=quantile(sharpness, BLURRED),
            coarse=quantile(coarse, 0.5),
            second=stain.stain_matrix[:, 1] if stained else None,
            features=None if features is None else np.asarray(features, dtype=np.float64).mean(axis=0),
            patient=patient,
            laboratory=laboratory,
        )

    @property
    def brown(self) -> bool:
        """Whether the second stain absorbs much more blue than green, as diaminobenzidine does: see `BROWN`."""
        return self.second is not None and bool(self.second[2] > BROWN * self.second[1])

    def to_dict(self) -> dict[str, Any]:
        """Return all but the features as plain JSON values."""

        def plain(value: float) -> float | None:
            return round(value, 4) if np.isfinite(value) else None

        return {
            "patient": self.patient,
            "laboratory": self.laboratory,
            "colour": [round(value, 3) for value in self.colour.tolist()],
            "sharpness": plain(self.sharpness),
            "blurred": plain(self.blurred),
            "coarse": plain(self.coarse),
            "stained": self.stained,
            "second": None if self.second is None else [round(value, 4) for value in self.second.tolist()],
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any], features: np.ndarray | None = None) -> Look:
        """Return what `to_dict` described."""
        given = {name: said.get(name) for name in ("sharpness", "blurred", "coarse")}  # earlier versions say no coarse
        numbers = {name: np.nan if value is None else float(value) for name, value in given.items()}
        colour = np.asarray(said["colour"], dtype=np.float64)
        second = None if said.get("second") is None else np.asarray(said["second"], dtype=np.float64).reshape(3)
        names = {"patient": said["patient"], "laboratory": said["laboratory"], "stained": bool(said["stained"])}
        return cls(colour, features=features, second=second, **numbers, **names)


@dataclass(frozen=True)
class Verdict:
    """The word on a slide, and why."""

    word: str
    """One of `WORDS`."""
    reasons: tuple[str, ...]
    """Clauses; empty where all is fine."""
    measured: dict[str, float] = field(default_factory=dict)
    """``shift``, ``colour``, ``sharpness``, ``coarse`` and their ``..._limit``, as far as they could be told."""

    @property
    def words(self) -> str:
        """The word with its reasons, e.g. ``with care: its colours are farther ...``."""
        return f"{self.word}: {'; '.join(self.reasons)}" if self.reasons else self.word

    def of_spots(self, flawed: Mapping[str, np.ndarray]) -> Verdict:
        """Return the verdict with what lies in the way of spots: more than `FLAWED` of them ask for care.

        ``flawed`` says by column of ``obs`` (`ARTEFACTS`) which (n,) spots are.
        """
        shares = {name: float(np.mean(which)) for name, which in flawed.items()}
        why = [f"{share:.0%} of its spots {ARTEFACTS[name]}" for name, share in shares.items() if share > FLAWED]
        word = WORDS[1] if why and self.word == WORDS[0] else self.word
        return Verdict(word, (*self.reasons, *why), {**self.measured, **shares})


@dataclass(frozen=True, eq=False)
class Gate:
    """What a model knows of its training sections."""

    looks: dict[str, Look]
    """By section."""
    sd: np.ndarray | None = None
    """(d,) deviation of features within training sections; None for a model that reads tiles."""
    centre: np.ndarray | None = None
    """(d,) mean over training sections, where those of single ones are not told: the shift is then measured from it."""
    centre_limit: float = float("nan")
    """Its limit, see `without_sections`."""

    def shift(self, look: Look, other: Look) -> float:
        """Return the shift between two sections; NaN for a model that reads tiles."""
        if self.sd is None or look.features is None or other.features is None:
            return float("nan")
        return self._moved(look.features, other.features)

    def _moved(self, one: np.ndarray, other: np.ndarray) -> float:
        """Return the root mean square over features of how far two means are apart, in deviations, cut off."""
        moved = np.abs(one - other) / np.maximum(self.sd, 1e-6)
        return float(np.sqrt(np.mean(np.minimum(moved, MOST) ** 2)))

    def distances(self, look: Look, of: list[Look]) -> dict[str, float]:
        """Return shift and colour to the nearest of other sections, and how far sharpness lies beyond theirs."""

        def beyond(name: str) -> float:
            own, others = getattr(look, name), [getattr(other, name) for other in of]
            return max(own - max(others), 0.0) + min(own - min(others), 0.0)

        return {
            "shift": min(self.shift(look, other) for other in of),
            "colour": min(float(np.linalg.norm(look.colour - other.colour)) for other in of),
            "sharpness": beyond("sharpness"),
            "coarse": beyond("coarse"),
        }

    @cached_property
    def calibration(self) -> list[str]:
        """Sections that limits come from: of patients who are not alone in their laboratory, else of all patients."""
        patients: dict[str, set[str]] = {}
        for look in self.looks.values():
            patients.setdefault(look.laboratory, set()).add(look.patient)
        shared = [name for name, one in self.looks.items() if one.laboratory and len(patients[one.laboratory]) > 1]
        alone = len({look.patient for look in self.looks.values()}) < 2
        return [] if alone else shared or list(self.looks)

    @cached_property
    def limits(self) -> dict[str, float]:
        """The largest distances of `calibration` sections to those of other patients; empty with one patient."""
        found = []
        for name in self.calibration:
            look = self.looks[name]
            found.append(self.distances(look, [one for one in self.looks.values() if one.patient != look.patient]))
        if not found:
            return {}
        least = {"shift": 0.0, "colour": LEAST_COLOUR, "sharpness": LEAST_SHARPNESS}
        return {name: max(low, *(abs(one[name]) for one in found)) for name, low in least.items()}

    @cached_property
    def in_focus(self) -> float:
        """Least sharpness of a spot that is in focus; NaN where training sections do not tell."""
        known = [look.blurred for look in self.looks.values() if np.isfinite(look.blurred)]
        return min(known, default=float("nan"))

    def judge(self, look: Look, *, reduced: bool = False) -> Verdict:
        """Return the verdict on a section that the model did not learn from.

        Parameters
        ----------
        look
            Of the section, at the resolution of the training sections' looks.
        reduced
            The model reduces tiles before it reads them, and fine contrast is lost to it in any case: that warns
            then, and refuses nothing.
        """
        others = list(self.looks.values())
        found = self.distances(look, others)
        least = {"colour": LEAST_COLOUR, "sharpness": LEAST_SHARPNESS}
        limits, worst, why = self.limits or least, 0, []
        if self.centre is not None and look.features is not None:
            found["shift"] = self._moved(look.features, self.centre)
            limits = {**limits, "shift": self.centre_limit}

        def say(grade: int, reason: str) -> None:
            nonlocal worst
            worst = max(worst, grade)
            why.append(reason)

        if not self.limits:
            say(1, "the model learnt from one patient, which says nothing of how others differ")
        if not look.stained and all(one.stained for one in others):
            say(2, "two stains cannot be told apart in it")
        if look.brown and all(one.second is not None and not one.brown for one in others):
            say(2, "its second stain is brown, not the pink of eosin: immunohistochemistry?")
        if found["colour"] > limits["colour"]:
            far = found["colour"] > FAR_COLOUR
            said = f"its colours differ by {found['colour']:.1f} CIELAB units from the nearest training section's"
            say(2 if far else 1, f"{said} (limit {limits['colour']:.1f}): another {'stain' if far else 'laboratory'}?")
        finer = "out of focus, or its pixels are finer than said"
        if found["coarse"] < -FAR_CONTRAST:
            than = f"{np.exp(-found['coarse']):.1f} times less than in training sections"
            say(1 if reduced else 2, f"its contrast over {COARSE} pixels is {than}: {finer}?")
        elif abs(found["sharpness"]) > limits["sharpness"]:
            less, factor = found["sharpness"] < 0, np.exp(abs(found["sharpness"]))
            said = f"its fine contrast is {factor:.1f} times {'less' if less else 'more'} than in training sections"
            far = found["sharpness"] > FAR_CONTRAST and not reduced
            say(2 if far else 1, f"{said}: {finer if less else 'pixels coarser than said'}?")
        if found["shift"] > limits.get("shift", np.inf):
            said = f"the features that the model reads have shifted by {found['shift']:.2f} deviations"
            say(1, f"{said} (limit {limits['shift']:.2f})")
        known = {name: value for name, value in found.items() if np.isfinite(value)}
        measured = {**known, **{f"{name}_limit": limits[name] for name in known if name in limits}}
        return Verdict(WORDS[worst], tuple(why), measured)

    def out_of_focus(self, sharpness: np.ndarray) -> np.ndarray:
        """Return (n,) bool: spots less sharp than nearly all of the training sections'; False where unknown."""
        return np.asarray(sharpness, dtype=np.float64) < self.in_focus

    def to_dict(self) -> dict[str, Any]:
        """Return what ``model.json`` holds."""
        return {name: look.to_dict() for name, look in self.looks.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Return what lies beside the weights: ``gate_means`` (sections, d), ``gate_sd`` (d,), float32; or nothing."""
        if self.sd is None:
            return {}
        means = np.stack([look.features for look in self.looks.values()])
        return {"gate_means": means.astype(np.float32), "gate_sd": self.sd.astype(np.float32)}

    def without_sections(self) -> dict[str, Any] | None:
        """Return what tells a shift and no section's mean; None where there are no features, or one patient.

        Returns
        -------
        dict
            ``centre``: (d,) mean of the sections' means, in deviations, rounded to `CENTRE_STEP`. ``sd``: (d,)
            deviations within sections, to three digits. ``limit``: the largest distance of `calibration` sections to
            the centre of the other patients'.
        """
        if self.sd is None or not self.calibration:
            return None
        found = []
        for name in self.calibration:
            rest = [one.features for one in self.looks.values() if one.patient != self.looks[name].patient]
            found.append(self._moved(self.looks[name].features, np.mean(rest, axis=0)))
        sd = np.array([float(f"{max(value, 1e-6):.3g}") for value in self.sd])
        centre = np.mean([look.features for look in self.looks.values()], axis=0) / sd
        steps = np.round(centre / CENTRE_STEP) * CENTRE_STEP
        return {"centre": steps.round(3).tolist(), "sd": sd.tolist(), "limit": round(max(found), 3)}

    @classmethod
    def from_told(cls, said: Mapping[str, Any], shift: Mapping[str, Any] | None) -> Gate:
        """Return what `without_names` and `without_sections` described."""
        gate = cls.from_dict(said, {})
        if shift is None:
            return gate
        sd = np.asarray(shift["sd"], dtype=np.float64)
        return cls(gate.looks, sd, np.asarray(shift["centre"], dtype=np.float64) * sd, float(shift["limit"]))

    @classmethod
    def from_dict(cls, said: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Gate:
        """Return what `to_dict` and `state` described."""
        means = state.get("gate_means")
        rows = [None] * len(said) if means is None else list(means.astype(np.float64))
        looks = {name: Look.from_dict(one, row) for (name, one), row in zip(said.items(), rows, strict=True)}
        sd = state.get("gate_sd")
        return cls(looks, None if sd is None else sd.astype(np.float64))


def without_names(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Gate.to_dict` made with sections, patients and laboratories numbered, for who need not know them."""
    numbers: dict[str, dict[str, str]] = {"patient": {"": ""}, "laboratory": {"": ""}}
    made = {}
    for at, look in enumerate(said.values()):
        told = {field: known.setdefault(look[field], f"{field} {len(known)}") for field, known in numbers.items()}
        made[f"section {at + 1}"] = {**look, **told}
    return made


def own_features(name: str) -> str:
    """Return the name of the features of spots themselves, without views and surroundings; "" where there are none."""
    from histocrypt.data.features import PLACES, parts_of, split_context

    own = [part for part in parts_of(name)[0] if not split_context(part)[1] and part != PLACES] if name else []
    return "+".join(own)
