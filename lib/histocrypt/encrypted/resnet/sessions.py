"""Sessions of a bootstrapped network: 7 GiB of keys and a job of minutes or hours, so all of it lies on disk.

A session is a folder that only this user can read: ``evaluation.keys`` as they come, ``request`` and ``response`` as
`histocrypt.encrypted.resnet.request` has them, and ``session.json``. Its messages are evaluated by a process of its own
(`job`), one session at a time. A server that was killed finds its sessions again, and jobs go on with the layers they
were in. A session goes, keys and all, when its client ends it or has not asked for `LIMITS.idle_seconds`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import Bundle
from histocrypt.encrypted.evaluator import Model
from histocrypt.encrypted.resnet.request import GROUP, PROGRESS, check_tile, cost_of, room_for_layers
from histocrypt.encrypted.resnet.run import TOGETHER_GIB, EvaluationKeys
from histocrypt.encrypted.sessions import Hosted, Limits, Store
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json
from histocrypt.http.refusals import Refused

LIMITS = Limits(spots=256, idle_seconds=24 * 3600.0)
"""What clients may use where the server's owner says nothing: 256 tiles are six hours of two cores."""
UPLOAD_SECONDS = 3600.0
"""A session whose keys do not get on for so long is ended: its client may be started again meanwhile."""
RETRY_SECONDS = 5
"""After which a client asks again."""
WORKING = 8
"""Input messages of disk that each tile may take while it is in work."""


