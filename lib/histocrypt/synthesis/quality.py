"""How like real tiles drawn ones are, in figures that hold on small sets, each beside yardsticks that make it readable.

All figures compare a set with the same reference, half of the training tiles (by blocks of tissue), in the features of
a frozen encoder. The yardsticks are the other half (the best that can be asked for), other patients, and real tiles
that were spoilt: blurred, their pixels shuffled, or one colour.

* ``kid``: the squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, unbiased at any size (Binkowski et al.,
  "Demystifying MMD GANs", ICLR 2018). 0 where both are alike; an estimate may be below 0.
* ``fd``: the Fréchet distance of two Gaussians (Heusel et al., NeurIPS 2017). Its bias falls as 1 / n and is as large
  as what is looked for at a few hundred tiles, so it is extrapolated to sets without end (Chong and Forsyth, "FD
  infinity", CVPR 2020). That needs more tiles than dimensions: it is taken on few, random, directions.
* ``precision``, ``recall``: the share of a set that lies within the reference, and the share of the reference that lies
  within the set, "within" being nearer to a member than that one's k-th neighbour (Kynkäänniemi et al., NeurIPS 2019).
  Recall grows with a set's number of tiles: all sets are cut to the same number for it.

Tiles of one block of tissue resemble one another and may overlap. They count as one draw: pairs within a block are left
out of ``kid`` and of the neighbours, and intervals are bootstraps over blocks within each patient. They speak of other
tissue **of these patients** and other draws of the same generator, not of new patients or another training.
`benchmarks/synthetic_quality.py` shows how often the intervals hold what they should.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.evaluation.bootstrap import interval
from histocrypt.synthesis.segmentation import patient_draws
from histocrypt.synthesis.utility import ENCODER, colours

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.synthesis.manifest import Pairs
    from histocrypt.tissue.stain import StainStatistics

MEASURES = ("kid", "fd", "precision", "recall")
DIRECTIONS = 16
"""Random directions that the Fréchet distance is taken on, at most: fewer than half of the blocks of the least set."""
FRACTIONS, REPEATS = (0.5, 0.6, 0.75, 1.0), 30
"""Shares of the blocks whose distances are extrapolated, and how many times each is drawn."""
NEIGHBOURS = 3
"""k of precision and recall, as published."""
FEWEST = 5
"""Blocks a set needs, or drawn tiles; an interval wants some tens."""
NUCLEI = (
    "nuclei",
    "log_area_mean",
    "log_area_sd",
    "eccentricity_mean",
    "roundness_mean",
    "darkness_mean",
    "chromatin_mean",
    "lymphoid",
    "spindle",
    "large",
    "nearest_mean",
    "nuclear",
)
"""Of `encoders.morphology.FEATURES`, those shown: number, size, shape, chromatin, kinds, spacing and area of nuclei."""
SEEN_UM = 1.0
"""Micrometres a pixel above which nuclei cannot be told."""
SAME, OTHERS = "Real, same patients", "Real, other patients"
DRAWN, KEPT = "Drawn", "Drawn, kept by the filter"


@dataclass(frozen=True)
class Sample:
    """Numbers of the tiles of one set, and what of them is drawn together."""

    values: np.ndarray
    """(n, d) float."""
    patients: np.ndarray
    """(n,) str; ``""`` of synthetic tiles."""
    blocks: np.ndarray | None = None
    """(n,) names of blocks of tissue; None: each tile is one."""

    def __post_init__(self) -> None:
        """Check that these are numbers."""
        if self.values.ndim != 2 or not np.isfinite(self.values).all():
            raise InputError("features are not a finite matrix", field="values", value=self.values.shape)

    @cached_property
    def code(self) -> np.ndarray:
        """(n,) int, the block of each tile."""
        names = np.arange(len(self.values)) if self.blocks is None else self.blocks
        return np.unique(names, return_inverse=True)[1].ravel()

    @cached_property
    def sizes(self) -> np.ndarray:
        """(blocks,) tiles of each."""
        return np.bincount(self.code)

    def weights(self, draws: int, seed: int) -> np.ndarray:
        """Return (draws, blocks): how often each block is drawn, within its patient; NaN where a patient has one."""
        found = np.empty((draws, len(self.sizes)))
        for rows, drawn in patient_draws(self.patients, self.blocks, draws=draws, seed=seed).values():
            found[:, self.code[rows]] = drawn
        return found

    def of(self, values: np.ndarray) -> Sample:
        """Return other numbers of the same tiles."""
        return Sample(values, self.patients, self.blocks)

    def subset(self, keep: np.ndarray) -> Sample:
        """Return the rows of indices or a mask."""
        return Sample(self.values[keep], self.patients[keep], None if self.blocks is None else self.blocks[keep])


def kid(a: Sample, b: Sample, weights: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Return the kernel distance of two sets in every draw, (draws,); without ``weights`` (1,), of the sets.

    Parameters
    ----------
    weights
        (draws, blocks) of each set, from `Sample.weights`.
    """
    _alike(a, b)
    own, other = weights or _once(a, b)

    def between(x: Sample, y: Sample, wx: np.ndarray, wy: np.ndarray) -> np.ndarray:
        kernel = (np.asarray(x.values, np.float64) @ np.asarray(y.values, np.float64).T / x.values.shape[1] + 1) ** 3
        total = _summed(_summed(kernel, x).T, y).T
        pairs = np.outer(x.sizes, y.sizes).astype(np.float64)
        if x is y:  # pairs within a block, a tile with itself among them, say nothing of two draws
            np.fill_diagonal(total, 0)
            np.fill_diagonal(pairs, 0)
        return ((wx @ total) * wy).sum(axis=1) / ((wx @ pairs) * wy).sum(axis=1)

    return between(a, a, own, own) + between(b, b, other, other) - 2 * between(a, b, own, other)


