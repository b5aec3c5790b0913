"""What a run leaves in ``run.json``, however it ends."""

import json
import subprocess

import pytest

from histocrypt.errors import InputError
from histocrypt.machine import git_state
from histocrypt.study import parse_study
from histocrypt.workflow.measure import measured
from histocrypt.workflow.record import INTERRUPTED, is_running, read_record, recorded

PROFILE = "workflow/profiles/local"


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    content = {"name": "s", "seed": 7, "sections": [{"path": "nowhere"}], "models": {"resnet18": {}}}
    study = parse_study(content)
    study.run.logs.mkdir(parents=True)
    return study


@pytest.fixture
def run(study):
    """Return the function that makes a run of jobs, each a name or a name and what it does, that ends with a code."""

    def run(*jobs, code=0, study=study):
        def work():
            for job in jobs:
                name, act = (job, lambda: None) if isinstance(job, str) else job
                values = dict(zip(("notebook", "model", "fold"), name.split("__"), strict=False))
                try:
                    measured(study.run.logs / f"{name}.log", values, act)
                except (ValueError, KeyboardInterrupt):
                    continue
            return code

        from histocrypt import paths

        given = {"genes_shown": "4"}
        assert recorded(work, study, profile=paths.repository() / PROFILE, until=None, parameters=given) == code
        return read_record(study.run.root)

    return run


def fail():
    raise ValueError


def test_a_run_says_what_it_ran_with(run, study):
    record = run("10_eda", "30_training__resnet18__fold_1")
    assert (record.study, record.hash, record.outcome, record.jobs) == ("s", study.hash(), "finished", 2)
    assert (record.profile, record.parameters, record.seeds["seed"]) == (PROFILE, {"genes_shown": "4"}, 7)
    assert {"python", "torch", "snakemake"} <= set(record.versions)
    assert record.machine["cores"] >= 1 < record.machine["memory_gib"]
    assert record.begun.tzinfo is not None
    assert record.ended >= record.begun
    eda, training = record.stages
    assert (eda.job, training.model, training.fold) == ("10_eda", "resnet18", "fold_1")
    assert training.peak_gib > 0
    assert training.outcome == "finished"


def test_nothing_in_it_tells_the_host_or_the_user(run, study):
    import getpass
    import platform

    run("10_eda")
    content = json.loads(study.run.record.read_text())
    words = set(json.dumps(content).replace('"', " ").replace("/", " ").replace(",", " ").split())
    assert not {platform.node(), str(study.run.root)} & words
    assert getpass.getuser() == "root" or getpass.getuser() not in words


def test_while_it_runs_it_says_so_and_a_kill_leaves_interrupted(run, study):
    import fcntl

    states = []

    def look():
        with (study.run.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            states.append((read_record(study.run.root).outcome, is_running(study.run.root)))
        states.append(read_record(study.run.root).outcome)  # as if it had been killed

    run(("10_eda", look))
    assert states == [("running", True), "interrupted"]


def test_a_failed_job_is_named_and_the_others_keep_their_records(run):
    first = run("10_eda", ("30_training__resnet18__fold_1", fail), code=1)
    assert (first.outcome, first.failed) == ("failed", ["30_training__resnet18__fold_1"])
    again = run("30_training__resnet18__fold_1", "70_evaluation")
    assert (again.outcome, again.failed, again.jobs) == ("finished", [], 2)
    assert [one.outcome for one in again.history] == ["failed"]
    assert {stage.job for stage in again.stages} == {"10_eda", "30_training__resnet18__fold_1", "70_evaluation"}
    assert next(stage for stage in again.stages if stage.job == "10_eda") == first.stages[0]


def test_a_job_that_is_tried_again_says_so(run):
    record = run(("10_eda", fail), "10_eda", "70_evaluation")
    assert [(stage.job, stage.outcome, stage.attempt) for stage in record.stages] == [
        ("10_eda", "finished", 2),
        ("70_evaluation", "finished", 1),
    ]
    later = run("10_eda")
    assert next(stage for stage in later.stages if stage.job == "10_eda").attempt == 1


def test_ctrl_c_is_no_failure(run):
    record = run("10_eda", ("70_evaluation", fail), code=INTERRUPTED)
    assert (record.outcome, record.failed) == ("interrupted", [])
    assert [stage.outcome for stage in record.stages] == ["finished", "interrupted"]
    later = run("30_training__resnet18__final")
    assert {stage.job: stage.outcome for stage in later.stages}["70_evaluation"] == "interrupted"


def test_a_run_with_nothing_to_do_adds_a_line_and_changes_nothing_else(run):
    first = run("10_eda", "70_evaluation")
    again = run()
    assert again.model_copy(update={"history": []}) == first
    assert [(one.jobs, one.outcome) for one in again.history] == [(0, "finished")]


def test_a_folder_that_was_finished_before_runs_were_recorded_gets_no_commit(run):
    record = run()
    assert record.git == {"commit": None, "note": "made before runs were recorded"}
    assert (record.versions, record.jobs, record.outcome) == ({}, 0, "finished")
    assert run("10_eda").versions


def test_what_the_study_no_longer_has_is_left_out(run, study):
    run("10_eda", "30_training__resnet18__fold_1")
    smaller = study.model_copy(update={"models": {}})
    record = run("70_evaluation", study=smaller)
    assert [stage.job for stage in record.stages] == ["10_eda", "70_evaluation"]


def test_a_broken_record_is_one_sentence_and_keeps_no_run_from_starting(run, study):
    run("10_eda")
    study.run.record.write_text('{"study": ')
    with pytest.raises(InputError, match=r"run\.json: is not readable as JSON"):
        read_record(study.run.root)
    study.run.record.write_text('{"study": "s"}')
    with pytest.raises(InputError, match=r"run\.json: hash: is not the record of a run"):
        read_record(study.run.root)
    assert [stage.job for stage in run("70_evaluation").stages] == ["10_eda", "70_evaluation"]
    study.run.record.unlink()
    with pytest.raises(InputError, match=r"has no run\.json"):
        read_record(study.run.root)


def test_scores_that_are_the_same_have_the_same_fingerprint(run, study):
    study.run.evaluation.mkdir()
    (study.run.evaluation / "summary.csv").write_text("model,pearson\nm,0.1\n")
    first = run("70_evaluation").artifacts
    assert list(first) == ["evaluation/summary.csv"]
    (study.run.evaluation / "summary.csv").write_text("model,pearson\nm,0.2\n")
    assert run("70_evaluation").artifacts != first


def test_the_state_of_a_checkout(tmp_path):
    assert git_state(tmp_path) == {"commit": None, "note": "not a git checkout"}
    (tmp_path / "a").write_text("1")
    for arguments in (["init", "-q"], ["add", "a"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True, "changed": ["a"]}
