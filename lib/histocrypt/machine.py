"""What a run ran on and with: machine, versions, state of the checkout. No host or user name: these identify people."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from histocrypt import paths

if TYPE_CHECKING:
    import torch

Item, Result = TypeVar("Item"), TypeVar("Result")


def choose_device() -> torch.device:
    """Return the best device present: CUDA, then Apple MPS, then CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def usable_cores() -> int:
    """Return the number of cores this process may use: what a scheduler or a container left to it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # none on macOS


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 64) -> Iterator[Result]:
    """Yield what a function makes of items, in order, on the threads that this process may use (`paths.threads`).

    For what spends its time in numpy and scipy, which let other threads go on meanwhile. ``ahead`` items are taken at a
    time, so that not all need be in memory.
    """
    items = iter(items)
    if (workers := paths.threads()) == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(items, ahead)):
            yield from pool.map(function, some)


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


PACKAGES = (
    "histocrypt",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "anndata",
    "scanpy",
    "h5py",
    "scikit-image",
    "diffusers",
    "snakemake",
    "snakemake-executor-plugin-slurm",
    "papermill",
    "orion-v2-lattigo",
    "orion-v2-evaluator",
    "orion-fhe",
)
CHANGED_SHOWN = 10


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on, as far as installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """Return the commit of a checkout and whether its tracked files were changed.

    Parameters
    ----------
    folder
        Root of the checkout; this repository's if not given.

    Returns
    -------
    ``commit``, ``dirty`` and the first ``changed`` files; ``commit`` is None, with a ``note``, where there is no
    checkout or no git.
    """
    folder = folder or paths.repository()
    if not (folder / ".git").exists():  # else git would find a repository around this folder
        return {"commit": None, "note": "not a git checkout"}
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = [line[3:] for line in _git(folder, "status", "--porcelain", "--untracked-files=no").splitlines()]
    except FileNotFoundError:
        return {"commit": None, "note": "git is not installed"}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "note": "git cannot read this checkout"}
    return {"commit": commit, "dirty": bool(changed), "changed": changed[:CHANGED_SHOWN]}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def machine() -> dict[str, Any]:
    """Return the processor, cores, memory in GiB, GPUs and operating system of this machine."""
    import psutil

    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


@cache
def processor() -> str:
    """Return the name of the processor's model, or its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Return the names of NVIDIA GPUs; none where `nvidia-smi` is absent or fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.splitlines() if line.strip()]
