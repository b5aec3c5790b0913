"""Why a job failed, in one sentence, from what it printed and from how things stand."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.study import Study

FULL = 2**20
"""With less than this left, bytes, a disk is full: a notebook could not be written."""
_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|disk is full|file write failed",
    re.IGNORECASE,
)
_MEMORY = re.compile(
    r"^(?:\w+\.)*(?:MemoryError|OutOfMemoryError|_ArrayMemoryError)\b|DefaultCPUAllocator: can't allocate|oom[-_]kill"
    r"|Cannot allocate memory|CUDA out of memory",
    re.MULTILINE,
)
_DEAD = re.compile(r"DeadKernelError|Kernel died|^Killed$|\bKilled\b.*papermill", re.MULTILINE)
_RAISED = re.compile(r"^(?P<name>(?:\w+\.)*\w+)\s+Traceback \(most recent call last\)$", re.MULTILINE)
_INPUT = re.compile(r"^(?:histocrypt\.errors\.)?InputError: (.+)$", re.MULTILINE)


def reason(log: Path, study: Study, *, memory_gib: float | None = None) -> str:
    """Return why the job with this log failed.

    Parameters
    ----------
    log
        What the job printed; it may be missing or cut short.
    study
        Whose folders are looked at where a disk is full.
    memory_gib
        What the job had asked for, if that is known.
    """
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if mistake := input_error(text):
        return mistake
    full = fullest(study)
    if _FULL.search(text) or full[1] < FULL:
        return disk_full(full)
    asked = f"; {memory_gib:.1f} GiB were asked for" if memory_gib else ""
    if _MEMORY.search(text):
        return f"it ran out of memory{asked} ({raised(text)})"
    if _DEAD.search(text):
        return f"its process was killed, probably for want of memory{asked}"
    return raised(text) or "no log was written"


def input_error(text: str) -> str | None:
    """Return the sentence of an `InputError` that stopped a notebook, or None."""
    found = _INPUT.findall(text)
    return found[-1] if found else None


def raised(text: str) -> str:
    """Return the error that a notebook raised, on one line; else the last line printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for match in reversed(list(_RAISED.finditer(text))):
        start = text.rfind(f"\n{match['name']}: ")
        if start >= 0:
            return " ".join(text[start:].split("\n\n")[0].split())[:400]
    return lines[-1] if lines else ""


def fullest(study: Study) -> tuple[str, int]:
    """Return the folder that a run writes to with the least space left, with the way to set it, and its free bytes."""
    folders = {
        f"{study.run.root} (HISTOCRYPT_OUTPUTS)": study.run.root,
        f"{paths.cache()} (HISTOCRYPT_CACHE)": paths.cache(),
        f"{tempfile.gettempdir()} (TMPDIR)": Path(tempfile.gettempdir()),
        f"{Path.home()} (your home)": Path.home(),
    }
    free = {}
    for name, folder in folders.items():
        while not folder.exists():
            folder = folder.parent
        free[name] = shutil.disk_usage(folder).free
    return min(free.items(), key=lambda one: one[1])


def disk_full(full: tuple[str, int]) -> str:
    """Return the sentence for a full disk."""
    where, free = full
    return f"the disk is full: {free / 2**20:.1f} MiB are left in {where}; make room there, or choose another folder"


@contextmanager
def said_when_full(study: Study) -> Iterator[None]:
    """Turn the error of a full disk into an `InputError` that names the folder and the space left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(disk_full(fullest(study))) from error


def memory_asked(line: str) -> float | None:
    """Return the GiB in a line of Snakemake's that lists a job's resources."""
    found = re.search(r"\bmem_mb=(\d+)", line)
    return int(found[1]) / 1024 if found and line.strip().startswith("resources:") else None
