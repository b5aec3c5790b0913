"""Reads what Snakemake says while it runs: which notebook starts, which has ended, which has failed for good."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from histocrypt.workflow.stages import RULES

_LOG = re.compile(r"^\s+log: (\S+)")
_JOB = re.compile(r"^\s+jobid: (\d+)")
_SUBMITTED = re.compile(r"^Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.+)\)")
_FINISHED = re.compile(r"^Finished jobid: (\d+)")
_STEPS = re.compile(r"^(\d+) of (\d+) steps")
_MESSAGE = re.compile(r"^\s+message: .*SLURM status is: '(\w+)'")
_REFUSED = re.compile(r"^\s+message: SLURM sbatch failed\. The error message was '(.*?)'?\.?$")
_FAILED = re.compile(r"^\s+log: (.+?)(?:, (.+))?\s+\(check log file")
_MEMORY = re.compile(r"^slurmstepd.* error: .*(?:exceeded memory limit|oom[-_]kill)", re.MULTILINE | re.IGNORECASE)
_RESOURCES = re.compile(r"^\s+resources: (?:.*, )?mem_mb=(\d+)")
_AGAIN = re.compile(r"^Trying to restart job (\d+)\.")


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
class Progress:
    """What is known of a run so far."""

    failed: dict[str, Failure] = field(default_factory=dict)
    """By Snakemake's number of the job."""
    started: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Name and time of the jobs that have not ended, by the same number."""
    anything: bool = False
    """Whether there was anything to do."""
    memory_mb: dict[str, int] = field(default_factory=dict)
    """What jobs asked for, by the same number."""
    _name: str = ""
    _job: str = ""
    _slurm: str = ""
    _refused: str = ""
    _steps: str = ""

    def read(self, line: str) -> str:
        """Take in one line of Snakemake's output and return what to tell the user; mostly nothing."""
        if match := _FAILED.match(line):
            ended = _ended(self._slurm, Path((match[2] or match[1]).split(", ")[-1]))
            self.failed[self._job] = Failure(Path(match[1]), ended, self._refused, self.memory_mb.get(self._job, 0))
            self._slurm = self._refused = ""
        elif match := _LOG.match(line):
            self._name = Path(match[1]).stem
        elif match := _JOB.match(line):
            self._job = match[1]
            if self._name:
                name, self._name = self._name, ""
                return self._starts(readable(name), "...")
        elif match := _RESOURCES.match(line):
            self.memory_mb[self._job] = int(match[1])
        elif match := _SUBMITTED.match(line):
            # Executors differ in whether they also name the notebook's own log, as a run on this machine does.
            self._job = match[1]
            if match[1] not in self.started:
                return self._starts(_submitted(Path(match[3])), f"submitted, SLURM job {match[2]}")
        elif match := _MESSAGE.match(line):
            self._slurm = match[1]
        elif match := _REFUSED.match(line):
            self._refused = match[1]
        elif match := _AGAIN.match(line):
            failure = self.failed.pop(match[1], None)
            name, _ = self.started.pop(match[1], ("", 0.0))
            if failure and not name:
                name = readable(failure.log.stem)
            why = f" ({failure.slurm})" if failure and failure.slurm else ""
            return f"{name} failed{why}; tried once more, with twice the memory and time" if name else ""
        elif match := _FINISHED.match(line):
            name, began = self.started.pop(match[1], ("", 0.0))
            if name:
                return f"{name} done in {time.monotonic() - began:.0f} s{self._steps}"
        elif match := _STEPS.match(line):
            self._steps = f"  ({match[1]} of {match[2]} steps)"
        return ""

    def _starts(self, name: str, how: str) -> str:
        self.started[self._job] = (name, time.monotonic())
        self.anything = True
        return f"{name} {how}"


def readable(job: str) -> str:
    """Return the name of a job's log as people read it."""
    notebook, *rest = job.split("__")
    return " ".join([notebook, *rest])


def _ended(slurm: str, log: Path) -> str:
    """Return what SLURM calls a job's end; it calls it FAILED, too, where it ended a step for its memory."""
    if slurm == "FAILED" and log.is_file() and _MEMORY.search(log.read_text(encoding="utf-8", errors="replace")):
        return "OUT_OF_MEMORY"
    return slurm


def _submitted(log: Path) -> str:
    """Return a job's name from the path of SLURM's log: ``rule_train/resnet18_fold_1/17.log``."""
    parts = log.parts
    at = next((index for index, part in enumerate(parts) if part.startswith("rule_")), None)
    if at is None:
        return log.stem
    return job_of_rule(parts[at].removeprefix("rule_"), *parts[at + 1 : -1])


def job_of_rule(rule: str, *wildcards: str) -> str:
    """Return the name of a rule's job as people read it: its notebook, and what it is run for."""
    return " ".join([RULES.get(rule, rule), *filter(None, wildcards)])
