"""The loop that trains any network: the same bits for the same seed, and the same bits after a kill.

Every epoch draws its order, its augmentation and its dropout from generators seeded by (seed, epoch). After each epoch
all that the next one depends on is written to one file; a run that was killed goes on from there and cannot be told
from an undisturbed one (on the CPU; GPUs add their own rounding).
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from histocrypt.atomic import atomic_path, write_text
from histocrypt.errors import InputError
from histocrypt.models.polynomial import set_share, watched
from histocrypt.study_parts import Training
from histocrypt.training.augment import flip_and_turn, vary_contrast, vary_stain
from histocrypt.training.images import Images
from histocrypt.training.norms import settle

CURVE_COLUMNS = ("epoch", "train_loss", "validation_loss", "validation_pcc", "learning_rate", "seconds")
WARM_UP = 0.05
"""Share of all steps over which the learning rate rises to its peak."""
FLOOR = 0.01
"""The learning rate ends at this share of its peak."""
EVALUATION_BATCH = 128


@dataclass
class Progress:
    """Where training stands: all scalars that the next epoch depends on."""

    epoch: int = 0
    """Epochs done."""
    best_epoch: int = 0
    best_score: float = -math.inf
    curves: list[dict[str, float | int | None]] = field(default_factory=list)


def generator_of(seed: int, *parts: int) -> torch.Generator:
    """Return a CPU generator whose stream depends on all the given numbers and nothing else."""
    state = np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: a short linear rise, then half a cosine down to `FLOOR`, never up again.

    Parameters
    ----------
    step
        0 for the first step.
    steps
        Number of steps of the whole schedule; later steps keep the last rate.
    peak
        The highest rate.
    """
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return peak * (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, steps - rise))
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def mean_section_pearson(predicted: np.ndarray, measured: np.ndarray, sections: np.ndarray) -> float:
    """Return Pearson's r of each column within each section, averaged over columns, then sections.

    Columns without any variation in the measured values of a section are left out there; a constant prediction counts
    as 0. Returns 0 where nothing varies.
    """
    found = []
    for section in np.unique(sections):
        own = sections == section
        x, y = (a[own].astype(np.float64) - a[own].mean(axis=0, dtype=np.float64) for a in (predicted, measured))
        sd_x, sd_y = np.sqrt((x**2).sum(axis=0)), np.sqrt((y**2).sum(axis=0))
        varies = sd_y > 1e-9
        if varies.any():
            r = (x * y).sum(axis=0)[varies] / np.maximum(sd_x * sd_y, 1e-12)[varies]
            found.append(float(r.mean()))
    return float(np.mean(found)) if found else 0.0


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network, its batch-norm statistics included.

    The decay rises from 0.1 to ``decay`` over the first updates, so that the random start is soon forgotten.
    """

    def update(average: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor) -> None:
        if not torch.is_floating_point(average[0]):
            torch._foreach_copy_(average, current)
            return
        count = float(n)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def predict(network: nn.Module, images: Images, device: torch.device) -> np.ndarray:
    """Return the outputs of a network in evaluation mode, (n, k) float32, in bounded batches."""
    network.eval()
    parts = []
    with torch.inference_mode(), precision(device):
        for start in range(0, len(images), EVALUATION_BATCH):
            index = np.arange(start, min(start + EVALUATION_BATCH, len(images)))
            parts.append(network(images.batch(index, device)).float().cpu().numpy())
    return np.concatenate(parts)


@contextmanager
def precision(device: torch.device) -> Iterator[None]:
    """Compute in bfloat16 where the device is a GPU."""
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
        yield


def train(
    network: nn.Module,
    data: Images,
    validation: Images | None,
    *,
    settings: Training,
    epochs: int,
    seed: int,
    device: torch.device,
    fingerprint: str,
    state_file: Path | None = None,
    curves_file: Path | None = None,
    label: str = "training",
) -> tuple[nn.Module, Progress]:
    """Train a network and return its averaged weights at the best epoch.

    With a validation set, training stops when the score has not improved for ``settings.patience`` epochs. Without one,
    it runs for exactly ``epochs`` epochs, along the same schedule, and the last epoch is the best.

    Parameters
    ----------
    network
        Maps (B, 3, S, S) to (B, k). It is moved to ``device`` and changed.
    data, validation
        With targets.
    settings
        The schedule always spans ``settings.epochs``.
    epochs
        Number of epochs, at most.
    fingerprint
        Whatever the result depends on, hashed; a state written under another one is not resumed.
    state_file
        Where the state after each epoch is kept; None keeps nothing.
    curves_file
        Where the curves are written as CSV after each epoch.

    Raises
    ------
    InputError
        If there are fewer than two spots, or the loss is no longer a number.
    """
    from tqdm.auto import tqdm

    if len(data) < 2:
        msg = "a network cannot be trained on fewer than two spots"
        raise InputError(msg, value=len(data))
    network.to(device)
    average = averaged(network, settings.ema).to(device) if settings.ema else None
    judged = average.module if average else network
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best = {key: value.detach().clone() for key, value in judged.state_dict().items()}
    progress = Progress()
    parts = {"network": network, "average": average, "optimiser": optimiser, "best": best}
    if state_file is not None and state_file.is_file():
        progress = resume(state_file, fingerprint, parts, label) or progress
    if curves_file is not None:
        write_curves(curves_file, progress.curves)
    n_batches = max(1, round(len(data) / settings.batch_size))
    moving = round(settings.replace_over * settings.epochs)  # epochs until all activations are squares
    bar = tqdm(total=epochs * n_batches, initial=progress.epoch * n_batches, desc=label, unit="step", mininterval=1)
    while progress.epoch < epochs and (
        validation is None
        or progress.epoch <= moving
        or progress.epoch - max(moving, progress.best_epoch) < settings.patience
    ):
        started = time.monotonic()
        epoch = progress.epoch + 1
        share = min(1.0, epoch / (moving + 1))
        for each in (network, judged):
            set_share(each, share)
        loss = _one_epoch(network, average, optimiser, data, settings, seed, epoch, n_batches, device, bar)
        row = {"epoch": epoch, "train_loss": loss, "validation_loss": None, "validation_pcc": None}
        if getattr(judged, "settled", False):
            settle(judged, data, device)
        if validation is not None:
            row["validation_loss"], row["validation_pcc"] = _judge(predict(judged, validation, device), validation)
            if row["validation_pcc"] is not None:
                bar.set_postfix(loss=f"{loss:.3f}", r=f"{row['validation_pcc']:.3f}")
        score = row["validation_pcc"]
        if share == 1 and (validation is None or (score is not None and score > progress.best_score)):
            progress.best_epoch, progress.best_score = epoch, score or 0.0
            for key, value in judged.state_dict().items():
                best[key].copy_(value)
        row["learning_rate"] = optimiser.param_groups[0]["lr"]
        row["seconds"] = round(time.monotonic() - started, 3)
        progress.curves.append(row)
        progress.epoch = epoch
        if curves_file is not None:
            write_curves(curves_file, progress.curves)
        if state_file is not None:
            keep(state_file, fingerprint, parts, progress)
    bar.close()
    if not progress.best_epoch and progress.epoch:
        msg = "training diverged: no epoch gave numbers on the validation tiles"
        raise InputError(msg, field="training.learning_rate", value=settings.learning_rate, fix="lower it")
    network.load_state_dict(best)
    return network.eval(), progress


def _judge(predicted: np.ndarray, validation: Images) -> tuple[float | None, float | None]:
    """Return loss and score; None where predictions are without bound."""
    measured = validation.targets.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        loss = float(np.mean((predicted - measured) ** 2, dtype=np.float64))
        score = mean_section_pearson(predicted, measured, validation.sections)
    return (loss, score) if math.isfinite(loss) and math.isfinite(score) else (None, None)


def _one_epoch(
    network: nn.Module,
    average: AveragedModel | None,
    optimiser: torch.optim.Optimizer,
    data: Images,
    settings: Training,
    seed: int,
    epoch: int,
    n_batches: int,
    device: torch.device,
    bar: object,
) -> float:
    """Train for one epoch and return the mean loss. Leaves the global random state as it was."""
    chance = generator_of(seed, epoch)
    order = torch.randperm(len(data), generator=chance).numpy()

    def change(images: torch.Tensor) -> torch.Tensor:
        if settings.augment_flips:
            images = flip_and_turn(images, chance)
        return vary_stain(images, settings.augment_stain, chance) if settings.augment_stain else images

    network.train()
    total = 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator_of(seed, epoch, 1).initial_seed())  # dropout
        for number, index in enumerate(data.batches(order, n_batches)):
            rate = learning_rate((epoch - 1) * n_batches + number, settings.epochs * n_batches, settings.learning_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            images = data.batch(index, device, change)
            if settings.augment_contrast:
                images = vary_contrast(images, settings.augment_contrast, chance)
            with precision(device), watched(network) as ranges:
                loss = data.loss(network, images, index)
            optimiser.zero_grad(set_to_none=True)
            (loss + settings.range_penalty * sum(ranges.excess) if ranges.excess else loss).backward()
            optimiser.step()
            if average is not None:
                average.update_parameters(network)
            total += loss.item() * len(index)
            bar.update()
    if not math.isfinite(total):
        msg = "training diverged: the loss is no longer a number"
        raise InputError(msg, field="training.learning_rate", value=settings.learning_rate, fix="lower it")
    return total / len(data)


def write_curves(path: Path, rows: list[dict[str, float | int | None]]) -> None:
    """Write the curves as CSV; where there is no validation, its columns are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def keep(path: Path, fingerprint: str, parts: dict, progress: Progress) -> None:
    """Write the state of a training to one file; scalars travel as JSON in its header, so that both are of one epoch.

    ``parts`` are ``network``, ``average`` (or None), ``optimiser`` and ``best``, the weights of the best epoch.
    """
    from safetensors.torch import save_file

    tensors = {f"network.{key}": value for key, value in parts["network"].state_dict().items()}
    if parts["average"] is not None:
        tensors |= {f"average.{key}": value for key, value in parts["average"].state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in parts["best"].items()}
    for number, moments in parts["optimiser"].state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{key}": value for key, value in moments.items()}
    scalars = {"fingerprint": fingerprint, **vars(progress)}
    with atomic_path(path) as temporary:
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            temporary,
            metadata={"progress": json.dumps(scalars)},
        )


def resume(path: Path, fingerprint: str, parts: dict, label: str) -> Progress | None:
    """Load the state into ``parts``; return None, and say so, where it is of another run or unreadable."""
    from safetensors import SafetensorError, safe_open
    from tqdm.auto import tqdm

    try:
        with safe_open(path, framework="pt") as file:
            scalars = json.loads((file.metadata() or {})["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
        tqdm.write(f"{label}: {path} is not readable; training starts afresh", file=sys.stderr)
        return None
    if scalars.pop("fingerprint", None) != fingerprint:
        tqdm.write(f"{label}: {path} was written under other settings or data; starts afresh", file=sys.stderr)
        return None

    def part(name: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

    parts["network"].load_state_dict(part("network"))
    if parts["average"] is not None:
        parts["average"].load_state_dict(part("average"))
    for key, value in part("best").items():
        parts["best"][key].copy_(value)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in part("optimiser").items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = value
    optimiser = parts["optimiser"]
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    progress = Progress(**scalars)
    tqdm.write(f"{label}: goes on after epoch {progress.epoch}", file=sys.stderr)
    return progress
