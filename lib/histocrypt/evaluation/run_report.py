"""What the report says of the run that made it: with what, when, and what its stages took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError
from histocrypt.evaluation.embed import embed
from histocrypt.evaluation.figures import INK, LINE, MUTED, ROLE, canvas, save, style
from histocrypt.evaluation.scores import title_of
from histocrypt.workflow.record import read_record
from histocrypt.workflow.runs import about, duration, gib, when
from histocrypt.workflow.stage_records import added_up, belonging

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from histocrypt.study import Study


def this_run(study: Study) -> dict[str, Any] | None:
    """Return what the page shows of the run; None where there is no record, or not one of this study as it is now.

    The page is a part of the run: its own stage, and what comes after it, are not in the record yet.
    """
    try:
        record = read_record(study.run.root)
    except InputError:
        return None
    if record.hash != study.hash():
        return None
    stages = belonging(record.stages, study)
    table = added_up(stages).sort_values("notebook", kind="stable")
    commits = {stage.commit for stage in stages if stage.outcome == "finished"}
    content = {
        "begun": when(record.begun),
        "about": about(record),
        "runs": len(record.history) + 1,
        "commits": len(commits),
        "again": sum(stage.attempt > 1 for stage in stages),
        "rows": [
            {
                "name": _name(row),
                "jobs": row.jobs,
                "time": duration(row.seconds),
                "slowest": duration(row.slowest),
                "cpu": duration(row.cpu_seconds),
                "memory": gib(row.peak_gib),
            }
            for row in table.itertuples()
        ],
        "total": duration(table["seconds"].sum()),
        "jobs": int(table["jobs"].sum()),
        "most": gib(table["peak_gib"].max()),
    }
    if len(table):
        content["picture"] = embed(save(draw(table), study.run.stages / "stages.svg"))
    return content


def _name(row: Any) -> str:
    model = "all baselines" if row.model == "baselines" else title_of(row.model)
    return f"{row.notebook}, {model}" if model else row.notebook


def draw(table: pd.DataFrame) -> Figure:
    """Draw the time of all jobs of a stage, the slowest of them darker, beside the peak memory of the largest."""
    seconds = float(table["seconds"].sum())
    unit, divisor = ("hours", 3600) if seconds > 3 * 3600 else ("minutes", 60)
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(7.4, 0.3 * len(table) + 1.1), sharey=True, width_ratios=[3, 2])
        rows = range(len(table))
        left.barh(rows, table["seconds"] / divisor, color=ROLE["baseline"], alpha=0.55, height=0.62)
        left.barh(rows, table["slowest"] / divisor, color=ROLE["model"], height=0.62)
        right.barh(rows, table["peak_gib"], color=ROLE["ceiling"], height=0.62)
        for y, row in zip(rows, table.itertuples(), strict=True):
            several = f"  {row.jobs} jobs" if row.jobs > 1 else ""
            left.annotate(several, (row.seconds / divisor, y), va="center", color=MUTED, fontsize=8)
            right.annotate(f"  {row.peak_gib:.1f}", (row.peak_gib, y), va="center", color=INK, fontsize=8)
        left.set_yticks(rows, [_name(row) for row in table.itertuples()])
        left.set_ylim(len(table) - 0.4, -0.6)
        left.set_title("Time")
        right.set_title("Peak memory")
        left.set_xlabel(unit)
        right.set_xlabel("GiB")
        for axes in (left, right):
            axes.margins(x=0.14)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=LINE, lw=0.6)
    return figure
