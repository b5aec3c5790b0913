"""The loop that trains a diffusion model, on one device or on several: same seed, same bits, also after a kill.

Each spot is seen once an epoch, through one of its views, at one random step of the diffusion. Order, views, steps and
noise are drawn for the whole batch before it is split among processes, so that their number changes rounding only.
Early stopping looks at the loss of the averaged weights on the validation spots, at steps and noise that are fixed for
each spot: cheap, and the same from epoch to epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from histocrypt.errors import InputError
from histocrypt.models.stem import Stem
from histocrypt.study_parts import Training
from histocrypt.training import ranks
from histocrypt.training.diffusion_process import STEPS, Process
from histocrypt.training.diffusion_sampling import generator
from histocrypt.training.loop import (
    Progress,
    averaged,
    generator_of,
    keep,
    learning_rate,
    precision,
    resume,
    write_curves,
)

VALIDATION_STEPS = 8
"""Steps of the diffusion at which each validation spot is judged, spread over all of them."""


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


def train(
    network: Stem,
    data: Lesson,
    validation: Lesson | None,
    *,
    settings: Training,
    epochs: int,
    seed: int,
    device: torch.device,
    fingerprint: str,
    state_file: Path | None = None,
    curves_file: Path | None = None,
    label: str = "stem",
) -> tuple[Stem, Progress]:
    """Train a network and return its averaged weights at the best epoch.

    Parameters
    ----------
    network
        Moved to ``device`` and changed. All processes must hold the same weights.
    data, validation
        Without the latter, training runs for exactly ``epochs`` epochs and the last is the best.
    settings
        The schedule always spans ``settings.epochs``; ``batch_size`` is that of all processes together.
    fingerprint, state_file, curves_file
        As in `training.loop.train`; the first process writes them.

    Raises
    ------
    InputError
        If there are fewer than two spots for each process, or the loss is no longer a number.
    """
    from tqdm.auto import tqdm

    if len(data) < 2 * ranks.count():
        msg = "a diffusion model cannot be trained on fewer than two spots a process"
        raise InputError(msg, value=len(data))
    network.keep_range(data.values)
    network.to(device)
    process, first = Process(device), ranks.number() == 0
    average = averaged(network, settings.ema).to(device) if settings.ema else None
    judged = average.module if average else network
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best = {key: value.detach().clone() for key, value in judged.state_dict().items()}
    parts = {"network": network, "average": average, "optimiser": optimiser, "best": best}
    progress = Progress()
    if state_file is not None and state_file.is_file():
        progress = resume(state_file, fingerprint, parts, label) or progress
    if curves_file is not None and first:
        write_curves(curves_file, progress.curves)
    n_batches = max(1, min(round(len(data) / settings.batch_size), len(data) // ranks.count()))
    learner = network if ranks.count() == 1 else DistributedDataParallel(network)
    steps = epochs * n_batches
    bar = tqdm(
        total=steps, initial=progress.epoch * n_batches, desc=label, unit="step", mininterval=1, disable=not first
    )
    while progress.epoch < epochs and (validation is None or progress.epoch - progress.best_epoch < settings.patience):
        started, epoch, total = time.monotonic(), progress.epoch + 1, 0.0
        network.train()
        for number, (features, values, step, noise) in enumerate(_batches(data, n_batches, seed, epoch)):
            rate = learning_rate((epoch - 1) * n_batches + number, settings.epochs * n_batches, settings.learning_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            # Summed over this process's spots: processes are averaged, so that their number does not count.
            scale = ranks.count() / len(step)
            mine = [ranks.own_share(part).to(device) for part in (features, values, step, noise)]
            loss = _loss(learner, process, *mine).sum() * scale
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if average is not None:
                average.update_parameters(network)
            total += loss.item() / n_batches
            bar.update()
        total = ranks.mean(total, device)
        if not math.isfinite(total):
            msg = "training diverged: the loss is no longer a number"
            raise InputError(msg, field="training.learning_rate", value=settings.learning_rate, fix="lower it")
        score = None if validation is None else ranks.agreed(judge(judged, validation, process, seed))
        if score is None or -score > progress.best_score:
            progress.best_epoch, progress.best_score = epoch, 0.0 if score is None else -score
            for key, value in judged.state_dict().items():
                best[key].copy_(value)
        seconds = ranks.agreed(round(time.monotonic() - started, 3))
        row = {"epoch": epoch, "train_loss": total, "validation_loss": score, "validation_pcc": None}
        progress.curves.append({**row, "learning_rate": rate, "seconds": seconds})
        progress.epoch = epoch
        if first and curves_file is not None:
            write_curves(curves_file, progress.curves)
        if first and state_file is not None:
            keep(state_file, fingerprint, parts, progress)
        ranks.wait()
    bar.close()
    network.load_state_dict(best)
    ranks.check_equal(network)
    return network.eval(), progress


def _batches(data: Lesson, n_batches: int, seed: int, epoch: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield features (B, D), values (B, G, T), steps (B,) and noise (B, G, T) of every batch of an epoch."""
    chance = generator_of(seed, epoch)
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
            drawn = [torch.randn(shape, generator=generator(seed, str(name))) for name in validation.names[rows]]
            noise = torch.cat(drawn)  # (B x steps, G, T): a spot's steps lie together
            repeat = {"repeats": VALIDATION_STEPS, "dim": 0}
            features = validation.features[rows, 0].repeat_interleave(**repeat)
            parts = (features, values.repeat_interleave(**repeat), steps.repeat(len(values)), noise)
            total += _loss(network, process, *(part.to(device) for part in parts)).sum().item()
    return total / (len(validation) * VALIDATION_STEPS)
