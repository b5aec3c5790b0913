"""Print what a network made for encryption predicts on held-out patients, by depth and width, direct and as a student.

    python benchmarks/fhe_networks.py studies/breast.yaml [--teacher resnet18] [--depths 3 5 7 9] [--widths 1 2 4]
    python benchmarks/fhe_networks.py studies/breast.yaml --depths 5 --kernels 12,2 8,4 12,4 --seeds 2 --keep FOLDER
    python benchmarks/fhe_networks.py studies/breast.yaml --residual

The study must have run up to the training of the teacher: its sections, tiles, folds, and the teacher's weights and
predictions are used as they are, and nothing is written into its run folder. Scores are the study's: Pearson's r per
gene of the main transform within each section, averaged over genes, then sections; intervals from the same bootstrap
over spatial blocks, differences on the same draws. With several seeds, scores are averaged over them; beside them
stands the score of the networks side by side, whose predictions are averaged: that is one network of so many times the
channels. Networks are to be chosen by the validation sections, which are training patients' own; they also say when to
stop. The first network printed is the one that the others are set against.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from anndata import AnnData
from pydantic import Field
from torch import nn
from tqdm.auto import tqdm

from histocrypt.data.folds import FINAL, Fold, load_folds
from histocrypt.data.load import FoldData, Spots, load_test, load_training, scaled, scaling_of
from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap, metrics
from histocrypt.files import atomic_path
from histocrypt.models.fhe import STRIDES, FheCnn, watched
from histocrypt.pipeline.predictions import join, read_h5ad, read_prediction
from histocrypt.pipeline.train import fit, taught
from histocrypt.predictors.registry import MODELS, Entry, FheCnnOptions, tile_side
from histocrypt.spatial import squares
from histocrypt.study import Study, load_study, parse_study
from histocrypt.training.loop import mean_section_pearson

CNN, RESIDUAL, OVERLAPPING = "fhe_cnn", "fhe_resnet18", "fhe_overlapping"
PARTS = ("test", "validation")
BASELINE = "colour_ridge"


class OverlappingCnn(FheCnn):
    """`FheCnn` whose kernels are larger than their strides, for trials in the clear: no compiler knows it.

    ``kernels`` holds the side of each convolution's kernel, its stride and an even number of pixels more.
    """

    def __init__(self, n_outputs: int, *, kernels: tuple[int, ...], **others: object) -> None:
        super().__init__(n_outputs, **others)
        places = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Conv2d)]
        if len(kernels) != len(places):
            raise ValueError(f"{len(places)} convolutions need as many kernels; found {list(kernels)}")
        for place, side in zip(places, kernels, strict=True):
            old = self.layers[place]
            beyond, odd = divmod(side - old.stride[0], 2)
            if odd or beyond < 0:
                raise ValueError(f"a kernel is its stride, {old.stride[0]}, and an even number more; found {side}")
            sizes = {"kernel_size": side, "stride": old.stride, "padding": beyond, "bias": False}
            self.layers[place] = nn.Conv2d(old.in_channels, old.out_channels, **sizes)


class OverlappingOptions(FheCnnOptions):
    """See `OverlappingCnn`."""

    kernels: tuple[int, ...] = Field(strict=False)


@dataclass
class Scores:
    """Scores of one network on one part of the folds: one per section and seed, each with its bootstrap draws."""

    values: list[float] = field(default_factory=list)
    draws: list[np.ndarray] = field(default_factory=list)

    def interval(self, other: Scores | None = None) -> str:
        """Return the mean over sections with its interval, or of the difference to others."""
        draws, score = np.mean(self.draws, axis=0), np.mean(self.values)
        if other is not None:
            draws, score = draws - np.mean(other.draws, axis=0), score - np.mean(other.values)
        low, high = bootstrap.interval(draws, score)
        sign = "" if other is None else "+"
        return f"{score:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


class Held:
    """Sections that a fold's training did not see: their truth, their bootstrap draws, how predictions are scored."""

    def __init__(self, study: Study, fold: Fold, part: str, seeds: np.random.SeedSequence) -> None:
        self.study, self.fold, self.part, self.main = study, fold, part, study.target.transforms[0]
        names = fold.test_sections if part == "test" else fold.validation_sections
        self.sections = {name: read_h5ad(study.run.section(name), what="cleaned section") for name in names}
        self.seeds = {name: seeds.spawn(1)[0] for name in names}

    def _prediction(self, model: str) -> AnnData:
        return read_prediction(self.study.run.prediction(model, self.fold.name, self.part))

    def add_stored(self, scores: Scores, model: str) -> None:
        """Score the predictions that a model of the study left in the run folder."""
        prediction = self._prediction(model)
        for name, section in self.sections.items():
            pair = join(prediction, section, name, transforms=[self.main])
            self._add(scores, name, pair.coords, pair.true[self.main], pair.predicted[self.main])

    def add_predicted(self, scores: Scores, spots: Spots, predicted: np.ndarray, like: str) -> None:
        """Score (n, outputs) predictions of spots; ``like`` is a model whose stored predictions name the truth."""
        prediction = self._prediction(like)
        rows_of = {name: i for i, name in enumerate(spots.names.tolist())}
        outputs = {name: i for i, name in enumerate(spots.outputs)}
        for name, section in self.sections.items():
            pair = join(prediction, section, name, transforms=[self.main])
            rows = [rows_of[spot] for spot in pair.spots.tolist()]
            columns = [outputs[f"{self.main}:{gene}"] for gene in pair.genes.tolist()]
            own = predicted[np.ix_(rows, columns)].astype(np.float64)
            self._add(scores, name, pair.coords, pair.true[self.main], own)

    def _add(self, scores: Scores, name: str, coords: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> None:
        evaluation = self.study.evaluation
        um_per_px = float(self.sections[name].uns.get("preprocessing", {}).get("um_per_px", 1.0))
        labels = squares(coords * um_per_px, evaluation.block_um)
        rng = np.random.default_rng(self.seeds[name])
        weights = bootstrap.draw_weights(labels.max() + 1, evaluation.bootstrap, rng)
        scores.values.append(float(np.nanmean(metrics.pearson(true, predicted))))
        scores.draws.append(bootstrap.pearson_of_draws(bootstrap.block_sums(true, predicted, labels), weights))


class Lessons:
    """A fold's spots, loaded once for all networks; what a student learns is made once, too."""

    def __init__(self, study: Study, fold: Fold, side: int) -> None:
        self.study = study
        self.measured = load_training(study, fold, side=side)
        self.test = load_test(study, self.measured, side=side)
        self._taught: dict[tuple[str, float], FoldData] = {}

    def of(self, teacher: str | None, share: float) -> FoldData:
        """Return the fold's data, with the targets of training spots mixed with a teacher's predictions if any."""
        if teacher is None:
            return self.measured
        if (teacher, share) not in self._taught:
            study, data = self.study, self.measured
            scaling = scaling_of(study, data.fold)
            own = taught(study, teacher, share, scaled(study, scaling, data.train), fold=data.fold, panel=data.panel)
            restored = replace(own, targets=scaling.restore(own.targets))
            self._taught[teacher, share] = replace(data, train=restored)
        return self._taught[teacher, share]


@dataclass(frozen=True)
class Trained:
    """What is kept of one training."""

    validation: np.ndarray
    """(n, outputs) predictions, in the transforms' units."""
    test: np.ndarray
    seconds: float
    """Of the process, not of the clock."""
    largest: float
    parameters: int
    """Weights of the network."""


def train(variant: Variant, lessons: Lessons, *, seed: int, keep: Path | None) -> Trained:
    """Train one network on one fold, or take what an earlier run kept."""
    fold = lessons.measured.fold
    named = f"{variant.study.hash()} {variant.network} {variant.teacher} {variant.share} {fold.name} {seed}"
    file = keep and keep / f"{hashlib.sha256(named.encode()).hexdigest()[:16]}.npz"
    if file and file.is_file():
        with np.load(file) as found:
            return Trained(**{key: found[key] if found[key].ndim else found[key].item() for key in found})
    data = lessons.of(variant.teacher, variant.share)
    for spots in (data.train, data.validation):
        spots.tiles  # made once for all networks, and no part of a training  # noqa: B018
    started = time.process_time()
    predictor, _, validation = fit(variant.study, variant.network, data, seed=seed)
    seconds = time.process_time() - started
    with watched(predictor.network, largest=True) as ranges:
        test = scaling_of(variant.study, fold).restore(predictor.predict(lessons.test))
    parameters = sum(weight.numel() for weight in predictor.network.parameters())
    trained = Trained(validation, test, seconds, max(ranges.largest.values()), parameters)
    if file:
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **vars(trained))
    return trained


