"""``histocrypt runs``: the runs there are, one of them in full, or two of them side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json, read_table
from histocrypt.workflow.progress import readable
from histocrypt.workflow.record import Record, Run, added_up, belonging, read_record

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.study import Study


COLOUR = "colour_ridge"
NONE = "-"
SHOWN = 60
"""Longer values are cut."""


@dataclass(frozen=True)
class Best:
    """The best predictor of a run that looks at the image, beside colour-only ridge, on the study's first transform."""

    title: str
    score: str
    """Mean correlation with its interval."""
    colour: str
    """Colour-only ridge's, the baseline that shows what average colours give."""


def list_runs() -> tuple[str, list[InputError]]:
    """Return the table of all run folders, newest first, and what is wrong with those that cannot be read."""
    rows, problems = [], []
    for root in roots():
        try:
            record = read_record(root) if paths.RunFolder(root).record.is_file() else None
            rows.append((record.begun.timestamp() if record else 0.0, _line(root, record)))
        except InputError as error:
            problems.append(error)
    if not rows:
        return f"no runs in {paths.outputs()}", problems
    heads = (
        "run",
        "outcome",
        "begun (UTC)",
        "commit",
        "took",
        "memory",
        "best predictor",
        "correlation",
        "colour ridge",
    )
    ordered = [cells for _, cells in sorted(rows, key=lambda row: (-row[0], row[1]))]
    star = any(cells[3].endswith("*") for cells in ordered)
    note = "\n* with changes that were not committed" if star else ""
    return table(heads, ordered, left=2) + note, problems


def show_run(name: str) -> str:
    """Return one run in words: what it ran with, how it ended, what its stages took.

    Raises
    ------
    InputError
        If there is no such run, or its record is missing or broken.
    """
    root = find_run(name)
    record = read_record(root)
    lines = [
        f"{record.study}: {outcome(record)}, begun {when(record.begun)} UTC, {duration(record.seconds)}",
        "",
        *(f"{head:<9} {text}" for head, text in about(record).items()),
    ]
    stages = added_up(record.stages).sort_values("notebook", kind="stable")
    if len(stages):
        heads = ("stage", "jobs", "time", "slowest", "CPU", "memory")
        rows = [
            (
                f"{row.notebook} {row.model}".strip(),
                str(row.jobs),
                duration(row.seconds),
                duration(row.slowest),
                duration(row.cpu_seconds),
                gib(row.peak_gib),
            )
            for row in stages.itertuples()
        ]
        lines += ["", table(heads, rows)]
    again = [readable(stage.job) for stage in record.stages if stage.attempt > 1]
    if again:
        lines += ["", f"Needed another attempt: {', '.join(again)}"]
    if record.history:
        other = [f"{when(one.begun)} {outcome(one)}, {one.jobs} jobs" for one in record.history[-5:]]
        lines += ["", f"Other runs of this study: {len(record.history)}; the latest: " + "; ".join(other)]
    return "\n".join(lines)


