"""Residual networks with bootstrapping: compiled to one file a layer, so that memory holds two layers and no more.

A block of the network is four steps, each one model file for the engine:

=====  ==========================================================  =======
shift  lay copies of the input out shifted (see `shifted`)         6 to 5
first  3 x 3 convolution, square                                   5 to 3
sum    3 x 3 convolution and shortcut in one matrix, square        3 to 1
boot   refresh                                                     1 to 6
=====  ==========================================================  =======

With ReLUs for activations (`residual.relu`) each square, with the refresh after it, gives way to a file that refreshes
four times. `plan_block` lays a block out so that its convolutions have the fewest diagonals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from histocrypt.encrypted import engine
from histocrypt.encrypted.packing import best_ratio
from histocrypt.encrypted.parameters import LEVELS, Parameters
from histocrypt.encrypted.resnet import residual, shifted
from histocrypt.encrypted.resnet.keys import bootstrapping_primes
from histocrypt.encrypted.resnet.residual import Network, Residual
from histocrypt.encrypted.resnet.shifted import Shifted, cells, rows, spread
from histocrypt.files import write_json

CELL = 4
"""Pixels of the input in a cell of 4 x 4 count as channels: the stem and its pool halve the image twice."""
NEEDED = 3
"""Level at which a block of ReLUs begins: shifts, a convolution, and one that refreshing takes."""


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


def plan_block(block: Residual, slots: int, *, room: int = 0) -> Plan:
    """Lay a block out with the fewest diagonals; ``room``: slots after which the inner tensor repeats, if not all.

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
    most = min(spare, outer.size, (room or slots) // outer.size)
    for kept in (1 << power for power in range(most.bit_length())):
        inner = rows(block.first.target, slots, shifts=tuple(copy * outer.size // kept for copy in range(kept)))
        for groups in (1 << power for power in range(min(spare // kept, base.size).bit_length())):
            plan = Plan(pattern(base, inner.period, groups), inner, outer, groups, kept)
            work = first / groups + second / kept + shifted.count(shift, straight, plan.laid, 1)
            found.append((work, kept, plan))
    return min(found, key=lambda one: one[:2])[2]


def reach(source: Shifted, target: Shifted) -> int:
    """Return the largest number of groups of a target whose slots all see different values of the source."""
    return max(1, source.period // target.period)


@dataclass
class Step:
    """One file for the engine."""

    name: str
    inputs: tuple[str, ...]
    """Names of the steps whose outputs it takes; ``input``: the tile."""
    diagonals: int = 0
    level: int = 0
    """Of its input."""
    rotations: tuple[int, ...] = ()
    """That its evaluation needs keys for."""
    refreshes: int = 0
    """Bootstrappings of each ciphertext; a step with any has no diagonals."""
    ciphertexts: int = 1
    """Of its output."""


@dataclass
class Compiled:
    """What `compile_network` wrote."""

    steps: list[Step]
    rotations: set[int]
    source: Shifted
    """Layout of the input, which the client fills in all its copies."""
    target: Shifted
    level: int
    """At which the input is encrypted."""


class _Writer:
    """Writes steps, and remembers them and the rotations that they need."""

    def __init__(self, folder: Path, parameters: Parameters) -> None:
        self.folder, self.parameters = folder, parameters
        self.steps: list[Step] = []
        self.rotations: set[int] = set()
        self.refreshed = 1 << parameters.bootstrapping.log_slots
        """Slots after which what is refreshed must repeat: bootstrapping adds up what lies so far apart."""
        self._repeats: dict[str, bool] = {}

    def linear(
        self,
        name: str,
        parts: Sequence[tuple[str, sp.spmatrix, Shifted, int]],
        bias: np.ndarray,
        target: Shifted,
        level: int,
        *,
        square: bool = False,
    ) -> None:
        """Write the sum of matrices times earlier outputs, and its square: (input, matrix, layout, groups) each."""
        slots, found, column = self.parameters.slots, {}, 0
        for _, matrix, source, groups in parts:
            for (row, one), diagonals in shifted.diagonals(matrix, source, target, groups).items():
                found[row, column + one] = diagonals
            column += source.ciphertexts
        log_ratio, rotations = best_ratio(found, slots, have=self.rotations)
        folds = shifted.folds(target)
        rotations |= {slots >> (step + 1) for step in range(folds)}
        self.rotations |= rotations
        packed = target.pack(bias, copies=len(target.shifts))
        nodes = [engine.linear_node("linear", level, (), found, packed, log_ratio=log_ratio, folds=folds)]
        if square:
            nodes.append(engine.Node("square", "quad", level - 1, ("linear",)))
        engine.write_model(self.folder / f"{name}.orion", self.parameters, nodes, rotations)
        inputs = tuple(part[0] for part in parts)
        diagonals = sum(map(len, found.values()))
        step = Step(name, inputs, diagonals, level, tuple(sorted(rotations)), ciphertexts=target.ciphertexts)
        self.steps.append(step)
        self._repeats[name] = target.period <= self.refreshed

    def refresh(self, source: str) -> tuple[str, int]:
        """Write a bootstrapping; return its name and the level of its output."""
        node = engine.Node("refresh", "bootstrap", 1, (), residual.refresh_config(self.parameters))
        return self._refreshing(f"{source}_boot", source, [node], 1), LEVELS

    def activated(self, source: str, *, square: bool, level: int = 0) -> tuple[str, int]:
        """Write a ReLU, which refreshes too; a square was part of its layer. Return the name and the level after it."""
        if square:
            return source, level
        return self._refreshing(
            f"{source}_relu", source, residual.nodes(self.parameters), residual.REFRESHES
        ), residual.LEFT

    def _refreshing(self, name: str, source: str, nodes: list[engine.Node], refreshes: int) -> str:
        if not self._repeats[source]:
            raise ValueError(f"the layout of {source} does not repeat every {self.refreshed} slots")
        engine.write_model(self.folder / f"{name}.orion", self.parameters, nodes, set())
        ciphertexts = next(step.ciphertexts for step in self.steps if step.name == source)
        self.steps.append(Step(name, (source,), level=1, refreshes=refreshes, ciphertexts=ciphertexts))
        return name


def compile_network(network: Network, parameters: Parameters, folder: Path) -> Compiled:
    """Write a network, already `normalised`, as files for the engine and ``steps.json``.

    Parameters
    ----------
    network
        Its blocks must all fit half the slots of one ciphertext.
    parameters
        Of `histocrypt.encrypted.parameters.bootstrapped`.
    folder
        Made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slots, write = parameters.slots, _Writer(folder, parameters)
    source = cells(network.stem.source, slots, CELL, minor=False)  # type: ignore[arg-type]
    square, room = network.activation == "square", slots if network.activation == "square" else write.refreshed
    wide = spread(network.stem.target, slots, 2, room=room)  # type: ignore[arg-type]
    x = rows(network.pool.target, slots)
    write.linear("stem", [("input", network.stem.matrix, source, 1)], network.stem.bias, wide, 4, square=square)
    last, level = write.activated("stem", square=square, level=2)
    level = level if square else NEEDED + 1
    write.linear("pool", [(last, network.pool.matrix, wide, 1)], network.pool.bias, x, level)
    last, level = "pool", level - 1
    if square:
        last, level = write.refresh("pool")
    plans: dict[tuple, Plan] = {}
    for number, block in enumerate(network.blocks):
        kind = (block.first.source, block.first.target)
        if kind not in plans:
            plans[kind] = plan_block(block, slots, room=room)
        plan = plans[kind]
        name = f"block{number}"
        shift = sp.eye(len(x.position), format="csr")
        write.linear(f"{name}_shift", [(last, shift, x, 1)], np.zeros(len(x.position)), plan.laid, level)
        first = (f"{name}_shift", block.first.matrix, plan.laid, plan.groups)
        write.linear(f"{name}_first", [first], block.first.bias, plan.inner, level - 1, square=square)
        inner, inner_level = write.activated(f"{name}_first", square=square, level=level - 3)
        if block.shortcut.source == block.shortcut.target:
            skip = (last, block.shortcut.matrix, x, 1)
        else:
            skip = (f"{name}_shift", block.shortcut.matrix, plan.laid, reach(plan.laid, plan.outer))
        write.linear(
            f"{name}_sum",
            [(inner, block.second.matrix, plan.inner, plan.kept), skip],
            block.second.bias + block.shortcut.bias,
            plan.outer,
            min(inner_level, level - 1),
            square=square,
        )
        last, x = f"{name}_sum", plan.outer
        if not square:
            last, level = write.activated(last, square=False)[0], NEEDED
        elif number < len(network.blocks) - 1:
            last, level = write.refresh(last)
    target = rows(network.head.target, slots)
    groups = reach(x, target)
    write.linear("head", [(last, network.head.matrix, x, groups)], network.head.bias, target, 1)
    made = Compiled(write.steps, write.rotations, source, target, 4)
    write_json(
        folder / "steps.json",
        {
            "parameters": parameters.to_dict(),
            "bootstrapping_primes": bootstrapping_primes(parameters),
            "level": made.level,
            "rotations": sorted(made.rotations),
            "steps": [vars(step) for step in made.steps],
        },
    )
    return made
