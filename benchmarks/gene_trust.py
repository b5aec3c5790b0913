"""Whether genes that training trusts deserve it: the test, the interval and the promise, held against patients unseen.

    python benchmarks/gene_trust.py RUN          # the folder of a finished run, models in closed form
    python benchmarks/gene_trust.py --demo       # 20 simulated patients, 3 CPU minutes

Of a run: for each model, each held-out patient and the main transform, the genes that training called better than
chance and the rest, as the held-out patient sees them. ``right`` is the share whose correlation there is above 0,
``truly`` the share that passes the same test there, each gene at 5 %; ``within`` the share of genes whose held-out
correlation lies between the ends, ``above`` the share above the lower one, beside the promise. Then how often the test
calls a map better than chance that is none: each section's predictions turned over the tissue, in seven ways, and those
of other patients, in four; beside the test that takes spots for independent, a bootstrap over squares of five spots and
shifts of the array (`evaluation.he2gene`).

Of the demo: groups of K + 1 patients as in `conformal.py`; each patient is predicted by a fit to the K others, whose
own fits without each other say the interval. ``docs/trust.md`` holds the tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from conformal import Patient, cohort, spots_of
from scipy.spatial import cKDTree
from scipy.stats import norm

from histocrypt.correlation import error_by_chance, is_constant, p_of, pearson
from histocrypt.evaluation.bootstrap import block_sums, correlations_of_draws, draw_weights
from histocrypt.evaluation.he2gene import LEAST_OVERLAP, array_or_nearest, shifted_correlations
from histocrypt.paths import RunFolder
from histocrypt.pipeline.predictions import Joined, PredictionFile, join, read_h5ad
from histocrypt.predictors.closed_form import EncoderRidge
from histocrypt.predictors.predictability import mean_of_known
from histocrypt.spatial import spot_pitch, squares
from histocrypt.targets.transforms import TargetStatistics
from histocrypt.trust.genes import BETTER, TOLD, TRUSTED, columns, evidence

LEVEL = 0.05
BLOCK, DRAWS = 5, 300


def joined(run: RunFolder, model: str, fold: str) -> tuple[PredictionFile, list[Joined], str]:
    """Return a fold's predictions, beside what its held-out sections measured, and the main transform."""
    file = PredictionFile(run.prediction(model, fold))
    main = str(file.about["transform"])
    measured = {name: read_h5ad(run.section(name), what="section") for name in file.sections}
    return file, [join(file.of(name), measured[name], name, transforms=[main]) for name in file.sections], main


