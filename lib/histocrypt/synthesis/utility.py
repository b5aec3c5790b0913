"""What synthetic images are good for: train on real, on synthetic, on both; test on the same real images.

Three sets, one procedure. A segmentation network may make the same number of steps on each (it stops early where it no
longer improves); a classifier of labels stands on the same frozen features. Early stopping and penalties look at the
same *real* validation images in all three rows, which are of patients of the training side: "trained on synthetic"
means that no real image changed a weight, not that none was looked at.

How rows are scored and what their intervals say: `synthesis.utility_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import write_json
from histocrypt.errors import InputError
from histocrypt.evaluation.bootstrap import block_labels, interval
from histocrypt.synthesis import label_baselines as plain
from histocrypt.synthesis.utility_scores import judge

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData

    from histocrypt.synthesis.pairs import Pairs
    from histocrypt.synthesis.segmentation import SegmenterPlan

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
"""Scores that are also given as differences from the row ``real``, on the same draws."""


def utility_table(
    real: Pairs,
    validation: Pairs,
    synthetic: Pairs,
    test: Pairs,
    *,
    epochs: int,
    seed: int,
    network: str = "unet",
    plan: SegmenterPlan | None = None,
    weights: Path | None = None,
    encoder: str = ENCODER,
    blocks: np.ndarray | None = None,
    draws: int = 500,
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
    network, plan, weights
        As in `segmentation.train_segmenter`.
    encoder
        Frozen encoder below the classifier of labels.
    blocks
        (n_test,) names of test images that are drawn together, see `spatial_blocks`; None: image by image.
    draws
        Of the bootstrap.
    folder
        Where ``utility.json`` and the networks (``segmenter_real``, ``segmenter_synthetic``, ``segmenter_both``) are
        written; None writes nothing.

    Returns
    -------
    DataFrame
        Index: the names in `TITLES`. Columns ``title``, ``role``, ``images``, ``steps``; then each score with ``_low``
        and ``_high``: ``dice_<level>``, ``mean_dice``, ``balanced_accuracy``, ``auc``; then ``<score>_vs_real`` with
        its interval for `COMPARED`. NaN where a score cannot be had.

    Raises
    ------
    InputError
        If a patient is on two sides, schemes differ, or a set has nothing to learn from.
    """
    import pandas as pd

    from histocrypt.synthesis.segmentation import SegmenterPlan, train_segmenter
    from histocrypt.synthesis.segmentation_loop import steps_an_epoch

    _check(real, validation, synthetic, test)
    sets = {"real": real, "synthetic": synthetic, "both": type(real).join([real, synthetic])}
    plan = plan or SegmenterPlan()
    n_masks = int(real.has_mask.sum())
    plan = SegmenterPlan(**{**vars(plan), "steps": steps_an_epoch(plan, n_masks)})
    masks, rows = {}, {}
    for name, pairs in sets.items():
        segmenter = train_segmenter(
            pairs, validation, network=network, epochs=epochs, seed=seed, plan=plan, weights=weights, device=device,
            folder=None if folder is None else Path(folder) / f"segmenter_{name}",
        )  # fmt: skip
        masks[name] = segmenter.predict(test)
        about = segmenter.about
        rows[name] = {
            "role": "model", "images": len(pairs), "steps": about["steps"], "best_epoch": about["best_epoch"],
        }  # fmt: skip
    for name, learned in BASELINES.items():
        pairs = sets[learned]
        coloured = name != "majority" and pairs.has_mask.any()
        masks[name] = plain.colour_mask(pairs, test, seed=seed) if coloured else plain.majority_mask(real, test)
        rows[name] = {"role": "baseline", "images": len(pairs), "steps": None, "best_epoch": None}
    probabilities = label_probabilities(sets, validation, test, encoder=encoder)
    scores, drawn = judge(masks, probabilities, test, blocks=blocks, draws=draws, seed=seed)
    table = pd.DataFrame(
        [{"title": TITLES[name], **rows[name], **_with_intervals(scores, drawn, name)} for name in masks],
        index=pd.Index(list(masks), name="trained_on"),
    )
    if folder is not None:
        settings = {"network": network, "epochs": epochs, "seed": seed, "encoder": encoder, "draws": draws}
        counts = {name: len(pairs) for name, pairs in {**sets, "validation": validation, "test": test}.items()}
        notes = {**settings, "images": counts, "test_patients": sorted(set(test.patients.tolist()))}
        write_utility(Path(folder) / "utility.json", table, notes)
    return table


