import numpy as np
import pytest

from histocrypt.audit import figures
from histocrypt.audit.card import Card, ask_membership
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


def test_pictures_are_written(audits, tmp_path):
    asked = []
    for name, audit in audits.items():
        scores, member, patients = audit.scores, audit.member, audit.patients
        judged = judge(scores, member, patients, draws=50)
        controls = run_controls(scores, member, patients, overfitted=scores + 5 * member, draws=50)
        asked.append(ask_membership(judged, controls, access="black box", attack=name))
    card = Card("knn", "predictor", "Neighbours", "Predicts.", "small", "fold_a", asked, [])
    for name, figure in {"roc": figures.roc(audits, draws=50), "forest": figures.forest([card])}.items():
        text = save(figure, tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert text.startswith("<?xml")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["Neighbours: LiRA"], "the strongest of two that ask the same"
