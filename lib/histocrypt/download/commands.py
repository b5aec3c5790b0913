"""``histocrypt download``: what may be fetched, under which licence, and fetching it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histocrypt.errors import InputError


def download(
    source: Annotated[
        str | None, typer.Argument(help="her2st, hbcis, hest or visium; without it, all are listed.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Sections; without any, their names are listed.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder; default HISTOCRYPT_DATA/<source>.")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a licence that forbids silent use (HEST).")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="Leave out whole-slide images where a smaller image serves.")
    ] = False,
    token_file: Annotated[Path | None, typer.Option(help="File with a Hugging Face token; else HF_TOKEN.")] = None,
    mirror: Annotated[str | None, typer.Option(help="Fetch from <address>/<role> instead of the hosts.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds without a byte before trying again.")] = 60.0,
) -> None:
    """Fetch public sections: resumable, checksummed, licence and citation shown."""
    from histocrypt import paths
    from histocrypt.download.catalogue import SOURCES, about, accept, source_named
    from histocrypt.download.fetching import download as fetch_sections
    from histocrypt.download.fetching import section_names
    from histocrypt.download.web import Web

    if source is None:
        typer.echo("\n\n".join(about(known) for known in SOURCES.values()))
        return
    chosen = source_named(source).mirrored(mirror)
    typer.echo(about(chosen))
    if names:
        accept(chosen, accepted=accept_licence)
    token = read_token(token_file) if chosen.gated else None
    if names and chosen.gated and token is None:
        msg = f"{chosen.name} is given out to known users only, and no token is set"
        raise InputError(msg, file=chosen.homepage, fix="accept its terms there, then set HF_TOKEN or --token-file")
    with Web(token=token, token_host=next(iter(chosen.hosts.values())), read_s=timeout) as web:
        if not names:
            typer.echo("\n" + "\n".join(chosen.names or section_names(chosen, web)))
            return
        folder = to if to is not None else paths.data() / chosen.name
        try:
            found = fetch_sections(chosen, names, folder, web=web, accepted=accept_licence, small=small, say=typer.echo)
        except KeyboardInterrupt:  # here, since typer would end without a word
            typer.echo("histocrypt: interrupted; what came is kept, the same command goes on from there", err=True)
            raise typer.Exit(130) from None
    typer.echo(
        "\nIn a study:\nsections:\n"
        + "\n".join(study_entry(chosen.name, section.name, section.path) for section in found)
    )


def study_entry(source: str, name: str, path: Path) -> str:
    """Return the lines of a study that name a fetched section; sections of one block have one patient."""
    from histocrypt.download.visium import block_of

    lines = [f"  - path: {path.absolute()}"]
    if source == "visium":  # Space Ranger knows no patients
        lines.append(f"    patient: {block_of(name)}      # as far as the name tells: correct it if you know better")
    return "\n".join(lines)


def read_token(file: Path | None) -> str | None:
    """Return the user's Hugging Face token from a file, else from where the hub's own tools keep it; never shown."""
    from histocrypt import paths

    if file is None:
        return paths.hugging_face_token()
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = "token file cannot be read"
        raise InputError(msg, file=file) from error
    if not token or not token.isascii() or len(token.split()) != 1:
        msg = "file does not hold one token"
        raise InputError(msg, file=file, expected="the token alone, on one line")
    return token
