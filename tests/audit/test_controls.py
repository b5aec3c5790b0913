import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from histocrypt.audit.controls import copied_features, overfitted_losses, run_controls, shuffled
from histocrypt.audit.membership import judge, loss_threshold
from histocrypt.errors import InputError


def records(members: int, others: int, each: int = 40, *, features: int = 60, outputs: int = 10, seed: int = 0):
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"P{i}" for i in range(members + others)], each)
    member = np.repeat(np.arange(members + others) < members, each)
    x = rng.normal(size=(len(member), features)) + np.repeat(
        rng.normal(size=(members + others, features)), each, axis=0
    )
    y = x @ rng.normal(size=(features, outputs)) / 8 + rng.normal(size=(len(member), outputs))
    return x, y, member, patients


@pytest.mark.parametrize("kind", ["network", "memory"])
def test_a_model_that_knows_its_records_by_heart_is_caught(kind):
    x, y, member, patients = records(5, 4)
    loss = overfitted_losses(x, y, member, kind=kind)
    assert loss[member].mean() < 0.05
    assert judge(loss_threshold(loss), member, patients, draws=50).auc >= 0.97


def test_both_controls_pass_and_are_written_down():
    x, y, member, patients = records(5, 4)
    innocent = loss_threshold(np.random.default_rng(0).exponential(size=len(member)))
    overfitted = loss_threshold(overfitted_losses(x, y, member))
    found = run_controls(innocent, member, patients, overfitted=overfitted, draws=200)
    assert found.positive_passed
    assert found.negative_passed
    assert found.positive.auc_interval[0] > 0.9
    assert found.negative.by == "patient"
    assert found.negative.deals == 126
    assert found.negative.auc == pytest.approx(0.5, abs=0.01)
    assert found.negative.p_value > 0.05
    assert "all 126 ways" in found.notes[0]


def test_a_control_that_fails_says_so_and_raises_nothing():
    _, _, member, patients = records(5, 4)
    noise = np.random.default_rng(0).normal(size=len(member))
    found = run_controls(noise, member, patients, overfitted=noise, draws=50)
    assert not found.positive_passed
    assert found.negative_passed


def test_a_real_leak_has_a_small_p_value_and_different_patients_have_not():
    rng = np.random.default_rng(1)
    _, _, member, patients = records(6, 6)
    leak = shuffled(rng.normal(size=len(member)) + member, member, patients, deals=300)
    assert leak.p_value < 0.01
    assert leak.interval[0] < 0.5 < leak.interval[1]
    assert leak.deals == 300
    chance = [
        shuffled(np.repeat(rng.normal(size=12), 40), member, patients, deals=100, seed=seed).p_value
        for seed in range(40)
    ]
    assert np.mean(np.array(chance) <= 0.1) < 0.25, "patients that differ are not taken for members"


def test_few_patients_are_shuffled_within():
    _, _, member, patients = records(4, 2)
    scores = np.random.default_rng(0).normal(size=len(member)) + 5 * member
    found = shuffled(scores, member, patients, deals=100)
    assert found.by == "record"
    assert found.p_value is None
    assert found.interval[0] < 0.5 < found.interval[1]
    blocks = np.tile(np.repeat(np.arange(8), 5), 6)
    wide = shuffled(np.repeat(np.random.default_rng(0).normal(size=48), 5), member, patients, blocks=blocks, deals=100)
    assert wide.interval[0] < 0.5 < wide.interval[1]
    assert wide.interval[1] - wide.interval[0] > 1.5 * (found.interval[1] - found.interval[0])
    notes = run_controls(scores, member, patients, overfitted=scores, draws=20).notes
    assert "half of each patient's records" in notes[0]


def test_a_synthetic_set_of_copies_is_caught():
    x, _, member, patients = records(5, 4)
    copies = copied_features(x, member)
    distance = NearestNeighbors(n_neighbors=1).fit(copies).kneighbors(x)[0][:, 0]
    assert judge(-distance, member, patients, draws=20).auc >= 0.95


def test_an_unknown_kind_is_said():
    with pytest.raises(InputError, match="did you mean 'network'"):
        overfitted_losses(*records(2, 2)[:3], kind="networks")


def test_patients_of_a_single_block_have_their_records_dealt_out():
    rng = np.random.default_rng(0)
    patients = np.repeat(["a", "b", "c", "d"], 20)
    found = shuffled(rng.normal(size=80), np.repeat([True, False], 40), patients, blocks=patients, deals=200)
    assert found.by == "record"
    assert found.interval[0] < 0.5 < found.interval[1]
