"""Arithmetic on raw residues against the engine and against whole numbers of any size. The rings are not secure."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.encrypted.serving import refuses

from histocrypt.encrypted import engine
from histocrypt.encrypted.batch import embedding, secret
from histocrypt.encrypted.batch.evaluate import Evaluator
from histocrypt.encrypted.batch.plan import Map
from histocrypt.encrypted.batch.ring import Keys, Ring
from histocrypt.encrypted.parameters import Parameters
from histocrypt.encrypted.residues import prime_factors

LOGN, N = 10, 1 << 10
ROTATIONS = (1, N - 3, N // 4)
SCALE = 2.0**40


FIRST_DRAWN = [1116227699959472746, 355429735571706757, 824888751389940669]
"""For each prime the first number of the stream of `uniform(b"seed")`, read from SHAKE-128 by whole numbers."""


class Party:
    """A key owner, its ring, its secret and its keys."""

    def __init__(self, parameters: Parameters, rotations: tuple[int, ...]) -> None:
        self.owner = engine.KeyOwner(parameters)
        self.owner.generate()
        self.ring = Ring(parameters.logn, self.owner.moduli(), self.owner.special_moduli()[0])
        self.stored = b"".join(self.owner.evaluation_keys(rotations))
        self.keys = Keys.read(self.stored, self.ring, rotations)
        self.secret = secret.read_secret(self.owner.secret_bytes(), self.ring)

    def encrypt(self, values: np.ndarray, level: int, scale: float = SCALE) -> np.ndarray:
        sample = secret.fresh(self.owner, self.ring, 1, level)[0]
        sample[0] = self.ring.add(sample[0], self.ring.residues(embedding.encode(values, scale), level))
        return sample

    def decrypt(self, ciphertext: np.ndarray, scale: float = SCALE) -> np.ndarray:
        message = secret.decrypt(ciphertext[:, :1], self.secret, self.ring)
        return embedding.slots(self.ring, message, scale)[0]


@pytest.fixture(scope="module")
def party() -> Party:
    return Party(Parameters(LOGN, (60, 60, 60), (60,), 27), ROTATIONS)


@pytest.fixture(scope="module")
def narrow() -> Party:
    """With a special prime of 34 bits, as batches without rotations have."""
    return Party(Parameters(LOGN, (60, 60, 60), (34,), 27), ())


def engine_form(ciphertext: np.ndarray, like: bytes) -> bytes:
    """Return a raw ciphertext as the engine's bytes, with the metadata of another."""
    header = like[: like.find(b"}}", 0, 2048) + 2]
    _, limbs, size = ciphertext.shape
    words = np.empty((2, 1 + limbs * (1 + size)), dtype="<u8")
    words[:, 0] = limbs
    body = words[:, 1:].reshape(2, limbs, 1 + size)
    body[:, :, 0], body[:, :, 1:] = size, ciphertext
    return header + struct.pack("<Q", 2) + words.tobytes()


def raw_form(data: bytes) -> np.ndarray:
    """Return the engine's bytes as a raw ciphertext."""
    words = np.frombuffer(data, "<u8", offset=data.find(b"}}", 0, 2048) + 2)[1:].reshape(2, -1)
    return words[:, 1:].reshape(2, int(words[0, 0]), -1)[:, :, 1:].copy()


def test_slots_and_transform_are_the_engine_s(narrow):
    """What the engine encrypts is read, and what is encoded here the engine reads, at every level."""
    values = np.random.default_rng(0).normal(size=N)
    for level in range(3):
        data = narrow.owner.encrypt(values, level)
        got = narrow.decrypt(raw_form(data), 2.0**27)
        np.testing.assert_allclose(got, narrow.owner.decrypt(data), atol=1e-7)
        mine = engine_form(narrow.encrypt(values, level, 2.0**27), data)
        np.testing.assert_allclose(narrow.owner.decrypt(mine), values, atol=1e-4)


