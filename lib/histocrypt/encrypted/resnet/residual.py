"""A trained residual network as affine maps with activations between them.

Batch norm is part of the matrices. So is a gain for every activation, found on calibration tiles: a refreshed value
must be well below one, since the sine that stands for "modulo" is straight near zero only, while noise is absolute.

Activations are squares, or the reference's: a ReLU by a composition of minimax polynomials, three refreshes more than
a square needs. ``relu(x) = x (1 + sgn x) / 2``, and ``sgn`` is a composition of polynomials of degrees 15, 15 and 27,
each the minimax approximation of the sign on the range that the one before leaves (Lee et al., 2022, "Minimax
approximation of sign function by composite polynomial for homomorphic comparison"). Inputs lie in [-1, 1]. Nothing
needs training for it: it takes the clear network's own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from histocrypt.encrypted.engine import Node, minimax_sign
from histocrypt.encrypted.lowering import Affine, average_pool, convolution, linear, scaling
from histocrypt.encrypted.parameters import LEVELS, Parameters
from histocrypt.errors import InputError

if TYPE_CHECKING:
    from torch import nn

DEGREES = (15, 15, 27)
LOG_ALPHA, LOG_ERROR = 6, 12
"""The sign is right where ``|x| > 2^-6``; each polynomial bears an error of 2^-12 in its input."""
MARGIN = 2.0
"""The largest value seen on calibration tiles is scaled to 1 / MARGIN."""
REFRESHES = 1 + len(DEGREES)
"""Of an activation: the input, then after each polynomial."""
MEAN_SQUARE = 0.25
"""What the gains bring the mean of every squared value to."""
LEFT = LEVELS - 1
"""Level of the result: the product takes one."""


@cache
def gates() -> tuple[np.ndarray, ...]:
    """Return the polynomials in Chebyshev's basis, from the first to the last; the last gives ``(1 + sgn x) / 2``."""
    *first, last = minimax_sign(DEGREES, log_alpha=LOG_ALPHA, log_error=LOG_ERROR)
    last = last / 2
    last[0] += 0.5
    return *first, last


def relu(x: np.ndarray) -> np.ndarray:
    """Return what the evaluator computes, in the clear: a ReLU of values in [-1, 1], within 4e-4."""
    gate = x
    for polynomial in gates():
        gate = np.polynomial.chebyshev.chebval(gate, polynomial)
    return x * gate


def levels() -> int:
    """Return the multiplicative depth of the whole activation."""
    return sum(int(np.ceil(np.log2(degree + 1))) for degree in DEGREES) + 1


def nodes(parameters: Parameters) -> list[Node]:
    """Return the activation as nodes of a graph whose input has level 1 or more; the output has level `LEFT`."""
    made = [Node("refresh0", "bootstrap", 1, (), refresh_config(parameters))]
    for number, polynomial in enumerate(gates()):
        scales = {"prescale": 1.0, "postscale": 1.0, "constant": 0.0}
        config = {"coeffs": polynomial.tolist(), "basis": "chebyshev", **scales}
        made.append(Node(f"polynomial{number}", "polynomial", LEVELS, (f"refresh{number}",), config))
        again = Node(f"refresh{number + 1}", "bootstrap", 1, (f"polynomial{number}",), refresh_config(parameters))
        made.append(again)
    return [*made, Node("product", "mult", LEVELS, ("refresh0", made[-1].name))]


def refresh_config(parameters: Parameters) -> dict[str, float | int]:
    """Return the settings of a refresh of values from -1 to 1."""
    return {
        "input_level": 1,
        "input_min": -1.0,
        "input_max": 1.0,
        "prescale": 1.0,
        "postscale": 1.0,
        "constant": 0.0,
        "slots": 1 << parameters.bootstrapping.log_slots,
    }


@dataclass(frozen=True)
class Residual:
    """A block: ``act(second(act(first(x))) + shortcut(x))``."""

    first: Affine
    second: Affine
    shortcut: Affine


@dataclass(frozen=True)
class Network:
    """A residual network as affine maps with activations between them."""

    stem: Affine
    pool: Affine
    blocks: list[Residual]
    head: Affine
    activation: Literal["square", "relu"] = "square"

    def __call__(self, images: np.ndarray, *, seen: list[np.ndarray] | None = None) -> np.ndarray:
        """Evaluate (n, *shape) in the clear, double precision; note in ``seen`` what enters each activation.

        ReLUs are exact here; `minimax_relu` puts the polynomials in their place.
        """
        return self._evaluate(images, (lambda z: z**2) if self.activation == "square" else _relu, seen)

    def minimax_relu(self, images: np.ndarray) -> np.ndarray:
        """Evaluate in the clear with the polynomials that stand for ReLUs; the network must be `normalised`."""
        return self._evaluate(images, relu, None)

    def _evaluate(
        self, images: np.ndarray, activation: Callable[[np.ndarray], np.ndarray], seen: list[np.ndarray] | None
    ) -> np.ndarray:
        def act(z: np.ndarray) -> np.ndarray:
            if seen is not None:
                seen.append(z)
            return activation(z)

        x = self.pool(act(self.stem(images)))
        for block in self.blocks:
            x = act(block.second(act(block.first(x))) + block.shortcut(x))
        return self.head(x)


