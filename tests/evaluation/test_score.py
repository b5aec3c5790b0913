import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from histocrypt.answer import plain
from histocrypt.errors import InputError
from histocrypt.evaluation.metrics import METRICS
from histocrypt.evaluation.score_file import render, score_files
from histocrypt.evaluation.wording import METRIC_WORDS, score_table


def test_a_section_gets_the_scores_that_the_study_gave_it(scored):
    study, scores = scored
    path = study.run.prediction("vision_mlp", "fold_B")
    result = score_files(path, str(study.run.section("B_3")))
    rows = scores.sections.set_index(["model", "section", "transform"])
    for name in study.target.transforms:
        assert result.means[name]["pearson"] == pytest.approx(rows.loc[("vision_mlp", "B_3", name), "pearson"])
        assert result.means[name]["mse"] == pytest.approx(rows.loc[("vision_mlp", "B_3", name), "mse"])
    assert any("2 predicted genes are not measured" in note and "ENSG00038" in note for note in result.notes)
    text = render(result)
    assert "log1p_cp10k" in text
    assert f"{result.means['log1p']['pearson']:.3f}" in text
    assert "vision_mlp on section B_3 (patient B): 144 spots, 22 genes" in text
    again = plain(result)
    assert again["means"]["log1p"]["pearson"] == pytest.approx(result.means["log1p"]["pearson"])
    assert len(again["per_gene"]["log1p"]) == 22


def test_missing_spots_are_named_and_flat_predictions_counted(scored, tmp_path):
    study, _ = scored
    prediction = ad.read_h5ad(study.run.prediction("resnet18", "fold_A"))
    prediction = prediction[prediction.obs_names != "A_1:4x5"].copy()
    prediction.layers["log1p"][:, 0] = 2.0
    prediction.write_h5ad(tmp_path / "p.h5ad")
    result = score_files(tmp_path / "p.h5ad", str(study.run.section("A_1")))
    assert "1 measured spots have no prediction: 4x5" in result.notes
    assert result.flat == {"log1p_cp10k": 0, "log1p": 1}
    assert result.per_gene["log1p"][prediction.var_names[0]]["pearson"] == 0


def test_what_is_no_prediction_is_said_so(scored, tmp_path):
    study, _ = scored
    section = study.run.section("A_1")
    with pytest.raises(InputError) as refused:  # it would be perfect
        score_files(section, str(section))
    assert (refused.value.file, refused.value.field) == (section, "X")
    (tmp_path / "broken.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n not really")
    with pytest.raises(InputError, match="not readable as .h5ad"):
        score_files(tmp_path / "broken.h5ad", str(section))
    with pytest.raises(InputError, match="prediction file is missing"):
        score_files(tmp_path / "nowhere.h5ad", str(section))


def test_no_common_spot_or_gene_is_an_error_with_both_sides_named(scored, tmp_path):
    study, _ = scored
    path = study.run.prediction("knn", "fold_A")
    with pytest.raises(InputError, match="no spot of section 'B_1' is predicted; the prediction holds A_1, A_2, A_3"):
        score_files(path, str(study.run.section("B_1")))
    prediction = ad.read_h5ad(path)
    prediction.var_names = [f"OTHER{i}" for i in range(prediction.n_vars)]
    prediction.var["symbol"] = list(prediction.var_names)
    prediction.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(InputError, match="no predicted gene is measured in section 'A_2'; .*; expected .* OTHER0"):
        score_files(tmp_path / "p.h5ad", str(study.run.section("A_2")))


def versions(names, symbols):
    return pd.DataFrame({"symbol": symbols}, index=[f"{name}.{i % 9 + 1}" for i, name in enumerate(names)])


NAMED = {
    "versions": versions,
    "genome prefix": lambda names, symbols: pd.DataFrame(index=[f"GRCh38_{name}" for name in names]),
    "symbols": lambda names, symbols: pd.DataFrame(index=symbols),
    "symbols, ids beside": lambda names, symbols: pd.DataFrame({"gene_ids": names}, index=symbols),
}


@pytest.mark.parametrize("kind", NAMED)
def test_genes_that_are_called_differently_get_the_same_scores(kind, scored, tmp_path):
    study, _ = scored
    path = study.run.prediction("knn", "fold_A")
    truth, plain = ad.read_h5ad(study.run.section("A_2")), score_files(path, str(study.run.section("A_2")))
    prediction, symbol = ad.read_h5ad(path), [f"SYM{name[4:]}" for name in truth.var_names]
    prediction.var["symbol"] = [f"SYM{name[4:]}" for name in prediction.var_names]
    prediction.write_h5ad(tmp_path / "p.h5ad")
    truth.var = NAMED[kind](list(truth.var_names), symbol)
    truth[:, ::-1].copy().write_h5ad(tmp_path / "A_2.h5ad")
    result = score_files(tmp_path / "p.h5ad", str(tmp_path / "A_2.h5ad"))
    assert result.means == plain.means
    assert result.genes == plain.genes
    assert f"{plain.genes} genes are called differently" in " ".join(result.notes)


