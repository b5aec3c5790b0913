"""What is said of drawn tiles beside real ones: verdicts, subsets, worth in real tiles, several folds."""

import numpy as np
import pandas as pd
import pytest

from histocrypt.errors import InputError
from histocrypt.synthesis import worth as of


def test_a_claim_needs_the_whole_interval_and_something_to_match():
    assert of.verdict(-0.02, 0.05, real_low=0.6, guess=0.5) == of.HELD
    assert of.verdict(-0.02, 0.05, real_low=0.55, guess=0.5) == of.SLIGHT
    assert of.verdict(-0.04, 0.05, real_low=0.6, guess=0.5) == of.OPEN
    assert of.verdict(-0.09, -0.04, real_low=0.6, guess=0.5) == of.SHORT
    assert of.verdict(-0.02, 0.05, real_low=0.49, guess=0.5) == of.EMPTY
    assert of.verdict(float("nan"), 0.05, real_low=0.6, guess=0.5) == of.UNKNOWN


def test_tiles_come_by_the_slide_and_smaller_sets_lie_in_larger_ones():
    slides = np.repeat(["a", "b", "c"], [5, 20, 15])
    found = of.subsets(slides, (3, 12, 100), repeats=4, seed=0)
    assert [name for name in found if name.endswith("/0")] == ["3/0", "12/0"]  # 100 are not there
    assert list(map(of.size_of, found)) == [3] * 4 + [12] * 4
    for repeat in range(4):
        small, large = found[f"3/{repeat}"], found[f"12/{repeat}"]
        assert set(small) < set(large)
        assert len(set(large)) == 12
        assert len(set(slides[small])) == 1
    assert len({tuple(found[f"12/{repeat}"]) for repeat in range(4)}) == 4
    with pytest.raises(InputError) as raised:
        of.subsets(slides, (1,), repeats=1, seed=0)
    assert raised.value.field == "sizes"


def test_worth_is_read_off_the_rising_curve():
    sizes, curve = [10, 100, 1000], np.array([0.2, 0.4, 0.3])
    assert of.worth(sizes, curve, 0.2).tiles == 10
    assert of.worth(sizes, curve, 0.3).tiles == pytest.approx(10**1.5)  # half way on a logarithmic scale
    assert str(of.worth(sizes, curve, 0.1)).startswith("fewer than 10 ")
    assert of.worth(sizes, curve, 0.41).tiles == np.inf
    noise = np.random.default_rng(0).normal(0, 0.02, (400, 1))
    same = of.worth(sizes, curve, 0.3, draws=(curve + noise, 0.3 + noise[:, 0]))
    assert same.low == same.high == pytest.approx(same.tiles)  # paired: what moves both moves nothing
    assert str(same) == "32"  # a range that is a point is not told twice
    apart = of.worth(sizes, curve, 0.39, draws=(np.tile(curve, (400, 1)), 0.39 + noise[:, 0]))
    assert apart.low < apart.tiles < apart.high == np.inf
    assert str(apart).endswith("to more than 1000)")


def test_repeats_are_one_row():
    scores = {
        "real": {"auc": 0.7},
        "real_3/0": {"auc": 0.5, "dice": 0.1},
        "real_3/1": {"auc": 0.7},
        "x": {"auc": np.nan},
    }
    drawn = {name: {key: np.full(4, value) for key, value in one.items()} for name, one in scores.items()}
    drawn["real_3/1"]["auc"] = np.array([0.7, 0.9, np.nan, 0.7])
    whole, each = of.over_repeats(scores, drawn)
    assert list(whole) == ["real", "real_3", "x"]
    assert whole["real_3"] == pytest.approx({"auc": 0.6, "dice": 0.1})
    assert each["real_3"]["auc"] == pytest.approx([0.6, 0.7, 0.5, 0.6])
    assert np.isnan(whole["x"]["auc"])


def test_folds_are_averaged_by_patient_and_their_errors_add_up_as_squares():
    def table(synthetic, real, half):
        rows = {"real": (real, 0.0), "synthetic": (synthetic, synthetic - real), "flat": (0.0, -real)}
        columns = {"title": list(rows), "role": "model", "tiles": 10.0, "r": [row[0] for row in rows.values()]}
        columns["r_vs_real"] = [row[1] for row in rows.values()]
        found = pd.DataFrame(columns, index=list(rows))
        for score in ("r", "r_vs_real"):
            found[f"{score}_low"], found[f"{score}_high"] = found[score] - half, found[score] + half
        return found.assign(r_verdict=[None, "said of one fold", None])

    found = of.across([table(0.4, 0.4, 0.03), table(0.1, 0.4, 0.04)], [1, 2], ["r"], guess="flat")
    assert found.loc["synthetic", "r"] == pytest.approx(0.2)
    assert found.loc["synthetic", "r_vs_real_high"] == pytest.approx(-0.2 + np.hypot(0.03, 2 * 0.04) / 3)
    assert found.loc["synthetic", "r_verdict"] == of.SHORT
    assert found.loc["real", "r_verdict"] is None
    close = of.across([table(0.4, 0.4, 0.03)] * 2, [1, 1], ["r"], guess="flat")
    assert close.loc["synthetic", "r_verdict"] == of.HELD
    assert of.against("colour_noise") == "colour_only"
    assert of.against("colour_only") == of.against("both") == "real"
