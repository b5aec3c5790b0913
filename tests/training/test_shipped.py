"""The model that comes with the library: small, safe to load, described as it is, and used where no model is named."""

import re

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

from histocrypt import paths
from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.pipeline.checkpoints import load_model


@pytest.fixture(scope="module")
def shipped():
    return load_model(paths.shipped_model())


def test_it_is_small_and_holds_no_more_than_it_needs(shipped):
    files = {path.name: path.stat().st_size for path in paths.shipped_model().iterdir()}
    assert set(files) == {"README.md", "model.json", "weights.safetensors"}
    assert sum(files.values()) < 500_000
    assert shipped.about["model"] == "fusion_ridge"
    assert not {"seconds", "versions"} & shipped.about.keys()
    assert str(paths.repository()) not in (paths.shipped_model() / "model.json").read_text(encoding="utf-8")


def test_its_card_says_what_its_file_holds(shipped):
    """Whoever makes the model anew without its card, or edits one of them, is found out."""
    text = (paths.shipped_model() / "README.md").read_text(encoding="utf-8")
    about, told = shipped.about, shipped.about["predictability"]
    assert "CC BY 4.0" in text
    assert all(section in text for section in about["train_sections"])
    assert told["by"] == "patient"
    assert set(told["by_patient"]) == set(about["train_patients"])
    rows = dict(re.findall(r"^\| (\S+) \| (-?\d\.\d\d) \|", text, flags=re.MULTILINE))
    main = about["transforms"][0]
    for gene, symbol in zip(about["panel"]["genes"], about["panel"]["symbols"], strict=True):
        assert float(rows[symbol]) == pytest.approx(told["correlation"][f"{main}:{gene}"], abs=0.0051)
        of_patients = [own[about["outputs"].index(f"{main}:{gene}")] for own in told["by_patient"].values()]
        assert told["correlation"][f"{main}:{gene}"] == pytest.approx(np.mean(of_patients), abs=2e-4)


@pytest.fixture(scope="module")
def slide(tmp_path_factory, demo_tissue):
    """An image of simulated tissue, 1 um a pixel."""
    files = demo_tissue(tmp_path_factory.mktemp("shipped") / "tissue", sections=3, spots_per_side=6, genes=40)
    return files[0].with_suffix(".png")


def test_a_slide_alone_is_enough(tmp_path, monkeypatch, shipped, slide):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["predict", str(slide), "--um-per-px", "1"])
    assert found.exit_code == 0, found.output
    assert "no --model is named" in found.stderr
    assert "breast" in found.stderr
    assert "--spacing" in found.stderr
    written = anndata.read_h5ad(tmp_path / f"{slide.stem}_predicted.h5ad")
    apart = np.linalg.norm(written.obsm["spatial"][:, None] - written.obsm["spatial"][None], axis=2)
    assert apart[apart > 0].min() == pytest.approx(200, rel=0.02)
    assert written.n_obs > 5
    assert written.n_vars == len(shipped.about["panel"]["genes"])
    assert np.isfinite(written.X).all()
    assert written.X.std(axis=0).min() > 0
    assert written.var["training_pearson:log1p_cp10k"].max() > 0.2
    assert written.uns["prediction"]["weights_sha256"] == shipped.about["weights"]["sha256"]
    before = (tmp_path / f"{slide.stem}_predicted.h5ad").read_bytes()
    again = CliRunner().invoke(app, ["predict", str(slide), "--um-per-px", "1"])  # as of a namesake in another folder
    assert isinstance(again.exception, InputError)
    assert again.exception.field == "--output"
    assert (tmp_path / f"{slide.stem}_predicted.h5ad").read_bytes() == before
