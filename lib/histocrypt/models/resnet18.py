"""ResNet-18 as torchvision builds it, with the option that encrypted inference needs.

He et al. 2016. privateST replaces the max pool by an average pool, because a maximum costs dearly under encryption; it
asks its users to overwrite torchvision's installed file. Here one attribute of the built network is replaced.
"""

from __future__ import annotations

import torch
from torch import nn

import histocrypt.torchvision_ops  # noqa: F401 - lets torchvision be imported beside a CPU-only torch; must come first

from torchvision.models import resnet18  # isort: skip


class ResNet18(nn.Module):
    """ResNet-18, trained from random weights.

    Parameters
    ----------
    n_outputs
        Number of predicted columns.
    average_pool
        Use a 3 x 3 average pool of stride 2 after the stem where torchvision has a max pool.
    """

    input_px = 96
    """Side of the input, pixels. Any side from 32 works; privateST uses 64."""

    def __init__(self, n_outputs: int, *, average_pool: bool = False) -> None:
        super().__init__()
        self.network = resnet18(weights=None, num_classes=n_outputs)
        if average_pool:
            self.network.maxpool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, S, S) to (B, n_outputs)."""
        return self.network(images)
