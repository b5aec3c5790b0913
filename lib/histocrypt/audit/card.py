"""The privacy card: one page on one subject, for who decides whether it may be shared.

What it is, what was asked and who could ask it, each figure with its interval, the controls beside it, and what it
does not cover. The verdict follows from the figures by `RULE`, which is printed on the card.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.audit.controls import Controls
from histocrypt.audit.lower_bound import LowerBound
from histocrypt.audit.membership import FEWEST_PATIENTS, Judged
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from histocrypt.audit.memorisation import Memorised
    from histocrypt.audit.shadow import Procedure
    from histocrypt.study import Study

FORMAT, VERSION = "histocrypt privacy card", 2
LEAST_PLANTED = 0.9
"""Share of planted copies that has to be found."""
LEAK, SIGNS, UNDECIDED, BELOW, NOT_FOUND = "leak", "signs", "undecided", "below chance", "not found"
WORDS = {
    LEAK: "A leak was found",
    SIGNS: "Signs of a leak, in too few patients to be sure",
    UNDECIDED: "Not decided",
    BELOW: "Worse than guessing",
    NOT_FOUND: "No leak found by these attacks",
}
"""The verdicts, the gravest first; the card's own is the gravest of its questions', see `Card.verdict`."""
RULE = (
    "A leak: the whole interval lies above what guessing gives. Signs: so it does, but it was drawn within patients, "
    "too few to tell membership from what else differs between them, or does as well in more than one of 20 ways of "
    "dealing out the patients anew. No leak found by these attacks: the interval "
    "contains what guessing gives, or a share lies below it. Worse than guessing: an AUC lies below it, so the groups "
    "differ in something else. Not decided: no interval, a failed negative control, or nothing found where the "
    "positive control failed. Where several attacks ask the same of the same records, the strongest answers, and the "
    "intervals of all are widened so that they hold whichever is picked. On top stands the gravest answer of all "
    "questions that decide: leak, signs, not decided, worse, not found. Distances from synthetic to real images are a "
    "filter and decide nothing: what passes is not cleared by it, and what fails is cleared by nothing else. No answer "
    "means that a thing can be shared without risk."
)
"""How answers follow from figures; printed on every card."""
MOST_BY_LOT = 0.05
"""Share of deals that may do as well as the real membership, for a leak to be more than signs. With three patients on a
side intervals above a guess are met without any leak in about one of 12 cohorts, such deals in one of 20 at most
(docs/attacks.md)."""
RESTS = (
    "Distances are a filter, never a verdict: images that keep their distance can still tell who was in the set. The "
    "verdict rests on generators trained with and without each patient"
)
"""What stands beside the verdict on a synthetic set."""
SIZES = (13, 12.5, 12, 11.5, 11, 10.5, 10, 9.5, 9)
"""Of the letters, in pixels; the largest that fits on a page is taken."""
PAGE, QUESTION = 655_000, 35_000
"""What letter paper holds of a card, and what a question takes beside its letters: in letters times the square of their
size. Measured in a browser."""
WAS_IT = "Was this patient's section among those it was trained on?"
WHO = {
    "black box": "who may send it tiles and has measured values beside them, such as a client of a service",
    "white box": "who has the trained weights, such as the model's owner or anybody it was handed to",
    "synthetic set": "anybody who gets the synthetic images",
    "decrypted outputs": "the key owner, or who is given its decrypted predictions",
}
"""Who could ask, by what they hold."""
_EVERY = (
    "Attacks that are not listed here, and attackers who know more than is written beside each question.",
    "Patients of other centres or stains, and things trained on other patients: figures are of this one.",
    "What is said of a patient without telling membership, such as a gene's level read off a predicted map.",
)
DOES_NOT_COVER = {
    "predictor": (*_EVERY, "Reconstruction of slides from the weights."),
    "segmenter": (*_EVERY, "Reconstruction of slides from the weights."),
    "generator": (*_EVERY, "What its images show: the card of the synthetic set asks that."),
    "synthetic set": (*_EVERY, "Copies of parts of a tile, or of a patient's rare features, that no distance notices."),
}
"""By kind of subject; a card may add to it."""


SYNTHESIS = {
    "segmenter_real": ("segmenter", "Segmentation, trained on real tiles"),
    "segmenter_synthetic": ("segmenter", "Segmentation, trained on synthetic tiles"),
    "generator": ("generator", "Generator of tiles with masks"),
    "control": ("generator", "Generator of normal tiles"),
    "samples": ("synthetic set", "Synthetic tiles, as drawn"),
    "filtered": ("synthetic set", "Synthetic tiles, filtered"),
}
"""What ``synthesis/<fold>`` may hold: kind and title by the name of its folder."""


@dataclass(frozen=True)
class Figure:
    """A number with its interval and what guessing (or no memorisation) would give."""

    value: float
    low: float | None
    high: float | None
    measure: str = "AUC"
    chance: float = 0.5
    over: str = "patients"
    """What was drawn for the interval: ``patients``, or ``blocks``, ``records`` or ``images`` within them."""

    def __post_init__(self) -> None:
        """Refuse a figure that is no number; an interval without ends is none."""
        if not isfinite(self.value):
            raise InputError("is not a number", field=self.measure, value=self.value)
        if self.low is not None and self.high is not None and not isfinite(self.low + self.high):
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)

    @property
    def verdict(self) -> str:
        """See `RULE`; a control is not looked at here."""
        if self.low is None or self.high is None:
            return UNDECIDED
        if self.low > self.chance:
            return LEAK if self.over == "patients" else SIGNS
        return BELOW if self.high < self.chance and self.measure == "AUC" else NOT_FOUND


@dataclass(frozen=True)
class Control:
    """An attack whose outcome is known beforehand, run beside the real one."""

    name: str
    """E.g. ``overfitted on purpose`` or ``membership permuted``."""
    positive: bool
    """Whether there is a leak, planted, that had to be found; else there is none."""
    figure: Figure
    expected: str
    """What it had to give, in words: ``AUC of at least 0.9``."""
    passed: bool


@dataclass(frozen=True)
class Asked:
    """One question that was asked of the subject, and the answer."""

    question: str
    """A sentence, e.g. "Was this patient's section in the training set?"."""
    who: str
    """Who could ask it; see `WHO`."""
    access: str
    """What the asker holds: ``black box``, ``white box``, ``synthetic set`` or ``decrypted outputs``."""
    attack: str
    figure: Figure
    n: str
    """Of what the figure was made: ``408 spots of 3 patients against 269 of 2``."""
    controls: list[Control] = field(default_factory=list)
    also: dict[str, str] = field(default_factory=dict)
    """Further figures in words, by name: balanced accuracy, TPR at 1 % FPR."""
    notes: list[str] = field(default_factory=list)
    against: str = "same"
    """Whose non-members: ``same``, those of the members' own groups, or a key of `membership.judge_groups`."""
    by_lot: float | None = None
    """Share of deals of membership in which the best of such attacks does as well; None where none could be dealt."""
    decides: bool = True
    """Whether the card's verdict may rest on it; a distance is a filter, and another training is not the one asked."""

    @property
    def verdict(self) -> str:
        """See `RULE`."""
        failed = {control.positive for control in self.controls if not control.passed}
        verdict = self.figure.verdict
        if False in failed or (True in failed and verdict not in (LEAK, SIGNS)):
            return UNDECIDED
        if verdict == LEAK and self.by_lot is not None and self.by_lot > MOST_BY_LOT:
            return SIGNS
        return UNDECIDED if verdict == NOT_FOUND and not self.decides else verdict

    @property
    def asks(self) -> tuple[str, str, str, str, bool]:
        """What it has in common with other attacks that ask the same of the same records."""
        return self.question, self.access, self.against, self.n, self.decides

    @property
    def strength(self) -> tuple[bool, bool, float]:
        """What the strongest of such attacks is found by: a leak found, controls passed, the interval's lower end."""
        passed, low = all(control.passed for control in self.controls), self.figure.low
        return self.verdict in (LEAK, SIGNS), passed, -inf if low is None else low

    @property
    def positive(self) -> Control:
        """The control with a planted leak."""
        return next(control for control in self.controls if control.positive)

    @property
    def negative(self) -> Control:
        """The control without any leak."""
        return next(control for control in self.controls if not control.positive)


