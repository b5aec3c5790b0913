"""Who is who: ids as their writer meant them, and files that hold several slides."""

import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.formats.h5ad import read_anndata
from histocrypt.sections.identity import Fingerprint, conflicts, id_text, patient_text, safe_id, same_name
from histocrypt.sections.identity import check_id as check
from histocrypt.sections.libraries import slides_in
from histocrypt.sections.read import find_sections, read_path, read_section


def found(path, **given):
    return find_sections(SectionSource(path=str(path), **given))


def rewritten(path, change, target=None):
    """Write a section file again, changed."""
    adata = anndata.read_h5ad(path)
    adata = change(adata) or adata
    adata.write_h5ad(target or path)
    return target or path


# Ids as text.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (np.float32(7), "7"),
        (np.int8(7), "7"),
        (7.5, "7.5"),
        (b"P\xc3\xa4", "Pä"),
        ("Pa\u0308", "Pä"),
        (" P1\n", "P1"),
        ("007", "007"),
        ("1e5", "1e5"),
        (1e5, "100000"),
        (pd.Timestamp("2021-03-04"), "2021-03-04"),
        (None, ""),
        (np.nan, ""),
        (pd.NA, ""),
        (pd.NaT, ""),
        ("nan", ""),
    ],
)
def test_an_id_is_what_its_writer_meant(value, text):
    assert id_text(value) == text


@pytest.mark.parametrize(("one", "two"), [("7.0", "7"), ("007.00", "007"), (" 7", "7"), ("7.5", "7.5"), ("nan", "nan")])
def test_a_patient_that_was_once_a_float(one, two):
    assert patient_text(one) == two


@pytest.mark.parametrize("name", ["151673", "007", "1e5", "None", "nan", "p__1", "_x", "a-b.c", "A1"])
def test_ids_that_are_safe_stay(name):
    check(name, "file")
    assert safe_id(name) == name


@pytest.mark.parametrize("name", ["A\n", "", "-x", ".x", "a b", "a/b", "ä", "..", "{x}"])
def test_ids_that_are_no_file_names(name):
    with pytest.raises(InputError) as refused:
        check(name, "file")
    assert refused.value.field == "section"
    assert refused.value.value == name


def test_names_become_safe_ids_and_stay_apart():
    names = ["Slide 1 (left)", "样本1", "样本2", "标本1", "{x}", "-x", ".x", "空间", "样本"]
    ids = [safe_id(name) for name in names]
    for name in ids:
        check(name, "file")
    assert len(set(ids)) == len(names)


@pytest.mark.parametrize(
    ("one", "two"),
    [("P01", "P1"), ("p1", "P1"), ("007", "7"), ("P_01", "p-1"), ("P.1", "P1"), ("Pat 001a", "pat1A"), ("７", "7")],
)
def test_one_patient_written_two_ways_raises_a_question(one, two):
    assert same_name(one) == same_name(two)
    ((_, _, error),) = conflicts([Fingerprint("A", one, "a.h5ad"), Fingerprint("B", two, "b.h5ad")])
    assert (error.field, error.value, error.file) == ("patient", two, "b.h5ad")
    assert repr(one) in str(error)


@pytest.mark.parametrize(("one", "two"), [("P10", "P1"), ("1-0", "10"), ("P1", "P2"), ("100", "10"), ("1-1", "11")])
def test_two_patients_raise_none(one, two):
    assert same_name(one) != same_name(two)


@pytest.mark.parametrize("value", [7, 7.0, "7", "7.0", b"7"])
def test_seven_is_one_patient(value, tiny_section, tmp_path):
    def number(adata):
        del adata.obs["patient"]
        if isinstance(value, bytes):
            adata.uns["patient"] = np.array([value])
        else:
            adata.obs["patient"] = value

    path = rewritten(tiny_section(tmp_path, "A"), number)
    (files,) = found(path)
    assert files.patient == "7"
    assert read_section(files).patient == "7"
    (given,) = found(path, patient="7.0")
    assert read_section(given).notes == []


