"""``histocrypt serve``: a slide or tiles in, predictions that say how far to trust them out, over plain HTTP(S).

| request | answer |
|---|---|
| ``GET /v1/health`` | whether the server lives; needs no token |
| ``GET /docs``, ``GET /openapi.json`` | this interface, for people and for programs; need no token |
| ``GET /v1/model`` | what is predicted, of what tissue, and what may be sent |
| ``POST /v1/slides`` | the prediction of the image in the body |
| ``POST /v1/tiles`` | the prediction of the tiles in the body (safetensors) |
| ``GET /v1/jobs/J`` | the same prediction, in time |
| ``DELETE /v1/jobs/J`` | it is gone |

What is not predicted within ``wait`` seconds is answered by 202, with the job's address and ``Retry-After``. Whatever
is refused is ``{"error": one sentence}``, with ``field``, ``value``, ``expected`` and ``fix`` where they are known.
Tokens and sizes are checked before a body is read. The server sees everything: nothing but the line is encrypted, and
that with TLS alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer

from histocrypt import __version__, paths
from histocrypt.errors import InputError
from histocrypt.http.access import read_tokens
from histocrypt.http.bodies import parts, read_to_the_end
from histocrypt.http.connections import Door
from histocrypt.http.guard import HEALTH, Guard
from histocrypt.http.refusals import HANDLERS, Refused
from histocrypt.http.run import address_of, check_reach, lifespan, listen, run
from histocrypt.machine import usable_cores
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.folder import Settings
from histocrypt.pipeline.inputs import GRID_UM
from histocrypt.serve.answers import ANSWERS, H5AD, JSON, MEDIA, check_wanted, suffix_of
from histocrypt.serve.docs import page_of
from histocrypt.serve.jobs import Job, Limits, Store, answer_of, limits_words
from histocrypt.serve.uploads import SLIDES, TILES, slide_suffix, tiles_suffix
from histocrypt.serve.work import Wanted
from histocrypt.trust.origin import origin_words

PORT = 8424
LONGEST_WAIT = 300.0
"""Seconds that a request may wait for its answer."""
RETRY_SECONDS = 2
VERDICT = "Histocrypt-Verdict"
"""Header of an answer: whether the model may be used on the slide."""

Name = Annotated[
    str, Query(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="What the slide is called in the answer.")
]
Resolution = Annotated[
    float | None, Query(gt=0, lt=1000, description="Micrometres per pixel, where the image does not say.")
]
Spacing = Annotated[float, Query(gt=0, description="Micrometres between the points of the grid over the tissue.")]
Anyway = Annotated[bool, Query(description="Go on where the model does not fit the tissue or the slide.")]
Form = Annotated[str, Query(alias="format", description=f"One of {', '.join(ANSWERS)}.")]
Genes = Annotated[str, Query(description="Ids or symbols with commas between them; all of them where empty.")]
Layer = Annotated[str | None, Query(description="Transform of the counts; the model's main one where empty.")]
Wait = Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the answer.")]
Again = Annotated[
    str | None, Query(alias="format", description=f"{JSON}, {H5AD} or what was asked for first, the default.")
]
TOKEN = HTTPBearer(auto_error=False, description="The client's token, from the server's owner.")


def application(
    store: Store, about: Mapping[str, Any], tokens: Mapping[str, str], door: Door, greeting: str = ""
) -> Any:
    """Return the server as an ASGI application for clients with these tokens, by name.

    Parameters
    ----------
    store
        Its jobs.
    about
        What ``model.json`` says.
    tokens
        By name of the client.
    door
        Where connections come from.
    greeting
        What is printed when it listens.
    """
    app = FastAPI(
        title="HistoCrypt",
        version=__version__,
        description="Gene expression predicted from H&E, with how far to trust it. Nothing is encrypted: the server "
        "sees slides and predictions.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan(store, door, greeting),
        exception_handlers=HANDLERS,
    )
    guarded = [Depends(TOKEN)]  # `Guard` checks it; this writes it into the description

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        """Say that the server lives."""
        return {"status": "ok"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page, policy = page_of(app.openapi())
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/v1/model", dependencies=guarded)
    async def model() -> dict[str, Any]:
        """Say what is predicted, what the model learnt from, and what may be sent."""
        return _described(about) | {"limits": limits_words(store.limits)}

    async def take(request: Request, job: Job, wait: float, *, kind: Any, kinds: str) -> Response:
        body = parts(request, store.limits.bytes)
        try:
            async with read_to_the_end(body):
                await store.receive(job, body, kind, kinds)
        except BaseException:  # whatever it is, nothing of the job stays
            store.end(job)
            raise
        if not await _over(job, wait, request):
            store.end(job)  # its client has gone without having heard of it
            return Response(status_code=499)
        return _answered(store, job, job.wanted.form)

    def size_of(request: Request) -> int:
        """Return how much room an upload needs: as it says, else as much as one may have."""
        stated = request.headers.get("content-length", "")
        most = store.limits.bytes
        if not (stated.isascii() and stated.isdigit() and len(stated) < 20):
            return most
        if int(stated) > most:
            said = {"field": "Content-Length", "value": int(stated), "expected": f"at most {most}"}
            raise Refused(413, f"The body may have at most {most} bytes.", said=said)
        return int(stated)

    answers = {
        200: {"description": "The prediction, in the format asked for.", "content": {"application/json": {}}},
        202: {"description": "Not yet: the address of the job."},
        413: {"description": "Larger than this server takes."},
        415: {"description": "No slide, or no tiles."},
        422: {"description": "It cannot be predicted, or should not be: one sentence, field and value."},
        429: {"description": "Later: too many at once, or in a minute."},
        507: {"description": "Later: no room on the disk."},
    }

    @app.post("/v1/slides", dependencies=guarded, responses=answers, openapi_extra=_body(f"{SLIDES}: one file."))
    async def slides(
        request: Request,
        name: Name = "slide",
        um_per_px: Resolution = None,
        spacing_um: Spacing = GRID_UM,
        anyway: Anyway = False,  # noqa: FBT002  FastAPI calls it so
        form: Form = JSON,
        genes: Genes = "",
        layer: Layer = None,
        wait: Wait = 60.0,
    ) -> Response:
        """Predict on a grid over the tissue of the image that is the body of the request."""
        wanted = _wanted(about, form, genes, layer, tiles=False)
        settings = Settings(um_per_px=um_per_px, spacing_um=spacing_um, anyway=anyway)
        size = size_of(request)
        job = store.open(request.state.holder, name=name, wanted=wanted, settings=settings, size=size)
        return await take(request, job, wait, kind=slide_suffix, kinds=SLIDES)

    words = f"A safetensors file with one array, `{TILES}`: (n, side, side, 3) uint8, RGB."

    @app.post("/v1/tiles", dependencies=guarded, responses=answers, openapi_extra=_body(words))
    async def tiles(
        request: Request,
        um_per_px: Annotated[float, Query(gt=0, lt=1000, description="Micrometres per pixel of the tiles.")],
        name: Name = "tiles",
        anyway: Anyway = False,  # noqa: FBT002
        form: Form = JSON,
        genes: Genes = "",
        layer: Layer = None,
        wait: Wait = 60.0,
    ) -> Response:
        """Predict tiles that the client cut, of one slide: their stain is estimated from all of them together."""
        wanted = _wanted(about, form, genes, layer, tiles=True)
        settings, size = Settings(um_per_px=um_per_px, anyway=anyway), size_of(request)
        job = store.open(request.state.holder, name=name, wanted=wanted, settings=settings, size=size)
        return await take(request, job, wait, kind=tiles_suffix, kinds="tiles in a safetensors file")

    @app.get("/v1/jobs/{job}", dependencies=guarded, responses=answers)
    async def again(request: Request, job: str, form: Again = None, wait: Wait = 60.0) -> Response:
        """Give the prediction of a job, or how far it is."""
        found = store.get(job, request.state.holder)
        kinds = tuple(dict.fromkeys((found.wanted.form, JSON, H5AD)))
        if form is not None and form not in kinds:
            said = {"field": "format", "value": form, "expected": f"one of {', '.join(kinds)}"}
            raise Refused(422, f"format: this job was not asked for it; it has {', '.join(kinds)}.", said=said)
        await _over(found, wait, request)
        return _answered(store, found, form or found.wanted.form)

    @app.delete("/v1/jobs/{job}", status_code=204, dependencies=guarded)
    async def end(request: Request, job: str) -> None:
        """End a job and delete what there is of it."""
        store.end(store.get(job, request.state.holder))

    return Guard(app, tokens, door, unguarded=("/docs", "/openapi.json"))


def _body(words: str) -> dict[str, Any]:
    """Return the description of a request whose body is a file."""
    schema = {"type": "string", "format": "binary"}
    return {
        "requestBody": {
            "required": True,
            "description": words,
            "content": {"application/octet-stream": {"schema": schema}},
        }
    }


def _wanted(about: Mapping[str, Any], form: str, genes: str, layer: str | None, *, tiles: bool) -> Wanted:
    chosen = tuple(gene.strip() for gene in genes.split(",") if gene.strip())
    layer = layer or None
    try:
        check_wanted(about, form=form, tiles=tiles, genes=chosen, layer=layer)
    except InputError as error:
        said = {name: getattr(error, name) for name in ("field", "value", "expected", "fix")}
        raise Refused(422, str(error), said=said) from error
    return Wanted(form, tiles, chosen, layer)


async def _over(job: Job, seconds: float, request: Request) -> bool:
    """Wait for a job, no longer than so many seconds; return whether its client is still there."""
    until = asyncio.get_running_loop().time() + seconds
    while not job.over.is_set() and (left := until - asyncio.get_running_loop().time()) > 0:
        if await request.is_disconnected():
            return False
        try:
            async with asyncio.timeout(min(1.0, left)):
                await job.over.wait()
        except TimeoutError:
            continue
        except asyncio.CancelledError as error:
            raise Refused(503, "The server stops.", retry_after=30) from error
    return True


def _answered(store: Store, job: Job, form: str) -> Response:
    """Return the answer of a job as it stands."""
    at = {"Location": f"/v1/jobs/{job.id}"}
    if job.state == "failed":
        raise job.failure
    if job.state == "ended":
        raise Refused(404, "This job was deleted.")
    if job.state != "done":
        said = {"job": job.id, "at": at["Location"], "state": job.state, "ahead": store.ahead(job)}
        return JSONResponse(said, 202, at | {"Retry-After": str(RETRY_SECONDS)})
    headers = at | {VERDICT: job.verdict, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    how = {"filename": f"{job.name}{suffix_of(form)}", "media_type": MEDIA.get(form, "application/octet-stream")}
    return FileResponse(answer_of(job, form), headers=headers, **how)


def _described(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what clients are told of a model."""
    panel = about["panel"]
    symbols = panel.get("symbols") or panel["genes"]
    return {
        "title": about.get("title", about["model"]),
        "weights_sha256": about["weights"]["sha256"],
        "learnt_from": origin_words(about.get("origin")),
        "judges_slides": "gate" in about,
        "tile_um": about["geometry"]["tile_um"],
        "layers": list(about["transforms"]),
        "genes": [{"id": gene, "symbol": symbol} for gene, symbol in zip(panel["genes"], symbols, strict=True)],
        "formats": list(ANSWERS),
    }


