"""The reference's ReLU by minimax polynomials: in the clear, in a network, and on ciphertexts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.encrypted.serving import refuses

from histocrypt.encrypted import engine
from histocrypt.encrypted.parameters import bootstrapped as parameter_set
from histocrypt.encrypted.resnet import compile, residual, run
from histocrypt.encrypted.resnet import residual as minimax
from histocrypt.encrypted.resnet.keys import bootstrapping_pieces
from histocrypt.encrypted.resnet.run import estimate
from histocrypt.models.fhe import FheResNet18
from histocrypt.models.resnet18 import ResNet18


def test_is_a_relu():
    x = np.linspace(-1, 1, 20001)
    error = np.abs(minimax.relu(x) - np.maximum(x, 0))
    assert error.max() < 4e-4
    assert error[np.abs(x) > 2**-minimax.LOG_ALPHA].max() < 1e-9
    assert minimax.levels() == 4 + 4 + 5 + 1


@pytest.fixture(scope="module")
def clear():
    torch.manual_seed(0)
    network = ResNet18(6, average_pool=True).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(32, 3, 32, 32))
        network.network.fc.weight *= 20
    return network.eval()


def test_clear_resnet_keeps_its_outputs(clear):
    images = torch.randn(4, 3, 32, 32)
    lowered = residual.normalised(residual.lower(clear, 32), images.numpy())
    with torch.no_grad():
        says = clear(images).numpy()
    np.testing.assert_allclose(lowered(images.double().numpy()), says, atol=1e-3)
    np.testing.assert_allclose(lowered.minimax_relu(images.double().numpy()), says, atol=0.05 * says.std())


def test_max_pool_is_refused():
    with refuses("average_pool"):
        residual.lower(ResNet18(3), 32)


def test_on_ciphertexts(tmp_path):
    """Far too small a ring to be secure; all else is as in a real run."""
    torch.manual_seed(0)
    network = FheResNet18(5, width=8, blocks=(1,)).train()  # the stem fills more than is refreshed at once
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    images = torch.randn(4, 3, 24, 24)
    with torch.no_grad():
        network(images)
    relus = replace(residual.lower(network.eval(), 24), activation="relu")
    lowered = residual.normalised(relus, images.numpy())
    parameters = parameter_set(11)
    made = compile.compile_network(lowered, parameters, tmp_path / "network")
    assert [step.ciphertexts for step in made.steps if step.refreshes] == [2, 1, 1]
    owner = engine.KeyOwner(parameters)
    owner.generate()
    pieces = [*owner.evaluation_keys(sorted(made.rotations)), *bootstrapping_pieces(owner)]
    (tmp_path / "keys").write_bytes(b"".join(pieces))
    tile = [owner.encrypt(values, made.level) for values in made.source.pack(images[0].numpy())]
    run.write_ciphertexts(tmp_path / "tile.ct", tile)
    (output,) = run.evaluate(tmp_path / "network", tmp_path / "keys", [tmp_path / "tile.ct"], tmp_path / "work")
    slots = owner.decrypt(run.read_ciphertexts(output)[0])
    found = made.target.unpack(slots[None])
    polynomials = lowered.minimax_relu(images[:1].double().numpy())[0]
    np.testing.assert_allclose(found, polynomials, atol=0.01 * np.abs(polynomials).max())
    assert np.abs(found - lowered(images[:1].double().numpy())[0]).max() < 0.05 * np.abs(polynomials).max()


def test_estimate_counts_what_is_compiled(tmp_path):
    network = FheResNet18(5, width=4, blocks=(1, 1)).eval()
    parameters = parameter_set(11)
    for activation, refreshes in (("square", 2), ("relu", 4 * minimax.REFRESHES + minimax.REFRESHES)):
        lowered = replace(residual.lower(network, 16), activation=activation)
        made = compile.compile_network(lowered, parameters, tmp_path / activation)
        found = estimate([vars(step) for step in made.steps], parameters)
        assert found.refreshes == refreshes
        assert found.diagonals == sum(step.diagonals for step in made.steps)
        # stem, pool, (shift, first, sum) of two blocks, head; an activation after five of these
        assert found.levels == 9 + 5 * (1 if activation == "square" else 14)
        assert f"{refreshes} bootstrappings" in str(found)
        # two tiles share refreshes that lie between layers, not those within an activation
        assert found.together == (2 if activation == "square" else 1)
        assert (found.seconds(6, 6) == found.seconds(5, 5)) == (activation == "square")
