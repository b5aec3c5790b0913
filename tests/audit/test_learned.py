import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histocrypt.audit.learned import (
    PUBLISHED,
    map_inputs,
    on_shadows,
    train_map_attack,
    train_value_attack,
    value_inputs,
)
from histocrypt.audit.shadow import as_targets, shadow_losses
from histocrypt.errors import InputError

LEVELS = 3


def segmented(n: int, *, rough: float, seed: int):
    """Maps of two halves, and what a segmenter makes of them: members' borders are right, others' are rough."""
    rng = np.random.default_rng(seed)
    member = rng.random(n) < 0.5
    truth = np.zeros((n, 24, 24), dtype=np.uint8)
    predicted = np.zeros_like(truth)
    for row in range(n):
        border = rng.integers(6, 18)
        truth[row, :, border:] = 1 + rng.integers(2)
        predicted[row] = truth[row]
        if not member[row]:
            wrong = rng.random((24, 24)) < rough
            predicted[row][wrong] = rng.integers(0, LEVELS, int(wrong.sum()))
    return truth, predicted, member


def test_maps_as_the_attack_sees_them():
    truth = np.array([[[0, 1], [2, 2]]])
    seen = map_inputs(truth, truth, levels=3)
    assert seen.shape == (1, 6, 2, 2)
    assert set(np.unique(seen)) == {-1, 1}
    assert (seen[:, :3].argmax(axis=1) == truth).all()
    assert (seen[:, :3] == seen[:, 3:]).all()
    soft = np.full((1, 3, 2, 2), 1 / 3)
    assert np.allclose(map_inputs(truth, soft, levels=3)[:, 3:], -1 / 3)
    with pytest.raises(InputError, match="unknown levels"):
        map_inputs(truth, truth + 1, levels=3)
    with pytest.raises(InputError, match="do not fit the truth"):
        map_inputs(truth, truth[:, :1], levels=3)


def test_an_attack_on_maps_learns_from_shadows_and_finds_members():
    attack = train_map_attack(*_inputs(320, seed=1), epochs=8)
    assert attack.crop == 12
    inputs, member = _inputs(200, seed=2)
    scores = attack.scores(inputs)
    assert roc_auc_score(member, scores) > 0.85
    again = train_map_attack(*_inputs(320, seed=1), epochs=8).scores(inputs)
    assert np.array_equal(scores, again), "the same seed, the same attack"


@pytest.mark.slow
def test_the_published_network_learns_from_shadows_and_finds_members():
    """ResNet-50 at smaller maps and fewer passes than published: a minute of a core."""
    options = PUBLISHED | {"side": 64, "crop": 32, "epochs": 16, "batch": 32}
    attack = train_map_attack(*_inputs(192, seed=1), **options)
    assert attack.network.conv1.in_channels == 2 * LEVELS
    assert [attack.network.fc[0].out_features, attack.network.fc[2].out_features] == [256, 2]
    inputs, member = _inputs(120, seed=2)
    crops = attack.crop_scores(inputs)
    assert crops.shape == (120, 9)
    assert np.allclose(crops.mean(axis=1), attack.scores(inputs))
    assert roc_auc_score(member, attack.scores(inputs)) > 0.8


def test_an_unknown_network_is_refused():
    with pytest.raises(InputError) as refused:
        train_map_attack(*_inputs(4, seed=1), network="resnet51")
    assert refused.value.field == "network"


def _inputs(n: int, *, seed: int):
    truth, predicted, member = segmented(n, rough=0.06, seed=seed)
    return map_inputs(truth, predicted, levels=LEVELS), member


def test_an_attack_on_values_finds_what_a_plain_loss_does_not():
    rng = np.random.default_rng(0)

    def shadow(n):
        member = rng.random(n) < 0.5
        truth = rng.normal(size=(n, 12))
        error = rng.normal(size=(n, 12)) * np.exp(rng.normal(0, 1, (n, 1)))  # records differ in difficulty
        error[member, :2] *= 0.2  # what is learnt by heart are two of the genes
        return value_inputs(truth, truth + error), -np.square(error).mean(axis=1), member

    inputs, _, member = shadow(1500)
    attack = train_value_attack(inputs, member, rounds=40)
    inputs, plain, member = shadow(600)
    learned = roc_auc_score(member, attack.scores(inputs))
    assert learned > roc_auc_score(member, plain) + 0.1
    assert learned > 0.75


def test_each_shadow_is_attacked_by_what_was_learnt_on_the_others():
    patients = np.repeat([f"P{i}" for i in range(8)], 25)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 4))

    def train_one(mask, seed):
        error = np.random.default_rng(seed).normal(size=truth.shape) * np.where(mask, 0.3, 1)[:, None]
        return truth + error

    predicted, inside = shadow_losses(train_one, patients, 6, 0)
    assert predicted.shape == (6, 200, 4)
    inputs = np.stack([value_inputs(truth, one) for one in predicted])
    asked = []

    def train(seen, member):
        asked.append((seen.shape, member.mean()))
        return train_value_attack(seen, member, rounds=20)

    scores = on_shadows(inputs, inside, train)
    assert asked == [((800, 13), 0.5)] * 3, "neither the attacked shadow nor its complement"
    assert as_targets(scores, inside, patients, draws=50).auc > 0.8


def test_one_side_is_no_lesson():
    with pytest.raises(InputError, match="does not tell members"):
        train_value_attack(np.zeros((4, 3)), np.ones(4, dtype=bool))
    with pytest.raises(InputError) as caught:
        train_map_attack(np.zeros((4, 6, 24, 24), dtype=np.float32), np.arange(4) < 2, crop=30)
    assert caught.value.value == 30
