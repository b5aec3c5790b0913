"""Sections of one study: ids, patients and content may not contradict each other."""

import json
import shutil

import anndata
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.explore import survey
from histocrypt.explore.survey import check_sections, study_sections
from histocrypt.sections.identity import same_name
from histocrypt.study import parse_study


@pytest.fixture(autouse=True)
def own_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("HISTOCRYPT_CACHE", raising=False)


def study(*entries, **more):
    sections = [entry if isinstance(entry, dict) else {"path": str(entry)} for entry in entries]
    return parse_study({"name": "s", "sections": sections, **more})


def copied(path, section, patient):
    """Copy a section file, with its image, under another id and patient."""
    target = path.with_name(f"{section}.h5ad")
    adata = anndata.read_h5ad(path)
    adata.obs["section"], adata.obs["patient"] = section, patient
    adata.uns["spatial"][path.stem]["metadata"]["source_image_path"] = f"{section}.png"
    adata.write_h5ad(target)
    shutil.copy(path.with_suffix(".png"), target.with_suffix(".png"))
    return target


def test_sections_of_a_study(tiny_section, tmp_path):
    tiny_section(tmp_path, "A", "P1")
    tiny_section(tmp_path, "B", "P2")
    found = study_sections(study({"path": str(tmp_path / "A.h5ad"), "id": "first"}, tmp_path / "B*.h5ad"))
    assert [(files.id, files.patient) for files in found] == [("first", "P1"), ("B", "P2")]


def test_paths_start_at_the_study_file(tiny_section, tmp_path):
    tiny_section(tmp_path / "sections", "A", "P1")
    made = parse_study({"name": "s", "sections": [{"path": "sections"}]}, file=tmp_path / "study.yaml")
    assert [files.id for files in study_sections(made)] == ["A"]


def test_one_id_twice(tiny_section, tmp_path):
    one = tiny_section(tmp_path / "one", "A", "P1")
    two = tiny_section(tmp_path / "two", "A", "P2", seed=1)
    with pytest.raises(InputError, match=f"{two}: section: section id occurs twice, also in {one} .*'A'"):
        study_sections(study(one, two))


@pytest.mark.parametrize(("one", "two"), [("P-1", "p_1"), ("P 1", "P1"), ("HB_BC2", "hb-bc2")])
def test_one_patient_written_two_ways(one, two, tiny_section, tmp_path):
    a, b = tiny_section(tmp_path, "A", one), tiny_section(tmp_path, "B", two)
    with pytest.raises(InputError, match="one patient seems to have two names") as caught:
        study_sections(study(a, b))
    assert f"{one!r} in {a} and {two!r} here" in str(caught.value)


def test_different_patients_stay_different():
    assert same_name("BC1-12") != same_name("BC11-2")
    assert same_name("P1") != same_name("P11")


def test_same_counts_under_two_patients(tiny_section, tmp_path):
    one = tiny_section(tmp_path, "A", "P1")
    two = copied(one, "B", "P2")
    pixels = np.asarray(Image.open(two.with_suffix(".png")))
    Image.fromarray(pixels[::-1]).save(two.with_suffix(".png"))
    adata = anndata.read_h5ad(two)
    adata = adata[::-1, ::-1].copy()  # in another order they are the same counts
    adata.write_h5ad(two)
    with pytest.raises(InputError, match=r"B\.h5ad: patient: counts are those of .*A.*one patient under two names"):
        study_sections(study(one, two))


def test_same_image_under_two_patients(tiny_section, tmp_path):
    one, two = tiny_section(tmp_path, "A", "P1"), tiny_section(tmp_path, "B", "P2")
    shutil.copy(one.with_suffix(".png"), two.with_suffix(".png"))
    with pytest.raises(InputError, match=r"B\.h5ad: patient: image is that of .*A.*one image under two patients"):
        study_sections(study(one, two))
    rows = check_sections([str(one), str(two)])
    assert [row.unusable for row in rows] == [True, True]
    result = CliRunner().invoke(app, ["check", str(one), str(two)])
    assert result.exit_code == 2
    assert "one image under two patients" in result.stdout


