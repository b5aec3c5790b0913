"""A client's connection to `histocrypt fhe serve`: asks again where it drops, believes no answer unseen."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from histocrypt.encrypted.access import is_loopback, read_tokens
from histocrypt.encrypted.bundle import Client, parse_client
from histocrypt.encrypted.key_owner import Keys
from histocrypt.encrypted.request import Request
from histocrypt.errors import InputError

ATTEMPTS = 6
"""Times that a request is sent before a connection is given up; the waits between add up to half a minute."""
PATIENCE = 900.0
"""Seconds for which a busy server is asked again."""
SECONDS = httpx.Timeout(30.0, read=600.0)
MOST_JSON = 16 << 20
"""Bytes of the largest answer that is not a ciphertext, and of the largest chunk of keys."""
MOST_IN_FLIGHT = 64


class Server:
    """A connection to a server that may drop and come back."""

    def __init__(
        self,
        address: str,
        token_file: str | Path,
        *,
        authority: Path | None = None,
        insecure_http: bool = False,
    ) -> None:
        self.address = address.rstrip("/")
        self.bytes_up = self.bytes_down = 0
        self._counting = threading.Lock()
        try:
            parts = urlsplit(address)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good:
            msg = "is not the address of a server"
            raise InputError(msg, field="server", value=address, expected="https://host:port")
        if parts.scheme == "http" and not (is_loopback(parts.hostname) or insecure_http):
            msg = "would send the token over a network unencrypted"
            raise InputError(msg, field="server", value=address, expected="https://", fix="or give --insecure-http")
        self.public: dict[str, Any] = {}
        self.stopping = False
        """Once true, nothing is tried again."""
        self._http = httpx.Client(
            base_url=self.address,
            headers={
                "Authorization": f"Bearer {read_tokens(Path(token_file))[0]}",
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

    def json(self, method: str, path: str, *, patient: bool = True, **content: Any) -> dict[str, Any]:
        """Return the answer to a request, parsed."""
        body = self.ask(method, path, most=MOST_JSON, patient=patient, **content)
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

    def ask(self, method: str, path: str, *, most: int, patient: bool = True, **content: Any) -> bytes:
        """Send a request, again where the connection drops or the server is busy; return the answer's body.

        Raises
        ------
        InputError
            With the server's own sentence where it refuses; where it cannot be reached; where an answer has more than
            ``most`` bytes.
        """
        attempt, since = 0, time.monotonic()
        while True:
            try:
                status, headers, body = self._once(method, path, most, content)
            except httpx.RequestError as error:
                attempt += 1
                if attempt == ATTEMPTS or not patient or self.stopping:
                    msg = f"cannot be reached ({str(error) or type(error).__name__})"
                    fix = "check the address and that `histocrypt fhe serve` runs there"
                    raise InputError(msg, file=self.address, fix=fix) from error
                time.sleep(min(0.5 * 2 ** (attempt - 1), 10))
                continue
            if status < 300:
                return body
            retry = headers.get("retry-after", "")
            busy = status in (429, 503, 507) and retry.isdigit() and time.monotonic() - since < PATIENCE
            if busy and patient and not self.stopping:
                time.sleep(min(int(retry), 60))
                continue
            raise InputError(f"refused ({status}): {_sentence(body)}", file=self.address)

    def _once(self, method: str, path: str, most: int, content: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        with self._http.stream(method, path, **content) as answer:
            body = bytearray()
            for part in answer.iter_raw():
                body += part
                if len(body) > most:
                    msg = "sends more than any answer can hold"
                    raise InputError(msg, file=self.address, field=path, expected=f"at most {most} bytes")
            with self._counting:
                self.bytes_up += len(content.get("content", b""))
                self.bytes_down += len(body)
            return answer.status_code, answer.headers, bytes(body)

    @contextmanager
    def session(self, keys: Keys) -> Iterator[Session]:
        """Upload evaluation keys; have the server delete them at the end, whatever happens."""
        size = (keys.folder / "evaluation.keys").stat().st_size
        answer = self.json("POST", "/v1/sessions", json={"client": keys.client.hash, "bytes": size})
        name, in_flight, chunk = (answer.get(key) for key in ("session", "in_flight", "chunk_bytes"))
        if not (isinstance(name, str) and isinstance(in_flight, int) and isinstance(chunk, int)):
            raise self.strange("/v1/sessions")
        session = Session(self, f"/v1/sessions/{quote(name, safe='')}", min(max(in_flight, 1), MOST_IN_FLIGHT))
        try:
            session.upload(keys.folder / "evaluation.keys", size, min(max(chunk, 1 << 10), MOST_JSON))
            yield session
        finally:
            with suppress(InputError):  # it expires by itself
                self.ask("DELETE", session.path, most=MOST_JSON, patient=False)


@dataclass
class Session:
    """An open session."""

    server: Server
    path: str
    in_flight: int
    """Requests at once."""

    def upload(self, keys: Path, size: int, chunk: int) -> None:
        """Send the evaluation keys; after a dropped connection, go on where the server says it stopped."""
        from tqdm.auto import tqdm

        with (
            keys.open("rb") as file,
            tqdm(total=size, desc="uploading keys", unit="B", unit_scale=True, unit_divisor=1024) as bar,
        ):
            failures, received = 0, 0
            while received < size or self._state(size)[0] != "ready":
                if received == size:  # they are being loaded
                    time.sleep(0.2)
                    continue
                file.seek(received)
                body = file.read(chunk)
                try:
                    self.server.json("PUT", f"{self.path}/keys/{received}", patient=False, content=body)
                    received, failures = received + len(body), 0
                except InputError as error:
                    if not isinstance(error.__cause__, httpx.RequestError) or failures == ATTEMPTS:
                        raise
                    time.sleep(min(0.5 * 2**failures, 10))
                    failures += 1
                    received = self._state(size)[1]
                bar.update(received - bar.n)

    def _state(self, size: int) -> tuple[str, int]:
        answer = self.server.json("GET", self.path)
        state, received = answer.get("state"), answer.get("received")
        if state not in ("receiving", "loading", "ready") or not isinstance(received, int) or not 0 <= received <= size:
            raise self.server.strange(self.path)
        return state, received

    def evaluate(self, request: Request, index: int, data: bytes, most: int) -> bytes:
        """Return the output message for an input message."""
        where = f"{self.path}/requests/{request.name}/{index}"
        return self.server.ask("POST", where, most=most, content=data, params={"of": request.batches})


def _authorities(file: Path | None) -> Any:
    import ssl

    if file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(file))
    except (OSError, ssl.SSLError) as error:
        msg = f"holds no certificate ({error.strerror or error})"
        raise InputError(msg, file=file, expected="PEM") from error


def _sentence(body: bytes) -> str:
    """Return what a refusal says; servers between may say it in another way."""
    try:
        said = json.loads(body)["error"]
    except (ValueError, RecursionError, KeyError, TypeError):
        said = body[:200].decode("utf-8", "replace")
    return " ".join(str(said).split())[:500].rstrip(".") or "no reason given"
