"""What to type next, after a command: for people at a terminal; in a pipe nothing is added."""

from __future__ import annotations

import sys


def onward(line: str) -> None:
    """Print ``next: ...`` to a terminal."""
    if sys.stdout.isatty():
        print(f"next: {line}")