def frechet(a: Sample, b: Sample, weights: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Return the squared Fréchet distance of the Gaussians of two sets in every draw, as `kid`; biased upwards."""
    _alike(a, b)
    own, other = weights or _once(a, b)
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a, own), _moments(b, other)
    root = _root(cov_a)
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    traces = np.trace(cov_a, axis1=1, axis2=2) + np.trace(cov_b, axis1=1, axis2=2)
    return ((mean_a - mean_b) ** 2).sum(axis=1) + traces - 2 * np.sqrt(np.maximum(cross, 0)).sum(axis=1)


def frechet_infinity(a: Sample, b: Sample, *, seed: int = 0) -> float:
    """Return the squared Fréchet distance as it would be of sets without end: the line through 1 / size, at 0.

    Raises
    ------
    InputError
        If half of a set has fewer blocks than features: the distance is then no line in 1 / size.
    """
    least = min(len(one.sizes) for one in (a, b)) // 2
    if least <= a.values.shape[1]:
        raise InputError(
            "too few blocks for a Fréchet distance", field="blocks", value=2 * least, expected="twice the features"
        )
    x = np.repeat(FRACTIONS, [1 if share == 1 else REPEATS for share in FRACTIONS])
    parts = [_parts(one, x, np.random.default_rng([seed, number])) for number, one in enumerate((a, b))]
    distance = frechet(a, b, (parts[0], parts[1]))
    y = np.array([distance[x == share].mean() for share in FRACTIONS])
    return float(np.polynomial.polynomial.polyfit(1 / np.array(FRACTIONS), y, 1)[0])


def within(
    a: Sample, b: Sample, weights: tuple[np.ndarray, np.ndarray] | None = None, *, k: int = NEIGHBOURS
) -> np.ndarray:
    """Return the share of ``b`` that lies within ``a`` in every draw, as `kid`.

    Of the reference and a set this is the set's precision, of the set and the reference its recall. A neighbour that is
    drawn twice counts twice; tiles of one block are no neighbours.
    """
    from scipy.spatial.distance import cdist

    _alike(a, b)
    own, asked = (drawn[:, one.code] for drawn, one in zip(weights or _once(a, b), (a, b), strict=True))
    across, inner = cdist(a.values, b.values), cdist(a.values, a.values)
    inner[a.code[:, None] == a.code] = np.inf
    order = np.argsort(inner, axis=1)
    ranked, shares = np.take_along_axis(inner, order, axis=1), np.full(len(own), np.nan)
    for number in np.flatnonzero(np.isfinite(own).all(axis=1) & np.isfinite(asked).all(axis=1)).tolist():
        enough = own[number][order].cumsum(axis=1) >= k
        radius = ranked[np.arange(len(order)), enough.argmax(axis=1)]
        radius = np.where((own[number] > 0) & enough[:, -1] & np.isfinite(radius), radius, -1)
        inside = (across <= radius[:, None]).any(axis=0)
        shares[number] = asked[number] @ inside / asked[number].sum()
    return shares


def spoilt(images: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the same tiles (n, S, S, c) uint8 made worse in three ways, by name: what bad looks like.

    Blurred with a Gaussian of a tenth of the side; pixels shuffled, which leaves every colour; one colour, the mean.
    """
    from scipy.ndimage import gaussian_filter

    rng, side = np.random.default_rng(seed), images.shape[1]
    blurred = np.stack([gaussian_filter(image.astype(np.float32), (side / 10, side / 10, 0)) for image in images])
    flat = images.reshape(len(images), -1, images.shape[3])
    shuffled = np.stack([rng.permutation(image) for image in flat]).reshape(images.shape)
    mean = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    return {
        "Spoilt: blurred": np.rint(blurred).astype(np.uint8),
        "Spoilt: pixels shuffled": shuffled,
        "Spoilt: mean colour": np.rint(mean).astype(np.uint8),
    }


def halved(patients: np.ndarray, blocks: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return (n,) bool, True in one half of each patient's blocks: two halves that share patients, and no block."""
    rng, first = np.random.default_rng([seed, 1]), np.zeros(len(blocks), dtype=bool)
    for patient in np.unique(patients).tolist():
        rows = np.flatnonzero(patients == patient)
        names = rng.permutation(np.unique(blocks[rows]))
        first[rows] = np.isin(blocks[rows], names[: len(names) // 2])
    return first


def quality_table(reference: Sample, sets: Mapping[str, Sample], *, draws: int = 300, seed: int = 0) -> pd.DataFrame:
    """Compare each set with the reference.

    For recall, sets are cut at random to the number of tiles of the smallest one.

    Returns
    -------
    DataFrame
        By the sets' names: ``tiles``, ``blocks``, then each of `MEASURES` with ``_low`` and ``_high`` (95 %).
        ``attrs["fd_directions"]``: how many directions ``fd`` was taken on; values of other tables may have others.
    """
    import pandas as pd

    rng = np.random.default_rng([seed, 2])
    for name, one in {"reference": reference, **sets}.items():
        _alike(reference, one)
        if len(one.sizes) < FEWEST:
            expected = f"at least {FEWEST} blocks of tissue, or drawn tiles"
            raise InputError(
                f"too few tiles to measure: {name}", field="blocks", value=len(one.sizes), expected=expected
            )
    wide = reference.values.shape[1]
    directions = min(DIRECTIONS, wide, min(len(one.sizes) for one in (reference, *sets.values())) // 2 - 1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(wide, directions)))[0]
    turn = turn * np.sqrt(wide / directions)  # keeps squared distances on average
    least, rows = min(len(one.values) for one in sets.values()), {}
    for name, one in sets.items():
        drawn = reference.weights(draws, seed), one.weights(draws, seed + 1)
        small = one.subset(np.sort(rng.permutation(len(one.values))[:least]))
        few = drawn[0], small.weights(draws, seed + 1)
        found = {
            "kid": (kid(reference, one), kid(reference, one, drawn)),
            "precision": (within(reference, one), within(reference, one, drawn)),
            "recall": (within(small, reference), within(small, reference, few[::-1])),
        }
        narrow = reference.of(reference.values @ turn), one.of(one.values @ turn)
        found["fd"] = [frechet_infinity(*narrow, seed=seed)], frechet(*narrow, drawn)
        rows[name] = {"tiles": len(one.values), "blocks": len(one.sizes)}
        for measure in MEASURES:
            (value,), each = found[measure]
            low, high = interval(each, value)
            if measure in ("precision", "recall"):
                low, high = np.clip([low, high], 0, 1)
            rows[name] |= {measure: float(value), f"{measure}_low": float(low), f"{measure}_high": float(high)}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("set")
    table.attrs["fd_directions"] = directions
    return table


@dataclass(frozen=True)
class Assessed:
    """What the quality of drawn tiles was measured on, and the figures."""

    table: pd.DataFrame
    """Of `quality_table`."""
    tiles: dict[str, Pairs]
    """The tiles behind each row, by its name; ``reference`` holds those that all are compared with."""
    blocks: dict[str, np.ndarray | None]
    """Their blocks of tissue; None of drawn tiles."""
    nearest: pd.DataFrame
    """By drawn id, nearest first: ``training``, ``training_distance``, ``held_out``, ``held_out_distance``: the real
    tiles that are nearest in the encoder's features, of all training tiles and of the held-out ones looked at."""
    notes: list[str]
    """Sets that have too few blocks to be measured."""


def assess(
    train: Pairs,
    held_out: Pairs,
    drawn: Pairs,
    kept: Iterable[str],
    *,
    blocks: tuple[np.ndarray, np.ndarray],
    most: int = 1000,
    draws: int = 300,
    seed: int = 0,
    encoder: str = ENCODER,
) -> Assessed:
    """Measure drawn tiles beside yardsticks.

    Parameters
    ----------
    train, held_out, drawn
        Real tiles that the generator learned from, real tiles of other patients, and drawn tiles.
    kept
        Ids of the drawn tiles that the filter kept.
    blocks
        (n,) names of blocks of tissue of ``train`` and of ``held_out``, see `utility.spatial_blocks`.
    most
        Tiles of a set that are looked at, drawn at random; of spoilt ones half as many. Training tiles are halved, and
        each half is cut to ``most``.
    encoder
        Frozen encoder of the features.

    Raises
    ------
    InputError
        If a half of the training tiles has fewer than `FEWEST` blocks, or fewer tiles were drawn. Other sets that are
        too small are left out, and named in ``notes``.
    """
    import pandas as pd

    from histocrypt.encoders.encoders import encode
    from histocrypt.synthesis.filtering import distances

    def features(images: np.ndarray) -> np.ndarray:
        return encode(np.ascontiguousarray(colours(images)), encoder, progress=False)

    def some(rows: np.ndarray, number: int, limit: int = most) -> np.ndarray:
        return np.sort(np.random.default_rng([seed, number]).permutation(rows)[:limit])

    first = halved(train.patients, blocks[0], seed=seed)
    rows = {"reference": some(np.flatnonzero(first), 3), SAME: some(np.flatnonzero(~first), 4)}
    known = features(train.images)
    values = {name: known[own] for name, own in rows.items()}
    tiles = {name: train.subset(own) for name, own in rows.items()}
    places: dict[str, np.ndarray | None] = {name: blocks[0][own] for name, own in rows.items()}
    own = some(np.arange(len(held_out)), 5)
    tiles[OTHERS], places[OTHERS] = held_out.subset(own), blocks[1][own]
    tiles[DRAWN] = drawn.subset(some(np.arange(len(drawn)), 6))
    values |= {name: features(tiles[name].images) for name in (OTHERS, DRAWN)}
    passed = np.isin(tiles[DRAWN].ids, np.array(list(kept), dtype=str))
    tiles[KEPT], values[KEPT] = tiles[DRAWN].subset(passed), values[DRAWN][passed]
    own = some(rows[SAME], 7, max(FEWEST, most // 2))
    for name, images in spoilt(train.images[own], seed=seed).items():
        tiles[name] = replace(train.subset(own), images=images)
        values[name], places[name] = features(images), blocks[0][own]
    samples = {name: Sample(values[name], pairs.patients, places.get(name)) for name, pairs in tiles.items()}
    small = [name for name, one in samples.items() if len(one.sizes) < FEWEST and name not in ("reference", DRAWN)]
    notes = [f"{name}: {len(samples.pop(name).sizes)} blocks are too few to measure" for name in small]
    table = quality_table(samples.pop("reference"), samples, draws=draws, seed=seed)
    found: dict[str, np.ndarray] = {}
    for name, pairs, others in (("training", train, known), ("held_out", tiles[OTHERS], values[OTHERS])):
        found[f"{name}_distance"], index = distances(values[DRAWN], others)
        found[name] = pairs.ids[index]
    nearest = pd.DataFrame(found, index=pd.Index(tiles[DRAWN].ids, name="id"))
    return Assessed(table, tiles, places, nearest.sort_values("training_distance", kind="stable"), notes)


def nuclei_table(
    reference: Pairs,
    sets: Mapping[str, Pairs],
    blocks: Mapping[str, np.ndarray | None],
    *,
    um_per_px: float,
    most: int = 300,
    draws: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare nuclei of sets of tiles with those of a reference, feature by feature.

    All sets are unmixed with the stains, and cut at the limits, of the reference (`encoders.morphology`), so that a
    paler set has paler nuclei, and not another limit. ``mask_nuclei`` is the share of nuclei in the masks.

    Parameters
    ----------
    blocks
        By the sets' names and ``reference``; None: each tile by itself.
    um_per_px
        Of the tiles. Above `SEEN_UM` nuclei cannot be told, and ``attrs["note"]`` of the table says so: what is
        compared are dark blobs.
    most
        Tiles of each set, drawn at random.

    Returns
    -------
    DataFrame
        Index: set and feature. ``meaning``; ``reference`` and ``mean``, the means of both; ``difference`` with ``_low``
        and ``_high``: the second less the first in standard deviations of the reference's tiles.
    """
    import pandas as pd

    from histocrypt.encoders.morphology import FEATURES, morphology
    from histocrypt.tissue.stain import estimate

    columns = [list(FEATURES).index(name) for name in NUCLEI]
    level = reference.scheme.levels.index("nuclei") if "nuclei" in reference.scheme.levels else None
    meanings = {name: FEATURES[name] for name in NUCLEI}
    if level is not None:
        meanings["mask_nuclei"] = "share of the mask that is nuclei"
    stain: StainStatistics | None = None
    limits = colours(reference.images)
    samples = {}
    for number, (name, pairs) in enumerate({"reference": reference, **sets}.items()):
        own = np.sort(np.random.default_rng([seed, 8, number]).permutation(len(pairs))[:most])
        part, place = pairs.subset(own), blocks.get(name)
        if stain is None:
            limits = colours(part.images)
            stain = estimate(limits.reshape(-1, 3))
        values = morphology(colours(part.images), stain=stain, um_per_px=um_per_px, of=limits)[:, columns]
        if level is not None:
            values = np.column_stack([values, (part.masks == level).mean(axis=(1, 2))])
        samples[name] = Sample(np.asarray(values, np.float64), part.patients, None if place is None else place[own])
    base = samples.pop("reference")
    mean, each, spread = _means(base, base.weights(draws, seed))
    rows = []
    for name, one in samples.items():
        other, drawn, _ = _means(one, one.weights(draws, seed + 1))
        for column, (feature, meaning) in enumerate(meanings.items()):
            sd = spread[column] if spread[column] > 0 else np.nan
            value = (other[column] - mean[column]) / sd
            low, high = interval((drawn[:, column] - each[:, column]) / sd, value)
            row = {"set": name, "feature": feature, "meaning": meaning, "reference": mean[column]}
            rows.append(
                row | {"mean": other[column], "difference": value, "difference_low": low, "difference_high": high}
            )
    table = pd.DataFrame(rows).set_index(["set", "feature"])
    coarse = f"at {um_per_px:.1f} um a pixel no nucleus can be told: what is compared are dark blobs"
    table.attrs["note"] = coarse if um_per_px > SEEN_UM else ""
    return table


def _means(sample: Sample, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means (d,), means in every draw (draws, d), and standard deviations of tiles (d,)."""
    each = weights @ _summed(sample.values, sample) / (weights @ sample.sizes)[:, None]
    return sample.values.mean(axis=0), each, sample.values.std(axis=0, ddof=1)


def _alike(a: Sample, b: Sample) -> None:
    if a.values.shape[1] != b.values.shape[1]:
        raise InputError("sets have different features", value=b.values.shape[1], expected=str(a.values.shape[1]))


def _once(a: Sample, b: Sample) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((1, len(a.sizes))), np.ones((1, len(b.sizes)))


def _summed(rows: np.ndarray, sample: Sample) -> np.ndarray:
    """Return sums (blocks, ...) of rows (n, ...) over the tiles of each block."""
    member = np.zeros((len(sample.sizes), len(rows)))
    member[sample.code, np.arange(len(rows))] = 1
    return (member @ rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:])


def _moments(sample: Sample, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means (draws, d) and covariances (draws, d, d) of the tiles in every draw of blocks."""
    values = np.asarray(sample.values, np.float64)
    centre = values.mean(axis=0)
    values, n = values - centre, (weights @ sample.sizes)[:, None]
    mean = weights @ _summed(values, sample) / n
    square = _summed(values[:, :, None] * values[:, None], sample)
    square = (weights @ square.reshape(len(square), -1)).reshape(-1, *square.shape[1:]) / n[:, :, None]
    return mean + centre, (square - mean[:, :, None] * mean[:, None]) * (n / (n - 1))[:, :, None]


def _root(matrices: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ np.swapaxes(vectors, 1, 2)


def _parts(sample: Sample, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (shares, blocks) of 0 and 1: a share of each patient's blocks, drawn anew for each."""
    owner = np.empty(len(sample.sizes), dtype=object)
    owner[sample.code] = sample.patients
    chosen = np.zeros((len(shares), len(owner)))
    for patient in np.unique(sample.patients).tolist():
        own = np.flatnonzero(owner == patient)
        for row, share in enumerate(shares):
            chosen[row, rng.permutation(own)[: max(1, round(share * len(own)))]] = 1
    return chosen
