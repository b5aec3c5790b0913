"""Distillation: a network learns from another model of its own fold as well as from what was measured.

What was measured of a tile is noisy; a teacher's prediction is a smooth version of it (Hinton et al. 2015). With a
squared error, learning from both at once is learning from their weighted mean, so the loop need not know.

The teacher of a fold was trained on that fold's training patients, like the student; the test patient stays unseen by
both. Validation spots keep their measured targets, which decide when to stop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.load import load_spots
from histocrypt.data.spots import Spots
from histocrypt.errors import InputError
from histocrypt.pipeline.checkpoints import load_model, teacher_of
from histocrypt.predictors.registry import MODELS, model_class, tile_side

if TYPE_CHECKING:
    from torch import nn

    from histocrypt.data.folds import Fold
    from histocrypt.study import Study
    from histocrypt.targets.panels import Panel


def taught(
    study: Study, teacher: str, share: float, spots: Spots, *, fold: Fold, panel: Panel, device: str | None = None
) -> Spots:
    """Return training spots whose targets are mixed with a teacher's predictions.

    Parameters
    ----------
    study
        The study; the fold's model of ``teacher`` is read from its run folder.
    teacher
        Name of a model of the study.
    share
        Of the teacher's predictions in the targets, 0 to 1.
    spots
        Whole sections of the fold's training patients, with targets as the loss sees them.
    fold, panel
        The fold and its panel.
    device
        Torch device of the teacher, where it is a network.

    Raises
    ------
    InputError
        If the teacher is not trained on this fold, was trained under other settings, or predicts other outputs.
    """
    teacher_of(study, teacher, fold)
    model = load_model(study.run.model(teacher, fold.name), device=device)
    side = tile_side(teacher, study.training_of(teacher))
    sections = list(dict.fromkeys(spots.sections.tolist()))
    if set(sections) - set(fold.training_sections):
        raise InputError(
            "a teacher teaches on training sections only",
            field="sections",
            value=sorted(set(sections) - set(fold.training_sections)),
        )
    seen = load_spots(study, fold, sections, panel=panel, with_targets=False, side=side)
    if model.scaling.outputs != spots.outputs or not np.array_equal(seen.names, spots.names):
        raise InputError(
            "the teacher predicts other outputs or spots than those to be learnt",
            file=model.folder,
            fix=f"train {teacher} again",
        )
    soft = views(model.predictor, seen) if MODELS[teacher].kind == "network" else model.predictor.predict(seen)
    if study.target.centre_by_section:  # as the measured targets are
        for section in sections:
            own = seen.sections == section
            soft[own] -= soft[own].mean(axis=0)
    mixed = (1 - share) * spots.targets + share * soft
    return replace(spots, targets=mixed.astype(np.float32))


def start_of(study: Study, model: str, fold: Fold) -> nn.Module:
    """Return the network whose weights a model starts from while its ReLUs give way to squares: its teacher's.

    Raises
    ------
    InputError
        If the model has no teacher, or cannot take over weights.
    """
    teacher = study.teacher_of(model)
    if teacher is None or MODELS[teacher].kind != "network" or not hasattr(model_class(model), "take_over"):
        msg = "ReLUs can give way to squares where a network starts from a trained one of the same form"
        expected = "fhe_resnet18 with the teacher resnet18"
        raise InputError(msg, field=f"models.{model}.replace_over", value=teacher, expected=expected)
    teacher_of(study, teacher, fold)
    return load_model(study.run.model(teacher, fold.name), device="cpu").predictor.network


def views(predictor: object, spots: Spots) -> np.ndarray:
    """Return a network's predictions averaged over the eight symmetries of each tile, (n, k) float32."""
    total = 0
    for view in spots.symmetries():
        total = total + predictor.predict(view) / 8
    return total
