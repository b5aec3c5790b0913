"""U-Net: from an image to a level for each pixel.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, with
padded convolutions (maps keep their side), a norm that looks at one image alone, and upsampling in place of transposed
convolutions, which leave checkerboards.
"""

from __future__ import annotations

import torch
from torch import nn

NORMS = ("group", "instance")
SLOPE = 0.01  # of every LeakyReLU
GROUPS = 8


class UNet(nn.Module):
    """Halves the side ``depth`` times and comes back, with a skip at every side.

    Parameters
    ----------
    n_levels
        Number of levels a pixel may have.
    channels
        1 (grey) or 3 (RGB).
    width
        Channels at full side; they double with each halving. Ronneberger et al. have 64.
    depth
        Number of halvings. Ronneberger et al. have 4.
    norm
        ``group`` or ``instance``. Neither depends on the other images of a batch.
    dropout
        At the smallest side.
    """

    def __init__(
        self,
        n_levels: int,
        *,
        channels: int = 3,
        width: int = 16,
        depth: int = 3,
        norm: str = "group",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            msg = f"norm must be one of {', '.join(NORMS)}; found {norm!r}"
            raise ValueError(msg)
        if width < 1 or depth < 1 or not 0 <= dropout < 1:
            msg = f"width and depth must be positive and dropout in [0, 1); found {width}, {depth} and {dropout}"
            raise ValueError(msg)
        widths = [width * 2**step for step in range(depth + 1)]
        self.down = nn.ModuleList(
            convolutions(inputs, outputs, norm)
            for inputs, outputs in zip([channels, *widths], widths, strict=False)
        )  # fmt: skip
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            convolutions(below + here, here, norm)
            for here, below in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )  # fmt: skip
        self.out = nn.Conv2d(width, n_levels, 1)
        self.least_side = 2 ** (depth + 1)
        """Two pixels are left where the side is smallest: an instance norm of one pixel would be 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, channels, S, S) to logits (B, n_levels, S, S). S need not be a power of two."""
        skips, x = [], images
        for step, part in enumerate(self.down):
            x = part(nn.functional.max_pool2d(x, 2) if step else x)  # (B, width * 2^step, S / 2^step, ...)
            skips.append(x)
        x = self.dropout(skips.pop())
        for part in self.up:
            skip = skips.pop()
            x = nn.functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = part(torch.cat([x, skip], dim=1))
        return self.out(x)


def convolutions(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    """Return twice (3 x 3 convolution, norm, LeakyReLU): (B, inputs, h, w) to (B, outputs, h, w)."""
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), norm_of(norm, outputs), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def norm_of(norm: str, channels: int) -> nn.Module:
    """Return a norm over the channels of one image, in as many of `GROUPS` groups as divide them."""
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    groups = next(n for n in range(min(GROUPS, channels), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)
