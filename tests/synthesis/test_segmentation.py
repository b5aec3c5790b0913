"""Segmentation networks: what they learn, that they can be stopped, where they may start, and how they are judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.synthesis.toy_discs import discs

from histocrypt.errors import InputError
from histocrypt.models.unet import UNet, ViTHybrid, regridded
from histocrypt.synthesis import segmentation
from histocrypt.synthesis.segmentation import (
    SegmenterPlan,
    build_network,
    load_segmenter,
    segmentation_loss,
    train_segmenter,
)
from histocrypt.training import loop

SMALL = {
    "unet": {"width": 8, "depth": 2},
    "vit_hybrid": {"stages": 1, "width": 16, "layers": 1, "heads": 2, "decoder": 16},
}


def plan(network="unet", **changes):
    return SegmenterPlan(options=SMALL[network], batch=8, **changes)


def test_dice_by_hand():
    truth = np.array([[[0, 1], [1, 2]], [[0, 0], [0, 1]]])
    predicted = np.array([[[0, 1], [0, 2]], [[0, 0], [1, 1]]])
    counts = segmentation.pixel_counts(truth, predicted, 4)
    one = segmentation.score(counts, np.array(["a", "a"]))
    assert one[:3] == pytest.approx([2 * 3 / (4 + 4), 2 * 2 / (3 + 3), 1.0])
    assert np.isnan(one[3])  # in neither: left out, not 1
    assert segmentation.mean_dice(one) == pytest.approx((4 / 6 + 1) / 2)


def test_dice_is_pooled_in_a_patient_then_averaged_and_absent_levels_are_left_out():
    truth, predicted = np.zeros((3, 2, 2), int), np.zeros((3, 2, 2), int)
    truth[0], predicted[0] = 1, 1  # patient a: level 1 right on one image ...
    predicted[1, 0, 0] = 1  # ... and one pixel too much on another
    predicted[2, 0, 0] = 2  # patient b: level 1 in neither, level 2 found where there is none
    found = segmentation.score(segmentation.pixel_counts(truth, predicted, 3), np.array(["a", "a", "b"]))
    assert found[1] == pytest.approx(8 / 9)  # of patient a alone
    assert found[2] == 0  # predicted, never there: wrong, not absent
    assert np.isnan(segmentation.mean_dice(np.array([1.0, np.nan])))


def test_draws_surround_the_score_and_keep_blocks_together():
    truth = discs(24, 3).masks
    predicted = np.where(np.random.default_rng(0).random(truth.shape) < 0.2, 1, truth)
    counts, patients = segmentation.pixel_counts(truth, predicted, 4), np.repeat(["a", "b"], 12)
    drawn = segmentation.patient_draws(patients, np.repeat(np.arange(8).astype(str), 3), draws=200, seed=0)
    for rows, weights in drawn.values():
        assert (weights[:, 0] == weights[:, 1]).all()  # of one block
        assert (weights.sum(axis=1) == len(rows)).all()
    each = segmentation.draws_of(counts, drawn)
    assert each.shape == (200, 4)
    assert each.mean(axis=0) == pytest.approx(segmentation.score(counts, patients), abs=0.02)


@pytest.mark.parametrize("network", ["unet", "vit_hybrid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_learn_discs(network, channels):
    train, test = discs(48, 0, channels=channels), discs(16, 1, channels=channels)
    found = train_segmenter(train, None, network=network, epochs=14, seed=0, plan=plan(network), device="cpu")
    probability = found.probabilities(test)
    assert probability.shape == (16, 4, 24, 24)
    assert probability.sum(axis=1) == pytest.approx(np.ones((16, 24, 24)), abs=1e-5)
    predicted = found.predict(test)
    assert predicted.dtype == np.uint8
    assert (predicted == probability.argmax(axis=1)).all()
    levels = segmentation.score(segmentation.pixel_counts(test.masks, predicted, 4), test.patients)
    assert segmentation.mean_dice(levels) > 0.6


def test_predictions_do_not_look_at_masks():
    found = train_segmenter(discs(8, 0), None, epochs=1, seed=0, plan=plan(), device="cpu")
    test = discs(6, 1)
    blank = replace(test, masks=np.zeros_like(test.masks), has_mask=np.arange(6) > 0)
    assert (found.predict(test) == found.predict(blank)).all()


def test_same_seed_same_bits_also_after_a_kill(tmp_path, monkeypatch):
    train, validation = discs(20, 0), discs(8, 1)
    settings = {"epochs": 4, "seed": 5, "plan": replace(plan(), patience=4), "device": "cpu"}
    train_segmenter(train, validation, **settings, folder=tmp_path / "a")
    monkeypatch.setattr(loop, "KEEPING", np.inf)  # the state is written after every epoch
    kept, calls = loop.keep, []

    def killed(*arguments):
        kept(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        train_segmenter(train, validation, **settings, folder=tmp_path / "b")
    train_segmenter(train, validation, **settings, folder=tmp_path / "b")
    assert len(calls) == 4
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)
    train_segmenter(train, validation, **settings, folder=tmp_path / "b")
    assert len(calls) == 4  # a finished training is not done again
    train_segmenter(train, validation, **{**settings, "seed": 6}, folder=tmp_path / "b")
    assert len(calls) == 8
    again = load_segmenter(tmp_path / "a", device="cpu")
    assert again.about["steps"] == 4 * 3
    assert again.about["validation_dice"] > 0
    (tmp_path / "a" / "weights.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="are not those"):
        load_segmenter(tmp_path / "a")


def test_stops_early_and_keeps_the_best_epoch(tmp_path):
    import pandas as pd

    settings = {"epochs": 30, "seed": 0, "device": "cpu", "plan": plan(patience=2, learning_rate=0.02)}
    found = train_segmenter(discs(8, 0, noise=80), discs(8, 1, noise=80), folder=tmp_path, **settings)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert len(curves) < 30
    assert curves["validation_dice"].idxmax() + 1 == found.about["best_epoch"] == len(curves) - 2
    assert not (tmp_path / "last").exists()


def test_an_epoch_is_judged_as_the_network_will_predict():
    train, validation = discs(24, 0), discs(8, 1)
    found = train_segmenter(
        train, validation, network="vit_hybrid", epochs=4, seed=0, device="cpu",
        plan=replace(plan("vit_hybrid"), options={**SMALL["vit_hybrid"], "dropout": 0.3}),
    )  # fmt: skip
    counts = segmentation.pixel_counts(validation.masks, found.predict(validation), 4)
    expected = float(segmentation.mean_dice(segmentation.score(counts, validation.patients)))
    assert found.about["validation_dice"] == pytest.approx(expected, abs=1e-6)


def test_loss_leaves_out_levels_that_the_batch_lacks():
    masks = torch.tensor([[[0, 1], [1, 0]]])
    logits = torch.nn.functional.one_hot(masks, 4).movedim(-1, 1).float() * 40
    assert segmentation_loss(logits, masks).item() == pytest.approx(0, abs=1e-5)
    assert segmentation_loss(-logits, masks).item() > 1


def test_steps_are_as_many_as_asked_whatever_the_number_of_images():
    for n in (5, 20, 70):
        found = train_segmenter(discs(n, 0), None, epochs=2, seed=0, plan=plan(steps=3), device="cpu")
        assert found.about["steps"] == 6


def test_pretrained_start_from_a_resnet_a_transformer_or_itself(tmp_path, capsys):
    from torchvision.models import resnet18

    own = build_network("vit_hybrid", list("abcd"), 24, 3, SMALL["vit_hybrid"])
    resnet = resnet18(weights=None).state_dict()
    save_file(resnet, tmp_path / "resnet.safetensors")
    found = train_segmenter(
        discs(4, 0), None, network="vit_hybrid", epochs=1, seed=0, device="cpu",
        plan=plan("vit_hybrid", learning_rate=1e-12), weights=tmp_path / "resnet.safetensors",
    )  # fmt: skip
    inside = [name for name in resnet if name.startswith(("conv1", "bn1", "layer1"))]
    assert (
        f"{len(inside)} of {len(own.state_dict())} tensors taken over, {len(resnet) - len(inside)} of the file not"
        in (capsys.readouterr().err)
    )
    assert torch.allclose(found.network.stem["conv1"].weight, resnet["conv1.weight"], atol=1e-6)

    tokens = {
        "pos_embed": torch.randn(1, 17, 16),
        "blocks.0.attn.qkv.weight": torch.randn(48, 16),
        "head.bias": torch.ones(9),
    }
    taken = own.adopt(tokens)
    assert set(taken) == {"vit.pos_embed", "vit.blocks.0.attn.qkv.weight"}
    assert taken["vit.pos_embed"].shape == (1, 36, 16)
    assert set(own.adopt(own.state_dict())) == set(own.state_dict())
    assert regridded(torch.ones(1, 9, 2), 9).shape == (1, 9, 2)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [({"other": torch.ones(1)}, "no tensor"), ({"conv1.weight": torch.ones(8, 3, 7, 7)}, "another shape")],
)
def test_weights_that_do_not_fit_are_named(tmp_path, tensors, says):
    save_file(tensors, tmp_path / "w.safetensors")
    settings = {"network": "vit_hybrid", "epochs": 1, "seed": 0, "plan": plan("vit_hybrid"), "device": "cpu"}
    with pytest.raises(InputError, match=says):
        train_segmenter(discs(4, 0), None, weights=tmp_path / "w.safetensors", **settings)
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read"):
        train_segmenter(discs(4, 0), None, weights=tmp_path / "w.safetensors", **settings)
    with pytest.raises(InputError, match="no weights here"):
        train_segmenter(discs(4, 0), None, weights=tmp_path / "none.safetensors", **settings)


def test_what_cannot_be_trained_or_predicted_is_said():
    train = discs(4, 0)
    settings = {"epochs": 1, "seed": 0, "device": "cpu"}
    with pytest.raises(InputError, match="unet"):
        train_segmenter(train, None, network="unett", **settings)
    with pytest.raises(InputError, match="options"):
        train_segmenter(train, None, plan=SegmenterPlan(options={"widht": 3}), **settings)
    with pytest.raises(InputError, match="too small"):
        train_segmenter(discs(4, 0, side=12), None, **settings)
    with pytest.raises(InputError, match="no multiple of 8"):
        train_segmenter(discs(4, 0, side=28), None, network="vit_hybrid", **settings)
    with pytest.raises(InputError, match="fewer than two"):
        train_segmenter(replace(train, has_mask=np.zeros(4, bool)), None, **settings)
    with pytest.raises(InputError, match="background"):
        train_segmenter(train, replace(train, masks=train.masks * 0), **settings)
    found = train_segmenter(train, None, plan=plan(), **settings)
    with pytest.raises(InputError, match="size"):
        found.predict(discs(4, 0, channels=1))


def test_unet_takes_any_side_and_full_size_has_the_published_widths():
    assert UNet(4, width=4, depth=2, norm="instance")(torch.zeros(2, 3, 21, 21)).shape == (2, 4, 21, 21)
    full = ViTHybrid(4, side=64, stem="resnet50", stages=3, width=768, layers=1, heads=12, decoder=512)
    assert full(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 64, 64)
    assert full.vit.pos_embed.shape == (1, 16, 768)
    with pytest.raises(ValueError, match="norm"):
        UNet(4, norm="batch")
