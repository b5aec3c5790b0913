"""Residual networks with bootstrapping: compiled to one file a layer, so that memory holds two layers and no more.

A block of the network is four steps, each one model file for the engine:

=====  ==========================================================  =======
shift  lay copies of the input out shifted (see `shifted`)         6 to 5
first  3 x 3 convolution, square                                   5 to 3
sum    3 x 3 convolution and shortcut in one matrix, square        3 to 1
boot   refresh                                                     1 to 6
=====  ==========================================================  =======

Batch norm is part of the matrices. So is a gain for every square, found on calibration tiles: a refreshed value must be
well below one, since the sine that stands for "modulo" is straight near zero only, while noise is absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from histocrypt.atomic import write_json
from histocrypt.encrypted import engine, shifted
from histocrypt.encrypted.affine import Affine, average_pool, convolution, linear, scaling
from histocrypt.encrypted.bootstrapping import LEVELS
from histocrypt.encrypted.packing import steps as split
from histocrypt.encrypted.parameters import Parameters
from histocrypt.encrypted.shifted import Shifted, cells, rows, spread

if TYPE_CHECKING:
    from torch import nn

MEAN_SQUARE = 0.25
"""What the gains bring the mean of every squared value to."""


@dataclass(frozen=True)
class Residual:
    """A block: ``square(second(square(first(x))) + shortcut(x))``."""

    first: Affine
    second: Affine
    shortcut: Affine | None
    """None: the input itself."""


@dataclass(frozen=True)
class Network:
    """A residual network as affine maps with squares between them."""

    stem: Affine
    pool: Affine
    blocks: list[Residual]
    head: Affine

    def __call__(self, images: np.ndarray, *, seen: list[np.ndarray] | None = None) -> np.ndarray:
        """Evaluate (n, *shape) in the clear, double precision; note in ``seen`` what enters each square."""

        def square(z: np.ndarray) -> np.ndarray:
            if seen is not None:
                seen.append(z)
            return z**2

        x = self.pool(square(self.stem(images)))
        for block in self.blocks:
            skip = x if block.shortcut is None else block.shortcut(x)
            x = square(block.second(square(block.first(x))) + skip)
        return self.head(x)


def _convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d, shape: tuple[int, ...]) -> Affine:
    """Return convolution and batch norm as one map."""
    weight = conv.weight.detach().double().numpy()
    made = convolution(weight, None, shape, stride=conv.stride[0], padding=conv.padding[0])  # type: ignore[arg-type]
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
    offset = norm.bias.detach().double().numpy() - gain * norm.running_mean.double().numpy()
    return made.then(scaling(gain, offset, made.target))


def lower(network: nn.Module, side: int) -> Network:
    """Turn a `histocrypt.models.fhe_resnet.FheResNet18` into affine maps for tiles of ``side`` pixels."""
    stem = _convolution(network.conv1, network.bn1, (3, side, side))
    pool = average_pool(stem.target, 3, stride=2, padding=1)  # type: ignore[arg-type]
    shape, blocks = pool.target, []
    for block in network.blocks:
        first = _convolution(block.conv1, block.bn1, shape)
        second = _convolution(block.conv2, block.bn2, first.target)
        shortcut = None if block.downsample is None else _convolution(*block.downsample, shape)
        blocks.append(Residual(first, second, shortcut))
        shape = second.target
    mean = average_pool(shape, shape[1])  # type: ignore[arg-type]
    head = linear(network.fc.weight.detach().numpy(), network.fc.bias.detach().numpy(), mean.target)
    return Network(stem, pool, blocks, mean.then(head))


def scaled(one: Affine, before: float, after: float) -> Affine:
    """Return a map for an input that is ``before`` times the original, with an output that is ``after`` times it."""
    return Affine(one.matrix * (after / before), one.bias * after, one.source, one.target)


def normalised(network: Network, images: np.ndarray) -> Network:
    """Return the same network with gains inside: the mean of every squared value is `MEAN_SQUARE` for these images."""
    seen: list[np.ndarray] = []
    network(images, seen=seen)
    gains = [float(np.sqrt(MEAN_SQUARE / np.mean(z**2))) for z in seen]
    stem = scaled(network.stem, 1, gains[0])
    pool = scaled(network.pool, gains[0] ** 2, gains[0] ** 2)
    carried, blocks = gains[0] ** 2, []
    for block, inner, outer in zip(network.blocks, gains[1::2], gains[2::2], strict=True):
        identity = Affine(sp.eye(len(block.second.bias), format="csr"), 0 * block.second.bias, block.second.target,
                          block.second.target)  # fmt: skip
        blocks.append(
            Residual(
                scaled(block.first, carried, inner),
                scaled(block.second, inner**2, outer),
                scaled(block.shortcut or identity, carried, outer),
            )
        )
        carried = outer**2
    return Network(stem, pool, blocks, scaled(network.head, carried, 1))


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
    refresh: bool = False


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

    def linear(
        self,
        name: str,
        parts: Sequence[tuple[str, sp.spmatrix, Shifted, int]],
        bias: np.ndarray,
        target: Shifted,
        level: int,
        *,
        square: bool = False,
        fold: bool = True,
    ) -> None:
        """Write the sum of matrices times earlier outputs, and its square: (input, matrix, layout, groups) each."""
        slots, found, column = self.parameters.slots, {}, 0
        for _, matrix, source, groups in parts:
            for (row, one), diagonals in shifted.diagonals(matrix, source, target, groups).items():
                found[row, column + one] = diagonals
            column += source.ciphertexts
        log_ratio, rotations = self._ratio(found)
        folds = shifted.folds(target) if fold else 0
        rotations |= {slots >> (step + 1) for step in range(folds)}
        self.rotations |= rotations
        packed = target.pack(bias, copies=len(target.shifts))
        blobs = {f"diag_{r}_{c}": (lambda found=found[r, c]: engine.diagonal_blob(found)) for r, c in found}
        blobs |= {f"bias_{row}": (lambda values=packed[row]: values.tobytes()) for row in range(target.ciphertexts)}
        config = {
            "bsgs_ratio": float(1 << log_ratio), "output_rotations": folds, "num_input_cts": column,
            "num_output_cts": target.ciphertexts,
        }  # fmt: skip
        nodes = [engine.Node("linear", "linear_transform", level, (), config, blobs)]
        if square:
            nodes.append(engine.Node("square", "quad", level - 1, ("linear",)))
        engine.write_model(self.folder / f"{name}.orion", self.parameters, nodes, rotations)
        inputs = tuple(part[0] for part in parts)
        self.steps.append(Step(name, inputs, sum(map(len, found.values())), level, tuple(sorted(rotations))))

    def _ratio(self, blocks: shifted.Blocks) -> tuple[int, set[int]]:
        """Choose the baby-to-giant ratio; a rotation that needs a new key costs more than one that has a key."""

        def plan(log_ratio: int) -> tuple[float, int, set[int]]:
            work, rotations = 0.0, set()
            for found in blocks.values():
                _, giant, baby = split(list(found), self.parameters.slots, log_ratio)
                work += len(giant) + 0.5 * len(baby)
                rotations |= set(giant) | set(baby)
            return work + len(rotations - self.rotations), log_ratio, rotations - {0}

        _, log_ratio, rotations = min((plan(log_ratio) for log_ratio in range(6)), key=lambda found: found[:2])
        return log_ratio, rotations

    def refresh(self, name: str, source: str) -> None:
        """Write a bootstrapping."""
        again = self.parameters.bootstrapping
        config = {
            "input_level": 1, "input_min": -1.0, "input_max": 1.0, "prescale": 1.0, "postscale": 1.0, "constant": 0.0,
            "slots": 1 << again.log_slots,
        }  # fmt: skip
        node = engine.Node("refresh", "bootstrap", 1, (), config)
        engine.write_model(self.folder / f"{name}.orion", self.parameters, [node], set())
        self.steps.append(Step(name, (source,), level=1, refresh=True))


def _pattern(source: Shifted, period: int, groups: int) -> Shifted:
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
            plan = Plan(_pattern(base, inner.period, groups), inner, outer, groups, kept)
            work = first / groups + second / kept + shifted.count(shift, straight, plan.laid, 1)
            found.append((work, kept, plan))
    return min(found, key=lambda one: one[:2])[2]


def compile_network(network: Network, parameters: Parameters, folder: Path) -> Compiled:
    """Write a network, already `normalised`, as files for the engine and ``steps.json``.

    Parameters
    ----------
    network
        Its blocks must all fit half the slots of one ciphertext.
    parameters
        Of `histocrypt.encrypted.bootstrapping.bootstrapped`.
    folder
        Made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slots, write = parameters.slots, _Writer(folder, parameters)
    source = cells(network.stem.source, slots, 4, minor=False)  # type: ignore[arg-type]
    wide = spread(network.stem.target, slots, 2)  # type: ignore[arg-type]
    x = rows(network.pool.target, slots)
    write.linear("stem", [("input", network.stem.matrix, source, 1)], network.stem.bias, wide, 4, square=True)
    write.linear("pool", [("stem", network.pool.matrix, wide, 1)], network.pool.bias, x, 2)
    write.refresh("pool_boot", "pool")
    last = "pool_boot"
    plans: dict[tuple, Plan] = {}
    for number, block in enumerate(network.blocks):
        kind = (block.first.source, block.first.target)
        if kind not in plans:
            plans[kind] = plan_block(block, slots)
        plan = plans[kind]
        name = f"block{number}"
        shift = sp.eye(len(x.position), format="csr")
        write.linear(f"{name}_shift", [(last, shift, x, 1)], np.zeros(len(x.position)), plan.laid, LEVELS)
        first = (f"{name}_shift", block.first.matrix, plan.laid, plan.groups)
        write.linear(f"{name}_first", [first], block.first.bias, plan.inner, LEVELS - 1, square=True)
        if block.shortcut.source == block.shortcut.target:
            skip = (last, block.shortcut.matrix, x, 1)
        else:
            skip = (f"{name}_shift", block.shortcut.matrix, plan.laid, _reach(plan.laid, plan.outer))
        write.linear(
            f"{name}_sum",
            [(f"{name}_first", block.second.matrix, plan.inner, plan.kept), skip],
            block.second.bias + block.shortcut.bias,
            plan.outer,
            LEVELS - 3,
            square=True,
        )
        last, x = f"{name}_sum", plan.outer
        if number < len(network.blocks) - 1:
            write.refresh(f"{name}_boot", last)
            last = f"{name}_boot"
    target = rows(network.head.target, slots)
    groups = _reach(x, target)
    write.linear("head", [(last, network.head.matrix, x, groups)], network.head.bias, target, 1)
    made = Compiled(write.steps, write.rotations, source, target, 4)
    write_json(
        folder / "steps.json",
        {
            "parameters": parameters.to_dict(),
            "level": made.level,
            "rotations": sorted(made.rotations),
            "steps": [vars(step) for step in made.steps],
        },
    )
    return made


def _reach(source: Shifted, target: Shifted) -> int:
    """Return the largest number of groups of a target whose slots all see different values of the source."""
    return max(1, source.period // target.period)
