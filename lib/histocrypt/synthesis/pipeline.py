"""Pairs in the folder layout of nnU-Net v2, for who wants to train that: it is not installed and not run here.

``nnUNet_raw/Dataset<id>_<name>/`` with ``imagesTr/<case>_0000.png``, ``labelsTr/<case>.png``, the same for ``Ts``, and
``dataset.json``; as documented by nnU-Net (documentation/dataset_format.md). A colour image is one file of three
channels, read by its ``NaturalImage2DIO``. ``cases.json`` says which id, patient and class every case has.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt import files
from histocrypt.data.folds import BY_SECTION, FINAL, Fold, load_fold, load_folds
from histocrypt.errors import InputError
from histocrypt.synthesis.generator import Generator, train_generator
from histocrypt.synthesis.pairs import Pairs
from histocrypt.synthesis.sampling import sample
from histocrypt.synthesis.tissue_pairs import tissue_pairs, tissue_rule
from histocrypt.targets.matrix import Label

if TYPE_CHECKING:
    from histocrypt.study import Study

# ---- nnunet


CHANNELS = {1: ("grey",), 3: ("R", "G", "B")}


def export(folder: str | Path, pairs_train: Pairs, pairs_test: Pairs, *, dataset_id: int, name: str) -> Path:
    """Write a data set; return its folder. Records without a mask are left out.

    Parameters
    ----------
    folder
        nnU-Net's ``nnUNet_raw``.
    pairs_train, pairs_test
        Images and masks of one scheme, side and number of channels.
    dataset_id
        1 to 999; nnU-Net's own challenges have the first ten.
    name
        Letters, digits and underscores.

    Raises
    ------
    InputError
        If a name or number does not fit, a patient is on both sides, or the sets differ in kind.
    """
    if not 1 <= dataset_id <= 999:
        raise InputError("is no number of a data set", field="dataset_id", value=dataset_id, expected="1 to 999")
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise InputError("is no name of a data set", field="name", value=name, expected="letters, digits, underscores")
    if pairs_train.scheme != pairs_test.scheme or pairs_train.images.shape[1:] != pairs_test.images.shape[1:]:
        raise InputError(
            "training and test images differ in scheme, side or channels",
            value=[pairs_train.images.shape[1:], pairs_test.images.shape[1:]],
        )
    both = sorted(set(pairs_train.patients.tolist()) & set(pairs_test.patients.tolist()) - {""})
    if both:
        raise InputError(f"patient {both[0]} is among the training and the test images", fix="hold out whole patients")
    root, cases = Path(folder) / f"Dataset{dataset_id:03d}_{name}", {}
    if root.exists() and any(root.iterdir()):
        raise InputError("is not empty", file=root, fix="delete it, or choose another dataset_id or name")
    for part, pairs in (("Tr", pairs_train), ("Ts", pairs_test)):
        for row in np.flatnonzero(pairs.has_mask).tolist():
            case = f"{name}_{part}_{row:06d}"
            _write(root / f"images{part}" / f"{case}_0000.png", pairs.images[row])
            _write(root / f"labels{part}" / f"{case}.png", pairs.masks[row])
            cases[case] = {
                "id": str(pairs.ids[row]),
                "patient": str(pairs.patients[row]),
                "label": str(pairs.labels[row]),
            }
    files.write_json(root / "cases.json", cases)
    names = CHANNELS[pairs_train.images.shape[3]]
    files.write_json(
        root / "dataset.json",
        {
            "channel_names": {str(i): channel for i, channel in enumerate(names)},
            "labels": {level: i for i, level in enumerate(pairs_train.scheme.levels)},
            "numTraining": int(pairs_train.has_mask.sum()),
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
        },
    )
    return root


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with files.atomic_path(path) as temporary:
        Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(temporary)


# ---- of study
# What a study's part `synthesis` asks for: its real tiles by side, its generators, what is drawn from them.


PARTS = ("train", "validation", "test")


def fold_of(study: Study, name: str | None) -> Fold:
    """Return the named fold, or the first one that holds patients out."""
    if name is not None:
        return load_fold(study.run.folds, name)
    return next(fold for fold in load_folds(study.run.folds) if fold.name != FINAL)


def label_of(study: Study) -> Label:
    """Return what makes a tile of this study tumour."""
    part = study.synthesis
    return Label(part.label, tuple(part.label_is), part.label_above, field="synthesis.label")


def real_pairs(study: Study, fold: Fold) -> dict[str, Pairs]:
    """Return the real tiles with masks of a fold's training, validation and test sections, by `PARTS`.

    Where the study holds out sections of trained patients, each section stands for a patient, and that is printed:
    nothing is then said about a new patient, and held-out tiles are no strangers.

    Raises
    ------
    InputError
        If a side has no labelled tile; see `tissue_pairs`.
    """
    found = {}
    for name in PARTS:
        sections = getattr(fold, f"{name}_sections")
        if not sections:
            raise InputError(
                f"{fold.name} has no {name} sections, which synthetic tiles are judged with",
                file=study.run.folds,
                fix="name another fold in synthesis.fold",
            )
        pairs = tissue_pairs(study, sections, label=label_of(study), side=study.synthesis.side)
        if study.folds.scheme == BY_SECTION:
            owners = np.array([one.split(":", 1)[0] for one in pairs.ids.tolist()])
            pairs = replace(pairs, patients=owners)
        found[name] = pairs
    if study.folds.scheme == BY_SECTION:
        print("note: sections of one patient stand for patients here; nothing is said about a new patient")
    return found


def train_generators(study: Study, train: Pairs, folder: Path) -> dict[str, Generator]:
    """Train the generators that the study asks for on real training tiles, below ``folder``; resumes.

    With a generator of the control class alone, as in DiffGuard, a classifier of tissue may learn which generator drew
    a tile instead of what it shows. So the joint generator draws all classes, unless ``normal_from`` says otherwise.

    Returns
    -------
    dict
        ``joint`` (pictures with masks, of every class); with ``normal_from: control`` also ``control``.
    """
    part, privacy = study.synthesis, None
    kinds = {"joint": "generator"} | ({"control": "control"} if part.normal_from == "control" else {})
    if part.epsilon is not None:
        from histocrypt.synthesis.private import Privacy

        # A normal tile is learned from by each generator: what is promised is the sum.
        privacy = Privacy(epsilon=part.epsilon / len(kinds), delta=part.delta / len(kinds))
    made = {}
    for kind, name in kinds.items():
        plan = part.generator.model_copy(update={"kind": kind})
        made[kind] = train_generator(
            train, plan, folder=folder / name, epochs=part.epochs, seed=study.seed, privacy=privacy
        )
    return made


def draw_synthetic(study: Study, generators: dict[str, Generator], folder: Path) -> Pairs:
    """Draw ``per_class`` tiles of each class with their masks; control tiles of a generator of their own get a rule's.

    The drawn tiles lie in ``folder/samples/<kind>``; what is there is not drawn again.
    """
    part, drawn = study.synthesis, []
    for number, (kind, generator) in enumerate(generators.items()):
        control, alone = generator.scheme.control, len(generators) == 1
        classes = [name for name in generator.classes if alone or (name == control) == (kind == "control")]
        one = sample(
            generator,
            labels=np.repeat(classes, part.per_class),
            seed=study.seed + number,  # ids hold the seed: no two tiles may share one
            steps=part.sampler_steps,
            sampler=part.sampler,
            guidance=part.guidance if kind == "joint" else 1.0,
            folder=folder / "samples" / kind,
            mask_rule=tissue_rule(study.preprocessing.tile_um / part.side) if kind == "control" else None,
        )
        drawn.append(one)
    return Pairs.join(drawn)


def blocks_of(study: Study, pairs: Pairs) -> np.ndarray:
    """Return the square of tissue, of the study's ``evaluation.block_um``, that each real tile lies in; (n,) str."""
    from histocrypt.data.fold_statistics import read_clean_section
    from histocrypt.synthesis.utility import spatial_blocks

    names = dict.fromkeys(name.split(":", 1)[0] for name in pairs.ids.tolist())
    sections = {name: read_clean_section(study.run.section(name)) for name in names}
    return spatial_blocks(pairs.ids, sections, block_um=study.evaluation.block_um)
