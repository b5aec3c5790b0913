"""The words of a privacy card: verdicts and the rule that gives them, who could ask, what a card does not cover."""

CHANCE = 0.5
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
"""The verdicts, the gravest first; the card's own is the gravest of its questions."""

RULE = (
    "A leak: the whole interval lies above what guessing gives. Signs: so it does, but it was drawn within patients, "
    "too few to tell membership from what else differs between them. No leak found by these attacks: the interval "
    "contains what guessing gives, or a share lies below it. Worse than guessing: an AUC lies below it, so the groups "
    "differ in something else. Not decided: no interval, a failed negative control, or nothing found where the "
    "positive control failed. On top stands the gravest answer of all questions: leak, signs, not decided, worse, not "
    "found. No answer means that a thing can be shared without risk."
)
"""How answers follow from figures; printed on every card."""

SIZES = ((2, 13), (3, 12), (5, 11), (10**9, 10.5))
"""Size of the letters in pixels by the number of questions: six fit on a page."""

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
"""By kind of thing; a card may add to it."""


def patients_of(count: int) -> str:
    """Return ``1 patient``, ``2 patients``."""
    return "1 patient" if count == 1 else f"{count} patients"
