"""What some measured spots of a new section are worth, on sections of patients that a model had not seen.

    python benchmarks/measured.py RUN [--model fusion_ridge] [--transform log1p_cp10k] [--seeds 10] [--each]

RUN is the folder of a finished run of ``studies/breast_unseen.yaml``. Of each held-out section so many spots are taken
as measured, drawn at random or as a patch (the nearest to a spot drawn at random), the rest is predicted:

- ``model``: as the model predicts by itself;
- ``corrected``: by `trust.measured.fit`; ``no place``: without what is left in space;
- ``mean``, ``kNN`` (the mean of the five nearest), ``kriged`` (`trust.measured.fit_alone`): measured spots alone.

Printed are mean absolute error and mean correlation over genes, mean over draws, then over sections (in brackets how
many sections of all were better than corrected); and of the corrected predictions' intervals the level that is
promised, the share of other spots that they cover, with the lowest of all sections, the share of draws of which
`trust.measured.lie_together` warns, and the median half-width over genes, beside that of intervals about ``kriged``. A
section takes part where at least `REST` spots are left. ``docs/measured_spots.md`` holds the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.evaluation.metrics import mae, pearson
from histocrypt.pipeline.measured import ALPHA
from histocrypt.pipeline.predictions import Joined, PredictionFile, join
from histocrypt.trust import measured
from histocrypt.trust.conformal import half_widths

COUNTS = (10, 20, 50, 100, 200)
REST = 30
NEIGHBOURS = 5
WAYS = ("model", "corrected", "no place", "mean", "kNN", "kriged")


def held_out(run: Path, model: str, transform: str) -> Iterator[tuple[Joined, float]]:
    """Yield every held-out section beside its predictions, and its micrometres per pixel."""
    for path in sorted((run / "predictions" / model).glob("*.test.h5ad")):
        file = PredictionFile(path)
        for name in file.sections:
            section = read_clean_section(run / "sections" / f"{name}.h5ad")
            (where,) = section.uns["spatial"].values()
            pair = join(file.of(name), section, name, transforms=[transform])
            yield pair, float(where["metadata"]["pixel_size_um"])


def taken(coords: np.ndarray, count: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return (n,) bool: measured spots, drawn at random or as a patch around one that is."""
    chosen = np.zeros(len(coords), dtype=bool)
    if kind == "at random":
        chosen[rng.choice(len(coords), count, replace=False)] = True
    else:
        centre = coords[rng.integers(len(coords))]
        chosen[np.argsort(np.linalg.norm(coords - centre, axis=1), kind="stable")[:count]] = True
    return chosen


def one_draw(
    predicted: np.ndarray, true: np.ndarray, coords: np.ndarray, mine: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return numbers of one draw by name: (MAE, correlation) of each way, and of intervals what the table needs."""
    here, rest = (predicted[mine], true[mine], coords[mine]), ~mine
    nearest = np.argsort(np.linalg.norm(coords[rest][:, None] - coords[mine][None], axis=-1), axis=1)[:, :NEIGHBOURS]
    values = {
        "model": predicted[rest],
        "corrected": (correction := measured.fit(*here)).apply(predicted[rest], coords[rest]),
        "no place": measured.fit(*here, spatial=False).apply(predicted[rest], coords[rest]),
        "mean": np.tile(true[mine].mean(axis=0), (rest.sum(), 1)),
        "kNN": true[mine][nearest].mean(axis=1),
        "kriged": measured.fit_alone(*here).apply(predicted[rest], coords[rest]),
    }
    found, usable = {}, np.ptp(true[rest], axis=0) > 0
    for way, got in values.items():
        r = np.where(np.ptp(got, axis=0) > 0, pearson(true[rest], got), 0.0)[usable]
        found[way] = np.array([mae(true[rest], got)[usable].mean(), r.mean()])
    for name, fitted in (("width", measured.fit), ("alone", measured.fit_alone)):
        errors = true[mine] - measured.left_out(*here, fitted=fitted, seed=seed)
        width = half_widths(np.abs(errors), measured.level_of(len(errors)))
        found[name] = np.array([np.median(width)])
        if name == "width":
            found["covered"] = np.array([(np.abs(true[rest] - values["corrected"]) <= width).mean()])
    found["warned"] = np.array([measured.lie_together(coords, mine, seed=seed) < ALPHA])
    found["in space"] = np.array([correction.reach_um > 0])
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="fusion_ridge")
    parser.add_argument("--transform", default="log1p_cp10k")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--each", action="store_true", help="Also print a line a section.")
    given = parser.parse_args()
    sections = list(held_out(given.run, given.model, given.transform))
    scores: list[str] = []
    intervals: list[str] = []
    for kind in ("at random", "a patch"):
        for count in given.counts:
            means = []
            for number, (pair, um) in enumerate(sections):
                coords, n = pair.coords * um, len(pair.spots)
                if n < count + REST:
                    continue
                draws = []
                for seed in range(given.seeds):
                    mine = taken(coords, count, kind, np.random.default_rng([seed, number]))
                    values = pair.predicted[given.transform], pair.true[given.transform]
                    draws.append(one_draw(*values, coords, mine, seed))
                means.append({name: np.mean([one[name] for one in draws], axis=0) for name in draws[0]})
                if given.each:
                    words = ", ".join(f"{way} {means[-1][way][0]:.3f}; {means[-1][way][1]:.3f}" for way in WAYS)
                    print(f"{pair.section}, {count}, {kind}: {words}")
            table = {way: np.stack([one[way] for one in means]) for way in WAYS}
            cells = []
            for way in WAYS:
                better = (table[way] - table["corrected"]) * [-1, 1] > 0
                mae, r = table[way].mean(axis=0)
                wins = "" if way == "corrected" else f" ({better[:, 0].sum()}, {better[:, 1].sum()})"
                cells.append(f"{mae:.3f}; {r:.3f}{wins}")
            scores.append(f"| {count}, {kind} | {len(means)} | {' | '.join(cells)} |")
            told = {
                name: np.array([one[name][0] for one in means])
                for name in ("covered", "width", "alone", "warned", "in space")
            }
            width, alone, warned, used = (told[name].mean() for name in ("width", "alone", "warned", "in space"))
            intervals.append(
                f"| {count}, {kind} | {measured.level_of(count):.2f} | {told['covered'].mean():.3f} "
                f"({told['covered'].min():.2f}) | {width:.2f} | {alone:.2f} | {warned:.0%} | {used:.0%} |"
            )
    print(f"{given.model}, {given.transform}, {given.seeds} draws of each of {len(sections)} sections\n")
    for heads, rows in (
        (("measured", "sections", *WAYS), scores),
        (
            (
                "measured",
                "promised",
                "covered (lowest)",
                "half-width",
                "measured spots alone",
                "warned of",
                "place used",
            ),
            intervals,
        ),
    ):
        print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
        print("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
