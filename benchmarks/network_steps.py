"""Print what stain changes, a teacher and several seeds buy a network: `python benchmarks/network_steps.py STUDY`.

`--model fhe_cnn --input-px 64 --epochs 24 --seeds 3` takes ten minutes, ResNet-18 as by default half an hour.
The study must have trained `fusion_ridge` on its folds (`histocrypt run STUDY`). Every step is trained with every seed
on a fold's training patients, stopped by its validation patient and, unchanged, scored on the one held out: mean
Pearson of the main transform over the panel, within sections, mean of the sections. A step stands three times: one
network (the mean of the seeds' scores), the mean of their predictions (`seeds` of a study), and that smoothed over 320
um (`smooth_um`). With `--refit` who is held out is predicted by networks that learnt from the validation patient, too.
What is chosen is chosen by the validation columns; the held-out ones only say whether that was right. A fold's teacher
learnt from the validation patient, so where its fitted values teach the validation scores are too good; where what it
says of spots held out teaches, they are not.

The interval is of the mean over patients, by drawing genes again (1,000 times, one seed): it says nothing of other
patients.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from fusion_steps import measured, within_sections

from histocrypt.data.folds import FINAL, load_folds
from histocrypt.data.load import load_spots, load_training, scaling_of
from histocrypt.errors import InputError
from histocrypt.pipeline.train import fit
from histocrypt.predictors.network import smoothed
from histocrypt.predictors.registry import MODELS, tile_side
from histocrypt.study import Study, load_study

TEACHER = "fusion_ridge"
STEPS: dict[str, dict[str, Any]] = {
    "no change of stain": {"augment_stain": 0.0},
    "stain by 0.1 (the default)": {},
    "stain by 0.3": {"augment_stain": 0.3},
    "stain by 0.1, contrast by 0.3": {"augment_contrast": 0.3},
    "taught by the ridge's fitted values": {"teacher": TEACHER, "distil": 0.9},
    "taught by its values held out": {"teacher": TEACHER, "distil": 0.9, "distil_held_out": True},
}
SMOOTH_UM = 320
OPTIONS = {"resnet18": {"average_pool": True}, "vision_mlp": {"width": 0.25}}

Genes = dict[str, np.ndarray]
"""By fold, each gene's correlation."""


def scored(study: Study, model: str, own: dict[str, Any], seeds: range) -> dict[str, tuple[Genes, Genes]]:
    """Return correlations of validation and of held-out patients: of one network, of the mean of all, and smoothed."""
    study = study.model_copy(update={"models": {**study.models, model: own}})
    ways = ("one network", f"mean of {len(seeds)}", f"mean of {len(seeds)}, smoothed")
    found: dict[str, tuple[Genes, Genes]] = {way: ({}, {}) for way in ways}
    side = tile_side(model, study.training_of(model))
    for fold in load_folds(study.run.folds):
        if fold.name == FINAL:
            continue
        data = load_training(study, fold, side=side)
        test = load_spots(study, fold, fold.test_sections, panel=measured(study, data), with_targets=True, side=side)
        at = [data.train.outputs.index(name) for name in test.outputs]  # a held-out section need not measure all
        said: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for seed in seeds:
            predictor, _, validated = fit(study, model, data, seed=seed)
            said[0].append(validated)
            said[1].append(scaling_of(study, fold).restore(predictor.predict(test))[:, at])
        for side_of, spots, every in zip((0, 1), (data.validation, test), said, strict=True):
            main = [j for j, name in enumerate(spots.outputs) if name.startswith(f"{study.target.transforms[0]}:")]
            mean = np.mean(every, axis=0)
            for way, some in zip(ways, (every, [mean], [smoothed(mean, spots, SMOOTH_UM)]), strict=True):
                genes = [within_sections(x[:, main], spots.targets[:, main], spots.sections) for x in some]
                found[way][side_of][fold.name] = np.mean(genes, axis=0)
    return found


def cells(genes: Genes) -> str:
    """Return a score for each patient, and their mean with its interval."""
    rng = np.random.default_rng(0)
    again = [np.mean([rng.choice(own, len(own)).mean() for own in genes.values()]) for _ in range(1000)]
    low, high = np.quantile(again, (0.025, 0.975))
    each = [float(own.mean()) for own in genes.values()]
    return f"{' / '.join(f'{one:.3f}' for one in each)} | {np.mean(each):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Train every step on every fold with every seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    plain = [name for name, entry in MODELS.items() if entry.kind == "network" and name not in ("he2gene", "stem")]
    parser.add_argument("--model", default="resnet18", choices=plain)
    parser.add_argument("--input-px", type=int, default=32, help="side of its tiles; default: 32, an hour's work")
    parser.add_argument("--epochs", type=int, default=12, help="at most; patience is a third of them")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--refit", action="store_true", help="learn from the validation patient, too, once chosen")
    asked = parser.parse_args()
    own = {"input_px": asked.input_px, "epochs": asked.epochs, "patience": max(1, asked.epochs // 3)}
    own |= {"refit": True} if asked.refit else {}
    own |= OPTIONS.get(asked.model, {})
    rows = []
    for title, step in STEPS.items():
        started = time.process_time()
        try:
            found = scored(load_study(asked.study), asked.model, {**own, **step}, range(asked.seeds))
        except InputError as error:
            sys.exit(f"network_steps: {error}")
        spent = time.process_time() - started
        for how, (validated, held_out) in found.items():
            seconds = spent / asked.seeds if how == "one network" else spent
            rows.append(f"| {title} | {how} | {cells(validated)} | {cells(held_out)} | {seconds:.0f} |")
        print(f"{title}: done", file=sys.stderr)
    print(f"\n{asked.model}, {own}\n")
    print("| step | | validation, by fold | mean | held out, by fold | mean | CPU s |\n|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
