"""What a fold knows before training comes from its training patients alone, byte for byte."""

import anndata
import numpy as np
import pytest

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.data.folds import load_folds
from histocrypt.errors import InputError
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import TargetStatistics
from histocrypt.tissue.stain import StainStatistics, pool


def contents(run, fold):
    return {path.name: path.read_bytes() for path in sorted(run.fold(fold).iterdir())}


def test_preparing_again_gives_the_same_bytes(small_study):
    before = {fold.name: contents(small_study.run, fold.name) for fold in load_folds(small_study.run.folds)}
    prepare_folds(small_study)
    assert before == {fold.name: contents(small_study.run, fold.name) for fold in load_folds(small_study.run.folds)}
    assert set(before["final"]) == {"panel.json", "stain_reference.json", "target_stats.json"}


@pytest.mark.parametrize("noise", [{"label_noise": 1}, {"pixel_noise": 1}])
def test_a_held_out_patient_changes_nothing_of_its_fold(small_study, rewrite, noise):
    run = small_study.run
    before = {fold.name: contents(run, fold.name) for fold in load_folds(run.folds)}
    rewrite("a", **noise)
    prepare_folds(small_study)
    after = {fold.name: contents(run, fold.name) for fold in load_folds(run.folds)}
    assert after["fold_a"] == before["fold_a"]
    for other in ("fold_b", "final"):
        assert after[other] != before[other]  # the change is real: where the patient trains, it shows


def test_files_of_a_held_out_patient_are_not_needed_beyond_its_name(small_study):
    from histocrypt.data.fold_statistics import prepare_fold

    fold = next(fold for fold in load_folds(small_study.run.folds) if fold.name == "fold_a")
    before = contents(small_study.run, "fold_a")
    for path in (small_study.run.section, small_study.run.tiles, small_study.run.stain):
        path("S_a").unlink()
    prepare_fold(small_study, fold)
    assert contents(small_study.run, "fold_a") == before


def test_statistics_and_reference_are_those_of_the_training_sections(small_study):
    run = small_study.run
    fold = next(fold for fold in load_folds(run.folds) if fold.name == "fold_b")
    panel = Panel.load(run.fold("fold_b") / "panel.json")
    sections = [anndata.read_h5ad(run.section(name)) for name in fold.training_sections]
    counts = np.concatenate([section[:, list(panel.genes)].X.toarray() for section in sections])
    statistics = TargetStatistics.load(run.fold("fold_b") / "target_stats.json")
    of_log1p = [i for i, name in enumerate(statistics.outputs) if name.startswith("log1p:")]
    assert np.allclose(statistics.mean[of_log1p], np.log1p(counts).mean(axis=0), atol=1e-5)
    assert np.allclose(statistics.sd[of_log1p], np.log1p(counts).std(axis=0), atol=1e-5)
    expected = pool([StainStatistics.load(run.stain(name)) for name in fold.training_sections])
    assert StainStatistics.load(run.fold("fold_b") / "stain_reference.json").to_dict() == expected.to_dict()


def test_a_section_of_two_patients_is_refused(small_study):
    path = small_study.run.section("S_a")
    adata = anndata.read_h5ad(path)
    adata.obs["patient"] = ["a", "z"] * 12 + ["a"]
    adata.write_h5ad(path)
    with pytest.raises(InputError, match="one patient.*'a', 'z'") as refused:
        prepare_folds(small_study)
    assert (refused.value.file, refused.value.field) == (path, "obs['patient']")


def test_a_damaged_section_is_named(small_study):
    small_study.run.section("S_c").write_bytes(b"not a section")
    with pytest.raises(InputError, match="run the preprocessing again") as refused:
        prepare_folds(small_study)
    assert refused.value.file == small_study.run.section("S_c")


def test_a_run_without_sections_says_what_to_do(tmp_path, small_study):
    empty = small_study.model_copy(update={"name": "empty"})
    with pytest.raises(InputError, match="run the preprocessing first") as refused:
        prepare_folds(empty)
    assert refused.value.file == empty.run.section("any").parent
