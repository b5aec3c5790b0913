"""A network as integers: what the evaluator multiplies ciphertexts by, and the proof that no sum leaves its modulus.

CKKS keeps a value as an integer, the value times a scale, modulo the primes that are left. Here every map is a matrix
of integers, exact in double precision, with a scale of its own for each of its outputs; a square brings scale^2 and
takes a prime away. A sum that grows beyond half of its modulus would come out as another value, and nobody would
notice. So every sum of the integers as they are is bounded for *all* inputs in the calibrated range, by interval
arithmetic, and compared with the primes as they are. Squares of squares have bounds far above anything seen: where the
room does not reach that far, the largest value over the training tiles must fit `HEADROOM` times, and the plan says
that it rests on this. A network that has neither is refused.

Scales grow by a map's weights and double in a square; primes bring them down. Divided *after* each square, a prime pays
for the weights twice, but one prime a square is enough. Divided after each map but the first, *before* its square, it
pays for them once: deep networks save a fifth of what is sent, for one more prime, which also pays for blotting out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.batch.layout import Layout
from histocrypt.encrypted.batch.order import Order
from histocrypt.encrypted.batch.rounding import rounded
from histocrypt.encrypted.lowering import Affine, Lowered, convolution
from histocrypt.encrypted.parameters import MAX_LOG_QP, Parameters, check_security
from histocrypt.errors import InputError
from histocrypt.files import atomic_path

PRIME = 60
"""Bits of a ciphertext prime, where a convolution and the square after it share one."""
LOG_SCALE = 25
"""Of what is encrypted: its error is 1e-5 of a pixel's standard deviation."""
LOG_BEFORE_SQUARE, LOG_BEFORE_LAST = 44, 45
"""Largest scale of what enters a square, and the last one, where primes come after squares. What comes out has scale^2
/ prime: the larger, the less its rounding costs (1e-5 of a value at 2^28), and the fewer bits are left for the next
map's weights."""
SHALLOW = 2
"""Up to so many squares rounding builds up little, and weights get a bit more."""
LOG_FIRST, LOG_MIDDLE, LOG_END = 41, 28, 31
"""The same where primes come before squares: of the first one, of the last one, and of those between."""
FIRST_PRIMES, LATER_PRIMES = 35, 44
"""Bits of the primes after the first square and before the second one, and before each later one: what the two scales
leave, and 16 bits for weights, 19 before the last square, whose errors nothing after it averages out."""
LOG_WIPE = 30
"""Scale of what blots out useless slots: fine enough that their rest is a millionth of a deviation of the outputs."""
EXACT = 2.0**53
"""Integers up to here are exact in double precision."""
HALF = 29
"""Bits of the signed halves in which residues go through it."""
HEADROOM = 32.0
"""How often the largest value over the training tiles must fit where all inputs cannot be bounded. It also stands for
slots of folded layouts that hold nothing of use: the same maps of the same values there, but of cells that no training
tile has."""
ERRORS = 1e-3
"""Share of the room that is left to errors of encryption, key switching and rounding."""
ENCRYPT, SWITCH, MULTIPLY, FINISH = 1.1e-7, 8e-9, 2.2e-10, 2e-7
"""CPU seconds: a slot and prime of a ciphertext made and read again, of a key switched (by primes and digits), of a
ciphertext times a number, and a slot of an output finished and decrypted. `benchmarks/encrypted.py` prints what follows
from them beside what it measures."""
OVERLAP = "kernels overlap, or differ by place"
LEAST_TILES = 64
"""A layout of fewer tiles a batch is not offered."""
CHANNELS = 32
"""That a folded convolution rotates before it adds them up: their rotations are four to sixteen times as large."""
MOST_BYTES = 1 << 30
"""Nor one of which an evaluator holds more than so much, keys and libraries aside."""


