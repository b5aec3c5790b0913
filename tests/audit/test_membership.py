import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histocrypt.audit.membership import Audit, curves, draw_weights, judge, judge_groups, read_scores, write_scores
from histocrypt.errors import InputError


def people(members: int, others: int, records: int, *, shift: float = 0.0, spread: float = 0.0, seed: int = 0):
    """Scores of patients: members lie ``shift`` higher; patients differ by ``spread``."""
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"P{i}" for i in range(members + others)], records)
    member = np.repeat(np.arange(members + others) < members, records)
    own = np.repeat(rng.normal(0, spread, members + others), records)
    return rng.normal(0, 1, len(member)) + own + shift * member, member, patients


def test_figures_by_hand():
    scores = np.array([4.0, 3.0, 3.0, 1.0, 3.0, 2.0, 0.0, 0.0])
    member = np.array([True, True, True, True, False, False, False, False])
    patients = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    fpr, tpr = curves(scores, member)
    assert fpr.tolist() == [[0, 0, 0.25, 0.5, 0.5, 1]]
    assert tpr.tolist() == [[0, 0.25, 0.75, 0.75, 1, 1]]
    found = judge(scores, member, patients, draws=50)
    assert found.auc == (4 + 3.5 * 2 + 2) / 16 == roc_auc_score(member, scores)
    assert found.advantage == 0.5
    assert (found.n_members, found.n_non_members, found.patients_members, found.patients_non_members) == (4, 4, 2, 2)
    assert found.interval_over == "records"
    assert "say nothing of other patients" in found.notes[0]
    assert all(value is None for value in found.tpr_at.values())
    assert sum("No TPR at" in note for note in found.notes) == 3


def test_scores_are_read_back_exactly(tmp_path):
    scores, member, patients = people(2, 3, 4)
    blocks = np.array([f"{name}/0" for name in patients])
    audits = {
        "LiRA": Audit(scores, member, patients, np.full(20, "")),
        "closest record, all": Audit(-scores / 3, member, patients, np.full(20, "Lund"), blocks),
    }
    write_scores(tmp_path / "scores" / "knn.csv", audits)
    again = read_scores(tmp_path / "scores" / "knn.csv")
    assert list(again) == list(audits)
    for name, audit in audits.items():
        for column, values in vars(audit).items():
            np.testing.assert_array_equal(getattr(again[name], column), values)


def test_draws_weigh_as_scikit_learn_does():
    scores, member, patients = people(4, 5, 12, shift=0.5, spread=0.5)
    scores = scores.round(1)  # ties
    (weights,) = draw_weights(member, patients, None, by_patient=True, draws=5, rng=np.random.default_rng(1))
    fpr, tpr = curves(scores, member, weights)
    for row, false, true in zip(weights, fpr, tpr, strict=True):
        assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(member, scores, sample_weight=row))
        for side in (member, ~member):
            assert row[side].sum() == side.sum()
    (weights,) = draw_weights(member, patients, None, by_patient=False, draws=5, rng=np.random.default_rng(1))
    for patient in np.unique(patients):
        assert (weights[:, patients == patient].sum(axis=1) == 12).all()


def test_blocks_are_drawn_whole():
    _, member, patients = people(2, 2, 12)
    blocks = np.tile(np.repeat(["x", "y", "z"], 4), 4)
    (weights,) = draw_weights(member, patients, blocks, by_patient=False, draws=9, rng=np.random.default_rng(0))
    assert (weights.reshape(9, 12, 4) == weights.reshape(9, 12, 4)[:, :, :1]).all()
    assert judge(np.arange(48.0), member, patients, blocks=blocks, draws=9).interval_over == "blocks"


def test_a_leak_is_found_and_no_leak_is_not():
    leak = judge(*people(12, 12, 20, shift=1.5), draws=300)
    assert leak.interval_over == "patients"
    assert leak.auc_interval[0] > 0.75
    assert leak.balanced_accuracy_interval[0] > 0.65
    assert leak.balanced_accuracy == pytest.approx(0.77, abs=0.04)
    low, high = leak.tpr_at[0.05][1:]
    assert leak.n_non_members == 240
    assert 0.05 < low < leak.tpr_at[0.05][0] < high
    none = judge(*people(12, 12, 20, spread=1.0), draws=300)
    assert none.auc_interval[0] < 0.5 < none.auc_interval[1]
    assert none.advantage > 0, "an upper bound, above 0 by chance"
    assert none.balanced_accuracy < 0.5 + none.advantage / 2


