"""After every fault, one more run finishes, and what it leaves equals what an undisturbed run left.

Tests that take minutes: ``pytest -m slow tests/workflow/test_faults.py``. More faults are in `test_run` (killed, Ctrl-C
and two at once) and in `test_intact` (half a file of every kind).
"""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.small_study import environment, histocrypt, interruptible, planned, planned_jobs, write_study

TINY = {"demo": {"sections": 3, "spots_per_side": 8, "genes": 60}, "stacking": None, "models": {}}
"""Three sections of three patients, and the baselines."""


def half(path):
    content = path.read_bytes()
    path.unlink()  # copies of a run share their files
    path.write_bytes(content[: len(content) // 2])


def copy_of(outputs, copy, name):
    """Copy a finished run to an outputs folder of its own, which knows nothing of the original."""
    # All else is replaced, never written into; what another worker is writing into the cache may be gone any moment.
    in_place = shutil.ignore_patterns("logs", ".snakemake", ".lock", ".*.partial*")
    for folder in (name, "cache"):
        shutil.copytree(outputs / folder, copy / folder, ignore=in_place, copy_function=os.link)
    shutil.copy(outputs / f"{name}.yaml", copy)
    return copy


def assert_same(run, undisturbed, *, models="*", scores=True):
    """Assert that weights are the same byte for byte, predictions and scores the same number for number."""

    def files(of, pattern):
        return {path.relative_to(of) for path in of.glob(pattern)}

    for pattern in (f"models/{models}/**/weights.safetensors", f"predictions/{models}/**/*.h5ad", "folds/**/*.json"):
        names = files(run, pattern)
        assert names == files(undisturbed, pattern)
        assert names
        for name in names:
            if name.suffix == ".h5ad":
                one, other = (anndata.read_h5ad(folder / name) for folder in (run, undisturbed))
                assert one.obs_names.equals(other.obs_names), name
                assert one.var_names.equals(other.var_names), name
                np.testing.assert_array_equal(np.asarray(one.X), np.asarray(other.X), err_msg=str(name))
            else:
                assert filecmp.cmp(run / name, undisturbed / name, shallow=False), name
    for table in ("scores.csv", "summary.csv", "paired.csv") if scores else ():
        one, other = (pd.read_csv(folder / "evaluation" / table) for folder in (run, undisturbed))
        pd.testing.assert_frame_equal(one, other)


@pytest.fixture
def copied(small_run, tmp_path):
    """A copy of the finished small run."""
    return copy_of(small_run, tmp_path, "small")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, demo_tissue):
    """The outputs folder of an undisturbed run of a tiny study."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    demo_tissue(outputs / "tiny" / "demo_tissue", sections=3)
    finished = histocrypt("run", write_study(outputs, "tiny", **TINY), "--cores", "2", outputs=outputs)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return outputs


def test_half_a_model_and_half_a_prediction_are_made_again_and_equal(small_run, copied):
    run = copied / "small"
    weights = run / "models/vision_mlp/fold_1/weights.safetensors"
    prediction = run / "predictions/vision_mlp/fold_1.test.h5ad"
    half(weights)
    half(prediction)
    kept = {path: path.stat().st_mtime_ns for path in run.glob("notebooks/*.ipynb")}
    finished = histocrypt("run", copied / "small.yaml", "--cores", "2", "--until", "30_training", outputs=copied)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    said = [line for line in finished.stdout.splitlines() if "is broken" in line]
    assert len(said) == 1
    assert said[0].endswith("is broken (truncated) (and 1 more), made again by 30_training vision_mlp fold_1")
    again = {path.stem for path, modified in kept.items() if path.stat().st_mtime_ns != modified}
    assert again == {"30_training__vision_mlp__fold_1", "30_training__vision_mlp__final"}
    assert_same(run, small_run / "small", scores=False)

    # What follows from them is older now: it would run again, and nothing else.
    listed = set(planned_jobs(planned(copied / "small.yaml", outputs=copied)))
    assert {"40_stacking", "62_membership_audit", "70_evaluation"} <= listed
    assert not {"20_preprocessing", "22_folds", "30_training", "58_generators", "60_synthetic_data"} & listed


@pytest.mark.slow
def test_half_a_section_and_a_report_are_made_again_and_everything_ends_the_same(tiny, tmp_path):
    outputs = copy_of(tiny, tmp_path, "tiny")
    run = outputs / "tiny"
    half(run / "sections" / "S_2.h5ad")
    half(run / "report.html")
    kept = {path: path.stat().st_mtime_ns for path in run.glob("notebooks/20_preprocessing__S_[13].ipynb")}
    finished = histocrypt("run", outputs / "tiny.yaml", "--cores", "2", outputs=outputs)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "sections/S_2.h5ad is broken (truncated), made again by 20_preprocessing S_2" in finished.stdout
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
    assert_same(run, tiny / "tiny")
    again = histocrypt("run", outputs / "tiny.yaml", "--cores", "2", outputs=outputs)
    assert "nothing to do" in again.stdout


@pytest.fixture
def little_disk(tmp_path):
    """A disk of its own size, in memory, and a function that sets the size; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(mebibytes, *options):
        options = ",".join([*options, f"size={mebibytes}m"])
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )

    if shutil.which("mount") is None or sized(2).returncode:
        pytest.skip("a disk in memory can be mounted by root only")
    try:
        yield folder, lambda mebibytes: sized(mebibytes, "remount")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_with_room_the_run_finishes_the_same(tiny, little_disk):
    """The disk grows from a size at which not even the simulated tissue fits to one that is enough."""
    outputs, resize = little_disk
    study = write_study(outputs, "tiny", **TINY)
    run, kept, fulls = outputs / "tiny", {}, 0
    for mebibytes in (2, 14, 200):
        resize(mebibytes)
        finished = histocrypt("run", study, "--cores", "1", outputs=outputs)
        assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items()), "what was finished is kept"
        kept = {path: path.stat().st_mtime_ns for path in run.glob("notebooks/*.ipynb")}
        if finished.returncode == 0:
            break
        fulls += 1
        assert finished.returncode in (1, 2)
        assert "Traceback" not in finished.stderr
        assert "the disk is full" in finished.stderr
        assert f"MiB are left in {run}" in finished.stderr
    assert fulls
    assert finished.returncode == 0, finished.stderr
    assert_same(run, tiny / "tiny")


