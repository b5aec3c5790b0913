"""What a model says of the genes it predicts goes with it: into its file, its predictions and what `predict` writes."""

import pytest

from histocrypt.data.folds import FINAL
from histocrypt.files import read_json
from histocrypt.pipeline.predictions import PredictionFile
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.predictability import correlations_of


def test_a_model_carries_its_held_out_correlations(small_study):
    study, run = small_study, small_study.run
    train_fold(study, "colour_ridge", "fold_a")
    said = read_json(run.model("colour_ridge", "fold_a") / "model.json")["predictability"]
    assert (said["by"], said["patients"], said["sections"]) == ("patient", 3, 3)  # b, c and d, validation among them
    assert set(said["correlation"]) == set(read_json(run.model("colour_ridge", "fold_a") / "model.json")["outputs"])
    for part in ("test", "validation"):
        file = PredictionFile(run.prediction("colour_ridge", "fold_a", part))
        for transform in study.target.transforms:
            names = [f"{transform}:{gene}" for gene in file.genes]
            assert file.trust(transform).to_numpy() == pytest.approx(correlations_of(said, names), nan_ok=True)
        assert file.trusted_by["patients"] == 3


def test_nothing_of_the_tested_patient_is_in_it(small_study, rewrite):
    where = small_study.run.model("colour_ridge", "fold_a") / "model.json"
    train_fold(small_study, "colour_ridge", "fold_a")
    before = read_json(where)["predictability"]
    rewrite("a", label_noise=5, pixel_noise=6)
    train_fold(small_study, "colour_ridge", "fold_a")
    assert read_json(where)["predictability"] == before
    rewrite("b", label_noise=5)  # who was trained on
    train_fold(small_study, "colour_ridge", "fold_a")
    assert read_json(where)["predictability"] != before


def test_a_model_that_does_not_tell_says_nothing(small_study):
    train_fold(small_study, "mean_profile", "fold_a")
    assert "predictability" not in read_json(small_study.run.model("mean_profile", "fold_a") / "model.json")
    assert PredictionFile(small_study.run.prediction("mean_profile", "fold_a")).trust("log1p") is None


def test_the_final_model_says_it_of_every_patient(small_study):
    for fold in ("fold_a", "fold_b", "fold_c", "fold_d", FINAL):
        train_fold(small_study, "colour_ridge", fold)
    said = read_json(small_study.run.model("colour_ridge", FINAL) / "model.json")["predictability"]
    assert (said["by"], said["patients"]) == ("patient", 4)
