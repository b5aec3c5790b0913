import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from histocrypt.evaluation import metrics
from histocrypt.spatial import touching


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    true = rng.poisson(3, (60, 8)).astype(float)  # ties on purpose
    return true, (0.5 * true + rng.standard_normal(true.shape)).astype(np.float32)


def test_metrics_equal_the_reference_libraries(pair):
    true, predicted = pair
    found = metrics.per_gene(true, predicted)
    for j in range(true.shape[1]):
        t, p = true[:, j], predicted[:, j].astype(float)
        assert found["pearson"][j] == pytest.approx(stats.pearsonr(t, p).statistic)
        assert found["spearman"][j] == pytest.approx(stats.spearmanr(t, p).statistic)
        assert found["mse"][j] == pytest.approx(reference.mean_squared_error(t, p))
        assert found["mae"][j] == pytest.approx(reference.mean_absolute_error(t, p))
        assert found["r2"][j] == pytest.approx(reference.r2_score(t, p))


def test_rvd_is_0_for_perfect_and_1_for_constant_and_1_for_twice_the_variance(pair):
    true, _ = pair
    doubled = true.mean(axis=0) + np.sqrt(2) * (true - true.mean(axis=0))
    assert metrics.relative_variance_distance(true, true) == pytest.approx(np.zeros(8))
    assert metrics.relative_variance_distance(true, np.ones_like(true)) == pytest.approx(np.ones(8))
    assert metrics.relative_variance_distance(true, doubled) == pytest.approx(np.ones(8))


def test_a_constant_prediction_counts_as_0_and_a_constant_truth_as_unknown(pair):
    true, predicted = (array.copy() for array in pair)
    predicted[:, 2] = np.float32(0.1) + np.arange(60) % 2 * np.float32(1e-8)  # no more than rounding
    true[:, 5] = 0
    found = metrics.per_gene(true, predicted)
    assert found["pearson"][2] == found["spearman"][2] == 0
    assert found["constant_prediction"].tolist() == [j == 2 for j in range(8)]
    for name in ("pearson", "spearman", "r2", "rvd"):
        assert np.isnan(found[name][5]), name
        assert np.isfinite(np.delete(found[name], 5)).all(), name


def test_the_smallest_real_variation_is_not_a_constant():
    values = np.zeros((50, 1))
    values[7] = 1e-3
    assert not metrics.is_constant(values).any()
    assert not metrics.is_constant(np.full((5, 1), 9.0) + np.linspace(0, 1e-3, 5)[:, None]).any()


def morans_i_by_hand(values, weights):
    away = values - values.mean()
    return len(values) / weights.sum() * (weights * np.outer(away, away)).sum() / (away @ away)


@pytest.mark.parametrize("hexagonal", [False, True])
def test_neighbours_are_the_spots_that_touch_and_morans_i_is_its_formula(hexagonal):
    y, x = np.divmod(np.arange(64), 8)
    coords = np.column_stack([x + (y % 2) / 2, y * np.sqrt(3) / 2]) if hexagonal else np.column_stack([x, y])
    graph = touching(coords * 137.0)
    inner = 3 * 8 + 3
    assert graph[inner].sum() == (6 if hexagonal else 8)
    assert graph.diagonal().sum() == 0
    rng = np.random.default_rng(0)
    values = np.column_stack([x + 0.1 * rng.standard_normal(64), rng.standard_normal(64), np.full(64, 3.0)])
    found = metrics.morans_i(values, graph)
    dense = graph.toarray()
    assert found[:2] == pytest.approx([morans_i_by_hand(values[:, j], dense) for j in (0, 1)])
    assert found[0] > 0.7
    assert abs(found[1]) < 0.2
    assert found[2] == 0


def test_pcc_k_in_the_published_way_is_never_below_the_one_chosen_on_training_data():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, 30)
    scores[4] = np.nan
    for k in (1, 5, 29, 100):
        ranking = rng.standard_normal(30)
        chosen = metrics.mean_of_top(scores, ranking, k)
        assert metrics.mean_of_top(scores, scores, k) >= chosen - 1e-12
    assert metrics.mean_of_top(np.array([0.1, 0.9, 0.5]), np.array([3.0, 1.0, 2.0]), 2) == pytest.approx(0.3)
    assert metrics.mean_of_top(scores, scores, 100) == pytest.approx(np.nanmean(scores))


def test_within_a_spot_it_is_the_order_of_the_panel_that_counts():
    true = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0], [0.2, 0.2, 0.2], [0.1, 0.2, 0.7]])
    predicted = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    found = metrics.within_spot(true, predicted)
    assert found[0] == pytest.approx(1)
    assert found[1] == pytest.approx(stats.spearmanr(true[1], predicted[1]).statistic)  # a tie in the truth
    assert np.isnan(found[2])  # nothing to put in order
    assert found[3] == 0  # a constant prediction counts
    # The mean composition does well where some types are common everywhere: it is the baseline for this number.
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.linspace(0.5, 12, 10), 200)
    assert metrics.within_spot(shares, np.tile(shares.mean(axis=0), (200, 1))).mean() > 0.7
    assert np.nanmean(metrics.pearson(shares, np.tile(shares.mean(axis=0), (200, 1)))) == 0