def test_names_of_two_kinds_without_a_bridge_say_so(scored, tmp_path):
    study, _ = scored
    prediction = ad.read_h5ad(study.run.prediction("knn", "fold_A"))
    del prediction.var["symbol"]
    prediction.var_names = ["TP53", "EGFR", *(f"SYM{i}" for i in range(prediction.n_vars - 2))]
    prediction.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(InputError, match="seems to use symbols.*ids such as") as raised:
        score_files(tmp_path / "p.h5ad", str(study.run.section("A_2")))
    assert (raised.value.file, raised.value.field) == (tmp_path / "p.h5ad", "var")


def test_json_has_no_nan(scored, tmp_path):
    study, _ = scored
    section = ad.read_h5ad(study.run.section("A_1"))
    dense = section.X.toarray()
    dense[:, section.var_names == "ENSG00007"] = 0
    section.X = dense
    section.write_h5ad(tmp_path / "A_1.h5ad")
    result = score_files(study.run.prediction("vision_mlp", "fold_A"), str(tmp_path / "A_1.h5ad"))
    assert np.isnan(result.per_gene["log1p"]["ENSG00007"]["pearson"])
    assert json.dumps(plain(result), allow_nan=False)
    assert any("do not vary" in note and "GENE007" in note for note in result.notes)


def test_a_metric_that_is_registered_is_scored_and_shown_everywhere(scored, monkeypatch):
    assert set(METRIC_WORDS) == set(METRICS), "every metric has its line in the glossary, and no other"
    study, scores = scored
    monkeypatch.setitem(METRICS, "bias", replace(METRICS["mse"], name="bias", title="Bias"))
    result = score_files(study.run.prediction("vision_mlp", "fold_B"), str(study.run.section("B_3")))
    assert "bias" in result.means["log1p"]
    assert "Bias" in render(result)
    assert "Spearman" in score_table(scores, "log1p")


def test_counts_in_a_file_of_another_name(scored, tmp_path):
    study, _ = scored
    path = study.run.prediction("knn", "fold_A")
    section = ad.read_h5ad(study.run.section("A_2"))
    section.obs["section"] = "lab_counts"
    section.write_h5ad(tmp_path / "lab_counts.h5ad")
    with pytest.raises(InputError, match="--section") as refused:
        score_files(path, str(tmp_path / "lab_counts.h5ad"))
    assert (refused.value.file, refused.value.value) == (path, "A_1")
    named = score_files(path, str(tmp_path / "lab_counts.h5ad"), name="A_2")
    assert named.means == score_files(path, str(study.run.section("A_2"))).means
    assert named.section == "A_2"


def test_barcodes_that_lost_their_suffix(scored, tmp_path):
    study, _ = scored
    path = study.run.prediction("knn", "fold_A")
    prediction = ad.read_h5ad(path)
    prediction.obs["barcode"] = [f"{barcode}-1" for barcode in prediction.obs["barcode"]]
    prediction.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(InputError, match="suffix") as refused:
        score_files(tmp_path / "p.h5ad", str(study.run.section("A_2")))
    assert refused.value.field == "obs['barcode']"
    assert refused.value.value.endswith("-1")
    prediction.obs["barcode"] = [f"x{number}" for number in range(prediction.n_obs)]
    prediction.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(InputError, match="in both files") as refused:
        score_files(tmp_path / "p.h5ad", str(study.run.section("A_2")))
    assert refused.value.field == "obs['barcode']"


def test_counts_alone_are_scored_whatever_image_and_resolution_are(scored, tmp_path):
    study, _ = scored
    path, truth = study.run.prediction("knn", "fold_A"), tmp_path / "A_2.h5ad"
    section = ad.read_h5ad(study.run.section("A_2"))
    section.obs = section.obs.drop(columns=["array_row", "array_col"], errors="ignore")
    section.uns = {}
    section.write_h5ad(truth)
    known = score_files(path, str(study.run.section("A_2")))
    assert score_files(path, str(truth)).means == known.means
    (tmp_path / "A_2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    assert score_files(path, str(truth)).means == known.means
    metadata = {"pixel_size_um": "half a um", "inter_spot_um": -1.0, "source_image_path": "/gone/A_2.tif"}
    section.uns["spatial"] = {"A_2": {"metadata": metadata, "images": {"hires": np.zeros((5, 5, 3), np.uint8)}}}
    section.write_h5ad(truth)
    assert score_files(path, str(truth)).means == known.means
