"""Print what a network made for encryption predicts on held-out patients, by depth, direct and as a student.

    python benchmarks/fhe_networks.py studies/breast.yaml [--teacher resnet18] [--depths 3 5 7 9] [--seeds 3]
    python benchmarks/fhe_networks.py studies/breast.yaml --residual

The study must have run up to the training of the teacher: its sections, tiles, folds, and the teacher's weights and
predictions are used as they are, and nothing is written into its run folder. Scores are the study's: Pearson's r per
gene of the main transform within each held-out section, averaged over genes, then sections; intervals from the same
bootstrap over spatial blocks, differences on the same draws. With several seeds, scores are averaged over them.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from histocrypt.data.folds import FINAL, Fold, load_folds
from histocrypt.data.load import FoldData, Spots, load_test, load_training, scaling_of
from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap, metrics
from histocrypt.models.fhe import watched
from histocrypt.pipeline.predictions import join, read_h5ad, read_prediction
from histocrypt.pipeline.train import fit
from histocrypt.predictors.registry import MODELS, tile_side
from histocrypt.spatial import squares
from histocrypt.study import Study, load_study, parse_study
from histocrypt.training.loop import mean_section_pearson

CNN, RESIDUAL = "fhe_cnn", "fhe_resnet18"


@dataclass
class Row:
    """What is known of one network, over all folds and seeds."""

    title: str
    scores: list[float] = field(default_factory=list)
    """One per section and seed."""
    draws: list[np.ndarray] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parameters: int | None = None

    def interval(self, other: Row | None = None) -> str:
        """Return the mean over sections with its interval, or of the difference to another row."""
        draws, score = np.mean(self.draws, axis=0), np.mean(self.scores)
        if other is not None:
            draws, score = draws - np.mean(other.draws, axis=0), score - np.mean(other.scores)
        low, high = bootstrap.interval(draws, score)
        sign = "" if other is None else "+"
        return f"{score:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


class Held:
    """A fold's held-out sections: their truth, their bootstrap draws, and how predictions are scored on them."""

    def __init__(self, study: Study, fold: Fold, seeds: np.random.SeedSequence) -> None:
        self.study, self.fold, self.main = study, fold, study.target.transforms[0]
        self.sections = {
            name: read_h5ad(study.run.section(name), what="cleaned section") for name in fold.test_sections
        }
        self.seeds = {name: seeds.spawn(1)[0] for name in fold.test_sections}

    def add_stored(self, row: Row, model: str) -> None:
        """Score the predictions that a model of the study left in the run folder."""
        prediction = read_prediction(self.study.run.prediction(model, self.fold.name))
        for name, section in self.sections.items():
            pair = join(prediction, section, name, transforms=[self.main])
            self._add(row, name, pair.coords, pair.true[self.main], pair.predicted[self.main])

    def add_predicted(self, row: Row, test: Spots, predicted: np.ndarray, like: str) -> None:
        """Score (n, outputs) predictions of test spots; ``like`` is a model whose stored predictions name the truth."""
        prediction = read_prediction(self.study.run.prediction(like, self.fold.name))
        spots = {name: i for i, name in enumerate(test.names.tolist())}
        outputs = {name: i for i, name in enumerate(test.outputs)}
        for name, section in self.sections.items():
            pair = join(prediction, section, name, transforms=[self.main])
            rows = [spots[spot] for spot in pair.spots.tolist()]
            columns = [outputs[f"{self.main}:{gene}"] for gene in pair.genes.tolist()]
            self._add(row, name, pair.coords, pair.true[self.main], predicted[np.ix_(rows, columns)].astype(np.float64))

    def _add(self, row: Row, name: str, coords: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> None:
        evaluation = self.study.evaluation
        um_per_px = float(self.sections[name].uns.get("preprocessing", {}).get("um_per_px", 1.0))
        labels = squares(coords * um_per_px, evaluation.block_um)
        rng = np.random.default_rng(self.seeds[name])
        weights = bootstrap.draw_weights(labels.max() + 1, evaluation.bootstrap, rng)
        row.scores.append(float(np.nanmean(metrics.pearson(true, predicted))))
        row.draws.append(bootstrap.pearson_of_draws(bootstrap.block_sums(true, predicted, labels), weights))


def train(
    row: Row, study: Study, network: str, data: FoldData, test: Spots, held: Held, *, seed: int, like: str
) -> None:
    """Train one network on one fold and add its scores to the row."""
    started = time.monotonic()
    predictor, _, validation = fit(study, network, data, seed=seed)
    row.seconds.append(time.monotonic() - started)
    row.parameters = sum(weight.numel() for weight in predictor.network.parameters())
    row.validation.append(mean_section_pearson(validation, data.validation.targets, data.validation.sections))
    with watched(predictor.network, largest=True) as ranges:
        predicted = scaling_of(study, data.fold).restore(predictor.predict(test))
    row.largest.append(max(ranges.largest.values()))
    held.add_predicted(row, test, predicted, like)


@dataclass(frozen=True)
class Variant:
    """One way to train one network."""

    title: str
    network: str
    study: Study


def changed(study: Study, file: Path, network: str, **settings: object) -> Study:
    """Return the study with these settings of one network, and its own settings otherwise; None takes one away."""
    own = {**study.models.get(network, {}), **settings}
    models = {**study.models, network: {key: value for key, value in own.items() if value is not None}}
    return parse_study({**study.model_dump(mode="json"), "models": models}, file=file)


def by_depth(study: Study, file: Path, depths: list[int], teacher: str) -> list[Variant]:
    """Return the plain networks of some depths, each alone and as a student."""
    return [
        Variant(
            f"depth {depth}, {role}", CNN,
            changed(study, file, CNN, depth=depth, teacher=teacher if role == "student" else None),
        )
        for depth in depths
        for role in ("direct", "student")
    ]  # fmt: skip


def residual(study: Study, file: Path, teacher: str) -> list[Variant]:
    """Return ResNet-18 whose ReLUs give way to squares, and a light network that is of squares from the start."""
    light = {"width": 16, "blocks": [1, 1], "replace_over": None, "learning_rate": 0.003, "epochs": 30}
    return [
        Variant("ResNet-18, squares for ReLUs", RESIDUAL, changed(study, file, RESIDUAL, teacher=teacher)),
        Variant("light residual", RESIDUAL, changed(study, file, RESIDUAL, teacher=teacher, distil=0.9, **light)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--teacher", default="resnet18", help="a trained model of the study")
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 5, 7, 9])
    parser.add_argument("--residual", action="store_true", help="the residual networks instead")
    parser.add_argument("--seeds", type=int, default=1, help="trainings a network and fold, with other seeds")
    arguments = parser.parse_args()
    teacher = arguments.teacher
    try:
        study = load_study(arguments.study)
        folds = [fold for fold in load_folds(study.run.folds) if fold.name != FINAL]
        if arguments.residual:
            variants = residual(study, arguments.study, teacher)
        else:
            variants = by_depth(study, arguments.study, arguments.depths, teacher)
        stored = {name: Row(MODELS[name].title) for name in dict.fromkeys(("colour_ridge", "encoder_ridge", teacher))}
        rows = [Row(variant.title) for variant in variants]
        seeds = np.random.SeedSequence(study.seed)
        bar = tqdm(total=len(folds) * len(rows) * arguments.seeds, desc="networks", unit="training")
        for fold in folds:
            held = Held(study, fold, seeds)
            for name, row in stored.items():
                held.add_stored(row, name)
            network = variants[0].network
            side = tile_side(network, study.training_of(network))
            data = load_training(study, fold, side=side)
            test = load_test(study, data, side=side)
            for row, one in zip(rows, variants, strict=True):
                for number in range(arguments.seeds):
                    train(row, one.study, network, data, test, held, seed=study.seed + number, like=teacher)
                    bar.update()
        bar.close()
    except InputError as error:
        sys.exit(f"fhe_networks: {error}")

    n_sections = sum(len(fold.test_sections) for fold in folds)
    many = f", mean of {arguments.seeds} seeds" if arguments.seeds > 1 else ""
    scale = study.target.transforms[0]
    print(f"\n{study.name}: {len(folds)} folds, {n_sections} held-out sections, {scale}, teacher {teacher}{many}\n")
    heads = ["network", "parameters", f"held-out r ({scale})", f"less {MODELS[teacher].title}",
             "r on validation", "largest value squared", "training s a fold"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, row in stored.items():
        less = "" if name == teacher else row.interval(stored[teacher])
        print(f"| {row.title} |  | {row.interval()} | {less} |  |  |  |")
    for row in rows:
        cells = [row.title, f"{row.parameters:,}", row.interval(), row.interval(stored[teacher])]
        cells += [f"{np.mean(row.validation):.3f}", f"{max(row.largest):.1f}", f"{np.mean(row.seconds):.0f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
