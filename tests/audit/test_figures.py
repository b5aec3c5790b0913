import numpy as np
import pytest

from histocrypt.audit import figures
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
    judged = {name: judge(one.scores, one.member, one.patients, draws=50) for name, one in audits.items()}
    one = audits["loss threshold"]
    leaking = one.scores + 5 * one.member
    controls = {"loss threshold": run_controls(one.scores, one.member, one.patients, overfitted=leaking, draws=50)}
    for name, figure in {
        "roc": figures.roc(audits, draws=50),
        "histograms": figures.histograms(audits),
        "forest": figures.forest(judged, controls),
    }.items():
        text = save(figure, tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert text.startswith("<?xml")
    constant = Audit(np.zeros(80), np.arange(80) < 40, one.patients[:80], one.group[:80])
    save(figures.histograms({"constant": constant}), tmp_path / "constant.svg")
