"""The hackathon's HDF5: slides as sections, pixels by window, every defect one sentence."""

import h5py
import numpy as np
import pytest
from tests.hackathon_file import LABELS, change_table, write_hackathon

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.formats.hackathon import ArrayImage
from histocrypt.sections.read import find_sections, read_path, read_section


@pytest.fixture
def file(tmp_path):
    return write_hackathon(tmp_path / "data.h5", train=2)


def read(path, **given):
    return [read_section(files) for files in find_sections(SectionSource(path=str(path), **given))]


def test_training_slides_are_sections_and_the_test_slide_is_for_prediction(file):
    sections = read(file)
    assert [section.id for section in sections] == ["S_1", "S_2"] == [section.patient for section in sections]
    with h5py.File(file) as stored:
        table, image = stored["spots/Train/S_1"][:], stored["images/Train/S_1"][:]
    one = sections[0]
    assert one.adata.obs_names.tolist() == [str(row) for row in range(64)]
    assert one.adata.n_vars == 0
    assert one.adata.obsm["cell_types"].columns.tolist() == LABELS
    np.testing.assert_allclose(one.adata.obsm["cell_types"]["C7"], table["C7"], atol=1e-7)
    np.testing.assert_array_equal(one.coords, np.column_stack([table["x"], table["y"]]))
    np.testing.assert_array_equal(one.image.read_region(10, 20, 30, 40), np.rint(image[20:60, 10:40] * 255))
    assert (one.um_per_px_source, round(one.um_per_px, 3)) == ("spot pitch", 4.0)
    said = " ".join(one.notes)
    for part in (
        "each slide counts as a patient of its own",
        "neither resolution nor technology",
        "25.0 px apart, 100 um as the array is hexagonal",
        "S_1 has no counts; what can be learnt is obsm:cell_types",
    ):
        assert part in said

    test = read_path(file, for_prediction=True)
    assert (test.id, test.patient) == ("S_3", "")
    assert "cell_types" not in test.adata.obsm
    assert set(test.adata.obs["Test_Set"]) == {1, 2}
    assert read_path(f"{file}/S_2").id == "S_2"
    assert [section.id for section in read(f"{file}/S_2", patient="P")] == ["S_2"]
    with pytest.raises(InputError, match="holds 2 sections where one is needed"):
        read_path(file)
    with pytest.raises(InputError, match="unknown slide 'S_9'.*S_1, S_2, S_3"):
        read_path(f"{file}/S_9")


def test_pixels_are_the_same_from_floats_and_bytes_and_white_beyond(tmp_path):
    floats = write_hackathon(tmp_path / "f.h5", train=1, dtype=np.float32)
    bytes_ = write_hackathon(tmp_path / "b.h5", train=1, dtype=np.uint8)
    one, other = (ArrayImage(path, "images/Train/S_1") for path in (floats, bytes_))
    window = one.read_region(-5, one.height - 10, 20, 30)
    np.testing.assert_array_equal(window, other.read_region(-5, one.height - 10, 20, 30))
    assert (window[:, :5] == 255).all()
    assert (window[10:] == 255).all()
    thumbnail, scale = one.thumbnail(100)
    np.testing.assert_array_equal(thumbnail, other.thumbnail(100)[0])
    assert max(thumbnail.shape) == 100
    assert scale == pytest.approx(100 / one.width)


def test_a_thumbnail_in_bands_is_that_of_the_whole(file, monkeypatch):
    image = ArrayImage(file, "images/Train/S_1")
    whole = image.thumbnail(90)[0]
    read = []
    monkeypatch.setattr("histocrypt.sections.formats.hackathon.BAND_PIXELS", 20 * image.width)
    monkeypatch.setattr(image, "_read", lambda rows, columns: (
        read.append(rows.stop - rows.start), ArrayImage._read(image, rows, columns))[1])  # fmt: skip
    banded = image.thumbnail(90)[0]
    assert max(read) <= 24 < image.height
    assert np.abs(banded.astype(int) - whole).max() <= 12  # the filter sees no further than its band
    assert np.abs(banded.astype(int) - whole).mean() < 0.5