class Unfit(Exception):
    """Why a network cannot go through the batch layout."""


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map of a plan, for the channels and places of one cell."""

    weights: np.ndarray
    """(outputs, places of a cell * channels) float64 integers; place by place (the first map: channel by channel)."""
    bias: np.ndarray
    """(outputs,) float64 whole numbers, in the outputs' own scales."""


@dataclass(frozen=True)
class Bound:
    """What the largest sum of a map was compared with, in the units of its modulus."""

    all_inputs: float
    """Share of the room (half the modulus, of a square its root) that no input in the calibrated range exceeds."""
    seen: float
    """The same over the training tiles."""

    @property
    def proved(self) -> bool:
        """Whether it holds for every input in the calibrated range."""
        return self.all_inputs < 1


@dataclass(frozen=True, eq=False)
class Plan:
    """All that evaluates a network, secret but for parameters and layouts."""

    parameters: Parameters
    moduli: list[int]
    """The ciphertext primes, the first one first."""
    special: int
    """The prime of key switching."""
    maps: list[Map]
    layouts: list[Layout]
    """From few tiles a batch to many."""
    scale: float
    """Of the outputs, after the sum over positions."""
    bounds: list[Bound]

    @property
    def squares(self) -> int:
        """Maps but the last end in a square."""
        return len(self.maps) - 1

    @property
    def order(self) -> Order:
        """When each prime goes."""
        return Order(self.moduli, self.squares)

    def public(self) -> dict[str, Any]:
        """Return what clients learn: parameters, primes, layouts with their cost, the scale of the outputs."""
        return {
            "parameters": self.parameters.to_dict(),
            "moduli": [str(prime) for prime in self.moduli],
            "special": str(self.special),
            "layouts": [{"folded": one.folded, "cost": round(self.cost(one), 3)} for one in self.layouts],
            "scale": self.scale,
        }

    def proof(self) -> str:
        """Return which sums cannot leave their modulus whatever the tile, and what the others rest on."""
        proved = sum(bound.proved for bound in self.bounds)
        room = 1 / max(bound.seen for bound in self.bounds)
        rest = "" if proved == len(self.bounds) else f", the others {room:.0f} times what the training tiles reach"
        return f"{proved} of {len(self.bounds)} sums bounded for every input in range{rest}"

    def transforms(self, layout: Layout) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield for each map: ciphertexts in, ciphertexts out, primes, rotations, squares."""
        for number, one in enumerate(self.maps):
            times = math.prod(layout.strides[number + 1 : layout.unfolded]) ** 2
            outputs, inputs = one.weights.shape
            turned = inputs - inputs // layout.strides[number] ** 2 if layout.unfolded <= number < self.squares else 0
            squares = outputs * times if number < self.squares else 0
            yield inputs * times, outputs * times, self.order.primes(number), turned, squares

    def cost(self, layout: Layout) -> float:
        """Return about how many CPU seconds a batch takes, of both sides together."""
        return sum(self.costs(layout).values())

    def costs(self, layout: Layout) -> dict[str, float]:
        """Return the parts of `cost`: making and reading ciphertexts, key switches, products, finishing outputs."""
        n, switched, multiplied = layout.slots, 0.0, 0.0
        for number, (_, outputs, primes, turned, squares) in enumerate(self.transforms(layout)):
            left = primes - (self.order.of_map(number) > 1)
            switched += (turned * primes * (primes + 4) + squares * left * (left + 4)) * n
            multiplied += outputs * self.maps[number].weights.shape[1] * primes * n
        return {
            "encrypt": layout.inputs * (len(self.moduli) + 1) * n * ENCRYPT,
            "switch": switched * SWITCH,
            "multiply": multiplied * MULTIPLY,
            "finish": len(self.maps[-1].weights) * n * FINISH,
        }

    def bytes_of(self, layout: Layout) -> int:
        """Return what the largest map's inputs and outputs take, and inputs of unfolded maps before it."""
        ciphertext, waiting, most = 2 * self.parameters.limb_bytes, 0, 0
        for number, one in enumerate(self.maps):
            outputs, inputs = one.weights.shape
            primes = self.order.primes(number)
            if layout.unfolded <= number < self.squares:  # a few channels at a time
                inputs = inputs // layout.strides[number] ** 2 + layout.strides[number] ** 2 * CHANNELS
                outputs *= 2
            waiting += inputs * primes * ciphertext if 0 < number < layout.unfolded else 0
            held = waiting if number < layout.unfolded else 0
            most = max(most, held + (inputs + 2 * outputs) * primes * ciphertext)
        return most

    def most_bytes(self) -> int:
        """Return what an evaluator holds of a batch at most, in any layout."""
        return max(map(self.bytes_of, self.layouts))

    def save(self, path: Path) -> None:
        """Write the integers (safetensors); the file is readable by its owner only."""
        from safetensors.numpy import save_file

        arrays = {}
        for number, one in enumerate(self.maps):
            kind = np.int32 if np.abs(one.weights).max() < 2**31 else np.int64
            arrays |= {f"weights{number}": one.weights.astype(kind), f"bias{number}": one.bias}
        with atomic_path(path) as temporary:
            temporary.touch(mode=0o600)
            save_file(arrays, temporary)


