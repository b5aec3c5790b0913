"""What the jobs of a run folder took: the records that `measure` left, read, chosen and added up."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat

from histocrypt import paths
from histocrypt.atomic import read_json
from histocrypt.errors import InputError
from histocrypt.study import Study
from histocrypt.training.folds import FINAL

if TYPE_CHECKING:
    import pandas as pd

Outcome = Literal["running", "finished", "failed", "interrupted"]


class Part(BaseModel):
    """A record; keys that this version does not know are kept."""

    model_config = ConfigDict(extra="allow")


class Stage(Part):
    """What one notebook took for one section, or for one model and fold. Memory in GiB, times in UTC."""

    job: str
    notebook: str
    section: str | None = None
    model: str | None = None
    fold: str | None = None
    outcome: Outcome
    begun: datetime
    ended: datetime | None = None
    seconds: NonNegativeFloat | None = None
    cpu_seconds: NonNegativeFloat | None = None
    peak_gib: NonNegativeFloat | None = None
    threads: int | None = None
    attempt: int = 1
    """Of the run that made it; a cluster tries a failed job once more."""
    commit: str | None = None
    """Of the checkout that made it; ``-dirty`` where tracked files were changed."""


def read_stages(run: paths.RunFolder) -> list[Stage]:
    """Return what each job of a run folder left, in the order in which they began; what is unreadable is left out."""
    found = []
    for file in run.stages.glob("*.json"):
        try:
            found.append(Stage.model_validate_json(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda stage: (stage.begun, stage.job))


def belonging(stages: Iterable[Stage], study: Study) -> list[Stage]:
    """Return the stages whose section, model and fold the study still has; what it had once stays on the disk."""
    sections = _names(study.run.eda / "summary.json", "sections", "section")
    folds = _names(study.run.folds, "folds", "name")
    models = {None, "baselines", *study.model_names}
    return [
        stage
        for stage in stages
        if stage.model in models
        and (sections is None or stage.section in {None, *sections})
        and (folds is None or stage.fold in {None, FINAL, *folds})
    ]


def _names(file: Path, part: str, key: str) -> set[str] | None:
    """Return the names in a part of an artifact; None where it is not there yet, or broken by what stopped a run."""
    try:
        return {row[key] for row in read_json(file)[part]}
    except (InputError, KeyError, TypeError):
        return None


def added_up(stages: Iterable[Stage]) -> pd.DataFrame:
    """Return one row per notebook and model, in the order in which they began.

    Columns: ``notebook``, ``model`` (empty where there is none), ``jobs``, ``seconds`` and ``cpu_seconds`` (sums),
    ``slowest`` (seconds) and ``peak_gib`` (the largest). Stages that did not finish are left out.
    """
    import pandas as pd

    columns = ["notebook", "model", "seconds", "cpu_seconds", "peak_gib"]
    done = [stage for stage in stages if stage.outcome == "finished"]
    table = pd.DataFrame([[getattr(stage, name) for name in columns] for stage in done], columns=columns)
    table = table.assign(model=table["model"].fillna(""), jobs=1, slowest=table["seconds"])
    sums = {"jobs": "sum", "seconds": "sum", "cpu_seconds": "sum", "slowest": "max", "peak_gib": "max"}
    return table.groupby(["notebook", "model"], sort=False).agg(sums).reset_index()
