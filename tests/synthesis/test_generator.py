import csv
import json

import numpy as np
import pytest
import torch

from histocrypt.errors import InputError
from histocrypt.models.diffguard import DiffGuard
from histocrypt.options import GeneratorPlan
from histocrypt.study import parse_study
from histocrypt.synthesis.generator import (
    Lesson,
    as_noise,
    draw_kept,
    load_generator,
    noised,
    schedule,
    target,
    train_generator,
)
from histocrypt.synthesis.manifest import CHEST, TISSUE, Pairs, Scheme
from histocrypt.synthesis.sampling import class_of_mask, sample, within_range
from histocrypt.training import loop

TINY = GeneratorPlan(
    width=8, multipliers=(1, 2), blocks=1, objective="velocity", steps=100, dropout=0.1, batch=8,
    learning_rate=5e-3, ema=0.95,
)  # fmt: skip


def two_colours(n: int = 24, *, side: int = 16, seed: int = 0) -> Pairs:
    """Normal tiles are red with stroma above, tumour tiles blue with tumour region above; one in three is a tumour."""
    rng = np.random.default_rng(seed)
    tumour = np.arange(n) % 3 == 0
    images = rng.integers(0, 40, (n, side, side, 3))
    images[..., 0] += np.where(tumour, 0, 200)[:, None, None]
    images[..., 2] += np.where(tumour, 200, 0)[:, None, None]
    masks = np.zeros((n, side, side), dtype=np.uint8)
    masks[:, : side // 2] = np.where(tumour, 3, 1)[:, None, None]
    return Pairs(
        TISSUE,
        np.array([f"s:{i}" for i in range(n)]),
        np.where(tumour, "tumour", "normal"),
        np.array([f"P{i % 4}" for i in range(n)]),
        images.astype(np.uint8),
        masks,
        np.ones(n, dtype=bool),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_generator(
        two_colours(), TINY, folder=tmp_path_factory.mktemp("joint"), epochs=60, seed=3, device="cpu"
    )


def test_the_schedule_is_the_published_one():
    kept = schedule(2000)
    assert kept[0] == 1
    assert len(kept) == 2001
    assert (kept.diff() < 0).all()
    assert kept[-1] == pytest.approx(np.prod(1 - np.linspace(1e-6, 0.01, 2000)), rel=1e-3)
    assert schedule(100)[-1] < 5e-5


def test_noise_keeps_the_variance_and_levels_lie_within_the_schedule():
    chance = torch.Generator().manual_seed(0)
    kept = draw_kept(5000, schedule(50), chance)
    assert 0 < kept.min()
    assert kept.max() <= 1
    clean = torch.randn(200, 3, 16, 16, generator=chance)
    noisy = noised(clean, torch.full((200,), 0.3), torch.randn(clean.shape, generator=chance))
    assert noisy.var() == pytest.approx(1, abs=0.02)


def test_noise_whose_image_leaves_the_range_is_drawn_back():
    clean, kept = torch.full((1, 1, 2, 2), 3.0), torch.tensor(0.5)
    noisy = noised(clean, kept[None], torch.zeros_like(clean))
    noise = within_range(torch.zeros_like(clean), noisy, kept)
    assert torch.allclose((noisy - 0.5**0.5 * noise) / 0.5**0.5, torch.ones_like(clean))


@pytest.mark.parametrize("objective", ["noise", "velocity"])
def test_the_noise_is_read_from_what_the_network_says(objective):
    clean, noise, kept = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.9, 0.05])
    said = target(objective, clean, kept, noise)
    assert torch.allclose(as_noise(objective, said, noised(clean, kept, noise), kept), noise, atol=1e-5)


def test_the_network_is_the_published_one():
    network = DiffGuard(4, n_classes=2)
    config = network.unet.config
    assert list(config.block_out_channels) == [64, 128, 256, 512]
    assert config.layers_per_block == 2
    assert config.dropout == 0.2
    assert config.resnet_time_scale_shift == "scale_shift"
    attention = [name for name, part in network.named_modules() if type(part).__name__ == "Attention"]
    assert len(attention) == 1
    assert "mid_block" in attention[0]


@pytest.mark.parametrize("patch", [1, 2])
def test_an_untrained_network_predicts_no_noise(patch):
    network = DiffGuard(4, n_classes=2, width=8, multipliers=(1, 2), blocks=1, patch=patch)
    out = network(torch.randn(3, 4, 16, 16), torch.tensor([0.1, 0.5, 1.0]), torch.tensor([0, 1, 2]))
    assert out.shape == (3, 4, 16, 16)
    assert not out.any()


