"""The picture of the demo tissue: a section of simulated H&E, drawn in optical density.

Regions come from smooth random fields, nuclei from jittered lattices thinned by region, colour from the Beer-Lambert
law with stain vectors that differ between patients and, strongly, between two centres. Tumour and immune regions are
tuned to hold about as much haematoxylin as each other: size and chromatin of their nuclei tell them apart, not colour.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

REGIONS = ("tumour", "immune", "stroma", "normal", "fat", "background")
TUMOUR, IMMUNE, STROMA, NORMAL, FAT, BACKGROUND = range(6)
SHARES = np.array([0.36, 0.16, 0.30, 0.12, 0.06])  # of the tissue, before each patient's own variation
COARSE = 8  # smooth fields are drawn on a grid this many times coarser than the picture

# Unit optical-density vectors (haematoxylin, eosin) and overall intensities of the two centres.
CENTRES = {
    "north": (((0.62, 0.71, 0.33), (0.12, 0.93, 0.34)), (1.20, 0.80)),
    "south": (((0.50, 0.75, 0.43), (0.20, 0.82, 0.53)), (0.88, 1.20)),
}

# kind: long half-axis (px), its log-sd, axis ratio from, to, haematoxylin, rim, clumping of chromatin, nucleolus
LOOKS = {
    "tumour": (5.4, 0.25, 0.66, 0.98, 0.54, 0.40, 0.20, 0.85),
    "immune": (3.0, 0.09, 0.86, 1.00, 0.86, 0.05, 0.16, 0.0),
    "spindle": (7.0, 0.22, 0.20, 0.33, 0.82, 0.05, 0.12, 0.0),
    "gland": (4.2, 0.10, 0.66, 0.86, 0.80, 0.16, 0.12, 0.0),
}


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


@dataclass(frozen=True)
class Tissue:
    """One drawn section.

    Parameters
    ----------
    rgb
        (side, side, 3) uint8 picture.
    labels
        (side, side) uint8, index into `REGIONS`.
    nuclei
        All nuclei drawn, in pixels (1 px = 1 µm).
    grade
        (side, side) float32 smooth gradient of grade, mean 0 and sd about 1: it swells nuclei and coarsens chromatin.
    stain
        (2, 3) unit optical-density vectors of haematoxylin and eosin.
    intensity
        (2,) amounts of the two stains.
    centre
        Which of `CENTRES` stained it.
    """

    rgb: np.ndarray
    labels: np.ndarray
    nuclei: Nuclei
    grade: np.ndarray
    stain: np.ndarray
    intensity: np.ndarray
    centre: str


def draw_tissue(extent: int, margin: int, *, index: int, rng: np.random.Generator) -> Tissue:
    """Draw a section.

    Parameters
    ----------
    extent
        Side of the spot array in pixels; the tissue about fills it.
    margin
        Pixels of glass on each side of the array.
    index
        Number of the patient from 0: even ones come from one centre, odd ones from the other.
    rng
        Source of everything random.
    """
    from scipy.ndimage import gaussian_filter

    side = extent + 2 * margin
    labels, grade = _regions(side, extent, rng)
    stain, intensity, centre = _stain(index, rng)

    chromatin = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 0.9)
    chromatin /= chromatin.std()
    fibres, along = _fibres(side, rng)
    # Thickness of the section and uptake of each stain vary from place to place and mean nothing.
    uneven = [
        np.exp(enlarge(amount * smooth_field(side, 110, rng), side) + both)
        for both in [enlarge(0.12 * smooth_field(side, 110, rng), side)]
        for amount in (0.15, 0.19)
    ]

    haematoxylin, eosin = _ground(labels, fibres, chromatin)
    lumina, gland_nuclei = _glands(labels, haematoxylin, eosin, grade, rng)
    nuclei = _place_nuclei(labels, lumina, along, grade, rng).join(gland_nuclei)
    _cell_borders(labels, nuclei, haematoxylin, eosin)
    _fat(labels, haematoxylin, eosin, rng)

    dark, cover = stamp(nuclei, chromatin, side)
    haematoxylin = haematoxylin * (1 - cover) + dark
    eosin *= 1 - 0.7 * cover
    density = np.stack(
        [gaussian_filter(a * b, 0.7) for a, b in zip((haematoxylin, eosin), uneven, strict=True)], axis=-1
    )
    density = density.reshape(-1, 2) @ (stain * intensity[:, None]).astype(np.float32)
    white = np.asarray([245, 244, 246], np.float32) + rng.uniform(-3, 3, 3).astype(np.float32)
    rgb = white * np.exp(-density)
    rgb += 1.6 * rng.standard_normal(rgb.shape, dtype=np.float32)
    rgb = np.clip(np.rint(rgb), 0, 255).astype(np.uint8).reshape(side, side, 3)
    return Tissue(rgb, labels, nuclei, grade, stain, intensity, centre)


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


def smooth_field(side: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """Return a (side / COARSE)² float32 Gaussian random field, mean 0, sd 1, correlated over about ``length`` px."""
    from scipy.ndimage import gaussian_filter

    small = -(-side // COARSE)
    margin = int(np.ceil(1.5 * length / COARSE))
    noise = rng.standard_normal((small + 2 * margin,) * 2, dtype=np.float32)
    field = gaussian_filter(noise, length / COARSE / 2, mode="wrap")[margin : margin + small, margin : margin + small]
    return (field - field.mean()) / field.std()


def enlarge(field: np.ndarray, side: int) -> np.ndarray:
    """Bring a coarse field to (side, side), bilinearly."""
    from PIL import Image

    return np.asarray(Image.fromarray(field.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))


def centre_of(index: int) -> str:
    """Return the centre that stained the section of patient ``index``, from 0."""
    return list(CENTRES)[index % len(CENTRES)]


def _stain(index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    """Draw a patient's stain vectors and amounts round those of their centre."""
    centre = centre_of(index)
    vectors, amounts = CENTRES[centre]
    stain = np.clip(np.asarray(vectors) + rng.normal(0, 0.025, (2, 3)), 0.02, None)
    stain /= np.linalg.norm(stain, axis=1, keepdims=True)
    return stain, np.asarray(amounts) * np.exp(rng.normal(0, 0.09, 2)), centre


