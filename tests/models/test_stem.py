"""Stem: starts as nothing, and once trained draws from the right distribution."""

import numpy as np
import pytest
import torch

from histocrypt.models.stem import Block, Stem, sinusoid
from histocrypt.options import Training
from histocrypt.predictors import stem_diffusion
from histocrypt.predictors.stem_diffusion import STEPS, Process, draw

CPU = torch.device("cpu")
GENES, FEATURES = 5, 3


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(values=1):
    torch.manual_seed(0)
    return Stem(GENES, n_features=FEATURES, n_values=values, width=24, blocks=2, heads=2, mlp_ratio=2)


def test_untrained_blocks_change_nothing_and_the_network_predicts_no_noise():
    tokens = torch.randn(3, GENES, 24)
    assert torch.equal(Block(24, 2, 4.0)(tokens, torch.randn(3, 24)), tokens)
    out = small(2)(torch.randn(3, GENES, 2), torch.tensor([0, 5, 999]), torch.randn(3, FEATURES))
    assert out.shape == (3, GENES, 4)
    assert not out.any()


def test_genes_have_no_order():
    """What tells genes apart is their vector: permuted with it, the network gives the same, permuted."""
    network = small()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    noisy, step, features = torch.randn(4, GENES, 1), torch.arange(4), torch.randn(4, FEATURES)
    before = network(noisy, step, features)
    order = torch.randperm(GENES)
    network.gene.data = network.gene.data[order]
    assert torch.allclose(network(noisy[:, order], step, features), before[:, order], atol=1e-5)


def test_steps_are_told_apart():
    assert sinusoid(torch.arange(STEPS)).unique(dim=0).shape == (STEPS, 256)


def test_the_loss_starts_at_one_and_is_zero_for_the_truth():
    process, chance = Process(), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(64, 20, 1, generator=chance), torch.randn(64, 20, 1, generator=chance)
    step = torch.randint(STEPS, (64,), generator=chance)
    noisy = process.noised(clean, step, noise)
    parts = {"clean": clean, "noisy": noisy, "noise": noise, "step": step}
    error, _ = process.losses(torch.zeros(64, 20, 2), **parts)
    assert float(error.mean()) == pytest.approx(1, abs=0.1)
    error, bound = process.losses(torch.cat([noise, -torch.ones_like(noise)], dim=-1), **parts)
    assert float(error.max()) == 0
    assert float(bound.abs().max()) < 1e-4  # the right mean and the smallest variance: the true way back


def test_the_schedule_is_the_one_that_samples_are_drawn_with():
    from histocrypt.predictors.stem_diffusion import scheduler_of

    kept = scheduler_of("ancestral").alphas_cumprod
    assert torch.allclose(Process()._at["signal"], kept.sqrt(), atol=1e-4)


