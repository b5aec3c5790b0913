"""Spots: tiles joined by barcode, targets by gene, features found again by content."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import anndata
import h5py
import numpy as np
import pytest

from histocrypt.data import features as features_module
from histocrypt.data import load as spots_module
from histocrypt.data.load import load_spots
from histocrypt.encoders import encoders
from histocrypt.errors import InputError
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import transform
from histocrypt.tissue.stain import DEFAULT_REFERENCE, StainStatistics, normalise


def load(study, sections, *, fold="fold_a", with_targets=True, **more):
    panel = Panel.load(study.run.fold(fold) / "panel.json")
    return load_spots(study, fold, sections, panel=panel, with_targets=with_targets, **more)


def test_everything_is_in_one_order_by_name(small_study):
    run = small_study.run
    with h5py.File(run.tiles("S_b"), "r+") as file:  # tiles stored in another order than the spots
        stored = file["img"][:]
        file["img"][...], file["barcode"][...] = stored[::-1], file["barcode"][:][::-1]
    spots = load(small_study, ["S_c", "S_b"])
    assert list(dict.fromkeys(spots.sections)) == ["S_c", "S_b"]
    adata = anndata.read_h5ad(run.section("S_b"))
    rows = spots.sections == "S_b"
    assert spots.names[rows].tolist() == [f"S_b:{barcode}" for barcode in adata.obs_names]
    assert set(spots.patients[rows]) == {"b"}
    source = StainStatistics.load(run.stain("S_b"))
    reference = StainStatistics.load(run.fold("fold_a") / "stain_reference.json")
    expected = normalise(stored, source=source, reference=reference, method="macenko")
    assert np.array_equal(spots.tiles[rows], expected)
    column = 2
    transform_name, gene = spots.outputs[column].split(":")
    assert transform_name == "log1p_cp10k"
    truth = transform(adata[:, [gene]].X, adata.obs["total_counts"].to_numpy(), "log1p_cp10k")
    assert np.array_equal(spots.targets[rows][:, column], truth[:, 0])
    assert np.array_equal(spots.depth[rows], adata.obs["total_counts"])


def test_tiles_are_resized_on_request(small_study):
    spots = load(small_study, ["S_b"], side=24)
    full = load(small_study, ["S_b"])
    assert spots.tiles.shape == (25, 24, 24, 3)
    assert np.abs(spots.tiles.mean(axis=(1, 2)) - full.tiles.mean(axis=(1, 2))).max() < 6


def test_tiles_are_normalised_once_and_only_for_who_looks_at_them(small_study, monkeypatch):
    normalised, real = [], spots_module.normalised_chunks

    def counted(tiles, *, reference, **more):
        normalised.append(reference is DEFAULT_REFERENCE)
        return real(tiles, reference=reference, **more)

    for module in (spots_module, features_module):
        monkeypatch.setattr(module, "normalised_chunks", counted)
    spots = load(small_study, ["S_b", "S_c"])
    spots.subset(np.arange(3)).features("efficientnet_lite0_128")
    assert normalised
    assert all(normalised)  # features come from the published stain, not from the fold's
    for seen in (spots, spots.subset(np.arange(3)), replace(spots, targets=None)):
        assert len(seen.tiles) == len(seen)
    assert normalised.count(False) == 2  # sections


def test_large_sets_of_tiles_are_memory_mapped(small_study, monkeypatch):
    in_memory = load(small_study, ["S_b", "S_c"])
    monkeypatch.setattr(spots_module, "IN_MEMORY", 1000)
    mapped = load(small_study, ["S_b", "S_c"])
    assert isinstance(mapped.tiles, np.memmap)
    assert np.array_equal(mapped.tiles, in_memory.tiles)


def test_a_test_section_may_lack_genes_and_a_training_section_may_not(small_study):
    path = small_study.run.section("S_a")
    panel = Panel.load(small_study.run.fold("fold_a") / "panel.json")
    adata = anndata.read_h5ad(path)
    adata[:, [gene for gene in adata.var_names if gene != panel.genes[0]]].write_h5ad(path)
    assert load(small_study, ["S_a"], with_targets=False).targets is None
    with pytest.raises(InputError) as refused:
        load(small_study, ["S_a"])
    assert refused.value.field == "var_names"
    assert panel.genes[0] in refused.value.problem


def test_a_spot_without_tile_is_named(small_study):
    with h5py.File(small_study.run.tiles("S_b"), "r+") as file:
        del file["barcode"]
        file["barcode"] = np.array([f"{i}".encode() for i in range(25)])[:, None]
    spots = load(small_study, ["S_b"])
    for asked in (lambda: spots.tiles, lambda: spots.features("efficientnet_lite0_128")):
        with pytest.raises(InputError) as refused:
            asked()
        assert refused.value.file == small_study.run.tiles("S_b")
        assert refused.value.field == "barcode"


def test_features_are_computed_once_and_not_for_each_fold(small_study, rewrite, monkeypatch):
    computed = []

    def encode(tiles, encoder, **more):
        computed.append(len(tiles))
        return tiles.reshape(len(tiles), -1)[:, :7].astype(np.float32) + 0.5

    monkeypatch.setattr(encoders, "encode", encode)  # the cache is on trial here, not the network
    first = load(small_study, ["S_b", "S_c"]).features("efficientnet_lite0")
    assert computed == [25, 25]
    again = load(small_study, ["S_c", "S_b"], fold="fold_d").features("efficientnet_lite0")
    assert computed == [25, 25]
    assert np.array_equal(again, np.concatenate([first[25:], first[:25]]))
    load(small_study, ["S_b"]).features("efficientnet_lite0_128")
    assert len(computed) == 3
    rewrite("b", pixel_noise=1)
    changed = load(small_study, ["S_b"]).features("efficientnet_lite0")
    assert len(computed) == 4
    assert not np.array_equal(changed, first[:25])


def test_jobs_side_by_side_compute_a_section_once(small_study, monkeypatch):
    computed = []

    def encode(tiles, encoder, **more):
        computed.append(len(tiles))
        time.sleep(0.3)
        return np.full((len(tiles), 7), 0.5, dtype=np.float32)

    monkeypatch.setattr(encoders, "encode", encode)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: load(small_study, ["S_b"]).features("efficientnet_lite0"), range(2)))
    assert computed == [25]
    assert np.array_equal(*both)


def test_a_damaged_cache_file_is_computed_again(small_study, capsys):
    from histocrypt import paths

    first = load(small_study, ["S_b"]).features("efficientnet_lite0_128")
    (file,) = (paths.cache() / "features").glob("*.h5")
    file.write_bytes(b"half a file")
    assert np.array_equal(load(small_study, ["S_b"]).features("efficientnet_lite0_128"), first)
    assert f"{file} is damaged; its features are computed again" in capsys.readouterr().err
    assert h5py.is_hdf5(file)
    assert np.isfinite(first).all()
    assert first.shape == (25, 1280)


def test_a_subset_keeps_features_and_names_together(small_study):
    spots = load(small_study, ["S_b"])
    chosen = spots.subset(np.array([3, 1]))
    assert np.array_equal(chosen.features("efficientnet_lite0_128"), spots.features("efficientnet_lite0_128")[[3, 1]])
    assert np.array_equal(chosen.tiles, spots.tiles[[3, 1]])


def test_features_of_an_open_tile_file_are_those_of_the_array(small_study, monkeypatch):
    monkeypatch.setattr(features_module, "CHUNK", 16)  # two chunks
    whole = load(small_study, ["S_b"])
    expected = whole.features("efficientnet_lite0_128")
    (file,) = (small_study.run.root.parent / ".cache" / "features").glob("*.h5")
    file.unlink()
    stain = StainStatistics.load(small_study.run.stain("S_b"))
    with h5py.File(small_study.run.tiles("S_b"), "r") as tiles:
        found = features_module.section_features(
            tiles["img"], stain=stain, method="macenko", encoder="efficientnet_lite0_128", names=whole.names
        )
    assert file.exists()  # the same content, hence the same key
    assert np.array_equal(found, expected)


def test_many_resized_tiles_lie_in_a_file_and_are_the_same(monkeypatch, tmp_path):
    from histocrypt.predictors.network import resized

    tiles = np.random.default_rng(0).integers(0, 256, (300, 30, 30, 3), dtype=np.uint8)
    expected = resized(tiles, 24)
    monkeypatch.setenv("HISTOCRYPT_CACHE", str(tmp_path))
    monkeypatch.setattr(spots_module, "IN_MEMORY", 1000)
    assert isinstance(spots_module.room((300, 3, 24, 24)), np.memmap)
    assert (resized(tiles, 24) == expected).all()
