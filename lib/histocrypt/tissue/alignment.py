"""Automatic alignment of spots to tissue: one move for all spots of a section, applied only where it clearly helps.

Spots that carry tissue must lie on tissue. The search therefore maximises the mean share of tissue below the spots'
discs over shifts (optionally rotations and scalings about the spots' centroid), coarse to fine. Counts and labels take
no part, and every section is treated alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from histocrypt.spatial import squares
from histocrypt.tissue.mask import disc_share, sample

LEAST_GAIN = 0.015
"""Increase of the mean tissue share below which a move is not worth making."""
LEAST_CONFIDENCE = 0.9
LEAST_SPOTS = 20
_TIE = 2e-3  # tissue share given up for not making the largest move: ties go to the smallest
_FINEST_UM = 2.0
_DRAWS = 200
_MOST_SPOTS = 4000  # more than enough to place a section; keeps arrays of 100,000 bins affordable


@dataclass(frozen=True)
class Alignment:
    """A move of all spots of a section, found or left alone, with the reason."""

    dx_um: float = 0.0
    dy_um: float = 0.0
    rotation_deg: float = 0.0
    """Rotation about `pivot_px`, from x towards y."""
    scale: float = 1.0
    """Factor about `pivot_px`."""
    gain: float = 0.0
    """Increase of the mean share of tissue below the spots."""
    confidence: float = 0.0
    """Share of spatial block bootstrap draws that prefer a move close to this one and gain by it."""
    applied: bool = False
    reason: str = "not searched"
    pivot_px: tuple[float, float] = (0.0, 0.0)
    share_before: float = float("nan")
    share_after: float = float("nan")

    def apply(self, coords: np.ndarray, um_per_px: float) -> np.ndarray:
        """Return (n, 2) coordinates in pixels of full resolution after the move; a copy, unchanged if not applied."""
        coords = np.array(coords, dtype=np.float64)
        if not self.applied:
            return coords
        pivot = np.asarray(self.pivot_px)
        shift = np.array([self.dx_um, self.dy_um]) / um_per_px
        return pivot + self.scale * (coords - pivot) @ _rotation(self.rotation_deg).T + shift

    def to_dict(self) -> dict[str, Any]:
        """Return the alignment as plain values; what was not measured is left out."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value == value}


