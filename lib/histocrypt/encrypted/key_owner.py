"""The key owner: makes keys, encrypts a section's spots, decrypts what comes back. All in the clear happens here."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.answers import NOISE, Answers, check_output, gone, write_result
from histocrypt.encrypted.bundle import best_form, copies_of, forms, is_client, load_client
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.encrypted.prepare import Prepared, prepare
from histocrypt.encrypted.resnet.keys import bootstrapping_piece_number, bootstrapping_pieces
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import claim, read_json, same_file, write_json

KEY_BYTES_PER_SECOND = 50e6
"""For the estimate before keys are made."""


@dataclass(frozen=True)
class Rows:
    """What the network sees of some spots, as `Prepared.values`: made when a slice of them is asked for."""

    prepared: Prepared
    spots: np.ndarray

    def __len__(self) -> int:
        return len(self.spots)

    def __getitem__(self, which: slice) -> np.ndarray:
        return self.prepared.inputs(self.spots[which])


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: lists for arrays, None for what is no number."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    return None if isinstance(value, float) and not np.isfinite(value) else value


@dataclass(frozen=True)
class Request:
    """What the key owner knows of a request; the evaluator learns its name, its form and how many messages it has."""

    name: str
    client: Client
    """In the form that the request is made in."""
    bound: dict[str, str]
    """Client part and key that every message is bound to."""
    note: dict[str, Any]
    """Section, patient, names and coordinates of the spots; ``order``: spot of each place; ``noise``: a seed."""

    @classmethod
    def of(cls, prepared: Prepared, client: Client, bound: dict[str, str]) -> Request:
        """Lay out prepared spots in random order, a third of them and more in several places."""
        n = len(prepared.names)
        note = {
            "section": prepared.section,
            "patient": prepared.patient,
            "names": prepared.names.tolist(),
            "coords": prepared.coords.tolist(),
            "order": places_of(n, client.places, apart=not client.alike).tolist(),
            "noise": secrets.token_hex(32),
            "about": _plain(prepared.about),
            **({} if prepared.looked_over is None else {"looked_over": _plain(prepared.looked_over)}),
        }
        return cls(secrets.token_hex(16), client, bound, note)

    @property
    def each(self) -> int:
        """Places of a message."""
        return self.client.places

    @property
    def batches(self) -> int:
        """Messages that make up the request."""
        return -(-len(self.note["order"]) // self.each)

    def place(self, index: int) -> dict[str, Any]:
        """Return what the header of a message at one place must say."""
        return {**self.bound, "request": self.name, "index": index, "of": self.batches}

    def spots(self, index: int) -> np.ndarray:
        """Return the spots of one message."""
        return np.array(self.note["order"][index * self.each : (index + 1) * self.each])

    def encrypt(self, index: int, prepared: Prepared, owner: engine.KeyOwner) -> Iterator[bytes]:
        """Yield the payload of one input message."""
        yield from self.client.encrypt(Rows(prepared, self.spots(index)), owner)


def messages_of(n: int, each: int, *, apart: bool) -> int:
    """Return how many messages a request of ``n`` spots has; see `places_of`."""
    return -(-(n + (copies_of(n) if apart else n)) // each)


def places_of(n: int, each: int, *, apart: bool) -> np.ndarray:
    """Return the spot of every place of a request, at random.

    All places of all messages are filled: more copies of a spot cost nothing more. In the form ``single`` every spot is
    sent twice.

    Parameters
    ----------
    n
        Spots.
    each
        Places of a message.
    apart
        Copies of a spot lie at different places of their messages, too: what lies at the same place has the same part
        of the secret key under it, and could be forged alike.
    """
    chance = np.random.default_rng(secrets.randbits(256))
    messages_needed = messages_of(n, each, apart=apart)
    rest = messages_needed * each - n
    order = np.concatenate([np.arange(n), *(chance.permutation(n) for _ in range(-(-rest // n)))])[: n + rest]
    chance.shuffle(order)
    while apart and messages_needed > 1:
        where = np.arange(len(order)) % each
        _, first, count = np.unique(order * each + where, return_index=True, return_counts=True)
        clashing = first[count > 1]
        if not len(clashing):
            break
        others = chance.choice(len(order), size=len(clashing), replace=False)
        for one, other in zip(clashing, others, strict=True):
            order[[one, other]] = order[[other, one]]
    return order


def describe_keys(client: Client) -> str:
    """Return the sentences that a key owner reads before keys are made."""
    p, size = client.parameters, client.evaluation_key_bytes()
    said = f"\nevaluation: {client.about['estimate']}" if "estimate" in client.about else ""
    return (
        f"parameters: N = 2^{p.logn} ({p.ring} ring), log QP = {p.log_qp}, scale 2^{p.log_scale}, {p.levels} levels; "
        f"at least {SECURITY_BITS} bits of security\n"
        f"evaluation keys: 1 relinearisation + {len(client.rotations)} rotations, {size / 2**20:.0f} MiB, "
        f"about {max(1, size / KEY_BYTES_PER_SECOND):.0f} s{said}"
    )


def keygen(client_file: str | Path, output: str | Path, *, spots: int | None = None, form: str | None = None) -> str:
    """Make keys for a compiled model, to be used for one section.

    ``output`` gets ``secret.key`` (mode 0600; never give it away), ``public.key``, ``evaluation.keys`` (for the
    evaluator) and a copy of the client part.

    Parameters
    ----------
    client_file
        The model's public part.
    output
        Folder of the keys.
    spots
        How many will be encrypted, which chooses the form (`bundle.best_form`); a whole section if not given.
    form
        ``single`` or ``batch``, whatever their number.

    Raises
    ------
    InputError
        If the client part is damaged or insecure, the folder already holds keys, or the disk is too small.
    """
    from tqdm.auto import tqdm

    client, output = best_form(load_client(client_file), spots, wanted=form), Path(output)
    if (output / "secret.key").exists():
        problem, fix = "already holds keys, which would be lost", "choose another folder, or delete it"
        raise InputError(problem, file=output, field="secret.key", fix=fix)
    for name, kind in (("public.key", "public key"), ("evaluation.keys", "evaluation keys")):
        claim(output / name, mine=partial(messages.is_message, kind=kind), overwrite=None)
    claim(output / "client.json", mine=is_client, overwrite=None)
    print(describe_keys(client), file=sys.stderr)
    need_disk(output, client.evaluation_key_bytes() + (64 << 20))
    owner = engine.KeyOwner(client.parameters)
    if owner.moduli() != client.moduli or (client.form == "batch" and owner.special_moduli() != [client.special]):
        problem = "lists primes that differ from those of this engine"
        raise InputError(problem, file=client.file, field="moduli", fix="use the model owner's version of the engine")
    output.mkdir(mode=0o700, parents=True, exist_ok=True)  # one that exists keeps its mode; the secret key has its own
    started = time.monotonic()
    secret, public = owner.generate()
    key = hashlib.sha256(public).hexdigest()[:32]
    bound = {"client": client.hash, "key": key}
    messages.write_message(output / "public.key", "public key", public, **bound)
    pieces, number = client.evaluation_keys(owner), len(client.rotations) + 2
    if client.parameters.bootstrapping is not None:
        pieces = chain(pieces, bootstrapping_pieces(owner))
        number += bootstrapping_piece_number(client.parameters)
    pieces = tqdm(pieces, total=number, desc="evaluation keys", unit="key")
    messages.write_pieces(output / "evaluation.keys", "evaluation keys", pieces, **bound)
    if not same_file(client.file, output / "client.json"):
        shutil.copyfile(client.file, output / "client.json")
    messages.write_message(output / "secret.key", "secret key", secret, **bound)  # last: its presence says all is there
    size = (output / "evaluation.keys").stat().st_size
    return (
        f"{output}: keys {key[:8]} for {client.about['title']}, {size / 2**20:.0f} MiB of evaluation keys, "
        f"{time.monotonic() - started:.1f} s"
    )


class Keys:
    """A key owner's folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "secret.key").is_file():
            fix = "make them: histocrypt fhe keygen --client FILE -o FOLDER"
            raise InputError("holds no keys", file=folder, field="secret.key", fix=fix)
        public, header = load_client(self.folder / "client.json"), messages.read_header(self.folder / "public.key")
        self.client = forms(public).get(str(header.get("client")), public)  # a wrong one is refused as keys are read
        self.key: str = header.get("key", "")
        if (self.folder / "secret.key").stat().st_mode & 0o077:
            problem, fix = "can be read by others on this machine", "chmod 600 it; make new keys if others have read it"
            raise InputError(problem, file=self.folder / "secret.key", field="mode", fix=fix)

    @property
    def bound(self) -> dict[str, str]:
        """What every message under these keys is bound to."""
        return {"client": self.client.hash, "key": self.key}

    def encryptor(self) -> engine.KeyOwner:
        """Return what encrypts."""
        if not self.client.alike:  # batches are encrypted under the secret key: half as large
            return self.decryptor()
        public = messages.read_message(self.folder / "public.key", "public key", **self.bound)
        return engine.KeyOwner(self.client.parameters, public=public)

    def decryptor(self) -> engine.KeyOwner:
        """Return what decrypts."""
        secret = messages.read_message(self.folder / "secret.key", "secret key", **self.bound)
        return engine.KeyOwner(self.client.parameters, secret=secret)

    def keep(self, request: Request) -> None:
        """Note which spot lies where in a request."""
        self.note(request.name).parent.mkdir(mode=0o700, exist_ok=True)
        write_json(self.note(request.name), request.note)

    def request(self, name: str, *, file: Any) -> Request:
        """Return a request that was made with these keys; ``file`` is what the error names where it was not."""
        note = self.note(name)
        if not note.is_file():
            problem = "answers a request that was not made with these keys"
            raise InputError(problem, file=file, field="request", value=name)
        return Request(name, self.client, self.bound, read_json(note))

    def settle(self, request: Request, payloads: Iterable[messages.Data], *, file: Any) -> None:
        """Note what a request was answered with, before any of it is decrypted.

        Every refusal tells a lying evaluator a little of the key, and so do two files that differ by what it changed.

        Raises
        ------
        InputError
            If it was answered with something else before.
        """
        answer = hashlib.sha256(b"".join(hashlib.sha256(payload).digest() for payload in payloads)).hexdigest()
        if request.note.setdefault("answer", answer) != answer:
            problem, fix = "answers a request that was already answered", "make new keys, and encrypt again"
            raise InputError(problem, file=file, field="answer", value=answer[:8], fix=fix)
        self.keep(request)

    def note(self, request: str) -> Path:
        """Return where it is kept which spot lies at which place of a request; it never leaves this folder."""
        if not request.isalnum():
            raise InputError("is not the name of a request", field="request", value=request)
        return self.folder / "requests" / f"{request}.json"


