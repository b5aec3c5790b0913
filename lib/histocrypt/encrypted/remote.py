"""A connection to `histocrypt fhe serve` that may drop and come back, and a session on it.

What was sent is sent again where that does no harm, a busy server is waited for, and no answer may be larger than it
can be.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit

import httpx

from histocrypt.encrypted.bundle import parse_client
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import refuse_pipe, write_text
from histocrypt.http.access import choose_token, is_loopback

if TYPE_CHECKING:
    from histocrypt.encrypted.key_owner import Keys, Request

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
        return InputError("does not answer like `histocrypt fhe serve`", file=self.address, field=path)

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
                    problem, limit = "sent more than an answer can hold", f"at most {most} bytes"
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
