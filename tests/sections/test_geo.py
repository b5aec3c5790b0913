"""Visium sections as GEO hands them out and as people sort them, and tables as R and Excel save them."""

import gzip
import shutil

import numpy as np
import pandas as pd
import pytest
from tests.space_ranger import HEADER, write_space_ranger

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.image import ScaledImage
from histocrypt.sections.read import find_sections, read_path, read_section, watched


def read(path):
    return [read_section(files) for files in find_sections(SectionSource(path=str(path), patient="P1"))]


def assert_same(section, expected):
    np.testing.assert_array_equal(section.adata.obs_names, expected.adata.obs_names)
    np.testing.assert_array_equal(section.adata.X.toarray(), expected.adata.X.toarray())
    np.testing.assert_allclose(section.coords, expected.coords, atol=1e-6)
    assert section.um_per_px == expected.um_per_px


def geo(folder, prefix, run, *, packed=True, between=""):
    """Put a run's files into one folder, each under the sample's name."""
    folder.mkdir(exist_ok=True)
    counts = run / "filtered_feature_bc_matrix"
    matrix = list(counts.iterdir()) if counts.is_dir() else [run / "filtered_feature_bc_matrix.h5"]
    for file in [*matrix, *(run / "spatial").iterdir()]:
        name = prefix + (between if file.parent.name == "spatial" else "") + file.name
        if file.suffix in {".gz", ".h5"} or not packed:
            shutil.copy(file, folder / name)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    return folder


def test_one_of_several_samples_is_named_below_their_folder(tmp_path):
    folder = tmp_path / "GSE9_RAW"
    for number, name in enumerate(("GSM1_a", "GSM2_b")):
        run = write_space_ranger(tmp_path / name, matrix="mtx.gz", image=False, seed=number)
        geo(folder, f"{name}_", run)
    assert_same(read_path(folder / "GSM2_b"), read(run)[0])
    (files,) = find_sections(SectionSource(path=f"{folder}/GSM1_a", patient="P1"))
    assert (files.id, files.patient) == ("GSM1_a", "P1")
    with pytest.raises(InputError) as caught:
        read_path(folder)
    assert str(folder / "GSM1_a") in caught.value.fix
    with pytest.raises(InputError) as caught:
        read_path(folder / "GSM3_c")
    assert (caught.value.file, caught.value.expected) == (folder, "one of GSM1_a, GSM2_b")
    with pytest.raises(InputError) as caught:  # a folder of one section has no such names
        read_path(tmp_path / "GSM1_a" / "GSM1_a")
    assert caught.value.file == tmp_path / "GSM1_a" / "GSM1_a"


def test_a_name_made_safe_is_said(tmp_path):
    run = write_space_ranger(tmp_path / "Sample 3 (Ärm)" / "outs")
    (section,) = read(run)
    assert "'Sample 3 (Ärm)'" in section.origins["section"]
    (plain,) = read(write_space_ranger(tmp_path / "S3" / "outs"))
    assert "section" not in plain.origins


@pytest.mark.parametrize("matrix", ["mtx.gz", "h5"])
@pytest.mark.parametrize(("packed", "between"), [(True, ""), (False, ""), (True, "spatial_")])
def test_a_flat_folder_of_several_samples(tmp_path, matrix, packed, between):
    names, runs = ("GSM1_a", "GSM2_b"), []
    for number, name in enumerate(names):
        run = write_space_ranger(tmp_path / name, positions="v1", matrix=matrix, image=False, seed=number)
        runs.append(run)
        geo(tmp_path / "GSE9_RAW", f"{name}_", run, packed=packed, between=between)
    found = find_sections(SectionSource(path=str(tmp_path / "GSE9_RAW"), patient="P1"))
    assert [files.id for files in found] == list(names)
    for files, run, name in zip(found, runs, names, strict=True):
        section = read_section(files)
        assert_same(section, read(run)[0])
        assert isinstance(section.image, ScaledImage)
        np.testing.assert_array_equal(section.image.thumbnail(99)[0], read(run)[0].image.thumbnail(99)[0])
        assert watched(files)
        assert all(path.name.startswith(f"{name}_") for path in watched(files))


def test_a_flat_folder_without_prefix(tmp_path):
    run = write_space_ranger(tmp_path / "run", positions="v1", matrix="mtx.gz", image=False)
    (section,) = read(geo(tmp_path / "GSM1_s", "", run))
    assert section.id == "GSM1_s"
    assert_same(section, read(run)[0])


