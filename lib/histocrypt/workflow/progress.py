"""What is known of a run while it goes on, from the events of Snakemake, and why a job failed, from what it printed."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.predictors.registry import MODELS
from histocrypt.workflow.command import Workload

MARK = "\x01"
"""Begins a line of `snakemake_logger_plugin_histocrypt`; all others come from programs that Snakemake starts."""

# What Snakemake and its SLURM executor tell in words only.
_SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.+)\)")
_AGAIN = re.compile(r"Trying to restart job (\d+)\.")
_STATUS = re.compile(r"SLURM status is: '(\w+)'")
_REFUSED = re.compile(r"SLURM sbatch failed\. The error message was '(.*?)'?\.?(?:$|For further)", re.MULTILINE)
_MEMORY = re.compile(r"^slurmstepd.* error: .*(?:exceeded memory limit|oom[-_]kill)", re.MULTILINE | re.IGNORECASE)

# What jobs print.
_FULL = re.compile(r"No space left on device|Disk quota exceeded|disk is full|file write failed", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(
    r"^(?:\w+\.)*(?:MemoryError|OutOfMemoryError|_ArrayMemoryError)\b|DefaultCPUAllocator: can't allocate|oom[-_]kill"
    r"|Cannot allocate memory|CUDA out of memory",
    re.MULTILINE,
)
_DEAD = re.compile(r"DeadKernelError|Kernel died|^Killed$|\bKilled\b.*papermill", re.MULTILINE)
_RAISED = re.compile(r"^(?P<name>(?:\w+\.)*\w+)\s+Traceback \(most recent call last\)$", re.MULTILINE)
_INPUT = re.compile(r"^(?:histocrypt\.errors\.)?InputError: (.+)$", re.MULTILINE)
_REFUSED_INPUT = re.compile(r"^ +(?:histocrypt\.errors\.)?InputError: (.+)$", re.MULTILINE)

FULL = 2**20
"""With less than this left, bytes, a disk is full: a notebook could not be written."""
LATE = 0.95
"""A job that takes longer than was expected of it counts as done by this much."""


@dataclass
class Failure:
    """A notebook that did not end well, not even when it was tried again."""

    log: Path
    slurm: str = ""
    """What SLURM calls its end, e.g. ``"OUT_OF_MEMORY"``; empty where there is no SLURM."""
    refused: str = ""
    """Why SLURM did not take the job at all."""
    memory_mb: int = 0
    """What it had asked for; 0 where that is not known."""


@dataclass
class Job:
    """A notebook that runs, or waits on a cluster."""

    name: str
    """As people read it."""
    log: Path | None = None
    memory_mb: int = 0
    expected_s: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.began


@dataclass
class Progress:
    """What is known of a run so far."""

    expected: Mapping[str, float] = field(default_factory=dict)
    """Seconds that jobs are expected to take, by the names of their logs."""
    total: int = 0
    """Notebooks that this run is to execute."""
    done: int = 0
    failed: dict[int, Failure] = field(default_factory=dict)
    """By Snakemake's number of the job."""
    running: dict[int, Job] = field(default_factory=dict)
    """By the same number, longest first."""
    anything: bool = False
    """Whether there was anything to do."""
    _began: float = field(default_factory=lambda: time.monotonic())
    _targets: int = 0
    _measured: list[tuple[float, float]] = field(default_factory=list)
    """Seconds expected and taken, of each job that has ended."""
    _waiting: set[str] = field(default_factory=set)

    def take(self, event: Mapping[str, Any]) -> str:
        """Take in one event and return what to tell the user; mostly nothing."""
        match event["event"]:
            case "run_info":
                stats = {name: count for name, count in event["stats"].items() if name not in ("all", "total")}
                self._waiting = {*stats}
                self._targets = event["stats"].get("total", 0) - sum(stats.values())
                self.total = max(self.total, sum(stats.values()))
            case "progress":
                self.total = max(self.total, event["total"] - self._targets)
            case "job_info" if event["log"]:
                log, asked = Path(event["log"][0]), event["resources"]
                memory, expected = asked.get("mem_mb"), asked.get("expected_s")
                self._start(
                    event["job"],
                    Job(
                        readable(log.stem),
                        log,
                        memory if isinstance(memory, int) else 0,
                        self.expected.get(log.stem) or (expected if isinstance(expected, int) else 0),
                    ),
                )
            case "job_finished" if job := self.running.pop(event["job"], None):
                self.done += 1
                self.failed.pop(event["job"], None)
                self._measured.append((job.expected_s, job.seconds))
                return f"{job.name} done in {job.seconds:.0f} s  ({self.done} of {max(self.total, self.done)})"
            case "job_error" if event["log"]:
                return self._fail(event["job"], *map(Path, event["log"]), message=event["message"])
            case None if match := _SUBMITTED.match(event["text"]):
                number, slurm = int(match[1]), match[2]
                if number not in self.running:  # its executor tells no more of it
                    name, log = _submitted(Path(match[3]))
                    self._start(number, Job(readable(name), log, 0, self.expected.get(name, 0)))
                    return f"{self.running[number].name} submitted, SLURM job {slurm}"
            case None if match := _AGAIN.match(event["text"]):
                if failure := self.failed.pop(int(match[1]), None):
                    return f"{readable(failure.log.stem)} is tried once more, with twice the memory and time"
        return ""

    def _start(self, number: int, job: Job) -> None:
        self.running[number] = job
        self.anything = True
        if job.log:
            self._waiting.discard(job.log.stem)

    def _fail(self, number: int, log: Path, *more: Path, message: str) -> str:
        job = self.running.pop(number, None)
        status, refused = _STATUS.search(message), _REFUSED.search(message)
        slurm = _ended(status[1], more[-1] if more else log) if status else ""
        self.failed[number] = Failure(log, slurm, refused[1] if refused else "", job.memory_mb if job else 0)
        return f"{readable(log.stem)} failed{f' ({slurm})' if slurm else ''}"

    def left(self) -> tuple[float, float] | None:
        """Return the share of the work that is done, and the seconds that are left; None while nothing is known.

        What was expected of jobs is scaled by what those that have ended took. As many are taken to run side by side as
        did so far, at first as many as run now; but one that runs is waited for to its own end.
        """
        expected, took = (sum(column) for column in zip(*self._measured, strict=True)) if self._measured else (0, 0)
        rate = took / expected if expected else 1.0
        known = [self.expected[name] for name in self._waiting if name in self.expected]
        mean = expected / len(self._measured) if self._measured else 0.0
        waiting = rate * (sum(known) + mean * max(0, self.total - self.done - len(self.running) - len(known)))
        running = [
            max(rate * job.expected_s - job.seconds, (1 - LATE) * rate * job.expected_s)
            for job in self.running.values()
        ]
        if not waiting and not running:
            return None
        rest = waiting + sum(running)
        spent = took + sum(job.seconds for job in self.running.values())
        so_far = spent / max(1.0, time.monotonic() - self._began) if self._measured else len(running)
        return spent / (spent + rest) if rest else LATE, max(rest / max(1.0, so_far), *running, 0.0)


