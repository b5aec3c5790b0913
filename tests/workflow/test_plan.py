"""A plan says what a run then does."""

import fcntl
import json
import re
import shutil
import threading

import pytest
import yaml
from tests.small_study import MODELS, WINGS, histocrypt, planned, planned_jobs, write_study

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.study import load_study
from histocrypt.workflow.run import only_one

SLURM = paths.repository() / "workflow" / "profiles" / "slurm"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Return an outputs folder in which nothing has run, and the study of the run that all tests share."""
    folder = tmp_path_factory.mktemp("plan")
    return folder, write_study(folder, "small", models=MODELS, **WINGS)


def test_a_plan_made_before_anything_ran_names_every_notebook_of_the_run(fresh, small_run):
    outputs, study = fresh
    said = histocrypt("run", study, "--dry-run", outputs=outputs)
    assert said.returncode == 0, said.stderr
    ran = [path.stem.partition("__")[0] for path in (small_run / "small" / "notebooks").glob("*.ipynb")]
    assert planned_jobs(said.stdout) == {name: ran.count(name) for name in ran}
    assert list(outputs.iterdir()) == [study], "a plan leaves nothing"
    assert re.search(r"\d+ jobs, about [\d.]+ core-hours", said.stdout)
    assert re.search(r"peak memory of a job: [\d.]+ GiB", said.stdout)
    assert re.search(r"disk, when finished: about [\d.]+ GB", said.stdout)


def test_a_plan_for_a_cluster_can_be_made_anywhere(fresh):
    outputs, study = fresh
    plan = ("run", study, "--dry-run", "--until", "30_training", "--profile", SLURM)
    said = histocrypt(*plan, "--json", outputs=outputs)
    assert said.returncode == 0, said.stderr
    found, longest = json.loads(said.stdout), {}
    for job in found["jobs"]:
        longest[job["notebook"]] = max(job["seconds"], longest.get(job["notebook"], 0))
    assert {job["threads"] for job in found["jobs"] if job["notebook"] == "30_training"} == {1, 8}  # the profile's
    assert "70_evaluation" not in longest
    assert found["cores"] is None
    assert found["seconds"] == sum(longest.values()), "every job starts as soon as those before it have ended"


def test_what_a_profile_sets_for_a_stage_holds_for_all_of_its_jobs(fresh, tmp_path):
    outputs, study = fresh
    sets = {"set-resources": ["train:mem_mb=7168", "22_folds:mem_mb=3072*attempt"], "set-threads": ["eda=2"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sets))
    said = planned(study, "--until", "30_training", "--profile", tmp_path, outputs=outputs)
    asked = {line.split()[0]: line.split()[2:5:2] for line in said.splitlines() if re.match(r"\d\d_", line)}
    assert asked["30_training"] == ["1", "7.0"]
    assert asked["22_folds"] == ["1", "3.0"]
    assert asked["10_eda"][0] == "2"


def test_a_finished_run_has_an_empty_plan(small_run):
    said = planned(small_run / "small.yaml", outputs=small_run)
    assert "nothing to do" in said
    assert planned_jobs(said) == {}


def test_two_may_plan_at_once_and_none_while_the_study_runs(small_run, tmp_path):
    shutil.copytree(small_run / "small", tmp_path / "small", symlinks=True)
    with (tmp_path / "small" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert "nothing to do" in planned(small_run / "small.yaml", outputs=tmp_path)
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError) as beside_a_run:
            planned(small_run / "small.yaml", outputs=tmp_path)
        assert beside_a_run.value.file == tmp_path / "small"


def test_a_run_waits_for_a_plan_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    study = load_study(write_study(tmp_path, "small"))
    study.run.root.mkdir()
    with (study.run.root / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        plan_ends = threading.Timer(0.5, fcntl.flock, (held, fcntl.LOCK_UN))
        plan_ends.start()
        with only_one(study):
            assert plan_ends.finished.is_set()
            with pytest.raises(InputError), only_one(study):
                pass


def test_a_plan_says_why(small_run, tmp_path):
    changed = write_study(tmp_path, "small", models=MODELS, **WINGS, panel={"size": 11})
    said = planned(changed, outputs=small_run)
    assert re.search(r"^22_folds .* settings changed$", said, flags=re.MULTILINE)
    assert re.search(r"^30_training .* follows$", said, flags=re.MULTILINE)


def test_a_run_folder_that_was_moved_still_knows_its_settings(small_run, tmp_path):
    shutil.copytree(small_run / "small", tmp_path / "small", symlinks=True)
    changed = write_study(tmp_path, "small", models=MODELS, **WINGS, panel={"size": 11})
    listed = planned_jobs(said := planned(changed, outputs=tmp_path))
    assert re.search(r"^22_folds .* settings changed$", said, flags=re.MULTILINE)
    assert not {"10_eda", "20_preprocessing"} & set(listed)


def test_bad_sections_are_found_by_the_plan(tmp_path, tiny_section):
    first, second = tiny_section(tmp_path, "A", patient="P1"), tiny_section(tmp_path, "B", patient="P2")
    second.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    (tmp_path / "bad.yaml").write_text(f"name: bad\nsections: [{{path: {first}}}, {{path: {second}}}]\n")
    with pytest.raises(InputError) as found:
        planned(tmp_path / "bad.yaml", outputs=tmp_path / "out")
    assert found.value.file == second


def test_ids_that_look_like_numbers_or_hold_a_separator_are_jobs_of_their_own(tmp_path, tiny_section):
    ids = ["151673", "1e5", "p__1", "None"]
    files = [tiny_section(tmp_path, name, patient=f"P{number}") for number, name in enumerate(ids)]
    sections = [{"path": str(file), "id": name} for file, name in zip(files, ids, strict=True)]
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump({"name": "odd", "sections": sections}))
    said = planned(tmp_path / "odd.yaml", "--until", "20_preprocessing", outputs=tmp_path / "out")
    assert planned_jobs(said) == {"10_eda": 1, "20_preprocessing": 4}
