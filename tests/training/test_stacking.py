"""A stack learns from predictions that are out of fold at both levels, joins by name, and prefers who is right."""

import json

import anndata
import numpy as np
import pytest

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.pipeline import stack_inputs
from histocrypt.pipeline import train as run_module
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.stack import stack_fold
from histocrypt.pipeline.stack_inputs import inner_folds, prepare_inner, train_inner
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.registry import STACKS
from histocrypt.study import parse_study

MODELS = {
    "vision_mlp": {"width": 0.1, "epochs": 1},
    "fhe_cnn": {"input_px": 32, "width": 0.25, "epochs": 2, "teacher": "colour_ridge", "distil": 0.75},
}
FAMILIES = ["mean_profile", "colour_ridge", "vision_mlp", "fhe_cnn"]


def stacking(study, *, models=None, families=FAMILIES, **changes):
    content = study.model_dump(mode="json")
    content["models"] = MODELS if models is None else models
    return parse_study({**content, "stacking": {"inner_folds": 2, "epochs": 5, "families": families, **changes}})


def train_all(study, fold="fold_a"):
    """Train the families and their inner folds; return every inner result."""
    results = []
    for model in study.inner_models:
        train_fold(study, model, fold, device="cpu")
        results += train_inner(study, model, fold, device="cpu")
    return results


def values(path):
    """Return a prediction as bytes, whatever its compression."""
    found = anndata.read_h5ad(path)
    return [*found.obs_names, *found.var_names, *(np.asarray(layer).tobytes() for layer in found.layers.values())]


def outcome(study, fold="fold_a"):
    """Return all that a stack is learnt from and made of, its inputs for the test patient, and what it predicts."""
    prepare_folds(study)
    for result in train_all(study, fold):
        assert result.predictions[0].is_file()
    stack_fold(study, fold)
    inner = inner_folds(study, fold)
    learnt = {
        f"{family} {part.name}": values(study.run.prediction(family, part.name))
        for family in study.families
        for part in inner.folds
    }
    learnt |= {path: path.read_bytes() for part in inner.folds for path in study.run.fold(part.name).iterdir()}
    learnt["weights"] = (study.run.model("stacking_mlp", fold) / "weights.safetensors").read_bytes()
    learnt["said"] = read_json(study.run.stacking(fold))
    for stack in STACKS:
        learnt[f"{stack} validation"] = values(study.run.prediction(stack, fold, "validation"))
    given = {family: values(study.run.prediction(family, fold)) for family in study.families}
    predicted = {stack: values(study.run.prediction(stack, fold)) for stack in STACKS}
    return learnt, given, predicted


