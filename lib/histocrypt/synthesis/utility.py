"""What synthetic images are good for: train on real, on synthetic, on both; test on the same real images.

Three sets, one procedure. A segmentation network may make the same number of steps on each (it stops early where it no
longer improves); a classifier of labels stands on the same frozen features. Early stopping and penalties look at the
same *real* validation images in all three rows, which are of patients of the training side: "trained on synthetic"
means that no real image changed a weight, not that none was looked at.

Features are standardised section by section, as by the library's predictors, and drawn images are a section of their
own: a network that was frozen on photographs puts drawn tissue elsewhere than real tissue, and on the scale of real
tiles a classifier of drawn ones can come out reversed. It uses pixels of the tested section, never its labels.

Beside them stands colour alone, the yardstick of a house where masks are made by rule from colour: a network that a
table of colours equals has not learned shape. With ``sizes``, the same is learned from a few real tiles: what drawn
tiles are worth is said in those (`synthesis.worth`).

All scores are taken within each test patient, then averaged over patients; where a score cannot be had of a patient
(one class only, a level that is nowhere), the patient is left out of it. Intervals are bootstraps over blocks (or
images) within each test patient, all rows on the same draws: they speak of other tissue **of these patients**, not of
new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.evaluation.bootstrap import interval
from histocrypt.files import write_json
from histocrypt.predictors.closed_form import mean_and_sd, standardise
from histocrypt.spatial import squares
from histocrypt.synthesis import segmentation
from histocrypt.synthesis.worth import (
    COLOUR_REAL,
    REAL,
    REPEAT,
    against,
    over_repeats,
    size_of,
    subsets,
    verdict,
    worth,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData

    from histocrypt.synthesis.manifest import Pairs

ENCODER = "efficientnet_lite0_128"
TITLES = {
    "real": "Trained on real",
    "synthetic": "Trained on synthetic",
    "both": "Trained on both",
    "colour_only": "Colour only, real",
    "colour_synthetic": "Colour only, synthetic",
    "majority": "Majority, real",
}
BASELINES = {"colour_only": "real", "colour_synthetic": "synthetic", "majority": "real"}
"""And which images each is fitted on."""
COMPARED = ("mean_dice", "balanced_accuracy", "auc")
"""Scores that are also given as differences from a row of real images, on the same draws."""
SHADES = 32
"""Shades of each channel that the table of colours tells apart."""
PIXELS = 60_000
"""Drawn to fit the table: a pixel more changes little."""
LEAST_SIGHT = 0.55
"""AUC on validation images up to which a sight is no better than a guess."""
PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""C of the logistic regression, of which the best on the validation images is taken."""
UNCHOSEN = 0.01
"""C where there is nothing to choose it on."""


def colours(images: np.ndarray) -> np.ndarray:
    """Return images (n, S, S, 1 or 3) uint8 with three channels; grey is repeated."""
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def majority_mask(train: Pairs, test: Pairs) -> np.ndarray:
    """Return the most frequent level of the training pixels everywhere, (n, side, side) uint8."""
    frequent = np.bincount(train.masks[train.has_mask].ravel(), minlength=len(train.scheme.levels)).argmax()
    return np.full(test.masks.shape, frequent, dtype=np.uint8)


