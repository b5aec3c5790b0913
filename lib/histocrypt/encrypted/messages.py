"""What the two parties exchange, as files: a JSON header that says what it is for, then the engine's bytes.

The header binds a payload to the public client part it was made for, to a key, to a request and to a place in it, and
holds its SHA-256: a message that was truncated, swapped with another one, or sent again in another request is refused
before the engine sees it. It is no signature: who can write to the folder or the connection can make new messages (use
TLS between machines), but not read what is inside.

The engine takes every length it reads on trust: a wrong one makes it ask for terabytes, or recurse until its stack is
full, and ends the process with everybody's sessions. Under given parameters the form of a ciphertext or key is fixed
but for its coefficients, so `check_ciphertext` and `check_evaluation_keys` compare every length with the only value
that it can have before native code parses anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.engine import galois_element, galois_order
from histocrypt.encrypted.parameters import Parameters
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, refuse_pipe

MAGIC = b"HISTOCRYPT\x00\x01"
START = len(MAGIC) + 4
"""Where the header begins: after the magic bytes and its own length."""
LONGEST_HEADER = 4096
MEANING = {
    "kind": "is another kind of message",
    "bytes": "was cut short or has bytes too many",
    "client": "was made for another compiled model or other parameters",
    "key": "was made under another key",
    "request": "belongs to another request",
    "index": "is out of its place",
    "of": "belongs to a request of another length",
}
"""Field of a header to what a wrong one means."""
METADATA = re.compile(
    rb'\x01{"PlaintextMetaData":{"Scale":{"Value":"(?P<scale>\d\.\d{39}e[+-]\d{2})","Mod":"0\.0{39}e\+00"},'
    rb'"IsBatched":"0x01","IsBitReversed":"0x00","LogDimensions":\["0x00","(?P<columns>0x[0-9a-f]{2})"\]},'
    rb'"CiphertextMetaData":{"IsNTT":"0x01","IsMontgomery":"0x00"}}'
)
"""What the engine writes before the polynomials of any ciphertext of ours; no other bytes are parsed by it."""
LONGEST_METADATA = 512
Data = bytes | memoryview


def pack(kind: str, payload: bytes, **header: Any) -> bytes:
    """Return a message as bytes."""
    content = {"kind": kind, **header, "bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    encoded = json.dumps(content, sort_keys=True).encode()
    return b"".join([MAGIC, struct.pack("<I", len(encoded)), encoded, payload])


def is_message(path: Path, kind: str) -> bool:
    """Return whether a file is a message of a kind, whole or not: what this tool wrote."""
    try:
        return read_header(path).get("kind") == kind
    except InputError:
        return False


def write_message(path: Path, kind: str, payload: bytes, **header: Any) -> None:
    """Write a message atomically; the file is readable by its owner only."""
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(pack(kind, payload, **header))


def write_pieces(path: Path, kind: str, pieces: Iterable[bytes], **header: Any) -> None:
    """Write a large message piece by piece; its header, of fixed length, is filled in at the end."""
    content = {"kind": kind, **header, "bytes": 0, "sha256": "0" * 64}
    room = len(json.dumps(content, sort_keys=True)) + 20
    digest, size = hashlib.sha256(), 0
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("r+b") as file:
            file.seek(START + room)
            for piece in pieces:
                digest.update(piece)
                size += file.write(piece)
            encoded = json.dumps({**content, "bytes": size, "sha256": digest.hexdigest()}, sort_keys=True).encode()
            file.seek(0)
            file.write(MAGIC + struct.pack("<I", room) + encoded.ljust(room))


def unpack(data: Data, *, file: Any, kind: str, complete: bool = False, **expected: Any) -> Data:
    """Return the payload of a message after checking all that its header claims.

    Parameters
    ----------
    data
        The message; of a memory view, views are returned and nothing is copied.
    file
        What errors name.
    kind
        Of the message.
    complete
        Refuse headers that say more than ``expected``.
    expected
        Fields that the header must have, and what they must say.

    Raises
    ------
    InputError
        Naming ``file`` and the header's field, if it is truncated, oversized, damaged, of another kind, or bound to
        something else than ``expected``.
    """
    header, start = parse_header(data, file)
    more = header.keys() - {"kind", "bytes", "sha256", *expected}
    if complete and more:
        raise InputError(
            "is not a field of this kind of message", file=file, field=min(more), fix="send it as it was made"
        )
    _check(header, len(data) - start, file=file, kind=kind, **expected)
    payload = data[start:]
    _check_digest(hashlib.sha256(payload), header, file)
    return payload


def read_message(path: Path, kind: str, *, most: int | None = None, **expected: Any) -> bytes:
    """Read a message file; see `unpack`. Files above ``most`` bytes are refused unread."""
    return unpack(read_whole(path, most=most), file=path, kind=kind, **expected)


def read_whole(path: Path, *, most: int | None = None) -> bytes:
    """Read a message file as it is, unless it has more than ``most`` bytes."""
    check_size(path, most=most)
    return path.read_bytes()


def check_size(path: Path, *, most: int | None) -> None:
    """Refuse what is no file, or has more than ``most`` bytes."""
    _, size = _peek(path)
    if most is not None and size > most:
        raise InputError(
            "is larger than any message of its kind", file=path, field="bytes", value=size, expected=f"at most {most}"
        )


def mapped(data: bytes | Path) -> Data:
    """Return a message's bytes; those of a file as a view of its pages, which are let go with the last view."""
    if not isinstance(data, Path):
        return data
    if not data.stat().st_size:  # which cannot be mapped
        return b""
    with data.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def name_of_key(header: dict[str, Any], *, file: Any) -> str:
    """Return the key that a header names; `InputError` where that is no name."""
    name = header.get("key")
    if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{32}", name):
        raise InputError("is not the name of a key", file=file, field="key", value=name, expected="32 hex digits")
    return name


