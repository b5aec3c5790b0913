"""Scores say whether training told which genes are predicted well."""

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from histocrypt.evaluation.metrics import POOLED
from histocrypt.evaluation.scores import load_scores, score_study
from histocrypt.evaluation.trust import TRUSTED
from histocrypt.report.page import trust

MAIN = "log1p_cp10k"


def told(study, model, fold, sign):
    """Write into a prediction what training would have said: the test's own order, or the opposite, with noise."""
    path = study.run.prediction(model, fold)
    prediction = ad.read_h5ad(path)
    genes = load_scores(study).genes
    for transform in study.target.transforms:
        own = genes[(genes["model"] == model) & (genes["transform"] == transform) & (genes["section"] != POOLED)]
        known = own[own["fold"] == fold].groupby("gene")["pearson"].mean().reindex(prediction.var_names)
        prediction.var[f"training_pearson:{transform}"] = sign * known.to_numpy()
    prediction.uns["prediction"]["predictability"] = {"by": "patient", "patients": 2, "sections": 3}
    prediction.write_h5ad(path)


@pytest.fixture(scope="module")
def answered(scored_once, tmp_path_factory):
    """A scored study of which two models say what they trust: one is right, one is wrong."""
    outputs, study, _ = scored_once
    own = tmp_path_factory.mktemp("answered") / "outputs"
    shutil.copytree(outputs, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(own))
        for fold in ("fold_A", "fold_B"):
            told(study, "vision_mlp", fold, 1)
            told(study, "colour_ridge", fold, -1)
        yield study, score_study(study)


def test_trust_that_was_right_and_trust_that_was_wrong(answered):
    _, scores = answered
    rows = (
        scores.trust[scores.trust["transform"] == MAIN].groupby("model")[["rank_agreement", "trusted", "rest"]].mean()
    )
    assert set(rows.index) == {"vision_mlp", "colour_ridge"}  # the others do not tell
    right, wrong = rows.loc["vision_mlp"], rows.loc["colour_ridge"]
    assert right["rank_agreement"] > 0.3 > -0.3 > wrong["rank_agreement"]
    assert right["trusted"] > right["rest"]
    assert wrong["trusted"] < wrong["rest"]


def test_the_trusted_quarter_is_what_training_put_first(answered):
    _, scores = answered
    genes = scores.genes
    own = genes[(genes["model"] == "vision_mlp") & (genes["section"] == "A_2") & (genes["transform"] == MAIN)]
    own = own.sort_values("training_pearson", ascending=False, kind="stable")
    few = max(1, round(TRUSTED * len(own)))
    keys = ["model", "section", "transform"]
    row = scores.trust.set_index(keys).loc[("vision_mlp", "A_2", MAIN)]
    assert row["trusted"] == pytest.approx(own["pearson"][:few].mean())
    assert row["rest"] == pytest.approx(own["pearson"][few:].mean())
    assert int(row["training_patients"]) == 2


def test_tables_come_back_as_they_were_written_and_the_page_shows_trust_where_there_is_any(answered, page):
    study, scores = answered
    again = load_scores(study)
    assert again.trust["trusted"].to_numpy() == pytest.approx(scores.trust["trusted"].to_numpy())
    right, wrong = trust(again, MAIN)
    assert right["better"] == 2
    assert wrong["better"] == 0
    text = Path(page).read_text()
    assert 'id="trust"' not in text  # no model of that study tells


def test_a_study_whose_models_tell_nothing_has_an_empty_table_of_trust(scored):
    study, scores = scored
    assert len(scores.trust) == len(load_scores(study).trust) == 0
    assert np.isnan(scores.genes["training_pearson"]).all()