def ask_membership(judged: Judged, controls: Controls, *, access: str, attack: str, against: str = "same") -> Asked:
    """Return a question on membership with its figures, as they were judged; ``against`` as of `Asked`."""
    also = {
        "Balanced accuracy": _with_span(judged.balanced_accuracy, *judged.balanced_accuracy_interval),
        "Advantage, at most": _number(judged.advantage),
    }
    for rate, found in judged.tpr_at.items():
        if found is not None:
            also[f"Members found at {100 * float(rate):g} % false alarms"] = _with_span(*found)
    few = [f"{100 * float(rate):g}" for rate, found in judged.tpr_at.items() if found is None]
    if few:
        rates = " and ".join(filter(None, (", ".join(few[:-1]), few[-1])))
        also[f"Members found at {rates} % false alarms"] = "too few non-members to tell"
    n = (
        f"{judged.n_members:,} of {patients_of(judged.patients_members)} against "
        f"{judged.n_non_members:,} of {patients_of(judged.patients_non_members)}"
    )
    if controls.negative.p_value is not None:
        also["Membership permuted among patients"] = f"p = {controls.negative.p_value:.2g}"
    figure = Figure(judged.auc, *judged.auc_interval, over=judged.interval_over)
    notes = [note for note in (*judged.notes, *controls.notes) if not note.startswith("No TPR")]  # said above
    return Asked(WAS_IT, WHO[access], access, attack, figure, n, both(controls), also, notes, against)


