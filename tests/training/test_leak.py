"""Nothing that is chosen or trained may depend on the patients that are held out: not on a bit of it."""

import anndata
import numpy as np
import pytest

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.files import read_json
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.registry import BASELINES

MODELS = (*BASELINES, "vision_mlp", "resnet18")


def outcome(study, fold):
    """Return every chosen or trained artifact of a fold as bytes, and its test predictions as arrays."""
    prepare_folds(study)
    for model in ("baselines", "vision_mlp", "resnet18"):
        train_fold(study, model, fold, device="cpu")
    upstream = {path.name: path.read_bytes() for path in study.run.fold(fold).iterdir()}
    predicted = {}
    for model in MODELS:
        folder = study.run.model(model, fold)
        upstream[f"{model} weights"] = (folder / "weights.safetensors").read_bytes()
        about = read_json(folder / "model.json")
        upstream[f"{model} json"] = {key: value for key, value in about.items() if key != "seconds"}
        upstream[f"{model} validation"] = anndata.read_h5ad(study.run.prediction(model, fold, "validation")).X.tobytes()
        predicted[model] = anndata.read_h5ad(study.run.prediction(model, fold)).X
    return upstream, predicted


@pytest.fixture
def before(small_study):
    return outcome(small_study, "fold_a")


def test_held_out_labels_then_images_change_nothing_upstream(small_study, rewrite, before):
    upstream, predicted = before
    rewrite("a", label_noise=1)
    now, again = outcome(small_study, "fold_a")
    assert now == upstream
    for model in MODELS:
        same = np.array_equal(predicted[model], again[model])
        assert same == (model != "depth_only"), f"{model}: only depth-only may read counts of the patient it predicts"

    rewrite("a", label_noise=1, pixel_noise=1)
    now, again = outcome(small_study, "fold_a")
    assert now == upstream
    for model in set(MODELS) - {"mean_profile", "depth_only"}:
        assert not np.array_equal(predicted[model], again[model]), f"{model} looks at the image it predicts"

    # The control: the same change of a training patient is noticed everywhere, so the test above can fail.
    rewrite("b", label_noise=1, pixel_noise=1)
    rewrite("c", label_noise=1, pixel_noise=1)
    now, _ = outcome(small_study, "fold_a")
    for name in ("panel.json", "target_stats.json", "stain_reference.json", *(f"{model} weights" for model in MODELS)):
        assert now[name] != upstream[name], name


def test_a_test_section_may_lack_labels_altogether(small_study):
    """Predicting opens the test section for names, places and depth only: genes of the panel may be missing."""
    path = small_study.run.section("S_a")
    adata = anndata.read_h5ad(path)
    adata[:, :1].copy().write_h5ad(path)
    train_fold(small_study, "vision_mlp", "fold_a", device="cpu")
    assert anndata.read_h5ad(small_study.run.prediction("vision_mlp", "fold_a")).n_vars == 6
