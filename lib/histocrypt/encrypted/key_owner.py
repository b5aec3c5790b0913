"""The key owner: makes keys, encrypts a section's spots, decrypts what comes back. All in the clear happens here."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.bundle import Client, is_client, load_client
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.encrypted.resnet.keys import bootstrapping_piece_number, bootstrapping_pieces
from histocrypt.errors import InputError
from histocrypt.files import claim, read_json, same_file, write_json

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
SAID = ("model", "title", "fold", "seed", "weights_sha256")
"""What a prediction file says of the model in its own words."""


@dataclass(frozen=True)
class Prepared:
    """A section ready to be encrypted."""

    section: str
    names: np.ndarray
    """(n,) ``"<section>:<barcode>"``."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    patient: str
    values: np.ndarray
    """(n, channels, side, side) or (n, features) float32, as the network sees them."""
    about: dict[str, Any]
    """Resolution, unmeasured genes, spots without prediction: goes into the prediction file."""

    def only(self, rows: np.ndarray, *, reason: str = "") -> Prepared:
        """Return these spots alone; the others are counted as without prediction for a ``reason``, if one is given."""
        about = self.about
        if reason and (left := len(self.names) - len(rows)):
            about = {**about, "without_prediction": {**about["without_prediction"], reason: left}}
        return replace(self, names=self.names[rows], coords=self.coords[rows], values=self.values[rows], about=about)


def evenly(count: int, most: int | None) -> np.ndarray:
    """Return at most so many of the numbers below ``count``, evenly spread; all where ``most`` is None."""
    return np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int))


def network_inputs(values: np.ndarray, sees: str, normalisation: dict[str, Any]) -> np.ndarray:
    """Return one section's tiles or features as the network sees them, float32.

    Parameters
    ----------
    values
        (n, side, side, 3) uint8 tiles, or (n, d) features, of all spots of one section.
    sees
        ``tiles`` or ``features``.
    normalisation
        ``by_section``: with this section's own mean and deviation; else with ``mean`` and ``sd`` of the training spots.
    """
    mean, sd = (np.asarray(normalisation[name], dtype=np.float32) for name in ("mean", "sd"))
    if sees == "features":
        from histocrypt.predictors.closed_form import standardise

        sections = np.zeros(len(values), dtype=int)
        return standardise(values, sections, mean, sd, by_section=normalisation["by_section"])
    if normalisation["by_section"]:  # as `predictors.network.PixelMoments` has them, without torch
        grey = values.reshape(-1, 3).astype(np.int64)
        mean = grey.sum(axis=0) / len(grey)
        sd = np.sqrt(np.maximum((grey * grey).sum(axis=0) / len(grey) - mean**2, 0)).clip(1.0)
        mean, sd = (np.stack([mean, sd]) / 255).astype(np.float32)
    scaled = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    return (scaled - mean[:, None, None]) / sd[:, None, None]


