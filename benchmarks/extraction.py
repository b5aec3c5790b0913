"""What it takes a client to copy a model by asking, measured on a study that was run: the copy against the original.

    python benchmarks/extraction.py studies/demo.yaml --model fhe_cnn [--fold fold_1] [--spots 10 30 100 200]

The client owns sections that the model never saw, has no measured expression, and knows what the public part tells: the
kind of network, how inputs are cut and normalised. It asks for predictions of so many spots, answered in the clear here
(ciphertexts answer the same up to 1e-5 of a deviation, `benchmarks/encrypted.py`), and learns from the answers:

- ``same network``: the same kind, from scratch, as many steps as the original had;
- ``ridge``: on the frozen encoder that everybody has.

Each test section in turn is held out: there copy and original are compared, spot by spot, gene by gene (Pearson's, mean
over outputs), and both with measured values, which the client never sees. With ``--json`` (say
``outputs/<study>/audit/<fold>/extraction_<model>.json``) `histocrypt fhe card --audit` finds the figures.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from histocrypt.audit.subjects import Auditable
from histocrypt.correlation import pearson
from histocrypt.data.load import Spots
from histocrypt.encrypted.service_card import EXTRACTION_FORMAT
from histocrypt.files import write_json
from histocrypt.predictors.registry import MODELS, build
from histocrypt.study import load_study

ENCODER = "efficientnet_lite0_128"
SAME, RIDGE = "same network", "ridge"


def copied(able: Auditable, answered: Spots, rest: Spots, *, way: str, seed: int) -> np.ndarray:
    """Return (rest, outputs) what a copy that learnt from the answers says of other spots."""
    if way == RIDGE:
        from sklearn.linear_model import RidgeCV

        seen, other = answered.features(ENCODER), rest.features(ENCODER)
        mean, sd = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-6)
        fitted = RidgeCV(np.logspace(0, 6, 13)).fit((seen - mean) / sd, answered.targets)
        return fitted.predict((other - mean) / sd)
    settings = able.study.training_of(able.model).model_copy(update={"teacher": None, "distil": 0.0})
    copy = build(able.model, answered.outputs, settings=settings, options=able.study.options_of(able.model))
    chosen = able.trained.about["chosen"]
    if MODELS[able.model].kind == "network":
        steps = chosen["epochs"] * able.trained.about["n_train_spots"] / settings.batch_size
        chosen = {**chosen, "epochs": round(steps / max(1, len(answered.names) / settings.batch_size))}
    copy.fit(answered, None, seed=seed, chosen=chosen)
    return copy.predict(rest)


def measured(able: Auditable, numbers: list[int], seed: int) -> list[dict]:
    """Return a row for each way and number of spots: means over the sections held out, and their extremes."""
    spots, answers = able.spots(), able.records.prediction
    asking = np.isin(spots.sections, able.sides.non_members)
    rows = []
    for way in (SAME, RIDGE):
        for number in numbers:
            alike, theirs, own = [], [], []
            for turn, held_out in enumerate(able.sides.non_members):
                rng = np.random.default_rng([seed, turn])
                where = np.flatnonzero(asking & (spots.sections != held_out))
                if number > len(where):
                    continue
                where = np.sort(rng.choice(where, number, replace=False))
                out = np.flatnonzero(spots.sections == held_out)
                answered = replace(spots.subset(where), targets=answers[where])
                said = copied(able, answered, spots.subset(out), way=way, seed=seed)
                alike.append(float(np.nanmean(pearson(answers[out], said))))
                theirs.append(float(np.nanmean(pearson(spots.targets[out], said))))
                own.append(float(np.nanmean(pearson(spots.targets[out], answers[out]))))
            if alike:
                rows.append(
                    {
                        "way": way,
                        "spots": number,
                        "sections": len(alike),
                        "correlation": float(np.mean(alike)),
                        "low": min(alike),
                        "high": max(alike),
                        "copy_with_measured": float(np.mean(theirs)),
                        "original_with_measured": float(np.mean(own)),
                    }
                )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--model", default="fhe_cnn")
    parser.add_argument("--fold", default="fold_1")
    parser.add_argument("--spots", type=int, nargs="+", default=[10, 30, 100, 200])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    able = Auditable(load_study(given.study), given.model, given.fold)
    rows = measured(able, given.spots, given.seed)
    print("| copy | spots asked | with the original (each section) | copy with measured | original with measured |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['way']} | {row['spots']} | {row['correlation']:.2f} ({row['low']:.2f} to {row['high']:.2f}) "
            f"| {row['copy_with_measured']:.2f} | {row['original_with_measured']:.2f} |"
        )
    if given.json:
        weights = able.trained.about["weights"]["sha256"]
        write_json(given.json, {"format": EXTRACTION_FORMAT, "version": 1, "weights_sha256": weights, "copied": rows})


if __name__ == "__main__":
    main()
