"""The files of a service's card: written, signed, and held against their signatures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from histocrypt.encrypted.bundle import load_client
from histocrypt.encrypted.service_card import parse_card, service_card
from histocrypt.encrypted.service_page import MARK, NAME, html_page, pdf_page
from histocrypt.encrypted.service_parts import FORMAT, Signed
from histocrypt.encrypted.signature import BEGIN, PublicKey, Signer, signature_path, verify
from histocrypt.errors import InputError
from histocrypt.files import atomic_path, claim, read_json, says

NAMESPACE = "histocrypt-service-card"
"""What signatures of cards are made for."""
PAGES = (".html", ".pdf")


def make_card(
    client: str | Path,
    folder: str | Path,
    *,
    audit: str | Path | None = None,
    key: str | Path | None = None,
    signer: str | Path | None = None,
) -> str:
    """Write the card of a service: ``service_card.json``, and of the same words ``.html`` and ``.pdf``.

    Parameters
    ----------
    client
        The public part of a compiled model, or its folder.
    folder
        Where the card goes; another card there is replaced, nothing else.
    audit
        Folder of an audit of the same study.
    key
        A private ed25519 key: each file is signed, into ``<file>.sig``.
    signer
        A public key, where ``ssh-keygen -Y sign`` will sign with a private one that this program need not see.

    Returns
    -------
    str
        What was written.

    Raises
    ------
    InputError
        If the card cannot be made (`service_card.service_card`), a key cannot be used, both are given, or something
        else lies where the card would go.
    """
    if key is not None and signer is not None:
        raise InputError("names a later signer, but --sign signs now", field="--signer", fix="give one of the two")
    private = None if key is None else Signer.read(key)
    public = private.public if private else None if signer is None else PublicKey.read(signer, field="--signer")
    folder = Path(folder)
    paths = {kind: folder / f"{NAME}{kind}" for kind in (".json", *PAGES)}
    for kind, path in paths.items():
        claim(path, mine=_is_card if kind == ".json" else _is_page, overwrite=None)
        claim(signature_path(path), mine=_is_signature, overwrite=None)
    card = service_card(client, audit=audit, signer=public and Signed(key=public.line, fingerprint=public.fingerprint))
    content = (card.model_dump_json(indent=2) + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    written = {".json": content, ".html": html_page(card, digest).encode(), ".pdf": pdf_page(card, digest)}
    for kind, path in paths.items():
        signature_path(path).unlink(missing_ok=True)  # of an earlier card
        _write(path, written[kind])
        if private is not None:
            _write(signature_path(path), private.sign(written[kind], namespace=NAMESPACE).encode())
    said = "not signed" if public is None else f"{'signed' if private else 'to be signed'} by {public.fingerprint}"
    later = ""
    if public is not None and private is None:
        files = " ".join(path.name for path in paths.values())
        later = f"\nsign it in {folder}: ssh-keygen -Y sign -n {NAMESPACE} -f KEY {files}"
    verdicts = ", ".join(f"{one.name.lower()} {one.verdict}" for one in card.questions)
    return f"{paths['.json']}, .html and .pdf: {card.service.title}, {said}; {verdicts}{later}"


def verify_card(card: str | Path, key: str | Path, *, client: str | Path | None = None) -> dict[str, Any]:
    """Say who signed a card, or refuse it.

    Parameters
    ----------
    card
        ``service_card.json``, its signature beside it; pages beside it are looked at as well.
    key
        The public key of who must have signed it, got by another way than the card.
    client
        A public part that the card must be of.

    Raises
    ------
    InputError
        If the card or a page is not signed, was signed by another key, was changed since, is no card, or does not
        belong to the other files.
    """
    path, public = Path(card), PublicKey.read(key)
    content = verify(path, public, namespace=NAMESPACE)
    read = parse_card(content, file=path)
    if read.signer is not None and read.signer.fingerprint != public.fingerprint:
        problem, value = "names a different signer than the key that signed it", read.signer.fingerprint
        raise InputError(problem, file=path, field="signer", value=value, expected=public.fingerprint)
    if client is not None and (offered := load_client(client)).hash != read.service.public_part:
        problem, field = "describes another public part", "service.public_part"
        raise InputError(problem, file=path, field=field, value=read.service.public_part, expected=offered.hash)
    digest, there = hashlib.sha256(content).hexdigest(), {}
    for page in (path.with_suffix(kind) for kind in PAGES):
        there[page.suffix] = page.exists()
        if not there[page.suffix]:
            continue
        verify(page, public, namespace=NAMESPACE)
        if not says(page, MARK + digest):
            problem, expected = "belongs to another card", MARK + digest
            raise InputError(
                problem, file=page, field="sha256", expected=expected, fix="read the JSON, or write the card again"
            )
    about = {"title": read.service.title, "public_part": read.service.public_part, "date": read.date}
    return {"card": path, "signed_by": public.fingerprint, "signed_pages": there, **about}


def render_verified(found: dict[str, Any]) -> str:
    """Return what `verify_card` found, for people."""
    pages = [
        f"{page} belongs to it and is signed too" if there else f"there is no {page} beside it"
        for page, there in found["signed_pages"].items()
    ]
    signed = f"{found['card']}: signed by {found['signed_by']}, and not changed since; {'; '.join(pages)}"
    return f"{signed}\n{found['title']}, public part {found['public_part']}, {found['date']}"


def bundles_of(encrypted: Path, fold: str) -> dict[str, Path]:
    """Return public parts that a study compiled, by model: of a fold, where there is one, else the first.

    Parameters
    ----------
    encrypted
        Where the study's encrypted trials lie.
    fold
        The audited one.
    """
    found: dict[str, Path] = {}
    for path in sorted(encrypted.glob("*/*/parties/model_owner/bundle/client.json")):
        about = read_json(path)
        if about["fold"] == fold and (about["model"] not in found or read_json(found[about["model"]])["fold"] != fold):
            found[about["model"]] = path
        found.setdefault(about["model"], path)
    return found


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _is_card(path: Path) -> bool:
    try:
        content = read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _is_page(path: Path) -> bool:
    return says(path, MARK)


def _is_signature(path: Path) -> bool:
    return says(path, BEGIN)
