"""What a model that draws samples needs beyond the rest: several processes to train it, and the samples in a file.

```
torchrun --nproc_per_node 2 -m histocrypt.pipeline.stem_samples studies/demo.yaml stem fold_1
```

What the notebook would write is written by the first process; a training that was stopped goes on with any number of
processes. One process per GPU where there are GPUs, else processes on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.folds import FINAL, load_fold
from histocrypt.data.load import load_test, load_training
from histocrypt.errors import InputError
from histocrypt.files import atomic_path
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.train import chosen_elsewhere, fit, train_one
from histocrypt.predictors.registry import MODELS, build, tile_side
from histocrypt.study import load_study
from histocrypt.training import distributed

if TYPE_CHECKING:
    from histocrypt.study import Study


def train_together(study_file: Path, model: str, fold_name: str) -> None:
    """Train one model on one fold, together with the other processes that torchrun started.

    Raises
    ------
    InputError
        If the model cannot be trained by several processes, or `pipeline.train.train_fold` refuses.
    """
    study = load_study(study_file)
    able = [name for name, entry in MODELS.items() if entry.many_processes]
    if model not in able:
        raise InputError(
            "cannot be trained by several processes", field="model", value=model, expected=f"one of {', '.join(able)}"
        )
    with distributed.together() as device:
        data = None
        for turn in range(distributed.count()):  # the first fills the cache of features, the others find it there
            if turn == distributed.number():
                data = load_training(study, load_fold(study.run.folds, fold_name))
                settings, options = study.training_of(model), study.options_of(model)
                fresh = build(model, data.train.outputs, settings=settings, options=options, device=device)
                fresh.warm(data.train, data.validation)
            distributed.wait()
        chosen = chosen_elsewhere(study, model) if fold_name == FINAL else None
        if distributed.number() == 0:
            result = train_one(study, model, data, chosen=chosen, device=device)
            many = f"{distributed.count()} processes with equal weights"
            print(f"{result.folder}: {many}, {result.chosen}, {result.seconds:.0f} s")
        else:  # learns the same, writes nothing: only the first has a folder to go on from, hence reads it for all
            folder = study.run.model(model, fold_name)
            fit(study, model, data, chosen=chosen, device=device, folder=folder)
        distributed.wait()


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

    trained = load_model(study.run.model(model, fold), device=device)
    if not MODELS[model].draws_samples:
        raise InputError(
            f"{model} predicts one value per spot, so no samples can be drawn",
            field="model",
            value=model,
            expected=f"one of {', '.join(name for name, entry in MODELS.items() if entry.draws_samples)}",
        )
    path = study.run.samples(model, fold)
    main = trained.about["transforms"][0]
    said = {
        "model": model,
        "fold": fold,
        "study": study.name,
        "transform": main,
        "seed": str(trained.predictor.seed),
        "weights_sha256": trained.about["weights"]["sha256"],
        "options": repr(sorted(trained.about["options"].items())),
    }
    if _said(path) == said:
        return path
    split = load_fold(study.run.folds, fold)
    side = tile_side(model, study.training_of(model))
    spots = load_test(study, load_training(study, split, side=side), side=side)
    columns = [number for number, name in enumerate(trained.scaling.outputs) if name.startswith(f"{main}:")]
    genes = [trained.scaling.outputs[number].removeprefix(f"{main}:") for number in columns]
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


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="histocrypt.pipeline.stem_samples", description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, help="study file")
    parser.add_argument("model", help="name of a diffusion model, e.g. stem")
    parser.add_argument("fold", help="name of a fold, or final")
    given = parser.parse_args()
    try:
        train_together(given.study, given.model, given.fold)
    except InputError as error:
        print(f"histocrypt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
