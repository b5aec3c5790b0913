"""FheResNet18: the residual network of privateST with squares for activations.

privateST (Scientific Reports) evaluates a ResNet-18 (He et al., 2016) on encrypted tiles: average instead of max
pooling, and each ReLU approximated by three polynomials of degrees 15, 15 and 27. A square costs one multiplication and
nothing is approximated, but the network must be trained with it. The modules are plain, and named as in torchvision's
`resnet18` but for one list of blocks, so that weights can be taken over by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from histocrypt.models.polynomial import RELU_GAIN, RELU_OFFSET, Square, set_share


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
    """Its batch norms need the statistics of all training tiles, see `histocrypt.training.norms`."""

    def __init__(self, n_outputs: int, *, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2)) -> None:
        super().__init__()
        if width < 1 or not blocks or min(blocks) < 1:
            msg = f"width and blocks must be positive; found width {width!r}, blocks {list(blocks)!r}"
            raise ValueError(msg)
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
            msg = f"the weights of the clear network do not fit ({' '.join(str(error).split())[:200]})"
            raise ValueError(msg) from error
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