def ask_procedure(found: Procedure, controls: Controls, *, access: str, attack: str) -> Asked:
    """Return a question on a way of training, asked of shadow models in turn."""
    figure = Figure(found.auc, *found.interval, over=found.interval_over)
    n = f"{len(found.aucs)} trainings on halves of {patients_of(found.patients)}"
    also = {"Single trainings": f"AUC {_number(float(min(found.aucs)))} to {_number(float(max(found.aucs)))}"}
    notes = [*(note for note in found.notes if not note.startswith(n)), *controls.notes]
    question = "If this training were repeated, would it tell who took part?"
    return Asked(question, WHO[access], access, attack, figure, n, both(controls), also, notes)


def ask_memorised(found: Memorised, planted: Memorised, unseen: Memorised, *, what: str) -> Asked:
    """Return the question whether synthetic images are copies.

    Parameters
    ----------
    found
        Of the audited set.
    planted
        Of copies of training images: the positive control.
    unseen
        Of real images of other patients than the threshold was set on: the negative control.
    what
        Which features the nearness is in, e.g. ``the reconstruction network's features``.
    """
    copied = _with_span(found.share_patients, *found.share_patients_interval)
    other, expected = _share(unseen), f"a share of at least {LEAST_PLANTED}"
    controls = [
        Control("planted copies", True, _share(planted), expected, planted.share_samples >= LEAST_PLANTED),  # noqa: FBT003
        Control("real images of other patients", False, other, "no more than chance", other.verdict == NOT_FOUND),  # noqa: FBT003
    ]
    return Asked(
        question="Are synthetic images copies of training images?",
        who=WHO["synthetic set"],
        access="synthetic set",
        attack=f"Share nearer to a training image than another patient's tissue is, in {what}",
        figure=_share(found),
        n=f"{len(found.nearest):,} images against {patients_of(found.patients)}",
        controls=controls,
        also={"Training patients so copied": f"{copied}, by chance {_number(found.expected_patients)}"},
        notes=list(found.notes),
        decides=False,
    )


def _share(found: Memorised) -> Figure:
    """Return the share of copies; its interval is over images where that over patients does not settle it.

    A generator that copies two of four patients gives an interval over patients that reaches down to nothing.
    """
    from scipy.stats import binomtest

    low, high = found.share_samples_interval
    over = "patients"
    if found.patients < FEWEST_PATIENTS or low <= found.expected_samples:
        copied, n = int(found.nearest["copied"].sum()), len(found.nearest)
        exact = binomtest(copied, n).proportion_ci(0.95, method="exact")
        low, high, over = float(exact.low), float(exact.high), "images"
    return Figure(found.share_samples, low, high, "Share copied", found.expected_samples, over)


