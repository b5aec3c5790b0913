"""A server in a process of its own, started as its owner starts it, and what its answers should be like."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anndata
import httpx
import numpy as np
import pytest

from histocrypt.encrypted.key_owner import Keys, Request
from histocrypt.encrypted.remote import Server
from histocrypt.errors import InputError
from histocrypt.http.access import read_tokens


@dataclass
class Running:
    """A server, and what a test needs to talk to it."""

    process: subprocess.Popen
    address: str
    token_file: Path
    scratch: Path
    log: Path
    authority: Path | None

    def __post_init__(self):
        self.token = next(iter(read_tokens(self.token_file).values()))
        self.http = httpx.Client(
            base_url=self.address,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=300,
            trust_env=False,
            verify=True if self.authority is None else ssl.create_default_context(cafile=str(self.authority)),
        )

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def connect(self) -> Server:
        return Server(self.address, self.token_file, name="client-0", authority=self.authority)

    def open(self, keys: Keys) -> str:
        """Open a session without keys; return its path."""
        size = (keys.folder / "evaluation.keys").stat().st_size
        answer = self.http.post("/v1/sessions", json={"client": keys.client.hash, "bytes": size})
        assert answer.status_code == 201, answer.text
        return f"/v1/sessions/{answer.json()['session']}"

    def post(self, session: str, request: Request, index: int, data, **changes) -> httpx.Response:
        where = f"{session}/requests/{changes.get('name', request.name)}/{index}"
        return self.http.post(where, params={"of": request.batches}, content=data)

    def is_well(self) -> bool:
        return self.process.poll() is None and self.http.get("/v1/client").status_code == 200


@contextmanager
def serving(
    bundle: Path, folder: Path, *options, tokens: int = 1, largest_file: int | None = None
) -> Iterator[Running]:
    """Run ``histocrypt fhe serve``; ``largest_file`` bytes is what the kernel lets it write into one file."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch, log, token_file = folder / "scratch", folder / "log", folder / "token"
    scratch.mkdir()
    token_file.touch(mode=0o600)
    token_file.write_text("".join(f"client-{number} token-of-it-{os.urandom(12).hex()}\n" for number in range(tokens)))
    command = [sys.executable, "-m", "histocrypt", "fhe", "serve", "--bundle", bundle, "--port", "0"]
    command += ["--token-file", token_file, "--scratch", scratch, *options]

    def limit():
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    with log.open("w") as written:
        process = subprocess.Popen(list(map(str, command)), stderr=written, preexec_fn=limit)
    try:
        serves = re.compile(r"serving .* at (https?://\S+),")
        wait_for(lambda: serves.search(log.read_text()) or process.poll() is not None)
        found = serves.search(log.read_text())
        assert found, log.read_text()
        authority = options[options.index("--certificate") + 1] if "--certificate" in options else None
        yield Running(process, found[1], token_file, scratch, log, authority)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


def wait_for(condition, seconds: float = 300.0) -> bool:
    """Whether something becomes true in time, on a machine that has much else to do, too."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


def agree(world, found, clear):
    """Check that a file's predictions are the clear ones but for the scheme's error, by name and in this order."""
    found = anndata.read_h5ad(found)
    assert list(clear.obs_names) == list(found.obs_names)
    assert list(clear.var_names) == list(found.var_names)
    statistics = json.loads((world.model / "model.json").read_text())["target_statistics"]
    for layer in clear.layers:
        sd = np.array([statistics[f"{layer}:{gene}"]["sd"] for gene in clear.var_names])
        assert 0 < (np.abs(clear.layers[layer] - found.layers[layer]) / sd).max() < 1e-2


def refused(answer: httpx.Response, status: int, says: str):
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert list(error) == ["error"]
    assert says in error["error"]
    assert "\n" not in error["error"]
    assert "Traceback" not in error["error"]


@contextmanager
def refuses(*fields: str | None, file: Path | None = None):
    """What is done inside is refused, for one of these fields (of this file)."""
    with pytest.raises(InputError) as error:
        yield error
    assert error.value.field in fields, error.value
    assert file is None or error.value.file == file


def in_the_clear(blocks: dict, folds: int, values: np.ndarray) -> np.ndarray:
    """Do what the engine does: products with rotations, then sums of rotations by slots/2, slots/4, ..."""
    result = np.zeros((1 + max(row for row, _ in blocks), values.shape[1]))
    for (row, column), found in blocks.items():
        for offset, diagonal in found.items():
            result[row] += diagonal * np.roll(values[column], -offset)
    for step in range(folds):
        result += np.roll(result, -(values.shape[1] >> (step + 1)), axis=1)
    return result
