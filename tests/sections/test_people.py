"""What people's files look like after ten years of tools: read right, or refused with the remedy of that case."""

import gzip
import json
import os
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from tests.space_ranger import HEADER, lattice, tissue, write_h5, write_space_ranger
from tests.visium_hd import write_visium_hd
from tests.xenium import write_xenium

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.explore.survey import check_sections
from histocrypt.options import SectionSource
from histocrypt.sections.identity import missing_patient
from histocrypt.sections.read import OF_AN_IMAGE, find_sections, read_path, read_section

SYMBOLS = [f"GENE{number}" for number in range(30)]


@pytest.fixture
def section(tiny_section, tmp_path):
    """Return the path of a good section, 36 spots x 30 genes, and what it holds."""
    path = tiny_section(tmp_path)
    return path, anndata.read_h5ad(path)


def save(path, adata):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(path)


def logged(adata):
    counts = adata.X.toarray()
    return sparse.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32))


def refused(path, **how):
    with pytest.raises(InputError) as raised:
        read_path(path, **how)
    return raised.value


# Where spots lie.


def seurat(adata):
    """Return what SeuratDisk, sceasy and anndataR make of Seurat's columns, which it may hold as text."""
    x, y = adata.obsm.pop("spatial").T
    adata.obs["imagerow"], adata.obs["imagecol"] = [str(value) for value in y], [str(value) for value in x]
    return "obs['imagecol'], obs['imagerow']"


def table_of_rows_and_columns(adata):
    x, y = adata.obsm["spatial"].T
    names = {"pxl_row_in_fullres": y, "pxl_col_in_fullres": x}
    adata.obsm["spatial"] = pd.DataFrame(names, index=adata.obs_names)
    return "obsm['spatial']['pxl_col_in_fullres'], obsm['spatial']['pxl_row_in_fullres']"


def table_of_y_and_x(adata):
    x, y = adata.obsm["spatial"].T
    adata.obsm["spatial"] = pd.DataFrame({"Y": y, "X": x}, index=adata.obs_names)
    return "obsm['spatial']['X'], obsm['spatial']['Y']"


def third_column(adata):
    adata.obsm["spatial"] = np.column_stack([adata.obsm["spatial"], np.full(adata.n_obs, 3.0)])
    return "obsm['spatial'], the first two of three columns"


def few_zeros(adata):
    adata.obsm["spatial"] = sparse.csr_matrix(adata.obsm["spatial"])
    return "obsm['spatial']"


def text(adata):
    """Return what scanpy 1.9 left of a table of positions."""
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(int).astype(str).astype(object)
    return "obsm['spatial']"


