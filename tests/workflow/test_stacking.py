"""Inner trainings and stacks run when, and only when, what they are made from has changed."""

import pytest
from tests.small_study import MODELS, SMALL, planned, planned_jobs, write_study


def jobs_of(small_run, folder, **changes):
    """Return how often each notebook would run for the shared small study with these changes."""
    study = write_study(folder, "small", **{"models": MODELS, **changes})
    return planned_jobs(planned(study, outputs=small_run))


@pytest.mark.parametrize(
    ("change", "runs", "stays"),
    [
        ({"epochs": 21}, {"40_stacking": 3, "70_evaluation": 1}, {"30_training", "38_inner_training"}),
        ({"inner_folds": 3}, {"38_inner_training": 3 * (1 + len(MODELS)), "40_stacking": 3}, {"30_training"}),
        ({"families": ["colour_ridge", "encoder_ridge"]}, {"38_inner_training": 3, "40_stacking": 3}, {"30_training"}),
    ],
)
def test_a_change_of_the_stack_trains_no_model_again(small_run, tmp_path, change, runs, stays):
    jobs = jobs_of(small_run, tmp_path, stacking={**SMALL["stacking"], **change})
    assert runs.items() <= jobs.items()
    assert not stays & set(jobs)


def test_a_change_of_one_model_is_followed_to_its_inner_trainings_and_no_others(small_run, tmp_path):
    jobs = jobs_of(small_run, tmp_path, models={**MODELS, "vision_mlp": {"width": 0.25, "epochs": 1}})
    assert {"30_training": 4, "38_inner_training": 3, "40_stacking": 3}.items() <= jobs.items()


def test_without_a_stack_nothing_is_stacked(small_run, tmp_path):
    jobs = jobs_of(small_run, tmp_path, stacking=None)
    assert "70_evaluation" in jobs
    assert not {"30_training", "38_inner_training", "40_stacking"} & set(jobs)


def test_the_stacks_are_scored_and_reported(small_run):
    page = (small_run / "small" / "report.html").read_text(encoding="utf-8")
    assert 'id="stacked"' in page
    assert "Stacks against each of their models" in page
    paired = (small_run / "small" / "evaluation" / "paired.csv").read_text()
    for pair in ("stacking_mlp,vision_mlp", "rank_average,vision_mlp", "stacking_mlp,rank_average"):
        assert pair in paired
