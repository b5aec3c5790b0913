"""The compiled model on disk: ``server/`` is the owner's secret, ``client.json`` is public.

The public part says all that a key owner needs (parameters, needed rotations, how tiles are cut and normalised, the
calibrated range, the panel) and nothing of the weights. Its hash binds keys and messages to it.

A model has up to two forms. ``single``: a tile, or a few vectors of features, in a set of ciphertexts. ``batch``:
hundreds of tiles in one (`histocrypt.encrypted.batch`). Each has parameters, keys and a hash of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histocrypt.encrypted.batch.client import BatchClient
from histocrypt.encrypted.parameters import Parameters, check_security
from histocrypt.encrypted.single import Client, hash_of
from histocrypt.encrypted.told import check_told
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json, write_json

FORMAT, VERSION = "histocrypt encrypted client", 2
MODEL = "model.orion.xz"
"""The network of the form `single`, where nothing is bootstrapped."""
SECTION = 1000
"""Spots of a section of which nothing is known."""
AGAIN = 3
"""At least every so-manieth spot is sent again, in random places: what comes back must agree."""
BREAK_EVEN = 8
"""Messages of the form ``single`` from which on a batch takes less time of both sides together: 4 tiles or 64 vectors
of features, each sent twice. In CPU seconds it is 3 tiles at depth 5, fewer at depth 9, and 59 vectors; in wall
seconds 7 tiles (`benchmarks/encrypted_section.py --spots 2 8`)."""
REQUIRED = {
    str: ("model", "title", "sees", "fold", "weights_sha256"),
    dict: ("parameters", "input", "panel", "geometry", "preprocessing", "stain", "normalisation", "study"),
    list: ("rotations", "moduli", "outputs", "input_range", "output_range", "transforms"),
    int: ("level", "batch", "seed"),
}
"""Fields of the public part by their type."""


def forms(client: Client) -> dict[str, Client]:
    """Return a model in each of its forms, by the hash that keys and messages are bound to; ``single`` comes first."""
    single = Client(client.about, Parameters.from_dict(client.about["parameters"]), client.file)
    return {form.hash: form for form in (single, *BatchClient.of(client.about, client.file))}


def copies_of(n: int) -> int:
    """Return how many places beyond one for each spot are the fewest."""
    return -(-n // AGAIN)


def best_form(client: Client, spots: int | None, *, wanted: str | None = None) -> Client:
    """Return the form for so many spots (None: a section): `batch` from where it takes less time, or the one wanted.

    Raises
    ------
    InputError
        If the model does not have the form that is wanted.
    """
    single, *batches = forms(client).values()
    spots = spots or SECTION
    if wanted is None:
        wanted = "single" if 2 * spots < BREAK_EVEN * single.batch or not batches else "batch"
    if wanted == "single":
        return single
    if wanted != "batch" or not batches:
        raise unknown_name("form", wanted, ("single", *(["batch"] if batches else [])), field="--form")
    return min(batches, key=lambda form: form.seconds(spots + copies_of(spots)))


def write_client(path: Path, about: dict[str, Any]) -> None:
    """Write the public part."""
    write_json(path, {"format": FORMAT, "version": VERSION, **about, "hash": hash_of(about)})


def is_client(path: Path) -> bool:
    """Return whether a file is a public part of a compiled model, of any version."""
    try:
        content = read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def load_client(path: str | Path) -> Client:
    """Read and check a client part: its hash, its fields, and the security of its parameters.

    Parameters
    ----------
    path
        ``client.json``, or the folder that holds it.

    Raises
    ------
    InputError
        If it is missing, damaged, changed by hand, or its parameters give less than 128 bits of security.
    """
    path = Path(path)
    path = path / "client.json" if path.is_dir() else path
    try:
        content = read_json(path)
    except InputError as error:
        fix = "`histocrypt fhe compile` writes client.json; a key owner gets it from the model's owner"
        raise error.of_file(path, fix=fix) from error
    return parse_client(content, file=path)


def parse_client(content: Any, *, file: Path | str) -> Client:
    """Check the content of a client part; see `load_client`."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        wanted = "client.json as `histocrypt fhe compile` writes it"
        raise InputError("is not the public part of a compiled model of this version", file=file, expected=wanted)
    about = {key: value for key, value in content.items() if key not in ("format", "version", "hash")}
    if content.get("hash") != hash_of(about):
        fix = "ask the model's owner for it again"
        raise InputError("was changed since the model was compiled", file=file, field="hash", fix=fix)
    for kind, keys in REQUIRED.items():
        for key in keys:
            if not isinstance(about.get(key), kind):
                raise InputError("is missing or of the wrong type", file=file, field=key, expected=kind.__name__)
    for key in ("input_range", "output_range"):  # the evaluator's own words, and noise is scaled by them
        ends = about[key]
        whole = len(ends) == 2 and all(isinstance(end, int | float) and math.isfinite(end) for end in ends)
        if not whole or not ends[0] < ends[1]:
            raise InputError(
                "is not a range", file=file, field=key, value=ends, expected="two numbers, the smaller first"
            )
    check_told(about, file=file)
    parameters = Parameters.from_dict(about["parameters"])
    check_security(parameters, file=file)
    client = Client(about, parameters, Path(file))
    forms(client)  # refused now, if at all
    return client


@dataclass(frozen=True)
class Bundle:
    """A compiled model, as its owner has it."""

    folder: Path
    client: Client
    server: dict[str, Any]

    @property
    def model(self) -> Path:
        """The compiled network: a file; where it is bootstrapped, a folder with a file for each layer."""
        bootstrapped = self.client.parameters.bootstrapping is not None
        return self.folder / "server" / ("network" if bootstrapped else MODEL)

    @property
    def integers(self) -> Path:
        """The network of the form ``batch``."""
        return self.folder / "server" / "batch.safetensors"

    def evaluation_bytes(self, workers: int, form: Client) -> int:
        """Return the memory that evaluating with so many workers takes, estimated before it starts.

        A batch holds the largest map's inputs and outputs, whoever asks. In the form ``single`` encoded diagonals and
        the model's file are held once. Every worker holds the keys, and while the last one reads them their file and
        its copy are in memory too; buffers grow with the size of a key. The constants were fitted to peaks of whole
        commands (`benchmarks/encrypted.py`), 1.05 to 1.3 times what was measured; see
        `engine.restart_to_collect_early` for what a process holds that is no such command.
        """
        keys, one = form.evaluation_key_bytes(), form.parameters.switching_key_bytes
        if form.form == "batch":
            return int(self.server["batch_bytes"] + 2 * keys) + (250 << 20)
        held = self.server["encoded_bytes"] + self.server["model_bytes"]
        return int(held + 1.05 * (workers + 1.5) * keys + 20 * workers * one) + (200 << 20)


def load_bundle(folder: str | Path) -> Bundle:
    """Read a compiled model; `InputError` where a part is missing or does not belong to the other."""
    folder = Path(folder)
    client = load_client(folder / "client.json")
    server = read_json(folder / "server" / "server.json")
    if not isinstance(server, dict) or server.get("client") != client.hash:
        problem, fix = "the server part belongs to another client part", "compile the model again"
        raise InputError(problem, file=folder, field="server/server.json", fix=fix)
    bundle = Bundle(folder, client, server)
    files = sorted(bundle.model.glob("*")) if bundle.model.is_dir() else [bundle.model]
    if sum(file.stat().st_size for file in files if file.is_file()) != server.get("file_bytes"):
        problem, fix = "the compiled network is missing or was cut short", "compile the model again"
        raise InputError(problem, file=bundle.model, fix=fix)
    return bundle
