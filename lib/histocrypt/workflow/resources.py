"""What a job asks for: memory, time, threads and GPUs, from the size of the study.

Each stage has one formula, which its row in `stages.STAGES` names: memory = a base + what grows with the study, and
work = seconds on one core. The constants
were set so that the records of finished runs lie below them; ``python benchmarks/resources.py STUDY`` prints both
beside each other. An estimate that is too low costs one retry with twice the memory and time, and no result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histocrypt.predictors.registry import STACKS, HE2GeneOptions, StemOptions, checked_options
from histocrypt.sections.section import SectionSize

if TYPE_CHECKING:
    from histocrypt.study import Study

BASE_GIB = 1.2
"""A notebook with torch and scanpy loaded, and nothing else."""
START_S = 6.0
"""Starting papermill and its kernel, and imports; a fork of a preloaded process needs a second."""
ENCODE_S = {"baselines": 0.025, "fhe_head": 0.01, "fusion_ridge": 0.03}
"""A tile through the frozen encoder, of what may be first to need its features; all that is fitted to them is here."""
TILE_S = {"vision_mlp": (0.01, 15e-6), "fhe_cnn": (0.0012, 0.0)}
"""Seconds of one training step per tile at the usual width: a part of its own, and one per pixel of the input."""
RESNET_S = (0.002, 4e-6)
"""The same for every network that is not named there; those on frozen features are far below it."""
ENCRYPTED_COST = {"fhe_head": (1.0, 15, 0.05), "fhe_resnet18": (13.0, 400, 400)}
"""GiB, seconds on one core at the start and for a spot, of what is evaluated on ciphertexts and not as `fhe_cnn`."""
POINT_S = 0.05
"""Seconds on one core of a point of a slide with the model in the box, which reads its surroundings, too."""
SLIDE_S = 600
"""A slide gets one more thread for so many seconds on one core."""
WIDER = 1.5
"""The power of a network's width that its cost grows with."""
INPUT_PX = 96
"""Input side of a network whose study names none: the largest that one takes by itself."""
GPU_SPEED = 40
"""How much faster than one core a GPU is taken to be."""
GPU_FROM_S = 1800.0
"""Trainings that would take one core longer than this ask for a GPU, where the profile has any."""
PATIENCE = 4.0
"""A job may run this many times as long as expected before the cluster ends it."""
LEAST_MINUTES = 15


@dataclass(frozen=True)
class Needs:
    """What one job asks for."""

    memory_gib: float
    seconds: float
    """Expected, with these threads and GPUs."""
    threads: int = 1
    gpus: int = 0

    def memory_mb(self, attempt: int = 1) -> int:
        """Return the memory to ask for, MB of SLURM (MiB); twice as much on the second attempt."""
        return int(round(self.memory_gib * 2 ** (attempt - 1) * 1024, -2))

    def minutes(self, attempt: int = 1) -> int:
        """Return the time limit to ask for."""
        return max(LEAST_MINUTES, round(self.seconds * PATIENCE / 60)) * 2 ** (attempt - 1)


@dataclass(frozen=True)
class Total:
    """A study's sections together."""

    sections: int
    spots: int
    largest: SectionSize
    """The largest value of each size, not necessarily of one section."""
    values: int

    @classmethod
    def of(cls, sizes: Sequence[SectionSize]) -> Total:
        """Add up sizes; no size at all stands for one large section."""
        sizes = sizes or [SectionSize()]
        largest = SectionSize(
            *(max(getattr(one, name) for one in sizes) for name in ("spots", "genes", "values", "decoded_mpx"))
        )
        return cls(len(sizes), sum(one.spots for one in sizes), largest, sum(one.values for one in sizes))


Cost = tuple[float, float, bool]
"""Memory in GiB, seconds on one core, and whether threads make it faster."""
Formula = Callable[["Study", Total, str], Cost]
"""What a job of a stage costs, from the study, the sections that it reads together, and its model or part."""


def needs(
    formula: Formula,
    study: Study,
    sizes: Sequence[SectionSize],
    *,
    model: str = "",
    threads: int = 1,
    gpus: int = 0,
) -> Needs:
    """Return what a job asks for.

    Parameters
    ----------
    formula
        That of its stage, e.g. `train`.
    study
        The study.
    sizes
        Of the sections that the job reads; empty where not known yet.
    model
        The model or ``baselines``, of trainings.
    threads
        Threads of a job that can use several.
    gpus
        GPUs that may be in use at once; 0: train on processors.
    """
    memory, work, wide = formula(study, Total.of(sizes), model)
    trains = formula in (train, train_inner) and model not in ENCODE_S
    if trains and gpus and work > GPU_FROM_S:
        return Needs(memory, START_S + work / GPU_SPEED, threads, 1)
    threads = threads if wide else 1
    return Needs(memory, START_S + work / threads, threads)


