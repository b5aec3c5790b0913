"""Folders for what must not outlive a process: keys on their way into memory, tiles in the clear."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histocrypt.errors import InputError

SERVER, CLIENT = "histocrypt-serve-", "histocrypt-scratch-"


def own_folder(parent: str | Path | None, prefix: str) -> tuple[Path, Any]:
    """Make a folder that only this user can read, and delete those of processes that were killed.

    Parameters
    ----------
    parent
        Where; the system's folder for temporary files if not given.
    prefix
        Of its name, and of those that are looked through.

    Returns
    -------
    folder
    lock
        Holds the folder as long as it is not released: nobody deletes it meanwhile.

    Raises
    ------
    InputError
        If the parent is no folder, or cannot be written to.
    """
    from filelock import FileLock, Timeout

    parent = Path(parent or tempfile.gettempdir())
    if not parent.is_dir():
        raise InputError("is not a folder", file=parent, field="scratch")
    for old in parent.glob(f"{prefix}*"):
        if old.is_symlink() or not (old / "lock").is_file():  # not ours, or another process is making it just now
            continue
        try:
            with FileLock(old / "lock", timeout=0):
                shutil.rmtree(old, ignore_errors=True)
        except (OSError, Timeout):
            continue  # in use, or another user's
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))  # mode 0700
    except OSError as error:
        raise InputError(f"cannot be written to ({error.strerror})", file=parent, field="scratch") from error
    lock = FileLock(folder / "lock")
    lock.acquire()
    return folder, lock


@contextmanager
def scratch(parent: str | Path | None) -> Iterator[Path]:
    """Give such a folder for tiles in the clear, and delete it at the end."""
    folder, lock = own_folder(parent, CLIENT)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
