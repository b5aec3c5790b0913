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
_REFUSED = re.compile(r"^ +(?:histocrypt\.errors\.)?InputError: (.+)$", re.MULTILINE)


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
    if _MEMORY.search(text):
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
    found = _REFUSED.search(said)
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
    """Return the sentence for a full disk, where ``text`` tells of one or nothing is left; else None."""
    where, free = _fullest(study)
    if free > FULL and not _FULL.search(text):
        return None
    return f"the disk is full: {free / 2**20:.1f} MiB are left in {where}; make room there, or choose another folder"


def _fullest(study: Study) -> tuple[str, int]:
    """Return the folder that a run writes to with the least space left, with what sets it, and its free bytes."""
    folders = {
        "HISTOCRYPT_OUTPUTS": study.run.root,
        "HISTOCRYPT_CACHE": paths.cache(),
        "TMPDIR": Path(tempfile.gettempdir()),
        "HOME": Path.home(),
    }
    free = {}
    for name, folder in folders.items():
        there = folder
        while not there.exists():
            there = there.parent
        free[f"{folder} ({name})"] = shutil.disk_usage(there).free
    return min(free.items(), key=lambda one: one[1])


@contextmanager
def said_when_full(study: Study) -> Iterator[None]:
    """Turn the error of a full disk into an `InputError` that names the folder and the space left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(full_disk(study, "No space left on device")) from error
