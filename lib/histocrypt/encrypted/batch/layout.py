"""Where the values of many tiles lie: position by position of a grid in the slots, everything else in ciphertexts.

Convolutions whose kernel is their stride see each cell of the image once. If a slot is (position of a grid, tile), and
the place inside a cell and the channel choose the ciphertext, then a weight multiplies whole ciphertexts: it is a
number, not a vector, and nothing has to be rotated (as in CryptoNets, Gilad-Bachrach et al. 2016, but with positions
beside each other, so that a batch is a few hundred tiles in place of eight thousand). The sum over positions that ends
the network is taken by the key owner.

Deep networks have few positions left, and a batch would be thousands of tiles. Their last convolutions can be *folded*:
the grid in the slots is a finer one, and a folded convolution adds ciphertexts rotated by the place in its cell. Slots
whose position is not a multiple of the stride hold nothing of use then, and are blotted out before the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histocrypt.encrypted.single import Sliced

AT_ONCE = 128
"""Tiles that are laid out together."""


@dataclass(frozen=True)
class Layout:
    """How tiles, or vectors of features, fill a batch."""

    channels: int
    """Of the image; of a vector of features: their number."""
    side: int
    """Of the image, pixels; 1 for a vector of features."""
    strides: tuple[int, ...]
    """Of the convolutions, first one first; their kernels are as large."""
    folded: int
    """How many of the last convolutions happen between slots."""
    slots: int
    """Of a ciphertext, a power of two."""

    @property
    def unfolded(self) -> int:
        """How many of the first convolutions happen between ciphertexts."""
        return len(self.strides) - self.folded

    @cached_property
    def grid(self) -> int:
        """Side of the grid whose positions lie in the slots."""
        return self.side // math.prod(self.strides[: self.unfolded])

    @cached_property
    def positions(self) -> int:
        """Positions in the slots: the grid's, rounded up to a power of two."""
        return 1 << (self.grid**2 - 1).bit_length()

    @property
    def tiles(self) -> int:
        """In a batch."""
        return self.slots // self.positions

    @cached_property
    def inputs(self) -> int:
        """Ciphertexts of a batch."""
        return self.channels * math.prod(self.strides[: self.unfolded]) ** 2

    @property
    def first(self) -> int:
        """Ciphertexts that the first map takes at once."""
        return self.channels * (self.strides[0] ** 2 if self.unfolded else 1)

    @cached_property
    def shifts(self) -> list[list[int]]:
        """Rotations of each folded convolution, slots to the left, by place in its cell (row by row)."""
        found, apart = [], 1
        for stride in self.strides[self.unfolded :]:
            cells = [(y, x) for y in range(stride) for x in range(stride)]
            found.append([apart * (y * self.grid + x) * self.tiles for y, x in cells])
            apart *= stride
        return found

    @property
    def rotations(self) -> list[int]:
        """All rotations whose keys are needed."""
        return sorted({step for cell in self.shifts for step in cell if step})

    @cached_property
    def useful(self) -> np.ndarray:
        """(positions,) bool: whether a slot of this position ends up with something that belongs into the sum."""
        apart = math.prod(self.strides[self.unfolded :])
        y, x = np.divmod(np.arange(self.positions), self.grid)
        return (y < self.grid) & (y % apart == 0) & (x % apart == 0)

    def pack(self, values: Sliced) -> np.ndarray:
        """Return (inputs, slots) float32, in the order in which the evaluator takes them.

        Ciphertexts are ordered by place in the cell of the last unfolded convolution, then of the one before, ..., then
        by channel and place in the cell of the first one: what an early map needs lies together.

        Parameters
        ----------
        values
            (n, channels, side, side) or (n, channels), at most `tiles` of them; other places are filled with zeros. A
            few are asked for at a time, so that a batch is held once.
        """
        strides, grid = self.strides[: self.unfolded], self.grid
        split = (grid, *reversed(strides))
        rows, columns = 2, 2 + len(split)
        later = [axis for j in range(1, len(split) - 1) for axis in (rows + j, columns + j)]
        first = [1, *((rows + len(split) - 1, columns + len(split) - 1) if strides else ())]
        packed = np.zeros((self.inputs, self.positions, self.tiles), dtype=np.float32)
        for start in range(0, len(values), AT_ONCE):
            some = np.asarray(values[start : start + AT_ONCE])
            cells = some.reshape(len(some), self.channels, *split, *split)
            ordered = cells.transpose(*later, *first, rows, columns, 0)
            packed[:, : grid**2, start : start + len(some)] = ordered.reshape(self.inputs, grid**2, len(some))
        return packed.reshape(self.inputs, self.slots)