def test_a_section_and_patients_that_are_numbers(tiny_section, tmp_path):
    def numbers(adata):
        adata.obs["section"] = 151673
        adata.obs["patient"] = pd.array([3] * (adata.n_obs - 1) + [None], dtype="Int64")

    (files,) = found(rewritten(tiny_section(tmp_path, "A"), numbers))
    assert (files.id, files.patient) == ("151673", "3")


def test_obs_and_uns_name_two_patients(tiny_section, tmp_path):
    path = rewritten(tiny_section(tmp_path, "A", "P1"), lambda adata: adata.uns.update(patient="P2"))
    with pytest.raises(InputError) as refused:
        read_path(path)
    assert (refused.value.field, refused.value.value) == ("uns['patient']", "P2")


def test_a_patient_who_reads_like_none(tiny_section, tmp_path):
    path = tiny_section(tmp_path, "A", "None")
    with pytest.raises(InputError) as refused:
        read_section(*found(path))
    assert (refused.value.field, refused.value.value) == ("obs['patient']", "None")
    assert read_section(*found(path, patient="None")).patient == "None"


def test_the_study_and_the_file_name_two_patients(tiny_section, tmp_path):
    section = read_section(*found(tiny_section(tmp_path, "A", "P1"), patient="Q"))
    assert section.patient == "Q"
    assert len(section.notes) == 1
    assert section.origins["patient"] == "as given"


# What older programs wrote.


def as_in_07(path):
    """Store words of ``obs`` as anndata 0.7 did: codes, and categories elsewhere."""
    adata = anndata.read_h5ad(path)
    with h5py.File(path, "a") as file:
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        words = obs.create_group("__categories")
        for name in ("patient", "section"):
            column = adata.obs[name].astype("category")
            del obs[name]
            obs[name] = column.cat.codes.to_numpy()
            words[name] = np.array(column.cat.categories, dtype=h5py.string_dtype())
            words[name].attrs["ordered"] = False
            obs[name].attrs["categories"] = words[name].ref


def as_before_07(path):
    """Store ``obs`` as anndata 0.6 did: one table, with the words in ``uns``."""
    adata = anndata.read_h5ad(path)
    table = adata.obs[["patient", "section"]].astype("category")
    codes = table.apply(lambda column: column.cat.codes)
    codes.insert(0, "index", adata.obs_names.to_numpy().astype("S"))
    with h5py.File(path, "a") as file:
        del file["obs"]
        kinds = {name: codes[name].to_numpy().dtype for name in ("patient", "section")}
        width = f"S{max(map(len, adata.obs_names))}"
        rows = np.array(list(codes.itertuples(index=False)), dtype=[("index", width), *kinds.items()])
        file["obs"] = rows
        for name in kinds:
            if name in file["uns"]:
                del file["uns"][name]
            file["uns"][f"{name}_categories"] = np.array(table[name].cat.categories, dtype=h5py.string_dtype())


@pytest.mark.parametrize("layout", [as_in_07, as_before_07])
def test_words_of_older_layouts(layout, tiny_section, tmp_path):
    path = tiny_section(tmp_path, "brain1", "donor_A")
    layout(path)
    (files,) = found(path)
    assert (files.id, files.patient) == ("brain1", "donor_A")
    assert read_section(files).patient == "donor_A"
    assert set(read_anndata(path).obs["patient"]) == {"donor_A"}


# Several slides in one file.


@pytest.fixture
def two(tiny_section, tmp_path):
    """Return two sections of two patients, and their scales, told apart in ``uns``."""
    parts = {}
    for name, patient, scale in (("slide1", "P1", 4.0), ("slide2", "P2", 2.0)):
        adata = anndata.read_h5ad(tiny_section(tmp_path / "apart", name, patient))
        (content,) = adata.uns["spatial"].values()
        metadata = {"pixel_size_um": scale, "inter_spot_um": 50 * scale, "source_image_path": f"{name}.png"}
        adata.uns["spatial"] = {name: {**content, "metadata": metadata}}
        adata.obs = adata.obs.drop(columns="section")
        parts[name] = adata
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "apart" / f"{name}.png").read_bytes())
    return parts


