"""What trust from labelled sections is worth on others: a finished run's predictions, section by section.

``python benchmarks/labelled.py outputs/breast_unseen --model fusion_ridge`` treats the predictions of held-out sections
as a stranger's: some sections are labelled (`histocrypt trust`), another shows whether what they said holds. Sections
of different patients are predicted by different fits, each without its own patient. A minute on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np

from histocrypt.evaluation.labelled import trust_from_labelled
from histocrypt.evaluation.metrics import finite_mean, pearson, spearman
from histocrypt.paths import RunFolder
from histocrypt.pipeline.predictions import PredictionFile, join
from histocrypt.trust.conformal import SHARE


def main() -> None:
    """Print a row for each target and what is labelled: a section of its patient, of each other one, of all others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="fusion_ridge")
    given = parser.parse_args()
    run = RunFolder(given.run)
    folds = [fold for fold in json.loads(run.folds.read_text())["folds"] if fold["test_sections"]]
    files = {name: run.prediction(given.model, fold["name"]) for fold in folds for name in fold["test_sections"]}
    tested = [fold["test_sections"] for fold in folds]
    print("| labelled | target | genes | rank agreement | better than chance | the rest | kept, value | kept, within |")
    print("|---|---|---|---|---|---|---|---|")
    for own in tested:
        others = [theirs[0] for theirs in tested if theirs is not own]
        cases = [[own[1]]] if len(own) > 1 else []
        cases += [*([one] for one in others), *([others] if len(others) > 1 else [])]
        for labelled in cases:
            print(row(run, files, labelled, own[0]), flush=True)


def row(run: RunFolder, files: dict[str, Path], labelled: list[str], target: str) -> str:
    """Return one row: what the labelled sections said of the main transform's genes beside what the target shows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trusted.h5ad"
        trust_from_labelled(files[target], [(files[name], str(run.section(name))) for name in labelled], out)
        var = ad.read_h5ad(out).var
    file = PredictionFile(files[target])
    main = str(file.about["transform"])
    pair = join(file.of(target), ad.read_h5ad(run.section(target)), target, transforms=[main])
    true, predicted, var = pair.true[main], pair.predicted[main], var.loc[pair.genes]
    reached, told = pearson(true, predicted), var[f"labelled_pearson:{main}"].to_numpy()
    known = np.isfinite(told) & np.isfinite(reached)
    better = var[f"better_than_chance:{main}"].to_numpy(dtype=bool) & known
    agree = spearman(reached[known][:, None], told[known][:, None])[0]
    errors, kept = true - predicted, []
    for column, off in (("half_width", errors), ("half_width_within", errors - errors.mean(axis=0))):
        width = var[f"{column}:{main}"].to_numpy()
        there = np.isfinite(width)
        kept.append(((np.abs(off) <= width).mean(axis=0) >= SHARE)[there].mean())
    means = finite_mean(reached[better]), finite_mean(reached[known & ~better])
    cells = [
        ", ".join(labelled),
        target,
        str(known.sum()),
        f"{agree:.2f}",
        f"{means[0]:.3f} ({better.sum()})" if better.any() else "none",
    ]
    return f"| {' | '.join([*cells, f'{means[1]:.3f}', *(f'{one:.2f}' for one in kept)])} |"


if __name__ == "__main__":
    main()
