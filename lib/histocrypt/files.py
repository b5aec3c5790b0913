"""Atomic writes: a file is there whole, or not at all; and checksums, as hosts publish them or as written here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histocrypt.errors import InputError

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
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"is not readable as JSON ({error})", file=path) from error


BLOCK = 2**20
LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$")


def digest_of(path: Path, kind: str) -> str:
    """Return the checksum of a file.

    Parameters
    ----------
    kind
        ``sha256``, ``md5``, or ``git``: the SHA-1 that git names a file's content by.
    """
    made = {"sha256": hashlib.sha256, "md5": hashlib.md5, "git": hashlib.sha1}[kind]()
    if kind == "git":
        made.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            made.update(block)
    return made.hexdigest()


def matches(path: Path, published: str) -> bool:
    """Return whether a file has a published checksum ``<kind>:<hex>``."""
    kind, _, value = published.partition(":")
    return digest_of(path, kind) == value.lower()


def record(path: Path) -> str:
    """Write the SHA-256 of a file beside it, as ``sha256sum`` does, and return it."""
    value = digest_of(path, "sha256")
    write_text(record_of(path), f"{value}  {path.name}\n")
    return value


def recorded(path: Path) -> str | None:
    """Return ``sha256:<hex>`` as written beside a file, or None."""
    beside = record_of(path)
    found = LINE.match(beside.read_text(encoding="utf-8").strip()) if beside.is_file() else None
    return f"sha256:{found[1]}" if found else None


def record_of(path: Path) -> Path:
    """Return where the checksum of a file is written."""
    return path.with_name(f"{path.name}.sha256")


def check_sums(folder: str | Path) -> dict[str, str]:
    """Check every file of a folder whose SHA-256 is known there, in ``SHA256SUMS`` or ``<file>.sha256``.

    Returns
    -------
    File, relative to the folder -> ``good``, ``differs`` or ``missing``; empty where nothing is known.
    """
    folder = Path(folder)
    known: dict[str, str] = {}
    for listing in [*folder.glob("SHA256SUMS"), *sorted(folder.rglob("*.sha256"))]:
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate((line for line in lines if line.strip()), start=1):
            found = LINE.match(line.strip())
            if not found:
                raise InputError(
                    f"line {number} is no checksum",
                    file=listing,
                    value=line[:80],
                    expected="64 hexadecimal digits and a file name",
                )
            name = (listing.parent / found[2]).relative_to(folder).as_posix()
            known[name] = found[1]
    return {
        name: "missing"
        if not (folder / name).is_file()
        else "good"
        if digest_of(folder / name, "sha256") == value
        else "differs"
        for name, value in sorted(known.items())
    }