def together(parts, path, **how):
    made = anndata.concat(parts, **{"uns_merge": "unique", "index_unique": "-", **how})
    made.write_h5ad(path)
    return path


def same_section(section, adata):
    assert (section.adata.X.toarray() == adata.X.toarray()).all()
    assert (section.coords == adata.obsm["spatial"]).all()
    return True


@pytest.mark.parametrize("column", ["library_id", "section", "sample", "Slide_ID", None])
def test_slides_of_one_file_are_told_apart(column, two, tmp_path):
    sections = [read_section(files) for files in found(together(two, tmp_path / "cohort.h5ad", label=column))]
    assert [section.id for section in sections] == ["slide1", "slide2"]
    assert [section.patient for section in sections] == ["P1", "P2"]
    for section, (name, adata) in zip(sections, two.items(), strict=True):
        assert same_section(section, adata)
        assert section.um_per_px == adata.uns["spatial"][name]["metadata"]["pixel_size_um"]
        assert section.image.path.name == f"{name}.png"


@pytest.mark.parametrize("label", ["batch", None])
def test_slides_that_go_by_numbers_are_called_by_their_file_too(label, two, tmp_path):
    path = together(list(two.values()), tmp_path / "cohort.h5ad", label=label, uns_merge=None)
    sections = [read_section(files, require_image=False) for files in found(path)]
    assert [section.id for section in sections] == ["cohort_0", "cohort_1"]
    assert all(map(same_section, sections, two.values()))


def test_one_slide_of_a_file_is_named_like_a_folder(two, tmp_path):
    path = together(two, tmp_path / "cohort.h5ad", label="library_id")
    assert same_section(read_path(f"{path}/slide2"), two["slide2"])
    (files,) = found(f"{path}/slide1", patient="Q", image=str(tmp_path / "slide2.png"))
    assert (files.id, files.patient, files.image.name) == ("slide1", "Q", "slide2.png")
    with pytest.raises(InputError) as refused:
        read_path(f"{path}/slide3")
    assert refused.value.file == path
    with pytest.raises(InputError) as refused:
        read_path(path)
    assert refused.value.value == ["slide1", "slide2"]


def test_slides_never_share_a_picture_where_they_overlap(two, tmp_path):
    for adata in two.values():
        adata.uns = {}
    path = together(two, tmp_path / "cohort.h5ad", label="library_id")
    shutil.copy(tmp_path / "slide1.png", path.with_suffix(".png"))
    (tmp_path / "slide1.png").unlink()
    one, other = found(path, um_per_px=4.0)
    assert read_section(other).image.path.name == "slide2.png"
    with pytest.raises(InputError) as refused:
        read_section(one)
    assert refused.value.file == path


def test_slices_beside_each_other_share_one(two, tmp_path):
    for adata in two.values():
        adata.uns = {}
    two["slide2"].obsm["spatial"][:, 0] += 400
    path = together(two, tmp_path / "cohort.h5ad", label="section")
    both = np.concatenate([np.asarray(Image.open(tmp_path / f"{name}.png")) for name in two], axis=1)
    Image.fromarray(np.pad(both, ((0, 0), (0, 400), (0, 0)))).save(path.with_suffix(".png"))
    for name in two:
        (tmp_path / f"{name}.png").unlink()
    for files, adata in zip(found(path, um_per_px=4.0), two.values(), strict=True):
        section = read_section(files)
        assert same_section(section, adata)
        assert section.image.path.name == "cohort.png"


