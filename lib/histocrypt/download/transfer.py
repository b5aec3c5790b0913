"""One file over an unreliable line: resumed where it broke, checked at its end, there whole or not at all.

HEST comes this way too. `hf_hub_download` of huggingface_hub 2.4.0 starts anew after a kill, as each call writes a file
of a random name (`file_download.py`, 2004-2046). Its `http_get` loses up to 10 MiB at each break, and gives up
where the line breaks sooner (459). Its listing sends the token to any host that a page names as the next, and sets no
time limit (`_pagination.py`, 41-50).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

import httpx
from tqdm.auto import tqdm

from histocrypt.errors import InputError
from histocrypt.files import matches, record, recorded, write_json

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be different a moment later."""
MAX_REDIRECTS = 6
MAX_WAIT_S = 60.0
MAX_JSON_BYTES = 64 * 2**20


class Interrupted(Exception):
    """The server gave up in the middle, or said to come back later."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Web:
    """A client for downloads.

    Plain http is used with this machine only, and a redirect to another host must lead to https. No certificate is ever
    taken on trust.

    Parameters
    ----------
    token
        Access token; it is sent to ``token_host`` alone, whatever a listing or a redirect says, and shown nowhere.
    token_host
        Address of the host that the token belongs to.
    connect_s, read_s
        How long to wait for a connection, and for the next bytes of an answer, seconds.
    attempts
        How often to try in a row without a single new byte.
    wait
        Sleeps between attempts; a parameter so that tests need not.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        token_host: str | None = None,
        connect_s: float = 20.0,
        read_s: float = 60.0,
        attempts: int = 5,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.read_s, self.attempts, self.wait = read_s, attempts, wait
        self._token = token if token_host else None
        self._token_origin = _origin(httpx.URL(token_host)) if token_host else None
        self._listings: dict[str, tuple[Any, httpx.Headers]] = {}
        timeout = httpx.Timeout(read_s, connect=connect_s)
        headers = {"User-Agent": "histocrypt", "Accept-Encoding": "identity"}
        self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)

    def __enter__(self) -> Web:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    @contextmanager
    def request(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        **content: Any,
    ) -> Iterator[httpx.Response]:
        """Send a request and yield the answer, whatever its status, its body unread.

        Raises
        ------
        InputError
            If the address, or a redirect, leads where it must not.
        Interrupted
            If the connection fails; also when that happens while the caller reads.
        """
        try:
            address = httpx.URL(url)
            _check_address(address)
            for _ in range(MAX_REDIRECTS):
                own = dict(headers or {})
                if self._token and _origin(address) == self._token_origin:
                    own["Authorization"] = f"Bearer {self._token}"
                with self._client.stream(method, address, headers=own, **content) as response:
                    if not response.has_redirect_location:
                        yield response
                        return
                    target = address.join(response.headers["Location"])
                check_redirect(address, target)
                address = target
        except httpx.ConnectTimeout as error:
            raise Interrupted("no connection in time") from error
        except httpx.TimeoutException as error:
            raise Interrupted(f"nothing came for {self.read_s:g} s") from error
        except httpx.ConnectError as error:
            raise Interrupted(f"cannot be reached ({error})") from error
        except httpx.RequestError as error:
            raise Interrupted(f"the connection broke ({error})") from error
        except httpx.InvalidURL as error:
            raise InputError(f"address is not valid ({error})", value=url.partition("?")[0][:200]) from error
        raise InputError("redirects in a circle", file=shown(url))

    def json(self, url: str, *, method: str = "GET", **content: Any) -> tuple[Any, httpx.Headers]:
        """Return the content of a JSON answer and its headers; a listing is asked for once. Tries again if needed."""
        if url in self._listings and method == "GET":
            return self._listings[url]
        for attempt in range(self.attempts):
            try:
                with self.request(url, method=method, **content) as response:
                    refuse(response, url)
                    body = b""
                    for part in response.iter_bytes():
                        body += part
                        if len(body) > MAX_JSON_BYTES:
                            raise InputError("listing is too long to be one", file=shown(url))
                    answer = _parsed(body), response.headers
                if method == "GET":
                    self._listings[url] = answer
                return answer
            except Interrupted as error:
                if attempt + 1 == self.attempts:
                    raise InputError(
                        f"{error}, {self.attempts} times", file=shown(url), fix="check the network, or try again later"
                    ) from error
                self.pause(attempt, error)
        raise ValueError("no attempt was allowed")

    def size(self, url: str) -> int | None:
        """Return what a file weighs by its headers, bytes; None where the server does not tell."""
        try:
            with self.request(url, method="HEAD") as response:
                length = response.headers.get("Content-Length", "")
                return int(length) if response.status_code == HTTPStatus.OK and length.isdigit() else None
        except Interrupted:
            return None

    def pause(self, attempt: int, error: Interrupted) -> None:
        """Wait before the next attempt: longer each time, and at least as long as the server asks."""
        self.wait(min(MAX_WAIT_S, max(error.wait_s, 2.0**attempt)))


def refuse(response: httpx.Response, url: str) -> None:
    """Raise for an answer that is none: `Interrupted` where it may pass, else `InputError`."""
    status = response.status_code
    if status < 400:
        return
    after = response.headers.get("Retry-After", "")
    if status in PASSING:
        raise Interrupted(f"the server answers {status}", wait_s=float(after) if after.isdigit() else 0.0)
    if status in {404, 410}:
        raise InputError(f"was not found (the server answers {status})", file=shown(url))
    if status in {401, 403}:
        if response.headers.get("X-RateLimit-Remaining") == "0":
            raise InputError(
                f"the server allows no more requests for now ({status})", file=shown(url), fix="try again in an hour"
            )
        raise InputError(
            f"access is refused ({status})",
            file=shown(url),
            fix="accept the terms on the data set's page, and give a valid token",
        )
    raise InputError(f"the server answers {status}", file=shown(url))