def colour_mask(train: Pairs, test: Pairs, *, seed: int) -> np.ndarray:
    """Return each pixel's most probable level by its colour alone, (n, side, side) uint8.

    Boosted trees learn levels from the colours of training pixels and are written out as a table of colours.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(seed)
    pixels = colours(train.images[train.has_mask]).reshape(-1, 3)
    levels = train.masks[train.has_mask].ravel()
    chosen = rng.permutation(len(pixels))[:PIXELS]
    if len(np.unique(levels[chosen])) < 2:
        return majority_mask(train, test)
    trees = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
    trees.fit(pixels[chosen] // (256 // SHADES), levels[chosen])
    table = trees.predict(np.indices((SHADES,) * 3).reshape(3, -1).T).astype(np.uint8).reshape((SHADES,) * 3)
    return table[tuple(np.moveaxis(colours(test.images) // (256 // SHADES), -1, 0))]


@dataclass(frozen=True)
class Classifier:
    """A logistic regression on features that are standardised, section by section where it was fitted so."""

    classes: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    regression: Any
    validated: float = float("nan")
    """AUC on the validation images; NaN where there were none, or of one class."""

    def probabilities(self, features: np.ndarray, sections: np.ndarray | None = None) -> np.ndarray:
        """Return (n, classes) probabilities; 0 for a class that training did not see. ``sections`` as in fitting."""
        scores = standardise(features, sections, self.mean, self.sd, by_section=sections is not None)
        found = np.zeros((len(features), len(self.classes)))
        found[:, [self.classes.index(name) for name in self.regression.classes_]] = self.regression.predict_proba(
            scores
        )
        return found


def fit_classifier(
    features: np.ndarray,
    labels: np.ndarray,
    sections: np.ndarray | None = None,
    *,
    classes: tuple[str, ...],
    validation: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None,
) -> Classifier:
    """Fit labels to features, classes weighted equally.

    Parameters
    ----------
    features, labels, sections
        (n, d) float, (n,) str, (n,) str. Without sections all features stay on the scale of these.
    classes
        Of the columns of probabilities.
    validation
        Features, labels and sections on which the penalty is chosen; None: `UNCHOSEN`.

    Raises
    ------
    InputError
        If all images to learn from are of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    if len(np.unique(labels)) < 2:
        raise InputError(
            "labels cannot be learned: all images are of one class",
            value=str(labels[0]) if len(labels) else None,
            expected=" and ".join(classes),
        )
    by_section = sections is not None
    mean, sd = mean_and_sd(features, sections, by_section=by_section)
    scores = standardise(features, sections, mean, sd, by_section=by_section)

    def fitted(penalty: float) -> Classifier:
        regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
        return Classifier(classes, mean, sd, regression.fit(scores, labels))

    judged = validation is not None and len(np.unique(validation[1])) > 1
    if not judged:
        return fitted(UNCHOSEN)

    def score(one: Classifier) -> tuple[float, float]:
        probability = one.probabilities(validation[0], validation[2])
        truth = np.array([classes.index(name) for name in validation[1].tolist()])
        likely = np.log(np.maximum(probability[np.arange(len(truth)), truth], 1e-6)).mean()
        return balanced_accuracy_score(truth, probability.argmax(axis=1)), float(likely)

    best = max((fitted(penalty) for penalty in PENALTIES), key=score)
    truth = np.array([classes.index(name) for name in validation[1].tolist()])
    auc = macro_auc(truth, best.probabilities(validation[0], validation[2]), np.ones(len(truth)))
    return replace(best, validated=auc)