def read_maps(path: Path) -> list[Map]:
    """Read what `Plan.save` wrote; `InputError` where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        return [
            Map(arrays[f"weights{number}"].astype(np.float64), arrays[f"bias{number}"])
            for number in range(len(arrays) // 2)
        ]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError("the weights are missing or damaged", file=path, fix="compile the model again") from error


def make_plan(
    lowered: Lowered,
    inputs: dict[str, Any],
    *,
    input_range: Sequence[float],
    largest: Sequence[float],
    examples: np.ndarray,
    ring: tuple[Parameters, list[Layout]] | None = None,
) -> Plan:
    """Turn a network into integers and choose ring, scales and layouts.

    Parameters
    ----------
    lowered
        The network; its last map gives outputs in their own units.
    inputs
        ``kind``, ``shape`` and ``factors`` of the client part.
    input_range
        (low, high) that the key owner keeps inputs to.
    largest
        Largest absolute value over the training tiles after each map.
    examples
        (n, ...) some of the training tiles; weights are rounded so that outputs of such tiles change little.
    ring
        Parameters and layouts, few tiles first; the smallest ring of 128 bits if not given.

    Raises
    ------
    Unfit
        If weights differ between positions, no ring of 128 bits holds the network, or a sum could leave its modulus.
    """
    from histocrypt.encrypted import engine

    kernels = _kernels(lowered)
    tiles = inputs["kind"] == "tiles"
    strides, side = (tuple(inputs["factors"]), inputs["shape"][1]) if tiles else ((), 1)
    if len(strides) != len(kernels) - 1:
        raise Unfit("a convolution of this network has no square after it")
    parameters, layouts = ring or _ring(inputs["shape"][0], side, strides)
    owner = engine.KeyOwner(parameters)
    order = Order(owner.moduli(), len(strides))
    end = Layout(inputs["shape"][0], side, strides, 0, parameters.slots)  # the positions that are summed over
    maps, bounds, places, positions = [], [], end.grid**2, end.positions
    scale = np.full(inputs["shape"][0], 2.0**LOG_SCALE)
    zero = np.zeros(len(scale))  # what an empty place holds
    low, high = np.full(len(scale), min(input_range[0], 0.0)), np.full(len(scale), max(input_range[1], 0.0))
    cells = _cells(lowered, examples, strides)
    for number, ((weights, bias), seen) in enumerate(zip(kernels, largest, strict=True)):
        last, room = number == order.squares, _room(order, number)
        aim = _scales(weights, scale, log_most=None if last else _log_most(order, number))
        if last:  # all outputs have one scale
            aim = np.full(len(aim), min(float(aim.min()), room / (HEADROOM * seen)))
        integers, moved = _rounded(weights, next(cells), scale, aim)
        bias = bias + moved
        if last:  # the sum over slots has the bias once, and what empty positions add to it is taken away
            bias = (bias - (positions - places) * np.einsum("ocp,c->o", weights, zero)) / positions
        whole = np.rint(bias * aim)
        weights, bias = integers * scale[None, :, None] / aim[:, None, None], whole / aim  # as they are from here on
        nothing = np.einsum("ocp,c->o", weights, zero)
        if last:
            least, most = _range(weights, positions * bias + (positions - places) * nothing, low, high, times=places)
        else:
            least, most = _range(weights, bias, low, high, times=1)
        upper = np.maximum(np.abs(least), np.abs(most))
        bounds.append(Bound(float((upper * aim).max() / room), float(seen * aim.max() / room)))
        if not (bounds[-1].proved or HEADROOM * bounds[-1].seen <= 1 + ERRORS):
            raise Unfit(f"the sums of map {number + 1} leave the modulus")
        ordered = integers if number == 0 else integers.transpose(0, 2, 1)
        maps.append(Map(ordered.reshape(len(aim), -1), whole))
        low, high = np.where((least < 0) & (most > 0), 0, np.minimum(least**2, most**2)), upper**2
        zero, scale = (nothing + bias) ** 2, aim / order.of_map(number)
        if not last:
            scale = scale**2 / order.of_square(number)
    final = float(aim[0]) * (2.0**LOG_WIPE / order.of_map(order.squares) if order.before else 1.0)
    plan = Plan(parameters, list(order.moduli), owner.special_moduli()[0], maps, layouts, final, bounds)
    offered = [one for one in layouts if plan.bytes_of(one) <= MOST_BYTES] or [min(layouts, key=plan.bytes_of)]
    return replace(plan, layouts=offered)


def _room(order: Order, number: int) -> float:
    """Return how large the whole numbers that a map gives may become, for itself and for its square."""
    half = (1 - ERRORS) * math.prod(order.moduli[: order.primes(number)]) / 2
    if number == order.squares:
        return half / 2.0**LOG_WIPE if order.before else half
    divided = order.of_map(number)
    return min(half, divided * math.sqrt(half / divided))


def _log_most(order: Order, number: int) -> float:
    """Return the largest scale of what a map gives that goes into a square."""
    last = number == order.squares - 1
    if not order.before:
        return LOG_BEFORE_LAST if last else LOG_BEFORE_SQUARE - (order.squares <= SHALLOW)
    if number == 0:
        return LOG_FIRST
    return math.log2(order.of_map(number)) + (LOG_END if last else LOG_MIDDLE)


def _cells(lowered: Lowered, x: np.ndarray, strides: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield what each map sees of some inputs: (cells, channels * places), at last (n, channels) summed over places."""
    for one, stride in zip(lowered.maps, strides, strict=False):
        n, channels, side, _ = x.shape
        split = x.reshape(n, channels, side // stride, stride, side // stride, stride)
        yield split.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * stride**2)
        x = one(x) ** 2
    yield x.reshape(len(x), lowered.maps[-1].source[0], -1).sum(axis=2)


