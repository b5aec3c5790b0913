"""What no single value of a study can tell: whether its models, their teachers and its stack go together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histocrypt.errors import InputError, unknown_name
from histocrypt.models.registry import MODELS, NEEDS_COUNTS

if TYPE_CHECKING:
    from histocrypt.study import Study


def check_teachers(study: Study, file: str | Path) -> None:
    """Refuse a teacher that the study does not train, a model that has nothing to learn with, and circles."""
    if study.training.teacher is not None:
        msg = "a teacher is one model's, since no model can teach itself"
        raise InputError(msg, file=file, field="training.teacher", fix="move it to the model under `models`")
    for name in study.models:
        teacher, seen = study.teacher_of(name), [name]
        where = {"file": file, "field": f"models.{name}.teacher"}
        if teacher is not None and MODELS[name].kind != "network":
            msg = "is fitted in closed form and takes no teacher"
            raise InputError(msg, **where, value=teacher, fix="remove it")
        while teacher is not None:
            if teacher not in study.model_names:
                raise unknown_name("teacher", teacher, study.model_names, **where)
            if teacher in seen:
                raise InputError("a model is, by way of its teachers, its own teacher", **where, value=teacher)
            seen.append(teacher)
            teacher = study.teacher_of(teacher)


def check_stacking(study: Study, file: str | Path) -> None:
    """Refuse families that the study does not train, that need measured counts, or that are too few."""
    if study.stacking is None:
        return
    where = {"file": file, "field": "stacking.families"}
    named = [] if study.stacking.families == "all" else study.stacking.families
    for name in named:
        if name == NEEDS_COUNTS:
            msg = f"{name} needs the measured counts of the spots that it predicts, and cannot take part in a stack"
            raise InputError(msg, **where, fix="remove it")
        if name not in study.model_names:
            raise unknown_name("model", name, study.model_names, **where)
        if named.count(name) > 1:
            raise InputError("a model takes part once", **where, value=name)
    if len(study.families) < 2:
        raise InputError("a stack needs two models", **where, value=named, expected="two names or more, or all")


def check_synthesis(study: Study, file: str | Path) -> None:
    """Refuse a label that does not say where it is found, and generators that cannot be built."""
    from histocrypt.synthesis.generator_plan import GeneratorPlan
    from histocrypt.targets.labels import Label

    part = study.synthesis
    if part is None:
        return
    Label(part.label, tuple(part.label_is), part.label_above, field=f"{file}: synthesis.label")
    try:
        plan = GeneratorPlan.of(part.generator)
    except InputError as error:
        raise error.of_file(file) from error
    if part.side % plan.least_side:
        msg = f"tiles do not halve {len(plan.multipliers) - 1} times in patches of {plan.patch}"
        raise InputError(
            msg, file=file, field="synthesis.side", value=part.side, expected=f"a multiple of {plan.least_side}"
        )


def check_audit(study: Study, file: str | Path) -> None:
    """Refuse models that the study does not train, and shadows of what is not attacked."""
    part = study.audit
    if part is None:
        return
    attacked = study.model_names if part.models == "all" else part.models
    for field, names, known in (
        ("audit.models", attacked, study.model_names),
        ("audit.shadowed", part.shadowed, attacked),
    ):
        for name in names:
            if name not in known:
                raise unknown_name("model", name, known, file=file, field=field)
