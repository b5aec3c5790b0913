"""Follows a run: how far it is, and one sentence for each notebook that failed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.workflow.cluster import Cluster
from histocrypt.workflow.command import Workload
from histocrypt.workflow.measure import cell_beside
from histocrypt.workflow.preloaded import Preloaded
from histocrypt.workflow.progress import Failure, Job, Progress, full_disk, mistake, parse, readable, reason, refused
from histocrypt.workflow.runs import duration

LOOK_S = 30
"""How often a cluster is asked for jobs that will never start."""
GRACE_S = 5.0
"""How long what is to end is waited for, each time it is asked."""
ASKED = 6
"""How often it is asked before it is ended by force."""
REDRAWN_S, TOLD_S = 0.5, 60.0
"""How often the line in a terminal is rewritten, and how often one is printed elsewhere."""
CLEAR = "\x1b[2K"
SLURM_ENDS = {
    "OUT_OF_MEMORY": "it took more memory than it had asked for, twice as much the second time, and SLURM ended it",
    "TIMEOUT": "it took more time than it had asked for, twice as much the second time, and SLURM ended it",
    "CANCELLED": "it was cancelled (scancel)",
    "NODE_FAIL": "the node that it ran on failed",
    "BOOT_FAIL": "the node that it was to run on did not start",
    "DEADLINE": "it missed its deadline",
}
"""Why a job ended that was ended from outside; a notebook's log knows nothing of it."""


