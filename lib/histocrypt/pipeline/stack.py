"""Stacks the model families of one fold: a small network learnt from out-of-fold predictions, and a rank average.

Level 1: for each training section of the fold, every family's prediction by a model that saw neither that section nor a
test patient (`stack_inputs`). Level 2: `StackingMLP`, from all families' predictions to what was measured. It is
stopped on the fold's validation sections, like any network, and then fitted again on all training sections for as many
epochs. For the test sections its inputs are the families' ordinary predictions of the fold.

Inputs and targets are in the loss's units: z-scores by the fold's target statistics and, where the study learns
differences within a section, without the section's own mean. For inputs that is the mean of a prediction, so it is
known for an unseen section, too, and a family that is flat within a section (the mean profile) says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from histocrypt.data.fold_statistics import PANEL, read_clean_section, section_targets
from histocrypt.data.load import Spots, scaling_of
from histocrypt.errors import InputError
from histocrypt.files import write_json
from histocrypt.models.stacking_mlp import StackingMLP
from histocrypt.pipeline.checkpoints import save_model
from histocrypt.pipeline.predictions import write_predictions
from histocrypt.pipeline.stack_inputs import InnerFolds, LevelOne, inner_folds, level_one_of_test, level_one_of_training
from histocrypt.pipeline.train import said_of
from histocrypt.predictors.registry import NEEDS_COUNTS, STACKS
from histocrypt.targets.panels import Panel
from histocrypt.training.loop import Trainer, generator_of, mean_section_pearson

if TYPE_CHECKING:
    from histocrypt.options import Stacking
    from histocrypt.study import Study
    from histocrypt.targets.transforms import TargetStatistics

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
    """Train the network that stacks: Adam on the squared error, the rate halved where the validation loss stands still.

    The network is small and its input a table, so a fit takes seconds and is not resumed. The same seed gives the same
    bits. What was chosen with a validation part (epochs, and the rate of each) can be repeated without one.

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
    n, k = train.targets.shape
    if n < 2:
        raise InputError("a stack cannot be learnt from fewer than two spots", value=n)
    if (validation is None) == (rates is None):
        raise ValueError("give either a validation part or the rates that an earlier fit chose")
    x = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in train.families.items()}
    y = torch.from_numpy(np.ascontiguousarray(train.targets))
    n_batches = max(1, round(n / settings.batch_size))

    def loss(rows: torch.Tensor, _: None) -> torch.Tensor:
        return nn.functional.mse_loss(network({name: one[rows] for name, one in x.items()}), y[rows])

    def judge(network: StackingMLP) -> tuple[float, dict[str, float]]:
        predicted = _predict(network, validation)
        error = float(np.mean((predicted - validation.targets) ** 2, dtype=np.float64))
        score = mean_section_pearson(predicted, validation.targets, validation.sections)
        halve.step(error)
        return score, {"validation_loss": error, "validation_pcc": score}

    with torch.random.fork_rng(devices=[]):  # one stream for weights and all dropout
        torch.manual_seed(generator_of(seed, 0).initial_seed())
        network = StackingMLP(k, tuple(train.families))
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        halve = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimiser, factor=0.5, patience=HALVED_AFTER, min_lr=LEAST_RATE
        )
        progress = Trainer(
            network=network,
            optimiser=optimiser,
            device=torch.device("cpu"),
            batches=lambda epoch, _: torch.randperm(n, generator=generator_of(seed, epoch)).tensor_split(n_batches),
            steps=n_batches,
            epochs=len(rates) if rates else settings.epochs,
            loss=loss,
            size=len,
            rate=None if rates is None else lambda step: rates[step // n_batches],
            judge=None if validation is None else judge,
            patience=None if validation is None else settings.patience,
            label=label,
            setting="stacking.learning_rate",
        ).fit()
    chosen = progress.best_epoch
    return Stack(network, chosen, [row["learning_rate"] for row in progress.curves[:chosen]], progress.curves)


def _predict(network: StackingMLP, table: Table) -> np.ndarray:
    network.eval()
    with torch.inference_mode():
        given = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in table.families.items()}
        return network(given).numpy()


WITHIN_SPOT = ("rank", "spot_rank")
"""Transforms whose values are ranks over the panel within a spot."""


