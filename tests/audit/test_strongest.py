"""Intervals that hold of all attacks at once, and the card on which the strongest answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from histocrypt.audit.card import LEAK, write_card
from histocrypt.audit.controls import Shuffled
from histocrypt.audit.found import Found
from histocrypt.audit.membership import Audit, judge
from histocrypt.audit.strongest import best_dealt, simultaneous
from histocrypt.errors import InputError

PATIENTS = np.repeat([f"P{i:02d}" for i in range(16)], 15)
MEMBER = PATIENTS < "P08"


def test_one_attack_keeps_its_interval_and_copies_cost_nothing():
    scores = np.random.default_rng(0).normal(size=240) + MEMBER
    judged = judge(scores, MEMBER, PATIENTS, draws=400)
    assert simultaneous({"a": judged.auc_drawn})["a"] == judged.auc_interval
    twice = simultaneous({"a": judged.auc_drawn, "b": judged.auc_drawn})
    assert twice["a"] == twice["b"] == pytest.approx(judged.auc_interval, abs=0.004)


def test_all_hold_at_once_in_as_many_draws_as_asked_for():
    drawn = dict(enumerate(np.random.default_rng(0).normal(size=(6, 4000))))
    ends = simultaneous(drawn)
    inside = np.all([(low <= drawn[k]) & (drawn[k] <= high) for k, (low, high) in ends.items()], axis=0)
    assert inside.mean() == pytest.approx(0.95, abs=0.005)
    assert ends[0][1] == pytest.approx(2.63, abs=0.15), "as 1 - 0.95 ** (1 / 6) of a normal, both sides"


def test_the_best_by_lot():
    aucs = {"a": np.array([0.5, 0.6, 0.4]), "b": np.array([0.4, 0.5, 0.7])}
    drawn, listed = (
        {name: Shuffled(0.5, (0.4, 0.6), None, 3, "patient", one, every) for name, one in aucs.items()}
        for every in (False, True)
    )
    assert best_dealt({"a": 0.65, "b": 0.3}, drawn) == 2 / 4
    assert best_dealt({"a": 0.65, "b": 0.8}, drawn) == 1 / 4
    assert best_dealt({"a": 0.6, "b": 0.5}, listed) == 2 / 3, "all ways hold the real one"


def test_draws_have_to_be_the_same():
    with pytest.raises(InputError) as raised:
        simultaneous({"a": np.zeros(3), "b": np.zeros(4)})
    assert raised.value.value == [3, 4]


def test_the_strongest_attack_answers_and_the_others_are_shown(tmp_path):
    rng = np.random.default_rng(1)
    noise, subject = rng.normal(size=(3, 240)), SimpleNamespace(name="knn", kind="predictor", title="kNN", fold="a")
    found = Found(subject, "Predicts.")
    for name, leak, planted in (("weak", 0.1, 9), ("strong", 2, 9), ("blind", 0, 0)):
        scores = noise[len(found.audits)] + leak * MEMBER
        audit = Audit(scores, MEMBER, PATIENTS, np.full(240, ""))
        found.attack(name, audit, rng.normal(size=240) + planted * MEMBER, access="black box", draws=200, seed=0)
    card = found.card(SimpleNamespace(title="small", name="small"))
    ((first, *others),) = card.families
    assert first.attack == "strong"
    assert {one.attack for one in others} == {"weak", "blind"}
    assert card.verdict == first.verdict == LEAK
    assert [row["attack"] for row in card.rows() if row["strongest"]] == ["strong"]
    for alone, now in zip(found.asked, card.questions, strict=True):
        assert now.figure.low <= alone.figure.low < alone.figure.high <= now.figure.high
        assert now.also["The best of them by lot"] == "p = 0.005"
    assert "strongest of 3 attacks" in write_card(tmp_path / "card.html", card).read_text()
    without = Found(subject, "Predicts.")
    for name in ("weak", "blind"):  # a blind attack, whose control failed, no longer decides
        planted = found.controls[name].positive
        without.asked += [asked for asked in found.asked if asked.attack == name]
        assert planted.auc > 0.9 or name == "blind"
    assert without.card(SimpleNamespace(title="small", name="small")).families[0][0].attack == "weak"
