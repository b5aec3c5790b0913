"""What each weapon against colour and stain shift buys: a table of test correlations with and without it.

    python benchmarks/ablation.py studies/breast.yaml [--model vision_mlp] [--epochs 8]

Run the study up to 20_preprocessing first: its sections, tiles and folds are used as they are, and nothing is written
into its run folder. Every combination is trained on every fold; figures are Pearson's r per gene on the fold's test
patients, within each section, averaged over the genes of the main transform, then over all test sections.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.data.folds import FINAL, Fold, load_folds
from histocrypt.data.load import Spots, load_test, load_training, scaling_of
from histocrypt.errors import InputError
from histocrypt.pipeline.train import fit
from histocrypt.predictors.registry import MODELS, tile_side
from histocrypt.study import Study, load_study
from histocrypt.targets.transforms import transform
from histocrypt.training.loop import mean_section_pearson

RIDGES = ("colour_ridge", "encoder_ridge")
STAINS = ("none", "macenko")


def with_stain(study: Study, stain: str) -> Study:
    return study.model_copy(update={"preprocessing": study.preprocessing.model_copy(update={"stain": stain})})


def measured(study: Study, section: str, test: Spots) -> tuple[list[int], np.ndarray]:
    """Return the columns of the outputs that a test section measures (main transform), and their measured values."""
    main = study.target.transforms[0]
    cleaned = read_clean_section(study.run.section(section))
    barcodes = [name.removeprefix(f"{section}:") for name in test.names[test.sections == section]]
    columns = {name.removeprefix(f"{main}:"): i for i, name in enumerate(test.outputs) if name.startswith(f"{main}:")}
    genes = [gene for gene in columns if gene in cleaned.var_names]
    spots = cleaned[barcodes]
    values = transform(spots[:, genes].X, spots.obs["total_counts"].to_numpy(), main)
    return [columns[gene] for gene in genes], values


def score_fold(
    study: Study, model: str, fold: Fold, variants: list[dict[str, object]]
) -> tuple[list[list[float]], list[float]]:
    """Return, for each variant of the training settings, one correlation per test section, and seconds."""
    side = tile_side(model, study.training_of(model))
    data = load_training(study, fold, side=side)
    test = load_test(study, data, side=side)
    truths = {section: measured(study, section, test) for section in fold.test_sections}
    scores, seconds = [], []
    for variant in variants:
        started = time.monotonic()
        settings = study.training_of(model).model_copy(update=variant)
        predictor, _, _ = fit(study, model, data, settings=settings)
        predicted = scaling_of(study, fold).restore(predictor.predict(test))
        scores.append(
            [
                mean_section_pearson(
                    predicted[test.sections == section][:, columns], truth, np.full(len(truth), section)
                )
                for section, (columns, truth) in truths.items()
            ]
        )
        seconds.append(time.monotonic() - started)
    return scores, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--model", default="vision_mlp", choices=[n for n, e in MODELS.items() if e.kind == "network"])
    parser.add_argument("--epochs", type=int, help="train networks for at most this many; default: as in the study")
    arguments = parser.parse_args()
    try:
        study = load_study(arguments.study)
        folds = [fold for fold in load_folds(study.run.folds) if fold.name != FINAL]
    except InputError as error:
        sys.exit(f"ablation: {error}")
    capped = {"epochs": arguments.epochs} if arguments.epochs else {}
    strength = study.training_of(arguments.model).augment_stain or 0.1

    plans = []
    for stain, model in product(STAINS, (*RIDGES, arguments.model)):
        augmentations = (0.0, strength) if MODELS[model].kind == "network" else (0.0,)
        variants = [
            {"augment_stain": augment, "normalise_by_section": by_section, **capped}
            for augment, by_section in product(augmentations, (False, True))
        ]
        plans.append((stain, model, variants))

    lines = []
    bar = tqdm(total=len(plans) * len(folds), desc="ablation", unit="fold")
    for stain, model, variants in plans:
        found: list[list[float]] = [[] for _ in variants]
        spent = [0.0] * len(variants)
        for fold in folds:
            scores, seconds = score_fold(with_stain(study, stain), model, fold, variants)
            for i in range(len(variants)):
                found[i] += scores[i]
                spent[i] += seconds[i]
            bar.update()
        for variant, values, seconds in zip(variants, found, spent, strict=True):
            augment = f"{variant['augment_stain']:g}" if MODELS[model].kind == "network" else "-"
            by_section = "yes" if variant["normalise_by_section"] else "no"
            spread = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            lines.append(f"| {MODELS[model].title} | {stain} | {augment} | {by_section} | {spread} | {seconds:.0f} |")
    bar.close()

    tested = sum(len(fold.test_sections) for fold in folds)
    cap = f", networks for {arguments.epochs} epochs at most" if capped else ""
    print(f"\n{study.name}: {len(folds)} folds, {tested} test sections, {study.target.transforms[0]}{cap}\n")
    print("| model | stain normalisation | stain augmentation | per-section normalisation | r (sections) | s |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
