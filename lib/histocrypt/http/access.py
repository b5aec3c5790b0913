"""Who may talk to whom: tokens by name, loopback addresses, certificates."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path, refuse_pipe

SHORTEST_TOKEN = 20
"""Characters of a secret."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TOKEN = re.compile(rf"[!-~]{{{SHORTEST_TOKEN},256}}")
FIRST_CLIENT = "client"
"""Name in a token file that the server makes."""
OF_SERVER = """\
# Tokens of a server: one client a line, its name and its token. Keep this file to the server:
# `histocrypt fhe token NAME --token-file THIS` adds a client and writes a file with that client's line alone.
"""
OF_CLIENT = """\
# The token of {name}, e.g. for `histocrypt fhe send --token-file`. Who has it uses {name}'s sessions and quotas.
"""


def read_tokens(path: Path, *, make: bool = False) -> dict[str, str]:
    """Read tokens: one client a line, its name and its token; one that stands alone has its number as its name.

    Parameters
    ----------
    path
        The token file.
    make
        Write one with a single new token where there is none.

    Returns
    -------
    dict
        Name to token, in the order of the file.

    Raises
    ------
    InputError
        If others can read the file, it is missing or has no token, one is too short to be a secret, or a name or a
        token stands there twice. The sentence never shows a token.
    """
    path = Path(path)
    if make and not path.exists():
        with suppress(FileExistsError):
            _write_new(path, OF_SERVER + f"{FIRST_CLIENT} {new_token()}\n")
            print(f"a token for one client was written to {path}; histocrypt fhe token adds others", file=sys.stderr)
    refuse_pipe(path)
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fix = "ask the server's owner for its token file"
        raise InputError("the token cannot be read", file=path, fix=fix) from error
    refuse_shared(path, mode, "make new tokens if others have read it")
    tokens: dict[str, str] = {}
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, token = words if len(words) == 2 else (str(len(tokens) + 1), line.strip())
        if not NAME.fullmatch(name) or not TOKEN.fullmatch(token):
            problem, wanted = "has a line without a token, or with a token that can be guessed", "NAME TOKEN"
            fix = f"a token has at least {SHORTEST_TOKEN} characters; `histocrypt fhe token` makes one"
            raise InputError(problem, file=path, field="token", expected=wanted, fix=fix)
        if name in tokens or token in tokens.values():
            problem, fix = "appears twice, or its token does", "keep one line per client"
            raise InputError(problem, file=path, field=name, fix=fix)
        tokens[name] = token
    if not tokens:
        fix = "delete it and start the server, which makes one"
        raise InputError("holds no token", file=path, field="token", expected="NAME TOKEN", fix=fix)
    return tokens


def choose_token(path: Path, name: str | None) -> str:
    """Return a client's token from a file; where it holds several, ``name`` says which."""
    tokens = read_tokens(path)
    if name is None and len(tokens) == 1:
        return next(iter(tokens.values()))
    if name is None:
        problem, fix = f"holds the tokens of {len(tokens)} clients", "choose one with --client NAME"
        raise InputError(problem, file=path, field="--client", expected="one of " + ", ".join(tokens), fix=fix)
    if name not in tokens:
        raise unknown_name("client", name, tokens, file=path, field="--client")
    return tokens[name]


def add_token(name: str, path: Path, output: Path | None = None) -> str:
    """Make a token for a new client: a line in the server's file, and a file of the client's own.

    Parameters
    ----------
    name
        Of the client: letters, digits, ``.``, ``_`` and ``-``.
    path
        The server's token file; made where there is none.
    output
        The client's file; ``NAME.token`` beside the server's if not given. An existing one is never replaced.

    Returns
    -------
    str
        What was done, in one sentence.

    Raises
    ------
    InputError
        If the name is taken or no name, or a file cannot be written.
    """
    path = Path(path)
    wrong = partial(InputError, field="NAME", value=name)
    if not NAME.fullmatch(name):
        raise wrong(
            "is not a valid name for a client", expected="up to 64 letters, digits, dots, dashes and underscores"
        )
    output = Path(output or path.with_name(f"{name}.token"))
    known: Mapping[str, str] = read_tokens(path) if path.exists() else {}
    if name in known:
        raise wrong("already has a token", file=path, fix="choose another name, or delete that line")
    token = new_token()
    try:
        _write_new(output, OF_CLIENT.format(name=name) + f"{name} {token}\n")
    except FileExistsError as error:
        fix = "choose another --output, or delete it"
        raise InputError("already exists, and token files are never replaced", file=output, fix=fix) from error
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=output) from error
    try:
        before = path.read_text(encoding="ascii") if known else OF_SERVER
        with atomic_path(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(before.rstrip("\n") + f"\n{name} {token}\n", encoding="ascii")
    except OSError as error:
        output.unlink()
        raise InputError(f"cannot be written ({error.strerror})", file=path) from error
    return f"{output}: give it to {name} over a private channel; restart a running server, which then accepts it"


def new_token() -> str:
    """Draw a token."""
    return secrets.token_urlsafe(32)


def refuse_shared(path: Path, mode: int, fix: str) -> None:
    """Refuse a secret that other users of this machine can read."""
    if mode & 0o077:
        raise InputError("can be read by others on this machine", file=path, field="mode", fix=f"chmod 600 it; {fix}")


def _write_new(path: Path, text: str) -> None:
    """Write a file that only its owner can read; one that exists stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_certificate(certificate: Path | None, private_key: Path | None) -> None:
    """Refuse a certificate and key that TLS cannot use, and a key that others can read."""
    for given in (certificate, private_key):
        if given is not None:
            refuse_pipe(given)
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate or "", private_key)
    except (OSError, ssl.SSLError) as error:
        problem, wanted = f"cannot be used for TLS ({error.strerror or error})", "a PEM certificate and its key"
        file = certificate or private_key
        raise InputError(problem, file=file, field="certificate", expected=wanted) from error
    holds_key = Path(private_key or certificate)  # a PEM file may hold both
    refuse_shared(holds_key, holds_key.stat().st_mode, "have a new certificate made if others have read its key")
