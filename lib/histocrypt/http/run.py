"""How an application is run: where it may listen, and how its server is set up."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from histocrypt.errors import InputError
from histocrypt.http.access import check_certificate, is_loopback
from histocrypt.http.connections import Door

BACKLOG = 1024
"""Connections that the system holds until they are accepted."""


def check_reach(
    host: str,
    *,
    token_file: Path | None,
    certificate: Path | None,
    private_key: Path | None,
    insecure_http: bool,
) -> None:
    """Refuse to listen where others than this machine would reach a server without a token of theirs, or without TLS.

    Raises
    ------
    InputError
        If that is so, or the certificate cannot be used.
    """
    if not is_loopback(host) and (token_file is None or not (certificate or insecure_http)):
        fix = "give --token-file, and --certificate with --private-key (or --insecure-http behind a proxy with TLS)"
        raise InputError("others can reach this address", field="host", value=host, fix=fix)
    if certificate or private_key:
        check_certificate(certificate, private_key)


def lifespan(store: Any, door: Door, greeting: str = "") -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return what an application does while it lives: sweep its store and its door, greet, and stop its store."""

    @asynccontextmanager
    async def life(_app: Any) -> AsyncIterator[None]:
        sweeping = asyncio.gather(store.sweep(), door.sweep())
        if greeting:
            print(greeting, file=sys.stderr, flush=True)
        yield
        sweeping.cancel()
        store.stop()

    return life


def address_of(door: Door, host: str, *, tls: bool) -> str:
    """Return where a server is found."""
    return f"{'https' if tls else 'http'}://{_shown(host)}:{door.getsockname()[1]}"


def run(app: Any, door: Door, *, certificate: Path | None, private_key: Path | None) -> None:
    """Serve an application until interrupted."""
    import uvicorn

    config = uvicorn.Config(
        app,
        loop="asyncio:SelectorEventLoop",  # others do not accept connections through `Door`
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http="h11",
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=60,  # `Door` is stricter
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    uvicorn.Server(config).run(sockets=[door])


def listen(host: str, port: int) -> socket.socket:
    """Bind before the model is loaded, so that a port in use is known at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        problem, fix = f"cannot listen on this address ({error.strerror})", "choose another --host or --port"
        raise InputError(problem, field="host", value=f"{_shown(host)}:{port}", fix=fix) from error


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