def _regions(side: int, extent: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the outline, the regions inside it and the gradient of grade."""
    length = min(190.0, 0.3 * extent)
    small = -(-side // COARSE)
    axis = (np.arange(small) + 0.5) * COARSE - side / 2
    x, y = np.meshgrid(axis, axis)
    angle = np.arctan2(y, x)
    radius = 0.475 * extent * np.ones_like(angle)
    for wave in range(2, 7):
        radius *= 1 + rng.normal(0, 0.075 / np.sqrt(wave)) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    radius = np.minimum(radius, 0.55 * extent)
    inside = radius - np.hypot(x, y) + 0.02 * extent * smooth_field(side, length / 3, rng)

    # Nests and strands: tumour and immune boundaries are rough, pools of fat and glands are not.
    rough = (0.42, 0.35, 0.3, 0.12, 0.12)
    scores = np.stack([smooth_field(side, length, rng) + r * smooth_field(side, length / 4, rng) for r in rough])
    wanted = SHARES * np.exp(rng.normal(0, 0.22, 5))
    wanted /= wanted.sum()
    offset = np.zeros(5)
    within = scores[:, inside > 0]
    for _ in range(25):
        top = (within + offset[:, None]).argmax(0)
        shares = np.bincount(top, minlength=5) / top.size
        offset += 0.4 * np.clip(np.log((wanted + 1e-3) / (shares + 1e-3)), -1, 1)
    layers = np.stack([enlarge(s + o, side) for s, o in zip(scores, offset, strict=True)])
    labels = layers.argmax(0).astype(np.uint8)
    ragged = 4 * enlarge(rng.standard_normal((small, small), dtype=np.float32), side)
    labels[enlarge(inside, side) + ragged <= 0] = BACKGROUND

    turn = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(turn) * x + np.sin(turn) * y) / (0.27 * extent)
    grade = 0.85 * slope + 0.5 * smooth_field(side, length, rng)
    return labels, enlarge(grade, side)


def _fibres(side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return wavy fibres, (side, side) in 0..1, and their direction in radians.

    Noise is looked up in warped coordinates, stretched along the fibres.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    small = -(-side // COARSE)
    axis = (np.arange(small, dtype=np.float32) + 0.5) * COARSE
    x, y = np.meshgrid(axis, axis)
    turn = rng.uniform(0, np.pi)
    across = np.sin(turn) * x - np.cos(turn) * y
    across += 55 * smooth_field(side, 190, rng) + 6 * smooth_field(side, 45, rng)
    lengthwise = np.cos(turn) * x + np.sin(turn) * y + 30 * smooth_field(side, 190, rng)
    down, right = np.gradient(across)
    noise = gaussian_filter(rng.standard_normal((512, 512), dtype=np.float32), 0.6, mode="wrap")
    bundles = gaussian_filter(rng.standard_normal((512, 512), dtype=np.float32), 2.2, mode="wrap")
    where = [enlarge(across, side) / 3.2, enlarge(lengthwise, side) / 26.0]
    texture = sum(
        map_coordinates(layer / layer.std(), where, order=1, mode="grid-wrap") * w
        for layer, w in ((noise, 0.55), (bundles, 0.75))
    )
    return 1 / (1 + np.exp(-1.7 * texture)), enlarge(np.arctan2(-right, down) % np.pi, side)


def _ground(labels: np.ndarray, fibres: np.ndarray, grain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return haematoxylin and eosin of everything between the nuclei, each (side, side) float32."""
    haematoxylin = np.asarray([0.13, 0.09, 0.03, 0.03, 0.0, 0.0], np.float32)[labels]
    eosin = np.asarray([0.37, 0.30, 0.16, 0.12, 0.0, 0.0], np.float32)[labels]
    weave = np.asarray([0.05, 0.08, 0.52, 0.42, 0.0, 0.0], np.float32)[labels]
    speckle = np.asarray([0.035, 0.03, 0.02, 0.02, 0.0, 0.0], np.float32)[labels]
    return haematoxylin, np.maximum(eosin + weave * fibres + speckle * grain, 0)


def _glands(
    labels: np.ndarray, haematoxylin: np.ndarray, eosin: np.ndarray, grade: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Nuclei]:
    """Draw ducts into the normal region, in place: a white lumen inside a ring of epithelium with basal nuclei.

    Returns where no other nucleus may lie, and the nuclei of the epithelium.
    """
    from scipy.ndimage import distance_transform_edt

    side = len(labels)
    taken = np.zeros(labels.shape, bool)
    room = distance_transform_edt(labels == NORMAL)
    centres = jittered_lattice(side, 74, rng, jitter=0.16)
    space = room[centres[:, 1].astype(int), centres[:, 0].astype(int)]
    parts = []
    for (cx, cy), free in zip(centres[space > 22], space[space > 22], strict=True):
        radius = min(rng.uniform(24, 37), free)
        lumen, waves = rng.uniform(0.38, 0.62), rng.normal(0, 0.07, 3)
        phases = rng.uniform(0, 2 * np.pi, 3)

        def edge(angle, radius=radius, waves=waves, phases=phases):
            return radius * (1 + sum(w * np.cos((k + 2) * angle + phases[k]) for k, w in enumerate(waves)))

        reach = int(radius * 1.4)
        rows = slice(max(int(cy) - reach, 0), min(int(cy) + reach, side))
        cols = slice(max(int(cx) - reach, 0), min(int(cx) + reach, side))
        y, x = np.mgrid[rows, cols]
        q = np.hypot(x - cx, y - cy) / edge(np.arctan2(y - cy, x - cx))
        wall = np.clip((1 - q) * radius + 0.5, 0, 1)
        hollow = np.clip((lumen - q) * radius + 0.5, 0, 1)
        sheath = np.exp(-(((q - 1.05) * radius / 2.0) ** 2))  # basement membrane
        eosin[rows, cols] = (eosin[rows, cols] * (1 - wall) + 0.40 * wall) * (1 - hollow) + 0.3 * sheath
        haematoxylin[rows, cols] = (haematoxylin[rows, cols] * (1 - wall) + 0.14 * wall) * (1 - hollow)
        taken[rows, cols] |= q < 1.12

        count = int(2 * np.pi * 0.8 * radius / 6.6)
        angle = np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.05, count)
        ring = edge(angle) * rng.normal(0.8, 0.03, count)
        parts.append(np.stack([cx + ring * np.cos(angle), cy + ring * np.sin(angle), angle], axis=1))
    where = np.concatenate(parts) if parts else np.zeros((0, 3))
    where = where[((where[:, :2] > 2) & (where[:, :2] < side - 3)).all(1)]
    return taken, _nuclei(where[:, :2], "gland", where[:, 2], grade, rng)


