import numpy as np
import pytest

from histocrypt.tissue.alignment import Alignment, align
from histocrypt.tissue.mask import spot_tissue_share

SCALE, DIAMETER = 1 / 8, 55.0  # masks of 8 µm per pixel, full resolution of 1 µm per pixel


def spots_on(mask, pitch=100.0):
    ticks = np.arange(pitch / 2, len(mask) / SCALE, pitch)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    return grid[spot_tissue_share(mask, grid, SCALE, DIAMETER) >= 0.5]


def run(mask, coords, **options):
    settings = {"um_per_px": 1.0, "spot_diameter_um": DIAMETER, "max_shift_um": 150.0, **options}
    return align(mask, SCALE, coords, **settings)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shift", [(70, -50), (-60, 80), (0, 100), (-60, 0)])
def test_a_planted_shift_is_recovered(blob, seed, shift):
    mask = blob(seed)
    coords = spots_on(mask)
    given = coords + np.array(shift)
    found = run(mask, given)
    assert found.applied, found.reason
    assert found.gain > 0.015
    assert found.confidence >= 0.9
    assert np.hypot(*(np.array([found.dx_um, found.dy_um]) + shift)) < 15
    np.testing.assert_allclose(found.apply(given, 1.0), coords, atol=15)
    assert found.share_after - found.share_before == pytest.approx(found.gain, abs=1e-5)


def test_resolution_of_the_image_does_not_matter(blob):
    """The same section scanned at 0.5 µm per pixel: the same move in micrometres."""
    mask = blob(0)
    given = spots_on(mask) + np.array([70, -50])
    coarse = run(mask, given)
    fine = align(mask, SCALE / 2, given * 2, um_per_px=0.5, spot_diameter_um=DIAMETER, max_shift_um=150.0)
    assert (fine.dx_um, fine.dy_um) == pytest.approx((coarse.dx_um, coarse.dy_um))
    np.testing.assert_allclose(fine.apply(given * 2, 0.5), 2 * coarse.apply(given, 1.0))


@pytest.mark.parametrize("seed", range(4))
def test_good_sections_are_left_alone(blob, seed):
    mask = blob(seed)
    coords = spots_on(mask)
    found = run(mask, coords)
    assert not found.applied
    assert "gains" in found.reason
    assert found.gain < 0.01
    np.testing.assert_array_equal(found.apply(coords, 1.0), coords)


def test_a_plateau_asks_for_no_move(blob):
    mask = blob(0)
    coords = spots_on(mask)
    inside = coords[np.hypot(*(coords - coords.mean(axis=0)).T) < 500]
    assert len(inside) > 20
    found = run(mask, inside)
    assert not found.applied
    assert (found.dx_um, found.dy_um, found.gain) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_random_spots_are_left_alone(blob, seed):
    found = run(blob(seed % 3), np.random.default_rng(seed).uniform(0, 3200, size=(150, 2)))
    assert not found.applied, found.reason


def test_an_array_that_the_tissue_outgrows_is_left_alone(blob):
    """All array spots are listed, and tissue goes on beyond the array: more tissue is no better place."""
    mask = blob(1)
    centre = spots_on(mask).mean(axis=0)
    ticks_x, ticks_y = (
        np.arange(centre[0] - 1500, centre[0] + 200, 100),
        np.arange(centre[1] - 700, centre[1] + 700, 100),
    )
    grid = np.stack(np.meshgrid(ticks_x, ticks_y), axis=-1).reshape(-1, 2)
    found = run(mask, grid)
    assert not found.applied
    assert "limit of the search" in found.reason


def test_a_shift_beyond_the_search_is_not_half_made(blob):
    mask = blob(0)
    found = run(mask, spots_on(mask) + np.array([300.0, 0]))
    assert not found.applied
    assert "align_max_shift_um" in found.reason


@pytest.mark.parametrize("degrees", [5.0, -6.0])
def test_rotation_is_recovered_when_enabled(blob, degrees):
    mask = blob(1)
    coords = spots_on(mask)
    pivot = coords.mean(axis=0)
    planted = Alignment(rotation_deg=degrees, dx_um=40, dy_um=-30, applied=True, pivot_px=tuple(pivot))
    given = planted.apply(coords, 1.0)
    found = run(mask, given, max_rotation_deg=8.0)
    assert found.applied, found.reason
    assert found.rotation_deg == pytest.approx(-degrees, abs=1.0)
    assert found.scale == 1.0
    assert np.hypot(*(found.apply(given, 1.0) - coords).T).mean() < 25
    assert run(mask, given).rotation_deg == 0.0


def test_scale_is_recovered_and_does_not_shrink_good_sections(blob):
    mask = blob(1)
    coords = spots_on(mask)
    kept = run(mask, coords, max_scale=0.1)
    assert not kept.applied
    given = Alignment(scale=1.08, applied=True, pivot_px=tuple(coords.mean(axis=0))).apply(coords, 1.0)
    found = run(mask, given, max_scale=0.1)
    assert found.applied, found.reason
    assert found.scale == pytest.approx(1 / 1.08, abs=0.025)


def test_few_spots_or_no_tissue(blob):
    mask = blob(0)
    assert "too few" in run(mask, spots_on(mask)[:10]).reason
    assert "no tissue" in run(np.zeros_like(mask), spots_on(mask)).reason


def test_it_is_deterministic_and_plain(blob):
    mask = blob(2)
    given = spots_on(mask) + np.array([60.0, 40.0])
    one, two = run(mask, given), run(mask, given)
    assert one == two
    content = one.to_dict()
    assert content["applied"] is True
    assert content["pivot_px"] == list(one.pivot_px)
    assert "share_before" not in Alignment().to_dict()  # not measured, and NaN is no JSON
