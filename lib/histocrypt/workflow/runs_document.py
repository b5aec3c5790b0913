"""What ``histocrypt runs --json`` prints: the numbers behind the tables of `runs`, with their units in the names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.workflow.record import Record, added_up, read_record
from histocrypt.workflow.runs import COLOUR, best_row, differing, find_run, flat, made_with, roots, study_of, summary_of

if TYPE_CHECKING:
    import pandas as pd


def all_runs() -> dict[str, Any]:
    """Return all run folders, newest first, and what is wrong with those that cannot be read."""
    found, problems = [], []
    for root in roots():
        try:
            record = read_record(root) if paths.RunFolder(root).record.is_file() else None
            found.append((record.begun.timestamp() if record else 0.0, root.name, _line(root, record)))
        except InputError as error:
            problems.append(error)
    runs = [line for _, _, line in sorted(found, key=lambda one: (-one[0], one[1]))]
    return {"outputs": paths.outputs(), "runs": runs, "problems": problems}


def one_run(name: str) -> dict[str, Any]:
    """Return the record of a run, and what its stages took together; see `runs.show_run`."""
    root = find_run(name)
    record = read_record(root)
    return {"folder": root, **record.model_dump(mode="json"), "by_notebook": _stages(record)}


def two_runs(first: str, second: str) -> dict[str, Any]:
    """Return two runs beside each other; see `runs.compare_runs`."""
    folders = [find_run(name) for name in (first, second)]
    records = [read_record(root) for root in folders]
    studies = [dict(flat(study_of(root))) for root in folders]
    return {
        "a": {"run": first, **_ended(records[0])},
        "b": {"run": second, **_ended(records[1])},
        "study": _beside(*studies),
        "made_with": _beside(*(made_with(record) for record in records)),
        "scores": {name: _scores(root) for name, root in zip("ab", folders, strict=True)},
        "stages": {name: _stages(record) for name, record in zip("ab", records, strict=True)},
    }


def _line(root: Path, record: Record | None) -> dict[str, Any]:
    best, colour = best_row(root)
    scored = {"best": _score(best), COLOUR: _score(colour)}
    if record is None:
        return {"run": root.name, "outcome": None, **scored}
    known = [stage.peak_gib for stage in record.stages if stage.peak_gib]
    return {
        "run": root.name,
        **_ended(record),
        "commit": record.git.get("commit"),
        "uncommitted_changes": bool(record.git.get("dirty")),
        "seconds": sum(run.seconds or 0 for run in (record, *record.history)),
        "peak_memory_gib": max(known, default=None),
        **scored,
    }


def _ended(record: Record) -> dict[str, Any]:
    ended = {"outcome": record.outcome, "failed": record.failed, "until": record.until}
    return {**ended, "begun_utc": record.begun}


def _score(row: pd.Series | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {"model": row.name} | {name: row[name] for name in ("title", "pearson", "pearson_low", "pearson_high")}


def _scores(root: Path) -> list[dict[str, Any]]:
    summary = summary_of(root)
    columns = ["transform", "model", "title", "pearson", "pearson_low", "pearson_high"]
    return [] if summary is None else summary[columns].to_dict("records")


def _stages(record: Record) -> list[dict[str, Any]]:
    stages = added_up(record.stages).sort_values("notebook", kind="stable")
    return stages.rename(columns={"slowest": "slowest_seconds", "peak_gib": "peak_memory_gib"}).to_dict("records")


def _beside(left: dict[str, Any], right: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "a": left.get(name), "b": right.get(name)} for name in differing(left, right)]
