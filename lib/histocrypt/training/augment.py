"""Random changes of a batch of images that leave its biology alone. Vectorised over the batch, on any device.

Stain augmentation follows Tellez et al. (IEEE TMI 2018; Medical Image Analysis 2019): an image is taken to optical
density, split into haematoxylin, eosin and a rest, and each concentration is scaled and shifted by a random amount.
"""

from __future__ import annotations

import torch

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