def test_coefficients_come_back(narrow):
    """Encoding and decoding are inverse to rounding; whole coefficients are the same modulo every prime."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, N))
    np.testing.assert_allclose(embedding.decode(embedding.encode(values, 2.0**40), 2.0**40), values, atol=1e-10)
    whole = np.rint(rng.normal(size=(2, N)) * 2.0**50)
    residues = narrow.ring.residues(whole, 2)
    assert residues.shape == (2, 3, N)
    np.testing.assert_array_equal(narrow.ring.residues(whole.astype(np.int64), 2), residues)
    np.testing.assert_allclose(
        embedding.slots(narrow.ring, residues[:, 0], 1.0), embedding.decode(whole, 1.0), rtol=1e-9, atol=100
    )
    constant = np.zeros(N)
    constant[0] = -5
    expected = np.array(narrow.ring.moduli, dtype=np.uint64) - np.uint64(5)
    np.testing.assert_array_equal(narrow.ring.residues(constant, 2), np.repeat(expected[:, None], N, 1))


def test_products_modulo_the_primes(narrow):
    """Sums, differences and products agree with whole numbers of any size."""
    rng, ring = np.random.default_rng(2), narrow.ring
    a, b = (np.stack([rng.integers(0, prime, N, dtype=np.uint64) for prime in ring.moduli]) for _ in range(2))
    a[:, 0], b[:, 0] = [prime - 1 for prime in ring.moduli], [prime - 1 for prime in ring.moduli]
    for found, rule in (
        (ring.add(a, b), lambda x, y: x + y),
        (ring.subtract(a, b), lambda x, y: x - y),
        (ring.multiply(a, b), lambda x, y: x * y),
    ):
        for row, x, y, prime in zip(found, a, b, ring.moduli, strict=True):
            assert row.tolist() == [rule(int(u), int(v)) % prime for u, v in zip(x, y, strict=True)]
    np.testing.assert_array_equal(ring.multiply(np.stack([a, b]), b)[0], ring.multiply(a, b))


def test_square_is_the_engine_s(narrow, tmp_path):
    """The engine's own square of the same ciphertext is the same to the last bit, and it is x^2."""
    values, scale = np.random.default_rng(3).normal(size=N), 2.0**45
    ciphertext = narrow.encrypt(values, 2, scale)
    after = scale**2 / narrow.ring.moduli[2]
    found = narrow.keys.square(ciphertext)
    assert found.shape == (2, 2, N)
    mine = narrow.decrypt(found, after)

    model, stored = tmp_path / "model", tmp_path / "keys"
    engine.write_model(model, narrow.owner.parameters, [engine.Node("square", "quad", 2, ())], set())
    stored.write_bytes(narrow.stored)
    like = narrow.owner.encrypt(values, 2)
    evaluator = engine.Evaluator(narrow.owner.parameters, stored)
    (data,) = evaluator(engine.load_model(model), [engine_form(ciphertext, like)])
    evaluator.close()
    np.testing.assert_array_equal(found, raw_form(data))
    np.testing.assert_allclose(mine, values**2, atol=1e-4)


def test_square_at_every_level_and_rescale(party):
    """Squares of squares, down to the first prime, and a rescaling alone."""
    values = np.random.default_rng(4).normal(size=N)
    one = party.ring.moduli
    ciphertext, scale = party.encrypt(values, 2, 2.0**55), 2.0**55
    ciphertext, scale = party.keys.square(ciphertext), scale**2 / one[2]
    np.testing.assert_allclose(party.decrypt(ciphertext, scale), values**2, atol=1e-7)
    ciphertext, scale = party.ring.linear(np.array([[128.0]]), ciphertext[None])[0], scale * 128
    ciphertext, scale = party.keys.square(ciphertext), scale**2 / one[1]
    assert ciphertext.shape == (2, 1, N)
    np.testing.assert_allclose(party.decrypt(ciphertext, scale), values**4, atol=1e-3)
    with pytest.raises(ValueError, match="two primes"):
        party.keys.square(ciphertext)

    large = party.encrypt(values, 2, 2.0**58)
    factor = party.ring.residues(np.eye(1, N)[0] * 2.0**50, 2)
    less = party.ring.rescale(party.ring.multiply(large, factor))
    assert less.shape == (2, 2, N)
    np.testing.assert_allclose(party.decrypt(less, 2.0**108 / one[2]), values, atol=1e-10)


def test_rotations_are_rolls(party):
    """Slots move to the left; several rotations at once, and at a lower level."""
    values = np.random.default_rng(5).normal(size=N)
    for level in (2, 0):
        rotated = party.keys.rotate(party.encrypt(values, level), (0, *ROTATIONS))
        for rotation, found in zip((0, *ROTATIONS), rotated, strict=True):
            assert found.shape == (2, level + 1, N)
            np.testing.assert_allclose(party.decrypt(found), np.roll(values, -rotation), atol=1e-7)
    with pytest.raises(KeyError):
        party.keys.rotate(party.encrypt(values, 0), [2])


