"""Nuclei and tissue described by hand: discs of known size and place give their numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histocrypt.encoders import morphology as module
from histocrypt.encoders.morphology import FEATURES, Limits, concentrations, describe, limits_of, morphology, nuclei_of
from histocrypt.errors import InputError
from histocrypt.machine import in_threads
from histocrypt.tissue.stain import DEFAULT_CONCENTRATIONS, DEFAULT_MATRIX, DEFAULT_REFERENCE, INCIDENT_LIGHT

SIDE = 222
LIMITS = Limits(nuclei=0.9, haematoxylin=0.3, eosin=0.3)


def drawn(centres_um, radius_um, *, um_per_px=module.UM, side=SIDE, eosin=0.5, stretch=1.0):
    """Return a tile with dark ellipses on pink, (side, side, 3) uint8 in the published stains."""
    y, x = (np.mgrid[:side, :side] + 0.5) * um_per_px
    inside = np.zeros((side, side), dtype=bool)
    for cx, cy in centres_um:
        inside |= ((x - cx) / stretch) ** 2 + ((y - cy) * stretch) ** 2 <= radius_um**2
    amounts = np.stack([np.where(inside, 1.6, 0.1), np.where(inside, 0.1, eosin)], axis=-1)
    return np.clip(INCIDENT_LIGHT * np.exp(-amounts @ DEFAULT_MATRIX.T) - 1, 0, 255).round().astype(np.uint8)


def lattice(pitch_um, around=15.0, side_um=150.0):
    line = np.arange(around, side_um - around + 1, pitch_um)
    return [(x, y) for x in line for y in line]


def numbers(tile, *, um_per_px=module.UM):
    row = morphology(tile[None], stain=DEFAULT_REFERENCE, um_per_px=um_per_px)[0]
    return dict(zip(FEATURES, row.tolist(), strict=True))


def test_discs_give_their_number_size_and_distance():
    found = numbers(drawn(lattice(20.0), 4.0))
    field = (SIDE * module.UM) ** 2 / 1e4
    assert found["nuclei"] ** 2 * field == pytest.approx(49, abs=0.5)
    assert np.exp(found["log_area_median"]) == pytest.approx(np.pi * 16, rel=0.12)
    assert found["nearest_mean"] == pytest.approx(20, rel=0.03)
    assert found["edge_median"] == pytest.approx(20, rel=0.05)
    assert found["eccentricity_median"] < 0.3
    assert found["roundness_median"] == pytest.approx(1, abs=0.12)
    assert found["share_50_80"] + found["share_32_50"] == pytest.approx(1)
    assert found["nuclear"] == pytest.approx(49 * np.pi * 16 / (SIDE * module.UM) ** 2, rel=0.12)
    assert found["clear"] == 0


def test_touching_discs_are_cut_apart():
    pairs = [(x + dx, y) for x, y in lattice(40.0) for dx in (0.0, 7.0)]
    found = numbers(drawn(pairs, 4.0))
    assert found["nuclei"] ** 2 * (SIDE * module.UM) ** 2 / 1e4 == pytest.approx(len(pairs), abs=0.5)


def test_long_nuclei_are_long_and_point_one_way():
    found = numbers(drawn(lattice(30.0), 4.0, stretch=2.0))
    assert found["eccentricity_median"] > 0.9
    assert found["spindle_share"] == pytest.approx(1)
    assert found["spindle_order"] > 0.95
    assert found["roundness_median"] < 0.8


def test_a_tile_means_the_same_at_another_resolution():
    coarse, fine = (
        numbers(drawn(lattice(20.0), 4.0, um_per_px=um, side=round(150 / um)), um_per_px=um) for um in (0.675, 0.34)
    )
    for name in ("nuclei", "log_area_mean", "nearest_mean", "e_mean", "nuclear"):
        assert fine[name] == pytest.approx(coarse[name], rel=0.06), name


def test_turned_and_mirrored_tiles_are_described_alike():
    rng = np.random.default_rng(0)
    tile = drawn(np.array(lattice(20.0)) + rng.uniform(-4, 4, (49, 2)), 3.6)
    upright = np.array(list(numbers(tile).values()))
    for turned in (np.rot90(tile), tile[::-1], tile.swapaxes(0, 1)):
        other = np.array(list(numbers(np.ascontiguousarray(turned)).values()))
        assert np.allclose(other, upright, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_tile_of_one_colour_gives_finite_numbers(grey):
    found = numbers(np.full((64, 64, 3), grey, dtype=np.uint8))
    assert np.isfinite(list(found.values())).all()
    assert found["clear"] == (grey == 255)
    assert grey != 255 or found["nuclei"] == 0


def test_clear_holes_are_counted_and_measured():
    tile = drawn([], 4.0)
    tile[20:70, 20:70] = 255  # 34 um a side
    tile[120:130, 120:130] = 255
    found = numbers(tile)
    field = (SIDE * module.UM) ** 2
    assert found["holes"] ** 2 * field / 1e4 == pytest.approx(2, abs=0.01)
    assert found["largest_hole"] == pytest.approx(50 * module.UM, rel=0.05)
    assert found["fat"] == pytest.approx((50 * module.UM) ** 2 / field, rel=0.08)


def test_a_stronger_stain_changes_nothing_once_it_is_known():
    weak = drawn(lattice(20.0), 4.0)
    density = -np.log((weak.astype(float) + 1) / INCIDENT_LIGHT)
    strong = np.clip(INCIDENT_LIGHT * np.exp(-1.3 * density) - 1, 0, 255).round().astype(np.uint8)
    stain = replace(DEFAULT_REFERENCE, max_concentrations=1.3 * DEFAULT_CONCENTRATIONS)
    one = describe(weak, DEFAULT_REFERENCE, LIMITS)
    other = describe(strong, stain, LIMITS)
    names = list(FEATURES)
    for name in ("nuclei", "log_area_mean", "h_mean", "e_mean", "darkness_mean"):
        assert other[names.index(name)] == pytest.approx(one[names.index(name)], rel=0.04), name


@pytest.mark.parametrize("glass", [(250, 250, 250), (220, 194, 218), (233, 216, 232)])
def test_glass_is_found_whatever_the_scanner_makes_of_it(glass):
    rng = np.random.default_rng(0)
    tile = drawn([], 4.0).astype(int) + rng.integers(-12, 13, (SIDE, SIDE, 1))  # pale tissue is not flat
    tile[20:120, 20:120] = glass
    found = numbers(tile.clip(0, 255).astype(np.uint8))
    assert found["clear"] == pytest.approx((100 / SIDE) ** 2, rel=0.05)


def test_an_evenly_stained_section_holds_no_glass():
    assert limits_of(drawn([], 4.0, eosin=1.0)[None], DEFAULT_REFERENCE).clear == pytest.approx(0.35)
    assert numbers(drawn([], 4.0, eosin=1.0))["clear"] == 0


def test_turned_tiles_set_the_same_limits():
    tiles = np.stack([drawn(lattice(20.0), 4.0), drawn(lattice(30.0), 3.0, eosin=0.8)])
    tiles[0, 5:60, 100:180] = 235
    assert limits_of(np.rot90(tiles, 1, (1, 2)), DEFAULT_REFERENCE) == limits_of(tiles, DEFAULT_REFERENCE)


def test_limits_come_from_all_tiles_of_the_section():
    tiles = np.stack([drawn(lattice(20.0), 4.0), drawn([], 4.0)])
    limits = limits_of(tiles, DEFAULT_REFERENCE)
    assert 0.5 <= limits.nuclei < 1.6
    held = concentrations(tiles[0], DEFAULT_REFERENCE)
    assert nuclei_of(held[..., 0], limits).max() == 49
    assert nuclei_of(concentrations(tiles[1], DEFAULT_REFERENCE)[..., 0], limits).max() == 0


def test_bad_input_is_named():
    with pytest.raises(InputError) as error:
        morphology(np.zeros((2, 8, 8), dtype=np.uint8), stain=DEFAULT_REFERENCE, um_per_px=0.5)
    assert error.value.value == "(2, 8, 8) uint8"
    with pytest.raises(InputError) as error:
        morphology(np.zeros((2, 8, 8, 3), dtype=np.uint8), stain=DEFAULT_REFERENCE, um_per_px=float("nan"))
    assert error.value.field == "um_per_px"


def test_the_page_names_every_feature():
    page = (Path(__file__).parents[1] / "docs" / "morphology.md").read_text(encoding="utf-8")
    for name, meaning in FEATURES.items():
        if "_pattern_" not in name:  # forty of a kind stand in one line
            assert f"| `{name}` | {meaning} |" in page, name


def test_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    tiles = np.stack([drawn(rng.uniform(20, 130, (8, 2)), rng.uniform(3, 6)) for _ in range(5)])
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(morphology(tiles, stain=DEFAULT_REFERENCE, um_per_px=module.UM))
    np.testing.assert_array_equal(*found)
    assert len(np.unique(found[0], axis=0)) == 5


@pytest.mark.parametrize("threads", ["1", "2"])
def test_threads_keep_the_order_and_take_items_a_few_at_a_time(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    taken = []
    results = in_threads(lambda item: -item, (taken.append(item) or item for item in range(50)), ahead=4)
    assert next(results) == 0
    assert len(taken) <= 4
    assert list(results) == [-item for item in range(1, 50)]
