"""What a command answers: text for people or, with ``--json``, one JSON document on stdout and nothing else."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from histocrypt.onward import onward

Result = TypeVar("Result")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def answer(
    find: Callable[[], Result],
    words: Callable[[Result], str],
    *,
    as_json: bool,
    document: Callable[[Result], Any] | None = None,
    then: Callable[[Result], str] | None = None,
) -> Result:
    """Find something, print it and return it.

    Parameters
    ----------
    find
        Does the work. What it prints on the way goes to stderr where stdout is for JSON.
    words
        Writes the result for people.
    as_json
        Print ``document`` of the result, see `plain`, in place of ``words``.
    document
        Chooses what programs get; the result itself by default.
    then
        Returns what to type next; a terminal gets it after the text.
    """
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = find()
        text = _written(document(result) if document else result) if as_json else words(result)
    typer.echo(text)
    if then and not as_json:
        onward(then(result))
    return result


def _written(value: Any) -> str:
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinity become null, dataclasses and arrays objects and lists."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path | Exception):
        return str(value)
    return plain(value.tolist()) if hasattr(value, "tolist") else value