def judge(
    masks: Mapping[str, np.ndarray],
    probabilities: Mapping[str, np.ndarray],
    test: Pairs,
    *,
    blocks: np.ndarray | None = None,
    draws: int = 500,
    seed: int = 0,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Score predicted masks (n, side, side) and probabilities (n, classes) of the test images, each by its name.

    Test images without a mask count for their labels alone; at least one must have a mask.

    Returns
    -------
    Scores by row and name; and the same in every draw of the bootstrap, each (draws,).
    """
    weights = segmentation.patient_draws(test.patients, blocks, draws=draws, seed=seed)
    scores: dict[str, dict[str, float]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    masked = {}
    for patient, (rows, given) in weights.items():
        if (own := test.has_mask[rows]).any():
            masked[patient] = rows[own], given[:, own]
    chosen = test.patients[test.has_mask]
    named = [(number, level) for number, level in enumerate(test.scheme.levels) if number != segmentation.BACKGROUND]
    for name in dict.fromkeys([*masks, *probabilities]):
        scores[name], drawn[name] = {}, {}
    for name in masks:
        counts = segmentation.pixel_counts(test.masks, masks[name], len(test.scheme.levels))
        whole, each = segmentation.score(counts[test.has_mask], chosen), segmentation.draws_of(counts, masked)
        scores[name] |= {f"dice_{level}": float(whole[number]) for number, level in named}
        drawn[name] |= {f"dice_{level}": each[:, number] for number, level in named}
        scores[name]["mean_dice"] = float(segmentation.mean_dice(whole))
        drawn[name]["mean_dice"] = segmentation.mean_dice(each)
    for name in probabilities:
        for score, function in (("balanced_accuracy", balanced_accuracy), ("auc", macro_auc)):
            scores[name][score], drawn[name][score] = _by_patient(function, probabilities[name], test, weights)
    return scores, drawn


def balanced_accuracy(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean share of each class that is called right.

    NaN with fewer than two classes, without probabilities, and where a draw has lost a class: a score over other
    classes is another score.

    Parameters
    ----------
    truth
        (n,) int, columns of ``probability``.
    probability
        (n, classes).
    weights
        (n,) how often each image counts.
    """
    if _unscorable(truth, probability, weights):
        return float("nan")
    right = truth == probability.argmax(axis=1)
    total = np.bincount(truth, weights, minlength=probability.shape[1])
    hits = np.bincount(truth, weights * right, minlength=probability.shape[1])
    return float((hits[total > 0] / total[total > 0]).mean())


def macro_auc(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean area under the curve of each class against the rest.

    Arguments, and where it is NaN, as in `balanced_accuracy`. Equal probabilities count as half.
    """
    from scipy.stats import rankdata

    if _unscorable(truth, probability, weights):
        return float("nan")
    areas = []
    for column in np.unique(truth):
        # Weighted Mann-Whitney: for each positive, the weight of negatives below it and half of those beside it.
        rank = rankdata(probability[:, column], method="dense") - 1
        sides = (truth == column, truth != column)
        yes, no = (np.bincount(rank, weights * side, minlength=rank.max() + 1) for side in sides)
        areas.append((yes * (np.cumsum(no) - no / 2)).sum() / (yes.sum() * no.sum()))
    return float(np.mean(areas[:1] if probability.shape[1] == 2 else areas))  # of two classes both areas are the same


def _unscorable(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> bool:
    lost = np.bincount(truth, weights)[np.unique(truth)] == 0
    return bool(np.isnan(probability).any() or len(lost) < 2 or lost.any())


def _by_patient(
    function: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    probability: np.ndarray,
    test: Pairs,
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[float, np.ndarray]:
    """Return a score within patients, averaged over those that have it, and the same in every draw, (draws,)."""
    column = {name: number for number, name in enumerate(test.scheme.classes)}
    truth = np.array([column[name] for name in test.labels.tolist()], dtype=np.intp)
    whole, each = [], []
    for rows, given in weights.values():
        whole.append(function(truth[rows], probability[rows], np.ones(len(rows))))
        each.append([function(truth[rows], probability[rows], one) for one in given])
    return float(segmentation.over_patients(np.array(whole))), segmentation.over_patients(np.array(each))


def utility_table(
    real: Pairs,
    validation: Pairs,
    synthetic: Pairs,
    test: Pairs,
    *,
    epochs: int,
    seed: int,
    network: str = "unet",
    plan: segmentation.SegmenterPlan | None = None,
    encoder: str = ENCODER,
    blocks: np.ndarray | None = None,
    draws: int = 500,
    sizes: Sequence[int] = (),
    repeats: int = 5,
    looked: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    folder: Path | None = None,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Train on three sets, test on one, and put baselines beside.

    Parameters
    ----------
    real, validation, test
        Of patients that are all different.
    epochs
        Passes over the real images; the other sets get as many steps.
    network, plan
        As in `segmentation.train_segmenter`.
    encoder
        Frozen encoder below the classifier of labels.
    blocks
        (n_test,) names of test images that are drawn together, see `spatial_blocks`; None: image by image.
    draws
        Of the bootstrap.
    sizes, repeats
        Numbers of real tiles that are learned from, too, for `synthesis.worth`: labels from several random subsets,
        whose scores are averaged; masks from the first, for a network takes its time. As many steps for all.
    looked
        What `look` gives of the four sets, by name; None: it is computed.
    folder
        Where ``utility.json`` and the networks (``segmenter_real``, ``segmenter_synthetic``, ``segmenter_both``) are
        written; None writes nothing.

    Returns
    -------
    DataFrame
        Index: the names in `TITLES`, and ``real_<size>``, ``colour_<size>`` with the role ``curve``. Columns
        ``title``, ``role``, ``images``, ``steps``; then each score with ``_low`` and ``_high``: ``dice_<level>``,
        ``mean_dice``, ``balanced_accuracy``, ``auc``; then of `COMPARED` the difference from real
        (`worth.against`), ``<score>_vs_real`` with its interval, and ``<score>_verdict`` in words. With sizes,
        ``<score>_worth``. ``auc_validation`` is the AUC on validation images. NaN where a score cannot be had.

    Raises
    ------
    InputError
        If a patient appears on two sides, schemes differ, or a set has nothing to learn from.
    """
    import pandas as pd

    _check(real, validation, synthetic, test)
    sets = {"real": real, "synthetic": synthetic, "both": type(real).join([real, synthetic])}
    fewer = subsets(real.sections, sizes, repeats=repeats, seed=seed)
    parts = {f"real_{size_of(name)}": real.subset(rows) for name, rows in fewer.items() if name.endswith(f"{REPEAT}0")}
    plan = plan or segmentation.SegmenterPlan()
    plan = replace(plan, steps=max(1, math.ceil(real.has_mask.sum() / plan.batch)))
    masks, rows = {}, {}
    for name, pairs in {**sets, **parts}.items():
        segmenter = segmentation.train_segmenter(
            pairs,
            validation,
            network=network,
            epochs=epochs,
            seed=seed,
            plan=plan,
            device=device,
            folder=None if folder is None else Path(folder) / f"segmenter_{name}",
        )
        masks[name] = segmenter.predict(test)
        about = segmenter.about
        rows[name] = {
            "role": "model" if name in sets else "curve",
            "images": len(pairs),
            "steps": about["steps"],
            "best_epoch": about["best_epoch"],
        }
    for name, learned in BASELINES.items():
        pairs = sets[learned]
        coloured = name != "majority" and pairs.has_mask.any()
        masks[name] = colour_mask(pairs, test, seed=seed) if coloured else majority_mask(real, test)
        rows[name] = {"role": "baseline", "images": len(pairs), "steps": None, "best_epoch": None}
    looked = looked or look({"real": real, "synthetic": synthetic, "validation": validation, "test": test}, encoder)
    probabilities, validated = label_probabilities(sets, validation, test, looked=looked, fewer=fewer)
    scores, drawn = over_repeats(*judge(masks, probabilities, test, blocks=blocks, draws=draws, seed=seed))
    named, counted = dict(TITLES), [len(pairs) for pairs in parts.values()]
    for size in counted:
        named |= {f"real_{size}": f"Trained on {size} real", f"colour_{size}": f"Colour only, {size} real"}
        rows[f"colour_{size}"] = {"role": "curve", "images": size, "steps": None, "best_epoch": None}
    compared = {"compared": COMPARED, "guess": "majority"}
    table = pd.DataFrame(
        [
            {"title": named[name], **row, **with_intervals(scores, drawn, name, **compared)}
            for name, row in rows.items()
        ],
        index=pd.Index(list(rows), name="trained_on"),
    )
    table["auc_validation"] = pd.Series(validated)
    curves = {"synthetic": [*parts, "real"], "colour_synthetic": [*(f"colour_{n}" for n in counted), "colour_only"]}
    if parts:
        add_worth(table, scores, drawn, curves, [*counted, len(real)], COMPARED)
    if folder is not None:
        settings = {"network": network, "epochs": epochs, "seed": seed, "encoder": encoder, "draws": draws}
        counts = {name: len(pairs) for name, pairs in {**sets, "validation": validation, "test": test}.items()}
        notes = {**settings, "images": counts, "test_patients": sorted(set(test.patients.tolist()))}
        said = {
            "scores": "within each test patient, then the mean over patients; absent levels and classes are left out",
            "training": "as many steps on each set; early stopping and penalties on the same real validation images",
        }
        write_rows(Path(folder) / "utility.json", table, {**notes, **said, "sight": sight_words(table)})
    return table


def look(sets: Mapping[str, Pairs], encoder: str = ENCODER) -> dict[str, dict[str, np.ndarray]]:
    """Return what is seen of the images of each set: ``encoder``, frozen features, and ``colour``, (n, d) float32.

    The second are statistics of colour, without any shape or texture.
    """
    from histocrypt.encoders.described import colour_features
    from histocrypt.encoders.encoders import encode

    images = {name: np.ascontiguousarray(colours(pairs.images)) for name, pairs in sets.items()}
    return {
        name: {"encoder": encode(pixels, encoder, progress=False), "colour": colour_features(pixels)}
        for name, pixels in images.items()
    }


def label_probabilities(
    sets: Mapping[str, Pairs],
    validation: Pairs,
    test: Pairs,
    *,
    looked: Mapping[str, Mapping[str, np.ndarray]],
    fewer: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return probabilities of the test images' classes, (n, classes), for each training set and baseline.

    And the AUC of each on the validation images, by which a use that would fail on test images is told beforehand.

    They are NaN for a set that has images of one class only: a filter may have left no other. Training sets are told by
    a frozen encoder's features, baselines by colour. ``looked`` is what `look` gives; ``fewer`` names rows of the real
    images, learned from as ``real_<name>`` and ``colour_<name>``.
    """
    classes, real = test.scheme.classes, sets["real"]
    features = {sight: {name: seen[sight] for name, seen in looked.items()} for sight in ("encoder", "colour")}
    for seen in features.values():
        seen["both"] = np.concatenate([seen["real"], seen["synthetic"]])

    validated: dict[tuple[str, str, bool], float] = {}

    def learned(name: str, sight: str = "encoder", rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        own, seen = sets[name].subset(rows), features[sight]
        if len(np.unique(own.labels)) < 2:
            return np.full((len(test), len(classes)), np.nan)
        judged = (seen["validation"], validation.labels, validation.sections)
        fitted = fit_classifier(seen[name][rows], own.labels, own.sections, classes=classes, validation=judged)
        validated[name, sight, isinstance(rows, slice)] = fitted.validated
        return fitted.probabilities(seen["test"], test.sections)

    found = {name: learned(name) for name in sets}
    found |= {name: learned(BASELINES[name], "colour") for name in ("colour_only", "colour_synthetic")}
    for name, rows in (fewer or {}).items():
        found |= {f"real_{name}": learned("real", rows=rows), f"colour_{name}": learned("real", "colour", rows)}
    share = np.array([(real.labels == name).mean() for name in classes])
    found["majority"] = np.tile(share, (len(test), 1))
    sights = {**{name: (name, "encoder") for name in sets}, "colour_only": ("real", "colour")}
    sights["colour_synthetic"] = ("synthetic", "colour")
    return found, {name: validated.get((*sight, True), float("nan")) for name, sight in sights.items()}


def sight_words(table: pd.DataFrame) -> str:
    """Return which sight to tell labels by, learned from drawn tiles, as the validation images have it: one sentence.

    A frozen encoder may read drawn tiles backwards where their colours are right; validation images show it.
    """
    encoder, colour = (float(table.loc[name, "auc_validation"]) for name in ("synthetic", "colour_synthetic"))
    if np.isnan(encoder + colour):
        return "No validation image can say by which sight a label learned from drawn tiles is to be told."
    if max(encoder, colour) <= LEAST_SIGHT:
        what = "teach no label: neither sight is to be used"
    else:
        what = f"are to be read by {'the encoder' if encoder >= colour else 'their colours alone'}"
    return f"On validation images drawn tiles {what} (AUC {encoder:.3f} by the encoder, {colour:.3f} by colours)."


def with_intervals(
    scores: Mapping[str, Mapping[str, float]],
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    name: str,
    *,
    compared: Sequence[str],
    guess: str,
    least: float = 0.0,
) -> dict[str, float | str]:
    """Return a row's scores with intervals, its differences from real (`worth.against`), and what they mean.

    Parameters
    ----------
    compared
        Scores of which differences are taken.
    guess
        The row that guesses.
    least
        Of a score.
    """
    found: dict[str, float | str] = {}
    for score, value in scores[name].items():
        low, high = interval(drawn[name][score], value)
        found |= {score: value, f"{score}_low": max(low, least), f"{score}_high": min(high, 1.0)}
    other = against(name)
    for score in (one for one in compared if one in scores[name]):
        value = scores[name][score] - scores[other][score]
        low, high = interval(drawn[name][score] - drawn[other][score], value)
        found |= {f"{score}_vs_real": value, f"{score}_vs_real_low": low, f"{score}_vs_real_high": high}
        if name not in (REAL, COLOUR_REAL, guess):
            real_low, _ = interval(drawn[other][score], scores[other][score])
            found[f"{score}_verdict"] = verdict(low, high, real_low=real_low, guess=scores[guess][score])
    return found


def add_worth(
    table: pd.DataFrame,
    scores: Mapping[str, Mapping[str, float]],
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    curves: Mapping[str, Sequence[str]],
    sizes: Sequence[int],
    compared: Sequence[str],
) -> None:
    """Say in columns ``<score>_worth`` how many real tiles teach as much as the drawn ones of a row.

    ``curves`` names for each such row those of its curve, of ``sizes`` real tiles each.
    """
    for score in compared:
        table[f"{score}_worth"] = None
        for row, names in curves.items():
            if all(score in scores[name] for name in names):
                curve = np.array([scores[name][score] for name in names])
                each = np.stack([drawn[name][score] for name in names], axis=1), drawn[row][score]
                table.loc[row, f"{score}_worth"] = str(worth(sizes, curve, scores[row][score], draws=each))


def title_of(score: str) -> str:
    """Return how a column of scores is called."""
    if score.startswith("dice_"):
        return f"Dice, {score.removeprefix('dice_')}"
    name, compared, _ = score.partition("_vs_real")
    known = {"mean_dice": "Mean Dice", "balanced_accuracy": "Balanced accuracy", "auc": "AUC"}[name]
    return f"{known}, less real" if compared else known


def write_rows(path: Path, table: pd.DataFrame, notes: Mapping[str, Any]) -> None:
    """Write a table of use with what it rests on as JSON; NaN becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, str) or value is None:
            return value
        return float(value) if np.isfinite(value) else None

    rows = [{"trained_on": name} | {key: plain(value) for key, value in row.items()} for name, row in table.iterrows()]
    said = {"intervals": "95 %, bootstrap within these patients; nothing is said about new ones"}
    write_json(path, {**notes, **said, "rows": rows})


def spatial_blocks(ids: np.ndarray, sections: Mapping[str, AnnData], *, block_um: float) -> np.ndarray:
    """Return the square of tissue in which each image lies, (n,) str.

    Parameters
    ----------
    ids
        (n,) ``<section>:<barcode>``, as `synthesis.tissue_pairs` names them.
    sections
        Cleaned sections by name, with ``obsm["spatial"]`` in pixels and ``uns["preprocessing"]["um_per_px"]``.
    block_um
        Side of a square.
    """
    where: dict[str, str] = {}
    for name, section in sections.items():
        um = float(section.uns["preprocessing"]["um_per_px"])
        labels = squares(np.asarray(section.obsm["spatial"]) * um, block_um)
        where |= {
            f"{name}:{barcode}": f"{name}/{label}" for barcode, label in zip(section.obs_names, labels, strict=True)
        }
    missing = [name for name in ids.tolist() if name not in where]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} images do not belong to a spot of these sections", value=missing[0]
        )
    return np.array([where[name] for name in ids.tolist()])


def _check(real: Pairs, validation: Pairs, synthetic: Pairs, test: Pairs) -> None:
    sides = {"training": real, "validation": validation, "test": test}
    for name, pairs in {**sides, "synthetic": synthetic}.items():
        if not len(pairs) or pairs.scheme != real.scheme or pairs.images.shape[1:] != real.images.shape[1:]:
            raise InputError(
                f"the {name} images are missing, or differ from the real ones in scheme or size",
                value=list(pairs.images.shape),
            )
    for one, other in (("training", "validation"), ("training", "test"), ("validation", "test")):
        shared = sorted(set(sides[one].patients.tolist()) & set(sides[other].patients.tolist()) - {""})
        if shared:
            raise InputError(f"a patient appears on two sides, {one} and {other}", value=shared[0])
