"""Print what an audit proves against epsilon, and what a patient's differential privacy costs: ``epsilon.py [PART]``.

``limits``: the largest bound that so many canaries can show. ``calibration``: how often a bound exceeds the epsilon of
mechanisms that are known exactly, and what it finds of leaks planted in graded strength. ``predictor`` and
``generator``: simulated patients, each in or out by a coin, trained on without differential privacy and with that of
the patient. Beside the promised epsilon stand the lower bound that an attack proves, and the quality on patients who
were never seen.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histocrypt.audit.lower_bound import LowerBound, coin_runs, lower_bound, most_shown, toss
from histocrypt.paths import outputs

PARTS = ("limits", "calibration", "predictor", "generator")
PROMISED = (None, 16.0, 8.0, 4.0, 1.0)
DELTA = 1e-3
CLIP, RATE = 1.0, 0.1
"""Of the linear heads; tried on a cohort of another seed."""
COARSE = 8
"""Pixels a side that a wide head sees of a tile."""
HALF = 27
"""Half a tile, in pixels of a micrometre: that of the spots' discs."""


def table(heads: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print()


def limits() -> None:
    counts, deltas = (3, 5, 10, 20, 40, 100, 200, 400, 1000), (0.0, 1e-5, 1e-3)
    table(
        ["canaries", *(f"delta {delta:g}" for delta in deltas)],
        [[str(m), *(f"{most_shown(m, delta=delta):.2f}" for delta in deltas)] for m in counts],
    )


def gaussian_epsilon(sd: float, delta: float) -> float:
    """Return the exact epsilon of one number plus noise of ``sd`` (Balle and Wang, ICML 2018, theorem 8)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def slack(e: float) -> float:
        return norm.cdf(0.5 / sd - e * sd) - np.exp(e) * norm.cdf(-0.5 / sd - e * sd) - delta

    return float(brentq(slack, 0.0, 50.0)) if slack(0.0) > 0 else 0.0


def response(coins: np.ndarray, rng: np.random.Generator, *, epsilon: float, delta: float) -> np.ndarray:
    """Return what randomised response says that fails outright with chance delta: exactly (epsilon, delta)."""
    fails = rng.random(coins.shape) < delta
    told = rng.random(coins.shape) < 1 / (1 + np.exp(-epsilon))
    return np.where(fails, 10.0, 1.0) * np.where(fails | told, 2.0 * coins - 1, 1 - 2.0 * coins)


def repeated(seed: int, *, sd: float, runs: int, canaries: int) -> LowerBound:
    """Audit trainings whose loss of a canary falls by 1 with it, under noise, and differs by far more among canaries.

    All of it in the order of an audit: coins, runs, scores that are compared with the other runs'.
    """
    rng = np.random.default_rng([seed, 5])
    hard = rng.normal(0, 20, canaries)

    def train_one(inside: np.ndarray, _: int) -> np.ndarray:
        return hard + rng.normal(0, sd, canaries) - inside

    return lower_bound(*coin_runs(train_one, np.arange(canaries), runs=runs, seed=seed), delta=DELTA)


def calibration(draws: int) -> None:
    from scipy.stats import binomtest

    def toss_and(say: Callable[[np.ndarray, np.random.Generator], np.ndarray], m: int, **how):
        def audit(seed: int) -> LowerBound:
            coins = toss(np.arange(m), seed=seed)
            return lower_bound(say(coins, np.random.default_rng([seed, 8])), coins, **how)

        return audit

    def randomised(m: int, epsilon: float, delta: float, guesses: tuple[int, ...]) -> tuple:
        audit = toss_and(lambda c, rng: response(c, rng, epsilon=epsilon, delta=delta), m, delta=delta, guesses=guesses)
        said = f"randomised response, {m} coins" + (", best of several numbers of guesses" if len(guesses) > 1 else "")
        return said, epsilon, delta, audit

    def gaussian(m: int, sd: float, guesses: tuple[int, ...]) -> tuple:
        audit = toss_and(lambda c, rng: c + rng.normal(0, sd, m), m, delta=DELTA, guesses=guesses)
        return f"Gaussian noise of {sd:g}, {m} coins", gaussian_epsilon(sd, DELTA), DELTA, audit

    mechanisms = [randomised(m, e, 0.0, (m,)) for m in (20, 100, 400) for e in (0.0, 1.0, 2.0, 4.0)]
    mechanisms += [randomised(100, e, 1e-2, (100, 20, 6)) for e in (0.0, 1.0, 2.0)]
    mechanisms += [gaussian(400, sd, (400, 100)) for sd in (2.0, 0.5)]
    mechanisms += [
        (
            f"10 repeated trainings on 40 patients, Gaussian noise of {sd:g}",
            gaussian_epsilon(sd, DELTA),
            DELTA,
            lambda seed, sd=sd: repeated(seed, sd=sd, runs=10, canaries=40),
        )
        for sd in (2.0, 0.5)
    ]
    rows, every = [], 0
    for name, epsilon, delta, audit in mechanisms:
        bounds = np.array([audit(seed).epsilon for seed in range(draws)])
        over = int((bounds > epsilon).sum())
        every += over
        low, high = binomtest(over, draws).proportion_ci()
        share = f"{over / draws:.3f} ({low:.3f} to {high:.3f})"
        rows.append([name, f"{delta:g}", f"{epsilon:.2f}", f"{np.median(bounds):.2f}", share])
    table(["mechanism", "delta", "true epsilon", "median bound", "share of bounds above it (95 % interval)"], rows)
    print(f"{draws} audits of each mechanism; {every / draws / len(mechanisms):.3f} of all bounds are above.\n")
    rows = []
    for strength in (0.0, 0.5, 1.0, 2.0, 4.0):
        row = [f"{strength:g}"]
        for m in (20, 100, 400):
            audit = toss_and(lambda coins, rng, s=strength: s * coins + rng.normal(size=len(coins)), m)
            found = np.array([audit(seed).epsilon for seed in range(200)])
            row.append(f"{np.median(found):.2f}; {np.mean(found > 0):.2f}")
        rows.append(row)
    table(["leak, sd of the scores' noise", *(f"{m} coins: median; share above 0" for m in (20, 100, 400))], rows)


@dataclass(frozen=True)
class Spots:
    """What a cohort shows of its spots."""

    tiles: np.ndarray
    """(n, 54, 54, 3) uint8."""
    tumour: np.ndarray
    """(n, 54, 54) bool."""
    expression: np.ndarray
    """(n, genes), standardised within each patient."""
    people: np.ndarray
    """(n,) str."""

    def features(self, *, wide: bool) -> np.ndarray:
        """Return colours (n, 12), or with them coarse pixels (n, 204); each patient standardises itself."""
        density = -np.log((self.tiles.astype(np.float32) + 1) / 256)
        seen = np.concatenate([density.mean((1, 2)), density.std((1, 2))], axis=1)
        parts = [seen, np.square(self._z(seen))]
        if wide:
            side = self.tiles.shape[1] // COARSE * COARSE
            blocks = density[:, :side, :side].reshape(len(seen), COARSE, side // COARSE, COARSE, side // COARSE, 3)
            parts.append(blocks.mean((2, 4)).reshape(len(seen), -1))
        return self._z(np.concatenate(parts, axis=1).astype(np.float64))

    def _z(self, values: np.ndarray) -> np.ndarray:
        out = np.empty_like(values)
        for name in np.unique(self.people):
            out[self.people == name] = z(values[self.people == name])
        return out


def cohort(folder: Path, patients: int, seed: int) -> Spots:
    """Return the spots of simulated patients, one section each; those with planted defects are left out."""
    from anndata import read_h5ad
    from PIL import Image

    from histocrypt.demo.write import demo_in

    tiles, tumour, expression, people = [], [], [], []
    for file in demo_in(folder, sections=patients, spots_per_side=8, genes=40, seed=seed):
        section = read_h5ad(file)
        counts = np.asarray(section.X.toarray() if hasattr(section.X, "toarray") else section.X)
        off = section.obs_names.isin(list(section.uns["demo"]["planted"]["off_tissue"]))
        known = ~off & np.isfinite(counts).all(1) & (np.nan_to_num(counts).sum(1) > 0)
        pixels, mask = (np.asarray(Image.open(file.with_name(f"{file.stem}{end}.png"))) for end in ("", "_mask"))
        windows = [
            (slice(y - HALF, y + HALF), slice(x - HALF, x + HALF))
            for x, y in section.obsm["spatial"][known].astype(int).tolist()
        ]
        tiles += [pixels[window] for window in windows]
        tumour += [mask[window] > 0 for window in windows]
        expression.append(z(np.log1p(counts[known] / counts[known].sum(1, keepdims=True) * 1e4)))
        people += [str(section.uns["patient"])] * len(windows)
    return Spots(np.stack(tiles), np.stack(tumour), np.concatenate(expression), np.array(people))


def z(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)


def report(unit: str, quality: tuple[str, ...], rows: list[tuple[float | None, LowerBound, np.ndarray]]) -> None:
    """Print one row for each promise: what was proved, and the quality as mean (sd over the runs)."""
    lines = []
    for epsilon, bound, values in rows:
        promised = "none" if epsilon is None else f"{epsilon:g}"
        shown = f"{bound.epsilon:.2f}", f"{bound.most:.2f}", f"{bound.right} of {bound.guesses}"
        lines.append([promised, *shown, *(f"{v.mean():.3f} ({v.std(ddof=1):.3f})" for v in values.T)])
    table([f"promised epsilon of a {unit}", "proved, at least", "could be proved", "right guesses", *quality], lines)


def head(
    x: np.ndarray, y: np.ndarray, people: np.ndarray, *, epsilon: float | None, patients: int, steps: int
) -> np.ndarray:
    """Return the weights (features, genes) of a linear head; the patient is the unit unless epsilon is None."""
    import torch

    from histocrypt.training.private import PatientSteps

    if epsilon is None:
        return np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    network = torch.nn.Linear(x.shape[1], y.shape[1], bias=False)
    torch.nn.init.zeros_(network.weight)
    known, said = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)

    def loss(rows: np.ndarray, _: torch.Generator) -> torch.Tensor:
        return (network(known[rows]) - said[rows]).square().sum(1).mean()

    lesson = PatientSteps(
        network,
        torch.optim.SGD(network.parameters(), lr=RATE),
        loss,
        people,
        epsilon=epsilon,
        delta=DELTA,
        clip=CLIP,
        batch=patients,
        steps=steps,
        expected=patients,  # not those that the coins left: their number must not show either
    )
    for batch in lesson.batches(steps):
        lesson.step(batch)
    return network.weight.detach().numpy().T.astype(np.float64)


def predictor(spots: Spots, *, patients: int, unseen: int, runs: int, steps: int, seed: int) -> None:
    names = np.unique(spots.people)
    others = names[patients : patients + unseen]
    known, y, people = np.isin(spots.people, names[:patients]), spots.expression, spots.people
    for wide in (False, True):
        x, rows = spots.features(wide=wide), []
        for epsilon in PROMISED:
            found = []

            def train_one(inside: np.ndarray, _: int, x=x, epsilon=epsilon, found=found) -> np.ndarray:
                own = np.flatnonzero(known)[inside]
                weights = head(x[own], y[own], people[own], epsilon=epsilon, patients=patients, steps=steps)
                found.append([np.mean([correlation(x @ weights, y, people == name) for name in others])])
                return np.square(x[known] @ weights - y[known]).mean(1)

            scores, coins = coin_runs(train_one, people[known], runs=runs, seed=seed)
            bound = lower_bound(scores, coins, delta=0.0 if epsilon is None else DELTA)
            rows.append((epsilon, bound, np.array(found)))
        print(f"Linear head on {x.shape[1]} numbers of a tile, {y.shape[1]} genes:\n")
        report("patient", (f"correlation on {unseen} unseen patients, mean (sd) of runs",), rows)
    print(f"{patients} patients by coins, {runs} runs; delta {DELTA:g} with a promise, else 0; {steps} steps.\n")


def correlation(said: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float:
    return float((z(said[rows]) * z(truth[rows])).mean())


def generator(spots: Spots, *, patients: int, unseen: int, runs: int, each: int, epochs: int, seed: int) -> None:
    import torch

    from histocrypt.audit.memorisation import denoising_loss
    from histocrypt.options import GeneratorPlan
    from histocrypt.synthesis.generator import Generator, Privacy, build, train_generator
    from histocrypt.synthesis.manifest import TISSUE, Pairs, resized, resized_mask
    from histocrypt.synthesis.sampling import sample

    side, names = 16, np.unique(spots.people)
    rng = np.random.default_rng([seed, 12])
    some = np.concatenate(
        [rng.choice(np.flatnonzero(spots.people == name), each, replace=False) for name in names[: patients + unseen]]
    )
    masks = [resized_mask(np.where(one, 3, 1).astype(np.uint8), side) for one in spots.tumour[some]]
    every = Pairs(
        TISSUE,
        ids=np.array([f"{spots.people[row]}:{row}" for row in some]),
        labels=np.where(spots.tumour[some].mean((1, 2)) > 0.5, "tumour", "normal"),
        patients=spots.people[some],
        images=np.stack([resized(tile, side) for tile in spots.tiles[some]]),
        masks=np.stack(masks),
        has_mask=np.ones(len(some), dtype=bool),
    )
    pairs = every.subset(np.isin(every.patients, names[:patients]))
    others = every.subset(np.isin(every.patients, names[patients : patients + unseen]))
    plan = GeneratorPlan(
        width=16,
        multipliers=(1,),
        blocks=1,
        patch=2,
        objective="velocity",
        steps=100,
        dropout=0.0,
        batch=8,
        learning_rate=3e-3,
        ema=0.9,
        augment=False,
    )
    rows = []
    for epsilon in PROMISED:
        privacy, found = None if epsilon is None else Privacy(epsilon, DELTA, CLIP, "patient"), []

        def train_one(inside: np.ndarray, own: int, privacy=privacy, found=found) -> np.ndarray:
            with tempfile.TemporaryDirectory() as folder:
                made = train_generator(
                    pairs.subset(inside), plan, folder=Path(folder), epochs=epochs, seed=own, privacy=privacy
                )
            asked = others.labels[np.isin(others.labels, made.classes)][:60]
            drawn = sample(made, labels=asked, seed=own, steps=10)
            away = frechet(colours(drawn.images), colours(others.images))
            found.append([denoising_loss(made, others, draws=2).mean(), away])
            return denoising_loss(made, pairs, draws=2)

        scores, coins = coin_runs(train_one, pairs.patients, runs=runs, seed=seed)
        bound = lower_bound(scores, coins, delta=0.0 if epsilon is None else DELTA)
        rows.append((epsilon, bound, np.array(found)))
        print(f"promised {epsilon}: {bound.sentence()}", flush=True)
    halves = [colours(pairs.images), colours(others.images)]
    torch.manual_seed(seed)
    fresh = Generator(build(plan, TISSUE, side=side, colours=3).eval(), plan, TISSUE, side, 3, {}, torch.device("cpu"))
    print()
    report("patient", ("denoising loss on unseen patients", "distance of colours from theirs"), rows)
    print(
        f"{patients} patients by coins with {each} tiles of {side} pixels each, {unseen} unseen, {runs} runs, {epochs} "
        f"epochs; delta {DELTA:g} with a promise, else 0. Tiles of the two groups of real patients are "
        f"{frechet(*halves):.3f} apart; "
        f"the loss of a generator that has learned nothing is {denoising_loss(fresh, others, draws=2).mean():.3f}.\n"
    )


def colours(images: np.ndarray) -> np.ndarray:
    """Return the mean and spread of each channel's optical density, (n, 6)."""
    density = -np.log((images.astype(np.float64) + 1) / 256)
    return np.concatenate([density.mean((1, 2)), density.std((1, 2))], axis=1)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two Gaussians in units of b's spread (Heusel et al., NeurIPS 2017)."""
    a, b = (a - b.mean(0)) / b.std(0), (b - b.mean(0)) / b.std(0)
    root = np.sqrt(np.maximum(np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real, 0))
    return float(np.square(a.mean(0)).sum() + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * root.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="all if not given")
    parser.add_argument("--draws", type=int, default=1000, help="audits of each mechanism of known epsilon")
    parser.add_argument("--patients", type=int, default=40, help="by coins")
    parser.add_argument("--unseen", type=int, default=20, help="further patients, for the quality")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="of a head's private training")
    parser.add_argument("--tiles", type=int, default=6, help="of each patient, for generators")
    parser.add_argument("--epochs", type=int, default=15, help="of each generator")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.part in (None, "limits"):
        limits()
    if given.part in (None, "calibration"):
        calibration(given.draws)
    if given.part in ("limits", "calibration"):
        return
    number = given.patients + given.unseen
    spots = cohort(outputs() / "epsilon" / f"patients_{number}_{given.seed}", number, given.seed)
    shared = {"patients": given.patients, "unseen": given.unseen, "runs": given.runs, "seed": given.seed}
    if given.part in (None, "predictor"):
        predictor(spots, steps=given.steps, **shared)
    if given.part in (None, "generator"):
        generator(spots, each=given.tiles, epochs=given.epochs, **shared)


if __name__ == "__main__":
    main()