def watch(
    command: list[str],
    study: Workload,
    lock: IO[str],
    cluster: Cluster | None = None,
    *,
    expected: Mapping[str, float] | None = None,
    preload: bool = True,
    failed: Callable[[str, str], None] | None = None,
) -> int:
    """Run Snakemake, show how far it is, explain a failure, and return the exit code.

    Parameters
    ----------
    command
        Snakemake's.
    study
        What is run.
    lock
        The study's open lock file, which Snakemake inherits: the study stays locked until both have ended.
    cluster
        Where jobs go, if not to this machine.
    expected
        Seconds that jobs are expected to take, by name.
    preload
        Keep a process for jobs that are notebooks, which has imported what they do.
    failed
        Takes name and reason of each job that failed; None: they are printed.
    """
    clock = time.time()
    progress = Progress(expected or {})
    log_path, last = study.run.logs / "snakemake.log", deque(maxlen=15)
    command = [*command[:3], "--logger=histocrypt", *command[3:]]
    with (
        Teller(progress) as teller,
        Preloaded() as preloaded,
        # Unbuffered: nothing is kept back that a full disk would refuse at the end.
        log_path.open("wb", buffering=0) as log,
        _stuck_told(cluster, teller) if cluster else nullcontext(),
        _ended_as_by_ctrl_c(),
    ):
        process = subprocess.Popen(
            command,
            cwd=paths.repository(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[lock.fileno(), *preloaded.held],
            start_new_session=True,
            env=cluster.environment() if cluster else {**os.environ, **preloaded.environment},
        )
        try:
            for line in process.stdout:
                event = parse(line)
                last.append(event["text"] + "\n")
                with suppress(OSError):  # a full disk is said at the end
                    log.write(last[-1].encode())
                if event["event"] == "run_info" and preload and not cluster:
                    preloaded.start()
                teller.take(event)
            code = process.wait()
        except KeyboardInterrupt:
            teller.say("interrupted: jobs are being stopped")
            stop(process, asked=1 if cluster else ASKED, beside=preloaded.pid)
            if cluster:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                try:
                    cluster.cancel()
                except InputError as error:
                    teller.say(
                        f"interrupted, but jobs may still run: {error.problem}; run the same command again to end them"
                    )
                    return 130
            teller.say("interrupted: jobs stopped; what was finished is kept, run the same command again to resume")
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
        if failed is None:
            _explain(failures, study)
        else:
            for failure in failures:
                failed(failure.log.stem, _why(failure, study))
        return 2 if any(mistake(failure.log) for failure in failures) else 1
    if not progress.anything:
        teller.say("nothing to do: everything is up to date")
    report = study.run.report
    if report.is_file() and (not progress.anything or report.stat().st_mtime >= clock):  # an older one is of other runs
        teller.say(f"report: {report}")
    return 0


class Teller:
    """Tells how far a run is: one line rewritten in place in a terminal, else a line a minute and one for each job."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._began, self._lock = progress, time.monotonic(), threading.Lock()
        self._live, self._ended = sys.stdout.isatty(), threading.Event()
        self._said = float("-inf")
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Teller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            self._clear()

    def take(self, event: dict[str, Any]) -> None:
        """Take in an event, and tell what is new."""
        with self._lock:
            news = self._progress.take(event)
            if news and not (self._live and event["event"] == "job_finished"):
                self._print(news)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._print(text)

    def _go_on(self) -> None:
        while not self._ended.wait(REDRAWN_S):
            with self._lock:
                if self._live or time.monotonic() - self._said >= TOLD_S:
                    self._tell()

    def _tell(self) -> None:
        if not self._progress.running:
            return
        self._said = time.monotonic()
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{CLEAR}{self._line()[:width]}", end="", flush=True)
        else:
            print(self._line(), flush=True)

    def _line(self) -> str:
        progress = self._progress
        first, *others = progress.running.values()
        parts = [first.name + _cell(first) + (f", and {len(others)} more" if others else "")]
        parts.append(f"{progress.done} of {max(progress.total, progress.done + len(progress.running))} done")
        if left := progress.left():
            parts.append(f"{left[0]:.0%}")
            parts.append(f"{duration(left[1])} left" if progress.done else f"about {duration(left[1])}")
        return f"{self._time()} {' | '.join(parts)}"

    def _print(self, text: str) -> None:
        self._clear()
        print(f"{self._time()} {text}", flush=True)

    def _clear(self) -> None:
        if self._live:
            print(f"\r{CLEAR}", end="", flush=True)

    def _time(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"[{minutes:02d}:{seconds:02d}]"


def _cell(job: Job) -> str:
    """Return which cell a job is at, as far as it says so."""
    try:
        number, of, title = cell_beside(job.log).read_text(encoding="utf-8").split(" ", 2)
    except (OSError, ValueError, AttributeError):
        return ""
    return f", cell {number} of {of}" + (f" ({title})" if title else "")


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
def _stuck_told(cluster: Cluster, teller: Teller) -> Iterator[None]:
    """Tell of jobs that the cluster will never start; Snakemake waits for them for ever, without a word."""
    ended = threading.Event()

    def look() -> None:
        told = set()
        while not ended.wait(LOOK_S):
            for job, (name, why) in cluster.stuck().items():
                if job not in told:
                    told.add(job)
                    why = f"asks for resources that the cluster does not have (SLURM job {job}: {why})"
                    teller.say(f"{name} {why}; see docs/slurm.md")

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def stop(process: subprocess.Popen, *, asked: int = ASKED, beside: int | None = None) -> None:
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
    beside
        The preloaded process, whose forks are jobs, too.
    """
    below = set()
    with suppress(KeyboardInterrupt):
        for _ in range(asked):
            if process.poll() is not None:
                break
            below |= _below(process.pid) | _below(
                beside
            )  # kernels have groups of their own, and are orphans once their job has ended
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_S)
        psutil.wait_procs(below, timeout=GRACE_S)
    below |= _below(process.pid) | _below(beside)
    process.kill()  # first, or it would start others
    for one in below:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _below(pid: int | None) -> set[psutil.Process]:
    """Return all processes below one; none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pid).children(recursive=True)) if pid else set()
    return set()


def _explain(failures: list[Failure], study: Workload) -> None:
    for failure in failures:
        path, why = failure.log, _why(failure, study)
        notebook = Path(f"{path}.ipynb")
        opened = f"; the notebook as it stopped: {notebook}" if notebook.is_file() else ""
        print(f"histocrypt: {readable(path.stem)} failed: {why}\n  log: {path}{opened}", file=sys.stderr)
    print("histocrypt: what was finished is kept; run the same command again to resume", file=sys.stderr)


def _why(failure: Failure, study: Workload) -> str:
    log = failure.log
    return mistake(log) or _ended_by_slurm(failure) or reason(log, study, memory_mb=failure.memory_mb)


def _ended_by_slurm(failure: Failure) -> str:
    if failure.refused:
        return f"SLURM did not take the job: {failure.refused}"
    return SLURM_ENDS.get(failure.slurm, "")
