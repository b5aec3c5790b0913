"""The whole pipeline, driven as a user drives it, on a small demo study."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from tests.small_study import MODELS, WINGS, histocrypt, planned, planned_jobs, write_study

from histocrypt.errors import InputError
from histocrypt.evaluation.agreement import load_agreements
from histocrypt.study import load_study
from histocrypt.workflow.run import run_study


def test_a_run_leaves_report_models_and_executed_notebooks(small_run):
    run = small_run / "small"
    assert (run / "report.html").stat().st_size > 50_000
    names = {path.stem for path in (run / "notebooks").glob("*.ipynb")}
    assert {"10_eda", "22_folds", "70_evaluation", "30_training__vision_mlp__final"} <= names
    assert sum(name.startswith("20_preprocessing__") for name in names) == 6
    for path in (run / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code" and cell.source]
        assert all(cell.execution_count for cell in code), path
        drawn = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
        # Indented, it stands under a condition: baselines have no training curves to show.
        shown = any("plt.show()" in cell.source.splitlines() for cell in code)
        assert drawn or not shown, f"{path}: figures are to be seen in the notebook"
        if path.stem.startswith("30_training__vision_mlp__"):
            assert drawn, f"{path}: a trained network shows its curves"
    for model in ("colour_ridge", "vision_mlp"):
        assert (run / "models" / model / "final" / "weights.safetensors").is_file()


def test_no_progress_bar_stands_still_in_an_executed_notebook(small_run):
    notebooks = list((small_run / "small" / "notebooks").glob("*.ipynb"))
    assert len(notebooks) > 30
    assert not [path.name for path in notebooks if re.search(r"\d%\||widget-view", path.read_text(encoding="utf-8"))]


@pytest.fixture
def copied(small_run, tmp_path):
    """The outputs folder of a copy, to be run or changed: all workers share the run itself, and only read it."""
    shutil.copytree(small_run / "small", tmp_path / "small", symlinks=True)
    return tmp_path


def test_a_finished_run_has_nothing_to_do(small_run, copied):
    again = histocrypt("run", small_run / "small.yaml", "--cores", "2", outputs=copied)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize(
    ("change", "runs", "stays"),
    [
        ({"title": "Another title"}, {"70_evaluation"}, {"30_training", "22_folds", "20_preprocessing", "10_eda"}),
        ({"panel": {"size": 11}}, {"22_folds", "30_training", "70_evaluation"}, {"20_preprocessing", "10_eda"}),
        (
            {"models": {"vision_mlp": {"width": 0.25, "epochs": 1}}},
            {"30_training", "70_evaluation"},
            {"22_folds", "20_preprocessing", "10_eda"},
        ),
    ],
)
def test_only_what_a_change_touches_would_run_again(small_run, tmp_path, change, runs, stays):
    study = write_study(tmp_path, "small", **{"models": {"vision_mlp": {"width": 0.25}}, **change})
    before = (small_run / "small" / "study.json").read_text()
    listed = set(planned_jobs(planned(study, outputs=small_run)))
    assert runs <= listed
    assert not stays & listed
    assert (small_run / "small" / "study.json").read_text() == before


def test_a_small_change_of_one_model_leaves_the_others_alone(small_run, tmp_path):
    changed = write_study(tmp_path, "small", models={**MODELS, "vision_mlp": {"width": 0.25, "epochs": 1}})
    # Three folds and the final model of vision_mlp; no baseline.
    assert planned_jobs(planned(changed, outputs=small_run))["30_training"] == 4


def test_encrypted_sections_are_jobs_of_their_own(small_run, tmp_path):
    """Two sections, each by the model that never saw its patient; what is asked for no more leaves the report."""
    folder = small_run / "small" / "encrypted"
    said = json.loads((folder / "agreement.json").read_text())
    assert [(one["network"], one["section"], one["fold"]) for one in said["trials"]] == [
        ("fhe_head", "S_1", "fold_1"),
        ("fhe_head", "S_2", "fold_2"),
    ]
    assert said.items() >= said["trials"][0].items()
    assert all(0 < one["max_abs_error"] < 1e-2 for one in said["trials"])
    more = write_study(tmp_path, "small", models=MODELS, encrypted={"sections": 4}, **WINGS)
    assert planned_jobs(planned(more, outputs=small_run))["50_fhe_inference"] == 2
    fewer = load_study(write_study(tmp_path, "small", models=MODELS, encrypted={"sections": 1}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(small_run))
        assert [one["section"] for one in load_agreements(fewer)] == ["S_1"]


def test_a_changed_section_file_is_preprocessed_again_alone(small_run, copied):
    with (copied / "small" / "demo_tissue" / "S_3.h5ad").open("ab") as file:
        file.write(b"\0")
    assert planned_jobs(planned(small_run / "small.yaml", outputs=copied))["20_preprocessing"] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"parameters": [("genes_show", "3")]}, {"field": "-p", "fix": "did you mean 'genes_shown'?"}),
        ({"parameters": [("fold", "fold_1")]}, {"field": "-p fold"}),
        ({"until": "30_train"}, {"field": "--until", "fix": "did you mean '30_training'?"}),
        ({"profile": Path("nowhere")}, {"file": Path("nowhere")}),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, monkeypatch, arguments, named):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path))
    with pytest.raises(InputError) as refused:
        run_study(write_study(tmp_path, "small"), **arguments)
    assert {name: getattr(refused.value, name) for name in named} == named
    assert not (tmp_path / "small").exists()


def test_a_wrong_argument_is_one_sentence_and_exit_2(tmp_path):
    study = write_study(tmp_path, "small")
    refused = histocrypt("run", study, "-p", "genes_show", "3", outputs=tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "'genes_shown'" in refused.stderr


def test_the_report_shows_synthetic_tiles_and_the_audit_and_leads_to_its_cards(small_run):
    run = small_run / "small"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="synthetic"' in page
    assert "Trained on synthetic" in page
    cards = re.findall(r'href="(audit/fold_1/privacy_card_\w+\.html)"', page)
    assert {"generator", "samples", "segmenter_real", "encoder_ridge", "fhe_head"} <= {
        Path(card).stem.removeprefix("privacy_card_") for card in cards
    }
    assert all((run / card).is_file() for card in cards)
    rows = json.loads((run / "audit" / "fold_1" / "summary.json").read_text())["rows"]
    assert any(row["access"] == "decrypted outputs" for row in rows)
    blind = [row for row in rows if row["measure"] == "AUC" and row["positive_control"] < 0.9]
    assert {row["kind"] for row in blind} <= {"synthetic set"}, "eight drawn tiles may hide planted copies, no more"
    assert {row["verdict"] for row in blind} <= {"undecided"}, "an attack that misses a planted leak says nothing"
