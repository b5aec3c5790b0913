"""Cells and regions that others drew: polygons of a GeoJSON file get the mean prediction of the points inside them.

QuPath, StarDist and Cellpose write such files (RFC 7946, its coordinates full-resolution pixels of the slide). A model
predicts of tiles, which are wider than a cell: what a cell gets is the prediction of its **surroundings**, and how many
points it is the mean of is written beside it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.files import regular
from histocrypt.spatial import spot_pitch

if TYPE_CHECKING:
    from anndata import AnnData

INSIDE, NEAREST = "mean of the points inside", "the nearest point"
"""How a region got its prediction, in the column ``how``."""
SUFFIXES = (".geojson", ".geojson.gz", ".json")
ON_IMAGE = 0.5
"""Least share of regions that lie on the image: others are in other units."""


@dataclass(frozen=True)
class Regions:
    """Polygons with their names."""

    names: np.ndarray
    """(m,) str, unique."""
    kinds: np.ndarray
    """(m,) str: as who drew them classified them; empty where they did not."""
    polygons: tuple[tuple[tuple[np.ndarray, ...], ...], ...]
    """Of each region its pieces, each an outline and its holes: (k, 2) x, y in full-resolution pixels."""
    passed_over: int = 0
    """Features that are no areas: points and lines."""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def rings(self) -> tuple[tuple[np.ndarray, ...], ...]:
        """Of each region all closed lines: a point that an odd number of them surrounds lies inside."""
        return tuple(tuple(ring for piece in pieces for ring in piece) for pieces in self.polygons)

    @property
    def centres(self) -> np.ndarray:
        """(m, 2) float64: centres of gravity of their outlines, x, y in full-resolution pixels."""
        return np.array([_centre(rings) for rings in self.rings]).reshape(-1, 2)


def read_regions(path: str | Path) -> Regions:
    """Read the polygons of a GeoJSON file, plain or with gzip.

    Raises
    ------
    InputError
        If it is no GeoJSON, or holds no polygon.
    """
    path = regular(path)
    with reading("regions cannot be read", OSError, EOFError, ValueError, RecursionError, file=path):
        content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        document = json.loads(content.decode("utf-8-sig"))
    names: list[str] = []
    kinds, polygons, passed_over, seen = [], [], 0, {}
    for number, feature in enumerate(_features(document, path), start=1):
        where = f"feature {number}"
        own = _polygons(feature.get("geometry"), path, where)
        if not own:
            passed_over += 1
            continue
        about = feature.get("properties") or {}
        name, kind = (
            str(feature.get("id") or about.get("name") or about.get("id") or number),
            about.get("classification"),
        )
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
        kinds.append(str((kind.get("name") if isinstance(kind, dict) else kind) or ""))
        polygons.append(own)
    if not polygons:
        raise InputError("has no polygon", file=path, expected="features that are Polygon or MultiPolygon")
    return Regions(np.array(names), np.array(kinds), tuple(polygons), passed_over)


def _features(document: Any, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the features of a collection, of a bare list (as QuPath may write), or the one that there is."""
    found = document
    if isinstance(document, dict):
        found = document.get("features") if document.get("type") == "FeatureCollection" else [document]
    if not isinstance(found, list) or not all(isinstance(one, dict) and one.get("type") == "Feature" for one in found):
        raise InputError("is not a GeoJSON file of features", file=path, field="type", expected="a FeatureCollection")
    yield from found


def _polygons(geometry: Any, path: Path, where: str) -> tuple[tuple[np.ndarray, ...], ...]:
    """Return the pieces of a geometry, each an outline and its holes; none where it is no area."""
    kind, content = (geometry.get("type"), geometry.get("coordinates")) if isinstance(geometry, dict) else (None, None)
    if kind == "GeometryCollection":
        return tuple(one for part in geometry.get("geometries") or () for one in _polygons(part, path, where))
    if kind not in ("Polygon", "MultiPolygon"):
        return ()
    found = []
    with reading("a polygon's coordinates cannot be read", TypeError, ValueError, IndexError, file=path, field=where):
        for polygon in content if kind == "MultiPolygon" else [content]:
            piece = []
            for line in polygon:
                ring = np.array([point[:2] for point in line], dtype=np.float64)
                if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all():
                    raise ValueError("a ring is three points or more")
                piece.append(ring)
            found += [tuple(piece)] if piece else []
    return tuple(found)


