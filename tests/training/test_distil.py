"""A student learns from its fold's own teacher: mixed right, honest, resumable, and made again when the teacher is."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from torch import nn

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.data.folds import load_folds
from histocrypt.data.load import joined, load_training, scaled, scaling_of
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.models.fhe import Square, watched
from histocrypt.options import Training
from histocrypt.pipeline.checkpoints import made_from
from histocrypt.pipeline.train import taught, train_fold
from histocrypt.predictors.network import train_network
from histocrypt.study import load_study, parse_study
from histocrypt.training import loop
from histocrypt.training.images import Images, predict

STUDENT = {"input_px": 32, "width": 0.25, "teacher": "colour_ridge", "distil": 0.75}


def with_student(study, models=None, **changes):
    """Return the study with a student beside a small teacher that is a network."""
    content = study.model_dump(mode="json")
    content["models"] = {"vision_mlp": {"width": 0.1, "epochs": 1}, "fhe_cnn": {**STUDENT, **changes}, **(models or {})}
    return parse_study(content)


def fold_of(study, name):
    return {fold.name: fold for fold in load_folds(study.run.folds)}[name]


@pytest.mark.parametrize("teacher", ["colour_ridge", "vision_mlp"])
def test_targets_are_a_mean_of_the_measured_and_the_teachers(small_study, teacher):
    study = with_student(small_study)
    train_fold(study, teacher, "fold_a", device="cpu")
    fold = fold_of(study, "fold_a")
    data = load_training(study, fold, side=32)
    train = scaled(study, scaling_of(study, fold), data.train)

    def mixed(share):
        return taught(study, teacher, share, train, fold=fold, panel=data.panel, device="cpu").targets

    np.testing.assert_array_equal(mixed(0), train.targets)
    soft = mixed(1)
    np.testing.assert_allclose(mixed(0.25), 0.75 * train.targets + 0.25 * soft, atol=1e-6)
    if teacher == "colour_ridge":
        assert loop.mean_section_pearson(soft, train.targets, train.sections) > 0.1
    for section in fold.train_sections:
        np.testing.assert_allclose(soft[train.sections == section].mean(axis=0), 0, atol=1e-5)


def test_held_out_targets_come_from_teachers_that_learnt_neither_the_spot_nor_validation(small_study):
    study = with_student(small_study)
    train_fold(study, "colour_ridge", "fold_a")
    fold = fold_of(study, "fold_a")
    data = load_training(study, fold, side=32)
    scaling = scaling_of(study, fold)
    train, validation = (scaled(study, scaling, part) for part in (data.train, data.validation))

    def soft(spots, **how):
        one = taught(study, "colour_ridge", 1.0, spots, fold=fold, panel=data.panel, held_out=True, **how)
        return dict(zip(one.names.tolist(), one.targets, strict=True))

    before = soft(train)
    patient = train.patients == train.patients[0]
    assert len(set(train.patients)) > 1
    changed = train.targets.copy()
    changed[patient] = np.random.default_rng(0).normal(size=changed[patient].shape)
    after = soft(replace(train, targets=changed))
    same = np.array([np.array_equal(before[name], after[name]) for name in train.names.tolist()])
    np.testing.assert_array_equal(same, patient)  # whose targets changed is the one whose teachers did not see them
    both = soft(joined(train, validation))
    assert any(not np.array_equal(both[name], before[name]) for name in before)
    fitted = taught(study, "colour_ridge", 1.0, train, fold=fold, panel=data.panel).targets
    close = [
        loop.mean_section_pearson(x, train.targets, train.sections) for x in (fitted, np.stack([*before.values()]))
    ]
    assert close[0] > close[1]


def test_a_student_of_what_is_held_out_is_not_that_of_what_was_fitted(small_study):
    weights = []
    for held_out in (False, True):
        study = with_student(small_study, distil_held_out=held_out, refit=True, epochs=1)
        train_fold(study, "colour_ridge", "fold_a")
        (result,) = train_fold(study, "fhe_cnn", "fold_a", device="cpu")
        weights.append((result.folder / "weights.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_a_teacher_never_sees_the_test_section(small_study):
    study = with_student(small_study)
    data = load_training(study, fold_of(study, "fold_a"), side=32)
    other = fold_of(study, f"fold_{data.train.patients[0]}")
    train_fold(study, "colour_ridge", other.name)
    with pytest.raises(InputError) as refused:
        taught(study, "colour_ridge", 0.5, data.train, fold=other, panel=data.panel)
    assert refused.value.field == "sections"


def test_a_student_needs_its_folds_own_teacher_of_the_same_settings(small_study):
    study = with_student(small_study)
    with pytest.raises(InputError, match=r"teacher is not trained.*train colour_ridge on fold fold_a first"):
        train_fold(study, "fhe_cnn", "fold_a", device="cpu")
    train_fold(study, "colour_ridge", "fold_b")
    with pytest.raises(InputError, match="not trained"):
        train_fold(study, "fhe_cnn", "fold_a", device="cpu")
    train_fold(study, "colour_ridge", "fold_a")
    content = study.model_dump(mode="json")
    content["training"]["normalise_by_section"] = False
    with pytest.raises(InputError, match="trained under other settings"):
        train_fold(parse_study(content), "fhe_cnn", "fold_a", device="cpu")


def test_a_student_is_made_again_when_its_teacher_was(small_study, rewrite):
    study = with_student(small_study, teacher="vision_mlp")
    (teacher,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    (first,) = train_fold(study, "fhe_cnn", "fold_a", device="cpu")
    about = read_json(first.folder / "model.json")
    assert about["teacher"]["weights_sha256"] == read_json(teacher.folder / "model.json")["weights"]["sha256"]
    fold = load_folds(study.run.folds)[0]
    assert about["made_from"] == made_from(study, "fhe_cnn", fold)

    rewrite(
        about["train_sections"][0].removeprefix("S_"), pixel_noise=1
    )  # other tiles, the same panel and targets: the study's hashes do not see it
    train_fold(study, "vision_mlp", "fold_a", device="cpu")
    assert about["made_from"] != made_from(study, "fhe_cnn", fold)


def test_the_teacher_and_its_share_matter_and_validation_stays_measured(small_study):
    scores = {}
    for share in (0.0, 0.75):
        study = with_student(small_study, distil=share)
        train_fold(study, "colour_ridge", "fold_a")
        (result,) = train_fold(study, "fhe_cnn", "fold_a", device="cpu")
        validation = anndata.read_h5ad(study.run.prediction("fhe_cnn", "fold_a", "validation"))
        data = load_training(study, fold_of(study, "fold_a"), side=32)
        predicted = np.hstack([validation.layers[name] for name in study.target.transforms])
        again = loop.mean_section_pearson(predicted, data.validation.targets, data.validation.sections)
        assert result.validation_pcc == pytest.approx(again), "judged on what was measured"
        scores[share] = (result.folder / "weights.safetensors").read_bytes()
    assert scores[0.0] != scores[0.75]
    alone = with_student(small_study, teacher=None, distil=0.5)
    (result,) = train_fold(alone, "fhe_cnn", "fold_a", device="cpu")
    assert (result.folder / "weights.safetensors").read_bytes() == scores[0.0]


def test_refit_and_final_learn_from_the_teacher_too(small_study):
    study = with_student(small_study, refit=True, epochs=1)
    for fold in "abcd":
        train_fold(study, "colour_ridge", f"fold_{fold}")
        train_fold(study, "fhe_cnn", f"fold_{fold}", device="cpu")
    train_fold(study, "colour_ridge", "final")
    (final,) = train_fold(study, "fhe_cnn", "final", device="cpu")
    assert read_json(final.folder / "model.json")["teacher"]["fold"] == "final"


@pytest.mark.parametrize("teacher", ["colour_ridge", "vision_mlp"])
def test_held_out_labels_then_images_change_nothing_in_teacher_or_student(small_study, rewrite, teacher):
    study = with_student(small_study, teacher=teacher)

    def outcome():
        prepare_folds(study)
        for model in (teacher, "fhe_cnn"):
            train_fold(study, model, "fold_a", device="cpu")
        folder = study.run.model("fhe_cnn", "fold_a")
        about = {key: value for key, value in read_json(folder / "model.json").items() if key != "seconds"}
        predicted = anndata.read_h5ad(study.run.prediction("fhe_cnn", "fold_a")).X
        return ((folder / "weights.safetensors").read_bytes(), about), predicted

    upstream, predicted = outcome()
    rewrite("a", label_noise=1)
    now, again = outcome()
    assert now == upstream
    np.testing.assert_array_equal(again, predicted)
    rewrite("a", label_noise=1, pixel_noise=1)
    now, again = outcome()
    assert now == upstream
    assert not np.array_equal(again, predicted)
    rewrite(now[1]["train_sections"][0].removeprefix("S_"), label_noise=1)  # the control: training labels are noticed
    now, _ = outcome()
    assert now[0] != upstream[0]


def test_a_killed_student_goes_on_to_the_same_bits(small_study, monkeypatch, capsys):
    study = with_student(small_study, epochs=4, patience=4)
    train_fold(study, "colour_ridge", "fold_a")
    (whole,) = train_fold(study, "fhe_cnn", "fold_a", device="cpu")
    undisturbed = (whole.folder / "weights.safetensors").read_bytes()
    write = loop.write_curves

    def die(path, rows, scores):
        write(path, rows, scores)
        if len(rows) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "KEEPING", 1e9)
    monkeypatch.setattr(loop, "write_curves", die)
    with pytest.raises(KeyboardInterrupt):
        train_fold(study, "fhe_cnn", "fold_a", device="cpu")
    monkeypatch.setattr(loop, "write_curves", write)
    (resumed,) = train_fold(study, "fhe_cnn", "fold_a", device="cpu")
    assert "goes on after epoch 2" in capsys.readouterr().err
    assert (resumed.folder / "weights.safetensors").read_bytes() == undisturbed


@pytest.mark.parametrize(
    ("models", "training", "words"),
    [
        ({"fhe_cnn": {"teacher": "resnet81"}}, {}, ["models.fhe_cnn.teacher", "unknown teacher", "colour_ridge"]),
        ({"fhe_cnn": {"teacher": "resnet18"}}, {}, ["unknown teacher 'resnet18'"]),
        ({"fhe_cnn": {"teacher": "fhe_cnn"}}, {}, ["its own teacher"]),
        ({"fhe_cnn": {"teacher": "resnet18"}, "resnet18": {"teacher": "fhe_cnn"}}, {}, ["its own teacher"]),
        (
            {"fhe_cnn": {"teacher": "resnet18", "distil_held_out": True}, "resnet18": {}},
            {},
            ["models.fhe_cnn.distil_held_out", "closed form"],
        ),
        ({"knn": {"teacher": "colour_ridge"}}, {}, ["models.knn.teacher", "takes no teacher"]),
        ({"fhe_cnn": {"teacher": "knn", "distil": 1.5}}, {}, ["models.fhe_cnn.distil", "1.5"]),
        ({}, {"teacher": "knn"}, ["training.teacher", "under `models`"]),
    ],
)
def test_a_wrong_teacher_is_refused_when_the_study_is_read(models, training, words):
    with pytest.raises(InputError) as refused:
        parse_study({"name": "x", "sections": [{"path": "a"}], "models": models, "training": training})
    for word in words:
        assert word in str(refused.value)


def test_models_trained_before_these_settings_existed_stay_valid():
    assert not {"teacher", "distil", "range_penalty"} & set(Training().model_dump())
    full = Training(teacher="knn", distil=0.9, range_penalty=1)
    assert Training(**full.model_dump(mode="json")) == full
    for name in ("demo", "breast"):
        study = load_study(f"studies/{name}.yaml")
        assert not {"teacher", "distil"} & set(study.model_dump()["training"])


class Squares(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), Square(), nn.Flatten(), nn.Linear(16, 1))
        nn.init.constant_(self[1].weight, 2.0)


def images(n=64):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (n, 3, 8, 8))
    flat = torch.zeros(1, 3, 1, 1)
    target = torch.tensor(pixels[:, :1].mean(axis=(2, 3)) / 255).float()
    return Images(torch.tensor(pixels, dtype=torch.uint8), flat, flat + 1, np.full(n, "s"), target)


def test_the_range_penalty_keeps_what_is_squared_small_and_leaves_other_networks_alone():
    def fit(network, penalty):
        torch.manual_seed(0)
        chosen = Training(epochs=30, batch_size=16, learning_rate=0.03, range_penalty=penalty, augment_stain=0)
        fitted = network()
        train_network(
            fitted, images(), None, settings=chosen, epochs=30, seed=0, device=torch.device("cpu"), fingerprint="x"
        )
        return fitted

    def largest(network):
        with watched(network, largest=True) as ranges:
            predict(network, images(), torch.device("cpu"))
        return ranges.largest["2"]

    free, held = (largest(fit(Squares, penalty)) for penalty in (0, 100))
    assert held < 0.8 * free

    def plain():
        return nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 1))

    one, other = (fit(plain, penalty).state_dict() for penalty in (0, 1))
    assert all(torch.equal(one[key], other[key]) for key in one)
