"""Batches against brute force and the network in the clear: where values lie, what comes out, and what cannot be seen.

Rings and networks are small, and the rings are not secure.
"""

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.encrypted.serving import refuses

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.batch import embedding, evaluate, plan, secret
from histocrypt.encrypted.batch.client import SEED, BatchClient, part_of
from histocrypt.encrypted.batch.layout import Layout
from histocrypt.encrypted.batch.packed import unpack_residues
from histocrypt.encrypted.batch.plan import Unfit, make_plan
from histocrypt.encrypted.lowering import Lowered, linear, lower
from histocrypt.encrypted.parameters import Parameters

RANGE = (-2.5, 3.0)
"""Of inputs."""
DEPTHS = {3: ((4,), 3), 5: ((3, 2), 2), 7: ((2, 2, 2), 2), 9: ((2, 2, 2, 2), 1)}
"""Strides by depth, and the side of the last grid."""
LAYOUTS = [(depth, folded) for depth, (strides, _) in DEPTHS.items() for folded in range(len(strides))]


def network(strides: tuple[int, ...], grid: int, *, channels: int = 2, outputs: int = 3, seed: int = 0):
    """Return a network in torch with statistics of batch norms as if it were trained, and its side."""
    import torch
    from torch import nn

    from histocrypt.models.fhe import Square

    torch.manual_seed(seed)
    layers, before = [], channels
    for after, stride in zip((3, 2, 4, 3), strides, strict=False):
        norm = nn.BatchNorm2d(after)
        nn.init.constant_(norm.weight, 0.5)
        nn.init.constant_(norm.bias, 1.0)
        norm.running_mean, norm.running_var = 0.2 * torch.randn(after), 0.5 + torch.rand(after)
        layers += [nn.Conv2d(before, after, stride, stride, bias=False), norm, Square()]
        before = after
    pool = [nn.AvgPool2d(grid, stride=grid)] if grid > 1 else []
    found = nn.Module()
    found.layers = nn.Sequential(*layers, *pool, nn.Flatten(), nn.Linear(before, outputs)).eval()
    return found, grid * math.prod(strides)


def tiles_of(n: int, channels: int, side: int, *, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(size=(n, channels, side, side)), *RANGE)


def about_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> dict:
    kind = "tiles" if strides else "features"
    return {"kind": kind, "shape": list(shape), "factors": list(strides)}


class Party:
    """A model's owner with a plan on a small ring, and a key owner: all but the file formats of a section."""

    def __init__(
        self,
        lowered: Lowered,
        inputs: dict,
        layouts: list[Layout],
        examples: np.ndarray,
        folder: Path,
        *,
        first: int = 60,  # bits of the first prime
        number: int = 0,  # of the layout
    ) -> None:
        self.lowered, slots = lowered, layouts[-1].slots
        clear = lowered(examples)
        self.sd = clear.std(axis=0)
        primes = (first, *[60] * (len(lowered.maps) - 1))
        if any(one.folded for one in layouts):
            primes = plan.deep_primes(len(lowered.maps) - 1)
        parameters = Parameters(slots.bit_length() - 1, primes, (60,), plan.LOG_SCALE)
        largest = [*lowered.largest(examples), float(np.abs(clear).max())]
        how = {"input_range": RANGE, "largest": largest, "examples": examples, "ring": (parameters, layouts)}
        self.plan = make_plan(lowered, inputs, **how)
        about = {"input": inputs, "outputs": [f"o{number}" for number in range(clear.shape[1])]}
        about["output_range"] = [float(clear.min()), float(clear.max())]
        public = json.loads(json.dumps(self.plan.public()))
        self.client = BatchClient(about, parameters, folder / "client.json", public, number)
        self.owner = engine.KeyOwner(parameters)
        self.owner.generate()
        self.bound = {"client": self.client.hash, "key": "0" * 32, "request": "1" * 32, "index": 0, "of": 1}
        self.file = folder / "evaluation.keys"
        keys = {name: self.bound[name] for name in ("client", "key")}
        messages.write_pieces(self.file, "evaluation keys", self.client.evaluation_keys(self.owner), **keys)
        self.session = evaluate.Session(self.client, self.plan.maps, self.file, workers=2)
        self.secret = secret.read_secret(self.owner.secret_bytes(), self.client.ring)

    def encrypt(self, values: np.ndarray) -> bytes:
        payload = b"".join(self.client.encrypt(values, self.owner))
        assert len(payload) == self.client.input_bytes
        return payload

    def message(self, payload: bytes, **changes) -> bytes:
        return messages.pack("input", payload, **{**self.bound, **changes})

    def evaluate(self, payload: bytes) -> bytes:
        """Return an output's payload, made as the evaluator makes it from a message."""
        place = {name: self.bound[name] for name in ("request", "index", "of")}
        output = self.session.evaluate(self.message(payload), file="it", **place)
        return messages.unpack(output, file="it", kind="output", **self.bound)

    def decrypt(self, payload: bytes) -> np.ndarray:
        return self.client.decrypt(payload, self.owner, file="it")

    def raw(self, payload: bytes) -> np.ndarray:
        """Return an output's ciphertexts, (outputs, 2, 1, N)."""
        number, ring = 2 * len(self.client.about["outputs"]), self.client.ring
        return unpack_residues(payload, ring.moduli[:1] * number, ring.n).reshape(-1, 2, 1, ring.n)

    def message_of(self, payload: bytes) -> np.ndarray:
        """Return what an output decrypts to, (outputs, N) residues."""
        return secret.decrypt(self.raw(payload), self.secret, self.client.ring)[:, 0]


