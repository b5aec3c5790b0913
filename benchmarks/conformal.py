"""Whether intervals keep their promise per patient, where any number of patients can be had: the demo tissue.

    python benchmarks/conformal.py [--cohorts 4] [--patients 20]

A cohort is 20 simulated patients, one section each, from two centres in turn. For K patients it is cut at random into
groups of K + 1; each patient of a group is predicted once by a ridge regression on colours and nuclei that was fitted
to the K others, with intervals from these alone, left out in turn (`trust.conformal`). So every patient is tested once
for every K. ``kept`` is the share of tested patients with at least 90 % of their spots inside, mean over genes; its
interval is of a bootstrap over patients. ``one gene each``: the same of one gene drawn for each patient, with the
interval of Clopper and Pearson, since these are single yes or no. ``ordinary`` are split-conformal intervals for 90 %
of spots, from the same errors as if spots were exchangeable: the share of spots that they cover, and of patients of
whom they cover 90 %.

Also printed: the half-width over that of an interval which knows nothing but the spread of the gene (1.0: the image
added nothing). ``docs/trust.md`` holds the table.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import beta

from histocrypt.data.load import Spots
from histocrypt.demo.write import planted, write_demo
from histocrypt.encoders.described import DESCRIBED
from histocrypt.predictors.closed_form import EncoderRidge
from histocrypt.sections.read import read_path
from histocrypt.targets.transforms import TargetStatistics, output_names, transform
from histocrypt.tissue.stain import estimate
from histocrypt.tissue.tiles import iter_tiles
from histocrypt.trust.conformal import SHARE, half_widths, held_out_errors, highest_level, patient_scores

KINDS = {"value": False, "within the section": True}
TILE_UM, TILE_PX, MIN_COUNTS, GENES = 150, 96, 200, 60


@dataclass(frozen=True)
class Patient:
    """One simulated patient."""

    features: np.ndarray
    """(n, d): colour and nuclei."""
    values: np.ndarray
    """(n, genes) log1p_cp10k."""
    coords: np.ndarray
    """(n, 2) places, micrometres."""
    seen: np.ndarray
    """(genes,) bool: the image shows something of the gene."""


def cohort(
    folder: Path, patients: int, seed: int, *, shown: tuple[str, ...] = ("colour", "morphology"), spots: int = 14
) -> list[Patient]:
    """Simulate patients of ``spots`` a side; their genes are those with the highest mean count over all of them."""
    counts, features, totals, places, seen = [], [], [], [], []
    for path in write_demo(folder, n_sections=patients, spots_per_side=spots, seed=seed):
        section = read_path(path, for_prediction=False)
        defects = planted(section.adata)
        total = np.asarray(section.adata.X.sum(axis=1)).ravel()
        good = (total >= MIN_COUNTS) & ~section.adata.obs_names.isin(defects["off_tissue"])
        where = section.coords[good] - np.array(defects["shift_um"]) / section.um_per_px
        cut = iter_tiles(section.image, where, um_per_px=section.um_per_px, tile_um=TILE_UM, tile_px=TILE_PX)
        tiles = np.stack(list(cut))
        how = {"stain": estimate(tiles[:, ::2, ::2].reshape(-1, 3)), "um_per_px": TILE_UM / TILE_PX}
        parts = [DESCRIBED[name].describe(tiles, **how) for name in shown]
        features.append(np.concatenate(parts, axis=1))
        counts.append(section.adata.X[good].toarray().astype(np.float64))
        totals.append(total[good])
        places.append(where * section.um_per_px)
        seen.append(section.adata.var["programme"].to_numpy() != "OFF")
    chosen = np.argsort(-np.mean([one.mean(axis=0) for one in counts], axis=0))[:GENES]
    values = [transform(one, total, "log1p_cp10k")[:, chosen] for one, total in zip(counts, totals, strict=True)]
    told = [one[chosen] for one in seen]
    return [Patient(*own) for own in zip(features, values, places, told, strict=True)]


def spots_of(patients: list[Patient], names: list[int]) -> Spots:
    """Return patients as what a predictor learns from; raw values as targets."""
    label = np.repeat([f"P{name:02d}" for name in names], [len(one.values) for one in patients])
    every = np.concatenate([one.features for one in patients])
    outputs = output_names(["log1p_cp10k"], [f"g{i}" for i in range(GENES)])
    targets = np.concatenate([one.values for one in patients]).astype(np.float32)
    nothing = np.full(len(label), np.nan)
    return Spots(label, label, label, nothing, outputs, targets=targets, features=lambda _: every)


def tested(known: list[Patient], names: list[int], new: Patient) -> dict[str, np.ndarray]:
    """Return what came of one patient, an array over genes each."""
    train, test = spots_of(known, names), spots_of([new], [99])
    scaling = TargetStatistics.of(train.targets, train.outputs)
    raw = train.targets.copy()
    train = Spots(**{**vars(train), "targets": scaling.standardise(raw, sections=train.sections)})
    model = EncoderRidge(encoder="described", components=64)
    model.fit(train)
    held_out = model.predictability
    assert held_out.by == "patient"
    predicted, found = scaling.restore(model.predict(test)), {}
    for kind, centred in KINDS.items():
        about = {"patients": train.patients, "sections": train.sections, "centred": centred}
        known_errors = held_out_errors(raw, held_out.predicted * scaling.sd, **about)
        errors = test.targets - predicted
        errors = np.abs(errors - errors.mean(axis=0) if centred else errors)
        scores = np.stack(list(patient_scores(known_errors, train.patients).values()))
        width = half_widths(scores)
        found[f"{kind}: kept"] = (errors <= width).mean(axis=0) >= SHARE
        spread = raw - raw.mean(axis=0)
        if centred:
            spread = np.concatenate([own.values - own.values.mean(axis=0) for own in known])
        plain = np.stack(list(patient_scores(spread, train.patients).values()))
        found[f"{kind}: width"] = width / half_widths(plain)
        n = len(known_errors)
        place = min(n, int(np.ceil(SHARE * (n + 1)))) - 1
        ordinary = np.sort(np.abs(known_errors), axis=0)[place]
        found[f"{kind}: ordinary"] = (errors <= ordinary).mean(axis=0)
    return found


def binomial(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of Clopper and Pearson."""
    low = beta.ppf(0.025, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def row(count: int, kind: str, results: list[dict[str, np.ndarray]], rng: np.random.Generator) -> str:
    """Return one line of the table."""
    kept = np.stack([one[f"{kind}: kept"] for one in results])
    share = kept.mean(axis=1)
    again = rng.choice(share, size=(2000, len(share))).mean(axis=1)
    low, high = np.quantile(again, (0.025, 0.975))
    single = kept[np.arange(len(kept)), rng.integers(kept.shape[1], size=len(kept))]
    least, most = binomial(int(single.sum()), len(single))
    ordinary = np.stack([one[f"{kind}: ordinary"] for one in results])
    width = np.stack([one[f"{kind}: width"] for one in results])
    return (
        f"| {count} | {kind} | {highest_level(count):.2f} | {kept.mean():.2f} ({low:.2f} to {high:.2f}) "
        f"| {single.sum()} of {len(single)} ({least:.2f} to {most:.2f}) | {np.median(width):.2f} "
        f"| {ordinary.mean():.2f}; {(ordinary >= SHARE).mean():.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=4)
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, groups = np.random.default_rng(given.seed), [k for k in (2, 3, 4, 9, 19) if given.patients % (k + 1) == 0]
    results: dict[int, list[dict[str, np.ndarray]]] = {k: [] for k in groups}
    for number in range(given.cohorts):
        with tempfile.TemporaryDirectory() as folder:
            people = cohort(Path(folder), given.patients, seed=100 + given.seed + number)
        for k in groups:
            for group in rng.permutation(given.patients).reshape(-1, k + 1).tolist():
                for one in group:
                    others = [name for name in group if name != one]
                    results[k].append(tested([people[name] for name in others], others, people[one]))
    heads = ("K", "of", "promised", "kept (95 %)", "one gene each (95 %)", "width", "ordinary: spots; patients")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for k in groups:
        for kind in KINDS:
            print(row(k, kind, results[k], rng))


if __name__ == "__main__":
    main()
