"""`histocrypt new`: a study file that loads, for the sections that it was given."""

import os

import pytest
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.explore.new_study import new_study
from histocrypt.sections.formats.st_array import FORMAT
from histocrypt.study import load_study


def test_a_new_study_holds_the_sections_and_holds_out_patients(demo_tissue, tmp_path):
    folder = demo_tissue(tmp_path / "tissue")[0].parent
    said = new_study("mine", [str(folder)], output=tmp_path / "mine.yaml")
    study = load_study(tmp_path / "mine.yaml")
    assert (study.name, study.folds.scheme) == ("mine", "leave_one_patient_out")
    assert [source.path for source in study.sections] == [str(folder)]
    assert str(tmp_path / "mine.yaml") in said
    with pytest.raises(InputError):  # somebody may have edited it
        new_study("mine", [str(folder)], output=tmp_path / "mine.yaml")
    new_study("mine", [str(folder)], output=tmp_path / "mine.yaml", overwrite=True)


def test_a_relative_path_is_meant_from_where_one_stands(demo_tissue, tmp_path, monkeypatch):
    folder = demo_tissue(tmp_path / 'a "quoted" place')[0].parent
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(folder.parent)
    new_study("mine", [f"{folder.name}/*.h5ad"], output=tmp_path / "elsewhere" / "mine.yaml")
    (source,) = load_study(tmp_path / "elsewhere" / "mine.yaml").sections
    assert source.path == f"{folder}/*.h5ad"


def test_of_one_patient_sections_are_held_out(demo_tissue, tmp_path):
    file = demo_tissue(tmp_path / "tissue")[0]
    new_study("one", [str(file)], output=tmp_path / "one.yaml")
    assert load_study(tmp_path / "one.yaml").folds.scheme == "leave_one_section_out"


def test_bad_names_absent_sections_and_files_of_others_are_refused(demo_tissue, tmp_path):
    files = [str(demo_tissue(tmp_path / "tissue")[0])]
    with pytest.raises(InputError) as error:
        new_study("a b", files, output=tmp_path / "a.yaml")
    assert (error.value.field, error.value.value) == ("NAME", "a b")
    with pytest.raises(InputError) as error:
        new_study("a", [str(tmp_path / "absent")], output=tmp_path / "a.yaml")
    assert error.value.field == "SECTION"
    (tmp_path / "a.yaml").write_text("of somebody else\n")
    done = CliRunner().invoke(app, ["new", "a", *files, "-o", str(tmp_path / "a.yaml")])
    assert isinstance(done.exception, InputError)
    assert (tmp_path / "a.yaml").read_text() == "of somebody else\n"


def test_the_parent_of_a_mistyped_path_is_not_searched_without_end(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "walk", lambda folder: (seen.append(n) or (str(folder), [], []) for n in range(10**6)))
    assert not FORMAT.recognises(tmp_path)
    assert len(seen) < 10**4