def serve(
    model: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token_file: Path | None = None,
    certificate: Path | None = None,
    private_key: Path | None = None,
    insecure_http: bool = False,
    limits: Limits | None = None,
    scratch: Path | None = None,
) -> None:
    """Serve predictions of a model until interrupted.

    Parameters
    ----------
    model
        ``models/<name>/<fold>``; None: the small model that comes with the library.
    host, port
        Where to listen; port 0 takes a free one. Another host than loopback needs a token file, and TLS or
        ``insecure_http``.
    token_file
        A line for each client, its name and its token; made if it is not there. Default: `paths.tokens`.
    certificate, private_key
        For TLS, PEM.
    insecure_http
        Listen to others without TLS, e.g. behind a proxy that has it.
    limits
        What clients may use.
    scratch
        Where uploads and answers lie; the system's folder for temporary files if not given.

    Raises
    ------
    InputError
        If something of that cannot be had.
    """
    tls = {"certificate": certificate, "private_key": private_key}
    check_reach(host, token_file=token_file, insecure_http=insecure_http, **tls)
    folder = (paths.shipped_model() if model is None else Path(model)).absolute()
    about, limits = load_model(folder, device="cpu").about, limits or Limits()
    token_file = Path(token_file or paths.tokens())
    tokens = read_tokens(token_file, make=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // limits.jobs)))  # of each job's process
    with Door(listen(host, port)) as door:
        store = Store(folder, clients=list(tokens), limits=limits, scratch=scratch)
        address = address_of(door, host, tls=certificate is not None)
        title = about.get("title", about["model"])
        known = f"to {', '.join(tokens)} with tokens in {token_file}"
        greeting = f"serving {title} at {address}, {known}; how to ask: {address}/docs"
        try:
            run(application(store, about, tokens, door, greeting), door, **tls)
        finally:
            store.stop()