def _place_nuclei(
    labels: np.ndarray, taken: np.ndarray, along: np.ndarray, grade: np.ndarray, rng: np.random.Generator
) -> Nuclei:
    """Scatter the nuclei of every cell type over the regions where it lives."""
    side = len(labels)
    crowding = enlarge(smooth_field(side, 120, rng), side)
    every = Nuclei.none()
    # kind, spacing in px, probability in each region (tumour, immune, stroma, normal, fat, background)
    populations = (
        ("tumour", 13.4, (0.93, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ("immune", 8.7, (0.0, 0.93, 0.0, 0.0, 0.0, 0.0)),
        ("immune", 21.0, (0.14, 0.0, 0.16, 0.1, 0.04, 0.0)),
        ("spindle", 22.0, (0.03, 0.08, 0.85, 0.6, 0.04, 0.0)),
    )
    for kind, spacing, lives in populations:
        points = jittered_lattice(side, spacing, rng, jitter=0.24)
        column, row = points.astype(int).T
        chance = np.asarray(lives)[labels[row, column]] * np.clip(0.86 + 0.16 * crowding[row, column], 0.3, 1.15)
        keep = (rng.random(len(points)) < chance) & ~taken[row, column]
        points, row, column = points[keep], row[keep], column[keep]
        angle = along[row, column] if kind == "spindle" else rng.uniform(0, np.pi, len(points))
        every = every.join(_nuclei(points, kind, angle, grade, rng))
    return every


def _nuclei(points: np.ndarray, kind: str, angle: np.ndarray, grade: np.ndarray, rng: np.random.Generator) -> Nuclei:
    """Give nuclei at ``points`` (n, 2) the looks of their kind; grade swells them, pales them and coarsens them."""
    size, spread, low, high, dark, rim, clump, nucleolus = LOOKS[kind]
    n = len(points)
    g = np.clip(grade[points[:, 1].astype(int), points[:, 0].astype(int)], -2, 2)
    long = size * np.exp(rng.normal(0, spread, n) + (0.13 if kind == "tumour" else 0.08) * g)
    return Nuclei(
        xy=points,
        long=long,
        short=long * rng.uniform(low, high, n),
        angle=np.asarray(angle, float),
        # the swollen nucleus holds about the same chromatin: area times darkness changes little
        dark=dark * np.exp(rng.normal(0, 0.20, n) - 0.15 * g),
        rim=np.full(n, rim),
        clump=np.clip(clump * (1 + 0.4 * g), 0.03, None),
        nucleolus=nucleolus * (rng.random(n) < 0.75) * np.clip(1 + 0.35 * g, 0.2, None),
        kind=np.full(n, kind, dtype="U8"),
    )


def _cell_borders(labels: np.ndarray, nuclei: Nuclei, haematoxylin: np.ndarray, eosin: np.ndarray) -> None:
    """Draw the borders between tumour cells, in place: faint lines halfway between neighbouring nuclei."""
    points = nuclei.xy[nuclei.kind == "tumour"]
    inside = labels == TUMOUR
    if len(points) < 3 or not inside.any():
        return
    near, second, _ = cell_distances(points, inside)
    border = np.exp(-(((second - near) / 1.5) ** 2)) * (near < 14)
    far = np.clip((near - 8) / 5, 0, 1)  # clefts between nests
    eosin[inside] += 0.13 * border - 0.2 * far * eosin[inside]
    haematoxylin[inside] *= 1 - 0.5 * far


def _fat(labels: np.ndarray, haematoxylin: np.ndarray, eosin: np.ndarray, rng: np.random.Generator) -> None:
    """Draw fat, in place: rounded white vacuoles between thin pink walls."""
    points = jittered_lattice(len(labels), 46, rng, jitter=0.2)
    inside = labels == FAT
    if not inside.any():
        return
    near, second, third = cell_distances(points, inside)
    # A soft minimum rounds the corners where three cells meet.
    gap = -2.2 * np.log(np.exp(-(second - near) / 2.2) + np.exp(-(third - near) / 2.2))
    wall = 1 / (1 + np.exp((gap - 2.6) / 0.7))
    eosin[inside] = 0.55 * wall
    haematoxylin[inside] = 0.05 * wall
