"""Many slides by one command: each kept once it is whole, none lost for another, resumed after any end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import psutil
import pytest
from tests.evaluation.chromium import opened
from tests.tiny_section import write_tiny_section
from tests.training.conftest import colour_model
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.files import read_json, read_table
from histocrypt.pipeline.folder import PREDICTION, STATE, Settings, predict_slides
from histocrypt.pipeline.listing import OURS, slides_at
from histocrypt.pipeline.predict import predict_section
from histocrypt.report.slides import write_summary

UM_PER_PX = 4.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return colour_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A list of a section, two images under one name, one that is truncated and one that is not there; read only."""
    folder = tmp_path_factory.mktemp("slides")
    section = write_tiny_section(folder / "in", "A")
    pictures = [folder / "in" / name / "slide.png" for name in ("x", "y")]
    for number, picture in enumerate(pictures):
        own = write_tiny_section(folder / "made", f"B{number}").with_suffix(".png")
        picture.parent.mkdir()
        own.rename(picture)
    broken = folder / "in" / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:5000])
    rows = [(section, "", ""), *((path, UM_PER_PX, "P7") for path in (*pictures, broken, folder / "in" / "gone.svs"))]
    pd.DataFrame(rows, columns=["path", "um_per_px", "patient"]).to_csv(folder / "slides.csv", index=False)
    return folder / "slides.csv"


@pytest.fixture(scope="module")
def finished(slides, model, tmp_path_factory):
    """The folder of a first command, and how it ended."""
    output = tmp_path_factory.mktemp("finished") / "out"
    return output, run(slides, output, model, "--json", "--cores", "2")


def run(path, output, model, *options):
    done = CliRunner().invoke(app, ["predict", str(path), "--model", str(model), "-o", str(output), *options])
    assert done.exit_code in (0, 1), done.exception
    return done


def made(output):
    return {path.parent.name: path.stat().st_mtime_ns for path in sorted(output.glob(f"*/{PREDICTION}"))}


def test_a_folder_of_slides_to_predictions_and_a_page(slides, finished, model, tmp_path):
    output, done = finished
    summary = json.loads(done.stdout)
    states = {row["id"]: row for row in summary["slides"]}
    assert done.exit_code == 1, "as some failed"
    assert {name: row["status"] for name, row in states.items()} == {
        "A": "predicted", "x_slide": "predicted", "y_slide": "predicted", "broken": "failed", "gone": "failed",
    }  # fmt: skip
    assert str(slides.parent / "in" / "broken.png") in states["broken"]["problem"]
    assert done.stderr.count("left") >= 1
    assert "about" in done.stderr.splitlines()[0]

    alone = tmp_path / "alone.h5ad"
    predict_section(model, slides.parent / "in" / "A.h5ad", alone)
    one, many = anndata.read_h5ad(alone), anndata.read_h5ad(output / "A" / PREDICTION)
    assert np.array_equal(one.X, many.X)
    assert list(one.obs_names) == list(many.obs_names)
    assert states["A"]["kind"] == "spots"
    assert (states["A"]["patient"], states["A"]["um_per_px"]) == ("P1", UM_PER_PX)

    grid = anndata.read_h5ad(output / "y_slide" / PREDICTION)
    assert set(grid.obs["patient"]) == {"P7"}
    assert set(grid.obs["section"]) == {"y_slide"}, "names that stay apart when they are put together"
    assert np.allclose(np.diff(np.unique(grid.obsm["spatial"][:, 0])), 200 / UM_PER_PX)
    assert states["y_slide"]["um_per_px_source"] == "given"
    table = read_table(output / "summary.csv")
    assert list(table["id"]) == list(states)
    assert list(table["spots"].fillna(0)) == [row["spots"] or 0 for row in states.values()]
    page = (output / "summary.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 3 * 4
    assert page.count("src=") == page.count('src="data:')
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("histocrypt-slides-*/A")), "nothing is left behind"


