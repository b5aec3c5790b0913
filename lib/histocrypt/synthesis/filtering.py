"""Which synthetic images are kept: those that look real and are no copies, as many of one class as of another.

Both limits come from real images of patients that neither the generator nor the autoencoder learnt from. These must be
inner validation patients, not those that anything is tested on later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.synthesis import novelty
from histocrypt.synthesis.pairs import Pairs
from histocrypt.synthesis.realism import Reconstruction

if TYPE_CHECKING:
    import pandas as pd

KEPT, UNREAL, COPY, BOTH, SURPLUS = "kept", "not realistic", "too near", "not realistic and too near", "surplus"


@dataclass(frozen=True)
class Filtered:
    """What came of a filter."""

    kept: Pairs
    table: pd.DataFrame
    """By id: label, error, distance, nearest (id of the training image), verdict."""
    summary: dict[str, Any]
    """Limits, shares rejected by side and class, numbers kept, and notes: sentences on what was short."""


def filter_pairs(
    synthetic: Pairs,
    train: Pairs,
    held_out: Pairs,
    *,
    reconstruction: Reconstruction,
    realism_quantile: float = 0.95,
    novelty_quantile: float = 0.05,
    per_class: int | None = None,
    features: novelty.Features | None = None,
) -> Filtered:
    """Judge every synthetic image on both sides, then keep the same number of each class.

    Among those that pass, the first are kept, in the order they were drawn: choosing the lowest error would choose what
    is nearest to the training images.

    Parameters
    ----------
    synthetic, train, held_out
        Images to judge, those the generator learnt from, and real ones of other patients.
    reconstruction
        Trained on ``train``.
    realism_quantile
        An image is not realistic if its error is above this quantile of the held-out errors, or its distance to
        training above this quantile of theirs: a blank image is easily reconstructed, and like no tissue.
    novelty_quantile
        An image is too near if its distance to training is below this quantile of the held-out distances.
    per_class
        Number to keep of each class; None: as many as the class with the fewest has, of those with any.
    features
        What distances are taken on; the reconstruction's own if not given.

    Raises
    ------
    InputError
        If a set is empty, a patient is on both sides, a quantile is no share, or ``per_class`` is below 1.
    """
    import pandas as pd

    for name, part in (("synthetic", synthetic), ("training", train), ("held-out", held_out)):
        if not len(part):
            raise InputError(f"there is no {name} image to filter with")
    if not 0 < novelty_quantile < realism_quantile < 1:
        found = f"{novelty_quantile} and {realism_quantile}"
        raise InputError("quantiles do not fit", value=found, expected="0 < novelty < realism < 1")
    if per_class is not None and per_class < 1:
        raise InputError("keeps nothing", field="per_class", value=per_class, expected="1 or more")
    novelty.check_apart(train, held_out)
    features = features or reconstruction.features
    known = features(train)
    most = float(np.quantile(reconstruction.error(held_out), realism_quantile))
    unseen = features(held_out)
    least, farthest = (novelty.threshold(known, unseen, quantile=q) for q in (novelty_quantile, realism_quantile))
    error = reconstruction.error(synthetic)
    distance, index = novelty.distances(features(synthetic), known)
    unreal, copied = (error > most) | (distance > farthest), distance < least
    verdict = np.select([unreal & copied, unreal, copied], [BOTH, UNREAL, COPY], KEPT).astype(object)
    wanted = _balance(verdict, synthetic.labels, per_class)
    table = pd.DataFrame(
        {
            "label": synthetic.labels,
            "error": error,
            "distance": distance,
            "nearest": train.ids[index],
            "verdict": verdict,
        },
        index=pd.Index(synthetic.ids, name="id"),
    )
    summary = {
        "n": len(synthetic),
        "most_error": most,
        "least_distance": least,
        "most_distance": farthest,
        "realism_quantile": realism_quantile,
        "novelty_quantile": novelty_quantile,
        "held_out_patients": len(set(held_out.patients.tolist())),
        "not_realistic": float(unreal.mean()),
        "too_near": float(copied.mean()),
        "rejected": float((unreal | copied).mean()),
        "classes": _by_class(synthetic.labels, unreal, copied, verdict),
        "per_class": wanted,
    }
    summary["notes"] = _notes(summary)
    return Filtered(synthetic.subset(verdict == KEPT), table, summary)


def _balance(verdict: np.ndarray, labels: np.ndarray, per_class: int | None) -> int:
    """Mark what passed beyond the number wanted of its class as surplus, in place; return that number."""
    passed = {name: np.flatnonzero((labels == name) & (verdict == KEPT)) for name in np.unique(labels).tolist()}
    wanted = per_class or min((len(rows) for rows in passed.values() if len(rows)), default=0)
    for rows in passed.values():
        verdict[rows[wanted:]] = SURPLUS
    return wanted


def _by_class(labels: np.ndarray, unreal: np.ndarray, copied: np.ndarray, verdict: np.ndarray) -> dict[str, Any]:
    found = {}
    for name in np.unique(labels).tolist():
        own = labels == name
        found[name] = {
            "n": int(own.sum()),
            "not_realistic": float(unreal[own].mean()),
            "too_near": float(copied[own].mean()),
            "rejected": float((unreal | copied)[own].mean()),
            "kept": int((verdict[own] == KEPT).sum()),
        }
    return found


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = []
    for name, row in summary["classes"].items():
        if row["kept"] < summary["per_class"]:
            notes.append(f"class {name} is short: {row['kept']} of {summary['per_class']} wanted passed the filter")
    if not summary["per_class"]:
        notes.append("no synthetic image passed the filter")
    if summary["held_out_patients"] < 2:
        notes.append("both limits rest on a single held-out patient")
    return notes
