"""The door-keeper of an application: tokens before all else, so many requests at once, answers that must be taken."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from histocrypt.http.connections import Door

HEALTH = "/v1/health"
"""Says that a server lives."""
AT_ONCE = 128
"""Requests of one client that are answered at once."""
PIECE = 256 << 10
PIECE_SECONDS = 30.0
"""Each so many bytes of an answer must be taken in so many seconds."""


class Guard:
    """Lets nobody in without a token, before a body is read; what fails is logged here, not sent.

    Parameters
    ----------
    app
        The ASGI application; it finds whose token came in ``request.state.holder``.
    tokens
        By name of the client.
    door
        Where connections come from.
    unguarded
        Paths that are answered without a token, beside `HEALTH`: pages that say nothing of anybody.
    """

    def __init__(self, app: Any, tokens: Mapping[str, str], door: Door, *, unguarded: Collection[str] = ()) -> None:
        self._app, self._door, self._unguarded = app, door, frozenset((HEALTH, *unguarded))
        self._names = list(tokens)
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens.values()]
        self._under_way: Counter[str] = Counter()

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Answer one request, as ASGI asks for it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        holder = self._holder(dict(scope["headers"]).get(b"authorization", b""))
        if holder is None:  # its connection goes on waiting, see `connections`, and is not kept
            if scope["path"] in self._unguarded and scope["method"] in ("GET", "HEAD"):
                await self._app(scope, receive, _closing(send))
                return
            sentence = "This needs the server's token: Authorization: Bearer TOKEN."
            answer = JSONResponse({"error": sentence}, 401, {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, _closing(send))
            return
        with self._door.request(scope):
            await self._answer(holder, scope, receive, send)

    async def _answer(self, holder: str, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if self._under_way[holder] >= AT_ONCE:
            sentence = f"At most {AT_ONCE} requests per client are answered at once."
            await JSONResponse({"error": sentence}, 429, {"Retry-After": "1"})(scope, receive, send)
            return
        scope.setdefault("state", {})["holder"] = holder

        async def send_in_time(message: dict[str, Any]) -> None:
            """Send piece by piece, so that a client that does not read is noticed."""
            body, more = message.get("body", b""), message.get("more_body", False)
            try:
                for at in range(0, max(len(body), 1), PIECE):
                    rest = {"body": body[at : at + PIECE], "more_body": more or at + PIECE < len(body)}
                    async with asyncio.timeout(PIECE_SECONDS):
                        await send(message | rest)
            except TimeoutError as error:
                self._door.hang_up(scope)
                raise ClientDisconnect from error

        self._under_way[holder] += 1
        try:
            await self._app(scope, receive, send_in_time)
        except ClientDisconnect:
            return
        except Exception:
            logging.getLogger("histocrypt").exception("a request failed")  # the client was told so already
        finally:
            self._under_way[holder] -= 1

    def _holder(self, given: bytes) -> str | None:
        """Return whose token it is, comparing with all of them in constant time."""
        scheme, _, token = given.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        equal = [hmac.compare_digest(digest, wanted) for wanted in self._digests]
        return self._names[equal.index(True)] if scheme.lower() == b"bearer" and any(equal) else None


def _closing(send: Callable) -> Callable:
    """Return what sends an answer after which the connection is not kept."""

    async def closed(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return closed
