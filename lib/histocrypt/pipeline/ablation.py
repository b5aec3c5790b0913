"""The multi-task model with and without its spatial term, trained alike in all else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.folds import load_fold
from histocrypt.data.load import load_test, load_training, scaling_of
from histocrypt.pipeline.predictions import write_predictions
from histocrypt.pipeline.train import coords_of, fit
from histocrypt.predictors.registry import checked_options, tile_side

if TYPE_CHECKING:
    from histocrypt.study import Study

MODEL = "he2gene"
"""The model that has a spatial term."""


def fold_with_labels(study: Study, folds: list[str]) -> str:
    """Return the first fold whose training sections have a label; the first one where none has."""
    label = checked_options(MODEL, study.options_of(MODEL)).where()
    for name in folds if label is not None else []:
        fold = load_fold(study.run.folds, name)
        data = load_training(study, fold, side=tile_side(MODEL, study.training_of(MODEL)))
        if np.isfinite(data.train.measured.labels(label)).any():
            return name
    return folds[0]


def ablate(
    study: Study, fold: str, weights: dict[str, float], folder: Path, *, epochs: int, device: str | None = None
) -> dict[str, Path]:
    """Train the model on a fold once for each weight of the spatial term and predict who is held out.

    Parameters
    ----------
    study
        A study with the model, after `data.fold_statistics.prepare_folds`.
    fold
        Which fold.
    weights
        Name -> weight of the spatial term.
    folder
        Where predictions go, ``ablation_<name>.h5ad``.
    epochs
        Epochs of every training, at most; fewer where the validation score stops rising.
    device
        Torch device; the best one if not given.

    Returns
    -------
    name -> prediction file
    """
    split = load_fold(study.run.folds, fold)
    side = tile_side(MODEL, study.training_of(MODEL))
    data = load_training(study, split, side=side)
    test, scaling = load_test(study, data, side=side), scaling_of(study, split)
    written = {}
    for name, weight in weights.items():
        options = {**study.models[MODEL], "spatial_weight": weight, "epochs": epochs}
        changed = study.model_copy(update={"models": {**study.models, MODEL: options}})
        predictor, _, _ = fit(changed, MODEL, data, device=device)
        written[name] = folder / f"ablation_{name}.h5ad"
        write_predictions(
            written[name],
            scaling.restore(predictor.predict(test)),
            spots=test,
            coords=coords_of(study, test),
            panel=data.panel,
            transforms=list(study.target.transforms),
            about={"model": MODEL, "fold": fold, "part": "test", "spatial_weight": weight},
        )
    return written
