"""Follows a run: a line as each notebook starts and ends, and one sentence for each that failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from histocrypt import paths
from histocrypt.study import Study
from histocrypt.workflow.progress import Failure, Progress, readable

SLURM_ENDS = {
    "OUT_OF_MEMORY": "it took more memory than it had asked for, twice as much the second time, and SLURM ended it",
    "TIMEOUT": "it took more time than it had asked for, twice as much the second time, and SLURM ended it",
    "CANCELLED": "it was cancelled (scancel)",
    "NODE_FAIL": "the node that it ran on failed",
    "BOOT_FAIL": "the node that it was to run on did not start",
    "DEADLINE": "it missed its deadline",
}
"""Why a job ended that was ended from outside; a notebook's log knows nothing of it."""


def watch(command: list[str], study: Study, lock: IO[str]) -> int:
    """Run Snakemake, print one line as each notebook starts and ends, and explain a failure."""
    began = time.monotonic()
    progress = Progress()
    log_path = study.run.logs / "snakemake.log"
    with log_path.open("w", encoding="utf-8") as log:
        # The child inherits the lock: if this process is killed outright, the study stays locked until Snakemake ends.
        process = subprocess.Popen(
            command,
            cwd=paths.repository(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if news := progress.read(line):
                    _say(began, news)
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            _say(began, "interrupted: jobs stopped; what was finished is kept, the same command goes on from there")
            return 130
    if code:
        failures = list(progress.failed.values())
        _explain(failures, log_path)
        return 2 if any(_input_error(failure.log) for failure in failures) else 1
    if not progress.anything:
        _say(began, "nothing to do: every artifact is newer than what it is made from")
    if study.run.report.is_file():
        _say(began, f"report: {study.run.report}")
    return 0


def _say(began: float, text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    print(f"[{minutes:02d}:{seconds:02d}] {text}", flush=True)


def _explain(failures: list[Failure], log_path: Path) -> None:
    if not failures:
        tail = "".join(log_path.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        print(f"histocrypt: the workflow could not start; {log_path} ends with:\n{tail}", file=sys.stderr)
    for failure in failures:
        path = failure.log
        reason = _input_error(path) or _ended_by_slurm(failure) or _last_line(path)
        notebook = Path(f"{path}.ipynb")
        opened = f"; the notebook as it stopped: {notebook}" if notebook.is_file() else ""
        print(f"histocrypt: {readable(path.stem)} failed: {reason}\n  log: {path}{opened}", file=sys.stderr)
    print("histocrypt: what was finished is kept; the same command goes on from there", file=sys.stderr)


def _ended_by_slurm(failure: Failure) -> str:
    if failure.refused:
        return f"SLURM did not take the job: {failure.refused}"
    return SLURM_ENDS.get(failure.slurm, "")


def _input_error(log: Path) -> str | None:
    """Return the sentence of an `InputError` that stopped a notebook, or None."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    found = re.findall(r"^(?:histocrypt\.errors\.)?InputError: (.+)$", text, flags=re.MULTILINE)
    return found[-1] if found else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no log was written")