def finish(outputs, study, *arguments):
    finished = histocrypt("run", study, "--cores", "2", *arguments, outputs=outputs)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def test_a_notebook_that_raises_is_named_with_its_error_and_once_mended_the_run_finishes(small_run, copied):
    """What nobody foresaw: a file stands where the notebook wants a folder of its own."""
    run, job = copied / "small", "30_training__vision_mlp__fold_1"
    state, executed = run / "models" / "vision_mlp" / "fold_1" / "last", run / "notebooks" / f"{job}.ipynb"
    state.write_text("not a folder")
    executed.unlink()
    failed = histocrypt("run", copied / "small.yaml", "--cores", "2", "--until", "30_training", outputs=copied)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    said = failed.stderr.splitlines()
    assert said[0].startswith("histocrypt: 30_training vision_mlp fold_1 failed: ")
    assert str(state) in said[0]
    assert "Error: [Errno" in said[0]
    log, stopped = run / "logs" / f"{job}.log", run / "logs" / f"{job}.log.ipynb"
    assert said[1].split() == f"log: {log}; the notebook as it stopped: {stopped}".split()
    assert len(said) == 3
    assert stopped.is_file()
    assert not executed.exists()

    state.unlink()
    finish(copied, copied / "small.yaml", "--until", "30_training")
    weights = Path("small") / "models" / "vision_mlp" / "fold_1" / "weights.safetensors"
    assert filecmp.cmp(small_run / weights, copied / weights, shallow=False)


def test_a_file_where_a_folder_belongs_is_one_sentence(copied):
    run = copied / "small"
    (run / "folds").rename(run / "folds.away")
    (run / "folds").write_text("not a folder")
    refused = histocrypt("run", copied / "small.yaml", "--cores", "2", outputs=copied)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert str(run / "folds") in refused.stderr


@pytest.mark.slow
def test_a_kernel_that_the_system_kills_is_said_to_have_been_killed(small_run, copied):
    import psutil

    run, notebook = copied / "small", copied / "small" / "notebooks" / "22_folds.ipynb"
    log, family = run / "logs" / "22_folds.log", []
    notebook.unlink()
    log.unlink(missing_ok=True)  # of the run that was copied
    command = [sys.executable, "-m", "histocrypt", "run", str(copied / "small.yaml"), "--cores", "1"]
    process = subprocess.Popen(
        [*command, "--until", "22_folds"], env=environment(copied), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    while process.poll() is None and not (log.is_file() and "Executing Cell" in log.read_text()):
        time.sleep(0.1)
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    kernel = next(one for one in reversed(family) if one.is_running() and _holds_a_port(one))
    kernel.kill()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "22_folds failed: its process was killed, probably for want of memory; " in said
    assert "GiB were asked for" in said
    finish(copied, copied / "small.yaml", "--until", "22_folds")
    assert filecmp.cmp(run / "folds.json", small_run / "small" / "folds.json", shallow=False)


def _holds_a_port(process):
    """Return whether a process listens, as a kernel alone does here."""
    return any(line.status == "LISTEN" for line in process.net_connections("tcp"))


def stopped_after(outputs, study, notebook):
    """Press Ctrl-C in a run once a notebook of this name has ended."""
    command = [sys.executable, "-m", "histocrypt", "run", str(study), "--cores", "1"]
    process = subprocess.Popen(
        command, env=environment(outputs), stdout=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    for line in process.stdout:
        if notebook in line and "done in" in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=120)
    assert process.returncode == 130


@pytest.mark.slow
def test_a_study_edited_midway_ends_as_if_it_had_been_so_from_the_start_and_back_again(tiny, tmp_path):
    outputs, fresh = tmp_path / "outputs", tmp_path / "fresh"
    outputs.mkdir()
    fresh.mkdir()
    edited = {**TINY, "panel": {"size": 9}}
    stopped_after(outputs, write_study(outputs, "tiny", **TINY), "22_folds")
    run = outputs / "tiny"
    kept = {path: path.stat().st_mtime_ns for path in run.glob("notebooks/20_*.ipynb")}
    assert len(kept) == 3
    finish(outputs, write_study(outputs, "tiny", **edited))
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items()), "no section is read again"
    finish(fresh, write_study(fresh, "tiny", **edited))
    assert_same(run, fresh / "tiny")
    assert json.loads((run / "folds/fold_1/panel.json").read_text())["genes"]

    finish(outputs, write_study(outputs, "tiny", **TINY))
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items()), "no section is read again"
    assert_same(run, tiny / "tiny")
