"""Networks beside closed forms on the same frozen features: `python benchmarks/same_features.py STUDY`.

Whether HE2Gene's panel head loses to ridge, and Stem to kNN, on patients that nothing saw. The study must have run up
to 22_folds (`histocrypt run STUDY --until 22_folds`). Closed forms are fitted on all training patients of a fold;
networks are stopped by its validation part and fitted again on all (`refit: true`), so that all learn from the same
spots. The main transform is scored: mean Pearson over the panel, within sections, mean of the sections. Differences are
of the same genes, with intervals by drawing genes again (1,000 times, one seed): they say nothing of other patients.

``inside`` is each model fitted on the training part and scored on the validation part: the only column by which to
choose anything. Stem is a thousandth of the published size, as in `studies/breast.yaml`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fusion_steps import measured, within_sections

if TYPE_CHECKING:
    from histocrypt.data.load import Spots
    from histocrypt.study import Study

MIDDLE = "efficientnet_lite0_middle"
FEATURES = f"{MIDDLE}+{MIDDLE}~320"
HE2GENE = {"hidden": 512, "dropout": 0.5, "neighbours": "image"}
STEM = {"augmentations": 0, "components": 32, "width": 32, "blocks": 1, "heads": 2, "samples": 10}
SLOW = {"learning_rate": 3e-4, "epochs": 20}
FAST = {"learning_rate": 1e-2, "weight_decay": 0.0, "ema": 0.99, "epochs": 20, "patience": 5}
OLD_STEM = {"start": "none", "opposite": False}

ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str | None]] = {
    "ridge": ("encoder_ridge", {}, {}, None),
    "kNN": ("knn", {}, {}, None),
    "HE2Gene from nothing": ("he2gene", {**HE2GENE, "start": "none"}, SLOW, "ridge"),
    "HE2Gene (the default)": ("he2gene", HE2GENE, SLOW, "ridge"),
    "Stem from nothing, independent draws": ("stem", {**STEM, **OLD_STEM}, FAST, "kNN"),
    "Stem from nothing, opposite draws": ("stem", {**STEM, "start": "none"}, FAST, "kNN"),
    "Stem from the start, where draws fall": ("stem", {**STEM, "mean": "drawn"}, FAST, "kNN"),
    "Stem (the default)": ("stem", STEM, FAST, "kNN"),
}
"""Title: model, options, training settings, and whom it must not lose to."""


def main() -> int:
    """Fit every row on every fold and print the table."""
    from histocrypt.data.folds import FINAL, load_folds
    from histocrypt.data.load import load_spots, load_training, scaled, scaling_of
    from histocrypt.study import load_study

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--features", default=FEATURES, help="what all of them see (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*ROWS], default=[*ROWS], metavar="ROW", help="of the table")
    given = parser.parse_args()
    study = load_study(given.study)
    found: dict[str, dict[str, np.ndarray]] = {title: {} for title in given.only}
    inside: dict[str, list[float]] = {title: [] for title in given.only}
    for fold in load_folds(study.run.folds):
        if fold.name == FINAL:
            continue
        data, scaling = load_training(study, fold), scaling_of(study, fold)
        parts = [scaled(study, scaling, part) for part in (data.train, data.validation) if part is not None]
        test = load_spots(study, fold, fold.test_sections, panel=measured(study, data), with_targets=True)
        for title in given.only:
            started = time.process_time()
            score, genes = scores(study, title, parts, test, features=given.features)
            found[title][", ".join(fold.test_patients)] = genes
            inside[title] += [] if score is None else [score]
            said = f"{fold.name}: {title} {genes.mean():.3f}, {time.process_time() - started:.0f} CPU s"
            print(said, file=sys.stderr, flush=True)
    show(found, inside)
    return 0


def scores(
    study: Study, title: str, parts: list[Spots], test: Spots, *, features: str
) -> tuple[float | None, np.ndarray]:
    """Return the score on the validation part, and each gene's correlation on the held-out patient."""
    from histocrypt.data.load import joined
    from histocrypt.predictors.registry import MODELS, build

    model, options, changes, _ = ROWS[title]
    name = "backbone" if model == "he2gene" else "encoder"
    settings = study.training_of(model).model_copy(update=changes)

    def new() -> Any:
        return build(model, parts[0].outputs, settings=settings, options={**options, name: features}, device="cpu")

    score, chosen = None, None
    if len(parts) == 2:
        first = new()
        chosen = first.fit(*parts, seed=study.seed)
        score = float(correlations(study, first.predict(parts[1]), parts[1], parts[1]).mean())
    last = new()
    again = chosen if MODELS[model].kind == "network" else None
    last.fit(joined(*parts) if len(parts) == 2 else parts[0], None, seed=study.seed, chosen=again)
    return score, correlations(study, last.predict(test), parts[0], test)


def correlations(study: Study, predicted: np.ndarray, learnt: Spots, spots: Spots) -> np.ndarray:
    """Return each gene's correlation of the main transform, within sections."""
    at = [learnt.outputs.index(name) for name in spots.outputs]  # a held-out section need not measure all
    genes = within_sections(predicted[:, at], spots.targets, spots.sections)
    main = f"{study.target.transforms[0]}:"
    return genes[[j for j, name in enumerate(spots.outputs) if name.startswith(main)]]


def show(found: dict[str, dict[str, np.ndarray]], inside: dict[str, list[float]]) -> None:
    """Print scores by patient, and differences to the rival with intervals."""
    rng = np.random.default_rng(0)
    patients = list(next(iter(found.values())))
    print(f"| | inside | {' | '.join(patients)} | mean of patients |\n|---" + "|---" * (len(patients) + 2) + "|")
    for title, genes in found.items():
        own = "-" if not inside[title] else f"{np.mean(inside[title]):.3f}"
        row = [f"{genes[patient].mean():.3f}" for patient in patients]
        print(f"| {title} | {own} | {' | '.join(row)} | {np.mean([genes[one].mean() for one in patients]):.3f} |")
        rival = ROWS[title][3]
        if rival not in found:
            continue
        gaps = [genes[patient] - found[rival][patient] for patient in patients]
        drawn = np.array([[rng.choice(gap, len(gap)).mean() for gap in gaps] for _ in range(1000)])
        each = [*zip([gap.mean() for gap in gaps], drawn.T, strict=True)]
        each.append((float(np.mean([gap.mean() for gap in gaps])), drawn.mean(axis=1)))
        cells = [f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in
                 ((mean, *np.quantile(again, (0.025, 0.975))) for mean, again in each)]  # fmt: skip
        print(f"| less {rival} | | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