def slide_needs(
    *,
    points: int = SectionSize.spots,
    decoded_mpx: float = SectionSize.decoded_mpx,
    views: int = 1,
    threads: int = 1,
    gpus: int = 0,
) -> Needs:
    """Return what a job asks for that predicts one slide of many.

    Parameters
    ----------
    points
        Spots, or points of a grid over the whole image: tissue covers less.
    decoded_mpx
        Millions of pixels of its image that are held at once.
    views
        Over how many views of each tile is averaged.
    threads, gpus
        At most so many.
    """
    work = 10 + decoded_mpx * 0.05 + points * views * POINT_S
    if gpus and work > GPU_FROM_S:
        return Needs(BASE_GIB + _gib(decoded_mpx * 1e6 * 3 * 1.5), START_S + work / GPU_SPEED, threads, 1)
    threads = max(1, min(threads, round(work / SLIDE_S)))
    return Needs(BASE_GIB + _gib(decoded_mpx * 1e6 * 3 * 1.5), START_S + work / threads, threads)


def _gib(size: float) -> float:
    return size / 2**30


def _read(total: Total) -> float:
    """Return the GiB of the largest section in memory: counts (value, column; a copy while cleaned), decoded pixels."""
    return _gib(total.largest.values * 8 * 3 + total.largest.decoded_mpx * 1e6 * 3 * 1.5)


def _tiles(study: Study, total: Total) -> float:
    """Return the GiB of the tiles of the largest section, as stored and as floats of a batch."""
    return _gib(total.largest.spots * study.preprocessing.tile_px**2 * 3)


def _table(study: Study, total: Total, layers: float = 1.0) -> float:
    """Return the GiB of a table of all spots x panel, float32, for each transform."""
    return _gib(total.spots * _panel(study, total) * 4 * len(study.target.transforms) * layers)


def _panel(study: Study, total: Total) -> int:
    return total.largest.genes if study.panel.method in ("file", "all") else study.panel.size


