"""Where the values of a tensor lie in ciphertext slots, and linear maps between such tensors as diagonals.

A ciphertext holds ``slots`` real numbers and knows three moves: add, multiply slot by slot, rotate all slots. A matrix
is applied as a sum over its cyclic diagonals: ``y = sum_d diagonal_d * rotate(x, d)`` (Halevi and Shoup, 2014), with
baby and giant steps, so that about 2 * sqrt(diagonals) rotations are enough. What a layer costs is therefore the number
of *distinct* differences ``input slot - output slot``, and that depends on where values lie alone. Here a layout is an
array of slot numbers, so any order can be had:

- `blocked` puts every position of the last grid side by side and treats what lies inside a grid cell as channels. A
  convolution whose stride is its kernel then costs one diagonal per output channel and cell, whatever the image's size.
- Outputs that fill less than half of the slots are computed in several partial sums that the engine adds up by rotating
  (the hybrid method of Juvekar et al., 2018, GAZELLE); each spare slot then holds a copy of an output and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

Diagonals = dict[int, np.ndarray]
"""Offset (0 <= d < slots) to its values, (slots,) float64, by position of the output."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the values of a tensor lie."""

    shape: tuple[int, ...]
    slots: int
    """Slots of one ciphertext, a power of two."""
    index: np.ndarray
    """(prod(shape),) int64: of each value, in C order, ciphertext * slots + slot."""

    @property
    def ciphertexts(self) -> int:
        """How many ciphertexts hold the tensor."""
        return int(self.index.max()) // self.slots + 1

    @property
    def span(self) -> int:
        """The smallest power of two above every slot of a tensor in one ciphertext; `slots` where there are more."""
        if self.ciphertexts > 1:
            return self.slots
        return 1 << int(self.index.max()).bit_length() if self.index.max() else 1

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Return (ciphertexts, slots) float64 with the values in place and zeros elsewhere."""
        flat = np.zeros(self.ciphertexts * self.slots)
        flat[self.index] = np.asarray(values, dtype=np.float64).reshape(-1)
        return flat.reshape(self.ciphertexts, self.slots)

    def unpack(self, slots: np.ndarray) -> np.ndarray:
        """Return the tensor, float64, from what `pack` gave."""
        return np.asarray(slots, dtype=np.float64).reshape(-1)[self.index].reshape(self.shape)


def blocked(shape: tuple[int, int, int], slots: int, *, factors: Sequence[int] = ()) -> Layout:
    """Lay an image out as (channel, cell of each coming stride, position of the last grid).

    Parameters
    ----------
    shape
        (channels, height, width); height and width divisible by the product of ``factors``.
    slots
        Slots of a ciphertext.
    factors
        The strides of the layers to come, first one first. With none, rows follow each other channel by channel. The
        number of positions is rounded up to a power of two.

    Raises
    ------
    ValueError
        If the sides are not divisible, or one channel does not fit a ciphertext.
    """
    channels, height, width = shape
    whole = math.prod(factors)
    if height % whole or width % whole:
        raise ValueError(f"an image of {height} x {width} cannot be split into cells of {whole}")
    y, x = np.arange(height), np.arange(width)
    plane = np.zeros((height, width), dtype=np.int64)
    for factor in factors:
        plane = plane * factor**2 + (y % factor)[:, None] * factor + (x % factor)[None, :]
        y, x = y // factor, x // factor
    grid = (height // whole) * (width // whole)
    positions = 1 << (grid - 1).bit_length()
    plane = plane * positions + y[:, None] * (width // whole) + x[None, :]
    stride = whole**2 * positions  # slots of a channel
    if stride > slots:
        raise ValueError(f"a channel of {height} x {width} needs {stride} slots, a ciphertext has {slots}")
    index = np.arange(channels)[:, None, None] * stride + plane
    return Layout(shape, slots, index.reshape(-1))


def diagonals(matrix: sp.spmatrix, source: Layout, target: Layout) -> tuple[dict[tuple[int, int], Diagonals], int]:
    """Return the diagonals of a matrix between two layouts, by (target ciphertext, source ciphertext).

    Work and memory grow with the number of non-zeros and of diagonals, not with slots squared.

    Parameters
    ----------
    matrix
        (values of target, values of source), both in C order.
    source, target
        Layouts with the same number of slots.

    Returns
    -------
    blocks
        Every block has at least one diagonal (of zeros, where the block is empty).
    folds
        How often the result must be added to itself rotated by slots/2, slots/4, ...

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    slots = source.slots
    if matrix.shape != (len(target.index), len(source.index)) or target.slots != slots:
        raise ValueError(f"a matrix of {matrix.shape} does not map {source.shape} to {target.shape}")
    entries = sp.coo_matrix(matrix)
    rows, columns = target.index[entries.row], source.index[entries.col]
    height = target.span
    folds = (slots // height).bit_length() - 1
    block = (rows // slots) * source.ciphertexts + columns // slots
    rows, columns = rows % slots, columns % slots
    difference = columns - rows
    offset = difference % height
    position = rows + (difference // height % (slots // height)) * height
    values = entries.data.astype(np.float64)
    key = block * slots + offset
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    found: dict[tuple[int, int], Diagonals] = {
        (row, column): {} for row in range(target.ciphertexts) for column in range(source.ciphertexts)
    }
    for start, stop in zip(starts, np.append(starts[1:], len(order)), strict=True):
        chosen = order[start:stop]
        diagonal = np.zeros(slots)
        np.add.at(diagonal, position[chosen], values[chosen])
        if diagonal.any():
            which, where = divmod(int(key[chosen[0]]), slots)
            found[divmod(which, source.ciphertexts)][where] = diagonal
    for one in found.values():
        if not one:
            one[0] = np.zeros(slots)
    return found, folds


def steps(offsets: Sequence[int], slots: int, log_ratio: int) -> tuple[int, list[int], list[int]]:
    """Split offsets into giant and baby steps by the engine's own rule; its choice decides which keys are needed.

    Parameters
    ----------
    offsets
        Of the diagonals.
    slots
        Of a ciphertext.
    log_ratio
        Baby steps for a giant one, binary logarithm, at most.

    Returns
    -------
    n1
        Offsets are split into multiples of it (giant) and remainders (baby).
    giant, baby
        Distinct rotations, zero included.
    """
    wanted = float(1 << log_ratio)
    offsets = np.asarray(offsets) % slots

    def split(n1: int) -> tuple[np.ndarray, np.ndarray]:
        return np.unique(offsets // n1 * n1), np.unique(offsets % n1)

    n1 = chosen = 1
    while n1 < slots:
        giant, baby = split(n1)
        if len(giant) > 1:
            ratio = (len(baby) - 1) / (len(giant) - 1)
            if ratio >= wanted:
                chosen = n1 if ratio == wanted else max(1, n1 // 2)
                break
        n1 *= 2
    giant, baby = split(chosen)
    return chosen, giant.tolist(), baby.tolist()


def best_ratio(
    blocks: dict[tuple[int, int], Diagonals], slots: int, *, have: set[int] | None = None
) -> tuple[int, set[int]]:
    """Return the baby-to-giant ratio (a binary logarithm) with the least work, and all rotations that it needs.

    A baby step costs about half a giant one: its key switch skips the last division (Bossuat et al., 2021). Where the
    rotations that other layers have keys for are given, one that needs a new key costs more.
    """

    def plan(log_ratio: int) -> tuple[float, int, set[int]]:
        work, rotations = 0.0, set()
        for found in blocks.values():
            _, giant, baby = steps(list(found), slots, log_ratio)
            work += len(giant) + 0.5 * len(baby)
            rotations |= {*giant, *baby}
        return work + (0 if have is None else len(rotations - have)), log_ratio, rotations - {0}

    _, log_ratio, rotations = min(map(plan, range(6)), key=lambda planned: planned[:2])
    return log_ratio, rotations


def spots_side_by_side(values: int, spots: int, slots: int) -> Layout:
    """Lay out several spots' vectors so that one diagonal serves them all: value by value, spots next to each other."""
    return Layout((values, spots), slots, np.arange(values * spots))