def test_linear_is_exact(narrow):
    """Combinations agree with whole numbers of any size, up to the largest weights."""
    rng, ring = np.random.default_rng(6), narrow.ring
    most = ring.largest_weight_sum
    weights = rng.integers(-(most // 8), most // 8, size=(3, 5)).astype(float)
    weights[0] = [most - 3, 0, -1, 0, 2]
    inputs = np.stack([rng.integers(0, prime, (5, 2, N), dtype=np.uint64) for prime in ring.moduli], axis=2)
    inputs[:, :, 0, :3] = ring.moduli[0] - 1, ring.moduli[0] // 2, ring.moduli[0] // 2 + 1
    biases = [-(1 << 70) - 1, 0, 1 << 100]
    found = ring.linear(weights, inputs, biases)
    for limb, prime in enumerate(ring.moduli):
        for part in range(2):
            whole = weights.astype(int).astype(object) @ inputs[:, part, limb].astype(object)
            expected = (whole + (np.array(biases, dtype=object)[:, None] if part == 0 else 0)) % prime
            np.testing.assert_array_equal(found[:, part, limb].astype(object), expected)
    np.testing.assert_array_equal(ring.linear(weights, inputs, biases, columns=N), found)
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(ring.linear(weights, inputs, biases, columns=N // 16, pool=pool), found)
    np.testing.assert_array_equal(ring.linear(weights, inputs, biases, device="cpu"), found)  # by torch
    for wrong in (weights + 0.5, weights * 9):
        with pytest.raises(ValueError, match="whole"):
            ring.linear(wrong, inputs)


def test_uniform(narrow):
    """Everybody draws the same numbers, from all of the prime's range."""
    drawn = narrow.ring.uniform(b"seed", 2)
    assert drawn.shape == (3, N)
    assert drawn[:, 0].tolist() == FIRST_DRAWN
    np.testing.assert_array_equal(narrow.ring.uniform(b"seed", 0)[0], drawn[0])
    assert (narrow.ring.uniform(b"other", 0)[0] != drawn[0]).all()
    for row, prime in zip(drawn, narrow.ring.moduli, strict=True):
        assert row.max() < prime
        counts = np.histogram(row.astype(float) / prime, bins=16, range=(0, 1))[0]
        assert ((counts - N / 16) ** 2 / (N / 16)).sum() < 60  # chi squared of 15 degrees: 1 in 10^6


def test_seeded_samples_have_the_engine_s_error(narrow):
    """Samples of zero, and those whose a is drawn from a seed, have the engine's Gaussian error and no other."""
    ring = narrow.ring
    samples = secret.fresh(narrow.owner, ring, 8, 1)
    assert len({sample.tobytes() for sample in samples[:, 1]}) == 8
    for sample in samples:
        b = secret.seeded(sample, b"public", narrow.secret, ring)
        again = np.stack([b, ring.uniform(b"public", 1)])
        error = secret.decrypt(sample, narrow.secret, ring)
        np.testing.assert_array_equal(secret.decrypt(again, narrow.secret, ring), error)
    errors = secret.decrypt(samples, narrow.secret, ring)[:, 0]
    found = embedding.encode(embedding.slots(ring, np.ascontiguousarray(errors), 1.0), 1.0)
    assert 3.0 < found.std() < 3.4
    assert np.abs(found).max() < 20


def test_sums_over_slots(narrow):
    """A sum of neighbours is the sum over rotations, hides what a mask hides, and is read in the small ring."""
    values, count, ring = np.random.default_rng(7).normal(size=N), 8, narrow.ring
    moved = ring.automorphism(N // count)
    np.testing.assert_array_equal(moved // count, np.arange(N) // count)
    place, seen = np.zeros(N // count, dtype=int) + count * np.arange(N // count), []
    for _ in range(count):
        seen.append(place)
        place = moved[place]
    np.testing.assert_array_equal(np.sort(np.array(seen).T), np.arange(N).reshape(-1, count))

    message = secret.decrypt(narrow.encrypt(values, 0), narrow.secret, ring)
    total = embedding.slots(ring, embedding.sum_orbits(ring, message, count), SCALE)[0]
    full = embedding.slots(ring, message, SCALE)[0]
    np.testing.assert_allclose(total, full.reshape(count, -1).sum(0), atol=1e-9)
    mask = embedding.zero_sums(ring, b"mask", count)
    masked = ring.add(message, mask[None])
    assert np.abs(embedding.slots(ring, masked, SCALE)).std() > 1e4
    again = embedding.slots(ring, embedding.sum_orbits(ring, masked, count), SCALE)[0]
    np.testing.assert_array_equal(again, total)


def test_damaged_keys_are_refused(party, tmp_path):
    """Every length, every number's range, and which rotations there are."""
    path = tmp_path / "keys"
    path.write_bytes(b"front" + party.stored)
    read = Keys.read(path, party.ring, ROTATIONS, start=5)
    np.testing.assert_array_equal(read.relinearisation, party.keys.relinearisation)
    fields = [f"rotation key {pow(5, rotation, 4 * N)}" for rotation in ROTATIONS]
    relinearisation = 1 + 8 * party.keys.relinearisation.size + 8 * (2 + 3 * (2 + 2 * (2 + 4)))
    for at, word, field in (
        (1, 1, "relinearisation key"),
        (9, 4, "relinearisation key"),  # digits
        (33, 4, "relinearisation key"),  # primes
        (41, N + 1, "relinearisation key"),  # coefficients
        (49, party.ring.moduli[0], "relinearisation key"),  # the first of them
        (relinearisation, 1 | (4 << 8), "rotation keys"),
        (len(party.stored) - 8, party.ring.special, max(fields, key=lambda name: int(name.split()[-1]))),
    ):
        spoilt = bytearray(party.stored)
        spoilt[at : at + 8] = struct.pack("<Q", word)
        with refuses(field):
            Keys.read(bytes(spoilt), party.ring, ROTATIONS)
    with refuses("bytes", file=path):
        Keys.read(path, party.ring, ROTATIONS)
    with refuses("bytes"):
        Keys.read(party.stored, party.ring, ROTATIONS[:2])
    with refuses("rotation key 25"):
        Keys.read(party.stored, party.ring, (1, 2, 4))


def test_threads_share_ring_and_keys(party):
    """Two threads at once give what one gives."""
    rng = np.random.default_rng(8)
    given = [party.encrypt(rng.normal(size=N), 2) for _ in range(12)]

    def work(ciphertext: np.ndarray) -> list[np.ndarray]:
        return [party.keys.square(ciphertext), *party.keys.rotate(ciphertext, ROTATIONS)]

    alone = [work(ciphertext) for ciphertext in given]
    with ThreadPoolExecutor(2) as pool:
        for found, expected in zip(pool.map(work, given), alone, strict=True):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_folded_convolution(party, monkeypatch):
    """Squares of sums over rotations; the same, bit for bit, however many channels are rotated at once."""
    rng, shifts, factor = np.random.default_rng(9), (0, *ROTATIONS), 2.0**14
    values, weights = rng.normal(size=(5, N)), rng.normal(size=(3, len(shifts), 5))
    given = np.stack([party.encrypt(each, 2) for each in values])
    one = Map(np.rint(weights * factor).reshape(3, -1), np.array([1, -2, 3]) << 54)
    evaluator, found = Evaluator([one], SCALE, party.ring, party.keys, np.zeros((2, N), dtype=np.uint64)), []
    with ThreadPoolExecutor(2) as pool:
        for channels in (2, 32):
            monkeypatch.setattr("histocrypt.encrypted.batch.evaluate.CHANNELS", channels)
            found.append(evaluator._folded(0, given, shifts, pool))
    np.testing.assert_array_equal(*found)
    rotated = np.stack([np.roll(values, -shift, axis=1) for shift in shifts])
    expected = (np.einsum("opc,pcn->on", np.rint(weights * factor) / factor, rotated) + np.array([[1], [-2], [3]])) ** 2
    scale = (SCALE * factor) ** 2 / party.ring.moduli[2]
    decrypted = [party.decrypt(each, scale) for each in found[0]]
    np.testing.assert_allclose(decrypted, expected, atol=1e-3)


def test_one_prime_without_keys():
    """A linear model has one prime and needs neither a special prime nor keys."""
    owner = engine.KeyOwner(Parameters(LOGN, (60,), (), 27))
    owner.generate()
    ring = Ring(LOGN, owner.moduli())
    values, own = np.random.default_rng(9).normal(size=N), secret.read_secret(owner.secret_bytes(), ring)
    sample = secret.fresh(owner, ring, 1, 0)[0]
    sample[0] = ring.add(sample[0], ring.residues(embedding.encode(values, SCALE), 0))
    out = ring.linear(np.array([[3.0], [-2.0]]), sample[None], [0, int(SCALE)])
    got = embedding.slots(ring, secret.decrypt(out, own, ring)[:, 0], SCALE)
    np.testing.assert_allclose(got, [3 * values, 1 - 2 * values], atol=1e-6)


def test_primes_that_do_not_fit():
    """A ring says which primes it cannot take; the factors behind its roots are right."""
    with pytest.raises(ValueError, match="no transform"):
        Ring(10, [97])
    with pytest.raises(ValueError, match="overflow"):
        Ring(10, [(1 << 62) + 1])
    for number in (2**4 * 3 * 1000003 * 1000033, 1152921504606830592, 2**40, 49 * 61**2):
        rest = number
        for prime in prime_factors(number):
            assert all(prime % small for small in range(2, min(prime, 1000)))
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
