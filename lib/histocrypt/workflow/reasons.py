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
