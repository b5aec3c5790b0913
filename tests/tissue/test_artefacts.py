"""What lies in the way of spots is told: pen, folds and glass that are drawn onto simulated tissue, and on it alone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from histocrypt.sections.read import read_path
from histocrypt.tissue.artefacts import COLUMNS, FOLD, PEN, looked_over
from histocrypt.tissue.tiles import iter_tiles

SIDE, UM = 150, 1.0
MARKED = slice(0, None, 4)


@pytest.fixture(scope="module")
def tiles(demo_tissue):
    """Tiles of one simulated section."""
    section = read_path(demo_tissue()[0], for_prediction=True)
    how = {"um_per_px": section.um_per_px, "tile_um": SIDE * UM, "tile_px": SIDE}
    return np.stack(list(iter_tiles(section.image, section.coords, **how)))


def marked(tiles, change):
    seen = tiles.copy()
    seen[MARKED] = np.stack([change(tile) for tile in tiles[MARKED]])
    return looked_over(seen, um_per_px=UM)


def told_apart(flagged):
    """Return the share of marked tiles, and of the others, that are flagged."""
    mark = np.zeros(len(flagged), bool)
    mark[MARKED] = True
    return flagged[mark].mean(), flagged[~mark].mean()


def test_plain_tissue_is_not_flagged(tiles):
    found = looked_over(tiles, um_per_px=UM)
    assert tuple(found) == COLUMNS
    assert len(found) == len(tiles)
    assert (found["pen_share"] > PEN).mean() == 0
    assert (found["fold_share"] > FOLD).mean() <= 0.02


@pytest.mark.parametrize("ink", [(40, 110, 200), (30, 120, 60), (25, 25, 28)], ids=["blue", "green", "black"])
def test_pen_is_told(tiles, ink):
    def stroke(tile):
        image = Image.fromarray(tile)
        ImageDraw.Draw(image).line([(0, 40), (SIDE, 110)], fill=ink, width=50)
        return np.asarray(image)

    drawn, others = told_apart(marked(tiles, stroke)["pen_share"].to_numpy() > PEN)
    assert drawn == 1
    assert others == 0


def test_a_fold_is_told(tiles):
    def pleated(tile):  # three layers
        return (tile * (covering / 250) ** 2).clip(0, 255).astype(np.uint8)

    glass = looked_over(tiles, um_per_px=UM)["background_share"].to_numpy()
    covering, on_tissue = tiles[glass.argmin()], glass < 0.05
    flagged = marked(tiles, pleated)["fold_share"].to_numpy() > FOLD
    mark = np.zeros(len(tiles), bool)
    mark[MARKED] = True
    assert flagged[mark & on_tissue].mean() > 0.6
    assert flagged[~mark].mean() <= 0.02


@pytest.mark.parametrize("light", [(250, 250, 250), (225, 195, 215)], ids=["white", "pink"])
def test_glass_is_measured_whatever_its_colour(tiles, light):
    rng = np.random.default_rng(0)
    half = np.concatenate([np.zeros((SIDE, SIDE // 2), bool), np.ones((SIDE, SIDE - SIDE // 2), bool)], axis=1)

    def scanned(tile, *, emptied):
        noisy = np.array(light) + rng.normal(0, 1, (SIDE, SIDE, 1))
        seen = tile / 255 * np.array(light)
        return np.where(half[..., None] & emptied, noisy, seen).clip(0, 255).astype(np.uint8)

    whole = np.stack([scanned(tile, emptied=False) for tile in tiles])
    cleared = np.stack([scanned(tile, emptied=True) for tile in tiles])
    before, after = (looked_over(one, um_per_px=UM)["background_share"].to_numpy() for one in (whole, cleared))
    assert (after >= 0.45).all()
    assert np.median(after - before) > 0.35
