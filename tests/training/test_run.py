"""One model on one fold: what is written, in which units, and what is refused."""

import json

import anndata
import numpy as np
import pytest

from histocrypt.data.folds import load_folds
from histocrypt.data.load import load_test, load_training, scaled, scaling_of
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.registry import BASELINES, MODELS, Entry
from histocrypt.study import parse_study
from histocrypt.targets.panels import Panel


def changed(study, **parts):
    content = study.model_dump(mode="json")
    for part, values in parts.items():
        content[part].update(values)
    return parse_study(content)


def test_a_network_fold_writes_everything_by_name(small_study):
    study = small_study
    (result,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    folder = study.run.model("vision_mlp", "fold_a")
    assert sorted(path.name for path in folder.iterdir()) == ["curves.csv", "model.json", "weights.safetensors"]
    about = read_json(folder / "model.json")
    assert about["chosen"] == result.chosen
    assert 1 <= result.chosen["epochs"] <= 3
    assert about["train_patients"] == ["b", "c", "d"]
    assert about["test_patients"] == ["a"]

    test = anndata.read_h5ad(study.run.prediction("vision_mlp", "fold_a"))
    panel = Panel.load(study.run.fold("fold_a") / "panel.json")
    assert list(test.var_names) == list(panel.genes)
    assert list(test.var["symbol"]) == list(panel.symbols)
    assert set(test.obs["patient"]) == {"a"}
    assert list(test.obs_names) == [f"S_a:{barcode}" for barcode in test.obs["barcode"]]
    assert list(test.uns["prediction"]["transforms"]) == ["log1p_cp10k", "log1p"]
    np.testing.assert_array_equal(test.X, test.layers["log1p_cp10k"])
    clean = anndata.read_h5ad(study.run.section("S_a"))
    np.testing.assert_array_equal(test.obsm["spatial"], clean[test.obs["barcode"].to_numpy()].obsm["spatial"])
    validation = anndata.read_h5ad(study.run.prediction("vision_mlp", "fold_a", "validation"))
    (fold,) = [fold for fold in load_folds(study.run.folds) if fold.name == "fold_a"]
    assert set(validation.obs["section"]) == set(fold.validation_sections)


def test_a_loaded_model_predicts_the_same_bits(small_study):
    study = small_study
    for name in ("vision_mlp", "resnet18", "colour_ridge", "depth_only", "mean_profile"):
        train_fold(study, name, "fold_a", device="cpu")
        model = load_model(study.run.model(name, "fold_a"), device="cpu")
        (fold,) = [fold for fold in load_folds(study.run.folds) if fold.name == "fold_a"]
        data = load_training(study, fold, side=36)
        predicted = model.predict(load_test(study, data, side=36))
        written = anndata.read_h5ad(study.run.prediction(name, "fold_a"))
        np.testing.assert_array_equal(np.hstack([written.layers[t] for t in study.target.transforms]), predicted)


def test_a_plain_network_is_a_module_and_a_line_of_the_registry(small_study, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Sequential):\n"
        "    input_px = 24\n"
        "    def __init__(self, n_outputs):\n"
        "        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, n_outputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, "mine", Entry("mine:Mine", "network", "Mine"))
    content = small_study.model_dump(mode="json")
    study = parse_study({**content, "models": {"mine": {"epochs": 1}}})
    (result,) = train_fold(study, "mine", "fold_a", device="cpu")
    assert load_model(result.folder, device="cpu").about["title"] == "Mine"
    assert study.run.prediction("mine", "fold_a").is_file()
    with pytest.raises(InputError) as error:
        parse_study({**content, "models": {"mine": {"epoch": 1}}})
    assert (error.value.field, error.value.fix) == ("models.mine", "did you mean 'epochs'?")


def test_all_baselines_beat_nothing_and_are_in_the_transforms_units(small_study):
    study = small_study
    results = train_fold(study, "baselines", "fold_b")
    assert [result.model for result in results] == list(BASELINES)
    clean = anndata.read_h5ad(study.run.section("S_b"))
    for result in results:
        found = anndata.read_h5ad(study.run.prediction(result.model, "fold_b"))
        truth = np.log1p(clean[:, found.var_names].X.toarray())
        assert abs(found.layers["log1p"].mean() - truth.mean()) < 0.5, result.model
    assert results[0].validation_pcc == 0, "the mean profile says nothing within a section"
    assert results[BASELINES.index("colour_ridge")].validation_pcc > 0.2


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("centre", [True, False])
def test_scaling_is_undone(small_study, standardise, centre):
    study = changed(small_study, target={"standardise": standardise, "centre_by_section": centre})
    fold = load_folds(study.run.folds)[0]
    data = load_training(study, fold)
    scaling = scaling_of(study, fold)
    seen = scaled(study, scaling, data.train).targets
    if not standardise and not centre:
        np.testing.assert_array_equal(seen, data.train.targets)
    if centre:
        for section in fold.train_sections:
            np.testing.assert_allclose(seen[data.train.sections == section].mean(axis=0), 0, atol=1e-5)
    back = scaling.restore(seen)
    if centre:  # what differs between sections is gone; what differs within stays, in its own units
        own = data.train.sections == fold.train_sections[0]
        moved = back[own] - data.train.targets[own]
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-4)
    else:
        np.testing.assert_allclose(back, data.train.targets, atol=1e-4)


