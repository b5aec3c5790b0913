"""Several networks that differ by their seed predict as one: their mean, one file, resumable, never encrypted."""

import anndata
import numpy as np
import pytest
from tests.training.test_distil import fold_of

from histocrypt.data.load import load_training, scaled, scaling_of
from histocrypt.encrypted.compile import compile_model
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.options import Training
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.registry import build, check_no_average
from histocrypt.sections.section import SectionSize
from histocrypt.study import parse_study
from histocrypt.training import loop
from histocrypt.workflow import resources

PLAN = {"width": 0.1, "epochs": 2, "patience": 2}


def with_seeds(study, **changes):
    content = study.model_dump(mode="json")
    content["models"] = {"vision_mlp": {**PLAN, "seeds": 2, **changes}}
    return parse_study(content)


def test_the_mean_of_two_seeds_is_that_of_two_studies_and_comes_back_from_one_file(small_study, tmp_path):
    study = with_seeds(small_study)
    (both,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    names = sorted(path.name for path in both.folder.iterdir())
    assert names == ["curves.csv", "curves_seed_1.csv", "model.json", "weights.safetensors"]
    fold = fold_of(study, "fold_a")
    data = load_training(study, fold, side=36)
    scaling = scaling_of(study, fold)
    train, validation = (scaled(study, scaling, part) for part in (data.train, data.validation))
    alone, epochs = [], []
    for seed in (0, 1):
        settings = study.training_of("vision_mlp").model_copy(update={"seeds": 1})
        one = build("vision_mlp", train.outputs, settings=settings, options={"width": 0.1}, device="cpu")
        epochs.append(one.fit(train, validation, seed=seed)["epochs"])
        alone.append(one.predict(validation))
    assert not np.array_equal(*alone)
    expected = (alone[0] + alone[1]) / 2
    loaded = load_model(both.folder, device="cpu")
    np.testing.assert_allclose(loaded.predictor.predict(validation), expected, atol=1e-6)
    assert both.chosen == {"epochs": round(float(np.median(epochs)))}
    written = anndata.read_h5ad(study.run.prediction("vision_mlp", "fold_a", "validation"))
    layers = np.hstack([written.layers[name] for name in study.target.transforms])
    np.testing.assert_allclose(layers, scaling.restore(expected), atol=1e-5)
    with pytest.raises(InputError) as refused:
        compile_model(both.folder, tmp_path / "bundle")
    assert refused.value.field == "training.seeds"
    assert refused.value.value == 2


def test_killed_in_the_second_network_it_ends_with_the_same_bits(small_study, monkeypatch, capsys):
    study = with_seeds(small_study, refit=True)
    (whole,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    undisturbed = (whole.folder / "weights.safetensors").read_bytes()
    about = read_json(whole.folder / "model.json")
    write, files = loop.write_curves, set()

    def die(path, rows, scores):
        write(path, rows, scores)
        files.add(path)
        if len(files) == 2 and len(rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "KEEPING", 1e9)
    monkeypatch.setattr(loop, "write_curves", die)
    with pytest.raises(KeyboardInterrupt):
        train_fold(study, "vision_mlp", "fold_a", device="cpu")
    monkeypatch.setattr(loop, "write_curves", write)
    capsys.readouterr()
    (resumed,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    assert capsys.readouterr().err.count("goes on after epoch") == 2
    assert (resumed.folder / "weights.safetensors").read_bytes() == undisturbed
    assert {**read_json(resumed.folder / "model.json"), "seconds": 0} == {**about, "seconds": 0}
    assert not (resumed.folder / "last").exists()


@pytest.mark.parametrize("model", ["fhe_cnn", "fhe_resnet18", "he2gene", "stem"])
@pytest.mark.parametrize(("name", "value"), [("seeds", 3), ("smooth_um", 320)])
@pytest.mark.parametrize("where", ["model", "study"])
def test_what_is_one_network_is_refused_when_the_study_is_read(model, where, name, value):
    content = {"name": "x", "sections": [{"path": "a"}], "models": {model: {}}}
    content |= {"models": {model: {name: value}}} if where == "model" else {"training": {name: value}}
    with pytest.raises(InputError) as refused:
        parse_study(content)
    assert refused.value.field == f"models.{model}.{name}"
    assert refused.value.value == value


def test_smoothing_keeps_sections_apart_and_is_not_for_ciphertexts(small_study, tmp_path):
    (plain,) = train_fold(with_seeds(small_study, seeds=1), "vision_mlp", "fold_a", device="cpu")
    before = (plain.folder / "weights.safetensors").read_bytes()
    study = with_seeds(small_study, seeds=1, smooth_um=100)
    fold = fold_of(study, "fold_a")
    every = load_training(study, fold, side=36).train
    alone = load_model(plain.folder, device="cpu").predictor.predict(every)
    (smooth,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    assert (smooth.folder / "weights.safetensors").read_bytes() == before, "training does not look around"
    found = load_model(smooth.folder, device="cpu").predictor.predict(every)
    for section in fold.train_sections:
        rows = every.sections == section
        own = alone[rows].reshape(5, 5, -1)  # 100 um apart: four neighbours, fewer at the border
        total, number = np.zeros_like(own), np.zeros((5, 5, 1))
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            total[here] += own[there]
            number[here] += 1
            total[:, here] += own[:, there]
            number[:, here] += 1
        np.testing.assert_allclose(found[rows].reshape(5, 5, -1), (own + total / number) / 2, atol=1e-5)
    with pytest.raises(InputError) as refused:
        compile_model(smooth.folder, tmp_path / "bundle")
    assert refused.value.field == "training.smooth_um"


def test_what_is_fitted_in_closed_form_heeds_no_average(small_study):
    content = small_study.model_dump(mode="json")
    content["training"] |= {"seeds": 3, "smooth_um": 100}
    (result,) = train_fold(parse_study({**content, "models": {}}), "colour_ridge", "fold_a")
    check_no_average(read_json(result.folder / "model.json"), result.folder)


def test_a_network_that_takes_over_weights_needs_one_to_start_from():
    models = {"resnet18": {"seeds": 2}, "fhe_resnet18": {"teacher": "resnet18", "replace_over": 0.3}}
    with pytest.raises(InputError) as refused:
        parse_study({"name": "x", "sections": [{"path": "a"}], "models": models})
    assert refused.value.field == "models.fhe_resnet18.teacher"
    models["fhe_resnet18"].pop("replace_over")  # it may learn from the mean
    parse_study({"name": "x", "sections": [{"path": "a"}], "models": models})


def test_more_seeds_cost_more_time_and_disk_and_leave_older_studies_as_they_were(small_study):
    one, three = (with_seeds(small_study, seeds=seeds) for seeds in (1, 3))
    sizes = [SectionSize(spots=500)]
    seconds = [resources.needs(resources.train, study, sizes, model="vision_mlp").seconds for study in (one, three)]
    assert seconds[1] - resources.START_S == pytest.approx(3 * (seconds[0] - resources.START_S))
    assert resources.disk_bytes(three, sizes, 3) > resources.disk_bytes(one, sizes, 3)
    assert not {"seeds", "smooth_um", "distil_held_out"} & set(Training().model_dump())
