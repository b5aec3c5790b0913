import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from histocrypt.audit.membership import calibrated, confidence, in_and_out, lira, loss_threshold
from histocrypt.errors import InputError


def shadows(n: int = 400, models: int = 40, *, leak: float, seed: int = 0):
    """Squared errors whose logarithm is normal: records differ in difficulty, and are easier once they were seen."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 1.5, n)
    inside = rng.random((models + 1, n)) < 0.5
    loss = np.exp(hard - leak * inside + rng.normal(0, 0.4, inside.shape))
    return loss, inside


def test_lira_is_the_ratio_of_two_normals():
    loss, inside = shadows(leak=1.0)
    loss_in, loss_out = in_and_out(loss[1:], inside[1:])
    score = lira(loss[0], loss_in, loss_out, variance="own")
    for record in (0, 7):
        known = [-np.log(part[:, record][np.isfinite(part[:, record])]) for part in (loss_in, loss_out)]
        densities = [stats.norm.logpdf(-np.log(loss[0, record]), k.mean(), k.std(ddof=1)) for k in known]
        assert score[record] == pytest.approx(densities[0] - densities[1])
    offline = lira(loss[0], None, loss_out, variance="own")
    assert offline[7] == pytest.approx((-np.log(loss[0, 7]) - known[1].mean()) / known[1].std(ddof=1))


@pytest.mark.parametrize("models", [4, 40])
def test_the_more_an_attack_knows_the_better_it_is(models):
    loss, inside = shadows(models=models, n=2000, leak=1.0)
    use = inside[1:].any(axis=0) & ~inside[1:].all(axis=0)
    loss, inside = loss[:, use], inside[:, use]
    loss_in, loss_out = in_and_out(loss[1:], inside[1:])
    auc = {
        "threshold": roc_auc_score(inside[0], loss_threshold(loss[0])),
        "calibrated": roc_auc_score(inside[0], calibrated(np.log(loss[0]), np.log(loss_out))),
        "offline": roc_auc_score(inside[0], lira(loss[0], None, loss_out)),
        "online": roc_auc_score(inside[0], lira(loss[0], loss_in, loss_out)),
    }
    assert 0.6 < auc["threshold"] < 0.75
    assert auc["threshold"] < auc["calibrated"]
    assert auc["offline"] > 0.85
    assert auc["online"] > 0.85


def test_few_shadows_do_not_let_a_model_that_knows_its_members_by_heart_pass():
    loss, inside = shadows(models=8, n=2000, leak=0.3)
    rng = np.random.default_rng(1)
    loss = np.where(inside, np.exp(rng.normal(0, 0.2, loss.shape)) * loss, loss)  # in and out vary differently
    use = inside[1:].any(axis=0) & ~inside[1:].all(axis=0)
    loss_in, loss_out = in_and_out(loss[1:, use], inside[1:, use])
    by_heart = np.where(inside[0, use], 1e-9, 50 * loss[0, use])
    for flipped in (False, True):  # whichever of the two varies more
        split = (loss_out * 0.8, loss_in) if flipped else (loss_in * 0.8, loss_out)
        assert roc_auc_score(inside[0, use], lira(by_heart, *split)) > 0.9
        surer = np.array([lira(np.full(use.sum(), value), *split) for value in (1e2, 1, 1e-2, 1e-7)])
        assert (np.diff(surer, axis=0) >= 0).all()


def test_without_a_leak_no_attack_finds_one():
    loss, inside = shadows(n=4000, leak=0.0)
    loss_in, loss_out = in_and_out(loss[1:], inside[1:])
    scores = (loss_threshold(loss[0]), calibrated(loss[0], loss_out), lira(loss[0], loss_in, loss_out))
    for score in scores:
        assert roc_auc_score(inside[0], score) == pytest.approx(0.5, abs=0.03)


def test_scales():
    assert confidence(np.array([0.0, 1.0, np.nan]), "squared")[1] == 0
    assert np.isfinite(confidence(np.array([0.0, 50.0]), "cross_entropy")).all()
    assert confidence(-np.log(0.8), "cross_entropy") == pytest.approx(np.log(0.8 / 0.2))
    assert confidence(2.0, "as_is") == -2
    with pytest.raises(InputError, match="did you mean 'squared'"):
        confidence(1.0, "square")


def test_a_reference_that_is_missing_is_said():
    with pytest.raises(InputError, match="1 of 2 records have no reference model"):
        calibrated(np.ones(2), np.array([[1.0, np.nan], [2.0, np.nan]]))
    with pytest.raises(InputError, match="have no shadow model of each kind"):
        lira(np.ones(2), np.full((2, 2), np.nan), np.ones((2, 2)))
    with pytest.raises(InputError, match="has no variance"):
        lira(np.ones(2), None, np.ones((1, 2)))
