"""Reads what Snakemake says while it runs: which notebook starts, which has ended, which has failed for good."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.study import Study

# ---- progress


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
    return " ".join([readable(rule), *filter(None, wildcards)])


# ---- reasons
# Why a job failed, in one sentence, from what it printed and from how things stand.


FULL = 2**20
"""With less than this left, bytes, a disk is full: a notebook could not be written."""
_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|disk is full|file write failed",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(
    r"^(?:\w+\.)*(?:MemoryError|OutOfMemoryError|_ArrayMemoryError)\b|DefaultCPUAllocator: can't allocate|oom[-_]kill"
    r"|Cannot allocate memory|CUDA out of memory",
    re.MULTILINE,
)
_DEAD = re.compile(r"DeadKernelError|Kernel died|^Killed$|\bKilled\b.*papermill", re.MULTILINE)
_RAISED = re.compile(r"^(?P<name>(?:\w+\.)*\w+)\s+Traceback \(most recent call last\)$", re.MULTILINE)
_INPUT = re.compile(r"^(?:histocrypt\.errors\.)?InputError: (.+)$", re.MULTILINE)
_REFUSED_INPUT = re.compile(r"^ +(?:histocrypt\.errors\.)?InputError: (.+)$", re.MULTILINE)


def reason(log: Path, study: Study, *, memory_mb: int = 0) -> str:
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


def full_disk(study: Study, text: str) -> str | None:
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


def _written(study: Study) -> dict[str, Path]:
    """Return the folders that a run writes to by what sets them."""
    temporary = Path(tempfile.gettempdir())
    return {"HISTOCRYPT_OUTPUTS": study.run.root, "HISTOCRYPT_CACHE": paths.cache(), "TMPDIR": temporary}


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def said_when_full(study: Study) -> Iterator[None]:
    """Turn the error of a full disk into an `InputError` that names the folder and the space left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(full_disk(study, "No space left on device")) from error
