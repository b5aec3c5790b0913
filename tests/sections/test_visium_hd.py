"""Visium HD: bins as they are, bins summed to a stated size, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from tests.space_ranger import write_space_ranger
from tests.visium_hd import GENES, SIDE_2UM, UM_PER_PX, centre_px, summed, truth, write_visium_hd

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.image import ScaledImage
from histocrypt.sections.read import find_sections, read_path, read_section, watched
from histocrypt.spatial import array_of, section_edges


def read(path, **given):
    (files,) = find_sections(SectionSource(path=str(path), patient="P1", **given))
    return files, read_section(files)


def expected(side_um):
    counts, tissue = truth()
    return summed(counts * tissue[..., None], side_um // 2), summed(tissue[..., None], side_um // 2)[..., 0] > 0


def assert_holds(section, side_um):
    counts, inside = expected(side_um)
    grid = array_of(section.adata)
    assert set(map(tuple, grid)) == set(zip(*map(list, np.nonzero(inside)), strict=True))
    np.testing.assert_array_equal(section.adata.X.toarray(), counts[grid[:, 0], grid[:, 1]])
    np.testing.assert_allclose(section.coords, centre_px(grid[:, 0], grid[:, 1], side_um), atol=1e-6)
    assert section.adata.obs_names[0] == f"s_{side_um:03d}um_{grid[0, 0]:05d}_{grid[0, 1]:05d}-1"
    assert section.um_per_px == UM_PER_PX
    assert section.um_per_px_source == "file"
    assert section.adata.uns["spatial"][section.id]["metadata"] == {
        "spot_diameter_um": side_um,
        "inter_spot_um": side_um,
        "lattice": "square",
        "neighbours": 8,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_visium_hd(tmp_path_factory.mktemp("hd") / "P1_colon" / "outs")


def test_a_run_is_read_in_bins_of_16_um(run):
    files, section = read(run)
    assert (files.format, files.id) == ("visium_hd", "P1_colon")
    assert_holds(section, 16)
    assert section.adata.n_vars == GENES  # no antibody
    assert section.image.path == run / "Sample_tissue_image.tif"
    assert section.origins["counts"] == "square_016um/filtered_feature_bc_matrix.h5, bins of 16 um"
    assert np.bincount(section_edges(section.adata)[0]).max() == 8
    assert run / "binned_outputs" / "square_016um" / "filtered_feature_bc_matrix.h5" in watched(files)


@pytest.mark.parametrize(("bin_um", "source"), [(2, 2), (8, 8), (24, 8), (32, 16), (12, 2)])
def test_bins_are_summed_to_the_stated_size(run, bin_um, source):
    files, section = read(run, bin_um=bin_um)
    assert_holds(section, bin_um)
    assert section.files[0].parent.name == f"square_{source:03d}um"
    assert read_path(run, bin_um=bin_um).n_spots == section.n_spots


@pytest.mark.parametrize(("name", "side"), [("square_002um", 2), ("square_008um", 8), ("", 16)])
def test_a_folder_of_bins_named_itself(run, name, side):
    files, section = read(run / "binned_outputs" / name)
    assert files.id == "P1_colon"
    assert_holds(section, side)


def test_without_bins_of_16_um_they_are_summed(tmp_path):
    run = write_visium_hd(tmp_path / "run", sides=(8,))
    assert_holds(read(run)[1], 16)


def test_pieces_do_not_matter(run, monkeypatch):
    from histocrypt.sections import pooling

    monkeypatch.setattr(pooling, "PIECE", 100)
    assert_holds(read(run, bin_um=24)[1], 24)


def test_the_reduced_image_stands_in_and_is_said(tmp_path):
    run = write_visium_hd(tmp_path / "run", sides=(8, 16), image=False)
    _, section = read(run)
    assert isinstance(section.image, ScaledImage)
    assert any("tiles hold no finer detail" in note for note in section.notes)


def test_the_microscopes_image_is_chosen_beside_the_cytassists(run, tmp_path):
    from PIL import Image

    Image.new("RGB", (300, 320)).save(run / "Sample_image.tif")
    try:
        assert read(run)[1].image.path == run / "Sample_tissue_image.tif"
    finally:
        (run / "Sample_image.tif").unlink()


def spoil_factors(**changes):
    def edit(square):
        path = square / "spatial" / "scalefactors_json.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def spoil_table(change):
    def edit(square):
        path = square / "spatial" / "tissue_positions.parquet"
        table = pd.read_parquet(path)
        change(table).to_parquet(path)

    return edit


def swap(table):
    return table.rename(columns={"array_row": "array_col", "array_col": "array_row"})


DEFECTS = {
    "bin size": (spoil_factors(bin_size_um=8.0), "bin_size_um", 8.0),
    "resolution": (spoil_factors(microns_per_pixel=0.3), "scalefactors_json.json: microns_per_pixel", None),
    "rows and columns swapped": (spoil_table(swap), "array_row, array_col", None),
    "rows missing": (spoil_table(lambda table: table[table["array_row"] != 5]), "barcode", None),
    "pixel missing": (spoil_table(lambda table: table.assign(pxl_row_in_fullres=np.nan)), "pxl_row_in_fullres", "nan"),
    "column missing": (spoil_table(lambda table: table.drop(columns="array_col")), "array_col", None),
    "twice": (spoil_table(lambda table: pd.concat([table, table[:50]])), "barcode", None),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_refused(name, tmp_path):
    edit, field, value = DEFECTS[name]
    run = write_visium_hd(tmp_path / "run", sides=(16,))
    edit(run / "binned_outputs" / "square_016um")
    with pytest.raises(InputError) as caught:
        read(run)
    assert caught.value.field == field
    assert value is None or caught.value.value == value


def test_a_size_that_bins_do_not_sum_to(run):
    with pytest.raises(InputError) as caught:
        read(run / "binned_outputs" / "square_008um", bin_um=20)
    assert (caught.value.field, caught.value.value) == ("bin_um", 20)


def test_the_size_of_bins_belongs_to_bins(tmp_path):
    with pytest.raises(InputError) as caught:
        find_sections(SectionSource(path=str(write_space_ranger(tmp_path / "run")), bin_um=16))
    assert caught.value.field == "bin_um"


def test_runs_of_two_kinds_in_a_folder_are_not_half_read(tmp_path):
    write_visium_hd(tmp_path / "both" / "hd", sides=(16,), image=False)
    write_space_ranger(tmp_path / "both" / "spots")
    with pytest.raises(InputError) as caught:
        find_sections(SectionSource(path=str(tmp_path / "both")))
    assert caught.value.file == tmp_path / "both" / "hd"
    found = find_sections(SectionSource(path=str(tmp_path / "both" / "*")))
    assert [files.format for files in found] == ["visium_hd", "space_ranger"]


def test_bins_in_a_folder_of_another_name(tmp_path):
    run = write_visium_hd(tmp_path / "run", sides=(16,))
    (run / "binned_outputs" / "square_016um").rename(tmp_path / "mine")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "mine")
    assert caught.value.fix == "rename mine to square_016um"


def test_size_matters_to_what_must_run_again(run):
    assert SectionSource(path="a").model_dump() == SectionSource(path="a", bin_um=None).model_dump()
    assert "bin_um" not in SectionSource(path="a").model_dump()
    assert SIDE_2UM % 8 == 0