def parse(line: str) -> dict[str, Any]:
    """Return the event in a line of Snakemake's output; a line of another program is a text."""
    if line.startswith(MARK):
        with suppress(ValueError):  # cut off, as Snakemake was killed
            return json.loads(line.removeprefix(MARK))
    return {"event": None, "text": line.removesuffix("\n")}


def readable(job: str) -> str:
    """Return the name of a job's log as people read it."""
    notebook, *of = job.split("__", 1)
    model, *rest = of[0].split("__", 1) if of else ("",)
    return " ".join([notebook, model, *rest] if model in {"baselines", *MODELS} else [notebook, *of])


def _ended(slurm: str, log: Path) -> str:
    """Return what SLURM calls a job's end; it calls it FAILED, too, where it ended a step for its memory."""
    if slurm == "FAILED" and log.is_file() and _MEMORY.search(log.read_text(encoding="utf-8", errors="replace")):
        return "OUT_OF_MEMORY"
    return slurm


def _submitted(log: Path) -> tuple[str, Path]:
    """Return a job and its own log from the path of SLURM's: ``logs/slurm/rule_20_preprocessing__S_1/17.log``."""
    folder = next((parent for parent in log.parents if parent.name.startswith("rule_")), log)
    job = folder.name.removeprefix("rule_")
    return job, folder.parents[1] / f"{job}.log"


def reason(log: Path, study: Workload, *, memory_mb: int = 0) -> str:
    """Return why the job with this log failed, where it was not the user's mistake.

    Parameters
    ----------
    log
        What the job printed; it may be missing or cut short.
    study
        Whose folders are looked at where a disk is full.
    memory_mb
        What the job had asked for; 0 if that is not known.
    """
    text = _text(log)
    asked = f"; {memory_mb / 1024:.1f} GiB were asked for" if memory_mb else ""
    if full := full_disk(study, text):
        return full
    if _OUT_OF_MEMORY.search(text):
        return f"it ran out of memory{asked} ({raised(text)})"
    if _DEAD.search(text):
        return f"its process was killed, probably for want of memory{asked}"
    return raised(text) or "no log was written"


def mistake(log: Path) -> str | None:
    """Return the sentence of an `InputError` that stopped a notebook, or None."""
    found = _INPUT.findall(_text(log))
    return found[-1] if found else None


def refused(said: str) -> str | None:
    """Return the sentence of an `InputError` with which the Snakefile itself refused a study, or None."""
    found = _REFUSED_INPUT.search(said)
    return found[1] if found else None


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def raised(text: str) -> str:
    """Return the error that a notebook raised, on one line; else the last line printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for match in reversed(list(_RAISED.finditer(text))):
        start = text.rfind(f"\n{match['name']}: ")
        if start >= 0:
            return " ".join(text[start:].split("\n\n")[0].split())[:400]
    return lines[-1] if lines else ""


def full_disk(study: Workload, text: str) -> str | None:
    """Return the sentence for a full disk, where ``text`` tells of one or the run folder has no space; else None.

    A notebook that could not even write its log says nothing.
    """
    free = {name: _free(folder) for name, folder in _written(study).items()}
    told = _FULL.search(text)
    if not told and free["HISTOCRYPT_OUTPUTS"] > FULL:
        return None
    name = min(free, key=free.get) if told else "HISTOCRYPT_OUTPUTS"
    left = f"{free[name] / 2**20:.1f} MiB are left in {_written(study)[name]}"
    return f"the disk is full: {left}; make room there, or choose another folder ({name})"


def _written(study: Workload) -> dict[str, Path]:
    """Return the folders that a run writes to by what sets them."""
    temporary = Path(tempfile.gettempdir())
    return {"HISTOCRYPT_OUTPUTS": study.run.root, "HISTOCRYPT_CACHE": paths.cache(), "TMPDIR": temporary}


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def said_when_full(study: Workload) -> Iterator[None]:
    """Turn the error of a full disk into an `InputError` that names the folder and the space left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(full_disk(study, "No space left on device")) from error
