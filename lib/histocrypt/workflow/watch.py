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

_LOG = re.compile(r"^\s+log: (\S+)")
_JOB = re.compile(r"^\s+jobid: (\d+)")
_FINISHED = re.compile(r"^Finished jobid: (\d+)")
_STEPS = re.compile(r"^(\d+) of (\d+) steps")
_FAILED = re.compile(r"^\s+log: (\S+)\s+\(check log file")
_AGAIN = re.compile(r"^Trying to restart job (\d+)")


def watch(command: list[str], study: Study, lock: IO[str]) -> int:
    """Run Snakemake, print one line as each notebook starts and ends, and explain a failure."""
    began = time.monotonic()
    jobs: dict[str, tuple[str, float]] = {}
    steps, name, said_anything = "", "", False
    failed: dict[str, Path] = {}  # by job; one that succeeds when it is tried again is taken out
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
                if match := _FAILED.match(line):
                    failed[Path(match[1]).stem] = Path(match[1])
                elif match := _LOG.match(line):
                    name = Path(match[1]).stem
                elif match := _JOB.match(line):
                    if name:
                        jobs[match[1]] = (name, time.monotonic())
                        _say(began, f"{_readable(name)} ...")
                        said_anything = True
                    name = ""
                elif match := _FINISHED.match(line):
                    job, started = jobs.pop(match[1], ("", 0.0))
                    if job:
                        failed.pop(job, None)
                        _say(began, f"{_readable(job)} done in {time.monotonic() - started:.0f} s{steps}")
                elif match := _AGAIN.match(line):
                    job, _ = jobs.get(match[1], ("a job", 0.0))
                    _say(began, f"{_readable(job)} failed; tried once more, with twice the memory and time")
                elif match := _STEPS.match(line):
                    steps = f"  ({match[1]} of {match[2]} steps)"
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            _say(began, "interrupted: jobs stopped; what was finished is kept, the same command goes on from there")
            return 130
    if code:
        _explain(list(failed.values()), log_path)
        return 2 if any(_input_error(path) for path in failed.values()) else 1
    if not said_anything:
        _say(began, "nothing to do: every artifact is newer than what it is made from")
    if study.run.report.is_file():
        _say(began, f"report: {study.run.report}")
    return 0


def _readable(job: str) -> str:
    notebook, *rest = job.split("__")
    return " ".join([notebook, *rest])


def _say(began: float, text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    print(f"[{minutes:02d}:{seconds:02d}] {text}", flush=True)


def _explain(failed: list[Path], log_path: Path) -> None:
    if not failed:
        tail = "".join(log_path.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        print(f"histocrypt: the workflow could not start; {log_path} ends with:\n{tail}", file=sys.stderr)
    for path in failed:
        reason = _input_error(path) or _last_line(path)
        notebook = Path(f"{path}.ipynb")
        opened = f"; the notebook as it stopped: {notebook}" if notebook.is_file() else ""
        print(f"histocrypt: {_readable(path.stem)} failed: {reason}\n  log: {path}{opened}", file=sys.stderr)
    print("histocrypt: what was finished is kept; the same command goes on from there", file=sys.stderr)


def _input_error(log: Path) -> str | None:
    """Return the sentence of an `InputError` that stopped a notebook, or None."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    found = re.findall(r"^(?:histocrypt\.errors\.)?InputError: (.+)$", text, flags=re.MULTILINE)
    return found[-1] if found else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no log was written")
