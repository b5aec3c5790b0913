"""Print what each attack finds of planted leaks of known strength in simulated cohorts, and that it is silent without.

``attacks.py`` prints AUC and the share of members found at 1 % of false alarms, means over cohorts; then, without any
leak, how often an interval lies above a guess: of each attack alone, of the best of them uncorrected, and corrected for
choosing (`histocrypt.audit.strongest`).

A cohort has patients of 25 spots. A model knows the expected expression of a spot up to an error of its own, and of
each member's spot it has learnt a share of the noise by heart: the leak, 0 to 1. Spots differ in noise and patients in
all. Who is a member is drawn. Without a leak nothing tells members apart, so an AUC is 0.5 but for chance.
"""

import argparse

import numpy as np

from histocrypt.audit.membership import calibrated, in_and_out, judge, lira, loss_threshold
from histocrypt.audit.quantiles import Strangers
from histocrypt.audit.ratios import rmia
from histocrypt.audit.shadow import halves
from histocrypt.audit.strongest import simultaneous

SPOTS, GENES, FEATURES = 25, 12, 8
MODEL_ERROR, NOISE, PATIENT = 0.15, 0.6, 0.4
LEAKS = (0.0, 0.05, 0.1, 0.2, 0.4)


class Cohort:
    """Patients with spots, of which models can be asked for."""

    def __init__(self, patients: int, *, seed: int) -> None:
        self.rng = rng = np.random.default_rng([seed, 20])
        self.patients = np.repeat([f"P{i:03d}" for i in range(patients)], SPOTS)
        person = np.repeat(np.arange(patients), SPOTS)
        self.x = rng.normal(size=(len(person), FEATURES)) + PATIENT * rng.normal(size=(patients, FEATURES))[person]
        self.weights = rng.normal(size=(FEATURES, GENES)) / np.sqrt(FEATURES)
        hard = np.exp(0.5 * rng.normal(size=len(person)) + 0.4 * self.x[:, 0])  # depth, which a tile partly shows
        hard *= np.exp(PATIENT * rng.normal(size=patients))[person]
        self.noise = NOISE * hard[:, None] * rng.normal(size=(len(person), GENES))
        self.truth = self.x @ self.weights + self.noise

    def loss(self, member: np.ndarray, leak: float) -> np.ndarray:
        """Return (n,) losses of a model that learnt a share of each member's noise."""
        apart = self.x @ (MODEL_ERROR * self.rng.normal(size=self.weights.shape) / np.sqrt(FEATURES))
        error = self.noise * np.where(member, 1 - leak, 1.0)[:, None] - apart
        return np.square(error).mean(axis=1)


def attacked(patients: int, leak: float, *, shadows: int, seed: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return the scores of every attack on a model of one cohort, who is a member, and whose spots they are."""
    cohort = Cohort(patients, seed=seed)
    names = cohort.patients
    member = np.isin(names, cohort.rng.permutation(np.unique(names))[: patients // 2])
    loss, inside = cohort.loss(member, leak), halves(names, shadows, seed=seed)
    loss_in, loss_out = in_and_out(np.stack([cohort.loss(mask, leak) for mask in inside]), inside)
    strangers = Strangers(np.concatenate([cohort.truth, cohort.x], axis=1), member, names, seed=seed)
    scores = {
        "loss threshold": loss_threshold(loss),
        "calibrated": calibrated(loss, loss_out),
        "LiRA, offline": lira(loss, None, loss_out),
        "LiRA": lira(loss, loss_in, loss_out),
        "RMIA, offline": rmia(loss, None, loss_out, population=~member),
        "RMIA": rmia(loss, loss_in, loss_out, population=~member),
        "quantile regression": strangers.scores(loss),
    }
    return scores, member, names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=80, help="half of them members (default: %(default)s)")
    parser.add_argument("--shadows", type=int, default=8)
    parser.add_argument("--cohorts", type=int, default=8, help="for each leak (default: %(default)s)")
    parser.add_argument("--silent", type=int, default=100, help="cohorts without a leak (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=400)
    asked = parser.parse_args()
    found, names = {}, []
    alone, both = {}, {"best, as it is": 0, "best, corrected": 0}
    for leak in LEAKS:
        number = asked.silent if leak == 0 else asked.cohorts
        rows = []
        for seed in range(number):
            scores, member, patients = attacked(asked.patients, leak, shadows=asked.shadows, seed=seed)
            draws = {"draws": asked.draws if leak == 0 else 2, "seed": seed}
            judged = {name: judge(values, member, patients, **draws) for name, values in scores.items()}
            rows.append([(one.auc, (one.tpr_at[0.01] or [np.nan])[0]) for one in judged.values()])
            if leak == 0:
                apart = {name: one.auc_interval[0] > 0.5 for name, one in judged.items()}
                for name, lies in apart.items():
                    alone[name] = alone.get(name, 0) + lies
                held = simultaneous({name: one.auc_drawn for name, one in judged.items()})
                both["best, as it is"] += any(apart.values())
                both["best, corrected"] += any(low > 0.5 for low, _ in held.values())
            names = list(scores)
        found[leak] = np.mean(rows, axis=0), np.std(rows, axis=0) / np.sqrt(number)
    print(f"{asked.patients} patients of {SPOTS} spots, {asked.shadows} shadows; {asked.cohorts} cohorts a leak, "
          f"{asked.silent} without. AUC / found at 1 % (standard error of the mean)\n")  # fmt: skip
    print("| attack | " + " | ".join(f"leak {leak:g}" for leak in LEAKS) + " |\n|---" + "|---" * len(LEAKS) + "|")
    for place, name in enumerate(names):
        cells = [
            f"{mean[place, 0]:.3f} ({error[place, 0]:.3f}) / {mean[place, 1]:.3f} ({error[place, 1]:.3f})"
            for mean, error in found.values()
        ]
        print("| " + " | ".join([name, *cells]) + " |")
    print("\nWithout a leak, cohorts whose interval lies above 0.5 (nominal: 0.025 each):\n")
    print("| attack | share |\n|---|---|")
    for name, count in {**alone, **both}.items():
        print(f"| {name} | {count / asked.silent:.3f} |")


if __name__ == "__main__":
    main()
