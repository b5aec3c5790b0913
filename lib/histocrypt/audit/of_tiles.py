"""The tiles of a fold as an audit needs them, and which question goes to which thing that was made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.audit.found import Found
from histocrypt.audit.memorisation import Memorised
from histocrypt.audit.of_synthesis import RealTiles, audit_generator, audit_segmenter, audit_synthetic
from histocrypt.errors import InputError, unknown_name
from histocrypt.synthesis.manifest import load_pairs
from histocrypt.synthesis.of_study import PARTS, blocks_of
from histocrypt.synthesis.pairs import Pairs
from histocrypt.synthesis.realism import Reconstruction, load_reconstruction
from histocrypt.synthesis.scheme import TISSUE
from histocrypt.synthesis.tissue_pairs import apart

if TYPE_CHECKING:
    from histocrypt.audit.targets import Thing
    from histocrypt.study import Study
    from histocrypt.training.folds import Fold

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
        msg = "no synthetic tiles were made on this fold"
        raise InputError(msg, file=home, fix="run 60_synthetic_data, with synthesis.fold equal to audit.fold")
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
