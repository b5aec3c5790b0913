"""Stem: a diffusion transformer over genes, conditioned on what a frozen encoder sees.

Zhu et al., "Diffusion Generative Modeling for Spatially Resolved Gene Expression Inference from Histology Images", ICLR
2025, with the blocks of Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, and the learned
variance of Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021.

A sequence has one token per gene, without positions: the gene itself is what tells tokens apart. Where a study has
several transforms of the counts, a token carries the gene's value in each (T values; the published model has T = 1).

Shapes: B spots, G genes, T values a gene, W the width, H heads, D features of the tile.
"""

from __future__ import annotations

import math

import torch
from torch import nn

FREQUENCIES = 256
"""Numbers that tell the step: half sines, half cosines."""

BEYOND = 0.1
"""Samples may leave the range of the training values by this share of it, on either side."""


class Stem(nn.Module):
    """Predicts the noise in noisy expression, and where between its bounds the variance of the way back lies."""

    input_px = None  # tiles enter as frozen features, from tiles of the stored size

    def __init__(
        self,
        n_genes: int,
        *,
        n_features: int,
        n_values: int = 1,  # T: transforms of the counts that are learnt together
        width: int = 384,  # W
        blocks: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,  # width of a block's inner layer, as a multiple of W
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not split into {heads} heads")
        self.value = nn.Sequential(nn.Linear(n_values, width), nn.SiLU(), nn.Linear(width, width))
        self.gene = nn.Parameter(torch.randn(n_genes, width) * 0.02)
        self.step = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.tile = nn.Sequential(nn.Linear(n_features, n_features), nn.SiLU(), nn.Linear(n_features, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(blocks))
        self.out = Out(width, 2 * n_values)
        self.n_values = n_values
        # What `keep_range` has seen: guesses of the clean value beyond it are drawn back to it.
        self.register_buffer("lowest", torch.full((n_genes, n_values), -math.inf))
        self.register_buffer("highest", torch.full((n_genes, n_values), math.inf))

    def keep_range(self, values: torch.Tensor) -> None:
        """Remember the range of training values (n, G, T), and a tenth beyond it: no sample leaves that."""
        low, high = values.amin(dim=0), values.amax(dim=0)  # (G, T)
        margin = (high - low) * BEYOND
        self.lowest.copy_(low - margin)
        self.highest.copy_(high + margin)

    def forward(self, noisy: torch.Tensor, step: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return noise and variance coefficient of every value.

        Parameters
        ----------
        noisy
            (B, G, T).
        step
            (B,) whole numbers, 0 (least noise) to 999.
        features
            (B, D).

        Returns
        -------
        (B, G, 2 T)
            The noise first, then the coefficient v: -1 stands for the smallest variance of the way back, 1 for the
            largest.
        """
        return self.denoise(noisy, step, self.tile(features))

    def denoise(self, noisy: torch.Tensor, step: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
        """Return what `forward` does, from ``tile``, the (B, W) output of ``self.tile``: the same at every step."""
        condition = self.step(sinusoid(step).to(tile.dtype)) + tile  # (B, W)
        tokens = self.value(noisy) + self.gene  # (B, G, W)
        for block in self.blocks:
            tokens = block(tokens, condition)  # (B, G, W)
        return self.out(tokens, condition)  # (B, G, 2 T)


class Block(nn.Module):
    """Attention between genes, then an inner layer; the condition shifts, scales and gates both (adaLN-Zero).

    What makes shift, scale and gate starts at zero: an untrained block passes its tokens on unchanged.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = round(width * mlp_ratio)
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.to_attention = nn.Linear(width, 3 * width)
        self.from_attention = nn.Linear(width, width)
        self.norm_inner = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.inner = nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, G, W), given tokens (B, G, W) and condition (B, W)."""
        parts = self.modulation(nn.functional.silu(condition)).unsqueeze(1).chunk(6, dim=-1)  # 6 x (B, 1, W)
        shift_attention, scale_attention, gate_attention, shift_inner, scale_inner, gate_inner = parts
        seen = modulated(self.norm_attention(tokens), shift_attention, scale_attention)
        tokens = tokens + gate_attention * self.attention(seen)
        seen = modulated(self.norm_inner(tokens), shift_inner, scale_inner)
        return tokens + gate_inner * self.inner(seen)

    def attention(self, tokens: torch.Tensor) -> torch.Tensor:
        """Let every gene look at every gene: (B, G, W) to (B, G, W)."""
        query, key, value = self.to_attention(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value)  # (B, H, G, W / H)
        return self.from_attention(found.transpose(1, 2).flatten(-2))


class Out(nn.Module):
    """The last modulation and a linear layer; both start at zero, so that an untrained network predicts no noise."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.linear = zeroed(nn.Linear(width, n_out))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return (B, G, n_out)."""
        shift, scale = self.modulation(nn.functional.silu(condition)).unsqueeze(1).chunk(2, dim=-1)  # 2 x (B, 1, W)
        return self.linear(modulated(self.norm(tokens), shift, scale))


def modulated(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return tokens (B, G, W) scaled and shifted, the same for all genes: shift and scale are (B, 1, W)."""
    return tokens * (1 + scale) + shift


def sinusoid(step: torch.Tensor) -> torch.Tensor:
    """Return (B, `FREQUENCIES`) cosines and sines of steps (B,), wavelengths from 2 pi to 20,000 pi steps."""
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=step.device) / half)  # (half,)
    angle = step[:, None].float() * frequency  # (B, half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Return a linear layer whose weights and biases start at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
