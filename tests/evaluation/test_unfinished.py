"""Scores and a page of a study that is still being trained: what is finished, all of it, and what is to come."""

import shutil

import pytest

from histocrypt.errors import InputError
from histocrypt.evaluation import wording
from histocrypt.evaluation.scores import load_scores, score_study
from histocrypt.files import read_json
from histocrypt.predictors.registry import BASELINES
from histocrypt.report.cards import write_cards
from histocrypt.report.page import write_report
from histocrypt.report.views import Views

UNDONE = 'class="coming"'


def make_page(study, *, unfinished=True):
    scores = score_study(study, unfinished=unfinished)
    return scores, write_report(study, unfinished=unfinished).read_text(encoding="utf-8")


def test_a_model_counts_once_all_folds_are_predicted_and_a_page_never_shrinks(fresh, scored_once):
    run = fresh.run
    held_back = {path: path.with_suffix(".kept") for path in (run.prediction("vision_mlp", "fold_B"),)}
    shutil.move(*next(iter(held_back.items())))
    shutil.rmtree(run.prediction("resnet18", "fold_A").parent)
    with pytest.raises(InputError) as refused:
        score_study(fresh)
    assert refused.value.file == run.prediction("vision_mlp", "fold_B")

    scores, page = make_page(fresh)
    assert scores.models == list(BASELINES)
    assert scores.notes["coming"] == {"vision_mlp": (1, 2), "resnet18": (0, 2)}
    assert UNDONE in page
    assert "VisionMLP (multi-scale CNN) (1 of 2 folds)" in page
    assert not {"vision_mlp", "resnet18"} & set(load_scores(fresh).genes["model"])
    assert {card.parent.parent.name for card in write_cards(fresh)} == {"colour_ridge"}
    assert read_json(run.evaluation / "covers.json")["models"] == list(BASELINES)
    table = wording.score_table(scores, "log1p_cp10k")
    assert len(table) == len(BASELINES) + 1  # and the ceiling

    for path, kept in held_back.items():
        shutil.move(kept, path)
    scores, page = make_page(fresh)
    assert "vision_mlp" in scores.models
    assert "ResNet-18 (0 of 2 folds)" in page
    full = scored_once[2].of("log1p_cp10k")
    mine = scores.of("log1p_cp10k")
    assert mine["pearson_low"].equals(full.loc[mine.index, "pearson_low"])  # the same draws as with all models

    written = run.report.stat().st_mtime_ns
    run.prediction("vision_mlp", "fold_B").unlink()
    scores, _ = make_page(fresh)
    assert "vision_mlp" in scores.models
    assert run.report.stat().st_mtime_ns == written


def test_a_finished_page_says_nothing_of_what_is_to_come(page, scored):
    assert UNDONE not in page.read_text(encoding="utf-8")
    assert read_json(scored[0].run.evaluation / "covers.json")["coming"] == []


def test_no_early_score_stands_without_every_baseline(fresh):
    path = fresh.run.prediction("knn", "fold_B")
    path.unlink()
    with pytest.raises(InputError) as refused:
        score_study(fresh, unfinished=True)
    assert refused.value.file == path


def test_the_viewer_opens_on_what_a_model_has_predicted(fresh):
    fresh.run.prediction("resnet18", "fold_A").unlink()
    assert Views(fresh).predicted("resnet18") == ["B_1", "B_2", "B_3"]
    fresh.run.folds.unlink()
    with pytest.raises(InputError) as refused:
        Views(fresh)
    assert refused.value.file == fresh.run.folds