def open_message(path: Path, kind: str, **expected: Any) -> tuple[dict[str, Any], int]:
    """Check a large message without holding it: return its header and where the payload starts."""
    head, size = _peek(path)
    header, start = parse_header(head, path)
    _check(header, size - start, file=path, kind=kind, **expected)
    with path.open("rb") as file:
        file.seek(start)
        _check_digest(hashlib.file_digest(file, "sha256"), header, path)
    return header, start


def read_header(path: Path) -> dict[str, Any]:
    """Return a message's header alone."""
    return parse_header(_peek(path)[0], path)[0]


def parse_header(data: Data, file: Any) -> tuple[dict[str, Any], int]:
    """Return the header at the beginning of a message, and where its payload starts."""
    data = bytes(data[: START + LONGEST_HEADER])
    length = int.from_bytes(data[len(MAGIC) : START], "little")
    if not data.startswith(MAGIC) or len(data) < START or length > LONGEST_HEADER or len(data) < START + length:
        raise InputError("is not a message of encrypted inference, or was cut short", file=file, field="header")
    try:
        header = json.loads(data[START : START + length], object_pairs_hook=_once, parse_constant=int)
    except (
        ValueError,
        RecursionError,
    ):  # not UTF-8, not JSON, NaN (which `int` refuses), a name twice, or brackets without end
        header = None
    if not isinstance(header, dict):
        raise InputError("the header is damaged", file=file, field="header")
    return header, START + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return what JSON's pairs say; `ValueError` where a name is there twice: two readers could believe two things."""
    if len(content := dict(pairs)) < len(pairs):
        raise ValueError
    return content


def _peek(path: Path) -> tuple[bytes, int]:
    """Return the first bytes of a file, and its size."""
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            return file.read(START + LONGEST_HEADER), path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error


def _check(header: dict[str, Any], size: int, *, file: Any, **expected: Any) -> None:
    for field, wanted in {**expected, "bytes": size}.items():
        found = header.get(field)
        if type(found) is not type(wanted) or found != wanted:  # True and 1.0 are not 1
            problem = MEANING.get(field, "does not fit")
            raise InputError(problem, file=file, field=field, value=found, expected=str(wanted))


def _check_digest(digest: Any, header: dict[str, Any], file: Any) -> None:
    if digest.hexdigest() != header.get("sha256"):
        problem = "the content is damaged: it does not have the checksum that its header states"
        raise InputError(problem, file=file, field="sha256", fix="send or copy it again")