def align(
    mask: np.ndarray,
    scale: float,
    coords_px: np.ndarray,
    *,
    um_per_px: float,
    spot_diameter_um: float,
    max_shift_um: float,
    max_rotation_deg: float = 0.0,
    max_scale: float = 0.0,
    seed: int = 0,
) -> Alignment:
    """Search for the move of all spots that puts most of them on tissue.

    The move is applied if it raises the mean tissue share by at least `LEAST_GAIN`, lies inside the search region (a
    maximum on its border is no maximum), and at least `LEAST_CONFIDENCE` of the bootstrap draws over blocks of
    neighbouring spots prefer a move close to it.

    Parameters
    ----------
    mask
        (h, w) bool, tissue on a thumbnail.
    scale
        Thumbnail pixels per full-resolution pixel.
    coords_px
        (n, 2) spot centres x, y in pixels of full resolution.
    um_per_px
        Micrometres per full-resolution pixel.
    spot_diameter_um
        Diameter of a spot.
    max_shift_um
        Largest shift tried, in any direction.
    max_rotation_deg, max_scale
        Largest rotation and relative scaling tried; 0 leaves them alone.
    seed
        Seed of the bootstrap.
    """
    coords = np.asarray(coords_px, dtype=np.float64)
    if len(coords) < LEAST_SPOTS:
        return Alignment(reason=f"left alone: {len(coords)} spots are too few to place (at least {LEAST_SPOTS})")
    if not mask.any():
        return Alignment(reason="left alone: no tissue was found")
    rng = np.random.default_rng(seed)
    pivot = coords.mean(axis=0)
    search = _Search(mask, scale, coords, pivot, um_per_px, spot_diameter_um, rng)
    limits = np.array([max_shift_um, max_shift_um, max_rotation_deg, max_scale])
    best = search.refine(search.coarse(limits), limits)
    before, after = search.shares(np.zeros(4)), search.shares(best)
    gain = float((after - before).mean())
    found = Alignment(
        dx_um=round(float(best[0]), 3),
        dy_um=round(float(best[1]), 3),
        rotation_deg=round(float(best[2]), 4),
        scale=round(1.0 + float(best[3]), 6),
        gain=round(gain, 6),
        pivot_px=(float(pivot[0]), float(pivot[1])),
        share_before=round(float(before.mean()), 6),
        share_after=round(float(after.mean()), 6),
    )
    if gain < LEAST_GAIN:
        return replace(found, reason=f"left alone: the best move gains {gain:.3f} tissue share, {LEAST_GAIN} needed")
    found = replace(found, confidence=round(search.confidence(best, limits, rng), 4))
    if np.hypot(best[0], best[1]) > max_shift_um - search.step / 2:
        why = f"left alone: the best move lies at the limit of the search ({max_shift_um:g} µm)"
        return replace(found, reason=f"{why}: align_max_shift_um may be too small, or the tissue larger than the array")
    if found.confidence < LEAST_CONFIDENCE:
        why = f"left alone: only {found.confidence:.1%} of bootstrap draws agree on the move"
        return replace(found, reason=f"{why}, {LEAST_CONFIDENCE:.0%} needed")
    return replace(
        found, applied=True, reason=f"applied: tissue share under spots {before.mean():.3f} to {after.mean():.3f}"
    )


