"""Pairs in the folder layout of nnU-Net v2, for who wants to train that: it is not installed and not run here.

``nnUNet_raw/Dataset<id>_<name>/`` with ``imagesTr/<case>_0000.png``, ``labelsTr/<case>.png``, the same for ``Ts``, and
``dataset.json``; as documented by nnU-Net (documentation/dataset_format.md). A colour image is one file of three
channels, read by its ``NaturalImage2DIO``. ``cases.json`` says which id, patient and class every case has.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from histocrypt import atomic
from histocrypt.errors import InputError
from histocrypt.synthesis.pairs import Pairs

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
        msg = "training and test images differ in scheme, side or channels"
        raise InputError(msg, value=[pairs_train.images.shape[1:], pairs_test.images.shape[1:]])
    both = sorted(set(pairs_train.patients.tolist()) & set(pairs_test.patients.tolist()) - {""})
    if both:
        msg = f"patient {both[0]} is among the training and the test images"
        raise InputError(msg, fix="hold out whole patients")
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
    atomic.write_json(root / "cases.json", cases)
    names = CHANNELS[pairs_train.images.shape[3]]
    atomic.write_json(
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

    with atomic.atomic_path(path) as temporary:
        Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(temporary)
