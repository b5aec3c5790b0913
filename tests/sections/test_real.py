"""The seven real sections, and the HEST fixture made of one of them."""

import io
import re

import anndata
import h5py
import numpy as np
import pytest
from PIL import Image

from histocrypt.options import SectionSource
from histocrypt.sections.image import PatchMosaic, WholeImage
from histocrypt.sections.read import find_sections, read_path, read_section

HBCIS, HER2ST = "HBCIS_BC23209_C1", "HER2ST_C2"


def test_all_are_read_as_their_readme_says(real_data):
    table = re.findall(
        r"^\| (\w+) \| (\w+) \| \w+ \| (\d+) \| (\d+) \| \d+ \| ([\d.]+) \| (\S+) \|$",
        (real_data / "README.md").read_text(), re.MULTILINE,
    )  # fmt: skip
    found = {files.id: files for files in find_sections(SectionSource(path=str(real_data / "*.h5ad")))}
    assert len(found) == len(table) >= 7
    for name, patient, spots, genes, um_per_px, image in table:
        section = read_section(found[name])
        assert (section.patient, section.n_spots, len(section.genes)) == (patient, int(spots), int(genes))
        assert section.um_per_px == pytest.approx(float(um_per_px), rel=0.005)
        assert section.image.path.name == image
        assert isinstance(section.image, PatchMosaic if image.endswith(".h5") else WholeImage)
        assert not section.dropped
        assert not section.notes


@pytest.mark.parametrize("name", [HBCIS, HER2ST])
def test_resolution_from_the_spot_pitch_alone(name, real_data, tmp_path):
    adata = anndata.read_h5ad(real_data / f"{name}.h5ad")
    stated = adata.uns["spatial"][name]["metadata"]["pixel_size_um"]
    del adata.uns["spatial"]
    adata.write_h5ad(tmp_path / "bare.h5ad")
    section = read_path(tmp_path / "bare.h5ad")
    assert section.um_per_px_source == "spot pitch"
    assert section.um_per_px == pytest.approx(stated, rel=0.005)
    section = read_path(tmp_path / "bare.h5ad", um_per_px=stated)
    assert (section.um_per_px, section.um_per_px_source) == (stated, "given")


def test_mosaic_at_a_spot_is_its_patch(real_data):
    section = read_path(real_data / f"{HBCIS}.h5ad")
    assert (section.image.width, section.image.height) == (9299, 9871)
    with h5py.File(real_data / f"{HBCIS}_patches.h5") as file:
        names = [value.decode() for value in file["barcode"][:].ravel()]
        for spot in (0, 100, 243):
            row = names.index(section.adata.obs_names[spot])
            patch = np.asarray(Image.open(io.BytesIO(file["jpeg"][row].tobytes())))
            x, y = section.coords[spot].astype(int)
            np.testing.assert_array_equal(section.image.read_region(x - 256, y - 256, 512, 512), patch)
            np.testing.assert_array_equal(section.image.read_region(x - 100, y - 90, 200, 180), patch[166:346, 156:356])


@pytest.mark.parametrize("name", [HBCIS, HER2ST])
def test_thumbnail_lies_where_the_pixels_lie(name, real_data):
    section = read_path(real_data / f"{name}.h5ad")
    small, scale = section.image.thumbnail(1024)
    side = 120
    x, y = (np.median(section.coords, axis=0) * scale).astype(int)
    left, top, right, bottom = x / scale, y / scale, (x + side) / scale, (y + side) / scale
    region = section.image.read_region(int(left), int(top), int(right - left) + 2, int(bottom - top) + 2)
    box = (left - int(left), top - int(top), right - int(left), bottom - int(top))
    expected = np.asarray(Image.fromarray(region).resize((side, side), Image.Resampling.HAMMING, box=box)).astype(int)

    def difference(dx, dy):
        return np.abs(small[y + dy : y + dy + side, x + dx : x + dx + side] - expected).mean()

    # A shift by one thumbnail pixel costs several times as much as the coarser decoding does.
    assert difference(0, 0) < 0.5 * min(difference(*shift) for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)))


def test_hest_fixture_is_read_as_hest_patches(real_data, tmp_path):
    (tmp_path / "st").mkdir()
    (tmp_path / "patches").mkdir()
    (tmp_path / "st" / f"{HBCIS}.h5ad").symlink_to(real_data / f"{HBCIS}.h5ad")
    fixture = real_data / f"{HBCIS}_hest224_96spots.h5"
    (tmp_path / "patches" / f"{HBCIS}.h5").symlink_to(fixture)
    (files,) = find_sections(SectionSource(path=str(tmp_path)))
    assert files.format == "hest"
    section = read_section(files)
    assert (section.n_spots, sum(section.dropped.values())) == (96, 148)
    assert section.image.side == 224
    whole = read_path(real_data / f"{HBCIS}.h5ad").image
    x, y = section.coords[5].astype(int)
    np.testing.assert_array_equal(
        section.image.read_region(x - 112, y - 112, 224, 224), whole.read_region(x - 112, y - 112, 224, 224)
    )


def test_st_array_made_of_real_spots(real_data, tmp_path):
    truth = read_path(real_data / f"{HBCIS}.h5ad")
    with h5py.File(real_data / f"{HBCIS}_patches.h5") as file:
        for row in range(truth.n_spots):
            stem = f"BC23209/{truth.adata.obs['orig_name'].iloc[row]}"
            for folder, suffix in (("counts", "npz"), ("images", "jpg")):
                (tmp_path / folder / stem).parent.mkdir(parents=True, exist_ok=True)
                path = tmp_path / folder / f"{stem}.{suffix}"
                if suffix == "jpg":
                    path.write_bytes(file["jpeg"][row].tobytes())
                    continue
                np.savez(
                    path, count=truth.adata.X[row].toarray().ravel().astype(float), patient=np.array(["BC23209"]),
                    section=np.array(["C1"]), pixel=truth.coords[row].astype(int),
                    index=truth.adata.obs[["array_col", "array_row"]].iloc[row].to_numpy(dtype=int),
                )  # fmt: skip
    (tmp_path / "genes.csv").write_text("ensembl_id\n" + "\n".join(truth.genes))
    section = read_path(tmp_path)
    assert section.id == "BC23209_C1"
    own = truth.adata[section.adata.obs_names]
    assert (own.X != section.adata.X).nnz == 0
    np.testing.assert_array_equal(own.obsm["spatial"], section.coords)
    assert section.um_per_px == pytest.approx(truth.um_per_px, rel=0.005)
    x, y = section.coords[3].astype(int)
    np.testing.assert_array_equal(
        section.image.read_region(x - 50, y - 50, 100, 100), truth.image.read_region(x - 50, y - 50, 100, 100)
    )