@dataclass(frozen=True)
class Variant:
    """One way to train one network."""

    title: str
    network: str
    study: Study
    teacher: str | None = None
    """Whose predictions are in the targets before the training starts; a study's own teacher teaches in `fit`."""
    share: float = 0.0
    """Of the teacher's predictions in the targets."""


def changed(study: Study, file: Path, network: str, **settings: object) -> Study:
    """Return the study with these settings of one network, and its own settings otherwise; None takes one away."""
    own = {**study.models.get(network, {}), **settings}
    models = {**study.models, network: {key: value for key, value in own.items() if value is not None}}
    return parse_study({**study.model_dump(mode="json"), "models": models}, file=file)


def plain(
    study: Study, file: Path, teacher: str, *, depths: list[int], widths: list[float], kernels: list[tuple[int, ...]]
) -> list[Variant]:
    """Return the plain networks of all depths and widths, and those with overlapping kernels, each in both roles."""
    networks = [(CNN, {"depth": depth, "width": width}) for depth, width in itertools.product(depths, widths)]
    networks += [
        (OVERLAPPING, {"depth": depth, "width": widths[0], "kernels": sides})
        for depth, sides in itertools.product(depths, kernels)
        if len(sides) == len(STRIDES[depth])
    ]
    share = study.training_of(CNN).distil
    common = {key: value for key, value in study.models.get(CNN, {}).items() if key not in ("teacher", "distil")}
    found = []
    for network, options in networks:
        title = f"depth {options['depth']}"
        title += f", width {options['width']:g}" if options["width"] != 1 else ""
        title += f", kernels {' '.join(map(str, options['kernels']))}" if "kernels" in options else ""
        alone = changed(study, file, network, **{**common, **options, "teacher": None, "distil": None})
        for role, taught_by in (("direct", None), ("student", teacher)):
            found.append(Variant(f"{title}, {role}", network, alone, taught_by, share if taught_by else 0.0))
    return found