def _centre(rings: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the centre of gravity of the largest outline (the shoelace formula); of a mere line, its mean point."""
    best, size = rings[0].mean(axis=0), 0.0
    for ring in rings:
        start = ring - ring[0]  # near zero, where products of large coordinates would lose their digits
        after = np.roll(start, -1, axis=0)
        cross = start[:, 0] * after[:, 1] - after[:, 0] * start[:, 1]
        area = cross.sum() / 2
        if abs(area) > size:
            size = abs(area)
            best = ring[0] + ((start + after) * cross[:, None]).sum(axis=0) / (6 * area)
    return best


@dataclass(frozen=True)
class Membership:
    """Which points each region is the mean of."""

    inside: list[np.ndarray]
    """Of each region the points inside it, or the one nearest to it; none where it is empty."""
    how: np.ndarray
    """(m,) str: `INSIDE`, `NEAREST`, or empty."""
    distance_um: np.ndarray
    """(m,) float64: from its centre to the nearest point, micrometres."""

    def words(self, within_um: float, passed_over: int) -> str:
        """Return how many regions got their prediction how."""
        inside, nearest = (int((self.how == word).sum()) for word in (INSIDE, NEAREST))
        empty = len(self.how) - inside - nearest
        return (
            f"{len(self.how)} regions: {inside} get the mean of the points inside, {nearest} the nearest point within "
            f"{within_um:.4g} um, {empty} nothing, as no point is so near"
            + (f"; {passed_over} features are no areas" if passed_over else "")
        )


def points_of(regions: Regions, coords: np.ndarray, *, um_per_px: float, within_um: float) -> Membership:
    """Return which points lie in which region.

    Parameters
    ----------
    regions
        The regions.
    coords
        (n, 2) x, y of the predicted points, full-resolution pixels.
    um_per_px
        Micrometres per such pixel.
    within_um
        How far from the centre of a region without a point the nearest may lie, micrometres.
    """
    from scipy.spatial import cKDTree
    from skimage.measure import points_in_poly

    tree, centres = cKDTree(coords), regions.centres
    apart, nearest = tree.query(centres)
    low = np.array([np.min([ring.min(axis=0) for ring in rings], axis=0) for rings in regions.rings])
    high = np.array([np.max([ring.max(axis=0) for ring in rings], axis=0) for rings in regions.rings])
    reach = np.linalg.norm(high - low, axis=1) / 2
    inside, how = [], np.full(len(regions), "", dtype=object)
    for number, near in enumerate(tree.query_ball_point((low + high) / 2, reach * (1 + 1e-9))):
        odd = np.zeros(len(near), dtype=bool)
        for ring in regions.rings[number] if near else ():
            odd ^= points_in_poly(coords[near], ring)
        own = np.sort(np.asarray(near, dtype=np.int64)[odd])
        if len(own):
            how[number] = INSIDE
        elif apart[number] * um_per_px <= within_um:
            own, how[number] = nearest[number : number + 1], NEAREST
        inside.append(own)
    return Membership(inside, how.astype(str), apart * um_per_px)


def check_on_image(regions: Regions, size: tuple[int, int], file: str | Path) -> None:
    """Refuse regions of which most lie outside an image of (width, height): they are in other units, or of another."""
    centres = regions.centres
    if ((centres >= 0) & (centres < size)).all(axis=1).mean() < ON_IMAGE:
        raise InputError(
            "most regions lie outside the image",
            file=file,
            field="coordinates",
            value=[round(float(value)) for value in centres.max(axis=0)],
            expected=f"pixels of the full resolution, {size[0]} x {size[1]}",
            fix="export them in pixels, of the same image",
        )


def predicted_regions(
    prediction: AnnData, regions: Regions, *, file: str | Path, within_um: float | None = None
) -> tuple[AnnData, str]:
    """Return the predictions of regions, as an AnnData like the one of the points, and words on how they came about.

    Parameters
    ----------
    prediction
        Of **one section**, as `predictions.write_predictions` makes it.
    regions
        In full-resolution pixels of its image.
    file
        Where the regions are from, to be said.
    within_um
        See `points_of`; None: as far as the points lie from each other.

    Returns
    -------
    A row a region that has points; ``obs`` says how many (``points``) and how; those without any are named in
    ``uns["regions"]["empty"]``.
    """
    import pandas as pd
    from anndata import AnnData

    coords, about = np.asarray(prediction.obsm["spatial"]), prediction.uns["prediction"]
    um = float(about["um_per_px"])
    within_um = spot_pitch(coords) * um if within_um is None else within_um
    found = points_of(regions, coords, um_per_px=um, within_um=within_um)
    kept = np.flatnonzero(found.how != "")
    count = np.array([len(found.inside[one]) for one in kept], dtype=np.int64)
    section = str(prediction.obs["section"].iloc[0])
    names = regions.names[kept].astype(str)
    obs = pd.DataFrame(
        {
            **{name: str(prediction.obs[name].iloc[0]) for name in ("section", "patient") if name in prediction.obs},
            "barcode": names,
            "kind": regions.kinds[kept],
            "points": count,
            "how": found.how[kept],
            "nearest_um": found.distance_um[kept],
        },
        index=pd.Index([f"{section}:{name}" for name in names], name="spot"),
    )
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(found.inside[one] for one in kept)])
    starts = np.cumsum(count) - count

    def mean(values: Any) -> np.ndarray:
        chosen = np.asarray(values, dtype=np.float64)[rows]
        total = np.add.reduceat(chosen, starts) if len(kept) else chosen
        return (total / count[:, None]).astype(np.float32)

    adata = AnnData(
        X=mean(prediction.X),
        obs=obs,
        var=prediction.var.copy(),
        layers={name: mean(values) for name, values in prediction.layers.items()},
        obsm={"spatial": regions.centres[kept]},
    )
    adata.uns["prediction"] = {
        **about,
        "points": "regions that others drew: the mean prediction of their surroundings, not of single cells",
    }
    adata.uns["regions"] = {
        "file": str(Path(file).absolute()),
        "within_um": float(within_um),
        "said": (said := found.words(within_um, regions.passed_over)),
        "empty": np.delete(regions.names, kept).astype(str),
    }
    return adata, said
