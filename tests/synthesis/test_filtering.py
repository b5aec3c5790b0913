from dataclasses import replace

import numpy as np
import pytest
from tests.synthesis.fabricated import synthetic, tiles

from histocrypt.errors import InputError
from histocrypt.synthesis import filtering
from histocrypt.synthesis import filtering as novelty
from histocrypt.synthesis.filtering import train_reconstruction
from histocrypt.synthesis.manifest import Pairs


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    train = tiles(["a", "b", "c", "d"])
    folder = tmp_path_factory.mktemp("reconstruction")
    return train, tiles(["y", "z"], each=40, seed=1), train_reconstruction(
        train, epochs=10, seed=0, folder=folder, width=6
    ), folder  # fmt: skip


def judge(learnt, drawn, **settings):
    train, held_out, reconstruction, _ = learnt
    return filtering.filter_pairs(drawn, train, held_out, reconstruction=reconstruction, **settings)


RNG = np.random.default_rng(0)
COPIES = {
    "exact": lambda x: x,
    "mirrored": lambda x: x[:, :, ::-1],
    "turned": lambda x: np.rot90(x, 1, (1, 2)),
    "upside down": lambda x: x[:, ::-1],
    "slightly noised": lambda x: x + RNG.normal(0, 3, x.shape),
    "brighter": lambda x: x + 2,
}


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_rejected_and_their_source_is_named(learnt, kind):
    train = learnt[0]
    chosen = RNG.permutation(len(train))[:20]
    drawn = synthetic(train.subset(chosen), change=COPIES[kind])
    found = judge(learnt, drawn)
    assert found.table["verdict"].isin([filtering.COPY, filtering.BOTH]).all()
    assert (found.table["nearest"].to_numpy() == train.ids[chosen]).all()
    assert found.summary["too_near"] == 1
    assert len(found.kept) == 0
    assert "no synthetic image passed the filter" in found.summary["notes"]


UNREAL = {
    "noise": lambda x: RNG.uniform(0, 255, x.shape),
    "blank": lambda x: np.full_like(x, 200),
    "another colour": lambda x: 255 - x,
}


@pytest.mark.parametrize("kind", UNREAL)
def test_what_is_like_no_tissue_is_rejected(learnt, kind):
    found = judge(learnt, synthetic(tiles(["new"], seed=3), change=UNREAL[kind]))
    assert found.summary["not_realistic"] > 0.9


def test_tissue_of_an_unseen_patient_mostly_passes_and_classes_stay_balanced(learnt):
    drawn = synthetic(tiles(["u", "v"], each=60, seed=2))
    keep = np.r_[np.flatnonzero(drawn.labels == "normal"), np.flatnonzero(drawn.labels == "tumour")[:25]]
    found = judge(learnt, drawn.subset(keep))
    assert found.summary["rejected"] < 0.5
    counts = found.table.loc[found.table["verdict"] == "kept", "label"].value_counts()
    assert counts["normal"] == counts["tumour"] == found.summary["per_class"] > 5
    assert set(found.kept.ids) == set(found.table.index[found.table["verdict"] == "kept"])
    assert not any("short" in note for note in found.summary["notes"])
    rows = found.summary["classes"]
    assert rows["normal"]["n"] == 60
    assert rows["tumour"]["kept"] == counts["tumour"]
    total = sum(row["n"] * row["rejected"] for row in rows.values())
    assert total / len(keep) == pytest.approx(found.summary["rejected"])


def test_what_is_short_is_said(learnt):
    drawn = synthetic(tiles(["u", "v"], each=30, seed=2))
    found = judge(learnt, drawn, per_class=5)
    assert [row["kept"] for row in found.summary["classes"].values()] == [5, 5]
    passed = found.table[found.table["verdict"].isin(["kept", "surplus"])]
    first = passed[passed["label"] == "tumour"].index[:5]
    assert set(first) <= set(found.kept.ids)  # the first that passed, not those of the least error
    found = judge(learnt, drawn, per_class=1000)
    assert any(note.startswith("class tumour is short") for note in found.summary["notes"])


def test_training_again_gives_the_same_and_a_finished_one_is_read(learnt):
    train, held_out, reconstruction, folder = learnt
    written = (folder / "reconstruction.safetensors").stat().st_mtime_ns
    again = train_reconstruction(train, epochs=10, seed=0, folder=folder, width=6)
    assert (folder / "reconstruction.safetensors").stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.error(held_out), reconstruction.error(held_out))
    np.testing.assert_array_equal(again.features(held_out), reconstruction.features(held_out))
    fresh = train_reconstruction(train, epochs=10, seed=0, width=6)
    np.testing.assert_allclose(fresh.error(held_out), reconstruction.error(held_out), rtol=1e-4)


def test_it_learnt_something(learnt):
    train, held_out, reconstruction, _ = learnt
    mean = np.abs(held_out.signals()[0] - train.signals()[0].mean(axis=(0, 2, 3), keepdims=True)).mean()
    assert np.median(reconstruction.error(held_out)) < 0.6 * mean


def test_distances_are_exact():
    features = np.random.default_rng(0).normal(size=(700, 5))
    distance, index = novelty.distances(features[::-1], features)
    assert (distance == 0).all()
    assert (index == np.arange(700)[::-1]).all()


def test_refusals(learnt):
    train, held_out, reconstruction, _ = learnt
    drawn = synthetic(train)
    settings = {"reconstruction": reconstruction}
    with pytest.raises(InputError, match="patient a"):
        filtering.filter_pairs(drawn, train, Pairs.join([held_out, train.subset([0])]), **settings)
    with pytest.raises(InputError, match="there is no held-out image"):
        filtering.filter_pairs(drawn, train, held_out.subset([]), **settings)
    with pytest.raises(InputError, match="0 < novelty < realism < 1"):
        filtering.filter_pairs(drawn, train, held_out, novelty_quantile=1.0, **settings)
    with pytest.raises(InputError, match="keeps nothing"):
        filtering.filter_pairs(drawn, train, held_out, per_class=0, **settings)
    with pytest.raises(InputError, match=r"\(24, 24, 3\)"):
        reconstruction.error(replace(train, images=train.images[:, :16, :16]))
    with pytest.raises(InputError, match="cannot learn from these images"):
        train_reconstruction(replace(train, images=train.images[:, :18, :18]), epochs=1, seed=0)
