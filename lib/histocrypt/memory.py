"""The largest memory a process has held."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def peak_gib(process: int | None = None) -> float | None:
    """Return the peak resident memory of a process in GiB; None where the system does not tell.

    On Linux the kernel's own mark is read: what ``getrusage`` gives there includes the peak of the process that started
    this one.

    Parameters
    ----------
    process
        Its number; this process if not given. Other processes can be asked on Linux only, while they run.
    """
    status = Path(f"/proc/{process or os.getpid()}/status")
    try:
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        if process is not None:
            return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
