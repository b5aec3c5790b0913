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

A bootstrapped network, whose keys are gigabytes and whose answers take minutes, keeps sessions on disk
(`histocrypt.encrypted.resnet.sessions`). There an input message is answered by 202, and:

| request | answer |
|---|---|
| ``GET /v1/cost?of=N`` | what that many messages will cost; refused where that is over the quota |
| ``GET /v1/sessions/S/requests/R?of=N`` | which messages are there |
| ``POST /v1/sessions/S/requests/R?of=N`` | their evaluation is started, or goes on |
| ``GET /v1/sessions/S/requests/R/INDEX?of=N`` | the output message; 202, how far it is and ``Retry-After`` until then |

Whatever is refused is ``{"error": one sentence}``. Tokens and sizes are checked before a body is read. An answer that
says "later" (429, 503, 507) has a ``Retry-After``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import fastapi
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from histocrypt.encrypted.answer_noise import AnswerNoise
from histocrypt.encrypted.bundle import Bundle, forms, load_bundle
from histocrypt.encrypted.evaluator import Model, workers_for
from histocrypt.encrypted.extraction import extraction
from histocrypt.encrypted.sessions import Limits, Store
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.http.access import read_tokens
from histocrypt.http.bodies import parts, read_to_the_end
from histocrypt.http.connections import Door
from histocrypt.http.guard import Guard
from histocrypt.http.refusals import HANDLERS, Refused
from histocrypt.http.run import address_of, check_reach, lifespan, listen, run

if TYPE_CHECKING:
    from histocrypt.encrypted.resnet.sessions import KeptStore

PORT = 8423
CHUNK = 4 << 20
"""Bytes of keys in one request."""


class Opening(BaseModel):
    """What opens a session."""

    model_config = ConfigDict(strict=True)
    client: str
    """Hash of the compiled model that the keys were made for."""
    bytes: int
    """Size of the evaluation keys."""
    count: int = 0
    """Messages of the request, where sessions are kept on disk."""


Name = Annotated[str, fastapi.Path(pattern="^[0-9a-f]{32}$")]
Place = Annotated[int, fastapi.Path(ge=0, lt=100_000)]
Count = Annotated[int, fastapi.Query(ge=1, le=100_000)]


def application(store: Store, bundle: Bundle, tokens: Mapping[str, str], door: Door, greeting: str = "") -> Any:
    """Return the server as an ASGI application for clients with these tokens, by name."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan(store, door, greeting),
        exception_handlers=HANDLERS,
    )
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
            wanted = Opening.model_validate_json(b"".join([part async for part in parts(request, 4096)]))
        except ValidationError as error:
            raise Refused(422, 'The body must be {"client": hash, "bytes": size of the evaluation keys}.') from error
        more = {"count": wanted.count} if store.keeps else {}
        hosted = store.open(request.state.holder, client=wanted.client, size=wanted.bytes, **more)
        return {"session": hosted.name, "chunk_bytes": CHUNK, "in_flight": store.in_flight(hosted.client)}

    @app.get("/v1/sessions/{name}")
    async def state(request: Request, name: str) -> dict[str, Any]:
        hosted = store.get(name, request.state.holder)
        return {"state": hosted.state, "received": hosted.received, "bytes": hosted.size}

    @app.put("/v1/sessions/{name}/keys/{offset}")
    async def keys(request: Request, name: str, offset: int) -> dict[str, Any]:
        hosted = store.get(name, request.state.holder)
        body = parts(request, min(hosted.size, CHUNK))
        async with read_to_the_end(body):
            await store.receive(hosted, offset, body)
        return {"state": hosted.state, "received": hosted.received, "bytes": hosted.size}

    @app.post("/v1/sessions/{name}/requests/{name_of_request}/{index}")
    async def evaluate(
        request: Request,
        name: str,
        name_of_request: Name,
        index: Place,
        of: Count,
    ) -> Response:
        hosted = store.get(name, request.state.holder)
        body = parts(request, hosted.client.most_input_bytes)
        async with read_to_the_end(body):
            result = await store.evaluate(hosted, body, request=name_of_request, index=index, of=of)
        return Response(result, 200 if result else 202, media_type="application/octet-stream")

    if store.keeps:
        _add_jobs(app, store)

    @app.delete("/v1/sessions/{name}", status_code=204)
    async def end(request: Request, name: str) -> None:
        store.end(store.get(name, request.state.holder))

    return Guard(app, tokens, door)


def _add_jobs(app: FastAPI, store: KeptStore) -> None:
    """Add what clients of a bootstrapped network ask for."""
    from histocrypt.encrypted.resnet.sessions import RETRY_SECONDS

    @app.get("/v1/cost")
    async def cost(of: Count) -> dict[str, Any]:
        return store.cost(of)

    @app.get("/v1/sessions/{name}/requests/{name_of_request}")
    async def there(request: Request, name: str, name_of_request: Name, of: Count) -> dict[str, Any]:
        return {"there": store.there(store.get(name, request.state.holder), name_of_request, of)}

    @app.post("/v1/sessions/{name}/requests/{name_of_request}", status_code=202)
    async def start(request: Request, name: str, name_of_request: Name, of: Count) -> dict[str, Any]:
        store.start(store.get(name, request.state.holder), name_of_request, of)
        return {}

    @app.get("/v1/sessions/{name}/requests/{name_of_request}/{index}")
    async def answer(request: Request, name: str, name_of_request: Name, index: Place, of: Count) -> Response:
        found = store.answer(store.get(name, request.state.holder), name_of_request, index, of)
        if isinstance(found, bytes):
            return Response(found, media_type="application/octet-stream")
        said = {"progress": found, "retry_after": RETRY_SECONDS}
        return JSONResponse(said, 202, {"Retry-After": str(RETRY_SECONDS)})


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
    limits: Limits | dict[str, Any] | None = None,
    scratch: Path | None = None,
    noise: float = 0.0,
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
        A line for each client, its name and its token; made if it is not there. Default: ``server/token`` in the
        bundle.
    certificate, private_key
        For TLS, PEM.
    insecure_http
        Listen to others without TLS, e.g. behind a proxy that has it.
    workers
        Ciphertexts at once; all cores if not given, fewer where memory is short.
    limits
        What clients may use; a dictionary says only what is not as usual for the model.
    scratch
        Where keys lie while they are uploaded; the system's folder for temporary files if not given. Of a bootstrapped
        network whole sessions lie there, also while no server runs; ``server`` in the bundle if not given.
    noise
        Standard deviation of what is added to outputs, as a share of each output's own over the training spots; see
        `answer_noise`.

    Raises
    ------
    InputError
        If something of that cannot be had.
    """
    tls = {"certificate": certificate, "private_key": private_key}
    check_reach(host, token_file=token_file, insecure_http=insecure_http, **tls)
    loaded = load_bundle(bundle)
    token_file = Path(token_file or loaded.folder / "server" / "token")
    tokens = read_tokens(token_file, make=True)
    kept = loaded.client.parameters.bootstrapping is not None
    make = (_kept_store if kept else _store)(loaded, _Wanted(list(tokens), limits, workers, scratch, noise))
    with Door(listen(host, port)) as door:
        store = make()
        address = address_of(door, host, tls=certificate is not None)
        greeting = (
            f"serving {loaded.client.about['title']} at {address}, to {', '.join(tokens)} with tokens in {token_file}"
        )
        try:
            run(application(store, loaded, tokens, door, greeting), door, **tls)
        finally:
            store.stop()