def test_the_threshold_never_comes_from_the_judged_patients():
    # Each patient has a level of its own: a threshold for these very patients would tell all apart.
    rng = np.random.default_rng(0)
    accuracies, best = [], []
    for seed in range(30):
        patients = np.repeat([f"P{i}" for i in range(8)], 5)
        member = np.repeat(rng.permutation(8) < 4, 5)
        found = judge(np.repeat(rng.normal(size=8), 5), member, patients, draws=2, seed=seed)
        accuracies.append(found.balanced_accuracy)
        best.append(0.5 + found.advantage / 2)
    assert np.mean(best) > 0.65
    assert 0.38 < np.mean(accuracies) < 0.55


def test_one_patient_on_a_side_is_said():
    found = judge(*people(1, 1, 30, shift=2.0), draws=50)
    assert any("other records of the same patient" in note for note in found.notes)
    assert found.balanced_accuracy > 0.7
    scores, _, patients = people(1, 0, 40)
    within = judge(scores, np.arange(40) % 2 == 0, patients, draws=50)
    assert (within.patients_members, within.patients_non_members) == (1, 1)


def test_intervals_cover_where_patients_are_many_and_say_so_where_few():
    """Of 80 simulated audits of 4 against 4 patients, which differ, far fewer than 76 intervals contain 0.5."""
    covered = {}
    for number in (4, 20):
        hits = 0
        for seed in range(80):
            low, high = judge(*people(number, number, 10, spread=1.0, seed=seed), draws=100, seed=seed).auc_interval
            hits += low <= 0.5 <= high
        covered[number] = hits / 80
    assert covered[20] >= 0.91
    assert 0.75 <= covered[4] < 0.95
    assert "too narrow" in judge(*people(4, 4, 10), draws=2).notes[0]


def test_centres_are_judged_apart():
    rng = np.random.default_rng(3)
    patients = np.repeat([f"P{i}" for i in range(16)], 20)
    member = np.repeat([True] * 6 + [False] * 10, 20)
    group = np.repeat(["here"] * 12 + ["there"] * 4, 20)
    scores = rng.normal(size=320) - 3 * (group == "there")  # another scanner, no membership
    rows = judge_groups(Audit(scores, member, patients, group), draws=200)
    assert list(rows) == ["same", "members against there"]
    assert rows["same"].auc_interval[0] < 0.5 < rows["same"].auc_interval[1]
    assert rows["members against there"].auc > 0.95
    assert "may show the centre" in rows["members against there"].notes[-1]

    # Two centres with both sides, mixed unevenly: pooled as they are, the centre would pass for membership.
    group = np.repeat(["here"] * 5 + ["there"] + ["here"] * 3 + ["there"] * 7, 20)
    scores = rng.normal(size=320) - 3 * (group == "there")
    assert judge(scores, member, patients, draws=2).auc > 0.7
    same = judge_groups(Audit(scores, member, patients, group), draws=200)["same"]
    assert same.n_members == 120
    assert same.n_non_members == 200
    assert same.auc_interval[0] < 0.5 < same.auc_interval[1]


def test_the_same_seed_gives_the_same_figures():
    data = people(5, 5, 10, shift=0.3)
    assert judge(*data, draws=20, seed=4) == judge(*data, draws=20, seed=4)
    assert judge(*data, draws=20, seed=4).auc_interval != judge(*data, draws=20, seed=5).auc_interval


@pytest.mark.parametrize(
    "change",
    [
        {"scores": np.array([0.0, np.nan, 1, 2])},
        {"member": np.array([1, 1, 0, 0])},
        {"member": np.array([True, True, True, False])},
        {"patients": np.array(["a"])},
    ],
)
def test_defects_are_said(change):
    good = {
        "scores": np.arange(4.0),
        "member": np.array([True, True, False, False]),
        "patients": np.array(["a", "b", "c", "d"]),
    }
    with pytest.raises(InputError) as caught:
        judge(**{**good, **change}, draws=2)
    assert caught.value.field == next(iter(change))


def test_patients_of_a_single_block_have_their_records_drawn():
    rng = np.random.default_rng(0)
    patients = np.repeat(["a", "b", "c", "d"], 30)
    found = judge(rng.normal(size=120), np.repeat([True, False], 60), patients, blocks=patients, draws=300)
    assert found.interval_over == "records"
    low, high = found.auc_interval
    assert high - low > 0.1