def encrypt_section(section: str | Path, keys: str | Path, output: str | Path, **how: Any) -> str:
    """Encrypt a section's spots into a request folder. ``how`` goes to `prepare`."""
    opened, output = Keys(keys), Path(output)
    if (output / "request.json").exists() or (output / "secret.key").exists():
        raise InputError("is not empty", file=output, field="request.json", fix="choose another folder")
    for path in (output / "request.json", *sorted(output.glob("[0-9]*.ct"))):  # an interrupted request is made anew
        claim(path, mine=partial(messages.is_message, kind="input"), overwrite=None)
    used = next(opened.note("0").parent.glob("*.json"), None)
    if used is not None:
        problem, fix = "were already used for a section", "make new ones: keys are for one section"
        raise InputError(problem, file=keys, field="requests", value=used.stem[:8], fix=fix)
    prepared = prepare(opened.client, section, **how, folder=opened.folder)
    started = time.monotonic()
    request = encrypt(prepared, opened, output)
    size = sum(path.stat().st_size for path in output.glob("*.ct"))
    return (
        f"{output}: request {request[:8]}, {len(prepared.names)} spots of {prepared.section}, {size / 2**20:.0f} MiB, "
        f"{time.monotonic() - started:.1f} s{gone(prepared.about)}"
    )


