"""Frozen features of tiles by name: families, their views and their surroundings, cached by content.

A name says which features are wanted: ``a``, ``a+b`` (two families side by side), ``a+b@4`` (the first four of the
eight views of each tile). ``a~320`` is the context of a: its mean over the spots, or places of a grid, whose centres
lie within 320 um, the spot itself left out; where these are few, over a ring of tiles, too (`tissue.ring`).
``prepared:<folder>#<encoder>`` reads embeddings that were made elsewhere: see `encoders.precomputed`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path
from histocrypt.spatial import surroundings

if TYPE_CHECKING:
    from histocrypt.tissue.ring import Ring
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import Places

VIEWS = 8
"""The tile as it is, and its seven turned and mirrored copies."""
PLACES = "places"
"""Name of what is no feature of a tile: its centre x, y in micrometres; NaN where nobody knows."""
FARTHEST = 5000
"""Micrometres that a context may reach."""
CHUNK = 256
"""Tiles that are normalised and resized at a time."""


def normalised_chunks(
    tiles: np.ndarray,
    *,
    source: StainStatistics,
    reference: StainStatistics,
    method: str,
    side: int | None = None,
) -> Iterable[np.ndarray]:
    """Yield tiles (n, S, S, 3) uint8 in chunks, resized to ``side`` and brought from one stain to another."""
    from histocrypt.tissue.resize import resize
    from histocrypt.tissue.stain import normalise

    for start in range(0, len(tiles), CHUNK):
        chunk = np.ascontiguousarray(tiles[start : start + CHUNK])
        chunk = chunk if side is None else resize(chunk, side)
        yield normalise(chunk, source=source, reference=reference, method=method)


def section_features(
    tiles: np.ndarray,
    *,
    stain: StainStatistics,
    method: str,
    encoder: str,
    names: np.ndarray,
    places: Places | None = None,
) -> np.ndarray:
    """Return the frozen features of one section, from the cache where they are there.

    An encoder sees tiles in **one fixed stain**, a published reference that was learnt from no patient of any study
    (`tissue.stain.DEFAULT_REFERENCE`), not in the fold's. Features hence do not depend on the fold: they are computed
    once per section, and nothing of a training patient is in them, nor of a test patient. What is described by hand
    (`encoders.described`) sees the raw tile and the section's stain.

    They are found again by content: the key is a SHA-256 over the raw tiles, the section's stain statistics, the
    reference, the method, one tile as normalised (so that a change of the normalisation itself counts), the encoder and
    the hash of its weights.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, raw colours; an array, or the data set of an open tile file, which is then read chunk by
        chunk. At least one.
    stain
        The section's own stain statistics.
    method
        ``macenko``, ``reinhard`` or ``none``.
    encoder
        Name of an encoder, or of several joined, or of views: see above. Every view of every encoder has a file of its
        own in the cache: a calculation that was stopped goes on with the view that it was at.
    names
        (n,) names of the spots; stored beside the features and checked when these are read.
    places
        Where the tiles lie; all spots of the section at once, since they are each other's context. Encoders' own
        features do without.

    Returns
    -------
    (n, d) float32, or (n, views, d) where views are asked for
    """
    from histocrypt.encoders.precomputed import PREPARED, prepared_features
    from histocrypt.tissue.tiles import Places

    encoders, views = parts_of(encoder)
    places = Places(np.full((len(tiles), 2), np.nan), float("nan")) if places is None else places

    def views_of(name: str) -> np.ndarray:
        """Return (n, views, d)."""
        name, around = split_context(name)
        if around and np.isnan(places.tile_um):
            raise InputError(
                "needs the positions of the tiles", field="encoder", value=f"{name}~{around:g}", fix="leave ~ out"
            )
        if around:  # the surroundings are not turned
            own = section_features(tiles, stain=stain, method=method, encoder=name, names=names, places=places)
            ring = ring_read(places, f"{name}~{around:g}")
            graph = surroundings(places.um, around, ring=None if ring is None else (ring.um, ring.pairs))
            if ring is not None:
                numbered = np.array([f"{str(names[0]).partition(':')[0]}:ring {i}" for i in range(len(ring.um))])
                how = {"stain": stain, "method": method, "encoder": name, "names": numbered, "tile_um": places.tile_um}
                with ring.tiles() as cut:
                    own = np.concatenate([own, _encoded(cut, **how, of=tiles)])
            return np.repeat((graph @ own)[:, None].astype(np.float32), views or 1, axis=1)
        if name == PLACES:
            return np.repeat(places.um[:, None], views or 1, axis=1)
        if name.startswith(PREPARED):
            return prepared_features(name, names=names, views=views or 1)
        seen = (turned(np.asarray(tiles), view) if view else tiles for view in range(views or 1))
        how = {"stain": stain, "method": method, "encoder": name, "names": names, "tile_um": places.tile_um}
        return np.stack([_encoded(own, **how) for own in seen], axis=1)

    together = np.concatenate([views_of(name) for name in encoders], axis=-1)
    return together if views else together[:, 0]


def ring_read(places: Places, name: str) -> Ring | None:
    """Return the ring that the context ``a~320`` is read from; none where a tile of it cannot be described by a."""
    return places.ring if reaches_of(name) else None


def _encoded(
    tiles: np.ndarray,
    *,
    stain: StainStatistics,
    method: str,
    encoder: str,
    names: np.ndarray,
    tile_um: float,
    of: np.ndarray | None = None,
) -> np.ndarray:
    """Return one family's features of one section, (n, d), from the cache where they are there.

    ``of`` are the tiles of the section's own spots, where these are others: what is described by hand takes its limits
    from them, so that a ring changes nothing of the spots and is described as they are.
    """
    from tqdm.auto import tqdm

    from histocrypt.encoders.described import DESCRIBED
    from histocrypt.encoders.encoders import encode, encoder_of
    from histocrypt.tissue.stain import DEFAULT_REFERENCE

    def normal(part: np.ndarray) -> Iterable[np.ndarray]:
        return normalised_chunks(part, source=stain, reference=DEFAULT_REFERENCE, method=method)

    described = DESCRIBED.get(encoder)
    key, how = hashlib.sha256(), [stain.to_dict(), encoder]
    if described is not None and np.isnan(tile_um):
        problem, fix = "is computed without a network and needs the size of tiles", "name an encoder"
        raise InputError(problem, field="encoder", value=encoder, fix=fix)
    if described is None:
        entry = encoder_of(encoder)
        how += [DEFAULT_REFERENCE.to_dict(), method, entry.px, entry.weights_hash()]
    else:
        how += [described.version, tile_um]
    key.update(json.dumps([how, list(tiles.shape), list(map(str, names))], sort_keys=True, default=_plain).encode())
    for part in (tiles, *([of] if of is not None and described is not None else [])):
        for start in range(0, len(part), CHUNK):
            key.update(np.ascontiguousarray(part[start : start + CHUNK]).data)
    for tile in normal(tiles[:1]) if described is None else ():
        key.update(np.ascontiguousarray(tile).data)
    path = paths.cache() / "features" / f"{key.hexdigest()}.h5"
    cached = _read_features(path, names)
    if cached is None:
        with _alone(path):  # jobs side by side want the same sections: one computes, the others wait and read
            cached = _read_features(path, names, quietly=True)
            if cached is None and described is not None:
                cached = described.describe(tiles, stain=stain, um_per_px=tile_um / tiles.shape[1], of=of)
                _write_features(path, names, cached, encoder)
            elif cached is None:
                section, chunks = str(names[0]).split(":")[0], -(-len(tiles) // CHUNK)
                bar = tqdm(normal(tiles), total=chunks, desc=f"features {section}", leave=False)
                cached = np.concatenate([encode(chunk, encoder, progress=False) for chunk in bar])
                _write_features(path, names, cached, encoder)
    return cached


def parts_of(name: str) -> tuple[list[str], int | None]:
    """Return the encoders that a name joins, and how many views it asks for (None: the tile as it is, without an axis).

    Raises
    ------
    InputError
        If an encoder is named twice or left empty, or the number of views is not 1 to 8.
    """
    joined, _, views = name.partition("@")
    encoders = joined.split("+")
    for encoder in encoders:
        split_context(encoder)
    if not all(encoders) or len(set(encoders)) < len(encoders):
        raise InputError(
            "names no encoder, or the same one twice",
            field="encoder",
            value=name,
            expected="e.g. efficientnet_lite0, or uni+conch",
        )
    if not views:
        return encoders, None
    if not views.isdigit() or not 1 <= int(views) <= VIEWS:
        raise InputError(
            "has an impossible number of views", field="encoder", value=name, expected=f"1 to {VIEWS} after @"
        )
    return encoders, int(views)


def split_context(name: str) -> tuple[str, float]:
    """Return a family's name and how far its surroundings reach, micrometres; 0: the spot itself."""
    family, mark, reach = name.partition("~")
    if not mark:
        return name, 0.0
    if not family or not reach.isdigit() or not 1 <= int(reach) <= FARTHEST:
        wanted = f"e.g. morphology~320: a whole number of micrometres, 1 to {FARTHEST}, after ~"
        raise InputError("does not give a size of surroundings", field="encoder", value=name, expected=wanted)
    return family, float(reach)


