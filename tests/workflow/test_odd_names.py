"""Studies whose file, sections or folders have names that Snakemake would misread."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.workflow.progress import readable
from histocrypt.workflow.run import run_study

STUDY = """
name: odd
sections:
  - {{path: "{0}A.h5ad", id: 007, patient: None}}
  - {{path: "{0}B.h5ad", id: 1e5, patient: _x}}
  - {{path: "{0}C.h5ad", id: p__1, patient: 151673}}
preprocessing: {{min_counts: 0}}
"""


@pytest.fixture
def sections(tiny_section, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "out puts"))

    def write(folder=""):
        for name in "ABC":
            tiny_section(tmp_path / folder, name, name)
        return STUDY.format(folder)

    return write


def test_a_study_file_of_any_name_is_planned(sections, tmp_path, capsys):
    path = tmp_path / "a #b: {x} 'q\".yaml"
    path.write_text(sections("Müller's [1] #/"))
    assert run_study(path, dry_run=True, until="22_folds") == 0
    assert "20_preprocessing" in capsys.readouterr().out


def test_braces_are_refused_in_one_sentence(sections, tmp_path, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text(sections("{x}/"))
    with pytest.raises(InputError) as refused:
        run_study(path, dry_run=True)
    assert refused.value.file == tmp_path / "{x}" / "A.h5ad"
    path.write_text(sections())
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "{out}"))
    with pytest.raises(InputError) as refused:
        run_study(path, dry_run=True)
    assert refused.value.file == tmp_path / "{out}" / "odd"


def test_a_picture_elsewhere_with_braces_is_refused_too(sections, tiny_section, tmp_path):
    (tmp_path / "{slides}").mkdir()
    tiny_section(tmp_path, "A", "A").with_suffix(".png").rename(tmp_path / "{slides}" / "A.png")
    study = tmp_path / "study.yaml"
    study.write_text('{name: odd, sections: [{path: A.h5ad, image: "{slides}/A.png"}]}')
    with pytest.raises(InputError) as refused:
        run_study(study, dry_run=True)
    assert refused.value.file == tmp_path / "{slides}" / "A.png"
    assert refused.value.fix.startswith("rename")


def test_a_repository_and_outputs_of_any_name_are_planned(tiny_section, tmp_path):
    repository, own = tmp_path / 'my repo\'s #1 "q" $HOME', paths.repository()
    for name in ("lib", "workflow", "notebooks", "pyproject.toml"):
        copy = shutil.copytree if (own / name).is_dir() else shutil.copy
        repository.mkdir(exist_ok=True)
        copy(own / name, repository / name)
    folder = tmp_path / "se'c #2 $PATH}\n`x`"
    files = [{"path": str(tiny_section(folder, name, name))} for name in "ABC"]
    study = tmp_path / "-st\nudy: {x} #.yaml"
    study.write_text(json.dumps({"name": "odd", "sections": files, "preprocessing": {"min_counts": 0}}))
    places = {"PYTHONPATH": str(repository / "lib"), "HISTOCRYPT_OUTPUTS": str(tmp_path / "out 'p\" #: `y`")}
    command = [sys.executable, "-m", "histocrypt", "run", str(study), "--dry-run", "--until", "22_folds"]
    done = subprocess.run(command, cwd=repository, env={**os.environ, **places}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "20_preprocessing" in done.stdout


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("20_preprocessing__p__1", "20_preprocessing p__1"),
        ("30_training__baselines__fold_p__1", "30_training baselines fold_p__1"),
        ("50_fhe_inference__fhe_cnn___x", "50_fhe_inference fhe_cnn _x"),
        ("70_evaluation__unfinished", "70_evaluation unfinished"),
        ("22_folds", "22_folds"),
    ],
)
def test_a_job_is_called_by_its_ids(job, words):
    assert readable(job) == words