def slots_for(layout: Layout) -> int:
    """Return the slots of the smallest ring that a layout can have here."""
    return max(256, 64 * layout.positions)


def party_of(depth: int, folded: int, folder: Path, **how) -> Party:
    strides, grid = DEPTHS[depth]
    net, side = network(strides, grid, **how)
    lowered = lower(net, (2, side, side))
    small = Layout(2, side, strides, folded, 64)
    layouts = [Layout(2, side, strides, folded, slots_for(small))]
    return Party(lowered, about_of((2, side, side), strides), layouts, tiles_of(64, 2, side), folder)


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Party:
    """One linear map of vectors of features."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(3, 5))
    lowered = Lowered([linear(weights, rng.normal(size=3), (5,))], [])
    inputs = {"kind": "features", "shape": [5, 16]}
    examples = np.clip(rng.normal(size=(50, 5)), *RANGE)
    return Party(lowered, inputs, [Layout(5, 1, (), 0, 256)], examples, tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Party:
    """Of depth 3, with nine positions of sixteen."""
    return party_of(3, 0, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def folded(tmp_path_factory) -> Party:
    """Of depth 5, its second convolution between slots."""
    return party_of(5, 1, tmp_path_factory.mktemp("folded"))


# Where values lie.


@pytest.mark.parametrize(
    ("strides", "grid"), [*DEPTHS.values(), ((2, 3), 2), ((3, 2), 5), ((2, 2), 4)], ids=lambda given: str(given)
)
def test_every_value_lies_where_it_should(strides, grid):
    """The place of each pixel of each tile, digit by digit, in every layout; nothing else is there."""
    channels, side = 2, grid * math.prod(strides)
    for folded in range(len(strides)):
        apart = strides[: len(strides) - folded]
        layout = Layout(channels, side, strides, folded, 1 << 13)
        cells = side // math.prod(apart)
        assert layout.grid == cells
        assert cells**2 <= layout.positions < 2 * cells**2 or layout.positions == 1
        n = min(3, layout.tiles)
        values = 1.0 + np.arange(n * channels * side**2).reshape(n, channels, side, side)
        packed = layout.pack(values)
        assert packed.shape == (layout.inputs, layout.slots)
        assert np.count_nonzero(packed) == values.size
        for tile, channel, y, x in itertools.product(range(n), range(channels), range(side), range(side)):
            down, right, digits = y, x, []
            for stride in apart:  # the place in the cell of the first convolution, then in that of the next one ...
                digits.append((down % stride, right % stride))
                down, right = down // stride, right // stride
            number = 0
            for stride, (row, column) in zip(reversed(apart[1:]), reversed(digits[1:]), strict=True):
                number = (number * stride + row) * stride + column
            number = ((number * channels + channel) * apart[0] + digits[0][0]) * apart[0] + digits[0][1]
            assert packed[number, (down * cells + right) * layout.tiles + tile] == values[tile, channel, y, x]


def test_features_lie_one_a_ciphertext():
    layout = Layout(7, 1, (), 0, 256)
    values = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    assert (layout.tiles, layout.inputs, layout.rotations) == (256, 7, [])
    packed = layout.pack(values)
    np.testing.assert_array_equal(packed[:, :20], values.T)
    assert not packed[:, 20:].any()


@pytest.mark.parametrize(("depth", "folded"), LAYOUTS)
def test_rotations_stay_within_a_tile(depth, folded):
    strides, grid = DEPTHS[depth]
    layout = Layout(2, grid * math.prod(strides), strides, folded, 1 << 13)
    assert all(step % layout.tiles == 0 and 0 < step < layout.slots for step in layout.rotations)
    assert bool(layout.rotations) == bool(folded)
    assert layout.useful.sum() == grid**2


# What comes out.


@pytest.mark.parametrize(("depth", "folded"), LAYOUTS)
def test_a_batch_predicts_as_in_the_clear(depth, folded, tmp_path):
    """From pixels to outputs on ciphertexts, a batch that is not full, beside torch and the lowered network."""
    import torch

    party = party_of(depth, folded, tmp_path)
    net, side = network(*DEPTHS[depth])
    assert party.client.layout == party.plan.layouts[0]
    n = party.client.places - 5
    values = tiles_of(n, 2, side, seed=7).astype(np.float32)
    found = party.decrypt(party.evaluate(party.encrypt(values)))
    assert found.shape == (n + 5, 3)
    clear = party.lowered(values.astype(float))
    with torch.no_grad():
        np.testing.assert_allclose(clear, net.layers(torch.from_numpy(values)).numpy(), atol=1e-4 * party.sd.max())
    error = np.abs(found[:n] - clear) / party.sd
    assert 0 < error.max() < 3e-3
    np.testing.assert_allclose(found[n:], party.lowered(np.zeros((5, 2, side, side))), atol=3e-3 * party.sd.max())


def test_a_head_predicts_as_in_the_clear(head):
    for n in (1, 100):
        values = np.clip(np.random.default_rng(n).normal(size=(n, 5)), *RANGE).astype(np.float32)
        found = head.decrypt(head.evaluate(head.encrypt(values)))[:n]
        assert 0 < (np.abs(found - head.lowered(values.astype(float))) / head.sd).max() < 1e-4


def test_one_spot_and_several_messages(plain):
    """A message of one tile; and more tiles than a message has places, cut where the last one is not full."""
    each, side = plain.client.places, plain.client.about["input"]["shape"][1]
    for n in (1, each, each + 3):
        values = tiles_of(n, 2, side, seed=n).astype(np.float32)
        parts = [values[start : start + each] for start in range(0, n, each)]
        found = [plain.decrypt(plain.evaluate(plain.encrypt(part)))[: len(part)] for part in parts]
        error = np.abs(np.concatenate(found) - plain.lowered(values.astype(float))) / plain.sd
        assert error.max() < 1e-3


def test_two_layouts_of_one_plan(tmp_path):
    """One set of integers serves both; each has keys of its own."""
    strides, grid = DEPTHS[5]
    net, side = network(strides, grid)
    layouts = [Layout(2, side, strides, fold, 1024) for fold in (1, 0)]
    inputs = about_of((2, side, side), strides)
    lowered, examples = lower(net, (2, side, side)), tiles_of(64, 2, side)
    values, parties = tiles_of(40, 2, side, seed=3).astype(np.float32), []
    for number, (places, rotations) in enumerate(((64, 3), (256, 0))):
        party = Party(lowered, inputs, layouts, examples, tmp_path, number=number)
        assert (party.client.places, len(party.client.rotations)) == (places, rotations)
        found = party.decrypt(party.evaluate(party.encrypt(values)))[:40]
        assert (np.abs(found - lowered(values.astype(float))) / party.sd).max() < 1e-3
        parties.append(party)
    for one, other in zip(*(party.plan.maps for party in parties), strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)
    assert parties[0].client.hash != parties[1].client.hash
    with refuses("client"):
        parties[0].session.evaluate(parties[1].message(b""), file="it", request="1" * 32, index=0, of=1)


def test_samples_made_by_threads_share_no_errors():
    """Two ciphertexts of known values with the same errors would give the key away; the engine draws from threads."""
    owner = engine.KeyOwner(Parameters(10, (60, 60), (60,), 27))
    owner.generate()
    ring = evaluate.Ring(10, owner.moduli())
    key = secret.read_secret(owner.secret_bytes(), ring)
    with ThreadPoolExecutor(4) as pool:
        samples = np.concatenate(list(pool.map(lambda _: secret.fresh(owner, ring, 1, 0), range(200))))
    assert len(np.unique(samples[:, 1, 0])) == samples[:, 1, 0].size
    slots = embedding.slots(ring, secret.decrypt(samples, key, ring)[:, 0], 1.0)
    errors = embedding.encode(slots, 1.0).astype(int)
    runs = np.lib.stride_tricks.sliding_window_view(errors, 20, axis=1).reshape(-1, 20) + 32
    words = np.ascontiguousarray(runs.astype(np.uint64)) @ (np.uint64(71) ** np.arange(20, dtype=np.uint64))
    assert len(np.unique(words)) == len(words)
    assert 3.1 < errors.std() < 3.3


# What does not fit.


def unfit(lowered: Lowered, side: int, strides: tuple[int, ...], *, largest: float = 10.0, **how) -> str:
    inputs = about_of((lowered.maps[0].source[0], side, side), strides)
    reached = {"largest": [largest] * len(lowered.maps), "examples": np.zeros((2, *lowered.maps[0].source))}
    with pytest.raises(Unfit) as why:
        make_plan(lowered, inputs, input_range=RANGE, **reached, **how)
    return str(why.value)


def test_networks_that_are_no_batches_say_why():
    import torch
    from torch import nn

    from histocrypt.models.fhe import FheCnn, Square

    torch.manual_seed(0)
    pooled = lower(FheCnn(3, depth=3, width=0.02, pool=2, side=16), (3, 16, 16))
    assert "every place" in unfit(pooled, 16, (8,))
    for size, stride, padding, side in ((3, 2, 1, 8), (3, 2, 0, 9), (3, 2, 0, 8), (1, 1, 1, 4), (2, 1, 0, 6)):
        net = nn.Module()
        convolved = nn.Conv2d(2, 3, size, stride=stride, padding=padding)
        grid = (side + 2 * padding - size) // stride + 1
        net.layers = nn.Sequential(convolved, Square(), nn.AvgPool2d(grid), nn.Flatten(), nn.Linear(3, 2))
        assert "overlap" in unfit(lower(net, (2, side, side)), side, (stride,))
    net, side = network((2, 2), 2)
    lowered = lower(net, (2, side, side))
    assert "no square" in unfit(lowered, side, (2, 2, 2))
    deep = Lowered([lowered.maps[0], *[lowered.maps[1]] * 7, lowered.maps[-1]], [2, *[2] * 7])
    assert "bootstrapping" in unfit_ring(deep)


def unfit_ring(lowered: Lowered) -> str:
    """Only the choice of a ring is asked: eight squares take nine primes."""
    with pytest.raises(Unfit) as why:
        plan._ring(2, 2**8, tuple(lowered.strides))
    return str(why.value)


# What nobody sees.


def of_slots(party: Party, residues: np.ndarray) -> np.ndarray:
    """Return slots of messages modulo the first prime, in shares of it."""
    return embedding.slots(party.client.ring, np.ascontiguousarray(residues), float(party.client.moduli[0]))


def test_without_the_sum_nothing_is_seen(plain):
    """What decrypts is uniform and has nothing to do with what it hides; the sum is exact."""
    side = plain.client.about["input"]["shape"][1]
    values = tiles_of(64, 2, side, seed=5).astype(np.float32)
    payload = plain.encrypt(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "zero_sums", lambda ring, seed, count: np.zeros(ring.n, dtype=np.uint64))
        bare = plain.message_of(plain.evaluate(payload))
    masked = plain.message_of(plain.evaluate(payload))
    prime, scale = plain.client.moduli[0], plain.client.batched["scale"]
    seen = embedding.slots(plain.client.ring, bare, scale).reshape(3, 16, 64)
    assert np.abs(seen[:, :9]).max() < 100 * plain.sd.max()  # without a mask, each position's part lies open
    np.testing.assert_allclose(seen.sum(axis=1).T, plain.lowered(values.astype(float)), atol=1e-3 * plain.sd.max())
    shares = masked.astype(float).ravel() / prime
    counts = np.histogram(shares, bins=16, range=(0, 1))[0]
    assert ((counts - shares.size / 16) ** 2 / (shares.size / 16)).sum() < 60  # chi squared of 15 degrees: 1 in 10^6
    hidden = of_slots(plain, masked).ravel()
    assert abs(np.corrcoef(hidden, seen.ravel())[0, 1]) < 6 / math.sqrt(hidden.size)
    sums = [embedding.sum_orbits(plain.client.ring, one, 16) for one in (bare, masked)]
    apart = embedding.slots(plain.client.ring, plain.client.ring.subtract(*(one[:, None] for one in sums))[:, 0], scale)
    assert np.abs(apart).max() < 1e-4 * plain.sd.max()  # two fresh errors


def test_useless_slots_do_not_reach_the_sum(folded):
    """A folded convolution leaves something at positions between the useful ones; it would change the sum a lot."""
    side, layout = folded.client.about["input"]["shape"][1], folded.client.layout
    assert 0 < layout.useful.sum() < layout.grid**2
    values = tiles_of(64, 2, side, seed=6).astype(np.float32)
    payload, clear = folded.encrypt(values), folded.lowered(values.astype(float))
    assert (np.abs(folded.decrypt(folded.evaluate(payload)) - clear) / folded.sd).max() < 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.Evaluator, "_wipe", lambda self, _: self._ring.residues(
            embedding.encode(np.ones((1, self._ring.n)), 2.0**plan.LOG_WIPE), 1)[0])  # fmt: skip
        patch.setattr(evaluate, "zero_sums", lambda ring, seed, count: np.zeros(ring.n, dtype=np.uint64))
        kept = folded.message_of(folded.evaluate(payload))
        patch.undo()
        patch.setattr(evaluate, "zero_sums", lambda ring, seed, count: np.zeros(ring.n, dtype=np.uint64))
        wiped = folded.message_of(folded.evaluate(payload))
    useless = np.repeat(~layout.useful, layout.tiles)
    kept, wiped = (embedding.slots(folded.client.ring, one, folded.client.batched["scale"]) for one in (kept, wiped))
    assert np.abs(kept[:, useless]).max() > 0.1 * folded.sd.max()
    assert np.abs(wiped[:, useless]).max() < 1e-3 * folded.sd.max()


def test_two_evaluations_of_one_message_differ(head, plain):
    """In both halves of every ciphertext, though they decrypt to the same sums."""
    side = plain.client.about["input"]["shape"][1]
    for party, values in ((head, np.ones((4, 5), np.float32)), (plain, tiles_of(4, 2, side).astype(np.float32))):
        payload = party.encrypt(values)
        first, second = (party.evaluate(payload) for _ in range(2))
        same = party.raw(first) == party.raw(second)
        assert same.mean() < 1e-3
        assert not same.all(axis=-1).any()
        np.testing.assert_allclose(party.decrypt(first), party.decrypt(second), atol=1e-4 * party.sd.max())


def solve(columns: np.ndarray, target: np.ndarray, prime: int) -> list[int]:
    """Return the w with columns @ w = target modulo the prime, by elimination in the first rows."""
    n = columns.shape[1]
    rows = [[int(value) for value in (*columns[k], target[k])] for k in range(n)]
    for k in range(n):
        pivot = next(row for row in range(k, n) if rows[row][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        inverse = pow(rows[k][k], -1, prime)
        rows[k] = [value * inverse % prime for value in rows[k]]
        for other in range(n):
            if other != k:
                factor = rows[other][k]
                rows[other] = [(a - factor * b) % prime for a, b in zip(rows[other], rows[k], strict=True)]
    return [row[n] for row in rows]


def test_weights_cannot_be_solved_for(head, monkeypatch):
    """A linear head gives its weights times the inputs' second halves, which the key owner has: hence the zero."""
    ring, prime, n = head.client.ring, head.client.moduli[0], 5
    payload = head.encrypt(np.ones((1, n), np.float32))
    halves = np.stack([ring.uniform(part_of(payload[:SEED], number), 0)[0] for number in range(n)], axis=1)
    wanted = head.plan.maps[0].weights[0].astype(int).tolist()

    def found(output: bytes) -> list[int]:
        weights = solve(halves, head.raw(output)[0, 1, 0], prime)
        return [value - prime if value > prime // 2 else value for value in weights]

    assert found(head.evaluate(payload)) != wanted
    first, second = (found(head.evaluate(payload)) for _ in range(2))
    assert all(a != b for a, b in zip(first, second, strict=True))
    nothing = np.zeros((2, 1, ring.n), dtype=np.uint64)
    monkeypatch.setattr(evaluate.Evaluator, "_zero", lambda *_: nothing)
    assert found(head.evaluate(payload)) == wanted  # the attack, where nothing is added


# Sums stay within their modulus.


def through(party: Party, tile: np.ndarray) -> tuple[list[int], int]:
    """Return the largest sum of each map for one tile, by whole numbers without a modulus, and the last sums' total."""
    one, moduli = party.plan.layouts[0], party.plan.moduli
    assert not one.folded
    size = party.plan.layouts[0].tiles
    packed = one.pack(tile[None])[:, ::size][:, : one.grid**2].astype(float)
    x = np.rint(packed * 2.0**plan.LOG_SCALE).astype(int).astype(object)  # (ciphertexts, positions)
    found = []
    for number, each in enumerate(party.plan.maps):
        weights, bias = each.weights.astype(int).astype(object), np.array([*map(int, each.bias)], dtype=object)[:, None]
        blocks = x.reshape(-1, weights.shape[1], x.shape[1])
        y = np.concatenate([weights @ block + bias for block in blocks])
        if number == party.plan.squares:
            positions = one.positions - y.shape[1]
            empty = np.zeros((one.inputs, 1), dtype=object)
            spare = sum_of_empty(party, empty) * positions
            total = y.sum(axis=1) + spare
            return [*found, max(abs(total))], total
        found.append(max(abs(y).ravel()))
        prime = moduli[party.plan.squares - number]
        x = np.vectorize(lambda v, prime=prime: (2 * v + prime) // (2 * prime), otypes=[object])(y * y)
    raise AssertionError


def sum_of_empty(party: Party, x: np.ndarray) -> np.ndarray:
    """Return the last sums, (outputs,), at a position that no pixel is at."""
    for number, each in enumerate(party.plan.maps):
        weights, bias = each.weights.astype(int).astype(object), np.array([*map(int, each.bias)], dtype=object)[:, None]
        y = np.concatenate([weights @ block + bias for block in x.reshape(-1, weights.shape[1], 1)])
        if number == party.plan.squares:
            return y[:, 0]
        prime = party.plan.moduli[party.plan.squares - number]
        x = np.array([[(2 * int(v) ** 2 + prime) // (2 * prime)] for v in y[:, 0]], dtype=object)
    raise AssertionError


@pytest.mark.parametrize("depth", [3, 5, 7])
def test_no_tile_in_range_leaves_the_bounds(depth, tmp_path):
    """Random tiles and the worst ones, pixel by pixel at an end of the range by the weights' signs."""
    party = party_of(depth, 0, tmp_path)
    primes = party.plan.moduli
    half = [math.prod(primes[: len(party.plan.maps) - number]) // 2 for number in range(len(party.plan.maps))]
    room = [half[-1] if number == party.plan.squares else math.isqrt(each) for number, each in enumerate(half)]
    first, strides = party.lowered.maps[0], party.client.about["input"]["factors"]
    side, stride = first.source[1], strides[0]
    rows = first.matrix[np.arange(first.target[0]) * (side // stride) ** 2].toarray()
    rows = rows.reshape(-1, *first.source)[:, :, :stride, :stride]
    rng = np.random.default_rng(depth)
    tiles = [*tiles_of(3, 2, side, seed=depth), rng.choice(RANGE, size=(2, side, side))]
    for signs in (rows > 0, rows < 0):
        tiles += [np.tile(np.where(one, RANGE[1], RANGE[0]), (1, side // stride, side // stride)) for one in signs]
    shares = np.zeros(len(room))
    for tile in tiles:
        found, total = through(party, tile)
        shares = np.maximum(shares, [float(value / most) for value, most in zip(found, room, strict=True)])
        got = np.array([float(value) for value in total]) / party.plan.scale
        np.testing.assert_allclose(got, party.lowered(tile[None])[0], rtol=1e-3, atol=1e-3 * party.sd.max())
    for number, bound in enumerate(party.plan.bounds):
        assert shares[number] <= bound.all_inputs * (1 + 1e-6)
    assert shares[0] > 0.99 * (1 - plan.ERRORS) * party.plan.bounds[0].all_inputs  # the first bound is reached
    assert all(bound.proved or bound.seen * plan.HEADROOM < 1.01 for bound in party.plan.bounds)


def test_what_leaves_the_modulus_is_refused(tmp_path, monkeypatch):
    """The prototype was silently wrong with a smaller first prime: the same scales do not fit it."""
    strides, grid = DEPTHS[3]
    net, side = network(strides, grid)
    lowered, layout = lower(net, (2, side, side)), Layout(2, side, strides, 0, 1024)
    examples, inputs = tiles_of(64, 2, side), about_of((2, side, side), strides)
    largest = [*lowered.largest(examples), float(np.abs(lowered(examples)).max())]
    good = Parameters(10, (60, 60), (60,), 27)
    short = Parameters(10, (50, 60), (60,), 27)
    scales = []
    for parameters in (good, short):
        how = {"input_range": RANGE, "largest": largest, "examples": examples, "ring": (parameters, [layout])}
        found = make_plan(lowered, inputs, **how)
        assert plan.HEADROOM * found.bounds[-1].seen <= 1 + plan.ERRORS
        scales.append(found.scale)
    assert 2**9 < scales[0] / scales[1] < 2**11  # the scale of the outputs follows the first prime
    wide = {"input_range": (-1e6, 1e6), "largest": [1e6, largest[1]], "examples": examples, "ring": (good, [layout])}
    with pytest.raises(Unfit, match="map 1"):  # what enters the square
        make_plan(lowered, inputs, **wide)
    monkeypatch.setattr(plan, "HEADROOM", 2.0**-12)  # nothing is refused any more
    party = Party(lowered, inputs, [layout], examples, tmp_path, first=50)
    values = examples[:32].astype(np.float32)
    clear = lowered(values.astype(float))
    monkeypatch.setattr(BatchClient, "check_plausible", lambda *_, **__: None)
    wrong = party.decrypt(party.evaluate(party.encrypt(values)))[:32]
    assert (np.abs(wrong - clear) / party.sd).max() > 1
    assert party.plan.bounds[-1].seen > 1  # the plan knew


@pytest.mark.parametrize("depth", [3, 5, 7, 9])
def test_products_are_exact_at_full_width(depth):
    """On the real ring, with random weights of the real network: no row of integers sums to more than is exact."""
    import torch

    from histocrypt.encrypted.batch.ring import Ring
    from histocrypt.models.fhe import FheCnn

    torch.manual_seed(depth)
    net = FheCnn(8, depth=depth, side=64).eval()
    lowered = lower(net, (3, 64, 64))
    examples = np.random.default_rng(depth).normal(size=(2, 3, 64, 64))
    largest = [*lowered.largest(examples), float(np.abs(lowered(examples)).max())]
    inputs = about_of((3, 64, 64), tuple(lowered.strides))
    found = make_plan(lowered, inputs, input_range=(-3, 3), largest=largest, examples=examples)
    ring = Ring(found.parameters.logn, found.moduli, found.special)
    for one in found.maps:
        sums = np.abs(one.weights).sum(axis=1)
        assert sums.max() <= ring.largest_weight_sum
        assert (one.weights == np.rint(one.weights)).all()
    assert all(layout.tiles >= plan.LEAST_TILES for layout in found.layouts)
    assert found.bounds[0].proved


# Which spot lies where.


def test_layouts_that_take_too_much_memory_are_not_offered(folded, monkeypatch):
    strides, grid = DEPTHS[5]
    net, side = network(strides, grid)
    lowered, examples = lower(net, (2, side, side)), tiles_of(64, 2, side)
    layouts = [Layout(2, side, strides, fold, 1024) for fold in (1, 0)]
    how = {"input_range": RANGE, "largest": [10.0, 100.0, 1000.0], "examples": examples}
    ring = (Parameters(10, plan.deep_primes(2), (60,), plan.LOG_SCALE), layouts)
    found = make_plan(lowered, about_of((2, side, side), strides), **how, ring=ring)
    assert found.layouts == layouts
    monkeypatch.setattr(plan, "MOST_BYTES", sum(map(found.bytes_of, layouts)) // 2)
    less = make_plan(lowered, about_of((2, side, side), strides), **how, ring=ring)
    assert less.layouts == [min(layouts, key=found.bytes_of)]
    assert less.most_bytes() < found.most_bytes()
