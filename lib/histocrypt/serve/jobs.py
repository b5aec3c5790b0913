"""The jobs of a server: who may have how many, what each may use, and what is deleted when.

A job is one upload and what is made of it, in a folder of its own that nobody else can read. It is predicted in a
process of its own (`work`), so that a crash, or memory that runs out, ends one job alone. The upload is deleted as soon
as that process has ended, the answer when its client says so or after a while.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.http.refusals import Refused
from histocrypt.pipeline.folder import INHERITED, LOG, PREDICTED, PRELOADED, REFUSED, STATE, Settings, Task
from histocrypt.pipeline.listing import Slide
from histocrypt.scratch import own_folder
from histocrypt.serve.answers import file_name
from histocrypt.serve.uploads import HEAD, words_of_upload
from histocrypt.serve.work import OUT, SCRATCH, UPLOAD, Wanted, for_clients, run

SPARE_DISK = 64 << 20
"""Bytes that are left free on the disk, whatever clients upload."""
WRITTEN_AT_ONCE = 1 << 20
LOOK_SECONDS = 0.5
"""How often a running job is looked at."""
PREFIX = "histocrypt-predict-"


@dataclass(frozen=True)
class Limits:
    """What clients may use."""

    bytes: int = 4 << 30
    """Of one upload."""
    disk: int = 20 << 30
    """Bytes of all jobs together: uploads, what is made while they are predicted, answers."""
    megapixels: float = 20_000.0
    """Millions of pixels of one slide, or of all tiles of one upload."""
    memory: int = 8 << 30
    """Bytes that the process of one job may have in memory."""
    seconds: float = 1800.0
    """After so long a job is ended."""
    jobs: int = 1
    """Predicted at once."""
    waiting: int = 8
    """Of all clients together; each has its share of these, and one at least."""
    per_minute: int = 30
    """Uploads of one client."""
    kept_seconds: float = 900.0
    """How long an answer is kept after it was last asked for."""


@dataclass
class Job:
    """One upload, and what becomes of it."""

    number: int
    id: str
    """What its client calls it by; not to be guessed."""
    holder: str
    folder: Path
    name: str
    """What the client calls the slide."""
    wanted: Wanted
    settings: Settings
    size: int
    """Bytes that it has on disk, or that are held free for its upload."""
    state: str = "receiving"
    """``receiving``, ``waiting``, ``running``, ``done``, ``failed`` or ``ended``."""
    upload: Path | None = None
    found: dict[str, Any] = field(default_factory=dict)
    """What its process says of the prediction."""
    failure: Refused | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = 0.0
    touched: float = field(default_factory=time.monotonic)

    @property
    def verdict(self) -> str:
        """Whether the model may be used on the slide, in a word or three."""
        return (self.found.get("slide") or {}).get("verdict", "not judged")


class Store:
    """All jobs of a server. Methods are for the event loop; work goes to threads, and from there to processes.

    Parameters
    ----------
    model
        Folder of the model.
    clients
        Names of those that have a token.
    limits
        What they may use.
    scratch
        Where uploads lie; in a folder of its own that others cannot read.
    """

    def __init__(self, model: Path, *, clients: Sequence[str], limits: Limits, scratch: Path | None = None) -> None:
        self.limits = limits
        self.folder, self._lock = own_folder(scratch, PREFIX)
        self._model = model
        self._share = max(1, (limits.jobs + limits.waiting) // len(clients))
        self._jobs: dict[str, Job] = {}
        self._recent: dict[str, deque[float]] = defaultdict(deque)
        self._count = 0
        self._pool = ThreadPoolExecutor(limits.jobs, thread_name_prefix="job")
        method = next(name for name in ("forkserver", "spawn") if name in get_all_start_methods())
        self._processes = get_context(method)
        if method == "forkserver":
            self._processes.set_forkserver_preload([*PRELOADED, "histocrypt.serve.work"])
        self._stopped = False
        self._turn = threading.Lock()

    # From the event loop.

    def open(self, holder: str, *, name: str, wanted: Wanted, settings: Settings, size: int) -> Job:
        """Make room for a job whose upload has at most ``size`` bytes, or say why there is none."""
        unfinished = [job for job in list(self._jobs.values()) if job.state in ("receiving", "waiting", "running")]
        if sum(job.holder == holder for job in unfinished) >= self._share:
            raise Refused(429, f"At most {self._share} slides of a client are taken at once.", retry_after=10)
        if len(unfinished) >= self.limits.jobs + self.limits.waiting:
            raise Refused(429, "As many slides wait as this server takes.", retry_after=10)
        recent, now = self._recent[holder], time.monotonic()
        while recent and now - recent[0] > 60:
            recent.popleft()
        if len(recent) >= self.limits.per_minute:
            sentence = f"At most {self.limits.per_minute} uploads per minute are allowed per client."
            raise Refused(429, sentence, retry_after=max(1, int(61 - (now - recent[0]))))
        coming = sum(job.size for job in list(self._jobs.values()) if job.state == "receiving")
        if self.used() + size > self.limits.disk or shutil.disk_usage(self.folder).free < size + coming + SPARE_DISK:
            raise Refused(507, "The server's disk has no room for this upload now.", retry_after=60)
        recent.append(now)
        self._count += 1
        folder = self.folder / str(self._count)
        folder.mkdir(mode=0o700)
        job = Job(self._count, secrets.token_urlsafe(24), holder, folder, name, wanted, settings, size)
        self._jobs[job.id] = job
        return job

    def used(self) -> int:
        """Return the bytes that all jobs have on disk, or have been promised."""
        return sum(job.size for job in list(self._jobs.values()))

    async def receive(
        self, job: Job, parts: AsyncIterator[bytes], kind: Callable[[bytes], str | None], kinds: str
    ) -> None:
        """Write an upload to a file, a piece at a time; refuse it unread where its first bytes are of no kind taken.

        Parameters
        ----------
        job
            Just opened.
        parts
            The body.
        kind
            Gives the ending of the file by its first `uploads.HEAD` bytes.
        kinds
            What would be taken, for the error.
        """
        held, received = bytearray(), 0
        async for part in parts:
            held += part
            if job.upload is None and len(held) >= HEAD:
                job.upload = self._upload(job, bytes(held[:HEAD]), kind, kinds)
            if job.upload is not None and len(held) >= WRITTEN_AT_ONCE:
                received += await self._write(job, held)
                held = bytearray()
        if job.upload is None:
            job.upload = self._upload(job, bytes(held), kind, kinds)
        received += await self._write(job, held)
        job.size, job.state = received, "waiting"
        self._say(job, f"{job.holder} sent {received / 2**20:.1f} MiB")
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._pool, self._run, job, loop)

    @staticmethod
    def _upload(job: Job, head: bytes, kind: Callable[[bytes], str | None], kinds: str) -> Path:
        suffix = kind(head)
        if suffix is None:
            like = words_of_upload(head) or ("it is empty" if not head else "its first bytes say so")
            said = {"field": "body", "value": head[:8].hex(), "expected": kinds}
            raise Refused(415, f"The body is not {kinds}: {like}.", said=said)
        (job.folder / UPLOAD).mkdir(mode=0o700)
        path = job.folder / UPLOAD / f"slide{suffix}"
        path.touch(mode=0o600)
        return path

    @staticmethod
    async def _write(job: Job, held: bytearray) -> int:
        def append() -> None:
            with job.upload.open("ab") as file:
                file.write(held)

        try:
            await asyncio.to_thread(append)
        except OSError as error:
            raise Refused(507, f"The server cannot store the upload now ({error.strerror}).", retry_after=60) from error
        return len(held)

    def get(self, identity: str, holder: str) -> Job:
        """Return a client's own job."""
        job = self._jobs.get(identity)
        if job is None or job.holder != holder:
            raise Refused(404, "There is no such job: it was deleted, or its answer was not asked for in time.")
        job.touched = time.monotonic()
        return job

    def ahead(self, job: Job) -> int:
        """Return how many jobs are predicted before this one begins."""
        return sum(
            other.state in ("waiting", "running") and other.number < job.number for other in list(self._jobs.values())
        )

    def end(self, job: Job) -> None:
        """End a job, whatever it does, and delete what there is of it."""
        with self._turn:
            running, job.state = job.state == "running", "ended"
        self._jobs.pop(job.id, None)
        job.over.set()
        if not running:  # else its thread does so as soon as its process is gone
            shutil.rmtree(job.folder, ignore_errors=True)

    async def sweep(self) -> None:
        """Delete answers that nobody asks for, now and then, until cancelled."""
        while True:
            await asyncio.sleep(min(10.0, self.limits.kept_seconds / 4))
            now = time.monotonic()
            for job in list(self._jobs.values()):
                if job.state in ("done", "failed") and now - job.touched > self.limits.kept_seconds:
                    self.end(job)

    def stop(self) -> None:
        """End everything and delete the folder."""
        self._stopped = True
        for job in list(self._jobs.values()):
            job.state = "ended"
        self._pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    @staticmethod
    def _say(job: Job, what: str) -> None:
        print(f"job {job.number}: {what}", file=sys.stderr, flush=True)

    # In a thread for each job that is predicted.

    def _run(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        """Predict a job and say what came of it; its upload is gone then."""
        with self._turn:
            if job.state != "waiting":
                return
            job.state, job.began = "running", time.monotonic()
        try:
            ended = self._predict(job)
            failure = self._failure(job, ended)
        except Exception as error:  # noqa: BLE001  one job alone
            self._say(job, f"failed: {type(error).__name__}: {error}")
            failure = Refused(500, "The server failed; its log says how.")
        shutil.rmtree(job.folder / UPLOAD, ignore_errors=True)
        shutil.rmtree(job.folder / SCRATCH, ignore_errors=True)
        job.failure, job.size, job.touched = failure, _bytes_in(job.folder), time.monotonic()
        with self._turn:
            gone = job.state == "ended"
            job.state = "ended" if gone else "done" if failure is None else "failed"
        if gone:
            shutil.rmtree(job.folder, ignore_errors=True)
            return
        spots = f"{job.found.get('spots')} spots, {job.verdict}" if failure is None else f"refused ({failure.status})"
        self._say(job, f"{spots}, after {time.monotonic() - job.began:.1f} s")
        with suppress(RuntimeError):  # the server stops
            loop.call_soon_threadsafe(job.over.set)

    def _predict(self, job: Job) -> str:
        """Run the process of a job; return why it was ended from here, "" where it ended by itself."""
        limits, slide = self.limits, Slide(job.name, str(job.upload), um_per_px=job.settings.um_per_px)
        environment = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
        (job.folder / OUT).mkdir(mode=0o700)
        places = {"folder": job.folder / OUT, "scratch": str(job.folder / SCRATCH)}
        task = Task(
            slide,
            self._model,
            asked={"regions": None},
            settings=job.settings,
            environment=environment,
            then=None,
            **places,
        )
        how = {"megapixels": limits.megapixels, "memory": limits.memory, "disk": limits.disk}
        process = self._processes.Process(target=run, args=(task, job.wanted), kwargs=how)
        process.start()
        why, until = "", time.monotonic() + limits.seconds
        try:
            while not connection.wait([process.sentinel], timeout=LOOK_SECONDS):
                job.size = _bytes_in(job.folder)
                if job.state == "ended" or self._stopped:
                    why = "ended"
                elif time.monotonic() > until:
                    why = "seconds"
                elif self.used() > limits.disk or shutil.disk_usage(self.folder).free < SPARE_DISK:
                    why = "disk"
                if why:
                    break
        finally:
            if why or process.is_alive():
                process.kill()
            process.join()
        return why

    def _failure(self, job: Job, why: str) -> Refused | None:
        """Return what to say where a job has no answer."""
        limits = self.limits
        if why == "ended":
            return Refused(404, "This job was deleted.")
        if why == "seconds":
            said = {"field": "seconds", "value": limits.seconds}
            return Refused(
                422, f"It was not predicted within the {limits.seconds:.0f} s that this server gives.", said=said
            )
        if why == "disk":
            return Refused(507, "It needs more room on the server's disk than there is.", said={"field": "disk"})
        try:
            found = read_json(job.folder / OUT / STATE)
        except InputError:
            self._show_log(job)
            return Refused(500, "The process that predicted it was ended; the server's log may say why.")
        if found["status"] == PREDICTED:
            job.found = found
            return None
        error = found.get("error")
        if error is None:
            self._show_log(job)
            return Refused(500, "It failed by a fault of the server, whose log says how.")
        if error["field"] == "memory":
            most = f"{limits.memory / 2**30:.1f} GiB"
            return Refused(
                413,
                f"It needs more memory than the {most} that this server gives.",
                said={"field": "memory", "value": most},
            )
        shown = partial(for_clients, folder=job.folder, name=job.name, model=self._model)
        said = {name: shown(value) if isinstance(value, str) else value for name, value in error.items()}
        said |= {"reasons": found["slide"]["why"]} if found["status"] == REFUSED else {}
        return Refused(422, shown(found["problem"]), said=said)

    def _show_log(self, job: Job) -> None:
        log = job.folder / OUT / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        told = [line for line in lines if line.strip() and "%|" not in line]  # and no bars of progress
        self._say(job, "failed: " + " | ".join(told[-12:]))


def answer_of(job: Job, form: str) -> Path:
    """Return the file that is sent back."""
    return job.folder / OUT / file_name(form)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it is gone
            total += path.lstat().st_size
    return total


def limits_words(limits: Limits) -> Mapping[str, Any]:
    """Return what clients are told of limits."""
    return {
        "bytes": limits.bytes,
        "megapixels": limits.megapixels,
        "seconds": limits.seconds,
        "uploads_per_minute": limits.per_minute,
        "kept_seconds": limits.kept_seconds,
    }
