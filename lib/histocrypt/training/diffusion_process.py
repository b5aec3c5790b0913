"""The diffusion itself: how expression is noised step by step, and what a network that undoes it is trained on.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; the learned variance of Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", ICML 2021. Shapes: B spots, G genes, T values a gene.
"""

from __future__ import annotations

import math

import torch

STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02


class Process:
    """A linear schedule of `STEPS` variances; every coefficient is a (STEPS,) tensor on one device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        beta = torch.linspace(FIRST_BETA, LAST_BETA, STEPS, dtype=torch.float64)
        kept = torch.cumprod(1 - beta, 0)  # share of the signal's variance that is left after each step
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        posterior = beta * (1 - before) / (1 - kept)  # variance of the way back where the clean value is known
        posterior[0] = posterior[1]  # zero at the first step, where nothing is left to undo; its logarithm is needed
        coefficients = {
            "signal": kept.sqrt(),
            "noise": (1 - kept).sqrt(),
            "from_clean": beta * before.sqrt() / (1 - kept),  # the mean of the way back, equation (7) of Ho et al.
            "from_noisy": (1 - before) * (1 - beta).sqrt() / (1 - kept),
            "least": posterior.log(),  # bounds of the logarithm of the learned variance
            "most": beta.log(),
        }
        self._at = {name: value.float().to(device) for name, value in coefficients.items()}

    def _of(self, name: str, step: torch.Tensor) -> torch.Tensor:
        return self._at[name][step][:, None, None]  # (B, 1, 1)

    def noised(self, clean: torch.Tensor, step: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return clean values (B, G, T) after ``step`` (B,) steps of noise, drawn at once: ``noise`` is (B, G, T)."""
        return self._of("signal", step) * clean + self._of("noise", step) * noise

    def losses(
        self, out: torch.Tensor, *, clean: torch.Tensor, noisy: torch.Tensor, noise: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the squared error of the noise, and the bound that teaches the variance, each (B,).

        Parameters
        ----------
        out
            (B, G, 2 T), of the network: noise and variance coefficient v.
        clean, noisy, noise
            (B, G, T): see `noised`.
        step
            (B,).

        The second is the divergence between the true way back and the network's, in bits a value. The network's mean is
        detached in it, so that it teaches the variance only.
        """
        predicted, coefficient = out.float().chunk(2, dim=-1)
        error = (predicted - noise).square().mean(dim=(1, 2))
        share = (coefficient + 1) / 2
        log_variance = share * self._of("most", step) + (1 - share) * self._of("least", step)
        guess = (noisy - self._of("noise", step) * predicted.detach()) / self._of("signal", step)
        gap = self._of("from_clean", step) * (guess - clean)  # between the two means: what is noisy cancels out
        true_log_variance = self._of("least", step)
        bound = 0.5 * (
            log_variance
            - true_log_variance
            - 1
            + (true_log_variance - log_variance).exp()
            + gap.square() * (-log_variance).exp()
        )
        return error, bound.mean(dim=(1, 2)) / math.log(2)
