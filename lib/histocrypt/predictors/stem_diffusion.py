"""A diffusion model's process, its training on one device or several, and how it draws.

The process is that of Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, with the learned variance of
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021. Shapes: B spots, G genes, T values
a gene.

In training each spot is seen once an epoch, through one of its views, at one random step of the diffusion. Order,
views, steps and noise are drawn for the whole batch before it is split among processes, so that their number changes
rounding only. Early stopping looks at the loss of the averaged weights on the validation spots, at steps and noise that
are fixed for each spot: cheap, and the same from epoch to epoch.

The way back from noise to expression goes by a scheduler of diffusers. Noise is drawn by the name of the spot: equal
seeds give equal samples, whatever is drawn beside them.

* ``ancestral``: every step of the way back, with its learned variance.
* ``ddim``: fewer steps, without fresh noise (Song et al., "Denoising Diffusion Implicit Models", ICLR 2021).
* ``dpm++``: a second-order multistep solver (Lu et al., "DPM-Solver++", 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from histocrypt.errors import InputError
from histocrypt.models.stem import Stem
from histocrypt.options import Training
from histocrypt.training import distributed
from histocrypt.training.loop import Progress, Trainer, precision, seeded

STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
VALIDATION_STEPS = 8
"""Steps of the diffusion at which each validation spot is judged, spread over all of them."""
TOKENS = {"cpu": 2**13, "cuda": 2**21}
"""Genes x samples x spots that the network sees at once."""


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
    opposite: bool = False,
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
    opposite
        Without fresh noise on the way, start from pairs of noise of opposite sign (antithetic variates, Hammersley and
        Morton 1956): what is odd in the noise cancels from the mean. Each draw on its own is distributed as ever; the
        deviation of K of them comes out larger by a factor of about sqrt(K / (K - 1)).
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
            chance = [seeded(seed, name) for name in np.asarray(names[rows]).tolist()]
            state = _noise(chance, samples, genes * values, opposite=opposite and sampler != "ancestral")
            found = _way_back(network, features[rows].to(device), state.to(device), chance, sampler, steps)
            drawn[rows] = found.reshape(-1, samples, genes, values).cpu().numpy()
            if progress is not None:
                progress(len(chance))
    return drawn


def _noise(chance: list[torch.Generator], samples: int, size: int, *, opposite: bool) -> torch.Tensor:
    """Return (S, samples * size) noise, by each spot's own generator; opposite: one half is minus the other."""
    drawn = -(-samples // 2) if opposite else samples
    noise = torch.stack([torch.randn(drawn * size, generator=each) for each in chance])
    return torch.cat([noise, -noise], dim=1)[:, : samples * size] if opposite else noise


def _way_back(
    network: Stem,
    features: torch.Tensor,
    state: torch.Tensor,
    chance: list[torch.Generator],
    sampler: str,
    steps: int,
) -> torch.Tensor:
    """Return (S, K * G * T) clean values of S spots from noise of that shape: all samples of a spot are one row."""
    genes, values = len(network.gene), network.n_values
    device, size = features.device, state.shape[1]
    samples = size // (genes * values)
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(steps, device=device)
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
        "num_train_timesteps": STEPS,
        "beta_start": FIRST_BETA,
        "beta_end": LAST_BETA,
        "beta_schedule": "linear",
    }
    if sampler == "ancestral":
        return DDPMScheduler(**schedule, variance_type="learned_range", clip_sample=False)
    if sampler == "ddim":
        return DDIMScheduler(**schedule, clip_sample=False, timestep_spacing="trailing")
    return DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", solver_order=2)


@dataclass(frozen=True)
class Lesson:
    """Spots to learn from, or to be judged by."""

    names: np.ndarray
    """(n,)."""
    features: torch.Tensor
    """(n, V, D) float32: V views of each tile, standardised."""
    values: torch.Tensor
    """(n, G, T) float32: the targets in the loss's units."""

    def __len__(self) -> int:
        return len(self.names)

    def arrays(self) -> list[np.ndarray]:
        """Return all that training depends on, for a fingerprint."""
        names = np.frombuffer("\n".join(self.names.tolist()).encode(), dtype=np.uint8)
        return [names, self.features.numpy(), self.values.numpy()]


