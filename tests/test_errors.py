"""The one error that a user can mend."""

import pytest

from histocrypt.errors import InputError, unknown_name


def test_an_error_says_where_what_and_how_to_mend_it():
    error = InputError("is out of range", file="a.yaml", field="size", value=0, expected="1 or more", fix="set it to 1")
    assert str(error) == "a.yaml: size: is out of range (found 0); expected 1 or more; set it to 1."


def test_an_unknown_name_lists_the_known_ones_and_guesses():
    error = unknown_name("fold", "fold_11", ["fold_2", "fold_1"], field="audit.fold")
    assert str(error) == "audit.fold: unknown fold 'fold_11'; expected one of fold_1, fold_2; did you mean 'fold_1'?"


@pytest.mark.parametrize("file", [None, "theirs.json"])
def test_an_error_is_said_of_a_file_that_only_the_caller_knows(file):
    error = InputError("is out of range", file=file, field="size", value=0, expected="1 or more", fix="set it to 1")
    assert str(error.of_file("mine.yaml", fix="train again")) == (
        "mine.yaml: size: is out of range (found 0); expected 1 or more; set it to 1."
    )


def test_a_fix_is_added_where_the_error_names_none():
    error = InputError("is not whole", field="weights")
    assert str(error.of_file("model", fix="train again")) == "model: weights: is not whole; train again."
    assert str(error.of_file("model")) == "model: weights: is not whole."
