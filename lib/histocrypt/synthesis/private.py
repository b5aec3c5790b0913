"""Differentially private training of a generator: DP-SGD by opacus, and what its (epsilon, delta) says.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016. In every step each tile is drawn by a coin of its own
(Poisson), its gradient is clipped to a norm, and noise is added to the sum. The accountant is that of Renyi's
divergence (Mironov 2017; Mironov, Talwar and Zhang 2019).

**The unit is one tile**: the statement bounds what the presence of one tile, with its mask and label, can change. A
patient has many, and neighbouring tiles share pixels, so that the statement for a patient is that of a group, and
weaker; `PrivateLesson.statement` gives both.

Coins and noise come from the operating system and are kept nowhere: who knows them can subtract them. A private
training therefore does not repeat. The generator behind the noise is torch's, not a cryptographic one.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from histocrypt.synthesis.generator import Lesson

GROUPS = (1, 2, 4, 8, 16, 32)
"""Sizes of groups that a statement lists beside the largest patient's."""

AT_ONCE = 16
"""Tiles whose gradients are held at once: a copy of the network's weights each."""


@dataclass(frozen=True)
class Privacy:
    """What is promised, for one tile."""

    epsilon: float
    delta: float = 1e-5
    clip: float = 1.0
    """Norm that a tile's gradient is clipped to."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, good, expected in (
            ("epsilon", self.epsilon > 0, "more than 0"),
            ("delta", 0 < self.delta < 1, "between 0 and 1, well below one in the number of tiles"),
            ("clip", self.clip > 0, "more than 0"),
        ):
            if not good:
                raise InputError(
                    "is out of range", field=f"synthesis.{name}", value=getattr(self, name), expected=expected
                )


class PrivateLesson:
    """Training steps with clipped and noised gradients, in place of those of a `Lesson`."""

    def __init__(
        self,
        lesson: Lesson,
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        privacy: Privacy,
        *,
        steps: int,
    ) -> None:
        """Prepare; ``steps`` is the number of the whole training, which the noise is chosen for.

        Raises
        ------
        InputError
            If opacus is not installed, or delta is too large for so many tiles.
        """
        try:
            from opacus import GradSampleModule
            from opacus.accountants.utils import get_noise_multiplier
            from opacus.optimizers import DPOptimizer
        except ImportError as error:
            msg = "differentially private training needs opacus, which is not installed"
            fix = "pip install opacus==1.6.0, or leave epsilon out"
            raise InputError(msg, field="synthesis.epsilon", fix=fix) from error
        n = len(lesson.pairs)
        if privacy.delta >= 1 / n:
            raise InputError(
                f"is too large for {n} tiles: a mechanism that publishes one of them would satisfy it",
                field="synthesis.delta",
                value=privacy.delta,
                expected=f"well below {1 / n:.1g}",
            )
        self.lesson, self.privacy, self.steps = lesson, privacy, steps
        self.rate = min(1.0, lesson.plan.batch / n)
        with warnings.catch_warnings():  # see epsilon_of_group
            warnings.simplefilter("ignore", UserWarning)
            self.noise = get_noise_multiplier(
                target_epsilon=privacy.epsilon,
                target_delta=privacy.delta,
                sample_rate=self.rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=privacy.epsilon / 1000,
            )
        self.module = GradSampleModule(network, loss_reduction="sum")
        self.optimiser = DPOptimizer(
            optimiser,
            noise_multiplier=self.noise,
            max_grad_norm=privacy.clip,
            expected_batch_size=self.rate * n,
            loss_reduction="mean",
            generator=_secret(lesson.device),
        )
        self._coins = _secret("cpu")

    def batches(self, n: int, chance: torch.Generator) -> Iterator[np.ndarray]:
        """Yield the rows of each of ``n`` batches: every tile by its own coin, so that sizes differ. No balancing."""
        for _ in range(n):
            yield torch.nonzero(torch.rand(len(self.lesson.pairs), generator=self._coins) < self.rate)[:, 0].numpy()

    def step(self, rows: np.ndarray, chance: torch.Generator) -> float:
        """Take one step and return the mean loss; an empty batch is noise alone."""
        total, weight = 0.0, 1.0
        if not len(rows):  # the noise is added all the same: that nobody was drawn must not show
            rows, weight = np.zeros(1, dtype=np.int64), 0.0
        parts = np.array_split(rows, math.ceil(len(rows) / AT_ONCE))
        for number, part in enumerate(parts):
            errors = self.lesson.errors(self.module, part, chance).sum() * weight
            with warnings.catch_warnings():  # that no gradient of the input is asked for, as none is needed
                warnings.filterwarnings("ignore", "Full backward hook")
                errors.backward()
            self.optimiser.signal_skip_step(do_skip=number < len(parts) - 1)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            total += errors.item()
        return total / len(rows)

    def statement(self, patients: np.ndarray) -> dict[str, Any]:
        """Return what the finished training promises, for one tile and for groups up to the largest patient.

        Parameters
        ----------
        patients
            (n,) of the tiles.
        """
        largest = int(np.unique(patients, return_counts=True)[1].max())
        bound = {"noise": self.noise, "rate": self.rate, "steps": self.steps}
        sizes = sorted({size for size in GROUPS if size <= largest} | {largest})
        return {
            "unit": "tile",
            "asked": asdict(self.privacy),
            **bound,
            "accountant": "rdp",
            "delta": self.privacy.delta,
            "epsilon": epsilon_of_group(1, delta=self.privacy.delta, **bound),
            "largest_patient": largest,
            "epsilon_by_group": {str(k): epsilon_of_group(k, delta=self.privacy.delta, **bound) for k in sizes},
            "not_covered": "what was chosen by looking at the tiles: the number of epochs, the filter, the options",
        }


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


def _secret(device: torch.device | str) -> torch.Generator:
    """Return a generator seeded by the operating system."""
    return torch.Generator(device=device).manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