class KeptStore(Store):
    """All sessions of a server on one bootstrapped model; see `Store` for what is not said here.

    Parameters
    ----------
    bundle
        The compiled model.
    workers
        Refreshes at once.
    clients, limits
        As `Store` has them.
    folder
        Where sessions lie, in a folder of this model.

    Raises
    ------
    InputError
        If others can read that folder, another server has it, or memory is short.
    """

    keeps = True

    def __init__(
        self, bundle: Bundle, *, workers: int, clients: Sequence[str], limits: Limits, folder: str | Path
    ) -> None:
        self._bundle, self._refreshers = bundle, workers
        room_for_layers(cost_of(bundle), 2, workers, bundle=bundle)
        self._kept = _private(Path(folder) / f"histocrypt-sessions-{bundle.client.hash[:16]}")
        self._hold = _held(self._kept)
        super().__init__(Model(bundle), workers=1, clients=clients, limits=limits, scratch=self._kept)
        self._jobs = ThreadPoolExecutor(1, thread_name_prefix="job")
        self._process: tuple[Hosted, subprocess.Popen] | None = None
        self._stopping = False
        for place in sorted(self._kept.glob("session-*"), key=lambda place: place.stat().st_mtime):
            self._found(place, clients)

    def cost(self, count: int) -> dict[str, Any]:
        """Return what evaluating so many messages will cost; refuse what is over the quota before keys are made."""
        self._check_quota(count)
        cost = cost_of(self._bundle)
        return {
            "minutes": cost.seconds(count, GROUP, refreshers=self._refreshers) / 60,
            "gib": cost.gib(self._refreshers, ahead_gib=TOGETHER_GIB),
            "jobs": sum(hosted.running for hosted in self._sessions.values()),
        }

    def open(self, holder: str, *, client: str, size: int, count: int = 0) -> Hosted:
        """Open a session for so many messages, whose folder outlives this process."""
        self._check_quota(count)
        self._need_disk(size + WORKING * count * self._bundle.client.most_input_bytes, "these keys and tiles")
        hosted = super().open(holder, client=client, size=size)
        self._note(hosted, checked=False)
        return hosted

    def _check_quota(self, count: int) -> None:
        if count > self.limits.spots:
            sentence = f"A session of this model has at most {self.limits.spots} tiles, and each spot is sent twice."
            raise Refused(403, sentence)

    def _keys_of(self, name: str) -> Path:
        folder = self._kept / f"session-{name}"
        folder.mkdir(mode=0o700)
        return folder / "evaluation.keys"

    @staticmethod
    def _note(hosted: Hosted, **said: Any) -> None:
        content = {"holder": hosted.holder, "bytes": hosted.size, "key": hosted.keys, **said}
        write_json(hosted.path.with_name("session.json"), content)

    def _found(self, folder: Path, clients: Sequence[str]) -> None:
        """Take up a session of a server that was stopped; delete what is none, or is of nobody any more."""
        try:
            said = read_json(folder / "session.json")
            holder, size, path = said["holder"], said["bytes"], folder / "evaluation.keys"
            file = path.open("r+b", buffering=0)
        except (InputError, OSError, KeyError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
            return
        if holder not in clients:
            file.close()
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._count += 1
        name = folder.name.removeprefix("session-")
        hosted = Hosted(self._count, name, holder, self._bundle.client, size, path, file, keys=said.get("key"))
        self._sessions[name] = hosted
        if said.get("checked"):
            hosted.received, hosted.state = size, "ready"
            file.close()
        else:  # the last byte comes again where all were there: then they are checked
            hosted.received = min(path.stat().st_size, size - 1)
        self._say(hosted, f"of {holder} found again, {hosted.received / 2**20:.0f} MiB of keys are there")
        if said.get("started"):
            self._queue(hosted)

    async def _load(self, hosted: Hosted) -> None:
        hosted.state = "loading"
        hosted.file.close()
        try:
            job = asyncio.get_running_loop().run_in_executor(self._loader, _check_keys, hosted.path, hosted.client)
            hosted.keys = await job
        except InputError as error:
            self._forget(hosted)  # `receive` deletes them
            self._say(hosted, "keys refused")
            raise error.of_file("evaluation keys") from error
        if hosted.state == "loading":
            self._note(hosted, checked=True)
            hosted.state, hosted.touched = "ready", time.monotonic()
            self._say(hosted, "ready")

    def _request(self, hosted: Hosted, request: str, of: int, *, new: bool = False) -> dict[str, Any]:
        """Return what headers of a session's messages must say but for their place; it has one request."""
        if hosted.state != "ready":
            raise Refused(409, f"The keys of this session are not there yet ({hosted.state}).")
        self._check_quota(of)
        bound = {"client": hosted.client.hash, "key": hosted.keys, "request": request, "of": of}
        file = hosted.path.with_name("request.json")
        if not file.is_file() and new:
            for name in ("request", "response"):
                hosted.path.with_name(name).mkdir(mode=0o700, exist_ok=True)
            write_json(file, bound)
        elif not file.is_file() or read_json(file) != bound:
            raise Refused(409, "This session has another request; open another session.")
        return bound

    async def evaluate(
        self, hosted: Hosted, parts: AsyncIterator[bytes], *, request: str, index: int, of: int
    ) -> bytes:
        """Keep an input message; nothing is evaluated before `start`."""
        bound = self._request(hosted, request, of, new=True)
        if index >= of:
            raise Refused(422, f"The request has {of} messages.")
        path = hosted.path.with_name("request") / f"{index:05d}.ct"
        if not path.is_file():
            self._need_disk(WORKING * hosted.client.most_input_bytes, "this message")
        async with self._message(hosted, parts) as data:
            if hosted.state != "ready":
                raise Refused(404, "The session ended while a message was on its way.")
            if not path.is_file():
                await asyncio.to_thread(_keep, path, data, hosted.client, file=f"message {index}", index=index, **bound)
        hosted.sent += 1
        return b""

    def there(self, hosted: Hosted, request: str, of: int) -> list[int]:
        """Return the places of the messages that came, answered or not."""
        self._request(hosted, request, of, new=True)
        return [int(path.stem) for path in sorted(hosted.path.with_name("request").glob("[0-9]*.ct"))]

    def start(self, hosted: Hosted, request: str, of: int) -> None:
        """Have evaluated what came and has no answer; a job that broke off goes on."""
        self._request(hosted, request, of)
        if not hosted.running and _pending(hosted.path.parent):
            self._note(hosted, checked=True, started=True)
            self._queue(hosted)

    def answer(self, hosted: Hosted, request: str, index: int, of: int) -> bytes | str:
        """Return an output message, or how far its job is."""
        self._request(hosted, request, of)
        path = hosted.path.with_name("response") / f"{index:05d}.ct"
        if path.is_file():
            return path.read_bytes()
        if hosted.failure:
            raise Refused(422, hosted.failure)
        if not hosted.running:
            raise Refused(409, "Nothing is being evaluated for this session: start its request.")
        with suppress(InputError, KeyError, TypeError):
            done = read_json(path.with_name("work") / PROGRESS)
            return f"{done['tiles']} tiles: {done['layer']} of {done['of']} layers"
        return hosted.doing

    def _queue(self, hosted: Hosted) -> None:
        hosted.running, hosted.failure, hosted.doing = 1, "", "waits for the jobs before it"
        self._jobs.submit(self._run, hosted)

    def _run(self, hosted: Hosted) -> None:
        """Do a session's job, in the thread for it."""
        try:
            hosted.failure = self._evaluated(hosted)
            self._say(hosted, hosted.failure or "evaluated")
        except Exception:
            logging.getLogger("histocrypt").exception("a job failed")
            hosted.failure = "The server failed; its log says how."
        finally:
            hosted.running, hosted.touched = 0, time.monotonic()
            if hosted.state == "ended":
                self._close(hosted)

    def _evaluated(self, hosted: Hosted) -> str:
        """Run a job's process; return why it did not end well, in one sentence for the client."""
        folder, waiting = hosted.path.parent, True
        while waiting and not (self._stopping or hosted.state == "ended"):
            try:
                room_for_layers(cost_of(self._bundle), len(_pending(folder)), self._refreshers, bundle=self._bundle)
                waiting = False
            except InputError:
                hosted.doing = "waits until the server has memory for it"
                time.sleep(RETRY_SECONDS)
        if waiting or not (pending := _pending(folder)):
            return ""
        hosted.doing = "is being prepared"
        given = [str(self._bundle.folder), str(folder), str(self._refreshers), json.dumps(pending)]
        command = [sys.executable, "-m", "histocrypt.encrypted.resnet.job", *given]
        environment = {"GOGC": engine.COLLECT_AT, **os.environ}
        with (
            (folder / "job.log").open("wb") as log,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            ) as process,
        ):
            self._process = hosted, process
            if self._stopping or hosted.state == "ended":
                process.kill()
            said = process.stdout.read().decode().strip()
        self._process = None
        if process.returncode == 0 or self._stopping or hosted.state == "ended":
            return ""
        tail = (folder / "job.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        print(f"session {hosted.number}: job ended with {process.returncode}\n{tail}", file=sys.stderr)
        return said or f"The evaluation broke off (exit status {process.returncode}); send it again to go on."

    def end(self, hosted: Hosted, why: str = "ended by its client") -> None:
        """End a session: its job is stopped, and its folder goes."""
        super().end(hosted, why)
        self._kill(hosted)

    def _kill(self, hosted: Hosted | None) -> None:
        if (current := self._process) is not None and hosted in (None, current[0]):
            current[1].kill()  # its thread deletes what is to be deleted

    def _patience(self, hosted: Hosted) -> float:
        idle = self.limits.idle_seconds
        return min(idle, UPLOAD_SECONDS) if hosted.state == "receiving" else idle

    def stop(self) -> None:
        """Stop the job; sessions stay for the next server."""
        self._stopping = True
        self._kill(None)
        self._jobs.shutdown(wait=True, cancel_futures=True)
        for hosted in self._sessions.values():
            hosted.file.close()
        self._sessions.clear()
        super().stop()
        self._hold.release()

    def _close(self, hosted: Hosted) -> None:
        hosted.file.close()
        shutil.rmtree(hosted.path.parent, ignore_errors=True)


def _pending(folder: Path) -> list[int]:
    """Return the places of a session's messages that came and have no answer."""
    came = sorted((folder / "request").glob("[0-9]*.ct"))
    return [int(path.stem) for path in came if not (folder / "response" / path.name).is_file()]


def _check_keys(path: Path, client: Client) -> str:
    """Return the name of the key that evaluation keys belong to, after checking all but their polynomials."""
    header, start = messages.open_message(path, "evaluation keys", client=client.hash)
    EvaluationKeys(path, client.parameters, start=start)
    return messages.name_of_key(header, file=path)


def _keep(path: Path, data: bytes | Path, model: Client, *, file: str, **bound: Any) -> None:
    """Write an input message whose every field and value fits."""
    view = messages.mapped(data)
    payload = messages.unpack(view, file=file, kind="input", complete=True, **bound)
    check_tile(payload, model, file=file)
    try:
        messages.write_pieces(path, "input", [payload], **bound)
    except OSError as error:
        raise Refused(507, f"The server cannot store a message now ({error.strerror}).", retry_after=60) from error


def _private(folder: Path) -> Path:
    """Make a folder that nobody else can read, or check that the one that is there is so."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", file=folder, field="scratch") from error
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        problem, fix = "can be read by other users", "give another --scratch"
        raise InputError(problem, file=folder, field="scratch", value=oct(found.st_mode & 0o777), fix=fix)
    return folder


def _held(folder: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        problem, fix = "another server uses the sessions there", "stop it, or give another --scratch"
        raise InputError(problem, file=folder, field="scratch", fix=fix) from error
    return lock
