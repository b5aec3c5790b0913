"""How the body of a request is read: bounded in size, not slower than it may be, a part at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from histocrypt.http.refusals import Refused

GRACE_SECONDS = 10.0
SLOWEST = 16 << 10
"""A body has ``GRACE_SECONDS`` and one more second for each so many bytes that came, on average."""
BODY_SECONDS = 120.0
BODY_RATE = 256 << 10
"""A body must be whole after ``BODY_SECONDS``, or after the time that it takes at so many bytes a second if more."""


async def parts(request: Request, most: int) -> AsyncIterator[bytes]:
    """Yield a request's body of at most ``most`` bytes; refuse a larger one, unread where it states its size."""
    too_large = Refused(413, f"The body may have at most {most} bytes.")
    stated = request.headers.get("content-length", "")
    if stated and not (stated.isascii() and stated.isdigit() and len(stated) < 20 and int(stated) <= most):
        raise too_large
    loop, stream, received = asyncio.get_running_loop(), aiter(request.stream()), 0
    start, whole = loop.time(), max(BODY_SECONDS, int(stated or most) / BODY_RATE)
    while True:
        try:
            async with asyncio.timeout_at(start + min(whole, GRACE_SECONDS + received / SLOWEST)):
                part = await anext(stream, None)
        except TimeoutError as error:
            said = f"less than {SLOWEST >> 10} KiB a second came, or not all within {whole:.0f} s"
            raise Refused(408, f"The body came too slowly: {said}.") from error
        if part is None:
            return
        received += len(part)
        if received > most:
            raise too_large
        yield part


@asynccontextmanager
async def read_to_the_end(parts: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Where a client is told to come back later, take the rest of its body, else it would see a broken line alone."""
    try:
        yield
    except Refused as refused:
        if refused.retry_after is not None:
            async for _ in parts:
                pass
        raise
