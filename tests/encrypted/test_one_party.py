"""orion-fhe: the real package in a process of its own, on networks small enough for a test; always one party."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from histocrypt.encrypted import one_party, orion
from histocrypt.encrypted.compile import lowered_model
from histocrypt.encrypted.lowering import lower
from histocrypt.errors import InputError
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.predictions import read_prediction
from histocrypt.study import parse_study

try:
    HERE = orion.metadata.version(orion.PACKAGE) == orion.VERSION
except orion.metadata.PackageNotFoundError:
    HERE = False
real = pytest.mark.skipif(not HERE, reason=f"{orion.PACKAGE} {orion.VERSION} is not installed; {orion.WHEELS}")


def random_network(*, depth: int, side: int, outputs: int = 6, **shape):
    import torch

    from histocrypt.models.fhe import FheCnn

    torch.manual_seed(0)
    network = FheCnn(outputs, depth=depth, side=side, **shape)
    with torch.no_grad():
        network(torch.randn(32, 3, side, side))  # batch norms that are not trivial
    network.eval()
    lowered = lower(network, (3, side, side))
    about = {"depth": depth, "width": shape["width"], "side": side, "outputs": outputs}
    return network, lowered, orion.plain(network, lowered, about)


@real
def test_a_head_on_ciphertexts_is_the_head_in_the_clear(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(world.outputs))
    experiment = one_party.run_experiment(world.head, world.section, tmp_path / "trial", spots=2)
    found, table = experiment.found, one_party.table(experiment.found, experiment.exact, experiment.sd)
    assert found.outputs["ciphertexts"].shape == experiment.exact.shape == (2, len(experiment.sd))
    assert not np.array_equal(found.outputs["ciphertexts"], found.outputs["clear"])  # it was encrypted: there is noise
    assert table["largest error, sd"].max() < 1e-3
    assert table["parties"].tolist() == ["in the clear", "in the clear", "one party"]
    said = experiment.cost()
    assert said["parties"] == "one party"
    assert said["engine"] == "orion-fhe 1.0.2"
    assert 0 < said["peak_gib"]["process"] < said["stated_gib"]
    written = read_prediction(experiment.prediction).uns["prediction"]
    assert (written["engine"], written["parties"]) == ("orion-fhe 1.0.2", "one party")
    assert sorted(path.name for path in (tmp_path / "trial").iterdir()) == ["clear.h5ad", "prediction.h5ad"]


@real
def test_pooling_is_merged_and_squares_are_squares():
    """Pooled over 2 x 2: without merging it would be a layer more, and a level that the parameters do not have."""
    network, lowered, plain = random_network(depth=3, side=16, width=0.03, pool=1)
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    found = orion.evaluate(plain, x)
    for way in orion.WAYS:
        assert np.abs(found.outputs[way] - lowered(x)).max() < 1e-3
    assert found.peak_gib["ciphertexts"] < found.stated_gib


@pytest.mark.slow
@real
@pytest.mark.parametrize("depth", [3, 5])
def test_a_network_of_usual_size(depth):
    _, lowered, plain = random_network(depth=depth, side=24 if depth == 3 else 64, outputs=50, width=1.0, pool=1)
    x = np.random.default_rng(0).normal(size=(1, *lowered.maps[0].source))
    found = orion.evaluate(plain, x)
    assert np.abs(found.outputs["ciphertexts"] - lowered(x)).max() < 1e-3 * lowered(x).std()
    assert found.peak_gib["ciphertexts"] < found.stated_gib < 1.5 * found.peak_gib["ciphertexts"]


def test_weights_are_the_models_own(world, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(world.outputs))
    import torch

    from histocrypt.models.fhe import CLEAR

    loaded = load_model(world.model, device="cpu")
    plain, (_, lowered) = orion.network_of(loaded), lowered_model(loaded)
    layers = torch.nn.ModuleDict({"layers": torch.nn.Sequential(*orion.layers(plain.shape, CLEAR))}).eval()
    layers.load_state_dict({name: torch.from_numpy(value) for name, value in plain.weights.items()})
    x = np.random.default_rng(0).normal(size=(2, *lowered.maps[0].source))
    with torch.no_grad():
        y = layers["layers"](torch.from_numpy(x.astype(np.float32))).numpy()
    np.testing.assert_allclose(y, lowered(x), rtol=1e-4, atol=1e-4)


def test_what_writes_keys_or_decrypts_on_the_way_stays_off():
    _, _, plain = random_network(depth=3, side=8, width=0.03, pool=1)
    settings = orion._config(plain.parameters)
    assert settings["orion"]["io_mode"] == "none"
    assert settings["orion"]["debug"] is False
    assert settings["ckks_params"]["H"] == 2 * 2**13 // 3  # uniform ternary, as the security is judged


def test_without_memory_or_the_package_it_is_one_sentence(monkeypatch):
    _, _, plain = random_network(depth=3, side=8, width=0.03, pool=1)
    huge = replace(plain, shape={**plain.shape, "side": 64, "width": 64.0})
    assert huge.stated_gib > plain.stated_gib > 0
    monkeypatch.setattr(orion, "VERSION", "0.0")
    with pytest.raises(InputError) as refused:
        orion.check(plain)
    assert (refused.value.field, refused.value.value) == ("engine", "orion")
    monkeypatch.setattr(orion, "PACKAGE", "no-such-package-of-this-name")
    assert "no-such-package-of-this-name is not here" in orion.unable(plain)


@real
def test_short_memory_is_said_before_anything_starts(monkeypatch):
    _, _, plain = random_network(depth=3, side=8, width=0.03, pool=1)
    monkeypatch.setattr(orion, "BASE_GIB", 1e6)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(InputError) as refused:
        orion.evaluate(plain, np.zeros((1, 3, 8, 8)))
    assert refused.value.field == "engine"


def test_a_bound_on_diagonals_holds():
    """Counted by brute force on the layout that orion-fhe documents: channels between the points of a coarser grid."""
    network, lowered, plain = random_network(depth=3, side=16, width=0.03, pool=1)
    convolution, last = lowered.maps
    bounds = list(orion._diagonals(plain.shape))
    slots, gap = plain.parameters.slots, 8

    def place(channel, row, column, side=16):
        plane, rest = divmod(channel, gap**2)
        down, right = divmod(rest, gap)
        return plane * side**2 + (row * gap + down) * side + column * gap + right

    _, height, width = convolution.target
    where = np.array(
        [place(c, r, k) for c in range(convolution.target[0]) for r in range(height) for k in range(width)]
    )
    coo = convolution.matrix.tocoo()
    assert len(set(((coo.col - where[coo.row]) % slots).tolist())) <= bounds[0]
    coo = last.matrix.tocoo()
    assert len(set(((where[coo.col] - coo.row) % slots).tolist())) <= bounds[1]


def test_nothing_of_the_library_imports_it_outside_its_own_process():
    code = "import sys, histocrypt.encrypted.one_party; print('orion' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


STUDY = {
    "name": "s",
    "sections": [{"path": "demo"}],
    "models": {"fhe_head": {}, "vision_mlp": {"width": 0.25}},
}


@pytest.mark.parametrize(
    ("encrypted", "models", "field", "value"),
    [
        ({"engine": "orion"}, None, "encrypted.spots", "all"),
        ({"engine": "orion", "spots": 5}, {"vision_mlp": {}}, "encrypted.engine", "orion"),
        ({"engine": "orion", "spots": 5, "beside_orion": ["fhe_head"]}, None, "encrypted.beside_orion", ["fhe_head"]),
        ({"engine": "orion", "spots": 5, "bootstrapped_spots": 3}, None, "encrypted.bootstrapped_spots", 3),
        ({"engine": "orion_v2", "spots": 5}, None, "encrypted.engine", "orion_v2"),
        ({"beside_orion": ["vision_mlp"]}, None, "encrypted.beside_orion", None),
        ({"beside_orion": ["fhe_cnn"]}, None, "encrypted.beside_orion", None),
    ],
)
def test_a_wrong_engine_is_refused_when_the_study_is_read(encrypted, models, field, value):
    with pytest.raises(InputError) as refused:
        parse_study({**STUDY, **({"models": models} if models else {}), "encrypted": encrypted})
    assert (refused.value.field, refused.value.value) == (field, value)


def test_finished_studies_keep_their_hash():
    plain = parse_study({**STUDY, "encrypted": {"spots": 5}})
    assert parse_study({**STUDY, "encrypted": {"spots": 5, "engine": "two_party"}}).hash() == plain.hash()
    assert parse_study({**STUDY, "encrypted": {"spots": 5, "engine": "orion"}}).hash() != plain.hash()


def test_an_engine_of_one_party_has_a_stage_of_its_own(tmp_path, monkeypatch):
    from histocrypt.workflow.outline import Outline

    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    size = {"spots": 200, "genes": 100, "values": 20_000, "decoded_mpx": 4.0}
    rows = [{"section": f"S_{i}", "patient": f"P_{i}", "files": [], "read_as": "demo", "size": size} for i in range(4)]
    folds = {"scheme": "group_k_fold", "n": 2}

    def outline(**encrypted):
        return Outline(parse_study({**STUDY, "folds": folds, "encrypted": {"spots": 5, **encrypted}}), rows)

    two, beside, one = outline(), outline(beside_orion=["fhe_head"]), outline(engine="orion")
    (there,) = one.by_stage["51_one_party"]
    assert one.by_stage["50_fhe_inference"] == two.by_stage["51_one_party"] == []
    assert all(one.run.one_party in path.parents for path in [*there.makes, *there.leaves])
    (plain,), (more,) = two.by_stage["50_fhe_inference"], beside.by_stage["50_fhe_inference"]
    assert plain.depends == 5  # a finished run of before stays finished
    assert more.depends != plain.depends
    assert more.asks().seconds > plain.asks().seconds
    assert there.asks().memory_gib > 1
    assert set(there.makes) <= set(one.by_stage["70_evaluation"][-1].reads)


def test_what_one_party_found_is_never_among_the_encrypted(tmp_path, monkeypatch):
    from histocrypt.data.folds import Fold
    from histocrypt.evaluation import agreement
    from histocrypt.report import parts

    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    study = parse_study({**STUDY, "encrypted": {"engine": "orion", "spots": 5}})
    monkeypatch.setattr(agreement, "load_folds", lambda _: [Fold])
    monkeypatch.setattr(agreement, "held_out_sections", lambda *_: {"S_1": "fold_1"})
    folder = agreement.save_agreement(study, "fhe_head", "S_1", {"parties": "one party"}, engine="orion")
    assert folder == study.run.one_party / "fhe_head" / "S_1"
    assert json.loads((study.run.one_party / "agreement.json").read_text())["parties"] == "one party"
    assert not study.run.encrypted.exists()
    assert parts.encrypted(study) == []
    (row,) = parts.one_party(study)
    assert row["parties"] == "one party"
    two = parse_study({**STUDY, "encrypted": {"spots": 5}})
    assert parts.one_party(two) == parts.encrypted(two) == []


def test_the_notebook_of_one_party_speaks_of_one_party():
    from histocrypt import paths

    cells = json.loads((paths.repository() / "notebooks" / "51_one_party.ipynb").read_text())["cells"]
    text = " ".join("".join(cell["source"]) for cell in cells)
    assert "one process, which holds the secret key" in " ".join(text.split())
    assert "hospital" not in text.lower()