class _Search:
    """The objective on one section: a move is (dx µm, dy µm, degrees, relative scaling)."""

    def __init__(self, mask, scale, coords, pivot, um_per_px, diameter_um, rng) -> None:
        self.share = disc_share(mask, diameter_um / um_per_px * scale)
        self.per_um = scale / um_per_px
        if len(coords) > _MOST_SPOTS:
            coords = coords[np.sort(rng.choice(len(coords), _MOST_SPOTS, replace=False))]
        self.spots = (coords - pivot) * um_per_px  # (n, 2) µm about the pivot
        self.pivot = pivot * scale  # thumbnail pixels
        self.step = max(diameter_um / 4, 1.5 / self.per_um)  # coarse step, µm
        self.radius = float(np.sqrt(np.square(self.spots).sum(axis=1).mean()))

    def shares(self, move: np.ndarray) -> np.ndarray:
        """Return (n,) tissue shares below the spots after a move."""
        return sample(self.share, self._turned(move[2], move[3]) + move[:2] * self.per_um)

    def _turned(self, degrees: float, scaling: float) -> np.ndarray:
        return self.pivot + self.spots @ _rotation(degrees).T * (1 + scaling) * self.per_um

    def score(self, move: np.ndarray, limits: np.ndarray) -> float:
        return float(_agreement(self.shares(move).mean(), move[3]) - _cost(move, limits))

    def shifts(self, largest: float) -> np.ndarray:
        """Return (k, 2) shifts of the coarse grid inside a circle; the zero shift comes first."""
        ticks = np.arange(-int(largest / self.step), int(largest / self.step) + 1) * self.step
        grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
        length = np.hypot(grid[:, 0], grid[:, 1])
        return grid[np.argsort(length, kind="stable")][: int((length <= largest).sum())]

    def table(self, degrees: float, scaling: float, shifts: np.ndarray) -> np.ndarray:
        """Return (k, n) float32 tissue shares for every shift and spot, to the nearest pixel of the thumbnail."""
        height, width = self.share.shape
        base = self._turned(degrees, scaling)
        table = np.empty((len(shifts), len(base)), dtype=np.float32)
        for row, shift in zip(table, shifts * self.per_um, strict=True):
            x, y = np.floor(base + shift).astype(np.intp).T
            inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
            row[:] = np.where(inside, self.share[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)], 0)
        return table

    def coarse(self, limits: np.ndarray) -> np.ndarray:
        shifts = self.shifts(limits[0])
        # One step of rotation or scaling moves a typical spot by about one step of the shift.
        turns = _ticks(limits[2], np.degrees(self.step / self.radius))
        scalings = _ticks(limits[3], self.step / self.radius)
        best, best_score = np.zeros(4), -np.inf
        for degrees in turns:
            for scaling in scalings:
                moves = np.column_stack([shifts, np.full((len(shifts), 2), (degrees, scaling))])
                shares = self.table(degrees, scaling, shifts).mean(axis=1)
                scores = _agreement(shares, scaling) - _cost(moves, limits)
                if scores.max() > best_score:
                    best, best_score = moves[scores.argmax()], scores.max()
        return best

    def refine(self, move: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """Climb from a coarse move, one parameter or diagonal of the shift at a time, halving the steps."""
        steps = np.array([self.step, self.step, np.degrees(self.step / self.radius), self.step / self.radius]) / 2
        directions = [(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (1, -1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
        directions = [np.array(one) for one in directions if (np.array(one) @ limits) or one[0]]
        best, best_score = move, self.score(move, limits)
        while steps[0] >= _FINEST_UM / 2:
            improved = False
            for direction in directions:
                for sign in (1, -1):
                    trial = best + sign * direction * steps
                    if np.hypot(trial[0], trial[1]) > limits[0] or (np.abs(trial[2:]) > limits[2:] + 1e-12).any():
                        continue
                    score = self.score(trial, limits)
                    if score > best_score + 1e-9:
                        best, best_score, improved = trial, score, True
            if not improved:
                steps = steps / 2
        return best

    def confidence(self, best: np.ndarray, limits: np.ndarray, rng: np.random.Generator) -> float:
        """Return the share of draws, over blocks of neighbouring spots, that gain by a move close to ``best``."""
        shifts = self.shifts(limits[0])
        table = self.table(best[2], best[3], shifts)
        before = self.shares(np.zeros(4))
        # About a hundred blocks: neighbours at the same edge of the tissue are not independent witnesses.
        side = max(np.ptp(self.spots, axis=0).max() / 10, 1e-6)
        block = squares(self.spots, side, origin=0.0)
        weights = rng.exponential(size=(_DRAWS, block.max() + 1))[:, block]
        weights /= weights.sum(axis=1, keepdims=True)
        moves = np.column_stack([shifts, np.full((len(shifts), 2), best[2:])])
        scores = table @ weights.T.astype(np.float32) - _cost(moves, limits)[:, None]  # (k, draws)
        chosen = shifts[scores.argmax(axis=0)]
        near = np.hypot(*(chosen - best[:2]).T) <= max(2 * self.step, 30.0)
        gains = weights @ (self.shares(best) - before) > LEAST_GAIN / 2
        return float((near & gains).mean())


def _rotation(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _agreement(share: np.ndarray, scaling: float) -> np.ndarray:
    """Return the mean share, or where spots are scaled, tissue less bare glass in the area they cover.

    The share alone would always ask to shrink: the middle of a section is all tissue.
    """
    return (share - 0.5) * (1 + scaling) ** 2 + 0.5


def _ticks(limit: float, step: float) -> np.ndarray:
    count = min(20, int(np.ceil(limit / step))) if limit > 0 else 0
    return np.linspace(-limit, limit, 2 * count + 1) if count else np.zeros(1)


def _cost(moves: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return what a move costs in tissue share: ties, and near ties, go to the smallest."""
    moves = np.asarray(moves, dtype=np.float64)
    size = np.hypot(moves[..., 0], moves[..., 1]) / limits[0]
    for part in (2, 3):
        if limits[part] > 0:
            size = size + np.abs(moves[..., part]) / limits[part]
    return _TIE * size
