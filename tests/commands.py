"""All commands of the program, and the one JSON document that one of them prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import click
import typer
from typer.testing import CliRunner

from histocrypt.cli import app


def commands() -> dict[str, click.Command]:
    """Return every command by its name, such as ``fhe check``."""

    def below(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        for word, command in getattr(group, "commands", {"": group}).items():
            if hasattr(command, "commands"):
                yield from below(command, f"{name}{word} ")
            else:
                yield f"{name}{word}", command

    return dict(below(typer.main.get_command(app), ""))


def document(*arguments: object, code: int = 0) -> Any:
    """Return what a command prints with ``--json``, which must be one document of plain JSON and nothing else."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout, parse_constant=_no_json)


def _no_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")
