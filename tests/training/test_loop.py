"""The loop: its schedule, its averages, when it stops, what it keeps; and the changes of images it makes."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from histocrypt.errors import InputError
from histocrypt.options import Training
from histocrypt.predictors.network import train_network
from histocrypt.training import images as pictures
from histocrypt.training import loop
from histocrypt.training.images import STAINS, flip_and_turn, vary_stain


def settings(**changes):
    plain = {"epochs": 6, "batch_size": 16, "augment_flips": False, "augment_stain": 0, "patience": 6, "ema": 0.5}
    return Training(**{**plain, **changes})


def toy(n, seed, *, noise=0.0):
    """Images whose mean red is the target."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (n, 3, 6, 6))
    pixels[:, 0] = (pixels[:, 0] * 0.2 + 200 * rng.random((n, 1, 1))).astype(int)
    target = pixels[:, :1].mean(axis=(2, 3)) / 255 + noise * rng.normal(size=(n, 1))
    flat = torch.zeros(1, 3, 1, 1)
    return pictures.Images(
        torch.tensor(pixels, dtype=torch.uint8), flat, flat + 1, np.full(n, "s"), torch.tensor(target).float()
    )


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Dropout(0.1))
        self.append(nn.Linear(8 * 16, 1))


def trained(data, validation, chosen=None, *, epochs=6, seed=0, **more):
    torch.manual_seed(1)
    options = {"fingerprint": "x", "device": torch.device("cpu"), **more}
    network = Small()
    return network, train_network(
        network, data, validation, settings=chosen or settings(), epochs=epochs, seed=seed, **options
    )


def test_learning_rate_rises_shortly_then_only_falls():
    rates = [loop.learning_rate(step, 100, 1e-3) for step in range(130)]
    assert rates[4] == pytest.approx(1e-3)
    assert all(a < b for a, b in zip(rates[:4], rates[1:5], strict=True))
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))
    assert rates[-1] == pytest.approx(1e-5)
    assert loop.learning_rate(0, 1, 1e-3) == pytest.approx(1e-3)


def test_section_pearson_is_scipys_within_sections():
    from scipy.stats import pearsonr

    rng = np.random.default_rng(0)
    truth, sections = rng.normal(size=(40, 3)), np.repeat(["a", "b"], 20)
    guess = truth + rng.normal(size=truth.shape)
    truth[sections == "b", 0] = 7  # does not vary there: left out
    guess[sections == "a", 1] = 2  # constant prediction: 0
    a = np.mean([pearsonr(guess[:20, 0], truth[:20, 0])[0], 0, pearsonr(guess[:20, 2], truth[:20, 2])[0]])
    b = np.mean([pearsonr(guess[20:, i], truth[20:, i])[0] for i in (1, 2)])
    assert loop.mean_section_pearson(guess, truth, sections) == pytest.approx((a + b) / 2)
    shifted = guess + np.where(sections == "a", 100, 0)[:, None]  # differences between sections earn nothing
    assert loop.mean_section_pearson(shifted, truth, sections) == pytest.approx((a + b) / 2)
    assert loop.mean_section_pearson(guess, np.ones_like(truth), sections) == 0


def test_average_follows_the_formula_and_takes_batch_norm_along():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = loop.averaged(network, 0.9)
    average.update_parameters(network)
    before, buffer = average.module[0].weight.clone(), average.module[1].running_mean.clone()
    with torch.no_grad():
        network[0].weight += 1
        network[1].running_mean += 2
    average.update_parameters(network)
    keep = (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.module[0].weight, before * keep + network[0].weight * (1 - keep))
    torch.testing.assert_close(average.module[1].running_mean, buffer * keep + network[1].running_mean * (1 - keep))


def test_a_toy_is_learned_and_curves_are_written(tmp_path):
    network, progress = trained(
        toy(128, 0), toy(64, 1), settings(epochs=15, patience=15, learning_rate=1e-2), epochs=15,
        curves_file=tmp_path / "curves.csv",
    )  # fmt: skip
    assert progress.best_score > 0.9
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    columns = ("epoch", "train_loss", "validation_loss", "validation_pcc", "learning_rate", "seconds")
    assert tuple(rows[0]) == columns
    assert [int(row["epoch"]) for row in rows] == list(range(1, 16))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert progress.best_score == max(float(row["validation_pcc"]) for row in rows)
    guess = pictures.predict(network, toy(64, 1), torch.device("cpu"))
    again = loop.mean_section_pearson(guess, toy(64, 1).targets.numpy(), np.full(64, "s"))
    assert again == progress.best_score, "the weights returned are those of the best epoch"


