"""Rings: tiles around a spot of which few neighbours were measured, so that its surroundings can be read all the same.

A ring is what an array of 200 um has around a spot: eight places, four of them 200 um away and four 283 um. Tiles of a
ring are cut from the section's image. They have no counts, are no spots, and only the context of a spot reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from histocrypt.spatial import few_around

PITCH_UM = 200.0
"""Of the array whose eight neighbours a ring stands for: that of spatial transcriptomics before Visium."""
SAME_UM = 20.0
"""Places nearer than this are one: a tile is shared by rings, and where a spot was measured none is cut."""
STEPS = np.array([step for step in product((-1, 0, 1), repeat=2) if any(step)]) * PITCH_UM
"""(8, 2) from a spot to the places of its ring, micrometres."""


@dataclass(frozen=True)
class Ring:
    """The tiles of all rings of a section."""

    um: np.ndarray
    """(m, 2) centres x, y, micrometres."""
    pairs: np.ndarray
    """(k, 2) int: spot ``pairs[i, 0]`` has tile ``pairs[i, 1]`` in its ring."""
    tiles: Callable[[], AbstractContextManager[Any]]
    """Opens them: (m, S, S, 3) uint8 in raw colours, an array or the data set of a file, in the size of the spots'."""


def lay_rings(
    um: np.ndarray, within_um: float, *, is_tissue: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the tiles of rings lie, (m, 2) micrometres, and (k, 2) which spot has which of them in its ring.

    Parameters
    ----------
    um
        (n, 2) centres of all measured spots of a section, micrometres.
    within_um
        How far surroundings reach: rings are laid around spots that have fewer than `spatial.FEW` others there.
    is_tissue
        From (p, 2) places to (p,) bool. As no spot is kept off tissue, no tile of a ring lies there.
    """
    from scipy.spatial import cKDTree

    spots = few_around(um, within_um)
    places, owners = (um[spots][:, None] + STEPS).reshape(-1, 2), np.repeat(spots, len(STEPS))
    empty = np.zeros((0, 2)), np.zeros((0, 2), dtype=np.int64)
    if not len(spots):
        return empty
    free = cKDTree(um).query(places)[0] > SAME_UM
    free[free] = is_tissue(places[free])
    places, owners = places[free], owners[free]
    if not len(places):
        return empty
    tile = np.full(len(places), -1)
    near, kept = cKDTree(places).query_ball_point(places, SAME_UM), []
    for index, same in enumerate(near):
        if tile[index] < 0:
            tile[[one for one in same if tile[one] < 0]] = len(kept)
            kept.append(index)
    return places[kept], np.unique(np.column_stack([owners, tile]), axis=0)


def ring_reach(reaches: Iterable[float]) -> float:
    """Return around which spots rings are laid, for models whose surroundings reach so far, micrometres; 0: none.

    The least reach in which a ring lies: who has few neighbours there may have more within a wider one.
    """
    return min((reach for reach in reaches if reach >= PITCH_UM), default=0.0)
