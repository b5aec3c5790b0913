"""Our figures beside those of the Adversarial Robustness Toolbox, on the same inputs, where both exist."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import roc_auc_score

from histocrypt.audit.membership import RATES, curves, judge, loss_threshold

pytestmark = pytest.mark.filterwarnings("ignore")  # ART's own


@pytest.fixture(scope="module")
def attacked():
    """A forest that overfits half of its records; x, y, member and ART's wrapper of it."""
    from art.estimators.classification.scikitlearn import ScikitlearnRandomForestClassifier

    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 6))
    y = (x[:, 0] + rng.normal(0, 1.2, 800) > 0).astype(int)
    member = np.arange(800) % 2 == 0
    forest = RandomForestClassifier(30, min_samples_leaf=2, random_state=0).fit(x[member], y[member])
    return x, y, member, ScikitlearnRandomForestClassifier(model=forest)


def test_true_positive_rates_at_a_false_positive_rate():
    from art.metrics.privacy.worst_case_mia_score import get_roc_for_multi_fprs

    rng = np.random.default_rng(1)
    member = np.arange(21_000) % 2 == 0
    scores = (rng.normal(size=21_000) + 0.8 * member).round(3)
    patients = np.array([f"P{i % 12}" for i in range(21_000)])
    ours = judge(scores, member, patients, draws=2).tpr_at
    _, theirs, _ = get_roc_for_multi_fprs(scores, member.astype(int), np.array(RATES))
    assert [ours[rate][0] for rate in RATES] == pytest.approx(theirs, abs=1e-12)


def test_the_gap_attack(attacked):
    """ART takes for a member whoever is classified rightly: a loss threshold on the 0/1 loss."""
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBoxRuleBased

    x, y, member, forest = attacked
    inferred = MembershipInferenceBlackBoxRuleBased(forest).infer(x, y).astype(bool).ravel()
    wrong = (forest.predict(x).argmax(axis=1) != y).astype(float)
    fpr, tpr = curves(loss_threshold(wrong), member)
    assert tpr[0, 1] == inferred[member].mean()
    assert fpr[0, 1] == inferred[~member].mean()
    found = judge(loss_threshold(wrong), member, np.arange(800).astype(str), draws=2)
    balanced = (inferred[member].mean() + 1 - inferred[~member].mean()) / 2
    assert found.auc == pytest.approx(balanced)
    assert found.balanced_accuracy == pytest.approx(balanced)
    assert balanced > 0.6


def test_the_attack_on_losses():
    """ART fits a logistic regression to the squared error and the truth of half the records; its order is the loss's,
    but for what little it makes of the truth."""
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBox
    from art.estimators.regression.scikitlearn import ScikitlearnRegressor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 6))
    y = x[:, 0] + rng.normal(size=1200)
    member = np.arange(1200) % 2 == 0
    forest = RandomForestRegressor(30, min_samples_leaf=2, random_state=0).fit(x[member], y[member])
    shown = np.arange(1200) < 600
    attack = MembershipInferenceBlackBox(ScikitlearnRegressor(model=forest), input_type="loss", attack_model_type="lr")
    attack.fit(x[shown & member], y[shown & member], x[shown & ~member], y[shown & ~member])
    theirs = attack.infer(x[~shown], y[~shown], probabilities=True).ravel()
    ours = loss_threshold(np.square(forest.predict(x) - y))[~shown]
    judged = judge(ours, member[~shown], np.arange(600).astype(str), draws=2)
    assert judged.auc > 0.65
    assert roc_auc_score(member[~shown], theirs) == pytest.approx(judged.auc, abs=0.02)
