"""Baselines on problems whose answer is known, and against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.linear_model import Ridge

from histocrypt.data.load import Spots
from histocrypt.predictors.closed_form import (
    ColourRidge,
    DepthOnly,
    EncoderRidge,
    MeanProfile,
    NearestNeighbours,
    choose_penalty,
    colour_features,
    fit_ridge,
    inner_folds,
    mean_and_sd,
    ridge,
    standardise,
)
from histocrypt.predictors.registry import BASELINES, model_class

OUTPUTS = tuple(f"log1p:G{i}" for i in range(5))


def make_spots(sections, *, seed=0, n=60, shift=0.0, targets=True):
    """Simulate spots whose targets follow a feature and, in the first output, depth; sections differ by ``shift``."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=(8, 5))
    names, latent, section_of = [], [], np.repeat(sections, n)
    for section in sections:
        names += [f"{section}:{i}" for i in range(n)]
        latent.append(rng.normal(size=(n, 8)))
    latent = np.concatenate(latent)
    depth = rng.lognormal(8, 0.5, len(names))
    values = latent @ weights + 0.3 * rng.normal(size=(len(names), 5))
    values[:, 0] = np.log(depth)
    offset = shift * np.array([list(sections).index(s) for s in section_of])[:, None]
    features = np.concatenate([latent + offset, rng.normal(size=(len(names), 20))], axis=1).astype(np.float32)
    grey = (1 / (1 + np.exp(-latent[:, :3])) * 200 + 20)[:, None, None, :]
    tiles = np.clip(grey + rng.normal(0, 10, (len(names), 12, 12, 3)), 0, 255).astype(np.uint8)
    return Spots(
        names=np.array(names),
        sections=section_of,
        patients=np.array([section.split("_")[0] for section in section_of]),
        depth=depth,
        outputs=OUTPUTS,
        targets=values.astype(np.float32) if targets else None,
        pixels=lambda: tiles,
        features=lambda encoder: features,
    )


@pytest.fixture(scope="module")
def train():
    return make_spots(["a_1", "a_2", "b_1", "c_1"])


@pytest.fixture(scope="module")
def test():
    return make_spots(["d_1"], seed=1)


def correlation(predicted, truth):
    return np.array([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, truth.T, strict=True)])


def test_ridge_is_scikit_learns():
    rng = np.random.default_rng(0)
    for n, d in ((50, 8), (20, 40)):
        x, y = rng.normal(3, 2, (n, d)), rng.normal(size=(n, 4))
        penalties = [1e-3, 0.5, 100.0]
        coefficients, intercepts = ridge(x, y, penalties)
        for i, penalty in enumerate(penalties):
            expected = Ridge(alpha=n * penalty).fit(x, y)
            assert np.allclose(coefficients[i], expected.coef_.T, atol=1e-8)
            assert np.allclose(intercepts[i], expected.intercept_, atol=1e-8)


def test_the_penalty_is_chosen_on_whole_patients(train):
    folds = inner_folds(train)
    assert len(folds) == 3
    for known, held_out in folds:
        assert not set(train.patients[known]) & set(train.patients[held_out])
    one_patient = train.subset(train.patients == "a")
    assert all(not set(one_patient.sections[k]) & set(one_patient.sections[h]) for k, h in inner_folds(one_patient))
    one_section = train.subset(train.sections == "b_1")
    assert all(np.ptp(held_out) == len(held_out) - 1 for _, held_out in inner_folds(one_section))
    assert inner_folds(train.subset(np.array([0]))) == []