def train(
    network: Stem,
    data: Lesson,
    validation: Lesson | None,
    *,
    settings: Training,
    seed: int,
    device: torch.device,
    **how: Any,
) -> Progress:
    """Train a network and leave it with its averaged weights at the best epoch.

    Parameters
    ----------
    network
        Moved to ``device`` and changed. All processes must hold the same weights.
    data, validation
        Without the latter, training runs for exactly ``epochs`` epochs and the last is the best.
    settings
        The schedule always spans ``settings.epochs``; ``batch_size`` is that of all processes together.
    how
        ``epochs``, and what else a `Trainer` is told; the first process writes its files.

    Raises
    ------
    InputError
        If there are fewer than two spots for each process, or training diverges.
    """
    if len(data) < 2 * distributed.count():
        raise InputError("a diffusion model cannot be trained on fewer than two spots a process", value=len(data))
    network.keep_range(data.values)
    network.to(device)
    process = Process(device)
    n_batches = max(1, min(round(len(data) / settings.batch_size), len(data) // distributed.count()))
    learner = network if distributed.count() == 1 else DistributedDataParallel(network)

    def loss(batch: tuple[torch.Tensor, ...], _: torch.Generator) -> torch.Tensor:
        # Summed over this process's spots: processes are averaged, so that their number does not count.
        mine = (distributed.own_share(part).to(device) for part in batch)
        return _loss(learner, process, *mine).sum() * (distributed.count() / len(batch[0]))

    def judged(averaged: Stem) -> tuple[float, dict[str, float]]:
        error = judge(averaged, validation, process, seed)
        return -error, {"validation_loss": error}

    return Trainer.of(
        network,
        settings,
        steps=n_batches,
        validated=validation is not None,
        device=device,
        batches=lambda _, chance: _batches(data, n_batches, chance),
        loss=loss,
        seed=seed,
        judge=None if validation is None else judged,
        **how,
    ).fit()


def _batches(data: Lesson, n_batches: int, chance: torch.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield features (B, D), values (B, G, T), steps (B,) and noise (B, G, T) of every batch of an epoch."""
    order = torch.randperm(len(data), generator=chance)
    views = data.features.shape[1]
    for rows in order.tensor_split(n_batches):
        view = torch.randint(views, (len(rows),), generator=chance)
        step = torch.randint(STEPS, (len(rows),), generator=chance)
        values = data.values[rows]
        noise = torch.randn(values.shape, generator=chance)
        yield data.features[rows, view], values, step, noise


def _loss(
    network: torch.nn.Module,
    process: Process,
    features: torch.Tensor,
    values: torch.Tensor,
    step: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Return the loss of each spot, (B,): squared error of the noise, and the bound that teaches the variance."""
    noisy = process.noised(values, step, noise)
    with precision(values.device):
        out = network(noisy, step, features)
    error, bound = process.losses(out, clean=values, noisy=noisy, noise=noise, step=step)
    return error + bound


def judge(network: Stem, validation: Lesson, process: Process, seed: int) -> float:
    """Return the mean loss on validation spots, each at the same steps and noise whenever it is asked."""
    device = next(network.parameters()).device
    network.eval()
    steps = torch.linspace(0, STEPS - 1, VALIDATION_STEPS).round().long()
    total, chunk = 0.0, 64
    with torch.inference_mode():
        for start in range(0, len(validation), chunk):
            rows = slice(start, start + chunk)
            values = validation.values[rows]
            shape = (VALIDATION_STEPS, *values.shape[1:])
            drawn = [torch.randn(shape, generator=seeded(seed, str(name))) for name in validation.names[rows]]
            noise = torch.cat(drawn)  # (B x steps, G, T): a spot's steps lie together
            repeat = {"repeats": VALIDATION_STEPS, "dim": 0}
            features = validation.features[rows, 0].repeat_interleave(**repeat)
            parts = (features, values.repeat_interleave(**repeat), steps.repeat(len(values)), noise)
            total += _loss(network, process, *(part.to(device) for part in parts)).sum().item()
    return total / (len(validation) * VALIDATION_STEPS)
