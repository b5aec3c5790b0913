"""ReLUs give way to squares epoch by epoch; the epochs before do not count, and batch norm never lags behind."""

import numpy as np
import pytest
import torch
from tests.training.conftest import make_study
from tests.training.test_loop import settings, toy
from torch import nn

from histocrypt.data.folds import load_folds
from histocrypt.errors import InputError
from histocrypt.models.fhe import RELU_GAIN, RELU_OFFSET, Square
from histocrypt.pipeline.train import start_of, train_fold
from histocrypt.predictors.network import NetworkPredictor, settle, train_network
from histocrypt.training.images import vary_contrast


class Squares(nn.Sequential):
    settled = True

    def __init__(self, gain=RELU_GAIN):
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Square(), nn.Flatten(), nn.Linear(8 * 16, 1))
        nn.init.constant_(self[1].weight, gain)
        nn.init.constant_(self[1].bias, RELU_OFFSET)


def trained(network, **changes):
    return network, train_network(
        network, toy(96, 0), toy(40, 1), settings=settings(ema=0, **changes), epochs=6, seed=0, fingerprint="x",
        device=torch.device("cpu"),
    )  # fmt: skip


def test_network_ends_in_squares():
    torch.manual_seed(0)
    network, progress = trained(Squares(), replace_over=0.5)
    assert progress.best_epoch > 3  # the first three epochs still had ReLUs
    assert all(module.share == 1 for module in network.modules() if isinstance(module, Square))
    assert all(row["validation_pcc"] is not None for row in progress.curves)


def test_settled_statistics_are_those_of_all_tiles():
    torch.manual_seed(0)
    network, data = Squares(), toy(192, 0)
    settle(network, data, torch.device("cpu"))
    assert not network.training
    assert network[1].momentum == 0.1
    with torch.no_grad():
        seen = network[0](data.batch(np.arange(192), torch.device("cpu")))
    torch.testing.assert_close(network[1].running_mean, seen.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network[1].running_var, seen.var(dim=(0, 2, 3)), rtol=0.02, atol=1e-5)


def test_outputs_without_bound_are_said():
    torch.manual_seed(0)
    with pytest.raises(InputError, match="diverged"):
        trained(Squares(gain=1e30))


def test_tiles_without_bound_get_the_training_mean(capsys):
    predictor = NetworkPredictor("fhe_resnet18", ("a", "b"), settings=settings(), options={"width": 2, "blocks": [1]})
    predictor.network = predictor._new_network()
    given = np.array([[1, -3], [np.nan, 0], [1e9, 0], [0, -np.inf]], dtype=np.float32)
    np.testing.assert_array_equal(predictor._bounded(given), [[1, -3], [0, 0], [0, 0], [0, 0]])
    assert "3 of 4 tiles" in capsys.readouterr().err


def test_contrast_keeps_its_range():
    images = torch.ones(200, 3, 2, 2)
    found = vary_contrast(images, 0.5, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert float(found.min()) > 1 / 1.5 - 0.5
    assert float(found.max()) < 1.5 + 0.5
    assert torch.equal(found, found[:, :1, :1, :1].expand_as(found))
    assert float(found.std()) > 0.2


def test_start_is_the_teacher(small_study):
    teacher = {"average_pool": True, "epochs": 1, "input_px": 32}
    study = make_study(models={"resnet18": teacher, "fhe_resnet18": {"teacher": "resnet18", "replace_over": 0.3}})
    fold = load_folds(study.run.folds)[0]
    with pytest.raises(InputError, match="resnet18"):
        start_of(study, "fhe_resnet18", fold)
    train_fold(study, "resnet18", fold.name)
    assert type(start_of(study, "fhe_resnet18", fold)).__name__ == "ResNet18"


def test_needs_a_network_to_start_from(small_study):
    study = make_study(models={"fhe_resnet18": {"replace_over": 0.3, "teacher": "colour_ridge"}})
    fold = load_folds(study.run.folds)[0].name
    train_fold(study, "colour_ridge", fold)
    with pytest.raises(InputError, match="replace_over"):
        train_fold(study, "fhe_resnet18", fold)
