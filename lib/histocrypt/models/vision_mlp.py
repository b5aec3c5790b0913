"""VisionMLP: a small multi-scale network that looks at a spot, its surroundings, and their nine parts.

Rebuilt from the description of ``VisionMLP_MultiTask`` (Elucidata spatial hackathon 2025). The original joined its
branches by position; a later stage joined them in another order, and nothing noticed. Here branches have names: weights
are stored by name and the first fusion layer holds one named block per branch, so order cannot matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

BRANCHES = ("tile", "subtiles", "centre")
"""The three scales: the whole tile, the mean over its 3 x 3 subtiles, and the middle one with weights of its own.

None looks beyond the tile: at 150 um, about as far as a Visium spot's nearest neighbour. More takes larger tiles."""

SLOPE = 0.01  # of every LeakyReLU


class ResidualUnit(nn.Module):
    """Twice (3 x 3 convolution, batch norm, SiLU), and a shortcut that is added after the second activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        return self.body(x) + self.shortcut(x)


class Trunk(nn.Sequential):
    """Convolution to ``widths[0]``, then halve and two residual units for each further width."""

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), nn.BatchNorm2d(widths[0]), nn.SiLU()]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.MaxPool2d(2), ResidualUnit(inputs, outputs), ResidualUnit(outputs, outputs)]
        super().__init__(*layers)


class GridPool(nn.Module):
    """Averages over grids of the given sides, e.g. (1, 3): 1 + 9 values a channel."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C * sum(side**2))."""
        # Apple's MPS pools into equal cells only; elsewhere the built-in is faster.
        uneven = x.device.type == "mps" and any(size % side for size in x.shape[-2:] for side in self.sides)
        pool = pool_by_matrices if uneven else adaptive_avg_pool2d
        return torch.cat([pool(x, side).flatten(1) for side in self.sides], dim=1)


def pool_by_matrices(x: torch.Tensor, side: int) -> torch.Tensor:
    """Return what ``adaptive_avg_pool2d`` does, as two matrix products; cells may overlap by a pixel."""

    def cells(size: int) -> torch.Tensor:
        average = torch.zeros(side, size)
        for cell in range(side):
            first, last = cell * size // side, -(-(cell + 1) * size // side)
            average[cell, first:last] = 1 / (last - first)
        return average.to(x)

    return cells(x.shape[-2]) @ x @ cells(x.shape[-1]).T


def _dense(widths: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(SLOPE), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class VisionMLP(nn.Module):
    """Predict all outputs of a spot from its tile, its 3 x 3 subtiles and the centre subtile.

    Parameters
    ----------
    n_outputs
        Number of predicted columns.
    width
        Multiplies every channel and layer width. At 1 the widths are the original ones (32, 64, 128, 256), and the
        network has the original 6,679,843 parameters for 35 outputs.
    dropout
        In the projections and the head.
    branches
        Which of `BRANCHES` to use, in any order.
    """

    input_px = 78
    """Side of the input, pixels: 3 x 26, a spot's diameter in the original data."""
    input_multiple = 3
    """The side must be a multiple of this."""

    def __init__(
        self, n_outputs: int, *, width: float = 1.0, dropout: float = 0.1, branches: Sequence[str] = BRANCHES
    ) -> None:
        super().__init__()
        unknown = sorted(set(branches) - set(BRANCHES))
        if unknown or not branches or len(set(branches)) != len(branches):
            raise ValueError(f"branches must be distinct and among {', '.join(BRANCHES)}; found {list(branches)}")
        if width <= 0 or not 0 <= dropout < 1:
            raise ValueError(f"width must be positive and dropout in [0, 1); found {width} and {dropout}")

        def scaled(size: int) -> int:
            return max(8, round(size * width))

        channels = [scaled(size) for size in (32, 64, 128, 256)]
        joined = scaled(128)

        def branch(name: str) -> nn.Sequential:
            if name == "tile":
                sizes = [channels[3] * 10, scaled(512), scaled(256), joined]
                return nn.Sequential(Trunk(channels), GridPool((1, 3)), _dense(sizes, dropout))
            sizes = [channels[2] * 14, scaled(256), joined]
            return nn.Sequential(Trunk(channels[:3]), GridPool((1, 2, 3)), _dense(sizes, dropout))

        # Names sort the order in which weights are drawn, so that a seed gives the same network for any order.
        self.branches = nn.ModuleDict({name: branch(name) for name in sorted(branches)})
        # One linear map of the joined features, kept as one block per name: no position means anything.
        self.fusion = nn.ModuleDict({name: nn.Linear(joined, scaled(256), bias=False) for name in sorted(branches)})
        with torch.no_grad():  # as one layer over all joined features would be initialised
            for block in self.fusion.values():
                block.weight.div_(len(branches) ** 0.5)
        self.fusion_bias = nn.Parameter(torch.zeros(scaled(256)))
        self.head = nn.Sequential(
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
            *_dense([scaled(256), scaled(128), scaled(64)], dropout),
            nn.Linear(scaled(64), n_outputs),
        )
        self.order = tuple(branches)

    def features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the projected features of each branch by its name, (B, 128 * width) each."""
        side = images.shape[-1]
        if images.shape[-2] != side or side % 3:
            raise ValueError(f"images must be square with a side divisible by 3, found {tuple(images.shape)}")
        part = side // 3
        found = {}
        for name in self.order:
            trunk, pool, project = self.branches[name]
            if name == "tile":
                pooled = pool(trunk(images))
            elif name == "centre":
                pooled = pool(trunk(images[:, :, part : 2 * part, part : 2 * part]))
            else:
                # (B, 3, 3 * part, 3 * part) -> (B * 9, 3, part, part), row-major; averaged after pooling
                parts = images.unflatten(3, (3, part)).unflatten(2, (3, part)).permute(0, 2, 4, 1, 3, 5)
                pooled = pool(trunk(parts.flatten(0, 2))).unflatten(0, (-1, 9)).mean(dim=1)
            found[name] = project(pooled)
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, S, S) to (B, n_outputs)."""
        features = self.features(images)
        # Summed in the order of the sorted names: floating-point sums then do not depend on the declared order.
        joined = sum(self.fusion[name](features[name]) for name in sorted(features))
        return self.head(joined + self.fusion_bias)

    def load_state_dict(self, state_dict: dict, *args: object, **kwargs: object) -> object:
        """Load weights; another set of branches is refused by name."""
        stored = {key.split(".")[1] for key in state_dict if key.startswith("branches.")}
        if stored != set(self.order):
            raise ValueError(f"the weights hold the branches {sorted(stored)}, this network has {sorted(self.order)}")
        return super().load_state_dict(state_dict, *args, **kwargs)