def encrypt(prepared: Prepared, keys: Keys, output: Path) -> str:
    """Encrypt prepared spots; return the request's name.

    The request tells the evaluator how many messages there are and nothing else: no names, no coordinates, and spots in
    random order, many of them repeated.
    """
    from tqdm.auto import tqdm

    client = keys.client
    request = Request.of(prepared, client, keys.bound)
    count = request.batches
    need_disk(output, count * client.input_bytes + (16 << 20))
    owner = keys.encryptor()
    output.mkdir(parents=True, exist_ok=True)
    keys.keep(request)
    for index in tqdm(range(count), desc="encrypting", unit="message"):
        payload = request.encrypt(index, prepared, owner)
        messages.write_pieces(output / f"{index:05d}.ct", "input", payload, **request.place(index))
    write_json(output / "request.json", {**keys.bound, "request": request.name, "of": count})
    return request.name


def decrypt_response(
    response: str | Path, keys: str | Path, output: str | Path, *, noise: float = NOISE, overwrite: bool = False
) -> str:
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
    overwrite
        Replace what lies at ``output``; else only predictions of `predict`, `decrypt` and `send` are replaced.

    Raises
    ------
    InputError
        If a ciphertext is missing, damaged, out of place, of another request or key, or does not decrypt to copies of
        plausible outputs.
    """
    output = check_output(output, overwrite=overwrite)
    answers = _read_response(Path(response), Keys(keys))
    return write_result(output, answers.values(file=response), answers.request, noise=noise)


def decrypt(response: Path, keys: Keys) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is known of a request's spots, and their (n, outputs) values without added noise."""
    answers = _read_response(response, keys)
    return answers.request.note, answers.values(file=response).values


