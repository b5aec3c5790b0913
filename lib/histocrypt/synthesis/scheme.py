"""The words of a set of images with masks: which classes there are, and what the levels of a mask mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histocrypt.errors import InputError


@dataclass(frozen=True)
class Scheme:
    """Classes of images, and levels of their masks.

    Parameters
    ----------
    classes
        What a record's label may be.
    levels
        What the values 0, 1, ... of a mask mean, from background on.
    control
        The class that has nothing to outline: its records may lack a mask, and it has a generator of its own.
    """

    classes: tuple[str, ...]
    levels: tuple[str, ...]
    control: str | None = None

    def __post_init__(self) -> None:
        """Check that names are unique and the control is a class."""
        for field, names in (("classes", self.classes), ("levels", self.levels)):
            if len(set(names)) != len(names) or len(names) < 2:
                msg = "are not at least two different names"
                raise InputError(msg, field=field, value=list(names))
        if self.control is not None and self.control not in self.classes:
            msg = "is not among the classes"
            raise InputError(msg, field="control", value=self.control, expected=", ".join(self.classes))

    def encode(self, mask: np.ndarray) -> np.ndarray:
        """Return levels (..., h, w) integers as one grey map, float32 from -1 (level 0) to 1 (the last level)."""
        if mask.size and not (0 <= mask.min() and mask.max() < len(self.levels)):
            found = f"{mask.min()} to {mask.max()}"
            raise InputError("mask has levels that are not known", value=found, expected=f"0 to {len(self.levels) - 1}")
        return (mask.astype(np.float32) / (len(self.levels) - 1)) * 2 - 1

    def decode(self, grey: np.ndarray) -> np.ndarray:
        """Return the nearest level of each pixel of grey maps (..., h, w) in [-1, 1]; uint8. Inverse of `encode`."""
        steps = len(self.levels) - 1
        return np.clip(np.rint((np.asarray(grey, dtype=np.float64) + 1) / 2 * steps), 0, steps).astype(np.uint8)


TISSUE = Scheme(("normal", "tumour"), ("background", "stroma", "nuclei", "tumour region"), "normal")
"""Tiles of H&E. Nuclei are nuclei wherever they lie; tumour region is what of the tumour is no nucleus."""

CHEST = Scheme(
    ("normal", "thymoma", "benign cysts", "germ cell tumor", "neurogenic tumor", "thymic carcinoma"),
    (
        "background",
        "body",
        "thymoma",
        "benign cysts",
        "germ cell tumor",
        "neurogenic tumor",
        "thymic carcinoma",
    ),
    "normal",
)
"""Axial slices of the chest, as in DiffGuard (npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7)."""

SCHEMES = {"tissue": TISSUE, "chest": CHEST}
