"""Asks what was made of synthetic tiles about the patients behind it: segmentation networks, generators, drawn sets.

Members are the training patients of the fold, non-members its test patients; the validation patient steered choices
and is neither. Tiles of a section that share pixels are thinned out first (`tissue_pairs.apart`) wherever nearness is
what is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.audit.card import Asked, Found, patients_of
from histocrypt.audit.controls import copied_features, overfitted_losses
from histocrypt.audit.learned import map_inputs, train_map_attack
from histocrypt.audit.membership import Audit, loss_threshold
from histocrypt.audit.memorisation import Memorised, closest_record, denoising_loss, memorised
from histocrypt.audit.shadow import shadow_losses
from histocrypt.errors import InputError, unknown_name
from histocrypt.synthesis.filtering import Reconstruction, load_reconstruction
from histocrypt.synthesis.generator import Generator, GeneratorPlan, load_generator, train_generator
from histocrypt.synthesis.manifest import load_pairs
from histocrypt.synthesis.pairs import TISSUE, Pairs
from histocrypt.synthesis.pipeline import PARTS, blocks_of
from histocrypt.synthesis.tissue_pairs import apart

if TYPE_CHECKING:
    from histocrypt.audit.subjects import Thing
    from histocrypt.data.folds import Fold
    from histocrypt.study import Study

# ---- of synthesis


LEAKY_TILES = 12
"""Tiles of each side that a generator is made to know by heart for its positive control."""
LEAKY = GeneratorPlan(
    width=32,
    multipliers=(1, 2),
    blocks=1,
    patch=4,
    objective="velocity",
    steps=100,
    dropout=0.0,
    batch=12,
    learning_rate=5e-3,
    ema=0.9,
    guidance_dropout=0.0,
    augment=False,
)


class RealTiles:
    """Members' and non-members' real tiles, named, with patients and squares of tissue.

    Parameters
    ----------
    train, test
        Of patients that the audited thing saw, and that it did not.
    blocks
        (n_train + n_test,) str; None: tiles are drawn one by one.
    """

    def __init__(self, train: Pairs, test: Pairs, *, blocks: np.ndarray | None = None) -> None:
        self.train, self.test, self.all = train, test, Pairs.join([train, test])
        self.member, self.blocks = np.arange(len(self.all)) < len(train), blocks

    def audit(self, scores: np.ndarray) -> Audit:
        """Return scores, one for each tile, beside who is a member."""
        group = np.full(len(self.all), "")
        return Audit(scores, self.member, self.all.patients, group, self.blocks)


def audit_segmenter(study: Study, thing: Thing, tiles: RealTiles, *, folder: Path) -> Found:
    """Attack a segmentation network by its losses, and as DiffGuard does by a network that reads (truth, prediction).

    Parameters
    ----------
    thing
        A segmenter of `targets.audited`.
    folder
        Where the shadows' maps are kept.
    """
    from histocrypt.synthesis.segmentation import load_segmenter, train_segmenter

    found, real = Found(thing, _what(thing, tiles)), tiles.all
    network, levels = load_segmenter(thing.folder), len(real.scheme.levels)
    options = {"access": "black box", "draws": study.audit.draws, "seed": study.seed}
    loss = _pixel_loss(real, network.probabilities(real))
    flat = real.images.reshape(len(real), -1), real.masks.reshape(len(real), -1)
    leaky = overfitted_losses(*flat, tiles.member, seed=study.seed)
    found.attack("loss threshold", tiles.audit(loss_threshold(loss)), loss_threshold(leaky), **options)

    def train_one(mask: np.ndarray, seed: int):
        shadow = train_segmenter(
            real.subset(mask), None, network=study.synthesis.network, epochs=study.audit.shadow_epochs, seed=seed
        )
        return lambda: shadow.predict(real)

    maps, inside = shadow_losses(
        train_one,
        real.patients,
        min(study.audit.shadows, 8),
        study.seed,
        folder=folder / thing.name,
        fingerprint=f"{study.hash('seed', 'synthesis')} {study.audit.shadow_epochs}",
        label="shadow segmenters",
    )
    by_heart = np.stack([_nearest_mask(real, mask) for mask in [*inside, tiles.member]])

    def attacked(shadows: np.ndarray, released: np.ndarray) -> np.ndarray:
        inputs = np.concatenate([map_inputs(real.masks, one.astype(np.uint8), levels=levels) for one in shadows])
        attack = train_map_attack(inputs, inside.ravel(), seed=study.seed)
        return attack.scores(map_inputs(real.masks, released, levels=levels))

    scores = attacked(maps, network.predict(real))
    found.attack("learned on maps", tiles.audit(scores), attacked(by_heart[:-1], by_heart[-1]), **options)
    return found


def audit_generator(study: Study, thing: Thing, tiles: RealTiles, *, folder: Path) -> Found:
    """Attack a generator by how well it tells the noise in a tile; who holds its weights could.

    Parameters
    ----------
    thing
        A generator of `targets.audited`.
    folder
        Where the generator is kept that is made to know `LEAKY_TILES` by heart: the positive control.
    """
    generator = load_generator(thing.folder)
    if generator.plan.kind == "control":
        keep = tiles.all.labels == tiles.all.scheme.control
        n = int(keep[: len(tiles.train)].sum())
        blocks = None if tiles.blocks is None else tiles.blocks[keep]
        rows = tiles.all.subset(keep)
        tiles = RealTiles(rows.subset(np.arange(n)), rows.subset(np.arange(n, len(rows))), blocks=blocks)
    found = Found(thing, _what(thing, tiles))
    scores = -denoising_loss(generator, tiles.all, seed=study.seed)
    overfitted, some = _leaky_generator(
        generator, tiles, folder / f"leaky_{thing.name}", study.audit.leaky_epochs, study.seed
    )
    options = {"draws": study.audit.draws, "seed": study.seed}
    found.attack("denoising loss", tiles.audit(scores), (overfitted, some), access="white box", **options)
    return found


def audit_synthetic(
    study: Study, thing: Thing, drawn: Pairs, tiles: RealTiles, held_out: Pairs, *, judge_by: Reconstruction
) -> tuple[Found, Memorised]:
    """Ask a set of drawn tiles whom it gives away: nearness as an attack, and how much is copied.

    Parameters
    ----------
    drawn
        The set.
    tiles
        Thinned out: no two tiles of a section share pixels.
    held_out
        Real tiles of the validation patient, thinned out: how near strangers come.
    judge_by
        What distances are taken with.
    """
    found = Found(thing, _what(thing, tiles) + f" {len(drawn)} tiles.")
    features, options = judge_by.features(tiles.all), {"draws": study.audit.draws, "seed": study.seed}
    scores = -closest_record(judge_by.features(drawn), features)
    overfitted = -closest_record(copied_features(features, tiles.member, seed=study.seed), features)
    found.attack("closest record", tiles.audit(scores), overfitted, access="synthetic set", **options)
    nearness = {"features": judge_by.features, "quantile": study.synthesis.novelty_quantile or 0.05, "seed": study.seed}
    copies = replace(tiles.train, ids=np.array([f"copy:{name}" for name in tiles.train.ids.tolist()]))
    told, planted, unseen = (
        memorised(pairs, tiles.train, held_out, **nearness) for pairs in (drawn, copies, tiles.test)
    )
    found.asked.append(Asked.of_memorised(told, planted, unseen, what="the reconstruction network's features"))
    if thing.name == "filtered":
        found.notes.append("The filter took the same features: of what it left, nearness in them says little.")
    return found, told


def _leaky_generator(
    generator: Generator, tiles: RealTiles, folder: Path, epochs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of some tiles under a generator that knows the members among them by heart, and which those are."""
    rng = np.random.default_rng([seed, 9])
    sides = [rng.permutation(np.flatnonzero(side))[:LEAKY_TILES] for side in (tiles.member, ~tiles.member)]
    plan = replace(LEAKY, kind=generator.plan.kind)
    known = train_generator(tiles.all.subset(sides[0]), plan, folder=folder, epochs=epochs, seed=seed)
    rows = np.concatenate(sides)
    seen = np.isin(tiles.all.labels[rows], known.classes)  # of a class that was not among them it knows nothing
    return -denoising_loss(known, tiles.all.subset(rows[seen]), seed=seed), rows[seen]


