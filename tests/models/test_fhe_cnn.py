"""The networks made for encryption: nothing in them but sums, products and squares, in an order that can be walked."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from histocrypt.encrypted.lowering import average_pool, convolution, linear, scaling
from histocrypt.models.fhe import CLEAR, LIMIT, STRIDES, FheCnn, Square, watched


@pytest.mark.parametrize("depth", STRIDES)
def test_depth_is_the_number_of_linear_layers_and_squares(depth):
    network = FheCnn(7, depth=depth).eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    levels = [layer for layer in network.layers if isinstance(layer, nn.Conv2d | nn.Linear | Square)]
    assert len(levels) == depth
    assert [layer.stride[0] for layer in network.layers if isinstance(layer, nn.Conv2d)] == network.strides


@pytest.mark.parametrize("depth", STRIDES)
def test_every_tensor_fits_one_ciphertext(depth):
    sizes = []
    network = FheCnn(200, depth=depth).eval()
    for layer in network.layers:
        layer.register_forward_hook(lambda _, inputs, output: sizes.extend([inputs[0].numel(), output.numel()]))
    network(torch.rand(1, 3, 64, 64))
    assert max(sizes) <= 2**14


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("depth", STRIDES)
def test_the_network_is_the_matrices_and_squares_that_encryption_evaluates(depth, pool):
    """Walks the layers as a compiler does, in float64, batch norm folded."""
    torch.manual_seed(0)
    network = FheCnn(5, depth=depth, width=0.25, pool=pool)
    network(torch.randn(16, 3, 64, 64))  # moves the running statistics
    network.double().eval()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    values, shape, pending = images.numpy(), (3, 64, 64), None
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d):
            pending = convolution(layer.weight.detach().numpy(), None, shape, stride=layer.stride[0])
            shape = pending.target
        elif isinstance(layer, nn.BatchNorm2d):
            gain = (layer.weight / (layer.running_var + layer.eps).sqrt()).detach()
            offset = (layer.bias - gain * layer.running_mean).detach()
            pending = pending.then(scaling(gain.numpy(), offset.numpy(), shape))
        elif isinstance(layer, Square):
            values = pending(values) ** 2
            pending = scaling(np.ones(shape[0]), np.zeros(shape[0]), shape)
        elif isinstance(layer, nn.Linear):
            pending = pending.then(linear(layer.weight.detach().numpy(), layer.bias.detach().numpy(), shape))
            values = pending(values)
        elif isinstance(layer, nn.AvgPool2d):
            pending = average_pool(shape, layer.kernel_size, stride=layer.stride)
            shape = pending.target
        else:
            assert isinstance(layer, nn.Flatten)
    np.testing.assert_allclose(values, network(images).detach().numpy(), atol=1e-10)


def test_layers_come_from_the_namespace_given():
    made = []

    def noted(name):
        def make(*args, **kwargs):
            made.append(name)
            return getattr(CLEAR, name)(*args, **kwargs)

        return make

    ops = SimpleNamespace(**{name: noted(name) for name in vars(CLEAR)})
    network = FheCnn(4, depth=5, ops=ops)
    assert made == [*["Conv2d", "BatchNorm2d", "Quad"] * 2, "AvgPool2d", "Flatten", "Linear"]
    FheCnn(4, depth=5).load_state_dict(network.state_dict())  # the same names of weights


@pytest.mark.parametrize(
    ("options", "words"),
    [({"depth": 4}, "3, 5, 7, 9"), ({"width": 0}, "positive"), ({"side": 60}, "16"), ({"pool": 3}, "pool")],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FheCnn(5, **options)


def test_ranges_are_watched_and_can_be_pushed_down():
    network = FheCnn(5, depth=5, width=0.25).eval()
    images = torch.randn(4, 3, 64, 64)
    entered = network.layers[1](network.layers[0](images))
    with watched(network, largest=True) as ranges:
        network(images)
    assert list(ranges.largest) == ["layers.2", "layers.5"]
    assert ranges.largest["layers.2"] == pytest.approx(float(entered.detach().abs().max()))
    nn.init.constant_(network.layers[1].bias, LIMIT + 1)
    with watched(network) as ranges:
        network(images)
        before = sum(ranges.excess)
        before.backward()
    with torch.no_grad():
        network.layers[1].bias -= 0.1 * network.layers[1].bias.grad / network.layers[1].bias.grad.norm()
    with watched(network) as ranges:
        network(images)
        assert 0 < sum(ranges.excess) < before
    network(images)
    assert len(ranges.excess) == 2  # it is no longer watched
