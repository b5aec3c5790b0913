import numpy as np
import pytest

from histocrypt.evaluation import bootstrap, metrics
from histocrypt.spatial import squares


def test_blocks_are_squares_of_the_given_side():
    y, x = np.divmod(np.arange(36), 6)
    labels = squares(np.column_stack([x, y]) * 200.0 + 5000, 600)
    assert np.bincount(labels).tolist() == [9, 9, 9, 9]
    assert len({(x // 3, y // 3, label) for x, y, label in zip(x, y, labels, strict=True)}) == 4


def test_sums_per_block_give_what_resampling_the_spots_gives():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3])
    true = rng.poisson(2, (15, 6)).astype(float) + 1000  # a large mean: differences of squares must stay exact
    predicted = rng.standard_normal((15, 6)) + 0.3 * true
    true[labels != 1, 2] = 7  # constant in the draws that miss block 1
    true[:, 4] = 7  # constant everywhere
    predicted[:, 3] = 0.25  # constant prediction
    weights = bootstrap.draw_weights(4, 60, rng)
    sums = bootstrap.block_sums(true, predicted, labels)
    correlation, error = bootstrap.pearson_of_draws(sums, weights), bootstrap.mse_of_draws(sums, weights)
    for draw, row in enumerate(weights.astype(int)):
        spots = np.concatenate(
            [np.repeat(np.flatnonzero(labels == block)[None], n, 0).ravel() for block, n in enumerate(row)]
        )
        t, p = true[spots], predicted[spots]
        assert correlation[draw] == pytest.approx(np.nanmean(metrics.pearson(t, p)), abs=1e-9)
        usable = ~metrics.is_constant(true)
        assert error[draw] == pytest.approx(metrics.mse(t, p)[usable].mean(), rel=1e-9)


def test_a_single_block_says_nothing_of_an_interval():
    rng = np.random.default_rng(0)
    true, predicted = rng.standard_normal((2, 30, 4))
    weights = bootstrap.draw_weights(1, 20, rng)
    sums = bootstrap.block_sums(true, predicted, np.zeros(30, dtype=int))
    spots = bootstrap.mean_of_draws(true[:, 0], np.zeros(30, dtype=int), weights)
    for draws in (bootstrap.pearson_of_draws(sums, weights), bootstrap.mse_of_draws(sums, weights), spots):
        assert draws.shape == (20,)
        assert np.isnan(bootstrap.interval(draws, 0.3)).all()


def simulate(rng, blocks, gain, genes=5, per_block=12):
    def draw(scale):
        return scale * rng.standard_normal((blocks, genes)).repeat(per_block, axis=0)

    shape = (blocks * per_block, genes)
    true = draw(1.0) + rng.standard_normal(shape)
    other = gain * true + draw(0.5) + rng.standard_normal(shape)
    return true, other, np.repeat(np.arange(blocks), per_block)


def test_the_interval_covers_about_as_often_as_it_says_and_holds_its_score():
    rng = np.random.default_rng(1)
    whole = np.ones((1, 9))

    def score(true, predicted, labels):
        return bootstrap.pearson_of_draws(bootstrap.block_sums(true, predicted, labels), whole)[0]

    expected = np.mean([score(*simulate(rng, 9, 0.6)) for _ in range(1500)])
    covered = 0
    for _ in range(100):
        draws, scores = [], []
        for _ in range(4):  # sections
            true, predicted, labels = simulate(rng, 9, 0.6)
            weights = bootstrap.draw_weights(9, 200, rng)
            draws.append(bootstrap.pearson_of_draws(bootstrap.block_sums(true, predicted, labels), weights))
            scores.append(score(true, predicted, labels))
        low, high = bootstrap.interval(np.mean(draws, axis=0), float(np.mean(scores)))
        assert low < np.mean(scores) < high
        covered += low <= expected <= high
    assert 85 <= covered <= 99


def test_shared_draws_make_the_interval_of_a_difference_narrower():
    rng = np.random.default_rng(2)
    true, first, labels = simulate(rng, 16, 0.6)
    second = first + 0.3 * rng.standard_normal(first.shape)
    weights, others = bootstrap.draw_weights(16, 400, rng), bootstrap.draw_weights(16, 400, rng)
    a = bootstrap.pearson_of_draws(bootstrap.block_sums(true, first, labels), weights)
    b = bootstrap.block_sums(true, second, labels)
    paired, unpaired = a - bootstrap.pearson_of_draws(b, weights), a - bootstrap.pearson_of_draws(b, others)
    assert paired.std() < 0.5 * unpaired.std()


def test_the_same_seed_gives_the_same_draws():
    one, two = (bootstrap.draw_weights(5, 20, np.random.default_rng(7)) for _ in range(2))
    assert (one == two).all()
    assert (one.sum(axis=1) == 5).all()


def test_a_mean_over_spots_is_redrawn_by_blocks_and_leaves_out_spots_without_a_value():
    labels = np.array([0, 0, 1, 1, 1, 2])
    values = np.array([1.0, np.nan, 0.0, 0.5, 1.0, np.nan])
    weights = np.array([[1, 1, 1], [3, 0, 0], [0, 2, 1], [0, 0, 3]], dtype=float)
    found = bootstrap.mean_of_draws(values, labels, weights)
    assert found[:3] == pytest.approx([2.5 / 4, 1.0, 0.5])
    assert np.isnan(found[3])
