"""Follows a run: a line as each notebook starts and ends, and one sentence for each that failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

import psutil

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.study import Study
from histocrypt.workflow.cluster import Cluster
from histocrypt.workflow.progress import Failure, Progress, full_disk, mistake, readable, reason, refused

LOOK_S = 30
"""How often a cluster is asked for jobs that will never start."""
GRACE_S = 5.0
"""How long what is to end is waited for, each time it is asked."""
ASKED = 6
"""How often it is asked before it is ended by force."""
SLURM_ENDS = {
    "OUT_OF_MEMORY": "it took more memory than it had asked for, twice as much the second time, and SLURM ended it",
    "TIMEOUT": "it took more time than it had asked for, twice as much the second time, and SLURM ended it",
    "CANCELLED": "it was cancelled (scancel)",
    "NODE_FAIL": "the node that it ran on failed",
    "BOOT_FAIL": "the node that it was to run on did not start",
    "DEADLINE": "it missed its deadline",
}
"""Why a job ended that was ended from outside; a notebook's log knows nothing of it."""


def watch(command: list[str], study: Study, lock: IO[str], cluster: Cluster | None = None) -> int:
    """Run Snakemake, print one line as each notebook starts and ends, and explain a failure."""
    began, clock = time.monotonic(), time.time()
    progress = Progress()
    log_path, last = study.run.logs / "snakemake.log", deque(maxlen=15)
    stuck = _stuck_told(cluster, began) if cluster else nullcontext()
    # Unbuffered: nothing is kept back that a full disk would refuse at the end.
    with log_path.open("wb", buffering=0) as log, stuck, _ended_as_by_ctrl_c():
        # The child inherits the lock: if this process is killed outright, the study stays locked until Snakemake ends.
        process = subprocess.Popen(
            command,
            cwd=paths.repository(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[lock.fileno()],
            start_new_session=True,
            env=cluster.environment() if cluster else None,
        )
        try:
            for line in process.stdout:
                last.append(line)
                with suppress(OSError):  # a full disk is said at the end
                    log.write(line.encode())
                if news := progress.read(line):
                    _say(began, news)
            code = process.wait()
        except KeyboardInterrupt:
            _say(began, "interrupted: jobs are being stopped")
            stop(process, asked=1 if cluster else ASKED)
            if cluster:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                try:
                    cluster.cancel()
                except InputError as error:
                    _say(began, f"interrupted, but jobs may still run: {error.problem}; the same command ends them")
                    return 130
            _say(began, "interrupted: jobs stopped; what was finished is kept, the same command goes on from there")
            return 130
    if code:
        failures = list(progress.failed.values())
        if not failures:
            said = "".join(last)
            if no := refused(log_path.read_text(encoding="utf-8", errors="replace")):
                print(f"histocrypt: {no}", file=sys.stderr)
                return 2
            ends = f"the workflow could not start; {log_path} ends with:\n{said}"
            print(f"histocrypt: {full_disk(study, said) or ends}", file=sys.stderr)
        _explain(failures, study)
        return 2 if any(mistake(failure.log) for failure in failures) else 1
    if not progress.anything:
        _say(began, "nothing to do: every artifact is newer than what it is made from")
    report = study.run.report
    if report.is_file() and (not progress.anything or report.stat().st_mtime >= clock):  # an older one is of other runs
        _say(began, f"report: {report}")
    return 0


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let a polite kill, or a terminal that closes, end a run as Ctrl-C does: its jobs must not outlive it."""
    signals = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {one: signal.getsignal(one) for one in signals}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for one, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _stuck_told(cluster: Cluster, began: float) -> Iterator[None]:
    """Tell of jobs that the cluster will never start; Snakemake waits for them for ever, without a word."""
    ended = threading.Event()

    def look() -> None:
        told = set()
        while not ended.wait(LOOK_S):
            for job, (name, why) in cluster.stuck().items():
                if job not in told:
                    told.add(job)
                    why = f"asks for what the cluster will not give (SLURM job {job}: {why})"
                    _say(began, f"{name} {why}; see docs/slurm.md")

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def stop(process: subprocess.Popen, *, asked: int = ASKED) -> None:
    """Stop Snakemake and all that it started here: as by Ctrl-C, more than once, and in the end by force.

    A Ctrl-C can be lost. asyncio, which Snakemake and papermill rest on, drops one that comes just as a task ends, and
    a job that starts at that moment does not get it; the run would then go on to its natural end. On a cluster, once is
    enough: Snakemake would first submit all jobs that it has in line and then sleep until its next look at them.

    Parameters
    ----------
    process
        Snakemake, the leader of its process group.
    asked
        How often to ask before force; each time it has `GRACE_S` seconds. A second Ctrl-C ends the waiting.
    """
    below = set()
    with suppress(KeyboardInterrupt):
        for _ in range(asked):
            if process.poll() is not None:
                break
            below |= _below(process.pid)  # kernels have groups of their own, and are orphans once their job has ended
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_S)
        psutil.wait_procs(below, timeout=GRACE_S)
    below |= _below(process.pid)
    process.kill()  # first, or it would start others
    for one in below:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _below(pid: int) -> set[psutil.Process]:
    """Return all processes below one; none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


def _say(began: float, text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    print(f"[{minutes:02d}:{seconds:02d}] {text}", flush=True)


def _explain(failures: list[Failure], study: Study) -> None:
    for failure in failures:
        path = failure.log
        why = mistake(path) or _ended_by_slurm(failure) or reason(path, study, memory_mb=failure.memory_mb)
        notebook = Path(f"{path}.ipynb")
        opened = f"; the notebook as it stopped: {notebook}" if notebook.is_file() else ""
        print(f"histocrypt: {readable(path.stem)} failed: {why}\n  log: {path}{opened}", file=sys.stderr)
    print("histocrypt: what was finished is kept; the same command goes on from there", file=sys.stderr)


def _ended_by_slurm(failure: Failure) -> str:
    if failure.refused:
        return f"SLURM did not take the job: {failure.refused}"
    return SLURM_ENDS.get(failure.slurm, "")
