"""A study whose sections were held out, not its patients, says so wherever a number is shown."""

import dataclasses

from histocrypt.evaluation.wording import answer, compare, limits, terms


def test_what_sections_held_out_do_not_say_is_said(scored):
    _, scores = scored
    by_section = dataclasses.replace(scores, notes={**scores.notes, "scheme": "leave_one_section_out"})
    caveat = "Other sections of the tested patient were trained on: nothing here is said about a new patient."
    assert caveat in answer(by_section)
    assert caveat in limits(by_section)
    assert "sections it never saw, of patients that it did see" in answer(by_section)[0]
    assert compare(by_section, "resnet18", "colour_ridge", "log1p_cp10k").endswith("of 6 sections.")
    assert caveat not in [*answer(scores), *limits(scores)]
    assert compare(scores, "resnet18", "colour_ridge", "log1p_cp10k").endswith("of 2 patients.")


def test_the_words_follow_the_panel():
    assert (terms(None, "").many, terms(None, "").unit) == ("genes", "patient")
    assert terms("obsm:types", "leave_one_section_out").many == "cell types"
    assert terms("obsm:types", "leave_one_section_out").by_section
