"""Signatures of files by ed25519 keys in the format of OpenSSH, which ``ssh-keygen -Y sign`` and ``-Y verify`` share.

Source: PROTOCOL.sshsig of OpenSSH. The mathematics, and the formats of keys, are those of the package ``cryptography``;
here is the envelope alone. A signature is made for one purpose, its namespace, and counts for no other.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from histocrypt.errors import InputError
from histocrypt.files import atomic_path, regular
from histocrypt.http.access import refuse_shared

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAGIC, VERSION, HASH, KIND = b"SSHSIG", 1, b"sha512", b"ssh-ed25519"
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
PUBLIC = re.compile(r"(?:^|[ \t])ssh-ed25519[ \t]+([A-Za-z0-9+/]+={0,2})(?=[ \t]|$)")
"""A public key in a line of ``KEY.pub`` or of a file of allowed signers."""
LARGEST = 1 << 16
"""Bytes of a key or of a signature, at most."""


@dataclass(frozen=True)
class PublicKey:
    """An ed25519 public key."""

    blob: bytes
    """As OpenSSH writes it: the kind of key and 32 bytes, each with its length before it."""

    @property
    def fingerprint(self) -> str:
        """What ``ssh-keygen -l`` prints: ``SHA256:`` and 43 characters."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """The key as it stands in ``KEY.pub``, without a comment."""
        return f"{KIND.decode()} {base64.b64encode(self.blob).decode()}"

    @classmethod
    def read(cls, path: str | Path, *, field: str = "--key") -> PublicKey:
        """Read the one key of a ``.pub`` file or of a file of allowed signers; ``field`` is the option that named it.

        Raises
        ------
        InputError
            If it is missing, holds a private key, or not exactly one ed25519 key.
        """
        text = _text(path, missing="no public key is there")
        if "PRIVATE KEY" in text:
            fix = "name the file beside it that ends in .pub"
            raise InputError("is a private key, where the public key is needed", file=path, field=field, fix=fix)
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        found = [match[1] for line in lines if (match := PUBLIC.search(line))]
        if len(found) != 1 or len(lines) != 1:
            wanted = "one line: ssh-ed25519 and the key"
            raise InputError("does not hold one ed25519 key", file=path, field=field, value=len(found), expected=wanted)
        try:
            kind, raw, rest = _strings(base64.b64decode(found[0], validate=True), 2)
        except ValueError:
            kind, raw, rest = b"", b"", b""
        if kind != KIND or len(raw) != 32 or rest:
            raise InputError("is not a complete ed25519 key", file=path, field=field, fix="ask for it again")
        return cls(_packed(KIND, raw))


class Signer:
    """A private key in memory; its words never show it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(_packed(KIND, key.public_key().public_bytes_raw()))

    @classmethod
    def read(cls, path: str | Path) -> Signer:
        """Read an ed25519 key as ``ssh-keygen -t ed25519`` or `make_key` writes it.

        Raises
        ------
        InputError
            If it is missing, others can read it, it asks for a passphrase, or it is no private ed25519 key.
        """
        check_package("cryptography")
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key

        path = regular(path, missing="no key is there")
        refuse_shared(path, path.stat().st_mode, "make a new key if others have read it")
        wanted = "a private ed25519 key, as `histocrypt fhe signing-key` makes one"
        try:
            key = load_ssh_private_key(path.read_bytes()[:LARGEST], password=None)
        except TypeError:
            fix = "sign with `ssh-keygen -Y sign`, see docs/service_card.md, or name a key without one"
            raise InputError("asks for a passphrase", file=path, field="--sign", fix=fix) from None
        except (ValueError, UnsupportedAlgorithm):  # its words may quote what was read
            raise InputError("cannot be read as a key", file=path, field="--sign", expected=wanted) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError("is a key of another kind", file=path, field="--sign", expected=wanted)
        return cls(key)

    def sign(self, message: bytes, *, namespace: str) -> str:
        """Return the signature of some bytes for one purpose, as lines of text."""
        signature = self._key.sign(_signed(message, namespace))
        parts = (self.public.blob, namespace.encode(), b"", HASH, _packed(KIND, signature))
        text = base64.b64encode(MAGIC + VERSION.to_bytes(4, "big") + _packed(*parts)).decode()
        return "\n".join([BEGIN, *(text[at : at + 70] for at in range(0, len(text), 70)), END, ""])

    def __repr__(self) -> str:
        """Name the public key alone."""
        return f"Signer({self.public.fingerprint})"