def test_grouping_matters_for_the_penalty():
    """A feature that only tells patients apart looks useful inside a patient's spots and is useless beyond them."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(6), 40)
    identity = rng.normal(size=(6, 10))[patients] + 0.01 * rng.normal(size=(240, 10))
    y = rng.normal(size=(6, 3))[patients] + 0.1 * rng.normal(size=(240, 3))
    names = np.array([f"s{p}" for p in patients])
    spots = replace(make_spots(["x"], n=240), sections=names, patients=names)
    grouped, _ = choose_penalty(identity, y, inner_folds(spots))
    order = rng.permutation(240)
    mixed, _ = choose_penalty(identity, y, [(order[40:], order[:40]), (order[:200], order[200:])])
    assert grouped > 100 * mixed


def test_a_given_penalty_is_not_chosen_again(train):
    x = train.features("any")
    assert fit_ridge(x, train.targets, inner_folds(train), penalty=7.0)[2] == 7.0


@pytest.mark.parametrize("name", BASELINES)
def test_state_gives_the_same_predictions_bit_by_bit(train, test, name):
    model = model_class(name)()
    chosen = model.fit(train, None, seed=0)
    predicted = model.predict(replace(test, targets=None))
    assert predicted.shape == (60, 5)
    assert predicted.dtype == np.float32
    assert np.isfinite(predicted).all()
    again = model_class(name)()
    again.load_state(load(save(model.state())))
    assert np.array_equal(again.predict(test), predicted)
    refitted = model_class(name)()
    assert refitted.fit(train, None, seed=0, chosen=chosen) == chosen
    assert np.array_equal(refitted.predict(test), predicted)


@pytest.mark.parametrize("name", BASELINES)
def test_validation_labels_are_not_looked_at(train, test, name):
    one, other = model_class(name)(), model_class(name)()
    one.fit(train, test, seed=0)
    other.fit(train, replace(test, targets=test.targets + 5), seed=0)
    assert all(np.array_equal(one.state()[key], other.state()[key]) for key in one.state())


def test_encoder_ridge_finds_a_linear_signal_and_knn_most_of_it(train, test):
    ridge_model, neighbours = EncoderRidge(components=28), NearestNeighbours(components=28)
    ridge_model.fit(train)
    neighbours.fit(train)
    assert correlation(ridge_model.predict(test), test.targets)[1:].min() > 0.95
    assert correlation(neighbours.predict(test), test.targets)[1:].mean() > 0.5


def test_depth_only_finds_depth_and_nothing_else(train, test):
    model = DepthOnly()
    model.fit(train)
    found = correlation(model.predict(test), test.targets)
    assert found[0] > 0.999
    assert np.abs(found[1:]).max() < 0.4


def test_depth_only_does_not_care_whether_targets_are_centred(train, test):
    uneven = replace(train, depth=train.depth * np.where(train.patients == "a", 5.0, 1.0))
    uneven = replace(uneven, targets=np.log(uneven.depth)[:, None].repeat(5, axis=1).astype(np.float32))
    centred = uneven.targets.copy()
    for section in np.unique(uneven.sections):
        rows = uneven.sections == section
        centred[rows] -= centred[rows].mean(axis=0)
    plain, other = DepthOnly(), DepthOnly()
    plain.fit(uneven)
    other.fit(replace(uneven, targets=centred))
    assert np.allclose(plain.state()["slope"], 1, atol=1e-3)
    assert np.allclose(plain.state()["slope"], other.state()["slope"], atol=1e-4)


def test_mean_profile_is_the_training_mean(train, test):
    model = MeanProfile()
    model.fit(train)
    assert np.allclose(model.predict(test), train.targets.mean(axis=0), atol=1e-5)


def test_colour_ridge_sees_colour_and_no_arrangement(train, test):
    model = ColourRidge()
    model.fit(train)
    assert correlation(model.predict(test), test.targets)[1:].mean() > 0.3
    order = np.random.default_rng(0).permutation(144)
    shuffled = test.tiles.reshape(60, 144, 3)[:, order].reshape(test.tiles.shape)
    assert np.allclose(colour_features(shuffled), colour_features(test.tiles), atol=1e-5)


def test_normalising_by_section_takes_a_shift_between_sections_away():
    shifted, held_out = make_spots(["a_1", "b_1", "c_1"], shift=3.0), make_spots(["d_1"], seed=1)
    moved = replace(held_out, features=lambda encoder: held_out.features(encoder) * 2 + 9)
    errors = {}
    for by_section in (True, False):
        model = EncoderRidge(components=28, normalise_by_section=by_section)
        model.fit(shifted)
        errors[by_section] = np.square(model.predict(moved) - held_out.targets)[:, 1:].mean()
    assert errors[True] < 0.5 * errors[False]


def test_a_section_of_one_spot_or_one_colour_is_not_blown_up():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3)).astype(np.float32)
    mean, sd = mean_and_sd(features, np.repeat(["s", "t"], 20), by_section=True)
    uniform = np.tile(features[:1], (5, 1)) + 1e-6 * rng.normal(size=(5, 3)).astype(np.float32)
    for given, sections in ((features[:1], ["u"]), (uniform, ["u"] * 5)):
        scores = standardise(given, np.array(sections), mean, sd, by_section=True)
        assert np.abs(scores).max() < 1e-4


def test_few_spots_still_fit():
    spots = make_spots(["a_1", "b_1"], n=2)
    for name in BASELINES:
        model = model_class(name)()
        model.fit(spots)
        assert np.isfinite(model.predict(spots)).all()
