"""The residual network of squares: what it takes over from a clear ResNet-18, and how ReLUs give way."""

import pytest
import torch

from histocrypt.models.fhe import RELU_GAIN, RELU_OFFSET, FheResNet18, Square, set_share, watched
from histocrypt.models.resnet18 import ResNet18


@pytest.fixture(scope="module")
def clear():
    torch.manual_seed(0)
    network = ResNet18(7, average_pool=True)
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(32, 3, 64, 64))
        network.network.fc.weight *= 20
    return network.eval()


def test_taken_over_network_is_the_clear_one_while_activations_are_relus(clear):
    images = torch.randn(16, 3, 64, 64)
    network = FheResNet18(7)
    network.take_over(clear, images)
    set_share(network.eval(), 0.0)
    with torch.no_grad(), watched(network, largest=True) as ranges:
        assert torch.allclose(network(images), clear(images), atol=1e-3)
    assert max(ranges.largest.values()) < 5  # of order one: a square of it stays so
    before = FheResNet18(7).eval()
    before.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert not torch.allclose(before(images), clear(images), atol=1e-2)  # with squares it is another function


def test_share_runs_from_relu_to_square():
    x = torch.linspace(-2, 2, 9)
    square = torch.nn.Sequential(Square())
    set_share(square, 0.0)
    nearest = torch.relu((x - RELU_OFFSET) / RELU_GAIN)
    assert torch.equal(square(x), nearest)
    set_share(square, 0.5)
    assert torch.allclose(square(x), (nearest + x * x) / 2)
    set_share(square, 1.0)
    assert torch.equal(square(x), x * x)


def test_other_widths_cannot_be_taken_over(clear):
    with pytest.raises(ValueError, match="do not fit"):
        FheResNet18(7, width=16).take_over(clear, torch.randn(2, 3, 64, 64))
