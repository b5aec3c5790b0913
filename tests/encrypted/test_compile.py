"""A network turned into matrices gives what torch gives; what is compiled says what keys it needs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.encrypted.serving import refuses

from histocrypt.encrypted import engine
from histocrypt.encrypted.bundle import load_bundle, load_client
from histocrypt.encrypted.compile import assemble, compile_model
from histocrypt.encrypted.evaluator import evaluate_request
from histocrypt.encrypted.key_owner import decrypt_response, encrypt_section, keygen
from histocrypt.encrypted.lowering import Lowered, linear, lower
from histocrypt.encrypted.packing import Layout, blocked
from histocrypt.encrypted.parameters import Bootstrapping, Parameters, check_security, choose
from histocrypt.models.fhe import FheCnn, Square


@pytest.mark.parametrize("depth", [3, 5, 7, 9])
def test_lowered_network_equals_torch(depth):
    torch.manual_seed(0)
    network = FheCnn(11, depth=depth, width=0.25)
    network(torch.randn(16, 3, 64, 64))  # batch norms with statistics of their own
    network.eval()
    lowered = lower(network, (3, 64, 64))
    assert lowered.levels == depth
    x = torch.randn(2, 3, 64, 64)
    expected = network(x).detach().numpy()
    assert np.abs(lowered(x.double().numpy()) - expected).max() < 1e-4 * np.abs(expected).max()


def test_other_layers_are_refused():
    class Other(torch.nn.Module):
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Linear(4, 2))

    with refuses("layers"):
        lower(Other(), (3, 8, 8))


def test_network_that_ends_in_a_square_is_refused():
    class Other(torch.nn.Module):
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Square())

    with refuses("layers"):
        lower(Other(), (3, 8, 8))


def evaluate(lowered, layouts, parameters, x, folder):
    """Encrypt, evaluate and decrypt one input under fresh keys."""
    owner = engine.KeyOwner(parameters)
    owner.generate()
    compiled = assemble(lowered, parameters, layouts, owner.moduli())
    engine.write_model(folder / "model.orion", parameters, compiled.nodes, compiled.rotations)
    (folder / "keys").write_bytes(b"".join(owner.evaluation_keys(sorted(compiled.rotations))))
    evaluator = engine.Evaluator(parameters, folder / "keys")
    inputs = [owner.encrypt(slots, lowered.levels) for slots in layouts[0].pack(x)]
    outputs = evaluator(engine.load_model(folder / "model.orion"), inputs)
    return np.stack([owner.decrypt(ciphertext) for ciphertext in outputs])


@pytest.mark.parametrize("depth", [3, 5])
def test_scale_is_followed_exactly(tmp_path, depth):
    """Small primes lie far from powers of two; without correction biases would be off by parts in a thousand."""
    rng = np.random.default_rng(depth)
    sizes = [40, *([30] * (depth // 2)), 7]
    maps = [
        linear(rng.normal(size=(m, n)) / np.sqrt(n), rng.normal(size=m), (n,))
        for n, m in zip(sizes, sizes[1:], strict=False)
    ]
    lowered = Lowered(maps, [])
    parameters = Parameters(12, (45, *[30] * depth), (38, 38), 30)  # not secure, and quick
    layouts = [Layout((n,), parameters.slots, np.arange(n)) for n in sizes]
    x = rng.uniform(-1, 1, 40)
    expected = lowered(x[None])[0]
    slots = evaluate(lowered, layouts, parameters, x, tmp_path)
    assert np.abs(layouts[-1].unpack(slots) - expected).max() < 3e-4 * np.abs(expected).max()
    copies = slots.reshape(-1, layouts[-1].span)
    assert np.abs(copies - copies[0]).max() < 1e-3  # spare slots: copies of the outputs ...
    assert np.abs(copies[:, 7:]).max() < 1e-3  # ... and zeros, nothing of partial sums


def test_several_ciphertexts_in_and_out(tmp_path):
    from histocrypt.encrypted.lowering import convolution

    rng = np.random.default_rng(0)
    parameters = Parameters(10, (40, 30), (40,), 30)
    one = convolution(rng.normal(size=(20, 5, 3, 3)) / 6, rng.normal(size=20), (5, 16, 16), padding=1, stride=1)
    two = Lowered([one], [1])
    layouts = [blocked((5, 16, 16), parameters.slots), blocked((20, 16, 16), parameters.slots)]
    assert (layouts[0].ciphertexts, layouts[1].ciphertexts) == (2, 5)
    x = rng.normal(size=(5, 16, 16))
    slots = evaluate(two, layouts, parameters, x, tmp_path)
    assert np.abs(layouts[1].unpack(slots) - one(x[None])[0]).max() < 1e-2


def test_head_on_features(world, tmp_path):
    """Sixteen spots share ciphertexts; what comes back is what the model gives in the clear."""
    import anndata

    from histocrypt.pipeline.predict import predict_section

    compile_model(world.head, tmp_path / "bundle")
    client = load_client(tmp_path / "bundle")
    assert (client.batch, client.level) == (16, 1)
    keygen(tmp_path / "bundle" / "client.json", tmp_path / "keys")
    encrypt_section(world.section, tmp_path / "keys", tmp_path / "request")
    evaluate_request(
        tmp_path / "request", tmp_path / "bundle", tmp_path / "keys" / "evaluation.keys", tmp_path / "response"
    )
    decrypt_response(tmp_path / "response", tmp_path / "keys", tmp_path / "e.h5ad", noise=0)
    predict_section(world.head, world.section, tmp_path / "c.h5ad")
    clear, found = anndata.read_h5ad(tmp_path / "c.h5ad"), anndata.read_h5ad(tmp_path / "e.h5ad")
    assert list(clear.obs_names) == list(found.obs_names)
    statistics = json.loads((world.head / "model.json").read_text())["target_statistics"]
    sd = np.array([statistics[f"{clear.uns['prediction']['transform']}:{gene}"]["sd"] for gene in clear.var_names])
    assert 0 < (np.abs(clear.X - found.X) / sd).max() < 1e-2


def test_networks_that_were_not_made_for_it_are_refused(world, tmp_path):
    with refuses("model"):
        compile_model(world.other_network, tmp_path / "bundle")
    with refuses("model"):
        compile_model(world.baseline, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_bundle_states_what_was_calibrated(world):
    bundle = load_bundle(world.bundle)
    low, high = bundle.client.about["input_range"]
    assert low < 0 < high
    assert bundle.server["diagonals"]
    assert all(0 < largest < 100 for largest in bundle.server["largest_before_square"])
    public = (world.bundle / "client.json").read_text()
    assert str(world.model) not in public  # nothing of the owner's machine


@pytest.mark.parametrize(
    ("levels", "values", "logn"), [(1, 1, 12), (3, 8192, 13), (3, 12288, 14), (9, 12288, 14), (12, 1, 15)]
)
def test_parameters_are_secure(levels, values, logn):
    parameters = choose(levels, values)
    assert (parameters.logn, parameters.levels) == (logn, levels)
    assert check_security(parameters) == 128
    assert sum(parameters.logp) >= max(parameters.logq)


@pytest.mark.parametrize(
    "parameters",
    [
        Parameters(13, (55, 40, 40, 40), (50,), 40),
        Parameters(9, (20,), (), 20),
        Parameters(14, (55, 40), (50,), 40, ring="other"),
        Parameters(14, (55, 40), (50,), 40, bootstrapping=Bootstrapping(16, (61,) * 8, 192, 1764, 14)),
        Parameters(14, (55, 40), (50,), 40, bootstrapping=Bootstrapping(15, (61,), 32, 300, 14)),
    ],
)
def test_weak_parameters_are_refused(parameters):
    with refuses("parameters.log_qp", "parameters.ring", "parameters.bootstrapping.log_qp"):
        check_security(parameters)


def test_stated_memory_covers_the_peak(answered):
    """In a process of its own, as users run it: what else a test session holds does not count."""
    cost = json.loads((answered / "response" / "cost.json").read_text())
    assert 0.5 * cost["stated_gib"] < cost["peak_gib"] < cost["stated_gib"]


@pytest.mark.parametrize(("given", "expected"), [(None, engine.COLLECT_AT), ("50", "50")])
def test_evaluating_commands_start_again_with_early_collection(given, expected):
    code = (
        "import os, sys; from histocrypt.encrypted.engine import restart_to_collect_early; restart_to_collect_early(); "
        "print(os.environ['GOGC'], *sys.argv[1:])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOGC"}
    done = subprocess.run(
        [sys.executable, "-c", code, "fhe", "evaluate"],
        check=True,
        capture_output=True,
        text=True,
        env=environment if given is None else {**environment, "GOGC": given},
        timeout=300,
    )
    assert done.stdout.split() == [expected, "fhe", "evaluate"]
