"""``histocrypt runs``: the runs there are, and one of them in full. Two of them side by side are in `compare`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt import paths
from histocrypt.atomic import read_json
from histocrypt.errors import InputError, unknown_name
from histocrypt.workflow.record import Record, Run, read_record
from histocrypt.workflow.stage_records import added_up

if TYPE_CHECKING:
    import pandas as pd

COLOUR = "colour_ridge"
NONE = "-"


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
    for root in _roots():
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
    raise unknown_name("run", name, [root.name for root in _roots()], file=paths.outputs())


def _roots() -> list[Path]:
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
    import pandas as pd

    file = paths.RunFolder(root).evaluation / "summary.csv"
    if not file.is_file():
        return None
    try:
        found = pd.read_csv(file)
        missing = {"model", "title", "role", "transform", "pearson", "pearson_low", "pearson_high"} - set(found)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError("is not a table of scores", file=file) from error
    if missing or found.empty:
        raise InputError("is not a table of scores", file=file, expected=f"columns {', '.join(sorted(missing))}")
    return found


def best_of(root: Path) -> Best | None:
    """Return the best predictor of a run; None where nothing that looks at the image has a score yet."""
    from histocrypt.evaluation.words import BLIND

    summary = summary_of(root)
    if summary is None:
        return None
    main = summary[summary["transform"] == summary["transform"].iloc[0]].set_index("model")
    able = main[(main["role"] != "ceiling") & ~main.index.isin(BLIND)]
    if able["pearson"].isna().all():
        return None
    row = able.loc[able["pearson"].idxmax()]
    return Best(row["title"], interval(row), interval(main.loc[COLOUR]) if COLOUR in main.index else NONE)


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


def readable(job: str) -> str:
    """Return the name of a job for people."""
    return job.replace("__", " ")


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