def residual(study: Study, file: Path, teacher: str) -> list[Variant]:
    """Return ResNet-18 whose ReLUs give way to squares, and a light network that is of squares from the start."""
    light = {"width": 16, "blocks": [1, 1], "replace_over": None, "learning_rate": 0.003, "epochs": 30}
    return [
        Variant("ResNet-18, squares for ReLUs", RESIDUAL, changed(study, file, RESIDUAL, teacher=teacher)),
        Variant("light residual", RESIDUAL, changed(study, file, RESIDUAL, teacher=teacher, distil=0.9, **light)),
    ]


def sides(text: str) -> tuple[int, ...]:
    """Read the kernels of one network, e.g. ``12,2``."""
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--teacher", default="resnet18", help="a trained model of the study")
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 5, 7, 9])
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0], help="of the channels, for every depth")
    parser.add_argument(
        "--kernels", type=sides, nargs="+", default=[], metavar="K,K", help="overlapping, one a convolution, e.g. 12,4"
    )
    parser.add_argument("--residual", action="store_true", help="the residual networks instead")
    parser.add_argument("--roles", nargs="+", choices=["direct", "student"], default=["direct", "student"])
    parser.add_argument("--seeds", type=int, default=1, help="trainings a network and fold, with other seeds")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what trainings predict, and go on from there")
    arguments = parser.parse_args()
    MODELS[OVERLAPPING] = Entry(f"{__name__}:OverlappingCnn", "network", "Overlapping kernels", OverlappingOptions)
    teacher = arguments.teacher
    for kernels in arguments.kernels:
        if all(len(kernels) != len(STRIDES.get(depth, ())) for depth in arguments.depths):
            parser.error(f"no network of --depths has {len(kernels)} convolutions, as many as --kernels {kernels}")
    try:
        study = load_study(arguments.study)
        folds = [fold for fold in load_folds(study.run.folds) if fold.name != FINAL]
        if arguments.residual:
            variants = residual(study, arguments.study, teacher)
        else:
            shapes = {name: getattr(arguments, name) for name in ("depths", "widths", "kernels")}
            variants = plain(study, arguments.study, teacher, **shapes)
            variants = [one for one in variants if one.title.rpartition(" ")[2] in arguments.roles]
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
        network = variants[0].network
        side = tile_side(network, study.training_of(network))
        lessons = {fold.name: Lessons(study, fold, side) for fold in folds}
        trained: dict[tuple[str, str], list[Trained]] = {}
        trainings = list(itertools.product(range(arguments.seeds), folds, variants))
        for number, fold, variant in tqdm(trainings, desc="networks", unit="training"):
            one = train(variant, lessons[fold.name], seed=study.seed + number, keep=arguments.keep)
            trained.setdefault((variant.title, fold.name), []).append(one)
        report(study, folds, variants, teacher, lessons, trained)
    except InputError as error:
        sys.exit(f"fhe_networks: {error}")


