"""Runs a notebook's command in this process and writes down what it took: seconds, CPU seconds, peak memory.

``python -m histocrypt.workflow.measure LOG papermill IN OUT ...`` runs the module `papermill` with the arguments that
follow it and leaves ``stages/<job>.json`` beside ``<job>.log``, wherever the job runs. Snakemake's own `benchmark`
looks only every 30 s once a job is 15 s old, and writes nothing about a job that failed.

The peak is the larger of two figures. The kernel's own mark of the largest single process misses nothing, but does not
add up processes; a sample of the whole family every half second does (shared pages counted once), but may miss a short
rise.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from histocrypt import paths
from histocrypt.files import write_json

INTERVAL_S = 0.5
SHARE = 0.02
"""Sampling may take this share of a core; where a look takes long, looks become rarer."""
NO_KERNEL = ("Kernel didn't respond", "Kernel died before replying")
"""What Jupyter says of a kernel that hangs or dies as it starts, as one does now and then where many start at once."""


WIDGET = "application/vnd.jupyter.widget-view+json"
UNUSED = ("pyarrow", "pyarrow.fs")
"""What papermill and what it stands on would import, too, and never use where no kernel is forked."""


class Family:
    """Samples what this process and all below it hold together, in a thread."""

    def __init__(self) -> None:
        self.peak_bytes, self.processes = 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Family:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        own = psutil.Process()
        pause = 0.0
        while not self._stop.wait(pause):
            began = time.thread_time()
            family = [own, *own.children(recursive=True)]
            parts = [_held(process) for process in family]
            together = sum(private for private, _ in parts) + max(shared for _, shared in parts)
            self.peak_bytes = max(self.peak_bytes, together)
            self.processes = max(self.processes, len(family))
            pause = max(INTERVAL_S, (time.thread_time() - began) / SHARE)


def _held(process: Any) -> tuple[int, int]:
    """Return the bytes that a process holds alone, and those that it shares; nothing if it has just ended."""
    import psutil

    try:
        try:
            full = process.memory_full_info()
            return full.uss, max(0, full.rss - full.uss)
        except psutil.AccessDenied:
            return process.memory_info().rss, 0
    except psutil.Error:
        return 0, 0


def record_beside(log: Path) -> Path:
    """Return where the record of the job with this log is kept."""
    return log.parent / "stages" / f"{log.stem}.json"


def measured(log: Path, values: dict[str, str], work: Callable[[], None]) -> None:
    """Do ``work`` and write its record, whether it ends well or not.

    Parameters
    ----------
    log
        The log of the job; its name without suffix is the job's.
    values
        Section, model and fold, as far as the job is of one.
    work
        What is measured. An exception, `SystemExit` included, is recorded and goes on.
    """
    from histocrypt.machine import processor

    began, clock = datetime.now(UTC), time.monotonic()
    record: dict[str, Any] = {
        "job": log.stem,
        "notebook": log.stem.partition("__")[0],
        **{name: values.get(name) for name in ("section", "model", "fold")},
        "outcome": "running",
        **_attempt(log),
        "begun": began.isoformat(timespec="milliseconds"),
    }
    _write(log, record)
    record["outcome"] = "failed"
    family = Family()
    try:
        with family:
            work()
        record["outcome"] = "finished"
    except SystemExit as end:
        record["outcome"] = "failed" if end.code else "finished"
        raise
    finally:
        largest, cpu_seconds = _marks()
        record |= {
            "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.monotonic() - clock, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "peak_gib": round(max(largest, family.peak_bytes) / 2**30, 4),
            "largest_process_gib": round(largest / 2**30, 4),
            "processes": family.processes,
            "threads": paths.threads(),
            "processor": processor(),
        }
        _write(log, record)


def _attempt(log: Path) -> dict[str, Any]:
    """Return which run this job is of and, where that run has tried it before, which attempt this is."""
    try:
        run = json.loads(paths.RunFolder(log.parent.parent).record.read_text(encoding="utf-8"))["begun"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    try:
        earlier = json.loads(record_beside(log).read_text(encoding="utf-8"))
        before = earlier.get("attempt", 1) if earlier.get("run") == run else 0
    except (OSError, ValueError, AttributeError):
        before = 0
    return {"run": run, "attempt": before + 1}


def _marks() -> tuple[int, float]:
    """Return the peak of the largest process of this family, in bytes, and what all used of processors, in seconds."""
    from histocrypt.machine import peak_gib

    try:
        import resource
    except ImportError:  # Windows
        return int((peak_gib() or 0) * 2**30), time.process_time()
    below = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 2**10
    largest = max(int((peak_gib() or 0) * 2**30), below.ru_maxrss * unit)
    return largest, time.process_time() + below.ru_utime + below.ru_stime


def _write(log: Path, record: dict[str, Any]) -> None:
    try:
        write_json(record_beside(log), record)
    except OSError as error:  # a full disk: the notebook says what it means for the run
        print(f"histocrypt: no record of this job ({error.strerror})", file=sys.stderr)


def _values(arguments: list[str]) -> dict[str, str]:
    """Return the notebook parameters among papermill's arguments."""
    pairs = zip(arguments, arguments[1:], arguments[2:], strict=False)
    return {name: value for flag, name, value in pairs if flag in ("-p", "-r")}


def main(log: str, module: str, *arguments: str) -> None:
    """Run a module as a program, measured."""
    if module not in sys.modules:  # in a preloaded process it is there, and the notebook's kernel is a fork of it
        from histocrypt.workflow import preloaded

        for unused in (*preloaded.UNUSED, *UNUSED):
            sys.modules.setdefault(unused, None)
    if module == "papermill":
        _follow_cells(Path(log))
    sys.argv = [module, *arguments]
    measured(Path(log), _values(list(arguments)), lambda: _run(module))


def cell_beside(log: Path) -> Path:
    """Return where a running job says which cell it is at: number, number of cells, last heading."""
    return log.with_suffix(".cell")


def _follow_cells(log: Path) -> None:
    """Have papermill say which cell it is at, and drop what shows no more once a notebook is closed."""
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **settings: Any) -> Any:
            cells, start = nb_man.nb.cells, nb_man.cell_start
            titles = [_heading(cell) for cell in cells]

            def said(cell: Any, cell_index: int, **more: Any) -> None:
                title = next(filter(None, reversed(titles[: cell_index + 1])), "")
                with suppress(OSError):
                    cell_beside(log).write_text(f"{cell_index + 1} {len(cells)} {title}", encoding="utf-8")
                start(cell, cell_index, **more)

            nb_man.cell_start = said
            try:
                return super().execute_managed_notebook(nb_man, kernel_name, **settings)
            finally:
                cell_beside(log).unlink(missing_ok=True)
                for cell in cells:  # progress bars and their like stand still at what they first showed
                    if cell.cell_type == "code":
                        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
                nb_man.nb.metadata.pop("widgets", None)

    for name in (None, "nbclient"):
        papermill_engines.register(name, Engine)


def _heading(cell: Any) -> str:
    lines = cell.source.splitlines() if cell.cell_type == "markdown" else []
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def _run(module: str) -> None:
    """Run a module as a program; once more where a kernel did not come up: nothing of its notebook has run then."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except RuntimeError as error:
        if not str(error).startswith(NO_KERNEL):
            raise
        print(f"histocrypt: {error}; it is started once more", file=sys.stderr)
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from histocrypt.workflow.preloaded import ask

    code = ask("histocrypt.workflow.measure", sys.argv[1:])
    if code is None:
        main(*sys.argv[1:])
    sys.exit(code)
