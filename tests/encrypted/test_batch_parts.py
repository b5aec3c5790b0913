"""Parts of batches by themselves: who gets which place, residues in their own bits, rounding, the order of primes."""

import math

import numpy as np
import pytest

from histocrypt.encrypted.batch.order import Order
from histocrypt.encrypted.batch.packed import pack_residues, packed_bytes, unpack_residues
from histocrypt.encrypted.batch.rounding import rounded
from histocrypt.encrypted.key_owner import copies_of, places_of


@pytest.mark.parametrize("each", [64, 256, 512])
@pytest.mark.parametrize("apart", [True, False])
def test_places_are_filled_with_copies(each, apart):
    most = 3 * each // 4  # of which a third again fit one message
    for n in (1, 2, each // 2, most, most + 1, each - 1, each, each + 1, 2 * each, 3 * each - 7, 5000):
        order = places_of(n, each, apart=apart)
        assert len(order) % each == 0
        assert len(order) - each < n + (copies_of(n) if apart else n)
        counts = np.bincount(order, minlength=n)
        assert len(counts) == n
        assert counts.min() >= (1 if apart else 2)
        assert (counts > 1).sum() >= -(-n // 3)
        assert counts.max() - counts.min() <= 1 + (counts.min() == 1)
        if apart and len(order) > each:
            where = np.arange(len(order)) % each
            assert len(np.unique(order * each + where)) == len(order)


def test_places_are_another_way_each_time():
    one, other = (places_of(100, 64, apart=True) for _ in range(2))
    assert (one != other).mean() > 0.5


# What travels, and what is rounded.


@pytest.mark.parametrize("bits", [20, 32, 35, 44, 59, 60, 61])
def test_residues_travel_in_their_own_bits(bits):
    """Against whole numbers of any size; the largest residues too."""
    prime, n = (1 << bits) - 1, 128
    values = np.random.default_rng(bits).integers(0, prime, (2, n), dtype=np.uint64)
    values[:, :3] = prime, 0, prime
    data = pack_residues(values, [prime, prime])
    assert len(data) == packed_bytes([prime, prime], n) == 2 * n * bits // 8
    whole = int.from_bytes(data[: len(data) // 2], "little")
    assert [whole >> (bits * place) & prime for place in range(n)] == values[0].tolist()
    np.testing.assert_array_equal(unpack_residues(data, [prime, prime], n), values)


def test_weights_are_rounded_so_that_errors_cancel():
    """Of inputs that are alike, as pixels are, products change much less than by the nearest whole numbers."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 40)) + 0.05 * rng.normal(size=(2000, 40)) + 3.0
    weights = 20 * rng.normal(size=(30, 40))
    found, nearest = rounded(weights, inputs[:1000]), np.rint(weights)
    assert (found == np.rint(found)).all()
    assert np.abs(found - weights).max() < 3
    error, before = (
        ((whole - weights) @ (inputs[1000:] - inputs[:1000].mean(axis=0)).T).std() for whole in (found, nearest)
    )
    assert error < before / 3
    np.testing.assert_array_equal(rounded(weights, np.ones((5, 40))), nearest)  # nothing varies


def test_primes_go_after_squares_or_before_them():
    """The scale that each map's whole numbers have follows the primes as they are, whatever the order."""
    after, before = Order([101, 103, 107], 2), Order([101, 103, 107, 109], 2)
    assert [after.of_map(k) for k in range(3)] == [1, 1, 1]
    assert [after.of_square(k) for k in range(2)] == [107, 103]
    assert [before.of_map(k) for k in range(3)] == [1, 107, 103]
    assert [before.of_square(k) for k in range(2)] == [109, 1]
    for order in (after, before):
        gone = [order.of_map(k) * (order.of_square(k) if k < 2 else 1) for k in range(3)]
        assert math.prod(gone) * 101 == math.prod(order.moduli)
