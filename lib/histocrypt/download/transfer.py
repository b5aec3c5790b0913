"""One file over an unreliable line: resumed where it broke, checked at its end, there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm.auto import tqdm

from histocrypt.atomic import write_json
from histocrypt.download.checksum import matches, record, recorded
from histocrypt.download.web import Interrupted, Web, refuse, shown
from histocrypt.errors import InputError

SPARE_BYTES = 64 * 2**20
"""Disk space that a download leaves free."""
SLOWEST = 1024
"""Bytes a second below which a server counts as stalled."""
ENOUGH = 64 * 2**10
"""Bytes of an attempt that make it a success: attempts are counted anew."""
CONTENT_RANGE = re.compile(r"^bytes (\d+)-\d+/(\d+|\*)$")


@dataclass(frozen=True)
class RemoteFile:
    """A file that a host offers."""

    url: str
    path: str
    """Where it goes, relative to the target folder, with slashes."""
    size: int | None = None
    """Bytes, where the host tells."""
    digest: str | None = None
    """``<kind>:<hex>`` as the host publishes it; see `digest_of`."""


@dataclass(frozen=True)
class Fetched:
    """What became of one file."""

    path: Path
    how: str
    """``present``, ``fetched``, or ``resumed`` (after an interruption, now or in an earlier run)."""
    checked: str
    """What it was checked against, as a clause."""


def fetch(web: Web, file: RemoteFile, folder: Path, *, progress: bool = True) -> Fetched:
    """Download one file, unless it is there and right.

    What came is kept in ``<file>.partial`` until the file is whole and its checksum right, so that an interruption of
    any kind, Ctrl-C included, costs nothing: the next call goes on from there if the server still has the same file.

    Raises
    ------
    InputError
        One sentence for whatever the server, the line or the disk did; it says what is kept.
    """
    target = confined(folder, file.path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"folder cannot be written ({error.strerror})"
        raise InputError(msg, file=target.parent, fix="choose another with --to") from error
    known = file.digest or recorded(target)
    if target.is_file() and (present := _present(target, file, known)):
        return present
    with _partial(target) as partial:
        how = "resumed" if _download(web, file, partial, progress=progress) else "fetched"
        if file.digest is not None and not matches(partial.path, file.digest):
            partial.clear()  # perhaps two states of the file were joined: once more, from its first byte
            how = "resumed" if _download(web, file, partial, progress=progress) else "fetched"
            if not matches(partial.path, file.digest):
                partial.remove()
                msg = f"has the wrong checksum, twice; what came was deleted (published: {file.digest})"
                raise InputError(msg, file=shown(file.url), fix="try again later, or tell the host")
        os.replace(partial.path, target)
        partial.remove()
    if file.digest is not None:
        return Fetched(target, how, f"{file.digest.partition(':')[0]} as published")
    record(target)
    return Fetched(target, how, "none published: its SHA-256 is now written beside it")


def confined(folder: Path, name: str) -> Path:
    """Return ``folder / name``; a name that could lead elsewhere is refused."""
    parts = PurePosixPath(name).parts
    bad = not parts or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or ":" in parts[0]
    path = folder.joinpath(*parts)
    if bad or not path.resolve().is_relative_to(folder.resolve()):
        msg = "name leads out of the folder"
        raise InputError(msg, file=folder, value=name, expected="a relative path without '..'")
    return path


def need_space(folder: Path, needed: int, what: str) -> None:
    """Refuse what the disk cannot hold.

    Parameters
    ----------
    folder
        Where it goes; it need not exist yet.
    needed
        Bytes still to come.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed + SPARE_BYTES > free:
        msg = f"not enough disk space for {what}: {_size(needed)} are needed, {_size(free)} are free"
        raise InputError(msg, file=folder, fix="make room, or choose another folder with --to")


def left_to_fetch(file: RemoteFile, folder: Path) -> int:
    """Return how many bytes of a file are still to come, 0 where unknown or there."""
    target = confined(folder, file.path)
    if target.is_file() or file.size is None:
        return 0
    partial = target.with_name(f"{target.name}.partial")
    return max(0, file.size - (partial.stat().st_size if partial.is_file() else 0))


def _present(target: Path, file: RemoteFile, known: str | None) -> Fetched | None:
    """Return what a file that is there was checked against; None where it is not the one wanted."""
    if file.size is not None and target.stat().st_size != file.size:
        return None
    if known is None:
        checked = "nothing: no checksum is known" if file.size is None else "its size only"
        return Fetched(target, "present", checked)
    if not matches(target, known):
        return None
    where = "as published" if file.digest else "as written beside it by the first download"
    return Fetched(target, "present", f"{known.partition(':')[0]} {where}")