def test_final_uses_the_median_of_the_folds_and_says_what_is_missing(small_study):
    study = small_study
    with pytest.raises(InputError, match="train resnet18 on fold fold_a first"):
        train_fold(study, "resnet18", "final")
    for number, fold in enumerate("abcd"):
        (result,) = train_fold(study, "colour_ridge", f"fold_{fold}")
        about = read_json(result.folder / "model.json")
        write_json(result.folder / "model.json", {**about, "chosen": {"penalty": 10.0**number}})
    (final,) = train_fold(study, "colour_ridge", "final")
    assert final.chosen == {"penalty": 55.0}
    assert final.predictions == ()
    assert read_json(final.folder / "model.json")["train_patients"] == ["a", "b", "c", "d"]
    other = changed(study, training={"normalise_by_section": False})
    with pytest.raises(InputError, match=r"other settings.*colour_ridge on fold fold_a first"):
        train_fold(other, "colour_ridge", "final")


def test_a_network_final_trains_for_the_chosen_epochs(small_study):
    study = changed(small_study, training={"epochs": 2}, models={"fhe_cnn": {"input_px": 32, "width": 0.25}})
    for fold in "abcd":
        train_fold(study, "fhe_cnn", f"fold_{fold}", device="cpu")
    (final,) = train_fold(study, "fhe_cnn", "final", device="cpu")
    assert len((final.folder / "curves.csv").read_text().splitlines()) == 1 + final.chosen["epochs"]


def test_refit_trains_on_validation_too(small_study):
    study = changed(small_study, training={"refit": True, "epochs": 2})
    (result,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "curves.csv", "curves_refit.csv", "model.json", "weights.safetensors",
    ]  # fmt: skip
    refit = (result.folder / "weights.safetensors").read_bytes()
    study = changed(study, training={"refit": False})
    train_fold(study, "vision_mlp", "fold_a", device="cpu")
    assert (result.folder / "weights.safetensors").read_bytes() != refit


@pytest.mark.parametrize(
    ("model", "fold", "says"),
    [("resnet", "fold_a", "did you mean 'resnet18'"), ("resnet18", "fold_e", "fold_a, fold_b, fold_c, fold_d")],
)
def test_misspelt_names_are_said(small_study, model, fold, says):
    with pytest.raises(InputError, match=says):
        train_fold(small_study, model, fold)


def test_a_side_that_does_not_split_is_said(small_study):
    study = changed(small_study, training={"input_px": 40})
    with pytest.raises(InputError, match=r"vision_mlp.input_px.*found 40.*multiple of 3"):
        train_fold(study, "vision_mlp", "fold_a")


def test_damaged_models_are_one_sentence(small_study):
    study = small_study
    (result,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    weights, described = result.folder / "weights.safetensors", result.folder / "model.json"
    whole, about = weights.read_bytes(), json.loads(described.read_text())

    def refused(match):
        with pytest.raises(InputError, match=match):
            load_model(result.folder)

    weights.write_bytes(whole[: len(whole) // 2])
    refused("truncated")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("not those that model.json describes")
    weights.write_bytes(whole)
    described.write_text(described.read_text()[:500])
    refused("not readable as JSON")
    for key, value, match in [
        ("version", 99, "another version"),
        ("format", "x", "does not describe"),
        ("outputs", None, "outputs.*missing or of the wrong type"),
        ("model", "resnet81", "did you mean 'resnet18'"),
        ("options", {"../../etc": 1}, "unknown option"),
        ("options", {"branches": ["tile"]}, "branches"),
        ("outputs", about["outputs"][::-1], "target_statistics"),
    ]:
        write_json(described, {**about, key: value})
        refused(match)
    described.unlink()
    refused("no trained model")
