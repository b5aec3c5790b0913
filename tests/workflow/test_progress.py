"""What is told of a run while it runs, read from what Snakemake and its executors print."""

import subprocess
import sys

import pytest

from histocrypt.workflow import progress as progress_module
from histocrypt.workflow.progress import Progress, parse

LOG = "/run/logs/30_training__resnet18__fold_1.log"
STARTED = {"event": "job_info", "job": 7, "log": [LOG], "resources": {"mem_mb": 900, "expected_s": 60}, "text": ""}
FINISHED = {"event": "job_finished", "job": 7, "text": ""}
SUBMITTED = {
    "event": None,
    "text": "Job 7 has been submitted with SLURM jobid 12"
    " (log: /run/logs/slurm/rule_30_training__resnet18__fold_1/12.log).",
}
FAILED = {
    "event": "job_error",
    "job": 7,
    "log": [LOG, "/run/logs/slurm/12.log"],
    "message": "SLURM-job '12' failed, SLURM status is: 'OUT_OF_MEMORY'. Detailed failure reason unavailable.",
    "text": "",
}
AGAIN = {"event": None, "text": "Trying to restart job 7."}
REFUSED = FAILED | {
    "log": [LOG],
    "message": "SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: fast'."
    "For further error details see the cluster/cloud log and the log files of the involved rule(s).",
}


def told(*events: dict, progress: Progress | None = None) -> list[str]:
    progress = progress or Progress()
    return [news for event in events if (news := progress.take(event))]


def test_a_run_on_this_machine():
    progress = Progress()
    progress.take({"event": "run_info", "stats": {"train": 51, "evaluate": 1, "all": 1, "total": 53}})
    assert told(STARTED, FINISHED, progress=progress) == ["30_training resnet18 fold_1 done in 0 s  (1 of 52)"]
    progress.take({"event": "progress", "done": 1, "total": 61})
    assert progress.total == 60, "a checkpoint may add jobs; targets are none"


def test_a_job_of_a_cluster_is_named_like_its_notebook():
    first, last = told(SUBMITTED, FINISHED)
    assert first == "30_training resnet18 fold_1 submitted, SLURM job 12"
    assert last.startswith("30_training resnet18 fold_1 done in 0 s")
    (last,) = told(STARTED, SUBMITTED, FINISHED)
    assert last.startswith("30_training resnet18 fold_1 done"), "named once, where both are said"


def test_a_job_that_succeeds_when_it_is_tried_again_has_not_failed():
    progress = Progress()
    news = told(SUBMITTED, FAILED, AGAIN, SUBMITTED, progress=progress)
    assert news[1:3] == [
        "30_training resnet18 fold_1 failed (OUT_OF_MEMORY)",
        "30_training resnet18 fold_1 is tried once more, with twice the memory and time",
    ]
    assert not progress.failed


def test_a_job_that_fails_twice_has_failed_once():
    progress = Progress()
    told(STARTED, FAILED, AGAIN, STARTED, FAILED, progress=progress)
    (failure,) = progress.failed.values()
    assert (str(failure.log), failure.slurm, failure.memory_mb) == (LOG, "OUT_OF_MEMORY", 900)


def test_a_job_whose_step_was_ended_for_its_memory(tmp_path):
    log = tmp_path / "12.log"
    log.write_text("x\nslurmstepd-n1: error: StepId=12.0 exceeded memory limit (267402240 > 262144000), being killed\n")
    message = FAILED["message"].replace("OUT_OF_MEMORY", "FAILED")
    progress = Progress()
    told(FAILED | {"log": [LOG, str(log)], "message": message}, progress=progress)
    (failure,) = progress.failed.values()
    assert failure.slurm == "OUT_OF_MEMORY"


def test_a_job_that_slurm_does_not_take():
    progress = Progress()
    told(REFUSED, progress=progress)
    (failure,) = progress.failed.values()
    assert failure.refused == "sbatch: error: invalid partition specified: fast"


def test_time_left_is_what_was_expected_scaled_by_what_was_measured(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    progress = Progress({"a": 10.0, "b": 10.0, "c": 20.0})
    assert progress.left() is None
    progress.take({"event": "run_info", "stats": {"a": 1, "b": 1, "c": 1, "total": 3}})
    job = {"event": "job_info", "resources": {}}
    progress.take(job | {"job": 1, "log": ["a.log"]})
    assert progress.left() == (0, 40), "as expected, while nothing is measured"
    now = 20.0
    progress.take({"event": "job_finished", "job": 1})
    assert progress.left() == (20 / 80, 60), "all takes twice as long"
    progress.take(job | {"job": 2, "log": ["b.log"]})
    progress.take(job | {"job": 3, "log": ["c.log"]})
    now = 30.0
    share, left = progress.left()
    assert share == pytest.approx(40 / 80)
    assert left == pytest.approx(40 / (40 / 30)), "two run side by side by now"
    now = 40.0
    progress.take({"event": "job_finished", "job": 2})
    assert progress.left()[1] == pytest.approx(20), "the last job alone runs to its end, however many ran before"


def test_the_first_estimate_knows_how_many_jobs_run_side_by_side():
    progress = Progress({"a": 10.0, "b": 10.0, "c": 20.0})
    progress.take({"event": "run_info", "stats": {"a": 1, "b": 1, "c": 1, "total": 3}})
    for number, name in enumerate("ab"):
        progress.take({"event": "job_info", "resources": {}, "job": number, "log": [f"{name}.log"]})
    assert progress.left()[1] == pytest.approx(20, abs=0.1)


def test_snakemake_finds_the_plugin_and_says_what_is_read(tmp_path):
    rule = 'rule {name}:\n    output: "{name}.txt"\n    log: "logs/{name}.log"\n    shell: "{command}"\n'
    rules = [rule.format(name="good", command="touch {output}"), rule.format(name="bad", command="false")]
    (tmp_path / "Snakefile").write_text("\n".join(['rule all:\n    input: "good.txt", "bad.txt"\n', *rules]))
    command = [sys.executable, "-m", "snakemake", "--logger=histocrypt", "--cores", "1", "--keep-going"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr
    events = [parse(line) for line in said.splitlines()]
    progress = Progress()
    news = told(*events, progress=progress)
    assert progress.total == 2
    assert sorted(" ".join(line.split()[:2]) for line in news) == ["bad failed", "good done"]
    assert any("Job stats" in event["text"] for event in events)