def drop(*names):
    return lambda columns: {name: values for name, values in columns.items() if name not in names}


def put(column, row, value):
    def edit(columns):
        columns[column] = columns[column].copy()
        columns[column][row] = value
        return columns

    return edit


TABLES = {
    "no x": (drop("x"), r"spots/Train/S_1: column x is missing"),
    "no labels": (drop(*LABELS), r"spots/Train/S_1: training slide has no labels"),
    "a gap": (drop("C7"), r"spots/Train/S_1: column C7 is missing.*C1 to C35"),
    "fewer than the others": (drop("C35"), r"spots/Train/S_1: column C35 is missing, which slide S_2 has"),
    "NaN label": (put("C3", 5, np.nan), r"column C3 is not finite in 1 rows, first in row 5"),
    "NaN place": (put("y", 2, np.inf), r"column y is not finite in 1 rows, first in row 2"),
    "negative": (put("C3", 5, -0.5), r"abundances of C3 are negative \(found -0.5\)"),
    "no spot": (lambda columns: {name: values[:0] for name, values in columns.items()}, "slide has no spot"),
    "all outside": (lambda columns: {**columns, "x": columns["x"] + 9999}, "no spot is left: outside the image"),
}


@pytest.mark.parametrize("name", TABLES)
def test_defects_of_the_spots(file, name):
    edit, said = TABLES[name]
    change_table(file, "Train/S_1", edit)
    with pytest.raises(InputError, match=said) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_a_spot_outside_the_image_is_dropped_with_a_sentence(file):
    change_table(file, "Train/S_1", put("x", 0, -4.0))
    section = read(file)[0]
    assert section.n_spots == len(section.adata.obsm["cell_types"]) == 63
    assert any("1 of 64 spots dropped: outside the image" in note for note in section.notes)


def replaced(name, value):
    def edit(file):
        del file[name]
        if value is not None:
            file[name] = value

    return edit


FILES = {
    "no spots": (replaced("spots/Train", None), r"spots/Train: is missing"),
    "no images": (replaced("images", None), r"images/Train/S_1: is missing"),
    "no image": (replaced("images/Train/S_1", None), r"images/Train/S_1: is missing"),
    "no colour": (replaced("images/Train/S_1", np.zeros((50, 50))), r"images/Train/S_1: is not an image"),
    "values to 255": (replaced("images/Train/S_1", np.full((300, 300, 3), 200.0)), r"outside 0 to 1.*200 to 200"),
    "NaN": (replaced("images/Train/S_1", np.full((300, 300, 3), np.nan)), r"pixels are not numbers"),
    "no table": (replaced("spots/Train/S_1", np.zeros((5, 3))), r"spots/Train/S_1: is not a table with named columns"),
    "no slides": (replaced("spots/Train", np.zeros(3)), r"spots/Train: is not a group of slides"),
    "elsewhere": (replaced("images/Train/S_1", h5py.ExternalLink("other.h5", "a")), "is a link into another file"),
}


@pytest.mark.parametrize("name", FILES)
def test_defects_of_the_file(file, name):
    edit, said = FILES[name]
    with h5py.File(file, "a") as stored:
        edit(stored)
    with pytest.raises(InputError, match=said) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_a_truncated_file_and_another_hdf5(file, tmp_path):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="data.h5"):
        read(file, format="hackathon")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["img"] = np.zeros(3)
    with pytest.raises(InputError, match="is not a section: it is patches or another HDF5 file"):
        read(tmp_path / "other.h5")


def test_a_group_in_the_place_of_an_image_is_refused(tmp_path):
    path = write_hackathon(tmp_path / "slides.h5", train=2, n_side=4)
    with h5py.File(path, "a") as file:
        del file["images/Train/S_2"]
        file.create_group("images/Train/S_2")
    with pytest.raises(InputError) as refused:
        read_path(f"{path}/S_2")
    assert refused.value.field == "images/Train/S_2"
