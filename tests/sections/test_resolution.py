"""How large a pixel is: a fact stands above a guess, two facts that differ are refused, and a guess is said."""

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from tests.space_ranger import write_space_ranger

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.read import find_sections, read_section


def read(path, **given):
    (files,) = find_sections(SectionSource(path=str(path), patient="P1", **given))
    return read_section(files)


@pytest.fixture
def section(tiny_section, tmp_path):
    """Return a function that writes the small section (4 um/px, spots 50 px apart) changed, and reads it."""

    def write(*, forget=(), technology=None, scalefactors=None, edit=None, given=None, **metadata):
        path = tiny_section(tmp_path)
        adata = anndata.read_h5ad(path)
        library = adata.uns["spatial"]["A"]
        for name in forget:
            library["metadata"].pop(name)
        library["metadata"].update(metadata)
        library["scalefactors"] = scalefactors or {}
        if technology is not None:
            adata.uns["technology"] = technology
        if edit is not None:
            edit(adata)
        adata.write_h5ad(path)
        return read(path, **({"um_per_px": given} if given is not None else {}))

    return write


PIXEL = "uns['spatial']['A']['metadata']['pixel_size_um']"


def bins(folder, names, *, um_per_px=0.5, step_um=16, scalefactors=None):
    """Write a square of 30 x 30 bins, and a picture around them."""
    side, step = 30, step_um / um_per_px
    rows, columns = (axis.ravel() for axis in np.mgrid[:side, :side])
    counts = np.random.default_rng(0).poisson(1.0, (side**2, 20)).astype(np.float32)
    adata = anndata.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(
            {"array_row": rows, "array_col": columns},
            index=[names.format(r, c) for r, c in zip(rows, columns, strict=True)],
        ),
        var=pd.DataFrame(index=[f"G{number}" for number in range(20)]),
        obsm={"spatial": np.column_stack([columns, rows]) * step + 20.0},
    )
    if scalefactors:
        adata.uns["spatial"] = {"lib": {"images": {}, "scalefactors": scalefactors, "metadata": {}}}
    adata.write_h5ad(folder / "hd.h5ad")
    pixels = np.random.default_rng(1).integers(120, 240, (int(side * step) + 40,) * 2 + (3,), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "hd.png")
    return folder / "hd.h5ad"


@pytest.mark.parametrize("size", [8, 16])
def test_visium_hd_bins_are_as_large_as_their_names_say(size, tmp_path):
    found = read(bins(tmp_path, f"s_{size:03d}um_{{:05d}}_{{:05d}}-1", step_um=size))
    assert found.um_per_px == pytest.approx(0.5)
    assert any(f"{size} um by the names of the bins" in note for note in found.notes)


def test_visium_hd_states_its_pixels(tmp_path):
    factors = {"microns_per_pixel": 0.5, "bin_size_um": 16.0, "spot_diameter_fullres": 32.0}
    found = read(bins(tmp_path, "s_016um_{:05d}_{:05d}-1", scalefactors=factors))
    assert (found.um_per_px, found.um_per_px_source) == (0.5, "file")
    assert found.origins["resolution"] == "uns['spatial']['lib']['scalefactors']['microns_per_pixel']"
    assert not found.notes


@pytest.mark.parametrize(
    ("names", "factors", "field"),
    [
        ("s_016um_{}_{}-1", {"bin_size_um": 8.0}, "obs_names"),
        ("s_016um_{}_{}-1", {"microns_per_pixel": 1.0},
         "uns['spatial']['lib']['scalefactors']['microns_per_pixel']"),
        ("spot{}_{}", {"microns_per_pixel": 1.0, "bin_size_um": 16.0},
         "uns['spatial']['lib']['scalefactors']['microns_per_pixel']"),
    ],
)  # fmt: skip
def test_bins_that_contradict_themselves(names, factors, field, tmp_path):
    with pytest.raises(InputError) as caught:
        read(bins(tmp_path, names, scalefactors=factors))
    assert caught.value.field == field


def test_a_large_square_array_is_not_guessed_to_be_st(tmp_path):
    path = bins(tmp_path, "spot{}_{}")
    adata = anndata.read_h5ad(path)
    four = anndata.concat([adata] * 9, index_unique="-")
    place = np.repeat(np.arange(9), adata.n_obs)
    four.obs["array_row"] += 30 * (place // 3)
    four.obs["array_col"] += 30 * (place % 3)
    four.obsm["spatial"] = four.obs[["array_col", "array_row"]].to_numpy() * 10.0 + 20
    four.write_h5ad(path)
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.field == "um_per_px"


def test_a_file_stands_above_a_guess_and_the_note_says_so(section):
    found = section(technology="", pixel_size_um=1.0)  # the square array would make 4
    assert (found.um_per_px, found.um_per_px_source) == (1.0, "file")
    assert any("4 um/px" in note and "guess" in note for note in found.notes)


def test_what_is_given_stands_above_a_guess(section):
    found = section(technology="", forget=["pixel_size_um"], given=1.0)
    assert (found.um_per_px, found.um_per_px_source) == (1.0, "given")
    assert any("4 um/px" in note and "guess" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "field", "other"),
    [
        ({"technology": "", "given": 2.0}, "um_per_px as given", "4 um/px (uns['spatial']['A']['metadata']"),
        ({"technology": "", "microns_per_pixel": 0.5}, PIXEL, "0.5 um/px (uns['spatial']['A']['metadata']"),
        ({"technology": "", "scalefactors": {"microns_per_pixel": 0.5}}, PIXEL,
         "0.5 um/px (uns['spatial']['A']['scalefactors']"),
        ({"technology": "", "inter_spot_um": 100.0}, PIXEL, "which makes 2 um/px"),
        ({"technology": "Visium"}, PIXEL, "which makes 2 um/px"),
    ],
)  # fmt: skip
def test_two_facts_that_contradict_each_other(changes, field, other, section):
    with pytest.raises(InputError) as caught:
        section(**changes)
    assert caught.value.field == field
    assert other in str(caught.value)


