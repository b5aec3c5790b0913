"""Samplers of a trained diffusion model: what each costs, and whether its scores are those of the ancestral sampler.

    python benchmarks/stem_samplers.py studies/demo.yaml fold_1

Ancestral sampling with all 1000 steps is drawn with several seeds: the interval of its scores from seed to seed is what
chance alone does. The fastest sampler whose PCC, RVD and CRPS lie inside that interval is the one to use.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from histocrypt.data.folds import load_fold
from histocrypt.data.load import load_test, load_training
from histocrypt.evaluation.stem import score_section
from histocrypt.files import write_json
from histocrypt.machine import choose_device
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.predictions import join, read_h5ad, read_prediction, transforms_of
from histocrypt.study import load_study

RIVALS = [("ddim", 25), ("ddim", 50), ("ddim", 100), ("dpm++", 10), ("dpm++", 15), ("dpm++", 25), ("dpm++", 50)]
JUDGED = ("pearson", "rvd", "rvd_samples", "crps")


def scores(study, model, trained, spots, drawn: np.ndarray) -> dict[str, float]:
    """Return the judged scores of draws (n, K, genes), means over the sections that the spots are of."""
    fold = trained.about["fold"]
    prediction = read_prediction(study.run.prediction(model, fold))
    main = transforms_of(prediction)[0]
    found = []
    for section in dict.fromkeys(spots.sections.tolist()):
        rows = spots.sections == section
        part = prediction[spots.names[rows].tolist()].copy()
        part.layers[main] = drawn[rows].mean(axis=1)
        pair = join(part, read_h5ad(study.run.section(section), what="cleaned section"), section, transforms=[main])
        place = {name: i for i, name in enumerate(spots.names[rows].tolist())}
        gene = {name: i for i, name in enumerate(part.var_names)}
        own = drawn[rows][[place[name] for name in pair.spots]][:, :, [gene[name] for name in pair.genes]]
        found.append(score_section(pair, main, own))
    return {key: float(np.mean([one[key] for one in found])) for key in JUDGED}


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("fold", help="a trained fold")
    parser.add_argument("--model", default="stem")
    parser.add_argument("--seeds", type=int, default=5, help="of every sampler")
    parser.add_argument("--spots", type=int, default=0, help="the first so many of each test section; 0: all")
    parser.add_argument("--samples", type=int, default=0, help="for each spot; 0: as the model was trained to draw")
    parser.add_argument("--output", type=Path, help="JSON")
    given = parser.parse_args()

    study, device = load_study(given.study), choose_device()
    trained = load_model(study.run.model(given.model, given.fold), device=device)
    every = load_test(study, load_training(study, load_fold(study.run.folds, given.fold)))
    predictor, plan = trained.predictor, trained.predictor.plan
    # The conditions are those of whole sections; only what is drawn is cut short.
    features = every.features(plan.encoder)[:, None]
    conditions, started = predictor._conditions(features, every.sections)[:, 0], predictor.started(every)[..., 0]
    keep = np.concatenate(
        [np.flatnonzero(every.sections == name)[: given.spots or None] for name in np.unique(every.sections)]
    )
    spots, conditions, started = every.subset(keep), conditions[keep], started[keep]
    samples = given.samples or plan.samples
    columns = [trained.scaling.outputs.index(f"{predictor.transforms[0]}:{gene}") for gene in predictor.panel]
    mean, sd = trained.scaling.mean[columns], trained.scaling.sd[columns]
    network = predictor.network.to(device).eval()

    def run(sampler: str, steps: int, seed: int) -> dict[str, float]:
        from histocrypt.predictors.stem_diffusion import draw

        started = time.perf_counter()
        how = {"sampler": sampler, "steps": steps, "seed": seed, "opposite": plan.opposite}
        drawn = draw(network, conditions, spots.names, samples=samples, device=device, **how)
        seconds = 1000 * (time.perf_counter() - started) / len(spots)
        values = (drawn[..., 0] + started[:, None]) * sd + mean
        row = {"sampler": sampler, "steps": steps, "seed": seed, "seconds": seconds}
        row |= scores(study, given.model, trained, spots, values)
        print(
            f"{sampler:>9} {steps:>5} {seed:>5} {seconds:>10.2f}" + "".join(f"{row[key]:>12.4f}" for key in JUDGED),
            flush=True,
        )
        return row

    print(f"{len(spots)} spots of {given.fold}, {samples} samples each, {len(columns)} genes, {device}")
    print(f"{'sampler':>9} {'steps':>5} {'seed':>5} {'s/1000 sp.':>10}" + "".join(f"{key:>12}" for key in JUDGED))
    run("dpm++", 2, 0)  # warms up; not looked at
    rows = [run("ancestral", 1000, seed) for seed in range(given.seeds)]
    bounds = {}
    for key in JUDGED:  # where the next seed's score lies, with a probability of 95 %
        from scipy.stats import t

        values = np.array([row[key] for row in rows])
        reach = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
        bounds[key] = (float(values.mean() - reach), float(values.mean() + reach))
    slow = float(np.median([row["seconds"] for row in rows]))  # a busy moment is no property of a sampler
    rivals = []
    for sampler, steps in RIVALS:  # each with the same seeds, judged by its mean
        drawn = [run(sampler, steps, seed) for seed in range(given.seeds)]
        means = {key: float(np.mean([row[key] for row in drawn])) for key in JUDGED}
        seconds = float(np.median([row["seconds"] for row in drawn]))
        rivals.append({"sampler": sampler, "steps": steps, "seconds": seconds, **means})
    print("\nancestral, from seed to seed: " + ", ".join(f"{k} {a:.4f} to {b:.4f}" for k, (a, b) in bounds.items()))
    for row in rivals:
        out = [key for key in JUDGED if not bounds[key][0] <= row[key] <= bounds[key][1]]
        row |= {"outside": out, "times_faster": slow / row["seconds"]}
        verdict = "inside" if not out else "outside in " + ", ".join(out)
        values = "".join(f"{row[key]:>10.4f}" for key in JUDGED)
        print(f"{row['sampler']:>9} {row['steps']:>5}{values} {row['times_faster']:>7.0f} times faster, {verdict}")
    inside = [row for row in rivals if not row["outside"]]
    if inside:
        best = min(inside, key=lambda row: row["seconds"])
        print(f"fastest inside: {best['sampler']} with {best['steps']} steps, {best['times_faster']:.0f} times faster")
    if given.output:
        write_json(given.output, {"bounds": bounds, "ancestral": rows, "rivals": rivals, "device": str(device)})


if __name__ == "__main__":
    main()
