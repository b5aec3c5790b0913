"""How images are noised, and the schedulers that find the way back.

The schedule is the published one: 2000 variances from 1e-6 to 0.01, linear, learnt over continuous noise levels: the
share of signal is drawn between those of two neighbouring steps. The way back takes fewer steps of the same schedule
(the published one takes 1000 of another).

* ``ancestral``: fresh noise at every step (Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020).
* ``ddim``: fewer steps, none (Song et al., "Denoising Diffusion Implicit Models", ICLR 2021).
* ``dpm++``: a second-order multistep solver (Lu et al., "DPM-Solver++", 2022).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from histocrypt.errors import unknown_name

FIRST_BETA, LAST_BETA = 1e-6, 0.01
SAMPLERS = ("ancestral", "ddim", "dpm++")


def schedule(steps: int) -> torch.Tensor:
    """Return the share of the signal's variance left after 0, 1, ... ``steps`` steps, (steps + 1,) float32.

    The published schedule has 2000 steps; another number keeps its ends, the variances scaled so that as much noise
    is left at the last.
    """
    kept = torch.cumprod(1 - betas(steps), 0)
    return torch.cat([torch.ones(1, dtype=torch.float64), kept]).float()


def betas(steps: int) -> torch.Tensor:
    """Return the variances of ``steps`` steps, float64."""
    return torch.linspace(FIRST_BETA, LAST_BETA, steps, dtype=torch.float64) * (2000 / steps)


def draw_kept(n: int, kept: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Return the share of signal of n images, (n,), each drawn between those of two neighbouring steps of ``kept``."""
    step = torch.randint(1, len(kept), (n,), generator=chance)
    return kept[step] + torch.rand(n, generator=chance) * (kept[step - 1] - kept[step])


def noised(clean: torch.Tensor, kept: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return images (B, C, S, S) of which a share ``kept`` (B,) of the variance is left; ``noise`` as the images."""
    kept = kept[:, None, None, None]
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def target(objective: str, clean: torch.Tensor, kept: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return what the network is to say, (B, C, S, S): the noise, or the velocity of Salimans and Ho (ICLR 2022).

    The velocity weighs what an image is as a whole, its colour and its class, as much as its finest grain; the noise
    leaves that to the last. Small networks and short trainings show the difference.
    """
    kept = kept[:, None, None, None]
    return noise if objective == "noise" else kept.sqrt() * noise - (1 - kept).sqrt() * clean


def as_noise(objective: str, said: torch.Tensor, noisy: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the noise (B, C, S, S) that the network's word stands for: the inverse of `target`."""
    kept = kept[:, None, None, None]
    return said if objective == "noise" else kept.sqrt() * said + (1 - kept).sqrt() * noisy


def within_range(noise: torch.Tensor, noisy: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the noise (B, C, S, S) whose clean image lies in [-1, 1], given the share of signal, one number."""
    signal, spread = kept.sqrt().item(), (1 - kept).sqrt().item()
    clean = ((noisy - spread * noise) / signal).clamp(-1, 1)
    return (noisy - signal * clean) / spread


def seeded(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and a record's name alone."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def scheduler_of(sampler: str, steps: int) -> Any:
    """Return the scheduler of diffusers with the schedule of ``steps`` steps; clipping is `within_range`'s."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    own = {"num_train_timesteps": steps, "trained_betas": betas(steps).numpy().astype(np.float32)}
    if sampler == "ancestral":
        return DDPMScheduler(**own, variance_type="fixed_small", clip_sample=False, timestep_spacing="trailing")
    if sampler == "ddim":
        return DDIMScheduler(**own, clip_sample=False, timestep_spacing="trailing")
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler(
            **own, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
        )
    raise unknown_name("sampler", sampler, SAMPLERS)
