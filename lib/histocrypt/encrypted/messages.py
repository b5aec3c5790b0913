"""What the two parties exchange, as files: a JSON header that says what it is for, then the engine's bytes.

The header binds a payload to the public client part it was made for, to a key, to a request and to a place in it, and
holds its SHA-256: a message that was truncated, swapped with another one, or sent again in another request is refused
before the engine sees it. It is no signature: who can write to the folder or the connection can make new messages (use
TLS between machines), but not read what is inside.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import mmap
import os
import secrets
import ssl
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.engine import galois_element
from histocrypt.encrypted.parameters import Parameters
from histocrypt.errors import InputError
from histocrypt.files import atomic_path

# ---- access
# Who may talk to whom: tokens, loopback addresses, certificates.


SHORTEST_TOKEN = 20


def read_tokens(path: Path, *, make: bool = False) -> list[str]:
    """Read tokens, one a line; with ``make``, write a new one where there is none.

    Raises
    ------
    InputError
        If others can read the file, it is missing or has no token, or one is too short to be a secret. The sentence
        never shows a token.
    """
    path = Path(path)
    if make and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            suppress(FileExistsError),
            os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file,
        ):
            file.write(secrets.token_urlsafe(32) + "\n")
        print(f"a new token was written to {path}; give each client a copy of that file", file=sys.stderr)
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "the token cannot be read", file=path, fix="ask the server's owner for its token file"
        ) from error
    if mode & 0o077:
        raise InputError(
            "can be read by others on this machine",
            file=path,
            field="mode",
            fix="chmod 600 it, and make a new token if others have read it",
        )
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens or min(map(len, tokens)) < SHORTEST_TOKEN or any(" " in token for token in tokens):
        msg = "holds no token, or one that can be guessed"
        fix = "delete it and start `histocrypt fhe serve`, which makes one"
        raise InputError(msg, file=path, expected=f"lines of at least {SHORTEST_TOKEN} letters", fix=fix)
    return tokens


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_certificate(certificate: Path | None, private_key: Path | None) -> None:
    """Refuse a certificate and key that TLS cannot use."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate or "", private_key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"cannot be used for TLS ({error.strerror or error})",
            file=certificate or private_key,
            field="certificate",
            expected="a PEM certificate and its key",
        ) from error


# ---- ciphertext form
# Whether bytes have the exact form of a ciphertext, before native code parses them. For keys see `key_form`.


def check_ciphertext(data: bytes, parameters: Parameters, moduli: Sequence[int], level: int, *, file: Any) -> None:
    """Check that bytes have the exact form of a ciphertext under these parameters, before native code parses them.

    Raises
    ------
    InputError
        If they are of another ring or level, or have values outside their prime field.
    """
    fix = "encrypt it again with the client part of this very model"

    def wrong(field: str, value: object, expected: object) -> InputError:
        return InputError(
            "is not a ciphertext under these parameters",
            file=file,
            field=field,
            value=value,
            expected=str(expected),
            fix=fix,
        )

    end = data.find(b"}}", 0, 2048) + 2
    if data[:1] != b"\x01" or end < 2:
        raise wrong("metadata", "none", "CKKS metadata")
    try:
        meta = json.loads(data[1:end])
        columns = int(meta["PlaintextMetaData"]["LogDimensions"][1], 16)
        batched, ntt = meta["PlaintextMetaData"]["IsBatched"], meta["CiphertextMetaData"]["IsNTT"]
        scale = float(meta["PlaintextMetaData"]["Scale"]["Value"])
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise wrong("metadata", "damaged", "CKKS metadata") from error
    log_slots = parameters.slots.bit_length() - 1
    if (columns, batched, ntt) != (log_slots, "0x01", "0x01"):
        raise wrong("log2(slots)", columns, log_slots)
    if not 0.5 < scale / 2.0**parameters.log_scale < 2:
        raise wrong("scale", f"2^{math.log2(scale):.1f}" if scale > 0 else scale, f"about 2^{parameters.log_scale}")
    degree = 1 << parameters.logn
    words = 1 + 2 * (1 + (level + 1) * (1 + degree))
    if len(data) - end != 8 * words:
        raise wrong("bytes", len(data), end + 8 * words)
    values = np.frombuffer(data, dtype="<u8", offset=end)
    if values[0] != 2:
        raise wrong("polynomials", int(values[0]), 2)
    for polynomial in values[1:].reshape(2, -1):
        if polynomial[0] != level + 1:
            raise wrong("level", int(polynomial[0]) - 1, level)
        for limb, prime in zip(polynomial[1:].reshape(level + 1, -1), moduli, strict=False):
            if limb[0] != degree:
                raise wrong("degree", int(limb[0]), degree)
            if limb[1:].max() >= prime:
                raise wrong("coefficients", int(limb[1:].max()), f"below {prime}")


# ---- key form
# Whether bytes have the exact form of evaluation keys, before native code parses them.
#
# The engine takes every length it reads on trust: a wrong one makes it ask for terabytes, or recurse until its stack is
# full, and ends the process with everybody's sessions. Under given parameters the form of a key is fixed but for its
# coefficients, so that every length can be compared with the only value that it can have.


