"""A small network that draws a tile from its embedding: what somebody who gets embeddings in the clear may train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

WIDTHS = (48, 32, 16, 8)


class TileDecoder(nn.Module):
    """One linear layer to a coarse map, then double its side and convolve, again and again.

    Parameters
    ----------
    inputs
        Width of the embedding.
    side
        Of the tile, pixels; a multiple of ``2 ** (len(widths) - 1)``.
    widths
        Channels of the maps, the coarsest first.
    """

    def __init__(self, inputs: int, side: int, *, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        coarse, rest = divmod(side, 2 ** (len(widths) - 1))
        if rest or not coarse:
            raise ValueError(f"a side of {side} pixels cannot be halved {len(widths) - 1} times")
        layers: list[nn.Module] = [
            nn.Dropout(0.1),
            nn.Linear(inputs, widths[0] * coarse * coarse),
            nn.Unflatten(1, (widths[0], coarse, coarse)),
            nn.BatchNorm2d(widths[0]),
            nn.SiLU(),
        ]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs) to (B, 3, side, side), in whatever unit it was trained."""
        return self.body(embeddings)