def _relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def _norm(norm: nn.BatchNorm2d, shape: tuple[int, ...]) -> Affine:
    """Return batch norm as a map."""
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
    offset = norm.bias.detach().double().numpy() - gain * norm.running_mean.double().numpy()
    return scaling(gain, offset, shape)


def _convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d, shape: tuple[int, ...]) -> Affine:
    """Return convolution and batch norm as one map."""
    weight = conv.weight.detach().double().numpy()
    made = convolution(weight, None, shape, stride=conv.stride[0], padding=conv.padding[0])  # type: ignore[arg-type]
    return made.then(_norm(norm, made.target))


def lower(network: nn.Module, side: int) -> Network:
    """Turn a residual network into affine maps for tiles of ``side`` pixels.

    Parameters
    ----------
    network
        `histocrypt.models.fhe.FheResNet18`, whose activations are squares, or
        `histocrypt.models.resnet18.ResNet18` with its average pool, whose activations are ReLUs.
    side
        Of the tiles, pixels.

    Raises
    ------
    InputError
        If the network has a max pool.
    """
    from torch import nn

    squares = hasattr(network, "blocks")
    trunk = network if squares else network.network
    if not squares and not isinstance(trunk.maxpool, nn.AvgPool2d):
        fix = "train resnet18 with average_pool: true"
        raise InputError("a maximum cannot be taken of ciphertexts", field="average_pool", value=False, fix=fix)
    layers = trunk.blocks if squares else [*trunk.layer1, *trunk.layer2, *trunk.layer3, *trunk.layer4]
    stem = _convolution(trunk.conv1, trunk.bn1, (3, side, side))
    pool = average_pool(stem.target, 3, stride=2, padding=1)  # type: ignore[arg-type]
    shape, blocks = pool.target, []
    for block in layers:
        first = _convolution(block.conv1, block.bn1, shape)
        second = _convolution(block.conv2, block.bn2, first.target)
        identity = scaling(np.ones(shape[0]), np.zeros(shape[0]), shape)
        shortcut = identity if block.downsample is None else _convolution(*block.downsample, shape)
        if squares:
            norm = _norm(block.norm, second.target)
            gain = Affine(norm.matrix, 0 * norm.bias, norm.source, norm.target)  # one offset for the sum is enough
            second, shortcut = second.then(norm), shortcut.then(gain)
        blocks.append(Residual(first, second, shortcut))
        shape = second.target
    mean = average_pool(shape, shape[1])  # type: ignore[arg-type]
    head = linear(trunk.fc.weight.detach().numpy(), trunk.fc.bias.detach().numpy(), mean.target)
    return Network(stem, pool, blocks, mean.then(head), "square" if squares else "relu")


def scaled(one: Affine, before: float, after: float) -> Affine:
    """Return a map for an input that is ``before`` times the original, with an output that is ``after`` times it."""
    return Affine(one.matrix * (after / before), one.bias * after, one.source, one.target)


def gains(activation: str, mean_squares: Sequence[float], largest: Sequence[float]) -> list[float]:
    """Return the gain for each activation from what enters it in the clear.

    The mean of every squared value becomes `MEAN_SQUARE`; the largest value whose ReLU is taken, ``1 / MARGIN``.
    """
    if activation == "square":
        return [float(np.sqrt(MEAN_SQUARE / mean)) for mean in mean_squares]
    return [1 / MARGIN / one for one in largest]


def normalised(network: Network, images: np.ndarray) -> Network:
    """Return the same network with `gains` inside, found on these images (n, 3, side, side)."""
    seen: list[np.ndarray] = []
    network(images, seen=seen)
    mean_squares, largest = [np.mean(z**2) for z in seen], [float(np.abs(z).max()) for z in seen]
    return with_gains(network, gains(network.activation, mean_squares, largest))


def with_gains(network: Network, gains: Sequence[float]) -> Network:
    """Return the same network with a gain before each activation, undone after it."""
    square = network.activation == "square"
    passed = [gain**2 if square else gain for gain in gains]
    stem = scaled(network.stem, 1, gains[0])
    pool = scaled(network.pool, passed[0], passed[0])
    carried, blocks = passed[0], []
    for number, block in enumerate(network.blocks):
        inner, outer = 1 + 2 * number, 2 + 2 * number
        blocks.append(
            Residual(
                scaled(block.first, carried, gains[inner]),
                scaled(block.second, passed[inner], gains[outer]),
                scaled(block.shortcut, carried, gains[outer]),
            )
        )
        carried = passed[outer]
    return Network(stem, pool, blocks, scaled(network.head, carried, 1), network.activation)