class _Wanted(NamedTuple):
    """What a server's owner wants of sessions, as `serve` has it."""

    clients: list[str]
    limits: Limits | dict[str, Any] | None
    workers: int | None
    scratch: Path | None
    noise: float


def _store(loaded: Bundle, wanted: _Wanted) -> Callable[[], Store]:
    """Return what makes the sessions of a network that answers at once, after saying what they take."""
    limits = wanted.limits if isinstance(wanted.limits, Limits) else Limits(**(wanted.limits or {}))
    workers = workers_for(loaded, loaded.client, wanted.workers)
    limits = _fit(loaded, workers, limits)
    each = min(form.places for form in forms(loaded.client).values())
    if each > min(limits.spots, limits.per_minute):
        problem, least = (
            "would reject every message",
            f"at least the {each} spots that a message of this model counts for",
        )
        field = "--spots" if limits.spots < each else "--per-minute"
        raise InputError(problem, field=field, value=min(limits.spots, limits.per_minute), expected=least)
    counted = " or ".join(str(form.places) for form in forms(loaded.client).values())
    print(
        f"{workers} messages at once, at most {limits.sessions} sessions: "
        f"up to {_memory(loaded, workers, limits.sessions) / 2**30:.1f} GiB of memory; "
        f"{limits.spots} spots per session, {limits.per_minute} per minute and client; a message counts as {counted}; "
        f"sessions end after {limits.idle_seconds:.0f} s without a request\n{extraction(loaded.client)}",
        file=sys.stderr,
    )
    added = AnswerNoise.of(loaded, wanted.noise) if wanted.noise else None
    if added:
        said = "`send` refuses answers whose copies differ by more than an honest server would cause"
        print(f"noise of {wanted.noise:g} of each output's spread is added to answers; {said}", file=sys.stderr)
    how = {"workers": workers, "limits": limits, "noise": added}
    return lambda: Store(Model(loaded), clients=wanted.clients, scratch=wanted.scratch, **how)


def _kept_store(loaded: Bundle, wanted: _Wanted) -> Callable[[], Store]:
    """Return what makes the sessions of a bootstrapped network, after saying what they take."""
    from histocrypt.encrypted.resnet.request import cost_of
    from histocrypt.encrypted.resnet.sessions import LIMITS, KeptStore

    if wanted.noise:
        problem, fix = "cannot be added to the answers of a bootstrapped network", "leave it out"
        raise InputError(problem, field="--noise", value=wanted.noise, fix=fix)
    limits = wanted.limits
    limits = limits if isinstance(limits, Limits) else dataclasses.replace(LIMITS, **(limits or {}))
    folder, size = wanted.scratch or loaded.folder / "server", loaded.client.evaluation_key_bytes() / 2**30
    print(
        f"one job at a time, {cost_of(loaded)}\nat most {limits.sessions} sessions: up to "
        f"{limits.sessions * size:.1f} GiB of keys on disk, in {folder}; {limits.spots} tiles per session; sessions "
        f"end after {limits.idle_seconds / 60:.0f} min without a request\n{extraction(loaded.client)}",
        file=sys.stderr,
    )
    how = {"workers": wanted.workers or 1, "clients": wanted.clients, "limits": limits, "folder": folder}
    return lambda: KeptStore(loaded, **how)


def _memory(bundle: Bundle, workers: int, sessions: int) -> int:
    """Return the bytes that so many sessions take; the engine frees the keys of ended ones some time later."""
    held = workers * (sessions + 1 + sessions // 3)
    return max(bundle.evaluation_bytes(held, form) for form in forms(bundle.client).values())


def _fit(bundle: Bundle, workers: int, limits: Limits) -> Limits:
    """Return limits with as many sessions as memory allows."""
    import psutil

    sessions, room = limits.sessions, 0.9 * psutil.virtual_memory().available
    while sessions > 1 and _memory(bundle, workers, sessions) > room:
        sessions -= 1
    return dataclasses.replace(limits, sessions=sessions)