@pytest.mark.parametrize(
    "families", [["mean_profile", "colour_ridge"], pytest.param(FAMILIES, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_held_out_labels_then_images_change_nothing_that_a_stack_is_learnt_from(small_study, rewrite, families):
    study = stacking(small_study, families=families, models=MODELS if families == FAMILIES else {})
    learnt, given, predicted = outcome(study)

    rewrite("a", label_noise=1)
    now, given_now, predicted_now = outcome(study)
    assert now == learnt
    assert given_now == given, "labels of the held-out patient are in no input of its stacked prediction"
    assert predicted_now == predicted

    rewrite("a", label_noise=1, pixel_noise=1)
    now, given_now, predicted_now = outcome(study)
    assert now == learnt
    assert given_now["colour_ridge"] != given["colour_ridge"], "a family looks at the image it predicts"
    assert predicted_now["stacking_mlp"] != predicted["stacking_mlp"]

    # The control: a training patient's labels are noticed, so the test above can fail.
    rewrite("b", label_noise=1)
    now, *_ = outcome(study)
    assert now["weights"] != learnt["weights"]


def test_a_sections_labels_do_not_reach_its_own_level_one_prediction(small_study, rewrite):
    """The panel is the outer fold's; all else that an inner model has comes from its own training patients."""
    study = stacking(small_study)
    train_all(study)
    parts = inner_folds(study, "fold_a").folds
    before = [[values(study.run.prediction(family, part.name)) for family in FAMILIES] for part in parts]
    for section in parts[0].test_sections:
        rewrite(section.removeprefix("S_"), label_noise=1)
    for model in FAMILIES:
        train_inner(study, model, "fold_a", device="cpu")
    after = [[values(study.run.prediction(family, part.name)) for family in FAMILIES] for part in parts]
    assert after[0] == before[0]
    assert all(one != other for one, other in zip(after[1], before[1], strict=True)), "the others learnt from it"


def test_inner_models_saw_neither_what_they_predict_nor_a_held_out_patient(small_study, monkeypatch):
    """Looks at what was really handed to the fits, and at what was really predicted."""
    study = stacking(small_study)
    fits, real = [], run_module.fit

    def spy(study, model, data, **how):
        assert data.validation is None
        fits.append((model, data.fold.name, set(data.train.sections.tolist()), set(data.train.patients.tolist())))
        return real(study, model, data, **how)

    for model in FAMILIES:
        train_fold(study, model, "fold_a", device="cpu")
        with monkeypatch.context() as patched:
            patched.setattr(run_module, "fit", spy)
            train_inner(study, model, "fold_a", device="cpu")
    assert {model for model, *_ in fits} == set(FAMILIES)
    predicted = {family: set() for family in FAMILIES}
    for model, name, sections, patients in fits:
        found = anndata.read_h5ad(study.run.prediction(model, name))
        assert not sections & set(found.obs["section"])
        assert not patients & {"a", *found.obs["patient"]}
        assert not predicted[model] & set(found.obs["section"])
        predicted[model] |= set(found.obs["section"])
    assert all(sections == {"S_b", "S_c", "S_d"} for sections in predicted.values())
    for part in inner_folds(study, "fold_a").folds:  # a student's teacher is the inner fold's own
        teacher = read_json(study.run.model("fhe_cnn", part.name) / "model.json")["teacher"]
        assert teacher["fold"] == part.name


def test_only_what_is_needed_of_inner_models_is_kept(small_study):
    study = stacking(small_study)
    train_all(study)
    kept = {path.parent.parent.parent.name for path in study.run.root.glob("models/*/fold_a/inner_*/weights.*")}
    assert kept == {"colour_ridge"}, "the teacher, which inner students need"
    assert not list(study.run.root.glob("models/*/fold_a/inner_*/last"))


def test_an_inner_training_that_was_killed_goes_on_and_ends_the_same(small_study, monkeypatch, capsys):
    study = stacking(small_study, families=["colour_ridge", "vision_mlp"])
    train_fold(study, "vision_mlp", "fold_a", device="cpu")
    train_inner(study, "vision_mlp", "fold_a", device="cpu")
    names = [part.name for part in inner_folds(study, "fold_a").folds]
    undisturbed = [values(study.run.prediction("vision_mlp", name)) for name in names]
    for name in names:
        study.run.prediction("vision_mlp", name).unlink()

    real = stack_inputs.train_one

    def killed(study, model, data, **how):
        if data.fold.name == names[1]:
            raise KeyboardInterrupt
        return real(study, model, data, **how)

    with monkeypatch.context() as patched:
        patched.setattr(stack_inputs, "train_one", killed)
        with pytest.raises(KeyboardInterrupt):
            train_inner(study, "vision_mlp", "fold_a", device="cpu")
    capsys.readouterr()
    train_inner(study, "vision_mlp", "fold_a", device="cpu")
    assert "goes on after epoch 1" in capsys.readouterr().err
    assert [values(study.run.prediction("vision_mlp", name)) for name in names] == undisturbed


def test_the_stacks_are_predictions_like_any_other(small_study):
    study = stacking(small_study)
    train_all(study)
    result = stack_fold(study, "fold_a")
    assert result.families == tuple(FAMILIES)
    said = read_json(study.run.stacking("fold_a"))
    assert said["by"] == "patient"
    assert "counts" in said["left_out"]["depth_only"]
    assert set(said["left_out"]) == {"depth_only", "encoder_ridge", "knn"}
    like = anndata.read_h5ad(study.run.prediction("colour_ridge", "fold_a"))
    for stack in STACKS:
        found = anndata.read_h5ad(study.run.prediction(stack, "fold_a"))
        assert list(found.obs_names) == list(like.obs_names)
        assert list(found.var_names) == list(like.var_names)
        assert set(found.layers) == set(like.layers)
        np.testing.assert_array_equal(found.obsm["spatial"], like.obsm["spatial"])
        assert np.isfinite(found.X).all()
        assert found.uns["prediction"]["part"] == "test"


def test_a_family_that_lacks_something_is_one_sentence(small_study):
    study = stacking(small_study, families=["mean_profile", "colour_ridge"], models={})
    fold = "fold_a"
    for model in study.families:
        train_fold(study, model, fold)
    with pytest.raises(InputError, match=r"fold_a/inner_1 is not trained; train mean_profile on fold fold_a/inner_1"):
        stack_fold(study, fold)
    assert len(train_inner(study, "baselines", fold)) == 4, "two baselines, two inner folds"
    inner, outer = study.run.prediction("colour_ridge", f"{fold}/inner_1"), study.run.prediction("colour_ridge", fold)
    for path in (inner, outer):
        whole = anndata.read_h5ad(path)
        gene, spot = whole.var_names[2], whole.obs_names[3]
        whole[:, whole.var_names != gene].copy().write_h5ad(path)
        with pytest.raises(InputError, match=rf"colour_ridge/fold_a.*lacks names of the panel: {gene}"):
            stack_fold(study, fold)
        whole[whole.obs_names != spot].copy().write_h5ad(path)
        with pytest.raises(InputError, match=rf"colour_ridge/fold_a.*no prediction for spots {spot}"):
            stack_fold(study, fold)
        whole.write_h5ad(path)
    stack_fold(study, fold)
    changed = stacking(
        small_study, families=["mean_profile", "colour_ridge"], models={"colour_ridge": {"input_px": 24}}
    )
    with pytest.raises(InputError, match="colour_ridge on fold fold_a/inner_1 was trained under other settings"):
        stack_fold(changed, fold)


def test_files_in_any_order_give_the_same_stack(small_study):
    study = stacking(small_study, families=["mean_profile", "colour_ridge"], models={})
    train_all(study)
    stack_fold(study, "fold_a")
    paths = [study.run.prediction(stack, "fold_a", part) for stack in STACKS for part in ("test", "validation")]
    before = [values(path) for path in paths]
    rng = np.random.default_rng(0)
    for name in ("fold_a", "fold_a/inner_1", "fold_a/inner_2"):
        path = study.run.prediction("colour_ridge", name)
        whole = anndata.read_h5ad(path)
        whole[rng.permutation(whole.n_obs), rng.permutation(whole.n_vars)].copy().write_h5ad(path)
    stack_fold(study, "fold_a")
    assert [values(path) for path in paths] == before


def test_a_model_that_learnt_from_what_it_predicts_is_refused(small_study):
    study = stacking(small_study, families=["mean_profile", "colour_ridge"], models={})
    train_all(study)
    file = study.run.model("colour_ridge", "fold_a/inner_2") / "model.json"
    about = read_json(file)
    for section in ("S_a", *inner_folds(study, "fold_a").folds[1].test_sections):
        file.write_text(json.dumps({**about, "train_sections": [*about["train_sections"], section]}))
        with pytest.raises(InputError, match=rf"colour_ridge .*{section}"):
            stack_fold(study, "fold_a")


def test_with_one_training_patient_sections_are_dealt_and_said(small_study, rewrite):
    study = stacking(small_study, families=["mean_profile", "colour_ridge"], models={}, inner_folds=5)
    rewrite("e")
    for patient, section in (("b", "S_c"), ("b", "S_d"), ("a", "S_e")):
        path = study.run.section(section)
        adata = anndata.read_h5ad(path)
        adata.obs["patient"] = patient
        adata.write_h5ad(path)
    prepare_folds(study)
    inner = inner_folds(study, "fold_a")
    assert inner.by == "section"
    assert [part.test_sections for part in inner.folds] == [("S_b",), ("S_c",), ("S_d",)]
    train_all(study)
    stack_fold(study, "fold_a")
    said = read_json(study.run.stacking("fold_a"))
    assert said["by"] == "section"
    assert "had seen other sections of its patient" in said["nesting"]


def test_inner_folds_deal_whole_patients(small_study):
    study = stacking(small_study, inner_folds=3)
    inner = inner_folds(study, "fold_a")
    assert [part.test_patients for part in inner.folds] == [("b",), ("c",), ("d",)]
    prepare_inner(study, inner)
    outer = (study.run.fold("fold_a") / "panel.json").read_bytes()
    for part in inner.folds:
        assert set(part.train_sections) == {"S_b", "S_c", "S_d"} - set(part.test_sections)
        assert (study.run.fold(part.name) / "panel.json").read_bytes() == outer


def test_what_has_no_stack_says_so(small_study):
    with pytest.raises(InputError, match="`stacking: {}`"):
        inner_folds(small_study, "fold_a")
    study = stacking(small_study)
    with pytest.raises(InputError, match="final has no stack"):
        stack_fold(study, "final")
    with pytest.raises(InputError, match=r"unknown model of the stack 'knn'.*baselines"):
        train_inner(study, "knn", "fold_a")
    with pytest.raises(InputError, match=r"vision_mlp.*takes over.*fold_a is not trained"):
        train_inner(study, "vision_mlp", "fold_a")


def test_a_stack_cannot_predict_by_itself_and_says_so(small_study):
    study = stacking(small_study, families=["mean_profile", "colour_ridge"], models={})
    train_all(study)
    stack_fold(study, "fold_a")
    with pytest.raises(InputError, match="mean_profile"):
        load_model(study.run.model("stacking_mlp", "fold_a"))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"families": ["colour_ridge", "resnet"]}, ["unknown model 'resnet'", "resnet18"]),
        ({"families": ["colour_ridge", "depth_only"]}, ["depth_only needs the measured counts"]),
        ({"families": ["colour_ridge"]}, ["needs two models"]),
        ({"families": ["colour_ridge", "colour_ridge"]}, ["families", "twice"]),
        ({"families": 3}, ["stacking.families", "3"]),
        ({"inner_folds": 1}, ["stacking.inner_folds"]),
        ({"folds": 2}, ["unknown key 'folds'", "inner_folds"]),
    ],
)
def test_settings_of_stacks_are_checked(small_study, part, words):
    content = {**small_study.model_dump(mode="json"), "stacking": part}
    with pytest.raises(InputError) as refused:
        parse_study(content)
    for word in words:
        assert word in str(refused.value)


def test_a_study_without_a_stack_is_what_it_was(small_study):
    assert "stacking" not in small_study.model_dump()
    content = small_study.model_dump(mode="json")
    assert parse_study({**content, "stacking": None}).hash() == small_study.hash()
    assert small_study.families == small_study.inner_models == []
    assert not set(STACKS) & set(small_study.scored_names)
    with pytest.raises(InputError, match="stacking_mlp"):
        parse_study({**content, "models": {"stacking_mlp": {}}})


def test_a_teacher_outside_the_stack_is_trained_on_inner_folds_too(small_study):
    study = stacking(small_study, families=["mean_profile", "fhe_cnn"])
    assert study.families == ["mean_profile", "fhe_cnn"]
    assert study.inner_models == ["mean_profile", "colour_ridge", "fhe_cnn"]
