"""What is broken or gone in a run folder is found, whatever it is, and the stage that made it runs again."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from histocrypt.files import partial_path
from histocrypt.paths import RunFolder
from histocrypt.study import load_study
from histocrypt.workflow.artifacts import intact, maker_of, tissue_flaw
from histocrypt.workflow.outline import Outline

KINDS = {
    ".h5ad": ("predictions/knn/fold_2/inner_1.test.h5ad", "38_inner_training__baselines__fold_2"),
    ".h5": ("tiles/S_2.h5", "20_preprocessing__S_2"),
    ".safetensors": ("models/vision_mlp/fold_2/weights.safetensors", "30_training__vision_mlp__fold_2"),
    ".json": ("folds/fold_2/panel.json", "22_folds"),
    ".ipynb": ("notebooks/22_folds.ipynb", "22_folds"),
    ".png": ("eda/depth.png", "10_eda"),
    ".csv": ("multitask/signal.csv", "32_multitask"),
    ".svg": ("evaluation/forest.svg", "70_evaluation"),
    ".html": ("audit/fold_1/privacy_card_fhe_head.html", "62_membership_audit__predictors"),
    ".md": ("models/vision_mlp/final/README.md", "70_evaluation"),
}
"""A file of every kind that can be told to be broken, and the job that makes it."""

OTHERS = {
    "eda/gene.png": "10_eda",
    "folds/fold_2/inner_1/panel.json": "38_inner_training__*__fold_2",
    "models/colour_ridge/fold_1/model.json": "30_training__baselines__fold_1",
    "models/vision_mlp/fold_2/inner_1/model.json": "38_inner_training__vision_mlp__fold_2",
    "models/stacking_mlp/fold_2/weights.safetensors": "40_stacking__fold_2",
    "predictions/he2gene/fold_2.test.heads.h5ad": "30_training__he2gene__fold_2",
    "predictions/rank_average/fold_2.test.h5ad": "40_stacking__fold_2",
    "predictions/stem/fold_2.samples.h5": "34_diffusion",
    "encrypted/fhe_head/S_1/prediction.h5ad": "50_fhe_inference__fhe_head__S_1",
    "encrypted/agreement.json": "50_fhe_inference__fhe_head__S_1",
    "synthesis/fold_1/generator/generator.safetensors": "58_generators__joint",
    "synthesis/fold_1/segmenter_both/weights.safetensors": "60_synthetic_data",
    "audit/fold_1/shadows/encoder_ridge/shadow_000.safetensors": "62_membership_audit__shadowed",
    "audit/fold_1/nearest_samples.png": "62_membership_audit__tiles",
    "audit/fold_1/forest.png": "64_privacy_cards",
    "evaluation/distribution_stem.svg": "34_diffusion",
    "report.html": "70_evaluation",
}
"""Files that another job might be taken to make, and the one that does."""


@pytest.fixture(scope="module")
def outline(small_run, tmp_path_factory):
    """The outline of a copy of the finished run, to break things in; nothing is run in it."""
    outputs = tmp_path_factory.mktemp("intact")
    shutil.copytree(small_run / "small", outputs / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(outputs))
        study = load_study(small_run / "small.yaml")
        outline = Outline.read(study, study.run.survey)
        with intact(outline) as found:
            assert found == [], "a finished run is whole"
        yield outline


@pytest.fixture
def run(outline):
    return outline.run


def files_of(run):
    return {
        path.relative_to(run.root): path.stat().st_mtime_ns
        for path in run.root.rglob("*")
        if path.is_file() and not {".snakemake", ".seen.json"} & set(path.relative_to(run.root).parts)
    }


@contextmanager
def cut(path, share=0.5):
    """Leave a share of a file; mend it afterwards, its time included."""
    content, before = path.read_bytes(), path.stat()
    path.write_bytes(content[: int(share * len(content))])
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_every_file_of_a_finished_run_is_made_by_a_job_and_every_job_made_its_files(outline, run):
    made = [path for job in outline.jobs for path in (*job.makes, job.executed)]
    assert len(made) == len(set(made)), "no file is made twice"
    assert [path for path in made if not path.is_file()] == []
    elsewhere = ("logs/", "demo_tissue/", "study.json", "run.json", "notebooks/70_evaluation__unfinished", ".")
    files = [path for path in files_of(run) if not path.as_posix().startswith(elsewhere)]
    assert [path for path in files if maker_of(outline, run.root / path) is None] == []


def test_the_last_evaluation_waits_for_the_first_which_writes_the_same_report(outline):
    first, last = Outline(outline.study, outline.rows.values(), early=True).by_stage["70_evaluation"]
    assert first in first.outline.before(last)
    (last,) = Outline(outline.study, outline.rows.values(), early=False).by_stage["70_evaluation"]
    assert first.executed in last.reads, "or the next run would find a change"


@pytest.mark.parametrize(("name", "job"), [*KINDS.values(), *OTHERS.items()])
def test_the_job_that_makes_a_file_is_known(outline, run, name, job):
    (path,) = run.root.glob(name)
    assert maker_of(outline, path).executed in run.notebooks.glob(f"{job}.ipynb")


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_file_is_found_and_nothing_is_touched_by_a_plan(outline, run, kind, capsys):
    name, job = KINDS[kind]
    path = run.root / name
    with cut(path):
        before = files_of(run)
        with intact(outline, dry_run=True) as found:
            assert [(one.path, one.job.name) for one in found] == [(path, job)]
        assert files_of(run) == before
    said = capsys.readouterr().out
    assert f"{name} is broken (" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["folds/fold_2/panel.json", "eda/gene.png", "predictions/stem/fold_2.samples.h5"])
def test_what_is_gone_is_noticed_though_its_notebook_is_there(outline, run, name, tmp_path):
    moved = (run.root / name).rename(tmp_path / "moved")
    try:
        with intact(outline, dry_run=True) as found:
            assert [(one.path, one.what) for one in found] == [(run.root / name, "is gone")]
    finally:
        moved.rename(run.root / name)


def test_a_simulated_section_that_is_broken_or_gone_is_found(run, tmp_path):
    path = run.demo_tissue / "S_2.h5ad"
    assert tissue_flaw(run) is None
    with cut(path):
        assert tissue_flaw(run) == "demo_tissue/S_2.h5ad is broken (truncated)"
    moved = path.rename(tmp_path / "moved")
    try:
        assert tissue_flaw(run) == "demo_tissue/S_2.h5ad is gone"
    finally:
        moved.rename(path)


@pytest.mark.parametrize("folder", ["encrypted/*/*/parties", "audit/*/shadows", "audit/*/decrypted"])
def test_keys_ciphertexts_and_shadows_may_be_deleted(outline, run, folder, tmp_path):
    deleted, *_ = run.root.glob(folder)
    moved = deleted.rename(tmp_path / deleted.name)
    try:
        with intact(outline, dry_run=True) as found:
            assert found == []
    finally:
        moved.rename(deleted)


def test_a_notebook_that_ran_again_is_not_asked_for_what_it_no_longer_makes(outline, run, tmp_path):
    path, notebook = run.eda / "viewer.png", run.notebooks / "10_eda.ipynb"
    moved, before = path.rename(tmp_path / path.name), notebook.stat()
    notebook.touch()
    try:
        with intact(outline, dry_run=True) as found:
            assert found == []
    finally:
        moved.rename(path)
        os.utime(notebook, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_empty_file_is_broken(outline, run):
    with cut(run.root / KINDS[".safetensors"][0], share=0), intact(outline, dry_run=True) as found:
        assert [one.what for one in found] == ["is broken (empty)"]


@pytest.fixture
def own(outline, tmp_path, monkeypatch):
    """A copy for one test alone."""
    shutil.copytree(outline.run.root, tmp_path / "small")
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    return Outline.read(outline.study, RunFolder(tmp_path / "small").survey)


@pytest.mark.parametrize("name", [KINDS[".h5ad"][0], "models/knn/fold_2/inner_1/other.json"])
def test_what_is_broken_is_removed_with_its_notebook_so_that_its_job_runs_again(own, name, capsys):
    path = own.run.root / name
    path.write_bytes(b"half")
    before = files_of(own.run)
    with intact(own) as found:
        assert [one.path for one in found] == [path]
        gone = before.keys() - files_of(own.run).keys()
        assert gone == {one.relative_to(own.run.root) for one in (path, found[0].job.executed)}
    assert len(capsys.readouterr().out.splitlines()) == 1
    with intact(own) as found:  # the run before failed, or was not asked to come to this
        assert found == []
    assert capsys.readouterr().out == "", "who deletes a notebook wants it run again"


def test_what_the_study_has_no_longer_is_not_asked_for(own):
    changes = {"models": {"fhe_head": own.study.models["fhe_head"]}, "synthesis": None}
    fewer = Outline(own.study.model_copy(update=changes), own.rows.values(), early=False)
    shutil.rmtree(own.run.model("stem", "fold_1"))
    own.run.samples("stem", "fold_2").unlink()
    own.run.prediction("vision_mlp", "fold_1").write_bytes(b"half")
    shutil.rmtree(own.run.synthesis("fold_1"))
    with intact(fewer, dry_run=True) as found:
        assert found == []


def test_files_of_the_user_and_outside_the_run_are_never_touched(own, tmp_path):
    mine = own.run.root / "sections" / "mine.h5ad"
    mine.write_bytes(b"half")
    elsewhere = tmp_path / "elsewhere.h5ad"
    elsewhere.write_bytes(b"half")
    (own.run.root / "sections" / "link.h5ad").symlink_to(elsewhere)
    (own.run.root / "models" / "linked").symlink_to(tmp_path)
    with intact(own, spare=[mine]) as found:
        assert found == []
    assert mine.read_bytes() == elsewhere.read_bytes() == b"half"


def test_what_killed_processes_were_writing_is_removed(own):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = partial_path(own.run.tiles("S_1"))
    left = ours.with_name(ours.name.replace(str(os.getpid()), str(dead.pid)))
    folder = left.with_name(f".demo_tissue.{dead.pid}.partial")
    folder.mkdir()
    other = left.with_name(".S_1.elsewhere.77.partial.h5")
    old = left.with_name(".S_2.elsewhere.77.partial.h5")
    for path in (ours, left, other, old, folder / "S_1.png"):
        path.write_bytes(b"half")
    day_ago = time.time() - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    with intact(own):
        pass
    assert ours.exists(), "its process lives"
    assert other.exists(), "its process may live on another machine"
    assert not left.exists()
    assert not old.exists()
    assert not folder.exists()


def test_without_a_memory_everything_is_opened(own):
    own.run.seen.write_text("{half")
    path = own.run.prediction("vision_mlp", "fold_2")
    path.write_bytes(path.read_bytes()[:-1])
    with intact(own, dry_run=True) as found:
        assert [one.path for one in found] == [path]
