"""Networks that are evaluated on encrypted tiles as they are, without any approximation: sums, weights, squares.

A network is written once, against a namespace of layers: `CLEAR` here, or an encrypted library's own (``orion.nn`` has
the same names).

An encrypted evaluation pays for levels, one per linear layer and one per square, and for the distinct diagonals of each
linear layer's matrix. Hence few layers, squares for activations (CryptoNets, Gilad-Bachrach et al. 2016; LoLa, Brutzkus
et al. 2019), and convolutions whose kernel is their stride: these have one diagonal per output channel, whatever the
size of the image, where an overlapping 3 x 3 convolution of stride 2 has about four times as many. What the last tensor
averages to, texture without place, also carries over to other patients better than a weight for every place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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

STRIDES = {3: (8,), 5: (8, 2), 7: (4, 2, 2), 9: (4, 2, 2, 2)}
"""Stride, and kernel, of each convolution by depth."""
CHANNELS = {3: (256,), 5: (64, 128), 7: (32, 64, 128), 9: (32, 64, 128, 256)}
"""Output channels of each convolution at width 1."""


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


def build_layers(
    n_outputs: int, *, depth: int, width: float, pool: int, side: int, ops: SimpleNamespace
) -> list[nn.Module]:
    """Return the layers in order, made from the namespace ``ops``: convolution, batch norm, square, ...; linear.

    See `FheCnn` for the parameters.
    """
    layers: list[nn.Module] = []
    inputs, grid = 3, side
    for stride, channels in zip(STRIDES[depth], CHANNELS[depth], strict=True):
        outputs = max(4, round(channels * width))
        layers += [
            ops.Conv2d(inputs, outputs, kernel_size=stride, stride=stride, padding=0, bias=False),
            ops.BatchNorm2d(outputs),
            ops.Quad(),
        ]
        inputs, grid = outputs, grid // stride
    if pool < grid:
        layers.append(ops.AvgPool2d(grid // pool, stride=grid // pool, padding=0))
        grid = pool
    return [*layers, ops.Flatten(), ops.Linear(inputs * grid * grid, n_outputs)]


class FheCnn(nn.Module):
    """Convolutions with batch norm and squares, then one linear layer.

    Parameters
    ----------
    n_outputs
        Number of predicted columns.
    depth
        Multiplicative levels: 3, 5, 7 or 9. A linear layer costs one (batch norm is folded into it), a square one.
    width
        Multiplies the channels of every convolution.
    pool
        The last tensor is averaged over a grid of this many cells a side: 1 keeps no place, and fewest weights. It is
        part of the linear layer and costs nothing.
    side
        Side of the input, pixels; divisible by the product of the strides.
    ops
        Namespace of the layers: see `histocrypt.models.fhe`.
    """

    input_px = 64
    """Side of the input, pixels: 3 x 64 x 64 values fill three quarters of the slots of one ciphertext."""
    sized = True
    """The linear layer depends on the side of the input."""

    def __init__(
        self,
        n_outputs: int,
        *,
        depth: int = 5,
        width: float = 1.0,
        pool: int = 1,
        side: int = input_px,
        ops: SimpleNamespace = CLEAR,
    ) -> None:
        super().__init__()
        if depth not in STRIDES:
            raise ValueError(f"depth must be one of {', '.join(map(str, STRIDES))}; found {depth!r}")
        if not width > 0:
            raise ValueError(f"width must be positive; found {width!r}")
        self.strides = list(STRIDES[depth])
        whole = math.prod(self.strides)
        if side % whole:
            raise ValueError(f"at depth {depth} the side of the input must be a multiple of {whole}; found {side}")
        if pool < 1 or (side // whole) % pool:
            raise ValueError(f"pool must divide {side // whole}, the side of the last tensor; found {pool!r}")
        self.layers = nn.Sequential(*build_layers(n_outputs, depth=depth, width=width, pool=pool, side=side, ops=ops))
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                # (1 + x/2)^2 = 1 + x + x^2/4: training starts near a linear network, and signs are not lost.
                nn.init.constant_(layer.weight, 0.5)
                nn.init.constant_(layer.bias, 1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, side, side) to (B, n_outputs)."""
        return self.layers(images)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; their sum is normalised, then squared.

    Without that last batch norm, values passed on by shortcuts would be squared again and again: a deviation doubles
    with every block, and training diverges.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.square1 = Square()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.norm = nn.BatchNorm2d(outputs)
        self.square2 = Square()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, S, S) to (B, outputs, S / stride, S / stride)."""
        y = self.bn2(self.conv2(self.square1(self.bn1(self.conv1(x)))))
        return self.square2(self.norm(y + (x if self.downsample is None else self.downsample(x))))


class FheResNet18(nn.Module):
    """A residual network without any operation that ciphertexts lack.

    privateST (Scientific Reports) evaluates a ResNet-18 (He et al., 2016) on encrypted tiles: average instead of max
    pooling, and each ReLU approximated by three polynomials of degrees 15, 15 and 27. A square costs one multiplication
    and nothing is approximated, but the network must be trained with it. The modules are plain, and named as in
    torchvision's `resnet18` but for one list of blocks, so that weights can be taken over by name.

    Parameters
    ----------
    n_outputs
        Number of predicted columns.
    width
        Channels of the stem and the first stage; each stage doubles them.
    blocks
        Blocks of each stage; the first block of every stage but the first halves the image.
    """

    input_px = 64
    """Side of the input, pixels. The side must be divisible by 4 * 2^(stages - 1)."""
    settled = True
    """Its batch norms need the statistics of all training tiles, see `histocrypt.predictors.network.settle`."""

    def __init__(self, n_outputs: int, *, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2)) -> None:
        super().__init__()
        if width < 1 or not blocks or min(blocks) < 1:
            raise ValueError(f"width and blocks must be positive; found width {width!r}, blocks {list(blocks)!r}")
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.square = Square()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        layers, inputs = [], width
        for stage, number in enumerate(blocks):
            outputs = width << stage
            for index in range(number):
                layers.append(Block(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
        self.blocks = nn.ModuleList(layers)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, n_outputs)
        for module in self.modules():  # squares start as those that take a ReLU's place
            for norm in (getattr(module, name, None) for name in ("bn1", "norm")):
                if isinstance(norm, nn.BatchNorm2d):
                    nn.init.constant_(norm.weight, RELU_GAIN)
                    nn.init.constant_(norm.bias, RELU_OFFSET)

    def take_over(self, trained: nn.Module, images: torch.Tensor) -> None:
        """Take over the weights of a `histocrypt.models.resnet18.ResNet18` of the same widths.

        A ReLU does not mind the scale of what it gets, a square does: what enters the activations is scaled to the
        spread at which a square takes a ReLU's place, and what follows undoes it, so that with ReLUs the network gives
        the same outputs as before.

        Parameters
        ----------
        trained
            The clear network.
        images
            (B, 3, S, S) standardised training images, on which scales are found.

        Raises
        ------
        ValueError
            If a weight is missing or of another shape.
        """
        blocks: dict[str, str] = {}
        for key in trained.network.state_dict():
            stage, _, rest = key.partition(".")
            if stage.startswith("layer"):
                block = f"{stage}.{rest.partition('.')[0]}"
                blocks.setdefault(block, f"blocks.{len(blocks)}")
        state = {}
        for key, value in trained.network.state_dict().items():
            block = ".".join(key.split(".")[:2])
            state[key.replace(block, blocks[block], 1) if block in blocks else key] = value
        try:
            absent, unknown = self.load_state_dict(state, strict=False)
            if unknown or any(".norm." not in key for key in absent):
                raise RuntimeError(*unknown, *absent)
        except RuntimeError as error:
            raise ValueError(
                f"the weights of the clear network do not fit ({' '.join(str(error).split())[:200]})"
            ) from error
        self._rescale(images)

    @torch.no_grad()
    def _rescale(self, images: torch.Tensor) -> None:
        """Scale what enters each activation to a spread of one (`RELU_GAIN`), layer by layer."""
        set_share(self.eval(), 0.0)

        def entering(norm: nn.BatchNorm2d, scale: float) -> None:
            norm.running_mean *= scale
            norm.running_var *= scale**2

        def leaving(norm: nn.BatchNorm2d, scale: float, offset: float = 0.0) -> None:
            norm.weight *= scale
            norm.bias *= scale
            norm.bias += offset

        def spread(x: torch.Tensor) -> float:
            return float(x.square().mean().sqrt())

        scale = 1 / spread(self.bn1(self.conv1(images)))
        leaving(self.bn1, RELU_GAIN * scale, RELU_OFFSET)
        x = self.pool(self.square(self.bn1(self.conv1(images))))
        for block in self.blocks:
            entering(block.bn1, scale)
            inner = 1 / spread(block.bn1(block.conv1(x)))
            leaving(block.bn1, RELU_GAIN * inner, RELU_OFFSET)
            y = block.conv2(block.square1(block.bn1(block.conv1(x))))
            entering(block.bn2, inner)
            leaving(block.bn2, scale)  # what the shortcut carries has this scale
            if block.downsample is not None:
                entering(block.downsample[1], scale)
                leaving(block.downsample[1], scale)
            total = block.bn2(y) + (x if block.downsample is None else block.downsample(x))
            again = 1 / spread(total)
            mean, variance = total.mean(dim=(0, 2, 3)), total.var(dim=(0, 2, 3))
            block.norm.running_mean.copy_(mean)
            block.norm.running_var.copy_(variance)
            block.norm.weight.copy_((variance + block.norm.eps).sqrt())
            block.norm.bias.copy_(mean)
            leaving(block.norm, RELU_GAIN * again, RELU_OFFSET)
            scale *= again
            x = block.square2(block.norm(total))
        self.fc.weight /= scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, S, S) to (B, n_outputs)."""
        x = self.pool(self.square(self.bn1(self.conv1(images))))
        for block in self.blocks:
            x = block(x)
        return self.fc(self.mean(x).flatten(1))
