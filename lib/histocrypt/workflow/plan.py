"""What a run would do, before it does it: jobs, core-hours, peak memory, disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.machine import usable_cores
from histocrypt.workflow.artifacts import follow, moved_from, same_under_new_rules
from histocrypt.workflow.command import Command
from histocrypt.workflow.outline import Outline
from histocrypt.workflow.resources import disk_bytes

REASONS = {
    "Missing output files": "not made yet",
    "Params have changed": "settings changed",
    "Set of input files has changed": "other inputs",
    "Updated input files": "input changed",
    "Input files updated by another job": "follows",
    "Forced execution": "broken",
}
"""What Snakemake says of why a job runs, and what we say."""


@dataclass(frozen=True)
class Job:
    """One notebook that would run."""

    name: str
    """Notebook, section or model, and fold, as its log is called."""
    threads: int
    memory_mb: int
    gpus: int
    seconds: int
    """Expected."""
    reason: str

    @property
    def notebook(self) -> str:
        """The notebook's name."""
        return self.name.partition("__")[0]


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, in reading order, and what they leave on disk."""

    jobs: list[Job]
    disk: int
    """Bytes of the finished run folder, about."""


def plan(command: Command, outline: Outline, broken: Iterable[str] = ()) -> Plan:
    """Return what a run would do; nothing is run, written or deleted.

    Parameters
    ----------
    command
        The run.
    outline
        Of the study.
    broken
        Names of jobs whose files a run would remove.

    Raises
    ------
    InputError
        If Snakemake cannot make a plan.
    """
    study, books = outline.study, outline.run.root / ".snakemake"
    with tempfile.TemporaryDirectory() as folder:
        survey = outline.write(Path(folder) / "survey.json")
        (Path(folder) / ".snakemake").mkdir()
        own, before = Path(folder) / ".snakemake", moved_from(outline.run)
        for name in ("metadata", "incomplete"):  # Snakemake, even when it plans, keeps its books where it is
            if not (books / name).is_dir() or same_under_new_rules(outline.run, study.model_dump(mode="json")):
                continue
            if before and name == "metadata":
                follow(outline.run, before, own / name)
            else:
                (own / name).symlink_to(books / name)
        # A dry run takes itself for local and would hold all jobs to one core, had it no number.
        width = () if command.profile.local else ("--cores", str(command.profile.threads))
        wanted = {job.name: job for job in outline.upto(command.until)}
        forced = [name for name in broken if name in wanted]
        line = command.line(
            "--dry-run", *width, *(("--forcerun", *forced) if forced else ()), directory=Path(folder), survey=survey
        )
        said = subprocess.run(line, cwd=paths.repository(), capture_output=True, text=True, check=False)
    if said.returncode:
        last = [text.strip() for text in (said.stderr + said.stdout).splitlines() if text.strip()][-1:]
        raise InputError(f"Snakemake cannot plan this run ({''.join(last)})", file=study.run.root)
    planned = {job.name: job for job in _jobs(said.stderr + said.stdout)}
    jobs = [planned[name] for name in wanted if name in planned]
    return Plan(jobs, disk_bytes(study, list(outline.sizes.values()), len(outline.folds)))


def _jobs(said: str) -> Iterator[Job]:
    """Yield the jobs of a dry run's output; the target, which runs nothing, has no log."""
    for block in re.split(r"^(?:local)?rule .+:$", said, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^ {4}(\w+): (.+)$", block, flags=re.MULTILINE))
        if "log" not in fields:
            continue
        asked = dict(re.findall(r"(\w+)=([^,\s]+)", fields.get("resources", "")))
        why = fields.get("reason", "")
        yield Job(
            name=Path(fields["log"]).stem,
            threads=int(fields.get("threads", 1)),
            memory_mb=int(asked["mem_mb"]),
            gpus=int(asked.get("gpu", 0)),
            seconds=int(asked["expected_s"]),
            reason=next((ours for theirs, ours in REASONS.items() if theirs in why), why),
        )


def figures(what: Plan, command: Command) -> dict[str, Any]:
    """Return a plan as programs read it: memory and disk in GiB and GB, expected time in seconds and hours."""
    root, threads = command.study.run.root, command.cores or usable_cores()
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.is_dir())).free
    longest = {}
    for job in what.jobs:
        longest[job.notebook] = max(job.seconds, longest.get(job.notebook, 0))
    chain, hours = sum(longest.values()), core_hours(what.jobs)
    return {
        "study": command.study.name,
        "folder": root,
        "jobs": [{"notebook": job.notebook, **asdict(job)} for job in what.jobs],
        "core_hours": hours,
        "gpu_hours": gpu_hours(what.jobs),
        "peak_memory_mb": max((job.memory_mb for job in what.jobs), default=0),
        "disk_gb": what.disk / 1e9,
        "disk_free_gb": free / 1e9,
        "cores": threads if command.profile.local else None,
        "seconds": max(hours * 3600 / threads, chain) if command.profile.local else chain,
    }


def told(what: Plan, command: Command) -> str:
    """Return a plan as people read it."""
    if not what.jobs:
        return "nothing to do: everything is up to date"
    head = f"{'notebook':<22}{'jobs':>6}{'cores':>7}{'GPUs':>6}{'memory':>10}{'longest':>9}{'core-hours':>12}  why"
    lines = [head]
    for notebook in dict.fromkeys(job.notebook for job in what.jobs):
        jobs = [job for job in what.jobs if job.notebook == notebook]
        longest = max(job.seconds for job in jobs)
        lines.append(
            f"{notebook:<22}{len(jobs):>6}{max(job.threads for job in jobs):>7}{max(job.gpus for job in jobs):>6}"
            f"{max(job.memory_mb for job in jobs) / 1024:>6.1f} GiB{clock(longest):>9}{core_hours(jobs):>12.2f}  "
            + ", ".join(dict.fromkeys(job.reason for job in jobs))
        )
    largest = max(what.jobs, key=lambda job: job.memory_mb)
    all_of_it = figures(what, command)
    lines += [
        "",
        f"{len(what.jobs)} jobs, about {all_of_it['core_hours']:.1f} core-hours"
        + (f" and {gpu_hours(what.jobs):.1f} GPU-hours" if gpu_hours(what.jobs) else ""),
        f"peak memory of a job: {largest.memory_mb / 1024:.1f} GiB ({largest.name})",
        f"disk, when finished: about {what.disk / 1e9:.1f} GB in {all_of_it['folder']} "
        f"({all_of_it['disk_free_gb']:.0f} GB free)",
    ]
    where = f"time on {all_of_it['cores']} cores" if command.profile.local else "time, if every job starts at once"
    lines.append(f"{where}: about {clock(all_of_it['seconds'])}")
    return "\n".join(lines)


def core_hours(jobs: list[Job]) -> float:
    """Return what jobs keep busy, together."""
    return sum(job.seconds * job.threads for job in jobs) / 3600


def gpu_hours(jobs: list[Job]) -> float:
    """Return how long GPUs are held, together."""
    return sum(job.seconds * job.gpus for job in jobs) / 3600


def clock(seconds: float) -> str:
    """Return a duration for people: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
