"""Commands as people and programs meet them: help that can be copied, JSON, the next command to type."""

import inspect
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from tests.commands import commands, document
from tests.small_study import SMALL
from typer.testing import CliRunner

from histocrypt import doctor
from histocrypt.cli import app
from histocrypt.download.fetch import SOURCES
from histocrypt.sections.read import read_path

COMMANDS = commands()
TABLES = {
    *("audit", "check", "compare", "doctor", "download", "hest-bench", "predict", "run", "runs", "score", "trust"),
    *("fhe check", "fhe verify-card"),
}
"""What prints more than a sentence or two. Those that need a trained or compiled model, a task or a signed card are run
with ``--json`` beside the tests of these."""
SENTENCES = {
    *("demo-tissue", "export", "import-weights", "map", "new", "serve"),
    *(f"fhe {verb}" for verb in ("card", "compile", "decrypt", "encrypt", "evaluate", "keygen", "send", "serve")),
    *("fhe signing-key", "fhe token"),
}


def test_every_command_that_prints_a_table_prints_json_too():
    with_json = {name for name, command in COMMANDS.items() if any("--json" in one.opts for one in command.params)}
    assert with_json == TABLES
    assert TABLES | SENTENCES == set(COMMANDS)


@pytest.mark.parametrize("name", ["", "fhe", *COMMANDS])
def test_help_can_be_read_and_copied_at_80_columns(name):
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"}, terminal_width=80).stdout
    assert len(shown.splitlines()) > 5
    assert not [line for line in shown.splitlines() if len(line) > 80]
    assert not re.search(r"[^\]}]\.\.\.$|^  -.*<(list|\w+ range)|\[\[", shown, flags=re.MULTILINE)
    options = [one for param in COMMANDS[name].params for one in param.opts] if name in COMMANDS else []
    assert [option for option in options if option.startswith("--")] == [
        option for option in options if option.startswith("--") and re.search(rf"{option}\b", shown)
    ]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_that_ends_by_itself_names_the_next_one(name):
    source = inspect.getsource(inspect.unwrap(COMMANDS[name].callback))
    assert ("onward(" in source or "then" in source) is not name.endswith("serve")


@pytest.fixture(scope="module")
def section(demo_tissue):
    return demo_tissue()[0]


@pytest.fixture(scope="module")
def predictions(section, tmp_path_factory):
    """Return two files of spots x genes that others might have written of a section."""
    folder, counts = tmp_path_factory.mktemp("theirs"), read_path(str(section), counts_only=True).adata
    rng, paths = np.random.default_rng(0), []
    true = np.log1p(np.asarray(counts.X.todense() if hasattr(counts.X, "todense") else counts.X, dtype=np.float64))
    for name, noise in (("near", 0.2), ("far", 2.0)):
        values = true + rng.normal(0, noise, true.shape)
        values[:, 0] = 1.0  # a flat prediction
        theirs = ad.AnnData(values, pd.DataFrame(index=counts.obs_names), pd.DataFrame(index=counts.var_names))
        paths.append(folder / f"{name}.h5ad")
        theirs.write_h5ad(paths[-1])
    return paths


def test_json_of_doctor(monkeypatch):
    monkeypatch.setattr(doctor, "PROBES", {})  # each costs seconds, and has tests of its own
    done = CliRunner().invoke(app, ["doctor"])
    found = document("doctor", code=done.exit_code)
    assert {row["name"] for row in found["findings"]} >= {"python", "memory", "disk"}
    assert found["broken"] == [row["name"] for row in found["findings"] if row["status"] == "broken"]


def test_json_of_check_has_the_numbers_of_its_table(section, tmp_path):
    found = document("check", section, tmp_path / "none", code=2)
    good, bad = found["sections"]
    assert found["unusable"] == 1
    assert bad["unusable"]
    assert bad["spots"] is None
    shown = CliRunner().invoke(app, ["check", str(section)]).stdout.splitlines()
    size = f"{good['image_width_px']} x {good['image_height_px']}"
    um = f"{good['um_per_px']:.4f} ({good['um_per_px_source']})"
    cells = [good["section"], str(good["spots"]), str(good["genes"]), size, um, good["patient"]]
    assert re.split(r" {2,}", shown[1])[:6] == cells
    assert max(map(len, shown[: shown.index("")])) <= 80, "the table fits a terminal"


def test_json_of_download_lists_sources_and_sections():
    sources = document("download")["sources"]
    assert {row["name"]: row["licence"] for row in sources} == {one.name: one.licence for one in SOURCES.values()}
    assert document("download", "her2st")["sections"] == list(SOURCES["her2st"].names)


def test_json_of_a_plan_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HISTOCRYPT_CACHE", str(tmp_path / "cache"))
    study = tmp_path / "planned.yaml"
    study.write_text(yaml.safe_dump({**SMALL, "name": "planned"}))
    found = document("run", study, "--dry-run", "--cores", 2)
    assert {"20_preprocessing", "30_training", "70_evaluation"} <= {job["notebook"] for job in found["jobs"]}
    hours = sum(job["seconds"] * job["threads"] for job in found["jobs"]) / 3600
    assert found["core_hours"] == pytest.approx(hours)
    assert found["peak_memory_mb"] == max(job["memory_mb"] for job in found["jobs"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [study]
    refused = CliRunner().invoke(app, ["run", str(study), "--json"])
    assert refused.exception.field == "--json"


def test_json_of_runs_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    assert document("runs") == {"outputs": str(tmp_path), "runs": [], "problems": []}


def test_json_of_scores_comparisons_and_trust(section, predictions, tmp_path):
    near, far = predictions
    scored = document("score", near, section, "--units", "log1p")
    flat = next(iter(scored["per_gene"]["log1p"].values()))
    assert flat["pearson"] in (0.0, None)
    pair = document("compare", near, far, section, "--units", "log1p")
    row = next(row for row in pair["rows"] if (row["transform"], row["metric"]) == ("log1p", "pearson"))
    assert row["difference"] == pytest.approx(row["first"] - row["second"])
    assert row["first"] == pytest.approx(scored["means"]["log1p"]["pearson"])
    output = tmp_path / "trusted.h5ad"
    trust = document("trust", near, "-o", output, "--labelled", far, "--counts", section, "--units", "log1p")
    table = ad.read_h5ad(output).var
    assert set(trust["per_gene"]) == set(table.index)
    r = {gene: row["labelled_pearson:log1p"] for gene, row in trust["per_gene"].items()}
    known = table["labelled_pearson:log1p"]
    assert r == {gene: None if np.isnan(value) else pytest.approx(value) for gene, value in known.items()}