def report(
    study: Study,
    folds: list[Fold],
    variants: list[Variant],
    teacher: str,
    lessons: dict[str, Lessons],
    trained: dict[tuple[str, str], list[Trained]],
) -> None:
    """Score all predictions and print the table."""
    students = any(variant.teacher or variant.study.teacher_of(variant.network) for variant in variants)
    stored = dict.fromkeys((BASELINE, *([teacher] if students else [])))
    titles = {name: MODELS[name].title for name in stored}
    seeds, scores = np.random.SeedSequence(study.seed), {}
    n_seeds = max(map(len, trained.values()))

    def of(title: str, part: str) -> Scores:
        return scores.setdefault((title, part), Scores())

    for part, fold in itertools.product(PARTS, folds):
        held = Held(study, fold, part, seeds)
        spots = lessons[fold.name].test if part == "test" else lessons[fold.name].measured.validation
        for name, title in titles.items():
            held.add_stored(of(title, part), name)
        for variant in variants:
            each = [getattr(one, part) for one in trained[variant.title, fold.name]]
            for predicted in each:
                held.add_predicted(of(variant.title, part), spots, predicted, BASELINE)
            if n_seeds > 1:
                beside = np.mean(each, axis=0)
                held.add_predicted(of(f"{variant.title}, side by side", part), spots, beside, BASELINE)

    n_sections = sum(len(fold.test_sections) for fold in folds)
    many = f", mean of {n_seeds} seeds" if n_seeds > 1 else ""
    scale, first = study.target.transforms[0], variants[0].title
    yardsticks = list(titles.values())
    print(f"\n{study.name}: {len(folds)} folds, {n_sections} held-out sections, {scale}{many}\n")
    heads = ["network", "parameters", "validation r", f"less {first}", "side by side, less it"][: 5 if many else 4]
    heads += [f"held-out r ({scale})", *(f"less {title}" for title in yardsticks)]
    heads += ["validation r of all outputs", "largest value squared", "training CPU s a fold"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for title in [*titles.values(), *(variant.title for variant in variants)]:
        runs = [one for fold in folds for one in trained.get((title, fold.name), [])]
        validation, test = of(title, "validation"), of(title, "test")
        cells = [title, f"{runs[0].parameters:,}" if runs else "", validation.interval()]
        cells += ["" if title == first else validation.interval(of(first, "validation"))]
        if many:
            beside = of(f"{title}, side by side", "validation")
            cells += [beside.interval(of(first, "validation")) if runs else ""]
        cells += [test.interval()]
        cells += ["" if title == other else test.interval(of(other, "test")) for other in yardsticks]
        judged = [
            mean_section_pearson(one.validation, own.targets, own.sections)
            for fold in folds
            for own in [lessons[fold.name].measured.validation]
            for one in trained.get((title, fold.name), [])
        ]
        cells += [f"{np.mean(judged):.3f}" if runs else ""]
        cells += [f"{max(one.largest for one in runs):.1f}" if runs else ""]
        cells += [f"{np.mean([one.seconds for one in runs]):.0f}" if runs else ""]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
