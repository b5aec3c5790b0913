"""Training with differential privacy: noise for a promise, what it promises groups, and the patient as unit.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, by opacus: in every step each unit is drawn by a
coin of its own (Poisson), its gradient is clipped to a norm, and noise is added to the sum. The accountant is that of
Renyi's divergence (Mironov 2017; Mironov, Talwar and Zhang 2019). With a patient as unit (McMahan et al., ICLR 2018) a
drawn patient gives the gradient of the mean loss over some of its records, clipped once: however many records it has,
and however alike they are, it moves a step by one clip.

All that is random in a step comes from the operating system and is kept nowhere: coins and noise, for who knows them
can subtract them; and what is drawn for each record, for with a known seed one unit more would shift the draws of all
that follow it. A private training therefore does not repeat. The generator behind the noise is torch's, not a
cryptographic one.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch

from histocrypt.errors import InputError

Unit = Literal["tile", "patient"]
TILES = 8
"""Records that a drawn patient gives to a step, at random: its gradient is that of their mean loss."""
NOT_COVERED = (
    "what was chosen by looking at the tiles: the number of epochs, the filter, the options; and how many there are"
)


class PatientSteps:
    """Training steps in which a whole patient is drawn, clipped and covered by noise.

    Parameters
    ----------
    network
        It is changed. No layer may mix the records of a batch across patients; batches here hold one patient.
    optimiser
        Of the network's parameters.
    loss
        Of some rows, drawn from the generator given: the mean over the rows, a scalar.
    patients
        (n,) str of all rows.
    epsilon, delta, clip
        What is promised for one patient more or less, and the norm that a patient's gradient is clipped to.
    batch
        Patients that a step takes on average; all of them if there are no more.
    steps
        Of the whole training, which the noise is chosen for.
    expected
        Patients that there would be, from which the chance of each and the size of a step follow; those that there are
        if not given, and then their number is not hidden.

    Raises
    ------
    InputError
        If opacus is not installed, or delta is too large for so few patients.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        loss: Callable[[np.ndarray, torch.Generator], torch.Tensor],
        patients: np.ndarray,
        *,
        epsilon: float,
        delta: float,
        clip: float,
        batch: int,
        steps: int,
        expected: int | None = None,
    ) -> None:
        self._parameters = [one for one in network.parameters() if one.requires_grad]
        self._loss = loss
        self._rows = [np.flatnonzero(patients == name) for name in np.unique(patients)]
        self.units = len(self._rows) if expected is None else expected
        self.steps, self.rate = steps, min(1.0, batch / self.units)
        self.asked = {"epsilon": epsilon, "delta": delta, "clip": clip}
        self.optimiser = private_optimiser(
            optimiser,
            **self.asked,
            rate=self.rate,
            units=self.units,
            unit="patient",
            steps=steps,
            device=self._parameters[0].device,
        )
        self.noise = self.optimiser.noise_multiplier
        self._coins = secret("cpu")

    def batches(self, n: int, chance: torch.Generator | None = None) -> Iterator[list[np.ndarray]]:
        """Yield ``n`` batches: of each patient that its coin draws, the rows of at most `TILES` records."""
        for _ in range(n):
            drawn = (torch.rand(len(self._rows), generator=self._coins) < self.rate).tolist()
            yield [self._some(rows) for rows, is_drawn in zip(self._rows, drawn, strict=True) if is_drawn]

    def step(self, batch: list[np.ndarray], chance: torch.Generator | None = None) -> float:
        """Take one step and return the mean loss of the drawn patients; an empty batch is noise alone.

        ``chance`` is not drawn from, see the top of this file.
        """
        torch.manual_seed(secret_number())  # of dropout; the trainer puts the state back after the epoch
        total, weight = 0.0, 1.0
        if not batch:  # the noise is added all the same: that nobody was drawn must not show
            batch, weight = [self._rows[0][:1]], 0.0
        for number, rows in enumerate(batch):
            error = self._loss(rows, self._coins)
            gradients = torch.autograd.grad(error * weight, self._parameters, materialize_grads=True)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad_sample = gradient[None]
            self.optimiser.signal_skip_step(do_skip=number < len(batch) - 1)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            total += error.item() * weight
        return total / len(batch)

    def statement(self, patients: np.ndarray | None = None) -> dict[str, Any]:
        """Return what the finished training promises for one patient, whatever the number of its records."""
        bound = {"noise": self.noise, "rate": self.rate, "steps": self.steps}
        return {
            "unit": "patient",
            "asked": {**self.asked, "unit": "patient"},
            **bound,
            "accountant": "rdp",
            "delta": self.asked["delta"],
            "epsilon": epsilon_of_group(1, delta=self.asked["delta"], **bound),
            "patients": self.units,
            "tiles_of_a_patient_in_a_step": TILES,
            "not_covered": NOT_COVERED,
        }

    def _some(self, rows: np.ndarray) -> np.ndarray:
        return rows[torch.randperm(len(rows), generator=self._coins)[:TILES].numpy()]


