"""What a predictor sees: spots with their tiles, and, in training, their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spots:
    """Spots of one or several sections, in one order throughout.

    Arrays carry names: ``names[i]`` is ``"<section>:<barcode>"`` and ``outputs[j]`` names column ``j`` of ``targets``
    (``"<transform>:<gene id>"``).
    """

    names: np.ndarray
    """(n,) str."""
    sections: np.ndarray
    """(n,) str, section id of each spot."""
    patients: np.ndarray
    """(n,) str, patient id of each spot."""
    tiles: np.ndarray
    """(n, side, side, 3) uint8, stain-normalised; may be memory-mapped."""
    depth: np.ndarray
    """(n,) float, total counts. Only the depth-only baseline may read it."""
    outputs: tuple[str, ...]
    """Names of the predicted columns."""
    targets: np.ndarray | None = None
    """(n, len(outputs)) float32, or None where there is nothing to learn from."""
    features: Callable[[str], np.ndarray] | None = field(default=None, repr=False)
    """Frozen-encoder features by encoder name: (n, d) float32, computed once and cached."""
    measured: Any = field(default=None, repr=False)
    """What else was measured of training spots, read on demand (`data.measured.Measured`); None for spots
    without targets."""

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, index: np.ndarray) -> Spots:
        """Return the spots chosen by a boolean mask or integer index."""
        index = np.flatnonzero(index) if index.dtype == bool else index
        features = self.features
        return replace(
            self,
            names=self.names[index],
            sections=self.sections[index],
            patients=self.patients[index],
            tiles=self.tiles[index],
            depth=self.depth[index],
            targets=None if self.targets is None else self.targets[index],
            features=None if features is None else (lambda encoder: features(encoder)[index]),
            measured=None if self.measured is None else self.measured.subset(index),
        )

    def symmetries(self) -> Iterator[Spots]:
        """Yield the spots with their tiles in each of the eight symmetries of the square, upright first."""
        for turned in (self.tiles, np.swapaxes(self.tiles, 1, 2)):
            for tiles in (turned, turned[:, ::-1], turned[:, :, ::-1], turned[:, ::-1, ::-1]):
                yield replace(self, tiles=tiles)
