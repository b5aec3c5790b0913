"""Images with masks, labels and patients in memory: what generators, filters and segmentation learn from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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
                raise InputError("are not at least two different names", field=field, value=list(names))
        if self.control is not None and self.control not in self.classes:
            raise InputError(
                "is not among the classes", field="control", value=self.control, expected=", ".join(self.classes)
            )

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Scheme:
        """Return the scheme of a description that was read from JSON."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})

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


@dataclass(frozen=True)
class Pairs:
    """n images of one side with their masks; rows belong together and are named."""

    scheme: Scheme
    ids: np.ndarray
    """(n,) str, unique."""
    labels: np.ndarray
    """(n,) str, each one of ``scheme.classes``."""
    patients: np.ndarray
    """(n,) str; of synthetic images ``""``."""
    images: np.ndarray
    """(n, side, side, channels) uint8; 1 channel (grey) or 3 (RGB)."""
    masks: np.ndarray
    """(n, side, side) uint8, indices into ``scheme.levels``; all 0 where `has_mask` is False."""
    has_mask: np.ndarray
    """(n,) bool."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.ids)

    @property
    def sections(self) -> np.ndarray:
        """(n,) str: what stands before the colon of an id, of real tiles their section."""
        return np.array([name.split(":", 1)[0] for name in self.ids.tolist()], dtype=str)

    def subset(self, keep: np.ndarray) -> Pairs:
        """Return the rows chosen by a boolean mask or by indices."""
        rows = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "scheme"}
        return Pairs(self.scheme, **rows)

    @classmethod
    def join(cls, parts: list[Pairs]) -> Pairs:
        """Return all rows of several, in order; their schemes must be equal."""
        if any(part.scheme != parts[0].scheme for part in parts):
            raise ValueError("pairs of different schemes cannot be joined")
        names = [f.name for f in fields(cls) if f.name != "scheme"]
        return cls(parts[0].scheme, **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    def signals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images (n, channels, side, side) and masks (n, 1, side, side), both float32 in [-1, 1]."""
        images = np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1
        return images, self.scheme.encode(self.masks)[:, None]
