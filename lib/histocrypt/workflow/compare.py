"""``histocrypt runs A B``: what differs between two runs, and whether it shows in scores, time and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.workflow import runs
from histocrypt.workflow.record import Record, read_record
from histocrypt.workflow.runs import NONE, commit, duration, gib, table
from histocrypt.workflow.stage_records import added_up

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 60
"""Longer values are cut."""


def compare_runs(first: str, second: str) -> str:
    """Return two runs side by side: study, versions, commit, machine; scores; time and memory.

    Raises
    ------
    InputError
        If there is no such run, or a record, a study or a table of scores is missing or broken.
    """
    roots = [runs.find_run(name) for name in (first, second)]
    records = [read_record(root) for root in roots]
    studies = [runs.study_of(root) for root in roots]
    parts = [
        _heads(first, second, records),
        _differences("Study", *(dict(_flat(study)) for study in studies)),
        _differences("Made with", *(_made_with(record) for record in records)),
        _scores(roots, records, studies),
        _stages(records),
    ]
    return "\n\n".join(parts)


def _heads(first: str, second: str, records: list[Record]) -> str:
    lines = [
        f"{letter}: {name} ({runs.outcome(record)}, begun {runs.when(record.begun)} UTC)"
        for letter, name, record in zip("AB", (first, second), records, strict=True)
    ]
    return "\n".join(lines)


def _made_with(record: Record) -> dict[str, Any]:
    """Return what else than the study may change a result or its cost, by name."""
    machine = {f"machine {name}": value for name, value in record.machine.items()}
    given = {f"-p {name}": value for name, value in record.parameters.items()}
    return {**record.versions, "commit": commit(record.git), "profile": record.profile, **machine, **given}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested study with the path to each; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from _flat(one, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for number, one in enumerate(value):
            yield from _flat(one, f"{prefix}[{number}]")
    else:
        yield prefix, value


def _differences(title: str, left: dict[str, Any], right: dict[str, Any]) -> str:
    names = [name for name in {**left, **right} if left.get(name, NONE) != right.get(name, NONE)]
    if not names:
        return f"{title}: the same"
    rows = [(f"  {name}", *(_short(side.get(name, NONE)) for side in (left, right))) for name in names]
    return f"{title}:\n" + table(("", "A", "B"), rows, left=3)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _scores(roots: list[Path], records: list[Record], studies: list[dict[str, Any]]) -> str:
    tables = [runs.summary_of(root) for root in roots]
    for letter, found in zip("AB", tables, strict=True):
        if found is None:
            return f"Scores: {letter} has none yet"
    prints = [record.artifacts.get("evaluation/summary.csv") for record in records]
    said = "the same to the last digit" if prints[0] and prints[0] == prints[1] else "mean correlation, 95 % interval"
    blocks = [f"Scores: {said}"]
    if studies[0].get("sections") != studies[1].get("sections") or studies[0].get("demo") != studies[1].get("demo"):
        blocks.append("  Their sections differ: a difference of scores may be one of tissue.")
    transforms = [set(found["transform"]) for found in tables]
    for transform in dict.fromkeys(tables[0]["transform"]):
        if transform not in transforms[1]:
            blocks.append(f"  {transform}: A alone has it")
            continue
        left, right = (found[found["transform"] == transform].set_index("model") for found in tables)
        blocks.append(_beside(transform, left, right))
    blocks += [f"  {name}: B alone has it" for name in sorted(transforms[1] - transforms[0])]
    return "\n".join(blocks)


def _beside(transform: str, left: pd.DataFrame, right: pd.DataFrame) -> str:
    """Return a table of the scores of all models in one transform, best in A first."""
    rows = []
    for model in dict.fromkeys([*left.sort_values("pearson", ascending=False).index, *right.index]):
        sides = [side.loc[model] if model in side.index else None for side in (left, right)]
        title = next(side["title"] for side in sides if side is not None)
        cells = [NONE if side is None else runs.interval(side) for side in sides]
        rows.append((f"  {title}", *cells, *_difference(*sides)))
    return table((f"  {transform}", "A", "B", "B - A", "intervals"), rows)


def _difference(left: pd.Series | None, right: pd.Series | None) -> tuple[str, str]:
    if left is None or right is None:
        return NONE, NONE
    difference = right["pearson"] - left["pearson"]
    if math.isnan(left["pearson_low"]) or math.isnan(right["pearson_low"]):
        return f"{difference + 0.0:+.3f}", "none"
    over = left["pearson_low"] <= right["pearson_high"] and right["pearson_low"] <= left["pearson_high"]
    return f"{difference + 0.0:+.3f}", "overlap" if over else "apart"


def _stages(records: list[Record]) -> str:
    left, right = (added_up(record.stages).set_index(["notebook", "model"]) for record in records)
    if left.empty and right.empty:
        return "Time and memory: no stage was recorded"
    rows = []
    for key in sorted({*left.index, *right.index}):
        sides = [side.loc[key] if key in side.index else None for side in (left, right)]
        cells = [NONE if one is None else f"{int(one['jobs'])} x" for one in sides]
        cells += [NONE if one is None else duration(one["seconds"]) for one in sides]
        cells.append(_ratio(*(None if one is None else one["seconds"] / one["jobs"] for one in sides)))
        cells += [NONE if one is None else gib(one["peak_gib"]) for one in sides]
        rows.append((f"  {' '.join(key).strip()}", *cells))
    totals = [duration(side["seconds"].sum()) for side in (left, right)]
    peaks = [gib(side["peak_gib"].max()) for side in (left, right)]
    rows.append(("  all", *(f"{int(side['jobs'].sum())} x" for side in (left, right)), *totals, "", *peaks))
    heads = ("  stage", "jobs A", "B", "time A", "B", "B / A a job", "memory A", "B")
    return "Time and memory (times depend on what else ran on the machine):\n" + table(heads, rows)


def _ratio(left: float | None, right: float | None) -> str:
    return NONE if left is None or right is None or not left else f"{right / left:.2f}"
