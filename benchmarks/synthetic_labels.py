"""What drawn tiles teach of the tissue label, before and after the mend, and what the drawing costs.

``histocrypt run STUDY --until 22_folds``, then ``python benchmarks/synthetic_labels.py STUDY``. Generators learn from
the training patients of the fold; labels are judged on its validation patients, as long as something is chosen, and on
its test patients with ``--part test``. Options of the generator are given as ``name=value``, e.g. ``side=64 patch=4``;
without them those of the study hold, and ``--before`` sets those that the demo had before (`BEFORE`).

Printed: CPU seconds; the spread of the encoder's features of drawn tiles in shares of real ones'; AUC within patients
of the label learned from real, drawn and both, from encoder and from colours alone, with 95 % intervals (bootstrap over
blocks of tissue within these patients), and the difference from real.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from histocrypt.evaluation.bootstrap import interval
from histocrypt.options import GeneratorPlan
from histocrypt.study import load_study
from histocrypt.synthesis import pipeline
from histocrypt.synthesis.generator import train_generator
from histocrypt.synthesis.manifest import Pairs
from histocrypt.synthesis.sampling import sample
from histocrypt.synthesis.utility import judge, label_probabilities, look

BEFORE = {"signal": "range", "components": None, "stain": False, "mask_given": 0.0, "patch": 1, "width": 16, "batch": 8}
ROWS = ("real", "synthetic", "both", "colour_only", "colour_synthetic")


def main() -> None:
    """Train, draw, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("options", nargs="*", help="of the generator, and side, epochs, per_class, steps, guidance")
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--part", choices=("validation", "test"), nargs="+", default=["validation"])
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--masks", choices=("with", "first"), default="with")
    parser.add_argument("--folder", type=Path, help="where the generator is kept")
    parser.add_argument("--tiles", type=int, help="of each part and class at most, to save time")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_intermixed_args()
    study = load_study(given.study)
    options = {name: json.loads(value) for name, value in (each.split("=", 1) for each in given.options)}
    part = study.synthesis
    own = {"side": part.side, "epochs": part.epochs, "per_class": part.per_class, "steps": part.sampler_steps}
    own = {name: options.pop(name, value) for name, value in {**own, "guidance": part.guidance}.items()}
    plan = GeneratorPlan(**{**dict(part.generator), **(BEFORE if given.before else {}), **options})
    study = study.model_copy(update={"synthesis": part.model_copy(update={"side": own["side"]})})
    fold = pipeline.fold_of(study, part.fold)
    real = {name: few(pairs, given.tiles, study.seed) for name, pairs in pipeline.real_pairs(study, fold).items()}
    clock = time.process_time()
    folder = given.folder or Path(tempfile.mkdtemp())
    generator = train_generator(real["train"], plan, folder=folder, epochs=own["epochs"], seed=study.seed)
    print(f"training: {time.process_time() - clock:.0f} CPU s, {len(real['train'])} tiles of {own['side']} px")
    clock = time.process_time()
    way = {"seed": study.seed, "steps": own["steps"], "sampler": given.sampler, "guidance": own["guidance"]}
    labels = np.repeat(generator.classes, own["per_class"])
    drawn = sample(generator, labels=labels, **way)
    if given.masks == "first":
        drawn = sample(generator, labels=labels, **{**way, "seed": study.seed + 1}, masks=drawn.masks)
    print(f"drawing {len(drawn)}: {time.process_time() - clock:.0f} CPU s", flush=True)
    if given.picture:
        from PIL import Image

        rows = [
            np.concatenate(list(pairs.images[pairs.labels == label][:10]), axis=1)
            for pairs in (real["train"], drawn)
            for label in generator.classes
        ]
        Image.fromarray(np.concatenate(rows)).save(given.picture)
    for name in given.part:
        print(f"judged on {name} patients:")
        report(study, {"real": real["train"], "synthetic": drawn}, real["validation"], real[name])


def few(pairs: Pairs, most: int | None, seed: int) -> Pairs:
    """Return at most so many tiles of each class, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    kept = [order[pairs.labels[order] == name][:most] for name in pairs.scheme.classes]
    return pairs.subset(np.sort(np.concatenate(kept)))


def report(study: object, sets: dict[str, Pairs], validation: Pairs, judged: Pairs) -> None:
    """Print what each set teaches."""
    looked = look({**sets, "validation": validation, "test": judged})
    sets = {**sets, "both": Pairs.join([sets["real"], sets["synthetic"]])}
    spread = {name: looked[name]["encoder"].std(axis=0) for name in ("real", "synthetic")}
    alive = spread["real"] > 1e-3
    print(f"spread of features: {np.median(spread['synthetic'][alive] / spread['real'][alive]):.2f} of real")
    found, _ = label_probabilities(sets, validation, judged, looked=looked)
    blocks = pipeline.blocks_of(study, judged)
    scores, drawn = judge({}, found, judged, blocks=blocks, draws=400, seed=study.seed)
    for name in ROWS:
        value, each = scores[name]["auc"], drawn[name]["auc"]
        low, high = interval(each, value)
        less = value - scores["real"]["auc"]
        lower, upper = interval(each - drawn["real"]["auc"], less)
        print(f"{name:17} {value:.3f} ({low:.3f} to {high:.3f}); less real {less:+.3f} ({lower:+.3f} to {upper:+.3f})")


if __name__ == "__main__":
    main()
