"""HTTPS requests that stay where they may go, and sentences for what a server does wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any

import httpx

from histocrypt.errors import InputError

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be different a moment later."""
MAX_REDIRECTS = 6
MAX_WAIT_S = 60.0
MAX_JSON_BYTES = 64 * 2**20


class Interrupted(Exception):
    """The server gave up in the middle, or said to come back later."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Web:
    """A client for downloads.

    Plain http is used with this machine only, and a redirect to another host must lead to https. No certificate is ever
    taken on trust.

    Parameters
    ----------
    token
        Access token; it is sent to ``token_host`` alone, whatever a listing or a redirect says, and shown nowhere.
    token_host
        Address of the host that the token belongs to.
    connect_s, read_s
        How long to wait for a connection, and for the next bytes of an answer, seconds.
    attempts
        How often to try in a row without a single new byte.
    wait
        Sleeps between attempts; a parameter so that tests need not.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        token_host: str | None = None,
        connect_s: float = 20.0,
        read_s: float = 60.0,
        attempts: int = 5,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.read_s, self.attempts, self.wait = read_s, attempts, wait
        self._token = token if token_host else None
        self._token_origin = _origin(httpx.URL(token_host)) if token_host else None
        self._listings: dict[str, tuple[Any, httpx.Headers]] = {}
        timeout = httpx.Timeout(read_s, connect=connect_s)
        headers = {"User-Agent": "histocrypt", "Accept-Encoding": "identity"}
        self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)

    def __enter__(self) -> Web:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    @contextmanager
    def request(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        **content: Any,
    ) -> Iterator[httpx.Response]:
        """Send a request and yield the answer, whatever its status, its body unread.

        Raises
        ------
        InputError
            If the address, or a redirect, leads where it must not.
        Interrupted
            If the connection fails; also when that happens while the caller reads.
        """
        try:
            address = httpx.URL(url)
            _check_address(address)
            for _ in range(MAX_REDIRECTS):
                own = dict(headers or {})
                if self._token and _origin(address) == self._token_origin:
                    own["Authorization"] = f"Bearer {self._token}"
                with self._client.stream(method, address, headers=own, **content) as response:
                    if not response.has_redirect_location:
                        yield response
                        return
                    target = address.join(response.headers["Location"])
                check_redirect(address, target)
                address = target
        except httpx.ConnectTimeout as error:
            raise Interrupted("no connection in time") from error
        except httpx.TimeoutException as error:
            raise Interrupted(f"nothing came for {self.read_s:g} s") from error
        except httpx.ConnectError as error:
            raise Interrupted(f"cannot be reached ({error})") from error
        except httpx.RequestError as error:
            raise Interrupted(f"the connection broke ({error})") from error
        except httpx.InvalidURL as error:
            msg = f"address is none ({error})"
            raise InputError(msg, value=url.partition("?")[0][:200]) from error
        msg = "leads in a circle of redirects"
        raise InputError(msg, file=shown(url))

    def json(self, url: str, *, method: str = "GET", **content: Any) -> tuple[Any, httpx.Headers]:
        """Return the content of a JSON answer and its headers; a listing is asked for once. Tries again if needed."""
        if url in self._listings and method == "GET":
            return self._listings[url]
        for attempt in range(self.attempts):
            try:
                with self.request(url, method=method, **content) as response:
                    refuse(response, url)
                    body = b""
                    for part in response.iter_bytes():
                        body += part
                        if len(body) > MAX_JSON_BYTES:
                            msg = "listing is too long to be one"
                            raise InputError(msg, file=shown(url))
                    answer = _parsed(body), response.headers
                if method == "GET":
                    self._listings[url] = answer
                return answer
            except Interrupted as error:
                if attempt + 1 == self.attempts:
                    msg = f"{error}, {self.attempts} times"
                    raise InputError(msg, file=shown(url), fix="check the network, or try again later") from error
                self.pause(attempt, error)
        msg = "no attempt was allowed"
        raise ValueError(msg)

    def size(self, url: str) -> int | None:
        """Return what a file weighs by its headers, bytes; None where the server does not tell."""
        try:
            with self.request(url, method="HEAD") as response:
                length = response.headers.get("Content-Length", "")
                return int(length) if response.status_code == HTTPStatus.OK and length.isdigit() else None
        except Interrupted:
            return None

    def pause(self, attempt: int, error: Interrupted) -> None:
        """Wait before the next attempt: longer each time, and at least as long as the server asks."""
        self.wait(min(MAX_WAIT_S, max(error.wait_s, 2.0**attempt)))


def refuse(response: httpx.Response, url: str) -> None:
    """Raise for an answer that is none: `Interrupted` where it may pass, else `InputError`."""
    status = response.status_code
    if status < 400:
        return
    after = response.headers.get("Retry-After", "")
    if status in PASSING:
        raise Interrupted(f"the server answers {status}", wait_s=float(after) if after.isdigit() else 0.0)
    if status in {404, 410}:
        raise InputError(f"is not there (the server answers {status})", file=shown(url))
    if status in {401, 403}:
        if response.headers.get("X-RateLimit-Remaining") == "0":
            msg = f"the server allows no more requests for now ({status})"
            raise InputError(msg, file=shown(url), fix="try again in an hour")
        msg = f"access is refused ({status})"
        raise InputError(msg, file=shown(url), fix="accept the terms on the data set's page, and give a valid token")
    raise InputError(f"the server answers {status}", file=shown(url))


def shown(url: str) -> str:
    """Return an address as messages show it: without its query, which may hold a signature, and without a password."""
    address = httpx.URL(url)
    port = f":{address.port}" if address.port else ""
    return f"{address.scheme}://{address.host}{port}{address.path}"


def check_redirect(here: httpx.URL, target: httpx.URL) -> None:
    """Refuse a redirect that leaves the server unless it leads to https."""
    if target.scheme != "https" and _origin(here) != _origin(target):
        msg = "is redirected to another host without https"
        raise InputError(msg, file=shown(str(here)), value=shown(str(target)), fix="it is not followed")


def _check_address(address: httpx.URL) -> None:
    local = address.scheme == "http" and address.host in LOOPBACK
    if (address.scheme != "https" and not local) or not address.host:
        msg = "address is not https"
        raise InputError(msg, file=shown(str(address)) if address.host else str(address), expected="https://...")


def _origin(address: httpx.URL) -> tuple[str, str, int | None]:
    return address.scheme, address.host, address.port


def _parsed(body: bytes) -> Any:
    import json

    try:
        return json.loads(body)
    except ValueError as error:
        raise Interrupted("the listing is cut off or no JSON") from error