def rank_average(level: LevelOne) -> np.ndarray:
    """Return (n, n_outputs) float32: the mean of the families' ranks in the transforms' units, section by section.

    Across a section's spots, each family ranks the spots for each gene; ranks are averaged over families, and the spot
    of the k-th smallest average gets the mean of the families' k-th smallest predictions (the reference distribution of
    quantile normalisation, Bolstad et al. 2003). So the order of spots is the ranks' own, and the values are in units
    that errors can be computed in. Transforms that are ranks within a spot are averaged as they are: within the spot,
    as ranks. Nothing is learnt.

    Parameters
    ----------
    level
        The families' predictions, in whole sections: a section's spots are ranked among themselves.
    """
    families = [level.families[name].astype(np.float64) for name in sorted(level.families)]
    within = np.array([output.split(":", 1)[0] in WITHIN_SPOT for output in level.outputs])
    averaged = np.empty((len(level), len(level.outputs)))
    for transform in dict.fromkeys(output.split(":", 1)[0] for output in level.outputs):
        columns = np.array([output.split(":", 1)[0] == transform for output in level.outputs])
        if within[columns].any():
            averaged[:, columns] = within_spots([family[:, columns] for family in families])
            continue
        for section in np.unique(level.sections):
            block = np.ix_(level.sections == section, columns)
            averaged[block] = across_spots([family[block] for family in families])
    return averaged.astype(np.float32)


def across_spots(families: list[np.ndarray]) -> np.ndarray:
    """Return the rank average of several (n, g) predictions for one section, ranked over spots, in their own units."""
    from scipy.stats import rankdata

    # Ranks are multiples of one half, so their sum is exact: ties stay ties, whatever the order of the families.
    ranks = rankdata(sum(rankdata(family, axis=0) for family in families), axis=0)
    quantiles = np.mean([np.sort(family, axis=0) for family in families], axis=0)
    places = np.arange(1, len(ranks) + 1)
    return np.column_stack([np.interp(ranks[:, j], places, quantiles[:, j]) for j in range(ranks.shape[1])])


def within_spots(families: list[np.ndarray]) -> np.ndarray:
    """Return the mean rank over families of several (n, g) predictions, ranked over the panel within each spot."""
    from scipy.stats import rankdata

    return np.mean([rankdata(family, axis=1) for family in families], axis=0)


STACKED, RANKED = STACKS


@dataclass(frozen=True)
class StackResult:
    """What came of stacking one fold."""

    fold: str
    inner: InnerFolds
    families: tuple[str, ...]
    epochs: int
    validation_pcc: dict[str, float]
    """Mean Pearson's r within the validation sections by family and stack, all from out-of-fold predictions."""
    reliance: dict[str, float]
    """How much of that the stack loses where a family is silenced."""
    predictions: tuple[Path, ...]
    curves: list[dict[str, Any]]


