"""Whether a file is whole, told from little of it: a copy that stopped, a full disk and a kill leave half files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

ENDINGS = {
    ".html": b"</html>",
    ".svg": b"</svg>",
    ".png": b"IEND\xaeB`\x82",
    ".jpg": b"\xff\xd9",
    ".csv": b"\n",
    ".md": b"\n",
}
"""How whole files end, spaces apart, by suffix."""
TAIL = 64
"""Bytes read of the end of such a file."""


def flaw(path: Path) -> str | None:
    """Return what is wrong with a file in a few words; None if it is whole, or of a kind that nothing is known of.

    HDF5 and safetensors say their size in their heads, JSON and notebooks must parse, pictures, pages and tables must
    end as such files do. Bytes changed in the middle of a file are not noticed.
    """
    check = _CHECKS.get(path.suffix)
    if check is None:
        return None
    try:
        return "empty" if path.stat().st_size == 0 else check(path)
    except OSError as error:
        return _brief(error)


def _hdf5(path: Path) -> str | None:
    import h5py

    try:
        h5py.File(path, "r").close()
    except OSError as error:
        return "truncated" if "truncated" in str(error) else _brief(error)
    return None


def _safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return None
    except SafetensorError as error:
        return "truncated" if "header" in str(error) else _brief(error)


def _json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        return f"truncated or not JSON: {_brief(error)}"
    executed = isinstance(content, dict) and isinstance(content.get("cells"), list)
    return "not a notebook" if path.suffix == ".ipynb" and not executed else None


def _zip(path: Path) -> str | None:
    return None if zipfile.is_zipfile(path) else "truncated"


def _ending(path: Path) -> str | None:
    wanted = ENDINGS[path.suffix]
    with path.open("rb") as file:
        file.seek(-min(TAIL, path.stat().st_size), 2)
        tail = file.read()
    return None if (tail if wanted == b"\n" else tail.rstrip()).endswith(wanted) else "truncated"


def _brief(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".h5ad": _hdf5,
    ".h5": _hdf5,
    ".safetensors": _safetensors,
    ".json": _json,
    ".ipynb": _json,
    ".npz": _zip,
    **dict.fromkeys(ENDINGS, _ending),
}
