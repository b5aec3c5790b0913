"""One diffusion model trained by several processes, with the study's own settings.

```
torchrun --nproc_per_node 2 -m histocrypt.training.diffusion_ranks studies/demo.yaml stem fold_1
```

What the notebook would write is written by the first process; a training that was stopped goes on with any number of
processes. One process per GPU where there are GPUs, else processes on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from histocrypt.errors import InputError
from histocrypt.models.registry import MODELS
from histocrypt.study import load_study
from histocrypt.training import ranks


def train_together(study_file: Path, model: str, fold_name: str) -> None:
    """Train one model on one fold, together with the other processes that torchrun started.

    Raises
    ------
    InputError
        If the model cannot be trained by several processes, or `training.run.train_fold` refuses.
    """
    from histocrypt.training import run
    from histocrypt.training.fold_data import load_training
    from histocrypt.training.folds import FINAL, load_fold

    study = load_study(study_file)
    predictor = MODELS[model].predictor if model in MODELS else ""
    if not predictor.startswith("histocrypt.training.diffusion_predictor"):
        msg = "is not trained by several processes"
        raise InputError(msg, field="model", value=model, expected="a diffusion model: stem")
    with ranks.together() as device:
        data = None
        for turn in range(ranks.count()):  # the first fills the cache of features, the others find it there
            if turn == ranks.number():
                data = load_training(study, load_fold(study.run.folds, fold_name))
                plan = study.options_of(model)
                _warm(data, plan)
            ranks.wait()
        chosen = run.chosen_elsewhere(study, model) if fold_name == FINAL else None
        if ranks.number() == 0:
            result = run.train_one(study, model, data, chosen=chosen, device=device)
            many = f"{ranks.count()} processes with equal weights"
            print(f"{result.folder}: {many}, {result.chosen}, {result.seconds:.0f} s")
        else:  # learns the same, writes nothing: only the first has a folder to go on from, hence reads it for all
            folder = study.run.model(model, fold_name)
            run.fit(study, model, data, chosen=chosen, device=device, folder=folder)
        ranks.wait()


def _warm(data: object, options: dict) -> None:
    from histocrypt.training.diffusion_plan import DiffusionPlan

    plan = DiffusionPlan.of(options)
    data.train.features(f"{plan.encoder}@{plan.augmentations + 1}")
    if data.validation is not None:
        data.validation.features(f"{plan.encoder}@{plan.augmentations + 1}")


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="histocrypt.training.diffusion_ranks", description=__doc__.split("\n")[0])
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
