"""The sessions of a server: whose keys it holds, who may do how much, and what is deleted when."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from histocrypt.encrypted.answer_noise import AnswerNoise
from histocrypt.encrypted.bundle import forms
from histocrypt.encrypted.engine import EngineError
from histocrypt.encrypted.evaluator import Model
from histocrypt.encrypted.messages import LONGEST_HEADER
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.http.refusals import Refused
from histocrypt.scratch import SERVER, own_folder

UPLOAD_SECONDS = 120.0
"""A session whose keys do not get on for so long is ended."""
SPARE_DISK = 64 << 20
"""Bytes that are left free on the disk, whatever clients upload."""
IN_MEMORY = 16 << 20
"""Bytes of the largest message that is held in memory until it is evaluated."""
WRITTEN_AT_ONCE = 1 << 20
DEAD = 4
"""Connections of a session that may be waited for in vain: their client has come back on new ones."""


@dataclass(frozen=True)
class Limits:
    """What clients may use."""

    sessions: int = 4
    """At once, of all clients together; each holds a client's keys in memory."""
    spots: int = 30_000
    """Sent in one session: a section of 5,000 spots, all of them twice, in batches that are not full, and again after
    a line that broke."""
    per_minute: int = 12_000
    """Spots sent by one client, whatever the session."""
    idle_seconds: float = 900.0
    """A session without a request for so long is ended."""


@dataclass
class Hosted:
    """One client's session."""

    number: int
    name: str
    holder: str
    """The client whose token opened it; no other can use it."""
    client: Client
    """The model in the form that its keys were made for."""
    size: int
    """Of its evaluation keys, bytes."""
    path: Path
    file: IO[bytes]
    received: int = 0
    state: str = "receiving"
    """``receiving``, ``loading``, ``ready`` or ``ended``."""
    keys: Any = None
    """What `Model.session` gave; where the session is kept on disk, the key's name."""
    reading: int = 0
    running: int = 0
    """Messages that are evaluated; 1 while a job is queued or runs, where the whole request is one."""
    failure: str = ""
    """Why that job broke off."""
    doing: str = ""
    """What it waits for."""
    sent: int = 0
    """Spots."""
    touched: float = field(default_factory=time.monotonic)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)


