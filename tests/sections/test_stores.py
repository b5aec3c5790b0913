"""AnnData as Zarr and packed by gzip, and SpatialData stores."""

import gzip
import shutil
import warnings

import anndata
import numpy as np
import pytest
import zarr
from PIL import Image
from tests.spatialdata import IDENTITY, new_store, square, to, write_image, write_shapes, write_table

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.read import find_sections, read_path, read_section, watched


def read(path, **given):
    return [read_section(files) for files in find_sections(SectionSource(path=str(path), **given))]


@pytest.fixture
def plain(tiny_section, tmp_path):
    return tiny_section(tmp_path / "plain", "S1", "P1")


@pytest.mark.parametrize("kind", ["v2", "v3", "gz"])
def test_anndata_is_read_whatever_holds_it(plain, tmp_path, kind):
    (expected,) = read(plain)
    adata = anndata.read_h5ad(plain)
    folder = tmp_path / "other"
    folder.mkdir()
    if kind == "gz":
        path = folder / "GSM1_S1.h5ad.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        path = folder / "S1.zarr"
        before = anndata.settings.zarr_write_format
        anndata.settings.zarr_write_format = int(kind[1])
        try:
            adata.write_zarr(path)
        finally:
            anndata.settings.zarr_write_format = before
    shutil.copy(plain.with_suffix(".png"), folder / (path.name.split(".")[0] + ".png"))
    for place in (path, folder):
        (section,) = read(place)
        assert (section.id, section.patient, section.um_per_px) == ("S1", "P1", expected.um_per_px)
        np.testing.assert_array_equal(section.adata.X.toarray(), expected.adata.X.toarray())
        np.testing.assert_array_equal(section.coords, expected.coords)
        assert section.image.content_hash() == expected.image.content_hash()
    (files,) = find_sections(SectionSource(path=str(path)))
    assert all(file.is_file() for file in watched(files))
    assert any(file.suffix == ".png" for file in watched(files))


@pytest.mark.parametrize("name", ["X/data", "X/indices", "obsm/spatial"])
def test_a_missing_chunk_is_not_read_as_zeros(plain, tmp_path, name):
    path = tmp_path / "S1.zarr"
    anndata.read_h5ad(plain).write_zarr(path)
    array = zarr.open_group(path, mode="r")[name]
    assert array.nchunks_initialized
    chunk = next(
        file for file in sorted((path / name).rglob("*")) if file.is_file() and not file.name.startswith((".z", "zarr"))
    )
    chunk.unlink()
    with pytest.raises(InputError) as caught:
        read(path)
    assert (caught.value.file, caught.value.field) == (path, name)


def test_a_broken_gz_is_named(plain, tmp_path):
    path = tmp_path / "S1.h5ad.gz"
    path.write_bytes(gzip.compress(plain.read_bytes())[:5000])
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.file == path


ROWS, COLUMNS, PITCH = 6, 7, 30.0
GRID = np.array([(row, 2 * column + row % 2) for row in range(ROWS) for column in range(COLUMNS)])
CENTRES = np.column_stack([20 + GRID[:, 1] * PITCH / 2, 25 + GRID[:, 0] * PITCH * np.sqrt(3) / 2])
COUNTS = np.random.default_rng(0).poisson(4.0, (len(GRID), 8))
PIXELS = np.clip(np.random.default_rng(1).normal((220, 150, 190), 9, (210, 260, 3)), 0, 255).astype(np.uint8)


