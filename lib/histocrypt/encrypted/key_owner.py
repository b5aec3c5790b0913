"""The key owner: makes keys, encrypts a section's spots, decrypts what comes back. All in the clear happens here."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.answers import NOISE, Answers, check_output, gone, write_result
from histocrypt.encrypted.bundle import best_form, copies_of, forms, is_client, load_client
from histocrypt.encrypted.parameters import SECURITY_BITS
from histocrypt.encrypted.resnet.keys import bootstrapping_piece_number, bootstrapping_pieces
from histocrypt.encrypted.single import Client
from histocrypt.errors import InputError
from histocrypt.files import claim, read_json, same_file, write_json
from histocrypt.scratch import scratch

CHUNK = 256
"""Spots that are looked at together."""
KEY_BYTES_PER_SECOND = 50e6
"""For the estimate before keys are made."""


@dataclass(frozen=True)
class Prepared:
    """A section ready to be encrypted."""

    section: str
    names: np.ndarray
    """(n,) ``"<section>:<barcode>"``."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    patient: str
    raw: np.ndarray
    """(n, side, side, 3) uint8 tiles, or (n, features) float32."""
    scale: Callable[[np.ndarray], np.ndarray]
    """From rows of ``raw`` to what the network sees of them."""
    about: dict[str, Any]
    """Resolution, unmeasured genes, spots without prediction: goes into the prediction file."""

    @property
    def values(self) -> np.ndarray:
        """(n, channels, side, side) or (n, features) float32, as the network sees them."""
        return self.inputs(np.arange(len(self.names)))

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Return what the network sees of some spots, as `values`."""
        return self.scale(self.raw[rows])

    def only(self, rows: np.ndarray, *, reason: str = "") -> Prepared:
        """Return these spots alone; the others are counted as without prediction for a ``reason``, if one is given."""
        about = self.about
        if reason and (left := len(self.names) - len(rows)):
            about = {**about, "without_prediction": {**about["without_prediction"], reason: left}}
        return replace(self, names=self.names[rows], coords=self.coords[rows], raw=self.raw[rows], about=about)


def evenly(count: int, most: int | None) -> np.ndarray:
    """Return at most so many of the numbers below ``count``, evenly spread; all where ``most`` is None."""
    return np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int))


def as_seen(
    values: np.ndarray, sees: str, normalisation: dict[str, Any]
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return a section's tiles or features, and the function from some of them to what the network sees, float32.

    Tiles stay as they are, a quarter of the size; features are standardised at once.

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
        return standardise(values, sections, mean, sd, by_section=normalisation["by_section"]), _itself
    if normalisation["by_section"]:  # as `predictors.network.PixelMoments` has them, without torch
        total, squares = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
        for tile in values:
            grey = tile.reshape(-1, 3).astype(np.int64)
            total, squares = total + grey.sum(axis=0), squares + (grey * grey).sum(axis=0)
        count = values[..., 0].size
        mean = total / count
        sd = np.sqrt(np.maximum(squares / count - mean**2, 0)).clip(1.0)
        mean, sd = (np.stack([mean, sd]) / 255).astype(np.float32)

    def scale(tiles: np.ndarray) -> np.ndarray:
        scaled = tiles.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        scaled /= np.float32(255)  # in place: a batch of four thousand tiles is large
        scaled -= mean[:, None, None]
        scaled /= sd[:, None, None]
        return scaled

    return values, scale


def _itself(rows: np.ndarray) -> np.ndarray:
    return rows


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
    folder: Path | None = None,
    anyway: bool = False,
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
    folder
        Where a private folder is made in which tiles lie in the clear meanwhile; the system's if not given.
    anyway
        Go on where the model does not fit the tissue or the slide, and say so.

    Raises
    ------
    InputError
        If the section cannot be read, its pixels are too coarse, the panel is another one, the model is not for it
        (`trust.origin.check_origin`, `trust.gate`), or a spot's values are outside the range that the model was
        calibrated for.
    """
    from histocrypt.data.features import reaches_of
    from histocrypt.pipeline.compatibility import check_fit, unlike_training
    from histocrypt.pipeline.gating import judge
    from histocrypt.pipeline.predict import prepare_section, said_of_surroundings
    from histocrypt.sections.genes import GeneNames, meant_by
    from histocrypt.sections.read import read_path
    from histocrypt.targets.panels import Panel, read_gene_list
    from histocrypt.tissue.ring import ring_reach
    from histocrypt.tissue.tiles import read_places
    from histocrypt.trust.gate import Gate
    from histocrypt.trust.origin import check_origin, origin_words

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
    absent = missing if offered.matrix is None else []
    fits = check_origin(about.get("origin"), section, missing=absent, genes=len(offered), anyway=anyway)
    for note in (*section.notes, *unlike_training(about, section), *fits):
        print(f"note: {note}", file=sys.stderr)
    with scratch(folder) as private:
        sees = about["sees"]
        encoder = about["input"]["encoder"] if sees == "features" else ""
        around = ring_reach(reaches_of(encoder))
        cut, coords, report = prepare_section(about, section, private, tuple(about["outputs"]), around_um=around)
        for note in said_of_surroundings(encoder, section.id, read_places(private / "tiles.h5")):
            print(f"note: {note}", file=sys.stderr)
        gate = Gate.from_dict(about["gate"], {}) if "gate" in about else None
        verdict = judge(gate, about, private, None, tiles=not encoder, file=section.image.path, anyway=anyway)
        if verdict is not None and verdict.reasons:
            print(f"note: {section.id}: {verdict.words}", file=sys.stderr)
        raw = cut.features(encoder) if encoder else np.array(cut.tiles)
        raw, scale = as_seen(raw, sees, about["normalisation"])
        names = cut.names
    keep = _in_range(raw, scale, client, names, section_path, skip=skip_out_of_range)
    dropped = {**report.dropped, **({"out of range": int((~keep).sum())} if not keep.all() else {})}
    if not keep.any():
        raise InputError("no spot is left", file=section_path, value=dropped)
    prepared = Prepared(
        section=section.id,
        names=names[keep],
        coords=coords[keep],
        patient=section.patient or "",
        raw=raw if keep.all() else raw[keep],  # no second copy of a large section
        scale=scale,
        about={
            "um_per_px": float(section.um_per_px),
            "um_per_px_source": section.um_per_px_source,
            "unmeasured_genes": missing,
            "origin": origin_words(about.get("origin")),
            **({} if verdict is None else {"slide": {"verdict": verdict.word, "why": list(verdict.reasons)}}),
            "without_prediction": {str(key): int(n) for key, n in dropped.items()},
        },
    )
    return prepared if spots is None else prepared.only(evenly(len(prepared.names), spots), reason="not asked for")