def test_sorted_by_hand_and_still_packed(tmp_path):
    run = write_space_ranger(tmp_path / "run", positions="v1")
    (expected,) = read(run)
    for path in list((run / "spatial").iterdir()):
        (run / "spatial" / f"GSM1_{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (section,) = read(run)
    assert_same(section, expected)


def test_a_packed_full_image_is_said(tmp_path):
    run = write_space_ranger(tmp_path / "run")
    (run / "image.tif.gz").write_bytes(gzip.compress((run / "image.tif").read_bytes()))
    (run / "image.tif").unlink()
    (section,) = read(run)
    assert any("image.tif.gz is packed" in note for note in section.notes)


@pytest.mark.parametrize("header", [True, False])
def test_equal_tables_twice_are_one(tmp_path, header):
    run = write_space_ranger(tmp_path / "run")
    (expected,) = read(run)
    lines = (run / "spatial" / "tissue_positions.csv").read_text().splitlines()
    kept = lines if header else lines[:0:-1]  # in another order too
    (run / "spatial" / "tissue_positions_list.csv").write_text("\n".join(kept))
    assert_same(read(run)[0], expected)


def test_different_tables_are_refused(tmp_path):
    run = write_space_ranger(tmp_path / "run")
    table = (run / "spatial" / "tissue_positions.csv").read_text()
    (run / "spatial" / "tissue_positions_list.csv").write_text(table.replace(",0,0,", ",0,2,", 1))
    with pytest.raises(InputError) as caught:
        read(run)
    assert caught.value.value == ["tissue_positions.csv", "tissue_positions_list.csv"]


def table_of(run):
    path = run / "spatial" / "tissue_positions.csv"
    return path, pd.read_csv(path)


def excel(frame):
    return b"\xef\xbb\xbf" + frame.to_csv(index=False, sep=";", decimal=",", lineterminator="\r\n").encode()


def excel_unicode(frame):
    return frame.to_csv(index=False, sep="\t").encode("utf-16")


def r_csv(frame):
    """Return what R's write.csv(frame) writes."""
    frame = frame.set_axis([str(number) for number in range(1, len(frame) + 1)])
    return frame.to_csv(quoting=2, index_label="").encode()


def r_csv_by_barcode(frame):
    """Return what R's write.csv writes where barcodes are row names."""
    return frame.set_index("barcode").to_csv(quoting=2, index_label="").encode()


def r_table(frame):
    """Return what R's write.table(frame) writes: blanks, quotes, and a header that is one name short."""
    lines = [" ".join(f'"{name}"' for name in frame.columns)]
    for number, row in enumerate(frame.itertuples(index=False), start=1):
        lines.append(f'"{number}" "{row[0]}" ' + " ".join(map(str, row[1:])))
    return "\n".join(lines).encode()


def scientific(frame):
    return frame.to_csv(index=False, float_format="%.9e").encode()


def empty_columns(frame):
    lines = frame.to_csv(index=False).splitlines()
    return "\n".join(f"{line},," for line in lines).encode() + b"\n,,,,,,,\n"


def old_mac(frame):
    return frame.to_csv(index=False, lineterminator="\r").encode()


def capitals(frame):
    return frame.rename(columns=str.upper).to_csv(index=False).encode()


@pytest.mark.parametrize(
    "save", [excel, excel_unicode, r_csv, r_csv_by_barcode, r_table, scientific, empty_columns, old_mac, capitals]
)
def test_tables_however_they_were_saved(tmp_path, save):
    run = write_space_ranger(tmp_path / "run")
    (expected,) = read(run)
    path, frame = table_of(run)
    assert list(frame.columns) == HEADER.split(",")
    path.write_bytes(save(frame))
    (section,) = read(run)
    assert_same(section, expected)


def test_a_table_of_another_encoding_is_named(tmp_path):
    run = write_space_ranger(tmp_path / "run")
    path, frame = table_of(run)
    path.write_bytes(frame.to_csv(index=False).encode() + "Gewebe-Übersicht".encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read(run)
    assert caught.value.file == path
    assert "UTF-8" in caught.value.fix


def test_a_folder_of_no_section_lists_what_is_there(tmp_path):
    (tmp_path / "GSE9_RAW.tar").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError) as caught:
        find_sections(SectionSource(path=str(tmp_path)))
    assert caught.value.value == ["GSE9_RAW.tar", "notes.txt"]
    assert caught.value.fix == "unpack GSE9_RAW.tar first"
