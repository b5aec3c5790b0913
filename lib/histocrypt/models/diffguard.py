"""The network of DiffGuard: a U-Net that predicts the noise in an image, or in an image and its mask at once.

Zhou et al., npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7; the U-Net of Dhariwal and Nichol, "Diffusion
Models Beat GANs on Image Synthesis", NeurIPS 2021, told the continuous noise level as in Chen et al., "WaveGrad", ICLR
2021, and, beyond the published network, the class of the image (Ho and Salimans, "Classifier-Free Diffusion Guidance",
2022). The layers are those of diffusers.

Two more, beyond the published network: what is noised may be whitened patches (`Whitened`) in place of pixels, and the
network may be told the tile's stain and its mask.

Shapes: B images, C channels (image, then mask), S pixels a side.
"""

from __future__ import annotations

import math

import torch
from torch import nn

import histocrypt.torchvision_ops  # noqa: F401 - lets diffusers import torchvision beside a CPU-only torch

FINEST = 1e-5
"""Least variance of a component, in shares of a channel's: below it there is rounding alone."""


class Whitened(nn.Module):
    """Patches as principal components of unit variance, learned once: a linear patch autoencoder without training.

    Tiles scaled to [-1, 1] have a standard deviation of about 0.2: what the noise of diffusion, of standard deviation
    1, leaves of them is their mean, and a small network learns little else. With each component's variance at 1, noise
    and signal meet as they should (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    NeurIPS 2022, section 5, on the variance of the data). Channels count equally, whatever their contrast.

    A large patch has many components of mere grain. With all at 1 they outweigh the few that hold its colour, and
    neighbouring patches do not fit; an ``evenness`` below 1 leaves the later ones less: variances to the power of
    1 - evenness, the first at 1.
    """

    def __init__(self, channels: int, *, patch: int, components: int | None = None, evenness: float = 1.0) -> None:
        super().__init__()
        self.patch, self.evenness, size = patch, evenness, channels * patch**2
        self.components = size if components is None else components
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("analysis", torch.zeros(self.components, size))
        self.register_buffer("synthesis", torch.zeros(size, self.components))

    def fit(self, signals: torch.Tensor) -> None:
        """Learn mean and components of (n, C, S, S)."""
        patches = nn.functional.pixel_unshuffle(signals, self.patch).movedim(1, -1).flatten(0, 2).double()
        mean = patches.mean(dim=0)
        channel = signals.double().std(dim=(0, 2, 3)).clamp_min(1e-3).repeat_interleave(self.patch**2)
        centred = (patches - mean) / channel
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        kept = torch.argsort(variances, descending=True)[: self.components]
        spread, axes = variances[kept].clamp_min(FINEST).sqrt(), axes[:, kept]
        spread = spread[0] * (spread / spread[0]) ** self.evenness
        self.mean.copy_(mean)
        self.analysis.copy_((axes / channel[:, None] / spread).T)
        self.synthesis.copy_(axes * channel[:, None] * spread)

    def encode(self, signals: torch.Tensor) -> torch.Tensor:
        """Return components (B, k, S / patch, S / patch) of (B, C, S, S)."""
        patches = nn.functional.pixel_unshuffle(signals, self.patch) - self.mean[:, None, None]
        return torch.einsum("kd,bdhw->bkhw", self.analysis, patches)

    def decode(self, components: torch.Tensor) -> torch.Tensor:
        """Return signals (B, C, S, S); the inverse of `encode` where all components are kept."""
        patches = torch.einsum("dk,bkhw->bdhw", self.synthesis, components) + self.mean[:, None, None]
        return nn.functional.pixel_shuffle(patches, self.patch)


