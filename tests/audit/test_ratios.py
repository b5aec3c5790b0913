"""RMIA's score against its published formula, worked by hand, and what it finds."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histocrypt.audit.membership import in_and_out
from histocrypt.audit.ratios import likelihood_ratio, rmia
from histocrypt.audit.shadow import target_scores
from histocrypt.errors import InputError

LOSS = np.array([0.2, 1.0, 3.0])
SHADOWS = np.array([[0.5, 1.0, 2.0], [1.0, 2.0, 1.0]])
INSIDE = np.array([[True, True, False], [False, False, True]])


def test_the_published_formula_by_hand():
    """Variances 1, 2, 2 of models that did not see each; so the exponents are loss / 2, / 4, / 4."""
    loss_in, loss_out = in_and_out(SHADOWS, INSIDE)
    model = np.exp([-0.1, -0.25, -0.75])
    general = (np.exp([-0.25, -0.25, -0.25]) + np.exp([-0.5, -0.5, -0.5])) / 2
    assert likelihood_ratio(LOSS, loss_in, loss_out) == pytest.approx(np.log(model / general))
    offline = ((1 + 0.3) * np.exp(-0.5) + (1 - 0.3)) / 2
    assert likelihood_ratio(LOSS, None, loss_out, a=0.3) == pytest.approx(np.log(model / offline))
    assert likelihood_ratio(LOSS, None, loss_out, a=1) == pytest.approx(np.log(model) + 0.5)
    shared = likelihood_ratio(LOSS, None, loss_out, a=0, variance="shared")  # variance 5 / 3
    assert shared == pytest.approx(-0.3 * LOSS - np.log((np.exp([-0.3, -0.6, -0.6]) + 1) / 2))
    strangers = np.array([False, True, True])
    # Ratios of likelihoods to the two strangers': 1.16, 1.92 of the first; 1, 1.65 of the second; 0.61, 1 of the third.
    for gamma, scores in ((1, [1, 0.5, 0]), (1.1, [1, 0.5, 0]), (1.5, [0.5, 0.5, 0]), (2, [0, 0, 0])):
        assert rmia(LOSS, None, loss_out, population=strangers, gamma=gamma).tolist() == scores


def as_published(target, shadows, inside, strangers, a):
    """The offline score of the authors' ``run_rmia`` (privacytrustlab/ml_privacy_meter, modules/mia/attacks/rmia.py,
    commit 0b8cb7a), written anew from what it does: pairwise ratios, of what a classifier says of the truth."""

    def ratio(said, by_shadows, mine):
        outside = [
            np.mean([p for p, saw in zip(row, own, strict=True) if not saw])
            for row, own in zip(by_shadows.T, mine.T, strict=True)
        ]
        return said / ((1 + a) / 2 * np.array(outside) + (1 - a) / 2)

    x, z = ratio(target, shadows, inside), ratio(target[strangers], shadows[:, strangers], inside[:, strangers])
    return (x[:, None] / z > 1).mean(axis=1)


def test_the_authors_function_on_the_same_inputs():
    """They ask for probabilities of the truth. With a shared variance of 1 / 2, those are exp(-loss)."""
    rng = np.random.default_rng(4)
    inside = np.concatenate([half := rng.random((4, 400)) < 0.5, ~half])
    loss = rng.gamma(2, 0.3, (8, 400)) * np.where(inside, 0.6, 1)
    target, strangers = rng.gamma(2, 0.3, 400), rng.random(400) < 0.4
    _, loss_out = in_and_out(loss, inside)
    spread = np.nanmean(loss_out, axis=0).mean()  # what `variance="shared"` takes
    for a in (0, 0.3, 1):
        said = [np.exp(-one / (2 * spread)) for one in (target, loss)]
        expected = as_published(*said, inside, strangers, a)
        found = rmia(target, None, loss_out, population=strangers, variance="shared", a=a)
        assert np.abs(found - expected).max() <= 1.5 / strangers.sum(), "but for a rounding of equals"
        assert roc_auc_score(inside[0], found) == pytest.approx(roc_auc_score(inside[0], expected), abs=1e-4)


def test_huge_losses_do_not_vanish():
    ratio = likelihood_ratio(np.array([1e6, 1e5]), None, np.array([[1.0, 1.0]]))
    assert np.isfinite(ratio).all()
    assert ratio[0] < ratio[1]


@pytest.mark.parametrize("attack", ["RMIA", "RMIA, offline"])
def test_it_finds_a_leak_and_is_silent_without(attack):
    rng = np.random.default_rng(0)
    inside = np.concatenate([half := rng.random((3, 3000)) < 0.5, ~half])[[0, 3, 1, 4, 2, 5]]
    hard = rng.normal(0, 1.5, 3000)
    for leak, least, most in ((0.0, 0.48, 0.52), (1.0, 0.8, 1.0)):
        loss = np.exp(hard - leak * inside + rng.normal(0, 0.4, inside.shape))
        scores = target_scores(loss, inside, attack=attack)
        found = np.mean([roc_auc_score(own, score) for own, score in zip(inside, scores, strict=True)])
        assert least < found < most


def test_defects_are_said():
    _, loss_out = in_and_out(SHADOWS, INSIDE)
    for change, field in (
        ({"population": np.zeros(3, dtype=bool)}, "population"),
        ({"population": np.array([0, 1, 1])}, "population"),
        ({"gamma": 0}, "gamma"),
        ({"a": 1.5}, "a"),
        ({"variance": "each"}, "variance"),
    ):
        with pytest.raises(InputError) as raised:
            rmia(LOSS, None, loss_out, **{"population": np.array([False, True, True]), **change})
        assert raised.value.field == field or field == "variance"  # an unknown name says it in its sentence
    with pytest.raises(InputError, match="shadow model of each kind"):
        rmia(LOSS, None, loss_out * [np.nan, 1, 1], population=np.array([False, True, True]))
