"""The key owner: makes keys, encrypts a section's spots, decrypts what comes back. All in the clear happens here."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
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
from histocrypt.errors import InputError

NOISE = 1e-3
"""Noise added to decrypted values: standard deviation, as a share of the output's own over the section."""
CANARIES = 2
"""Spots that are sent twice, freshly encrypted and in random places, to notice an evaluator that mixes up spots."""
PLAUSIBLE = 4.0
"""Outputs may leave their range over the training tiles by so many times that range."""
TOLERANCE = 1e-2
"""How far copies of one output within a ciphertext may be apart, as a share of that range."""
APART = 0.1
"""How far the two results of a spot that was sent twice may be apart, in standard deviations over the section."""
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
    chance = np.random.default_rng(secrets.randbits(128))
    n = len(prepared.names)
    order = np.concatenate([np.arange(n), chance.choice(n, size=min(canaries, n), replace=False)])
    chance.shuffle(order)
    batches = -(-len(order) // client.batch)
    layout = client.input
    need_disk(output, batches * layout.ciphertexts * client.parameters.ciphertext_bytes + (16 << 20))
    owner = keys.encryptor()
    request = secrets.token_hex(16)
    output.mkdir(parents=True, exist_ok=True)
    for batch in tqdm(range(batches), desc="encrypting", unit="ciphertext"):
        chosen = order[batch * client.batch : (batch + 1) * client.batch]
        values = prepared.values[chosen]
        if client.about["sees"] == "features":
            padded = np.zeros((client.batch, values.shape[1]))
            padded[: len(values)] = values
            values = padded.T
        packed = layout.pack(values)
        payload = messages.pack_list([owner.encrypt(slots, client.level) for slots in packed])
        messages.write_message(
            output / f"{batch:05d}.ct", "input", payload, **keys.bound, request=request, index=batch, of=batches
        )
    keys.note(request).parent.mkdir(mode=0o700, exist_ok=True)
    write_json(
        keys.note(request),
        {
            "section": prepared.section, "patient": prepared.patient, "names": prepared.names.tolist(),
            "coords": prepared.coords.tolist(), "order": order.tolist(), "about": prepared.about,
        },
    )  # fmt: skip
    write_json(output / "request.json", {**keys.bound, "request": request, "of": batches})
    return request


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
    from histocrypt.models.spots import Spots
    from histocrypt.targets.panels import Panel
    from histocrypt.training.predictions import write_predictions

    output = Path(output)
    if output.suffix != ".h5ad" or output.is_dir():
        msg = "predictions are written as .h5ad"
        raise InputError(msg, file=output, field="output", expected="a name that ends in .h5ad")
    opened = Keys(keys)
    note, values = decrypt(Path(response), opened)
    about = opened.client.about
    if noise:
        chance = np.random.default_rng(secrets.randbits(128))
        values = values + chance.normal(size=values.shape) * noise * values.std(axis=0)
    names = np.array(note["names"])
    spots = Spots(
        names=names,
        sections=np.full(len(names), note["section"]),
        patients=np.full(len(names), note["patient"]),
        tiles=np.empty((len(names), 0, 0, 3), np.uint8),
        depth=np.zeros(len(names)),
        outputs=tuple(about["outputs"]),
    )
    write_predictions(
        output,
        values.astype(np.float32),
        spots=spots,
        coords=np.array(note["coords"]),
        panel=Panel.from_dict(about["panel"]),
        transforms=list(about["transforms"]),
        about={
            "model": about["model"], "title": about["title"], "fold": about["fold"], "part": "encrypted",
            "study": about["study"]["name"], "study_hash": about["study"]["hash"], "seed": about["seed"],
            "section": note["section"], "um_per_px": note["about"]["um_per_px"],
            "um_per_px_source": note["about"]["um_per_px_source"],
            "unmeasured_genes": np.array(note["about"]["unmeasured_genes"], dtype=str),
            "weights_sha256": about["weights_sha256"], "encrypted": "CKKS", "security_bits": SECURITY_BITS,
            "noise": float(noise),
        },
    )  # fmt: skip
    gone = "".join(f"; {count} {reason}" for reason, count in note["about"]["without_prediction"].items())
    return (
        f"{output}: {len(names)} spots x {len(about['panel']['genes'])} genes of {note['section']}, "
        f"predicted encrypted by {about['title']}{gone}"
    )


def decrypt(response: Path, keys: Keys) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is known of a request's spots, and their (n, outputs) values without added noise."""
    from tqdm.auto import tqdm

    client = keys.client
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
    request = content["request"]
    if not keys.note(request).is_file():
        msg = "answers a request that was not made with these keys"
        raise InputError(msg, file=response / "response.json", field="request", value=request)
    note = read_json(keys.note(request))
    order = np.array(note["order"])
    batches = -(-len(order) // client.batch)
    missing = [index for index in range(batches) if not (response / f"{index:05d}.ct").is_file()]
    if missing:
        msg = f"{len(missing)} of {batches} ciphertexts are missing"
        raise InputError(
            msg,
            file=response,
            field=f"{missing[0]:05d}.ct",
            fix="run the evaluation again; it goes on where it stopped",
        )
    owner = keys.decryptor()
    moduli = [int(prime) for prime in client.about["moduli"]]
    found = np.empty((len(order), len(client.about["outputs"])))
    most = client.output.ciphertexts * client.ciphertext_bytes(0) + messages.LONGEST_HEADER
    for index in tqdm(range(batches), desc="decrypting", unit="ciphertext"):
        path = response / f"{index:05d}.ct"
        payload = messages.read_message(
            path, "output", most=most, **keys.bound, request=request, index=index, of=batches
        )
        parts = messages.unpack_list(payload, count=client.output.ciphertexts, file=path)
        for part in parts:
            engine.check_ciphertext(part, client.parameters, moduli, 0, file=path)
        slots = np.stack([owner.decrypt(part) for part in parts])
        outputs = _outputs(slots, client, path)
        chosen = slice(index * client.batch, (index + 1) * client.batch)
        found[chosen] = outputs[: len(found[chosen])]
    values = np.empty((len(note["names"]), found.shape[1]))
    values[order] = found
    spread = np.maximum(values.std(axis=0), 1e-3 * _spread(client))
    apart = (np.abs(values[order] - found) / spread).max(axis=1)
    if apart.max() > APART:
        msg = "a spot that was sent twice came back different: the evaluator mixed up spots or made up results"
        raise InputError(
            msg,
            file=response,
            field=f"spot {int(apart.argmax())}",
            value=f"{apart.max():.2g} standard deviations",
            expected=f"at most {APART}",
            fix="do not use this response",
        )
    return note, values


def _spread(client: Client) -> float:
    low, high = client.about["output_range"]
    return high - low


def _outputs(slots: np.ndarray, client: Client, path: Path) -> np.ndarray:
    """Return (batch, outputs) from decrypted slots, after checking that nothing but copies of them is there."""
    layout = client.output
    outputs = layout.unpack(slots).T
    low, high = client.about["output_range"]
    low, high = low - PLAUSIBLE * (high - low), high + PLAUSIBLE * (high - low)
    wrong = "check that evaluation keys and ciphertexts belong together, and that the evaluator is sound"
    if not np.isfinite(slots).all() or outputs.min() < low or outputs.max() > high:
        msg = "does not decrypt to plausible values"
        raise InputError(
            msg, file=path, value=float(np.abs(slots).max()), expected=f"{low:.2f} to {high:.2f}", fix=wrong
        )
    span = layout.span
    used = np.zeros((layout.ciphertexts, span if layout.ciphertexts == 1 else layout.slots))
    used.reshape(-1)[layout.index] = outputs.T.reshape(-1)
    copies = slots.reshape(layout.ciphertexts, -1, used.shape[1])
    if np.abs(copies - used[:, None]).max() > TOLERANCE * _spread(client):
        msg = "holds something else than copies of the outputs in its spare slots"
        raise InputError(msg, file=path, fix=wrong)
    return outputs


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