def shown(url: str) -> str:
    """Return an address as messages show it: without its query, which may hold a signature, and without a password."""
    address = httpx.URL(url)
    port = f":{address.port}" if address.port else ""
    return f"{address.scheme}://{address.host}{port}{address.path}"


def check_redirect(here: httpx.URL, target: httpx.URL) -> None:
    """Refuse a redirect that leaves the server unless it leads to https."""
    if target.scheme != "https" and _origin(here) != _origin(target):
        raise InputError(
            "is redirected to another host without https",
            file=shown(str(here)),
            value=shown(str(target)),
            fix="it is not followed",
        )


def _check_address(address: httpx.URL) -> None:
    local = address.scheme == "http" and address.host in LOOPBACK
    if (address.scheme != "https" and not local) or not address.host:
        raise InputError(
            "address is not https", file=shown(str(address)) if address.host else str(address), expected="https://..."
        )


def _origin(address: httpx.URL) -> tuple[str, str, int | None]:
    return address.scheme, address.host, address.port


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise Interrupted("the listing is cut off or no JSON") from error


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


def fetch(web: Web, file: RemoteFile, folder: Path, *, progress: bool = True, overwrite: bool = False) -> Fetched:
    """Download one file, unless it is there and right.

    What came is kept in ``<file>.partial`` until the file is whole and its checksum right, so that an interruption of
    any kind, Ctrl-C included, costs nothing: the next call goes on from there if the server still has the same file.
    A file of the name that is neither the published one nor an earlier download stays, unless ``overwrite`` says so.

    Raises
    ------
    InputError
        One sentence for whatever the server, the line or the disk did; it says what is kept.
    """
    target = confined(folder, file.path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"folder cannot be written ({error.strerror})", file=target.parent, fix="choose another with --to"
        ) from error
    known = file.digest or recorded(target)
    if target.is_file() and (present := _present(target, file, known)):
        return present
    if target.exists() and not overwrite and not ((own := recorded(target)) and matches(target, own)):
        raise InputError(
            "already exists and differs from the published file",
            file=target,
            fix="move it, choose another folder with --to, or add --overwrite",
        )
    with _partial(target) as partial:
        how = "resumed" if _download(web, file, partial, progress=progress) else "fetched"
        if file.digest is not None and not matches(partial.path, file.digest):
            partial.clear()  # perhaps two states of the file were joined: once more, from its first byte
            how = "resumed" if _download(web, file, partial, progress=progress) else "fetched"
            if not matches(partial.path, file.digest):
                partial.remove()
                raise InputError(
                    f"has the wrong checksum, twice; what came was deleted (published: {file.digest})",
                    file=shown(file.url),
                    fix="try again later, or tell the host",
                )
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
        raise InputError(
            "path leads outside the folder", file=folder, value=name, expected="a relative path without '..'"
        )
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
        raise InputError(
            f"not enough disk space for {what}: {_size(needed)} are needed, {_size(free)} are free",
            file=folder,
            fix="free some space, or choose another folder with --to",
        )


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
            raise InputError(
                f"cannot be written ({error.strerror})", file=path, fix="choose another folder with --to"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError("is being downloaded by another process", file=target, fix="wait for it") from None
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
                raise InputError(
                    f"{error}, {failed} times{kept}", file=shown(file.url), fix="run the same command again to resume"
                ) from error
            web.pause(failed, error)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            raise InputError(
                f"the disk is full; the first {_size(partial.size)} are kept",
                file=partial.path,
                fix="free some space, then run the same command again",
            ) from error


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
    with tqdm(
        total=total,
        initial=partial.size,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
        desc=partial.path.stem,
        disable=None if progress else True,
    ) as bar:
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


MAX_FILES = 10_000
MAX_BYTES = 8 * 2**30


def unpack(archive: Path, folder: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack a ``.tar`` or ``.tar.gz`` whose members all lie in one folder, and return that folder.

    It is unpacked beside its place and moved there when whole; what was there before is replaced.

    Raises
    ------
    InputError
        If the archive is damaged or too large, or a member is a link or device or leads out of the folder.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:*") as tar:
            files, size = 0, 0
            for member in tar:
                path = confined(draft, member.name.removeprefix("./") or folder.name)
                if path != draft / folder.name and draft / folder.name not in path.parents:
                    raise InputError(f"archive holds more than {folder.name}/", file=archive, value=member.name)
                if member.isdir():
                    continue
                if not member.isreg():
                    raise InputError(
                        "archive holds a link or a device", file=archive, value=member.name, expected="plain files"
                    )
                files, size = files + 1, size + member.size
                if files > max_files or size > max_bytes:
                    raise InputError(
                        f"archive is too large: more than {max_files} files or {max_bytes:,} bytes",
                        file=archive,
                        value=member.name,
                    )
                need_space(folder.parent, member.size, member.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, path.open("xb") as made:
                    shutil.copyfileobj(source, made, 2**20)
        if not files:
            raise InputError("archive is empty", file=archive)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft / folder.name, folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(
            f"archive cannot be unpacked ({error})", file=archive, fix="delete it and download it again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