def single_precision(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(np.float32)
    return "obsm['spatial']"


PLACES = [seurat, table_of_rows_and_columns, table_of_y_and_x, third_column, few_zeros, text, single_precision]


@pytest.mark.parametrize("array", [True, False], ids=["with array", "without"])
@pytest.mark.parametrize("written", PLACES)
def test_places_are_read_as_they_were_meant(section, written, array):
    path, adata = section
    adata = adata[:20].copy()  # more rows than columns, so that x and y cannot be taken for one another
    places = adata.obsm["spatial"].copy()
    where = written(adata)
    if not array:
        del adata.obs["array_row"], adata.obs["array_col"]
    save(path, adata)
    found = read_path(path)
    np.testing.assert_allclose(found.coords, places)
    assert found.origins["spots"] == where


def test_slices_of_a_block_are_not_laid_over_each_other(section):
    path, adata = section
    adata.obsm["spatial"] = np.column_stack([adata.obsm["spatial"], np.repeat([0.0, 10.0], 18)])
    save(path, adata)
    error = refused(path)
    assert (error.file, error.field, error.value) == (path, "obsm['spatial']", (36, 3))
    assert "slice" in error.fix


@pytest.mark.parametrize("names", [("x", "y"), ("x_pixel", "y_pixel"), ("X", "Y")])
def test_columns_that_may_hold_places_are_named_and_not_guessed(section, names):
    path, adata = section
    adata.obs[names[0]], adata.obs[names[1]] = adata.obsm.pop("spatial").T
    save(path, adata)
    assert f"did you mean obs[{names[0]!r}] and obs[{names[1]!r}]?" in str(refused(path))


def test_places_of_a_plot_are_told(section):
    path, adata = section
    adata.obsm["spatial"][:, 1] *= -1
    save(path, adata)
    error = refused(path)
    assert error.field == "obsm['spatial']"
    assert "minus sign" in error.fix


@pytest.mark.parametrize(
    ("changed", "how"), [(lambda xy: xy[:, ::-1], "x and y exchanged"), (lambda xy: xy / 2, "by up to 150 px")]
)
def test_two_places_of_a_spot_are_said(section, changed, how):
    path, adata = section
    adata.obs["pxl_col_in_fullres"], adata.obs["pxl_row_in_fullres"] = adata.obsm["spatial"].T
    save(path, adata)
    assert not read_path(path).notes
    adata.obs["pxl_col_in_fullres"], adata.obs["pxl_row_in_fullres"] = changed(adata.obsm["spatial"]).T
    save(path, adata)
    found = read_path(path)
    np.testing.assert_array_equal(found.coords, adata.obsm["spatial"])
    (note,) = found.notes
    assert note.endswith(f"which was taken: {how}.")


@pytest.mark.parametrize(
    ("on", "off"), [(True, False), ("TRUE", "FALSE"), ("1", "0"), ("yes", "no"), ("T", "F"), (1.0, 0.0)]
)
def test_marks_of_tissue_are_read_in_any_words(section, on, off):
    path, adata = section
    adata.obs["in_tissue"] = [off] * 4 + [on] * 32
    save(path, adata)
    found = read_path(path)
    assert found.dropped == {"marked as not on tissue": 4}
    assert found.adata.obs_names.tolist() == adata.obs_names[4:].tolist()


@pytest.mark.parametrize(("on", "odd", "number"), [("tissue", "background", 36), (1.0, np.nan, 4)])
def test_marks_that_say_nothing_are_said(section, on, odd, number):
    path, adata = section
    adata.obs["in_tissue"] = [odd] * 4 + [on] * 32
    save(path, adata)
    found = read_path(path)
    assert found.n_spots == 36
    assert [note for note in found.notes if f"neither 1 nor 0 of {number} of 36 spots" in note]


# Who is who.


@pytest.mark.parametrize("both", [True, False], ids=["same barcodes", "others"])
def test_slides_that_were_put_together_are_told_by_the_end_of_their_barcodes(section, both):
    path, adata = section
    barcodes, _, _ = lattice()
    names = barcodes[:36] if not both else barcodes[:18] * 2
    adata.obs_names = [f"{name[:-1]}{1 + (number >= 18)}" for number, name in enumerate(names)]
    del adata.obs["section"]
    save(path, adata)
    found = find_sections(SectionSource(path=str(path)))
    assert [files.id for files in found] == ["A_1", "A_2"]
    one, two = (read_path(f"{path}/{part}") for part in "12")
    np.testing.assert_array_equal(one.adata.X.toarray(), adata.X[:18].toarray())
    np.testing.assert_array_equal(two.coords, adata.obsm["spatial"][18:])


def test_an_aggregated_run_is_refused(tmp_path):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    barcodes, index, pixels = lattice()
    names = [f"{name[:-1]}{1 + number % 2}" for number, name in enumerate(barcodes)]
    rows = [
        f"{name},1,{row},{column},{y},{x}" for name, (row, column), (y, x) in zip(names, index, pixels, strict=True)
    ]
    (run / "spatial" / "tissue_positions.csv").write_text("\n".join([HEADER, *rows]))
    counts = sparse.csr_matrix(np.ones((len(names), 2), np.int32))
    features = [(f"ENSG{number:011d}", f"GENE{number}", "Gene Expression") for number in range(2)]
    write_h5(run / "filtered_feature_bc_matrix.h5", names, features, counts)
    error = refused(tmp_path / "P1")
    assert error.field == "barcode"
    assert "-1 and -2" in str(error)
    assert error.fix == "name the folder of each slide's own run"


def test_what_tables_have_besides_makes_no_second_section(section):
    path, adata = section
    adata.obs["patient"] = pd.Categorical(["P1"] * 36, ["P0", "P1"])
    adata.obs["library_id"] = pd.Categorical(["A"] * 36, ["A", "B"])
    adata.var["feature_types"] = pd.Categorical(["Gene Expression"] * 30, ["Gene Expression", "Antibody Capture"])
    save(path, adata)
    found = read_path(path)
    assert (found.id, found.patient, found.n_spots, found.adata.n_vars) == ("A", "P1", 36, 30)
    assert not found.notes


def test_a_patient_that_is_not_said_of_all_spots_is_noted(section):
    path, adata = section
    adata.obs["patient"] = ["P1"] * 30 + [None] * 6
    save(path, adata)
    found = read_path(path)
    assert found.patient == "P1"
    assert [note for note in found.notes if "empty for 6 of 36 spots" in note]


def test_check_shows_what_there_is_of_a_section_without_patient(tmp_path):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    (row,) = check_sections([str(tmp_path / "P1")])
    assert row.unusable
    assert (row.spots, row.genes, row.image_width_px, row.image_height_px) == (110, 30, 480, 460)
    assert (row.um_per_px, row.um_per_px_source) == (2.5, "file")
    assert "files of this layout name none; add `patient:`" in row.problems[0]
    assert row.origins["resolution"].startswith("scalefactors_json.json")
    assert (row.origins["counts"], row.origins["image"]) == ("filtered_feature_bc_matrix.h5", str(run / "image.tif"))


@pytest.mark.parametrize("name", ["individual", "subject", "patient_id", "Patient", "donor", "case_id"])
def test_a_column_that_may_name_the_patient_is_named_and_not_taken(section, name):
    path, adata = section
    adata.obs[name] = adata.obs.pop("patient")
    del adata.uns["spatial"]
    error = missing_patient(adata, path)
    assert f"did you mean obs[{name!r}]?" in str(error)
    save(path, adata)
    assert read_path(path).patient == ""


def test_only_files_with_a_table_of_spots_can_have_a_column_for_the_patient(section):
    path, adata = section
    adata.obs = adata.obs.drop(columns="patient")
    assert missing_patient(adata, path, "h5ad").fix.startswith("add the column")
    assert "column" not in missing_patient(adata, path, "xenium").fix


@pytest.mark.parametrize("odd", ["none", np.arange(3), {"A": "none"}, {"A": {"metadata": "none", "images": "none"}}])
def test_a_library_of_another_shape_is_no_traceback(section, odd):
    path, adata = section
    adata.uns["spatial"] = odd
    save(path, adata)
    (row,) = check_sections([str(path)])
    assert not row.unusable
    assert row.um_per_px == pytest.approx(4)
    assert row.um_per_px_source


def test_words_that_may_be_absent(section):
    """As anndata 0.13 writes them."""
    path, adata = section
    for table in (adata.obs, adata.var):
        for name in table.select_dtypes(["object", "category"]):
            table[name] = table[name].astype("string")
    adata.strings_to_categoricals = lambda *_, **__: None
    with anndata.settings.override(allow_write_nullable_strings=True):
        save(path, adata)
    found = read_path(path)
    assert (found.id, found.patient, found.adata.n_vars) == ("A", "P1", 30)
    assert found.adata.var["symbol"].tolist() == SYMBOLS


def test_a_read_only_installation_without_a_home_has_a_place_for_its_caches(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "read-only"))
    paths.use_writable_caches()
    places = {os.environ[name] for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME")}
    assert len(places) == 1
    assert os.access(places.pop(), os.W_OK)


# Counts and genes.


def test_seuratdisk_leaves_counts_in_raw(section):
    path, adata = section
    counts = adata.X.toarray()
    adata.raw = adata.copy()
    adata.X = logged(adata)
    adata.obs["orig.ident"] = 0  # codes of a factor, whose words are lost
    save(path, adata)
    found = read_path(path)
    np.testing.assert_array_equal(found.adata.X.toarray(), counts)
    assert found.origins["counts"] == "raw.X"


def test_counts_beside_corrected_ones_are_said(section):
    path, adata = section
    adata.layers["counts"] = adata.X.copy()
    adata.X = sparse.csr_matrix(np.rint(adata.X.toarray() * np.linspace(0.6, 1.4, 36)[:, None]).astype(np.float32))
    corrected = adata.X.toarray()
    save(path, adata)
    found = read_path(path)
    np.testing.assert_array_equal(found.adata.X.toarray(), corrected)
    assert [note for note in found.notes if "layers['counts'] holds whole numbers too" in note]
    adata.X = adata.layers["counts"].copy()
    save(path, adata)
    assert not read_path(path).notes


def test_names_that_a_spreadsheet_spoilt_are_said(section):
    path, adata = section
    spoilt = ["2-Sep", "1-Mar", "1-Mar.1", "Dec-01", "2021-09-02", "2.31E+19"]
    adata.var_names = [*spoilt, *SYMBOLS[6:]]
    save(path, adata)
    (note,) = read_path(path).notes
    assert "6 names of genes" in note


def test_names_that_only_look_like_dates_are_left_in_peace(section):
    path, adata = section
    adata.var_names = ["SEPT2", "MARCHF1", "sep-1", "mar-2", "DEC1", "HLA-A", "NKX2-1", "TP53-1", *SYMBOLS[8:]]
    save(path, adata)
    assert not read_path(path).notes


def test_genes_of_two_genomes_are_said(section):
    path, adata = section
    adata.var_names = [f"{'GRCh38_' if number < 20 else 'mm10___'}{name}" for number, name in enumerate(SYMBOLS)]
    save(path, adata)
    found = read_path(path)
    assert "GRCh38_ and mm10___ prefixes" in found.origins["genes"]
    assert [note for note in found.notes if "20 of GRCh38, 10 of mm10" in note]


@pytest.mark.parametrize("ids", ["in names", "beside"])
def test_probes_are_no_genes(section, ids):
    path, adata = section
    gene = [f"ENSG{number // 3:011d}" for number in range(30)]
    if ids == "in names":
        adata.var_names = [f"{one}|GENE{number // 3}|{number:07x}" for number, one in enumerate(gene)]
    else:
        adata.var_names = [f"GENE{number // 3}-{number}" for number in range(30)]
        adata.var["gene_ids"] = gene
    save(path, adata)
    error = refused(path)
    assert (error.file, error.field, error.value) == (path, "var_names", adata.var_names[0])
    assert "30 of them share 10 ids" in str(error)


# Files under other names than their content has, packed twice or not at all.


def as_gzip(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def plain_under_gz(path):
    path.rename(f"{path}.gz")


def as_parquet(path):
    pd.read_csv(path).to_parquet(path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def as_packed_parquet(path):
    pd.read_csv(path).to_parquet(path.with_suffix(".tmp"))
    path.with_suffix(".parquet.gz").write_bytes(gzip.compress(path.with_suffix(".tmp").read_bytes()))
    path.with_suffix(".tmp").unlink()
    path.unlink()


def text_under_parquet(path):
    path.rename(path.with_suffix(".parquet"))


def marks_of_r(path):
    table = pd.read_csv(path)
    table["in_tissue"] = np.where(table["in_tissue"] == 1, "TRUE", "FALSE")
    table.to_csv(path, index=False)


NAMES = [as_gzip, plain_under_gz, as_parquet, as_packed_parquet, text_under_parquet, marks_of_r]


@pytest.mark.parametrize("saved", NAMES)
def test_positions_are_told_by_their_content(tmp_path, saved):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    expected = read_path(tmp_path / "P1")
    saved(run / "spatial" / "tissue_positions.csv")
    found = read_path(tmp_path / "P1")
    assert found.n_spots == 110
    np.testing.assert_allclose(found.coords, expected.coords)
    np.testing.assert_array_equal(found.adata.X.toarray(), expected.adata.X.toarray())


def test_a_packed_count_matrix_is_unpacked(tmp_path):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    expected = read_path(tmp_path / "P1").adata.X.toarray()
    matrix = run / "filtered_feature_bc_matrix.h5"
    (run / f"{matrix.name}.gz").write_bytes(gzip.compress(matrix.read_bytes()))
    matrix.unlink()
    np.testing.assert_array_equal(read_path(tmp_path / "P1").adata.X.toarray(), expected)


def test_scale_factors_beside_the_folder_that_should_hold_them_are_read(tmp_path):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    (run / "spatial" / "scalefactors_json.json").rename(run / "scalefactors_json.json")
    found = read_path(tmp_path / "P1")
    assert (found.um_per_px, found.um_per_px_source) == (2.5, "file")


def test_a_packed_table_of_bins_is_unpacked(tmp_path):
    run = write_visium_hd(tmp_path, sides=(16,))
    expected = read_path(tmp_path).coords
    positions = run / "binned_outputs" / "square_016um" / "spatial" / "tissue_positions.parquet"
    (positions.parent / f"{positions.name}.gz").write_bytes(gzip.compress(positions.read_bytes()))
    positions.unlink()
    np.testing.assert_array_equal(read_path(tmp_path).coords, expected)


@pytest.mark.parametrize("ids", ["numbers", "bytes", "unpacked"])
def test_cells_of_every_version_of_xenium(tmp_path, ids):
    """Version 1 numbered its cells and wrote their names as bytes; a browser may have unpacked the table."""
    import h5py

    run = write_xenium(tmp_path)
    expected = read_path(tmp_path)
    table = pd.read_parquet(run / "cells.parquet")
    if ids == "numbers":
        number = {name: place + 1 for place, name in enumerate(table["cell_id"])}
        table["cell_id"] = table["cell_id"].map(number)
        table.to_parquet(run / "cells.parquet")
        with h5py.File(run / "cell_feature_matrix.h5", "r+") as file:
            names = [str(number[name]) for name in file["matrix/barcodes"].asstr()[:]]
            del file["matrix/barcodes"]
            file["matrix/barcodes"] = np.array(names, dtype="S")
    elif ids == "bytes":
        table["cell_id"] = [name.encode() for name in table["cell_id"]]
        table.to_parquet(run / "cells.parquet")
    else:
        (run / "cells.parquet").unlink()
        table.to_csv(run / "cells.csv.gz", index=False, compression=None)
    found = read_path(tmp_path)
    np.testing.assert_array_equal(found.adata.X.toarray(), expected.adata.X.toarray())
    np.testing.assert_allclose(found.coords, expected.coords)
    assert not [note for note in found.notes if "turned" in note]  # by the matrix, as it should be


def test_a_folder_says_what_is_in_the_way(tmp_path):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    for file in (run / "spatial").iterdir():
        file.unlink()
    (run / "spatial").rmdir()
    (run / "V1_spatial.tar.gz").write_bytes(b"")
    error = refused(tmp_path / "P1")
    assert error.fix == "unpack V1_spatial.tar.gz first"
    assert "V1_spatial.tar.gz" in error.value
    (tmp_path / "H1" / "segmented_outputs").mkdir(parents=True)
    assert "binned_outputs" in refused(tmp_path / "H1").fix


@pytest.mark.parametrize("part", ["spatial", "spatial/tissue_positions.csv", "image.tif"])
def test_a_part_of_a_run_leads_to_the_run(tmp_path, part):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    assert refused(run / part).fix == f"did you mean {run}?"


def test_a_file_beside_runs_is_none_of_them(tmp_path):
    write_space_ranger(tmp_path / "run")
    (tmp_path / "slides").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "slides" / "a.tif")
    error = refused(tmp_path / "slides" / "a.tif")
    assert error.fix == OF_AN_IMAGE
    (tmp_path / "notes.txt").write_text("x")
    assert refused(tmp_path / "notes.txt").fix is None


def test_a_prediction_is_no_measured_section(tmp_path, tiny_section):
    path = tiny_section(tmp_path)
    adata = anndata.read_h5ad(path)
    adata.X = adata.X.toarray() + 0.5
    adata.uns["prediction"] = {"title": "ResNet-18", "part": "new"}
    adata.write_h5ad(path)
    error = refused(path)
    assert (error.file, error.field, error.value) == (path, "uns['prediction']", "ResNet-18")
    assert read_path(path, for_prediction=True).n_spots == adata.n_obs  # its places may be predicted again


@pytest.mark.parametrize("name", ["B.H5AD", "B.h5", "B"])
def test_an_anndata_of_another_name_is_to_be_renamed(section, name):
    path, _ = section
    path.rename(path.parent / name)
    assert refused(path.parent / name).fix == "rename it to B.h5ad"


# Arrays and pictures.


def test_a_capture_area_of_11_mm(tmp_path):
    """Its array has 128 rows of 112 spots."""
    index = np.array([(row, 2 * column + row % 2) for row in range(128) for column in range(112)])
    names = ["".join("ACGT"[number // 4**place % 4] for place in range(16)) + "-1" for number in range(len(index))]
    pixels = np.column_stack([60 + index[:, 0] * 12 * np.sqrt(3) / 2, 60 + index[:, 1] * 6])
    (tmp_path / "spatial").mkdir()
    rows = [f"{n},1,{r},{c},{y:.6f},{x:.6f}" for n, (r, c), (y, x) in zip(names, index, pixels, strict=True)]
    (tmp_path / "spatial" / "tissue_positions.csv").write_text("\n".join([HEADER, *rows]))
    (tmp_path / "spatial" / "scalefactors_json.json").write_text(json.dumps({"spot_diameter_fullres": 65 * 12 / 100}))
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2, (len(names), 2)).astype(np.int32))
    features = [(f"ENSG{number:011d}", f"GENE{number}", "Gene Expression") for number in range(2)]
    write_h5(tmp_path / "filtered_feature_bc_matrix.h5", names, features, counts)
    Image.fromarray(np.tile(tissue(), (4, 4, 1))[:1460, :1480]).save(tmp_path / "image.tif")
    found = read_path(tmp_path)
    assert found.n_spots == 14336
    assert found.um_per_px == pytest.approx(100 / 12)
    np.testing.assert_allclose(found.coords, pixels[:, ::-1], atol=1e-5)
    assert not found.notes


def test_the_image_of_the_cytassist_is_not_the_microscopes(tmp_path):
    run = write_space_ranger(tmp_path / "P1" / "outs")
    other = run / "spatial" / "cytassist_image.tiff"
    Image.fromarray(tissue(5)).resize((300, 300)).save(other)
    assert (read_path(tmp_path / "P1").image.width, read_path(tmp_path / "P1").image.height) == (480, 460)
    error = refused(tmp_path / "P1", image=other)
    assert error.file == other
    assert "CytAssist" in error.fix


def test_two_pictures_of_one_name_are_said(section):
    path, adata = section
    adata.uns["spatial"]["A"]["metadata"].pop("source_image_path")
    save(path, adata)
    picture = Image.open(path.with_suffix(".png"))
    picture.save(path.with_suffix(".tif"))
    picture.resize((35, 35)).save(path.with_suffix(".jpg"))
    found = read_path(path)
    assert found.image.path == path.with_suffix(".tif")
    assert [note for note in found.notes if "not A.jpg, A.png beside it" in note]


@pytest.mark.parametrize("dpi", [72, 96, 300, 600])
def test_dots_per_inch_of_a_printer_are_no_resolution(section, dpi):
    path, adata = section
    del adata.uns["spatial"]
    save(path, adata)
    picture = Image.open(path.with_suffix(".png"))
    path.with_suffix(".png").unlink()
    picture.save(path.with_suffix(".tif"), dpi=(dpi, dpi))
    found = read_path(path)
    assert (pytest.approx(found.um_per_px), found.um_per_px_source) == (4.0, "spot pitch")


def test_stereo_seq_states_its_resolution_in_nm(section):
    """As stereopy writes it: bins of 50 DNB, one DNB a pixel."""
    path, adata = section
    del adata.uns["spatial"], adata.uns["technology"], adata.obs["array_row"], adata.obs["array_col"]
    adata.uns |= {"bin_type": "bins", "bin_size": 50, "resolution": 500}
    save(path, adata)
    found = read_path(path)
    assert (found.um_per_px, found.um_per_px_source) == (0.5, "file")
    assert found.origins["resolution"].startswith("uns['resolution']")


def test_a_study_reads_what_no_file_says(tmp_path):
    """The patient of a Visium run stands in the study alone."""
    write_space_ranger(tmp_path / "P7" / "outs")
    (files,) = find_sections(SectionSource(path=str(tmp_path / "P7"), patient="P7"))
    assert read_section(files).patient == "P7"
