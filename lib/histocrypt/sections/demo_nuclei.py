"""Nuclei of the demo tissue: where they lie and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Nuclei:
    """n nuclei, lengths in pixels.

    Parameters
    ----------
    xy
        (n, 2) centres.
    long, short
        (n,) half-axes.
    angle
        (n,) direction of the long axis, radians.
    dark, rim, clump, nucleolus
        (n,) haematoxylin inside, extra at the membrane, relative roughness of chromatin, extra in the nucleolus.
    kind
        (n,) cell type.
    """

    xy: np.ndarray
    long: np.ndarray
    short: np.ndarray
    angle: np.ndarray
    dark: np.ndarray
    rim: np.ndarray
    clump: np.ndarray
    nucleolus: np.ndarray
    kind: np.ndarray

    @classmethod
    def none(cls) -> Nuclei:
        """Return zero nuclei."""
        return cls(np.zeros((0, 2)), *(np.zeros(0) for _ in range(7)), np.zeros(0, dtype="U8"))

    def join(self, other: Nuclei) -> Nuclei:
        """Return these and the others."""
        return Nuclei(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def take(self, where: np.ndarray) -> Nuclei:
        """Return those at ``where``."""
        return Nuclei(*(getattr(self, f.name)[where] for f in fields(self)))


def jittered_lattice(side: int, spacing: float, rng: np.random.Generator, *, jitter: float) -> np.ndarray:
    """Return (n, 2) points of a triangular lattice inside (side, side), shaken by ``jitter`` spacings (sd).

    Nuclei crowd without piling up, as cells do.
    """
    row = spacing * np.sqrt(3) / 2
    y, x = np.mgrid[-1 : side / row + 1, -1 : side / spacing + 1]
    points = np.stack([(x + 0.5 * (y % 2)) * spacing, y * row], axis=-1).reshape(-1, 2)
    points += rng.normal(0, jitter * spacing, points.shape).clip(-1.6 * jitter * spacing, 1.6 * jitter * spacing)
    return points[((points >= 3) & (points < side - 3)).all(1)]


def cell_distances(points: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances from each true pixel of ``inside`` to its three nearest points, each (n true,), taken every 2nd px."""
    from scipy.spatial import cKDTree

    half = np.zeros((-(-inside.shape[0] // 2), -(-inside.shape[1] // 2)), bool)
    rows, columns = np.nonzero(inside)
    half[rows // 2, columns // 2] = True
    r, c = np.nonzero(half)
    distance, _ = cKDTree(points).query(np.stack([c, r], axis=1) * 2.0 + 0.5, k=3)
    place = np.zeros(half.shape, np.int64)
    place[r, c] = np.arange(len(r))
    return tuple(distance[place[rows // 2, columns // 2]].astype(np.float32).T)


def stamp(nuclei: Nuclei, chromatin: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw nuclei with soft edges.

    Parameters
    ----------
    nuclei
        What to draw.
    chromatin
        (side, side) texture with sd 1.
    side
        Side of the picture, px.

    Returns
    -------
    Haematoxylin of the nuclei and the share of each pixel that they cover, each (side, side) float32. Where nuclei
    overlap the darker one shows.
    """
    dark, cover = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    reach = np.ceil(nuclei.long * 1.15 + 1).astype(int)
    shape = np.random.default_rng(0).uniform(0, 2 * np.pi, len(nuclei.xy))  # of the slight irregularity of outlines
    for half in np.unique(reach):
        members = np.nonzero(reach == half)[0]
        offsets = np.arange(-half, half + 1)
        for at in np.array_split(members, -(-len(members) * (2 * half + 1) ** 2 // 2_000_000)):
            n, phase = nuclei.take(at), shape[at, None, None]
            centre = np.rint(n.xy).astype(int)
            x = (centre[:, 0, None] + offsets)[:, None, :]
            y = (centre[:, 1, None] + offsets)[:, :, None]
            dx = (x - n.xy[:, 0, None, None]).astype(np.float32)
            dy = (y - n.xy[:, 1, None, None]).astype(np.float32)
            c, s = (f(n.angle)[:, None, None].astype(np.float32) for f in (np.cos, np.sin))
            long, short = n.long[:, None, None].astype(np.float32), n.short[:, None, None].astype(np.float32)
            u, v = (c * dx + s * dy) / long, (c * dy - s * dx) / short
            q = np.hypot(u, v)
            q *= 1 + 0.07 * np.cos(3 * np.arctan2(v, u) + phase).astype(np.float32)
            soft = np.clip((1 - q) * short + 0.5, 0, 1)
            inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
            flat = np.clip(y, 0, side - 1) * side + np.clip(x, 0, side - 1)
            shade = n.dark[:, None, None] * (1 + n.clump[:, None, None] * chromatin.ravel()[flat])
            shade += n.rim[:, None, None] * np.exp(-(((q - 0.88) * short / 0.9) ** 2))
            spot = np.hypot(u * long - 0.3 * long * np.cos(phase), v * short - 0.3 * short * np.sin(phase))
            shade += n.nucleolus[:, None, None] * np.exp(-((spot / 1.25) ** 2))
            shade = (np.maximum(shade, 0.1) * soft).astype(np.float32)
            seen = inside & (soft > 0)
            np.maximum.at(dark.reshape(-1), flat[seen], shade[seen])
            np.maximum.at(cover.reshape(-1), flat[seen], soft[seen])
    return dark, cover
