"""The report's section on the run that made it."""

import base64
import json

import pytest

from histocrypt import paths
from histocrypt.report.parts import shown_run
from histocrypt.workflow.record import recorded
from histocrypt.workflow.runs import this_run

TOOK = {
    "20_preprocessing__S_A": (60.0, 1.0),
    "20_preprocessing__S_B": (120.0, 2.5),
    "30_training__vision_mlp__fold_A": (600.0, 1.5),
    "30_training__gone__fold_A": (9999.0, 99.0),
}


def leave(study, took):
    """Leave the record of a run whose jobs took so long and so much."""

    def work():
        study.run.stages.mkdir(parents=True, exist_ok=True)
        for job, (seconds, peak) in took.items():
            notebook, *of = job.split("__")
            stage = {"job": job, "notebook": notebook, "model": of[0] if len(of) == 2 else None, "outcome": "finished"}
            stage |= {"begun": "2026-01-01T00:00:00Z", "seconds": seconds, "cpu_seconds": seconds, "peak_gib": peak}
            (study.run.stages / f"{job}.json").write_text(json.dumps(stage))
        return 0

    recorded(work, study, profile=paths.repository() / "workflow/profiles/local", until=None, parameters={})


def test_a_run_without_a_record_has_no_section(fresh):
    assert this_run(fresh) is None


def test_jobs_of_a_stage_are_added_up_and_what_the_study_no_longer_has_is_left_out(fresh):
    leave(fresh, TOOK)
    content = shown_run(fresh, this_run(fresh))
    assert [(row["name"], row["jobs"], row["time"], row["slowest"], row["memory"]) for row in content["rows"]] == [
        ("20_preprocessing", 2, "3 min", "2 min", "2.50 GiB"),
        ("30_training, VisionMLP (multi-scale CNN)", 1, "10 min", "10 min", "1.50 GiB"),
    ]
    assert (content["jobs"], content["total"], content["most"]) == (3, "13 min", "2.50 GiB")
    picture = base64.b64decode(content["picture"].split(",")[1]).decode()
    assert picture.count("<svg") == 1
    assert content["about"]["study"].startswith(f"hash {fresh.hash()}")


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: file.write_text("{")])
def test_a_record_that_is_gone_or_broken_does_not_keep_the_report_from_being_written(fresh, spoil):
    leave(fresh, TOOK)
    spoil(fresh.run.record)
    assert this_run(fresh) is None


def test_a_record_of_another_state_of_the_study_is_not_shown(fresh):
    leave(fresh, TOOK)
    assert this_run(fresh.model_copy(update={"seed": 99})) is None
