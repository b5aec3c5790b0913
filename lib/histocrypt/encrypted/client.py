"""The client of `histocrypt fhe serve`: a section's prediction from a server that sees ciphertexts alone.

Everything in the clear happens here. A connection that drops is taken up again, and no answer is believed unseen. What
is encrypted and what came back lie in a private folder until predictions are written: whoever is killed, client, server
or line, the messages under way are lost and no others. The keys serve this section alone and go with the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit

import httpx
import numpy as np

from histocrypt.encrypted import messages
from histocrypt.encrypted.access import choose_token, is_loopback
from histocrypt.encrypted.answers import NOISE, Answers, Checked, check_output, write_result
from histocrypt.encrypted.bundle import best_form, parse_client
from histocrypt.encrypted.key_owner import Keys, Prepared, Request, keygen, prepare
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import refuse_pipe, write_json, write_text

if TYPE_CHECKING:
    from histocrypt.encrypted import engine

ATTEMPTS = 6
"""Times that a request is sent before a connection is given up; the waits between add up to half a minute."""
PATIENCE = 900.0
"""Seconds for which a request is sent again to a server that says it is busy."""
BUSY = {429: 15, 503: 15, 507: 60}
"""Answers that mean "later" to seconds until then, where ``Retry-After`` does not say."""
LONGEST_WAIT = 120
"""Seconds between two tries, whatever the server says."""
SECONDS = httpx.Timeout(30.0, read=600.0)
MOST_JSON = 16 << 20
"""Bytes of the largest answer that is not a ciphertext, and of the largest chunk of keys."""
MOST_IN_FLIGHT = 64


class Server:
    """A connection to a server that may drop and come back.

    Parameters
    ----------
    address, token_file
        Where it listens, and the file with this client's token.
    name
        Whose token of the file, where it holds several.
    authority
        PEM file with the certificate that the server's own is signed by; the usual authorities if not given.
    insecure_http
        Send the token to another machine without TLS.

    Raises
    ------
    InputError
        If the address is none, or the token cannot be read or would be sent in the clear.
    """

    def __init__(
        self,
        address: str,
        token_file: str | Path,
        *,
        name: str | None = None,
        authority: Path | None = None,
        insecure_http: bool = False,
    ) -> None:
        self.address = address.rstrip("/")
        self.bytes_up = self.bytes_down = 0
        self._counting, self._said_busy = threading.Lock(), False
        wrong = partial(InputError, field="server", value=address)
        try:
            parts = urlsplit(address)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good:
            raise wrong("is not the address of a server", expected="https://host:port")
        if parts.scheme == "http" and not (is_loopback(parts.hostname) or insecure_http):
            raise wrong("would send the token over a network unencrypted", fix="use https://, or give --insecure-http")
        self.public: dict[str, Any] = {}
        self.stopping = False
        """Once true, nothing is tried again."""
        self._http = httpx.Client(
            base_url=self.address,
            headers={
                "Authorization": f"Bearer {choose_token(Path(token_file), name)}",
                "Accept-Encoding": "identity",  # a small answer must not unpack to a large one
            },
            timeout=SECONDS,
            verify=_authorities(authority),
            trust_env=parts.scheme == "https",  # a proxy of the environment must not see the token in the clear
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def client(self) -> Client:
        """Fetch the public part of the model."""
        self.public = self.json("GET", "/v1/client")
        return parse_client(self.public, file=f"{self.address}/v1/client")

    def json(self, method: str, path: str, *, resend: bool = True, **content: Any) -> dict[str, Any]:
        """Return the answer to a request, parsed; see `ask`."""
        body = self.ask(method, path, most=MOST_JSON, resend=resend, **content)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self.strange(path) from error
        if not isinstance(answer, dict):
            raise self.strange(path)
        return answer

    def strange(self, path: str) -> InputError:
        """Return the error for an answer that makes no sense."""
        return InputError("does not answer as `histocrypt fhe serve` does", file=self.address, field=path)

    def ask(
        self,
        method: str,
        path: str,
        *,
        most: int,
        into: Path | None = None,
        patient: bool = True,
        resend: bool = True,
        **content: Any,
    ) -> bytes:
        """Send a request, again where the connection drops or the server is busy; return the answer's body.

        Parameters
        ----------
        method, path
            Of the request.
        most
            Bytes of the largest answer that is read.
        into
            A file that gets what is answered, instead of memory; nothing is returned then.
        patient
            Try again at all.
        resend
            Also where the connection drops, when the server may have taken the request.
        content
            Goes to httpx.

        Raises
        ------
        InputError
            With the server's own sentence where it refuses, or is busy for more than `PATIENCE`; where it cannot be
            reached; where an answer has more than ``most`` bytes.
        """
        attempt, since = 0, time.monotonic()
        while True:
            try:
                status, headers, body = self._once(method, path, most, content, into)
            except httpx.RequestError as error:
                attempt += 1
                if attempt == ATTEMPTS or not (patient and resend) or self.stopping:
                    problem = f"cannot be reached ({str(error) or type(error).__name__})"
                    fix = "check the address and that `histocrypt fhe serve` runs there"
                    raise InputError(problem, file=self.address, fix=fix) from error
                time.sleep(min(0.5 * 2 ** (attempt - 1), 10))
                continue
            if status < 300:
                return body
            if status not in BUSY or not patient or self.stopping:
                raise InputError(f"refused ({status}): {_sentence(body)}", file=self.address)
            said = headers.get("retry-after", "")
            seconds = min(int(said) if said.isdecimal() and len(said) < 10 else BUSY[status], LONGEST_WAIT)
            if time.monotonic() - since + seconds > PATIENCE:
                problem = f"was busy for {PATIENCE / 60:.0f} minutes ({status}): {_sentence(body)}"
                raise InputError(problem, file=self.address, fix="try again later")
            self._say_busy(f"{status}: {_sentence(body)}")
            time.sleep(seconds)

    def _say_busy(self, why: str) -> None:
        """Say once that the server is waited for, and for how long."""
        with self._counting:
            if self._said_busy:
                return
            self._said_busy = True
        print(f"{self.address} is busy ({why}); each request waits for up to {PATIENCE / 60:.0f} min", file=sys.stderr)

    def _once(
        self, method: str, path: str, most: int, content: dict[str, Any], into: Path | None
    ) -> tuple[int, httpx.Headers, bytes]:
        body, size, received = content.get("content", b""), 0, 0
        with ExitStack() as stack:
            if isinstance(body, Path):
                size = body.stat().st_size
                content = {**content, "content": _pieces(stack.enter_context(body.open("rb")))}
                content["headers"] = {"Content-Length": str(size)}
            else:
                size = len(body)
            answer = stack.enter_context(self._http.stream(method, path, **content))
            kept: BinaryIO = BytesIO()
            if into is not None and answer.status_code < 300:
                kept = stack.enter_context(into.open("wb"))
            for part in answer.iter_raw():
                received += kept.write(part)
                if received > most:
                    problem, limit = "sends more than any answer can hold", f"at most {most} bytes"
                    raise InputError(problem, file=self.address, field=path, expected=limit)
            with self._counting:
                self.bytes_up += size
                self.bytes_down += received
            return answer.status_code, answer.headers, kept.getvalue() if isinstance(kept, BytesIO) else b""

    @contextmanager
    def session(self, keys: Keys, *, remember: Path | None = None) -> Iterator[Session]:
        """Upload evaluation keys; have the server delete them at the end, whatever happens.

        Where that cannot be (the line is cut, this process is killed), ``remember`` keeps the session's name, and the
        next call ends it first: a client has few sessions, and others would wait until it expires.
        """
        if remember is not None and remember.is_file():
            with suppress(InputError):
                self.ask("DELETE", remember.read_text(), most=MOST_JSON, patient=False)
        session, size, chunk = self.open(keys, remember=remember)
        try:
            session.upload(keys.folder / "evaluation.keys", size, chunk)
            yield session
        finally:
            session.end(remember)

    def open(self, keys: Keys, *, remember: Path | None, **more: Any) -> tuple[Session, int, int]:
        """Open a session; return it, the size of its keys, and that of a chunk of them."""
        size = (keys.folder / "evaluation.keys").stat().st_size
        answer = self.json("POST", "/v1/sessions", json={"client": keys.client.hash, "bytes": size, **more})
        name, in_flight, chunk = (answer.get(key) for key in ("session", "in_flight", "chunk_bytes"))
        if not (isinstance(name, str) and isinstance(in_flight, int) and isinstance(chunk, int)):
            raise self.strange("/v1/sessions")
        session = Session(self, f"/v1/sessions/{quote(name, safe='')}", min(max(in_flight, 1), MOST_IN_FLIGHT))
        if remember is not None:
            write_text(remember, session.path)
        return session, size, min(max(chunk, 1 << 10), MOST_JSON)

    def resume(self, remember: Path) -> Session | None:
        """Return the session that an earlier call noted, if the server still has it."""
        if not remember.is_file():
            return None
        session = Session(self, remember.read_text(), 1)
        try:
            self.json("GET", session.path)
        except InputError as error:
            if isinstance(error.__cause__, httpx.RequestError):
                raise
            return None  # it expired, or its keys were refused
        return session


@dataclass
class Session:
    """An open session."""

    server: Server
    path: str
    in_flight: int
    """Requests at once."""

    def end(self, remember: Path | None) -> None:
        """Have the server delete it; where that cannot be, it expires by itself."""
        with suppress(InputError):
            self.server.ask("DELETE", self.path, most=MOST_JSON, patient=False)
            if remember is not None:
                remember.unlink(missing_ok=True)

    def upload(self, keys: Path, size: int, chunk: int) -> None:
        """Send the evaluation keys; after a dropped connection, go on where the server says it stopped."""
        from tqdm.auto import tqdm

        with (
            keys.open("rb") as file,
            tqdm(total=size, desc="uploading keys", unit="B", unit_scale=True, unit_divisor=1024) as bar,
        ):
            failures, received = 0, self.state(size)[1]
            bar.update(received)
            while received < size or self.state(size)[0] != "ready":
                if received == size:  # they are being loaded
                    time.sleep(0.2)
                    continue
                file.seek(received)
                body = file.read(chunk)
                try:
                    self.server.json("PUT", f"{self.path}/keys/{received}", resend=False, content=body)
                    received, failures = received + len(body), 0
                except InputError as error:
                    if not isinstance(error.__cause__, httpx.RequestError) or failures == ATTEMPTS:
                        raise
                    time.sleep(min(0.5 * 2**failures, 10))
                    failures += 1
                    received = self.state(size)[1]
                bar.update(received - bar.n)

    def state(self, size: int) -> tuple[str, int]:
        """Return what the server says of the session, and how many bytes of the keys are there."""
        answer = self.server.json("GET", self.path)
        state, received = answer.get("state"), answer.get("received")
        if state not in ("receiving", "loading", "ready") or not isinstance(received, int) or not 0 <= received <= size:
            raise self.server.strange(self.path)
        return state, received

    def evaluate(
        self, request: Request, index: int, message: bytes | Path, most: int, *, into: Path | None = None
    ) -> bytes:
        """Return the output message for an input message, which may lie in a file, or write it to another one."""
        where = f"{self.path}/requests/{request.name}/{index}"
        how = {"of": request.batches}
        return self.server.ask("POST", where, most=most, into=into, content=message, params=how)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(1 << 20):
        yield piece


def _authorities(file: Path | None) -> Any:
    import ssl

    if file is None:
        return True
    refuse_pipe(file)
    try:
        return ssl.create_default_context(cafile=str(file))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"holds no certificate ({error.strerror or error})", file=file, expected="PEM") from error


def _sentence(body: bytes) -> str:
    """Return what a refusal says; servers between may say it in another way."""
    try:
        said = json.loads(body)["error"]
    except (ValueError, RecursionError, KeyError, TypeError):
        said = body[:200].decode("utf-8", "replace")
    return " ".join(str(said).split())[:500].rstrip(".") or "no reason given"


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
        Goes to `key_owner.prepare`, which refuses a section before any key is made.

    Raises
    ------
    InputError
        With the server's sentence where it refuses, or this side's where the section, the keys, the answers or the
        connection are not sound. The session on the server is ended in any case.
    """
    output, done, folder = check_output(output, section, how.get("image"), overwrite=overwrite), Sent(), Path(keys)
    if (folder / "secret.key").exists():
        problem = "holds keys that `histocrypt fhe keygen` made, and `send` makes its own for every section"
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
            free, fix = shutil.disk_usage(self.keys.folder).free, "make room and send it again; what was done is kept"
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
        problem, fix = "this section is under way in another process", "wait for it, or give another folder"
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
