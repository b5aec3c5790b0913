"""From an image to a level for each pixel: a U-Net, and a hybrid of a residual network and a transformer.

The U-Net is that of Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, with padded convolutions (maps keep their side), a norm that looks at one image alone, and upsampling in
place of transposed convolutions, which leave checkerboards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

import histocrypt.torchvision_ops  # noqa: F401 - lets torchvision be imported beside a CPU-only torch; must come first

from torchvision.models import resnet18, resnet50  # isort: skip

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
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; found {norm!r}")
        if width < 1 or depth < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"width and depth must be positive and dropout in [0, 1); found {width}, {depth} and {dropout}"
            )
        widths = [width * 2**step for step in range(depth + 1)]
        self.down = nn.ModuleList(
            convolutions(inputs, outputs, norm) for inputs, outputs in zip([channels, *widths], widths, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            convolutions(below + here, here, norm) for here, below in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
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


STEMS = {"resnet18": (resnet18, 1), "resnet50": (resnet50, 4)}
"""How each is built, and how many times wider its blocks' outputs are than their inner layers."""
STEM_CHANNELS = 64


class ViTHybrid(nn.Module):
    """A residual network sees detail, a transformer sees the whole tile, a decoder puts both on the pixels.

    In the manner of Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", 2021
    (arXiv 2102.04306): the maps of a ResNet are the tokens of a vision transformer (Dosovitskiy et al., ICLR 2021), and
    what the ResNet saw on the way there joins the decoder by skips. The published size is ``stem="resnet50", stages=3,
    width=768, layers=12, heads=12, decoder=512``.

    Parameters
    ----------
    n_levels
        Number of levels a pixel may have.
    channels
        1 (grey, repeated to three) or 3 (RGB).
    side
        Of the images, pixels; a multiple of 2 to the power ``stages + 1``.
    stem
        ``resnet18`` or ``resnet50``.
    stages
        Residual stages before the tokens, 1 to 3: a token stands for 4, 8 or 16 pixels a side.
    width, layers, heads
        Of the transformer.
    mlp_ratio
        Width of a layer's inner part, as a multiple of ``width``.
    decoder
        Channels of the decoder where it starts; they halve with each doubling of the side, down to 16.
    dropout
        In the transformer.
    """

    def __init__(
        self,
        n_levels: int,
        *,
        channels: int = 3,
        side: int,
        stem: str = "resnet18",
        stages: int = 2,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        decoder: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if stem not in STEMS or stages not in (1, 2, 3) or width % heads or channels not in (1, 3):
            raise ValueError(
                f"stem must be one of {', '.join(STEMS)}, stages 1 to 3, width a multiple of heads, channels 1 or 3; "
                f"found {stem}, {stages}, {width} and {heads}, {channels}"
            )
        stride = 2 ** (stages + 1)
        if side % stride:
            raise ValueError(f"a side of {side} px is no multiple of {stride}, the pixels a token stands for")
        build, wider = STEMS[stem]
        whole = build(weights=None)
        parts = ["conv1", "bn1", *(f"layer{number + 1}" for number in range(stages))]
        self.stem = nn.ModuleDict({name: getattr(whole, name) for name in parts})
        maps = [STEM_CHANNELS, *(64 * wider * 2**number for number in range(stages))]  # channels at each skip
        self.vit = Transformer(maps[-1], (side // stride) ** 2, width, layers, heads, mlp_ratio, dropout)
        self.enter = nn.Sequential(
            nn.Conv2d(width, decoder, 3, padding=1, bias=False), nn.GroupNorm(1, decoder), nn.ReLU()
        )
        widths = [decoder, *(max(16, decoder // 2**step) for step in range(1, stages + 2))]
        skips = [*maps[-2::-1], 0]  # nothing was kept at full side
        self.up = nn.ModuleList(
            convolutions(below + skip, here, "group")
            for below, here, skip in zip(widths, widths[1:], skips, strict=False)
        )
        self.out = nn.Conv2d(widths[-1], n_levels, 3, padding=1)
        self.side, self.least_side = side, stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, channels, side, side) to logits (B, n_levels, side, side)."""
        if images.shape[-2:] != (self.side, self.side):
            raise ValueError(f"this network was built for {self.side} px a side, found {tuple(images.shape[-2:])}")
        x = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        x = self.stem["bn1"](self.stem["conv1"](x)).relu()
        skips = [x]  # side / 2
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        for name, stage in self.stem.items():
            if name.startswith("layer"):
                x = stage(x)
                skips.append(x)  # side / 4, side / 8, ...
        x = self.enter(self.vit(skips.pop()))
        for part in self.up:
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = part(torch.cat([x, skips.pop()], dim=1) if skips else x)
        return self.out(x)

    def adopt(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return weights under this network's names, those of a ResNet or a transformer alone too; shapes unchecked.

        Parameters
        ----------
        weights
            Of this network; of a torchvision ResNet (``conv1``, ``layer1`` ...); or of a timm vision transformer
            (``blocks``, ``norm``, ``pos_embed``, ``patch_embed.proj``). Stages and layers that this network lacks, and
            heads, are left out; positions of another grid are interpolated, the place of a class token dropped.
        """
        own = self.state_dict()
        found = {}
        for name, value in weights.items():
            part = "vit." if re.match(r"(blocks|norm|pos_embed|patch_embed)\b", name) else "stem."
            known = name if name in own else part + name
            if known == "vit.pos_embed":
                found[known] = regridded(value, own[known].shape[1])
            elif known in own:
                found[known] = value
        return found


class Transformer(nn.Module):
    """A vision transformer over the pixels of a map, without a class token; it gives a map back."""

    def __init__(
        self, inputs: int, tokens: int, width: int, layers: int, heads: int, mlp_ratio: float, dropout: float
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(inputs, width, 1)})
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, h, w) to (B, width, h, w); h * w is the number of tokens."""
        x = self.patch_embed["proj"](maps)
        shape = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.pos_embed  # (B, h w, width)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).transpose(1, 2).unflatten(2, shape)


class Block(nn.Module):
    """Attention among tokens, then an inner layer; each is normalised before and added to what came in."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        inner = round(width * mlp_ratio)
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, n, width) to (B, n, width)."""
        query, key, value = (
            self.attn["qkv"](self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, n, width / heads)
        seen = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        tokens = tokens + self.dropout(self.attn["proj"](seen))
        inner = nn.functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.dropout(self.mlp["fc2"](self.dropout(inner)))


def regridded(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return positions (1, m, width) for ``tokens`` tokens of a square grid, bilinear; a class token's is dropped."""
    if positions.ndim != 3:
        return positions
    if math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        positions = positions[:, 1:]
    here, there = math.isqrt(tokens), math.isqrt(positions.shape[1])
    if here == there or there**2 != positions.shape[1]:
        return positions
    grid = positions.float().transpose(1, 2).unflatten(2, (there, there))
    return nn.functional.interpolate(grid, size=(here, here), mode="bilinear").flatten(2).transpose(1, 2)
