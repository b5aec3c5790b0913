"""Runs that are stopped, killed, refused or given bad input: what is kept, and what is said.

Those that compare with an undisturbed run stand last, since it may still be made by another worker.
"""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
from tests.small_study import MODELS, SMALL, environment, histocrypt, interruptible, write_study

from histocrypt.predictors.registry import BASELINES
from histocrypt.workflow.record import read_record

THREE = {"demo": {**SMALL["demo"], "sections": 3}}
"""As many sections as there are folds: enough where nothing is compared with the run that all tests share."""


def _kill_tree(pid: int) -> None:
    import psutil

    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    psutil.wait_procs(family, timeout=30)


def test_a_parameter_reaches_the_notebook_that_knows_it(tmp_path, demo_tissue):
    demo_tissue(tmp_path / "parameter" / "demo_tissue", sections=3)
    study = write_study(tmp_path, "parameter", **THREE)
    finished = histocrypt("run", study, "--cores", "1", "--until", "10_eda", "-p", "genes_shown", "4", outputs=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert not (tmp_path / "parameter" / "folds.json").exists()
    notebook = nbformat.read(tmp_path / "parameter" / "notebooks" / "10_eda.ipynb", as_version=4)
    injected = next(cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert "genes_shown = 4" in injected.source


def test_bad_input_inside_a_notebook_is_one_sentence_and_exit_2(tmp_path, demo_tissue):
    demo_tissue(tmp_path / "bad" / "demo_tissue", sections=3)
    study = write_study(tmp_path, "bad", **THREE, preprocessing={"min_counts": 10**9, "tile_px": 60})
    failed = histocrypt("run", study, "--cores", "2", "--until", "20_preprocessing", outputs=tmp_path)
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    assert "20_preprocessing" in failed.stderr
    assert "low depth" in failed.stderr or "counts" in failed.stderr
    record = read_record(tmp_path / "bad")
    assert record.outcome == "failed"
    assert record.failed
    assert all(job.startswith("20_preprocessing__") for job in record.failed)


def test_two_runs_of_one_study_at_once_are_refused(tmp_path):
    study = write_study(tmp_path, "twice", **THREE)
    command = [sys.executable, "-m", "histocrypt", "run", str(study), "--cores", "1", "--until", "10_eda"]
    first = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    try:
        assert "10_eda" in first.stdout.readline()
        second = histocrypt("run", study, "--cores", "1", outputs=tmp_path)
        assert second.returncode == 2
        assert "already running" in second.stderr
        assert first.wait(timeout=1200) == 0
    finally:
        if first.poll() is None:
            _kill_tree(first.pid)
        first.stdout.close()
    listed = json.loads((tmp_path / "twice" / "eda" / "summary.json").read_text())
    assert len(listed["sections"]) == 3


def test_a_missing_section_is_one_sentence(tmp_path):
    (tmp_path / "missing.yaml").write_text("name: missing\nsections:\n  - path: nowhere/x.h5ad\n")
    found = histocrypt("run", tmp_path / "missing.yaml", outputs=tmp_path)
    assert found.returncode == 2
    assert "nowhere/x.h5ad: no such file or folder" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["kill", "ctrl_c"])
def test_a_stopped_run_stops_its_jobs_and_keeps_what_is_done(request, tmp_path, demo_tissue, stop):
    import psutil

    study, run = write_study(tmp_path, "small"), tmp_path / "small"
    demo_tissue(run / "demo_tissue")
    command = [sys.executable, "-m", "histocrypt", "run", str(study), "--cores", "1"]
    process = subprocess.Popen(
        command,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    line = ""
    while "20_preprocessing" not in line or "done in" not in line:
        line = process.stdout.readline()
        assert line, "the run ended before it could be interrupted"
    jobs = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(stop)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "what was finished is kept" in said
    _, alive = psutil.wait_procs(jobs, timeout=60)
    assert not alive
    kept = {path: path.stat().st_mtime_ns for path in run.glob("notebooks/20_*.ipynb")}
    assert kept
    assert not list(run.glob("tiles/*partial*"))
    record = read_record(run)
    assert (record.outcome, record.failed) == ("interrupted", [])
    assert {path.stem for path in kept} == {stage.job for stage in record.stages if stage.outcome == "finished"}
    if stop == signal.SIGTERM:
        return  # one more run once is enough
    finished = histocrypt("run", study, "--cores", "2", "--until", "22_folds", outputs=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
    small_run = request.getfixturevalue("small_run")
    for pattern, number in (("stain/*.json", 6), ("folds/**/*.json", 12)):
        files = sorted(run.glob(pattern))
        assert len(files) >= number
        for file in files:
            assert filecmp.cmp(file, small_run / "small" / file.relative_to(run), shallow=False), file


def test_a_run_killed_midway_goes_on_and_ends_the_same(request, tmp_path, demo_tissue):
    """Kill everything during training; the next run finishes, and its models and scores equal the undisturbed run's."""
    models = {"vision_mlp": MODELS["vision_mlp"]}  # beside the baselines: one that is trained by epochs is enough
    study = write_study(tmp_path, "small", models=models, stacking=None)
    command = [sys.executable, "-m", "histocrypt", "run", str(study), "--cores", "2"]
    run = tmp_path / "small"
    demo_tissue(run / "demo_tissue")
    process = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 1800
    while not list(run.glob("notebooks/30_training__*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    _kill_tree(process.pid)
    executed = sorted(run.glob("notebooks/*.ipynb"), key=lambda path: path.stat().st_mtime_ns)
    kept = {path: path.stat().st_mtime_ns for path in executed[:-2]}  # of the last two, Snakemake may not know it yet
    assert len(kept) > 5
    assert not (run / "report.html").exists()

    finished = histocrypt("run", study, "--cores", "2", outputs=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
    undisturbed = request.getfixturevalue("small_run") / "small"  # of more models; not waited for before
    scores, expected = (pd.read_csv(one / "evaluation/summary.csv").set_index("model") for one in (run, undisturbed))
    trained = sorted(run.glob("models/*/*/weights.safetensors"))
    assert {path.parent.parent.name for path in trained} == {*BASELINES, *models}
    for weights in trained:
        assert filecmp.cmp(weights, undisturbed / weights.relative_to(run), shallow=False), weights
    names = scores.index.unique()
    pd.testing.assert_frame_equal(scores.loc[names], expected.loc[names])
