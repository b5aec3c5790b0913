"""A model of colours that judges slides, and a server of it, started as its owner starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import httpx
import numpy as np
import pytest
from tests.tiny_section import write_tiny_section
from tests.training.conftest import make_study, write_section

from histocrypt.http.access import read_tokens

UM_PER_PX = 4.0
"""Of the tiles and the slides here."""


@dataclass
class Served:
    """A server, and what a test needs to talk to it."""

    process: subprocess.Popen
    address: str
    token_file: Path
    scratch: Path
    log: Path

    def client(self, name: str = "client-0", **headers: str) -> httpx.Client:
        token = read_tokens(self.token_file)[name]
        headers = {"Authorization": f"Bearer {token}", **headers}
        return httpx.Client(base_url=self.address, headers=headers, timeout=600, trust_env=False)


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A ridge of colours with its gate, and the tiles of one of its training sections, (n, side, side, 3)."""
    from histocrypt.data.fold_statistics import prepare_folds
    from histocrypt.pipeline.train import train_fold
    from histocrypt.tissue.focus import sharpness

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path_factory.mktemp("model")))
        study = make_study(preprocessing={"tile_um": 144, "tile_px": 36, "min_counts": 1})
        for patient in "abcd":
            section = write_section(study.run, patient)
            with h5py.File(study.run.tiles(section)) as file:
                tiles = file["img"][:]
            adata = anndata.read_h5ad(study.run.section(section))
            adata.obs["sharpness"] = sharpness(tiles)
            adata.write_h5ad(study.run.section(section))
        prepare_folds(study)
        train_fold(study, "colour_ridge", "fold_a", device="cpu")
        return study.run.model("colour_ridge", "fold_a"), tiles


@pytest.fixture(scope="session")
def slide(tmp_path_factory) -> Path:
    """A picture of pink tissue, unlike what the model has seen."""
    return write_tiny_section(tmp_path_factory.mktemp("slide"), "A").with_suffix(".png")


@contextmanager
def serving(model: Path, folder: Path, *options: str) -> Iterator[Served]:
    """Run ``histocrypt serve``."""
    scratch, log, token_file = folder / "scratch", folder / "log", folder / "token"
    scratch.mkdir(parents=True)
    token_file.touch(mode=0o600)
    token_file.write_text("".join(f"client-{number} token-of-it-{os.urandom(12).hex()}\n" for number in range(2)))
    command = [sys.executable, "-m", "histocrypt", "serve", "--model", model, "--port", "0", "--scratch", scratch]
    command += ["--token-file", token_file, *options]
    with log.open("w") as written:
        process = subprocess.Popen(list(map(str, command)), stderr=written)
    try:
        for _ in range(6000):
            found = re.search(r"serving .* at (http://\S+),", log.read_text())
            if found or process.poll() is not None:
                break
            time.sleep(0.1)
        assert found, log.read_text()
        yield Served(process, found[1], token_file, scratch, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


@pytest.fixture(scope="session")
def served(colours, tmp_path_factory) -> Iterator[Served]:
    """A server of that model that takes 1 MiB and 1 million pixels."""
    options = ("--max-mib", "1", "--max-megapixels", "1", "--per-minute", "1000")
    with serving(colours[0], tmp_path_factory.mktemp("served"), *options) as server:
        yield server


@pytest.fixture
def client(served) -> Iterator[httpx.Client]:
    """One of its clients."""
    with served.client() as client:
        yield client