def _in_range(
    raw: np.ndarray,
    scale: Callable[[np.ndarray], np.ndarray],
    client: Client,
    names: np.ndarray,
    file: Any,
    *,
    skip: bool,
) -> np.ndarray:
    low, high = client.about["input_range"]
    lowest, highest = np.empty(len(raw)), np.empty(len(raw))
    for start in range(0, len(raw), CHUNK):
        flat = scale(raw[start : start + CHUNK]).reshape(-1, raw[0].size)
        lowest[start : start + CHUNK], highest[start : start + CHUNK] = flat.min(axis=1), flat.max(axis=1)
    keep = (lowest >= low) & (highest <= high)  # false for what is no number, too
    if not keep.all() and not skip:
        first = int(np.flatnonzero(~keep)[0])
        worst = lowest[first] if lowest[first] < low else highest[first]
        problem = f"{(~keep).sum()} of {len(keep)} spots are outside the range that the model was calibrated for"
        where = {"file": file, "field": str(names[first]), "value": round(float(worst), 2)}
        fix = "check the image's stain and focus there, or leave such spots out with --skip-out-of-range"
        raise InputError(problem, **where, expected=f"{low:.2f} to {high:.2f}", fix=fix)
    return keep


@dataclass(frozen=True)
class Rows:
    """What the network sees of some spots, as `Prepared.values`: made when a slice of them is asked for."""

    prepared: Prepared
    spots: np.ndarray

    def __len__(self) -> int:
        return len(self.spots)

    def __getitem__(self, which: slice) -> np.ndarray:
        return self.prepared.inputs(self.spots[which])


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
            "about": prepared.about,
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
    messages_needed = -(-(n + (copies_of(n) if apart else n)) // each)
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
        problem = "lists other primes than this engine makes from its parameters"
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
            problem, fix = "is another answer to a request that was answered before", "make new keys, and encrypt again"
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
        raise InputError("already holds something", file=output, field="request.json", fix="choose another folder")
    for path in (output / "request.json", *sorted(output.glob("[0-9]*.ct"))):  # an interrupted request is made anew
        claim(path, mine=partial(messages.is_message, kind="input"), overwrite=None)
    used = next(opened.note("0").parent.glob("*.json"), None)
    if used is not None:
        problem, fix = "were used for a section already", "make new ones: keys are for one section"
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
        problem = "the disk has too little room" if free < wanted else "cannot be written to"
        room, needed = f"{free / 2**30:.2f} GiB free", f"{wanted / 2**30:.2f} GiB"
        raise InputError(problem, file=folder, value=room, expected=needed)
