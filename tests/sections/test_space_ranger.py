"""Space Ranger's output, in each of its forms, from folder to tiles; and each of its defects."""

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tests.space_ranger import COLUMNS, HEIGHT, PITCH_PX, ROWS, UM_PER_PX, WIDTH, lattice, tissue, write_space_ranger
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.explore.survey import fingerprint_file, input_files, study_sections
from histocrypt.options import Preprocessing, SectionSource
from histocrypt.sections.image import ScaledImage
from histocrypt.sections.read import find_sections, read_path, read_section
from histocrypt.study import parse_study
from histocrypt.tissue.preprocess import preprocess_section
from histocrypt.tissue.tiles import read_tiles


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Nothing here needs scanpy, whose numba fails where no cache folder can be written."""
    for name in ("scanpy", "numba"):
        monkeypatch.setitem(sys.modules, name, None)


def read(folder, **given):
    (files,) = find_sections(SectionSource(path=str(folder), patient="P1", **given))
    return read_section(files)


@pytest.mark.parametrize(
    ("positions", "matrix"),
    [("v2", "h5"), ("v1", "mtx.gz"), ("v1", "legacy"), ("v2", "mtx"), ("v2", "both"),
     ("parquet", "h5")],
)  # fmt: skip
def test_every_form_gives_the_same_section(positions, matrix, tmp_path):
    folder = write_space_ranger(tmp_path / "run", positions=positions, matrix=matrix)
    section = read(folder)
    assert (section.id, section.patient, section.n_spots) == ("run", "P1", (ROWS - 1) * COLUMNS)
    assert section.adata.n_vars == (31 if matrix == "legacy" else 30)  # proteins are told apart since version 3
    assert section.um_per_px == pytest.approx(UM_PER_PX)
    assert section.um_per_px_source == "file"
    barcodes, index, pixels = lattice()
    places = dict(zip(barcodes, zip(index, pixels, strict=True), strict=True))
    for name, xy, row, col in zip(
        section.adata.obs_names, section.coords, section.adata.obs["array_row"], section.adata.obs["array_col"],
        strict=True,
    ):  # fmt: skip
        array, (y, x) = places[name]
        assert (row, col) == tuple(array)
        np.testing.assert_allclose(xy, (x, y), atol=1e-6)
    other = write_space_ranger(tmp_path / "other")
    reference = read(other).adata
    shared = reference.var_names
    np.testing.assert_array_equal(
        section.adata[reference.obs_names, shared].X.toarray(), reference.X.toarray()
    )  # joined by name
    assert list(section.adata.var.loc[shared, "symbol"]) == list(reference.var["symbol"])
    assert (section.image.width, section.image.height) == (WIDTH, HEIGHT)


def test_hexagonal_lattice(tmp_path):
    from scipy.spatial import cKDTree

    section = read(write_space_ranger(tmp_path / "run"))
    about = section.adata.uns["spatial"]["run"]["metadata"]
    assert (about["lattice"], about["neighbours"], about["inter_spot_um"]) == ("hexagonal", 6, 100)
    near = cKDTree(section.coords).query_ball_point(section.coords, 1.1 * PITCH_PX, return_length=True) - 1
    assert near.max() == 6
    inner = section.adata.obs["array_row"].between(1, ROWS - 3) & section.adata.obs["array_col"].between(2, 17)
    assert (near[inner.to_numpy()] == 6).all()


def test_off_tissue_spots_are_dropped_and_counted(tmp_path):
    section = read(write_space_ranger(tmp_path / "run", off_tissue=7))
    assert section.dropped == {"marked as not on tissue": 7}
    assert section.n_spots == (ROWS - 1) * COLUMNS - 7


def test_outs_takes_the_name_of_its_run(tmp_path):
    write_space_ranger(tmp_path / "sample 1" / "outs")
    for path in (tmp_path / "sample 1", tmp_path / "sample 1" / "outs"):
        assert read(path).id == "sample-1"


def test_several_runs(tmp_path):
    for number, name in enumerate(("one", "two")):
        write_space_ranger(tmp_path / "runs" / name, seed=number)
    study = {"name": "v", "sections": [{"path": str(tmp_path / "runs" / "*"), "patient": "P"}]}
    assert [files.id for files in study_sections(parse_study(study))] == ["one", "two"]
    study["sections"][0]["path"] = str(tmp_path / "runs")
    assert [files.id for files in study_sections(parse_study(study))] == ["one", "two"]


def test_only_the_hires_image(tmp_path):
    """Coordinates stay full-resolution pixels; the picture is read at its own scale, and the notes say how coarse."""
    section = read(write_space_ranger(tmp_path / "run", image=False))
    assert isinstance(section.image, ScaledImage)
    assert (section.image.width, section.image.height) == (WIDTH, HEIGHT)
    assert section.um_per_px == pytest.approx(UM_PER_PX)
    (note,) = [note for note in section.notes if "reduced image" in note]
    assert "5.0 um per pixel stands for the full-resolution one (2.50 um per pixel)" in note
    # A window of even corners on an image of half the size is that window, each pixel twice as large.
    small = np.asarray(Image.open(tmp_path / "run" / "spatial" / "tissue_hires_image.png").convert("RGB"))
    region = section.image.read_region(100, 80, 60, 40)
    back = np.asarray(Image.fromarray(region).resize((30, 20), Image.Resampling.BOX)).astype(int)
    assert np.abs(back - small[40:60, 50:80]).mean() < 12
    assert region.shape == (40, 60, 3)
    assert (section.image.read_region(-50, -50, 40, 40) == 255).all()
    thumbnail, scale = section.image.thumbnail(10_000)
    assert (thumbnail.shape[:2], scale) == ((HEIGHT // 2, WIDTH // 2), 0.5)


def test_lowres_where_hires_is_absent(tmp_path):
    folder = write_space_ranger(tmp_path / "run", image=False)
    (folder / "spatial" / "tissue_hires_image.png").unlink()
    section = read(folder)
    assert section.image.scale == 0.25
    assert section.image.path.name == "tissue_lowres_image.png"


def test_the_hires_image_may_be_given(tmp_path):
    folder = write_space_ranger(tmp_path / "run")
    section = read(folder, image=str(folder / "spatial" / "tissue_hires_image.png"))
    assert section.image.scale == 0.5


@pytest.mark.parametrize("image", [True, False])
def test_from_folder_to_tiles(image, tmp_path):
    """Read, study, preprocess: the tiles of a reduced image show the same places as those of the full one."""
    folder = write_space_ranger(tmp_path / "run", image=image)
    study = parse_study({"name": "v", "sections": [{"path": str(folder), "patient": "P"}]})
    (files,) = study_sections(study)
    assert folder / "spatial" / "tissue_positions.csv" in input_files(study)
    assert (folder / "image.tif" in input_files(study)) is image
    made = {name: tmp_path / name for name in ("section.h5ad", "tiles.h5", "stain.json")}
    settings = Preprocessing(tile_um=100, tile_px=42, min_counts=1, align=False)
    report = preprocess_section(
        read_section(files), settings=settings, section_path=made["section.h5ad"], tiles_path=made["tiles.h5"],
        stain_path=made["stain.json"], progress=False,
    )  # fmt: skip
    assert report.spot_diameter_um == 55
    assert report.spots_out > 90
    tiles, barcodes = read_tiles(made["tiles.h5"])
    assert tiles.shape == (report.spots_out, 42, 42, 3)
    barcode_at = dict(zip(lattice()[0], lattice()[2], strict=True))
    full = tissue()
    for tile, name in list(zip(tiles, barcodes, strict=True))[:40]:
        y, x = (round(value) for value in barcode_at[name])
        wanted = Image.fromarray(full[y - 20 : y + 20, x - 20 : x + 20]).resize((10, 10), Image.Resampling.BOX)
        found = Image.fromarray(tile).resize((10, 10), Image.Resampling.BOX)
        assert np.corrcoef(np.ravel(wanted), np.ravel(found))[0, 1] > (0.97 if image else 0.9)


def test_prediction_reads_it_without_a_patient(tmp_path):
    assert read_path(write_space_ranger(tmp_path / "run"), require_image=True).patient == ""


def test_a_new_image_is_noticed(tmp_path):
    folder = write_space_ranger(tmp_path / "run", image=False)
    (files,) = find_sections(SectionSource(path=str(folder)))
    before = fingerprint_file(files)
    write_space_ranger(folder)
    assert fingerprint_file(files) != before


def edit_positions(change):
    def edit(folder):
        path = folder / "spatial" / "tissue_positions.csv"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(change(lines)) + "\n")

    return edit


def edit_factors(**changes):
    def edit(folder):
        path = folder / "spatial" / "scalefactors_json.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return edit


def cells(line, place, value):
    parts = line.split(",")
    parts[place] = value
    return ",".join(parts)


def two_matrices(folder):
    shutil.copy(folder / "filtered_feature_bc_matrix.h5", folder / "B_filtered_feature_bc_matrix.h5")


def other_mtx(folder):
    from scipy import sparse
    from tests.space_ranger import write_mtx

    features = [("ENSG0", "G", "Gene Expression")]
    write_mtx(folder / "filtered_feature_bc_matrix", ["AAAA-1"], features, sparse.csr_matrix([[3]]), form="mtx.gz")


def only_raw(folder):
    (folder / "filtered_feature_bc_matrix.h5").rename(folder / "raw_feature_bc_matrix.h5")


def truncate(name):
    def edit(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return edit


def other_size(name):
    def edit(folder):
        Image.fromarray(np.full((300, 300, 3), 200, np.uint8)).save(folder / name)

    return edit


def no_suffix(folder):
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "a") as file:
        names = np.array([name.removesuffix(b"-1") for name in file["matrix/barcodes"][:]])
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = names


def hires_only(edit):
    def both(folder):
        (folder / "image.tif").unlink()
        edit(folder)

    return both


def two_images(folder):
    shutil.copy(folder / "image.tif", folder / "other.tif")


def v1_beside(folder):
    (folder / "spatial" / "tissue_positions_list.csv").write_text("AAAA-1,1,0,0,1,1\n")


def remove(*names):
    def edit(folder):
        for name in names:
            (folder / name).unlink()

    return edit


SPATIAL = "spatial/scalefactors_json.json"
DEFECTS = {
    "two matrices": (two_matrices, ["several count matrices", "B_filtered_feature_bc_matrix.h5"]),
    "two matrices that differ": (other_mtx, ["two matrices with different spots: 110 here, 1 in"]),
    "only the raw matrix": (only_raw, ["filtered count matrix is missing; raw_feature_bc_matrix.h5 holds spots"]),
    "truncated matrix": (truncate("filtered_feature_bc_matrix.h5"), ["not a readable 10x count matrix"]),
    "no positions": (remove("spatial/tissue_positions.csv"), ["spot positions are missing", "tissue_positions_list"]),
    "two tables of positions": (v1_beside, ["several tables of spot positions"]),
    "empty positions": (edit_positions(lambda lines: []), ["table is empty"]),
    "column missing": (edit_positions(lambda lines: [lines[0].replace("in_tissue", "tissue"), *lines[1:]]),
                       ["in_tissue: column is missing"]),
    "short line": (edit_positions(lambda lines: [*lines[:3], "AAAA-1,1,0", *lines[4:]]), ["line 4 has 3 values"]),
    "not a number": (edit_positions(lambda lines: [*lines[:3], cells(lines[3], 5, "left"), *lines[4:]]),
                     ["pxl_col_in_fullres: is not a number for spot", "'left'"]),
    "spot twice": (edit_positions(lambda lines: [*lines, lines[1]]), ["barcode: spot", "twice"]),
    "spots without a place": (edit_positions(lambda lines: lines[:50]),
                              ["61 of 110 spots of the count matrix have no position"]),
    "barcodes of another form": (no_suffix, ["110 of 110 spots", "barcodes end in -1 in one file only"]),
    "not Visium's array": (edit_positions(lambda lines: [lines[0], cells(lines[1], 3, "1"), *lines[2:]]),
                           ["array is not the hexagonal one of Visium", "odd for 1 of 110"]),
    "spot diameter wrong": (edit_factors(spot_diameter_fullres=52.0),
                            ["spot diameter makes 1.25 um/px", "40.0 px apart", "which makes 2.5 um/px"]),
    "spot diameter not a number": (edit_factors(spot_diameter_fullres="26"), ["not a positive number", "'26'"]),
    "scale factors not JSON": (truncate(SPATIAL), [SPATIAL, "not readable as JSON"]),
    "scale factors a list": (lambda folder: (folder / SPATIAL).write_text("[]"), ["spot_diameter_fullres"]),
    "no scale factors, hires only": (hires_only(remove(SPATIAL)),
                                     [SPATIAL, "scale factor of tissue_hires_image.png is missing"]),
    "scale factor enlarges": (hires_only(edit_factors(tissue_hires_scalef=2.0)), ["scale factor enlarges"]),
    "hires of another size": (hires_only(other_size("spatial/tissue_hires_image.png")),
                              ["600 x 600", "480 x 460"]),
    "image of another size": (other_size("image.tif"),
                              ["image.tif", "not the one that the coordinates refer to", "300 x 300", "480 x 460"]),
    "two images": (two_images, ["several images that may be the full-resolution one", "image.tif", "other.tif"]),
    "no image at all": (remove("image.tif", "spatial/tissue_hires_image.png", "spatial/tissue_lowres_image.png"),
                        ["image is missing: none in"]),
    "Visium HD": (edit_factors(bin_size_um=8), ["square_008um"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_one_sentence(name, tmp_path):
    folder = write_space_ranger(tmp_path / "run")
    edit, words = DEFECTS[name]
    edit(folder)
    with pytest.raises(InputError) as caught:
        read(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert Path(caught.value.file).is_relative_to(tmp_path)
    for word in words:
        assert word in sentence, sentence


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"])
def test_defects_of_an_mtx_folder(name, tmp_path):
    folder = write_space_ranger(tmp_path / "run", matrix="mtx.gz")
    path = folder / "filtered_feature_bc_matrix" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is truncated"):
        read(folder)
    path.unlink()
    with pytest.raises(InputError, match="file of the count matrix is missing"):
        read(folder)


def test_mtx_tables_of_another_length(tmp_path):
    folder = write_space_ranger(tmp_path / "run", matrix="mtx")
    path = folder / "filtered_feature_bc_matrix" / "features.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(InputError, match="has 110 spots and 31 genes, where the tables beside it name 110 and 28"):
        read(folder)


def test_without_scale_factors_the_pitch_tells_the_resolution(tmp_path):
    folder = write_space_ranger(tmp_path / "run")
    (folder / SPATIAL).unlink()
    section = read(folder)
    assert section.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
    assert section.um_per_px_source == "spot pitch"


def test_check_lists_it(tmp_path):
    result = CliRunner().invoke(app, ["check", str(write_space_ranger(tmp_path / "run"))])
    assert result.exit_code == 2
    assert "patient is missing" in result.stdout


@pytest.mark.parametrize("field", ["data", "features/name", "features/feature_type"])
def test_a_matrix_whose_parts_do_not_fit_is_refused(tmp_path, field):
    run = write_space_ranger(tmp_path / "run")
    path = run / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "a") as file:
        matrix = file["matrix"]
        values = matrix[field][:]
        del matrix[field]
        matrix[field] = np.full(len(values), b"text") if field == "data" else values[:-1]
    with pytest.raises(InputError) as refused:
        read_path(run)
    assert refused.value.file == path
