"""What a folder or a list holds: every slide once, each with an id of its own; what is one input stays one."""

import anndata
import numpy as np
import pytest
from PIL import Image
from tests.hackathon_file import write_hackathon
from tests.sections.test_geo import geo
from tests.space_ranger import write_space_ranger
from tests.tiny_section import write_tiny_section
from tests.xenium import write_xenium

from histocrypt.errors import InputError
from histocrypt.files import write_json
from histocrypt.pipeline.listing import OURS, are_many, slides_at
from histocrypt.sections.read import names_in


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (200, 120, 160)).save(path)
    return path


def found(path, **how):
    return {slide.id: slide.path for slide in slides_at(path, **how).slides}


def test_a_folder_is_searched_and_each_slide_is_there_once(tmp_path):
    section = write_tiny_section(tmp_path, "A")
    run, other = write_space_ranger(tmp_path / "V1"), write_xenium(tmp_path / "X1")
    slides = [picture(tmp_path / name) for name in ("case/one.tif", "case/deep/two.PNG", ".hidden/no.png")]
    patch = picture(tmp_path / "patches" / "B_1_2.tif")
    picture(tmp_path / "patches" / "B_1_3.tif")
    (tmp_path / "notes.txt").write_text("no slide")
    dicom = tmp_path / "dicom" / "1.dcm"
    dicom.parent.mkdir()
    dicom.write_bytes(b"DICM")
    listing = slides_at(tmp_path)
    assert {slide.path for slide in listing.slides} == {
        *map(str, (section, run, other, slides[0], slides[1], patch.parent, dicom.parent))
    }
    assert set(listing.left_out) == {str(section.with_suffix(".png"))}
    own = next(slide for slide in listing.slides if slide.path == str(section))
    assert set(own.files) == {section, section.with_suffix(".png")}, "what it is made again for, if it changes"


@pytest.mark.parametrize("what", ["patches", "space_ranger", "xenium", "dicom"])
def test_a_folder_that_is_one_input_is_one(tmp_path, what):
    place = tmp_path / "one"
    if what == "patches":
        picture(place / "B_1_2.tif")
    elif what == "dicom":
        place.mkdir()
        (place / "1.dcm").write_bytes(b"DICM")
    else:
        place = {"space_ranger": write_space_ranger, "xenium": write_xenium}[what](place)
    assert list(found(place).values()) == [str(place)]
    assert list(found(place.parent).values()) == [str(place)]
    assert not are_many(place, None)
    assert not are_many(place, tmp_path / "out.h5ad")
    assert are_many(place, tmp_path / "out")


def test_a_layout_of_several_sections_is_as_many_slides(tmp_path):
    """Each is named below what holds them all, as `predict` takes it."""
    folder, several = tmp_path / "all", {}
    folder.mkdir()
    for number in range(2):
        run = write_space_ranger(tmp_path / f"G{number}", matrix="h5", image=False, seed=number)
        geo(folder / "GSE9_RAW", f"GSM{number}_", run)
        several[f"GSM{number}"] = folder / "GSE9_RAW" / f"GSM{number}"
        for part in ("counts", "images"):
            (folder / "st" / part / "512" / "BC1").mkdir(parents=True, exist_ok=True)
        np.savez(folder / "st" / "counts" / "512" / "BC1" / f"C{number}_1_1.npz", count=np.ones(3))
        picture(folder / "st" / "images" / "512" / "BC1" / f"C{number}_1_1.jpg")
        several[f"BC1_C{number}"] = folder / "st" / f"BC1_C{number}"
    write_hackathon(folder / "kaggle.h5")
    several |= {"kaggle": folder / "kaggle.h5", "one": picture(folder / "one.png")}
    assert found(folder) == {name: str(path) for name, path in several.items()}
    for path in several.values():
        if path.suffix != ".png":
            assert len(names_in(path)) == 1


