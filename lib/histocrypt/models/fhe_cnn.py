"""FheCnn: a small convolutional network that is evaluated on encrypted tiles as it is, without any approximation.

An encrypted evaluation pays for levels, one per linear layer and one per square, and for the distinct diagonals of each
linear layer's matrix. Hence few layers, squares for activations (CryptoNets, Gilad-Bachrach et al. 2016; LoLa, Brutzkus
et al. 2019), and convolutions whose kernel is their stride: these have one diagonal per output channel, whatever the
size of the image, where an overlapping 3 x 3 convolution of stride 2 has about four times as many. What the last tensor
averages to, texture without place, also carries over to other patients better than a weight for every place.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import nn

from histocrypt.models.polynomial import CLEAR

STRIDES = {3: (8,), 5: (8, 2), 7: (4, 2, 2), 9: (4, 2, 2, 2)}
"""Stride, and kernel, of each convolution by depth."""
CHANNELS = {3: (256,), 5: (64, 128), 7: (32, 64, 128), 9: (32, 64, 128, 256)}
"""Output channels of each convolution at width 1."""


def build_layers(
    n_outputs: int, *, depth: int, width: float, pool: int, side: int, ops: SimpleNamespace
) -> list[nn.Module]:
    """Return the layers in order, made from the namespace ``ops``: convolution, batch norm, square, ...; linear.

    See `FheCnn` for the parameters.
    """
    layers: list[nn.Module] = []
    inputs, grid = 3, side
    for stride, channels in zip(STRIDES[depth], CHANNELS[depth], strict=True):
        outputs = max(4, round(channels * width))
        layers += [
            ops.Conv2d(inputs, outputs, kernel_size=stride, stride=stride, padding=0, bias=False),
            ops.BatchNorm2d(outputs),
            ops.Quad(),
        ]
        inputs, grid = outputs, grid // stride
    if pool < grid:
        layers.append(ops.AvgPool2d(grid // pool, stride=grid // pool, padding=0))
        grid = pool
    return [*layers, ops.Flatten(), ops.Linear(inputs * grid * grid, n_outputs)]


class FheCnn(nn.Module):
    """Convolutions with batch norm and squares, then one linear layer.

    Parameters
    ----------
    n_outputs
        Number of predicted columns.
    depth
        Multiplicative levels: 3, 5, 7 or 9. A linear layer costs one (batch norm is folded into it), a square one.
    width
        Multiplies the channels of every convolution.
    pool
        The last tensor is averaged over a grid of this many cells a side: 1 keeps no place, and fewest weights. It is
        part of the linear layer and costs nothing.
    side
        Side of the input, pixels; divisible by the product of the strides.
    ops
        Namespace of the layers: see `histocrypt.models.polynomial`.
    """

    input_px = 64
    """Side of the input, pixels: 3 x 64 x 64 values fill three quarters of the slots of one ciphertext."""
    sized = True
    """The linear layer depends on the side of the input."""

    def __init__(
        self,
        n_outputs: int,
        *,
        depth: int = 5,
        width: float = 1.0,
        pool: int = 1,
        side: int = input_px,
        ops: SimpleNamespace = CLEAR,
    ) -> None:
        super().__init__()
        if depth not in STRIDES:
            msg = f"depth must be one of {', '.join(map(str, STRIDES))}; found {depth!r}"
            raise ValueError(msg)
        if not width > 0:
            msg = f"width must be positive; found {width!r}"
            raise ValueError(msg)
        self.strides = list(STRIDES[depth])
        whole = math.prod(self.strides)
        if side % whole:
            msg = f"at depth {depth} the side of the input must be a multiple of {whole}; found {side}"
            raise ValueError(msg)
        if pool < 1 or (side // whole) % pool:
            msg = f"pool must divide {side // whole}, the side of the last tensor; found {pool!r}"
            raise ValueError(msg)
        self.layers = nn.Sequential(*build_layers(n_outputs, depth=depth, width=width, pool=pool, side=side, ops=ops))
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                # (1 + x/2)^2 = 1 + x + x^2/4: training starts near a linear network, and signs are not lost.
                nn.init.constant_(layer.weight, 0.5)
                nn.init.constant_(layer.bias, 1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, side, side) to (B, n_outputs)."""
        return self.layers(images)
