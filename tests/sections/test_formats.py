"""The layouts that people have: HEST-1k, hest-bench, ST array folders, tiles beside an .h5ad."""

import csv
import json
import shutil
from importlib import import_module
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from histocrypt.errors import InputError
from histocrypt.options import FORMATS, SectionSource
from histocrypt.sections import formats
from histocrypt.sections.formats.hest import hest_gene_list, hest_splits
from histocrypt.sections.image import PatchMosaic, SlideImage
from histocrypt.sections.read import find_sections, read_path, read_section
from histocrypt.sections.section import Format
from histocrypt.study import parse_study


def test_every_format_is_listed_and_refused_by_another_name(tmp_path):
    """To add a format is to add its module, and its name to the list."""
    assert {path.stem for path in Path(formats.__path__[0]).glob("[!_]*.py")} == set(FORMATS)
    for name in FORMATS:
        assert isinstance(import_module(f"histocrypt.sections.formats.{name}").FORMAT, Format)
        with pytest.raises(InputError, match="folder holds no section") as caught:
            sections_of(tmp_path, format=name)
        assert caught.value.file == tmp_path
    with pytest.raises(InputError) as caught:
        parse_study({"name": "s", "sections": [{"path": "a", "format": "zarr"}]})
    assert caught.value.field == "sections.0.format"


def sections_of(path, **given):
    return [read_section(files) for files in find_sections(SectionSource(path=str(path), **given))]


def without_metadata(path):
    """Make a section file look like HEST's: no patient, no metadata, coordinates in full-resolution pixels."""
    adata = anndata.read_h5ad(path)
    del adata.uns["spatial"], adata.uns["technology"], adata.obs["patient"], adata.obs["section"]
    adata.write_h5ad(path)
    return adata


def write_patches(path, adata, pixels, *, covered=40, stored=20, keep=None):
    """Write HEST patches: ``covered`` slide pixels a side, resampled to ``stored``."""
    names = adata.obs_names[:keep]
    corners = (adata.obsm["spatial"][:keep] - covered / 2).round().astype(int)
    cut = [
        np.asarray(Image.fromarray(pixels[y : y + covered, x : x + covered]).resize((stored, stored)))
        for x, y in corners
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["img"], file["coords"] = np.stack(cut), corners
        file["barcode"] = np.array([[name.encode()] for name in names])
    return corners


@pytest.fixture
def hest(tiny_section, tmp_path):
    """A HEST-1k folder with two sections: one with its slide, one with patches only."""
    root = tmp_path / "hest"
    for section, patient in (("TENX1", "donor-1"), ("TENX2", "donor-2")):
        path = tiny_section(root / "st", section, patient)
        pixels = np.asarray(Image.open(path.with_suffix(".png")))
        path.with_suffix(".png").unlink()
        adata = without_metadata(path)
        write_patches(root / "patches" / f"{section}.h5", adata, pixels)
        (root / "metadata").mkdir(exist_ok=True)
        about = {"patient": patient, "pixel_size_um_estimated": 4.01, "st_technology": "Spatial Transcriptomics"}
        (root / "metadata" / f"{section}.json").write_text(json.dumps(about))
        if section == "TENX1":
            (root / "wsis").mkdir()
            slide = np.full((512, 512, 3), 255, np.uint8)
            slide[:350, :350] = pixels
            tifffile.imwrite(root / "wsis" / "TENX1.tif", slide, tile=(256, 256), photometric="rgb")
            np.save(tmp_path / "pixels.npy", pixels)
    return root


def test_hest(hest, tmp_path):
    first, second = sections_of(hest)
    assert [(s.id, s.patient, s.n_spots) for s in (first, second)] == [
        ("TENX1", "donor-1", 36),
        ("TENX2", "donor-2", 36),
    ]
    assert isinstance(first.image, SlideImage)
    assert isinstance(second.image, PatchMosaic)
    assert (first.um_per_px, first.um_per_px_source) == (4.01, "file")
    np.testing.assert_array_equal(first.image.read_region(0, 0, 350, 350), np.load(tmp_path / "pixels.npy"))
    assert second.image.side == 40  # what a patch covers follows from spot centre and corner, not from its 20 pixels
    assert second.image.covers(second.coords).all()


def test_hest_section_by_its_file(hest):
    assert read_path(hest / "st" / "TENX2.h5ad").image.path == hest / "patches" / "TENX2.h5"


def test_hest_patch_of_another_section(hest):
    with h5py.File(hest / "patches" / "TENX2.h5", "a") as file:
        file["barcode"][:] = np.array([[f"q{number}".encode()] for number in range(36)])
    with pytest.raises(InputError, match=r"TENX2\.h5: barcode: no patch belongs to a spot of the section .*'q0'"):
        sections_of(hest)


def test_hest_coordinates_in_obs(hest):
    path = hest / "st" / "TENX2.h5ad"
    adata = anndata.read_h5ad(path)
    x, y = adata.obsm["spatial"].T
    adata.obs["pxl_col_in_fullres"], adata.obs["pxl_row_in_fullres"] = x, y
    del adata.obsm["spatial"]
    adata.write_h5ad(path)
    np.testing.assert_array_equal(read_path(path).coords, np.column_stack([x, y]))


def test_spots_without_a_patch_are_dropped(hest, tmp_path):
    path = hest / "patches" / "TENX2.h5"
    adata = anndata.read_h5ad(hest / "st" / "TENX2.h5ad")
    write_patches(path, adata, np.load(tmp_path / "pixels.npy"), keep=20)
    section = read_path(hest / "st" / "TENX2.h5ad")
    assert section.n_spots == 20
    assert list(section.dropped.values()) == [16]


@pytest.fixture
def bench(hest, tmp_path):
    """A hest-bench task of the same two sections, with the gene list and one split."""
    task = tmp_path / "TASK"
    for section in ("TENX1", "TENX2"):
        for folder, source in (("adata", f"st/{section}.h5ad"), ("patches", f"patches/{section}.h5")):
            (task / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(hest / source, task / folder)
    (task / "splits").mkdir()
    write_split(task / "splits" / "train_0.csv", "TENX1")
    write_split(task / "splits" / "test_0.csv", "TENX2")
    (task / "var_5genes.json").write_text(json.dumps({"genes": [f"ENSG{number:011d}" for number in (4, 2, 0, 9, 7)]}))
    return task


def write_split(path, *samples, patches="patches/{}.h5"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "patches_path", "expr_path"])
        writer.writerows([name, patches.format(name), f"adata/{name}.h5ad"] for name in samples)


def test_hest_bench(bench):
    first, second = sections_of(bench, patient="P")
    assert (first.id, second.id) == ("TENX1", "TENX2")
    assert list(first.adata.uns["gene_list"]) == hest_gene_list(bench)
    assert hest_gene_list(bench)[:2] == ["ENSG00000000004", "ENSG00000000002"]
    assert first.um_per_px_source == "spot pitch"
    assert first.um_per_px == pytest.approx(4.0)
    splits = hest_splits(bench)
    assert [row["sample_id"] for row in splits[0]["train"]] == ["TENX1"]
    assert splits[0]["test"][0]["expr_path"] == bench / "adata" / "TENX2.h5ad"


@pytest.mark.parametrize("called", ["GENE{}", "ENSG{:011d}.3", "GRCh38_ENSG{:011d}"])
def test_a_task_lists_genes_by_other_names(called, bench):
    (path,) = bench.glob("var_*genes.json")
    genes = [int(name[4:]) for name in hest_gene_list(bench)]
    path.write_text(json.dumps({"genes": [called.format(number) for number in genes]}))
    assert len(sections_of(bench, patient="P")) == 2


def test_a_task_lists_genes_of_another_kind(bench):
    (path,) = bench.glob("var_*genes.json")
    path.write_text(json.dumps({"genes": [f"Trp{number}" for number in range(5)]}))
    with pytest.raises(InputError, match="Ensembl ids") as raised:
        sections_of(bench, patient="P")
    assert raised.value.field == "var_names"


def test_hest_bench_needs_a_patient(bench):
    with pytest.raises(InputError, match=r"TENX1\.h5ad: obs\['patient'\]: patient is missing"):
        sections_of(bench)


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        (["a", "b"], r"var_5genes\.json: genes: gene list has the wrong length: 2 genes, and its name says 5"),
        (["a", "b", "c", "d", "a"], "twice .*'a'"),
        (["ENSG00000000001", "b", "c", "d", "e"], r"TENX1\.h5ad: var_names: lacks 4 of 5 genes .*'b'"),
    ],
)
def test_wrong_gene_list(genes, words, bench):
    (bench / "var_5genes.json").write_text(json.dumps({"genes": genes}))
    with pytest.raises(InputError, match=words):
        sections_of(bench, patient="P")


def test_wrong_splits(bench):
    write_split(bench / "splits" / "test_0.csv", "TENX1")
    with pytest.raises(InputError, match="TENX1"):
        hest_splits(bench)
    write_split(bench / "splits" / "test_0.csv", "TENX2", patches="../../secret/{}.h5")
    with pytest.raises(InputError, match=r"test_0\.csv: patches_path: .*'\.\./\.\./secret/TENX2\.h5'"):
        hest_splits(bench)
    (bench / "splits" / "test_0.csv").write_text("sample_id,patches_path\nTENX2,x.h5\n")
    with pytest.raises(InputError, match=r"test_0\.csv: expr_path: "):
        hest_splits(bench)
    (bench / "splits" / "test_0.csv").unlink()
    with pytest.raises(InputError, match="split 0 has no test half"):
        hest_splits(bench)


@pytest.fixture
def st_array(tmp_path):
    """Two patients, whose sections are both called C1, as count arrays and JPEG tiles of 40 px at a pitch of 50."""
    folder = tmp_path / "st"
    rng = np.random.default_rng(0)
    for patient in ("BC1", "BC2"):
        for part in ("counts", "images"):
            (folder / part / "512" / patient).mkdir(parents=True)
        for x in range(3):
            for y in range(4):
                stem = f"512/{patient}/C1_{x}_{y}"
                np.savez(
                    folder / "counts" / f"{stem}.npz",
                    count=rng.poisson(5, 11).astype(float), pixel=np.array([100 + 50 * x, 200 + 50 * y]),
                    index=np.array([x, y]), patient=np.array([patient]), section=np.array(["C1"]),
                )  # fmt: skip
                tile = np.full((40, 40, 3), (200, 10 * x, 10 * y + (5 if patient == "BC2" else 0)), np.uint8)
                Image.fromarray(tile).save(folder / "images" / f"{stem}.jpg", quality=98, subsampling=0)
    (folder / "gene_list.txt").write_text("".join(f"ENSG{number}\n" for number in range(11)))
    return folder


def test_st_array(st_array):
    first, second = sections_of(st_array)
    assert [(s.id, s.patient) for s in (first, second)] == [("BC1_C1", "BC1"), ("BC2_C1", "BC2")]
    assert first.genes.tolist() == [f"ENSG{number}" for number in range(11)]
    spot = first.adata.obs_names.get_loc("2x3")
    with np.load(st_array / "counts/512/BC1/C1_2_3.npz") as stored:
        np.testing.assert_array_equal(first.adata.X[spot].toarray().ravel(), stored["count"])
        np.testing.assert_array_equal(first.coords[spot], stored["pixel"])
    assert (first.um_per_px, first.um_per_px_source) == (pytest.approx(4.0), "spot pitch")
    np.testing.assert_allclose(first.image.read_region(180, 330, 40, 40)[20, 20], (200, 20, 30), atol=3)
    np.testing.assert_allclose(second.image.read_region(180, 330, 40, 40)[20, 20], (200, 20, 35), atol=3)
    assert first.adata.obs.loc["2x3", ["array_col", "array_row"]].tolist() == [2, 3]


def test_st_array_symbols(st_array):
    (st_array / "ensembl.tsv").write_text("Ensembl ID\tsymbol\nENSG3\tERBB2\n")
    symbols = sections_of(st_array)[0].adata.var["symbol"]
    assert symbols["ENSG3"] == "ERBB2"
    assert symbols["ENSG4"] == "ENSG4"  # an unknown id stands for itself


@pytest.mark.parametrize("kind", ["txt", "csv", "json", "npy"])
def test_st_array_gene_list_kinds(kind, st_array):
    genes = [f"ENSG{number}" for number in range(11)]
    (st_array / "gene_list.txt").unlink()
    path = st_array / f"genes.{kind}"
    if kind == "npy":
        np.save(path, np.array(genes))
    elif kind == "json":
        path.write_text(json.dumps({"genes": genes}))
    elif kind == "csv":
        path.write_text(",gene\n" + "".join(f"{number},{gene}\n" for number, gene in enumerate(genes)))
    else:
        path.write_text("gene_id\n" + "\n".join(genes))
    assert sections_of(st_array)[0].genes.tolist() == genes


def test_st_array_leaves_out_what_is_no_gene(st_array):
    (st_array / "gene_list.txt").unlink()
    rows = [f"ENSG{number},{'Antibody Capture' if number in (4, 9) else 'Gene Expression'}" for number in range(11)]
    (st_array / "genes.csv").write_text("\n".join(["gene_id,feature_type", *rows]))
    section = sections_of(st_array)[0]
    assert section.genes.tolist() == [f"ENSG{number}" for number in range(11) if number not in (4, 9)]
    with np.load(st_array / "counts/512/BC1/C1_2_3.npz") as stored:
        counts = np.delete(stored["count"], [4, 9])
    np.testing.assert_array_equal(section.adata[["2x3"]].X.toarray().ravel(), counts)
    assert any("2 Antibody Capture" in note for note in section.notes)


def test_st_array_wrong_gene_list(st_array):
    (st_array / "gene_list.txt").write_text("ENSG1\nENSG2\n")
    with pytest.raises(InputError, match=r"gene_list\.txt: gene list has the wrong length: 2 genes for 11 counts"):
        sections_of(st_array)
    (st_array / "gene_list.txt").unlink()
    with pytest.raises(InputError, match="gene list is missing"):
        sections_of(st_array)
    (st_array / "gene_list.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"convert gene_list\.pkl to a text file: pickle is never read"):
        sections_of(st_array)
    for number in (0, 1):
        (st_array / f"genes_{number}.txt").write_text("".join(f"ENSG{gene + number}\n" for gene in range(11)))
    with pytest.raises(InputError, match="two gene lists of 11 genes differ"):
        sections_of(st_array)


def test_st_array_object_arrays_are_refused(st_array):
    path = st_array / "counts/512/BC1/C1_1_1.npz"
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **{**content, "patient": np.array(["BC1"], dtype=object)})
    with pytest.raises(InputError, match=r"C1_1_1\.npz: patient: is an object array, .* pickle is never read"):
        sections_of(st_array)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": np.ones(9)}, r"C1_1_1\.npz: count: has 9 counts, where C1_0_0\.npz has 11"),
        ({"pixel": np.array([1, 2, 3])}, r"C1_1_1\.npz: pixel: is not a pair of numbers .*\[1, 2, 3\]"),
        ({"patient": np.array(["BC9"])}, r"patient: spots of one section name 2 patients .*'BC1', 'BC9'"),
        ({"count": np.full(11, -1.0)}, "counts are negative in 11 entries, first at gene ENSG0 of spot 1x1"),
    ],
)
def test_st_array_defects(change, words, st_array):
    path = st_array / "counts/512/BC1/C1_1_1.npz"
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **{**content, **change})
    with pytest.raises(InputError, match=words):
        sections_of(st_array)


def test_st_array_truncated_spot(st_array):
    path = st_array / "counts/512/BC1/C1_1_1.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"C1_1_1\.npz: spot cannot be read: it is truncated"):
        sections_of(st_array)


def test_st_array_without_images(st_array):
    shutil.rmtree(st_array / "images")
    with pytest.raises(InputError, match=r"images are missing: no C1_0_0\.jpg"):
        sections_of(st_array)


@pytest.mark.parametrize("named_by", ["index", "pixel"])
def test_tiles_beside_a_section(named_by, tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "A.png"))
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for x in range(6):
        for y in range(6):
            px, py = 50 * (x + 1), 50 * (y + 1)
            name = (x, y) if named_by == "index" else (px, py)
            tile = Image.fromarray(pixels[py - 20 : py + 20, px - 20 : px + 20])
            tile.save(tiles / f"A_{name[0]}_{name[1]}.tif")
    (section,) = sections_of(path, image=str(tiles))
    assert section.n_spots == 36
    np.testing.assert_array_equal(section.image.read_region(135, 85, 30, 30), pixels[85:115, 135:165])


def test_visium_style_files_stand_alone(tiny_section, tmp_path):
    """An .h5ad that names no image takes the one of its own stem."""
    path = tiny_section(tmp_path)
    adata = without_metadata(path)
    adata.write_h5ad(path)
    (section,) = sections_of(path, patient="P")
    assert section.image.path == tmp_path / "A.png"


def test_one_path_without_image_or_patient(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    without_metadata(path)
    (tmp_path / "A.png").unlink()
    section = read_path(path)
    assert section.image is None
    assert section.patient == ""
    with pytest.raises(InputError, match="image is missing"):
        read_path(path, require_image=True)
    tiny_section(tmp_path, "B")
    with pytest.raises(InputError, match="holds 2 sections where one is needed"):
        read_path(tmp_path)


@pytest.mark.parametrize("how", ["group", "text", "empty"])
def test_hest_patches_without_places(hest, how):
    path = hest / "patches" / "TENX2.h5"
    with h5py.File(path, "a") as file:
        places = file["coords"][:].astype(float)
        del file["coords"]
        if how == "group":
            file.create_group("coords")
        else:
            file["coords"] = np.full(places.shape, b"here") if how == "text" else places * np.nan
    with pytest.raises(InputError) as refused:
        read_path(hest / "st" / "TENX2.h5ad")
    assert refused.value.file == path


def test_hest_spots_of_one_name(hest):
    path = hest / "st" / "TENX2.h5ad"
    adata = anndata.read_h5ad(path)
    adata.obs_names = ["same"] * adata.n_obs
    adata.write_h5ad(path)
    with pytest.raises(InputError) as refused:
        read_path(path)
    assert refused.value.field == "obs_names"
