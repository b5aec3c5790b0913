"""The network of DiffGuard: a U-Net that predicts the noise in an image, or in an image and its mask at once.

Zhou et al., npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7; the U-Net of Dhariwal and Nichol, "Diffusion
Models Beat GANs on Image Synthesis", NeurIPS 2021, told the continuous noise level as in Chen et al., "WaveGrad", ICLR
2021, and, beyond the published network, the class of the image (Ho and Salimans, "Classifier-Free Diffusion Guidance",
2022). The layers are those of diffusers.

Shapes: B images, C channels (image, then mask), S pixels a side.
"""

from __future__ import annotations

import math

import torch
from torch import nn

import histocrypt.torchvision_ops  # noqa: F401 - lets diffusers import torchvision beside a CPU-only torch


class DiffGuard(nn.Module):
    """Predicts the noise in (B, C, S, S), given the share of signal that is left and the class."""

    def __init__(
        self,
        channels: int,
        *,
        n_classes: int = 0,  # 0: the published network, which knows no class
        width: int = 64,  # channels at the finest level
        multipliers: tuple[int, ...] = (1, 2, 4, 8),  # of the width, a level each; every level halves the side
        blocks: int = 2,  # residual blocks a level
        dropout: float = 0.2,
        patch: int = 1,  # pixels a side that the network sees as one: 2 is faster, and coarser
    ) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        levels = len(multipliers)
        self.n_classes = n_classes
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        # The middle block alone attends, in one head. The last class is the null class. Narrow networks normalise over
        # groups of 8 channels: of a channel alone, its mean, and with it the colour of the tile, would be lost.
        self.unet = UNet2DModel(
            in_channels=channels * patch**2,
            out_channels=channels * patch**2,
            block_out_channels=[width * multiplier for multiplier in multipliers],
            layers_per_block=blocks,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=width * multipliers[-1],
            norm_num_groups=32 if width % 64 == 0 else math.gcd(width, max(1, width // 8)),
            dropout=dropout,
            num_class_embeds=n_classes + 1 if n_classes else None,
        )
        nn.init.zeros_(self.unet.conv_out.weight)  # an untrained network predicts no noise
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, noisy: torch.Tensor, kept: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Return the noise, (B, C, S, S).

        Parameters
        ----------
        noisy
            (B, C, S, S); S a multiple of ``patch * 2 ** (levels - 1)``.
        kept
            (B,), share of the signal's variance that is left: 1 without noise, 0 where nothing else is left.
        classes
            (B,) whole numbers; ``n_classes`` is the null class, which stands for any. None where no class is known.
        """
        # As an angle, both ends of the scale are told finely: 0 without noise, 1000 where nothing else is left.
        angle = kept.float().clamp(0, 1).sqrt().arccos() * (2000 / math.pi)
        out = self.unet(self.fold(noisy), angle, class_labels=classes if self.n_classes else None, return_dict=False)
        return self.unfold(out[0])