def _pixel_loss(real: Pairs, probabilities: np.ndarray) -> np.ndarray:
    """Return (n,) mean cross-entropies over the pixels."""
    told = np.take_along_axis(probabilities, real.masks[:, None].astype(np.int64), axis=1)[:, 0]
    return -np.log(np.maximum(told, 1e-12)).mean(axis=(1, 2))


def _nearest_mask(real: Pairs, inside: np.ndarray) -> np.ndarray:
    """Return each tile's mask as a model knows it that has learnt nothing but its own tiles by heart."""
    from sklearn.neighbors import NearestNeighbors

    pixels = real.images.reshape(len(real), -1).astype(np.float32)
    nearest = NearestNeighbors(n_neighbors=1).fit(pixels[inside]).kneighbors(pixels, return_distance=False)[:, 0]
    return real.masks[inside][nearest]


def _what(thing: Thing, tiles: RealTiles) -> str:
    people = [len(np.unique(side.patients)) for side in (tiles.train, tiles.test)]
    return (
        f"{thing.title}: learned from tiles of {patients_of(people[0])}, the members; non-members are "
        f"{patients_of(people[1])} that the fold holds out."
    )


# ---- of tiles
# The tiles of a fold as an audit needs them, and which question goes to which thing that was made of them.


SETS = ("samples", "filtered")


