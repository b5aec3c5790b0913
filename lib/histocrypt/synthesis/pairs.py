"""Images with masks, labels and patients in memory: what generators, filters and segmentation learn from."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from histocrypt.synthesis.scheme import Scheme


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

    def subset(self, keep: np.ndarray) -> Pairs:
        """Return the rows chosen by a boolean mask or by indices."""
        rows = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "scheme"}
        return Pairs(self.scheme, **rows)

    @classmethod
    def join(cls, parts: list[Pairs]) -> Pairs:
        """Return all rows of several, in order; their schemes must be equal."""
        if any(part.scheme != parts[0].scheme for part in parts):
            msg = "pairs of different schemes cannot be joined"
            raise ValueError(msg)
        names = [f.name for f in fields(cls) if f.name != "scheme"]
        return cls(parts[0].scheme, **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    def signals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images (n, channels, side, side) and masks (n, 1, side, side), both float32 in [-1, 1]."""
        images = np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1
        return images, self.scheme.encode(self.masks)[:, None]
