"""Generators of synthetic images: how images are noised, what a generator is, and how it is trained.

Two, as published (Zhou et al., npj Digital Medicine 2024): ``joint`` makes an image and its mask at once; ``control``
makes images of the class that has nothing to outline. Beyond the published ones, both know the class, and forget it in
a share of the steps, so that sampling can be guided (Ho and Salimans 2022); weights are averaged over steps; and
training that was killed goes on, and ends in the same bits as if undisturbed (on a CPU; see `training.loop`).

The noise schedule is the published one: 2000 variances from 1e-6 to 0.01, linear, learnt over continuous noise levels:
the share of signal is drawn between those of two neighbouring steps. How images are drawn says `synthesis.sampling`.

Three options make a small network useful within minutes. ``signal: whitened`` noises patches whose components have a
variance of 1 (`models.diffguard.Whitened`), and draws noise levels where these are decided (`draw_decisive`); with
``stain`` the network is told the tile's colours; with ``mask_given``, in a share of the steps, its mask.

A folder holds ``generator.safetensors`` and ``generator.json``, which is all that sampling needs; ``curves.csv``; and,
for the owner of the images alone, ``members.json`` (what was learned from) and ``training.safetensors`` (to go on).
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from histocrypt.errors import InputError
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.machine import choose_device
from histocrypt.models.diffguard import DiffGuard
from histocrypt.options import GeneratorPlan
from histocrypt.synthesis.manifest import Pairs, Scheme
from histocrypt.training.images import flip_and_turn
from histocrypt.training.loop import Trainer, generator_of, learning_rate, precision
from histocrypt.training.private import (
    NOT_COVERED,
    TILES,
    PatientSteps,
    Unit,
    epsilon_of_group,
    private_optimiser,
    secret,
    secret_number,
)

WHERE = "synthesis.generator"
FIRST_BETA, LAST_BETA = 1e-6, 0.01
DECISIVE = (-0.5, 1.3)
"""Mean and spread of the logarithm of the noise's standard deviation, see `draw_decisive`."""
LATER = ("signal", "components", "evenness", "stain", "mask_given")
"""Options that came later: generators that were trained before them stay valid."""
GROUPS = (1, 2, 4, 8, 16, 32)
"""Sizes of groups that a statement of privacy lists beside the largest patient's."""
AT_ONCE = 16
"""Tiles whose gradients are held at once in private training: a copy of the network's weights each."""


def betas(steps: int) -> torch.Tensor:
    """Return the variances of ``steps`` steps, float64.

    The published schedule has 2000 steps; another number keeps its ends, the variances scaled so that as much noise
    is left at the last.
    """
    return torch.linspace(FIRST_BETA, LAST_BETA, steps, dtype=torch.float64) * (2000 / steps)


def schedule(steps: int) -> torch.Tensor:
    """Return the share of the signal's variance left after 0, 1, ... ``steps`` steps, (steps + 1,) float32."""
    kept = torch.cumprod(1 - betas(steps), 0)
    return torch.cat([torch.ones(1, dtype=torch.float64), kept]).float()


