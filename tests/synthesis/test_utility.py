"""Usefulness: the scores beside scikit-learn's, baselines, the table from end to end, and what is refused."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tests.synthesis.toy_discs import discs

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.synthesis import segmentation, utility
from histocrypt.synthesis import utility as plain
from histocrypt.synthesis.segmentation import SegmenterPlan
from histocrypt.synthesis.utility import balanced_accuracy, judge, macro_auc, sight_words

PLAN = SegmenterPlan(options={"width": 8, "depth": 2}, batch=8)


def test_weighted_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 4, 60).astype(float)
    for classes in (2, 3):
        truth, probability = rng.integers(0, classes, 60), rng.dirichlet(np.ones(classes), 60).round(1)
        probability[:, 0] += 0.01
        expected = balanced_accuracy_score(truth, probability.argmax(axis=1), sample_weight=weights)
        assert balanced_accuracy(truth, probability, weights) == pytest.approx(expected)
        each = [roc_auc_score(truth == k, probability[:, k], sample_weight=weights) for k in range(classes)]
        expected = each[0] if classes == 2 else np.mean(each)
        assert macro_auc(truth, probability, weights) == pytest.approx(expected)
    assert np.isnan(balanced_accuracy(np.zeros(5, int), np.ones((5, 2)), np.ones(5)))
    assert np.isnan(macro_auc(np.zeros(5, int), np.ones((5, 2)), np.ones(5)))
    lost = np.array([1.0, 1, 0])  # a draw without the third class
    for score in (balanced_accuracy, macro_auc):
        assert np.isfinite(score(np.arange(3), np.eye(3), np.ones(3)))
        assert np.isnan(score(np.arange(3), np.eye(3), lost))


def test_judging_is_by_patient_and_the_truth_scores_one():
    test = discs(24, 1, patients=("a", "b"))
    right = (test.labels == "tumour").astype(float)
    probabilities = {"real": np.column_stack([1 - right, right]), "flat": np.full((24, 2), 0.5)}
    masks = {"real": test.masks, "flat": np.ones_like(test.masks)}
    scores, drawn = judge(masks, probabilities, test, draws=50)
    assert all(value == 1 for value in scores["real"].values())
    assert all(np.nanmin(each) == 1 for each in drawn["real"].values())
    assert scores["flat"]["auc"] == 0.5
    assert scores["flat"]["balanced_accuracy"] == 0.5
    assert scores["flat"]["dice_nuclei"] == 0
    bare = replace(test, has_mask=test.patients == "a")
    counts = segmentation.pixel_counts(test.masks, masks["flat"], 4)
    expected = segmentation.score(counts[bare.has_mask], test.patients[bare.has_mask])[1]
    assert judge(masks, probabilities, bare, draws=5)[0]["flat"]["dice_stroma"] == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_alone_outlines_what_has_a_colour_of_its_own(channels):
    train, test = discs(30, 0, channels=channels), discs(12, 1, channels=channels)
    found = plain.colour_mask(train, test, seed=0)
    assert found.dtype == np.uint8
    levels = segmentation.score(segmentation.pixel_counts(test.masks, found, 4), test.patients)
    assert segmentation.mean_dice(levels) > (0.85 if channels == 3 else 0.6)
    assert (plain.majority_mask(train, test) == 0).all()


def test_classifier_refuses_one_class_and_keeps_columns_by_name():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3))
    labels = np.where(features[:, 0] > 0, "tumour", "normal")
    one = np.full(40, "S_1")
    fitted = plain.fit_classifier(features, labels, one, classes=("absent", "normal", "tumour"), validation=None)
    found = fitted.probabilities(features, one)
    shifted = fitted.probabilities(features * 3 + 100, one)  # another scanner: a section stands on its own scale
    assert shifted == pytest.approx(found, abs=1e-3)
    plainly = plain.fit_classifier(features, labels, classes=("normal", "tumour"), validation=None)
    assert plainly.probabilities(features + 100).argmax(axis=1).std() == 0
    assert (found[:, 0] == 0).all()
    assert (found.argmax(axis=1) == 1 + (features[:, 0] > 0)).mean() > 0.9
    with pytest.raises(InputError, match="one class"):
        plain.fit_classifier(features, np.full(40, "normal"), one, classes=("normal", "tumour"), validation=None)


def test_the_table_from_end_to_end(toy_table):
    table, folder = toy_table
    assert list(table.index) == [*list(utility.TITLES)[:3], "real_8", *list(utility.TITLES)[3:], "colour_8"]
    assert table.loc["real_8", ["role", "images"]].tolist() == ["curve", 8]
    assert np.isfinite(table.loc["colour_8", "auc"])
    assert table.loc[["real", "synthetic", "both", "colour_synthetic"], "auc_validation"].between(0, 1).all()
    assert np.isnan(table.loc["colour_8", "mean_dice"])
    assert isinstance(table.loc["synthetic", "mean_dice_worth"], str)
    assert table.loc["real", "mean_dice_worth"] is None
    assert table.loc["colour_synthetic", "auc_vs_real"] == pytest.approx(
        table.loc["colour_synthetic", "auc"] - table.loc["colour_only", "auc"]
    )
    assert table.loc["both", "images"] == 64
    assert (table["steps"].dropna() <= 6 * 3).all()  # as many batches as 24 real images make
    assert (table["steps"].dropna() % 3 == 0).all()
    for score in ("dice_nuclei", "mean_dice", "balanced_accuracy", "auc"):
        scored = table[table[score].notna()]
        assert scored[score].between(scored[f"{score}_low"] - 1e-9, scored[f"{score}_high"] + 1e-9).all()
    assert table.loc["real", ["mean_dice_vs_real", "mean_dice_vs_real_low", "auc_vs_real_high"]].eq(0).all()
    assert table.loc["majority", "auc"] == 0.5
    assert table.loc["real", "mean_dice"] > table.loc["majority", "mean_dice"]
    assert table.loc["colour_synthetic", "images"] == table.loc["synthetic", "images"]
    assert table.loc["colour_synthetic", "mean_dice"] != table.loc["colour_only", "mean_dice"]
    words = ("title", "role", "verdict", "worth")
    numbers = [name for name in table.columns if not name.endswith(words)]
    again = pd.DataFrame(read_json(folder / "utility.json")["rows"]).set_index("trained_on")
    pd.testing.assert_frame_equal(again[numbers].astype(float), table[numbers].astype(float))
    assert (folder / "segmenter_synthetic" / "segmenter.json").is_file()


@pytest.mark.parametrize(
    ("encoder", "colour", "named"),
    [
        (0.9, 0.6, "read by the encoder"),
        (0.4, 0.8, "by their colours alone"),
        (0.4, 0.5, "neither"),
        (np.nan, 0.8, "No"),
    ],
)
def test_validation_images_say_by_which_sight_labels_are_to_be_told(encoder, colour, named):
    table = pd.DataFrame({"auc_validation": {"synthetic": encoder, "colour_synthetic": colour}})
    assert named in sight_words(table)


def test_a_set_of_one_class_has_masks_to_learn_from_but_no_labels(tmp_path):
    real, validation, test = (discs(8, seed, patients=(who,)) for seed, who in enumerate("ABC"))
    made = discs(12, 3, patients=("",))
    made = made.subset(made.labels == "tumour")
    table = utility.utility_table(
        real, validation, made, test, epochs=1, seed=0, plan=PLAN, draws=10, folder=tmp_path, device="cpu"
    )  # fmt: skip
    assert np.isnan(table.loc["synthetic", "auc"])
    assert np.isfinite(table.loc["both", "auc"])
    assert np.isfinite(table.loc["synthetic", "mean_dice"])
    assert read_json(tmp_path / "utility.json")["rows"][1]["balanced_accuracy_low"] is None


def test_what_cannot_be_compared_is_refused():
    real, validation, test = discs(6, 0), discs(6, 1, patients=("C",)), discs(6, 2, patients=("D",))
    settings = {"epochs": 1, "seed": 0, "plan": PLAN, "device": "cpu"}
    with pytest.raises(InputError, match="two sides, training and test"):
        utility.utility_table(real, validation, real, replace(test, patients=real.patients), **settings)
    with pytest.raises(InputError, match="synthetic images"):
        utility.utility_table(real, validation, discs(6, 0, channels=1), test, **settings)


def test_blocks_are_squares_of_one_section():
    coords = np.array([[0.0, 0], [90, 0], [110, 0], [0, 130]])
    section = anndata.AnnData(np.zeros((4, 1)), obs=pd.DataFrame(index=list("wxyz")), obsm={"spatial": coords})
    section.uns["preprocessing"] = {"um_per_px": 2.0}
    found = utility.spatial_blocks(np.array(["S:w", "S:x", "S:y", "S:z"]), {"S": section}, block_um=200)
    assert found[0] == found[1] != found[2]
    assert len(set(found.tolist())) == 3
    with pytest.raises(InputError, match="S:q"):
        utility.spatial_blocks(np.array(["S:q"]), {"S": section}, block_um=200)
