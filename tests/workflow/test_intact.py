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
from histocrypt.workflow.artifacts import intact

KINDS = {
    "section": ("sections/S_2.h5ad", "20_preprocessing__S_2"),
    "tiles": ("tiles/S_2.h5", "20_preprocessing__S_2"),
    "stain": ("stain/S_2.json", "20_preprocessing__S_2"),
    "list of sections": ("eda/summary.json", "10_eda"),
    "figure": ("eda/depth.png", "10_eda"),
    "simulated section": ("demo_tissue/S_2.h5ad", "10_eda"),
    "folds": ("folds.json", "22_folds"),
    "panel": ("folds/fold_2/panel.json", "22_folds"),
    "inner panel": ("folds/fold_2/inner_1/panel.json", "38_inner_training__baselines__fold_2"),
    "weights": ("models/vision_mlp/fold_2/weights.safetensors", "30_training__vision_mlp__fold_2"),
    "model": ("models/vision_mlp/final/model.json", "30_training__vision_mlp__final"),
    "baseline": ("models/colour_ridge/fold_1/weights.safetensors", "30_training__baselines__fold_1"),
    "model card": ("models/vision_mlp/final/README.md", "70_evaluation"),
    "inner model": ("models/vision_mlp/fold_2/inner_1/model.json", "38_inner_training__vision_mlp__fold_2"),
    "stack": ("models/stacking_mlp/fold_2/weights.safetensors", "40_stacking__fold_2"),
    "prediction": ("predictions/vision_mlp/fold_2.test.h5ad", "30_training__vision_mlp__fold_2"),
    "heads": ("predictions/he2gene/fold_2.test.heads.h5ad", "30_training__he2gene__fold_2"),
    "inner prediction": ("predictions/knn/fold_2/inner_1.test.h5ad", "38_inner_training__baselines__fold_2"),
    "stacked prediction": ("predictions/rank_average/fold_2.test.h5ad", "40_stacking__fold_2"),
    "samples": ("predictions/stem/fold_2.samples.h5", "34_diffusion"),
    "stacking": ("stacking/fold_2.json", "40_stacking__fold_2"),
    "multitask": ("multitask/signal.csv", "32_multitask"),
    "encrypted": ("encrypted/fhe_head/S_1/prediction.h5ad", "50_fhe_inference__fhe_head__S_1"),
    "all encrypted": ("encrypted/agreement.json", "50_fhe_inference__fhe_head__S_1"),
    "synthesis": ("synthesis/fold_1/utility.json", "60_synthetic_data"),
    "generator": ("synthesis/fold_1/generator/generator.safetensors", "60_synthetic_data"),
    "audit": ("audit/fold_1/summary.json", "62_membership_audit"),
    "privacy card": ("audit/fold_1/privacy_card_fhe_head.html", "62_membership_audit"),
    "shadow": ("audit/fold_1/shadows/encoder_ridge/shadow_000.safetensors", "62_membership_audit"),
    "distribution": ("evaluation/distribution_stem.svg", "34_diffusion"),
    "scores": ("evaluation/scores.csv", "70_evaluation"),
    "chart": ("evaluation/forest.svg", "70_evaluation"),
    "report": ("report.html", "70_evaluation"),
    "executed notebook": ("notebooks/22_folds.ipynb", "22_folds"),
}
"""A file of every kind that a run leaves, and the executed notebook that stands for it."""


@pytest.fixture(scope="module")
def study(small_run, tmp_path_factory):
    """The study of a copy of the finished run, to break things in; nothing is run in it."""
    outputs = tmp_path_factory.mktemp("intact")
    shutil.copytree(small_run / "small", outputs / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(outputs))
        study = load_study(small_run / "small.yaml")
        with intact(study) as found:
            assert found == [], "a finished run is whole"
        yield study


@pytest.fixture
def run(study):
    return study.run


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


def older_than_everything(notebook):
    return notebook.stat().st_mtime < 2


def of_kind(run, kind):
    (path,) = run.root.glob(KINDS[kind][0])
    return path, run.notebooks / f"{KINDS[kind][1]}.ipynb"


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_file_is_found_and_its_stage_planned_while_nothing_is_touched(study, run, kind, capsys):
    path, notebook = of_kind(run, kind)
    with cut(path):
        before = files_of(run)
        with intact(study, dry_run=True) as found:
            assert older_than_everything(notebook)
        assert [one.path for one in found] == [path]
        assert files_of(run) == before
    said = capsys.readouterr().out
    assert f"{path.relative_to(run.root)} is broken (" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["section", "simulated section", "panel", "weights", "heads", "encrypted", "report"])
def test_what_is_gone_is_noticed_though_its_notebook_is_there(study, run, kind, tmp_path):
    path, notebook = of_kind(run, kind)
    moved = path.rename(tmp_path / path.name)
    try:
        with intact(study, dry_run=True) as found:
            assert older_than_everything(notebook)
        assert [(one.path, one.what) for one in found] == [(path, "is gone")]
    finally:
        moved.rename(path)


