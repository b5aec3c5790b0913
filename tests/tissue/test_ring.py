"""Rings: where few neighbours were measured, the context of a spot is read from tiles that are cut around it."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from histocrypt.data.features import section_features
from histocrypt.encoders.morphology import morphology
from histocrypt.options import Preprocessing
from histocrypt.sections.read import read_path
from histocrypt.spatial import few_around, surroundings
from histocrypt.study import parse_study
from histocrypt.tissue.preprocess import preprocess_section
from histocrypt.tissue.ring import lay_rings, ring_reach
from histocrypt.tissue.stain import StainStatistics
from histocrypt.tissue.tiles import read_places, read_tiles

REACH = 320.0


def everywhere(places):
    return np.ones(len(places), dtype=bool)


def test_a_lone_spot_has_eight_places_as_on_an_array_of_200_um():
    places, pairs = lay_rings(np.array([[1000.0, 1000.0]]), REACH, is_tissue=everywhere)
    away = np.linalg.norm(places - 1000, axis=1)
    assert sorted(away.round(1).tolist()) == [200.0] * 4 + [282.8] * 4
    assert pairs.tolist() == [[0, tile] for tile in range(8)]


def test_rings_share_tiles_and_leave_out_glass_and_what_was_measured():
    um = np.array([[0.0, 0.0], [410.0, 0.0], [5000.0, 0.0], [5195.0, 10.0]])  # rings of the first two meet, 10 um off
    places, pairs = lay_rings(um, REACH, is_tissue=lambda places: places[:, 1] > -100)
    assert [(pairs[:, 0] == spot).sum() for spot in range(4)] == [5, 5, 4, 4]
    shared = set(pairs[pairs[:, 0] == 0, 1]) & set(pairs[pairs[:, 0] == 1, 1])
    assert len(shared) == 2
    assert (places[:, 1] > -100).all()
    away = np.linalg.norm(places[:, None] - um, axis=2)
    assert away.min() > 20  # no tile of a spot is cut again
    assert away[pairs[:, 1], pairs[:, 0]].max() < 320
    apart = np.linalg.norm(places[:, None] - places, axis=2)[~np.eye(len(places), dtype=bool)]
    assert apart.min() > 20


def test_who_has_three_neighbours_has_no_ring():
    um = np.stack(np.meshgrid(np.arange(3), np.arange(3)), axis=-1).reshape(-1, 2) * 200.0
    assert few_around(um, REACH).tolist() == []
    assert few_around(um, 210.0).tolist() == [0, 2, 6, 8]
    assert few_around(np.full((4, 2), np.nan), REACH).tolist() == []
    for found in lay_rings(um, REACH, is_tissue=everywhere):
        assert found.shape == (0, 2)
    assert ring_reach([320, 250, 100]) == 250  # a ring lies beyond 100
    assert ring_reach([100]) == ring_reach([]) == 0


def test_surroundings_with_a_ring_against_brute_force():
    rng = np.random.default_rng(0)
    um = np.concatenate([rng.uniform(0, 3000, (30, 2)), [[np.nan, np.nan]]])
    beside, pairs = lay_rings(um[:30], REACH, is_tissue=lambda places: places[:, 0] > 100)
    values = rng.normal(size=(len(um) + len(beside), 3))
    for reach in (REACH, 250.0):
        found = surroundings(um, reach, ring=(beside, pairs)) @ values
        for spot in range(len(um)):
            away = np.linalg.norm(um - um[spot], axis=1)
            near = np.flatnonzero((away > 0) & (away <= reach)).tolist()
            if len(near) < 3:
                own = pairs[pairs[:, 0] == spot, 1]
                near += (len(um) + own[np.linalg.norm(beside[own] - um[spot], axis=1) <= reach]).tolist()
            np.testing.assert_allclose(found[spot], values[near].mean(axis=0) if near else values[spot])


def preprocessed(section, folder: Path, around_um: float):
    paths = {"section_path": folder / "s.h5ad", "tiles_path": folder / "t.h5", "stain_path": folder / "s.json"}
    settings = Preprocessing(min_counts=0, tile_um=120.0, tile_px=60, align=False)
    return preprocess_section(section, settings=settings, **paths, around_um=around_um, progress=False)


def features(folder: Path, family: str, *, ring: bool = True):
    """Features of all spots, in the order of their names."""
    tiles, names = read_tiles(folder / "t.h5")
    places = read_places(folder / "t.h5")
    how = {"stain": StainStatistics.load(folder / "s.json"), "method": "macenko", "encoder": family}
    places = places if ring else replace(places, ring=None)
    return section_features(tiles, **how, names=np.array([f"S:{name}" for name in names]), places=places)


def thinned(section, kept):
    return replace(section, adata=section.adata[kept].copy())


def test_rings_change_nothing_but_the_context_of_lone_spots(section, tmp_path):
    given = section(0)
    x, y = (given.coords * 2.0 // 100 % 6).T
    few = thinned(given, (x == 2) & (y == 2))  # 600 um apart
    for name, around in (("without", 0.0), ("with", REACH)):
        report = preprocessed(few, tmp_path / name, around)
    assert any("fewer than 3 others within 320 µm" in note for note in report.notes)
    (bare, _), (tiles, names) = (read_tiles(tmp_path / name / "t.h5") for name in ("without", "with"))
    np.testing.assert_array_equal(bare, tiles)
    assert (tmp_path / "without" / "s.json").read_bytes() == (tmp_path / "with" / "s.json").read_bytes()
    assert read_places(tmp_path / "without" / "t.h5").ring is None
    places = read_places(tmp_path / "with" / "t.h5")
    with places.ring.tiles() as cut:
        left, top = np.round(places.ring.um[3] / 2.0 - 30).astype(int)
        np.testing.assert_array_equal(cut[3], given.image.pixels[top : top + 60, left : left + 60])
        stain = StainStatistics.load(tmp_path / "with" / "s.json")
        ring = morphology(cut[:], stain=stain, um_per_px=2.0, of=tiles)  # with the limits of the section's own spots
    for family in ("colour", "morphology"):
        np.testing.assert_array_equal(features(tmp_path / "with", family), features(tmp_path / "without", family))
    around = features(tmp_path / "with", "morphology~320")
    assert len(names) > 5
    for spot in range(len(names)):
        own = places.ring.pairs[places.ring.pairs[:, 0] == spot, 1]
        np.testing.assert_allclose(around[spot], ring[own].mean(axis=0), rtol=1e-5, atol=1e-6)
    some = read_places(tmp_path / "with" / "t.h5", names[::-1])
    assert {(len(names) - 1 - spot, tile) for spot, tile in some.ring.pairs} == set(map(tuple, places.ring.pairs))


def test_a_mosaic_and_a_dense_section_have_no_rings(section, tmp_path):
    dense = section(0)
    report = preprocessed(dense, tmp_path / "dense", REACH)
    few = len(few_around(dense.coords * 2.0, REACH))
    assert (read_places(tmp_path / "dense" / "t.h5").ring is None) == (few == 0)
    mosaic = thinned(section(0), np.arange(dense.n_spots) % 40 == 0)
    mosaic.image.side = 60
    report = preprocessed(mosaic, tmp_path / "mosaic", REACH)
    assert read_places(tmp_path / "mosaic" / "t.h5").ring is None
    assert any("patches show nothing around them" in note for note in report.notes)


def test_a_study_asks_for_rings_where_a_model_reads_surroundings():
    def around(**models):
        return parse_study({"name": "s", "sections": [{"path": "demo"}], "models": models}).around_um

    assert around() == around(resnet18={}) == around(fusion_ridge={"context_um": 0}) == 0
    assert around(fusion_ridge={}) == 320
    assert around(fusion_ridge={}, stem={"encoder": "uni+uni~250"}) == 250
    assert around(he2gene={"backbone": "resnet18"}, encoder_ridge={"encoder": "colour~400"}) == 400


def test_a_real_ring_is_nearer_to_the_context_of_the_whole_section_than_the_spot_is(real_data, tmp_path):
    """HER2ST_B4 with every third place of its array, both ways, beside all of it."""
    whole = read_path(real_data / "HER2ST_B4.h5ad")
    row, column = (whole.adata.obs[name].to_numpy() % 3 == 0 for name in ("array_row", "array_col"))
    thin = thinned(whole, row & column)
    for name, given in (("whole", whole), ("thin", thin)):
        preprocessed(given, tmp_path / name, REACH)
    names = [read_tiles(tmp_path / name / "t.h5")[1].tolist() for name in ("whole", "thin")]
    at = [names[0].index(name) for name in names[1]]
    expected = features(tmp_path / "whole", "colour~320", ring=False)[at]
    ring, spot = (features(tmp_path / "thin", "colour~320", ring=some) for some in (True, False))
    away = [np.sqrt((((one - expected) / expected.std(axis=0)) ** 2).mean()) for one in (ring, spot)]
    assert away[0] < 0.5 * away[1]
    assert h5py.File(tmp_path / "thin" / "t.h5")["img"].shape[0] == len(at)
