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


def _claim(party: str, verb: str, claim: str, *tests: str) -> Claim:
    named = (test.split("::") for test in tests)
    return Claim(
        party, verb == "learns", claim, tuple(f"tests/encrypted/{FILES[letter]}::{name}" for letter, name in named)
    )


CLAIMS = (
    _claim(
        "evaluator",
        "learns",
        "that a client is there, when, from which address; how many messages a section takes (in the form single two "
        "for each spot, else one for some hundred places); which model was asked; how fast the client sends; whether "
        "its response was refused, if it is told; what it computed from each spot, if predictions are shown to it",
    ),
    _claim(
        "evaluator",
        "does not learn",
        "pixels, outputs, names, coordinates or order of spots, as long as no prediction is shown to it",
        "P::test_request_tells_no_names",
        "A::test_no_secret_key_and_no_pixel_in_the_servers_memory",
    ),
    _claim(
        "evaluator",
        "does not learn",
        "whether two ciphertexts hold the same spot",
        "A::test_ciphertexts_look_like_noise",
    ),
    _claim(
        "key owner",
        "learns",
        "outputs for its own spots; the public part: kind of network, depth, scheme parameters, needed rotations "
        "(which tell of strides and widths), panel, ranges of inputs and outputs, stain reference of the training "
        "slides, study name, hash of the weights; of their trust what stands below under *What the public part gives "
        "away*",
    ),
    _claim(
        "key owner",
        "does not learn",
        "weights, intermediate layers: slots that hold no output hold copies of outputs or nothing, which is checked "
        "on every result",
        "A::test_spare_slots_hold_copies_alone",
    ),
    _claim(
        "another client",
        "learns",
        "nothing: sessions have unguessable names and belong to the token that opened them, messages are bound to a "
        "key",
        "S::test_two_clients_at_once",
        "S::test_replayed_in_another_session",
    ),
    _claim(
        "a listener on the line",
        "learns",
        "with TLS: sizes and times. Without: ciphertexts and the token, so plain HTTP is refused but for this machine",
        "L::test_addresses",
    ),
)


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
