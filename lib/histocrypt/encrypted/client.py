"""The client of `histocrypt fhe serve`: a section's prediction from a server that sees ciphertexts alone.

Everything in the clear happens here. A connection that drops is taken up again, and no answer is believed unseen. What
is encrypted and what came back lie in a private folder until predictions are written: whoever is killed, client, server
or line, the messages under way are lost and no others. The keys serve this section alone and go with the folder.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encrypted import messages
from histocrypt.encrypted.answers import NOISE, Answers, Checked, check_output, write_result
from histocrypt.encrypted.bundle import best_form
from histocrypt.encrypted.key_owner import Keys, Request, keygen
from histocrypt.encrypted.prepare import Prepared, prepare
from histocrypt.encrypted.remote import Server, Session
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import write_json

if TYPE_CHECKING:
    from histocrypt.encrypted import engine


@dataclass
class Sent:
    """What `send_section` did."""

    sentence: str = ""
    spots: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: prepare, keys, upload, encrypt, decrypt, write; evaluate is the rest, waiting for the server."""
    bytes_up: int = 0
    bytes_down: int = 0

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items())
        return (
            f"{self.sentence}\n{sum(self.seconds.values()):.1f} s ({stages}); "
            f"{self.bytes_up / 2**20:.0f} MiB up, {self.bytes_down / 2**20:.0f} MiB down"
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def send_section(
    section: str | Path,
    *,
    server: str,
    token_file: str | Path,
    client: str | None = None,
    keys: str | Path,
    output: str | Path,
    certificate_authority: Path | None = None,
    insecure_http: bool = False,
    noise: float = NOISE,
    form: str | None = None,
    overwrite: bool = False,
    **how: Any,
) -> Sent:
    """Predict a section on a server without showing it a pixel.

    Parameters
    ----------
    section
        In any readable format.
    server
        Its address, ``https://host[:port]``; ``http://`` for this machine only, unless ``insecure_http``.
    token_file
        Holds this client's token.
    client
        Whose token of the file, by name, where it holds several.
    keys
        A private folder; the keys of this section, and what is under way, lie in it until predictions are written.
    output
        Predictions are written here (``.h5ad``), as `key_owner.decrypt_response` does.
    certificate_authority
        PEM file with the certificate that the server's own is signed by; the usual authorities if not given.
    noise
        See `key_owner.decrypt_response`.
    form
        ``single`` or ``batch``; else as `bundle.best_form` chooses.
    overwrite
        Replace what lies at ``output``; else only predictions of `predict`, `decrypt` and `send` are replaced.
    how
        Goes to `prepare`, which refuses a section before any key is made.

    Raises
    ------
    InputError
        With the server's sentence where it refuses, or this side's where the section, the keys, the answers or the
        connection are not sound. The session on the server is ended in any case, but that of a bootstrapped network:
        its keys of 7 GiB stay there for the next call, until it expires.
    """
    output, done, folder = check_output(output, section, how.get("image"), overwrite=overwrite), Sent(), Path(keys)
    if (folder / "secret.key").exists():
        problem = "holds keys from `histocrypt fhe keygen`, but `send` makes new keys for every section"
        raise InputError(problem, file=folder, field="secret.key", fix="give another folder")
    with (
        Server(server, token_file, name=client, authority=certificate_authority, insecure_http=insecure_http) as remote,
        _folder(folder),
        ExitStack() as stack,
    ):
        offered = remote.client()
        jobs = offered.parameters.bootstrapping is not None
        with done.stage("prepare"):
            prepared = prepare(offered, section, **how, folder=folder)
        if jobs:
            from histocrypt.encrypted.resnet.send import exchange_by_job, price

            print(price(remote, offered, len(prepared.names)), file=sys.stderr)
        with done.stage("keys"):
            way = stack.enter_context(_under_way(folder, prepared, offered, remote.public, form))
        started = time.monotonic()
        if jobs:
            exchange_by_job(remote, way, prepared, done)
        elif way.missing:
            with remote.session(way.keys, remember=way.keys.folder / "session") as session:
                done.seconds["upload"] = time.monotonic() - started
                _exchange(way, prepared, session, done)
        with done.stage("decrypt"):  # all at once, so that a server does not learn at which message it was caught
            checked = way.open(file=server)
        done.bytes_up, done.bytes_down = remote.bytes_up, remote.bytes_down
        with done.stage("write"):
            done.sentence = write_result(output, checked, way.request, noise=noise)
        way.forget()
    done.spots = len(prepared.names)
    return done


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make a private folder where there is none, and take it away again if nothing was left in it.

    One that was there and empty is the user's, and stays; one that held something held what an earlier call left.
    """
    if folder.exists() and not any(folder.iterdir()):
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # something is under way
            folder.rmdir()


@dataclass(frozen=True)
class Way:
    """A section under way: its keys, its request, and the messages that are there."""

    keys: Keys
    request: Request

    @property
    def missing(self) -> list[int]:
        """Numbers of the messages that were not answered yet."""
        return [index for index in range(self.request.batches) if not self.answer(index).is_file()]

    def message(self, index: int) -> Path:
        """Return where an input message lies."""
        return self.keys.folder / "request" / f"{index:05d}.ct"

    def answer(self, index: int) -> Path:
        """Return where its answer lies."""
        return self.keys.folder / "response" / f"{index:05d}.ct"

    def encrypt(self, index: int, prepared: Prepared, owner: engine.KeyOwner) -> Path:
        """Return an input message, made now if it is not there."""
        path, place = self.message(index), self.request.place(index)
        if not path.is_file():  # written whole or not at all
            with self._room():
                messages.write_pieces(path, "input", self.request.encrypt(index, prepared, owner), **place)
        return path

    def arriving(self, index: int) -> Path:
        """Return where an answer lies until it has been looked at; what is left of it is deleted by `_begun`."""
        return self.answer(index).with_name(f".{index:05d}.partial")

    def fetch(self, index: int, message: Path, session: Session) -> None:
        """Have a message evaluated, and its answer written to a private file: answers are large."""
        with self._room():
            self.arriving(index).touch(mode=0o600)
            session.evaluate(
                self.request, index, message, self.keys.client.most_output_bytes, into=self.arriving(index)
            )

    def take(self, index: int, answer: bytes, *, file: Any) -> None:
        """Keep a small answer; see `keep`."""
        with self._room():
            self.arriving(index).touch(mode=0o600)
            self.arriving(index).write_bytes(answer)
        self.keep(index, file=file)

    def keep(self, index: int, *, file: Any) -> None:
        """Keep an answer that is bound to its message, whose ciphertexts are then of no use."""
        arrived, place = self.arriving(index), self.request.place(index)
        messages.unpack(messages.mapped(arrived), file=file, kind="output", **place)
        with self._room():
            arrived.replace(self.answer(index))
        self.message(index).unlink(missing_ok=True)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Say in one sentence that a message cannot be kept."""
        try:
            yield
        except OSError as error:
            problem = f"a message cannot be kept there ({error.strerror})"
            free, fix = (
                shutil.disk_usage(self.keys.folder).free,
                "free some space and run the same command again; finished parts are kept",
            )
            where = {"file": self.keys.folder, "field": "--keys", "value": f"{free / 2**20:.0f} MiB free"}
            raise InputError(problem, **where, fix=fix) from error

    def open(self, *, file: Any) -> Checked:
        """Decrypt all answers and compare copies.

        Raises
        ------
        InputError
            If they are not sound. The keys are thrown away then: each refusal tells a lying evaluator a little.
        """
        answers = Answers(self.request, self.keys.decryptor())
        for index in range(self.request.batches):
            path, place = self.answer(index), self.request.place(index)
            payload = messages.unpack(messages.mapped(path), file=path, kind="output", **place)
            with self._burning():
                answers.add(index, payload, file=f"{file} message {index}")
        with self._burning():
            return answers.values(file=file)

    @contextmanager
    def _burning(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            self.forget()
            raise

    def forget(self) -> None:
        """Delete keys, messages and notes."""
        shutil.rmtree(self.keys.folder, ignore_errors=True)


@contextmanager
def _under_way(
    folder: Path, prepared: Prepared, offered: Client, public: dict[str, Any], wanted: str | None
) -> Iterator[Way]:
    """Give the way where an earlier call for this very section and model stopped, or a new one; nobody else gets it.

    Raises
    ------
    InputError
        If another process has it.
    """
    from filelock import FileLock, Timeout

    form = best_form(offered, len(prepared.names), wanted=wanted)
    identity = hashlib.sha256(form.hash.encode() + "\n".join(prepared.names.tolist()).encode())
    identity.update(np.ascontiguousarray(prepared.raw))
    mine = folder / f"{re.sub('[^A-Za-z0-9]+', '-', prepared.section)[:40]}-{identity.hexdigest()[:16]}"
    lock = FileLock(mine.with_name(f".{mine.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        problem, fix = "another process is already sending this section", "wait for it, or give another folder"
        raise InputError(problem, file=mine, field="--keys", fix=fix) from error
    try:
        yield _begun(mine) or _begin(mine, prepared, public, wanted)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _begun(mine: Path) -> Way | None:
    for partial_file in mine.rglob(".*.partial*"):  # of a process that was killed
        partial_file.unlink()
    (note,) = (*mine.glob("requests/*.json"), None)[:1]
    if note is not None and (mine / "secret.key").is_file():
        way = Way(Keys(mine), Keys(mine).request(note.stem, file=note))
        done = way.request.batches - len(way.missing)
        print(f"going on: {done} of {way.request.batches} messages came back before", file=sys.stderr)
        return way
    return None


def _begin(mine: Path, prepared: Prepared, public: dict[str, Any], form: str | None) -> Way:
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir(mode=0o700)
    write_json(mine / "client.json", public)
    print(keygen(mine / "client.json", mine, spots=len(prepared.names), form=form), file=sys.stderr)
    keys = Keys(mine)
    way = Way(keys, Request.of(prepared, keys.client, keys.bound))
    for path in (way.message(0), way.answer(0)):
        path.parent.mkdir(mode=0o700)
    keys.keep(way.request)
    return way


def _exchange(way: Way, prepared: Prepared, session: Session, done: Sent) -> None:
    """Encrypt, send and fetch all missing messages of a request, a few at a time."""
    from tqdm.auto import tqdm

    encryptor, left = way.keys.encryptor(), way.missing
    under_way: dict[Future[None], int] = {}
    batches = way.request.batches
    with (
        ThreadPoolExecutor(session.in_flight) as pool,
        tqdm(total=batches, initial=batches - len(left), desc="evaluating", unit="message") as bar,
    ):
        try:
            for index in [*left, None]:
                if index is not None:
                    with done.stage("encrypt"):
                        path = way.encrypt(index, prepared, encryptor)
                    under_way[pool.submit(way.fetch, index, path, session)] = index
                while len(under_way) > (session.in_flight if index is not None else 0):
                    with done.stage("evaluate"):
                        ready, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for job in ready:
                        place = under_way.pop(job)
                        job.result()
                        way.keep(place, file=f"{session.server.address} message {place}")
                        bar.update()
        except BaseException:
            session.server.stopping = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
