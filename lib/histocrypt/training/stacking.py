"""Stacks the model families of one fold: a small network learnt from out-of-fold predictions, and a rank average.

Level 1: for each training section of the fold, every family's prediction by a model that saw neither that section nor a
test patient (`stacking_inner`). Level 2: `StackingMLP`, from all families' predictions to what was measured. It is
stopped on the fold's validation sections, like any network, and then fitted again on all training sections for as many
epochs. For the test sections its inputs are the families' ordinary predictions of the fold.

Inputs and targets are in the loss's units: z-scores by the fold's target statistics and, where the study learns
differences within a section, without the section's own mean. For inputs that is the mean of a prediction, so it is
known for an unseen section, too, and a family that is flat within a section (the mean profile) says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import write_json
from histocrypt.errors import InputError
from histocrypt.models.registry import NEEDS_COUNTS, STACKS
from histocrypt.models.spots import Spots
from histocrypt.targets.panels import Panel
from histocrypt.training.artifacts import save_model
from histocrypt.training.fold_data import scaling_of
from histocrypt.training.predictions import write_predictions
from histocrypt.training.prepare import PANEL, read_clean_section, section_targets
from histocrypt.training.stacking_inner import InnerFolds, inner_folds
from histocrypt.training.stacking_inputs import LevelOne, level_one_of_test, level_one_of_training
from histocrypt.training.stacking_ranks import rank_average

if TYPE_CHECKING:
    from histocrypt.study import Study
    from histocrypt.targets.transforms import TargetStatistics
    from histocrypt.training.stacking_fit import Stack, Table

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
    from histocrypt.training.loop import mean_section_pearson
    from histocrypt.training.stacking_fit import fit_stack

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
    from histocrypt.training.stacking_fit import Table

    if level.outputs != scaling.outputs:
        msg = "target statistics are of other outputs than the families predict"
        raise InputError(msg, field="target_stats.json", fix="run preprocessing again")
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
    from histocrypt.training.loop import mean_section_pearson
    from histocrypt.training.stacking_fit import Table

    def score(families: dict[str, np.ndarray]) -> float:
        table = Table(families, validation.sections)
        return mean_section_pearson(stack.predict(table), validation.targets, validation.sections)

    every = validation.families
    whole = score(every)
    return {name: whole - score({**every, name: np.zeros_like(every[name])}) for name in every}


def _write(study: Study, name: str, fold: str, part: str, level: LevelOne, predicted: np.ndarray, panel: Panel) -> Path:
    path = study.run.prediction(name, fold, part)
    n = len(level)
    spots = Spots(  # a stack sees neither tiles nor depth
        level.names, level.sections, level.patients, np.empty((n, 0, 0, 3), np.uint8), np.full(n, np.nan), level.outputs
    )
    about = {
        "model": name, "title": STACKS[name].title, "fold": fold, "part": part, "study": study.name,
        "study_hash": study.hash(), "seed": study.seed, "families": np.array(list(level.families), dtype=str),
    }  # fmt: skip
    write_predictions(
        path, predicted, spots=spots, coords=level.coords, panel=panel,
        transforms=list(study.target.transforms), about=about,
    )  # fmt: skip
    return path


def _save(study: Study, fold: str, stack: Stack, scaling: TargetStatistics, said: dict[str, Any], panel: Panel) -> None:
    about = {
        "model": STACKED, "title": STACKS[STACKED].title, "kind": "stack", **said,
        "outputs": list(scaling.outputs), "panel": panel.to_dict(), "target_statistics": scaling.to_dict(),
        "stacking": study.stacking.model_dump(mode="json"), "seed": study.seed,
        "study": {"name": study.name, "title": study.title, "hash": study.hash()},
    }  # fmt: skip
    state = {key: value.numpy() for key, value in stack.network.state_dict().items()}
    folder = study.run.model(STACKED, fold)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, about, state)
