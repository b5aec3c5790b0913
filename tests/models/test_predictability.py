"""Held-out correlations on training patients: right where the answer is known, and blind to nobody left in."""

import numpy as np
import pytest
from tests.models.test_baselines import OUTPUTS, make_spots

from histocrypt.predictors.closed_form import EncoderRidge, MeanProfile, NearestNeighbours, Ridge, inner_folds, ridge
from histocrypt.predictors.predictability import BY, correlations_of, predictability


class Features(Ridge):
    """Ridge on the features as they are."""

    def _fit_inputs(self, train):
        return train.features("any")

    _inputs = _fit_inputs


def test_each_spot_is_predicted_by_a_fit_without_its_patient():
    train = make_spots(["a_1", "a_2", "b_1", "c_1"])
    model = Features()
    penalty = model.fit(train)["penalty"]
    expected = []
    for patient in "abc":
        out = train.patients == patient
        (b,), (a,) = ridge(train.features("any")[~out], train.targets[~out], [penalty])
        predicted = train.features("any")[out] @ b + a
        own = [
            [np.corrcoef(predicted[rows, j], train.targets[out][rows, j])[0, 1] for j in range(5)]
            for section in np.unique(train.sections[out])
            for rows in [train.sections[out] == section]
        ]
        expected.append(np.mean(own, axis=0))
    found = model.predictability
    assert (found.by, found.patients, found.sections) == (BY[0], 3, 4)
    assert found.correlation == pytest.approx(np.mean(expected, axis=0), abs=1e-5)


@pytest.mark.parametrize("family", [EncoderRidge, NearestNeighbours])
def test_it_ranks_outputs_as_an_unseen_patient_does(family):
    """The first output is depth, which no feature shows; the others are."""
    train, test = make_spots(["a_1", "b_1", "c_1"]), make_spots(["d_1"], seed=1)
    model = family()
    model.fit(train)
    predicted = model.predict(test)
    unseen = [np.corrcoef(predicted[:, j], test.targets[:, j])[0, 1] for j in range(5)]
    told = model.predictability.correlation
    assert told.argmin() == np.argmin(unseen) == 0
    assert np.abs(told - unseen)[1:].max() < 0.2  # of the first, chance alone moves either by .1
    assert told[1:].min() > told[0] + 0.3


def test_memorised_noise_is_not_called_predictable():
    """A fit that returns what it was given would look perfect if a spot were left in."""
    train = make_spots(["a_1", "b_1"])
    rng = np.random.default_rng(0)
    random = train.targets.copy()
    random[:] = rng.normal(size=random.shape)
    train = type(train)(**{**vars(train), "targets": random})
    model = EncoderRidge()
    model.fit(train, chosen={"penalty": 1e-4})
    inside = model.predict(train)
    assert np.mean([np.corrcoef(inside[:, j], random[:, j])[0, 1] for j in range(5)]) > 0.3
    assert abs(model.predictability.correlation.mean()) < 0.15


def test_what_was_left_out_is_said_and_nothing_is_said_without_any():
    two = make_spots(["a_1", "a_2"])
    model = Features()
    model.fit(two)
    assert (model.predictability.by, model.predictability.patients) == (BY[1], 1)
    one = make_spots(["a_1"])
    model.fit(one)
    assert model.predictability.by == BY[2]
    mean = MeanProfile()
    mean.fit(two)
    assert mean.predictability is None
    assert predictability(two, [], lambda *_: None) is None


def test_constant_outputs_are_unknown_and_constant_predictions_count_as_zero():
    train = make_spots(["a_1", "b_1"])
    train.targets[:, 1] = 3.0
    found = predictability(train, inner_folds(train), lambda known, out: np.ones((len(out), 5)))
    assert np.isnan(found.correlation[1])
    assert (np.delete(found.correlation, 1) == 0).all()
    said = found.to_dict(OUTPUTS)
    assert said["correlation"][OUTPUTS[1]] is None
    read = correlations_of(said, [*OUTPUTS, "log1p:absent"])
    assert np.isnan(read[[1, 5]]).all()
    assert np.isnan(correlations_of(None, OUTPUTS)).all()
