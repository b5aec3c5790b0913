"""Layers that an encrypted evaluation can follow exactly: sums, products with weights, and squares.

A network is written once, against a namespace of layers: `CLEAR` here, or an encrypted library's own (``orion.nn`` has
the same names).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import nn

LIMIT = 3.0
"""What enters a square should stay within plus or minus this: the precision of a ciphertext is absolute, and squares of
squares grow fast."""


RELU_GAIN, RELU_OFFSET = 0.25, 1.0
"""The square that takes a ReLU's place: of z with a spread of one, ``(z / 4 + 1)^2 = 1 + z / 2 + z^2 / 16`` rises as a
ReLU does on average. The square nearest to a ReLU bends three times as much; through 17 squares, what bends more leaves
no bound for a tile that is unlike the training tiles."""


class Square(nn.Module):
    """The activation x * x: one multiplication of ciphertexts, nothing approximated.

    While a network trained with ReLUs is moved over to squares, ``share`` rises from 0 to 1: the rest is the ReLU whose
    place the square takes.
    """

    share = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the square of each value."""
        if self.share == 1:
            return x * x
        relu = torch.relu((x - RELU_OFFSET) / RELU_GAIN)
        return self.share * x * x + (1 - self.share) * relu


def set_share(network: nn.Module, share: float) -> None:
    """Set how much of a square every `Square` of a network is."""
    for module in network.modules():
        if isinstance(module, Square):
            module.share = share


CLEAR = SimpleNamespace(
    Conv2d=nn.Conv2d,
    BatchNorm2d=nn.BatchNorm2d,
    Quad=Square,
    AvgPool2d=nn.AvgPool2d,
    Flatten=nn.Flatten,
    Linear=nn.Linear,
)
"""The layers in the clear, under the names that encrypted libraries use."""


@dataclass
class Ranges:
    """What went into the squares while `watched` was on."""

    excess: list[torch.Tensor] = field(default_factory=list)
    """One per square and pass: mean of the squared excess over `LIMIT`, differentiable."""
    largest: dict[str, float] = field(default_factory=dict)
    """Largest absolute value by name of the square, over all passes."""


@contextmanager
def watched(network: nn.Module, *, largest: bool = False) -> Iterator[Ranges]:
    """Watch what enters the squares of a network.

    Parameters
    ----------
    network
        Any; a network without `Square` has nothing to watch, and no ``excess``.
    largest
        Note the largest values instead of the excess.
    """
    found = Ranges()

    def look(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0].float()
            if largest:
                found.largest[name] = max(found.largest.get(name, 0.0), float(x.detach().abs().max()))
            else:
                found.excess.append((x.abs() - LIMIT).clamp_min(0).square().mean())

        return hook

    hooks = [
        module.register_forward_pre_hook(look(name))
        for name, module in network.named_modules()
        if isinstance(module, Square)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
