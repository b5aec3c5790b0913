"""From noise back to expression: the schedulers of diffusers, around a trained `Stem`.

* ``ancestral``: every step of the way back, with its learned variance (Ho et al. 2020; Nichol and Dhariwal 2021).
* ``ddim``: fewer steps, without fresh noise (Song et al., "Denoising Diffusion Implicit Models", ICLR 2021).
* ``dpm++``: a second-order multistep solver (Lu et al., "DPM-Solver++", 2022).

Noise is drawn by the name of the spot: equal seeds give equal samples, whatever is drawn beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from histocrypt.models.stem import Stem
from histocrypt.training.diffusion_process import FIRST_BETA, LAST_BETA, STEPS
from histocrypt.training.loop import precision

TOKENS = {"cpu": 2**13, "cuda": 2**21}
"""Genes x samples x spots that the network sees at once."""


def draw(
    network: Stem,
    features: torch.Tensor,
    names: np.ndarray,
    *,
    samples: int,
    sampler: str,
    steps: int,
    seed: int,
    device: torch.device,
    tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Draw samples of expression for every spot.

    Parameters
    ----------
    network
        Trained, in evaluation mode, on ``device``.
    features
        (n, D) float32, standardised as in training.
    names
        (n,) of the spots: each spot's noise is seeded by its name.
    samples
        K, for each spot.
    sampler, steps
        See above; ``steps`` of `STEPS`.
    seed
        Of the noise.
    tokens
        Bound on genes x samples x spots held at a time; by the device if not given.
    progress
        Called with the number of spots after each batch.

    Returns
    -------
    (n, K, G, T) float32
    """
    genes, values = len(network.gene), network.n_values
    bound = tokens or TOKENS.get(device.type, TOKENS["cpu"])
    batch = max(1, bound // (genes * samples))
    drawn = np.empty((len(names), samples, genes, values), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(names), batch):
            rows = slice(start, start + batch)
            chance = [generator(seed, name) for name in np.asarray(names[rows]).tolist()]
            found = _way_back(network, features[rows].to(device), chance, samples, sampler, steps)
            drawn[rows] = found.reshape(-1, samples, genes, values).cpu().numpy()
            if progress is not None:
                progress(len(chance))
    return drawn


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the spot's name alone."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _way_back(
    network: Stem, features: torch.Tensor, chance: list[torch.Generator], samples: int, sampler: str, steps: int
) -> torch.Tensor:
    """Return (S, K * G * T) clean values of S spots: to the scheduler, all samples of a spot are one row."""
    genes, values = len(network.gene), network.n_values
    device, size = features.device, samples * genes * values
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(steps, device=device)
    state = torch.stack([torch.randn(size, generator=each) for each in chance]).to(device)  # (S, K G T)
    with precision(device):
        tile = network.tile(features).repeat_interleave(samples, dim=0)  # (S K, W)
        for step in scheduler.timesteps:
            noisy = state.reshape(-1, genes, values)  # (S K, G, T)
            out = network.denoise(noisy, step.expand(len(noisy)), tile).float()  # (S K, G, 2 T)
            noise, coefficient = out.chunk(2, dim=-1)
            noise = _within_range(noise, noisy, scheduler.alphas_cumprod[step], network)
            noise, coefficient = (part.reshape(len(chance), size) for part in (noise, coefficient))
            if sampler == "ancestral":  # the one that uses the learned variance, and draws at every step
                both = torch.cat([noise, coefficient], dim=1)
                state = scheduler.step(both, step, state, generator=chance).prev_sample
            else:
                state = scheduler.step(noise, step, state).prev_sample
    return state


def _within_range(noise: torch.Tensor, noisy: torch.Tensor, kept: torch.Tensor, network: Stem) -> torch.Tensor:
    """Return the noise (N, G, T) whose clean value lies in the range that the network knows.

    Where almost all is noise, a small error in it is a large one in the clean value: without this, one sample in
    thousands runs away, and a few steps cannot bring it back. (The published model does not clip.)
    """
    signal, spread = kept.sqrt().item(), (1 - kept).sqrt().item()
    clean = ((noisy - spread * noise) / signal).clamp(network.lowest, network.highest)
    return (noisy - signal * clean) / spread


def scheduler_of(sampler: str) -> Any:
    """Return the scheduler of diffusers with the schedule that networks are trained on."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    schedule = {
        "num_train_timesteps": STEPS, "beta_start": FIRST_BETA, "beta_end": LAST_BETA, "beta_schedule": "linear",
    }  # fmt: skip
    if sampler == "ancestral":
        return DDPMScheduler(**schedule, variance_type="learned_range", clip_sample=False)
    if sampler == "ddim":
        return DDIMScheduler(**schedule, clip_sample=False, timestep_spacing="trailing")
    return DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", solver_order=2)