def visium(
    path, *, version=3, old=False, shape=None, order=None, image=IDENTITY, unit="unit", shapes=IDENTITY, centres=CENTRES
):
    """Write a store like that of a Visium section; ``order``: of the table's rows."""
    store = new_store(path, version)
    more = {} if shape is None else {"shape": shape}
    write_shapes(store, "S", centres, [to("global", shapes, "xy", unit)], old=old, **more)
    write_image(store, "S_full", PIXELS, [to("global", image, "cyx", unit)])
    small = np.asarray(Image.fromarray(PIXELS).resize((130, 105)))
    half = {"type": "scale", "scale": [1.0, 2.0, 2.0]}
    write_image(
        store, "S_hires", small, [to("global", {"type": "sequence", "transformations": []} | half, "cyx", unit)]
    )
    order = np.arange(len(GRID)) if order is None else order
    write_table(store, "table", COUNTS[order], "S", order, grid=GRID[order], obs={"patient": "P1"})
    return path


@pytest.mark.parametrize(
    "how", [{"version": 2, "old": True}, {"version": 3}, {"shape": square}, {"order": np.arange(len(GRID))[::-1]}]
)
def test_a_visium_store(tmp_path, how):
    (section,) = read(visium(tmp_path / "P1.zarr", **how))
    order = how.get("order", np.arange(len(GRID)))
    assert (section.id, section.patient) == ("P1", "P1")
    np.testing.assert_array_equal(section.adata.X.toarray(), COUNTS[order])
    np.testing.assert_allclose(section.coords, CENTRES[order])
    np.testing.assert_array_equal(section.image.read_region(0, 0, 260, 210), PIXELS)
    assert section.um_per_px == pytest.approx(100 / PITCH, rel=1e-6)
    assert section.um_per_px_source == "spot pitch"


def test_transformations_are_heeded(tmp_path):
    """Shapes in um, and an image that a turn and a shift take to the same system."""
    um = 0.8 * 100 / PITCH
    affine = [[1.0, 0, 0, 0], [0, 0.0, um, 7.0], [0, um, 0.0, -3.0]]  # c, y, x from c, y, x: x and y change places
    there = np.column_stack([CENTRES[:, 1] * um - 3.0, CENTRES[:, 0] * um + 7.0])
    shapes = {
        "type": "sequence",
        "transformations": [
            to("a", {"type": "scale", "scale": [2.0, 2.0]}, "xy"),
            to("b", {"type": "translation", "translation": [5.0, 6.0]}, "xy"),
        ],
    }
    stored = (there - (5.0, 6.0)) / 2
    path = visium(
        tmp_path / "P1.zarr",
        image={"type": "affine", "affine": affine},
        unit="micrometer",
        shapes=shapes,
        centres=stored,
    )
    group = zarr.open_group(path, mode="r+")
    shutil.rmtree(path / "images" / "S_hires")
    assert "S_full" in group["images"]
    with pytest.raises(InputError) as caught:  # 80 um between spots of Visium
        read(path)
    assert "S_full" in caught.value.field
    (files,) = find_sections(SectionSource(path=str(path), um_per_px=100 / PITCH))
    np.testing.assert_allclose(read_section(files).coords, CENTRES, atol=1e-9)


def test_several_sections_by_their_coordinate_systems(tmp_path):
    store = new_store(tmp_path / "both.zarr")
    for name in ("A", "B"):
        write_shapes(store, name, CENTRES, [to(name, IDENTITY, "xy")])
        write_image(store, f"{name}_full", PIXELS, [to(name, IDENTITY, "cyx")])
    both = np.concatenate([COUNTS, COUNTS + 1])
    regions = ["A"] * len(GRID) + ["B"] * len(GRID)
    instances = np.concatenate([np.arange(len(GRID))] * 2)
    write_table(store, "table", both, regions, instances, grid=np.concatenate([GRID, GRID]))
    one, two = read(tmp_path / "both.zarr", patient="P1")
    assert (one.id, two.id) == ("A", "B")
    np.testing.assert_array_equal(two.adata.X.toarray(), COUNTS + 1)
    assert two.image.path.name == "B_full"
    assert read_path(tmp_path / "both.zarr" / "shapes" / "B").image.path.name == "B_full"


