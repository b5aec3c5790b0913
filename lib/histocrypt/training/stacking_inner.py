"""Predictions for a fold's own training sections, by models that saw neither them nor the fold's test patients.

A stack learns how far to trust each model family, and it may learn that only where a family had to guess. So each fold
(the outer one) is split once more: its training patients are dealt into a few parts, and every family is trained once
without each part, which it then predicts. An inner fold's target statistics and stain reference come from its own
training patients. From the outer fold it has the panel, so that all inner models predict the same names, and the
number of epochs of networks, which the outer fold's validation patient chose. None of that ever saw a test patient.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import read_json
from histocrypt.errors import InputError, unknown_name
from histocrypt.models.registry import BASELINES, MODELS
from histocrypt.targets.panels import Panel
from histocrypt.training.fold_data import load_training
from histocrypt.training.folds import FINAL, Fold, load_fold
from histocrypt.training.lineage import trained_about
from histocrypt.training.predictors import tile_side
from histocrypt.training.prepare import PANEL, prepare_fold
from histocrypt.training.run import TrainResult, train_one

if TYPE_CHECKING:
    from histocrypt.study import Study


@dataclass(frozen=True)
class InnerFolds:
    """How a fold's training sections are split once more."""

    outer: Fold
    folds: tuple[Fold, ...]
    """Without validation sections; their test sections are, together, the training sections of the outer fold."""
    by: str
    """``patient``, or ``section`` where one training patient is left (or the study holds out sections)."""

    @property
    def sentence(self) -> str:
        """What a reader has to know about the nesting."""
        parts = f"{len(self.folds)} parts"
        if self.by == "patient":
            return f"The training patients were dealt into {parts}; each family was trained once without each part."
        return (
            f"The training sections were dealt into {parts}, since they cannot be told apart by patient: the models "
            "that predicted a section for the stack had seen other sections of its patient, so the stack learnt from "
            "predictions that are better than those for a new patient."
        )


def inner_folds(study: Study, fold: str) -> InnerFolds:
    """Return the inner folds of a fold; the same for every call, whatever was trained.

    Raises
    ------
    InputError
        If the study does not stack, or the fold is unknown or ``final``.
    """
    from sklearn.model_selection import GroupKFold

    if study.stacking is None:
        raise InputError("this study stacks nothing", field="stacking", fix="add `stacking: {}` to the study file")
    if fold == FINAL:
        msg = "the fold final has no stack: nothing is held out from its models"
        raise InputError(msg, field="fold", value=fold, fix="choose a fold that holds patients out")
    outer = load_fold(study.run.folds, fold)
    sections = np.array(outer.training_sections)
    patients = read_json(study.run.folds)["patients"]
    groups = np.array([patients[section] for section in sections])
    by = "patient"
    if len(set(groups)) == 1 or study.folds.scheme == "leave_one_section_out":
        groups, by = sections, "section"
    splitter = GroupKFold(n_splits=min(study.stacking.inner_folds, len(set(groups))))
    held_out = sorted(tuple(sections[test]) for _, test in splitter.split(sections, groups=groups))
    folds = [
        Fold(
            name=study.run.inner(outer.name, number),
            test_patients=tuple(sorted({patients[section] for section in test})) if by == "patient" else (),
            train_sections=tuple(section for section in sections.tolist() if section not in test),
            validation_sections=(),
            test_sections=tuple(map(str, test)),
        )
        for number, test in enumerate(held_out, start=1)
    ]
    return InnerFolds(outer, tuple(folds), by)


def train_inner(study: Study, model: str, fold: str, *, device: str | None = None) -> list[TrainResult]:
    """Train a model on a fold's inner folds and write ``predictions/<model>/<fold>/inner_<n>.test.h5ad``.

    Networks train for as many epochs as the outer fold chose, without validation. The models themselves are not kept,
    but for what ``model.json`` says of them, and for teachers, whose inner students need them. A call that was killed
    goes on, when repeated, after the last finished epoch.

    Parameters
    ----------
    study
        The study; ``fold`` is trained, and so are the inner folds of the model's teacher.
    model
        A model that takes part in the stack, or ``baselines`` for all baselines that do.
    fold
        Name of an outer fold.
    device
        Torch device of networks; the best one if not given.

    Returns
    -------
    list of TrainResult
        One per model and inner fold.

    Raises
    ------
    InputError
        If the fold is unknown or ``final``, the model takes no part, or the outer fold (or a teacher) is not trained.
    """
    from tqdm.auto import tqdm

    inner = inner_folds(study, fold)
    names = [name for name in study.inner_models if name == model or (model == "baselines" and name in BASELINES)]
    if not names:
        raise unknown_name("model of the stack", model, [*study.inner_models, "baselines"])
    chosen = {name: _epochs(study, name, inner.outer) for name in names}
    prepare_inner(study, inner)
    results = []
    for part in tqdm(inner.folds, desc=f"{model} without each part of {fold}", unit="part"):
        loaded: dict[int | None, Any] = {}
        for name in names:
            side = tile_side(name, study.training_of(name))
            if side not in loaded:
                loaded = {side: load_training(study, part, side=side)}
            data = loaded[side]
            results.append(train_one(study, name, data, chosen=chosen[name], device=device, keep_state=True))
    teachers = {study.teacher_of(name) for name in study.model_names}
    for result in results:
        shutil.rmtree(result.folder / "last", ignore_errors=True)
        if result.model not in teachers:
            (result.folder / "weights.safetensors").unlink()
    return results


def prepare_inner(study: Study, inner: InnerFolds) -> None:
    """Write ``folds/<fold>/inner_<n>/`` from the inner training patients' files; the panel is the outer fold's.

    Calls that run at the same time write the same bytes.
    """
    panel = Panel.load(study.run.fold(inner.outer.name) / PANEL)
    for part in inner.folds:
        prepare_fold(study, part, panel=panel)


def _epochs(study: Study, model: str, outer: Fold) -> dict[str, Any] | None:
    """Return what the outer fold chose for a network; what is fitted in closed form chooses for itself."""
    if MODELS[model].kind != "network":
        return None
    why = f"an inner training of {model} takes over its fold's number of epochs"
    return trained_about(study, model, outer, why=why)["chosen"]
