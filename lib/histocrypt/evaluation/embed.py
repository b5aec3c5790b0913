"""Pictures inside a page, so that it is one file and opens without a network."""

from __future__ import annotations

import base64
from pathlib import Path

KINDS = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}
"""Media type of each picture a page may hold, by the ending of its file."""


def embed(path: Path) -> str:
    """Return a picture's file as the address that an ``img`` shows."""
    return embed_bytes(path.read_bytes(), path.suffix)


def embed_bytes(content: bytes, suffix: str) -> str:
    """Return the address of a picture that never was a file, e.g. a JPEG of ``suffix`` ``.jpg``."""
    return f"data:{KINDS[suffix]};base64,{base64.b64encode(content).decode()}"