def of_patient(pairs: list[Joined], main: str, genes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return each gene's correlation in a patient and its error by chance, means over sections; NaN if unmeasured."""
    r, errors = [], []
    for pair in pairs:
        place = pd.Index(pair.genes).get_indexer(genes)
        values = (pair.true[main], pair.predicted[main])
        for kept, found in ((r, pearson(*values)), (errors, error_by_chance(*values, pair.coords))):
            kept.append(np.where(place >= 0, found[place], np.nan))
    return mean_of_known(r), mean_of_known(errors)


def held_out(run: RunFolder) -> None:
    """Print what training said of genes and what held-out patients say."""
    heads = ["model", "held out", "K", "better: right, truly", "rest: right, truly", "trusted: r", "rest: r"]
    print(f"| {' | '.join([*heads, 'above', 'within', 'width'])} |\n{'|---' * 10}|")
    for model in sorted(path.name for path in run.root.joinpath("predictions").iterdir()):
        for path in sorted(run.prediction(model, "x").parent.glob("*.test.h5ad")):
            file, pairs, main = joined(run, model, path.name.removesuffix(".test.h5ad"))
            var = file.var
            if f"{BETTER}:{main}" not in var:
                continue
            r, errors = of_patient(pairs, main, file.genes)
            known = np.isfinite(r)
            better, trusted = (var[f"{name}:{main}"].to_numpy(bool) for name in (BETTER, TRUSTED))
            low, high = (var[f"{TOLD}_{end}:{main}"].to_numpy() for end in ("low", "high"))
            truly, count = p_of(r, errors) < LEVEL, file.trusted_by["patients"]

            def shares(chosen: np.ndarray, r: np.ndarray = r, truly: np.ndarray = truly) -> str:
                if not chosen.any():
                    return "none"
                return f"{(r[chosen] > 0).mean():.2f}, {truly[chosen].mean():.2f} of {chosen.sum()}"

            means = [f"{r[own].mean():.3f}" if own.any() else "none" for own in (trusted & known, ~trusted & known)]
            kept = f"{(r >= low)[known].mean():.2f} of {count / (count + 1):.2f}"
            within = f"{((r >= low) & (r <= high))[known].mean():.2f} of {(count - 1) / (count + 1):.2f}"
            cells = [model, pairs[0].patient, str(count), shares(better & known), shares(~better & known)]
            width = f"{np.median((high - low)[known]):.2f}"
            print("| " + " | ".join([*cells, *means, kept, within, width]) + " |", flush=True)


def turned(coords: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the other seven symmetries of a square, of (n, 2) places about their middle."""
    for number in range(1, 8):
        moved = coords * [-1 if number & 1 else 1, -1 if number & 2 else 1]
        yield moved[:, ::-1] if number & 4 else moved


def of_chance(run: RunFolder, model: str) -> None:
    """Print how often maps that have nothing to do with a gene are called better than chance at 5 %."""
    pairs, mains = [], set()
    for path in sorted(run.prediction(model, "x").parent.glob("*.test.h5ad")):
        _, own, main = joined(run, model, path.name.removesuffix(".test.h5ad"))
        pairs, mains = [*pairs, *own], mains | {main}
    (main,), rates, grids = mains, defaultdict(list), {}
    for pair in pairs:
        section = read_h5ad(run.section(pair.section), what="section")
        barcodes = [spot.removeprefix(f"{pair.section}:") for spot in pair.spots]
        grids[pair.section] = array_or_nearest(section)[section.obs_names.get_indexer(barcodes)]
    for pair in pairs:
        middle = pair.coords - pair.coords.mean(axis=0)
        others = [("its own, turned", pair, where) for where in turned(middle)]
        for other in pairs:
            if other.patient != pair.patient:
                ways = list(turned(other.coords - other.coords.mean(axis=0)))
                others += [("of another patient", other, where) for where in ways[::2]]
        for kind, other, where in others:
            columns = pd.Index(other.genes).get_indexer(pair.genes)
            shared = columns >= 0
            moved = other.predicted[main][cKDTree(where).query(middle)[1]][:, columns[shared]]
            true = pair.true[main][:, shared]
            true, moved = (values[:, ~is_constant(true)] for values in (true, moved))
            r, error = pearson(true, moved), error_by_chance(true, moved, pair.coords)
            alone = np.full(len(r), len(true) ** -0.5)
            called = [np.mean(p_of(r, one) < LEVEL) for one in (error, alone)]
            labels = squares(pair.coords, BLOCK * spot_pitch(pair.coords))
            weights = draw_weights(int(labels.max() + 1), DRAWS, np.random.default_rng(0))
            drawn = correlations_of_draws(block_sums(true, moved, labels), weights)
            called.append(np.mean(r > norm.isf(LEVEL) * np.nanstd(drawn, axis=0)))
            shifted, met = shifted_correlations(true, moved, grids[pair.section])
            called.append(np.mean((shifted[met >= LEAST_OVERLAP * len(true)] >= r).mean(axis=0) < LEVEL))
            rates[kind].append(called)
    heads = ["maps", "called better at 5 %", "spots as independent", "bootstrap of blocks", "shifts"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for kind, found in rates.items():
        print(f"| {kind} ({len(found)}) | {' | '.join(f'{rate:.3f}' for rate in np.mean(found, axis=0))} |")


def tested(known: list[Patient], names: list[int], new: Patient) -> dict[str, np.ndarray]:
    """Return what came of one simulated patient, an array over genes each."""
    train = spots_of(known, names)
    scaling = TargetStatistics.of(train.targets, train.outputs)
    raw = train.targets.copy()
    train = replace(train, targets=scaling.standardise(raw, sections=train.sections))
    model = EncoderRidge(encoder="described", components=64)
    model.fit(train)
    told = model.predictability
    coords = {f"P{name:02d}": one.coords for name, one in zip(names, known, strict=True)}
    said = told.to_dict(train.outputs) | evidence(told, raw, train.sections, coords, {}, train.outputs)
    genes = [name.partition(":")[2] for name in train.outputs]
    found = columns(said, train.outputs[0].partition(":")[0], genes)
    predicted = model.predict(spots_of([new], [99]))
    r, error = pearson(new.values, predicted), error_by_chance(new.values, predicted, new.coords)
    return {
        "above": r >= found[f"{TOLD}_low"],
        "within": (r >= found[f"{TOLD}_low"]) & (r <= found[f"{TOLD}_high"]),
        "width": found[f"{TOLD}_high"] - found[f"{TOLD}_low"],
        "better": found[BETTER],
        "trusted": found[TRUSTED],
        "right": r > 0,
        "truly": p_of(r, error) < LEVEL,
        "seen": new.seen,
    }


def on_demo(cohorts: int, patients: int = 20) -> None:
    """Print the same of simulated patients, of whom there are enough to see whether the promise is kept."""
    results: dict[int, list[dict[str, np.ndarray]]] = {3: [], 4: [], 9: [], 19: []}
    rng = np.random.default_rng(0)
    for number in range(cohorts):
        with tempfile.TemporaryDirectory() as folder:
            people = cohort(Path(folder), patients, seed=200 + number)
        for count, found in results.items():
            for group in rng.permutation(patients).reshape(-1, count + 1).tolist():
                for new in group:
                    names = [name for name in group if name != new]
                    found.append(tested([people[name] for name in names], names, people[new]))
    heads = ["K", "above: promised, kept", "within: promised, kept", "width", "better", "of them right, truly"]
    heads += ["rest: right, truly", "trusted", "of them right, truly", "better, of genes that no image shows"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for count, found in results.items():
        each = {name: np.concatenate([one[name] for one in found]) for name in found[0]}

        def shares(own: np.ndarray, each: dict[str, np.ndarray] = each) -> str:
            return f"{each['right'][own].mean():.2f}, {each['truly'][own].mean():.2f}"

        cells = [str(count), f"{count / (count + 1):.2f}, {each['above'].mean():.2f}"]
        cells += [f"{(count - 1) / (count + 1):.2f}, {each['within'].mean():.2f}", f"{np.median(each['width']):.2f}"]
        cells += [f"{each['better'].mean():.2f}", shares(each["better"]), shares(~each["better"])]
        cells += [f"{each['trusted'].mean():.2f}", shares(each["trusted"])]
        unseen = each["better"][~each["seen"]]
        print(f"| {' | '.join([*cells, f'{unseen.mean():.3f} of {len(unseen)}'])} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--cohorts", type=int, default=1)
    given = parser.parse_args()
    if given.run:
        run = RunFolder(given.run)
        held_out(run)
        of_chance(run, "fusion_ridge")
    if given.demo:
        on_demo(given.cohorts)


if __name__ == "__main__":
    main()
