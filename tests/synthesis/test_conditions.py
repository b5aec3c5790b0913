"""Whitened patches, and what else than the class a generator is told: the tile's colours and its mask."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histocrypt.audit.memorisation import denoising_loss
from histocrypt.errors import InputError
from histocrypt.models.diffguard import Stain, Whitened
from histocrypt.options import GeneratorPlan
from histocrypt.study import load_study
from histocrypt.synthesis.generator import (
    _fingerprint,
    build,
    colour_numbers,
    draw_decisive,
    load_generator,
    schedule,
    train_generator,
)
from histocrypt.synthesis.manifest import TISSUE, Pairs, load_pairs
from histocrypt.synthesis.pipeline import draw_synthetic
from histocrypt.synthesis.sampling import sample, spaced

PLAN = GeneratorPlan(
    width=16, multipliers=(1, 2), blocks=1, patch=2, objective="velocity", dropout=0, batch=8, learning_rate=5e-3,
    ema=0.95, signal="whitened", stain=True, mask_given=0.6,
)  # fmt: skip


def shaded(n: int = 24, *, seed: int = 0) -> Pairs:
    """Tiles light or dark as a whole, whatever their class; darker where a square of nuclei lies, anywhere."""
    rng = np.random.default_rng(seed)
    masks = np.ones((n, 16, 16), dtype=np.uint8)
    for mask, (x, y) in zip(masks, rng.integers(0, 9, (n, 2)), strict=True):
        mask[x : x + 8, y : y + 8] = 2
    shade = rng.uniform(100, 200, n)[:, None, None, None]
    images = shade + rng.normal(0, 4, (n, 16, 16, 3)) - 60 * (masks == 2)[..., None]
    labels = np.where(np.arange(n) % 2, "tumour", "normal")
    ids, patients = np.array([f"s:{i}" for i in range(n)]), np.array([f"P{i % 4}" for i in range(n)])
    return Pairs(TISSUE, ids, labels, patients, images.astype(np.uint8), masks, np.ones(n, dtype=bool))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    train_generator(shaded(), PLAN, folder=folder, epochs=80, seed=0, device="cpu")
    return load_generator(folder, device="cpu")


def test_whitened_patches_have_variance_one_and_come_back():
    signals = torch.randn(50, 3, 8, 8).cumsum(-1) * torch.tensor([0.01, 0.1, 1.0])[:, None, None]
    whole = Whitened(3, patch=2)
    whole.fit(signals)
    found = whole.encode(signals)
    assert found.shape == (50, 12, 4, 4)
    assert torch.allclose(torch.cov(found.movedim(1, 0).flatten(1)), torch.eye(12), atol=0.01)
    assert torch.allclose(whole.decode(found), signals, atol=1e-4)
    uneven = Whitened(3, patch=2, evenness=0.5)
    uneven.fit(signals)
    assert torch.allclose(uneven.decode(uneven.encode(signals)), signals, atol=1e-4)
    variances = uneven.encode(signals).var(dim=(0, 2, 3))
    assert variances[0].item() == pytest.approx(1, abs=0.01)
    assert variances[-1] < 0.5
    fewer = Whitened(3, patch=2, components=6)
    fewer.fit(signals)
    lost = (fewer.decode(fewer.encode(signals)) - signals).square().mean(dim=(0, 2, 3)) / signals.var(dim=(0, 2, 3))
    assert 0 < lost.max() < 0.1


def test_colours_are_drawn_by_class_as_they_were():
    rng, classes = torch.Generator().manual_seed(0), torch.arange(400) % 2
    colours = torch.randn(400, 3, generator=rng) * torch.tensor([1.0, 0.1, 5.0]) + classes[:, None] * 4.0
    stain = Stain(3, classes=2, width=8)
    stain.fit(colours, classes)
    drawn = stain.draw(classes, torch.randn(400, 3, generator=rng))
    for number in (0, 1):
        own, new = colours[classes == number], drawn[classes == number]
        assert torch.allclose(own.mean(dim=0), new.mean(dim=0), atol=0.8)
        assert torch.allclose(own.std(dim=0), new.std(dim=0), rtol=0.25)


def test_noise_is_drawn_and_taken_off_where_it_decides():
    kept = draw_decisive(20_000, torch.Generator().manual_seed(0))
    noise = ((1 - kept) / kept).sqrt()
    assert noise.log().mean().item() == pytest.approx(-0.5, abs=0.05)
    assert (noise < 0.33).float().mean() > 0.25
    steps = spaced(20, schedule(2000)[1:])
    assert len(steps) == 20
    assert steps == sorted(steps, reverse=True)
    assert np.median(steps) < 1000  # closer at the end, where little noise is left


def test_pictures_fit_the_masks_that_they_are_drawn_to(told):
    real = shaded(16, seed=1)
    drawn = sample(told, labels=real.labels, seed=0, steps=12, masks=real.masks)
    assert np.array_equal(drawn.masks, real.masks)
    grey, nuclei = drawn.images.mean(axis=-1), real.masks == 2
    contrast = [light[~own].mean() - light[own].mean() for light, own in zip(grey, nuclei, strict=True)]
    assert np.mean(contrast) > 30
    free = sample(told, labels=real.labels, seed=0, steps=12)
    assert (free.masks == 2).any()


def test_pictures_take_the_colours_that_they_are_told(told):
    real = shaded(200, seed=1)
    numbers = colour_numbers(real.images).numpy()
    ends = np.argsort(numbers[:, 0])[[*range(8), *range(-8, 0)]]
    drawn = sample(told, labels=real.labels[ends], seed=0, steps=12, stain=numbers[ends])
    light = drawn.images.mean(axis=(1, 2, 3))
    assert light[:8].mean() - light[8:].mean() > 40
    own = sample(told, labels=real.labels[:64], seed=0, steps=12).images.mean(axis=(1, 2, 3)).std()
    assert own == pytest.approx(real.images.mean(axis=(1, 2, 3)).std(), rel=0.5)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"masks": np.full((1, 16, 16), 9)}, "masks"),
        ({"masks": np.zeros((1, 8, 8), int)}, "masks"),
        ({"stain": np.zeros((1, 3))}, "stain"),
    ],
)
def test_conditions_of_another_shape_or_level_are_refused(told, given, field):
    with pytest.raises(InputError) as caught:
        sample(told, labels=np.array(["normal"]), seed=0, steps=2, **given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"signal": "range", "components": 3}, "components"),
        ({"components": 17}, "components"),
        ({"kind": "control"}, "mask_given"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, options, field):
    plan = PLAN.model_copy(update=options)
    with pytest.raises(InputError) as caught:
        train_generator(shaded(), plan, folder=tmp_path, epochs=1, seed=0, device="cpu")
    assert caught.value.field == f"synthesis.generator.{field}"
    assert not list(tmp_path.iterdir())


def test_private_training_learns_nothing_outside_its_noise(tmp_path):
    from histocrypt.synthesis.generator import Privacy

    for options, field in ({"signal": "whitened"}, "signal"), ({"signal": "range", "stain": True}, "stain"):
        plan, promised = PLAN.model_copy(update=options), Privacy(8, delta=1e-3)
        with pytest.raises(InputError) as caught:
            train_generator(shaded(), plan, folder=tmp_path, epochs=1, seed=0, device="cpu", privacy=promised)
        assert caught.value.field == f"synthesis.generator.{field}"


def test_generators_from_before_these_options_stay_valid():
    plain = GeneratorPlan()
    before = _fingerprint(shaded(4), plain, epochs=1, seed=0)
    old = {
        name: value for name, value in plain if name not in ("signal", "components", "evenness", "stain", "mask_given")
    }
    assert before == _fingerprint(shaded(4), old_plan(old), epochs=1, seed=0)
    assert before != _fingerprint(shaded(4), plain.model_copy(update={"stain": True}), epochs=1, seed=0)


def old_plan(fields):
    """Return a plan as it was before, of these fields alone."""

    class Old(dict):
        model_fields = GeneratorPlan.model_fields

        def __iter__(self):
            return iter(self.items())

    return Old(fields)


def test_pictures_are_drawn_to_masks_that_were_drawn_first(told, tmp_path):
    study = load_study(Path(__file__).parents[2] / "studies/demo.yaml")
    part = study.synthesis.model_copy(update={"masks": "first", "per_class": 2, "sampler_steps": 3})
    study = study.model_copy(update={"synthesis": part})
    drawn = draw_synthetic(study, {"joint": told}, tmp_path)
    outlines = load_pairs(tmp_path / "samples" / "outlines", scheme=TISSUE, side=16)
    assert np.array_equal(drawn.masks, outlines.masks)
    assert not np.array_equal(drawn.images, outlines.images)
    assert not set(drawn.ids) & set(outlines.ids)
    untold = replace(told, network=build(told.plan.model_copy(update={"mask_given": 0.0}), TISSUE, side=16, colours=3))
    with pytest.raises(InputError) as caught:
        draw_synthetic(study, {"joint": untold}, tmp_path / "untold")
    assert caught.value.field == "masks"


def test_a_tile_that_was_learned_is_told_from_its_noise_better_than_noise(told):
    real = shaded()
    rng = np.random.default_rng(0)
    spoilt = replace(real, images=rng.permuted(real.images.reshape(len(real), -1), axis=1).reshape(real.images.shape))
    known, strange = (denoising_loss(told, pairs, levels=(0.5,), draws=1) for pairs in (real, spoilt))
    assert known.shape == (len(real),)
    assert (known < strange).mean() > 0.9