def both(controls: Controls) -> list[Control]:
    """Return the two controls of an attack as a card shows them."""
    positive, negative = controls.positive, controls.negative
    planted = Figure(positive.auc, *positive.auc_interval, over=positive.interval_over)
    dealt = Figure(negative.auc, *negative.interval)
    permuted = f"membership permuted by {negative.by}"
    return [
        Control("overfitted on purpose", True, planted, "an AUC of at least 0.9", controls.positive_passed),  # noqa: FBT003
        Control(permuted, False, dealt, "an interval that contains 0.5", controls.negative_passed),  # noqa: FBT003
    ]


@dataclass(frozen=True)
class Card:
    """Everything that the page says.

    Raises
    ------
    InputError
        If nothing was asked; a question has no control; or the card of a synthetic set has no figure on memorisation.
    """

    thing: str
    """The subject's name in the run folder."""
    kind: str
    """``predictor``, ``segmenter``, ``generator`` or ``synthetic set``."""
    title: str
    what: str
    """A sentence or two: what it is, learned from whom, how many."""
    study: str
    fold: str
    questions: list[Asked]
    does_not_cover: list[str]
    notes: list[str] = field(default_factory=list)
    date: str = ""
    bound: LowerBound | None = None
    """What its training gives away of a patient at least; None: not asked. No verdict follows from it."""
    promised: str = ""
    """What differential privacy promises, in words; empty: nothing."""

    def __post_init__(self) -> None:
        """Refuse a card that would say less than it must."""
        where = {"file": self.thing, "field": "questions"}
        if not self.questions:
            raise InputError("no attack was run, so there is no result", **where)
        bare = next((asked.attack for asked in self.questions if not asked.controls), None)
        if bare is not None:
            fix = "run a positive and a negative control beside it"
            raise InputError("a result without a control means nothing", **where, value=bare, fix=fix)
        if self.kind == "synthetic set" and all(asked.figure.measure == "AUC" for asked in self.questions):
            expected = "a share of samples or patients that were copied"
            raise InputError("a synthetic set comes with a figure on memorisation", **where, expected=expected)

    @property
    def verdict(self) -> str:
        """The gravest verdict of the questions that decide, each as its strongest attack answers it; see `RULE`."""
        answers = [attacks[0] for attacks in self.families]
        said = [asked.verdict for asked in answers if asked.decides]
        held_back = any(asked.verdict in (LEAK, SIGNS) for asked in answers if not asked.decides)
        return min([*said, *([UNDECIDED] if held_back or not said else [])], key=list(WORDS).index)

    @property
    def rests(self) -> str:
        """A sentence or two on what the verdict on a synthetic set rests on; nothing for other kinds."""
        if self.kind != "synthetic set":
            return ""
        trained = any(asked.decides for asked in self.questions)
        return f"{RESTS}." if trained else f"{RESTS}; none were trained, hence nothing is decided."

    @property
    def families(self) -> list[list[Asked]]:
        """Attacks that ask the same of the same records, the strongest first; in the order of the questions."""
        found: dict[tuple[str, ...], list[Asked]] = {}
        for asked in self.questions:
            found.setdefault(asked.asks, []).append(asked)
        return [sorted(attacks, key=lambda asked: asked.strength, reverse=True) for attacks in found.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, verdicts included, as JSON can hold it."""
        content = asdict(self)
        for asked, said in zip(self.questions, content["questions"], strict=True):
            said["verdict"] = asked.verdict
        said = {"verdict": self.verdict, "rests": self.rests, "rule": RULE}
        return {"format": FORMAT, "version": VERSION, **content, **said}

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each question, for tables and the report."""
        return [
            {
                "kind": self.kind,
                "thing": self.thing,
                "title": self.title,
                "attack": asked.attack,
                "access": asked.access,
                "measure": asked.figure.measure,
                "value": asked.figure.value,
                "low": asked.figure.low,
                "high": asked.figure.high,
                "chance": asked.figure.chance,
                "interval_over": asked.figure.over,
                "n": asked.n,
                "verdict": asked.verdict,
                "decides": asked.decides,
                "strongest": any(asked is attacks[0] for attacks in self.families),
                "positive_control": asked.positive.figure.value,
                "positive_passed": asked.positive.passed,
                "negative_low": asked.negative.figure.low,
                "negative_high": asked.negative.figure.high,
                "negative_passed": asked.negative.passed,
            }
            for asked in self.questions
        ]


def card_path(folder: Path, subject: str) -> Path:
    """Return where the card of a subject lies in an audit's folder."""
    return folder / f"privacy_card_{subject}.html"


def write_card(path: str | Path, card: Card) -> Path:
    """Write the card as one self-contained page, and as JSON of the same name beside it; atomically.

    Raises
    ------
    InputError
        If the name does not end in ``.html``.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    path = Path(path)
    if path.suffix != ".html":
        raise InputError(
            "a card is an HTML page", file=path, expected="a name that ends in .html, e.g. privacy_card.html"
        )
    loader = FileSystemLoader(Path(__file__).parent)
    settings = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    page = partial(
        Environment(loader=loader, **settings).get_template("privacy_card.html").render,
        card=card,
        notes=list(dict.fromkeys([*card.notes, *(note for asked in card.questions for note in asked.notes)])),
        words=WORDS,
        who=WHO,
        rule=RULE,
        leak=LEAK,
        number=_number,
        span=_span,
        x=_place,
        least=_least,
    )
    letters = len(" ".join(re.sub("<[^>]*>", "", page(size=SIZES[0]).partition("<body>")[2]).split()))
    write_json(path.with_suffix(".json"), card.to_dict())
    room = PAGE - QUESTION * len(card.families)
    write_text(path, page(size=next((px for px in SIZES if letters * px**2 <= room), SIZES[-1])))
    return path


def read_card(path: str | Path) -> Card:
    """Read the JSON of a card.

    Raises
    ------
    InputError
        If it is no card, of another version, or its verdicts do not follow from its figures.
    """
    content = read_json(path)
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        expected = f"the JSON that {write_card.__name__} writes"
        raise InputError("is not a privacy card of this version", file=path, expected=expected)
    try:
        bound = None if content["bound"] is None else LowerBound(**content["bound"])
        questions = [_asked(asked) for asked in content["questions"]]
        card = Card(**{**_known(Card, content), "questions": questions, "bound": bound})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"lacks a part of a privacy card ({' '.join(str(error).split())})", file=path) from error
    if card.to_dict() != content:
        raise InputError(
            "has a verdict that does not follow from its figures, or an unknown field",
            file=path,
            field="verdict",
            value=content.get("verdict"),
            expected=card.verdict,
        )
    return card


def read_cards(study: Study, folder: Path) -> dict[str, Card]:
    """Return the cards of an audit's folder by subject: predictors in the study's order, then what is made of tiles.

    Raises
    ------
    InputError
        If there is none at all, or one is not what `write_card` writes.
    """
    predictors = study.model_names if study.audit.models == "all" else study.audit.models
    paths = {name: card_path(folder, name).with_suffix(".json") for name in (*predictors, *SYNTHESIS)}
    cards = {name: read_card(path) for name, path in paths.items() if path.is_file()}
    if not cards:
        raise InputError("nothing was audited", file=folder, fix="run 62_membership_audit")
    return cards


def _asked(content: dict[str, Any]) -> Asked:
    controls = [Control(**{**control, "figure": Figure(**control["figure"])}) for control in content["controls"]]
    return Asked(**{**_known(Asked, content), "figure": Figure(**content["figure"]), "controls": controls})


def _known(kind: type, content: dict[str, Any]) -> dict[str, Any]:
    return {one.name: content[one.name] for one in fields(kind)}


def patients_of(count: int) -> str:
    """Return ``1 patient``, ``2 patients``."""
    return "1 patient" if count == 1 else f"{count} patients"


def _number(value: float | None) -> str:
    """Return a number for readers; what is nearly 1 is not shown as 1."""
    if value is None:
        return "\u2013"
    return f"{value:.3f}" if 0.99 <= value < 0.9995 else f"{value:.2f}".replace("-", "\u2212")


def _with_span(value: float, low: float, high: float) -> str:
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _span(figure: Figure) -> str:
    return "no interval" if figure.low is None else f"{_number(figure.low)} to {_number(figure.high)}"


def _least(figure: Figure) -> float:
    """Return where the axis begins: AUCs far below guessing hardly occur."""
    return 0.25 if figure.measure == "AUC" else 0.0


def _place(value: float, figure: Figure) -> float:
    """Return where a value lies on an axis of width 100 that ends at 1."""
    least = _least(figure)
    return round(100 * min(max((value - least) / (1 - least), 0.0), 1.0), 1)
