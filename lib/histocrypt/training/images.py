"""Images as batches are drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Images:
    """What batches are drawn from."""

    pixels: torch.Tensor
    """(n, 3, S, S) uint8."""
    mean: torch.Tensor
    """(n, 3, 1, 1) or (1, 3, 1, 1) float32: what is subtracted from intensities in [0, 1]."""
    sd: torch.Tensor
    """Same shape: what they are then divided by."""
    sections: np.ndarray
    """(n,) str."""
    targets: torch.Tensor | None = None
    """(n, k) float32, as the loss sees them."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(
        self, index: np.ndarray, device: torch.device, change: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return standardised images (len(index), 3, S, S); ``change`` acts before they are standardised."""
        rows = torch.as_tensor(index)
        images = self.pixels[rows].to(device).float().div_(255)
        if change is not None:
            images = change(images)
        mean, sd = (x if len(x) == 1 else x[rows] for x in (self.mean, self.sd))
        return (images - mean.to(device)) / sd.to(device)

    def batches(self, order: np.ndarray, n_batches: int) -> list[np.ndarray]:
        """Return the row numbers of every batch of one epoch, each spot once, from all spots in random ``order``."""
        return np.array_split(order, n_batches)

    def loss(self, network: nn.Module, images: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        """Return the loss of one batch: ``images`` are those of the rows ``index``, on the network's device."""
        predicted = network(images)
        return nn.functional.mse_loss(predicted.float(), self.targets[torch.as_tensor(index)].to(images.device))
