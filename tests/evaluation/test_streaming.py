"""What is kept section by section gives the same numbers as all sections at once."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histocrypt.errors import InputError
from histocrypt.evaluation import figures, wording
from histocrypt.evaluation import metrics as pooled
from histocrypt.evaluation.bootstrap import Draws
from histocrypt.evaluation.scores import score_study
from histocrypt.pipeline.predictions import Joined, PredictionFile, read_prediction
from histocrypt.report import page


def test_draws_keep_the_mean_over_sections():
    rng = np.random.default_rng(0)
    scores = {model: rng.normal(size=(5, 20)) for model in ("a", "b")}
    scores["a"][1, :3] = np.nan  # a section that some draws cannot score
    scores["b"][:, 7] = np.nan  # a draw that no section can score
    draws = Draws([("a", "b")])
    for number in range(5):
        draws.add({("log1p", "pearson", model): values[number] for model, values in scores.items()})
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(RuntimeWarning)
        assert np.array_equal(draws.mean("log1p", "pearson", "a"), np.nanmean(scores["a"], axis=0), equal_nan=True)
        apart = np.nanmean(scores["a"] - scores["b"], axis=0)
    assert np.array_equal(draws.mean("log1p", "pearson", "a", "b"), apart, equal_nan=True)
    assert np.isnan(apart[7])


def test_a_section_of_a_prediction_file_is_what_the_whole_file_holds(made, monkeypatch):
    folder, study = made
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(folder))
    path = study.run.prediction("vision_mlp", "fold_A")
    whole, file = read_prediction(path), PredictionFile(path)
    for name in ("A_1", "A_2", "A_3"):
        mine, found = whole[whole.obs["section"] == name], file.of(name)
        assert found.obs_names.equals(mine.obs_names)
        assert np.array_equal(found.obsm["spatial"], mine.obsm["spatial"])
        for transform in study.target.transforms:
            assert np.array_equal(found.layers[transform], mine.layers[transform])


def test_a_prediction_file_is_checked_as_a_whole_one(fresh):
    import anndata as ad

    path = fresh.run.prediction("vision_mlp", "fold_A")
    whole = ad.read_h5ad(path)
    whole.layers["log1p"][3, 2] = np.nan
    whole.write_h5ad(path)
    section = whole.obs["section"].iloc[3]
    with pytest.raises(InputError, match="predictions are not finite"):
        PredictionFile(path).of(section)
    del whole.layers["log1p"]
    whole.write_h5ad(path)
    with pytest.raises(InputError, match="values of the transform 'log1p' are missing"):
        PredictionFile(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="not readable as .h5ad"):
        PredictionFile(path)


def test_pooled_scores_do_not_depend_on_how_many_genes_are_in_memory(scored, monkeypatch):
    study, scores = scored
    monkeypatch.setattr(pooled, "AT_ONCE", 1)  # one gene at a time
    again = score_study(study)
    one, two = (
        table.genes[table.genes["section"] == pooled.POOLED].reset_index(drop=True) for table in (scores, again)
    )
    assert len(one)
    numbers = one.select_dtypes("float").columns
    pd.testing.assert_frame_equal(one.drop(columns=numbers), two.drop(columns=numbers))
    np.testing.assert_allclose(one[numbers], two[numbers], rtol=1e-12, atol=1e-12)


def test_what_is_scored_on_some_sections_only_is_pooled_over_these(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_CACHE", str(tmp_path))
    rng = np.random.default_rng(0)
    true = {name: rng.normal(size=(spots, 2)) for name, spots in (("A", 6), ("B", 9))}
    with pooled.Pool() as pool:
        for name, values in true.items():
            n = len(values)
            genes, spots = np.array(["G1", "G2"]), np.array([f"{name}:{spot}" for spot in range(n)])
            pair = Joined(
                name, "P", spots, genes, genes, np.zeros((n, 2)), {"log1p": values}, {"log1p": -values}, [], [], []
            )
            pool.add("log1p", "everywhere", pair)
            if name == "B":
                pool.add("log1p", "only_b", replace(pair, predicted={"log1p": values}))
        tables = {table["model"].iloc[0]: table for table in pool.tables()}
    assert tables["everywhere"]["pearson"].tolist() == pytest.approx([-1, -1])
    assert tables["only_b"]["pearson"].tolist() == pytest.approx([1, 1])


def test_a_page_shows_some_of_many_by_rule(scored):
    _, scores = scored
    assert page.shown_sections(scores, "vision_mlp", "log1p") == set(scores.sections["section"])
    names = [f"S_{number}" for number in range(100)]
    some = page.spread(names, 24)
    assert (len(some), some[0], some[-1]) == (24, "S_0", "S_99")
    assert wording.listed({"A": 3, "B": 2, "C": 1}, limit=2) == "A (3), B (2) and 1 more"


def test_a_page_of_more_sections_than_it_shows_says_so(scored, monkeypatch):
    from histocrypt.report.page import write_report

    study, scores = scored
    monkeypatch.setattr(page, "SECTIONS", 4)
    monkeypatch.setattr(page, "FOLDS", 1)
    monkeypatch.setattr(figures, "LEGIBLE", 4)
    text = write_report(study).read_text(encoding="utf-8")
    assert "Shown are 4 of 6 sections" in text
    assert "all 6 are in <code>evaluation/data.csv</code>" in text
    assert "1 of 2 folds, a line each." in text
    rows = pd.read_csv(study.run.evaluation / "data.csv")
    assert sorted(rows["section"]) == sorted(set(scores.sections["section"]))
    absent = set(rows["section"]) - page.shown_sections(
        scores, wording.best_model(scores, "log1p_cp10k"), "log1p_cp10k"
    )
    assert len(absent) == 2


def test_many_folds_are_drawn_in_a_figure_of_bounded_size(tmp_path):
    names = [f"S_{number:03d}" for number in range(200)]
    folds = [
        {"name": f"fold_{name}", "test_sections": [name], "validation_sections": [names[number - 1]]}
        for number, name in enumerate(names)
    ]
    path = figures.save(figures.fold_diagram(folds, {name: f"P_{name}" for name in names}), tmp_path / "folds.svg")
    assert path.stat().st_size < 200_000