def test_training_stops_when_validation_does_not_improve():
    data, other = toy(64, 0), toy(64, 1)
    noise = torch.tensor(np.random.default_rng(5).normal(size=(64, 1))).float()
    useless = pictures.Images(other.pixels, other.mean, other.sd, other.sections, noise)
    _, progress = trained(data, useless, settings(epochs=40, patience=2), epochs=40)
    assert progress.epoch < 40
    assert progress.epoch == progress.best_epoch + 2


def test_without_validation_exactly_as_many_epochs_run():
    _, progress = trained(toy(64, 0), None, epochs=4)
    assert progress.epoch == progress.best_epoch == 4
    assert progress.curves[0]["validation_pcc"] is None


def test_a_shorter_training_follows_the_same_schedule():
    _, long = trained(toy(64, 0), None, epochs=6)
    _, short = trained(toy(64, 0), None, epochs=3)
    assert [row["learning_rate"] for row in short.curves] == [row["learning_rate"] for row in long.curves[:3]]


def test_seed_decides_all_and_the_callers_random_state_is_left_alone():
    chosen = settings(augment_flips=True, augment_stain=0.1)

    def weights(seed):
        return torch.cat([p.flatten() for p in trained(toy(48, 0), None, chosen, epochs=2, seed=seed)[0].parameters()])

    torch.manual_seed(1)
    Small()
    state = torch.get_rng_state()
    one = weights(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, weights(0))
    assert not torch.equal(one, weights(1))


def test_state_is_resumed_or_refused_aloud(tmp_path, capsys):
    data, other, file = toy(48, 0), toy(32, 1), tmp_path / "last" / "fit.safetensors"
    whole, progress = trained(data, other)
    trained(data, other, epochs=3, state_file=file)
    resumed, again = trained(data, other, state_file=file)
    assert "goes on after epoch 3" in capsys.readouterr().err
    assert [row["validation_pcc"] for row in again.curves] == [row["validation_pcc"] for row in progress.curves]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key

    _, afresh = trained(data, other, state_file=file, fingerprint="other")
    assert "other settings" in capsys.readouterr().err
    assert len(afresh.curves) == 6
    file.write_bytes(file.read_bytes()[:1000])
    trained(data, other, state_file=file)
    assert "not readable" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_one_sentence():
    with pytest.raises(InputError, match=r"diverged.*learning_rate|learning_rate.*diverged"):
        trained(toy(48, 0), None, settings(learning_rate=1e30), epochs=3)


def test_one_spot_is_refused():
    with pytest.raises(InputError, match="fewer than two"):
        trained(toy(1, 0), None)


def test_flips_give_all_eight_symmetries_and_nothing_else():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    known = {
        tuple(torch.rot90(mirrored, k, (-2, -1)).flatten().tolist())
        for mirrored in (image, image.flip(-1))
        for k in range(4)
    }
    found = flip_and_turn(image.expand(200, 1, 3, 3), torch.Generator().manual_seed(0))
    assert {tuple(row.flatten().tolist()) for row in found} == known


def test_stain_varies_by_concentration_only():
    rng = np.random.default_rng(0)
    concentration = torch.tensor(rng.uniform(0.1, 0.6, (4, 3, 64)))
    images = (-(STAINS.T @ concentration)).exp().view(4, 3, 8, 8).float()
    varied = vary_stain(images, 0.2, torch.Generator().manual_seed(3))
    back = torch.linalg.solve(STAINS.T, -varied.double().log().flatten(2))
    for i in range(4):
        for stain in range(3):  # each concentration is an affine function of what it was
            slope, shift = np.polyfit(concentration[i, stain], back[i, stain], 1)
            assert 0.8 <= slope <= 1.2
            assert -0.1 <= shift <= 0.1
            np.testing.assert_allclose(back[i, stain], slope * concentration[i, stain] + shift, atol=1e-4)
    assert not torch.allclose(varied[0] / images[0], varied[1] / images[1])


def test_stain_of_no_strength_changes_nothing():
    images = torch.rand(2, 3, 4, 4).clamp_min(0.01)
    torch.testing.assert_close(vary_stain(images, 0.0, torch.Generator().manual_seed(0)), images, atol=1e-5, rtol=0)
