"""Images as batches are drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


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
