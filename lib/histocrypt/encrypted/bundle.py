"""The compiled model on disk: ``server/`` is the owner's secret, ``client.json`` is public.

The public part says all that a key owner needs (parameters, needed rotations, how tiles are cut and normalised, the
calibrated range, the panel) and nothing of the weights. Its hash binds keys and messages to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histocrypt.encrypted.messages import LONGEST_HEADER
from histocrypt.encrypted.packing import Layout, blocked, spots_side_by_side
from histocrypt.encrypted.parameters import Parameters, check_security
from histocrypt.encrypted.resnet.keys import bootstrapping_key_bytes
from histocrypt.encrypted.resnet.shifted import Shifted, cells
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json

FORMAT, VERSION = "histocrypt encrypted client", 1
REQUIRED = {
    str: ("model", "title", "sees", "fold", "weights_sha256"),
    dict: ("parameters", "input", "panel", "geometry", "preprocessing", "stain", "normalisation", "study"),
    list: ("rotations", "moduli", "outputs", "input_range", "output_range", "transforms"),
    int: ("level", "batch", "seed"),
}
"""Fields of the public part by their type."""


@dataclass(frozen=True)
class Client:
    """The public part of a compiled model."""

    about: dict[str, Any]
    parameters: Parameters
    file: Path

    @property
    def hash(self) -> str:
        """What keys and messages are bound to."""
        return hash_of(self.about)

    @property
    def batch(self) -> int:
        """Spots that share one set of ciphertexts."""
        return self.about["batch"]

    @property
    def input(self) -> Layout | Shifted:
        """Where inputs lie: (channels, side, side), or (features, batch)."""
        return input_layout(self.about["input"], self.parameters.slots)

    @property
    def output(self) -> Layout:
        """Where outputs lie: (outputs, batch)."""
        return spots_side_by_side(len(self.about["outputs"]), self.batch, self.parameters.slots)

    @property
    def level(self) -> int:
        """Level at which inputs are encrypted."""
        return self.about["level"]

    @property
    def rotations(self) -> list[int]:
        """Rotations whose keys the evaluator needs."""
        return self.about["rotations"]

    @property
    def moduli(self) -> list[int]:
        """The ciphertext primes."""
        return [int(prime) for prime in self.about["moduli"]]

    @property
    def most_input_bytes(self) -> int:
        """The largest input message that is read."""
        return self._most_bytes(self.input, self.level)

    @property
    def most_output_bytes(self) -> int:
        """The largest output message that is read."""
        return self._most_bytes(self.output, 0)

    def _most_bytes(self, layout: Layout | Shifted, level: int) -> int:
        ciphertext = 2 * (level + 1) * (self.parameters.limb_bytes + 64) + 2048  # generously
        return layout.ciphertexts * ciphertext + LONGEST_HEADER

    def evaluation_key_bytes(self) -> int:
        """Return the size of all evaluation keys."""
        return (len(self.rotations) + 1) * self.parameters.switching_key_bytes + bootstrapping_key_bytes(
            self.parameters
        )


def input_layout(described: dict[str, Any], slots: int) -> Layout | Shifted:
    """Return the layout that a client part describes."""
    if described["kind"] == "cells":
        return cells(tuple(described["shape"]), slots, described["factor"], minor=False)
    if described["kind"] == "tiles":
        return blocked(tuple(described["shape"]), slots, factors=described["factors"])
    return spots_side_by_side(*described["shape"], slots)


def hash_of(about: dict[str, Any]) -> str:
    """Return a hash of everything in the client part."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


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
    return parse_client(read_json(path), file=path)


def parse_client(content: Any, *, file: Path | str) -> Client:
    """Check the content of a client part; see `load_client`."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        wanted = "client.json as `histocrypt fhe compile` writes it"
        raise InputError("is no public part of a compiled model, or of another version", file=file, expected=wanted)
    about = {key: value for key, value in content.items() if key not in ("format", "version", "hash")}
    if content.get("hash") != hash_of(about):
        fix = "ask the model's owner for it again"
        raise InputError("was changed since the model was compiled", file=file, field="hash", fix=fix)
    for kind, keys in REQUIRED.items():
        for key in keys:
            if not isinstance(about.get(key), kind):
                raise InputError("is missing or of the wrong type", file=file, field=key, expected=kind.__name__)
    parameters = Parameters.from_dict(about["parameters"])
    check_security(parameters, file=file)
    return Client(about, parameters, Path(file))


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
        return self.folder / "server" / ("network" if bootstrapped else "model.orion")

    def evaluation_bytes(self, workers: int) -> int:
        """Return the memory that evaluating with so many workers takes, estimated before it starts.

        Encoded diagonals and the model's file are held once. Every worker holds the keys, and while the last one reads
        them their file and its copy are in memory too; buffers grow with the size of a key. The constants were fitted
        to peaks of whole commands (`benchmarks/encrypted.py`), 1.05 to 1.3 times what was measured; see
        `engine.restart_to_collect_early` for what a process holds that is no such command.
        """
        keys, one = self.client.evaluation_key_bytes(), self.client.parameters.switching_key_bytes
        held = self.server["encoded_bytes"] + self.server["file_bytes"]
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
