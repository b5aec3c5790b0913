"""Spots in space: how far apart they lie, which of them touch, and in which square of tissue each lies.

Functions take (n, 2) coordinates of the spots of one section, in any unit unless a name says one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.figure_style import CYCLE, LINE, canvas, style

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from scipy.sparse import csr_matrix

REACH = 1.5
"""In spot pitches: the 8 neighbours of a square array, the 6 of a hexagonal one."""
FEW = 3
"""Neighbours that the surroundings of a spot are read from, at least; where fewer were measured a ring helps out."""
UNUSUAL = 0.25
"""A nearest neighbour nearer or farther than the pitch by this share of it is out of the ordinary."""
SQUARE = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Offsets (row, column) of the eight neighbours on a square array."""
HEXAGONAL = ((0, -2), (0, 2), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Offsets (row, column) of the six neighbours on Visium's array, whose columns count half steps."""


def nearest_distance(coords: np.ndarray) -> np.ndarray:
    """Return the distance of each spot to its nearest neighbour, float64 (n,), in the unit of ``coords``."""
    from scipy.spatial import cKDTree

    return cKDTree(coords).query(coords, k=2)[0][:, 1]


def spot_pitch(coords: np.ndarray, *, alone: float = 1.0) -> float:
    """Return how far apart spots lie: the median distance to the nearest one; ``alone`` where there is one spot."""
    return float(np.median(nearest_distance(coords))) if len(coords) > 1 else alone


def array_pitch(coords: np.ndarray, index: np.ndarray | None = None) -> tuple[float, float] | None:
    """Measure the pitch of a regular array to a fraction of a pixel, which `spot_pitch` does not: pixels are rounded.

    Parameters
    ----------
    coords
        (n, 2) spot centres.
    index
        (n, 2) array row and column, where known: the pitch is then fitted to all spots at once.

    Returns
    -------
    The distance of neighbours, and how many a spot inside the array has; None for an irregular cloud.
    """
    from scipy.spatial import cKDTree

    if len(coords) < 4:
        return None
    middle = spot_pitch(coords)
    if middle <= 0 or np.mean(np.abs(nearest_distance(coords) - middle) > UNUSUAL * middle) > UNUSUAL:
        return None
    pairs = cKDTree(coords).query_pairs(1.3 * middle, output_type="ndarray")
    if not len(pairs):
        return None
    near = float(np.linalg.norm(coords[pairs[:, 0]] - coords[pairs[:, 1]], axis=1).mean())
    neighbours = float(np.quantile(np.bincount(pairs.ravel(), minlength=len(coords)), 0.9))
    steps = array_steps(coords, index) if index is not None else None
    if steps is not None:
        row, column = np.linalg.norm(steps.vectors, axis=1)
        # A Visium column index steps by half a pitch, and rows lie sqrt(3)/2 of a pitch apart.
        fitted = float((row * 2 / np.sqrt(3) + column * 2) / 2 if is_visium(index) else (row + column) / 2)
        if np.median(steps.away) < 0.25 * fitted:
            return fitted, neighbours
    return near, neighbours


@dataclass(frozen=True)
class ArraySteps:
    """How the places of spots follow their array index, by least squares over all spots."""

    vectors: np.ndarray
    """(2, 2): the step in x and y, in the unit of the coordinates, of one row and of one column."""
    away: np.ndarray
    """(n,) how far each spot lies from where its index puts it."""
    explained: float
    """Share of the variance of the places that the index explains."""


def array_steps(coords: np.ndarray, index: np.ndarray) -> ArraySteps | None:
    """Fit (n, 2) places to (n, 2) array rows and columns; None where the spots lie in one line of the array."""
    design = np.column_stack([np.ones(len(index)), index])
    if np.linalg.matrix_rank(design) < 3:
        return None
    weights = np.linalg.lstsq(design, coords, rcond=None)[0]
    away = np.linalg.norm(coords - design @ weights, axis=1)
    spread = float(np.square(coords - coords.mean(axis=0)).sum())
    return ArraySteps(weights[1:], away, 1 - float(np.square(away).sum()) / spread if spread > 0 else 0.0)


def squares(coords: np.ndarray, side: float, *, origin: float | None = None) -> np.ndarray:
    """Return the square of tissue in which each spot lies, int (n,): 0, 1, 2, ...

    Parameters
    ----------
    side
        Side of a square, in the unit of ``coords``.
    origin
        A corner of the grid of squares, on both axes; default: the least x and the least y.
    """
    coords = np.asarray(coords, dtype=np.float64)
    corner = coords.min(axis=0) if origin is None else origin
    return np.unique(np.floor((coords - corner) / side).astype(np.int64), axis=0, return_inverse=True)[1].ravel()


@dataclass(frozen=True)
class Spacing:
    """How far apart the spots of a section lie."""

    section: str
    nearest_um: np.ndarray
    """(n,) distance of each spot to its nearest neighbour, micrometres."""
    pitch_um: float
    """Their median."""
    crowded: int
    """Spots with a neighbour nearer than the pitch less `UNUSUAL`: doubled spots, or two arrays in one."""
    isolated: int
    """Spots whose nearest neighbour is farther than the pitch and `UNUSUAL`."""
    neighbours: float
    """Mean number of neighbours within `REACH` pitches."""


def spacing(section: str, coords_um: np.ndarray) -> Spacing:
    """Measure the distances between the (n, 2) spot centres of one section, in micrometres.

    Raises
    ------
    InputError
        If there are fewer than two spots.
    """
    coords = np.asarray(coords_um, dtype=np.float64)
    if len(coords) < 2:
        raise InputError(
            "has too few spots to measure distances", field=section, value=len(coords), expected="two or more"
        )
    away = nearest_distance(coords)
    middle = float(np.median(away))
    return Spacing(
        section=section,
        nearest_um=away,
        pitch_um=middle,
        crowded=int((away < (1 - UNUSUAL) * middle).sum()),
        isolated=int((away > (1 + UNUSUAL) * middle).sum()),
        neighbours=float(touching(coords).sum() / len(coords)),
    )


def touching(coords: np.ndarray, *, reach: float = REACH) -> csr_matrix:
    """Return which spots lie within ``reach`` pitches of one another: (n, n) CSR of 0 and 1, no spot with itself."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    coords = np.asarray(coords, dtype=np.float64)
    if len(coords) < 2:
        return csr_matrix((len(coords), len(coords)))
    pairs = cKDTree(coords).query_pairs(reach * spot_pitch(coords), output_type="ndarray")
    edges = np.concatenate([pairs, pairs[:, ::-1]]).T
    return csr_matrix((np.ones(edges.shape[1]), edges), shape=(len(coords), len(coords)))


def surroundings(um: np.ndarray, within_um: float, *, ring: tuple[np.ndarray, np.ndarray] | None = None) -> csr_matrix:
    """Return what averages over the surroundings of each spot: (n, n) CSR, rows of sum 1; (n, n + m) with a ring.

    The surroundings are the spots whose centres lie within ``within_um``, the spot itself left out; of a spot that has
    fewer than `FEW`, the tiles of its ring that lie there, too. One that has neither, or whose place nobody knows,
    stands for its surroundings.

    Parameters
    ----------
    um
        (n, 2) spot centres of one section, micrometres; NaN where nobody knows.
    within_um
        How far surroundings reach: the same tissue, whatever the pitch.
    ring
        (m, 2) centres of further tiles, micrometres, and (k, 2) which spot has which of them in its ring
        (`tissue.ring.Ring`). Their columns follow those of the spots.
    """
    from scipy.sparse import csr_matrix, diags

    um = np.asarray(um, dtype=np.float64)
    n, pairs = len(um), _pairs_within(um, within_um)
    beside, more = (np.zeros((0, 2)), np.zeros((0, 2), dtype=int)) if ring is None else ring
    spot, tile = more[np.isin(more[:, 0], few_around(um, within_um))].T
    near = np.linalg.norm(um[spot] - beside[tile], axis=1) <= within_um
    alone = np.setdiff1d(np.arange(n), np.concatenate([pairs.ravel(), spot[near]]))
    own = np.column_stack([spot[near], n + tile[near]])
    rows, columns = np.concatenate([pairs, pairs[:, ::-1], own, np.column_stack([alone, alone])]).T
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n + len(beside)))
    return diags(1 / np.asarray(graph.sum(axis=1)).ravel()) @ graph


def few_around(um: np.ndarray, within_um: float) -> np.ndarray:
    """Return the spots, (k,) int, that have fewer than `FEW` others within so many micrometres; see `surroundings`."""
    um = np.asarray(um, dtype=np.float64)
    around = np.bincount(_pairs_within(um, within_um).ravel(), minlength=len(um))
    return np.flatnonzero((around < FEW) & np.isfinite(um).all(axis=1))


def _pairs_within(um: np.ndarray, within_um: float) -> np.ndarray:
    """Return the pairs of spots, (k, 2) int, that lie within so many micrometres of one another."""
    from scipy.spatial import cKDTree

    known = np.flatnonzero(np.isfinite(um).all(axis=1))
    if len(known) < 2:
        return np.zeros((0, 2), dtype=int)
    return known[cKDTree(um[known]).query_pairs(within_um, output_type="ndarray")]


def section_edges(adata: AnnData) -> np.ndarray:
    """Return the edges of one section, (2, m) int: spot ``edges[0, k]`` has the neighbour ``edges[1, k]``.

    Every edge is there in both directions. ``obs["array_row"]`` and ``obs["array_col"]`` are used where they are whole
    numbers and no place is taken twice; else spots within 1.5 pitches of one another touch.
    """
    grid = array_of(adata)
    if grid is not None:
        return lattice_edges(grid)
    return np.stack(touching(np.asarray(adata.obsm["spatial"], dtype=np.float64)).nonzero()).astype(np.int64)


def array_of(adata: AnnData, *, whole: bool = True) -> np.ndarray | None:
    """Return (n, 2) array rows and columns of a section's spots; None where there are none that can be used.

    With ``whole`` they are int, and every place is taken once; else finite floats: enough to fit a pitch to.
    """
    if not {"array_row", "array_col"} <= set(adata.obs):
        return None
    try:
        values = adata.obs[["array_row", "array_col"]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(values).all():
        return None
    if not whole:
        return values
    grid = values.astype(np.int64)
    return grid if (grid == values).all() and len(np.unique(grid, axis=0)) == len(grid) else None


def is_visium(index: np.ndarray) -> bool:
    """Return whether an array is a Visium slide's: row + column even for all, columns of both parities.

    Stricter than `is_hexagonal`, since a resolution hangs on it: an array whose indices were doubled is square.
    """
    return bool((index.sum(axis=1) % 2 == 0).all() and len(np.unique(index[:, 1] % 2)) == 2)


def is_hexagonal(grid: np.ndarray) -> bool:
    """Return whether an array counts as Visium's does: row + column is even for all spots, or odd for all of them."""
    return len(grid) > 2 and len(np.unique(grid.sum(axis=1) % 2)) == 1


def lattice_edges(grid: np.ndarray, *, hexagonal: bool | None = None) -> np.ndarray:
    """Return the edges of spots on an array, (2, m) int, sorted by spot.

    Parameters
    ----------
    grid
        (n, 2) int: row and column of each spot of one section, no place twice.
    hexagonal
        Six neighbours or eight; None: as `is_hexagonal` finds.

    Raises
    ------
    InputError
        If two spots have the same array position.
    """
    grid = np.asarray(grid, dtype=np.int64).reshape(-1, 2)
    place = {tuple(spot): index for index, spot in enumerate(grid.tolist())}
    if len(place) < len(grid):
        raise InputError("two spots have the same array position", field="array_row, array_col")
    offsets = HEXAGONAL if (is_hexagonal(grid) if hexagonal is None else hexagonal) else SQUARE
    edges = [
        (index, place[row + down, column + right])
        for index, (row, column) in enumerate(grid.tolist())
        for down, right in offsets
        if (row + down, column + right) in place
    ]
    return np.array(edges, dtype=np.int64).reshape(-1, 2).T


def graph_of(edges: list[np.ndarray], sizes: list[int]) -> csr_matrix:
    """Return one graph of several sections, (n, n) CSR of True, from each section's edges and number of spots."""
    from scipy.sparse import csr_matrix

    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    moved = [own + start for own, start in zip(edges, starts, strict=False)]
    both = np.concatenate(moved, axis=1) if moved else np.empty((2, 0), dtype=np.int64)
    n = int(starts[-1])
    return csr_matrix((np.ones(both.shape[1], dtype=bool), (both[0], both[1])), shape=(n, n))


def smoothed_ranks(values: np.ndarray, coords: np.ndarray, *, reach: float = REACH) -> np.ndarray:
    """Rank values among the spots of a section and average each rank over the spot and its neighbours.

    Ranks do not heed outliers nor units, and averaging them takes out the noise of small counts: what is left is where
    in the tissue a gene is high. Only for looking: a smoothed value borrows from the spots around it.

    Parameters
    ----------
    values
        (n,) or (n, g) values of one section; ties share their average rank.
    coords
        (n, 2) spot centres, any unit.
    reach
        Neighbours are spots within this many pitches; a spot without any keeps its own rank.

    Returns
    -------
    Of the same shape, in (0, 1): 0.5 is the middle of the section.

    Raises
    ------
    InputError
        If values and coordinates differ in number, or a value is not finite.
    """
    from scipy.sparse import identity
    from scipy.stats import rankdata

    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(coords):
        raise InputError(
            "values and coordinates differ in number", value=f"{len(values)} values, {len(coords)} coordinates"
        )
    if not np.isfinite(values).all():
        raise InputError(
            "values to be ranked are not all finite", value=f"{int((~np.isfinite(values)).sum())} of {values.size}"
        )
    ranks = (rankdata(values, axis=0) - 0.5) / len(values)
    graph = touching(coords, reach=reach) + identity(len(values), format="csr")
    smoothed = graph @ ranks
    members = np.asarray(graph.sum(axis=1)).ravel()
    return smoothed / (members if values.ndim == 1 else members[:, None])


def spacing_figure(spacings: list[Spacing]) -> Figure:
    """Draw the distances to the nearest spot, in pitches, one histogram per section."""
    columns = min(3, len(spacings))
    rows = -(-len(spacings) // columns)
    with style():
        figure, axes = canvas(rows, columns, figsize=(7.4, 1.7 * rows + 0.4), squeeze=False, sharex=True)
        for axis in axes.ravel()[len(spacings) :]:
            axis.set_axis_off()
        edges = np.linspace(0, 2.5, 51)
        for axis, one in zip(axes.ravel(), spacings, strict=False):
            axis.axvspan(1 - UNUSUAL, 1 + UNUSUAL, color=LINE, zorder=0)
            axis.hist(np.clip(one.nearest_um / max(one.pitch_um, 1e-9), 0, 2.5), bins=edges, color=CYCLE[0])
            axis.set_yscale("symlog", linthresh=1)
            axis.yaxis.set_major_formatter("{x:,.0f}")
            axis.set_title(f"{one.section}: pitch {one.pitch_um:.0f} µm", fontsize=8.5)
        figure.supxlabel(
            "distance to the nearest spot, in pitches (grey: ordinary; the last bar: all beyond)", fontsize=9
        )
        figure.supylabel("spots", fontsize=9)
    return figure