def stack_fold(study: Study, fold: str) -> StackResult:
    """Stack one fold; write ``models/stacking_mlp/<fold>/``, both stacks' predictions, and ``stacking/<fold>.json``.

    Parameters
    ----------
    study
        A study with ``stacking``, its families trained on the fold and on its inner folds.
    fold
        Name of a fold that holds patients out.

    Raises
    ------
    InputError
        If the study does not stack, the fold is unknown or ``final``, or a family's prediction is missing, lacks a
        spot or a name, is of other settings, or comes from a model that learnt from what it predicts.
    """
    inner = inner_folds(study, fold)
    outer, run = inner.outer, study.run
    panel = Panel.load(run.fold(fold) / PANEL)
    scaling = scaling_of(study, outer)
    level = level_one_of_training(study, inner, panel)
    measured = _measured(study, level, panel)
    learnable = table_of(study, scaling, level, measured)
    judged = np.isin(level.sections, outer.validation_sections)
    how = {"settings": study.stacking, "seed": study.seed}
    train, validation = learnable.rows(~judged), learnable.rows(judged)
    first = fit_stack(train, validation, **how, label=f"stack {fold}")
    final = fit_stack(learnable, **how, rates=first.rates, label=f"stack {fold} refit")

    kept = level.of(outer.validation_sections)
    guesses = {**kept.families, STACKED: scaling.restore(first.predict(validation)), RANKED: rank_average(kept)}
    scores = {name: mean_section_pearson(one, measured[judged], kept.sections) for name, one in guesses.items()}
    test = level_one_of_test(study, inner, panel)
    stacked = scaling.restore(final.predict(table_of(study, scaling, test)))
    written = []
    for part, spots, by_stack in (
        ("validation", kept, {name: guesses[name] for name in STACKS}),
        ("test", test, {STACKED: stacked, RANKED: rank_average(test)}),
    ):
        written += [_write(study, name, fold, part, spots, one, panel) for name, one in by_stack.items()]
    reliance = _reliance(first, validation)
    said = {
        "fold": fold,
        "families": list(level.families),
        "left_out": {
            name: "needs the measured counts of what it predicts"
            if name == NEEDS_COUNTS
            else "is not named by the study"
            for name in study.model_names
            if name not in level.families
        },
        "by": inner.by,
        "nesting": inner.sentence,
        "inner_folds": [{"train": one.train_sections, "predicted": one.test_sections} for one in inner.folds],
        "chosen": {"epochs": first.epochs},
        "validation_sections": outer.validation_sections,
        "validation_pcc": scores,
        "reliance": reliance,
    }
    _save(study, outer.name, final, scaling, said, panel)
    write_json(run.stacking(fold), said)
    return StackResult(fold, inner, tuple(level.families), first.epochs, scores, reliance, tuple(written), first.curves)


def table_of(study: Study, scaling: TargetStatistics, level: LevelOne, measured: np.ndarray | None = None) -> Table:
    """Return the families' predictions, and what was measured where it is given, in the loss's units."""
    if level.outputs != scaling.outputs:
        raise InputError(
            "target statistics are of other outputs than the families predict",
            field="target_stats.json",
            fix="run preprocessing again",
        )
    sections = level.sections if study.target.centre_by_section else None
    families = {name: scaling.standardise(one, sections=sections) for name, one in level.families.items()}
    targets = None if measured is None else scaling.standardise(measured, sections=sections)
    return Table(families, level.sections, targets)


def _measured(study: Study, level: LevelOne, panel: Panel) -> np.ndarray:
    """Return (n, n_outputs) what was measured at the spots of training sections."""
    parts = []
    for section in dict.fromkeys(level.sections.tolist()):
        adata = read_clean_section(study.run.section(section))
        parts.append(section_targets(adata, panel, study.target.transforms, section=section))
    return np.concatenate(parts)


def _reliance(stack: Stack, validation: Table) -> dict[str, float]:
    """Return the loss of mean correlation where each family in turn is set to say nothing."""

    def score(families: dict[str, np.ndarray]) -> float:
        table = Table(families, validation.sections)
        return mean_section_pearson(stack.predict(table), validation.targets, validation.sections)

    every = validation.families
    whole = score(every)
    return {name: whole - score({**every, name: np.zeros_like(every[name])}) for name in every}


def _write(study: Study, name: str, fold: str, part: str, level: LevelOne, predicted: np.ndarray, panel: Panel) -> Path:
    path, no_depth = study.run.prediction(name, fold, part), np.full(len(level), np.nan)
    write_predictions(
        path,
        predicted,
        spots=Spots(level.names, level.sections, level.patients, no_depth, level.outputs),
        coords=level.coords,
        panel=panel,
        transforms=list(study.target.transforms),
        about={**said_of(study, name, fold, part), "families": np.array(list(level.families), dtype=str)},
    )
    return path


def _save(study: Study, fold: str, stack: Stack, scaling: TargetStatistics, said: dict[str, Any], panel: Panel) -> None:
    about = {
        "model": STACKED,
        "title": STACKS[STACKED].title,
        "kind": "stack",
        **said,
        "outputs": list(scaling.outputs),
        "panel": panel.to_dict(),
        "target_statistics": scaling.to_dict(),
        "stacking": study.stacking.model_dump(mode="json"),
        "seed": study.seed,
        "study": {"name": study.name, "title": study.title, "hash": study.hash()},
    }
    state = {key: value.numpy() for key, value in stack.network.state_dict().items()}
    folder = study.run.model(STACKED, fold)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, about, state)
