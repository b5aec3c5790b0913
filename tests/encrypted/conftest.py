"""A small network for encryption, compiled, with keys: N = 2^13, 24 px tiles, three levels."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import anndata
import pytest
from tests.encrypted.serving import serving
from tests.tiny_section import write_tiny_section

from histocrypt.encrypted import messages
from histocrypt.encrypted.bundle import load_client
from histocrypt.encrypted.key_owner import Keys, Request, encrypt, keygen, prepare
from histocrypt.pipeline.predict import predict_section


@dataclass(frozen=True)
class World:
    """What the parties have, each in a folder of its own."""

    outputs: Path
    model: Path
    bundle: Path
    keys: Path
    """For tiles one by one."""
    batch_keys: Path
    """For a batch."""
    section: Path
    """A section that the model did not see."""
    head: Path
    """A model of frozen features."""
    other_network: Path
    """Not made for encryption, as the next."""
    baseline: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """Train, compile and make keys once; tests must not change these folders."""
    from histocrypt.data.fold_statistics import prepare_folds
    from histocrypt.encrypted.compile import compile_model
    from histocrypt.encrypted.key_owner import keygen
    from histocrypt.pipeline.train import train_fold
    from histocrypt.sections.read import read_path
    from histocrypt.study import parse_study
    from histocrypt.tissue.preprocess import preprocess_section

    root = tmp_path_factory.mktemp("encrypted")
    files = [write_tiny_section(root / "data", name, f"P{name}") for name in "ABC"]
    study = parse_study(
        {
            "name": "tiny",
            "sections": [{"path": str(path)} for path in files],
            "preprocessing": {"tile_um": 200, "tile_px": 48, "min_counts": 1},
            "panel": {"size": 12},
            "models": {
                "fhe_cnn": {"depth": 3, "width": 0.25, "input_px": 24, "epochs": 2},
                "fhe_head": {"components": 20},
                "vision_mlp": {"width": 0.25, "input_px": 24, "epochs": 1},
            },
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(root / "outputs"))
        for path in files:
            section = read_path(path)
            preprocess_section(
                section, settings=study.preprocessing, seed=0, section_path=study.run.section(section.id),
                tiles_path=study.run.tiles(section.id), stain_path=study.run.stain(section.id),
            )  # fmt: skip
        study.run.study.write_text(json.dumps(study.model_dump(mode="json")))
        fold = prepare_folds(study)[0]
        names = ("fhe_cnn", "fhe_head", "vision_mlp", "mean_profile")
        cnn, head, other, baseline = (train_fold(study, name, fold.name)[0].folder for name in names)
    compile_model(cnn, root / "owner")
    keygen(root / "owner" / "client.json", root / "keys", spots=1)
    keygen(root / "owner" / "client.json", root / "batch")
    (unseen,) = (path for path in files if path.stem == fold.test_sections[0])
    return World(root / "outputs", cnn, root / "owner", root / "keys", root / "batch", unseen, head, other, baseline)


@pytest.fixture(scope="session")
def running(world, tmp_path_factory):
    """A server for two clients."""
    with serving(world.bundle, tmp_path_factory.mktemp("serving"), tokens=2) as running:
        yield running


@pytest.fixture(scope="session")
def section(tmp_path_factory):
    """A small one."""
    return write_tiny_section(tmp_path_factory.mktemp("section"), "A", "PA", n_side=3)


@pytest.fixture(scope="session")
def clear(world, section, tmp_path_factory):
    path = tmp_path_factory.mktemp("clear") / "clear.h5ad"
    predict_section(world.model, section, path)
    return anndata.read_h5ad(path)


@pytest.fixture(scope="session")
def other_keys(world, tmp_path_factory):
    """Another client's."""
    folder = tmp_path_factory.mktemp("other") / "keys"
    keygen(world.bundle / "client.json", folder, spots=1)
    return folder


@pytest.fixture(scope="module")
def session(world, running):
    """An open session of the first client; its path."""
    with running.connect() as server, server.session(Keys(world.keys)) as opened:
        yield opened.path


@pytest.fixture(scope="session")
def encrypted(world, section):
    """A request and its first two input messages."""
    keys = Keys(world.keys)
    prepared = prepare(keys.client, section)
    request, owner = Request.of(prepared, keys.client, keys.bound), keys.encryptor()
    data = [
        messages.pack("input", b"".join(request.encrypt(index, prepared, owner)), **request.place(index))
        for index in range(2)
    ]
    return request, data


@pytest.fixture(scope="session")
def answered(world, tmp_path_factory):
    """A request, tile by tile, and its response made by the command in a process of its own."""
    folder = tmp_path_factory.mktemp("answered")
    encrypt(prepare(load_client(world.bundle), world.section), Keys(world.keys), folder / "request")
    command = [sys.executable, "-m", "histocrypt", "fhe", "evaluate", folder / "request", "--bundle", world.bundle]
    command += ["--evaluation-keys", world.keys / "evaluation.keys", "-o", folder / "response"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder
