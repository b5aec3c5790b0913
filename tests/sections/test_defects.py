"""Every defect that a section may have: one sentence that names file, field and value, and exit code 2."""

import subprocess
import sys
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import sparse
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.read import find_sections, read_section


def read(path, **given):
    (files,) = find_sections(SectionSource(path=str(path), **given))
    return read_section(files)


def change(path, edit):
    """Rewrite a section file after an edit."""
    adata = anndata.read_h5ad(path)
    edit(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. barcodes that are not unique, on purpose
        adata.write_h5ad(path)


def entry(row, column, value):
    def edit(adata):
        dense = adata.X.toarray()
        dense[row, column] = value
        adata.X = sparse.csr_matrix(dense)

    return edit


def rename_obsm(name):
    def edit(adata):
        adata.obsm[name] = adata.obsm["spatial"]
        del adata.obsm["spatial"]

    return edit


def metadata(name, value):
    def edit(adata):
        adata.uns["spatial"]["A"]["metadata"][name] = value

    return edit


def without_patient(rename=None):
    def edit(adata):
        if rename:
            adata.obs[rename] = adata.obs["patient"]
        del adata.obs["patient"]

    return edit


def shift(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] + 10_000


def swap(adata):
    adata.obsm["spatial"] = np.column_stack([adata.obsm["spatial"][:, 1] + 400, adata.obsm["spatial"][:, 0]])
    adata.uns["spatial"]["A"]["metadata"].update(fullres_width=350, fullres_height=760)


def barcodes(adata):
    adata.obs_names = ["twice", "twice", *adata.obs_names[2:]]


def genes(adata):
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]


def all_nan(adata):
    adata.X = sparse.csr_matrix(np.full(adata.shape, np.nan, dtype=np.float32))


def spatial(value):
    def edit(adata):
        adata.obsm["spatial"] = value(adata.obsm["spatial"])

    return edit


def two_patients(adata):
    adata.obs["patient"] = ["P1"] * 18 + ["P2"] * 18


DEFECTS = {
    "misspelt spatial": (rename_obsm("Spatial"), ["obsm['spatial']", "did you mean obsm['Spatial']?"]),
    "X_spatial": (rename_obsm("X_spatial"), ["obsm['spatial']", "did you mean obsm['X_spatial']?"]),
    "no patient": (without_patient(), ["obs['patient']", "patient is missing", "`patient:`"]),
    "patient misspelt": (without_patient("patient_ID"), ["obs['patient']", "did you mean obs['patient_ID']?"]),
    "two patients in a file": (two_patients, ["obs['patient']", "'P1', 'P2'"]),
    "negative count": (entry(7, 3, -2), ["X", "negative", "ENSG00000000003", "1x1", "-2"]),
    "fractional count": (entry(7, 3, 2.5), ["X", "not whole numbers", "ENSG00000000003", "1x1", "2.5"]),
    "all NaN": (all_nan, ["X", "no spot is left", "NaN or infinite counts for all of 36 spots"]),
    "repeated barcode": (barcodes, ["obs_names", "barcode occurs 2 times", "'twice'"]),
    "repeated gene": (genes, ["var_names", "gene id occurs 2 times", "'twice'"]),
    "all outside": (shift, ["obsm['spatial']", "outside the image of 350 x 350 px for all of 36 spots"]),
    "not two columns": (spatial(lambda s: np.column_stack([s, s])), ["obsm['spatial']", "(36, 4)", "(36, 2)"]),
    "no finite coordinates": (spatial(lambda s: s * np.nan), ["obsm['spatial']", "no finite coordinates"]),
    "wrong resolution": (
        metadata("pixel_size_um", 2.0),
        ["metadata']['pixel_size_um']", "2 um/px contradicts the spot pitch", "50.0 px apart", "200 um", "4 um/px"],
    ),
    "resolution not a number above zero": (metadata("pixel_size_um", -4.0), ["pixel_size_um", "-4.0"]),
    "image of another size": (metadata("fullres_width", 700), ["A.png", "350 x 350 px", "700 x 350 px"]),
    "image outside the folder": (
        metadata("source_image_path", "../secret.png"),
        ["source_image_path", "'../secret.png'"],
    ),
    "image elsewhere": (
        metadata("source_image_path", "/etc/hostname"),
        ["source_image_path", "'/etc/hostname'"],
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_one_sentence(name, tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    edit, (place, *words) = DEFECTS[name]
    change(path, edit)
    with pytest.raises(InputError) as caught:
        read(path)
    error, sentence = caught.value, str(caught.value)
    assert Path(error.file).parent == tmp_path
    assert place in f"{error.file}: {error.field}"
    assert "\n" not in sentence
    for word in words:
        assert word in sentence, sentence


def test_good_section_passes(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    section = read(path)
    assert (section.id, section.patient, section.n_spots, len(section.genes)) == ("A", "P1", 36, 30)
    assert section.adata.X.dtype == np.int32
    assert section.adata.X.format == "csr"
    assert section.coords.dtype == np.float64
    assert (section.um_per_px, section.um_per_px_source) == (4.0, "file")
    assert not section.dropped
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 0
    assert "350 x 350" in result.stdout
    assert "4.0000 (file)" in result.stdout
    assert "1 section, 0 unusable" in result.stdout


def plant_droppable(adata):
    dense = adata.X.toarray()
    dense[[0, 5], 2] = np.nan
    dense[9] = 0
    adata.X = sparse.csr_matrix(dense)
    adata.obsm["spatial"][7] = np.nan
    adata.obsm["spatial"][[20, 21, 22]] = (5000, 10)
    adata.obs["in_tissue"] = [1] * 30 + [0] * 4 + [1] * 2


def test_bad_spots_are_dropped_and_counted(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    whole = read(path)
    change(path, plant_droppable)
    section = read(path)
    assert section.dropped == {
        "no finite coordinates": 1,
        "marked as not on tissue": 4,
        "NaN or infinite counts": 2,
        "outside the image of 350 x 350 px": 3,
    }
    assert section.n_spots == 26
    assert "3x1" in section.adata.obs_names  # no counts at all, but that is for the preprocessing to judge
    kept = [name for name in section.adata.obs_names if name != "3x1"]
    assert (section.adata[kept].X != whole.adata[kept].X).nnz == 0
    np.testing.assert_array_equal(section.adata[kept].obsm["spatial"], whole.adata[kept].obsm["spatial"])
    shown = CliRunner().invoke(app, ["check", str(path)])
    assert shown.exit_code == 0
    assert f"{path}: X: 2 of 36 spots dropped: NaN or infinite counts (first: 0x0)." in shown.stdout


def test_swapped_axes_are_guessed(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    change(path, swap)
    Image.fromarray(np.full((760, 350, 3), 200, dtype=np.uint8)).save(tmp_path / "A.png")
    with pytest.raises(InputError, match="x and y look swapped"):
        read(path)


def test_counts_layer_is_taken_where_x_is_normalised(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    raw = read(path).adata.X

    def normalise(adata):
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()

    change(path, normalise)
    section = read(path)
    assert (section.adata.X != raw).nnz == 0
    assert "counts" not in section.adata.layers
    assert any("layers['counts'] was taken" in note for note in section.notes)


def test_dense_counts_are_read(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    raw = read(path).adata.X
    change(path, lambda adata: setattr(adata, "X", adata.X.toarray().astype(np.float64)))
    assert (read(path).adata.X != raw).nnz == 0


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_section(share, tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"A\.h5ad: section cannot be read as \.h5ad: it is truncated"):
        read(path)


def test_section_of_an_unknown_encoding(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    with h5py.File(path, "a") as file:
        file["obs"].attrs["encoding-type"] = "of-another-time"
    with pytest.raises(InputError, match=r"A\.h5ad: section cannot be read as \.h5ad.*of-another-time"):
        read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncated_image(suffix, tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    image = tmp_path / f"A.{suffix}"
    Image.open(tmp_path / "A.png").save(image)
    change(path, metadata("source_image_path", image.name))
    read(path)
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated") as caught:
        read(path)
    assert str(image) in str(caught.value)


def test_not_an_image(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    (tmp_path / "A.png").write_text("not a picture")
    with pytest.raises(InputError, match=r"A\.png: is not an image that can be read"):
        read(path)


def test_image_missing(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    (tmp_path / "A.png").unlink()
    with pytest.raises(InputError, match=r"image is missing: .*source_image_path.* names 'A\.png'"):
        read(path)


def test_empty_section(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    anndata.read_h5ad(path)[:0].copy().write_h5ad(path)
    with pytest.raises(InputError, match="section is empty .*0 spots x 30 genes"):
        read(path, id="A")


@pytest.mark.parametrize("given", [2.0, 4.5])
def test_given_resolution_against_the_pitch(given, tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    with pytest.raises(InputError, match=f"um_per_px as given: resolution of {given:g} um/px contradicts .* 4 um/px"):
        read(path, um_per_px=given)
    close = read(path, um_per_px=4.2)
    assert (close.um_per_px, close.um_per_px_source) == (4.2, "given")


@pytest.mark.parametrize("technology", ["Spatial Transcriptomics", ""])
def test_resolution_from_the_pitch(technology, tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def forget(adata):
        del adata.uns["spatial"]["A"]["metadata"]["pixel_size_um"]
        adata.uns["technology"] = technology

    change(path, forget)
    section = read(path)
    assert section.um_per_px == pytest.approx(4.0)
    assert section.um_per_px_source == "spot pitch"
    assert any("estimated: spots lie 50.0 px apart, 200 um as it" in n or "like ST's" in n for n in section.notes)


@pytest.mark.parametrize("indexed", [True, False])
def test_visium_pitch(indexed, tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def hexagonal(adata):
        row = adata.obs["array_row"].to_numpy()
        column = 2 * adata.obs["array_col"].to_numpy() + row % 2
        adata.obs["array_col"] = column
        adata.obsm["spatial"] = np.column_stack([20 + column * 25.0, 20 + row * 50.0 * np.sqrt(3) / 2])
        del adata.uns["spatial"]["A"]["metadata"]["pixel_size_um"], adata.uns["technology"]
        if not indexed:
            del adata.obs["array_row"]

    change(path, hexagonal)
    assert read(path).um_per_px == pytest.approx(2.0, rel=1e-3)


def test_resolution_unknown(tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def scatter(adata):
        del adata.uns["spatial"]["A"]["metadata"]["pixel_size_um"], adata.uns["technology"], adata.obs["array_row"]
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 350, (36, 2))

    change(path, scatter)
    with pytest.raises(InputError, match="um_per_px: resolution is neither given nor in the files"):
        read(path)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match=r"no file matches .*\*\.h5ad"):
        find_sections(SectionSource(path=str(tmp_path / "*.h5ad")))
    with pytest.raises(InputError, match="no such file or folder"):
        find_sections(SectionSource(path=str(tmp_path / "absent.h5ad")))
    with pytest.raises(InputError, match="folder holds no section"):
        find_sections(SectionSource(path=str(tmp_path)))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "*.h5ad")])
    assert result.exit_code == 2
    assert "no file matches" in result.stdout


def test_one_id_for_many(tiny_section, tmp_path):
    tiny_section(tmp_path, "A")
    tiny_section(tmp_path, "B", "P2")
    with pytest.raises(InputError, match="names 2 sections but gives one id"):
        find_sections(SectionSource(path=str(tmp_path), id="S"))


def test_section_id_is_a_file_name(tiny_section, tmp_path):
    with pytest.raises(InputError, match=r"section id cannot be a file name .*'\.\./A'"):
        read(tiny_section(tmp_path), id="../A")


def test_command_line_ends_with_code_two_and_no_traceback(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    tiny_section(tmp_path / "good", "B")
    change(path, entry(0, 0, -1))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("histocrypt")), "check", str(path), str(tmp_path / "good")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "counts are negative in 1 entries, first at gene ENSG00000000000 of spot 0x0" in done.stdout
    assert "2 sections, 1 unusable" in done.stdout
