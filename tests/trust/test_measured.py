"""Some spots of a section were measured: what is planted is found, and intervals keep their promise per section."""

import numpy as np
import pytest
from scipy.stats import binom

from histocrypt.trust.conformal import half_widths
from histocrypt.trust.measured import (
    LEAST,
    fit,
    fit_alone,
    left_out,
    level_of,
    lie_together,
    lower_error,
    promise,
)

SIDE, GENES = 16, 40
GRID = 200.0 * np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)


def section(seed, *, level=0.0, slope=1.0, place=0.0, noise=1.0):
    """Return predictions and what is measured of a section: level and slope of each gene, smooth and rough noise."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(SIDE**2, GENES))
    apart = np.linalg.norm(GRID[:, None] - GRID[None], axis=-1)
    smooth = np.linalg.cholesky(np.exp(-apart / 400) + 1e-9 * np.eye(SIDE**2)) @ rng.normal(size=predicted.shape)
    true = level + slope * predicted + place * smooth + noise * rng.normal(size=predicted.shape)
    return predicted, true, rng.permutation(SIDE**2)


def test_planted_levels_and_slopes_are_found():
    rng = np.random.default_rng(1)
    levels, slopes = rng.normal(0, 2, GENES), rng.uniform(0, 3, GENES)
    predicted, true, drawn = section(0, level=levels, slope=slopes, noise=0.3)
    mine, rest = drawn[:60], drawn[60:]
    found = fit(predicted[mine], true[mine], GRID[mine])
    np.testing.assert_allclose(found.slope, slopes, atol=0.2)
    np.testing.assert_allclose(found.level, (true - predicted)[mine].mean(axis=0), atol=0.02)
    errors = true[rest] - found.apply(predicted[rest], GRID[rest])
    assert np.abs(errors).mean() == pytest.approx(0.3 * np.sqrt(2 / np.pi), rel=0.06)


def test_what_sampling_alone_explains_is_left_as_predicted():
    """A model without error keeps its predictions nearly as they are; plain least squares would not."""
    changed, plain = [], []
    for seed in range(20):
        predicted, true, drawn = section(seed)
        mine = drawn[:10]
        found = fit(predicted[mine], true[mine], GRID[mine], spatial=False)
        changed.append([np.square(found.level).mean(), np.square(found.slope - 1).mean()])
        plain.append(np.square((true - predicted)[mine].mean(axis=0)).mean())
    level, slope = np.mean(changed, axis=0)
    assert level < 0.1 * np.mean(plain)
    assert slope < 0.05


def test_no_slope_turns_a_prediction_upside_down():
    predicted, true, drawn = section(0, slope=-1.0)
    assert (fit(predicted[drawn[:30]], true[drawn[:30]], GRID[drawn[:30]]).slope == 0).all()


@pytest.mark.parametrize(("place", "used"), [(1.0, True), (0.0, False)])
def test_place_is_used_where_it_helps_and_only_there(place, used):
    chosen = []
    for seed in range(6):
        predicted, true, drawn = section(seed, place=place, noise=0.5)
        mine, rest = drawn[:120], drawn[120:]
        found = fit(predicted[mine], true[mine], GRID[mine])
        chosen.append(found.reach_um > 0)
        if used:
            without = fit(predicted[mine], true[mine], GRID[mine], spatial=False)
            errors = [np.abs(true - one.apply(predicted, GRID))[rest].mean() for one in (found, without)]
            assert errors[0] < 0.9 * errors[1]
    assert sum(chosen) == 6 if used else sum(chosen) <= 2


def test_errors_left_out_are_those_of_fits_without_the_spot():
    predicted, true, _ = section(0, place=1.0)
    mine = np.arange(8)  # fewer than the folds: one at a time
    found = left_out(predicted[mine], true[mine], GRID[mine])
    for spot in mine:
        others = mine != spot
        one = fit(predicted[mine][others], true[mine][others], GRID[mine][others])
        np.testing.assert_allclose(found[spot], one.apply(predicted[[spot]], GRID[[spot]])[0])
    changed = true.copy()
    changed[3] += 100
    assert left_out(predicted[mine], changed[mine], GRID[mine])[3] == pytest.approx(found[3])


def test_measured_spots_alone_are_their_mean_where_place_tells_nothing():
    _, true, drawn = section(0)
    mine = drawn[:30]
    found = fit_alone(true[mine], true[mine], GRID[mine], spatial=False).apply(np.full((5, GENES), 7.0), GRID[:5])
    np.testing.assert_allclose(found, np.tile(true[mine].mean(axis=0), (5, 1)))


@pytest.mark.parametrize("count", [6, 20])
def test_the_level_is_kept_over_draws_of_measured_spots(count):
    """One gene and one new spot of each draw: independent yes or no; errors that differ in size from spot to spot."""
    draws, inside = 400, 0
    predicted, true, _ = section(5, level=1.0, slope=2.0, place=1.0, noise=np.linspace(0.2, 2, SIDE**2)[:, None])
    for seed in range(draws):
        drawn = np.random.default_rng(seed).permutation(SIDE**2)
        mine, new = drawn[:count], drawn[count : count + 1]
        here = predicted[mine], true[mine], GRID[mine]
        width = half_widths(np.abs(true[mine] - left_out(*here, spatial=False)), level_of(count))
        error = np.abs(true[new] - fit(*here, spatial=False).apply(predicted[new], GRID[new]))[0]
        inside += error[seed % GENES] <= width[seed % GENES]
    least, most = binom.interval(0.99, draws, level_of(count))
    assert least <= inside <= most + draws * 1 / (count + 1)  # ranks are whole numbers, and fits of fewer are worse


def test_the_level_is_no_higher_than_the_spots_support():
    assert [level_of(count) for count in (LEAST, 9, 500)] == pytest.approx([6 / 7, 0.9, 0.9])
    assert "86%" in promise(LEAST, together=False)


def test_spots_that_lie_together_are_told_from_drawn_ones():
    rng, level = np.random.default_rng(0), 0.05
    patch = np.linalg.norm(GRID - GRID[100], axis=1) < 500
    assert lie_together(GRID, patch) < level
    warned = 0
    for seed in range(40):
        drawn = np.zeros(SIDE**2, dtype=bool)
        drawn[rng.choice(SIDE**2, 15, replace=False)] = True
        warned += lie_together(GRID, drawn, seed=seed) < level
    assert warned <= binom.ppf(0.999, 40, level)
    assert promise(15, together=True).startswith("none")


def test_how_much_lower_an_error_is_has_its_interval():
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(50, GENES))
    lower, low, high = lower_error(errors, 2 * errors)
    assert (lower, low, high) == pytest.approx((0.5, 0.5, 0.5))
    lower, low, high = lower_error(errors, rng.normal(size=errors.shape))
    assert low < 0 < high
    assert low < lower < high


def test_too_few_spots_are_no_fit():
    predicted, true, _ = section(0)
    with pytest.raises(ValueError, match=str(LEAST - 2)):
        fit(predicted[: LEAST - 2], true[: LEAST - 2], GRID[: LEAST - 2])
