"""The samples behind a prediction, on request: a file of their own, with the names of spots and genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.atomic import atomic_path
from histocrypt.errors import InputError
from histocrypt.training.artifacts import load_model
from histocrypt.training.folds import load_fold
from histocrypt.training.predictors import tile_side

if TYPE_CHECKING:
    from histocrypt.study import Study


def write_samples(study: Study, model: str, fold: str, *, device: str | None = None) -> Path:
    """Draw the samples of a fold's test spots and write them; samples of the same weights and options stay.

    Equal seeds draw equal samples: the mean over them is the prediction that was written when the model was trained.

    Returns
    -------
    Path
        ``predictions/<model>/<fold>.samples.h5``: ``samples`` (n, K, g) float32 in the units of the main transform,
        ``spots`` (n,), ``genes`` (g,), and attributes that say what they are of.

    Raises
    ------
    InputError
        If the model is not trained, or does not draw samples.
    """
    import h5py

    from histocrypt.training.fold_data import load_test, load_training

    trained = load_model(study.run.model(model, fold), device=device)
    if not hasattr(trained.predictor, "samples"):
        msg = f"{model} predicts one value, and no samples of it can be drawn"
        raise InputError(msg, field="model", value=model, expected="a diffusion model: stem")
    path = study.run.samples(model, fold)
    main = trained.about["transforms"][0]
    said = {
        "model": model, "fold": fold, "study": study.name, "transform": main, "seed": str(trained.predictor.seed),
        "weights_sha256": trained.about["weights"]["sha256"], "options": repr(sorted(trained.about["options"].items())),
    }  # fmt: skip
    if _said(path) == said:
        return path
    split = load_fold(study.run.folds, fold)
    side = tile_side(model, study.training_of(model))
    spots = load_test(study, load_training(study, split, side=side), side=side)
    genes = list(trained.predictor.genes)
    columns = [trained.scaling.outputs.index(f"{main}:{gene}") for gene in genes]
    drawn = trained.predictor.samples(spots) * trained.scaling.sd[columns] + trained.scaling.mean[columns]
    text = h5py.string_dtype()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("samples", data=drawn.astype(np.float32), compression="gzip", chunks=True)
        file.create_dataset("spots", data=spots.names.tolist(), dtype=text)
        file.create_dataset("genes", data=genes, dtype=text)
        file.attrs.update(said)
    return path


def _said(path: Path) -> dict[str, str] | None:
    import h5py

    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            return {key: str(value) for key, value in file.attrs.items()}
    except OSError:
        return None  # a damaged file is written again
