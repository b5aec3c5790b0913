"""Residual networks with bootstrapping: the packing against plain arithmetic, then real ciphertexts in two processes.

The rings here are far too small to be secure, and `check_security` refuses them; all else is as in a real run.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tests.encrypted.serving import in_the_clear, refuses

from histocrypt.encrypted import engine, residues
from histocrypt.encrypted.lowering import convolution
from histocrypt.encrypted.parameters import Bootstrapping, Parameters, check_security
from histocrypt.encrypted.parameters import bootstrapped as parameter_set
from histocrypt.encrypted.resnet import compile, pairs, residual, run, shifted
from histocrypt.encrypted.resnet.keys import _Ring, bootstrapping_key_bytes, bootstrapping_pieces
from histocrypt.models.fhe import FheResNet18

SLOTS = 2048


@pytest.mark.parametrize(
    ("stride", "channels", "outputs", "side", "kept"),
    [(1, 4, 4, 8, 1), (1, 3, 5, 4, 2), (1, 3, 5, 4, 4), (2, 4, 8, 8, 2), (2, 6, 5, 4, 1), (2, 6, 5, 4, 4)],
)
def test_shifted_copies_are_the_matrix(stride, channels, outputs, side, kept):
    """A convolution gives its outputs in every copy that the target has, however spare slots are shared out."""
    rng = np.random.default_rng(0)
    first = convolution(
        rng.normal(size=(outputs, channels, 3, 3)), None, (channels, side, side), stride=stride, padding=1
    )
    second = convolution(rng.normal(size=(outputs, outputs, 3, 3)), None, first.target, padding=1)
    block = residual.Residual(first, second, first)
    plan = compile.plan_block(block, SLOTS)
    outer = plan.outer
    groups = min(SLOTS // outer.size // kept, plan.laid.size)
    inner = shifted.rows(first.target, SLOTS, shifts=tuple(copy * outer.size // kept for copy in range(kept)))
    laid = compile.pattern(plan.laid.with_shifts((0,)), inner.period, groups)
    x = rng.normal(size=first.source)

    between = in_the_clear(shifted.diagonals(first.matrix, laid, inner, groups), shifted.folds(inner), laid.pack(x))
    expected = first(x[None])[0]
    filled = inner.pack(np.ones(first.target))[0] != 0
    np.testing.assert_allclose(between[0, filled], inner.pack(expected)[0, filled], atol=1e-9)
    end = in_the_clear(shifted.diagonals(second.matrix, inner, outer, kept), shifted.folds(outer), inner.pack(expected))
    np.testing.assert_allclose(outer.unpack(end), second(expected[None])[0], atol=1e-9)
    filled = outer.pack(np.ones(expected.shape))[0] != 0
    np.testing.assert_allclose(end[0, filled], outer.pack(second(expected[None])[0])[0, filled], atol=1e-9)


def test_spare_slots_save_diagonals():
    """Sharing eight-fold room out between two convolutions divides their diagonals by eight in all."""
    one = convolution(np.ones((8, 8, 3, 3)), None, (8, 4, 4), padding=1)
    block = residual.Residual(one, one, one)
    plan = compile.plan_block(block, 128 * 8)
    alone = shifted.count(one.matrix, plan.outer, plan.outer, 1)
    assert plan.groups * plan.kept == 8
    assert shifted.count(one.matrix, plan.laid, plan.inner, plan.groups) * plan.groups == alone
    assert shifted.count(one.matrix, plan.inner, plan.outer, plan.kept) * plan.kept == alone


def test_several_ciphertexts():
    """A tensor that needs two ciphertexts goes in and out."""
    rng = np.random.default_rng(1)
    stem = convolution(rng.normal(size=(16, 3, 7, 7)), None, (3, 32, 32), stride=2, padding=3)
    source = shifted.cells(stem.source, 4096, 4, minor=False)
    wide = shifted.spread(stem.target, 2048 * 2, 2)
    assert wide.ciphertexts == 1
    wide = shifted.spread(stem.target, 2048, 2)
    assert wide.ciphertexts == 2
    with pytest.raises(ValueError, match="do not fit"):
        shifted.cells(stem.source, 2048, 4)
    back = sp.random(24, len(wide.position), 0.05, random_state=2, format="csr")
    target = shifted.rows((24,), 2048)
    values = rng.normal(size=stem.target)
    slots = in_the_clear(shifted.diagonals(back, wide, target, 1), 0, wide.pack(values))
    np.testing.assert_allclose(target.unpack(slots), back @ values.reshape(-1), atol=1e-9)
    assert source.ciphertexts == 1


def test_security():
    """The one parameter set for use has 128 bits; small rings, and a stated sum that is too small, are refused."""
    assert check_security(parameter_set()) == 128
    for spoilt in (
        parameter_set(14),
        Parameters(15, (52,) + (38,) * 9, (50,) * 3, 38, bootstrapping=Bootstrapping(16, (61,) * 11, 43690, 100, 14)),
        Parameters(15, (52,) + (38,) * 6, (50,) * 3, 38, bootstrapping=Bootstrapping(16, (61,) * 9, 192, 100, 14)),
    ):
        with refuses("parameters.log_qp", "parameters.bootstrapping.log_qp"):
            check_security(spoilt)


def test_residues_are_in_the_engine_s_form():
    """The engine's own secret key is one ternary polynomial modulo every prime, and comes back bit by bit."""
    owner = engine.KeyOwner(Parameters(10, (52, 38, 60), (50, 61), 38, ring="standard"))
    stored = owner.generate()[0]
    words = np.frombuffer(stored, "<u8")
    assert words[0] == 3
    first = None
    for number, prime in enumerate(owner.moduli()):
        limb = words[1 + number * 1025 + 1 :][:1024]
        found = residues.coefficients(limb, prime)
        first = found if first is None else first
        np.testing.assert_array_equal(found, first)
        np.testing.assert_array_equal(residues.values(found, prime), limb)
    assert np.abs(first).max() == 1
    assert np.count_nonzero(first) == 2 * 1024 // 3


