import json
from io import BytesIO
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from PIL import Image

from histocrypt.demo.write import planted
from histocrypt.errors import InputError
from histocrypt.options import Preprocessing
from histocrypt.sections.read import read_path
from histocrypt.tissue import preprocess
from histocrypt.tissue.preprocess import preprocess_section, spot_diameter_um
from histocrypt.tissue.stain import StainStatistics
from histocrypt.tissue.tiles import read_tiles

SETTINGS = {"min_counts": 200, "tile_um": 120.0, "tile_px": 60}


def run(section, folder, *, seed=0, **settings):
    paths = {
        name: folder / f"{name}.{kind}" for name, kind in (("section", "h5ad"), ("tiles", "h5"), ("stain", "json"))
    }
    report = preprocess_section(
        section,
        settings=Preprocessing(**{**SETTINGS, **settings}),
        section_path=paths["section"],
        tiles_path=paths["tiles"],
        stain_path=paths["stain"],
        seed=seed,
        progress=False,
    )
    return report, ad.read_h5ad(paths["section"]), paths


def test_a_section_becomes_three_artifacts(section, tmp_path):
    given = section(0)
    report, cleaned, paths = run(given, tmp_path)
    off, low = report.dropped["off tissue"], report.dropped["low depth"]
    assert off >= 2
    assert low == 2
    assert report.dropped["counts are not finite"] == 3
    assert report.spots_in == given.n_spots + 3 == report.spots_out + sum(report.dropped.values())
    assert not report.alignment.applied
    assert list(report.dropped) == ["counts are not finite", "off tissue", "low depth"]

    names = given.adata.obs_names
    assert cleaned.obs_names.tolist() == [name for name in names if name in set(cleaned.obs_names)]  # order as given
    assert not {names[0], names[1], "60x60", "3140x60"} & set(cleaned.obs_names)
    same = given.adata[cleaned.obs_names]
    assert (cleaned.X != same.X).nnz == 0
    np.testing.assert_array_equal(cleaned.layers["image_signal"], same.layers["image_signal"])
    assert cleaned.obs["tumour"].tolist() == same.obs["tumour"].tolist()
    np.testing.assert_array_equal(cleaned.obsm["spatial"], same.obsm["spatial"])
    np.testing.assert_array_equal(cleaned.obsm["spatial_as_given"], same.obsm["spatial"])
    np.testing.assert_array_equal(cleaned.obs["total_counts"], np.asarray(same.X.sum(axis=1)).ravel())
    assert cleaned.obs["total_counts"].dtype.kind == "f"
    assert set(cleaned.obs["section"]) == {"A"}
    assert set(cleaned.obs["patient"]) == {"P"}
    assert cleaned.obs.index.name == "barcode"
    assert cleaned.obs["tissue_share"].min() >= 0.1

    noted = cleaned.uns["preprocessing"]
    assert noted["um_per_px"] == 2.0
    assert noted["um_per_px_source"] == "given"
    assert noted["dropped"] == report.dropped
    assert noted["alignment"]["reason"] == report.alignment.reason
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.as_row()["spots kept"] == report.spots_out
    assert report.peak_mib is None or report.peak_mib > 50

    tiles, barcodes = read_tiles(paths["tiles"])
    assert tiles.shape == (report.spots_out, 60, 60, 3)
    assert barcodes.tolist() == cleaned.obs_names.tolist()
    x, y = np.round(cleaned.obsm["spatial"][7] - 30).astype(int)
    np.testing.assert_array_equal(tiles[7], given.image.pixels[y : y + 60, x : x + 60])  # raw colours

    statistics = StainStatistics.load(paths["stain"])
    assert statistics.method == "macenko"
    assert report.stain_note == ""


def test_a_shifted_section_is_put_right(section, tmp_path):
    right, given = section(1), section(1, shift_um=(70, -50))
    report, cleaned, _ = run(given, tmp_path)
    assert report.alignment.applied, report.alignment.reason
    truth = right.adata[cleaned.obs_names].obsm["spatial"]
    assert np.hypot(*(cleaned.obsm["spatial"] - truth).T).max() * 2.0 < 15
    np.testing.assert_array_equal(cleaned.obsm["spatial_as_given"], given.adata[cleaned.obs_names].obsm["spatial"])
    assert {"60x60", "3140x60"}.isdisjoint(cleaned.obs_names)
    untouched, as_given, _ = run(given, tmp_path, align=False)
    assert not untouched.alignment.applied
    assert "switched off" in untouched.alignment.reason
    assert untouched.dropped["off tissue"] > report.dropped["off tissue"]
    np.testing.assert_array_equal(as_given.obsm["spatial"], as_given.obsm["spatial_as_given"])


def test_counts_move_nothing(section, tmp_path):
    """Alignment, stain statistics and tiles of the spots kept do not look at expression."""
    one, two = section(1, shift_um=(70, -50)), section(1, shift_um=(70, -50))
    two.adata.X = two.adata.X * 7
    first, second = (run(each, tmp_path / str(k), min_counts=0) for k, each in enumerate((one, two)))
    assert first[0].alignment == second[0].alignment
    for name in ("tiles", "stain"):
        assert first[2][name].read_bytes() == second[2][name].read_bytes()


def test_same_seed_same_bits(section, tmp_path):
    first, second = run(section(2), tmp_path / "a", seed=5)[2], run(section(2), tmp_path / "b", seed=5)[2]
    for name in first:
        assert first[name].read_bytes() == second[name].read_bytes()


