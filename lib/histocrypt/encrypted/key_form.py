"""Whether bytes have the exact form of evaluation keys, before native code parses them.

The engine takes every length it reads on trust: a wrong one makes it ask for terabytes, or recurse until its stack is
full, and ends the process with everybody's sessions. Under given parameters the form of a key is fixed but for its
coefficients, so that every length can be compared with the only value that it can have.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.engine import galois_element
from histocrypt.encrypted.parameters import Parameters
from histocrypt.errors import InputError


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