def private_optimiser(
    optimiser: torch.optim.Optimizer,
    *,
    epsilon: float,
    delta: float,
    clip: float,
    rate: float,
    units: int,
    unit: Unit,
    steps: int,
    device: torch.device,
) -> Any:
    """Return opacus's optimiser, which clips the gradients of units, sums them and adds the noise of a promise.

    Parameters
    ----------
    epsilon, delta
        The promise, for one unit more or less.
    clip
        Norm that a unit's gradient is clipped to.
    rate
        Chance of a unit to be drawn in a step.
    units
        How many there are.
    unit
        What they are, for messages.
    steps
        Of the whole training.
    device
        Of the parameters.

    Raises
    ------
    InputError
        If opacus is not installed, or delta is too large for so few units.
    """
    try:
        from opacus import optimizers
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        msg = "differentially private training needs opacus, which is not installed"
        fix = "pip install opacus==1.6.0, or leave epsilon out"
        raise InputError(msg, field="synthesis.epsilon", fix=fix) from error
    if delta >= 1 / units:
        raise InputError(
            f"is too large for {units} {unit}s: a mechanism that publishes one of them would satisfy it",
            field="synthesis.delta",
            value=delta,
            expected=f"well below {1 / units:.1g}",
        )
    with warnings.catch_warnings():  # see epsilon_of_group
        warnings.simplefilter("ignore", UserWarning)
        noise = get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=rate,
            steps=steps,
            accountant="rdp",
            epsilon_tolerance=epsilon / 1000,
        )
    return optimizers.DPOptimizer(
        optimiser,
        noise_multiplier=noise,
        max_grad_norm=clip,
        expected_batch_size=rate * units,
        loss_reduction="mean",
        generator=secret(device),
    )


def epsilon_of_group(size: int, *, delta: float, noise: float, rate: float, steps: int) -> float:
    """Return the epsilon at ``delta`` for the presence of ``size`` tiles at once.

    The smaller of two bounds: the general one, (k e, k exp((k - 1) e) d) where one tile is bound by (e, d) (Dwork and
    Roth 2014), at the best d; and that of k tiles that are in every batch, whose sum has a norm of at most k clips.

    Parameters
    ----------
    size
        k, the number of tiles.
    delta
        Of the group's statement.
    noise
        Standard deviation of the noise, in clips.
    rate
        Chance of a tile to be in a batch.
    steps
        Number of batches.
    """
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders = RDPAccountant.DEFAULT_ALPHAS
    divergence = compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
    with warnings.catch_warnings():  # that more orders might give a tighter bound
        warnings.simplefilter("ignore", UserWarning)
        if size == 1:
            return float(get_privacy_spent(orders=orders, rdp=divergence, delta=delta)[0])
        found = []
        for smaller in np.logspace(math.log10(delta / size), -250, 120):
            one = get_privacy_spent(orders=orders, rdp=divergence, delta=smaller)[0]
            if math.log(size) + (size - 1) * one + math.log(smaller) <= math.log(delta):
                found.append(size * one)
    concentrated = steps * size**2 / (2 * noise**2)  # in the sense of Bun and Steinke 2016
    everywhere = concentrated + 2 * math.sqrt(concentrated * math.log(1 / delta))
    return float(min([*found, everywhere]))


def secret(device: torch.device | str) -> torch.Generator:
    """Return a generator seeded by the operating system."""
    return torch.Generator(device=device).manual_seed(secret_number())


def secret_number() -> int:
    """Return a seed that nobody knows, 63 bits."""
    return int.from_bytes(os.urandom(8), "little") >> 1
