"""The key owner: makes keys, encrypts a section's spots, decrypts what comes back. All in the clear happens here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.atomic import atomic_path, read_json, write_json
from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import Client, load_client
from histocrypt.encrypted.inputs import Prepared, prepare
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.encrypted.request import CANARIES, NOISE, Answers, Request, check_output, write_result
from histocrypt.errors import InputError

KEY_BYTES_PER_SECOND = 50e6
"""For the estimate before keys are made."""


def describe_keys(client: Client) -> str:
    """Return the sentences that a key owner reads before keys are made."""
    p, size = client.parameters, client.evaluation_key_bytes()
    return (
        f"parameters: N = 2^{p.logn} ({p.ring} ring), log QP = {p.log_qp}, scale 2^{p.log_scale}, {p.levels} levels; "
        f"at least {SECURITY_BITS} bits of security\n"
        f"evaluation keys: 1 relinearisation + {len(client.rotations)} rotations, {size / 2**20:.0f} MiB, "
        f"about {max(1, size / KEY_BYTES_PER_SECOND):.0f} s"
    )


def keygen(client_file: str | Path, output: str | Path) -> str:
    """Make keys for a compiled model.

    ``output`` gets ``secret.key`` (mode 0600; never give it away), ``public.key``, ``evaluation.keys`` (for the
    evaluator) and a copy of the client part.

    Raises
    ------
    InputError
        If the client part is damaged or insecure, the folder already holds keys, or the disk is too small.
    """
    from tqdm.auto import tqdm

    client, output = load_client(client_file), Path(output)
    if (output / "secret.key").exists():
        msg = "already holds keys, which would be lost"
        raise InputError(msg, file=output, field="secret.key", fix="choose another folder, or delete it")
    print(describe_keys(client), file=sys.stderr)
    need_disk(output, client.evaluation_key_bytes() + (64 << 20))
    owner = engine.KeyOwner(client.parameters)
    if [str(prime) for prime in owner.moduli()] != client.about["moduli"]:
        msg = "lists other primes than this engine makes from its parameters"
        raise InputError(
            msg, file=client.file, field="moduli", fix="use the engine's version that the model's owner has"
        )
    output.mkdir(parents=True, exist_ok=True)
    output.chmod(0o700)
    started = time.monotonic()
    secret, public = owner.generate()
    key = hashlib.sha256(public).hexdigest()[:32]
    bound = {"client": client.hash, "key": key}
    messages.write_message(output / "public.key", "public key", public, **bound)
    pieces = tqdm(
        owner.evaluation_keys(client.rotations), total=len(client.rotations) + 2, desc="evaluation keys", unit="key"
    )
    write_pieces(output / "evaluation.keys", "evaluation keys", pieces, **bound)
    shutil.copyfile(client.file, output / "client.json")
    messages.write_message(output / "secret.key", "secret key", secret, **bound)  # last: its presence says all is there
    size = (output / "evaluation.keys").stat().st_size
    return (
        f"{output}: keys {key[:8]} for {client.about['title']}, {size / 2**20:.0f} MiB of evaluation keys, "
        f"{time.monotonic() - started:.1f} s"
    )


def write_pieces(path: Path, kind: str, pieces: Any, **header: Any) -> None:
    """Write a large message piece by piece; its header, of fixed length, is filled in at the end."""
    content = {"kind": kind, **header, "bytes": 0, "sha256": "0" * 64}
    room = len(json.dumps(content, sort_keys=True)) + 20
    digest, size = hashlib.sha256(), 0
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("r+b") as file:
            file.seek(len(messages.MAGIC) + 4 + room)
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                file.write(piece)
            encoded = json.dumps({**content, "bytes": size, "sha256": digest.hexdigest()}, sort_keys=True).encode()
            file.seek(0)
            file.write(messages.MAGIC + struct.pack("<I", room) + encoded.ljust(room))


class Keys:
    """A key owner's folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "secret.key").is_file():
            msg = "holds no keys"
            raise InputError(
                msg, file=folder, field="secret.key", fix="make them: histocrypt fhe keygen --client FILE -o FOLDER"
            )
        self.client = load_client(self.folder / "client.json")
        self.key: str = messages.read_header(self.folder / "public.key").get("key", "")
        if (self.folder / "secret.key").stat().st_mode & 0o077:
            msg = "can be read by others on this machine"
            raise InputError(
                msg,
                file=self.folder / "secret.key",
                field="mode",
                fix="chmod 600 it, and make new keys if others have read it",
            )

    @property
    def bound(self) -> dict[str, str]:
        """What every message under these keys is bound to."""
        return {"client": self.client.hash, "key": self.key}

    def encryptor(self) -> engine.KeyOwner:
        """Return what encrypts; it has no secret key."""
        public = messages.read_message(self.folder / "public.key", "public key", **self.bound)
        return engine.KeyOwner(self.client.parameters, public=public)

    def decryptor(self) -> engine.KeyOwner:
        """Return what decrypts."""
        secret = messages.read_message(self.folder / "secret.key", "secret key", **self.bound)
        return engine.KeyOwner(self.client.parameters, secret=secret)

    def note(self, request: str) -> Path:
        """Return where it is kept which spot lies at which place of a request; it never leaves this folder."""
        if not request.isalnum():
            msg = "is not the name of a request"
            raise InputError(msg, field="request", value=request)
        return self.folder / "requests" / f"{request}.json"


