"""What was made by other code than is here is kept, and said."""

import json
import subprocess

import pytest

from histocrypt.paths import RunFolder
from histocrypt.workflow.record import notice

BEGUN = "2020-01-01T00:00:00Z"


def git(folder, *arguments):
    own = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *own, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """Return a checkout with one commit, and its name."""
    folder = tmp_path / "checkout"
    for name in ("lib", "docs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "text").write_text("first")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder, git(folder, "rev-parse", "HEAD")


def stage(run: RunFolder, job: str, commit: str, outcome: str = "finished") -> None:
    run.root.mkdir(exist_ok=True)
    about = {"hash": "", "outcome": "finished", "begun": BEGUN, "profile": "", "git": {}, "versions": {}}
    record = {**about, "study": "study", "seeds": {}, "machine": {}, "stages": []}
    if run.record.is_file():
        record = json.loads(run.record.read_text())
    own = {"job": job, "notebook": job, "outcome": outcome, "begun": BEGUN, "commit": commit}
    record["stages"] = [*(one for one in record["stages"] if one["job"] != job), own]
    run.record.write_text(json.dumps(record))


def test_only_what_other_code_made_is_said(checkout, tmp_path):
    (folder, first), run = checkout, RunFolder(tmp_path / "run")
    assert notice(run, checkout=folder) is None
    stage(run, "10_eda", first)
    stage(run, "22_folds", first)
    assert notice(run, checkout=folder) is None
    (folder / "docs" / "text").write_text("words")
    git(folder, "commit", "-qam", "docs")
    assert notice(run, checkout=folder) is None, "no result depends on a page"
    (folder / "lib" / "text").write_text("second")
    said = notice(run, checkout=folder)
    assert said.startswith(f"2 of 2 finished stages were made by other code (commit {first[:7]})")
    assert str(run.notebooks) in said
    git(folder, "commit", "-qam", "second")
    stage(run, "22_folds", git(folder, "rev-parse", "HEAD"))
    stage(run, "70_evaluation", first, outcome="failed")
    assert notice(run, checkout=folder).startswith("1 of 2 ")


@pytest.mark.parametrize("commit", ["0" * 40, "{first}-dirty"])
def test_what_cannot_be_compared_counts_as_other(checkout, tmp_path, commit):
    (folder, first), run = checkout, RunFolder(tmp_path / "run")
    stage(run, "10_eda", commit.format(first=first))
    assert "1 of 1" in notice(run, checkout=folder)


def test_without_git_nothing_is_said(tmp_path):
    stage(RunFolder(tmp_path), "10_eda", "0" * 40)
    assert notice(RunFolder(tmp_path), checkout=tmp_path) is None
