"""The hackathon from its file to a submission: baselines and a small network on slides that have no counts."""

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.hackathon_file import LABELS, change_table, write_hackathon

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.data.folds import FINAL
from histocrypt.errors import InputError
from histocrypt.evaluation.score_file import render, score_files
from histocrypt.evaluation.scores import load_scores, score_study
from histocrypt.evaluation.wording import answer, limits
from histocrypt.explore.survey import study_sections
from histocrypt.files import read_json
from histocrypt.pipeline.predict import predict_section
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.registry import BASELINES
from histocrypt.report.cards import write_cards
from histocrypt.report.page import write_report
from histocrypt.sections.read import read_section
from histocrypt.study import parse_study
from histocrypt.tissue.preprocess import preprocess_section


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A scored study of three slides, with final models: (study, file)."""
    folder = tmp_path_factory.mktemp("hackathon")
    patch = pytest.MonkeyPatch()
    patch.setenv("HISTOCRYPT_OUTPUTS", str(folder / "outputs"))
    patch.setenv("HISTOCRYPT_CACHE", str(folder / "cache"))
    file = write_hackathon(folder / "challenge.h5", train=3, n_side=6)
    study = parse_study(
        {
            "name": "hackathon",
            "sections": [{"path": str(file)}],
            "preprocessing": {"tile_um": 200, "tile_px": 48, "min_tissue": 0.1},
            "target": {"matrix": "obsm:cell_types", "transforms": ["spot_rank", "proportion"]},
            "panel": {"method": "all"},
            "training": {"epochs": 1, "input_px": 36},
            "models": {"vision_mlp": {"width": 0.1}},
            "evaluation": {"bootstrap": 60, "block_um": 300, "k": [5]},
        }
    )
    run = study.run
    for found in study_sections(study):
        preprocess_section(
            read_section(found), settings=study.preprocessing, section_path=run.section(found.id),
            tiles_path=run.tiles(found.id), stain_path=run.stain(found.id), seed=study.seed, progress=False,
        )  # fmt: skip
    for fold in prepare_folds(study):
        for model in ("baselines", "vision_mlp"):
            train_fold(study, model, fold.name, device="cpu")
    score_study(study)
    yield study, file
    patch.undo()


def test_depth_is_left_out_where_there_are_no_counts_and_every_table_says_so(finished, capsys):
    study, _ = finished
    scores = load_scores(study)
    assert read_json(study.run.folds)["uncounted"] == ["S_1", "S_2", "S_3"]
    assert set(scores.of("spot_rank").index) == {*BASELINES, "vision_mlp"} - {"depth_only"}
    assert "no counts" not in scores.notes["left_out"]["depth_only"]
    assert "there are none in S_1, S_2, S_3" in scores.notes["left_out"]["depth_only"]
    assert any(line.startswith("Sequencing depth only has no score") for line in limits(scores))
    with pytest.raises(InputError, match="depth_only predicts from total counts, and 3 sections have none"):
        train_fold(study, "depth_only", "fold_S_1")
    page = write_report(study).read_text()
    assert "left out: it predicts from total counts" in page
    assert "Cell types from H&amp;E" in page
    assert '<h2 id="genes">Cell types<' in page
    card = (study.run.model("vision_mlp", FINAL) / "README.md", write_cards(study))[0].read_text()
    assert "shares of 35 cell types" in card


def test_the_order_within_a_spot_stands_beside_the_mean_profile(finished):
    study, _ = finished
    scores = load_scores(study)
    for transform in study.target.transforms:
        table = scores.of(transform)
        assert table.loc["mean_profile", "within_spot"] > 0.1  # C1 and C2 are common everywhere
        assert table.loc["mean_profile", "pearson"] == 0
        assert table.loc["colour_ridge", "within_spot"] > 0
        assert (table["within_spot_low"] <= table["within_spot"]).all()
        pairs = scores.against("mean_profile", transform, "within_spot")
        expected = table.loc["colour_ridge", "within_spot"] - table.loc["mean_profile", "within_spot"]
        assert pairs.loc["colour_ridge", "difference"] == pytest.approx(expected)
    said = " ".join(answer(scores))
    assert "The mean profile, which gives every spot the same composition, already reaches" in said
    assert "sequencing depth" not in said


def test_the_test_slide_is_predicted_and_written_as_a_submission(finished, tmp_path):
    study, file = finished
    model = study.run.model("vision_mlp", FINAL)
    for _ in range(2):  # the second time over what the first one wrote
        said = predict_section(model, file, tmp_path / "S_4.h5ad", submission=tmp_path / "S_4.csv")
    assert "36 spots x 35 cell types of S_4" in said
    predicted = anndata.read_h5ad(tmp_path / "S_4.h5ad")
    table = pd.read_csv(tmp_path / "S_4.csv")
    assert table.columns.tolist() == ["ID", *LABELS]
    assert table["ID"].tolist() == list(range(36))
    own = predicted[[f"S_4:{row}" for row in range(36)], LABELS].layers["spot_rank"]
    np.testing.assert_array_equal(table[LABELS].to_numpy(np.float32), own)
    assert predicted.uns["prediction"]["matrix"] == "obsm:cell_types"
    with pytest.raises(InputError, match="section S_4 has no matrix obsm:cell_types"):
        score_files(tmp_path / "S_4.h5ad", f"{file}/S_4")


def test_a_training_slide_is_named_within_the_file_and_scored(finished, tmp_path):
    study, file = finished
    predict_section(study.run.model("colour_ridge", "fold_S_2"), f"{file}/S_2", tmp_path / "S_2.h5ad")
    result = score_files(tmp_path / "S_2.h5ad", f"{file}/S_2")
    rows = load_scores(study).sections.set_index(["model", "section", "transform"])
    for transform in study.target.transforms:
        found = result.within_spot[transform]
        assert found["mean"] == pytest.approx(rows.loc[("colour_ridge", "S_2", transform), "within_spot"], abs=1e-6)
        profile = rows.loc[("mean_profile", "S_2", transform), "within_spot"]
        assert found["mean_profile"] == pytest.approx(profile, abs=1e-6)
    text = render(result)
    assert "Within spots (spot_rank): Spearman" in text
    assert "by the training mean alone" in text


def test_a_submission_that_cannot_be_whole_is_refused_before_work(finished, tmp_path):
    study, _ = finished
    model = study.run.model("colour_ridge", FINAL)
    broken = write_hackathon(tmp_path / "broken.h5", train=1, n_side=6)

    def outside(columns):
        columns["x"] = columns["x"].copy()
        columns["x"][3] = 9999
        return columns

    change_table(broken, "Test/S_2", outside)
    with pytest.raises(InputError, match=r"needs every spot of S_2.*1 outside the image"):
        predict_section(model, broken, tmp_path / "o.h5ad", submission=tmp_path / "o.csv")
    with pytest.raises(InputError, match=r"a name that ends in \.csv"):
        predict_section(model, broken, tmp_path / "o.h5ad", submission=tmp_path / "o.txt")
    assert not (tmp_path / "o.h5ad").exists()
    predict_section(model, broken, tmp_path / "o.h5ad")
    assert anndata.read_h5ad(tmp_path / "o.h5ad").n_obs == 35
