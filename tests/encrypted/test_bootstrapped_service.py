"""A trained ResNet-18 through the verbs of both parties; the ring is far too small to be secure, all else as it is."""

import asyncio
import json
import os
import shutil
import signal
import stat
import threading
from dataclasses import replace

import anndata
import numpy as np
import pytest
from tests.encrypted.serving import refuses, serving, wait_for
from tests.tiny_section import write_tiny_section

from histocrypt.encrypted import compile, messages
from histocrypt.encrypted.bundle import load_bundle
from histocrypt.encrypted.client import send_section
from histocrypt.encrypted.evaluator import evaluate_request
from histocrypt.encrypted.key_owner import Keys, decrypt_response, describe_keys, encrypt_section, keygen
from histocrypt.encrypted.parameters import bootstrapped
from histocrypt.encrypted.resnet import run, send
from histocrypt.encrypted.resnet.sessions import LIMITS, KeptStore
from histocrypt.encrypted.server import serve
from histocrypt.encrypted.sessions import Refused
from histocrypt.errors import InputError
from histocrypt.pipeline.predict import predict_section

SIDE = 24


@pytest.fixture(scope="module")
def patch():
    """Lets small rings pass for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histocrypt.encrypted.bundle.check_security", lambda *_, **__: 128)
        patch.setattr("histocrypt.encrypted.resnet.bundle.check_security", lambda *_, **__: 128)
        patch.setattr("histocrypt.encrypted.resnet.bundle.bootstrapped", lambda: bootstrapped(11))
        yield patch


@pytest.fixture(scope="module")
def trained(tmp_path_factory, patch):
    """A light ``fhe_resnet18`` of a study of three sections, and the section that it did not see."""
    from histocrypt.data.fold_statistics import prepare_folds
    from histocrypt.pipeline.train import train_fold
    from histocrypt.sections.read import read_path
    from histocrypt.study import parse_study
    from histocrypt.tissue.preprocess import preprocess_section

    root = tmp_path_factory.mktemp("bootstrapped")
    patch.setenv("HISTOCRYPT_OUTPUTS", str(root / "outputs"))
    files = [write_tiny_section(root / "data", name, f"P{name}", n_side=4) for name in "ABC"]
    light = {"width": 4, "blocks": [1, 1], "input_px": SIDE, "epochs": 1, "refit": False}
    study = parse_study(
        {
            "name": "tiny",
            "sections": [{"path": str(path)} for path in files],
            "preprocessing": {"tile_um": 200, "tile_px": 48, "min_counts": 1},
            "panel": {"size": 5},
            "models": {"fhe_resnet18": light},
        }
    )
    for path in files:
        section = read_path(path)
        preprocess_section(
            section, settings=study.preprocessing, seed=0, section_path=study.run.section(section.id),
            tiles_path=study.run.tiles(section.id), stain_path=study.run.stain(section.id),
        )  # fmt: skip
    study.run.study.write_text(json.dumps(study.model_dump(mode="json")))
    fold = prepare_folds(study)[0]
    (unseen,) = (path for path in files if path.stem == fold.test_sections[0])
    return train_fold(study, "fhe_resnet18", fold.name)[0].folder, unseen


@pytest.fixture(scope="module")
def parties(trained, tmp_path_factory):
    """The compiled model, keys and a request of one spot, sent twice."""
    model, unseen = trained
    root = tmp_path_factory.mktemp("parties")
    said = compile.compile_model(model, root / "bundle")
    assert "bootstrappings" in said
    keygen(root / "bundle" / "client.json", root / "keys")
    encrypt_section(unseen, root / "keys", root / "request", spots=1, skip_out_of_range=True)
    return root


def test_costs_are_said_before_keys_are_made(parties, capsys):
    bundle = load_bundle(parties / "bundle")
    said = describe_keys(bundle.client)
    cost = run.estimate(json.loads((bundle.model / "steps.json").read_text())["steps"], bundle.client.parameters)
    assert str(cost) in said
    size = (parties / "keys" / "evaluation.keys").stat().st_size
    assert 0.9 * size < bundle.client.evaluation_key_bytes() < 1.1 * size


def test_what_does_not_fit_is_refused(parties, trained, tmp_path):
    with pytest.MonkeyPatch.context() as smaller, refuses("geometry.input_px"):
        smaller.setattr("histocrypt.encrypted.resnet.bundle.bootstrapped", lambda: bootstrapped(8))
        compile.compile_model(trained[0], tmp_path / "large")
    with refuses("--noise"):
        serve(parties / "bundle", token_file=tmp_path / "token", noise=0.1)
    keys, request = parties / "keys" / "evaluation.keys", parties / "request"
    with pytest.MonkeyPatch.context() as little, refuses(None):
        little.setattr("histocrypt.encrypted.resnet.run.ENGINE_GIB", 1e6)
        evaluate_request(request, parties / "bundle", keys, tmp_path / "response")
    header, start = messages.open_message(keys, "evaluation keys")
    bound = {"client": header["client"], "key": "0" * 32}
    messages.write_message(tmp_path / "other", "evaluation keys", keys.read_bytes()[start:], **bound)
    with refuses("key"):
        evaluate_request(request, parties / "bundle", tmp_path / "other", tmp_path / "response")
    shutil.copytree(parties / "bundle", tmp_path / "bundle")
    steps = tmp_path / "bundle" / "server" / "network" / "steps.json"
    plan = json.loads(steps.read_text())
    del plan["bootstrapping_primes"]
    steps.write_text(json.dumps(plan))
    with refuses("bootstrapping_primes", file=steps):
        run.evaluate(steps.parent, keys, [], tmp_path)
    (tmp_path / "bundle" / "server" / "network" / "head.orion").unlink()
    with refuses(None):
        load_bundle(tmp_path / "bundle")


def test_whole_way(parties, trained, tmp_path, capsys):
    """Stopped in a layer and taken up again, ciphertexts give what the model predicts in the clear."""
    model, unseen = trained
    given = parties / "request", parties / "bundle", parties / "keys" / "evaluation.keys", tmp_path / "response"

    class Stopped(Exception):
        pass

    def stop(timing):
        if timing.step == "block0_first":
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histocrypt.encrypted.resnet.request._Progress", lambda *_: stop)
        with pytest.raises(Stopped):
            evaluate_request(*given)
    kept = tmp_path / "response" / "work"
    assert list(kept.glob("*/block0_first.ct"))
    assert "GiB" in capsys.readouterr().err
    evaluate_request(*given, workers=2)
    assert json.loads((tmp_path / "response" / "cost.json").read_text())["workers"] == 1, "two tiles share a refresh"
    assert not kept.exists()
    assert "before" in evaluate_request(*given)
    decrypt_response(tmp_path / "response", parties / "keys", tmp_path / "encrypted.h5ad", noise=0)
    as_in_the_clear(model, unseen, tmp_path)


def as_in_the_clear(model, unseen, folder):
    """Check ``encrypted.h5ad`` there."""
    predict_section(model, unseen, folder / "clear.h5ad")
    found, clear = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("encrypted", "clear"))
    clear = clear[found.obs_names, found.var_names]
    statistics = json.loads((model / "model.json").read_text())["target_statistics"]
    for layer in clear.layers:
        sd = np.array([statistics[f"{layer}:{gene}"]["sd"] for gene in clear.var_names])
        error = np.abs(clear.layers[layer] - found.layers[layer]) / sd
        assert 0 < error.max() < 1e-2


@pytest.fixture
def kept(parties, tmp_path):
    """Make the sessions of a server in this process; jobs do not start."""
    made = []

    def make(**limits):
        if made:
            made.pop().stop()
        how = {"workers": 1, "clients": ["a", "b"], "folder": tmp_path}
        store = KeptStore(load_bundle(parties / "bundle"), limits=replace(LIMITS, **limits), **how)
        store._queue = lambda hosted: setattr(hosted, "running", 1)
        made.append(store)
        return store

    yield make
    made[0].stop()


def take(function, hosted, *given, data, **how):
    """Call what receives a body."""

    async def parts():
        for at in range(0, len(data), 1 << 20):
            yield data[at : at + (1 << 20)]

    return asyncio.run(function(hosted, *given, parts(), **how))


def test_keys_and_tiles_in_pieces(parties, kept, tmp_path):
    """Keys come in pieces, over servers that stop; tiles are checked; a job is asked for and asked about."""
    keys, data = Keys(parties / "keys"), (parties / "keys" / "evaluation.keys").read_bytes()
    request = json.loads((parties / "request" / "request.json").read_text())
    place = {"request": request["request"], "of": request["of"]}
    store = kept(spots=2)
    with pytest.raises(Refused) as error:
        store.cost(3)
    assert error.value.status == 403
    assert store.cost(2)["minutes"] > 0
    with pytest.raises(Refused) as error:
        store.open("a", client=keys.client.hash, size=len(data), count=3)
    assert error.value.status == 403
    hosted = store.open("a", client=keys.client.hash, size=len(data), count=2)
    half = len(data) // 2
    take(store.receive, hosted, 0, data=data[:half])
    with pytest.raises(Refused) as error:
        take(store.receive, hosted, half - 1, data=data[half:])
    assert error.value.status == 409
    with pytest.raises(Refused) as error:
        take(store.evaluate, hosted, data=b"", index=0, **place)
    assert error.value.status == 409

    store = kept(spots=2)
    with pytest.raises(Refused):
        store.get(hosted.name, "b")
    hosted = store.get(hosted.name, "a")
    assert hosted.received == half
    for path in hosted.path.parents[1].rglob("*"):
        if "session-" in str(path):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.name == "session.json"
    take(store.receive, hosted, half, data=data[half:])
    assert hosted.state == "ready"

    first, second = ((parties / "request" / f"{index:05d}.ct").read_bytes() for index in range(2))
    with refuses("index"):
        take(store.evaluate, hosted, data=second, index=0, **place)
    with refuses("sha256"):
        take(store.evaluate, hosted, data=first[:-1] + bytes([first[-1] ^ 1]), index=0, **place)
    assert store.there(hosted, **place) == []
    take(store.evaluate, hosted, data=first, index=0, **place)
    assert store.there(hosted, **place) == [0]
    for other in ({"request": "0" * 32, "of": 2}, {"request": place["request"], "of": 1}):
        with pytest.raises(Refused) as error:
            take(store.evaluate, hosted, data=first, index=0, **other)
        assert error.value.status == 409
    with pytest.raises(Refused) as error:
        store.answer(hosted, index=0, **place)
    assert error.value.status == 409, "nothing was started"
    store.start(hosted, **place)
    assert hosted.running
    assert isinstance(store.answer(hosted, index=0, **place), str)
    hosted.running, hosted.failure = 0, "it broke off"
    with pytest.raises(Refused) as error:
        store.answer(hosted, index=0, **place)
    assert error.value.status == 422
    (hosted.path.with_name("response") / "00000.ct").write_bytes(b"an answer")
    assert store.answer(hosted, index=0, **place) == b"an answer"

    store = kept(spots=2)
    assert store.get(hosted.name, "a").state == "ready"
    with refuses("scratch"):
        KeptStore(load_bundle(parties / "bundle"), workers=1, clients=["a"], limits=LIMITS, folder=tmp_path)
    store.end(store.get(hosted.name, "a"))
    assert wait_for(lambda: not hosted.path.parent.exists())  # the job that a new server took up ends first


def test_keys_of_another_kind_are_refused_and_go(parties, kept):
    """Bytes that are no keys cost the session."""
    store, size = kept(), 5000
    hosted = store.open("a", client=Keys(parties / "keys").client.hash, size=size)
    with refuses("header"):
        take(store.receive, hosted, 0, data=bytes(size))
    assert not hosted.path.parent.exists()
    with pytest.raises(Refused):
        store.get(hosted.name, "a")


@pytest.mark.slow
def test_served_and_killed_in_the_middle(parties, trained, tmp_path, monkeypatch):
    """Over HTTP: a server dies in the job; the next one and the same call go on with keys, tiles and layers."""
    model, unseen = trained
    (tmp_path / "sitecustomize.py").write_text(
        "import histocrypt.encrypted.bundle as bundle\nbundle.check_security = lambda *_, **__: 128\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(send, "PATIENCE", 0)
    monkeypatch.setattr(send, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("histocrypt.encrypted.remote.ATTEMPTS", 2)
    seen, progress = [], send._progress
    monkeypatch.setattr(send, "_progress", lambda *given: (seen.append(progress(*given)), seen[-1])[1])
    lasting = tmp_path / "lasting"
    lasting.mkdir()

    def go(server):
        how = {"client": "client-0", "noise": 0, "spots": 1, "skip_out_of_range": True, "keys": tmp_path / "keys"}
        address = {"server": server.address, "token_file": server.token_file}
        return send_section(unseen, output=tmp_path / "encrypted.h5ad", **address, **how)

    def kill(server):
        def refreshed():
            """Whether the first refresh is over: the second one takes longer than it takes to look."""
            told = list(lasting.glob("**/progress.json"))
            return told and json.loads(told[0].read_text())["layer"] >= 3

        assert wait_for(refreshed)
        os.kill(server.process.pid, signal.SIGKILL)

    with serving(parties / "bundle", tmp_path / "first", "--scratch", lasting) as server:
        killer = threading.Thread(target=kill, args=(server,))
        killer.start()
        with pytest.raises(InputError) as error:
            go(server)
        killer.join()
        assert error.value.file == server.address
    size = next(tmp_path.glob("keys/*/evaluation.keys")).stat().st_size
    assert not (tmp_path / "encrypted.h5ad").exists()
    seen.clear()
    with serving(parties / "bundle", tmp_path / "second", "--scratch", lasting) as server:
        done = go(server)
        assert "found again" in server.log.read_text()
        assert not list(lasting.glob("*/session-*"))
    assert done.bytes_up < size / 10
    assert not any(f" {layer} of" in said for said in seen for layer in (1, 2)), seen
    assert not (tmp_path / "keys").exists()
    as_in_the_clear(model, unseen, tmp_path)