class Stain(nn.Module):
    """Tells a network how a tile is coloured; knows how the tiles learned from were, a Gaussian for each class.

    The Gaussian holds no tile's own numbers, so that colours of drawn tiles vary as those of real tiles do and copy
    none. Of a class with few tiles, the covariance leans on that of all (weighed as many tiles as there are numbers).
    """

    def __init__(self, numbers: int, *, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.register_buffer("means", torch.zeros(classes, numbers))
        self.register_buffer("roots", torch.eye(numbers).repeat(classes, 1, 1))
        self.embed = nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width))

    def fit(self, colours: torch.Tensor, classes: torch.Tensor) -> None:
        """Learn from (n, numbers) and the classes' numbers (n,)."""
        self.centre.copy_(colours.mean(dim=0))
        self.scale.copy_(colours.std(dim=0).clamp_min(1e-3))
        scaled, n = (colours.double() - self.centre) / self.scale, colours.shape[1]
        means = torch.stack([scaled[classes == number].mean(dim=0) for number in classes.tolist()])
        within = (scaled - means).T @ (scaled - means) / len(scaled)
        for number in range(len(self.means)):
            own = scaled[classes == number] if (classes == number).any() else scaled
            mean = own.mean(dim=0)
            spread = (own - mean).T @ (own - mean) + n * within
            spread = spread / (len(own) + n) + 1e-4 * torch.eye(n)
            self.means[number].copy_(mean)
            self.roots[number].copy_(torch.linalg.cholesky(spread))

    def draw(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return colours (n, numbers) of tiles of the given classes, out of standard normal noise of that shape."""
        scaled = self.means[classes] + torch.einsum("bij,bj->bi", self.roots[classes], noise)
        return scaled * self.scale + self.centre

    def forward(self, colours: torch.Tensor) -> torch.Tensor:
        """Return an embedding, (B, width), of colours (B, numbers); beyond 3 standard deviations it is that at 3."""
        return self.embed(((colours - self.centre) / self.scale).clamp(-3, 3))


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
        whitened: bool = False,  # whether what is noised are the components of patches
        components: int | None = None,  # of a whitened patch that are kept; None: all
        evenness: float = 1.0,  # of their variances
        stain: int = 0,  # numbers that tell how a tile is coloured; 0: none
        levels: int = 0,  # of masks that may be told; 0: none are
    ) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        depth = len(multipliers)
        self.n_classes, self.levels, self.patch = n_classes, levels, patch
        self.whitened = Whitened(channels, patch=patch, components=components, evenness=evenness) if whitened else None
        inside = patch if self.whitened is None else 1  # whitened patches are folded already
        self.fold, self.unfold = nn.PixelUnshuffle(inside), nn.PixelShuffle(inside)
        size = channels * patch**2 if self.whitened is None else self.whitened.components
        embedded = width * 4  # as wide as the embedding of the noise level
        self.stain = Stain(stain, classes=max(1, n_classes), width=embedded) if stain else None
        self.named = nn.Embedding(n_classes + 1, embedded) if stain and n_classes else None
        # The middle block alone attends, in one head. The last class is the null class. Narrow networks normalise over
        # groups of 8 channels: of a channel alone, its mean, and with it the colour of the tile, would be lost.
        self.unet = UNet2DModel(
            in_channels=size + levels * patch**2,
            out_channels=size,
            block_out_channels=[width * multiplier for multiplier in multipliers],
            layers_per_block=blocks,
            down_block_types=("DownBlock2D",) * depth,
            up_block_types=("UpBlock2D",) * depth,
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=width * multipliers[-1],
            norm_num_groups=32 if width % 64 == 0 else math.gcd(width, max(1, width // 8)),
            dropout=dropout,
            num_class_embeds=n_classes + 1 if n_classes and not stain else None,
            class_embed_type="identity" if stain else None,
        )
        nn.init.zeros_(self.unet.conv_out.weight)  # an untrained network predicts no noise
        nn.init.zeros_(self.unet.conv_out.bias)

    def encode(self, signals: torch.Tensor) -> torch.Tensor:
        """Return what is noised of (B, C, S, S): itself, or its whitened patches."""
        return signals if self.whitened is None else self.whitened.encode(signals)

    def decode(self, clean: torch.Tensor) -> torch.Tensor:
        """Return the signals (B, C, S, S) of what was noised."""
        return clean if self.whitened is None else self.whitened.decode(clean)

    def forward(
        self,
        noisy: torch.Tensor,
        kept: torch.Tensor,
        classes: torch.Tensor | None = None,
        *,
        stain: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the noise, in the shape of ``noisy``.

        Parameters
        ----------
        noisy
            As `encode` gives it. S is a multiple of ``patch`` and of 2 for every further level of the U-Net.
        kept
            (B,), share of the signal's variance that is left: 1 without noise, 0 where nothing else is left.
        classes
            (B,) whole numbers; ``n_classes`` is the null class, which stands for any. None where no class is known.
        stain
            (B, numbers), how each tile is coloured; needed where the network was made to be told.
        masks
            (B, S, S) whole numbers, levels of the mask that the picture is to fit; -1 where it is not told.
        """
        # As an angle, both ends of the scale are told finely: 0 without noise, 1000 where nothing else is left.
        angle = kept.float().clamp(0, 1).sqrt().arccos() * (2000 / math.pi)
        told = classes if self.n_classes else None
        if self.stain is not None:
            told = self.stain(stain) + (0 if self.named is None else self.named(classes))
        seen = self.fold(noisy)
        if self.levels:
            outlined = torch.stack([masks == level for level in range(self.levels)], dim=1).to(seen)
            seen = torch.cat([seen, nn.functional.pixel_unshuffle(outlined, self.patch)], dim=1)
        out = self.unet(seen, angle, class_labels=told, return_dict=False)
        return self.unfold(out[0])