def test_a_second_command_makes_only_what_is_not_there(slides, finished, model, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished[0], output)
    first, tried = made(output), (output / "broken" / STATE).stat().st_mtime_ns
    done = run(slides, output, model)
    assert made(output) == first
    assert "3 of 5 slides are there already" in done.stderr
    assert (output / "broken" / STATE).stat().st_mtime_ns > tried, "what failed is tried again"

    whole = (output / "A" / PREDICTION).read_bytes()
    (output / "A" / PREDICTION).write_bytes(whole[: len(whole) // 2])  # what a disk may do
    (output / "y_slide" / "gene_0.jpg").unlink()
    (output / "x_slide" / STATE).unlink()  # as if killed before it was written
    done = run(slides, output, model)
    second = made(output)
    assert all(second[name] != first[name] for name in ("A", "x_slide", "y_slide"))
    assert "are there already" not in done.stderr

    one = tmp_path / "one.csv"
    one.write_text("\n".join(slides.read_text().splitlines()[:2]))
    run(one, output, model, "--spacing", "400")
    third = made(output)
    assert third["A"] != second["A"]
    assert third["x_slide"] == second["x_slide"], "which was not asked for, and is left alone"
    assert read_json(output / "A" / STATE)["asked"]["settings"]["spacing_um"] == 400
    assert anndata.read_h5ad(output / "A" / PREDICTION).n_obs < 36


def test_killed_twice_it_ends_as_if_never(model, tmp_path):
    for number in range(6):
        write_tiny_section(tmp_path / "in", f"S{number}")
    output, ended = tmp_path / "out", 0
    command = [sys.executable, "-m", "histocrypt", "predict", tmp_path / "in", "--model", model, "-o", output]
    for kill in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen([*map(str, command), "--cores", "1"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 600
        while len(list(output.glob(f"*/{STATE}"))) == ended:
            assert time.monotonic() < end
            time.sleep(0.02)
        ended = len(list(output.glob(f"*/{STATE}")))
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(kill)
        process.wait()
        assert not psutil.wait_procs(workers, timeout=60)[1], "none goes on for nobody"
        assert not (output / "summary.html").exists()
    scratch = Path(read_json(output / OURS)["scratch"])
    assert scratch.is_dir()
    kept = made(output)
    whole = {path.parent.name for path in output.glob(f"*/{STATE}")}
    assert 2 <= len(whole) < 6
    done = run(tmp_path / "in", output, model)
    assert done.exit_code == 0, done.output
    after = made(output)
    assert set(after) == {f"S{number}" for number in range(6)}
    assert all(after[name] == kept[name] for name in whole)
    assert not scratch.exists()
    assert not list(output.glob("**/*.partial*"))
    last = next(name for name in after if name not in whole)
    predict_section(model, tmp_path / "in" / f"{last}.h5ad", tmp_path / "alone.h5ad")
    alone, resumed = (anndata.read_h5ad(path) for path in (tmp_path / "alone.h5ad", output / last / PREDICTION))
    assert np.array_equal(alone.X, resumed.X)


ENDS = """
import os, signal
def end(folder):
    if folder.name == "B":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}
"""
"""Ends the process that it runs in, as the system does where memory runs out."""


def test_a_process_that_is_killed_is_one_slide_that_failed(model, tmp_path, monkeypatch):
    (tmp_path / "end_of_it.py").write_text(ENDS)
    monkeypatch.syspath_prepend(tmp_path)
    import end_of_it

    for name in "AB":
        write_tiny_section(tmp_path / "in", name)
    listing, lines = slides_at(tmp_path / "in"), []
    how = {"model": model, "settings": Settings(), "cores": 1, "say": lines.append, "then": end_of_it.end}
    found = predict_slides(listing.slides, tmp_path / "out", **how)
    assert [state["status"] for state in found.slides] == ["predicted", "failed"]
    assert "signal 9" in found.slides[1]["problem"]
    assert len(lines) == 2


def test_nothing_is_tried_in_a_folder_of_somebody_else_or_of_a_command_that_runs(model, tmp_path):
    write_tiny_section(tmp_path / "in", "A")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    slides, how = slides_at(tmp_path / "in").slides, {"model": model, "settings": Settings()}
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(InputError) as caught:
            predict_slides(slides, tmp_path / name, **how)
        assert (caught.value.file, caught.value.field) == (tmp_path / name, "--output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "mine"]

    def meanwhile(_):
        with pytest.raises(InputError) as caught:
            predict_slides(slides, tmp_path / "out", **how)
        assert caught.value.field == "--output"

    predict_slides(slides, tmp_path / "out", **how, say=meanwhile)


def test_regions_lie_on_their_own_slide(slides, model, tmp_path):
    ring = [[20, 20], [320, 20], [320, 320], [20, 320], [20, 20]]
    feature = {"type": "Feature", "id": "all", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "A.geojson").write_text(json.dumps([feature]))
    two = tmp_path / "two.csv"
    two.write_text("\n".join(slides.read_text().splitlines()[:3]))
    found = slides_at(two).slides
    with pytest.raises(InputError) as caught:
        predict_slides(found, tmp_path / "no", model=model, settings=Settings(regions=str(drawn / "A.geojson")))
    assert caught.value.field == "--regions"
    run(two, tmp_path / "out", model, "--regions", str(drawn))
    state = read_json(tmp_path / "out" / "A" / STATE)
    own = anndata.read_h5ad(tmp_path / "out" / "A" / "prediction.regions.h5ad")
    points = anndata.read_h5ad(tmp_path / "out" / "A" / PREDICTION)
    inside = ((points.obsm["spatial"] > 20) & (points.obsm["spatial"] < 320)).all(axis=1)
    assert own.obs["points"].item() == inside.sum() > 9
    np.testing.assert_allclose(own.X[0], points.X[inside].mean(axis=0), rtol=1e-5)
    assert any("get the mean of the points inside" in note for note in state["notes"])
    other = read_json(tmp_path / "out" / "slide" / STATE)
    assert other["asked"]["regions"] is None
    assert any(str(drawn) in note for note in other["notes"])
    first = made(tmp_path / "out")
    (drawn / "A.geojson").write_text(json.dumps([feature, feature]))
    run(two, tmp_path / "out", model, "--regions", str(drawn))
    assert {name for name, time in made(tmp_path / "out").items() if time != first[name]} == {"A"}


def test_a_single_slide_has_its_regions_in_a_file_beside(slides, model, tmp_path):
    ring = [[20, 20], [120, 20], [120, 120], [20, 120], [20, 20]]
    drawn, slide = tmp_path / "cells.geojson", slides.parent / "in" / "x" / "slide.png"
    drawn.write_text(json.dumps([{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}]))
    said: list[str] = []
    how = {"um_per_px": UM_PER_PX, "spacing_um": 100, "regions": drawn, "say": said.append}
    ended = predict_section(model, slide, tmp_path / "a.h5ad", **how)
    own, points = (anndata.read_h5ad(tmp_path / name) for name in ("a.regions.h5ad", "a.h5ad"))
    inside = ((points.obsm["spatial"] > 20) & (points.obsm["spatial"] < 120)).all(axis=1)
    np.testing.assert_allclose(own.X[0], points.X[inside].mean(axis=0), rtol=1e-5)
    assert str(tmp_path / "a.regions.h5ad") in ended
    assert any("1 get the mean" in line for line in said)
    before = (tmp_path / "a.h5ad").stat().st_mtime_ns
    with pytest.raises(InputError) as caught:
        predict_section(model, slide, tmp_path / "a.h5ad", **{**how, "regions": slide})
    assert caught.value.file == slide
    drawn.write_text(drawn.read_text().replace("20", "9020"))
    with pytest.raises(InputError) as caught:
        predict_section(model, slide, tmp_path / "a.h5ad", **how)
    assert caught.value.file == drawn
    assert (tmp_path / "a.h5ad").stat().st_mtime_ns == before, "said before any work"


def test_a_slide_that_the_model_is_not_for_is_refused_and_shown(model, tmp_path):
    path = write_tiny_section(tmp_path / "in", "A")
    section = anndata.read_h5ad(path)
    section.var_names = [f"LOC{gene}" for gene in range(section.n_vars)]
    section.var = section.var[[]]
    section.write_h5ad(path)
    output = tmp_path / "out"
    done = run(path.parent, output, model, "--json")
    (row,) = json.loads(done.stdout)["slides"]
    assert (done.exit_code, row["status"], row["verdict"]) == (1, "refused", "do not use")
    assert "--anyway" in row["words"]["Notes"]
    assert (output / "A" / row["tissue"]).is_file()
    assert not (output / "A" / PREDICTION).exists()
    assert (output / "summary.html").read_text(encoding="utf-8").count("data:image/jpeg") == 1
    done = run(path.parent, output, model, "--json", "--anyway")
    assert (done.exit_code, json.loads(done.stdout)["predicted"]) == (0, 1)


def test_options_of_one_section_are_refused_for_many(slides, model, tmp_path):
    command = ["predict", str(slides), "--model", str(model), "-o", str(tmp_path / "out"), "--submission", "a.csv"]
    found = CliRunner().invoke(app, command).exception
    assert isinstance(found, InputError)
    assert found.field == "--submission"
    assert not (tmp_path / "out").exists()


def test_the_page_sorts_by_a_click(tmp_path):
    rows = [
        {
            "id": name, "path": f"/in/{name}.svs", "status": status, "kept": False, "problem": "", "patient": None,
            "laboratory": None, "spots": spots, "genes": 3, "kind": "grid", "spacing_um": 200.0, "um_per_px": 0.5,
            "um_per_px_source": "file", "seconds": 1.0, "peak_gib": None, "notes": [], "prediction": None,
            "words": {"May it be used": verdict, "Notes": "<b>"}, "tissue": None, "drawn": None, "width_mm": None,
        }
        for name, status, spots, verdict in (
            ("a", "predicted", 90, "with care"), ("b", "refused", None, "do not use"), ("c", "predicted", 1000, "fine"),
        )
    ]  # fmt: skip
    summary = {
        "source": "/in", "model": "M", "weights_sha256": "0" * 64, "histocrypt": "1", "predicted": 2, "refused": 1,
        "failed": 0, "kept": 0, "seconds": 3.0, "genes_drawn": "", "unit": "", "said": [], "left_out": {},
        "slides": rows,
    }  # fmt: skip
    write_summary(tmp_path, summary)
    page = tmp_path / "summary.html"
    assert "&lt;b&gt;" in page.read_text(encoding="utf-8")
    click = "const b = [...document.querySelectorAll('th button')].find(one => one.textContent === '{}');"
    tell = "document.body.dataset.order = [...document.querySelectorAll('tbody tr')].map(r => r.cells[0].dataset.value)"
    for by, times, order in (("Points", 1, "a,c,b"), ("Points", 2, "c,a,b"), ("May it be used", 1, "c,a,b")):
        (folder := tmp_path / f"{by}{times}").mkdir()
        assert f'data-order="{order}"' in opened(page, folder, script=click.format(by) + "b.click();" * times + tell)