def label_probabilities(
    sets: Mapping[str, Pairs], validation: Pairs, test: Pairs, *, encoder: str = ENCODER
) -> dict[str, np.ndarray]:
    """Return probabilities of the test images' classes, (n, classes), for each training set and baseline.

    They are NaN for a set that has images of one class only: a filter may have left no other.
    """
    classes = test.scheme.classes
    looked_at = {"real": sets["real"], "synthetic": sets["synthetic"], "validation": validation, "test": test}
    encoded = {name: plain.encoder_features(pairs, encoder) for name, pairs in looked_at.items()}
    encoded["both"] = np.concatenate([encoded["real"], encoded["synthetic"]])
    coloured = {name: plain.colour_statistics(pairs) for name, pairs in looked_at.items()}

    def learned(name: str, features: Mapping[str, np.ndarray]) -> np.ndarray:
        labels = sets[name].labels
        if len(np.unique(labels)) < 2:
            return np.full((len(test), len(classes)), np.nan)
        judged = (features["validation"], validation.labels)
        fitted = plain.fit_classifier(features[name], labels, classes=classes, validation=judged)
        return fitted.probabilities(features["test"])

    found = {name: learned(name, encoded) for name in sets}
    found |= {name: learned(BASELINES[name], coloured) for name in ("colour_only", "colour_synthetic")}
    share = np.array([(sets["real"].labels == name).mean() for name in classes])
    found["majority"] = np.tile(share, (len(test), 1))
    return found


def _with_intervals(
    scores: Mapping[str, Mapping[str, float]], drawn: Mapping[str, Mapping[str, np.ndarray]], name: str
) -> dict[str, float]:
    found: dict[str, float] = {}
    for score, value in scores[name].items():
        low, high = interval(drawn[name][score], value)
        found |= {score: value, f"{score}_low": max(low, 0.0), f"{score}_high": min(high, 1.0)}
    for score in COMPARED:
        value = scores[name][score] - scores["real"][score]
        low, high = interval(drawn[name][score] - drawn["real"][score], value)
        found |= {f"{score}_vs_real": value, f"{score}_vs_real_low": low, f"{score}_vs_real_high": high}
    return found


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as it is read: a row each, scores with their intervals as text."""
    import pandas as pd

    names = [name for name in table.columns if f"{name}_low" in table.columns]

    def text(row: pd.Series, name: str) -> str:
        value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        if not np.isfinite(value):
            return "not defined"
        sign = "+" if name.endswith("_vs_real") else ""
        return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"

    found = pd.DataFrame({"row": table["title"], "images": table["images"]})
    for name in names:
        found[title_of(name)] = [text(row, name) for _, row in table.iterrows()]
    return found.set_index("row")


def title_of(score: str) -> str:
    """Return how a column of scores is called."""
    if score.startswith("dice_"):
        return f"Dice, {score.removeprefix('dice_')}"
    name, compared, _ = score.partition("_vs_real")
    known = {"mean_dice": "Mean Dice", "balanced_accuracy": "Balanced accuracy", "auc": "AUC"}[name]
    return f"{known}, less real" if compared else known


def write_utility(path: Path, table: pd.DataFrame, notes: Mapping[str, Any]) -> None:
    """Write the table with what it rests on as JSON; NaN becomes null."""
    rows = [
        {"trained_on": name, **{key: _plain(value) for key, value in row.items()}} for name, row in table.iterrows()
    ]
    said = {
        "scores": "within each test patient, then the mean over patients; levels and classes that are absent left out",
        "intervals": "95 %, bootstrap within these patients; nothing is said about new ones",
        "training": "as many steps on each set; early stopping and penalties on the same real validation images",
    }
    write_json(path, {**notes, **said, "rows": rows})


def read_utility(path: str | Path) -> pd.DataFrame:
    """Return the table of ``utility.json``, as `utility_table` did."""
    import pandas as pd

    from histocrypt.atomic import read_json

    content = read_json(path)
    if not isinstance(content, dict) or "rows" not in content:
        msg = "is no table of usefulness"
        raise InputError(msg, file=path, fix="run 60_synthetic_data again")
    table = pd.DataFrame(content["rows"]).set_index("trained_on")
    numbers = [name for name in table.columns if name not in ("title", "role")]
    return table.astype(dict.fromkeys(numbers, float))


def _plain(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    return float(value) if np.isfinite(value) else None


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
        labels = block_labels(np.asarray(section.obsm["spatial"]) * um, block_um)
        where |= {
            f"{name}:{barcode}": f"{name}/{label}" for barcode, label in zip(section.obs_names, labels, strict=True)
        }
    missing = [name for name in ids.tolist() if name not in where]
    if missing:
        msg = f"{len(missing)} of {len(ids)} images are of no spot of these sections"
        raise InputError(msg, value=missing[0])
    return np.array([where[name] for name in ids.tolist()])


def _check(real: Pairs, validation: Pairs, synthetic: Pairs, test: Pairs) -> None:
    sides = {"training": real, "validation": validation, "test": test}
    for name, pairs in {**sides, "synthetic": synthetic}.items():
        if not len(pairs) or pairs.scheme != real.scheme or pairs.images.shape[1:] != real.images.shape[1:]:
            msg = f"the {name} images are none, or differ from the real ones in scheme or size"
            raise InputError(msg, value=list(pairs.images.shape))
    for one, other in (("training", "validation"), ("training", "test"), ("validation", "test")):
        shared = sorted(set(sides[one].patients.tolist()) & set(sides[other].patients.tolist()) - {""})
        if shared:
            msg = f"a patient is on two sides, {one} and {other}"
            raise InputError(msg, value=shared[0])
