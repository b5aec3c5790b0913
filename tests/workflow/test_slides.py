"""A folder of slides as jobs of Snakemake: what they ask for, what is told of those that end badly, and a real run."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image
from tests.tiny_section import write_tiny_section
from tests.training.conftest import colour_model
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.pipeline.folder import PREDICTION, STATE, Settings, Task, predict_slides
from histocrypt.pipeline.listing import Slide, slides_at
from histocrypt.workflow.command import Profile
from histocrypt.workflow.slides import JOBS, by_profile, name_of, needs_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return colour_model(tmp_path_factory.mktemp("model"))


def task(path, folder, **settings):
    slide = Slide("S", str(path), (path,), um_per_px=settings.get("um_per_px"))
    return Task(slide, folder, folder / "S", {}, Settings(**settings), "", {}, None)


def test_a_job_asks_for_what_its_image_takes(tmp_path):
    for name, side in (("small", 200), ("large", 4000)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    wide = Profile(tmp_path, local=False, threads=8, gpus=0, content={})
    how = {"um_per_px": 1.0, "spacing_um": 10.0}
    small, large, broken = (
        needs_of(task(tmp_path / f"{name}.png", tmp_path, **how), wide) for name in ("small", "large", "broken")
    )
    assert large.memory_gib - small.memory_gib == pytest.approx((4000**2 - 200**2) * 3 * 1.5 / 2**30)
    assert broken.memory_gib > large.memory_gib, "of which nothing is known asks for what a large one takes"
    assert (small.threads, large.threads) == (1, 8), "160,000 points are work for several"
    averaged = needs_of(task(tmp_path / "small.png", tmp_path, **how, average_symmetries=True), wide)
    assert averaged.seconds > small.seconds
    assert averaged.gpus == 0
    assert (
        needs_of(
            task(tmp_path / "large.png", tmp_path, **how), Profile(tmp_path, local=False, threads=8, gpus=2, content={})
        ).gpus
        == 1
    )


def test_what_a_job_did_not_write_is_told_by_its_reason(model, tmp_path):
    for name in "AB":
        write_tiny_section(tmp_path / "in", name)

    def run(tasks):
        assert [task.slide.id for task in tasks] == ["A", "B"]
        return {"A": "it took more time than it had asked for"}

    found = predict_slides(
        slides_at(tmp_path / "in").slides, tmp_path / "out", model=model, settings=Settings(), run=run
    )
    assert [state["status"] for state in found.slides] == ["failed", "failed"]
    assert found.slides[0]["problem"] == "it took more time than it had asked for"
    assert found.slides[1]["problem"]


def test_a_command_whose_jobs_may_still_run_is_not_disturbed(model, tmp_path):
    write_tiny_section(tmp_path / "in", "A")
    slides, how = slides_at(tmp_path / "in").slides, {"model": model, "settings": Settings()}
    (books := tmp_path / "out" / JOBS).mkdir(parents=True)
    (tmp_path / "out" / "A").mkdir()
    (tmp_path / "out" / "A" / STATE).write_text("{}")
    with (books / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError) as refused:
            predict_slides(slides, tmp_path / "out", **how, overwrite=True, run=by_profile(Path("local")))
    assert refused.value.file == tmp_path / "out"
    assert (tmp_path / "out" / "A" / STATE).read_text() == "{}", "which a job may have written just now"


def test_a_profile_is_for_many_and_must_be_there(model, tmp_path):
    path = write_tiny_section(tmp_path / "in", "A")
    for target, output, profile in ((path, "one.h5ad", "local"), (path.parent, "out", "nowhere")):
        command = ["predict", str(target), "-o", str(tmp_path / output), "--model", str(model), "--profile", profile]
        found = CliRunner().invoke(app, command).exception
        assert isinstance(found, InputError)
        assert not (tmp_path / output).exists()


@pytest.mark.slow
def test_jobs_make_what_the_command_alone_makes(model, tmp_path):
    for name in ("A", "B-1"):
        write_tiny_section(tmp_path / "in", name)
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "A.png").read_bytes()[:3000])
    command = [sys.executable, "-m", "histocrypt", "predict", tmp_path / "in", "--model", model, "--json", "-o"]
    summaries = []
    for name, more in (("jobs", ["--profile", "local"]), ("jobs", ["--profile", "local"]), ("alone", [])):
        done = subprocess.run(
            list(map(str, [*command, tmp_path / name, *more])), capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        summaries.append(json.loads(done.stdout))
    first, again, alone = summaries
    assert [row["status"] for row in first["slides"]] == [row["status"] for row in alone["slides"]]
    assert (first["predicted"], first["failed"], again["kept"]) == (2, 1, 2)
    for row in first["slides"]:
        if row["prediction"]:
            one, other = (anndata.read_h5ad(tmp_path / name / row["id"] / PREDICTION) for name in ("jobs", "alone"))
            assert np.array_equal(one.X, other.X)
    states = [read_json(tmp_path / name / "broken" / STATE) for name in ("jobs", "alone")]
    assert states[0]["problem"] == states[1]["problem"]
    assert (tmp_path / "jobs" / JOBS / "logs" / f"{name_of(Slide('A', ''))}.log").is_file()
