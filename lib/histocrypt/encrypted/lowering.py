"""A trained network of plain layers as affine maps with squares between them: what ciphertexts can be put through.

Maps are sparse matrices; neighbours are multiplied into one, batch norm included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Affine:
    """``y = matrix @ x + bias`` between tensors in C order."""

    matrix: sp.csr_matrix
    bias: np.ndarray
    source: tuple[int, ...]
    """Shape of x."""
    target: tuple[int, ...]
    """Shape of y."""

    def then(self, other: Affine) -> Affine:
        """Return ``other`` after this, as one map."""
        matrix = (other.matrix @ self.matrix).tocsr()
        return Affine(matrix, other.matrix @ self.bias + other.bias, self.source, other.target)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Apply to (n, *source); return (n, *target)."""
        return (self.matrix @ x.reshape(len(x), -1).T).T.reshape(len(x), *self.target) + self.bias.reshape(self.target)


def convolution(
    weight: np.ndarray, bias: np.ndarray | None, shape: tuple[int, int, int], *, stride: int = 1, padding: int = 0
) -> Affine:
    """Return a convolution as a matrix, built from the non-zeros of its kernel at once.

    Parameters
    ----------
    weight
        (outputs, inputs, height, width).
    bias
        (outputs,), or None.
    shape
        (inputs, height, width) of the image.
    stride, padding
        As in PyTorch, the same for both sides.
    """
    outputs, inputs, kernel_height, kernel_width = weight.shape
    channels, height, width = shape
    if channels != inputs:
        raise ValueError(f"a kernel for {inputs} channels cannot see {channels}")
    rows = (height + 2 * padding - kernel_height) // stride + 1
    columns = (width + 2 * padding - kernel_width) // stride + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"a kernel of {kernel_height} x {kernel_width} does not fit an image of {height} x {width}")

    def touched(kernel: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tap, out = np.meshgrid(np.arange(kernel), np.arange(count), indexing="ij")
        inside = out * stride + tap - padding
        valid = (inside >= 0) & (inside < size)
        return tap[valid], out[valid], inside[valid]

    tap_y, out_y, in_y = touched(kernel_height, height, rows)
    tap_x, out_x, in_x = touched(kernel_width, width, columns)
    out_plane = (out_y[:, None] * columns + out_x[None, :]).ravel()
    in_plane = (in_y[:, None] * width + in_x[None, :]).ravel()
    taps = (tap_y[:, None] * kernel_width + tap_x[None, :]).ravel()
    pairs = weight.reshape(outputs * inputs, -1)
    out_channel, in_channel = np.divmod(np.arange(outputs * inputs), inputs)
    row = (out_channel[:, None] * (rows * columns) + out_plane[None, :]).ravel()
    column = (in_channel[:, None] * (height * width) + in_plane[None, :]).ravel()
    values = pairs[:, taps].ravel().astype(np.float64)
    keep = values != 0
    matrix = sp.csr_matrix(
        (values[keep], (row[keep], column[keep])), shape=(outputs * rows * columns, channels * height * width)
    )
    offsets = np.zeros(outputs) if bias is None else np.asarray(bias, dtype=np.float64)
    return Affine(matrix, np.repeat(offsets, rows * columns), shape, (outputs, rows, columns))


def average_pool(shape: tuple[int, int, int], kernel: int, *, stride: int | None = None, padding: int = 0) -> Affine:
    """Return average pooling (padding counts, as in PyTorch) as a matrix."""
    channels, height, width = shape
    weight = np.full((1, 1, kernel, kernel), 1 / kernel**2)
    one = convolution(weight, None, (1, height, width), stride=stride or kernel, padding=padding)
    matrix = sp.kron(sp.eye(channels), one.matrix, format="csr")
    target = (channels, *one.target[1:])
    return Affine(matrix, np.zeros(matrix.shape[0]), shape, target)


def linear(weight: np.ndarray, bias: np.ndarray | None, shape: tuple[int, ...]) -> Affine:
    """Return a fully connected layer on a tensor of any shape."""
    weight = np.asarray(weight, dtype=np.float64)
    offsets = np.zeros(len(weight)) if bias is None else np.asarray(bias, dtype=np.float64)
    if weight.shape[1] != np.prod(shape):
        raise ValueError(f"a layer for {weight.shape[1]} values cannot see {shape}")
    return Affine(sp.csr_matrix(weight), offsets, shape, (len(weight),))


def scaling(gain: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> Affine:
    """Return ``gain * x + offset`` by channel: batch normalisation in evaluation mode, or units of the output."""
    each = int(np.prod(shape[1:], dtype=int))
    return Affine(sp.diags(np.repeat(gain, each), format="csr"), np.repeat(offset, each).astype(float), shape, shape)


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
        """Do in the clear, in float64, what the evaluator does to ciphertexts: ``(n, *shape)`` to (n, outputs)."""
        for number, one in enumerate(self.maps):
            x = one(x if number == 0 else x**2)
        return x

    def largest(self, x: np.ndarray) -> list[float]:
        """Return the largest absolute value that enters each square, for inputs ``(n, *shape)``."""
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

    from histocrypt.models.fhe import Square

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
            problem = "a layer of this network cannot be evaluated on ciphertexts"
            known = "convolution, batch norm, square, average pool or linear"
            raise InputError(problem, field="layers", value=type(layer).__name__, expected=known)
        current = one if current is None else current.then(one)
    if current is None:
        raise InputError("the network ends in a square or has no layers", field="layers")
    return Lowered([*maps, current], strides)