def _read_response(response: Path, keys: Keys) -> Answers:
    from tqdm.auto import tqdm

    file = response / "response.json"
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("request"), str):
        raise InputError("does not describe a response", file=file)
    for field, wanted in keys.bound.items():
        if content.get(field) != wanted:
            problem = "was made for other keys" if field == "key" else "was made for another compiled model"
            raise InputError(problem, file=file, field=field, value=content.get(field), expected=wanted)
    request = keys.request(content["request"], file=file)
    paths = [response / f"{index:05d}.ct" for index in range(request.batches)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        problem = f"{len(missing)} of {len(paths)} ciphertexts are missing"
        fix = "run the evaluation again; it goes on where it stopped"
        raise InputError(problem, file=response, field=missing[0], fix=fix)

    def payload(index: int) -> messages.Data:
        messages.check_size(paths[index], most=keys.client.most_output_bytes)
        return messages.unpack(messages.mapped(paths[index]), file=paths[index], kind="output", **request.place(index))

    keys.settle(request, map(payload, range(len(paths))), file=response)
    answers = Answers(request, keys.decryptor())
    for index, path in enumerate(tqdm(paths, desc="decrypting", unit="ciphertext")):
        answers.add(index, payload(index), file=path)
    return answers


def need_disk(folder: Path, wanted: int) -> None:
    """Refuse early where the disk is too small."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < wanted or not os.access(there, os.W_OK):
        problem = "the disk is too full" if free < wanted else "cannot be written to"
        room, needed = f"{free / 2**30:.2f} GiB free", f"{wanted / 2**30:.2f} GiB"
        raise InputError(problem, file=folder, value=room, expected=needed)
