"""Images as batches are drawn from them, and random changes of them that leave their biology alone.

Changes are vectorised over the batch, on any device. Stain augmentation follows Tellez et al. (IEEE TMI 2018; Medical
Image Analysis 2019): an image is taken to optical density, split into haematoxylin, eosin and a rest, and each
concentration is scaled and shifted by a random amount.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from histocrypt.training.loop import precision

EVALUATION_BATCH = 128
# Optical densities of haematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston 2001), rows of unit length.
STAINS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], dtype=torch.float64)
STAINS /= STAINS.norm(dim=1, keepdim=True)
_UNMIX = torch.linalg.inv(STAINS)

DARKEST = 1 / 255
"""Intensities below this are treated as this: the optical density stays finite."""


def flip_and_turn(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return each image in one of its eight symmetries, drawn at random.

    Parameters
    ----------
    images
        (B, C, S, S).
    generator
        CPU generator that the draws come from.
    """
    draws = (torch.rand(3, len(images), 1, 1, 1, generator=generator) < 0.5).to(images.device)
    images = torch.where(draws[0], images.flip(-1), images)
    images = torch.where(draws[1], images.flip(-2), images)
    return torch.where(draws[2], images.transpose(-1, -2), images)


def vary_stain(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return images whose stain concentrations are scaled by 1 + a and shifted by b, a and b uniform.

    Parameters
    ----------
    images
        (B, 3, S, S) in [0, 1].
    strength
        a is drawn from [-strength, strength], b from half that range (optical density units), for each image and stain.
    generator
        CPU generator that the draws come from.

    Returns
    -------
    torch.Tensor
        Same shape, in [0, 1].
    """
    draws = 2 * torch.rand(2, len(images), 3, generator=generator, dtype=torch.float64) - 1
    scale, shift = 1 + strength * draws[0], strength / 2 * draws[1]
    # With density = concentration @ STAINS, both steps are one affine map of a pixel: density @ matrix + offset.
    matrix = (_UNMIX @ (scale[:, :, None] * STAINS)).to(images)
    offset = (shift @ STAINS).to(images)
    density = -images.clamp_min(DARKEST).log().flatten(2)
    varied = torch.baddbmm(offset[:, :, None], matrix.transpose(1, 2), density)
    return varied.neg().exp().clamp(0, 1).view_as(images)


def vary_contrast(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return standardised images times a factor plus a shift, drawn for each image.

    Networks of squares have no bound: what they meet must be within what they were trained on, so they are shown tiles
    brighter, darker, flatter and starker than any that is there.

    Parameters
    ----------
    images
        (B, 3, S, S), standardised.
    strength
        Factors are drawn from 1 / (1 + strength) to 1 + strength (uniform in the logarithm), shifts from [-strength,
        strength].
    generator
        CPU generator that the draws come from.
    """
    draws = (2 * torch.rand(2, len(images), 1, 1, 1, generator=generator) - 1).to(images)
    return images * (1 + strength) ** draws[0] + strength * draws[1]


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

    def arrays(self) -> list[np.ndarray]:
        """Return all that training depends on, for a fingerprint."""
        return [part.numpy() for part in (self.pixels, self.mean, self.sd, self.targets) if part is not None]

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


def predict(network: nn.Module, images: Images, device: torch.device) -> np.ndarray:
    """Return the outputs of a network in evaluation mode, (n, k) float32, in bounded batches."""
    network.eval()
    parts = []
    with torch.inference_mode(), precision(device):
        for start in range(0, len(images), EVALUATION_BATCH):
            index = np.arange(start, min(start + EVALUATION_BATCH, len(images)))
            parts.append(network(images.batch(index, device)).float().cpu().numpy())
    return np.concatenate(parts)