class Store:
    """All sessions of a server on one compiled model. Methods are for the event loop; heavy work goes to threads.

    Parameters
    ----------
    model
        The compiled model.
    workers
        Ciphertexts evaluated at once, of all sessions together; a batch takes all of them.
    clients
        Names of those that have a token; each may have its share of the sessions, and one at least.
    limits
        What they may use.
    scratch
        Where keys lie while they are uploaded; in a folder of its own that others cannot read.
    noise
        Added to outputs, if given.
    """

    keeps = False
    """Whether sessions lie on disk and outlive the server: `histocrypt.encrypted.resnet.sessions`."""

    def __init__(
        self,
        model: Model,
        *,
        workers: int,
        clients: Sequence[str],
        limits: Limits,
        scratch: Path | None,
        noise: AnswerNoise | None = None,
    ) -> None:
        self.limits = limits
        self.folder, self._lock = own_folder(scratch, SERVER)
        self._forms = forms(model.bundle.client)
        self._model, self._workers, self._noise = model, workers, noise
        self._share = max(1, limits.sessions // len(clients))
        self._recent: dict[str, deque[tuple[float, int]]] = {name: deque() for name in clients}
        self._spooling = 0
        self._sessions: dict[str, Hosted] = {}
        self._count = 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="evaluate")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    def in_flight(self, client: Client) -> int:
        """Return how many messages of a session are taken at once: a batch is large, and the next one is received."""
        return 2 if client.form == "batch" else 2 * self._workers

    def open(self, holder: str, *, client: str, size: int) -> Hosted:
        """Open a session for keys of ``size`` bytes, made for the model whose hash is ``client``."""
        form = self._forms.get(client)
        if form is None:
            raise Refused(409, "The keys were made for another compiled model than the one served here.")
        most = int(1.1 * form.evaluation_key_bytes()) + (1 << 20) + LONGEST_HEADER
        if not 0 < size <= most:
            sentence = f"Evaluation keys of this model have at most {most} bytes, not {str(size)[:24]}."
            raise Refused(413, sentence)
        if len(self._sessions) >= self.limits.sessions:
            raise Refused(429, "All sessions are taken; try again later.", retry_after=15)
        if sum(hosted.holder == holder for hosted in self._sessions.values()) >= self._share:
            sentence = f"{holder} has {self._share} open sessions already; end one first."
            raise Refused(429, sentence, retry_after=15)
        self._need_disk(size, "these keys")
        self._count += 1
        name = secrets.token_urlsafe(24)
        path = self._keys_of(name)
        path.touch(mode=0o600)
        hosted = Hosted(self._count, name, holder, form, size, path, path.open("r+b", buffering=0))
        self._sessions[hosted.name] = hosted
        self._say(hosted, f"opened by {holder}, {size / 2**20:.0f} MiB of keys to come")
        return hosted

    def _keys_of(self, _name: str) -> Path:
        """Return where a new session's keys lie."""
        return self.folder / f"{self._count}.keys"

    def _need_disk(self, size: int, what: str) -> None:
        coming = sum(one.size - one.received for one in self._sessions.values() if one.state == "receiving")
        if shutil.disk_usage(self.folder).free < size + coming + self._spooling + SPARE_DISK:
            raise Refused(507, f"The server's disk has no room for {what} now; try again later.", retry_after=60)

    def get(self, name: str, holder: str) -> Hosted:
        """Return a client's own session."""
        hosted = self._sessions.get(name)
        if hosted is None or hosted.holder != holder:
            raise Refused(404, "There is no such session: it expired, was ended, or its keys were refused.")
        hosted.touched = time.monotonic()
        return hosted

    async def receive(self, hosted: Hosted, offset: int, parts: AsyncIterator[bytes]) -> None:
        """Append a chunk of keys; load them when they are complete. What is interrupted leaves no trace."""
        self._check_turn(hosted, offset)
        with self._reading(hosted):
            chunk = b"".join([part async for part in parts])
        if len(chunk) > hosted.size - offset:
            raise Refused(413, f"At most {hosted.size - offset} bytes of keys are to come.")
        async with hosted.busy:  # not before: a client that comes back need not wait for its own dead connection
            self._check_turn(hosted, offset)
            try:
                await self._append(hosted, offset, chunk)
            finally:
                if hosted.state == "ended":  # meanwhile
                    self._close(hosted)

    @staticmethod
    def _check_turn(hosted: Hosted, offset: int) -> None:
        if hosted.state != "receiving":
            raise Refused(409, f"This session takes no more keys ({hosted.state}).")
        if offset != hosted.received:
            raise Refused(409, f"The next chunk of keys starts at byte {hosted.received}, not {offset}.")

    @contextmanager
    def _reading(self, hosted: Hosted) -> Iterator[None]:
        """While a body is read; only so many at once, since each is held."""
        if hosted.reading >= self.in_flight(hosted.client) + DEAD:
            raise Refused(429, "Too many bodies of this session are on their way.", retry_after=5)
        hosted.reading += 1
        try:
            yield
        finally:
            hosted.reading -= 1
            hosted.touched = time.monotonic()

    @asynccontextmanager
    async def _message(self, hosted: Hosted, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes | Path]:
        """Give an input message: in memory while it is small, else in a private file that is deleted afterwards."""
        held, path, most = bytearray(), None, hosted.client.most_input_bytes
        try:
            with self._reading(hosted):
                async for part in parts:
                    held += part
                    if path is None and len(held) > IN_MEMORY:
                        self._need_disk(most, "this message")
                        path = self.folder / f"{secrets.token_hex(16)}.message"
                        path.touch(mode=0o600)
                        self._spooling += most
                    if path is not None and len(held) >= WRITTEN_AT_ONCE:
                        await self._spool(path, held)
                        held = bytearray()
                if path is not None:
                    await self._spool(path, held)
            yield bytes(held) if path is None else path
        finally:
            if path is not None:
                self._spooling -= most
                path.unlink(missing_ok=True)

    @staticmethod
    async def _spool(path: Path, held: bytearray) -> None:
        try:
            await asyncio.to_thread(_append_to, path, held)
        except OSError as error:
            raise Refused(507, f"The server cannot store a message now ({error.strerror}).", retry_after=60) from error

    async def _append(self, hosted: Hosted, offset: int, chunk: bytes) -> None:
        try:
            await asyncio.to_thread(_write, hosted.file, offset, chunk)
        except OSError as error:
            sentence = f"The server cannot store keys now ({error.strerror}); what came before is kept."
            raise Refused(507, sentence, retry_after=60) from error
        hosted.received += len(chunk)
        if hosted.received == hosted.size:
            await self._load(hosted)

    async def _load(self, hosted: Hosted) -> None:
        hosted.state = "loading"
        hosted.file.close()
        job = partial(self._model.session, hosted.path, workers=self._workers, noise=self._noise)
        try:
            hosted.keys = await asyncio.get_running_loop().run_in_executor(self._loader, job)
        except InputError as error:
            self._forget(hosted)
            self._say(hosted, "keys refused")
            raise error.of_file("evaluation keys") from error  # and not the server's own file name
        finally:
            hosted.path.unlink(missing_ok=True)  # the engine has its own copy
        if hosted.state == "loading":  # and not ended meanwhile
            hosted.state, hosted.touched = "ready", time.monotonic()
            self._say(hosted, "ready")

    async def evaluate(
        self, hosted: Hosted, parts: AsyncIterator[bytes], *, request: str, index: int, of: int
    ) -> bytes:
        """Return the output message for the input message that ``parts`` make up."""
        self._admit(hosted, hosted.client.places)
        async with self._message(hosted, parts) as data:
            if hosted.keys is None or hosted.state != "ready":
                raise Refused(404, "The session ended while a message was on its way.")
            self._check_queue(hosted)
            hosted.running += 1
            where = {"file": f"message {index}", "request": request, "index": index, "of": of}
            try:
                job = partial(hosted.keys.evaluate, data, **where)
                return await asyncio.get_running_loop().run_in_executor(self._pool, job)
            except InputError as error:
                if isinstance(error.__cause__, EngineError):
                    self._say(hosted, f"message {index}: {error.__cause__}")
                raise
            finally:
                hosted.running -= 1
                hosted.touched = time.monotonic()
                if hosted.state == "ended" and not hosted.running:
                    self._close(hosted)

    def _admit(self, hosted: Hosted, each: int) -> None:
        """Count a message's places against the quotas, before its body is read: nobody sees which of them are used."""
        most = self.limits
        if hosted.state != "ready":
            raise Refused(409, f"The keys of this session are not there yet ({hosted.state}).")
        if hosted.sent + each > most.spots:
            raise Refused(403, f"This session has had {hosted.sent} of its {most.spots} spots; open another one.")
        self._check_queue(hosted)
        recent, now = self._recent[hosted.holder], time.monotonic()
        while recent and now - recent[0][0] > 60:
            recent.popleft()
        if sum(spots for _, spots in recent) + each > most.per_minute:
            wait = max(1, int(61 - (now - recent[0][0]))) if recent else 60
            raise Refused(429, f"At most {most.per_minute} spots a minute are taken of a client.", retry_after=wait)
        recent.append((now, each))
        hosted.sent += each

    def _check_queue(self, hosted: Hosted) -> None:
        most = self.in_flight(hosted.client)
        if hosted.running >= most:
            raise Refused(429, f"At most {most} messages of a session are taken at once.", retry_after=1)

    def end(self, hosted: Hosted, why: str = "ended by its client") -> None:
        """End a session: nobody can use it from now on; keys go as soon as nothing is done with them."""
        self._forget(hosted)
        self._say(hosted, f"{why}, {hosted.sent} spots")
        if not hosted.busy.locked() and not hosted.running:  # else `receive` or `evaluate` closes it
            self._close(hosted)

    async def sweep(self) -> None:
        """End sessions whose client is gone, now and then, until cancelled."""
        while True:
            await asyncio.sleep(min(10.0, self.limits.idle_seconds / 4))
            now = time.monotonic()
            for hosted in list(self._sessions.values()):
                idle = now - hosted.touched > self._patience(hosted)
                if hosted.state in ("receiving", "ready") and not hosted.running and idle:
                    self.end(hosted, "expired")

    def _patience(self, hosted: Hosted) -> float:
        """Return for how many seconds a session may be without a request."""
        idle = self.limits.idle_seconds
        return min(idle, UPLOAD_SECONDS) if hosted.state == "receiving" else idle

    def stop(self) -> None:
        """End everything and delete the folder."""
        for pool in (self._pool, self._loader):
            pool.shutdown(wait=False, cancel_futures=True)
        for hosted in list(self._sessions.values()):
            self._forget(hosted)
            hosted.file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def _forget(self, hosted: Hosted) -> None:
        hosted.state = "ended"
        self._sessions.pop(hosted.name, None)

    def _close(self, hosted: Hosted) -> None:
        hosted.file.close()
        hosted.path.unlink(missing_ok=True)
        if hosted.keys is not None:
            hosted.keys.close()
            hosted.keys = None

    @staticmethod
    def _say(hosted: Hosted, what: str) -> None:
        print(f"session {hosted.number}: {what}", file=sys.stderr, flush=True)


def _write(file: IO[bytes], offset: int, chunk: bytes | bytearray) -> None:
    file.seek(offset)
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]


def _append_to(path: Path, data: bytearray) -> None:
    with path.open("ab", buffering=0) as file:
        _write(file, file.tell(), data)