def test_what_is_left_of_a_cut_file_keeps_its_own_scale(two, tmp_path):
    path = together(two, tmp_path / "cohort.h5ad", label="library_id")
    cut = rewritten(path, lambda adata: adata[adata.obs["library_id"] == "slide2"].copy(), tmp_path / "one.h5ad")
    section = read_section(*found(cut))
    assert (section.um_per_px, section.patient) == (2.0, "P2")
    assert same_section(section, two["slide2"])


def test_a_library_that_cannot_be_told(two, tmp_path):
    two["slide1"].uns["spatial"] |= two["slide2"].uns["spatial"]
    two["slide1"].write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(InputError) as refused:
        read_section(*found(tmp_path / "one.h5ad"))
    assert refused.value.field == "uns['spatial']"
    assert refused.value.value == ["slide1", "slide2"]


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("repeated", ["barcode", "array", "place"])
def test_slides_that_nothing_tells_apart(repeated, two, tmp_path):
    made = anndata.concat(two)
    made.obs["patient"] = "P1"
    if repeated != "barcode":
        made.obs_names = [f"spot{number}" for number in range(made.n_obs)]
    if repeated == "place":
        made.obs = made.obs.drop(columns=["array_row", "array_col"])
    made.write_h5ad(tmp_path / "cohort.h5ad")
    with pytest.raises(InputError) as refused:
        read_section(*found(tmp_path / "cohort.h5ad"))
    assert (refused.value.file, refused.value.field) == (tmp_path / "cohort.h5ad", "obs")


def test_spots_within_each_other_are_of_several_slides():
    places = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), -1).reshape(-1, 2) * 100
    adata = anndata.AnnData(obs=pd.DataFrame(index=[f"s{number}" for number in range(128)]))
    adata.obsm["spatial"] = np.concatenate([places, places + 20])
    assert slides_in(adata, "file") is None  # nothing says how wide a spot is
    adata.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 65.0}}}
    with pytest.raises(InputError):
        slides_in(adata, "file")
    assert slides_in(adata[:64], "file") is None


def test_slides_that_are_named_apart_in_two_ways_or_for_some_spots_only(two):
    made = anndata.concat(two, label="sample", index_unique="-")
    made.obs["section"] = ["C1", "C2"] * (made.n_obs // 2)  # C1 of one sample, and C1 of the other
    with pytest.raises(InputError) as refused:
        slides_in(made, "file")
    assert (refused.value.field, refused.value.value) == ("obs['section']", ["slide1", "slide2"])
    made.obs["section"] = [None, *made.obs["sample"][1:]]
    with pytest.raises(InputError) as refused:
        slides_in(made, "file")
    assert (refused.value.field, refused.value.value) == ("obs['section']", made.obs_names[0])


# Names of files and folders.


@pytest.mark.parametrize(
    "name", ["Slide 1 (left)", "Müller's ä", "空间 样本1", "[1] {x}", "a #b: c", "-x", 'say "x"', "a\nb"]
)
def test_files_and_folders_of_any_name(name, tiny_section, tmp_path):
    path = tiny_section(tmp_path / name, "A", "P1")
    for suffix in (".h5ad", ".png"):
        path.with_suffix(suffix).rename(path.with_name(f"{name}{suffix}"))

    def unnamed(adata):
        del adata.obs["section"], adata.uns["spatial"]["A"]["metadata"]["source_image_path"]
        adata.uns.pop("section", None)

    path = rewritten(path.with_name(f"{name}.h5ad"), unnamed)
    for given in (path, path.parent / "*.h5ad"):
        section = read_section(*found(given))
        assert section.id == safe_id(name)
        assert section.image.path == path.with_suffix(".png")


def test_two_names_with_one_safe_id_are_refused():
    ids = [safe_id(name) for name in ("a b", "a+b")]
    ((_, _, error),) = conflicts([Fingerprint(name, "P", f"{number}") for number, name in enumerate(ids)])
    assert (error.field, error.value) == ("section", "a-b")
