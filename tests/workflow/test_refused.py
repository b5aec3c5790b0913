"""A study that only the list of its sections shows to be wrong ends in one sentence, before anything is trained."""

import pytest
from tests.small_study import WINGS, histocrypt, planned, write_study

from histocrypt.errors import InputError
from histocrypt.workflow.progress import refused

KNOWN = "unknown fold 'fold_9'; expected one of fold_1, fold_2, fold_3; did you mean 'fold_3'?"
WRONG = {
    "audit": {"models": ["encoder_ridge"], "shadowed": [], "fold": "fold_9"},
    "synthesis": {**WINGS["synthesis"], "fold": "fold_9"},
}


@pytest.mark.parametrize("part", WRONG)
def test_a_plan_names_the_fold_that_there_is_not(part, tmp_path):
    study = write_study(tmp_path, "wrong", **{part: WRONG[part]})
    with pytest.raises(InputError) as found:
        planned(study, outputs=tmp_path)
    assert str(found.value) == f"{part}.fold: {KNOWN}"


def test_a_run_names_the_fold_before_its_first_job(tmp_path):
    study = write_study(tmp_path, "wrong", **WRONG, demo={"sections": 3, "spots_per_side": 6, "genes": 40})
    said = histocrypt("run", study, outputs=tmp_path)
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].endswith(f".fold: {KNOWN}")
    assert not (tmp_path / "wrong" / "notebooks").exists()


def test_the_sentence_is_found_in_what_snakemake_says():
    said = (
        'InputFunctionException in rule audit in file "S", line 4:\nError:\n'
        "  InputError: a.fold: unknown.\nWildcards:\n"
    )
    assert refused(said) == "a.fold: unknown."
    assert refused("Error in rule audit:\n    message: None\n") is None