def check_families(name: str, **where: Any) -> None:
    """Refuse a name of features of which one is no encoder, nor described by hand, nor prepared elsewhere.

    Whether a model of timm is one is found out when it is loaded. ``where`` goes to the error.
    """
    from histocrypt.encoders.described import DESCRIBED
    from histocrypt.encoders.precomputed import PREPARED
    from histocrypt.encoders.registry import ENCODERS, TIMM

    for part in parts_of(name)[0]:
        family, _ = split_context(part)
        if family not in ENCODERS and family not in DESCRIBED and not family.startswith((PREPARED, TIMM)):
            raise unknown_name("encoder", family, [*ENCODERS, *DESCRIBED, f"{TIMM}<model>"], **where)


def reaches_of(name: str) -> list[float]:
    """Return how far the surroundings reach, micrometres, whose tiles a name of features asks for; empty: none.

    What was prepared elsewhere, and mere places, are known of the spots alone.
    """
    from histocrypt.encoders.precomputed import PREPARED

    parts = map(split_context, parts_of(name)[0]) if name else []
    return [reach for family, reach in parts if reach and not family.startswith((PREPARED, PLACES))]


def turned(tiles: np.ndarray, view: int) -> np.ndarray:
    """Return tiles (n, S, S, 3) seen the ``view``-th way: 0 as they are, 1-3 quarter turns, 4-7 those mirrored."""
    mirrored = tiles[:, :, ::-1] if view >= 4 else tiles
    return np.rot90(mirrored, view % 4, axes=(1, 2))


def _read_features(path: Path, names: np.ndarray, *, quietly: bool = False) -> np.ndarray | None:
    import h5py

    if not path.exists():
        return None
    try:
        with h5py.File(path, "r") as file:
            if list(file["names"].asstr()[:]) == list(map(str, names)):
                return file["features"][:]
    except (OSError, KeyError):
        if not quietly:
            print(f"{path} is damaged; its features are computed again", file=sys.stderr)
    return None


def _write_features(path: Path, names: np.ndarray, features: np.ndarray, encoder: str) -> None:
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["features"] = features
        file.create_dataset("names", data=list(map(str, names)), dtype=h5py.string_dtype())
        file.attrs["encoder"] = encoder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold back who else would write this file; where the file system knows no locks, nobody is held back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".lock_{path.name[0]}").open("w") as lock:  # a few files for all
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _plain(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)