def simulated(n, seed):
    """y = A x + noise whose size depends on x: mean and standard deviation are known for every spot."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES)).astype(np.float32)
    matrix = np.random.default_rng(7).normal(0, 0.5, (FEATURES, GENES))
    mean, sd = x @ matrix, np.where(x[:, :1] > 0, 0.6, 0.2) * np.ones((1, GENES))
    y = (mean + sd * rng.normal(size=mean.shape)).astype(np.float32)
    names = np.array([f"s:{seed}-{i}" for i in range(n)])
    return stem_diffusion.Lesson(names, torch.tensor(x)[:, None], torch.tensor(y)[..., None]), mean, sd


def learnt(epochs):
    data, *_ = simulated(1200, 0)
    settings = Training(epochs=epochs, batch_size=128, learning_rate=1e-2, weight_decay=0, ema=0.99)
    how = {"settings": settings, "epochs": epochs, "seed": 0, "device": CPU, "fingerprint": ""}
    network = small()
    stem_diffusion.train(network, data, None, **how)
    return network


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    return learnt(250)


def drawn(network, lesson, *, samples=100, sampler="dpm++", steps=25, **options):
    return draw(
        network, lesson.features[:, 0], lesson.names, samples=samples, sampler=sampler, steps=steps, device=CPU,
        **{"seed": 0, **options},
    )[..., 0]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "steps"), [("dpm++", 25), ("ddim", 50), ("ancestral", 1000)])
def test_samples_have_the_conditional_mean_and_variance(trained, sampler, steps):
    lesson, mean, sd = simulated(40, 1)
    found = drawn(trained, lesson, sampler=sampler, steps=steps, samples=100 if sampler != "ancestral" else 40)
    assert np.corrcoef(found.mean(axis=1).ravel(), mean.ravel())[0, 1] > 0.97
    wide = sd[:, 0] > 0.4
    assert np.median(found[wide].std(axis=1)) == pytest.approx(0.6, rel=0.25)
    assert np.median(found[~wide].std(axis=1)) == pytest.approx(0.2, rel=0.35)


def test_a_short_training_already_knows_which_spots_are_high_and_which_are_uncertain():
    lesson, mean, sd = simulated(40, 1)
    found = drawn(learnt(40), lesson, samples=40)
    assert np.corrcoef(found.mean(axis=1).ravel(), mean.ravel())[0, 1] > 0.6
    wide = sd[:, 0] > 0.4
    assert np.median(found[wide].std(axis=1)) > 1.1 * np.median(found[~wide].std(axis=1))


@pytest.mark.slow
def test_shuffled_conditions_are_worse(trained):
    lesson, *_ = simulated(60, 2)
    shuffled = stem_diffusion.Lesson(lesson.names, lesson.features.flip(0), lesson.values)
    y = lesson.values[..., 0].numpy()

    def error(given):
        return np.mean((drawn(trained, given, samples=20).mean(axis=1) - y) ** 2)

    assert error(lesson) < 0.75 * error(shuffled)
    assert stem_diffusion.judge(trained, lesson, Process(), 0) < stem_diffusion.judge(trained, shuffled, Process(), 0)


@pytest.mark.parametrize(("sampler", "steps"), [("dpm++", 8), ("ddim", 8), ("ancestral", 100)])
def test_equal_seeds_draw_the_same_whatever_is_drawn_beside(sampler, steps):
    data, *_ = simulated(200, 0)
    settings = Training(epochs=2, batch_size=50, learning_rate=3e-3, ema=0)
    network = small()
    stem_diffusion.train(network, data, None, settings=settings, epochs=2, seed=0, device=CPU, fingerprint="")
    lesson, *_ = simulated(8, 3)
    how = {"samples": 2, "sampler": sampler, "steps": steps}
    together = drawn(network, lesson, **how)
    assert np.array_equal(drawn(network, lesson, **how), together)
    alone = drawn(network, lesson, tokens=1, **how)  # one spot at a time
    spread = together.std()
    assert np.allclose(alone, together, atol=1e-3 * spread)  # matrix products of other sizes round differently
    turned = stem_diffusion.Lesson(lesson.names[::-1], lesson.features.flip(0), lesson.values.flip(0))
    assert np.allclose(drawn(network, turned, **how)[::-1], together, atol=1e-3 * spread)
    assert not np.allclose(drawn(network, lesson, seed=1, **how), together, atol=0.1 * spread)
    assert not np.allclose(together[:, 0], together[:, 1], atol=0.1 * spread)


@pytest.mark.parametrize("samples", [4, 5])
def test_opposite_noise_gives_opposite_draws_where_nothing_was_learnt(samples):
    """An untrained network says no noise: draws are their noise, scaled, so that pairs cancel from the mean."""
    network, lesson = small(), simulated(3, 1)[0]
    found = drawn(network, lesson, samples=samples, steps=5, opposite=True)
    half = -(-samples // 2)
    assert np.allclose(found[:, : samples - half], -found[:, half:], atol=1e-4)
    independent = drawn(network, lesson, samples=samples, steps=5)
    assert not np.allclose(independent[:, : samples - half], -independent[:, half:], atol=0.1)
    ancestral = drawn(network, lesson, samples=samples, steps=5, sampler="ancestral", opposite=True)
    assert np.array_equal(ancestral, drawn(network, lesson, samples=samples, steps=5, sampler="ancestral"))