def _rounded(
    weights: np.ndarray, cells: np.ndarray, scale: np.ndarray, aim: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a map's weights (O, C, P) as whole numbers, and (O,) what a bias must make up for on such inputs."""
    each = np.repeat(scale, weights.shape[2])
    exact = weights.reshape(len(weights), -1)
    found = rounded(exact * aim[:, None] / each, cells * (each / each.max()))
    if np.abs(found).sum(axis=1).max() > EXACT / 2.0**HALF:
        raise Unfit("rounded weights leave what double precision holds")
    return found.reshape(weights.shape), (exact - found * each / aim[:, None]) @ cells.mean(axis=0)


def _kernels(lowered: Lowered) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (outputs, inputs, places of a cell) weights and (outputs,) biases of each map; the last has one place."""
    found = []
    for one in lowered.maps[:-1]:
        channels, side, _ = one.source
        outputs, grid, _ = one.target
        if side % grid:
            raise Unfit(OVERLAP)
        stride = side // grid
        cell = np.arange(channels)[:, None, None] * side**2 + np.arange(stride)[:, None] * side + np.arange(stride)
        weights = one.matrix[np.arange(outputs) * grid**2][:, cell.reshape(-1)].toarray()
        weights = weights.reshape(outputs, channels, stride, stride)
        bias = one.bias.reshape(outputs, -1)[:, 0]
        _check_same(one, convolution(weights, bias, one.source, stride=stride))
        found.append((weights.reshape(outputs, channels, -1), bias))
    last = lowered.maps[-1]
    places = math.prod(last.source[1:])
    weights = last.matrix.toarray().reshape(len(last.bias), last.source[0], places)
    if not np.allclose(weights, weights[:, :, :1], rtol=1e-6, atol=1e-9 * np.abs(weights).max()):
        raise Unfit("the last map has weights for every place (pool > 1)")
    return [*found, (weights[:, :, :1], last.bias)]


def _check_same(one: Affine, other: Affine) -> None:
    apart, largest = abs(one.matrix - other.matrix), abs(one.matrix).max()
    if apart.max() > 1e-6 * largest or not np.allclose(one.bias, other.bias):
        raise Unfit(OVERLAP)


def _ring(channels: int, side: int, strides: tuple[int, ...]) -> tuple[Parameters, list[Layout]]:
    """Return the smallest ring of 128 bits that has a layout for a network, and its layouts, few tiles first."""
    for logn in (12, 13, 14):
        plain = Layout(channels, side, strides, 0, 1 << logn)
        logq, layouts = (PRIME,) * (len(strides) + 1), [plain]
        if plain.tiles >= LEAST_TILES and plain.grid**2 == plain.positions:
            deep = [Layout(channels, side, strides, folded, 1 << logn) for folded in range(1, len(strides))]
            more = deep_primes(len(strides))
            if deep and sum(more) + 34 <= MAX_LOG_QP[logn]:
                logq, layouts = more, [*layouts, *deep]
        special = min(PRIME, MAX_LOG_QP[logn] - sum(logq))
        layouts = [one for one in layouts if one.tiles >= LEAST_TILES]
        if special < 34 or not layouts:
            continue
        parameters = Parameters(logn, logq, (special,), LOG_SCALE)
        check_security(parameters)
        return parameters, sorted(layouts, key=lambda one: one.tiles)
    raise Unfit("no ring of 128 bits without bootstrapping holds it")


def deep_primes(squares: int) -> tuple[int, ...]:
    """Return the bits of primes that go before squares, of two squares at least, the first prime first."""
    return (PRIME, PRIME, *[LATER_PRIMES] * (squares - 2), FIRST_PRIMES, FIRST_PRIMES)


def _range(
    weights: np.ndarray, bias: np.ndarray, low: np.ndarray, high: np.ndarray, *, times: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and largest that each output can be, for inputs (by channel) in a range, at ``times`` places."""
    up, down = np.maximum(weights, 0).sum(axis=2), np.minimum(weights, 0).sum(axis=2)
    return times * (up @ low + down @ high) + bias, times * (up @ high + down @ low) + bias


def _scales(weights: np.ndarray, scale: np.ndarray, *, log_most: float | None) -> np.ndarray:
    """Return a scale for each output, as large as exactness, and the maps to come where there are any, allow."""
    total = np.abs(weights / scale[None, :, None]).sum(axis=(1, 2))
    exact = (0.98 * EXACT / 2.0**HALF - weights[0].size) / np.maximum(total, 1e-300)  # rounding adds to the sum
    return exact if log_most is None else np.minimum(exact, 2.0**log_most)