def about(record: Record) -> dict[str, str]:
    """Return what a run ran with, for people, by short names."""
    machine = record.machine
    gpus = ", ".join(machine.get("gpus", ())) or "no GPU"
    where = (
        f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB, {gpus}, "
        f"{machine.get('system')}"
    )
    seeds = ", ".join(str(value) if name == "seed" else f"{name} {value}" for name, value in record.seeds.items())
    found = {
        "study": f"hash {record.hash}, seed {seeds}{f', until {record.until}' if record.until else ''}",
        "commit": _commit_in_words(record.git),
        "machine": where if machine else "",
        "profile": record.profile,
        "given": " ".join(f"-p {name} {value}" for name, value in record.parameters.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    return {name: text for name, text in found.items() if text}


def _commit_in_words(git: dict[str, Any]) -> str:
    if not git.get("commit"):
        return f"not known: {git.get('note', 'nothing was said')}"
    changed = ", ".join(git.get("changed", ()))
    return git["commit"] + (f", with changes that were not committed: {changed}" if git.get("dirty") else "")


def this_run(study: Study) -> dict[str, Any] | None:
    """Return what a study's report shows of its run; None where there is no record, or not one of the study as it is.

    The report is a part of the run: its own stage, and what comes after it, are not in the record yet.
    """
    try:
        record = read_record(study.run.root)
    except InputError:
        return None
    if record.hash != study.hash():
        return None
    stages = belonging(record.stages, study)
    jobs = added_up(stages).sort_values("notebook", kind="stable")
    rows = [
        {
            **{name: getattr(row, name) for name in ("notebook", "model", "jobs", "seconds", "peak_gib")},
            "slowest_seconds": row.slowest,
            "time": duration(row.seconds),
            "slowest": duration(row.slowest),
            "cpu": duration(row.cpu_seconds),
            "memory": gib(row.peak_gib),
        }
        for row in jobs.itertuples()
    ]
    return {
        "begun": when(record.begun),
        "about": about(record),
        "runs": len(record.history) + 1,
        "commits": len({stage.commit for stage in stages if stage.outcome == "finished"}),
        "again": sum(stage.attempt > 1 for stage in stages),
        "rows": rows,
        "total": duration(jobs["seconds"].sum()),
        "jobs": int(jobs["jobs"].sum()),
        "most": gib(jobs["peak_gib"].max()),
    }


def find_run(name: str) -> Path:
    """Return the run folder of a study's name, or the folder that is named itself.

    Raises
    ------
    InputError
        If there is neither; the known runs are listed.
    """
    named = paths.outputs() / name
    if Path(name).name == name and named.is_dir():
        return named
    if Path(name).is_dir():
        return Path(name).resolve()
    raise unknown_name("run", name, [root.name for root in roots()], file=paths.outputs())


def roots() -> list[Path]:
    """Return the folders of all runs."""
    runs = [paths.RunFolder(root) for root in paths.outputs().glob("*") if root.is_dir()]
    return sorted(run.root for run in runs if run.record.is_file() or run.study.is_file())


def _line(root: Path, record: Record | None) -> tuple[str, ...]:
    best = best_of(root)
    scored = (best.title, best.score, best.colour) if best else (NONE, NONE, NONE)
    if record is None:
        return (root.name, "no record", NONE, NONE, NONE, NONE, *scored)
    took = sum(run.seconds or 0 for run in (record, *record.history))
    most = max((stage.peak_gib for stage in record.stages if stage.peak_gib), default=None)
    cells = (outcome(record), when(record.begun), commit(record.git), duration(took), gib(most))
    return (root.name, *cells, *scored)


def summary_of(root: Path) -> pd.DataFrame | None:
    """Return the scores of a run, one row per model and transform; None where nothing was scored yet.

    Raises
    ------
    InputError
        If the table is broken.
    """
    file = paths.RunFolder(root).evaluation / "summary.csv"
    if not file.is_file():
        return None
    try:
        found = read_table(file)
        missing = {"model", "title", "role", "transform", "pearson", "pearson_low", "pearson_high"} - set(found)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError("is not a table of scores", file=file) from error
    if missing or found.empty:
        raise InputError("is not a table of scores", file=file, expected=f"columns {', '.join(sorted(missing))}")
    return found


def best_of(root: Path) -> Best | None:
    """Return the best predictor of a run; None where nothing that looks at the image has a score yet."""
    best, colour = best_row(root)
    if best is None:
        return None
    return Best(best["title"], interval(best), NONE if colour is None else interval(colour))


def best_row(root: Path) -> tuple[pd.Series | None, pd.Series | None]:
    """Return the scores of the best predictor of a run and those of colour-only ridge, as far as there are any."""
    from histocrypt.evaluation.wording import BLIND

    summary = summary_of(root)
    if summary is None:
        return None, None
    main = summary[summary["transform"] == summary["transform"].iloc[0]].set_index("model")
    able = main[(main["role"] != "ceiling") & ~main.index.isin(BLIND)]
    if able["pearson"].isna().all():
        return None, None
    return able.loc[able["pearson"].idxmax()], main.loc[COLOUR] if COLOUR in main.index else None


def interval(row: pd.Series) -> str:
    """Return a correlation with its 95 % interval."""
    if math.isnan(row["pearson_low"]):  # sections of a single block of tissue
        return f"{row['pearson']:.3f} (no interval)"
    return f"{row['pearson']:.3f} ({row['pearson_low']:.3f} to {row['pearson_high']:.3f})"


def outcome(run: Run) -> str:
    """Return how a run ended, with the jobs that failed."""
    failed = ", ".join(readable(job) for job in run.failed[:2]) + (" ..." if len(run.failed) > 2 else "")
    ended = f"{run.outcome}: {failed}" if failed else run.outcome
    return f"{ended}, until {run.until}" if run.until and run.outcome == "finished" else ended


def commit(git: dict[str, Any]) -> str:
    """Return a commit, shortened; a star where tracked files were changed."""
    return f"{git['commit'][:8]}{'*' if git.get('dirty') else ''}" if git.get("commit") else NONE


def when(time: datetime) -> str:
    """Return a time to the minute."""
    return f"{time:%Y-%m-%d %H:%M}"


def duration(seconds: float | None) -> str:
    """Return seconds in the unit that suits them."""
    if seconds is None or seconds != seconds:
        return NONE
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def gib(value: float | None) -> str:
    """Return memory for people."""
    return NONE if value is None or value != value else f"{value:.2f} GiB"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return aligned plain text; the first ``left`` columns are words, the others figures."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def study_of(root: Path) -> dict[str, Any]:
    """Return the resolved study of a run folder.

    Raises
    ------
    InputError
        If it is missing or no mapping.
    """
    content = read_json(paths.RunFolder(root).study)
    if not isinstance(content, dict):
        raise InputError("is not a study", file=paths.RunFolder(root).study)
    return content


# Two runs side by side: what differs, and whether it shows in scores, time and memory.


def compare_runs(first: str, second: str) -> str:
    """Return two runs side by side: study, versions, commit, machine; scores; time and memory.

    Raises
    ------
    InputError
        If there is no such run, or a record, a study or a table of scores is missing or broken.
    """
    roots = [find_run(name) for name in (first, second)]
    records = [read_record(root) for root in roots]
    studies = [study_of(root) for root in roots]
    parts = [
        _heads(first, second, records),
        _differences("Study", *(dict(flat(study)) for study in studies)),
        _differences("Made with", *(made_with(record) for record in records)),
        _scores(roots, records, studies),
        _stages(records),
    ]
    return "\n\n".join(parts)


def _heads(first: str, second: str, records: list[Record]) -> str:
    lines = [
        f"{letter}: {name} ({outcome(record)}, begun {when(record.begun)} UTC)"
        for letter, name, record in zip("AB", (first, second), records, strict=True)
    ]
    return "\n".join(lines)


def made_with(record: Record) -> dict[str, Any]:
    """Return what else than the study may change a result or its cost, by name."""
    machine = {f"machine {name}": value for name, value in record.machine.items()}
    given = {f"-p {name}": value for name, value in record.parameters.items()}
    return {**record.versions, "commit": commit(record.git), "profile": record.profile, **machine, **given}


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested study with the path to each; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from flat(one, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for number, one in enumerate(value):
            yield from flat(one, f"{prefix}[{number}]")
    else:
        yield prefix, value


def _differences(title: str, left: dict[str, Any], right: dict[str, Any]) -> str:
    names = differing(left, right)
    if not names:
        return f"{title}: the same"
    rows = [(f"  {name}", *(_short(side.get(name, NONE)) for side in (left, right))) for name in names]
    return f"{title}:\n" + table(("", "A", "B"), rows, left=3)


def differing(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Return the names whose values differ, or that one side lacks."""
    return [name for name in {**left, **right} if left.get(name, NONE) != right.get(name, NONE)]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _scores(roots: list[Path], records: list[Record], studies: list[dict[str, Any]]) -> str:
    tables = [summary_of(root) for root in roots]
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
        cells = [NONE if side is None else interval(side) for side in sides]
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
