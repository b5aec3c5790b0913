"""The parts of a stack on made data: who is right is preferred; ranks by hand."""

import numpy as np
import pytest

from histocrypt.options import Stacking
from histocrypt.pipeline.stack import Table, _reliance, across_spots, fit_stack, rank_average, within_spots
from histocrypt.pipeline.stack_inputs import LevelOne
from histocrypt.training.loop import mean_section_pearson

SETTINGS = Stacking(epochs=40, batch_size=32)


def made(n=240, k=5, seed=0):
    """Return rows of three sections in which one family is nearly right and two know nothing."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, k)).astype(np.float32)
    families = {name: rng.normal(size=(n, k)).astype(np.float32) for name in ("noise", "right", "static")}
    families["right"] = truth + 0.3 * families["right"]
    return Table(families, np.repeat(["A", "B", "C"], n // 3), truth)


def test_who_is_right_is_preferred():
    table = made()
    judged = table.sections == "C"
    stack = fit_stack(table.rows(~judged), table.rows(judged), settings=SETTINGS, seed=0)
    held = table.rows(judged)
    score = mean_section_pearson(stack.predict(held), held.targets, held.sections)
    assert score > 0.8
    reliance = _reliance(stack, held)
    assert reliance["right"] > 0.6
    assert abs(reliance["noise"]) < 0.1
    assert abs(reliance["static"]) < 0.1
    assert max(row["validation_pcc"] for row in stack.curves) == pytest.approx(score)


def test_seeds_and_names_decide_and_nothing_else():
    table = made()
    judged = table.sections == "C"
    turned = Table(dict(reversed(table.families.items())), table.sections, table.targets)

    def learnt(rows, seed=0):
        return fit_stack(rows.rows(~judged), rows.rows(judged), settings=SETTINGS, seed=seed).predict(table)

    np.testing.assert_array_equal(learnt(table), learnt(turned))
    assert not np.array_equal(learnt(table), learnt(table, seed=1))


def test_a_refit_repeats_the_rates_that_were_chosen():
    table = made()
    judged = table.sections == "C"
    patient = Stacking(epochs=60, batch_size=32, patience=60, learning_rate=0.03)
    first = fit_stack(table.rows(~judged), table.rows(judged), settings=patient, seed=0)
    halved = [row["learning_rate"] for row in first.curves]
    assert min(halved) < halved[0], "the rate is halved where the validation loss stands still"
    again = fit_stack(table, settings=patient, seed=0, rates=first.rates)
    assert [row["learning_rate"] for row in again.curves] == first.rates == halved[: first.epochs]


def level(families, *, outputs, sections):
    n = len(sections)
    names = np.array([f"{section}:{i}" for i, section in enumerate(sections)])
    blank = np.full(n, "p")
    return LevelOne(names, np.array(sections), blank, np.zeros((n, 2)), outputs, families)


def test_rank_average_by_hand():
    one = np.array([[1.0], [2.0], [3.0], [10.0]])
    two = np.array([[20.0], [0.0], [40.0], [60.0]])
    # ranks 1 2 3 4 and 2 1 3 4: the first two spots tie; sorted means are 0.5, 11, 21.5, 35
    np.testing.assert_allclose(across_spots([one, two]).ravel(), [5.75, 5.75, 21.5, 35.0])
    three = np.array([[0.1, 0.3, 0.3]])
    four = np.array([[5.0, 1.0, 9.0]])
    np.testing.assert_allclose(within_spots([three, four]), [[(1 + 2) / 2, (2.5 + 1) / 2, (2.5 + 3) / 2]])


def test_rank_averages_stay_within_sections_and_transforms():
    rng = np.random.default_rng(0)
    sections = ["A"] * 6 + ["B"] * 5
    outputs = ("log1p:x", "log1p:y", "rank:x", "rank:y")
    families = {name: rng.normal(size=(11, 4)).astype(np.float32) for name in ("one", "two")}
    both = level(families, outputs=outputs, sections=sections)
    averaged = rank_average(both)
    for section in "AB":
        rows = both.sections == section
        alone = rank_average(both.of([section]))
        np.testing.assert_array_equal(averaged[rows], alone)
        mean = np.mean([np.sort(one[rows, :2], axis=0) for one in families.values()], axis=0)
        assert averaged[rows, :2].min() >= mean.min() - 1e-6
        assert averaged[rows, :2].max() <= mean.max() + 1e-6
    np.testing.assert_allclose(averaged[:, 2:].sum(axis=1), 3.0)
    turned = level(dict(reversed(families.items())), outputs=outputs, sections=sections)
    np.testing.assert_array_equal(rank_average(turned), averaged)


def test_families_that_agree_are_given_back_as_they_are():
    values = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    same = level({"a": values, "b": values}, outputs=("log1p:x", "log1p:y"), sections=["A"] * 7)
    np.testing.assert_allclose(rank_average(same), values, rtol=1e-6)


def test_a_flat_family_changes_no_order():
    rng = np.random.default_rng(0)
    values, flat = rng.normal(size=(9, 3)), np.ones((9, 3))
    with_flat = across_spots([values, flat])
    np.testing.assert_array_equal(np.argsort(with_flat, axis=0), np.argsort(values, axis=0))
