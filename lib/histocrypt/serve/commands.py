"""The verb ``histocrypt serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MIB, GIB = 1 << 20, 1 << 30


def serve(
    model: Annotated[
        Path | None, typer.Option(help="Folder of a trained model; default: the small one that comes with HistoCrypt.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any free one.")] = 8424,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Lines NAME TOKEN, one per client; made if missing. Default: ~/.config/histocrypt/serve.tokens."
        ),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM).")] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Let others in without TLS.")] = False,
    max_mib: Annotated[float, typer.Option(min=0.001, help="Size of one upload, MiB.")] = 4096,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Millions of pixels of one slide.")] = 20_000,
    max_seconds: Annotated[float, typer.Option(min=1, help="A slide that takes longer is given up.")] = 1800,
    memory_gib: Annotated[float, typer.Option(min=0.1, help="Memory of the process of one slide.")] = 8,
    disk_gib: Annotated[float, typer.Option(min=0.001, help="Disk for all uploads and answers.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Slides predicted at once.")] = 1,
    waiting: Annotated[int, typer.Option(min=0, help="Slides that may wait.")] = 8,
    per_minute: Annotated[int, typer.Option(min=1, help="Uploads of a client in a minute.")] = 30,
    keep_minutes: Annotated[float, typer.Option(min=0.01, help="Answers are deleted after so long.")] = 15,
    scratch: Annotated[Path | None, typer.Option(help="Where uploads and answers lie for a while.")] = None,
) -> None:
    """Serve predictions over HTTP(S) to programs that need no encryption (see docs/serve.md)."""
    from histocrypt.serve.jobs import Limits
    from histocrypt.serve.server import serve as listen

    limits = Limits(
        bytes=int(max_mib * MIB),
        disk=int(disk_gib * GIB),
        megapixels=max_megapixels,
        memory=int(memory_gib * GIB),
        seconds=max_seconds,
        jobs=jobs,
        waiting=waiting,
        per_minute=per_minute,
        kept_seconds=60 * keep_minutes,
    )
    tls = {"certificate": certificate, "private_key": private_key, "insecure_http": insecure_http}
    listen(model, host=host, port=port, token_file=token_file, limits=limits, scratch=scratch, **tls)
