import dataclasses

import anndata as ad
import numpy as np
import pytest
from scipy.stats import pearsonr

from histocrypt.errors import InputError
from histocrypt.evaluation.metrics import POOLED
from histocrypt.evaluation.scores import EVERY_PATIENT, load_scores, read_folds, score_study
from histocrypt.evaluation.wording import answer, verdict
from histocrypt.files import read_json, write_json
from histocrypt.predictors.registry import BASELINES
from histocrypt.targets.transforms import transform

MAIN = "log1p_cp10k"


def test_scores_are_joined_by_name_whatever_the_order_of_rows_and_columns(scored):
    study, scores = scored
    section = ad.read_h5ad(study.run.section("A_2"))
    prediction = ad.read_h5ad(study.run.prediction("vision_mlp", "fold_A"))
    each = scores.genes.set_index(["model", "section", "transform", "gene"])["pearson"]
    for name in study.target.transforms:
        for gene in prediction.var_names[:4]:
            column = transform(section[:, gene].X, section.obs["total_counts"].to_numpy(), name)[:, 0]
            spots = [f"A_2:{barcode}" for barcode in section.obs_names]
            expected = pearsonr(column, prediction[spots, gene].layers[name][:, 0]).statistic
            assert each["vision_mlp", "A_2", name, gene] == pytest.approx(expected, abs=1e-6)


def test_every_table_holds_every_baseline_and_both_transforms(scored):
    study, scores = scored
    for name in study.target.transforms:
        assert set(BASELINES) < set(scores.of(name).index)
    assert set(scores.paired["baseline"]) == set(BASELINES)
    assert "image_signal" in scores.of(MAIN).index
    assert "image_signal" not in scores.of("log1p").index
    assert "image_signal" not in set(scores.paired["model"])


def test_flat_predictions_are_counted_as_zero_and_reported(scored):
    row = scored[1].of(MAIN).loc["mean_profile"]
    assert row["pearson"] == row["pearson_low"] == row["pearson_high"] == 0
    assert row["n_undefined"] == row["n_scored"] > 0
    assert row["rvd"] == pytest.approx(1)


def test_panels_that_differ_by_fold_are_pooled_over_common_genes_and_unscored_genes_are_named(scored):
    _, scores = scored
    pooled = scores.genes[scores.genes["section"] == POOLED]
    panels = [set(rows["gene"]) for _, rows in scores.genes[scores.genes["section"] != POOLED].groupby("section")]
    assert set(pooled["gene"]) == set.intersection(*panels)
    assert len(panels[0] ^ panels[3]) > 0
    assert set(scores.notes["unscored_genes"]) == {"B_3"}
    assert set(scores.notes["unscored_genes"]["B_3"]) == {"ENSG00038", "ENSG00039"}


def test_intervals_hold_their_scores_and_the_published_way_is_never_lower(scored):
    for name in ("log1p", MAIN):
        table = scored[1].of(name, ceiling=False)
        assert ((table["pearson_low"] <= table["pearson"]) & (table["pearson"] <= table["pearson_high"])).all()
        for k in (5, 10):
            assert (table[f"pcc_{k}_published"] >= table[f"pcc_{k}_training"] - 1e-12).all()


def test_pcc_k_ranks_genes_on_validation_predictions(scored):
    study, scores = scored
    validation = ad.read_h5ad(study.run.section("B_3"))
    prediction = ad.read_h5ad(study.run.prediction("resnet18", "fold_A", "validation"))
    genes = [gene for gene in prediction.var_names if gene in validation.var_names]
    true = transform(validation[:, genes].X, validation.obs["total_counts"].to_numpy(), MAIN)
    spots = [f"B_3:{barcode}" for barcode in validation.obs_names]
    rank = pearsonr(true, prediction[spots, genes].layers[MAIN], axis=0).statistic
    top = [genes[i] for i in np.argsort(-rank)[:5]]
    each = scores.genes.set_index(["model", "section", "transform", "gene"])["pearson"]
    expected = np.mean([each["resnet18", "A_1", MAIN, gene] for gene in top])
    rows = scores.sections.set_index(["model", "section", "transform"])
    assert rows.loc[("resnet18", "A_1", MAIN), "pcc_5_training"] == pytest.approx(expected)


def test_the_verdict_needs_the_whole_interval_on_the_better_side(scored):
    against = scored[1].against("colour_ridge", MAIN)
    assert verdict(against.loc["vision_mlp"]) == "beats"
    assert verdict(against.loc["resnet18"]) == "does worse than"
    assert verdict(_with(against, -0.1, 0.1)) == "does not beat"
    assert verdict(_with(against, float("nan"), float("nan"))) == "cannot be told from"
    lines = answer(scored[1])
    assert "VisionMLP" in lines[0]
    assert "beats colour-only ridge" in lines[1]
    assert any("ResNet-18 does not beat colour-only ridge" in line for line in lines)


