"""Linear layers of a trained network as sparse matrices; neighbours are multiplied into one, batch norm included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


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
        msg = f"a kernel for {inputs} channels cannot see {channels}"
        raise ValueError(msg)
    rows = (height + 2 * padding - kernel_height) // stride + 1
    columns = (width + 2 * padding - kernel_width) // stride + 1
    if rows < 1 or columns < 1:
        msg = f"a kernel of {kernel_height} x {kernel_width} does not fit an image of {height} x {width}"
        raise ValueError(msg)

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
    one = convolution(
        np.full((1, 1, kernel, kernel), 1 / kernel**2),
        None,
        (1, height, width),
        stride=stride or kernel,
        padding=padding,
    )
    matrix = sp.kron(sp.eye(channels), one.matrix, format="csr")
    target = (channels, *one.target[1:])
    return Affine(matrix, np.zeros(matrix.shape[0]), shape, target)


def linear(weight: np.ndarray, bias: np.ndarray | None, shape: tuple[int, ...]) -> Affine:
    """Return a fully connected layer on a tensor of any shape."""
    weight = np.asarray(weight, dtype=np.float64)
    offsets = np.zeros(len(weight)) if bias is None else np.asarray(bias, dtype=np.float64)
    if weight.shape[1] != np.prod(shape):
        msg = f"a layer for {weight.shape[1]} values cannot see {shape}"
        raise ValueError(msg)
    return Affine(sp.csr_matrix(weight), offsets, shape, (len(weight),))


def scaling(gain: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> Affine:
    """Return ``gain * x + offset`` by channel: batch normalisation in evaluation mode, or units of the output."""
    each = int(np.prod(shape[1:], dtype=int))
    return Affine(sp.diags(np.repeat(gain, each), format="csr"), np.repeat(offset, each).astype(float), shape, shape)
