"""Distributions against closed forms, and joined to the truth by name."""

import numpy as np
import pytest
from scipy.stats import norm

from histocrypt.errors import InputError
from histocrypt.evaluation import metrics
from histocrypt.evaluation.metrics import relative_variance_distance
from histocrypt.evaluation.stem import MEASURES, Samples, score_section
from histocrypt.pipeline.predictions import Joined


def gaussian_crps(y, mean, sd):
    """Source: Gneiting et al., Monthly Weather Review 133 (2005), equation (5)."""
    z = (y - mean) / sd
    return sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


def test_crps_is_that_of_a_gaussian():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4000, 3))
    mean, sd = rng.normal(size=y.shape), rng.uniform(0.5, 2, y.shape)
    expected = gaussian_crps(y, mean, sd).mean(axis=0)
    for k in (3, 200):  # without bias: right for few samples, too
        samples = mean[:, None] + sd[:, None] * rng.normal(size=(4000, k, 3))
        assert np.allclose(metrics.crps(y, samples), expected, atol=0.05 if k == 3 else 0.01)


def test_crps_of_a_certain_value_is_its_absolute_error():
    y = np.arange(12.0).reshape(6, 2)
    samples = np.repeat(y[:, None] + 2, 4, axis=1)
    assert np.allclose(metrics.crps(y, samples), 2)
    assert np.isnan(metrics.crps(np.ones((6, 2)), samples)).all()


def test_rvd_of_a_perfect_a_constant_and_a_variance_doubled_predictor():
    y = np.random.default_rng(0).normal(size=(200, 4))
    doubled = y.mean(axis=0) + np.sqrt(2) * (y - y.mean(axis=0))
    assert np.allclose(relative_variance_distance(y, y), 0)
    assert np.allclose(relative_variance_distance(y, np.ones_like(y)), 1)
    assert np.allclose(relative_variance_distance(y, doubled), 1)
    samples = np.stack([y, doubled], axis=1)
    assert np.allclose(metrics.single_sample_rvd(y, samples), 0.5)


def test_coverage_counts_what_lies_inside():
    y = np.arange(10.0)[:, None] * np.ones(2)
    assert metrics.coverage(y, np.full_like(y, 2), np.full_like(y, 6)).tolist() == [0.5, 0.5]


def test_gene_gene_correlation_error():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(500, 1))
    true = np.hstack([one, one, -one])
    assert metrics.correlation_error(true, true) == pytest.approx(0)
    assert metrics.correlation_error(true, np.zeros_like(true)) == pytest.approx(1)
    assert metrics.correlation_error(true, rng.normal(size=true.shape)) == pytest.approx(1, abs=0.1)
    assert np.isnan(metrics.correlation_error(np.ones((5, 3)), true[:5]))


def pair(n=64, genes=4):
    rng = np.random.default_rng(1)
    x, y = np.meshgrid(np.arange(8.0), np.arange(8.0))
    true = rng.normal(size=(n, genes)) + x.ravel()[:, None] / 4
    names = np.array([f"s:{i}" for i in range(n)])
    symbols = np.array([f"g{i}" for i in range(genes)])
    coords = np.column_stack([x.ravel(), y.ravel()])
    return Joined("s", "p", names, symbols, symbols, coords, {"log1p": true}, {"log1p": true * 0.5}, [], [], [])


def test_the_right_distribution_scores_right_and_samples_are_joined_by_name():
    one, rng = pair(), np.random.default_rng(2)
    centre = one.true["log1p"] - rng.normal(size=(64, 4))
    values = centre[:, None] + rng.normal(size=(64, 200, 4))
    order, columns = rng.permutation(64), rng.permutation(4)
    shuffled = Samples(one.spots[order], one.genes[columns], values[order][:, :, columns], {})
    assert np.array_equal(shuffled.of(one), values)
    found = score_section(one, "log1p", values)
    assert set(found) == set(MEASURES)
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.08)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.06)
    point = score_section(one, "log1p")
    assert point["crps"] == point["mae"]
    assert np.isnan(point["coverage_50"])
    with pytest.raises(InputError, match="samples lack 1 of the predicted"):
        Samples(one.spots[1:], one.genes, values[1:], {}).of(one)
