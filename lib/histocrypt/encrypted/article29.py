"""Singling out, linkability, inference: three questions of data protection, answered by the figures that bear on them.

Source: Article 29 Data Protection Working Party, Opinion 05/2014 on Anonymisation Techniques (WP 216), 2.2.2. Each is
asked of two groups: patients whose slides a hospital sends, and patients whose slides the model learnt from. That
somebody took part in the training is taken for an inference: it is a fact about a person whom one knows already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histocrypt.encrypted.claims import EITHER
from histocrypt.encrypted.service_parts import (
    Answer,
    Attribute,
    Encryption,
    Figure,
    Guessed,
    Learns,
    Membership,
    Question,
    Returned,
    Service,
    Trust,
)

if TYPE_CHECKING:
    from histocrypt.trust.gate import Gate

SENT, TRAINED = "Patients whose slides are sent", "Patients whom the model learnt from"
POSSIBLE, SIGNS, UNDECIDED, NOT_ASKED, DESIGN, NOT_FOUND, PREVENTED = (
    "possible",
    "signs of it",
    "not decided",
    "not asked",
    "by design",
    "not found",
    "prevented",
)
VERDICTS = {
    POSSIBLE: "a figure shows it, or the make of the service does",
    SIGNS: "figures point to it, from too few patients to be sure",
    UNDECIDED: "it was asked, and the figures do not tell",
    NOT_ASKED: "no figure bears on it",
    DESIGN: "it is what the service is for",
    NOT_FOUND: "it was asked, and these attacks found nothing",
    PREVENTED: "by encryption, under the assumptions on this card",
}
"""What each verdict means, the gravest first; that of a question is the gravest of its answers."""
OF_AUDIT = {"leak": POSSIBLE, "signs": SIGNS, "undecided": UNDECIDED, "below chance": UNDECIDED, "not found": NOT_FOUND}
"""Verdicts of an audit in these words."""
MEANS = {
    "Singling out": "Can a person's records be picked out?",
    "Linkability": "Can two records of one person be joined?",
    "Inference": "Can a fact about a person be deduced?",
}


def three_questions(
    *,
    service: Service,
    encryption: Encryption,
    parties: list[Learns],
    returned: Returned | None,
    attributes: list[Attribute],
    membership: Membership,
    trust: Trust,
    gate: Gate | None,
    **_: object,
) -> list[Question]:
    """Return the three questions with an answer for each group.

    Parameters
    ----------
    service, encryption, parties, returned, attributes, membership, trust
        Parts of the card.
    gate
        What the public part tells of single training slides; None where its owner kept it back.
    """
    answers = {
        "Singling out": [_hidden(parties, encryption, returned), _own_line(gate)],
        "Linkability": [_unlinked(), _same_patient(gate)],
        "Inference": [_predicted(service, trust, attributes), _took_part(membership)],
    }
    return [
        Question(
            name=name,
            means=MEANS[name],
            verdict=min((one.verdict for one in own), key=list(VERDICTS).index),
            answers=own,
        )
        for name, own in answers.items()
    ]


def _answer(who: str, verdict: str, words: str) -> Answer:
    return Answer(who=who, verdict=verdict, words=words)


def _hidden(parties: list[Learns], encryption: Encryption, returned: Returned | None) -> Answer:
    tests = {test for one in parties if one.party == "The operator" and not one.learns for test in one.tests}
    words = (
        "The operator gets encrypted messages alone and can pick nobody out of them, as long as no decrypted "
        f"prediction is shown to it. Holds against {EITHER} ({encryption.security_bits} bits; "
        f"{len(tests)} tests try it)."
    )
    if returned is None:
        return _answer(SENT, PREVENTED, words)
    words += (
        f" A decoder finds {_share(returned.ciphertext)} of {returned.tiles} tiles from ciphertexts, a guess "
        f"{returned.chance:.1%}; from the same features in the clear it finds {_share(returned.clear)}."
    )
    return _answer(SENT, POSSIBLE if returned.ciphertext[1] > returned.chance else PREVENTED, words)


def _share(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.1%} ({found[1]:.1%} to {found[2]:.1%})"


def _own_line(gate: Gate | None) -> Answer:
    if gate is None:
        words = (
            "The public part has no line for single slides. Whether its ranges and mean stain single one out was not "
            "asked."
        )
        return _answer(TRAINED, NOT_ASKED, words)
    apart = _apart(gate, same=False)
    nearest = "" if apart is None else f", and other patients' lines at least {apart[0]:.1f} CIELAB units away"
    words = (
        f"The public part has a line of colours for each of {len(gate.looks)} training slides: who holds such a slide "
        f"finds its line at distance 0{nearest}. The owner can keep these lines back (--no-looks)."
    )
    return _answer(TRAINED, POSSIBLE, words)


def _unlinked() -> Answer:
    words = (
        "The operator cannot tell whether two messages hold the same tissue, and keys are new for each slide. It can "
        "tell which requests come from one hospital, by token and address."
    )
    return _answer(SENT, PREVENTED, words)


def _same_patient(gate: Gate | None) -> Answer:
    if gate is None:
        return _answer(TRAINED, NOT_ASKED, "The public part has no line for single slides; nothing else was asked.")
    own, other = _apart(gate, same=True), _apart(gate, same=False)
    if own is None:
        words = (
            "Each patient has one line in the public part, so none can be joined there. Whether a further slide of a "
            "patient can be joined to it was not asked."
        )
        return _answer(TRAINED, NOT_ASKED, words)
    beside = "" if other is None else f"; to the nearest line of another patient it is {other[0]:.1f} or more"
    words = (
        "The public part says which lines are of one patient. From a slide to the nearest other line of its patient it "
        f"is {own[0]:.1f} to {own[1]:.1f} CIELAB units{beside}: a further slide of a known patient may be joined."
    )
    return _answer(TRAINED, POSSIBLE, words)


def _apart(gate: Gate, *, same: bool) -> tuple[float, float] | None:
    """Return how far slides lie from the nearest other line of their own patient, or of another: least and most."""
    looks = [look for look in gate.looks.values() if look.patient]
    found = []
    for look in looks:
        rest = [one for one in looks if one is not look and (one.patient == look.patient) is same]
        if rest:
            found.append(min(float(np.linalg.norm(look.colour - one.colour)) for one in rest))
    return (min(found), max(found)) if found else None


def _predicted(service: Service, trust: Trust, attributes: list[Attribute]) -> Answer:
    first = trust.genes[0] if trust.genes else None
    worth = "" if first is None or first.trusted is None else f", of which {first.trusted} are worth trusting"
    words = f"For the hospital alone: {service.genes} genes for each spot{worth}."
    if not attributes:
        return _answer(SENT, DESIGN, f"{words} What else follows about a patient, such as a subtype: not asked.")
    best = attributes[0]
    what = f"the {best.attribute} {best.value} of {best.patients} patients"
    if best.outputs is None or best.image is None:
        return _answer(SENT, DESIGN, f"{words} Whether {what} follows from them: too few to ask.")
    failed = "" if best.controls_passed else "; a control failed"
    words += (
        f" From them {what} is guessed with {_auc(best.outputs)}, from the slide itself {_auc(best.image)}{failed}."
    )
    above = best.controls_passed and best.outputs.low is not None and best.outputs.low > 0.5
    sure = best.outputs.p_value is not None and best.outputs.p_value <= 0.05
    return _answer(SENT, (POSSIBLE if sure else SIGNS) if above else DESIGN, words)


def _auc(guessed: Guessed) -> str:
    span = "no interval" if None in (guessed.low, guessed.high) else f"{guessed.low:.2f} to {guessed.high:.2f}"
    return f"AUC {_number(guessed.auc)} ({span})"


def _took_part(membership: Membership) -> Answer:
    if not membership.asked:
        return _answer(TRAINED, NOT_ASKED, f"Whether a known patient took part: not asked ({membership.of}).")
    strongest = membership.figures[0]
    words = (
        "Whether a known patient took part can be asked by who also holds their slide with measured values: "
        f"{figure_words(strongest)}."
    )
    return _answer(TRAINED, OF_AUDIT.get(strongest.verdict, UNDECIDED), words)


def figure_words(figure: Figure) -> str:
    """Return a figure of an audit in words: ``AUC 0.83 (0.59 to 1.00) by loss threshold``."""
    ends = (figure.low, figure.high)
    span = "no interval" if None in ends else " to ".join(map(_number, ends))
    failed = "" if figure.controls_passed else "; a control failed"
    guess = f"where guessing gives {_number(figure.chance)}"
    return f"{figure.measure} {_number(figure.value)} ({span}), {guess}, by {figure.attack}{failed}"


def _number(value: float) -> str:
    """Return a number for readers; what is nearly 1 is not shown as 1."""
    return f"{value:.3f}" if 0.99 <= value < 0.9995 else f"{value:.2f}"
