"""ReLUs give way to squares epoch by epoch; the epochs before do not count as candidates."""

import pytest
from tests.training.conftest import make_study

from histocrypt.errors import InputError
from histocrypt.models.polynomial import Square
from histocrypt.training.artifacts import load_model
from histocrypt.training.folds import load_folds
from histocrypt.training.run import train_fold

TEACHER = {"average_pool": True, "epochs": 1, "input_px": 32}
STUDENT = {
    "width": 64,
    "blocks": [2, 2, 2, 2],
    "input_px": 32,
    "epochs": 3,
    "teacher": "resnet18",
    "replace_over": 0.34,
}


def test_network_ends_in_squares(small_study):
    study = make_study(models={"resnet18": TEACHER, "fhe_resnet18": {**STUDENT, "learning_rate": 1e-5}})
    fold = load_folds(study.run.folds)[0].name
    train_fold(study, "resnet18", fold)
    (result,) = train_fold(study, "fhe_resnet18", fold)
    assert result.chosen["epochs"] >= 2  # the first epoch still had ReLUs
    network = load_model(result.folder).predictor.network
    assert all(module.share == 1 for module in network.modules() if isinstance(module, Square))


def test_needs_a_network_to_start_from(small_study):
    study = make_study(models={"fhe_resnet18": {**STUDENT, "teacher": "colour_ridge"}})
    fold = load_folds(study.run.folds)[0].name
    train_fold(study, "colour_ridge", fold)
    with pytest.raises(InputError, match="replace_over"):
        train_fold(study, "fhe_resnet18", fold)