def draw_kept(n: int, kept: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Return the share of signal of n images, (n,), each drawn between those of two neighbouring steps of ``kept``."""
    step = torch.randint(1, len(kept), (n,), generator=chance)
    return kept[step] + torch.rand(n, generator=chance) * (kept[step - 1] - kept[step])


def draw_decisive(n: int, chance: torch.Generator) -> torch.Tensor:
    """Return the share of signal of n images, (n,), with noise of a log-normal standard deviation beside a signal of 1.

    Karras et al., NeurIPS 2022, table 1, with mean and spread for signals whose variance is 1. By the published
    schedule, one step in ten has less noise than 0.33, where grain is decided; here every fourth has.
    """
    noise = torch.exp(DECISIVE[0] + DECISIVE[1] * torch.randn(n, generator=chance))
    return 1 / (1 + noise**2)


def noised(clean: torch.Tensor, kept: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return images (B, C, S, S) of which a share ``kept`` (B,) of the variance is left; ``noise`` as the images."""
    kept = kept[:, None, None, None]
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def target(objective: str, clean: torch.Tensor, kept: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return what the network is to say, (B, C, S, S): the noise, or the velocity of Salimans and Ho (ICLR 2022).

    The velocity weighs what an image is as a whole, its colour and its class, as much as its finest grain; the noise
    leaves that to the last. Small networks and short trainings show the difference.
    """
    kept = kept[:, None, None, None]
    return noise if objective == "noise" else kept.sqrt() * noise - (1 - kept).sqrt() * clean


def as_noise(objective: str, said: torch.Tensor, noisy: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the noise (B, C, S, S) that the network's word stands for: the inverse of `target`."""
    kept = kept[:, None, None, None]
    return said if objective == "noise" else kept.sqrt() * said + (1 - kept).sqrt() * noisy


@dataclass(frozen=True)
class Generator:
    """A trained generator."""

    network: DiffGuard
    """In evaluation mode."""
    plan: GeneratorPlan
    scheme: Scheme
    side: int
    """Pixels a side."""
    colours: int
    """Channels of the image: 1 or 3. The mask is one more in a joint generator."""
    record: dict[str, Any]
    """What ``generator.json`` says: epochs, images of each class, privacy."""
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it has seen."""
        return tuple(name for name, n in self.record["images"].items() if n)

    def noise_in(
        self, noisy: torch.Tensor, kept: torch.Tensor, classes: torch.Tensor, **told: torch.Tensor
    ) -> torch.Tensor:
        """Return the noise in ``noisy``, float32; ``kept`` and ``classes`` (B,); all see `DiffGuard.forward`."""
        with precision(self.device):
            said = self.network(noisy, kept, classes, **told)
        return as_noise(self.plan.objective, said.float(), noisy, kept)


def signals_of(pairs: Pairs, plan: GeneratorPlan) -> torch.Tensor:
    """Return image, and mask where the plan is joint, (n, C, side, side) float32 in [-1, 1]."""
    images, masks = pairs.signals()
    return torch.from_numpy(images if plan.kind == "control" else np.concatenate([images, masks], axis=1))


def colour_numbers(images: np.ndarray) -> torch.Tensor:
    """Return how tiles are coloured, (n, 2 channels) float32: mean and spread of each channel's optical density.

    Parameters
    ----------
    images
        (n, side, side, channels) uint8.
    """
    density = -np.log((images.astype(np.float32) + 1) / 256)
    return torch.from_numpy(np.concatenate([density.mean(axis=(1, 2)), density.std(axis=(1, 2))], axis=1))


def told_of(pairs: Pairs, plan: GeneratorPlan, *, masks: bool = False) -> dict[str, torch.Tensor]:
    """Return what else than the class the network is told of images: ``stain`` and ``masks``, as the plan has them.

    With ``masks`` false, masks are there, and not told.
    """
    told = {"stain": colour_numbers(pairs.images)} if plan.stain else {}
    if plan.mask_given:
        levels = torch.from_numpy(pairs.masks.astype(np.int64))
        told["masks"] = levels if masks else torch.full_like(levels, -1)
    return told


def class_numbers(labels: np.ndarray, scheme: Scheme) -> torch.Tensor:
    """Return (n,) numbers of the classes, as the network knows them."""
    return torch.tensor([scheme.classes.index(label) for label in labels.tolist()], dtype=torch.long)


def learned_from(pairs: Pairs, plan: GeneratorPlan) -> Pairs:
    """Return the pairs that a generator of this plan learns from: those with a mask, or those of the control class."""
    if plan.kind == "control" and pairs.scheme.control is None:
        raise InputError(
            "these classes have no control, so a control generator cannot be trained",
            field=f"{WHERE}.kind",
            value="control",
            expected="joint",
        )
    chosen = pairs.subset(pairs.has_mask if plan.kind == "joint" else pairs.labels == pairs.scheme.control)
    if len(chosen) < 2:
        what = "with a mask" if plan.kind == "joint" else f"of the class {pairs.scheme.control!r}"
        raise InputError(f"a {plan.kind} generator needs at least two images {what}", value=len(chosen))
    return chosen


def build(plan: GeneratorPlan, scheme: Scheme, *, side: int, colours: int) -> DiffGuard:
    """Return an untrained network."""
    if side % plan.least_side:
        raise InputError(
            f"images of {side} x {side} pixels cannot be halved {len(plan.multipliers) - 1} times in patches of "
            f"{plan.patch}",
            field=f"{WHERE}.multipliers",
            expected=f"a side that is a multiple of {plan.least_side}",
        )
    return DiffGuard(
        colours + (plan.kind == "joint"),
        n_classes=len(scheme.classes) if plan.conditional else 0,
        width=plan.width,
        multipliers=plan.multipliers,
        blocks=plan.blocks,
        dropout=plan.dropout,
        patch=plan.patch,
        whitened=plan.signal == "whitened",
        components=plan.components,
        evenness=plan.evenness,
        stain=2 * colours if plan.stain else 0,
        levels=len(scheme.levels) if plan.mask_given else 0,
    )


def check_plan(plan: GeneratorPlan, *, colours: int, private: bool) -> None:
    """Refuse options that contradict each other."""
    problem, field, value = None, "", None
    if plan.components is not None and plan.signal == "range":
        problem, field, value = "only whitened patches have components", "components", plan.components
    elif (plan.components or 0) > (most := (colours + (plan.kind == "joint")) * plan.patch**2):
        problem, field, value = f"a patch has only {most} components", "components", plan.components
    elif plan.mask_given and plan.kind == "control":
        problem, field, value = "a control generator does not use masks", "mask_given", plan.mask_given
    elif private and plan.signal == "whitened":
        problem, field, value = "components are learned from the tiles without any noise", "signal", plan.signal
    elif private and plan.stain:
        problem, field, value = "the colours' spread is learned from the tiles without any noise", "stain", plan.stain
    if problem is not None:
        fix = "leave it out" if not private else "leave it out, or leave synthesis.epsilon out"
        raise InputError(problem, field=f"{WHERE}.{field}", value=value, fix=fix)


def train_generator(
    pairs: Pairs,
    plan: GeneratorPlan,
    *,
    folder: Path,
    epochs: int,
    seed: int,
    device: str | torch.device | None = None,
    privacy: Privacy | None = None,
) -> Generator:
    """Train a generator, or load it where ``folder`` holds the one of the same images, plan, epochs and seed.

    Parameters
    ----------
    pairs
        Of training patients alone. See `learned_from` for which of them count.
    folder
        What is written: see the top of this file.
    epochs
        Passes over the images, rarer classes repeated.
    device
        None: the best one present.
    privacy
        Differential privacy (see `Privacy`): classes are then not balanced, and training does not repeat. With the
        patient as unit ``plan.batch`` is how many patients a step takes, each with `training.private.TILES` tiles.

    Raises
    ------
    InputError
        If there are too few images, the side does not suit the plan, or training diverges.
    """
    folder, device = Path(folder), choose_device() if device is None else torch.device(device)
    pairs = learned_from(pairs, plan)
    side, colours = pairs.images.shape[1], pairs.images.shape[3]
    check_plan(plan, colours=colours, private=privacy is not None)
    fingerprint = _fingerprint(pairs, plan, epochs=epochs, seed=seed, privacy=privacy)
    finished = folder / "generator.json"
    if finished.is_file() and read_json(finished).get("fingerprint") == fingerprint:
        return load_generator(folder, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of(seed).initial_seed())
        network = build(plan, pairs.scheme, side=side, colours=colours)
    if network.whitened is not None:
        network.whitened.fit(signals_of(pairs, plan))
    if network.stain is not None:
        classes = class_numbers(pairs.labels, pairs.scheme)
        network.stain.fit(colour_numbers(pairs.images), classes if plan.conditional else torch.zeros_like(classes))
    network = network.to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    lesson = Lesson(pairs, plan, device)
    steps = max(1, round(len(lesson.order(generator_of(seed))) / plan.batch))
    taught: dict[str, Any] = {"loss": lambda rows, chance: lesson.errors(network, rows, chance).mean()}
    if privacy is not None:
        by_patient = privacy.unit == "patient"
        at_once = min(plan.batch, len(set(pairs.patients.tolist()))) * TILES if by_patient else plan.batch
        steps = max(1, round(len(pairs) / at_once))
        private = _private_by_patient if by_patient else PrivateLesson
        lesson = private(lesson, network, optimiser, privacy, steps=epochs * steps)
        optimiser, taught = lesson.optimiser, {"step": lesson.step}
    Trainer(
        network=network,
        optimiser=optimiser,
        device=device,
        batches=lambda _, chance: lesson.batches(steps, chance),
        steps=steps,
        epochs=epochs,
        **taught,
        rate=lambda step: learning_rate(step, epochs * steps, plan.learning_rate),
        seed=seed,
        ema=plan.ema,
        state_file=folder / "training.safetensors",
        curves_file=folder / "curves.csv",
        fingerprint=fingerprint,
        label=f"{plan.kind} generator",
        setting=f"{WHERE}.learning_rate",
    ).fit()
    record = {
        "fingerprint": fingerprint,
        "plan": dict(plan),
        "scheme": asdict(pairs.scheme),
        "side": side,
        "colours": colours,
        "epochs": epochs,
        "seed": seed,
        "images": {name: int((pairs.labels == name).sum()) for name in pairs.scheme.classes},
        "patients": len(set(pairs.patients.tolist())),
        "privacy": None if privacy is None else lesson.statement(pairs.patients),
    }
    write_json(folder / "members.json", {"ids": pairs.ids.tolist(), "patients": pairs.patients.tolist()})
    _save(network, folder / "generator.safetensors")
    write_json(finished, record)
    return load_generator(folder, device=device)


class Lesson:
    """What each step of training learns from, as bytes until it is needed."""

    def __init__(self, pairs: Pairs, plan: GeneratorPlan, device: torch.device) -> None:
        self.pairs, self.plan, self.device = pairs, plan, device
        self.kept, self.classes = schedule(plan.steps), class_numbers(pairs.labels, pairs.scheme)
        self.told = told_of(pairs, plan)

    def order(self, chance: torch.Generator) -> np.ndarray:
        """Return the rows of one epoch in random order, every class as often as the largest if balanced."""
        classes = self.classes.numpy()
        largest = int(np.bincount(classes).max())
        rows = []
        for name in np.unique(classes):
            own = np.flatnonzero(classes == name)
            turns = math.ceil(largest / len(own)) if self.plan.balance else 1
            drawn = [own[torch.randperm(len(own), generator=chance).numpy()] for _ in range(turns)]
            rows.append(np.concatenate(drawn)[: largest if self.plan.balance else len(own)])
        every = np.concatenate(rows)
        return every[torch.randperm(len(every), generator=chance).numpy()]

    def batches(self, n: int, chance: torch.Generator) -> Iterator[np.ndarray]:
        """Yield the rows of each of ``n`` batches of nearly the same size."""
        yield from np.array_split(self.order(chance), n)

    def errors(self, network: torch.nn.Module, rows: np.ndarray, chance: torch.Generator) -> torch.Tensor:
        """Return the mean squared error of each row, (B,)."""
        clean = signals_of(self.pairs.subset(rows), self.plan)
        if self.plan.augment:
            clean = flip_and_turn(clean, chance)
        told = {name: values[rows].to(self.device) for name, values in self.told.items()}
        if self.plan.mask_given:
            drawn = torch.from_numpy(self.pairs.scheme.decode(clean[:, -1].numpy()).astype(np.int64))
            shown = torch.rand(len(rows), 1, 1, generator=chance) < self.plan.mask_given
            told["masks"] = torch.where(shown, drawn, -1).to(self.device)
        whitened = self.plan.signal == "whitened"
        if whitened:
            with torch.no_grad():
                clean = network.encode(clean.to(self.device)).cpu()
        kept = draw_decisive(len(rows), chance) if whitened else draw_kept(len(rows), self.kept, chance)
        noise = torch.randn(clean.shape, generator=chance)
        hidden = torch.rand(len(rows), generator=chance) < self.plan.guidance_dropout
        classes = self.classes[rows].masked_fill(hidden, len(self.pairs.scheme.classes)).to(self.device)
        clean, noise, kept = clean.to(self.device), noise.to(self.device), kept.to(self.device)
        with precision(self.device):
            said = network(noised(clean, kept, noise), kept, classes, **told)
        wanted = target(self.plan.objective, clean, kept, noise)
        return (said.float() - wanted).square().mean(dim=(1, 2, 3))


def load_generator(folder: Path, *, device: str | torch.device | None = None) -> Generator:
    """Return the generator of a folder; one that is missing or unreadable is an `InputError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder, device = Path(folder), choose_device() if device is None else torch.device(device)
    record = read_json(folder / "generator.json")
    weights = folder / "generator.safetensors"
    try:
        plan, scheme = GeneratorPlan(**record["plan"]), Scheme.of(record["scheme"])
        network = build(plan, scheme, side=record["side"], colours=record["colours"])
        network.load_state_dict(load_file(weights))
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError("does not describe a generator", file=folder / "generator.json", value=str(error)) from error
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(
            "does not hold the weights that generator.json describes", file=weights, fix="train the generator again"
        ) from error
    return Generator(network.to(device).eval(), plan, scheme, record["side"], record["colours"], record, device)


def _save(network: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}, temporary)


def _fingerprint(pairs: Pairs, plan: GeneratorPlan, **others: Any) -> str:
    """Return a hash of all that the trained generator depends on."""
    digest = hashlib.sha256()
    fields = type(plan).model_fields  # options that came later are left out where they are not used: see LATER
    said = {name: value for name, value in plan if name not in LATER or value != fields[name].default}
    settings = {"plan": said, "scheme": asdict(pairs.scheme)}
    settings |= {name: value if isinstance(value, int) else value and asdict(value) for name, value in others.items()}
    if settings.get("privacy") and settings["privacy"]["unit"] == "tile":
        del settings["privacy"]["unit"]  # what was trained before there were units stays
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update("\n".join([*pairs.ids.tolist(), *pairs.labels.tolist(), *pairs.patients.tolist()]).encode())
    digest.update(np.ascontiguousarray(pairs.images).tobytes())
    digest.update(np.ascontiguousarray(pairs.masks).tobytes())
    return digest.hexdigest()


# Differentially private training of a generator: DP-SGD by opacus, and what its (epsilon, delta) says.
#
# Abadi et al., "Deep Learning with Differential Privacy", CCS 2016. In every step each tile is drawn by a coin of its
# own (Poisson), its gradient is clipped to a norm, and noise is added to the sum. The accountant is that of Renyi's
# divergence (Mironov 2017; Mironov, Talwar and Zhang 2019).
#
# **The unit is one tile**: the statement bounds what the presence of one tile, with its mask and label, can change. A
# patient has many, and neighbouring tiles share pixels, so that the statement for a patient is that of a group, and
# weaker; `PrivateLesson.statement` gives both. With ``unit="patient"`` patients are drawn and clipped instead:
# `training.private.PatientSteps`.
#
# Coins and noise come from the operating system and are kept nowhere: who knows them can subtract them. A private
# training therefore does not repeat. The generator behind the noise is torch's, not a cryptographic one.


@dataclass(frozen=True)
class Privacy:
    """What is promised, for one tile or for one patient with all tiles."""

    epsilon: float
    delta: float = 1e-5
    clip: float = 1.0
    """Norm that a unit's gradient is clipped to."""
    unit: Unit = "tile"

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


def _private_by_patient(
    lesson: Lesson, network: torch.nn.Module, optimiser: torch.optim.Optimizer, privacy: Privacy, *, steps: int
) -> PatientSteps:
    """Return training steps in which a patient counts as a `PrivateLesson` counts a tile."""
    return PatientSteps(
        network,
        optimiser,
        lambda rows, chance: lesson.errors(network, rows, chance).mean(),
        lesson.pairs.patients,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        clip=privacy.clip,
        batch=lesson.plan.batch,
        steps=steps,
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
        n = len(lesson.pairs)
        self.lesson, self.privacy, self.steps = lesson, privacy, steps
        self.rate = min(1.0, lesson.plan.batch / n)
        promised = {"epsilon": privacy.epsilon, "delta": privacy.delta, "clip": privacy.clip}
        self.optimiser = private_optimiser(
            optimiser, **promised, rate=self.rate, units=n, unit="tile", steps=steps, device=lesson.device
        )
        self.noise = self.optimiser.noise_multiplier
        from opacus import GradSampleModule

        self.module = GradSampleModule(network, loss_reduction="sum")
        self._coins = secret("cpu")

    def batches(self, n: int, chance: torch.Generator) -> Iterator[np.ndarray]:
        """Yield the rows of each of ``n`` batches: every tile by its own coin, so that sizes differ. No balancing."""
        for _ in range(n):
            yield torch.nonzero(torch.rand(len(self.lesson.pairs), generator=self._coins) < self.rate)[:, 0].numpy()

    def step(self, rows: np.ndarray, chance: torch.Generator) -> float:
        """Take one step and return the mean loss; an empty batch is noise alone.

        ``chance`` is not drawn from, for its seed is known: one tile more would shift the draws of all that follow it,
        and with them gradients that it must not touch.
        """
        torch.manual_seed(secret_number())  # of dropout; the trainer puts the state back after the epoch
        total, weight = 0.0, 1.0
        if not len(rows):  # the noise is added all the same: that nobody was drawn must not show
            rows, weight = np.zeros(1, dtype=np.int64), 0.0
        parts = np.array_split(rows, math.ceil(len(rows) / AT_ONCE))
        for number, part in enumerate(parts):
            errors = self.lesson.errors(self.module, part, self._coins).sum() * weight
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
            "not_covered": NOT_COVERED,
        }
