"""The network that stacks: the published sizes, and blocks that are joined by name."""

import pytest
import torch

from histocrypt.models.stacking_mlp import StackingMLP

FAMILIES = tuple("abcdef")


def test_the_sizes_are_the_published_ones():
    network = StackingMLP(35, FAMILIES)
    first, second, last = 210 * 512 + 512, 512 * 256 + 256, 256 * 35 + 35
    assert sum(p.numel() for p in network.parameters()) == first + second + last + 2 * (512 + 256)
    kinds = [type(layer).__name__ for layer in network.head]
    assert kinds == ["LeakyReLU", "BatchNorm1d", "Dropout", "Linear", "LeakyReLU", "BatchNorm1d", "Dropout", "Linear"]
    assert [layer.p for layer in network.head if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.2]
    assert {layer.negative_slope for layer in network.head if isinstance(layer, torch.nn.LeakyReLU)} == {0.01}


def test_no_order_means_anything():
    x = {name: torch.randn(4, 3) for name in FAMILIES}
    networks = []
    for order in (FAMILIES, FAMILIES[::-1]):
        torch.manual_seed(0)
        networks.append(StackingMLP(3, order).eval())
    one, other = networks
    assert torch.equal(one(x), other(dict(reversed(x.items()))))
    swapped = {**x, "a": x["b"], "b": x["a"]}
    assert not torch.allclose(one(x), one(swapped)), "a family's input is not another's"


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_families_are_distinct_names(names):
    with pytest.raises(ValueError, match="distinct"):
        StackingMLP(3, names)


def test_other_families_are_refused():
    network = StackingMLP(3, ("a", "b"))
    with pytest.raises(ValueError, match=r"'a', 'b'.*'a', 'c'"):
        network({"a": torch.zeros(2, 3), "c": torch.zeros(2, 3)})
