"""A trained ResNet-18 through the verbs of both parties; the ring is far too small to be secure, all else as it is."""

import json
import shutil

import anndata
import numpy as np
import pytest
from tests.encrypted.serving import refuses
from tests.tiny_section import write_tiny_section

from histocrypt.encrypted import compile, messages
from histocrypt.encrypted.bundle import load_bundle
from histocrypt.encrypted.evaluator import evaluate_request
from histocrypt.encrypted.key_owner import decrypt_response, describe_keys, encrypt_section, keygen
from histocrypt.encrypted.parameters import bootstrapped
from histocrypt.encrypted.resnet import run
from histocrypt.encrypted.server import serve
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
    with refuses("parameters.bootstrapping"):
        serve(parties / "bundle", token_file=tmp_path / "token")
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
        patch.setattr("histocrypt.encrypted.resnet.request._Progress", lambda _: stop)
        with pytest.raises(Stopped):
            evaluate_request(*given)
    kept = tmp_path / "response" / "work"
    assert list(kept.glob("*/block0_first.ct"))
    assert "GiB" in capsys.readouterr().err
    evaluate_request(*given, workers=2)
    assert json.loads((tmp_path / "response" / "cost.json").read_text())["workers"] == 2
    assert not kept.exists()
    assert "before" in evaluate_request(*given)
    decrypt_response(tmp_path / "response", parties / "keys", tmp_path / "encrypted.h5ad", noise=0)
    predict_section(model, unseen, tmp_path / "clear.h5ad")
    found, clear = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("encrypted", "clear"))
    clear = clear[found.obs_names, found.var_names]
    statistics = json.loads((model / "model.json").read_text())["target_statistics"]
    for layer in clear.layers:
        sd = np.array([statistics[f"{layer}:{gene}"]["sd"] for gene in clear.var_names])
        error = np.abs(clear.layers[layer] - found.layers[layer]) / sd
        assert 0 < error.max() < 1e-2