def eda(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: one section in memory at a time."""
    return BASE_GIB + _read(total), total.sections * 4 + total.spots * 2e-3 + total.values * 2e-6, False


def preprocess(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: one section: its image decoded, its tiles."""
    work = total.largest.decoded_mpx * 0.05 + total.largest.spots * study.preprocessing.tile_px**2 * 2e-7
    return BASE_GIB + _read(total) + _tiles(study, total), work, False


def folds(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: the counts of one section, and moments of every gene."""
    genes = _gib(total.sections * total.largest.genes * 8 * 8)
    return BASE_GIB + _gib(total.largest.values * 8 * 4) + genes, total.values * 2e-7, False


def train(study: Study, total: Total, model: str) -> Cost:
    """Return a job's cost: that of fitting, and features of all spots where it may be the first to need them."""
    memory, work, wide = _fit(study, total, model)
    return memory, work + total.spots * ENCODE_S.get(model, 0.0), wide


def train_inner(study: Study, total: Total, model: str) -> Cost:
    """Return a job's cost: as many trainings as there are inner folds; features are there."""
    memory, work, wide = _fit(study, total, model)
    return memory, work * (study.stacking.inner_folds if study.stacking else 1), wide


def _fit(study: Study, total: Total, model: str) -> Cost:
    """Return what it costs to fit a model to features or pixels of all spots, for as many epochs as there may be."""
    features = _gib(total.spots * 1280 * 4 * 2)
    if model in ENCODE_S:
        return BASE_GIB + features + _table(study, total, 6) + _tiles(study, total), 3 + total.spots * 0.002, False
    training, options = study.training_of(model), checked_options(model, study.options_of(model))
    on_features = {"he2gene": _he2gene_s, "stem": _stem_s}.get(model)
    if on_features and not getattr(options, "is_trained", False):
        genes = total.largest.genes if model == "he2gene" else _panel(study, total)
        memory = BASE_GIB + features + _gib(total.spots * genes * 4) + _tiles(study, total)
        return memory, total.spots * on_features(options, training.epochs, genes), True
    side, (own, a_pixel) = training.input_px or INPUT_PX, TILE_S.get(model, RESNET_S)
    usual = type(options).model_fields.get("width")
    width = options.width / usual.default if usual else 1.0
    memory = BASE_GIB + 0.5 + _table(study, total, 3) + _gib(total.spots * side**2 * 3)
    work = total.spots * training.epochs * (own + a_pixel * side**2) * width**WIDER
    return memory, work * training.seeds * (2 if training.refit else 1), True


def _he2gene_s(options: HE2GeneOptions, epochs: int, genes: int) -> float:
    """Return the seconds of a spot in the multi-task model, on features that there are."""
    return epochs * (4e-4 + 5e-8 * genes)


def _stem_s(options: StemOptions, epochs: int, genes: int) -> float:
    """Return the seconds of a spot in the diffusion model, which alone has features of turned tiles."""
    return epochs * 5e-4 * options.blocks + options.augmentations * ENCODE_S["baselines"]


def multitask(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: all genes of all spots, and random shifts of their maps."""
    matrix = total.spots * total.largest.genes
    return BASE_GIB + _gib(matrix * 4 * 2), 8 + matrix * 1.5e-6, False


def diffusion(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: samples of every spot."""
    options = checked_options("stem", study.options_of("stem"))
    steps = options.samples * options.sampler_steps * options.blocks
    return BASE_GIB + _table(study, total, 2 + options.samples), 3 + total.spots * steps * 1.5e-4, False


def stack(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: the predictions of every family."""
    return BASE_GIB + _table(study, total, 3 + len(study.families)), 3 + total.spots * 0.004, False


def encrypted(study: Study, total: Total, model: str) -> Cost:
    """Return a job's cost: keys, and every spot of the section on ciphertexts."""
    memory, start, a_spot = ENCRYPTED_COST.get(model, (5.0, 15, 0.6))
    seconds = start + _asked(study, total, model) * a_spot
    if model in study.encrypted.beside_orion:
        gib, once, a_spot = _orion(study, model)
        memory, seconds = max(memory, gib), seconds + once + a_spot
    return BASE_GIB + memory, seconds, True


def _asked(study: Study, total: Total, model: str) -> int:
    """Return the spots of a section that are predicted on ciphertexts."""
    asked = study.encrypted_spots(model)
    return total.spots if asked == "all" else min(asked, total.spots)


def _orion(study: Study, model: str) -> tuple[float, float, float]:
    """Return GiB, seconds a network and seconds a spot of orion-fhe; at depth 3 the last layer fills the ciphertext."""
    if model == "fhe_head":
        return 1.2, 6.0, 0.2
    depth = checked_options("fhe_cnn", study.options_of("fhe_cnn")).depth
    return {3: 24.5, 5: 9.5, 7: 11.0, 9: 15.5}[depth], 30 + 12.0 * depth, 0.7 * depth


def one_party(study: Study, total: Total, model: str) -> Cost:
    """Return a job's cost: a network packed, and some spots of a section one after the other."""
    gib, once, a_spot = _orion(study, model)
    return BASE_GIB + gib, 15 + once + _asked(study, total, model) * a_spot, False


def generators(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: squares of tissue as floats, for as many epochs as there are."""
    part, network = study.synthesis, study.synthesis.generator
    pixels = total.spots * part.side**2
    work = pixels / network.patch**2 * part.epochs * network.width * 6e-7
    return BASE_GIB + 1.0 + _gib(pixels * 4 * 8), 8 + work, False


def synthesis(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: squares of tissue as floats, judged and segmented for as many epochs as there are."""
    part = study.synthesis
    pixels = total.spots * part.side**2
    epochs = part.reconstruction_epochs + 3 * part.segmentation_epochs
    return BASE_GIB + 1.0 + _gib(pixels * 4 * 8), 10 + pixels * epochs * 2.5e-6, False


def audit(study: Study, total: Total, asked: str) -> Cost:
    """Return a job's cost: attacked models, those with their shadows, the shadows of what is made of tiles, or all."""
    part = study.audit
    attacked = len(study.model_names if part.models == "all" else part.models)
    work = {"predictors": 0.0015 * attacked, "shadowed": 0.003 * part.shadows * len(part.shadowed)}
    if study.synthesis:
        epochs = part.shadow_epochs + part.learned_epochs
        work["tiles"] = study.synthesis.side**2 * 2.5e-6 * part.shadows * epochs
    seconds = 8 + total.spots * work.get(asked, sum(work.values()))
    if study.synthesis and part.shadow_generators and asked not in ("predictors", "shadowed"):
        quick = part.shadow_generator_epochs
        each = 2 + total.spots * quick * 1e-3 if quick else generators(study, total, asked)[1] / 2  # half the patients
        seconds += part.shadow_generators * each
    return BASE_GIB + 1.0 + _gib(total.spots * 1280 * 4 * 3), seconds, False


def privacy_cards(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: two pictures and a table."""
    return BASE_GIB, 2.0 + len(study.model_names) * study.audit.draws * total.spots * 1e-7, False


def evaluate(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: all predictions of a panel, and its bootstrap."""
    models = len(study.model_names) + (len(STACKS) if study.stacking else 0)
    work = 6 + total.spots * _panel(study, total) * models * (4e-6 + 1e-8 * study.evaluation.bootstrap)
    return BASE_GIB + 0.5 + _gib(total.largest.values * 16), work, False


def view(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: one section as it is."""
    return BASE_GIB + _read(total), 1.0, False


def after(study: Study, total: Total, _: str) -> Cost:
    """Return a job's cost: a section's predictions, counts and features, with maps of noise; two sections at a time."""
    memory = _gib(total.largest.spots * (_panel(study, total) * 8 * 20 + 1280 * 8 * 3))
    return BASE_GIB + 1.0 + 2 * _read(total) + memory, 5 + total.spots * _panel(study, total) * 5e-5, False


def disk_bytes(study: Study, sizes: Sequence[SectionSize], folds: int) -> int:
    """Return about how much a finished run holds: cleaned sections, tiles, features, predictions, models."""
    total = Total.of(sizes)
    tiles = total.spots * study.preprocessing.tile_px**2 * 3 * 0.8
    features = total.spots * 1280 * 4 * 2
    predictions = total.spots * _panel(study, total) * 4 * 2 * len(study.model_names) * (2 if study.stacking else 1)
    weights = sum(study.training_of(name).seeds for name in study.model_names) * (folds + 1) * 30e6
    return int(total.values * 4 + tiles + features + predictions + weights + 50e6)
