"""What a study's part `synthesis` asks for: its real tiles by side, its generators, what is drawn from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.folds import BY_SECTION, FINAL, Fold, chosen_fold, load_fold, load_folds
from histocrypt.errors import InputError, unknown_name
from histocrypt.synthesis.generator import Generator, train_generator
from histocrypt.synthesis.manifest import Pairs
from histocrypt.synthesis.sampling import sample
from histocrypt.synthesis.tissue_pairs import tissue_pairs, tissue_rule
from histocrypt.targets.matrix import Label

if TYPE_CHECKING:
    from histocrypt.study import Study

PARTS = ("train", "validation", "test")
FOLDERS = {"joint": "generator", "control": "control"}
"""Where a generator of each kind lies."""


def fold_of(study: Study, name: str | None) -> Fold:
    """Return the named fold, or the first one that holds patients out."""
    names = [fold.name for fold in load_folds(study.run.folds) if fold.name != FINAL or fold.name == name]
    return load_fold(study.run.folds, chosen_fold(names, name, field="fold"))


def real_pairs(study: Study, fold: Fold, parts: Iterable[str] = PARTS) -> dict[str, Pairs]:
    """Return the real tiles with masks of a fold's training, validation and test sections, by `PARTS`.

    Where the study holds out sections of trained patients, each section stands for a patient, and that is printed:
    nothing is then said about a new patient, and held-out tiles are no strangers.

    Raises
    ------
    InputError
        If a side has no labelled tile; see `tissue_pairs`.
    """
    real, settings = {}, study.synthesis
    label = Label(settings.label, tuple(settings.label_is), settings.label_above, field="synthesis.label")
    for name in parts:
        sections = getattr(fold, f"{name}_sections")
        if not sections:
            raise InputError(
                f"{fold.name} has no {name} sections, which synthetic tiles are judged with",
                file=study.run.folds,
                fix="name another fold in synthesis.fold",
            )
        pairs = tissue_pairs(study, sections, label=label, side=settings.side)
        if study.folds.scheme == BY_SECTION:
            pairs = replace(pairs, patients=pairs.sections)
        real[name] = pairs
    if study.folds.scheme == BY_SECTION:
        print("note: sections of one patient stand for patients here; nothing is said about a new patient")
    return real


def generator_kinds(study: Study, kind: str = "all") -> list[str]:
    """Return the kinds of generators that the study asks for, or the one named.

    With a generator of the control class alone, as in DiffGuard, a classifier of tissue may learn which generator drew
    a tile instead of what it shows. So the joint generator draws all classes, unless ``normal_from`` says otherwise.
    """
    kinds = ["joint", *(["control"] if study.synthesis.normal_from == "control" else [])]
    if kind not in ("all", *kinds):
        raise unknown_name("generator of the study", kind, ("all", *kinds), field="generator")
    return kinds if kind == "all" else [kind]


def train_generators(study: Study, train: Pairs, folder: Path, *, kind: str = "all") -> dict[str, Generator]:
    """Train the generators that the study asks for on real training tiles, below ``folder``; resumes.

    Returns
    -------
    dict
        ``joint`` (pictures with masks, of every class); with ``normal_from: control`` also ``control``; or the one that
        ``kind`` names.
    """
    part, privacy = study.synthesis, None
    if part.epsilon is not None:
        from histocrypt.synthesis.generator import Privacy

        # A normal tile is learned from by each generator: what is promised is the sum.
        n = len(generator_kinds(study))
        privacy = Privacy(epsilon=part.epsilon / n, delta=part.delta / n, unit=part.privacy_unit)
    return {
        kind: train_generator(
            train,
            part.generator.model_copy(update={"kind": kind, **({"mask_given": 0.0} if kind == "control" else {})}),
            folder=folder / FOLDERS[kind],
            epochs=part.epochs,
            seed=study.seed,
            privacy=privacy,
        )
        for kind in generator_kinds(study, kind)
    }


def draw_synthetic(study: Study, generators: dict[str, Generator], folder: Path) -> Pairs:
    """Draw ``per_class`` tiles of each class with their masks; control tiles of a generator of their own get a rule's.

    With ``masks: first`` masks are drawn once (``samples/outlines``), and new pictures to them. The drawn tiles lie in
    ``folder/samples/<kind>``; what is there is not drawn again.
    """
    part, drawn, kinds = study.synthesis, [], generator_kinds(study)
    for kind, generator in generators.items():
        control = generator.scheme.control
        classes = [name for name in generator.classes if len(kinds) == 1 or (name == control) == (kind == "control")]
        way = {
            "labels": np.repeat(classes, part.per_class),
            "steps": part.sampler_steps,
            "sampler": part.sampler,
            "guidance": part.guidance if kind == "joint" else 1.0,
        }
        masks = None
        if kind == "joint" and part.masks == "first":  # of other noise than the pictures that they are given to
            seed = study.seed + len(kinds)
            masks = sample(generator, **way, seed=seed, folder=folder / "samples" / "outlines").masks
        drawn.append(
            sample(
                generator,
                **way,
                seed=study.seed + kinds.index(kind),  # ids hold the seed: no two tiles may share one
                folder=folder / "samples" / kind,
                mask_rule=tissue_rule(study.preprocessing.tile_um / part.side) if kind == "control" else None,
                masks=masks,
            )
        )
    return Pairs.join(drawn)


def blocks_of(study: Study, pairs: Pairs) -> np.ndarray:
    """Return the square of tissue, of the study's ``evaluation.block_um``, that each real tile lies in; (n,) str."""
    from histocrypt.data.fold_statistics import read_clean_section
    from histocrypt.synthesis.utility import spatial_blocks

    sections = {name: read_clean_section(study.run.section(name)) for name in dict.fromkeys(pairs.sections.tolist())}
    return spatial_blocks(pairs.ids, sections, block_um=study.evaluation.block_um)
