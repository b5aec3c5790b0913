"""Whether bytes have the exact form of a ciphertext, before native code parses them. For keys see `key_form`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from histocrypt.encrypted.parameters import Parameters
from histocrypt.errors import InputError


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
