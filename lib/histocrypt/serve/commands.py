"""The verb ``histocrypt serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MIB, GIB = 1 << 20, 1 << 30


def serve(
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of a trained model; default: the small one that comes with HistoCrypt."
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0: any free one.")
    ] = 8424,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lines NAME TOKEN, one per client; made if missing. Default: ~/.config/histocrypt/serve.tokens.",
        ),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS certificate (PEM).")] = None,
    private_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Accept other machines without TLS.")] = False,
    max_mib: Annotated[float, typer.Option(min=0.001, metavar="MIB", help="Largest upload, MiB.")] = 4096,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, metavar="N", help="Largest slide, millions of pixels.")
    ] = 20_000,
    max_seconds: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Give up a slide after so long.")] = 1800,
    memory_gib: Annotated[float, typer.Option(min=0.1, metavar="GIB", help="Memory for one slide, GiB.")] = 8,
    disk_gib: Annotated[
        float, typer.Option(min=0.001, metavar="GIB", help="Disk for all uploads and answers, GiB.")
    ] = 20,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Slides predicted at once.")] = 1,
    waiting: Annotated[int, typer.Option(min=0, metavar="N", help="Slides that may wait.")] = 8,
    per_minute: Annotated[int, typer.Option(min=1, metavar="N", help="Uploads per client and minute.")] = 30,
    keep_minutes: Annotated[
        float, typer.Option(min=0.01, metavar="MINUTES", help="Delete answers after so long.")
    ] = 15,
    scratch: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder for uploads and answers.")] = None,
) -> None:
    """Serve predictions over HTTP(S), without encryption.

    docs/serve.md says how programs ask for them.
    """
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
