"""Intervals per patient: what they promise is kept, and nothing more is promised than patients support."""

import numpy as np
import pytest

from histocrypt.errors import InputError
from histocrypt.trust.conformal import (
    half_widths,
    held_out_errors,
    highest_level,
    patient_scores,
    promise,
    scores_of,
    to_dict,
)


def test_the_highest_level_is_that_of_the_patients():
    assert [highest_level(count) for count in (1, 3, 9, 19)] == pytest.approx([0.5, 0.75, 0.9, 0.95])


@pytest.mark.parametrize(("level", "place"), [(0.2, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (None, 2)])
def test_a_level_is_an_order_statistic_over_patients(level, place):
    scores = np.array([[3.0, 30.0], [1.0, 10.0], [2.0, 20.0]])
    assert half_widths(scores, level).tolist() == np.sort(scores, axis=0)[place].tolist()


@pytest.mark.parametrize("level", [0.0, 0.751, 0.9, 1.0])
def test_a_level_beyond_the_patients_is_refused(level):
    with pytest.raises(InputError) as error:
        half_widths(np.ones((3, 2)), level)
    assert (error.value.field, error.value.value) == ("level", level)


def test_a_patients_score_bounds_its_share_of_spots_and_no_more():
    errors = np.column_stack([np.arange(20) * (-1) ** np.arange(20), np.full(20, np.nan)]).astype(float)
    scores = patient_scores(errors, ["a"] * 20, share=0.9)["a"]
    assert (np.abs(errors[:, 0]) <= scores[0]).sum() == 18
    assert np.isinf(scores[1])  # what was not predicted is not inside


def test_spots_of_new_patients_are_kept_as_promised_where_ordinary_intervals_are_not():
    rng, patients, spots, trials = np.random.default_rng(0), 4, 60, 1500
    of = np.repeat([f"p{i}" for i in range(patients)], spots)
    kept = ordinary = 0
    for _ in range(trials):
        errors = (
            rng.normal(size=((patients + 1) * spots, 1)) + np.repeat(rng.normal(0, 2, patients + 1), spots)[:, None]
        )
        known, new = errors[: patients * spots], np.abs(errors[patients * spots :])
        width = half_widths(np.stack(list(patient_scores(known, of).values())))
        kept += (new <= width).mean() >= 0.9
        ordinary += (new <= np.quantile(np.abs(known), 0.9)).mean() >= 0.9
    least = 0.8 - 3 * (0.8 * 0.2 / trials) ** 0.5
    assert least <= kept / trials <= 1.6 - least  # exact, where no two scores are equal
    assert ordinary / trials < least


def test_errors_of_values_take_nothing_from_the_patient_itself():
    rng = np.random.default_rng(1)
    measured = rng.normal(size=(30, 3))
    patients, sections = np.repeat(["a", "b", "c"], 10), np.repeat(["a1", "a2", "b1", "b2", "c1", "c2"], 5)
    predicted = rng.normal(size=(30, 3))
    errors = held_out_errors(measured, predicted, patients, sections, centred=False)
    assert errors[:10] == pytest.approx(measured[:10] - measured[10:].mean(axis=0) - predicted[:10])
    within = held_out_errors(
        measured + np.repeat(rng.normal(size=(6, 3)), 5, axis=0), predicted, patients, sections, centred=True
    )
    assert within == pytest.approx(held_out_errors(measured, predicted, patients, sections, centred=True))


def test_scores_survive_their_file_and_say_what_they_promise():
    said = to_dict({"a": np.array([1.23456, np.inf]), "b": np.array([2.0, 3.0]), "c": np.array([0.5, 1.0])})
    widths = half_widths(scores_of(said))
    assert widths[0] == 2.0
    assert np.isinf(widths[1])
    assert half_widths(scores_of(said), 0.5).tolist() == [1.235, 3.0]
    assert "75%" in promise(said)
    assert "90%" in promise(said)