@pytest.mark.parametrize("prime", [97, (1 << 61) - 1])
def test_products_modulo_large_primes(prime):
    """Products agree with whole numbers of any size."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, prime, size=(2, 200), dtype=np.uint64)
    assert residues.multiply(a, b, prime).tolist() == [int(x) * int(y) % prime for x, y in zip(a, b, strict=True)]


@pytest.fixture(scope="module")
def parties(tmp_path_factory):
    """Return the folders of both parties, the client's secret, and what the network gives in the clear."""
    root = tmp_path_factory.mktemp("parties")
    client, evaluator = root / "client", root / "evaluator"
    torch.manual_seed(0)
    network = FheResNet18(10, width=4, blocks=(1, 1)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over what was seen
    with torch.no_grad():
        network(torch.randn(64, 3, 16, 16))
    network.eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch_says = network(images).numpy()
    lowered = residual.normalised(residual.lower(network, 16), images.numpy())
    np.testing.assert_allclose(lowered(images.double().numpy()), torch_says, atol=1e-4)

    parameters = parameter_set(11)
    made = compile.compile_network(lowered, parameters, evaluator / "network")
    client.mkdir()
    owner = engine.KeyOwner(parameters)
    secret, public = owner.generate()
    (client / "secret").write_bytes(secret)
    more = b"".join(bootstrapping_pieces(owner))
    assert 0.9 * bootstrapping_key_bytes(parameters) < len(more) < 1.1 * bootstrapping_key_bytes(parameters)
    (evaluator / "keys").write_bytes(b"".join(owner.evaluation_keys(sorted(made.rotations))) + more)
    for name, image in zip(("tile.ct", "other.ct", "alone.ct"), images.numpy(), strict=False):
        tile = [owner.encrypt(values, made.level) for values in made.source.pack(image)]
        run.write_ciphertexts(evaluator / name, tile)
    return evaluator, owner, secret, made, lowered(images[:3].double().numpy())


def switching_keys(stored: bytes, count: int) -> list[list[list[list[list[np.ndarray]]]]]:
    """Read bootstrapping keys: key, row, polynomial (b, a), primes and special primes, values modulo each."""
    words_at, at = np.frombuffer, 0

    def word() -> int:
        nonlocal at
        at += 8
        return int(words_at(stored, "<u8", 1, at - 8)[0])

    def limb() -> np.ndarray:
        nonlocal at
        size = word()
        at += 8 * size
        return words_at(stored, "<u8", size, at - 8 * size)

    def polynomials() -> list:
        assert word() == 1
        return [[[limb() for _ in range(word())] for _ in range(2)] for _ in range(word())]

    found = []
    while len(found) < count:
        at += 1
        if stored[at - 1]:
            assert word() == 0
            found.append([polynomials() for _ in range(word())])
    return found


def spread(key: list, primes: list[int]) -> float:
    """Return how many different values the top bits of the coefficients of a key's b take, at least: of 1."""
    least = 1.0
    for (b, _), *_ in zip(key, strict=True):
        for limb, prime in zip(b[0], primes, strict=False):
            coefficients = residues.coefficients(limb, prime)
            least = min(least, len(np.unique(coefficients >> 18)) / len(coefficients))
    return least


def test_no_key_holds_a_secret_in_the_clear(parties):
    """Modulo every prime a key's b hides the secret; the engine's own key from the larger ring does not."""
    evaluator, owner, _, made, _ = parties
    from lattigo import rlwe

    kept, again = len(owner.parameters.logq), owner.parameters.bootstrapping
    keys = run.EvaluationKeys(evaluator / "keys", owner.parameters)
    ours = switching_keys((evaluator / "keys").read_bytes()[keys.end :], 4)
    primes = _Ring(owner.parameters, again.h).primes
    assert [[len(chain) for chain in key[0][0]] for key in ours] == [[22, 11], [kept, kept], [1, 1], [22, 11]]
    for key in ours:
        assert spread(key, primes) > 0.9

    logp = list(again.logp)
    engines = rlwe.BootstrapParams(owner._ckks, logn=again.logn, logp=logp, h=again.h, log_slots=4)
    stored = engines.gen_eval_keys(owner._secret)[1].marshal_binary()
    assert spread(switching_keys(stored, 2)[1], primes) < 0.01, "the engine is mended: its own keys may do"


RUN = """
import sys
from pathlib import Path
from histocrypt.encrypted.resnet.run import evaluate
root = Path(sys.argv[1])
tiles = [root / f"{name}.ct" for name in ("tile", "other", "alone")]
print(*evaluate(root / "network", root / "keys", tiles, root / "work",
                progress=lambda timing: print(timing.step, flush=True)))
"""


def start(evaluator: Path) -> subprocess.Popen:
    """Start the evaluator's process."""
    return subprocess.Popen([sys.executable, "-c", RUN, str(evaluator)], stdout=subprocess.PIPE, text=True)


def test_killed_and_resumed(parties):
    """A killed evaluation goes on with the layer it was in, and gives what the network gives in the clear."""
    evaluator, owner, secret, made, expected = parties
    first = start(evaluator)
    done = []
    for line in first.stdout:
        done.append(line.strip())
        if done[-1] == "block0_sum":
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    assert (evaluator / "work" / "tile" / "block0_sum.ct").is_file()
    assert not list((evaluator / "work").glob("*/head*"))

    second = start(evaluator)
    again = second.communicate(timeout=300)[0].split()
    assert second.returncode == 0
    names = [step.name for step in made.steps]
    outputs = again[-3:]
    assert again[:-3] == names[names.index(again[0]) :]
    assert names.index(again[0]) > names.index("block0_sum")

    for output, values in zip(outputs, expected, strict=True):
        slots = owner.decrypt(run.read_ciphertexts(Path(output))[0])
        np.testing.assert_allclose(made.target.unpack(slots[None]), values, atol=1e-4)
        # the client sees copies of the outputs in its spare slots, and nothing of the layers before
        np.testing.assert_allclose(slots, made.target.pack(values)[0], atol=1e-4)

    for path in evaluator.rglob("*"):
        if path.is_file():
            held = path.read_bytes()
            assert secret[64:4096] not in held, path
    tiles = [evaluator / "tile.ct", evaluator / "other.ct", evaluator / "alone.ct"]
    done = run.evaluate(evaluator / "network", evaluator / "absent", tiles, evaluator / "work")
    assert list(map(str, done)) == outputs, "nothing is evaluated twice"


def test_two_in_one_refresh(parties, tmp_path):
    """Real and imaginary part come back apart and exact, alone or not; keys with the engine's fault are refused."""
    from lattigo import rlwe

    evaluator, owner, *_ = parties
    parameters = owner.parameters
    plan = json.loads((evaluator / "network" / "steps.json").read_text())
    primes = tuple(map(tuple, plan["bootstrapping_primes"]))
    start = run.EvaluationKeys(evaluator / "keys", parameters).end
    refresher = pairs.Refresher(parameters, *primes, evaluator / "keys", start=start)
    rng = np.random.default_rng(0)
    given = np.tile(rng.uniform(-1, 1, size=(3, 1024)), 2)
    refreshed = refresher([owner.encrypt(values, 1) for values in given])
    refresher.close()
    for one, values in zip(refreshed, given, strict=True):
        np.testing.assert_allclose(owner.decrypt(one), values, atol=1e-6)
        assert len(one) > 7 * 2 * parameters.limb_bytes, "of level 6"

    again = parameters.bootstrapping
    engines = rlwe.BootstrapParams(owner._ckks, logn=again.logn, logp=list(again.logp), h=again.h, log_slots=4)
    (tmp_path / "old").write_bytes(engines.gen_eval_keys(owner._secret)[1].marshal_binary())
    with refuses("limbs"):
        pairs.Refresher(parameters, *primes, tmp_path / "old", start=0)
    (tmp_path / "old").write_bytes((evaluator / "keys").read_bytes()[start : start + 2_000_000])
    with refuses("bytes"):
        pairs.Refresher(parameters, *primes, tmp_path / "old", start=0)


def test_refuses_what_does_not_fit(parties, tmp_path):
    """Keys without a rotation that the network needs, keys of another set, and a cut file are named."""
    evaluator, owner, _, made, _ = parties
    parameters = owner.parameters
    few = tmp_path / "few"
    few.write_bytes(b"".join(owner.evaluation_keys([1, 2])))
    keys = run.EvaluationKeys(few, parameters)
    assert keys.end == few.stat().st_size
    assert len(keys.subset([1])) < len(keys.subset([1, 2]))
    with refuses("rotations"):
        keys.subset([3])
    few.write_bytes(few.read_bytes()[:-8])
    with refuses("bytes"):
        run.EvaluationKeys(few, parameters)
    moved = tmp_path / "moved.ct"
    moved.write_bytes((evaluator / "tile.ct").read_bytes())
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "of.txt").write_text("0" * 64)
    with refuses("of.txt"):
        run.evaluate(evaluator / "network", few, [moved], tmp_path)
    whole = (evaluator / "tile.ct").read_bytes()
    (tmp_path / "cut.ct").write_bytes(whole[:-5])
    with refuses("ciphertexts"):
        run.read_ciphertexts(tmp_path / "cut.ct")
    assert json.loads((evaluator / "network" / "steps.json").read_text())["level"] == made.level
