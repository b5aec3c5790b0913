"""``histocrypt fhe serve``: encrypted inference over HTTP(S).

| request | answer |
|---|---|
| ``GET /v1/health`` | whether the server lives; the only one that needs no token |
| ``GET /v1/client`` | the compiled model's public part |
| ``POST /v1/sessions`` | a new session, for ``{"client": hash, "bytes": size of the evaluation keys}`` |
| ``GET /v1/sessions/S`` | how much of the keys is there |
| ``PUT /v1/sessions/S/keys/OFFSET`` | a chunk of the keys; after the last one they are checked and loaded |
| ``POST /v1/sessions/S/requests/R/INDEX?of=N`` | the output message for the input message in the body |
| ``DELETE /v1/sessions/S`` | keys are gone |

Whatever is refused is ``{"error": one sentence}``. Tokens and sizes are checked before a body is read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from histocrypt.encrypted import engine
from histocrypt.encrypted.bundle import Bundle, load_bundle
from histocrypt.encrypted.evaluator import workers_for
from histocrypt.encrypted.messages import check_certificate, is_loopback, read_tokens
from histocrypt.encrypted.sessions import Limits, Refused, Store
from histocrypt.errors import InputError
from histocrypt.files import read_json

PORT = 8423
CONNECTIONS = 256
CHUNK = 4 << 20
"""Bytes of keys in one request."""
BODY_SECONDS = 120.0
"""A body must have arrived by then."""


class Opening(BaseModel):
    """What opens a session."""

    model_config = ConfigDict(strict=True)
    client: str
    """Hash of the compiled model that the keys were made for."""
    bytes: int
    """Size of the evaluation keys."""


def application(store: Store, bundle: Bundle, tokens: list[str], greeting: str = "") -> Any:
    """Return the server as an ASGI application."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(store.sweep())
        if greeting:
            print(greeting, file=sys.stderr, flush=True)
        yield
        sweeping.cancel()
        store.stop()

    handlers = dict.fromkeys((Refused, InputError, RequestValidationError, HTTPException, Exception), _refusal)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life, exception_handlers=handlers)
    public = read_json(bundle.client.file)

    @app.get("/v1/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/client")
    async def client() -> Response:
        return JSONResponse(public)

    @app.post("/v1/sessions", status_code=201)
    async def open_session(request: Request) -> dict[str, Any]:
        try:
            wanted = Opening.model_validate_json(await _body(request, 4096))
        except ValidationError as error:
            raise Refused(422, 'The body must be {"client": hash, "bytes": size of the evaluation keys}.') from error
        hosted = store.open(request.state.holder, client=wanted.client, size=wanted.bytes)
        return {"session": hosted.name, "chunk_bytes": CHUNK, "in_flight": store.in_flight}

    @app.get("/v1/sessions/{name}")
    async def state(request: Request, name: str) -> dict[str, Any]:
        hosted = store.get(name, request.state.holder)
        return {"state": hosted.state, "received": hosted.received, "bytes": hosted.size}

    @app.put("/v1/sessions/{name}/keys/{offset}")
    async def keys(request: Request, name: str, offset: int) -> dict[str, Any]:
        hosted = store.get(name, request.state.holder)
        await store.receive(hosted, offset, lambda left: _body(request, min(left, CHUNK)))
        return {"state": hosted.state, "received": hosted.received, "bytes": hosted.size}

    @app.post("/v1/sessions/{name}/requests/{name_of_request}/{index}")
    async def evaluate(
        request: Request,
        name: str,
        name_of_request: Annotated[str, fastapi.Path(pattern="^[0-9a-f]{32}$")],
        index: Annotated[int, fastapi.Path(ge=0, lt=100_000)],
        of: Annotated[int, fastapi.Query(ge=1, le=100_000)],
    ) -> Response:
        hosted = store.get(name, request.state.holder)
        result = await store.evaluate(
            hosted, lambda most: _body(request, most), request=name_of_request, index=index, of=of
        )
        return Response(result, media_type="application/octet-stream")

    @app.delete("/v1/sessions/{name}", status_code=204)
    async def end(request: Request, name: str) -> None:
        store.end(store.get(name, request.state.holder))

    return _Guard(app, tokens)


async def _refusal(_request: Request, error: Exception) -> Response:
    """Say in one sentence why there is another answer than the one asked for."""
    status, sentence, headers = 500, "The server failed; its log says how.", {}
    if isinstance(error, Refused):
        status, sentence = error.status, str(error)
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    elif isinstance(error, InputError):
        status, sentence = 422, str(error)
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        status, sentence = 422, f"{first['loc'][-1]}: {first['msg']}."
    elif isinstance(error, HTTPException):
        status, sentence = error.status_code, f"{error.detail}."
    return JSONResponse({"error": sentence}, status, headers)


