"""Tensors stored several times over, each copy rotated further, so that spare slots save diagonals.

A tensor of n values that fills 1/f of a ciphertext is worth storing f times: the products of a diagonal with all slots
then count f times. But f equal copies are worth nothing, since slot p and slot p + n meet the same values at every
rotation. Here copy b is rotated by its own shift, and the partial sums of an output lie in slots that see different
shifts; the engine adds them up by rotating. A 3 x 3 convolution of 64 channels then has 576 / f diagonals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

Blocks = dict[tuple[int, int], dict[int, np.ndarray]]
"""(target ciphertext, source ciphertext) to offset to diagonal."""


@dataclass(frozen=True, eq=False)
class Shifted:
    """Where the values of a tensor lie, in all their copies."""

    shape: tuple[int, ...]
    slots: int
    """Slots of a ciphertext, a power of two."""
    position: np.ndarray
    """(prod(shape),) int64: of each value, in C order, in an unshifted copy."""
    shifts: tuple[int, ...] = (0,)
    """Of the copies within a period: copy b holds at its slot i what lies at i + shift in an unshifted one. The pattern
    repeats until the ciphertext is full."""
    size: int = 0
    """Slots of a copy, a power of two; 0: the smallest that holds the tensor."""
    ciphertext: np.ndarray | None = None
    """(prod(shape),) int64: which ciphertext holds each value, if there are several."""

    def __post_init__(self) -> None:
        if not self.size:
            object.__setattr__(
                self, "size", 1 << int(self.position.max()).bit_length() if len(self.position) > 1 else 1
            )
        if self.ciphertext is None:
            object.__setattr__(self, "ciphertext", np.zeros(len(self.position), dtype=np.int64))
        if self.position.max() >= self.size or self.period > self.slots:
            raise ValueError(f"{len(self.shifts)} copies of {self.size} slots do not fit {self.slots}")

    @property
    def ciphertexts(self) -> int:
        """How many ciphertexts hold the tensor."""
        return int(self.ciphertext.max()) + 1

    @property
    def period(self) -> int:
        """Slots after which the pattern of copies repeats."""
        return self.size * len(self.shifts)

    def with_shifts(self, shifts: tuple[int, ...]) -> Shifted:
        """Return the same layout with other copies."""
        return Shifted(self.shape, self.slots, self.position, shifts, self.size, self.ciphertext)

    def inside(self, copy: int) -> np.ndarray:
        """Return (values,) slots of the values inside a copy, counted from its begin."""
        return (self.position - self.shifts[copy % len(self.shifts)]) % self.size

    def pack(self, values: np.ndarray, *, copies: int | None = None) -> np.ndarray:
        """Return (ciphertexts, slots) float64; ``copies``: fill this many only, zeros elsewhere."""
        packed = np.zeros((self.ciphertexts, self.slots))
        for copy in range(self.slots // self.size if copies is None else copies):
            packed[self.ciphertext, copy * self.size + self.inside(copy)] = np.asarray(values, dtype=float).reshape(-1)
        return packed

    def unpack(self, slots: np.ndarray) -> np.ndarray:
        """Return the tensor, float64, from the first copy."""
        return np.asarray(slots)[self.ciphertext, self.inside(0)].reshape(self.shape)


def rows(shape: tuple[int, ...], slots: int, *, shifts: tuple[int, ...] = (0,)) -> Shifted:
    """Lay a tensor out in C order."""
    return Shifted(shape, slots, np.arange(int(np.prod(shape))), shifts)


def cells(shape: tuple[int, int, int], slots: int, factor: int, *, minor: bool = True) -> Shifted:
    """Lay an image out so that what lies in one cell of ``factor`` x ``factor`` pixels counts as channels.

    A convolution of that stride then moves by whole grid positions.

    Parameters
    ----------
    shape
        (channels, height, width).
    slots
        Of a ciphertext.
    factor
        Side of a cell; divides height and width.
    minor
        Whether the place in the cell is counted faster than the channel; otherwise slower.
    """
    channels, height, width = shape
    channel, y, x = np.meshgrid(np.arange(channels), np.arange(height), np.arange(width), indexing="ij")
    cell = y % factor * factor + x % factor
    unit = channel * factor**2 + cell if minor else cell * channels + channel
    grid = (height // factor) * (width // factor)
    position = unit * grid + y // factor * (width // factor) + x // factor
    return Shifted(shape, slots, position.reshape(-1))


def spread(shape: tuple[int, int, int], slots: int, factor: int, *, room: int = 0) -> Shifted:
    """Lay an image that needs several ciphertexts out as `cells`, an equal share of channels in each.

    ``room``: slots that are filled, a power of two; where it is not all of them, they hold copies.
    """
    channels, height, width = shape
    count = -(-channels * height * width // (room or slots))
    part = cells((channels // count, height, width), slots, factor, minor=False)
    return Shifted(
        shape, slots, np.tile(part.position, count), (0,), part.size, np.repeat(np.arange(count), len(part.position))
    )


def offsets(
    matrix: sp.spmatrix, source: Shifted, target: Shifted, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Choose for every non-zero, and every copy of its output, the rotation at which it is added up.

    Parameters
    ----------
    matrix
        (values of target, values of source).
    source, target
        Layouts. All copies of the source are filled; the target has the copies of one period, and is repeated by
        `folds`.
    groups
        Of partial sums, one period of the target each; 1: each sum is complete as it is.

    Returns
    -------
    offset, slot, block, entry
        (n,) int32 each: the rotation; the slot of the product; target ciphertext * source ciphertexts + source
        ciphertext; the number of the non-zero in C order of the matrix's own coordinates.
    """
    if matrix.shape != (len(target.position), len(source.position)) or groups * target.period > target.slots:
        raise ValueError(f"a matrix of {matrix.shape} and {groups} groups do not map {source.shape} to {target.shape}")
    entries = sp.coo_matrix(matrix)
    block = (target.ciphertext[entries.row] * source.ciphertexts + source.ciphertext[entries.col]).astype(np.int32)
    inside = np.stack([source.inside(copy) for copy in range(len(source.shifts))]).astype(np.int32)
    number = np.arange(len(block), dtype=np.int32)
    found = []
    for copy in range(len(target.shifts)):
        place = (copy * target.size + target.inside(copy)).astype(np.int32)[entries.row]
        best = np.full(len(place), source.slots, dtype=np.int32)
        where = place.copy()
        for group in range(groups):
            slot = place + np.int32(group * target.period)
            which, begin = slot // source.size, slot % source.size  # powers of two
            here = inside[which % len(inside), entries.col] - begin
            after = inside[(which + 1) % len(inside), entries.col] - begin + source.size
            distance = np.where(here >= 0, here, after)
            better = distance < best
            np.copyto(best, distance, where=better)
            np.copyto(where, slot, where=better)
        found.append((best, where, block, number))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct keys, ascending, and which of them each key is; keys are small numbers, so none is sorted."""
    present = np.zeros(int(keys.max(initial=0)) + 1, dtype=bool)
    present[keys] = True
    number = np.cumsum(present) - 1
    return np.flatnonzero(present), number[keys]


def folds(target: Shifted) -> int:
    """Return how often a sum must be added to itself rotated by slots/2, slots/4, ... to fill all periods."""
    return (target.slots // target.period).bit_length() - 1


def count(matrix: sp.spmatrix, source: Shifted, target: Shifted, groups: int) -> int:
    """Return how many diagonals `diagonals` would give."""
    offset, _, block, _ = offsets(matrix, source, target, groups)
    return len(_distinct(block * source.slots + offset)[0])


def diagonals(matrix: sp.spmatrix, source: Shifted, target: Shifted, groups: int) -> Blocks:
    """Return the diagonals of a matrix between two layouts; every block has at least one. See `offsets`."""
    offset, slot, block, entry = offsets(matrix, source, target, groups)
    keys, which = _distinct(block * source.slots + offset)
    dense = np.zeros((len(keys), source.slots))
    dense[which, slot] = sp.coo_matrix(matrix).data[entry]
    found: Blocks = {(row, column): {} for row in range(target.ciphertexts) for column in range(source.ciphertexts)}
    for key, diagonal in zip(keys, dense, strict=True):
        where, distance = divmod(int(key), source.slots)
        found[divmod(where, source.ciphertexts)][distance] = diagonal
    for one in found.values():
        if not one:
            one[0] = np.zeros(source.slots)
    return found
