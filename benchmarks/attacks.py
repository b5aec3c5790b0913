"""Plant leaks of known strength in simulated cohorts, and print what each attack finds of them, and how often it errs.

    python benchmarks/attacks.py drawn tissue --out FOLDER      curves, and silence where there is no leak
    python benchmarks/attacks.py calibration                    intervals and p-values against a known truth
    python benchmarks/attacks.py quantiles                      false alarms of the quantile attack, fresh seeds
    python benchmarks/attacks.py figure --out FOLDER --figure docs/attacks.png

``drawn``: 80 patients of 250 spots drawn from formulas, so that members can be told at .1 % of false alarms. A model
knows what is to be expected of a spot up to an error of its own. ``tissue``: simulated patients of the demo, half of 40
of them members of a ridge regression on colours. Either model has learnt a share of each member's residual by heart,
0 to 1: the leak. (The ridge passes on that share of the residual of the nearest spot it has seen, for a member's its
own, to all.) The same models are attacked at every leak, with 8 shadow models that leak alike.

Without a leak: drawn models at a leak of 0; of tissue, a ridge that was fitted to 20 further patients, while half of
the 40 are called members by lot. Intervals are of the mean over cohorts, by Student's t. Cohorts of tissue are draws
from the same 60 simulated patients, so theirs say nothing of other patients.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from histocrypt.audit.controls import shuffled
from histocrypt.audit.membership import calibrated, confidence, in_and_out, judge, lira, loss_threshold
from histocrypt.audit.quantiles import FALSE_ALARMS, LEVELS, Strangers
from histocrypt.audit.ratios import rmia
from histocrypt.audit.shadow import halves
from histocrypt.audit.strongest import best_dealt, simultaneous

if TYPE_CHECKING:
    from conformal import Patient

GENES, FEATURES = 12, 8
MODEL_ERROR, NOISE, PATIENT = 0.15, 0.6, 0.4
LEAKS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
SHADOWS = 8
AUDITED, APART = 40, 20
"""Patients of simulated tissue that are asked about; and that only a model without a leak learns from."""
CALIBRATED = {6: 120, 20: 60, 40: 30}
"""Cohorts by their number of patients, half of them members."""

Model = Callable[[float], np.ndarray]
"""(n,) losses at a leak."""


def of_leak(error: np.ndarray, memory: np.ndarray) -> Model:
    """Return the losses of a model whose (n, genes) errors shrink, or change, by a share of what it has by heart."""
    return lambda leak: np.square(error - leak * memory).mean(axis=1)


@dataclass(frozen=True)
class Trained:
    """A model, who its members are, shadow models, and what an attacker knows of the spots without any model."""

    model: Model
    member: np.ndarray
    shadows: list[Model]
    inside: np.ndarray
    patients: np.ndarray
    known: np.ndarray


def drawn(patients: int, spots: int, *, seed: int) -> Trained:
    """Return a cohort that is drawn from formulas: spots differ in noise, and patients in all."""
    rng = np.random.default_rng([seed, 20])
    person = np.repeat(np.arange(patients), spots)
    names = np.array([f"P{i:03d}" for i in range(patients)])[person]
    x = rng.normal(size=(len(person), FEATURES)) + PATIENT * rng.normal(size=(patients, FEATURES))[person]
    weights = rng.normal(size=(FEATURES, GENES)) / np.sqrt(FEATURES)
    hard = np.exp(0.5 * rng.normal(size=len(person)) + 0.4 * x[:, 0])  # depth, which a tile partly shows
    hard *= np.exp(PATIENT * rng.normal(size=patients))[person]
    noise = NOISE * hard[:, None] * rng.normal(size=(len(person), GENES))

    def model(member: np.ndarray) -> Model:
        apart = x @ (MODEL_ERROR * rng.normal(size=weights.shape) / np.sqrt(FEATURES))
        return of_leak(noise - apart, noise * member[:, None])

    member = np.isin(person, rng.permutation(patients)[: patients // 2])
    inside = halves(names, SHADOWS, seed=seed)
    known = np.concatenate([x @ weights + noise, x], axis=1)
    return Trained(model(member), member, [model(mask) for mask in inside], inside, names, known)


def tissue(people: list[Patient], *, seed: int) -> tuple[Trained, Trained]:
    """Return a cohort of simulated tissue: with ridge regressions of half of it, and of patients apart."""
    from conformal import spots_of
    from sklearn.neighbors import NearestNeighbors

    from histocrypt.predictors.closed_form import EncoderRidge

    rng = np.random.default_rng([seed, 21])
    people = [people[i] for i in rng.permutation(len(people))]
    asked = spots_of(people[:AUDITED], list(range(AUDITED)))
    mean, sd = asked.targets.mean(axis=0), asked.targets.std(axis=0)

    def model(chosen: list[int]) -> Model:
        own = spots_of([people[i] for i in chosen], chosen)
        own.targets[:] = (own.targets - mean) / sd
        ridge = EncoderRidge(encoder="described", components=64)
        ridge.fit(own)
        residual = own.targets - ridge.predict(own)
        x, scale = own.features(""), own.features("").std(axis=0) + 1e-6
        near = NearestNeighbors(n_neighbors=1).fit(x / scale).kneighbors(asked.features("") / scale)[1][:, 0]
        return of_leak((asked.targets - mean) / sd - ridge.predict(asked), residual[near])

    def of(mask: np.ndarray) -> Model:
        return model(sorted({int(name[1:]) for name in asked.patients[mask].tolist()}))

    member = np.isin(asked.patients, rng.permutation(np.unique(asked.patients))[: AUDITED // 2])
    inside = halves(asked.patients, SHADOWS, seed=seed)
    shadows = [of(mask) for mask in inside]
    known = np.concatenate([(asked.targets - mean) / sd, asked.features("")], axis=1)
    rest = (shadows, inside, asked.patients, known)
    return Trained(of(member), member, *rest), Trained(model(list(range(AUDITED, len(people)))), member, *rest)


def attacked(one: Trained, leak: float, *, own: float | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the scores of every attack; ``own`` is the attacked model's leak where it is another than the shadows'."""
    loss = one.model(leak if own is None else own)
    loss_in, loss_out = in_and_out(np.stack([shadow(leak) for shadow in one.shadows]), one.inside)
    strangers = Strangers(one.known, one.member, one.patients, seed=seed)
    return {
        "loss threshold": loss_threshold(loss),
        "quantile regression": strangers.scores(loss),
        "calibrated": calibrated(loss, loss_out),
        "LiRA, offline": lira(loss, None, loss_out),
        "LiRA": lira(loss, loss_in, loss_out),
        "RMIA, offline": rmia(loss, None, loss_out, population=~one.member),
        "RMIA": rmia(loss, loss_in, loss_out, population=~one.member),
    }