@pytest.mark.parametrize("folder", ["encrypted/*/*/parties", "audit/*/shadows", "audit/*/decrypted"])
def test_keys_ciphertexts_and_shadows_may_be_deleted(study, run, folder, tmp_path):
    deleted, *_ = run.root.glob(folder)
    moved = deleted.rename(tmp_path / deleted.name)
    try:
        with intact(study, dry_run=True) as found:
            assert found == []
    finally:
        moved.rename(deleted)


def test_a_notebook_that_ran_again_is_not_asked_for_what_it_no_longer_makes(study, run, tmp_path):
    path, notebook = of_kind(run, "chart")
    moved, before = path.rename(tmp_path / path.name), notebook.stat()
    notebook.touch()
    try:
        with intact(study, dry_run=True) as found:
            assert found == []
    finally:
        moved.rename(path)
        os.utime(notebook, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_empty_file_is_broken(study, run):
    path, _ = of_kind(run, "weights")
    with cut(path, share=0), intact(study, dry_run=True) as found:
        assert [one.what for one in found] == ["is broken (empty)"]


@pytest.fixture
def own(run, tmp_path, monkeypatch):
    """A copy for one test alone."""
    shutil.copytree(run.root, tmp_path / "small")
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    return RunFolder(tmp_path / "small")


def test_what_is_broken_is_removed_and_its_stage_stays_to_be_run_until_it_has_run(study, own, capsys):
    path, notebook = of_kind(own, "inner prediction")
    executed = notebook.read_bytes()
    path.write_bytes(path.read_bytes()[:100])
    before = files_of(own)
    with intact(study) as found:
        assert [one.path for one in found] == [path]
    assert before.keys() - files_of(own).keys() == {path.relative_to(own.root)}
    assert len(capsys.readouterr().out.splitlines()) == 1
    with intact(study) as found:  # the run before failed, or was not asked to come to this
        assert found == []
        assert older_than_everything(notebook)
    notebook.write_bytes(executed)
    with intact(study):
        assert not older_than_everything(notebook)


@pytest.mark.parametrize("by", ["a person", "Snakemake"])
def test_a_notebook_that_is_gone_is_run_again(study, own, by, capsys):
    """Snakemake deletes what it is about to make again; where that fails it would not try once more."""
    notebook = of_kind(own, "inner prediction")[1]
    if by == "a person":
        notebook.unlink()
    with intact(study):
        notebook.unlink(missing_ok=True)
    with intact(study) as found:
        assert found == []
        assert older_than_everything(notebook)
    assert capsys.readouterr().out == "", "who deletes one wants it run again"


def test_what_the_study_has_no_longer_is_not_asked_for(study, own):
    fewer = study.model_copy(update={"models": {"fhe_head": study.models["fhe_head"]}, "synthesis": None})
    shutil.rmtree(own.model("stem", "fold_1"))
    of_kind(own, "samples")[0].unlink()
    of_kind(own, "prediction")[0].write_bytes(b"half")
    shutil.rmtree(own.synthesis("fold_1"))
    with intact(fewer, dry_run=True) as found:
        assert found == []


def test_files_of_the_user_and_outside_the_run_are_never_touched(study, own, tmp_path):
    mine = own.root / "sections" / "mine.h5ad"
    mine.write_bytes(b"half")
    elsewhere = tmp_path / "elsewhere.h5ad"
    elsewhere.write_bytes(b"half")
    (own.root / "sections" / "link.h5ad").symlink_to(elsewhere)
    (own.root / "models" / "linked").symlink_to(tmp_path)
    with intact(study, spare=[mine]) as found:
        assert found == []
    assert mine.read_bytes() == elsewhere.read_bytes() == b"half"


def test_what_killed_processes_were_writing_is_removed(study, own):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = partial_path(own.tiles("S_1"))
    left = ours.with_name(ours.name.replace(str(os.getpid()), str(dead.pid)))
    folder = left.with_name(f".demo_tissue.{dead.pid}.partial")
    folder.mkdir()
    other = left.with_name(".S_1.elsewhere.77.partial.h5")
    old = left.with_name(".S_2.elsewhere.77.partial.h5")
    for path in (ours, left, other, old, folder / "S_1.png"):
        path.write_bytes(b"half")
    day_ago = time.time() - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    with intact(study):
        pass
    assert ours.exists(), "its process lives"
    assert other.exists(), "its process may live on another machine"
    assert not left.exists()
    assert not old.exists()
    assert not folder.exists()


def test_without_a_memory_everything_is_opened(study, own):
    own.seen.write_text("{half")
    path, _ = of_kind(own, "prediction")
    path.write_bytes(path.read_bytes()[:-1])
    with intact(study, dry_run=True) as found:
        assert [one.path for one in found] == [path]