def test_a_killed_training_ends_in_the_same_bits(tmp_path, monkeypatch):
    pairs = two_colours()
    whole = train_generator(pairs, TINY, folder=tmp_path / "whole", epochs=4, seed=1, device="cpu")
    kept = loop.keep

    def killed_after_two(path, fingerprint, parts, progress):
        kept(path, fingerprint, parts, progress)
        if progress.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "KEEPING", np.inf)  # the state is written after every epoch
    monkeypatch.setattr(loop, "keep", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        train_generator(pairs, TINY, folder=tmp_path / "killed", epochs=4, seed=1, device="cpu")
    monkeypatch.undo()
    assert not (tmp_path / "killed/generator.json").exists()
    resumed = train_generator(pairs, TINY, folder=tmp_path / "killed", epochs=4, seed=1, device="cpu")
    for name, weights in whole.network.state_dict().items():
        assert torch.equal(weights, resumed.network.state_dict()[name]), name
    other = train_generator(pairs, TINY, folder=tmp_path / "other", epochs=4, seed=2, device="cpu")
    assert any(not torch.equal(w, other.network.state_dict()[n]) for n, w in whole.network.state_dict().items())


def test_a_generator_says_what_it_has_learned_from(trained):
    assert trained.classes == ("normal", "tumour")
    assert trained.record["images"] == {"normal": 16, "tumour": 8}
    assert trained.record["patients"] == 4
    assert trained.record["privacy"] is None


def test_a_folder_says_all_that_sampling_needs(tmp_path):
    made = train_generator(two_colours(), TINY, folder=tmp_path, epochs=2, seed=0, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {
        "generator.json", "generator.safetensors", "curves.csv", "members.json", "training.safetensors",
    }  # fmt: skip
    assert "ids" not in (tmp_path / "generator.json").read_text()
    assert len(json.loads((tmp_path / "members.json").read_text())["ids"]) == 24
    with (tmp_path / "curves.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    (tmp_path / "training.safetensors").unlink()
    (tmp_path / "members.json").unlink()
    loaded = load_generator(tmp_path, device="cpu")
    assert loaded.plan == TINY
    assert loaded.scheme == TISSUE
    draw = {"labels": np.array(["tumour"]), "seed": 0, "steps": 3}
    assert np.array_equal(sample(made, **draw).images, sample(loaded, **draw).images)
    (tmp_path / "generator.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="generator.safetensors"):
        load_generator(tmp_path)


def test_rarer_classes_are_repeated():
    pairs = two_colours()
    lesson = Lesson(pairs, TINY, torch.device("cpu"))
    order = lesson.order(torch.Generator().manual_seed(0))
    assert sorted(np.unique(pairs.labels[order], return_counts=True)[1]) == [16, 16]
    assert set(order) == set(range(24))


@pytest.mark.parametrize(("sampler", "steps"), [("ancestral", 50), ("ddim", 20), ("dpm++", 15)])
def test_samples_show_the_class_and_agree_with_their_masks(trained, sampler, steps):
    labels = np.array(["normal", "tumour"] * 8)
    drawn = sample(trained, labels=labels, seed=5, steps=steps, sampler=sampler)
    red, blue = (drawn.images[..., i].mean(axis=(1, 2)).astype(float) for i in (0, 2))
    assert ((red > blue) == (labels == "normal")).mean() > 0.9
    assert (class_of_mask(drawn.masks, TISSUE) == labels).mean() > 0.8
    assert drawn.ids[3] == "synthetic:5:3"
    assert drawn.has_mask.all()
    assert set(drawn.patients) == {""}


def test_guidance_exaggerates_the_class(trained):
    labels = np.array(["normal"] * 8)
    free, guided = (sample(trained, labels=labels, seed=5, steps=8, guidance=scale) for scale in (0.0, 2.0))
    contrast = [float(p.images[..., 0].mean(dtype=float) - p.images[..., 2].mean(dtype=float)) for p in (free, guided)]
    assert contrast[1] > contrast[0] + 20


def test_equal_seeds_give_equal_samples_whatever_is_drawn_beside_them(trained):
    labels = np.array(["normal", "tumour", "tumour", "normal", "tumour"])
    for sampler in ("ancestral", "dpm++"):
        draw = {"steps": 6, "sampler": sampler}
        five, two = sample(trained, labels=labels, seed=9, **draw), sample(trained, labels=labels[:2], seed=9, **draw)
        assert np.abs(five.images[:2].astype(int) - two.images).max() <= 1
        assert (five.images != sample(trained, labels=labels, seed=10, **draw).images).mean() > 0.5


def test_the_control_generator_makes_images_whose_masks_a_rule_adds(tmp_path):
    plan = GeneratorPlan(**{**vars(TINY), "kind": "control"})
    made = train_generator(two_colours(), plan, folder=tmp_path, epochs=2, seed=0, device="cpu")
    assert made.classes == ("normal",)
    assert made.record["images"]["tumour"] == 0
    draw = {"labels": np.array(["normal"] * 3), "seed": 0, "steps": 2}
    bare = sample(made, **draw)
    assert not bare.has_mask.any()
    assert bare.images.shape == (3, 16, 16, 3)
    masked = sample(made, **draw, mask_rule=lambda images: (images[..., 0] > 128).astype(np.uint8))
    assert masked.has_mask.all()
    assert np.array_equal(masked.masks, masked.images[..., 0] > 128)
    with pytest.raises(InputError, match="'tumour'"):
        sample(made, **{**draw, "labels": np.array(["tumour"])})


def test_an_unconditional_generator_reads_the_class_from_the_mask(tmp_path):
    plan = GeneratorPlan(**{**vars(TINY), "conditional": False})
    made = train_generator(two_colours(), plan, folder=tmp_path, epochs=3, seed=0, device="cpu")
    drawn = sample(made, labels=np.array(["normal"] * 8), seed=0, steps=10)
    assert np.array_equal(drawn.labels, class_of_mask(drawn.masks, TISSUE))
    with pytest.raises(InputError, match="not trained to be guided"):
        sample(made, labels=np.array(["normal"]), seed=0, guidance=2.0)


def test_the_class_of_a_mask():
    masks = np.zeros((4, 8, 8), dtype=np.uint8)
    masks[0, :4], masks[0, 4:] = 1, 3  # as much stroma as tumour region
    masks[1, :5], masks[1, 5:] = 1, 3
    masks[2, :6] = 2  # nuclei alone
    assert class_of_mask(masks, TISSUE).tolist() == ["tumour", "normal", "normal", "normal"]
    slices = np.ones((3, 40, 40), dtype=np.uint8)
    slices[0, :3, :3], slices[0, 10, 10] = 4, 2
    slices[1, 0, 0] = 6  # one pixel of 1600 is no lesion
    assert class_of_mask(slices, CHEST).tolist() == ["germ cell tumor", "normal", "normal"]
    with pytest.raises(InputError, match="named after a class"):
        class_of_mask(masks, Scheme(("a", "b"), ("background", "body"), "a"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"widht": 8}, "synthesis.generator"),
        ({"kind": "both"}, "synthesis.generator.kind"),
        ({"objective": "image"}, "synthesis.generator.objective"),
        ({"width": 0}, "synthesis.generator.width"),
        ({"multipliers": []}, "synthesis.generator.multipliers"),
        ({"dropout": 1.0}, "synthesis.generator.dropout"),
        ({"dropout": "much"}, "synthesis.generator.dropout"),
        ({"learning_rate": 0.0}, "synthesis.generator.learning_rate"),
    ],
)
def test_unknown_options_are_refused(options, field):
    with pytest.raises(InputError) as error:
        parse_study({"name": "s", "sections": [{"path": "demo"}], "synthesis": {"generator": options}}, file="s.yaml")
    assert error.value.field == field


def test_what_cannot_be_learned_from_is_refused(tmp_path):
    pairs = two_colours()
    run = {"folder": tmp_path, "epochs": 1, "seed": 0, "device": "cpu"}
    with pytest.raises(InputError, match="multiple of 8"):
        train_generator(two_colours(side=12), GeneratorPlan(width=8), **run)
    with pytest.raises(InputError, match="with a mask"):
        train_generator(Pairs(**{**vars(pairs), "has_mask": np.zeros(24, dtype=bool)}), TINY, **run)
    without = Scheme(TISSUE.classes, TISSUE.levels)
    with pytest.raises(InputError, match="no control"):
        train_generator(
            Pairs(**{**vars(pairs), "scheme": without}), GeneratorPlan(**{**vars(TINY), "kind": "control"}), **run
        )
    with pytest.raises(InputError, match="diverged"):
        train_generator(pairs, GeneratorPlan(**{**vars(TINY), "learning_rate": 1e30}), **{**run, "epochs": 3})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"sampler": "ddpm"}, "one of"), ({"steps": 101}, "1 to 100"), ({"labels": np.array(["stroma"])}, "stroma")],
)
def test_what_cannot_be_drawn_is_refused(trained, changes, words):
    with pytest.raises(InputError, match=words):
        sample(trained, **{"labels": np.array(["normal"]), "seed": 0, "steps": 5, **changes})
