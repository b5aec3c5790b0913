"""``histocrypt runs``: on a real run folder and copies of it that were changed in known ways."""

import json
import re
import shutil

import pandas as pd
import pytest
from tests.small_study import histocrypt, places
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.workflow.record import read_record

KEPT = ("run.json", "study.json", "evaluation/summary.csv", "logs/stages")


@pytest.fixture
def outputs(small_run, tmp_path):
    """The outputs folder with the records, study and scores of the run that all tests share, as `small` and `other`."""
    for name in ("small", "other"):
        for part in KEPT:
            source, target = small_run / "small" / part, tmp_path / name / part
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return tmp_path


def change(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def told(*names, outputs):
    return CliRunner(env=places(outputs)).invoke(app, ["runs", *names])


def said(*names, outputs):
    done = told(*names, outputs=outputs)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def cells(text, start):
    """Return the cells of the line that starts so."""
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    return re.split(r" {2,}", line.strip())


def test_a_run_leaves_a_record_with_every_notebook(small_run, outputs):
    record = read_record(outputs / "small")
    assert record.outcome == "finished"
    executed = {path.stem for path in (small_run / "small" / "notebooks").glob("*.ipynb")}
    assert {stage.job for stage in record.stages} == executed
    assert all(stage.outcome == "finished" and stage.peak_gib > 0.1 and stage.seconds > 1 for stage in record.stages)
    assert {stage.section for stage in record.stages if stage.notebook == "20_preprocessing"} == {
        f"S_{number}" for number in range(1, 7)
    }
    assert {"evaluation/summary.csv", "evaluation/paired.csv"} <= set(record.artifacts)


def test_the_report_shows_what_the_stages_before_it_took(small_run, outputs):
    page = (small_run / "small" / "report.html").read_text(encoding="utf-8")
    section = page[page.index('<h2 id="run">') : page.index('<h2 id="provenance">')]
    assert "30_training, VisionMLP (multi-scale CNN)" in section
    assert read_record(outputs / "small").versions["torch"] in section
    assert "72_viewer" not in section


def test_the_list_shows_every_run_with_its_best_predictor(outputs):
    summary = pd.read_csv(outputs / "small" / "evaluation" / "summary.csv")
    change(outputs / "other" / "run.json", lambda record: record.update(begun="2020-01-01T00:00:00Z"))
    (outputs / "old").mkdir()
    shutil.copy(outputs / "small" / "study.json", outputs / "old")
    table = said(outputs=outputs)
    names = [line.split()[0] for line in table.splitlines() if not line.startswith("*")]  # a footnote on commits
    assert names == ["run", "small", "other", "old"]
    row = cells(table, "small")
    main = summary[summary["transform"] == summary["transform"][0]].set_index("title")
    assert row[1] == "finished"
    assert row[-2].startswith(f"{main.loc[row[-3], 'pearson']:.3f} (")
    assert row[-1].startswith(f"{main.loc['Colour-only ridge', 'pearson']:.3f} (")
    assert cells(table, "old")[1] == "no record"


def test_json_has_the_numbers_of_the_tables(outputs):
    summary = pd.read_csv(outputs / "small" / "evaluation" / "summary.csv")
    found = json.loads(said("--json", outputs=outputs))
    assert found["problems"] == []
    run = next(run for run in found["runs"] if run["run"] == "small")
    main = summary[summary["transform"] == summary["transform"][0]].set_index("model")
    row = main.loc[run["best"]["model"]]
    assert run["best"]["pearson"] == pytest.approx(row["pearson"])
    assert run["outcome"] == "finished"
    full = json.loads(said("small", "--json", outputs=outputs))
    assert {row["notebook"] for row in full["by_notebook"]} == {stage["notebook"] for stage in full["stages"]}
    change(outputs / "other" / "study.json", lambda study: study.update(seed=3))
    both = json.loads(said("small", "other", "--json", outputs=outputs))
    assert both["study"] == [{"name": "seed", "a": 0, "b": 3}]
    assert both["scores"]["a"] == both["scores"]["b"]
    assert len(both["scores"]["a"]) == len(summary)


def test_one_run_is_shown_in_full(outputs):
    text = said("small", outputs=outputs)
    record = read_record(outputs / "small")
    assert f"hash {record.hash}, seed 0" in text
    assert f"torch {record.versions['torch']}" in text
    assert cells(text, "20_preprocessing")[1] == "6"


def test_a_run_beside_itself_differs_in_nothing(outputs):
    text = said("small", str(outputs / "other"), outputs=outputs)
    assert "Study: the same" in text
    assert "Made with: the same" in text
    assert "Scores: the same to the last digit" in text
    assert set(re.findall(r"[+-]\d\.\d{3}  +(\w+)$", text, flags=re.MULTILINE)) == {"overlap"}


def test_what_differs_is_shown_with_both_values(outputs):
    other = outputs / "other"
    change(other / "study.json", lambda study: (study["panel"].update(size=11), study.update(seed=3)))

    def edit(record):
        record["versions"]["numpy"] = "1.0.0"
        record["git"] = {"commit": "0123456789abcdef", "dirty": True, "changed": ["a"]}
        record["machine"]["processor"] = "Abacus"
        record["artifacts"]["evaluation/summary.csv"] = "another"
        for stage in record["stages"]:
            stage["seconds"] *= 2
            stage["peak_gib"] = 9.5

    change(other / "run.json", edit)
    file = other / "evaluation" / "summary.csv"
    scores = pd.read_csv(file)
    scores.loc[scores["model"] == "colour_ridge", ["pearson", "pearson_low", "pearson_high"]] = 0.99, 0.98, 1.0
    scores = scores[scores["model"] != "vision_mlp"]
    scores.to_csv(file, index=False)

    text = said("small", "other", outputs=outputs)
    assert cells(text, "panel.size") == ["panel.size", "12", "11"]
    assert cells(text, "seed") == ["seed", "0", "3"]
    assert cells(text, "numpy")[2] == "1.0.0"
    assert cells(text, "commit")[2] == "01234567*"
    assert cells(text, "machine processor")[2] == "Abacus"
    colour = cells(text, "Colour-only ridge")
    assert colour[2] == "0.990 (0.980 to 1.000)"
    assert float(colour[3]) == pytest.approx(0.99 - float(colour[1].split()[0]), abs=0.0011)
    assert colour[4] == "apart"
    assert cells(text, "VisionMLP")[2:] == ["-", "-", "-"]
    training = cells(text, "30_training vision_mlp")
    assert training[-3] == "2.00"
    assert training[-1] == "9.50 GiB"


@pytest.mark.parametrize(
    ("spoil", "names", "words"),
    [
        (lambda _: None, ["small", "othr"], ["unknown run 'othr'", "did you mean 'other'?"]),
        (lambda run: (run / "run.json").unlink(), ["small", "other"], ["has no run.json"]),
        (lambda run: (run / "run.json").write_text("{"), ["other"], ["run.json", "is not readable as JSON"]),
        (lambda run: (run / "run.json").write_text("[]"), ["other"], ["run.json", "is not the record of a run"]),
        (lambda run: (run / "study.json").unlink(), ["other", "small"], ["study.json", "is missing"]),
        (
            lambda run: (run / "evaluation/summary.csv").write_text("model\n"),
            ["small", "other"],
            ["summary.csv", "is not a table of scores"],
        ),
        (lambda _: None, ["small", "other", "small"], ["RUN", "small other small"]),
    ],
)
def test_bad_input_is_refused(outputs, spoil, names, words):
    spoil(outputs / "other")
    refused = told(*names, outputs=outputs).exception
    assert isinstance(refused, InputError)
    for word in words:
        assert word in str(refused)


def test_a_broken_run_does_not_hide_the_others_in_the_list(outputs):
    (outputs / "other" / "run.json").write_text('{"study": ')
    listed = told(outputs=outputs)
    assert listed.exit_code == 2
    assert cells(listed.stdout, "small")[1] == "finished"
    assert "other/run.json: is not readable as JSON" in listed.stderr


def test_no_runs_at_all_and_one_that_there_is_not(tmp_path):
    listed = histocrypt("runs", outputs=tmp_path / "nowhere")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.startswith("no runs in")
    refused = histocrypt("runs", "small", outputs=tmp_path / "nowhere")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1
