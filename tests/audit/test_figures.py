import re
from dataclasses import replace

import numpy as np
import pytest

from histocrypt.audit import figures
from histocrypt.audit.card import WORDS, Card, ask_membership
from histocrypt.audit.controls import run_controls
from histocrypt.audit.membership import Audit, bands, judge
from histocrypt.evaluation.figures import save


@pytest.fixture(scope="module")
def audits() -> dict[str, Audit]:
    rng = np.random.default_rng(0)
    patients = np.repeat([f"P{i}" for i in range(12)], 40)
    member = np.repeat(np.arange(12) < 6, 40)
    group = np.full(len(member), "")
    leaks = {"loss threshold": 0.5, "LiRA": 1.5}
    return {
        name: Audit(rng.normal(size=len(member)) + leak * member, member, patients, group)
        for name, leak in leaks.items()
    }


def test_bands_are_the_curve_and_its_draws(audits):
    audit = audits["LiRA"]
    grid = np.array([0.01, 0.05, 0.5, 1.0])
    value, low, high = bands(audit, grid, draws=100)
    for rate, found in zip(grid, value, strict=True):
        allowed = np.sort(audit.scores[~audit.member])[::-1][: int(rate * 240) + 1].min() if rate < 1 else -np.inf
        assert found == pytest.approx((audit.scores[audit.member] > allowed).mean())
    assert (low <= value).all()
    assert (value <= high).all()
    assert low[-1] == value[-1] == high[-1] == 1


def asked_of(audits: dict[str, Audit]) -> list:
    asked = []
    for name, audit in audits.items():
        scores, member, patients = audit.scores, audit.member, audit.patients
        judged = judge(scores, member, patients, draws=50)
        controls = run_controls(scores, member, patients, overfitted=scores + 5 * member, draws=50)
        asked.append(ask_membership(judged, controls, access="black box", attack=name))
    return asked


def test_answers_are_the_cards_the_gravest_first(audits):
    leaks = asked_of(audits)
    none = asked_of({"loss threshold": replace(audits["LiRA"], scores=np.zeros(len(audits["LiRA"].member)))})
    cards = {
        name: Card(name, "predictor", name.title(), "Predicts.", "small", "fold_a", asked, [])
        for name, asked in {"quiet": none, "loud": leaks}.items()
    }
    table = figures.answers(cards)
    assert table.index.tolist() == ["Loud", "Quiet"]
    assert table.loc["Loud", "attack"] == "LiRA"
    assert table["answer"].tolist() == [WORDS[cards[name].verdict] for name in ("loud", "quiet")]
    strongest = max(leaks, key=lambda asked: asked.figure.low).figure
    assert f"{strongest.value:.3f}" in table.loc["Loud", "figure"]
    assert re.findall(r"\d+", figures.words(cards)) == ["2", "1", "1", "0", "3"]


def test_pictures_are_written(audits, tmp_path):
    asked = asked_of(audits)
    card = Card("knn", "predictor", "Neighbours", "Predicts.", "small", "fold_a", asked, [])
    for name, figure in {"roc": figures.roc(audits, draws=50), "forest": figures.forest([card])}.items():
        text = save(figure, tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert text.startswith("<?xml")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["Neighbours: LiRA"], "the strongest of two that ask the same"
