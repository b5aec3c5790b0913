import numpy as np
import pytest
from scipy.stats import binom

from histocrypt.audit.lower_bound import (
    coin_runs,
    epsilon_at_least,
    lower_bound,
    most_shown,
    of_canaries,
    p_value,
    toss,
)
from histocrypt.errors import InputError


def randomised_response(epsilon: float, m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coins, and what a mechanism of exactly this epsilon says of each."""
    coins = rng.random(m) < 0.5
    told = rng.random(m) < 1 / (1 + np.exp(-epsilon))
    return np.where(told, coins, ~coins).astype(float), coins


@pytest.mark.parametrize(
    ("m", "guesses", "right", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_figures_that_the_authors_print(m, guesses, right, delta, published):
    assert epsilon_at_least(m, guesses, right, delta=delta) == pytest.approx(published, abs=1e-3)


def test_with_delta_the_p_value_is_the_worst_mixture_that_the_theorem_allows():
    m, r, v, epsilon, delta = 30, 12, 9, 0.7, 0.004
    q = np.exp(epsilon) / (1 + np.exp(epsilon))
    mass = [binom.pmf(range(v - i, v), r, q).sum() / i for i in range(1, v + 1)]
    expected = binom.pmf(range(v, r + 1), r, q).sum() + 2 * m * delta * max(mass)
    assert p_value(m, r, v, epsilon=epsilon, delta=delta) == pytest.approx(expected)


@pytest.mark.parametrize("epsilon", [0.5, 1.5, 3.0])
def test_the_bound_exceeds_a_known_epsilon_as_seldom_as_promised(epsilon):
    rng, draws, m = np.random.default_rng(0), 2000, 200
    accuracy = 1 / (1 + np.exp(-epsilon))
    bounds = {right: epsilon_at_least(m, m, right) for right in range(m // 2, m + 1)}
    above = sum(bounds.get(right, 0.0) > epsilon for right in rng.binomial(m, accuracy, draws).tolist())
    assert above <= binom.ppf(0.999, draws, 0.05)
    # It is no looser than a whole number of guesses makes it.
    exact = binom.sf(min(right for right, bound in bounds.items() if bound > epsilon) - 1, m, accuracy)
    assert 0.02 < exact <= 0.05
    assert binom.ppf(0.001, draws, exact) <= above <= binom.ppf(0.999, draws, exact)


def test_the_best_of_several_numbers_of_guesses_still_keeps_the_promise():
    rng, draws = np.random.default_rng(1), 300
    above = 0
    for _ in range(draws):
        said, coins = randomised_response(1.0, 60, rng)
        above += lower_bound(said, coins, guesses=(60, 30, 10)).epsilon > 1.0
    assert above <= binom.ppf(0.999, draws, 0.05)


def test_randomised_response_is_found_from_below():
    rng = np.random.default_rng(2)
    found = lower_bound(*randomised_response(2.0, 5000, rng))
    assert 1.8 < found.epsilon < 2.0
    assert found.right / found.guesses == pytest.approx(1 / (1 + np.exp(-2.0)), abs=0.02)


def test_without_a_leak_nothing_is_shown_and_planted_leaks_show_the_more_the_larger_they_are():
    rng = np.random.default_rng(3)
    coins = toss(np.arange(400), seed=3)
    noise = rng.normal(size=400)
    found = [lower_bound(strength * coins + noise, coins).epsilon for strength in (0.0, 1.0, 2.0, 4.0, 50.0)]
    assert found[0] == 0
    assert found == sorted(found)
    assert len(set(found)) == 5
    assert found[-1] == most_shown(400)


def test_no_number_of_canaries_shows_more_than_all_guesses_right():
    few = [most_shown(m) for m in (4, 5, 20, 100)]
    assert few[0] == 0  # four right guesses of four happen by chance in 6 % of cases
    assert few[2] == pytest.approx(np.log(0.05 ** (1 / 20) / (1 - 0.05 ** (1 / 20))), abs=1e-4)
    assert few == sorted(few)
    coins = toss(np.arange(20), seed=0)
    found = lower_bound(coins.astype(float), coins)
    assert found.epsilon == found.most == few[2]
    assert f"{few[2]:.2f}" in found.sentence()
    assert "does not say that there is none" in lower_bound(np.zeros(20), coins).sentence("tile")


def test_runs_with_fresh_coins_are_one_larger_audit():
    coins = np.stack([toss(np.arange(10), seed=seed) for seed in range(8)])
    found = lower_bound(coins.astype(float), coins)
    by_run = [lower_bound(run.astype(float), run).right for run in coins]
    assert (found.canaries, found.guesses, found.right) == (80, 80, sum(by_run))
    assert found.most == most_shown(80) > most_shown(10)


def test_all_records_of_a_canary_share_its_coin_and_its_score():
    patients = np.repeat([f"P{i}" for i in range(200)], 3)
    coins = toss(patients, seed=1)
    own, names = of_canaries(coins, patients)
    assert set(own.tolist()) == {0.0, 1.0}
    assert 70 < own.sum() < 130
    assert len(names) == 200
    assert not np.array_equal(coins, toss(patients, seed=2))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"guesses": 11}, "guesses"),
        ({"guesses": ()}, "guesses"),
        ({"delta": 1.0}, "delta"),
        ({"confidence": 1.0}, "confidence"),
        ({"scores": np.full(10, np.nan)}, "scores"),
        ({"scores": np.zeros(9)}, "scores"),
        ({"inside": np.zeros(10)}, "scores"),
    ],
)
def test_what_does_not_fit_is_refused(asked, field):
    with pytest.raises(InputError) as error:
        lower_bound(**{"scores": np.arange(10.0), "inside": toss(np.arange(10), seed=0)} | asked)
    assert error.value.field == field


def test_more_right_guesses_than_guesses_are_refused():
    with pytest.raises(InputError) as error:
        p_value(10, 5, 6, epsilon=1.0)
    assert error.value.field == "right"


def memory(known: float, hard: np.ndarray, rng: np.random.Generator):
    """A training whose loss of a record is its difficulty, noise, and less by `known` where it was trained on."""

    def train_one(inside: np.ndarray, seed: int) -> np.ndarray:
        assert inside.any()
        return hard + rng.normal(0, 0.3, len(inside)) - known * inside

    return train_one


def test_trainings_with_fresh_coins_show_a_leak_that_one_run_of_few_patients_cannot():
    rng = np.random.default_rng(5)
    patients = np.repeat([f"P{i}" for i in range(5)], 4)
    hard = np.repeat(rng.normal(0, 10, 5), 4)  # patients differ by far more than membership does
    found = {}
    for known in (1.0, 0.0):
        scores, coins = coin_runs(memory(known, hard, rng), patients, runs=40, seed=0)
        assert scores.shape == coins.shape == (40, 5)
        found[known] = lower_bound(scores, coins)
    assert found[1.0].epsilon > 1 > most_shown(5)
    assert found[0.0].epsilon == 0
    assert found[1.0].canaries == 200


def test_a_training_that_gives_other_losses_is_refused():
    with pytest.raises(InputError) as error:
        coin_runs(lambda inside, seed: np.zeros(3), np.arange(10), runs=1, seed=0)
    assert error.value.field == "train_one"


def test_finished_runs_are_kept_and_those_of_another_training_are_not_taken_for_them(tmp_path):
    patients, rng, asked = np.repeat([f"P{i}" for i in range(6)], 2), np.random.default_rng(6), []

    def train_one(inside: np.ndarray, seed: int) -> np.ndarray:
        asked.append(seed)
        return rng.normal(size=len(inside))

    kept = {"runs": 3, "seed": 1, "folder": tmp_path}
    first, coins = coin_runs(train_one, patients, fingerprint="a", **kept)
    again, same = coin_runs(train_one, patients, fingerprint="a", **kept)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(coins, same)
    assert len(asked) == len(set(asked)) == 3
    coin_runs(train_one, patients, fingerprint="b", **kept)
    assert len(asked) == 6