@dataclass(frozen=True)
class Tiles:
    """Real and drawn tiles of a fold."""

    real: RealTiles
    """All tiles of training and test patients."""
    apart: RealTiles
    """Of those, tiles that share no pixel with another one of their section."""
    held_out: Pairs
    """The validation patient's, thinned out in the same way."""
    drawn: dict[str, Pairs]
    """By the folder that holds them."""
    reconstruction: Reconstruction
    """What distances are taken with."""


def load(study: Study, fold: Fold) -> Tiles:
    """Read what `60_synthetic_data` left.

    Raises
    ------
    InputError
        If it has not run on this fold.
    """
    home, side = study.run.synthesis(fold.name), study.synthesis.side
    if not (home / "summary.json").is_file():
        raise InputError(
            "no synthetic tiles were made on this fold",
            file=home,
            fix="run 60_synthetic_data, with synthesis.fold equal to audit.fold",
        )
    real = {name: load_pairs(home / "real" / name, scheme=TISSUE, side=side) for name in PARTS}
    thin = {name: pairs.subset(apart(study, pairs)) for name, pairs in real.items()}
    drawn = {"filtered": load_pairs(home / "filtered", scheme=TISSUE, side=side)}
    kinds = sorted((home / "samples").glob("*/manifest.json"))
    drawn["samples"] = Pairs.join([load_pairs(file, scheme=TISSUE, side=side) for file in kinds])

    def sides(pairs: dict[str, Pairs]) -> RealTiles:
        blocks = np.concatenate([blocks_of(study, pairs[name]) for name in ("train", "test")])
        return RealTiles(pairs["train"], pairs["test"], blocks=blocks)

    return Tiles(sides(real), sides(thin), thin["validation"], drawn, load_reconstruction(home / "reconstruction"))


def ask(study: Study, thing: Thing, tiles: Tiles, *, folder: Path) -> tuple[Found, Memorised | None]:
    """Ask a thing that was made of tiles what can be asked of its kind; the second is of drawn sets alone."""
    if thing.kind == "segmenter":
        return audit_segmenter(study, thing, tiles.real, folder=folder), None
    if thing.kind == "generator":
        return audit_generator(study, thing, tiles.real, folder=folder), None
    if thing.name not in SETS:
        raise unknown_name("set of tiles", thing.name, SETS)
    return audit_synthetic(
        study, thing, tiles.drawn[thing.name], tiles.apart, tiles.held_out, judge_by=tiles.reconstruction
    )
