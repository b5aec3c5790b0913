"""The loop that trains a segmentation network: same seed, same bits on a CPU, also after a kill.

The loss is half cross-entropy, half 1 - Dice: Dice of the probabilities, pooled over the batch, the mean over levels
that the batch has (`synthesis.dice` says how predictions are judged). Order, flips and dropout are drawn from
generators seeded by (seed, epoch), and the state after each epoch is kept in one file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from histocrypt.errors import InputError
from histocrypt.training.augment import flip_and_turn
from histocrypt.training.loop import Progress, generator_of, keep, learning_rate, precision, resume

if TYPE_CHECKING:
    from histocrypt.synthesis.pairs import Pairs
    from histocrypt.synthesis.segmentation import SegmenterPlan


def steps_an_epoch(plan: SegmenterPlan, n_images: int) -> int:
    """Return the number of batches of an epoch."""
    return plan.steps or max(1, math.ceil(n_images / plan.batch))


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return half cross-entropy, half 1 - Dice of logits (B, L, S, S) against masks (B, S, S) of levels, int64."""
    entropy = torch.nn.functional.cross_entropy(logits, masks)
    probability = logits.float().softmax(dim=1)
    truth = torch.nn.functional.one_hot(masks, logits.shape[1]).movedim(-1, 1).to(probability)
    both, true, found = ((part.sum(dim=(0, 2, 3))) for part in (probability * truth, truth, probability))
    there = true > 0  # a level that the batch lacks is the cross-entropy's business alone
    return 0.5 * entropy + 0.5 * (1 - (2 * both[there] / (true + found)[there]).mean())


def train(
    network: torch.nn.Module,
    pairs: Pairs,
    judge: Callable[[], float] | None,
    plan: SegmenterPlan,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    fingerprint: str,
    folder: Path | None,
    label: str,
) -> Progress:
    """Train a network in place and leave it with the weights of its best epoch.

    Parameters
    ----------
    judge
        Returns the score of the network as it is; None: the last epoch is the best.
    fingerprint
        Whatever the result depends on, hashed; a state written under another one is not resumed.
    folder
        Where ``last/state.safetensors`` and ``curves.csv`` are written; None writes nothing.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    from histocrypt.atomic import atomic_path

    network.to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    best = {key: value.detach().clone() for key, value in network.state_dict().items()}
    parts = {"network": network, "average": None, "optimiser": optimiser, "best": best}
    state = None if folder is None else folder / "last" / "state.safetensors"
    progress = (state is not None and state.is_file() and resume(state, fingerprint, parts, label)) or Progress()
    n_steps = steps_an_epoch(plan, len(pairs))
    bar = tqdm(total=epochs * n_steps, initial=progress.epoch * n_steps, desc=label, unit="step", mininterval=1)
    while progress.epoch < epochs and (judge is None or progress.epoch - progress.best_epoch < plan.patience):
        started, epoch, total = time.monotonic(), progress.epoch + 1, 0.0
        network.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(generator_of(seed, epoch, 1).initial_seed())  # dropout
            for number, (images, masks) in enumerate(_batches(pairs, n_steps, plan.batch, seed, epoch)):
                rate = learning_rate((epoch - 1) * n_steps + number, epochs * n_steps, plan.learning_rate)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                with precision(device):
                    logits = network(images.to(device))
                loss = segmentation_loss(logits.float(), masks.to(device))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total += loss.item() / n_steps
                bar.update()
        if not math.isfinite(total):
            msg = "training diverged: the loss is no longer a number"
            raise InputError(msg, field="learning_rate", value=plan.learning_rate, fix="lower it")
        network.eval()  # as it will predict: batch norms keep what they have, nothing is dropped
        score = None if judge is None else judge()
        if score is None or score > progress.best_score:
            progress.best_epoch, progress.best_score = epoch, score or 0.0
            for key, value in network.state_dict().items():
                best[key].copy_(value)
        seconds = round(time.monotonic() - started, 3)
        row = {"epoch": epoch, "train_loss": total, "validation_dice": score, "learning_rate": rate}
        progress.curves.append({**row, "seconds": seconds})
        progress.epoch = epoch
        if folder is not None:
            with atomic_path(folder / "curves.csv") as temporary:
                pd.DataFrame(progress.curves).to_csv(temporary, index=False)
            keep(state, fingerprint, parts, progress)
    bar.close()
    network.load_state_dict(best)
    network.eval()
    return progress


def _batches(
    pairs: Pairs, n_steps: int, batch: int, seed: int, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images (B, C, S, S) float32 and masks (B, S, S) int64, each pair flipped and turned alike."""
    chance = generator_of(seed, epoch)
    rounds = math.ceil(n_steps * batch / len(pairs))
    order = torch.cat([torch.randperm(len(pairs), generator=chance) for _ in range(rounds)]).numpy()
    size = min(batch, max(2, math.ceil(len(order) / n_steps)))
    for number in range(n_steps):
        own = pairs.subset(order[np.arange(number * size, (number + 1) * size) % len(order)])
        images, masks = torch.from_numpy(own.signals()[0]), torch.from_numpy(own.masks.astype(np.float32))
        both = flip_and_turn(torch.cat([images, masks[:, None]], dim=1), chance)
        yield both[:, :-1].contiguous(), both[:, -1].long()