def found(one: Trained, scores: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return of every attack the AUC, and the share of members found at 1, .1 and 5 % of false alarms, or NaN."""
    judged = {name: judge(values, one.member, one.patients, draws=2) for name, values in scores.items()}
    rates = (0.01, 0.001, 0.05)
    return {name: [row.auc] + [(row.tpr_at[rate] or [np.nan])[0] for rate in rates] for name, row in judged.items()}


def curves(kind: str, cohorts: int, side: int) -> Iterator[tuple[float | str, dict[str, list[float]]]]:
    """Yield what was found at each leak of each cohort, of tissue of ``side`` spots a side; ``silent``: without any."""
    people = []
    if kind == "tissue":
        from conformal import cohort

        with tempfile.TemporaryDirectory() as folder:
            people = cohort(Path(folder), AUDITED + APART, 500, shown=("colour",), spots=side)
    for seed in range(cohorts):
        print(f"{kind}: cohort {seed + 1} of {cohorts}", file=sys.stderr, flush=True)
        with_leak, without = (drawn(80, 250, seed=seed), None) if kind == "drawn" else tissue(people, seed=seed)
        for leak in LEAKS:
            yield leak, found(with_leak, attacked(with_leak, leak, seed=seed))
        if without is not None:
            yield "silent", found(without, attacked(without, LEAKS[-1], own=0.0, seed=seed))


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return mean and 95 % interval over cohorts."""
    mean, half = float(values.mean()), 0.0
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def table(rows: list[tuple[float | str, dict[str, list[float]]]]) -> None:
    """Print one table for each figure, attacks by leaks."""
    leaks = list(dict.fromkeys(leak for leak, _ in rows))
    for place, what in enumerate(("AUC", "found at 1 %", "found at 0.1 %", "found at 5 %")):
        values = {
            name: [np.array([row[name][place] for at, row in rows if at == leak]) for leak in leaks]
            for name in rows[0][1]
        }
        if not all(np.isfinite(one).all() for per_leak in values.values() for one in per_leak):
            print(f"\n{what}: too few non-members")
            continue
        print(f"\n| {what} | " + " | ".join(str(leak) for leak in leaks) + " |\n|---" + "|---" * len(leaks) + "|")
        for name, per_leak in values.items():
            cells = [(mean, low, high) for mean, low, high in map(interval, per_leak)]
            print(
                f"| {name} | " + " | ".join(f"{m:.3f} ({max(a, 0):.3f} to {min(b, 1):.3f})" for m, a, b in cells) + " |"
            )


def calibration(scale: float) -> None:
    """Print how often intervals hold the truth, and how often a verdict or a p-value accuses who leaks nothing.

    The truth of an attack is its mean over all cohorts of that size and leak.
    """
    print("| patients, leak | cohorts | AUC, each alone | all AUCs at once | balanced accuracy | found at 5 % "
          "| a leak, uncorrected | a leak | p of .05 | p of .1 |\n|" + "---|" * 10)  # fmt: skip
    for patients, number in CALIBRATED.items():
        for leak in (0.0, 0.1):
            rows = []
            cohorts = max(2, round(number * scale))
            for seed in range(cohorts):
                one = drawn(patients, 25, seed=1000 * patients + seed)
                how = {"seed": seed}
                scores = attacked(one, leak, seed=seed)
                judged = {a: judge(v, one.member, one.patients, draws=200, **how) for a, v in scores.items()}
                dealt = {a: shuffled(v, one.member, one.patients, deals=200, **how) for a, v in scores.items()}
                held = simultaneous({a: row.auc_drawn for a, row in judged.items()})
                rows.append((judged, held, best_dealt({a: row.auc for a, row in judged.items()}, dealt)))
            names = list(rows[0][0])
            truth = np.array([np.mean([judged[a].auc for judged, _, _ in rows]) for a in names])
            right = np.array([np.mean([judged[a].balanced_accuracy for judged, _, _ in rows]) for a in names])
            at = {a: [judged[a].tpr_at[0.05] for judged, _, _ in rows] for a in names}
            alone = np.array([[judged[a].auc_interval for a in names] for judged, _, _ in rows])
            every = np.array([[held[a] for a in names] for _, held, _ in rows])
            accuracy = np.array([[judged[a].balanced_accuracy_interval for a in names] for judged, _, _ in rows])
            inside = holds(every, truth)
            p = np.array([one for *_, one in rows])
            found_at = [np.nan]
            if at[names[0]][0] is not None:
                found_at = [holds(np.array(at[a])[:, 1:], np.mean([row[0] for row in at[a]])).mean() for a in names]
            cells = [holds(alone, truth).mean(), inside.all(axis=1).mean(), holds(accuracy, right).mean()]
            cells += [np.mean(found_at), (alone[..., 0] > 0.5).any(axis=1).mean()]
            cells += [(every[..., 0] > 0.5).any(axis=1).mean(), (p <= 0.05).mean(), (p <= 0.1).mean()]
            said = " | ".join("" if np.isnan(cell) else f"{cell:.2f}" for cell in cells)
            print(f"| {patients}, {leak:g} | {cohorts} | {said} |", flush=True)


def quantiles(cohorts: int) -> None:
    """Print the share of members that are accused at the quantile attack's threshold, where nobody leaks."""
    print("| patients | cohorts | asked for | threshold of the trees | moved |\n|" + "---|" * 5)
    for patients, spots in ((6, 115), (20, 40), (80, 25)):
        shares = []
        for seed in range(cohorts):
            one = drawn(patients, spots, seed=50_000 + seed)
            loss, strangers = one.model(0.0), Strangers(one.known, one.member, one.patients, seed=50_000 + seed)
            confident = confidence(loss)
            trees, moved = confident > strangers.quantiles(confident, LEVELS[1]), strangers.scores(loss) > 0
            shares.append([trees[one.member].mean(), moved[one.member].mean()])
        said = [f"{m:.3f} ({max(a, 0):.3f} to {b:.3f})" for m, a, b in map(interval, np.array(shares).T)]
        print(f"| {patients} | {cohorts} | {FALSE_ALARMS:g} | {' | '.join(said)} |", flush=True)


def holds(ends: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    """Return which intervals (..., 2) hold a value, one for each place of the last axis but one or one for all."""
    return (ends[..., 0] <= truth) & (truth <= ends[..., 1])


def figure(folder: Path, path: Path) -> None:
    """Draw AUC by leak of every attack, and the share found at the smallest rate that the cohort allows."""
    from PIL import Image

    from histocrypt.evaluation.figures import CYCLE, INK, canvas, log_scale, save, style

    every = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in ("drawn", "tissue")}
    panels = [("drawn", 0, "drawn: AUC"), ("drawn", 2, "drawn: found at 0.1 %"), ("tissue", 0, "tissue: AUC"),
              ("tissue", 3, "tissue: found at 5 %")]  # fmt: skip
    with style():
        drawing, axes = canvas(2, 2, figsize=(6.8, 5.4), sharex=True)
        places = np.arange(len(LEAKS))
        for ax, (kind, place, title) in zip(axes.ravel(), panels, strict=True):
            for number, name in enumerate(every[kind][0][1]):
                spans = [
                    interval(np.array([row[name][place] for at, row in every[kind] if at == leak])) for leak in LEAKS
                ]
                mean, low, high = np.array(spans).T
                look = {"color": [*CYCLE, INK][number], "ls": "--" if "offline" in name else "-"}
                ax.plot(places, mean, marker="osD^vPX"[number], ms=4, lw=1.3, label=name, **look)
                ax.fill_between(places, low, high, color=look["color"], alpha=0.13, lw=0)
            ax.axhline(0.5 if place == 0 else (0.01, 0.001, 0.05)[place - 1], color=INK, lw=0.8)
            ax.set(title=title, ylim=(0.4, 1.02) if place == 0 else (-0.02, 1.02))
            if place == 2:
                log_scale(ax, "y")
                ax.set(ylim=(5e-4, 1.1))
            ax.set_xticks(places, [f"{leak:g}" for leak in LEAKS])
        for ax in axes[1]:
            ax.set_xlabel("leak: share known by heart")
        drawing.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, fontsize=7.5, loc="outside lower center")
        save(drawing, path)
    with Image.open(path) as large:
        large.convert("RGB").quantize(128).save(path, optimize=True)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("drawn", "tissue", "calibration", "quantiles", "figure"))
    parser.add_argument("--cohorts", type=int, default=8, help="for each curve (default: %(default)s)")
    parser.add_argument("--side", type=int, default=12, help="spots of a side of tissue (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of cohorts of calibration")
    parser.add_argument("--out", type=Path, default=Path("attacks"), help="folder of what the figure is drawn from")
    parser.add_argument("--figure", type=Path, default=Path("attacks.png"))
    asked = parser.parse_args()
    for part in asked.parts:
        if part == "calibration":
            calibration(asked.scale)
        elif part == "quantiles":
            quantiles(asked.cohorts)
        elif part == "figure":
            figure(asked.out, asked.figure)
        else:
            rows = list(curves(part, asked.cohorts, asked.side))
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / f"{part}.json").write_text(json.dumps(rows))
            print(f"\n{part}: {asked.cohorts} cohorts, {SHADOWS} shadows; mean (95 % over cohorts) by leak")
            table(rows)


if __name__ == "__main__":
    main()