def test_slides_of_one_name_have_ids_of_their_own(tmp_path):
    paths = [picture(tmp_path / name) for name in ("x/a.png", "y/a.png", "y/A.tif", "y/b.png", "z/y_a.png")]
    ids = found(tmp_path)
    assert set(ids.values()) == set(map(str, paths))
    assert len({name.lower() for name in ids}) == 5, "not even on a disk that does not tell letters' cases apart"
    assert ids["b"] == str(paths[3])
    assert ids["x_a"] == str(paths[0])


def test_what_this_command_made_is_no_slide(tmp_path):
    slide = picture(tmp_path / "a.png")
    write_json(tmp_path / "out" / OURS, {})
    picture(tmp_path / "out" / "a" / "tissue.jpg")
    picture(tmp_path / "now" / "a" / "tissue.jpg")
    adata = anndata.AnnData(np.zeros((1, 1), np.float32))
    adata.uns["prediction"] = {"part": "new"}
    adata.write_h5ad(tmp_path / "a_predicted.h5ad")
    assert list(found(tmp_path, but=[tmp_path / "now"]).values()) == [str(slide)]


def test_a_circle_of_links_ends(tmp_path):
    slide = picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in")
    assert list(found(tmp_path).values()) == [str(slide)]


def test_a_damaged_section_is_listed_and_a_folder_without_any_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError) as caught:
        slides_at(tmp_path)
    assert caught.value.file == tmp_path
    (tmp_path / "a" / "broken.h5ad").write_bytes(b"nothing")
    assert list(found(tmp_path)) == ["broken"]


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_list_gives_what_files_do_not_say(tmp_path, sign):
    slide, section = picture(tmp_path / "in" / "a.png"), write_tiny_section(tmp_path / "in", "B")
    rows = ["Path|MPP|Patient|lab|geojson", "in/a.png|0.5|P1|L|cells.geojson", "", f"{section}||7.0||", "gone.svs||||"]
    listing = tmp_path / "slides.csv"
    listing.write_text("\n".join(rows).replace("|", sign), encoding="utf-8-sig")
    one, two, gone = slides_at(listing).slides
    assert (one.id, one.path, one.um_per_px, one.patient, one.laboratory) == ("a", str(slide), 0.5, "P1", "L")
    assert one.regions == str(tmp_path / "cells.geojson")
    assert (two.id, two.patient, two.um_per_px) == ("B", "7", None)
    assert set(two.files) == {section, section.with_suffix(".png")}
    assert gone.path == str(tmp_path / "gone.svs"), "which is said when its turn comes"
    assert are_many(listing, tmp_path / "out")
    with pytest.raises(InputError) as caught:
        are_many(listing, None)
    assert caught.value.field == "--output"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("slide,colour\na.png,red", None),
        ("mpp\n1", "path"),
        ("path,file\na,b", "path"),
        ("path,mpp\na.png,1\nb.png,one", "row 3: um_per_px"),
        ("path,mpp\n,1", "row 2: path"),
        ("path\na,b", "row 2"),
        ("path\n", None),
    ],
)
def test_a_list_that_cannot_be_meant_so_is_refused(tmp_path, text, field):
    (tmp_path / "slides.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        slides_at(tmp_path / "slides.csv")
    assert (caught.value.file, caught.value.field) == (tmp_path / "slides.csv", field)


def test_a_folder_with_one_section_goes_to_one_file_as_ever(tmp_path):
    write_tiny_section(tmp_path / "in", "A")
    assert not are_many(tmp_path / "in", None)
    assert not are_many(tmp_path / "in", tmp_path / "out.h5ad")
    assert not are_many(tmp_path / "in" / "A.h5ad", tmp_path / "out")
    write_tiny_section(tmp_path / "in", "B")
    for output in (None, tmp_path / "out.h5ad"):
        with pytest.raises(InputError) as caught:
            are_many(tmp_path / "in", output)
        assert (caught.value.file, caught.value.field) == (tmp_path / "in", "--output")


def test_what_is_not_there_is_said_before_where_its_predictions_may_go(tmp_path):
    with pytest.raises(InputError) as caught:
        are_many(tmp_path / "gone", tmp_path / "out")
    assert (caught.value.file, caught.value.field) == (tmp_path / "gone", None)
