"""Print what an audit proves against epsilon, and what a patient's differential privacy costs: ``epsilon.py [PART]``.

``limits``: the largest bound that so many canaries can show. ``calibration``: how often a bound exceeds a known epsilon
(randomised response), and what it finds of leaks planted in graded strength. ``predictor``: simulated patients, each in
or out by a coin; a linear head on colours is trained without and with differential privacy of the patient. Beside the
promised epsilon stand the lower bound that the attack proves, and the correlation on patients that were never seen.
"""

import argparse
from pathlib import Path

import numpy as np

from histocrypt.audit.lower_bound import coin_runs, epsilon_at_least, lower_bound, most_shown, toss
from histocrypt.paths import outputs

KINDS = ("limits", "calibration", "predictor")
DELTA = 1e-3
CLIP, RATE = 1.0, 0.05


def table(heads: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def limits() -> None:
    counts, deltas = (3, 5, 10, 20, 40, 100, 200, 400, 1000), (0.0, 1e-5, 1e-3)
    table(
        ["canaries", *(f"delta {delta:g}" for delta in deltas)],
        [[str(m), *(f"{most_shown(m, delta=delta):.2f}" for delta in deltas)] for m in counts],
    )
    print(f"With 20 canaries no attack shows more than epsilon = {most_shown(20):.2f} at 95 %.\n")


def calibration(draws: int) -> None:
    from scipy.stats import binomtest

    rng, rows = np.random.default_rng(0), []
    for m in (20, 100, 400):
        for epsilon in (0.0, 1.0, 2.0, 4.0):
            right = rng.binomial(m, 1 / (1 + np.exp(-epsilon)), draws)
            bound = {v: epsilon_at_least(m, m, v) for v in np.unique(right).tolist()}
            bounds = np.array([bound[v] for v in right.tolist()])
            above = binomtest(int((bounds > epsilon).sum()), draws)
            low, high = above.proportion_ci()
            share = f"{above.statistic:.3f} ({low:.3f} to {high:.3f})"
            rows.append([str(m), f"{epsilon:g}", f"{np.median(bounds):.2f}", share])
    table(["canaries", "true epsilon", "median bound", "share of bounds above it, .05 allowed"], rows)
    rows = []
    for strength in (0.0, 0.5, 1.0, 2.0, 4.0):
        row = [f"{strength:g}"]
        for m in (20, 100, 400):
            found = []
            for seed in range(100):
                coins, noise = toss(np.arange(m), seed=seed), np.random.default_rng([seed, 8]).normal(size=m)
                found.append(lower_bound(strength * coins + noise, coins).epsilon)
            row.append(f"{np.median(found):.2f}; {np.mean(np.array(found) > 0):.2f}")
        rows.append(row)
    table(["leak, sd of the scores' noise", *(f"{m} canaries: median; share above 0" for m in (20, 100, 400))], rows)


def spots(folder: Path, patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return colours (n, 12), expression (n, genes) and patients of a cohort; each section standardises itself."""
    from anndata import read_h5ad
    from PIL import Image

    from histocrypt.demo.write import demo_in

    colours, expression, people = [], [], []
    for file in demo_in(folder, sections=patients, spots_per_side=8, genes=40, seed=seed):
        section = read_h5ad(file)
        known = ~section.obs_names.isin([*section.uns["demo"]["planted"]["off_tissue"]])
        counts = np.nan_to_num(section.X.toarray()[known])
        pixels = np.asarray(Image.open(file.with_suffix(".png")), dtype=np.float64)
        density = -np.log((pixels + 1) / 256)
        places = section.obsm["spatial"][known].astype(int).tolist()
        tiles = [density[y - 27 : y + 28, x - 27 : x + 28].reshape(-1, 3) for x, y in places]
        seen = np.array([[*tile.mean(0), *tile.std(0)] for tile in tiles])
        depth = counts.sum(1, keepdims=True)
        said = np.log1p(counts / np.maximum(depth, 1) * 1e4)
        colours.append(np.concatenate([z(seen), z(seen**2)], axis=1))
        expression.append(z(said))
        people.append(np.full(len(said), section.uns["patient"]))
    return np.concatenate(colours), np.concatenate(expression), np.concatenate(people)


def z(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)


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


def predictor(folder: Path, *, patients: int, runs: int, steps: int, seed: int) -> None:
    x, y, people = spots(folder, 2 * patients, seed)
    names = np.unique(people)
    seen, unseen = names[:patients], names[patients:]
    known, rows = np.isin(people, seen), []
    for epsilon in (None, 16.0, 4.0, 1.0):
        correlations = []

        def train_one(inside: np.ndarray, _: int, epsilon=epsilon, kept=correlations) -> np.ndarray:
            own = known & np.isin(people, np.unique(people[known][inside]))
            weights = head(x[own], y[own], people[own], epsilon=epsilon, patients=patients, steps=steps)
            kept.append(np.mean([correlation(x @ weights, y, people == name) for name in unseen]))
            return np.square(x[known] @ weights - y[known]).mean(1)

        scores, coins = coin_runs(train_one, people[known], runs=runs, seed=seed)
        bound = lower_bound(scores, coins, delta=0.0 if epsilon is None else DELTA)
        mean, spread = np.mean(correlations), np.std(correlations, ddof=1)
        promised = "none" if epsilon is None else f"{epsilon:g}"
        shown = f"{bound.epsilon:.2f}", f"{bound.most:.2f}", f"{bound.right} of {bound.guesses}"
        rows.append([promised, *shown, f"{mean:.3f} ({spread:.3f})"])
        print(bound.sentence())
    print()
    columns = "promised epsilon of a patient", "proved, at least", "could be proved", "right guesses"
    table([*columns, "correlation on unseen patients, mean (sd) of runs"], rows)
    print(f"{patients} patients in or out by coins, {runs} runs, {patients} unseen; delta {DELTA:g}; {steps} steps.")


def correlation(said: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float:
    return float((z(said[rows]) * z(truth[rows])).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=KINDS, help="all if not given")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--patients", type=int, default=20, help="by coins, and as many unseen")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.part in (None, "limits"):
        limits()
    if given.part in (None, "calibration"):
        calibration(given.draws)
    if given.part in (None, "predictor"):
        folder = outputs() / "epsilon" / f"demo_{given.patients}"
        predictor(folder, patients=given.patients, runs=given.runs, steps=given.steps, seed=given.seed)


if __name__ == "__main__":
    main()
