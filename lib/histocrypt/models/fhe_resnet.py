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

from histocrypt.models.polynomial import Square, set_share


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, each sum squared."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.square1 = Square()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.square2 = Square()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, S, S) to (B, outputs, S / stride, S / stride)."""
        y = self.bn2(self.conv2(self.square1(self.bn1(self.conv1(x)))))
        return self.square2(y + (x if self.downsample is None else self.downsample(x)))


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
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                # (1 + x/2)^2 = 1 + x + x^2/4: training starts near a linear network, and signs are not lost.
                nn.init.constant_(module.weight, 0.5)
                nn.init.constant_(module.bias, 1.0)
        for module in self.modules():
            if isinstance(module, Block):  # a sum of two branches is squared: the same as above for the sum
                nn.init.constant_(module.bn2.weight, 0.25)
                nn.init.constant_(module.bn2.bias, 0.5)
                if module.downsample is not None:
                    nn.init.constant_(module.downsample[1].weight, 0.25)
                    nn.init.constant_(module.downsample[1].bias, 0.5)

    def take_over(self, trained: nn.Module, images: torch.Tensor) -> None:
        """Take over the weights of a `histocrypt.models.resnet18.ResNet18` of the same widths.

        A ReLU does not mind the scale of what it gets, a square does: what enters the activations is scaled to order
        one, and what follows undoes it, so that with ReLUs the network gives the same outputs as before.

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
            self.load_state_dict(state)
        except RuntimeError as error:
            msg = f"the weights of the clear network do not fit ({' '.join(str(error).split())[:200]})"
            raise ValueError(msg) from error
        self._rescale(images)

    @torch.no_grad()
    def _rescale(self, images: torch.Tensor) -> None:
        """Scale what enters each square to about -1 to 1, where squares are still ReLUs."""
        found: dict[nn.Module, float] = {}

        def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            found[module] = float(inputs[0].abs().flatten()[:: max(1, inputs[0].numel() // 10**6)].quantile(0.999))

        squares = [module for module in self.modules() if isinstance(module, Square)]
        hooks = [module.register_forward_pre_hook(look) for module in squares]
        set_share(self, 0.0)
        self.eval()(images)
        for hook in hooks:
            hook.remove()

        def entering(norm: nn.BatchNorm2d, scale: float) -> None:
            norm.running_mean *= scale
            norm.running_var *= scale**2

        def leaving(norm: nn.BatchNorm2d, scale: float) -> None:
            norm.weight *= scale
            norm.bias *= scale

        streams: list[list[Block]] = [[]]  # blocks between which values are passed on unchanged
        for block in self.blocks:
            if block.downsample is not None:
                streams.append([])
            streams[-1].append(block)
        scales = [1 / max(found[block.square2] for block in stream) if stream else 1.0 for stream in streams]
        scales[0] = min(scales[0], 1 / found[self.square])
        leaving(self.bn1, scales[0])
        before = scales[0]
        for stream, scale in zip(streams, scales, strict=True):
            for block in stream:
                inner = 1 / found[block.square1]
                entering(block.bn1, before)
                leaving(block.bn1, inner)
                entering(block.bn2, inner)
                leaving(block.bn2, scale)
                if block.downsample is not None:
                    entering(block.downsample[1], before)
                    leaving(block.downsample[1], scale)
                before = scale
        self.fc.weight /= before

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, S, S) to (B, n_outputs)."""
        x = self.pool(self.square(self.bn1(self.conv1(images))))
        for block in self.blocks:
            x = block(x)
        return self.fc(self.mean(x).flatten(1))
