"""The two networks: shapes, names, and what must not be in them."""

import pytest
import torch
from torch import nn

from histocrypt.models.resnet18 import ResNet18
from histocrypt.models.vision_mlp import BRANCHES, VisionMLP, pool_by_matrices
from histocrypt.predictors.registry import MODELS, model_class


@pytest.fixture
def images():
    return torch.rand(2, 3, 78, 78, generator=torch.Generator().manual_seed(0))


def test_default_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in VisionMLP(35).parameters()) == 6_679_843


def test_width_shrinks_the_network(images):
    small = VisionMLP(7, width=0.25)
    assert small(images).shape == (2, 7)
    assert sum(p.numel() for p in small.parameters()) < 500_000


@pytest.mark.parametrize("branches", [("tile",), ("centre", "subtiles"), BRANCHES])
def test_any_subset_of_branches_works(branches, images):
    assert VisionMLP(5, width=0.25, branches=branches)(images).shape == (2, 5)


def test_the_declared_order_of_branches_changes_nothing(images):
    torch.manual_seed(0)
    one = VisionMLP(5, width=0.25, branches=("tile", "subtiles", "centre")).eval()
    other = VisionMLP(5, width=0.25, branches=("centre", "tile", "subtiles")).eval()
    assert not torch.equal(one(images), other(images))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images), other(images))
    torch.manual_seed(0)
    again = VisionMLP(5, width=0.25, branches=("subtiles", "centre", "tile")).eval()
    assert torch.equal(one(images), again(images))


def test_weights_of_other_branches_are_refused_by_name():
    state = VisionMLP(5, width=0.25, branches=("tile", "centre")).state_dict()
    with pytest.raises(ValueError, match=r"'centre', 'tile'.*'centre', 'subtiles', 'tile'"):
        VisionMLP(5, width=0.25).load_state_dict(state)


def test_centre_branch_sees_the_middle_ninth_only(images):
    network = VisionMLP(5, width=0.25, branches=("centre",)).eval()
    before = network(images)
    outside = images.clone()
    outside[:, :, :26] = 0
    inside = images.clone()
    inside[:, :, 26:52, 26:52] = 0
    assert torch.equal(network(outside), before)
    assert not torch.equal(network(inside), before)


def test_subtiles_branch_is_blind_to_the_order_of_subtiles(images):
    network = VisionMLP(5, width=0.25, branches=("subtiles",)).eval()
    swapped = images.clone()
    swapped[:, :, :26, :26], swapped[:, :, 52:, 26:52] = images[:, :, 52:, 26:52], images[:, :, :26, :26]
    torch.testing.assert_close(network(swapped), network(images))


@pytest.mark.parametrize("size", [3, 4, 6, 9, 10])
def test_pooling_by_matrices_is_adaptive_pooling(size):
    x = torch.rand(2, 3, size, size + 1)
    torch.testing.assert_close(pool_by_matrices(x, 3), torch.nn.functional.adaptive_avg_pool2d(x, 3))


@pytest.mark.parametrize("options", [{"branches": ("tile", "tiles")}, {"branches": ()}, {"width": 0}, {"dropout": 1}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="found"):
        VisionMLP(5, **options)


def test_a_side_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="divisible by 3"):
        VisionMLP(5, width=0.25)(torch.rand(1, 3, 80, 80))


def test_average_pool_leaves_no_max_pool_and_torchvision_untouched():
    from torchvision.models import resnet18

    def kinds(module):
        return {type(part) for part in module.modules()}

    assert nn.MaxPool2d not in kinds(ResNet18(5, average_pool=True))
    assert nn.MaxPool2d in kinds(ResNet18(5))
    assert nn.MaxPool2d in kinds(resnet18(weights=None))


@pytest.mark.parametrize("side", [32, 48, 96])
def test_resnet_takes_small_images(side):
    assert ResNet18(9, average_pool=True)(torch.rand(2, 3, side, side)).shape == (2, 9)


PLAIN = [name for name, entry in MODELS.items() if entry.predictor.endswith(":NetworkPredictor")]
"""Networks of tiles; those with a predictor of their own check their options in a plan."""


@pytest.mark.parametrize("name", [name for name in PLAIN if MODELS[name].kind == "network"])
def test_registered_networks_declare_their_input_and_options(name):
    network = model_class(name)
    assert network.input_px % getattr(network, "input_multiple", 1) == 0
    for option in MODELS[name].options.model_fields:
        assert option in network.__init__.__kwdefaults__