def test_windows_are_small(section, tmp_path):
    given = section(0)
    run(given, tmp_path)
    assert given.image.largest <= 80 * 80


def test_a_mosaic_is_not_aligned(section, tmp_path):
    given = section(1, shift_um=(70, -50))
    given.image.side = 40
    report, _, _ = run(given, tmp_path)
    assert not report.alignment.applied
    assert "mosaic" in report.alignment.reason


def test_stain_that_cannot_be_estimated_is_shown(section, array_image, tmp_path):
    given = section(0)
    grey = given.image.pixels.copy()
    grey[grey.min(axis=2) < 200] = (120, 60, 130)
    given.image = array_image(grey)
    report, cleaned, paths = run(given, tmp_path)
    assert "default matrix is used" in report.stain_note
    assert cleaned.uns["preprocessing"]["stain_note"] == report.stain_note
    assert report.as_row()["stain"] == report.stain_note
    assert StainStatistics.load(paths["stain"]).method == "default"


def test_nothing_left_is_one_sentence(section, array_image, tmp_path):
    given = section(0)
    with pytest.raises(InputError, match=r"A\.h5ad: no spot of A remains \(.*low depth\)"):
        run(given, tmp_path, min_counts=10**6)
    given.image = array_image(np.full((1600, 1600, 3), 250, np.uint8))
    with pytest.raises(InputError, match="the image shows no tissue"):
        run(given, tmp_path)
    given.image = None
    with pytest.raises(InputError, match="has no image"):
        run(given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_spot_diameter(section):
    given = section(0)
    assert spot_diameter_um(given) == 55
    given.adata.uns["spatial"]["A"] = {"scalefactors": {"spot_diameter_fullres": 30.0}}
    assert spot_diameter_um(given) == 60
    given.adata.uns["spatial"]["A"]["scalefactors"]["spot_diameter_fullres"] = 300.0  # of another resolution
    assert spot_diameter_um(given) == pytest.approx(50, rel=0.01)
    del given.adata.uns["spatial"]
    assert spot_diameter_um(given) == pytest.approx(50, rel=0.01)  # half the pitch


def test_killed_while_cutting_leaves_no_half_file(section, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess, "write_tiles", killed)
    with pytest.raises(KeyboardInterrupt):
        run(section(0), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["HER2ST_C5", "HBCIS_BC23209_C1"])
def test_real_sections(real_data: Path, tmp_path, name):
    given = read_path(real_data / f"{name}.h5ad")
    report, cleaned, paths = run(given, tmp_path, tile_um=150.0, tile_px=78)
    assert not report.alignment.applied  # both are well aligned as published
    assert report.stain_note == ""
    assert report.spots_out >= 0.97 * report.spots_in
    assert cleaned.n_obs == report.spots_out
    assert cleaned.obs["tissue_share"].median() > 0.95
    tiles, _ = read_tiles(paths["tiles"])
    assert tiles.shape == (report.spots_out, 78, 78, 3)
    assert (tiles.reshape(len(tiles), -1).mean(axis=1) < 235).all()  # no tile is bare glass


def test_real_patches_that_lie_apart_are_no_dust(real_data: Path, tmp_path):
    """A patch of HEST is 112 µm wide and spots lie 200 µm apart: each is an island smaller than dust of a slide."""
    given = read_path(real_data / "HBCIS_BC23209_C1.h5ad")
    side = round(112 / given.um_per_px)
    with h5py.File(real_data / "HBCIS_BC23209_C1_patches.h5") as file, h5py.File(tmp_path / "p.h5", "w") as cut:
        edge = (512 - side) // 2
        inner = slice(edge, edge + side)
        cut["img"] = np.stack([np.asarray(Image.open(BytesIO(one.tobytes())))[inner, inner] for one in file["jpeg"]])
        cut["coords"], cut["barcode"] = file["coords"][:] + edge, file["barcode"][:]
    apart = read_path(real_data / "HBCIS_BC23209_C1.h5ad", image=tmp_path / "p.h5")
    whole, _, _ = run(given, tmp_path / "whole", tile_um=112)
    report, cleaned, _ = run(apart, tmp_path / "apart", tile_um=112)
    assert report.spots_out == whole.spots_out
    assert report.dropped == whole.dropped
    assert cleaned.obs["tissue_share"].median() > 0.9


def test_defects_planted_in_the_demo_tissue_are_found(demo_tissue, tmp_path):
    """S_1 lies as it should, S_2 is given some 85 µm off; both list spots on bare glass and spots of low depth."""
    for path in demo_tissue(sections=2, spots_per_side=14):
        given = read_path(path)
        defects = planted(given.adata)
        report, cleaned, _ = run(given, tmp_path / path.stem, min_counts=100)
        shift = np.array(defects["shift_um"])
        assert report.alignment.applied == bool(shift.any()), report.alignment.reason
        if shift.any():
            found = np.array([report.alignment.dx_um, report.alignment.dy_um])
            assert np.hypot(*(found + shift)) < 15
        sick = {*defects["off_tissue"], *defects["low_depth"], *defects["nan"]}
        assert sick.isdisjoint(cleaned.obs_names)
        assert report.spots_in - report.spots_out <= len(sick) + 4  # and hardly another spot is lost
