"""What a trained model was made from, as a hash: the study's parts, its own settings, the fold's files, its teacher."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError
from histocrypt.training.artifacts import read_about
from histocrypt.training.prepare import PANEL, STAIN, TARGETS

if TYPE_CHECKING:
    from histocrypt.study import Study
    from histocrypt.training.folds import Fold

LEARNED_FROM = ("seed", "sections", "demo", "preprocessing", "panel", "target", "folds")
"""Parts of a study that every trained model depends on."""


def made_from(study: Study, model: str, fold: Fold) -> str:
    """Hash what a model depends on: parts of the study, its own settings, the fold's files, its teacher's weights.

    Raises
    ------
    InputError
        If it has a teacher that is not trained on this fold, or was trained under other settings.
    """
    digest = hashlib.sha256(study.hash(*LEARNED_FROM).encode())
    facts = [model, study.training_of(model).model_dump(), study.options_of(model), vars(fold)]
    digest.update(json.dumps(facts, sort_keys=True, default=list).encode())
    for name in (PANEL, TARGETS, STAIN):
        digest.update((study.run.fold(fold.name) / name).read_bytes())
    teacher = study.teacher_of(model)
    if teacher is not None:
        digest.update(teacher_of(study, teacher, fold)["weights_sha256"].encode())
    return digest.hexdigest()[:16]


def teacher_of(study: Study, teacher: str, fold: Fold) -> dict[str, Any]:
    """Return the fold's own model of a teacher: ``model``, ``fold``, ``weights_sha256``.

    Raises
    ------
    InputError
        If it is not trained, or was trained under other settings.
    """
    folder = study.run.model(teacher, fold.name)
    fix = f"train {teacher} on fold {fold.name} first"
    if not (folder / "model.json").is_file():
        msg = "the teacher is not trained"
        raise InputError(msg, file=folder, field="teacher", value=teacher, fix=fix)
    about = read_about(folder)
    if about.get("made_from") != made_from(study, teacher, fold):
        msg = "the teacher was trained under other settings"
        raise InputError(msg, file=folder, field="teacher", value=teacher, fix=fix)
    return {"model": teacher, "fold": fold.name, "weights_sha256": about["weights"]["sha256"]}


def trained_about(study: Study, model: str, fold: Fold, *, why: str) -> dict[str, Any]:
    """Return what ``model.json`` says of a fold's model, made under the present settings.

    Raises
    ------
    InputError
        If it is not trained (``why`` says what it is needed for), or was trained under other settings.
    """
    folder = study.run.model(model, fold.name)
    fix = f"train {model} on fold {fold.name} first"
    if not (folder / "model.json").is_file():
        msg = f"{why}, and {fold.name} is not trained"
        raise InputError(msg, file=folder, fix=fix)
    about = read_about(folder)
    if about.get("made_from") != made_from(study, model, fold):
        msg = f"{model} on fold {fold.name} was trained under other settings"
        raise InputError(msg, file=folder, fix=fix)
    return about
