"""``histocrypt fhe serve``: encrypted inference over HTTP(S); `endpoints` says what is understood."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path

from histocrypt.encrypted import engine
from histocrypt.encrypted.access import check_certificate, is_loopback, read_tokens
from histocrypt.encrypted.bundle import Bundle, load_bundle
from histocrypt.encrypted.evaluator import workers_for
from histocrypt.encrypted.sessions import Limits, Store
from histocrypt.errors import InputError

PORT = 8423
CONNECTIONS = 256


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

    from histocrypt.encrypted.endpoints import application

    if not is_loopback(host) and (token_file is None or not (certificate or insecure_http)):
        msg = "others can reach this address"
        fix = "give --token-file, and --certificate with --private-key (or --insecure-http behind a proxy with TLS)"
        raise InputError(msg, field="host", value=host, expected="a loopback address", fix=fix)
    if certificate or private_key:
        check_certificate(certificate, private_key)
    loaded = load_bundle(bundle)
    if loaded.client.parameters.bootstrapping is not None:
        msg = "is evaluated with bootstrapping, which takes minutes a spot and is not served over HTTP"
        raise InputError(msg, file=bundle, fix="exchange folders: histocrypt fhe encrypt, evaluate, decrypt")
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
            log_level="error", access_log=False, server_header=False, proxy_headers=False, http="h11", ws="none",
            limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=5, timeout_keep_alive=30,
            ssl_certfile=certificate, ssl_keyfile=private_key,
        )  # fmt: skip
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

    sessions, free = limits.sessions, psutil.virtual_memory().available
    while sessions > 1 and _memory(bundle, workers, sessions) > 0.9 * free:
        sessions -= 1
    return dataclasses.replace(limits, sessions=sessions)


def _listen(host: str, port: int) -> socket.socket:
    """Bind before the model is loaded, so that a port in use is known at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        msg = f"cannot listen there ({error.strerror})"
        raise InputError(
            msg, field="host", value=f"{_shown(host)}:{port}", fix="choose another --host or --port"
        ) from error