class _Guard:
    """Lets nobody in without a token, before a body is read; what fails is logged here, not sent."""

    def __init__(self, app: Any, tokens: list[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and scope["path"] != "/v1/health":
            holder = self._holder(dict(scope["headers"]).get(b"authorization", b""))
            if holder is None:
                sentence = "This needs the server's token: Authorization: Bearer TOKEN."
                headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
                await JSONResponse({"error": sentence}, 401, headers)(scope, receive, send)
                return
            scope.setdefault("state", {})["holder"] = holder
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception:
            if scope["type"] != "http":
                raise
            logging.getLogger("histocrypt").exception("a request failed")  # the client was told so already

    def _holder(self, given: bytes) -> int | None:
        """Return whose token it is, comparing with all of them in constant time."""
        scheme, _, token = given.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        equal = [hmac.compare_digest(digest, wanted) for wanted in self._digests]
        return equal.index(True) if scheme.lower() == b"bearer" and any(equal) else None


async def _body(request: Any, most: int) -> bytes:
    """Read a request's body of at most ``most`` bytes; a larger one is refused, unread where it states its size."""
    too_large = Refused(413, f"The body may have at most {most} bytes.")
    stated = request.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, f"The body did not arrive within {BODY_SECONDS:.0f} s.") from error
    return bytes(body)


def serve(
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token_file: Path | None = None,
    certificate: Path | None = None,
    private_key: Path | None = None,
    insecure_http: bool = False,
    workers: int | None = None,
    limits: Limits | None = None,
    scratch: Path | None = None,
) -> None:
    """Serve a compiled model until interrupted.

    Parameters
    ----------
    bundle
        The compiled model.
    host, port
        Where to listen; port 0 takes a free one. Another host than loopback needs a token file, and TLS or
        ``insecure_http``.
    token_file
        Tokens, one a line, one for each client; made if it is not there. Default: ``server/token`` in the bundle.
    certificate, private_key
        For TLS, PEM.
    insecure_http
        Listen to others without TLS, e.g. behind a proxy that has it.
    workers
        Ciphertexts at once; all cores if not given, fewer where memory is short.
    limits
        What clients may use.
    scratch
        Where keys lie while they are uploaded; the system's folder for temporary files if not given.

    Raises
    ------
    InputError
        If something of that cannot be had.
    """
    import uvicorn

    if not is_loopback(host) and (token_file is None or not (certificate or insecure_http)):
        fix = "give --token-file, and --certificate with --private-key (or --insecure-http behind a proxy with TLS)"
        raise InputError("others can reach this address", field="host", value=host, fix=fix)
    if certificate or private_key:
        check_certificate(certificate, private_key)
    loaded = load_bundle(bundle)
    if loaded.client.parameters.bootstrapping is not None:
        problem = "is evaluated with bootstrapping, which takes minutes a spot and is not served over HTTP"
        fix = "exchange folders: histocrypt fhe encrypt, evaluate, decrypt"
        raise InputError(problem, file=bundle, field="parameters.bootstrapping", fix=fix)
    token_file = Path(token_file or loaded.folder / "server" / "token")
    tokens = read_tokens(token_file, make=True)
    limits = limits or Limits()
    workers = workers_for(loaded, workers)
    limits = _fit(loaded, workers, limits)
    print(
        f"{workers} ciphertexts at once, at most {limits.sessions} sessions: "
        f"up to {_memory(loaded, workers, limits.sessions) / 2**30:.1f} GiB of memory; "
        f"{limits.ciphertexts} ciphertexts a session, {limits.per_minute} a minute and client; "
        f"sessions end after {limits.idle_seconds:.0f} s without a request",
        file=sys.stderr,
    )
    with _listen(host, port) as listening:
        model = engine.load_model(loaded.model)
        store = Store(loaded, model, workers=workers, holders=len(tokens), limits=limits, scratch=scratch)
        address = f"{'https' if certificate else 'http'}://{_shown(host)}:{listening.getsockname()[1]}"
        greeting = f"serving {loaded.client.about['title']} at {address}, token in {token_file}"
        config = uvicorn.Config(
            application(store, loaded, tokens, greeting),
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http="h11",
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=30,
            ssl_certfile=certificate,
            ssl_keyfile=private_key,
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            store.stop()


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _memory(bundle: Bundle, workers: int, sessions: int) -> int:
    """Return the bytes that so many sessions take; the engine frees the keys of ended ones some time later."""
    return bundle.evaluation_bytes(workers * (sessions + 1 + sessions // 3))


def _fit(bundle: Bundle, workers: int, limits: Limits) -> Limits:
    """Return limits with as many sessions as memory allows."""
    import psutil

    sessions, room = limits.sessions, 0.9 * psutil.virtual_memory().available
    while sessions > 1 and _memory(bundle, workers, sessions) > room:
        sessions -= 1
    return dataclasses.replace(limits, sessions=sessions)


def _listen(host: str, port: int) -> socket.socket:
    """Bind before the model is loaded, so that a port in use is known at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        problem, fix = f"cannot listen there ({error.strerror})", "choose another --host or --port"
        raise InputError(problem, field="host", value=f"{_shown(host)}:{port}", fix=fix) from error
