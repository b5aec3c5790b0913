"""What the report says of a stack: beside each family that it is made of, with a paired interval of the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histocrypt.atomic import read_json
from histocrypt.errors import InputError
from histocrypt.evaluation import words
from histocrypt.evaluation.scores import title_of
from histocrypt.models.registry import STACKS

if TYPE_CHECKING:
    from histocrypt.evaluation.scores import Scores
    from histocrypt.study import Study


def stacked(study: Study, scores: Scores, folds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what the report's section on stacking shows; None for a study without a stack.

    Parameters
    ----------
    study
        The study.
    scores
        Its scores.
    folds
        The folds that hold patients out.

    Raises
    ------
    InputError
        If a fold was not stacked.
    """
    if study.stacking is None:
        return None
    said = []
    for fold in folds:
        path = study.run.stacking(fold["name"])
        if not path.is_file():
            raise InputError("this fold was not stacked", file=path, fix="run notebook 40_stacking for it")
        said.append(read_json(path))
    return {
        "titles": [title_of(name) for name in STACKS],
        "sentences": [compare(scores, stack, study.families, scores.transforms[0]) for stack in STACKS],
        "tables": [_table(scores, transform, study.families) for transform in scores.transforms],
        "nesting": list(dict.fromkeys(one["nesting"] for one in said)),
        "left_out": {title_of(name): why for one in said for name, why in one["left_out"].items()},
    }


def compare(scores: Scores, stack: str, families: list[str], transform: str) -> str:
    """Return one sentence: how many families a stack beats, and how it stands to the best of them."""
    table = scores.of(transform, ceiling=False)
    best = str(table.loc[families, "pearson"].idxmax())
    pairs = {family: scores.against(family, transform).loc[stack] for family in families}
    beaten = sum(words.verdict(pair) == "beats" for pair in pairs.values())
    row = pairs[best]
    return (
        f"{title_of(stack)} reaches {words.number(table.loc[stack, 'pearson'])}, beats {beaten} of the {len(families)} "
        f"models it is made of, and {words.verdict(row)} the best of them, {title_of(best)}: "
        f"{words.number(row['difference'], sign=True)} ({words.span(row['low'], row['high'], sign=True)})."
    )


def _table(scores: Scores, transform: str, families: list[str]) -> dict[str, Any]:
    table = scores.of(transform, ceiling=False)
    rows = []
    for family in table.loc[families].sort_values("pearson", ascending=False).index:
        pairs = [scores.against(family, transform).loc[stack] for stack in STACKS]
        cells = [{**pair.to_dict(), "verdict": words.verdict(pair)} for pair in pairs]
        rows.append({**table.loc[family].to_dict(), "cells": cells})
    own = [table.loc[stack].to_dict() for stack in STACKS]
    return {"name": transform, "words": words.TRANSFORM_WORDS.get(transform, transform), "rows": rows, "stacks": own}
