"""Print what each step of `fusion_ridge` buys on patients that nothing saw: `python benchmarks/fusion_steps.py STUDY`.

The study must have run up to 22_folds (`histocrypt run STUDY --until 22_folds`). Every variant is fitted on all
training patients of a fold and scored on the one held out: mean Pearson over the panel, within sections, mean of the
sections. Baselines stand beside it. The interval is of the mean over patients, by drawing genes again (1,000 times, one
seed): it says nothing of other patients. Nothing is chosen by what is printed; who does so reports another number than
a new patient's.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histocrypt.data.load import FoldData
    from histocrypt.study import Study
    from histocrypt.targets.panels import Panel

MIDDLE = "efficientnet_lite0_middle"
VARIANTS: dict[str, tuple[str, dict]] = {
    "colour-only ridge": ("colour_ridge", {}),
    "encoder ridge, last layer": ("encoder_ridge", {}),
    "encoder ridge, middle layers": ("encoder_ridge", {"encoder": MIDDLE}),
    "the same, with context": ("encoder_ridge", {"encoder": f"{MIDDLE}+{MIDDLE}~320"}),
    "low rank: colour": ("fusion_ridge", {"families": ("colour",)}),
    "low rank: last layer": ("fusion_ridge", {"families": ("efficientnet_lite0",)}),
    "low rank: morphology": ("fusion_ridge", {"families": ("morphology",)}),
    "low rank: middle layers": ("fusion_ridge", {"families": (MIDDLE,)}),
    "morphology and middle layers": ("fusion_ridge", {"families": ("morphology", MIDDLE)}),
    "all three, no context": ("fusion_ridge", {"context_um": 0}),
    "all three (the default)": ("fusion_ridge", {}),
    "all three, chosen on training patients": ("fusion_ridge", {"choose": True}),
}


def main() -> int:
    """Fit every variant on every fold and print a table for each transform."""
    from histocrypt.data.folds import FINAL, load_folds
    from histocrypt.data.load import joined, load_spots, load_training, scaled, scaling_of
    from histocrypt.predictors.registry import build
    from histocrypt.study import load_study

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    study = load_study(parser.parse_args().study)
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    patients = []
    for fold in load_folds(study.run.folds):
        if fold.name == FINAL:
            continue
        data, scaling = load_training(study, fold), scaling_of(study, fold)
        parts = [scaled(study, scaling, part) for part in (data.train, data.validation) if part is not None]
        train = parts[0] if len(parts) == 1 else joined(*parts)
        shared = measured(study, data)
        test = load_spots(study, fold, fold.test_sections, panel=shared, with_targets=True)
        patients.append(", ".join(fold.test_patients))
        for title, (model, options) in VARIANTS.items():
            predictor = build(model, train.outputs, settings=study.training_of(model), options=options)
            predictor.fit(train)
            at = [train.outputs.index(name) for name in test.outputs]  # a held-out section need not measure all
            genes = within_sections(predictor.predict(test)[:, at], test.targets, test.sections)
            for transform in study.target.transforms:
                own = [j for j, name in enumerate(test.outputs) if name.startswith(f"{transform}:")]
                found.setdefault((transform, title), {})[patients[-1]] = genes[own]
        print(f"{fold.name}: done", file=sys.stderr)
    rng = np.random.default_rng(0)
    for transform in study.target.transforms:
        print(
            f"\n{transform}\n\n| | {' | '.join(patients)} | mean of patients |\n|---"
            + "|---" * (len(patients) + 1)
            + "|"
        )
        for title in VARIANTS:
            genes = found[transform, title]
            again = [np.mean([rng.choice(own, len(own)).mean() for own in genes.values()]) for _ in range(1000)]
            low, high = np.quantile(again, (0.025, 0.975))
            cells = [f"{own.mean():.3f}" for own in genes.values()]
            middle = np.mean([own.mean() for own in genes.values()])
            print(f"| {title} | {' | '.join(cells)} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
    return 0


def measured(study: Study, data: FoldData) -> Panel:
    """Return what of a fold's panel all its held-out sections measure."""
    from histocrypt.data.fold_statistics import read_clean_section
    from histocrypt.targets.matrix import columns_of

    panel, kept = data.panel, np.ones(len(data.panel), dtype=bool)
    for section in data.fold.test_sections:
        adata = read_clean_section(study.run.section(section), parts=["obs", "var"])
        kept &= columns_of(adata, panel.genes, panel.symbols, section=section) >= 0
    genes, symbols = (tuple(np.array(names)[kept].tolist()) for names in (panel.genes, panel.symbols))
    return replace(panel, genes=genes, symbols=symbols, scores=())


def within_sections(predicted: np.ndarray, truth: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Return each output's correlation within sections, mean over sections; 0 where a side is constant."""
    each = []
    for section in np.unique(sections):
        a, b = (np.asarray(x[sections == section], dtype=float) for x in (predicted, truth))
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
        each.append(np.divide((a * b).sum(axis=0), size, out=np.zeros(size.shape), where=size > 1e-12))
    return np.mean(each, axis=0)


if __name__ == "__main__":
    sys.exit(main())
