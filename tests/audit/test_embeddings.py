"""Tiles from embeddings: what these hold comes back; of ciphertexts nothing does."""

import numpy as np
import pytest

from histocrypt.audit.embeddings import (
    BASELINES,
    DECODERS,
    Sent,
    attack,
    disturbed,
    encrypted,
    figure,
    fit_decoder,
    measure,
    ranks,
    sent_of,
)
from histocrypt.data.folds import Fold
from histocrypt.errors import InputError


def sent(people, each, seed=0):
    """Return tiles of two halves in colours of their own; embeddings are these six numbers, turned and stretched."""
    rng = np.random.default_rng(seed)
    n = len(people) * each
    colours = rng.uniform(60, 230, (n, 2, 3))
    pixels = np.repeat(np.repeat(colours[:, :, None], 8, axis=1), 16, axis=2)
    turned = colours.reshape(n, 6) @ np.random.default_rng(9).normal(size=(6, 12))
    blocks = np.array([f"{person}{i % 4}" for person in people for i in range(each)])
    return Sent(np.rint(pixels).astype(np.uint8), turned, np.repeat(people, each), blocks)


@pytest.fixture(scope="module")
def sides():
    return sent(["a", "b"], 60), sent(["c"], 40, seed=1)


def test_what_an_embedding_holds_comes_back_and_nothing_of_ciphertexts(sides):
    found, pictures = attack(*sides, "made up", epochs=2, draws=50)
    rows = found.rows
    assert set(rows) == {*BASELINES, *DECODERS, *(f"{kind}, ciphertexts" for kind in DECODERS)}
    assert rows["linear"]["found"][0] == 1
    assert rows["linear"]["psnr"][0] > 35 > rows["mean public tile"]["psnr"][0]
    assert found.chance == 1 / 40
    for kind in DECODERS:
        hidden = rows[f"{kind}, ciphertexts"]
        assert hidden["psnr"][0] < rows["mean public tile"]["psnr"][0] + 0.5
        assert hidden["found"][0] <= 0.15
    assert found.encryption["security_bits"] == 128
    assert found.encryption["error"] < 1e-3, "these are ciphertexts of the embeddings"
    assert found.encryption["tiles"] == 160
    assert figure(sides[1], pictures, n=3).axes
    assert len(found.table()) == 6


def test_ciphertexts_of_one_embedding_differ():
    words, _ = encrypted(np.ones((2, 12)))
    assert not (words[0] == words[1]).any()
    assert np.abs(words).max() <= 0.5


def test_nobody_is_on_both_sides(sides):
    with pytest.raises(InputError) as error:
        attack(sides[0], sides[0], "made up")
    assert (error.value.field, error.value.value) == ("patients", "a")


def test_measures_of_the_tile_itself_and_of_another(sides):
    tiles = sides[1].pixels
    same, other = measure(tiles, tiles), measure(np.roll(tiles, 1, axis=0), tiles)
    assert same["found"].all()
    assert same["ssim"].min() == pytest.approx(1)
    assert same[["colour", "content"]].to_numpy().max() < 1e-9
    assert not other["found"].any()
    assert other["psnr"].max() < same["psnr"].min()


def test_ties_count_half():
    assert ranks(np.zeros((3, 2)), np.zeros((3, 2))).tolist() == [1, 1, 1]


def test_another_scan_is_not_the_tile(sides):
    tiles = sides[1].pixels[:3]
    scan = disturbed(tiles)
    assert scan.shape == tiles.shape
    assert (scan != tiles).any(axis=(1, 2, 3)).all()
    assert np.abs(scan.astype(int) - tiles).mean() < 40


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("pixels", np.zeros((2, 16, 16, 3))), ("embeddings", np.zeros((3, 4))), ("embeddings", np.full((2, 4), np.nan))],
)
def test_rows_that_do_not_belong_together(name, wrong):
    rows = {"pixels": np.zeros((2, 16, 16, 3), np.uint8), "embeddings": np.zeros((2, 4))}
    with pytest.raises(InputError) as error:
        Sent(**{**rows, name: wrong}, patients=np.array(["a", "a"]), blocks=np.array(["1", "2"]))
    assert error.value.field == name


def test_an_unknown_decoder(sides):
    with pytest.raises(InputError, match="forest"):
        fit_decoder(sides[0], "forest")


def test_a_fold_that_holds_nobody_out():
    final = Fold("final", (), ("S_1",), (), ())
    with pytest.raises(InputError) as error:
        sent_of(None, final, "efficientnet_lite0")
    assert (error.value.field, error.value.value) == ("fold", "final")