def encrypt_section(
    section: str | Path,
    keys: str | Path,
    output: str | Path,
    *,
    canaries: int = CANARIES,
    **how: Any,
) -> str:
    """Encrypt a section's spots into a request folder. ``how`` goes to `inputs.prepare`."""
    opened = Keys(keys)
    output = Path(output)
    refuse_existing(output, "request.json")
    prepared = prepare(opened.client, section, **how)
    started = time.monotonic()
    request = encrypt(prepared, opened, output, canaries=canaries)
    size = sum(path.stat().st_size for path in output.glob("*.ct"))
    note = prepared.about["without_prediction"]
    gone = "".join(f"; {count} {reason}" for reason, count in note.items())
    return (
        f"{output}: request {request[:8]}, {len(prepared.names)} spots of {prepared.section}, {size / 2**20:.0f} MiB, "
        f"{time.monotonic() - started:.1f} s{gone}"
    )


def encrypt(prepared: Prepared, keys: Keys, output: Path, *, canaries: int = CANARIES) -> str:
    """Encrypt prepared spots; return the request's name.

    The request tells the evaluator how many spots there are and nothing else: no names, no coordinates, and spots in
    random order, with ``canaries`` of them repeated.
    """
    from tqdm.auto import tqdm

    client = keys.client
    request = Request.of(prepared, client, keys.bound, canaries=canaries)
    count = request.batches
    need_disk(output, count * client.input.ciphertexts * client.parameters.ciphertext_bytes + (16 << 20))
    owner = keys.encryptor()
    output.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(count), desc="encrypting", unit="ciphertext"):
        payload = request.encrypt(index, prepared.values, owner)
        messages.write_message(output / f"{index:05d}.ct", "input", payload, **request.place(index))
    keys.note(request.name).parent.mkdir(mode=0o700, exist_ok=True)
    write_json(keys.note(request.name), request.note)
    write_json(output / "request.json", {**keys.bound, "request": request.name, "of": count})
    return request.name


def decrypt_response(response: str | Path, keys: str | Path, output: str | Path, *, noise: float = NOISE) -> str:
    """Decrypt a response folder into predictions (``.h5ad``), as `histocrypt predict` writes them.

    Parameters
    ----------
    response
        What the evaluator gave back.
    keys
        The key owner's folder.
    output
        Predictions are written here.
    noise
        Standard deviation of the noise that is added to every value before it is written, as a share of the output's
        standard deviation over the section. CKKS errors depend on the secret key, so that exact decrypted values in the
        hands of the evaluator could help to find it (Li and Micciancio, 2021).

    Raises
    ------
    InputError
        If a ciphertext is missing, damaged, out of place, of another request or key, or does not decrypt to copies of
        plausible outputs.
    """
    output = check_output(output)
    answers = _read_response(Path(response), Keys(keys))
    return write_result(output, answers.values(file=response), answers.request, noise=noise)


def decrypt(response: Path, keys: Keys) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is known of a request's spots, and their (n, outputs) values without added noise."""
    answers = _read_response(response, keys)
    return answers.request.note, answers.values(file=response)


def _read_response(response: Path, keys: Keys) -> Answers:
    from tqdm.auto import tqdm

    content = read_json(response / "response.json")
    if not isinstance(content, dict) or not isinstance(content.get("request"), str):
        msg = "does not describe a response"
        raise InputError(msg, file=response / "response.json")
    for field, wanted in keys.bound.items():
        if content.get(field) != wanted:
            msg = "was made for other keys" if field == "key" else "was made for another compiled model"
            raise InputError(
                msg, file=response / "response.json", field=field, value=content.get(field), expected=wanted
            )
    name = content["request"]
    if not keys.note(name).is_file():
        msg = "answers a request that was not made with these keys"
        raise InputError(msg, file=response / "response.json", field="request", value=name)
    request = Request(name, keys.client, keys.bound, read_json(keys.note(name)))
    paths = [response / f"{index:05d}.ct" for index in range(request.batches)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        msg = f"{len(missing)} of {len(paths)} ciphertexts are missing"
        fix = "run the evaluation again; it goes on where it stopped"
        raise InputError(msg, file=response, field=missing[0], fix=fix)
    answers = Answers(request, keys.decryptor())
    for index, path in enumerate(tqdm(paths, desc="decrypting", unit="ciphertext")):
        payload = messages.read_message(path, "output", most=answers.most_bytes, **request.place(index))
        answers.add(index, payload, file=path)
    return answers


def refuse_existing(folder: Path, name: str) -> None:
    """Refuse to write a request or response over another one."""
    if (folder / name).exists() or (folder.exists() and not folder.is_dir()):
        msg = "already holds something"
        raise InputError(msg, file=folder, field=name, fix="choose another folder")


def need_disk(folder: Path, wanted: int) -> None:
    """Refuse early where the disk is too small."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < wanted or not os.access(there, os.W_OK):
        msg = "the disk has too little room" if free < wanted else "cannot be written to"
        raise InputError(msg, file=folder, value=f"{free / 2**30:.2f} GiB free", expected=f"{wanted / 2**30:.2f} GiB")
