"""Quality of drawn tiles: figures against independent implementations, known truth, and tiles that are made bad."""

from dataclasses import replace

import numpy as np
import pytest
from tests.synthesis.fabricated import synthetic, tiles

from histocrypt.errors import InputError
from histocrypt.evaluation.bootstrap import interval
from histocrypt.evaluation.figures import save
from histocrypt.synthesis import figures
from histocrypt.synthesis.quality import (
    DRAWN,
    KEPT,
    OTHERS,
    SAME,
    Sample,
    assess,
    frechet,
    frechet_infinity,
    halved,
    kid,
    nuclei_table,
    quality_table,
    spoilt,
    within,
)


def sample(values, blocks=None):
    return Sample(values, np.full(len(values), "P"), blocks)


def two_sets():
    rng = np.random.default_rng(0)
    return sample(rng.normal(size=(40, 12))), sample(rng.normal(0.3, 1.2, size=(40, 12)))


def test_figures_are_those_of_independent_implementations():
    """Made with the same two arrays, in an environment of their own, by torchmetrics 1.9.0 and prdc 0.2.

    ``maximum_mean_discrepancy(poly_kernel(x, x), poly_kernel(x, y), poly_kernel(y, y))`` of ``torchmetrics.image.kid``;
    ``_compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())`` of ``torchmetrics.image.fid``;
    ``prdc.compute_prdc(x, y, 3)``.
    """
    a, b = two_sets()
    assert kid(a, b)[0] == pytest.approx(0.3956250776566703, rel=1e-9)
    assert frechet(a, b)[0] == pytest.approx(4.404016038297581, rel=1e-9)
    assert (within(a, b)[0], within(b, a)[0]) == (0.675, 0.925)