@dataclass
class _Partial:
    """What has come of a file, and by what the server's file can be told again."""

    path: Path
    file: IO[bytes]

    @property
    def notes(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def known(self, file: RemoteFile) -> dict[str, str] | None:
        """Return what was noted when the download began; None where it cannot be gone on with."""
        try:
            noted = json.loads(self.notes.read_text(encoding="utf-8"))
            same = noted["url"] == shown(file.url) and noted["digest"] == (file.digest or "")
            return noted if same and (noted["etag"] or noted["modified"] or noted["digest"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, file: RemoteFile, headers: Mapping[str, str]) -> None:
        self.clear()
        etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        etag = "" if etag.startswith("W/") else etag  # a weak one may stand for other bytes
        write_json(
            self.notes, {"url": shown(file.url), "digest": file.digest or "", "etag": etag, "modified": modified}
        )

    def clear(self) -> None:
        self.file.truncate(0)
        self.notes.unlink(missing_ok=True)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


@contextmanager
def _partial(target: Path) -> Iterator[_Partial]:
    """Open and lock what has come of a file; two processes cannot write to it."""
    path = target.with_name(f"{target.name}.partial")
    while True:
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            msg = f"cannot be written ({error.strerror})"
            raise InputError(msg, file=path, fix="choose another folder with --to") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                msg = "is being downloaded by another process"
                raise InputError(msg, file=target, fix="wait for it") from None
            # Between opening and locking, another process may have finished and moved the file to its place.
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                yield _Partial(path, file)
                return


def _download(web: Web, file: RemoteFile, partial: _Partial, *, progress: bool) -> bool:
    """Bring a partial file to its end, over as many attempts as it takes; return whether the last went on with it."""
    failed = 0
    while True:
        before = partial.size
        try:
            return _attempt(web, file, partial, progress=progress)
        except Interrupted as error:
            failed = 0 if partial.size - before >= ENOUGH else failed + 1
            if failed >= web.attempts:
                kept = f"; the first {_size(partial.size)} are kept" if partial.size else ""
                msg = f"{error}, {failed} times{kept}"
                raise InputError(msg, file=shown(file.url), fix="the same command goes on from there") from error
            web.pause(failed, error)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            msg = f"the disk is full; the first {_size(partial.size)} are kept"
            raise InputError(msg, file=partial.path, fix="make room, and repeat the same command") from error


def _attempt(web: Web, file: RemoteFile, partial: _Partial, *, progress: bool) -> bool:
    """Ask for what is missing and append it; return whether something was there before."""
    known = partial.known(file)
    if partial.size and (known is None or (file.size is not None and partial.size > file.size)):
        partial.clear()
    start = partial.size
    if start and start == file.size:
        return True
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and (validator := known["etag"] or known["modified"]):
        headers["If-Range"] = validator
    with web.request(file.url, headers=headers) as response:
        status = response.status_code
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return True  # all of it had come before
            partial.clear()
            raise Interrupted("the file changed on the server")
        refuse(response, file.url)
        if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            raise InputError(f"the server answers {status}", file=shown(file.url))
        if status == HTTPStatus.PARTIAL_CONTENT and not _goes_on(response.headers, start, known, file):
            partial.clear()
            raise Interrupted("the file changed on the server")
        length = response.headers.get("Content-Length", "")
        first = start if status == HTTPStatus.PARTIAL_CONTENT else 0
        total = first + int(length) if length.isdigit() else None
        if file.size is not None and total not in {None, file.size}:
            raise Interrupted(f"the server offers {total} bytes where {file.size} are published")
        total = file.size if total is None else total
        if status == HTTPStatus.OK:  # the file changed, or the server knows no ranges
            partial.begin(file, response.headers)
        need_space(partial.path.parent, (total or first) - first, partial.path.stem)
        _append(web, response.iter_raw(), partial, total, progress=progress)
        return first > 0


def _goes_on(headers: Mapping[str, str], start: int, known: Mapping[str, str] | None, file: RemoteFile) -> bool:
    """Return whether a partial answer continues what is here, as far as its headers tell."""
    found = CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if not start or found is None or int(found[1]) != start:
        return False
    if file.size is not None and found[2] not in {"*", str(file.size)}:
        return False
    etag = headers.get("ETag", "")
    return not (known and known["etag"] and etag and not etag.startswith("W/") and etag != known["etag"])


def _append(web: Web, blocks: Iterator[bytes], partial: _Partial, total: int | None, *, progress: bool) -> None:
    """Append what comes; a server that nearly stops counts as one that stopped."""
    began, came = time.monotonic(), 0
    with tqdm(total=total, initial=partial.size, unit="B", unit_scale=True, unit_divisor=1024, leave=False,
              desc=partial.path.stem, disable=None if progress else True) as bar:  # fmt: skip
        for block in blocks:
            partial.file.write(block)
            bar.update(len(block))
            came += len(block)
            if time.monotonic() - began > web.read_s:
                if came < SLOWEST * web.read_s:
                    raise Interrupted(f"only {_size(came)} came in {web.read_s:g} s")
                began, came = time.monotonic(), 0
    if total is not None and partial.size != total:
        if partial.size > total:
            partial.clear()
        raise Interrupted("the connection broke")


def _size(count: int) -> str:
    for unit, divisor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= divisor:
            return f"{count / divisor:.1f} {unit}"
    return f"{count} bytes"
