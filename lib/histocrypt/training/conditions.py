"""What a diffusion model is conditioned on: features of several encoders side by side, of a tile as seen eight ways.

A name says what is wanted: ``a``, ``a+b`` (side by side), ``a+b@4`` (the first four of the eight views of each tile);
``prepared:<folder>#<encoder>`` reads embeddings that were made elsewhere: see `training.prepared`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from histocrypt.tissue.stain import StainStatistics

VIEWS = 8
"""The tile as it is, and its seven turned and mirrored copies."""


def parts_of(name: str) -> tuple[list[str], int | None]:
    """Return the encoders that a name joins, and how many views it asks for (None: the tile as it is, without an axis).

    Raises
    ------
    InputError
        If an encoder is named twice or left empty, or the number of views is not 1 to 8.
    """
    joined, _, views = name.partition("@")
    encoders = joined.split("+")
    if not all(encoders) or len(set(encoders)) < len(encoders):
        msg = "names no encoder, or one twice"
        raise InputError(msg, field="encoder", value=name, expected="e.g. efficientnet_lite0, or uni+conch")
    if not views:
        return encoders, None
    if not views.isdigit() or not 1 <= int(views) <= VIEWS:
        msg = "asks for an impossible number of views"
        raise InputError(msg, field="encoder", value=name, expected=f"1 to {VIEWS} after @")
    return encoders, int(views)


def is_condition(name: str) -> bool:
    """Return whether a name asks for more than one registered encoder's features of the tiles as they are."""
    return any(mark in name for mark in ("+", "@", "#"))


def turned(tiles: np.ndarray, view: int) -> np.ndarray:
    """Return tiles (n, S, S, 3) seen the ``view``-th way: 0 as they are, 1-3 quarter turns, 4-7 those mirrored."""
    mirrored = tiles[:, :, ::-1] if view >= 4 else tiles
    return np.rot90(mirrored, view % 4, axes=(1, 2))


def condition_features(
    tiles: np.ndarray, *, stain: StainStatistics, method: str, encoder: str, names: np.ndarray
) -> np.ndarray:
    """Return the features that a name asks for, of one section.

    Every view of every encoder has a file of its own in the cache (`training.spots.section_features`), with the names
    of its spots: a calculation that was stopped goes on with the view that it was at.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, raw colours.
    stain, method, names
        As `training.spots.section_features` takes them.
    encoder
        See above.

    Returns
    -------
    (n, d) float32, or (n, views, d) where views are asked for
    """
    from histocrypt.training.prepared import PREPARED, prepared_features
    from histocrypt.training.spots import section_features

    encoders, views = parts_of(encoder)
    found = []
    for one in encoders:
        if one.startswith(PREPARED):
            found.append(prepared_features(one, names=names, views=views or 1))
            continue
        seen = []
        for view in range(views or 1):
            pixels = tiles if view == 0 else turned(np.asarray(tiles), view)
            seen.append(section_features(pixels, stain=stain, method=method, encoder=one, names=names))
        found.append(np.stack(seen, axis=1))
    together = np.concatenate(found, axis=-1)  # (n, views, d)
    return together if views else together[:, 0]