def pack_list(parts: list[bytes]) -> bytes:
    """Return several ciphertexts as one payload: each after its length."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def unpack_list(payload: Data, *, count: int | None, file: Any) -> list[Data]:
    """Return the ciphertexts of a payload; `InputError` where their lengths or their number (None: any) are wrong."""
    parts, start = [], 0
    while start + 8 <= len(payload) and (count is None or len(parts) <= count):
        (length,) = struct.unpack_from("<Q", payload, start)
        parts.append(payload[start + 8 : start + 8 + length])
        start += 8 + length
    if start != len(payload) or count not in (None, len(parts)):
        wanted = "whole ones" if count is None else str(count)
        raise InputError(
            "is not a list of ciphertexts", file=file, field="ciphertexts", value=len(parts), expected=wanted
        )
    return parts


def check_ciphertext(
    data: Data, parameters: Parameters, moduli: Sequence[int], level: int, *, file: Any, fresh: bool = False
) -> None:
    """Check that bytes have the exact form of a ciphertext under these parameters, before native code parses them.

    Parameters
    ----------
    data
        A ciphertext as the engine writes it: a flag, JSON, two polynomials in residues.
    parameters, moduli
        Of the model.
    level
        That it must have.
    file
        What errors name.
    fresh
        It was just encrypted, so its scale is the nominal one to the last digit; evaluated ones are near it.

    Raises
    ------
    InputError
        If they are of another ring or level, are said to be anything that the engine does not say of them in these
        very bytes, or have values outside their prime field.
    """

    def check(field: str, value: Any, expected: Any, *, right: bool | None = None) -> None:
        if not (value == expected if right is None else right):
            problem, fix = "is not a ciphertext under these parameters", "encrypt it again for this model"
            raise InputError(problem, file=file, field=field, value=value, expected=str(expected), fix=fix)

    head = bytes(data[:LONGEST_METADATA])
    said = METADATA.match(head)
    check("metadata", "damaged", "CKKS metadata as the engine writes it", right=said is not None)
    end, nominal = said.end(), float(1 << parameters.log_scale)
    check("log2(slots)", int(said["columns"], 16), parameters.slots.bit_length() - 1)
    scale = float(said["scale"])
    if fresh:
        check("scale", said["scale"].decode(), f"{nominal:.39e}")
    shown = f"2^{math.log2(scale):.1f}" if scale > 0 else scale
    check("scale", shown, f"about 2^{parameters.log_scale}", right=0.5 < scale / nominal < 2)
    limbs, degree = level + 1, 1 << parameters.logn
    check("bytes", len(data), end + 8 * (1 + 2 * (1 + limbs * (1 + degree))))
    words = np.frombuffer(data, dtype="<u8", offset=end)
    check("polynomials", int(words[0]), 2)
    polynomials = words[1:].reshape(2, -1)
    check("level", (polynomials[:, 0] - 1).tolist(), [level] * 2)
    polynomials = polynomials[:, 1:].reshape(2, limbs, 1 + degree)
    check("degree", polynomials[:, :, 0].tolist(), [[degree] * limbs] * 2)
    for limb, prime in enumerate(moduli[:limbs]):
        most = int(polynomials[:, limb, 1:].max())
        check("coefficients", most, f"below {prime}", right=most < prime)


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
    elements = sorted({galois_element(rotation, parameters) for rotation in rotations})
    where, lengths = np.array(_lengths(parameters), dtype=np.uint64).T
    where, words = where.astype(int), switching_key_words(parameters)

    def check(field: str, found: Any, wanted: Any) -> None:
        found, wanted = np.atleast_1d(found), np.atleast_1d(wanted)
        if (found != wanted).any():
            first = int(np.flatnonzero(found != wanted)[0])
            problem, fix = "are not evaluation keys for these parameters", "make keys again for this model"
            values = {"value": int(found[first]), "expected": str(int(wanted[first]))}
            raise InputError(problem, file=file or path, field=field, **values, fix=fix)

    begin = start + 1 + 8 * words + 5  # of the rotation keys: flag and relinearisation key, flag and count come before
    check("bytes", path.stat().st_size - start, begin - start + len(elements) * 8 * (3 + words))
    data = np.memmap(path, dtype=np.uint8, mode="r")
    check("relinearisation key", data[start], 1)
    check("relinearisation key", np.ndarray(words, "<u8", data, start + 1)[where], lengths)
    check("rotation keys", [data[begin - 5], *np.ndarray(1, "<u4", data, begin - 4)], [1, len(elements)])
    rows = np.ndarray((len(elements), 3 + words), "<u8", data, begin)
    for row, element in zip(rows, elements, strict=True):
        names = np.array([element, element, galois_order(parameters)], dtype=np.uint64)
        check(f"rotation key {element}", row[:3], names)
        check(f"rotation key {element}", row[3 + where], lengths)


def switching_key_words(parameters: Parameters) -> int:
    """Return the words of 8 bytes of a relinearisation key; a rotation key has 3 more before them."""
    return _lengths(parameters)[-1][0] + 1 + (1 << parameters.logn)


def _lengths(parameters: Parameters) -> list[tuple[int, int]]:
    """Return (word, value) of every length in a switching key: rows, columns, polynomials, limbs, coefficients."""
    degree, digits = 1 << parameters.logn, -(-len(parameters.logq) // len(parameters.logp))
    lengths, word = [(0, 0), (1, digits)], 2
    for _ in range(digits):
        lengths += [(word, 1), (word + 1, 2)]
        word += 2
        for limbs in (len(parameters.logq), len(parameters.logp)) * 2:
            lengths.append((word, limbs))
            lengths += [(word + 1 + limb * (1 + degree), degree) for limb in range(limbs)]
            word += 1 + limbs * (1 + degree)
    return lengths
