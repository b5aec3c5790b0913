"""DiffGuard's own column of the audit: shadow data in manifests, an attack learned on them, other centres apart.

The steps are those of DiffGuard (npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7). Drawn images of a
generator that saw no member are dealt at random into a private and a public half (`write_splits`). Segmentation
networks learn the private half and predict both. An attack learns from truth and prediction which half a record is of
(`learn_attack`), and is then asked about members and non-members of the audited network (`judge_column`).

One thing differs on purpose. DiffGuard counts images of another hospital among the non-members, so that an attack may
tell the scanner and pass for one on membership. Here every other centre is a row of its own, never mixed with the
internal non-members, and beside it stands how well the same scores tell that centre from the internal non-members:
none of these are members, so whatever that row shows is the centre.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.audit.learned import MapAttack, map_inputs, train_map_attack
from histocrypt.audit.membership import Audit, Judged, judge, judge_groups
from histocrypt.errors import InputError
from histocrypt.synthesis.filtering import check_apart
from histocrypt.synthesis.manifest import Pairs, load_pairs, members_of, read_manifest, save_pairs

if TYPE_CHECKING:
    from histocrypt.synthesis.manifest import Scheme

HALVES = ("private", "public")
INTERNAL = "internal"
Predict = Callable[[Pairs], np.ndarray]
"""Returns the masks (n, side, side) uint8 of levels that a network predicts; true masks are not looked at."""


def private_half(pairs: Pairs, *, seed: int) -> np.ndarray:
    """Return (n,) bool, True in a random half: whole patients where any is named, else images, half of each class.

    Raises
    ------
    InputError
        If a half would be empty.
    """
    rng, private = np.random.default_rng([seed, 12]), np.zeros(len(pairs), dtype=bool)
    units = np.where(pairs.patients == "", pairs.ids, pairs.patients)
    strata = np.full(len(pairs), "") if (pairs.patients != "").any() else pairs.labels
    for stratum in np.unique(strata).tolist():
        names = rng.permutation(np.unique(units[strata == stratum]))
        private |= np.isin(units, names[: -(-len(names) // 2)])
    if private.all() or not private.any():
        raise InputError(
            "shadow data cannot be split into halves", field="pairs", value=len(pairs), expected="two images or more"
        )
    return private


def write_splits(folder: str | Path, pairs: Pairs, *, seed: int, one: bool = False) -> list[Path]:
    """Deal shadow images into a private and a public half and write them; return the manifests.

    Parameters
    ----------
    folder
        Holds ``private/manifest.json`` and ``public/manifest.json``, each with its images, or one ``manifest.json``.
        Every record says its half by ``MIA_label``: 1 is private, 0 is public.
    seed
        Of the halves, see `private_half`.
    one
        Write one manifest of both.
    """
    folder, private = Path(folder), private_half(pairs, seed=seed)
    if one:
        return [save_pairs(folder, pairs, member=private)]
    return [
        save_pairs(folder / name, pairs.subset(rows), member=private[rows])
        for name, rows in zip(HALVES, (private, ~private), strict=True)
    ]


def read_splits(*manifests: str | Path, scheme: Scheme, side: int) -> tuple[Pairs, np.ndarray]:
    """Return the images of one or more manifests, and which are private, (n,) bool.

    Raises
    ------
    InputError
        If a record does not say by ``MIA_label``, an id appears in two manifests, or all records are of one half.
    """
    parts = [load_pairs(path, scheme=scheme, side=side) for path in manifests]
    private = np.concatenate([members_of(path, read_manifest(path, scheme=scheme)) for path in manifests])
    pairs = Pairs.join(parts)
    names, times = np.unique(pairs.ids, return_counts=True)
    if (times > 1).any():
        raise InputError(
            "appears in two manifests", field="id", value=str(names[times > 1][0]), expected="each id once"
        )
    if private.all() or not private.any():
        raise InputError(
            "all shadow data are in one half", field="MIA_label", value=int(private[0]), expected="some of each"
        )
    return pairs, private


def learn_attack(
    shadow: Pairs,
    private: np.ndarray,
    fit: Callable[[Pairs, int], Predict],
    *,
    shadows: int = 1,
    seed: int = 0,
    **how: Any,
) -> MapAttack:
    """Learn the attack from shadow networks: fitted to the private half, asked about both.

    As in DiffGuard, images of the control class are left out, and the networks see true masks of none but their half.

    Parameters
    ----------
    fit
        Trains a network on images, from a seed, and returns how it predicts.
    shadows
        Networks, from different seeds.
    how
        Of `learned.train_map_attack`, e.g. ``**learned.PUBLISHED``.
    """
    asked = _outlined(shadow)
    inputs, member = [], []
    for number in range(shadows):
        predict = fit(shadow.subset(private), seed + number)
        inputs.append(_inputs(shadow.subset(asked), predict))
        member.append(private[asked])
    return train_map_attack(np.concatenate(inputs), np.concatenate(member), seed=seed, **how)


def judge_column(
    attack: MapAttack,
    predict: Predict,
    members: Pairs,
    internal: Pairs,
    external: Mapping[str, Pairs] | None = None,
    *,
    blocks: Mapping[str, np.ndarray] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Judged]:
    """Ask the attack about members and non-members of the audited network, each centre apart.

    Parameters
    ----------
    predict
        Of the audited network.
    members, internal
        Images that it learned from, and images of other patients of the same centre.
    external
        Images of other centres, by their names. None are members.
    blocks
        (n,) names of blocks of tissue by ``members``, ``internal`` and the centres' names; None: single images.

    Returns
    -------
    dict
        ``internal``, the figure of membership; then for each centre ``members against <centre>``, which may show the
        centre, and ``internal non-members against <centre>``, which shows nothing else. Scores are means over crops.

    Raises
    ------
    InputError
        If a patient appears on two sides, or a side has no image with a class to outline.
    """
    sets = {"members": members, INTERNAL: internal, **(external or {})}
    for name in list(sets)[1:]:
        check_apart(members.patients, sets[name].patients)
    scores, own, places = {}, {}, {}
    for name, pairs in sets.items():
        rows = _outlined(pairs)
        if not rows.any():
            raise InputError(f"no image of {name} has a class to outline", field=name, value=len(pairs))
        own[name] = pairs.subset(rows)
        scores[name] = attack.scores(_inputs(own[name], predict))
        places[name] = np.asarray(blocks[name])[rows] if blocks else own[name].ids

    def joined(found: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
        return np.concatenate([found[name] for name in names])

    names = tuple(sets)
    group = np.repeat([INTERNAL if name == "members" else name for name in names], [len(own[name]) for name in names])
    member = np.repeat([name == "members" for name in names], [len(own[name]) for name in names])
    patients = {name: own[name].patients for name in names}
    audit = Audit(joined(scores, names), member, joined(patients, names), group, joined(places, names))
    rows = judge_groups(audit, draws=draws, seed=seed)
    found = {INTERNAL: rows.pop("same")}
    for name in names[2:]:
        found[f"members against {name}"] = rows[f"members against {name}"]
        two = (INTERNAL, name)
        side = np.repeat([True, False], [len(own[one]) for one in two])
        apart = judge(
            joined(scores, two), side, joined(patients, two), blocks=joined(places, two), draws=draws, seed=seed
        )
        apart.notes.append("Nobody here is a member: this is how well the scores tell the centres.")
        found[f"internal non-members against {name}"] = apart
    return found


def by_heart(pairs: Pairs, _: int = 0) -> Predict:
    """Return a network's worst case: it knows nothing but its own images, and repeats the mask of the nearest one.

    What is planted for the positive control.
    """
    from histocrypt.synthesis.filtering import distances

    known = pairs.images.reshape(len(pairs), -1).astype(np.float32)

    def predict(asked: Pairs) -> np.ndarray:
        return pairs.masks[distances(asked.images.reshape(len(asked), -1).astype(np.float32), known)[1]]

    return predict


def _outlined(pairs: Pairs) -> np.ndarray:
    return pairs.has_mask & (pairs.labels != (pairs.scheme.control or ""))


def _inputs(pairs: Pairs, predict: Predict) -> np.ndarray:
    return map_inputs(pairs.masks, predict(pairs).astype(np.uint8), levels=len(pairs.scheme.levels))
