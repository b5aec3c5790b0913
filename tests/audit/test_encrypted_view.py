"""Who learns what is read from the threat model itself, with the tests behind each claim."""

import ast

import pytest

from histocrypt import paths
from histocrypt.audit.predictors import who_learns_what
from histocrypt.errors import InputError


def test_every_claim_of_the_threat_model_names_tests_that_exist():
    claims = who_learns_what()
    assert {claim.party for claim in claims} == {"evaluator", "key owner", "another client", "a listener on the line"}
    hidden = [claim for claim in claims if not claim.learns]
    assert all(claim.tests for claim in hidden), "what a party does not learn is tested"
    for test in {test for claim in claims for test in claim.tests}:
        file, name = test.split("::")
        tree = ast.parse((paths.repository() / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test
    (pixels,) = (claim for claim in hidden if claim.claim.startswith("pixels"))
    assert pixels.party == "evaluator"
    assert len(pixels.tests) == 2
    (other,) = (claim for claim in claims if claim.party == "another client")
    assert len(other.tests) == 2
    assert "`" not in other.claim


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Nothing", "has no table"),
        (
            "`P` is `test_p.py`.\n## What each side learns\n\n| side | learns | does not |\n|---|---|---|\n"
            "| one | a (`Q::test_x`) | b |\n",
            "unknown file of tests 'Q'",
        ),
    ],
)
def test_a_document_that_does_not_say_it(tmp_path, text, said):
    (tmp_path / "model.md").write_text(text)
    with pytest.raises(InputError, match=said):
        who_learns_what(tmp_path / "model.md")
    with pytest.raises(InputError, match="cannot be read"):
        who_learns_what(tmp_path / "absent.md")
