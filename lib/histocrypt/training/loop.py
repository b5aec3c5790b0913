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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from histocrypt.errors import InputError
from histocrypt.files import atomic_path, write_text
from histocrypt.models.fhe import set_share, watched
from histocrypt.options import Training

# ---- augment
# Random changes of a batch of images that leave its biology alone. Vectorised over the batch, on any device.
#
# Stain augmentation follows Tellez et al. (IEEE TMI 2018; Medical Image Analysis 2019): an image is taken to optical
# density, split into haematoxylin, eosin and a rest, and each concentration is scaled and shifted by a random amount.


# Optical densities of haematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston 2001), rows of unit length.
STAINS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], dtype=torch.float64)
STAINS /= STAINS.norm(dim=1, keepdim=True)
_UNMIX = torch.linalg.inv(STAINS)

DARKEST = 1 / 255
"""Intensities below this are treated as this: the optical density stays finite."""


def flip_and_turn(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return each image in one of its eight symmetries, drawn at random.

    Parameters
    ----------
    images
        (B, C, S, S).
    generator
        CPU generator that the draws come from.
    """
    draws = (torch.rand(3, len(images), 1, 1, 1, generator=generator) < 0.5).to(images.device)
    images = torch.where(draws[0], images.flip(-1), images)
    images = torch.where(draws[1], images.flip(-2), images)
    return torch.where(draws[2], images.transpose(-1, -2), images)


def vary_stain(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return images whose stain concentrations are scaled by 1 + a and shifted by b, a and b uniform.

    Parameters
    ----------
    images
        (B, 3, S, S) in [0, 1].
    strength
        a is drawn from [-strength, strength], b from half that range (optical density units), for each image and stain.
    generator
        CPU generator that the draws come from.

    Returns
    -------
    torch.Tensor
        Same shape, in [0, 1].
    """
    draws = 2 * torch.rand(2, len(images), 3, generator=generator, dtype=torch.float64) - 1
    scale, shift = 1 + strength * draws[0], strength / 2 * draws[1]
    # With density = concentration @ STAINS, both steps are one affine map of a pixel: density @ matrix + offset.
    matrix = (_UNMIX @ (scale[:, :, None] * STAINS)).to(images)
    offset = (shift @ STAINS).to(images)
    density = -images.clamp_min(DARKEST).log().flatten(2)
    varied = torch.baddbmm(offset[:, :, None], matrix.transpose(1, 2), density)
    return varied.neg().exp().clamp(0, 1).view_as(images)


def vary_contrast(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return standardised images times a factor plus a shift, drawn for each image.

    Networks of squares have no bound: what they meet must be within what they were trained on, so they are shown tiles
    brighter, darker, flatter and starker than any that is there.

    Parameters
    ----------
    images
        (B, 3, S, S), standardised.
    strength
        Factors are drawn from 1 / (1 + strength) to 1 + strength (uniform in the logarithm), shifts from [-strength,
        strength].
    generator
        CPU generator that the draws come from.
    """
    draws = (2 * torch.rand(2, len(images), 1, 1, 1, generator=generator) - 1).to(images)
    return images * (1 + strength) ** draws[0] + strength * draws[1]


# ---- images
# Images as batches are drawn from them.


@dataclass(frozen=True)
class Images:
    """What batches are drawn from."""

    pixels: torch.Tensor
    """(n, 3, S, S) uint8."""
    mean: torch.Tensor
    """(n, 3, 1, 1) or (1, 3, 1, 1) float32: what is subtracted from intensities in [0, 1]."""
    sd: torch.Tensor
    """Same shape: what they are then divided by."""
    sections: np.ndarray
    """(n,) str."""
    targets: torch.Tensor | None = None
    """(n, k) float32, as the loss sees them."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(
        self, index: np.ndarray, device: torch.device, change: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return standardised images (len(index), 3, S, S); ``change`` acts before they are standardised."""
        rows = torch.as_tensor(index)
        images = self.pixels[rows].to(device).float().div_(255)
        if change is not None:
            images = change(images)
        mean, sd = (x if len(x) == 1 else x[rows] for x in (self.mean, self.sd))
        return (images - mean.to(device)) / sd.to(device)

    def batches(self, order: np.ndarray, n_batches: int) -> list[np.ndarray]:
        """Return the row numbers of every batch of one epoch, each spot once, from all spots in random ``order``."""
        return np.array_split(order, n_batches)

    def loss(self, network: nn.Module, images: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        """Return the loss of one batch: ``images`` are those of the rows ``index``, on the network's device."""
        predicted = network(images)
        return nn.functional.mse_loss(predicted.float(), self.targets[torch.as_tensor(index)].to(images.device))


# ---- norms
# Batch norm of networks that cannot bear statistics that lag behind.
#
# Running means follow the weights some batches late. A ReLU network does not mind; squares of squares turn a small
# error into a number without bound. So the statistics are found anew, over all training tiles, before such a network
# is judged.


BATCH = 64


def settle(network: nn.Module, data: Images, device: torch.device) -> None:
    """Replace the running statistics of every batch norm by those of the training tiles, unaugmented."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for index in torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).split(BATCH):
            network(data.batch(index.numpy(), device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


# ---- loop


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
        raise InputError("a network cannot be trained on fewer than two spots", value=len(data))
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
        raise InputError(
            "training diverged: no epoch gave numbers on the validation tiles",
            field="training.learning_rate",
            value=settings.learning_rate,
            fix="lower it",
        )
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
        raise InputError(
            "training diverged: the loss is no longer a number",
            field="training.learning_rate",
            value=settings.learning_rate,
            fix="lower it",
        )
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
