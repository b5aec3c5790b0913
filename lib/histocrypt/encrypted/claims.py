"""Who learns what of an encrypted inference, and which tests stand behind it.

The table of ``docs/threat_model.md`` is what `markdown_table` gives; a test compares the two, and looks for the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

FILES = {
    "P": "test_two_parties.py",
    "S": "test_service.py",
    "L": "test_server_limits.py",
    "C": "test_connections.py",
    "N": "test_answer_noise.py",
    "A": "test_attacks.py",
    "K": "test_key_recovery.py",
    "D": "test_decrypted_audit.py",
}
"""Letters of the threat model to files of ``tests/encrypted``."""


@dataclass(frozen=True)
class Claim:
    """One thing that the threat model says of a party."""

    party: str
    learns: bool
    """Whether the party learns it, or does not."""
    claim: str
    tests: tuple[str, ...] = ()
    """``tests/encrypted/<file>::<test>``: what is behind it; empty where nothing is but the text."""
    brief: str = ""
    """The claim on a card, for who knows no cryptography."""
    against: str = ""
    """Against whom it holds; of what is learnt, who learns it, where not every one of the party does."""


def _claim(party: str, verb: str, claim: str, *tests: str, brief: str, against: str = "") -> Claim:
    named = (test.split("::") for test in tests)
    files = tuple(f"tests/encrypted/{FILES[letter]}::{name}" for letter, name in named)
    return Claim(party, verb == "learns", claim, files, brief, against)


HONEST = "an operator that computes as agreed and looks at all it gets"
LIAR = "an operator that sends back what it likes"
EITHER = "any operator, also one that sends back what it likes"


CLAIMS = (
    _claim(
        "evaluator",
        "learns",
        "that a client is there, when, from which address; how many messages a section takes (in the form single two "
        "for each spot, else one for some hundred places); which model was asked; how fast the client sends; whether "
        "its response was refused, if it is told; what it computed from each spot, if predictions are shown to it",
        brief="that a hospital asks, when, from where, how much, how fast; whether its answer was refused, if told",
    ),
    _claim(
        "evaluator",
        "does not learn",
        "pixels, outputs, names, coordinates or order of spots, as long as no prediction is shown to it",
        "P::test_request_tells_no_names",
        "A::test_no_secret_key_and_no_pixel_in_the_servers_memory",
        brief="the slide, its predictions, and names and places of spots, as long as no prediction is shown to it",
        against=EITHER,
    ),
    _claim(
        "evaluator",
        "does not learn",
        "whether two ciphertexts hold the same spot",
        "A::test_ciphertexts_look_like_noise",
        brief="whether two messages hold the same spot",
        against=EITHER,
    ),
    _claim(
        "key owner",
        "learns",
        "outputs for its own spots; the public part: kind of network, depth, scheme parameters, needed rotations "
        "(which tell of strides and widths), panel, ranges of inputs and outputs, stain reference of the training "
        "slides, study name, hash of the weights; of their trust what stands below under *What the public part gives "
        "away*",
        brief="predictions for its own slide, and the model's public part",
    ),
    _claim(
        "key owner",
        "does not learn",
        "weights, intermediate layers: slots that hold no output hold copies of outputs or nothing, which is checked "
        "on every result",
        "A::test_spare_slots_hold_copies_alone",
        brief="weights and inner layers, from what stands beside the predictions in an answer",
        against="a hospital that sends slides; for one that makes up its inputs see Taking the model by asking",
    ),
    _claim(
        "another client",
        "learns",
        "nothing: sessions have unguessable names and belong to the token that opened them, messages are bound to a "
        "key",
        "S::test_two_clients_at_once",
        "S::test_replayed_in_another_session",
        brief="nothing of a hospital that is not its own",
        against="a hospital that has a token of its own",
    ),
    _claim(
        "a listener on the line",
        "learns",
        "with TLS: sizes and times. Without: ciphertexts and the token, so plain HTTP is refused but for this machine",
        "L::test_addresses",
        brief="sizes and times, where the line is secured by TLS",
        against="who reads the line",
    ),
)


SHOWN = (
    _claim(
        "evaluator",
        "learns",
        "the predictions, where they come back to it with the noise that is added by default",
        "P::test_noise_is_added_before_results_are_shared",
        brief="the predictions; the hospital's secret key too, where it asked for no noise",
        against=HONEST,
    ),
    _claim(
        "evaluator",
        "learns",
        "whatever it computed from the slide, where predictions come back to it",
        "K::test_a_consistent_lie_shows_pixels_to_who_sees_the_predictions",
        brief="pixels of the slide, hidden in the predictions",
        against=LIAR,
    ),
    _claim(
        "evaluator",
        "learns",
        "the secret key, where predictions of the form single come back to it",
        "K::test_single_results_forged_alike_are_not_for_the_evaluator",
        "K::test_single_results_multiplied_by_the_key_agree",
        brief="the hospital's secret key, where spots are sent one by one",
        against=LIAR,
    ),
)
"""What changes once decrypted predictions are shown to the evaluator: *A curious evaluator and a lying one*."""


def who_learns_what() -> list[Claim]:
    """Return what each party of an encrypted inference learns, and what it does not, claim by claim."""
    return list(CLAIMS)


def markdown_table() -> str:
    """Return the claims as the table of the threat model, a row for each party."""
    letter = {file: letter for letter, file in FILES.items()}

    def cell(claims: list[Claim]) -> str:
        said = []
        for one in claims:
            named = (test.removeprefix("tests/encrypted/").split("::") for test in one.tests)
            tests = ", ".join(f"`{letter[file]}::{name}`" for file, name in named)
            said.append(f"{one.claim} ({tests})" if tests else one.claim)
        return ", ".join(said)

    lines = ["| side | learns | does not learn |", "|---|---|---|"]
    for party, of_party in groupby(CLAIMS, key=lambda one: one.party):
        claims = list(of_party)
        learned, hidden = (cell([one for one in claims if one.learns is learns]) for learns in (True, False))
        lines.append(f"| {party} | {learned} | {hidden} |".replace("|  |", "| |"))
    return "\n".join(lines)