def test_blocks_of_like_tiles_are_one_draw_each():
    apart, together, plain, infinite = [], [], [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = [np.repeat(rng.normal(size=(24, 6)), 3, axis=0) + 0.3 * rng.normal(size=(72, 6)) for _ in range(2)]
        blocked = [sample(one, np.repeat(np.arange(24), 3)) for one in values]
        apart.append(kid(*blocked)[0])
        together.append(kid(*(sample(one) for one in values))[0])
        plain.append(frechet(*blocked)[0])
        infinite.append(frechet_infinity(*blocked, seed=seed))
    error = np.std(apart) / np.sqrt(30)
    assert abs(np.mean(apart)) < 3 * error, "both sets are of one distribution"
    assert np.mean(together) > 3 * error, "tiles of one block taken for independent ones"
    assert abs(np.mean(infinite)) < 0.35 * np.mean(plain)


def test_draws_repeat_what_weights_say():
    a, b = two_sets()
    twice = sample(np.concatenate([a.values, a.values[:1]]), np.r_[np.arange(40), 0])  # a block of two like tiles
    weights = np.ones((1, 40))
    weights[0, 0] = 2
    assert kid(a, b, (weights, np.ones((1, 40))))[0] == pytest.approx(kid(twice, b)[0])
    mean = frechet(a, b, (weights, np.ones((1, 40))))[0]
    assert mean == pytest.approx(frechet(sample(twice.values), b)[0])
    drawn = a.weights(50, 0)
    assert (drawn.sum(axis=1) == 40).all()
    low, high = interval(kid(a, b, (drawn, b.weights(50, 1))), kid(a, b)[0])
    assert low < kid(a, b)[0] < high


def test_a_set_of_few_modes_has_precision_and_no_recall():
    rng = np.random.default_rng(0)
    real, alike, narrow = (rng.normal(size=(60, 4)) * scale for scale in (1, 1, 0.1))
    table = quality_table(sample(real), {"alike": sample(alike), "narrow": sample(narrow)}, draws=50)
    assert table.loc["narrow", "precision"] > 0.9
    assert table.loc["narrow", "recall"] < 0.3 < table.loc["alike", "recall"]
    assert table.loc["alike", "kid_low"] < 0 < table.loc["alike", "kid_high"]
    assert table.loc["narrow", "fd_low"] > table.loc["alike", "fd"]
    assert table["recall_low"].between(0, 1).all()


def test_halves_share_patients_and_no_block():
    patients, blocks = np.repeat(["A", "B"], 12), np.repeat([f"b{i}" for i in range(8)], 3)
    first = halved(patients, blocks)
    assert set(patients[first]) == set(patients[~first]) == {"A", "B"}
    assert not set(blocks[first]) & set(blocks[~first])


@pytest.fixture(scope="module")
def assessed():
    train, held_out = tiles(["A", "B"], each=24), tiles(["C"], each=16, seed=1)
    other = tiles(["A", "B"], each=10, seed=2)
    drawn = synthetic(other)
    drawn.images[0] = train.images[5]  # a copy
    blocks = tuple(np.array([f"{p}{i // 2}" for i, p in enumerate(pairs.patients)]) for pairs in (train, held_out))
    return assess(train, held_out, drawn, drawn.ids[:12].tolist(), blocks=blocks, draws=40), train, drawn


def test_drawn_tiles_stand_between_their_yardsticks(assessed, tmp_path):
    found, train, drawn = assessed
    assert found.table.index.tolist()[:4] == [SAME, OTHERS, DRAWN, KEPT]
    assert found.table.loc[KEPT, "tiles"] == 12
    worst = found.table[found.table.index.str.startswith("Spoilt")]
    assert len(worst) == 3
    assert not found.notes
    assert found.table.loc[SAME, "kid"] < worst["kid"].min()
    assert found.table.loc[DRAWN, "kid"] < worst.loc["Spoilt: mean colour", "kid"]
    copy = found.nearest.iloc[0]
    assert (found.nearest.index[0], copy["training"]) == (drawn.ids[0], train.ids[5])
    assert copy["training_distance"] < 1e-3 < copy["held_out_distance"]
    figure = figures.nearest_tiles(found.nearest, drawn, train, found.tiles[OTHERS], shown=4)
    assert len(figure.axes) == 12
    save(figure, tmp_path / "nearest.png")
    bars = figures.quality_bars(found.table)
    assert [text.get_text() for text in bars.axes[0].get_yticklabels()] == found.table.index.tolist()
    save(bars, tmp_path / "bars.svg")


def test_nuclei_that_are_paler_are_told(assessed, tmp_path):
    found, *_ = assessed
    reference = found.tiles["reference"]
    dark = reference.masks == reference.scheme.levels.index("nuclei")
    pale = replace(reference, images=np.where(dark[..., None], 255 - (255 - reference.images) // 2, reference.images))
    pale = replace(pale, images=pale.images.astype(np.uint8))
    table = nuclei_table(reference, {SAME: found.tiles[SAME], DRAWN: pale}, found.blocks, um_per_px=0.7, draws=60)
    assert table.attrs["note"] == ""
    assert table.loc[(DRAWN, "mask_nuclei"), "difference"] == pytest.approx(0)
    told = table.loc[(DRAWN, "darkness_mean")]
    assert told["difference_high"] < 0
    assert told["difference"] < table.loc[(SAME, "darkness_mean"), "difference"]
    assert "no nucleus" in nuclei_table(reference, {DRAWN: pale}, {}, um_per_px=9.4, most=9, draws=9).attrs["note"]
    save(figures.nuclei_bars(table), tmp_path / "nuclei.svg")


def test_spoilt_tiles_keep_what_they_should():
    images = tiles(["A"], each=3).images
    bad = spoilt(images)
    shuffled = bad["Spoilt: pixels shuffled"]
    assert (np.sort(shuffled.reshape(3, -1, 3), axis=1) == np.sort(images.reshape(3, -1, 3), axis=1)).all()
    assert (shuffled != images).any()
    assert (bad["Spoilt: mean colour"].std(axis=(1, 2)) == 0).all()
    assert bad["Spoilt: blurred"].std() < images.std()


def test_a_set_that_is_too_small_is_left_out_by_name():
    train, held_out = tiles(["A", "B"], each=14), tiles(["C"], each=4, seed=1)
    blocks = tuple(pairs.ids for pairs in (train, held_out))
    drawn = synthetic(tiles(["A"], each=6, seed=2))
    found = assess(train, held_out, drawn, [], blocks=blocks, draws=5)
    assert not {OTHERS, KEPT} & set(found.table.index)
    assert [note.split(":")[0] for note in found.notes] == [OTHERS, KEPT]


def test_refusals():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError) as few:
        quality_table(sample(rng.normal(size=(9, 3))), {"few": sample(rng.normal(size=(4, 3)))})
    assert (few.value.field, few.value.value) == ("blocks", 4)
    with pytest.raises(InputError) as nan:
        sample(np.full((9, 2), np.nan))
    assert nan.value.field == "values"
    with pytest.raises(InputError) as other:
        kid(sample(rng.normal(size=(9, 3))), sample(rng.normal(size=(9, 2))))
    assert other.value.value == 2
    with pytest.raises(InputError) as wide:
        frechet_infinity(*(sample(rng.normal(size=(20, 12))) for _ in range(2)))
    assert wide.value.value == 20
