"""A trained network of plain layers as affine maps with squares between them: what ciphertexts can be put through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted.affine import Affine, average_pool, convolution, linear, scaling
from histocrypt.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Lowered:
    """A network as affine maps with a square between each two."""

    maps: list[Affine]
    strides: list[int]

    @property
    def levels(self) -> int:
        """Multiplicative depth: one for each map and each square."""
        return 2 * len(self.maps) - 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Do in the clear, in double precision, what the evaluator does to ciphertexts: (n, *shape) to (n, outputs)."""
        for number, one in enumerate(self.maps):
            x = one(x if number == 0 else x**2)
        return x

    def largest(self, x: np.ndarray) -> list[float]:
        """Return the largest absolute value that enters each square, for inputs (n, *shape)."""
        found = []
        for one in self.maps[:-1]:
            x = one(x)
            found.append(float(np.abs(x).max()))
            x = x**2
        return found


def lower(network: nn.Module, shape: tuple[int, int, int]) -> Lowered:
    """Turn a network of plain layers into affine maps and squares; batch norm and pooling are merged.

    Parameters
    ----------
    network
        Has ``layers``, a sequence of convolutions, batch norms, squares, average pools, flatten and linear layers.
    shape
        Of its input, (channels, height, width).

    Raises
    ------
    InputError
        If a layer cannot be evaluated on ciphertexts.
    """
    from torch import nn

    from histocrypt.models.polynomial import Square

    maps: list[Affine] = []
    strides: list[int] = []
    current: Affine | None = None

    def array(tensor: Any) -> np.ndarray | None:
        return None if tensor is None else tensor.detach().cpu().double().numpy()

    for layer in network.layers:
        shape = shape if current is None else current.target
        if isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout):
            continue
        if isinstance(layer, Square) and current is not None:
            maps.append(current)
            shape, current = current.target, None
            continue
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1):
            stride, padding = layer.stride[0], layer.padding[0]
            one = convolution(array(layer.weight), array(layer.bias), shape, stride=stride, padding=padding)
            strides.append(stride)
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            gain = array(layer.weight) / np.sqrt(array(layer.running_var) + layer.eps)
            one = scaling(gain, array(layer.bias) - gain * array(layer.running_mean), shape)
        elif isinstance(layer, nn.AvgPool2d):
            one = average_pool(shape, layer.kernel_size, stride=layer.stride, padding=layer.padding)
        elif isinstance(layer, nn.Linear):
            one = linear(array(layer.weight), array(layer.bias), shape)
        else:
            msg = "a layer of this network cannot be evaluated on ciphertexts"
            raise InputError(
                msg,
                field="layers",
                value=type(layer).__name__,
                expected="convolution, batch norm, square, average pool or linear",
            )
        current = one if current is None else current.then(one)
    if current is None:
        msg = "the network ends in a square or has no layers"
        raise InputError(msg, field="layers")
    return Lowered([*maps, current], strides)