def test_a_baseline_that_wins_is_named_as_the_best_and_as_a_baseline(scored):
    _, scores = scored
    summary, paired = scores.summary.copy(), scores.paired.copy()
    summary.loc[summary["model"] == "vision_mlp", "pearson"] = 0.05
    summary.loc[summary["model"] == "depth_only", "pearson"] = 0.99  # does not look at the image
    paired.loc[paired["model"] == "vision_mlp", ["difference", "low", "high"]] = [-0.2, -0.3, 0.1]
    lines = answer(dataclasses.replace(scores, summary=summary, paired=paired))
    assert lines[0].startswith("The best predictor is a baseline: Frozen-encoder ridge reaches")
    assert lines[1].startswith("Frozen-encoder ridge beats colour-only ridge")
    assert any("ResNet-18 and VisionMLP (multi-scale CNN) do not beat colour-only ridge." in line for line in lines)


def _with(table, low, high):
    row = table.loc["resnet18"].copy()
    row["low"], row["high"] = low, high
    return row


def test_what_is_written_is_what_is_read(scored):
    study, scores = scored
    again = load_scores(study)
    assert again.transforms == scores.transforms
    np.testing.assert_allclose(again.summary["pearson"], scores.summary["pearson"], rtol=1e-8)
    assert list(again.paired.columns) == list(scores.paired.columns)
    assert again.notes == read_json(study.run.evaluation / "notes.json")


def test_scoring_again_gives_the_same_numbers(scored):
    study, scores = scored
    again = score_study(study)
    assert again.summary.equals(scores.summary)
    assert again.paired.equals(scores.paired)


def test_no_score_stands_without_a_baseline(fresh):
    path = fresh.run.prediction("colour_ridge", "fold_B")
    path.unlink()
    with pytest.raises(InputError, match=r"colour_ridge.*fold_B\.test\.h5ad: prediction file is missing.*baseline"):
        score_study(fresh)


def test_a_spot_without_a_prediction_is_named(fresh):
    path = fresh.run.prediction("resnet18", "fold_A")
    prediction = ad.read_h5ad(path)
    prediction[prediction.obs_names != "A_1:3x3"].copy().write_h5ad(path)
    with pytest.raises(InputError, match="no prediction for spots 3x3"):
        score_study(fresh)


def test_predictions_that_are_not_finite_are_refused(fresh):
    path = fresh.run.prediction("knn", "fold_A")
    prediction = ad.read_h5ad(path)
    gene = prediction.var_names[3]
    prediction.layers["log1p"][5, 3] = np.nan
    prediction.write_h5ad(path)
    with pytest.raises(InputError, match=f"not finite for {gene}"):
        score_study(fresh)


def test_a_fold_that_learns_from_its_test_patient_is_refused(fresh):
    record = read_json(fresh.run.folds)
    record["folds"][0]["train_sections"] += ["A_3"]
    record["folds"][0]["test_sections"] = ["A_1", "A_2"]  # another section of the same patient is as bad
    write_json(fresh.run.folds, record)
    with pytest.raises(InputError, match="sections A_3"):
        read_folds(fresh)


def test_tables_are_asked_for_before_they_exist(fresh):
    with pytest.raises(InputError, match="histocrypt run"):
        load_scores(fresh)


def test_means_are_told_apart_by_the_question_that_sections_answer(scored):
    scores = scored[1]
    assert set(scores.sections["question"]) == {"laboratory unknown"}  # the made sections state none
    known = {"A": "new laboratory", "B": "new patient, known laboratory"}
    sections = scores.sections.assign(question=scores.sections["patient"].map(known))
    table = dataclasses.replace(scores, sections=sections).by_question(MAIN).set_index(["question", "model"])
    people = scores.patients(MAIN).set_index(["patient", "model"])
    for patient, question in known.items():
        for column in ("pearson", "noise_ceiling", "share"):
            expected = people.loc[(patient, "vision_mlp"), column]
            assert table.loc[(question, "vision_mlp"), column] == pytest.approx(expected)


def test_each_patient_has_an_interval_of_its_own(scored):
    """Differences by patient are those of its sections, and their mean counts every patient the same."""
    _, scores = scored
    apart = scores.apart[scores.apart["transform"] == scores.transforms[0]]
    by_patient = scores.patients(scores.transforms[0]).pivot(index="patient", columns="model", values="pearson")
    for (model, baseline), own in apart.groupby(["model", "baseline"]):
        found = own.set_index("patient")
        expected = by_patient[model] - by_patient[baseline]
        assert found["difference"].drop(EVERY_PATIENT).to_dict() == pytest.approx(expected.to_dict())
        assert found.loc[EVERY_PATIENT, "difference"] == pytest.approx(expected.mean())
        if not (expected == 0).all():
            assert (found["low"] <= found["difference"]).all()
            assert (found["difference"] <= found["high"]).all()
            widths = found["high"] - found["low"]
            assert widths[EVERY_PATIENT] < widths.drop(EVERY_PATIENT).max()
