import numpy as np
import pytest

from histocrypt.sections.image import PatchMosaic, open_image
from histocrypt.tissue.mask import disc_share, spot_tissue_share, tissue_mask
from histocrypt.tissue.preprocess import find_tissue


def drawn(tissue, background=244, seed=0):
    rng = np.random.default_rng(seed)
    image = np.full((*tissue.shape, 3), background, dtype=float)
    image[tissue] = (190, 130, 185)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("background", [255, 244, (238, 215, 235)])
def test_a_drawn_piece_is_found(blob, background):
    tissue = blob(1)
    mask = tissue_mask(drawn(tissue, background), um_per_px=8.0)
    assert mask.dtype == bool
    assert overlap(mask, tissue) > 0.95


def test_white_gaps_between_patches_are_not_tissue(blob):
    """A mosaic: grey glass in the patches, pure white between them."""
    tissue = blob(2)
    image = drawn(tissue, 236)
    image[:, 190:215] = 255
    image[:40] = 255
    mask = tissue_mask(image, um_per_px=8.0)
    seen = tissue.copy()
    seen[:, 190:215] = False
    assert overlap(mask, seen) > 0.93
    assert not mask[:, 195:210].any()


def test_eosin_bleeding_into_the_glass_is_not_tissue(blob):
    tissue = blob(3)
    y, x = np.mgrid[:400, :400]
    bleed = 45 * np.exp(-(((x - 330) / 60) ** 2 + ((y - 200) / 60) ** 2))
    image = drawn(tissue, (240, 228, 238)).astype(float)
    image[..., 1] -= np.where(tissue, 0, bleed)
    assert overlap(tissue_mask(image.astype(np.uint8), um_per_px=8.0), tissue) > 0.93


def test_fat_is_tissue(blob):
    """A honeycomb of thin membranes inside the tissue."""
    tissue = blob(4)
    image = drawn(tissue)
    y, x = np.mgrid[:400, :400]
    fat = np.hypot(x - 200, y - 200) < 50
    membrane = fat & ((x % 10 == 0) | (y % 10 == 0))
    image[fat] = 244
    image[membrane] = (225, 190, 220)
    assert tissue_mask(image, um_per_px=8.0)[fat].mean() > 0.9


def test_a_large_hole_is_no_tissue(blob):
    tissue = blob(4)
    y, x = np.mgrid[:400, :400]
    hole = np.hypot(x - 200, y - 200) < 40
    mask = tissue_mask(drawn(tissue & ~hole), um_per_px=8.0)
    assert mask[hole].mean() < 0.1


@pytest.mark.parametrize("level", [255, 244, 128, 0])
def test_a_blank_image_holds_no_tissue(level):
    rng = np.random.default_rng(0)
    image = np.clip(level + rng.normal(0, 3, (120, 150, 3)), 0, 255).astype(np.uint8)
    mask = tissue_mask(image)
    assert mask.shape == (120, 150)
    assert not mask.any()


def test_dust_is_no_tissue(blob):
    tissue = blob(5)
    dusty = tissue.copy()
    dusty[5:12, 5:12] = True
    mask = tissue_mask(drawn(dusty), um_per_px=8.0)
    assert not mask[:20, :20].any()


def test_an_image_full_of_tissue(stained):
    """No glass in view."""
    pixels = stained(200 * 200, strength=(1.4, 1.2)).reshape(200, 200, 3).copy()
    pixels[:, :100] = pixels[:, :100] // 2
    assert tissue_mask(pixels, um_per_px=8.0).mean() > 0.99


def test_share_below_a_disc():
    mask = np.zeros((100, 120), dtype=bool)
    mask[:, 60:] = True  # the edge lies at x = 60 thumbnail pixels, 600 full-resolution pixels
    coords = np.array(
        [[600.0, 500.0], [300.0, 500.0], [900.0, 500.0], [700.0, 500.0], [-500.0, 500.0], [1195.0, 500.0]]
    )
    share = spot_tissue_share(mask, coords, 0.1, 200.0)
    np.testing.assert_allclose(share[:5], [0.5, 0, 1, 1, 0], atol=0.02)
    assert 0.4 < share[5] < 0.7  # half of the disc lies outside the image


def test_patches_that_lie_apart_are_tissue_and_specks_in_them_are_dust():
    """16 patches of 112 µm, 200 µm apart: half of them full of tissue, half glass with a speck of 30 µm."""
    side, corners = 112, np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2) * 200 + 40
    speck = np.zeros((side, side), dtype=bool)
    speck[40:70, 40:70] = True
    full = np.arange(16) % 2 == 0
    patches = [drawn(np.ones_like(speck) if one else speck, seed=number) for number, one in enumerate(full)]
    mosaic = PatchMosaic("patches", corners, side, patches.__getitem__, size=(840, 840))
    mask, scale = find_tissue(mosaic, um_per_px=1.0)
    share = spot_tissue_share(mask, corners + side / 2, scale, 55.0)
    assert (share[full] > 0.95).all()
    assert (share[~full] < 0.05).all()


@pytest.mark.parametrize("diameter", [0.3, 1.0, 2.5, 7.0, 20.4])
def test_disc_share_is_a_mean(diameter):
    full = np.ones((60, 60), dtype=bool)
    share = disc_share(full, diameter)
    np.testing.assert_allclose(share[25:35, 25:35], 1, atol=1e-5)
    one = np.zeros((61, 61), dtype=bool)
    one[30, 30] = True
    np.testing.assert_allclose(disc_share(one, diameter).sum(), 1, atol=1e-4)
    area = np.pi * max(diameter, 1.0) ** 2 / 4
    assert disc_share(one, diameter).max() == pytest.approx(min(1.0, 1 / area), rel=0.15)


def test_real_sections(real_data):
    """The share of the image that is tissue, as measured by eye on the thumbnails; glass and gaps are none."""
    image = open_image(real_data / "HER2ST_C3.jpg")
    mask, scale = find_tissue(image, um_per_px=0.6874)
    assert 0.17 < mask.mean() < 0.25
    assert not mask[-200:].any()  # glass with a cast of eosin
    assert mask.shape == (round(image.height * scale), round(image.width * scale))
    mosaic = open_image(real_data / "HBCIS_BC23209_C1_patches.h5")
    thumbnail, _ = mosaic.thumbnail(800)
    mask = tissue_mask(thumbnail, um_per_px=8.0)
    white = (thumbnail == 255).all(axis=2)
    assert 0.25 < mask.mean() < 0.5
    assert mask[white].mean() < 0.05