def test_same_section_twice(tiny_section, tmp_path):
    one = tiny_section(tmp_path, "A", "P1")
    with pytest.raises(InputError, match="the same section"):
        study_sections(study(one, copied(one, "B", "P1")))


def test_two_sections_of_a_patient_may_share_a_slide(tiny_section, tmp_path):
    one, two = tiny_section(tmp_path, "A", "P1"), tiny_section(tmp_path, "B", "P1")
    shutil.copy(one.with_suffix(".png"), two.with_suffix(".png"))
    assert len(study_sections(study(one, two))) == 2


def test_fingerprints_are_kept_until_files_change(tiny_section, tmp_path, monkeypatch):
    path = tiny_section(tmp_path, "A", "P1")
    first = study_sections(study(path))
    reads = []
    real = survey.fingerprint_of
    monkeypatch.setattr(survey, "fingerprint_of", lambda *given: reads.append(1) or real(*given))
    assert study_sections(study(path)) == first
    assert not reads
    Image.open(tmp_path / "A.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "A.png")
    study_sections(study(path))
    assert reads == [1]


def test_unusable_section_stops_a_study(tiny_section, tmp_path):
    path = tiny_section(tmp_path, "A", "P1")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(InputError, match="is truncated"):
        study_sections(study(path))


def test_check_of_a_study_file(tiny_section, tmp_path):
    tiny_section(tmp_path, "A", "P1")
    tiny_section(tmp_path, "B", "P2")
    sections = "sections:\n  - path: '[AB].h5ad'\n  - path: absent.h5ad\n"
    (tmp_path / "study.yaml").write_text(f"name: s\n{sections}preprocessing: {{tile_px: 96}}\n")  # 4 um a pixel
    result = CliRunner().invoke(app, ["check", str(tmp_path / "study.yaml")])
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["section", "A", "B", "absent.h5ad"]
    assert lines[1].split()[:3] == ["A", "36", "30"]
    assert [line.split()[-1] for line in lines[1:4]] == ["ok", "ok", "UNUSABLE"]
    assert "no such file or folder" in lines[-1]
    assert "3 sections, 1 unusable" in lines


def test_demo_tissue_is_written_once_and_again_when_its_settings_change(tmp_path, monkeypatch, tiny_section):
    def write(folder, *, n_sections, spots_per_side, n_genes, seed):
        names = range(1, n_sections + 1)
        return [tiny_section(folder, f"S_{k}", f"P_{k}", spots_per_side, n_genes, seed) for k in names]

    monkeypatch.setattr("histocrypt.demo.write.write_demo", write)
    small = {"sections": 2, "spots_per_side": 6, "genes": 40}
    made = study("demo", demo=small)
    found = study_sections(made)
    assert [files.id for files in found] == ["S_1", "S_2"]
    assert len({files.patient for files in found}) == 2
    written = found[0].path.stat().st_mtime_ns
    assert study_sections(made)[0].path.stat().st_mtime_ns == written
    other = study("demo", demo={**small, "genes": 44})
    changed = study_sections(other)[0].path
    assert anndata.read_h5ad(changed, backed="r").n_vars == 44
    stamp = json.loads((changed.parent / "demo_tissue.json").read_text())
    assert stamp["settings"]["genes"] == 44


def test_laboratories_of_the_demo_tissue_are_known_before_it_is_written():
    demo = study("demo", demo={"sections": 3, "spots_per_side": 6, "genes": 40})
    planned = {files.id: files.laboratory for files in survey.survey(demo, keep=False)}
    assert not demo.run.demo_tissue.exists()
    assert planned == {files.id: files.laboratory for files in study_sections(demo)}
    assert planned == {"S_1": "north", "S_2": "south", "S_3": "north"}


def test_one_section_under_two_patients_is_found_whatever_its_genes_are_called(tiny_section, tmp_path):
    one = tiny_section(tmp_path, "A", "P1")
    adata = anndata.read_h5ad(one)
    adata.var_names = adata.var["symbol"]
    adata.obs["section"], adata.obs["patient"] = "B", "P2"
    two = tmp_path / "B.h5ad"
    adata[::-1].copy().write_h5ad(two)
    Image.open(tmp_path / "A.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "B.png")
    with pytest.raises(InputError) as refused:
        study_sections(study(one, two))
    assert refused.value.field == "patient"
