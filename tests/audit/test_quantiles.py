"""The quantile attack against its published test where the quantile is known; no patient is judged by itself."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histocrypt.audit.quantiles import GROUPS, LEVELS, Strangers
from histocrypt.errors import InputError

PATIENTS = np.repeat([f"P{i:02d}" for i in range(20)], 40)
MEMBER = np.isin(PATIENTS, [f"P{i:02d}" for i in range(0, 20, 2)])


def test_without_features_it_is_the_quantile_of_strangers():
    """Then the published threshold is the sample's own quantile, of the other groups' strangers."""
    confident = np.random.default_rng(0).normal(size=800)
    strangers = Strangers(np.zeros((800, 1)), MEMBER, PATIENTS)
    expected = {level: strangers.quantiles(confident, level) for level in LEVELS}
    for group in range(GROUPS):
        others = (strangers.groups != group) & ~MEMBER
        for level, found in expected.items():
            mine = found[strangers.groups == group]
            assert np.ptp(mine) == 0
            assert mine[0] == pytest.approx(np.quantile(confident[others], level), abs=0.02)
    score = strangers.scores(np.exp(-confident))
    between = (confident - expected[0.5]) / (expected[0.9] - expected[0.5])
    assert np.ptp(score - between) < 1e-6, "the published order; its threshold is moved"
    # Ten strangers of forty spots, and one more patient who lies beyond: 0.9 of eleven are 396 of these 400 spots.
    assert (score[~MEMBER] > 0).sum() == 4


def test_false_alarms_are_as_few_as_asked_for_in_easy_and_hard_spots_alike_and_leaks_are_found():
    rng = np.random.default_rng(1)
    known = rng.normal(size=(800, 3))
    loss = np.exp(2 * np.sign(known[:, 0]) + 0.5 * rng.normal(size=800))
    strangers = Strangers(known, MEMBER, PATIENTS)
    score = strangers.scores(loss)
    assert roc_auc_score(MEMBER, score) == pytest.approx(0.5, abs=0.05)
    for easy in (True, False):
        mine = (known[:, 0] < 0) == easy
        assert np.mean(score[MEMBER & mine] > 0) <= 0.1, "nobody is a member"
    leaked = np.where(MEMBER, loss * np.exp(-1), loss)
    assert roc_auc_score(MEMBER, -leaked) < 0.75 < 0.85 < roc_auc_score(MEMBER, strangers.scores(leaked))


def test_a_patient_is_never_judged_by_itself():
    known = np.zeros((800, 1))
    strangers = Strangers(known, MEMBER, PATIENTS)
    for name in np.unique(PATIENTS):
        assert len(np.unique(strangers.groups[PATIENTS == name])) == 1
    assert set(strangers.groups[MEMBER]) == set(strangers.groups[~MEMBER]) == set(range(GROUPS))
    with pytest.raises(InputError) as raised:
        Strangers(known, PATIENTS != "P01", PATIENTS)
    assert (raised.value.field, raised.value.value) == ("patients", ["P01"])