def check_package(name: str) -> None:
    """Refuse an environment that was set up before cards were signed and printed."""
    if find_spec(name) is None:
        fix = "set the environment up again: bash install_host.sh"
        raise InputError(f"this needs the package {name}, which is not installed", field=name, fix=fix)


def make_key(path: str | Path) -> PublicKey:
    """Make a key: the private one in ``path`` (mode 0600), the public one in ``path`` with ``.pub`` behind it.

    Raises
    ------
    InputError
        If either is there already: a key is not replaced.
    """
    check_package("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = Path(path)
    beside = public_path(path)
    for one in (path, beside):
        if one.exists() or one.is_symlink():
            raise InputError(
                "already exists, and keys are never replaced", file=one, field="KEY", fix="choose another name"
            )
    signer = Signer(Ed25519PrivateKey.generate())
    how = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(signer._key.private_bytes(*how))
    with atomic_path(beside) as temporary:
        temporary.write_text(signer.public.line + "\n", encoding="ascii")
    return signer.public


def public_path(key: Path) -> Path:
    """Return where the public half of a key lies."""
    return key.with_name(key.name + ".pub")


def signature_path(file: Path) -> Path:
    """Return where the signature of a file lies, as ``ssh-keygen -Y sign`` puts it."""
    return file.with_name(file.name + ".sig")


def verify(file: str | Path, key: PublicKey, *, namespace: str) -> bytes:
    """Return the bytes of a file whose signature, beside it, is this key's.

    Parameters
    ----------
    file
        What was signed; ``<file>.sig`` beside it is its signature.
    key
        Of who must have signed it.
    namespace
        What it must have been signed for.

    Raises
    ------
    InputError
        If file or signature is missing, another key signed it, for another purpose, or the file was changed.
    """
    check_package("cryptography")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    file = regular(file)
    beside = signature_path(file)
    lines = [line.strip() for line in _text(beside, missing="is not signed: no signature is there").split("\n")]
    lines = [line for line in lines if line]
    try:
        if lines[0] != BEGIN or lines[-1] != END:
            raise ValueError
        whole = base64.b64decode("".join(lines[1:-1]), validate=True)
        if whole[:10] != MAGIC + VERSION.to_bytes(4, "big"):
            raise ValueError
        blob, purpose, _, hashed, signature, rest = _strings(whole[10:], 5)
        kind, raw, more = _strings(signature, 2)
        if rest or more or kind != KIND or hashed not in (b"sha512", b"sha256"):
            raise ValueError
    except (ValueError, IndexError) as error:
        problem, wanted = "is not a signature by an ed25519 key", "what `ssh-keygen -Y sign` writes"
        raise InputError(problem, file=beside, field="signature", expected=wanted) from error
    if blob != key.blob:
        value, fix = PublicKey(blob).fingerprint, "ask who signed it; do not trust what is written in it"
        problem = "was signed by another key"
        raise InputError(problem, file=file, field="key", value=value, expected=key.fingerprint, fix=fix)
    if purpose != namespace.encode():
        value = purpose[:80].decode("ascii", "replace")
        problem = "was signed for another purpose"
        raise InputError(problem, file=file, field="namespace", value=value, expected=namespace)
    content = file.read_bytes()
    try:
        Ed25519PublicKey.from_public_bytes(_strings(key.blob, 2)[1]).verify(raw, _signed(content, namespace, hashed))
    except (InvalidSignature, ValueError) as error:
        fix = "ask who signed it for it again; do not trust what is written in it"
        raise InputError("was changed since it was signed", file=file, field="signature", fix=fix) from error
    return content


def _signed(message: bytes, namespace: str, hashed: bytes = HASH) -> bytes:
    """Return the bytes that the key signs: a purpose, and a hash of the message."""
    return MAGIC + _packed(namespace.encode(), b"", hashed, hashlib.new(hashed.decode(), message).digest())


def _packed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _strings(packed: bytes, count: int) -> tuple[bytes, ...]:
    """Return so many strings and what is left behind them; `ValueError` where they are not whole."""
    found = []
    for _ in range(count):
        end = 4 + int.from_bytes(packed[:4], "big")
        if len(packed) < max(4, end):
            raise ValueError("cut short")
        found.append(packed[4:end])
        packed = packed[end:]
    return (*found, packed)


def _text(path: str | Path, *, missing: str) -> str:
    path = regular(path, missing=missing)
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(LARGEST)
    except UnicodeDecodeError as error:
        raise InputError("is not text", file=path, field="key") from error