def test_a_third_fact_is_overruled_by_two(section):
    found = section(pixel_size_um=1.0, given=4.0)  # an ST array says 4 too
    assert found.um_per_px == 4.0
    assert any("1 um/px (uns" in note for note in found.notes)


@pytest.mark.parametrize(
    ("value", "expected"), [("4.0", 4.0), (np.array([4.0, 4.0]), 4.0), (np.array([4.0]), 4.0), (4, 4.0)]
)
def test_numbers_as_people_store_them(value, expected, section):
    assert section(pixel_size_um=value).um_per_px == expected


@pytest.mark.parametrize("value", ["about 4", np.array([4.0, 2.0]), np.array([1.0, 2.0, 3.0]), np.nan, "-4"])
def test_what_is_no_resolution(value, section):
    with pytest.raises(InputError) as caught:
        section(pixel_size_um=value)
    assert caught.value.field == PIXEL


@pytest.mark.parametrize("diameter", [16.25, 13.75])  # 65 um, or 55 um as some tools write it
def test_spot_diameter_of_a_known_technology(diameter, section):
    found = section(technology="Visium", forget=["pixel_size_um"], scalefactors={"spot_diameter_fullres": diameter},
                    edit=lambda adata: adata.obsm.update(spatial=adata.obsm["spatial"] / 2))  # fmt: skip
    assert found.um_per_px == pytest.approx(4.0)
    assert found.um_per_px_source == "file"
    assert "spot_diameter_fullres" in found.origins["resolution"]


def test_spot_diameter_against_the_pitch(section):
    with pytest.raises(InputError) as caught:
        section(technology="Visium", forget=["pixel_size_um"], scalefactors={"spot_diameter_fullres": 65.0})
    assert "spot_diameter_fullres" in caught.value.field


def test_spot_diameter_of_an_unknown_technology_is_a_drawing_size(section):
    found = section(technology="", forget=["pixel_size_um"], scalefactors={"spot_diameter_fullres": 1.0})
    assert (found.um_per_px, found.um_per_px_source) == (pytest.approx(4.0), "spot pitch")


@pytest.mark.parametrize("technology", ["Visium HD", "VisiumHD", "Xenium", "10x Visium-HD 3'"])
def test_a_technology_of_unknown_pitch_is_not_guessed(technology, section):
    with pytest.raises(InputError) as caught:
        section(technology=technology, forget=["pixel_size_um"])
    assert caught.value.field == "um_per_px"


def test_chemistry_names_visium(section):
    found = section(technology="", forget=["pixel_size_um"], chemistry_description="Spatial 3' v1")
    assert found.um_per_px == pytest.approx(2.0)


def test_coordinates_that_are_no_pixels(section):
    with pytest.raises(InputError) as caught:
        section(technology="", forget=["pixel_size_um"],
                edit=lambda adata: adata.obsm.update(spatial=adata.obsm["spatial"] / 50))  # fmt: skip
    assert caught.value.field == "um_per_px"


def stretch(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] * (1, 0.8)


def test_stretched_coordinates(section):
    with pytest.raises(InputError) as caught:
        section(edit=stretch)
    assert (caught.value.field, caught.value.value) == ("obsm['spatial']", [40.0, 50.0])
    assert any("stretched" in note for note in section(technology="", edit=stretch).notes)


def tagged(folder, um_per_px):
    """Turn the section's picture into a TIFF whose tags state its resolution."""
    per_cm = 10_000 / um_per_px
    picture = folder / "A.png"
    tags = {"resolution_unit": 3, "x_resolution": per_cm, "y_resolution": per_cm}
    Image.open(picture).save(picture.with_suffix(".tif"), **tags)
    return picture.with_suffix(".tif")


def test_the_image_states_a_fact(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    image = str(tagged(tmp_path, 2.0))
    with pytest.raises(InputError) as caught:  # the file says 4
        read(path, image=image)
    assert caught.value.field == PIXEL
    assert "2 um/px (resolution of A.tif" in str(caught.value)
    adata = anndata.read_h5ad(path)
    del adata.uns["spatial"]["A"]["metadata"]["pixel_size_um"], adata.uns["technology"]
    adata.write_h5ad(path)
    found = read(path, image=image)  # the square array would make 4
    assert (found.um_per_px, found.um_per_px_source) == (pytest.approx(2.0), "file")
    assert found.origins["resolution"].startswith("resolution of A.tif")
    assert any("guess" in note for note in found.notes)


def test_given_against_the_scale_factors(tmp_path):
    run = write_space_ranger(tmp_path / "run")
    with pytest.raises(InputError) as caught:
        read(run, um_per_px=1.0)
    assert caught.value.field == "um_per_px as given"
    assert "2.5 um/px (scalefactors_json.json" in str(caught.value)
    assert read(run, um_per_px=2.6).um_per_px == 2.6
