"""The trainer of every network: the same bits for the same seed, and the same bits after a kill.

Every epoch draws its order, its augmentation and its dropout from generators seeded by (seed, epoch). All that the next
epoch depends on is written to one file; a run that was killed goes on from there and cannot be told from an undisturbed
one (on the CPU; GPUs add their own rounding).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from histocrypt.errors import InputError
from histocrypt.files import atomic_path, write_text
from histocrypt.options import Training
from histocrypt.training import distributed

WARM_UP = 0.05
"""Share of all steps over which the learning rate rises to its peak."""
FLOOR = 0.01
"""The learning rate ends at this share of its peak."""
SCORES = ("validation_loss", "validation_pcc")
"""Columns of the curves that a judge gives, unless it has others."""
KEEPING = 0.05
"""Share of a training's time that writing its state may take; a kill costs the epochs since the last writing."""


@dataclass
class Progress:
    """Where training stands: all scalars that the next epoch depends on."""

    epoch: int = 0
    """Epochs done."""
    best_epoch: int = 0
    best_score: float = -math.inf
    curves: list[dict[str, float | int | None]] = field(default_factory=list)


@dataclass(kw_only=True)
class Trainer:
    """Trains any network: over batches, by a loss, stopped by a judge. It knows no family and no data.

    Examples
    --------
    The caller keeps its data and says how batches are drawn, what a batch costs, and how good the network is:

    >>> def batches(epoch, chance):  # draw from `chance` alone, here or in the loss: that is what makes a kill harmless
    ...     return torch.randperm(len(x), generator=chance).tensor_split(10)
    >>> def judge(network):
    ...     error = validation_error(network.eval())
    ...     return -error, {"validation_loss": error}
    >>> trainer = Trainer(
    ...     network=network, optimiser=torch.optim.AdamW(network.parameters(), lr=1e-3), device=torch.device("cpu"),
    ...     batches=batches, steps=10, epochs=100, loss=lambda rows, chance: mse_loss(network(x[rows]), y[rows]),
    ...     rate=lambda step: learning_rate(step, 1000, 1e-3), seed=0,
    ...     judge=judge, patience=10, ema=0.99,
    ...     state_file=folder / "last" / "fit.safetensors", curves_file=folder / "curves.csv", fingerprint=digest,
    ... )  # fmt: skip
    >>> progress = trainer.fit()  # `network` holds the averaged weights of the best epoch, in evaluation mode

    A budget in steps without epochs is one epoch of so many ``steps``. Several processes (`training.distributed`) each
    hold a trainer; their losses share gradients where ``loss`` calls a `DistributedDataParallel` of ``network``.
    Another kind of step, e.g. of differential privacy, is given as ``step``. See the fields for the rest.
    """

    network: nn.Module
    """On ``device``; it is changed."""
    optimiser: torch.optim.Optimizer
    """Of the network's parameters."""
    device: torch.device
    batches: Callable[[int, torch.Generator | None], Iterable[Any]]
    """Gives the batches of an epoch (1 for the first), whatever a batch is; may draw from the epoch's generator, also
    while they are taken."""
    steps: int
    """Batches of an epoch."""
    epochs: int
    """At most."""
    loss: Callable[[Any, torch.Generator | None], torch.Tensor | tuple[torch.Tensor, torch.Tensor]] | None = None
    """What a batch costs; or that with penalties to descend on, and without them to report."""
    step: Callable[[Any, torch.Generator | None], float] | None = None
    """Takes a whole step and returns its loss, in place of descending on ``loss``."""
    size: Callable[[Any], int] | None = None
    """How much a batch weighs in the epoch's mean loss; None: as much as any."""
    rate: Callable[[int], float] | None = None
    """Learning rate of each step of the training (0 for the first); None leaves it to the optimiser and the judge."""
    seed: int | None = None
    """Every epoch has generators of its own, seeded by it: one for batches and losses, and torch's global one, for
    dropout, which is put back after the epoch. None: draws go on from the caller's generators, and nothing resumes."""
    judge: Callable[[nn.Module], tuple[float | None, dict[str, float | None]]] | None = None
    """Of the averaged network after an epoch: a score, higher is better (None: this epoch cannot be the best), and
    columns of the curves."""
    patience: int | None = None
    """Epochs without a better score after which training stops; the best epoch's weights are kept. None: all epochs
    run, and the last is the best."""
    warm: int = 0
    """First epochs that cannot be the best; patience counts from their end."""
    ema: float = 0.0
    """Decay of the averaged weights, see `averaged`; 0: the weights themselves are judged and kept."""
    scores: tuple[str, ...] = SCORES
    """Columns of the curves that the judge may give."""
    state_file: Path | None = None
    """Where the state is kept between epochs; None keeps nothing."""
    curves_file: Path | None = None
    """Where the curves are written as CSV."""
    fingerprint: str = ""
    """Whatever the result depends on, hashed; a state written under another one is not resumed."""
    label: str | None = None
    """Of the progress bar; None shows none."""
    on_epoch: Callable[[list[dict[str, float | int | None]]], None] | None = None
    """Called after every epoch with the curves so far, for who looks on."""
    setting: str = "training.learning_rate"
    """What to lower where training diverges."""

    def __post_init__(self) -> None:
        """Make the average."""
        if (self.loss is None) == (self.step is None):
            raise ValueError("give either a loss or a step")
        if self.seed is None and self.state_file is not None:
            raise ValueError("a training whose epochs have no seed cannot be resumed")
        self.average = averaged(self.network, self.ema).to(self.device) if self.ema else None

    @classmethod
    def of(cls, network: nn.Module, settings: Training, *, steps: int, validated: bool, **others: Any) -> Trainer:
        """Return the trainer that a study's training settings ask for; ``others`` are the fields that they do not say.

        AdamW along a schedule that spans ``settings.epochs``; early stopping where the judge has validation data.
        """
        rate, decay = settings.learning_rate, settings.weight_decay
        return cls(
            network=network,
            optimiser=torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay),
            steps=steps,
            rate=lambda step: learning_rate(step, settings.epochs * steps, rate),
            patience=settings.patience if validated else None,
            ema=settings.ema,
            **others,
        )

    @property
    def judged(self) -> nn.Module:
        """The network with the weights that are judged and kept."""
        return self.network if self.average is None else self.average.module

    def fit(self) -> Progress:
        """Train, and leave ``network`` in evaluation mode with the weights of the best epoch.

        Raises
        ------
        InputError
            If the loss is no longer a number, or the judge gave no score to any epoch.
        """
        from tqdm.auto import tqdm

        first = distributed.number() == 0
        best = {}
        if self.patience is not None:
            best = {key: value.detach().clone() for key, value in self.judged.state_dict().items()}
        parts = {"network": self.network, "average": self.average, "optimiser": self.optimiser, "best": best}
        progress, pause, kept = Progress(), 0.0, -math.inf
        if self.state_file is not None and self.state_file.is_file():
            progress = resume(self.state_file, self.fingerprint, parts, self.label) or progress
        if self.curves_file is not None and first:
            write_curves(self.curves_file, progress.curves, self.scores)
        with tqdm(
            total=self.epochs * self.steps,
            initial=progress.epoch * self.steps,
            desc=self.label,
            unit="step",
            mininterval=1,
            **({"disable": True} if self.label is None or not first else {}),  # else as the environment says
        ) as bar:
            while not self._is_done(progress):
                started = time.monotonic()
                epoch = progress.epoch + 1
                loss = distributed.mean(self._one_epoch(epoch, bar), self.device)
                if not math.isfinite(loss):
                    raise self._diverged("the loss is no longer a number")
                score, columns = (None, {}) if self.judge is None else distributed.agreed(self.judge(self.judged))
                is_better = self.patience is None or (score is not None and score > progress.best_score)
                if epoch > self.warm and is_better:
                    progress.best_epoch, progress.best_score = epoch, 0.0 if score is None else score
                    now = self.judged.state_dict()
                    for key, value in best.items():
                        value.copy_(now[key])
                rate = self.optimiser.param_groups[0]["lr"]
                row = {"epoch": epoch, "train_loss": loss, **dict.fromkeys(self.scores), **columns}
                seconds = distributed.agreed(round(time.monotonic() - started, 3))
                progress.curves.append({**row, "learning_rate": rate, "seconds": seconds})
                progress.epoch = epoch
                bar.set_postfix(
                    refresh=False, loss=f"{loss:.3f}", **({} if score is None else {"score": f"{score:.3f}"})
                )
                if first and (time.monotonic() - kept >= pause or self._is_done(progress)):
                    begun = time.monotonic()
                    if self.curves_file is not None:
                        write_curves(self.curves_file, progress.curves, self.scores)
                    if self.state_file is not None:
                        keep(self.state_file, self.fingerprint, parts, progress)
                    kept = time.monotonic()
                    pause = (kept - begun) / KEEPING
                if first and self.on_epoch is not None:
                    self.on_epoch(progress.curves)
                distributed.wait()
        if self.patience is not None and progress.epoch and not progress.best_epoch:
            raise self._diverged("no epoch gave numbers on the validation part")
        self.network.load_state_dict(best or self.judged.state_dict())
        distributed.check_equal(self.network)
        self.network.eval()
        return progress

    def _is_done(self, progress: Progress) -> bool:
        waited = progress.epoch - max(self.warm, progress.best_epoch)
        return progress.epoch >= self.epochs or (self.patience is not None and waited >= self.patience)

    def _one_epoch(self, epoch: int, bar: Any) -> float:
        """Train for one epoch and return the mean loss."""
        self.network.train()
        own, chance = self.seed is not None, None
        total, weight = 0.0, 0
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=own):
            if own:
                chance = generator_of(self.seed, epoch)
                torch.manual_seed(generator_of(self.seed, epoch, 1).initial_seed())
            for number, batch in enumerate(self.batches(epoch, chance)):
                if self.rate is not None:
                    rate = self.rate((epoch - 1) * self.steps + number)
                    for group in self.optimiser.param_groups:
                        group["lr"] = rate
                loss = self._step(batch, chance) if self.step is None else self.step(batch, chance)
                if self.average is not None:
                    self.average.update_parameters(self.network)
                if self.size is None:
                    total += loss / self.steps
                else:
                    total += loss * self.size(batch)
                    weight += self.size(batch)
                bar.update()
        return total if self.size is None else total / weight

    def _step(self, batch: Any, chance: torch.Generator | None) -> float:
        loss = self.loss(batch, chance)
        objective, loss = loss if isinstance(loss, tuple) else (loss, loss)
        self.optimiser.zero_grad(set_to_none=True)
        objective.backward()
        self.optimiser.step()
        return loss.item()

    def _diverged(self, how: str) -> InputError:
        peak = self.optimiser.defaults["lr"]
        return InputError(f"training diverged: {how}", field=self.setting, value=peak, fix="lower it")


def generator_of(seed: int, *parts: int) -> torch.Generator:
    """Return a CPU generator whose stream depends on all the given numbers and nothing else."""
    state = np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def seeded(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the name of a spot or record alone."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


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


@contextmanager
def precision(device: torch.device) -> Iterator[None]:
    """Compute in bfloat16 where the device is a GPU."""
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
        yield


def write_curves(path: Path, rows: list[dict[str, float | int | None]], scores: tuple[str, ...] = SCORES) -> None:
    """Write the curves as CSV; where there is no validation, its columns are empty."""
    text = io.StringIO()
    columns = ("epoch", "train_loss", *scores, "learning_rate", "seconds")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
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
    saved = part("best")
    for key, value in parts["best"].items():
        value.copy_(saved[key])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in part("optimiser").items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = value
    optimiser = parts["optimiser"]
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    progress = Progress(**scalars)
    tqdm.write(f"{label}: goes on after epoch {progress.epoch}", file=sys.stderr)
    return progress
