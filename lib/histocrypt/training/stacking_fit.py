"""Trains the network that stacks: Adam on the squared error, the rate halved where the validation loss stands still.

The network is small and its input a table, so a fit takes seconds and is not resumed. The same seed gives the same
bits. What was chosen with a validation part (epochs, and the rate of each) can be repeated without one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from histocrypt.errors import InputError
from histocrypt.models.stacking_mlp import StackingMLP
from histocrypt.training.loop import generator_of, mean_section_pearson

if TYPE_CHECKING:
    from histocrypt.study_parts import Stacking

HALVED_AFTER, LEAST_RATE = 10, 1e-6
"""Epochs without a better validation loss before the rate is halved; it is never lower than this."""


@dataclass(frozen=True)
class Table:
    """Rows to learn from, in the loss's units."""

    families: dict[str, np.ndarray]
    """(n, k) float32 predictions by family."""
    sections: np.ndarray
    """(n,) str."""
    targets: np.ndarray | None = None
    """(n, k) float32."""

    def rows(self, mask: np.ndarray) -> Table:
        """Return some of the rows."""
        targets = None if self.targets is None else self.targets[mask]
        return Table({name: one[mask] for name, one in self.families.items()}, self.sections[mask], targets)


@dataclass
class Stack:
    """A trained network, and how it came about."""

    network: StackingMLP
    epochs: int
    """The epoch whose weights these are."""
    rates: list[float]
    """Learning rate of each epoch up to it."""
    curves: list[dict[str, float | int | None]] = field(default_factory=list)

    def predict(self, table: Table) -> np.ndarray:
        """Return (n, k) float32, in the loss's units."""
        return _predict(self.network, table)


def fit_stack(
    train: Table,
    validation: Table | None = None,
    *,
    settings: Stacking,
    seed: int,
    rates: list[float] | None = None,
    label: str = "stack",
) -> Stack:
    """Train the network that stacks.

    Parameters
    ----------
    train
        At least two rows, with targets.
    validation
        Rows of sections that ``train`` has none of: training stops when their mean correlation has not improved for
        ``settings.patience`` epochs, and the best epoch's weights are kept.
    settings
        The study's ``stacking``.
    seed
        Of weights, order and dropout.
    rates
        Without a validation part: the learning rate of each epoch, as an earlier fit chose them.

    Raises
    ------
    InputError
        If there are fewer than two rows, or the loss is no longer a number.
    """
    from tqdm.auto import tqdm

    n, k = train.targets.shape
    if n < 2:
        raise InputError("a stack cannot be learnt from fewer than two spots", value=n)
    if (validation is None) == (rates is None):
        msg = "give either a validation part or the rates that an earlier fit chose"
        raise ValueError(msg)
    x = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in train.families.items()}
    y = torch.from_numpy(np.ascontiguousarray(train.targets))
    n_batches = max(1, round(n / settings.batch_size))
    curves, best = [], (-math.inf, 0, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of(seed, 0).initial_seed())
        network = StackingMLP(k, tuple(train.families))
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        halve = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimiser, factor=0.5, patience=HALVED_AFTER, min_lr=LEAST_RATE
        )
        bar = tqdm(range(1, (len(rates) if rates else settings.epochs) + 1), desc=label, unit="epoch", mininterval=1)
        for epoch in bar:
            if rates is not None:
                optimiser.param_groups[0]["lr"] = rates[epoch - 1]
            row = {"epoch": epoch, "validation_loss": None, "validation_pcc": None}
            row["learning_rate"] = optimiser.param_groups[0]["lr"]
            order = torch.randperm(n, generator=generator_of(seed, epoch))
            row["train_loss"] = _one_epoch(network, optimiser, x, y, order.tensor_split(n_batches))
            curves.append(row)
            if validation is None:
                continue
            predicted = _predict(network, validation)
            row["validation_loss"] = float(np.mean((predicted - validation.targets) ** 2, dtype=np.float64))
            row["validation_pcc"] = mean_section_pearson(predicted, validation.targets, validation.sections)
            halve.step(row["validation_loss"])
            if row["validation_pcc"] > best[0]:
                weights = {key: value.detach().clone() for key, value in network.state_dict().items()}
                best = (row["validation_pcc"], epoch, weights)
            if epoch - best[1] >= settings.patience:
                break
        bar.close()
    if validation is not None:
        network.load_state_dict(best[2])
    chosen = best[1] if validation is not None else len(rates)
    return Stack(network.eval(), chosen, [row["learning_rate"] for row in curves[:chosen]], curves)


def _one_epoch(
    network: StackingMLP, optimiser: torch.optim.Optimizer, x: dict, y: torch.Tensor, batches: tuple
) -> float:
    network.train()
    total = 0.0
    for rows in batches:
        loss = nn.functional.mse_loss(network({name: one[rows] for name, one in x.items()}), y[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.item() * len(rows)
    if not math.isfinite(total):
        msg = "learning the stack diverged: the loss is no longer a number"
        raise InputError(msg, field="stacking.learning_rate", fix="lower it")
    return total / len(y)


def _predict(network: StackingMLP, table: Table) -> np.ndarray:
    network.eval()
    with torch.inference_mode():
        given = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in table.families.items()}
        return network(given).numpy()