def test_tables_of_one_tissue_are_refused_and_one_can_be_named(tmp_path):
    path = tmp_path / "hd.zarr"
    store = new_store(path)
    side = np.array([(row, column) for row in range(5) for column in range(6)])
    for um in (8, 16):
        centres = (side[:, ::-1] + 0.5) * um / 2 + 10
        write_shapes(store, f"P_square_{um:03d}um", centres, [to("global", IDENTITY, "xy")], shape=square)
        write_table(store, f"square_{um:03d}um", COUNTS[: len(side)], f"P_square_{um:03d}um", np.arange(30), grid=side)
    write_image(store, "full", PIXELS, [to("global", IDENTITY, "cyx")])
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.fix == "name one, e.g. hd.zarr/tables/square_008um"
    section = read_path(path / "tables" / "square_016um")
    assert section.um_per_px == pytest.approx(2.0)  # not that of ST arrays, which are square too


def test_several_images_are_named(tmp_path):
    path = visium(tmp_path / "P1.zarr")
    store = zarr.open_group(path, mode="r+")
    write_image(store, "other", PIXELS, [to("global", IDENTITY, "cyx")])
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.value == ["S_full", "other"]
    (section,) = read(path, image=str(path / "images" / "other"))
    assert section.image.path.name == "other"


@pytest.mark.parametrize("change", [{"type": "byDimension"}, {"type": "scale", "scale": [1.0, 0.0, 1.0]}])
def test_a_transformation_that_is_not_understood(tmp_path, change):
    with pytest.raises(InputError) as caught:
        read(visium(tmp_path / "P1.zarr", image=change))
    assert caught.value.field == "coordinateTransformations"


def test_rows_without_a_shape(tmp_path):
    path = visium(tmp_path / "P1.zarr", order=np.arange(len(GRID)))
    shutil.rmtree(path / "shapes" / "S")
    write_shapes(zarr.open_group(path, mode="r+"), "S", CENTRES[:-3], [to("global", IDENTITY, "xy")])
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.value == len(GRID) - 3


def test_a_visium_section_of_cellxgene(plain, tmp_path):
    """Donor, ``is_single`` and the full picture in the file itself, as CELLxGENE's schema asks for them."""
    (expected,) = read(plain)
    adata = anndata.read_h5ad(plain)
    pixels = np.asarray(Image.open(plain.with_suffix(".png")).convert("RGB"))
    small = np.asarray(Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2)))
    adata.obs["donor_id"] = "D7"
    del adata.obs["patient"], adata.uns["spatial"]
    adata.uns["spatial"] = {
        "is_single": True,
        "lib": {
            "images": {"fullres": pixels, "hires": small},
            "scalefactors": {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 100 / expected.um_per_px},
        },
    }
    path = tmp_path / "cellxgene.h5ad"
    adata.write_h5ad(path)
    (section,) = read(path, um_per_px=expected.um_per_px)
    assert section.patient == "D7"
    np.testing.assert_array_equal(section.image.read_region(0, 0, 240, 240), pixels[:240, :240])
    assert not any("reduced" in note for note in section.notes)
    assert "fullres" in section.origins["image"]
    adata.obs["donor_id"] = "pooled"
    adata.write_h5ad(path)
    with pytest.raises(InputError) as caught:
        read(path, um_per_px=expected.um_per_px)
    assert caught.value.field == "obs['patient']"


def test_a_chunk_that_its_codec_cannot_read_is_refused(plain, tmp_path):
    """Blosc's header says how much it holds; numcodecs ends in a SystemError where that is negative."""
    store = tmp_path / "S1.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata.read_h5ad(plain).write_zarr(store)
    (chunk,) = (store / "obs" / "section" / "categories").glob("[0-9]*")
    content = bytearray(chunk.read_bytes())
    content[4:8] = b"\xff\xff\xff\xff"
    chunk.write_bytes(bytes(content))
    with pytest.raises(InputError) as refused:
        read(store)
    assert refused.value.file == store
