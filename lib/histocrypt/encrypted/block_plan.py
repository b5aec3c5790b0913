"""How a residual block is laid out in slots, so that its convolutions have the fewest diagonals."""

from __future__ import annotations

from dataclasses import dataclass

import scipy.sparse as sp

from histocrypt.encrypted import shifted
from histocrypt.encrypted.residual import Residual
from histocrypt.encrypted.shifted import Shifted, cells, rows


def pattern(source: Shifted, period: int, groups: int) -> Shifted:
    """Shift copies of a tensor so that slots ``period`` apart see values that many groups apart."""
    same = max(1, period // source.size)
    copies = source.slots // source.size
    step = source.size // groups
    return source.with_shifts(tuple(copy // same * step % source.size for copy in range(copies)))


@dataclass(frozen=True)
class Plan:
    """How a block is laid out."""

    laid: Shifted
    """Its input, after the shifts."""
    inner: Shifted
    """Between its convolutions."""
    outer: Shifted
    groups: int
    """Of partial sums in the first convolution."""
    kept: int
    """Differently shifted copies of the inner tensor: the groups of the second convolution."""


def plan_block(block: Residual, slots: int) -> Plan:
    """Lay a block out with the fewest diagonals.

    Spare slots serve the first convolution, as groups of partial sums, or the second, as shifted copies of the inner
    tensor: the product of both numbers is what there is to share out.
    """
    shape, stride = block.first.source, block.first.source[1] // block.first.target[1]
    base = rows(shape, slots) if stride == 1 else cells(shape, slots, stride)  # type: ignore[arg-type]
    outer = rows(block.first.target, slots)
    spare = slots // outer.size
    first = shifted.count(block.first.matrix, base, outer, 1)
    second = shifted.count(block.second.matrix, outer, outer, 1)
    found = []
    shift, straight = sp.eye(len(base.position), format="csr"), rows(shape, slots)
    for kept in (1 << power for power in range(min(spare, outer.size).bit_length())):
        inner = rows(block.first.target, slots, shifts=tuple(copy * outer.size // kept for copy in range(kept)))
        for groups in (1 << power for power in range(min(spare // kept, base.size).bit_length())):
            plan = Plan(pattern(base, inner.period, groups), inner, outer, groups, kept)
            work = first / groups + second / kept + shifted.count(shift, straight, plan.laid, 1)
            found.append((work, kept, plan))
    return min(found, key=lambda one: one[:2])[2]


def reach(source: Shifted, target: Shifted) -> int:
    """Return the largest number of groups of a target whose slots all see different values of the source."""
    return max(1, source.period // target.period)
