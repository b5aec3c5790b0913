"""Predictions averaged over views of a spot: the eight symmetries of its tile, windows of three widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.features import normalised_chunks, section_features
from histocrypt.data.load import Spots
from histocrypt.errors import InputError
from histocrypt.predictors.registry import MODELS

if TYPE_CHECKING:
    from histocrypt.sections.image import ImageSource
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import Places

WINDOWS = (1.0, 0.5, 1.5)
"""Widths of the windows, in widths of the model's tiles."""


@dataclass(frozen=True)
class Views:
    """Over what predictions are averaged."""

    symmetries: bool = False
    windows: tuple[float, ...] = (1.0,)
    left_out: tuple[float, ...] = ()
    """Windows that do not fit what there is of the image."""

    @classmethod
    def of(cls, *, symmetries: bool, windows: bool, tile_um: float, widest_um: float) -> Views:
        """Return the views asked for, but windows wider than ``widest_um``."""
        if not windows:
            return cls(symmetries)
        fits = tuple(factor for factor in WINDOWS if factor == 1 or factor * tile_um <= widest_um * 1.001)
        return cls(symmetries, fits, tuple(factor for factor in WINDOWS if factor not in fits))

    @property
    def words(self) -> str:
        """What the views are, for a reader; empty for the tile alone."""
        parts = ["eight symmetries"] if self.symmetries else []
        if len(self.windows) > 1 or self.left_out:
            parts.append(f"windows of {', '.join(f'{factor:g}' for factor in self.windows)} tile widths")
        said = f"averaged over {' and '.join(parts)}" if parts else ""
        if self.left_out:
            gone = ", ".join(f"{factor:g}" for factor in self.left_out)
            said += f" (left out, since the patches are too small: {gone})"
        return said


def predict_views(model: Any, window: Callable[[float], Spots], views: Views) -> dict[str, np.ndarray]:
    """Return a trained model's predictions averaged over views, by head: ``target``, and what else it has.

    Parameters
    ----------
    model
        A `pipeline.checkpoints.TrainedModel`.
    window
        Gives whole sections of spots with tiles of so many tile widths.
    views
        Over what to average.

    Returns
    -------
    head -> (n, outputs) float32; ``target`` in the transforms' units

    Raises
    ------
    InputError
        If symmetries are asked of a model that does not look at tiles but at frozen features.
    """
    predictor = model.predictor
    if views.symmetries and not predictor.sees_tiles:
        raise InputError(
            f"{MODELS[model.about['model']].title} reads frozen features of upright tiles",
            field="--average-symmetries",
            fix="leave it out, or choose a trained network",
        )
    total: dict[str, np.ndarray] = {}
    count = 0
    for factor in views.windows:
        spots = window(factor)
        for view in spots.symmetries() if views.symmetries else (spots,):
            count += 1
            for name, values in predictor.predict_heads(view).items():
                total[name] = values.astype(np.float64) if name not in total else total[name] + values
    found = {name: (values / count).astype(np.float32) for name, values in total.items()}
    return {**found, "target": model.scaling.restore(found["target"])}


def mapped(file: Path, chunks: Iterable[np.ndarray], *, n: int, side: int) -> np.ndarray:
    """Return ``n`` tiles that come in chunks as one array, (n, side, side, 3) uint8, which lies in a file."""
    tiles = np.memmap(file, dtype=np.uint8, mode="w+", shape=(n, side, side, 3))
    start = 0
    for chunk in chunks:
        tiles[start : start + len(chunk)] = chunk
        start += len(chunk)
    return tiles


def recut(
    spots: Spots,
    image: ImageSource,
    coords: np.ndarray,
    *,
    um_per_px: float,
    tile_um: float,
    places: Places,
    about: dict[str, Any],
    own: StainStatistics,
    reference: StainStatistics,
    file: Path,
) -> Spots:
    """Return spots of **one section** with tiles of ``tile_um``, cut from its image and brought to the model's stain.

    Tiles lie in ``file``, raw, and beside it, normalised; both are memory-mapped. ``places`` are those of the model's
    own tiles: rings are cut anew, too.
    """
    from histocrypt.tissue.tiles import iter_tiles

    stored, side, n = about["geometry"]["tile_px"], about["geometry"]["input_px"], len(spots)
    method = about["stain"]["method"]

    def cut(centres: np.ndarray, into: Path) -> np.ndarray:
        tiles = iter_tiles(image, centres, um_per_px=um_per_px, tile_um=tile_um, tile_px=stored)
        return mapped(into, (tile[None] for tile in tiles), n=len(centres), side=stored)

    raw, ring = cut(coords, file), places.ring
    if ring is not None:
        around = cache(lambda: cut(ring.um / um_per_px, file.with_suffix(".ring")))
        ring = replace(ring, tiles=lambda: nullcontext(around()))

    @cache
    def pixels() -> np.ndarray:
        chunks = normalised_chunks(raw, source=own, reference=reference, method=method, side=side)
        return mapped(file.with_suffix(".normal"), chunks, n=n, side=side)

    places = replace(places, tile_um=tile_um, ring=ring)

    def features(encoder: str) -> np.ndarray:
        how = {"stain": own, "method": method, "names": spots.names, "places": places}
        return section_features(np.asarray(raw), encoder=encoder, **how)

    return replace(spots, pixels=pixels, features=features)