def prepare(
    client: Client,
    section_path: str | Path,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    bin_um: float | None = None,
    panel: str | Path | None = None,
    skip_out_of_range: bool = False,
    spots: int | None = None,
) -> Prepared:
    """Prepare a section for encryption, or refuse it; nothing is encrypted and no key is needed.

    Parameters
    ----------
    client
        The public part of the compiled model.
    section_path
        A section in any readable format.
    image, um_per_px
        Where the section does not tell them.
    bin_um
        Side of the squares that Visium HD or Xenium is summed to, micrometres; else the format's own.
    panel
        A list of gene ids, one a line, that the client expects to get, in this order.
    skip_out_of_range
        Leave out spots whose values are outside the calibrated range, instead of refusing the section.
    spots
        Of the section, evenly spread in the order of its file; all if not given. The section is standardised whole.

    Raises
    ------
    InputError
        If the section cannot be read, its pixels are too coarse, the panel is another one, or a spot's values are
        outside the range that the model was calibrated for.
    """
    from histocrypt.pipeline.predict import check_fit, prepare_section, unlike_training
    from histocrypt.sections.genes import GeneNames, meant_by
    from histocrypt.sections.read import read_path
    from histocrypt.targets.panels import Panel, read_gene_list

    about = client.about
    offered = Panel.from_dict(about["panel"])
    if panel is not None:
        wanted = list(read_gene_list(panel))
        meant = meant_by(wanted, GeneNames.of(offered.genes, offered.symbols))
        if meant.tolist() != list(range(len(offered))):
            other = (f"{len(wanted)} genes", len(offered))
            got, due = next(
                (pair for row, pair in enumerate(zip(wanted, offered.genes, strict=False)) if meant[row] != row), other
            )
            due = f"{due} (model: {len(offered)} genes)"
            raise InputError("this model predicts another panel", file=panel, field="panel", value=got, expected=due)
    section = read_path(section_path, image=image, um_per_px=um_per_px, bin_um=bin_um, for_prediction=True)
    missing = check_fit(about, section, offered)
    for note in (*section.notes, *unlike_training(about, section)):
        print(f"note: {note}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="histocrypt-") as folder:
        cut, coords, report = prepare_section(about, section, Path(folder), tuple(about["outputs"]))
        sees = about["sees"]
        raw = cut.features(about["input"]["encoder"]) if sees == "features" else np.array(cut.tiles)
        values = network_inputs(raw, sees, about["normalisation"])
        names = cut.names
    keep = _in_range(values, client, names, section_path, skip=skip_out_of_range)
    dropped = {**report.dropped, **({"out of range": int((~keep).sum())} if not keep.all() else {})}
    if not keep.any():
        raise InputError("no spot is left", file=section_path, value=dropped)
    prepared = Prepared(
        section=section.id,
        names=names[keep],
        coords=coords[keep],
        patient=section.patient or "",
        values=values[keep],
        about={
            "um_per_px": float(section.um_per_px),
            "um_per_px_source": section.um_per_px_source,
            "unmeasured_genes": missing,
            "without_prediction": {str(key): int(n) for key, n in dropped.items()},
        },
    )
    return prepared if spots is None else prepared.only(evenly(len(prepared.names), spots), reason="not asked for")


def _in_range(values: np.ndarray, client: Client, names: np.ndarray, file: Any, *, skip: bool) -> np.ndarray:
    low, high = client.about["input_range"]
    flat = values.reshape(len(values), -1)
    lowest, highest = flat.min(axis=1), flat.max(axis=1)
    keep = (lowest >= low) & (highest <= high) & np.isfinite(flat).all(axis=1)
    if not keep.all() and not skip:
        first = int(np.flatnonzero(~keep)[0])
        worst = lowest[first] if lowest[first] < low else highest[first]
        problem = f"{(~keep).sum()} of {len(keep)} spots are outside the range that the model was calibrated for"
        where = {"file": file, "field": str(names[first]), "value": round(float(worst), 2)}
        fix = "check the image's stain and focus there, or leave such spots out with --skip-out-of-range"
        raise InputError(problem, **where, expected=f"{low:.2f} to {high:.2f}", fix=fix)
    return keep


@dataclass(frozen=True)
class Request:
    """What the key owner knows of a request; the evaluator learns its name and the number of ciphertexts."""

    name: str
    client: Client
    bound: dict[str, str]
    """Client part and key that every message is bound to."""
    note: dict[str, Any]
    """Section, patient, names and coordinates of the spots, and ``order``: spot of each place, some of them twice."""

    @classmethod
    def of(cls, prepared: Prepared, client: Client, bound: dict[str, str], *, canaries: int = CANARIES) -> Request:
        """Lay out prepared spots in random order, ``canaries`` of them twice."""
        chance = np.random.default_rng(secrets.randbits(128))
        n = len(prepared.names)
        order = np.concatenate([np.arange(n), chance.choice(n, size=min(canaries, n), replace=False)])
        chance.shuffle(order)
        note = {
            "section": prepared.section,
            "patient": prepared.patient,
            "names": prepared.names.tolist(),
            "coords": prepared.coords.tolist(),
            "order": order.tolist(),
            "about": prepared.about,
        }
        return cls(secrets.token_hex(16), client, bound, note)

    @property
    def batches(self) -> int:
        """Messages that make up the request."""
        return -(-len(self.note["order"]) // self.client.batch)

    def place(self, index: int) -> dict[str, Any]:
        """Return what the header of a message at one place must say."""
        return {**self.bound, "request": self.name, "index": index, "of": self.batches}

    def spots(self, index: int) -> np.ndarray:
        """Return the spots at one place."""
        return np.array(self.note["order"][index * self.client.batch : (index + 1) * self.client.batch])

    def encrypt(self, index: int, values: np.ndarray, owner: engine.KeyOwner) -> bytes:
        """Return the payload of one input message, from the network's inputs of all spots."""
        chosen = values[self.spots(index)]
        if self.client.about["sees"] == "features":
            padded = np.zeros((self.client.batch, values.shape[1]))
            padded[: len(chosen)] = chosen
            chosen = padded.T
        return messages.pack_list([owner.encrypt(slots, self.client.level) for slots in self.client.input.pack(chosen)])


class Answers:
    """The results of a request, decrypted and checked one by one."""

    def __init__(self, request: Request, owner: engine.KeyOwner) -> None:
        self.request, self._owner = request, owner
        self._values = np.empty((len(request.note["order"]), len(request.client.about["outputs"])))

    def add(self, index: int, payload: bytes, *, file: Any) -> None:
        """Decrypt what an output message holds.

        Raises
        ------
        InputError
            If it is no ciphertext of outputs, or does not decrypt to copies of plausible ones.
        """
        client = self.request.client
        parts = messages.unpack_list(payload, count=client.output.ciphertexts, file=file)
        for part in parts:
            messages.check_ciphertext(part, client.parameters, client.moduli, 0, file=file)
        outputs = _outputs(np.stack([self._owner.decrypt(part) for part in parts]), client, file)
        places = self._values[index * client.batch : (index + 1) * client.batch]
        places[:] = outputs[: len(places)]

    def values(self, *, file: Any) -> np.ndarray:
        """Return (spots, outputs) once all were added, after comparing the results of spots that were sent twice."""
        order = np.array(self.request.note["order"])
        values = np.empty((len(self.request.note["names"]), self._values.shape[1]))
        values[order] = self._values
        apart = (np.abs(values[order] - self._values) / _each_spread(values, self.request.client)).max(axis=1)
        if apart.max() > APART:
            problem = "a spot that was sent twice came back different: the evaluator mixed up spots or made up results"
            where = {"file": file, "field": f"spot {int(apart.argmax())}"}
            value, fix = f"{apart.max():.2g} standard deviations", "do not use this response"
            raise InputError(problem, **where, value=value, expected=f"at most {APART}", fix=fix)
        return values


def _spread(client: Client) -> float:
    low, high = client.about["output_range"]
    return high - low


def _each_spread(values: np.ndarray, client: Client) -> np.ndarray:
    """Return (outputs,) standard deviations over spots, never zero: a section may have one spot, or a constant gene."""
    return np.maximum(values.std(axis=0), 1e-2 * _spread(client))


def _outputs(slots: np.ndarray, client: Client, file: Any) -> np.ndarray:
    """Return (batch, outputs) from decrypted slots, after checking that nothing but copies of them is there."""
    layout = client.output
    outputs = layout.unpack(slots).T
    low, high = client.about["output_range"]
    low, high = low - PLAUSIBLE * (high - low), high + PLAUSIBLE * (high - low)
    fix = "check that evaluation keys and ciphertexts belong together, and that the evaluator is sound"
    if not np.isfinite(slots).all() or outputs.min() < low or outputs.max() > high:
        value, plausible = float(np.abs(slots).max()), f"{low:.2f} to {high:.2f}"
        raise InputError(
            "does not decrypt to plausible values", file=file, field="slots", value=value, expected=plausible, fix=fix
        )
    used = np.zeros((layout.ciphertexts, layout.span))
    used.reshape(-1)[layout.index] = outputs.T.reshape(-1)
    copies = slots.reshape(layout.ciphertexts, -1, used.shape[1])
    if np.abs(copies - used[:, None]).max() > TOLERANCE * _spread(client):
        problem = "holds something else than copies of the outputs in its spare slots"
        raise InputError(problem, file=file, field="spare slots", fix=fix)
    return outputs


def check_output(output: str | Path, *inputs: str | Path | None, overwrite: bool = False) -> Path:
    """Refuse a name that predictions are not written to, before work is done for them; see `claim`."""
    from histocrypt.pipeline.predictions import is_loose_prediction

    output = Path(output)
    if output.suffix != ".h5ad":
        wanted = "a name that ends in .h5ad"
        raise InputError("predictions are written as .h5ad", file=output, field="--output", expected=wanted)
    return claim(output, inputs=inputs, mine=is_loose_prediction, overwrite=overwrite)


def write_result(output: Path, values: np.ndarray, request: Request, *, noise: float = NOISE) -> str:
    """Write decrypted values as predictions, with noise added; see `decrypt_response`."""
    from histocrypt.data.load import Spots
    from histocrypt.pipeline.predictions import write_predictions
    from histocrypt.targets.panels import Panel

    about, note = request.client.about, request.note
    if noise:
        chance = np.random.default_rng(secrets.randbits(128))
        values = values + chance.normal(size=values.shape) * noise * _each_spread(values, request.client)
    names, of_section = np.array(note["names"]), note["about"]
    spots = Spots(
        names=names,
        sections=np.full(len(names), note["section"]),
        patients=np.full(len(names), note["patient"]),
        depth=np.zeros(len(names)),
        outputs=tuple(about["outputs"]),
    )
    said = {
        **{name: about[name] for name in SAID},
        **{name: of_section[name] for name in ("um_per_px", "um_per_px_source")},
        "part": "encrypted",
        "study": about["study"]["name"],
        "study_hash": about["study"]["hash"],
        "section": note["section"],
        "unmeasured_genes": np.array(of_section["unmeasured_genes"], dtype=str),
        "encrypted": "CKKS",
        "security_bits": SECURITY_BITS,
        "noise": float(noise),
    }
    panel, coords = Panel.from_dict(about["panel"]), np.array(note["coords"])
    chosen = {"coords": coords, "panel": panel, "transforms": list(about["transforms"])}
    write_predictions(output, values.astype(np.float32), spots=spots, about=said, **chosen)
    return (
        f"{output}: {len(names)} spots x {len(panel)} genes of {note['section']}, "
        f"predicted encrypted by {about['title']}{_gone(of_section)}"
    )


def _gone(of_section: dict[str, Any]) -> str:
    return "".join(f"; {count} {reason}" for reason, count in of_section["without_prediction"].items())


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
        problem, fix = "already holds keys, which would be lost", "choose another folder, or delete it"
        raise InputError(problem, file=output, field="secret.key", fix=fix)
    for name, kind in (("public.key", "public key"), ("evaluation.keys", "evaluation keys")):
        claim(output / name, mine=partial(messages.is_message, kind=kind), overwrite=None)
    claim(output / "client.json", mine=is_client, overwrite=None)
    print(describe_keys(client), file=sys.stderr)
    need_disk(output, client.evaluation_key_bytes() + (64 << 20))
    owner = engine.KeyOwner(client.parameters)
    if [str(prime) for prime in owner.moduli()] != client.about["moduli"]:
        problem = "lists other primes than this engine makes from its parameters"
        raise InputError(problem, file=client.file, field="moduli", fix="use the model owner's version of the engine")
    output.mkdir(mode=0o700, parents=True, exist_ok=True)  # one that exists keeps its mode; the secret key has its own
    started = time.monotonic()
    secret, public = owner.generate()
    key = hashlib.sha256(public).hexdigest()[:32]
    bound = {"client": client.hash, "key": key}
    messages.write_message(output / "public.key", "public key", public, **bound)
    pieces, number = owner.evaluation_keys(client.rotations), len(client.rotations) + 2
    if client.parameters.bootstrapping is not None:
        pieces = chain(pieces, bootstrapping_pieces(owner, output))
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
        self.client = load_client(self.folder / "client.json")
        self.key: str = messages.read_header(self.folder / "public.key").get("key", "")
        if (self.folder / "secret.key").stat().st_mode & 0o077:
            problem, fix = "can be read by others on this machine", "chmod 600 it; make new keys if others have read it"
            raise InputError(problem, file=self.folder / "secret.key", field="mode", fix=fix)

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
            raise InputError("is not the name of a request", field="request", value=request)
        return self.folder / "requests" / f"{request}.json"


def encrypt_section(section: str | Path, keys: str | Path, output: str | Path, **how: Any) -> str:
    """Encrypt a section's spots into a request folder. ``how`` goes to `prepare`."""
    opened, output = Keys(keys), Path(output)
    if (output / "request.json").exists() or (output / "secret.key").exists():
        raise InputError("already holds something", file=output, field="request.json", fix="choose another folder")
    for path in (output / "request.json", *sorted(output.glob("[0-9]*.ct"))):  # an interrupted request is made anew
        claim(path, mine=partial(messages.is_message, kind="input"), overwrite=None)
    prepared = prepare(opened.client, section, **how)
    started = time.monotonic()
    request = encrypt(prepared, opened, output)
    size = sum(path.stat().st_size for path in output.glob("*.ct"))
    return (
        f"{output}: request {request[:8]}, {len(prepared.names)} spots of {prepared.section}, {size / 2**20:.0f} MiB, "
        f"{time.monotonic() - started:.1f} s{_gone(prepared.about)}"
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
    return answers.request.note, answers.values(file=response)


def _read_response(response: Path, keys: Keys) -> Answers:
    from tqdm.auto import tqdm

    file = response / "response.json"
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("request"), str):
        raise InputError("does not describe a response", file=file)
    name = content["request"]
    for field, wanted in keys.bound.items():
        if content.get(field) != wanted:
            problem = "was made for other keys" if field == "key" else "was made for another compiled model"
            raise InputError(problem, file=file, field=field, value=content.get(field), expected=wanted)
    if not keys.note(name).is_file():
        raise InputError("answers a request that was not made with these keys", file=file, field="request", value=name)
    request = Request(name, keys.client, keys.bound, read_json(keys.note(name)))
    paths = [response / f"{index:05d}.ct" for index in range(request.batches)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        problem = f"{len(missing)} of {len(paths)} ciphertexts are missing"
        fix = "run the evaluation again; it goes on where it stopped"
        raise InputError(problem, file=response, field=missing[0], fix=fix)
    answers = Answers(request, keys.decryptor())
    for index, path in enumerate(tqdm(paths, desc="decrypting", unit="ciphertext")):
        most = keys.client.most_output_bytes
        answers.add(index, messages.read_message(path, "output", most=most, **request.place(index)), file=path)
    return answers


def need_disk(folder: Path, wanted: int) -> None:
    """Refuse early where the disk is too small."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < wanted or not os.access(there, os.W_OK):
        problem = "the disk has too little room" if free < wanted else "cannot be written to"
        room, needed = f"{free / 2**30:.2f} GiB free", f"{wanted / 2**30:.2f} GiB"
        raise InputError(problem, file=folder, value=room, expected=needed)
