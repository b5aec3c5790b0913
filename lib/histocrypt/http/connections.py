"""Who may hold a connection to the server: nobody for long without a request, and nobody at the cost of others.

A connection *waits* from the moment it is accepted until a request with a token has come over it, and again from each
answer to the next request. A TLS handshake, a request's head that drips in and one that is never sent are the same
here: after a few seconds the connection is shut. So strangers can only hold as many connections as they open in those
seconds, and where even these get too many, the one that has waited longest goes, of the address that has the most.
A connection over which a request is answered is not touched: `server` bounds those by client, pace and quota.

Connections are accepted by the event loop through `Door.accept`, before TLS begins, and shut as sockets: whatever
transport lies on top learns of it as of a peer that hung up. This needs a loop that calls ``accept``
(`asyncio.SelectorEventLoop`).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

HEAD_SECONDS = 5.0
"""From accepting a connection to the end of the first request's head, TLS included."""
KEEP_SECONDS = 30.0
"""From an answer to the end of the next request's head, for a client with a token."""
MOST_WAITING = 1024
"""Connections that wait at once; with TLS each takes some 300 kB."""
Ends = tuple[str, int, str, int]
"""Address and port of the peer, then the server's own: no two open connections have the same."""


@dataclass
class _Connection:
    line: socket.socket
    until: float
    """When its patience ends, by the monotonic clock."""


class Door(socket.socket):
    """A listening socket that knows which of its connections wait, and since when.

    Parameters
    ----------
    listening
        A socket that listens; it is taken over.
    most
        Connections that may wait at once; `MOST_WAITING` and half of what the system lets this process open, if less.
    """

    def __init__(self, listening: socket.socket, *, most: int | None = None) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self.most = most or min(MOST_WAITING, _most_files() // 2)
        self._waiting: dict[str, dict[Ends, _Connection]] = {}
        self._busy: dict[Ends, socket.socket] = {}
        self._count = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; where too many wait, shut one of them."""
        line, address = super().accept()
        if self._count >= self.most:
            self._make_room()
        with suppress(OSError):  # it has gone already
            self._wait((*address[:2], *line.getsockname()[:2]), line, HEAD_SECONDS)
        return line, address

    @contextmanager
    def request(self, scope: Mapping[str, Any]) -> Iterator[None]:
        """While a request with a token is answered, its connection does not wait."""
        ends = _ends(scope)
        known = self._waiting.get(ends[0], {}).get(ends)
        if known is None:  # it was shut meanwhile
            yield
            return
        self._forget(ends)
        self._busy[ends] = known.line
        try:
            yield
        finally:
            if self._busy.get(ends) is known.line:
                del self._busy[ends]
            self._wait(ends, known.line, KEEP_SECONDS)

    def hang_up(self, scope: Mapping[str, Any]) -> None:
        """Shut the connection of a request, e.g. since its client does not read the answer."""
        if line := self._busy.get(_ends(scope)):
            _shut(line)

    async def sweep(self) -> None:
        """Shut connections that waited too long, until cancelled."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for waiting in list(self._waiting.values()):
                for ends, known in list(waiting.items()):
                    if known.line.fileno() < 0:  # closed by its peer
                        self._forget(ends)
                    elif known.until < now:
                        _shut(known.line)

    def _wait(self, ends: Ends, line: socket.socket, seconds: float) -> None:
        if line.fileno() < 0:
            return
        if ends in self._waiting.get(ends[0], {}):  # a closed one that had the same port
            self._forget(ends)
        self._waiting.setdefault(ends[0], {})[ends] = _Connection(line, time.monotonic() + seconds)
        self._count += 1

    def _forget(self, ends: Ends) -> None:
        waiting = self._waiting[ends[0]]
        del waiting[ends]
        self._count -= 1
        if not waiting:
            del self._waiting[ends[0]]

    def _make_room(self) -> None:
        crowd = max(self._waiting.values(), key=len)
        ends = next(iter(crowd))
        _shut(crowd[ends].line)
        self._forget(ends)


def _ends(scope: Mapping[str, Any]) -> Ends:
    return (*scope["client"], *scope["server"])


def _shut(line: socket.socket) -> None:
    with suppress(OSError):  # its peer was faster
        line.shutdown(socket.SHUT_RDWR)


def _most_files() -> int:
    """Return how many files and sockets this process may open, after asking for as many as the system grants."""
    try:
        import resource
    except ImportError:  # not POSIX: sockets are no files there
        return 2 * MOST_WAITING
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MOST_WAITING
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else wanted
