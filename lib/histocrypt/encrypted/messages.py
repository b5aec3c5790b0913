"""What the two parties exchange, as files: a JSON header that says what it is for, then the engine's bytes.

The header binds a payload to the public client part it was made for, to a key, to a request and to a place in it, and
holds its SHA-256: a message that was truncated, swapped with another one, or sent again in another request is refused
before the engine sees it. It is no signature: who can write to the folder or the connection can make new messages (use
TLS between machines), but not read what is inside.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from histocrypt.atomic import atomic_path
from histocrypt.errors import InputError

MAGIC = b"HISTOCRYPT\x00\x01"
LONGEST_HEADER = 4096
KINDS = ("evaluation keys", "bootstrapping keys", "public key", "secret key", "input", "output")


def write_message(path: Path, kind: str, payload: bytes, **header: Any) -> None:
    """Write a message atomically; the file is readable by its owner only."""
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("wb") as file:
            file.write(pack(kind, payload, **header))


def pack(kind: str, payload: bytes, **header: Any) -> bytes:
    """Return a message as bytes."""
    content = {"kind": kind, **header, "bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    encoded = json.dumps(content, sort_keys=True).encode()
    return b"".join([MAGIC, struct.pack("<I", len(encoded)), encoded, payload])


def unpack(data: bytes, *, file: Any, kind: str, **expected: Any) -> bytes:
    """Return the payload of a message after checking all that its header claims.

    Raises
    ------
    InputError
        Naming ``file`` and the header's field, if it is truncated, oversized, damaged, of another kind, or bound to
        something else than ``expected``.
    """
    header, start = _header(data, file)
    _check(header, len(data) - start, file=file, kind=kind, **expected)
    payload = data[start:]
    if hashlib.sha256(payload).hexdigest() != header.get("sha256"):
        msg = "the content is damaged: it does not have the checksum that its header states"
        raise InputError(msg, file=file, field="sha256", fix="send it again")
    return payload


def read_message(path: Path, kind: str, *, most: int | None = None, **expected: Any) -> bytes:
    """Read a message file; see `unpack`. Files above ``most`` bytes are refused unread."""
    return unpack(read_whole(path, most=most), file=path, kind=kind, **expected)


def read_whole(path: Path, *, most: int | None = None) -> bytes:
    """Read a message file as it is, unless it has more than ``most`` bytes."""
    _, size = _peek(path)
    if most is not None and size > most:
        msg = "is larger than any message of its kind can be"
        raise InputError(msg, file=path, field="bytes", value=size, expected=f"at most {most}")
    return path.read_bytes()


def open_message(path: Path, kind: str, **expected: Any) -> tuple[dict[str, Any], int]:
    """Check a large message without holding it: return its header and where the payload starts."""
    head, size = _peek(path)
    header, start = _header(head, path)
    _check(header, size - start, file=path, kind=kind, **expected)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != header.get("sha256"):
        msg = "the content is damaged: it does not have the checksum that its header states"
        raise InputError(msg, file=path, field="sha256", fix="copy it again")
    return header, start


def read_header(path: Path) -> dict[str, Any]:
    """Return a message's header alone."""
    return _header(_peek(path)[0], path)[0]


def _peek(path: Path) -> tuple[bytes, int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return file.read(LONGEST_HEADER + len(MAGIC) + 4), size
    except OSError as error:
        msg = f"cannot be read ({error.strerror})"
        raise InputError(msg, file=path) from error


def _header(data: bytes, file: Any) -> tuple[dict[str, Any], int]:
    start = len(MAGIC) + 4
    if len(data) < start or not data.startswith(MAGIC):
        msg = "is not a message of encrypted inference, or was cut short"
        raise InputError(msg, file=file, field="header")
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    if length > LONGEST_HEADER or len(data) < start + length:
        msg = "is not a message of encrypted inference, or was cut short"
        raise InputError(msg, file=file, field="header")
    try:
        header = json.loads(data[start : start + length])
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or brackets nested without end
        msg = "the header is damaged"
        raise InputError(msg, file=file, field="header") from error
    if not isinstance(header, dict):
        msg = "the header is damaged"
        raise InputError(msg, file=file, field="header")
    return header, start + length


def _check(header: dict[str, Any], size: int, *, file: Any, kind: str, **expected: Any) -> None:
    if header.get("kind") != kind:
        msg = "is another kind of message"
        raise InputError(msg, file=file, field="kind", value=header.get("kind"), expected=kind)
    if header.get("bytes") != size:
        msg = "was cut short or has bytes too many"
        raise InputError(
            msg, file=file, field="bytes", value=size, expected=str(header.get("bytes")), fix="send it again"
        )
    meaning = {
        "client": "was made for another compiled model or other parameters",
        "key": "was made under another key",
        "request": "belongs to another request",
        "index": "is out of its place",
    }
    for field, wanted in expected.items():
        if header.get(field) != wanted:
            raise InputError(
                meaning.get(field, "does not fit"),
                file=file,
                field=field,
                value=header.get(field),
                expected=str(wanted),
            )


def pack_list(parts: list[bytes]) -> bytes:
    """Return several ciphertexts as one payload: each after its length."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def unpack_list(payload: bytes, *, count: int, file: Any) -> list[bytes]:
    """Return the ciphertexts of a payload; `InputError` where their number or lengths are wrong."""
    parts, start = [], 0
    while start + 8 <= len(payload) and len(parts) <= count:
        (length,) = struct.unpack_from("<Q", payload, start)
        parts.append(payload[start + 8 : start + 8 + length])
        start += 8 + length
    if len(parts) != count or start != len(payload):
        msg = "does not hold the right number of ciphertexts"
        raise InputError(msg, file=file, field="ciphertexts", value=len(parts), expected=str(count))
    return parts
