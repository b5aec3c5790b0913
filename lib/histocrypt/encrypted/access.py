"""Who may talk to whom: tokens, loopback addresses, certificates."""

from __future__ import annotations

import ipaddress
import os
import secrets
import ssl
import sys
from contextlib import suppress
from pathlib import Path

from histocrypt.errors import InputError

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
        problem, fix = "can be read by others on this machine", "chmod 600 it; make a new token if others have read it"
        raise InputError(problem, file=path, field="mode", fix=fix)
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens or min(map(len, tokens)) < SHORTEST_TOKEN or any(" " in token for token in tokens):
        problem, wanted = "holds no token, or one that can be guessed", f"lines of at least {SHORTEST_TOKEN} letters"
        fix = "delete it and start `histocrypt fhe serve`, which makes one"
        raise InputError(problem, file=path, field="token", expected=wanted, fix=fix)
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
        problem, wanted = f"cannot be used for TLS ({error.strerror or error})", "a PEM certificate and its key"
        file = certificate or private_key
        raise InputError(problem, file=file, field="certificate", expected=wanted) from error
