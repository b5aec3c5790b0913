"""Atomic writes: a file is there whole, or not at all."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = re.compile(r"^\..+?\.(?:(?P<host>[^.]+)\.)?(?P<pid>\d+)\.partial")
"""Names of files that are being written: by which process of which machine."""


def partial_path(path: str | Path) -> Path:
    """Return where this process writes before it moves a file or folder to ``path``; the suffix is kept."""
    path = Path(path)
    host = socket.gethostname().split(".")[0]
    return path.with_name(f".{path.stem}.{host}.{os.getpid()}.partial{path.suffix}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there when the block ends without an error.

    The temporary name keeps the suffix, so that libraries that look at it still choose the right format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, keys in the order given, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; an unreadable one is an `InputError` that names it."""
    from histocrypt.errors import InputError

    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot be read ({error.strerror})"
        raise InputError(msg, file=path) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"is not readable as JSON ({error})"
        raise InputError(msg, file=path) from error
