from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from histocrypt.audit.memorisation import closest_record, denoising_loss
from histocrypt.audit.tiles import LEAKY, generator_bound
from histocrypt.errors import InputError
from histocrypt.options import Audit, GeneratorPlan
from histocrypt.synthesis.generator import Generator, Privacy, build, train_generator
from histocrypt.synthesis.manifest import TISSUE, Pairs
from histocrypt.synthesis.sampling import sample


def blobs(n: int, *, seed: int, side: int = 16) -> Pairs:
    """Tiles of one distribution: a smooth picture each, and the mask of its bright part."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (n, side // 4, side // 4, 3))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return Pairs(
        TISSUE,
        np.array([f"{seed}:{i}" for i in range(n)]),
        np.where(np.arange(n) % 2 == 0, "tumour", "normal"),
        np.array([f"P{seed}{i % 4}" for i in range(n)]),
        images.astype(np.uint8),
        np.where(images[..., 0] > 128, 3, 1).astype(np.uint8),
        np.ones(n, dtype=bool),
    )


@pytest.fixture(scope="module")
def people():
    return blobs(24, seed=1), blobs(24, seed=2)


@pytest.fixture(scope="module")
def leaky(people, tmp_path_factory) -> Generator:
    folder = tmp_path_factory.mktemp("leaky")
    return train_generator(people[0], LEAKY, folder=folder, epochs=200, seed=0, device="cpu")


def auc(members: np.ndarray, others: np.ndarray) -> float:
    return roc_auc_score(np.repeat([1, 0], [len(members), len(others)]), -np.concatenate([members, others]))


def test_an_overfitted_generator_gives_its_members_away(leaky, people):
    losses = [denoising_loss(leaky, each) for each in people]
    assert auc(*losses) >= 0.9
    score, member = np.concatenate(losses), np.repeat([True, False], 24)
    rng = np.random.default_rng(0)
    permuted = [auc(score[chosen], score[~chosen]) for chosen in (rng.permutation(member) for _ in range(200))]
    assert np.mean(permuted) == pytest.approx(0.5, abs=0.05)


def test_an_untrained_generator_knows_nobody(people):
    torch.manual_seed(0)
    network = build(LEAKY, TISSUE, side=16, colours=3).eval()
    fresh = Generator(network, LEAKY, TISSUE, 16, 3, {}, torch.device("cpu"))
    assert 0.3 < auc(*(denoising_loss(fresh, each) for each in people)) < 0.7


def test_synthetic_copies_lie_nearest_to_the_members(leaky, people):
    drawn = sample(leaky, labels=np.array(["normal", "tumour"] * 24), seed=0, steps=20)
    features = [each.images.reshape(len(each), -1) for each in (drawn, *people)]
    assert auc(*(closest_record(features[0], each) for each in features[1:])) >= 0.9


def test_the_loss_of_a_record_does_not_depend_on_the_others(leaky, people):
    whole = denoising_loss(leaky, people[0], draws=1)
    assert np.allclose(denoising_loss(leaky, people[0].subset(np.array([7, 2])), draws=1), whole[[7, 2]], rtol=1e-4)
    assert not np.allclose(denoising_loss(leaky, people[0], draws=1, seed=1), whole, rtol=1e-3)


def test_the_nearest_record_is_found_by_hand():
    distance = closest_record(np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[3.0, 4.0], [10.0, 1.0], [0.0, 0.0]]))
    assert np.allclose(distance, [5, 1, 0])


def test_what_cannot_be_asked_is_refused(leaky, people):
    with pytest.raises(InputError, match=r"\(16, 16, 3\)"):
        denoising_loss(leaky, blobs(4, seed=1, side=32))
    with pytest.raises(InputError, match="between 0 and 1"):
        denoising_loss(leaky, people[0], levels=(0.0,))
    unmasked = Pairs(**{**vars(people[0]), "has_mask": np.zeros(24, dtype=bool)})
    with pytest.raises(InputError, match="some have none"):
        denoising_loss(leaky, unmasked)
    with pytest.raises(InputError, match="no synthetic record"):
        closest_record(np.zeros((0, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match="different features"):
        closest_record(np.zeros((1, 2)), np.zeros((3, 4)))


@pytest.mark.parametrize("privacy", [None, Privacy(8.0, 1e-3, unit="patient")])
def test_a_generator_is_trained_as_it_was_for_a_bound_on_epsilon(people, tmp_path, privacy):
    plan = GeneratorPlan(width=8, multipliers=(1,), blocks=1, patch=4, steps=50, objective="velocity", batch=8)
    made = train_generator(people[0], plan, folder=tmp_path / "made", epochs=1, seed=0, device="cpu", privacy=privacy)
    study = SimpleNamespace(seed=0, audit=Audit(generator_coin_runs=2, noise_draws=1))
    real = Pairs.join(list(people))
    found = generator_bound(made, real, study=study, folder=tmp_path / "coins")
    assert (found.canaries, found.delta) == (2 * 8, 1e-3 if privacy else 0.0)
    assert 0 <= found.epsilon <= found.most
    assert generator_bound(made, real, study=study, folder=tmp_path / "coins") == found, "private runs do not repeat"
