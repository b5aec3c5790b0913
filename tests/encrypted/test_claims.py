"""Who learns what: the threat model's table is the library's, and every test that it names is there."""

import ast
import re

import pytest

from histocrypt import paths
from histocrypt.encrypted.claims import FILES, markdown_table, who_learns_what

DOCUMENT = (paths.repository() / "docs" / "threat_model.md").read_text(encoding="utf-8")


def functions_in(file: str) -> set[str]:
    tree = ast.parse((paths.repository() / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_claims_name_tests_that_exist():
    claims = who_learns_what()
    assert {claim.party for claim in claims} == {"evaluator", "key owner", "another client", "a listener on the line"}
    assert all(claim.tests for claim in claims if not claim.learns), "what a party does not learn is tested"
    for test in {test for claim in claims for test in claim.tests}:
        file, name = test.split("::")
        assert name in functions_in(file), test


def test_the_threat_model_has_the_table():
    assert f"## What each side learns\n\n{markdown_table()}\n\n" in DOCUMENT


@pytest.mark.parametrize("letter", FILES)
def test_the_threat_model_names_tests_that_exist(letter):
    assert f"`{letter}` is `{FILES[letter]}`" in DOCUMENT.replace("\n", " ")
    named = set(re.findall(rf"`{letter}::(\w+)`", DOCUMENT))
    assert named
    assert named <= functions_in(f"tests/encrypted/{FILES[letter]}")