def check_evaluation_keys(
    path: Path, parameters: Parameters, rotations: Sequence[int], *, start: int, file: Any = None
) -> None:
    """Check a relinearisation key and the rotation keys of a model.

    Parameters
    ----------
    path
        Where they are.
    parameters
        Of the model.
    rotations
        That the model needs; the keys must be these and no others.
    start
        Where the keys begin in their file.
    file
        What the error names; ``path`` if not given.

    Raises
    ------
    InputError
        Naming the first length or element that differs.
    """
    file = path if file is None else file
    elements = sorted({galois_element(rotation, parameters) for rotation in rotations})
    gadget = _lengths(parameters)
    wanted = 1 + _bytes(parameters) + 1 + 4 + len(elements) * (8 + 16 + _bytes(parameters))
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if len(mapped) - start != wanted:
            raise _wrong(file, "bytes", len(mapped) - start, wanted)
        at = start
        _check_word(mapped[at], 1, "relinearisation key", file)
        _check_lengths(mapped, at + 1, gadget, "relinearisation key", file)
        at += 1 + _bytes(parameters)
        _check_word(mapped[at], 1, "rotation keys", file)
        _check_word(struct.unpack_from("<I", mapped, at + 1)[0], len(elements), "rotation keys", file)
        at += 5
        order = 1 << (parameters.logn + (2 if parameters.ring == "conjugate_invariant" else 1))
        for element in elements:
            for found, expected in zip(struct.unpack_from("<3Q", mapped, at), (element, element, order), strict=True):
                _check_word(found, expected, f"rotation key {element}", file)
            _check_lengths(mapped, at + 24, gadget, f"rotation key {element}", file)
            at += 24 + _bytes(parameters)


def _lengths(parameters: Parameters) -> list[tuple[int, int]]:
    """Return (word, value) of every length in a switching key: rows, columns, polynomials, limbs, coefficients."""
    degree = 1 << parameters.logn
    found = [(0, 0), (1, -(-len(parameters.logq) // len(parameters.logp)))]
    word = 2
    for _ in range(found[1][1]):
        found += [(word, 1), (word + 1, 2)]
        word += 2
        for limbs in (len(parameters.logq), len(parameters.logp)) * 2:
            found.append((word, limbs))
            word += 1
            for _ in range(limbs):
                found.append((word, degree))
                word += 1 + degree
    return found


def _bytes(parameters: Parameters) -> int:
    """Size of a switching key."""
    return 8 * (_lengths(parameters)[-1][0] + 1 + (1 << parameters.logn))


def _check_lengths(mapped: mmap.mmap, start: int, lengths: list[tuple[int, int]], name: str, file: Any) -> None:
    where, values = np.array(lengths, dtype=np.uint64).T
    found = np.array([struct.unpack_from("<Q", mapped, start + 8 * int(word))[0] for word in where], dtype=np.uint64)
    if (found != values).any():
        first = int(np.flatnonzero(found != values)[0])
        raise _wrong(file, name, int(found[first]), int(values[first]))


def _check_word(found: int, wanted: int, name: str, file: Any) -> None:
    if found != wanted:
        raise _wrong(file, name, found, wanted)


def _wrong(file: Any, field: str, value: int, expected: int) -> InputError:
    msg = "are no evaluation keys for these parameters"
    fix = "make keys again with this model's client part"
    return InputError(msg, file=file, field=field, value=value, expected=str(expected), fix=fix)


# ---- messages


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
        raise InputError(
            "the content is damaged: it does not have the checksum that its header states",
            file=file,
            field="sha256",
            fix="send it again",
        )
    return payload


def read_message(path: Path, kind: str, *, most: int | None = None, **expected: Any) -> bytes:
    """Read a message file; see `unpack`. Files above ``most`` bytes are refused unread."""
    return unpack(read_whole(path, most=most), file=path, kind=kind, **expected)


def read_whole(path: Path, *, most: int | None = None) -> bytes:
    """Read a message file as it is, unless it has more than ``most`` bytes."""
    _, size = _peek(path)
    if most is not None and size > most:
        raise InputError(
            "is larger than any message of its kind can be",
            file=path,
            field="bytes",
            value=size,
            expected=f"at most {most}",
        )
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
        raise InputError(
            "the content is damaged: it does not have the checksum that its header states",
            file=path,
            field="sha256",
            fix="copy it again",
        )
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
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error


def _header(data: bytes, file: Any) -> tuple[dict[str, Any], int]:
    start = len(MAGIC) + 4
    if len(data) < start or not data.startswith(MAGIC):
        raise InputError("is not a message of encrypted inference, or was cut short", file=file, field="header")
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    if length > LONGEST_HEADER or len(data) < start + length:
        raise InputError("is not a message of encrypted inference, or was cut short", file=file, field="header")
    try:
        header = json.loads(data[start : start + length])
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or brackets nested without end
        raise InputError("the header is damaged", file=file, field="header") from error
    if not isinstance(header, dict):
        raise InputError("the header is damaged", file=file, field="header")
    return header, start + length


def _check(header: dict[str, Any], size: int, *, file: Any, kind: str, **expected: Any) -> None:
    if header.get("kind") != kind:
        raise InputError("is another kind of message", file=file, field="kind", value=header.get("kind"), expected=kind)
    if header.get("bytes") != size:
        raise InputError(
            "was cut short or has bytes too many",
            file=file,
            field="bytes",
            value=size,
            expected=str(header.get("bytes")),
            fix="send it again",
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
        raise InputError(
            "does not hold the right number of ciphertexts",
            file=file,
            field="ciphertexts",
            value=len(parts),
            expected=str(count),
        )
    return parts
