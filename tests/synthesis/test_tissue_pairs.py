import anndata as ad
import numpy as np
import pandas as pd
import pytest
from tests.small_study import SMALL

from histocrypt.errors import InputError
from histocrypt.study import parse_study
from histocrypt.synthesis import tissue_pairs as tp
from histocrypt.targets.matrix import Label
from histocrypt.tissue import stain
from histocrypt.tissue.tiles import write_tiles

PINK, BLUE, WHITE = (200, 125, 165), (92, 66, 140), (243, 241, 244)
SIDE, PITCH = 60, 40  # tiles of neighbouring spots overlap


class Slide:
    def __init__(self, pixels):
        self.pixels = np.pad(pixels, ((100, 100), (100, 100), (0, 0)), constant_values=255)

    def read_region(self, x, y, width, height):
        return self.pixels[y + 100 : y + 100 + height, x + 100 : x + 100 + width]


def painted():
    """Pink tissue, white in its top 30 rows, with a blue disc of radius 6 every 20 px, and blue dust."""
    rng = np.random.default_rng(0)
    pixels = np.full((300, 200, 3), PINK, dtype=np.int64)
    rows, columns = np.mgrid[:300, :200]
    disc = np.hypot(rows % 20 - 10, columns % 20 - 10) < 6
    pixels[disc & (rows >= 40)] = BLUE
    pixels[:30] = WHITE
    pixels[rng.integers(40, 300, 30), rng.integers(0, 200, 30)] = BLUE
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8), disc & (rows >= 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a study with the artifacts of one section, A, and one, B, that has no label."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        study = parse_study({**SMALL, "name": "painted", "preprocessing": {"tile_um": SIDE, "tile_px": SIDE}})
        pixels, discs = painted()
        coords = np.array([(x, y) for y in range(30, 271, PITCH) for x in range(30, 171, PITCH)], dtype=float)
        names = [f"{int(x)}x{int(y)}" for x, y in coords]
        tumour = ["nan" if i == 5 else "yes" if x > 100 else "no" for i, (x, y) in enumerate(coords)]
        for section, columns in {"A": {"tumour": tumour}, "B": {}}.items():
            obs = pd.DataFrame({"patient": f"P_{section}", **columns}, index=names)
            adata = ad.AnnData(np.ones((len(names), 2), np.float32), obs=obs)
            adata.obsm["spatial"] = coords
            for path in (study.run.section(section), study.run.stain(section)):
                path.parent.mkdir(parents=True, exist_ok=True)
            adata.write_h5ad(study.run.section(section))
            stain.estimate(pixels[30:].reshape(-1, 3)).save(study.run.stain(section))
            write_tiles(study.run.tiles(section), Slide(pixels), names, coords, um_per_px=1.0, tile_um=SIDE,
                        tile_px=SIDE)  # fmt: skip
        yield study, pixels, discs, coords


LABEL = Label("obs:tumour")


def test_pairs_are_named_classed_and_masked_by_rule(made):
    study, pixels, discs, coords = made
    pairs = tp.tissue_pairs(study, ["A", "B"], label=LABEL, side=SIDE)
    assert len(pairs) == len(coords) - 1  # one spot of A has no label, no spot of B has one
    assert set(pairs.patients) == {"P_A"}
    assert pairs.has_mask.all()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    agreed = []
    for name, label, image, mask in zip(pairs.ids, pairs.labels, pairs.images, pairs.masks, strict=True):
        x, y = map(int, name.removeprefix("A:").split("x"))
        assert label == ("tumour" if x > 100 else "normal")
        top, left = y - SIDE // 2, x - SIDE // 2
        np.testing.assert_array_equal(image, pixels[top : top + SIDE, left : left + SIDE])
        # halfway between the spots at 70 and 110 lies x = 90
        expected = np.where(left + columns + 0.5 > 90, tp.TUMOUR, tp.STROMA)
        expected[top + rows < 30] = tp.BACKGROUND
        expected[discs[top : top + SIDE, left : left + SIDE]] = tp.NUCLEI
        agreed.append((mask == expected).mean())
    assert min(agreed) > 0.9
    assert np.mean(agreed) > 0.95


def test_smaller_masks_are_voted_not_mixed(made):
    large, small = (tp.tissue_pairs(made[0], ["A"], label=LABEL, side=side) for side in (SIDE, SIDE // 2))
    blocks = large.masks.reshape(len(large), SIDE // 2, 2, SIDE // 2, 2).transpose(0, 1, 3, 2, 4)
    blocks = blocks.reshape(*small.masks.shape, 4)
    whole = (blocks == blocks[..., :1]).all(axis=-1)
    assert (small.masks[whole] == blocks[whole][:, 0]).all()
    share = [np.bincount(pairs.masks.ravel(), minlength=4) / pairs.masks.size for pairs in (large, small)]
    np.testing.assert_allclose(*share, atol=0.03)


def test_tiles_apart_share_no_pixel(made):
    study = made[0]
    pairs = tp.tissue_pairs(study, ["A"], label=LABEL, side=20)
    kept = tp.apart(study, pairs)
    places = np.array([list(map(int, name.split(":")[1].split("x"))) for name in pairs.ids[kept]])
    between = np.abs(places[:, None] - places[None]).max(axis=-1)[~np.eye(kept.sum(), dtype=bool)]
    assert 4 <= kept.sum() < len(pairs)
    assert between.min() >= SIDE


def test_what_cannot_be_made_is_said(made):
    study = made[0]
    with pytest.raises(InputError, match=r"no spot of B has a label"):
        tp.tissue_pairs(study, ["B"], label=LABEL, side=20)
    with pytest.raises(InputError, match=r"tiles of A have fewer pixels than asked for \(found 128\)"):
        tp.tissue_pairs(study, ["A"], label=LABEL, side=128)
