"""Asks what was made of synthetic tiles about the patients behind it: segmentation networks, generators, drawn sets.

Members are the training patients of the fold, non-members its test patients; the validation patient steered choices
and is neither. Tiles of a section that share pixels are thinned out first (`tissue_pairs.apart`) wherever nearness is
what is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.audit.card import ask_memorised, patients_of
from histocrypt.audit.controls import Controls, copied_features, overfitted_losses
from histocrypt.audit.found import Found
from histocrypt.audit.learned import PUBLISHED, MapAttack, map_inputs, train_map_attack
from histocrypt.audit.lower_bound import LowerBound, coin_runs, lower_bound
from histocrypt.audit.membership import FEWEST_PATIENTS, Audit, calibrated, in_and_out, judge, loss_threshold
from histocrypt.audit.memorisation import Memorised, closest_record, denoising_loss, memorised
from histocrypt.audit.shadow import as_targets, dealt_anew, shadow_losses, target_scores
from histocrypt.audit.shadow_sets import ATTACKS, QUICK, ShadowSets, set_scores, tile_scores, train_shadows
from histocrypt.errors import InputError
from histocrypt.options import GeneratorPlan
from histocrypt.synthesis.filtering import Reconstruction, load_reconstruction
from histocrypt.synthesis.generator import Generator, Privacy, load_generator, train_generator
from histocrypt.synthesis.manifest import TISSUE, Pairs, load_pairs
from histocrypt.synthesis.pipeline import PARTS, blocks_of
from histocrypt.synthesis.segmentation import load_segmenter, train_segmenter
from histocrypt.synthesis.tissue_pairs import apart

if TYPE_CHECKING:
    from histocrypt.audit.membership import Judged
    from histocrypt.audit.subjects import Subject
    from histocrypt.data.folds import Fold
    from histocrypt.study import Study

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
QUICK_DRAWN = 24
"""Tiles of each class that a quick shadow generator draws."""
MOST_SHADOWS = 8
"""Of segmentation networks: they are slow."""


@dataclass(frozen=True)
class RealTiles:
    """Members' and non-members' real tiles, named, with patients and squares of tissue."""

    all: Pairs
    member: np.ndarray
    """(n,) bool: of patients that the audited subject saw."""
    blocks: np.ndarray | None = None
    """(n,) str; None: tiles are drawn one by one."""

    @classmethod
    def of(cls, train: Pairs, test: Pairs, *, blocks: np.ndarray | None = None) -> RealTiles:
        """Return both sides together, members first."""
        return cls(Pairs.join([train, test]), np.arange(len(train) + len(test)) < len(train), blocks)

    @property
    def train(self) -> Pairs:
        """The members."""
        return self.all.subset(self.member)

    @property
    def test(self) -> Pairs:
        """The non-members."""
        return self.all.subset(~self.member)

    def only(self, keep: np.ndarray) -> RealTiles:
        """Return the tiles of a boolean mask."""
        return RealTiles(self.all.subset(keep), self.member[keep], None if self.blocks is None else self.blocks[keep])

    def audit(self, scores: np.ndarray) -> Audit:
        """Return scores, one for each tile, beside who is a member."""
        return Audit(scores, self.member, self.all.patients, np.full(len(self.all), ""), self.blocks)


@dataclass(frozen=True)
class Tiles:
    """Real and drawn tiles of a fold."""

    real: RealTiles
    """All tiles of training and test patients."""
    apart: RealTiles
    """Of those, tiles that share no pixel with another one of their section."""
    validation: Pairs
    """All tiles of the validation patient."""
    held_out: Pairs
    """Of those, thinned out in the same way."""
    drawn: dict[str, Pairs]
    """By the folder that holds them."""
    reconstruction: Reconstruction
    """What distances are taken with."""

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """What the reconstruction network makes of the real tiles that are apart, and of the held-out ones."""
        real = {"all": self.apart.all, "train": self.apart.train, "test": self.apart.test, "held_out": self.held_out}
        return {name: self.reconstruction.features(pairs) for name, pairs in real.items()}


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

    def read(path: Path) -> Pairs:
        return load_pairs(path, scheme=TISSUE, side=side)

    def sides(pairs: dict[str, Pairs]) -> RealTiles:
        blocks = np.concatenate([blocks_of(study, pairs[name]) for name in ("train", "test")])
        return RealTiles.of(pairs["train"], pairs["test"], blocks=blocks)

    real = {name: read(home / "real" / name) for name in PARTS}
    thin = {name: pairs.subset(apart(study, pairs)) for name, pairs in real.items()}
    kinds = sorted((home / "samples").glob("*/manifest.json"))
    drawn = {"samples": Pairs.join([read(file) for file in kinds]), "filtered": read(home / "filtered")}
    return Tiles(
        sides(real),
        sides(thin),
        real["validation"],
        thin["validation"],
        drawn,
        load_reconstruction(home / "reconstruction"),
    )


def audit_tiles(
    study: Study, subjects: Iterable[Subject], tiles: Tiles, *, folder: Path
) -> tuple[dict[str, Found], dict[str, Memorised]]:
    """Ask every subject that was made of tiles what can be asked of its kind.

    Parameters
    ----------
    subjects
        Segmenters, generators and synthetic sets of `subjects.audited`.
    folder
        Where shadows and generators that were made to leak are kept.

    Returns
    -------
    What was found, by the subject's name; and how much of each drawn set is copied.
    """
    shadows, found, copied = ShadowSegmenters(study, tiles.real, folder / "segmenters"), {}, {}
    generators = ShadowGenerators(study, tiles, folder / "generators") if study.audit.shadow_generators else None
    for subject in subjects:
        name = subject.name
        if subject.kind == "segmenter":
            found[name] = audit_segmenter(study, subject, shadows)
        elif subject.kind == "generator":
            found[name] = audit_generator(study, subject, tiles, folder=folder, shadows=generators)
        else:
            found[name], copied[name] = audit_set(study, subject, tiles, shadows=generators)
    return found, copied


class ShadowSegmenters:
    """What attacks on segmentation networks learn from: the same for every network of the same real tiles.

    Parameters
    ----------
    tiles
        All real tiles of members and non-members.
    folder
        Where the shadows' maps are kept.
    """

    def __init__(self, study: Study, tiles: RealTiles, folder: Path) -> None:
        self.study, self.tiles, self.folder = study, tiles, folder

    @cached_property
    def leaky(self) -> np.ndarray:
        """(n,) losses of a model of pixels that was made to leak."""
        real = self.tiles.all
        flat = real.images.reshape(len(real), -1), real.masks.reshape(len(real), -1)
        return overfitted_losses(*flat, self.tiles.member, seed=self.study.seed)

    @cached_property
    def _shadows(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted masks (shadows, n, side, side), and (shadows, n) who was inside."""
        study, real = self.study, self.tiles.all
        epochs = study.audit.shadow_epochs

        def train_one(mask: np.ndarray, seed: int) -> np.ndarray:
            network = study.synthesis.network
            return train_segmenter(real.subset(mask), None, network=network, epochs=epochs, seed=seed).predict(real)

        return shadow_losses(
            train_one,
            real.patients,
            min(study.audit.shadows, MOST_SHADOWS),
            study.seed,
            folder=self.folder,
            fingerprint=f"{study.hash('seed', 'synthesis')} {epochs}",
            label="shadow segmenters",
        )

    @cached_property
    def attack(self) -> MapAttack:
        """The learned attack, trained on the shadows."""
        return self._trained(self._shadows[0])

    @cached_property
    def planted(self) -> np.ndarray:
        """(n,) scores of the same attack where shadows and model know nothing but their own tiles, by heart."""
        inside = self._shadows[1]
        *shadows, leaky = (_nearest_mask(self.tiles.all, mask) for mask in [*inside, self.tiles.member])
        return self._trained(np.stack(shadows)).scores(self.inputs(leaky))

    def inputs(self, maps: np.ndarray) -> np.ndarray:
        """Return what the attack sees of predicted masks (n, side, side)."""
        real = self.tiles.all
        return map_inputs(real.masks, maps.astype(np.uint8), levels=len(real.scheme.levels))

    def _trained(self, shadows: np.ndarray) -> MapAttack:
        inputs = np.concatenate([self.inputs(maps) for maps in shadows])
        inside, settings = self._shadows[1].ravel(), self.study.audit
        how = PUBLISHED if settings.learned_network == "resnet50" else {}
        return train_map_attack(inputs, inside, **how | {"epochs": settings.learned_epochs}, seed=self.study.seed)


def audit_segmenter(study: Study, subject: Subject, shadows: ShadowSegmenters) -> Found:
    """Attack a segmentation network by its losses and, as DiffGuard does, by a network that reads truth and maps."""
    tiles = shadows.tiles
    found, network = Found(subject, _what(subject, tiles)), load_segmenter(subject.folder)
    options = {"access": "black box", "draws": study.audit.draws, "seed": study.seed}
    loss = _pixel_loss(tiles.all, network.probabilities(tiles.all))
    found.attack("loss threshold", tiles.audit(loss_threshold(loss)), loss_threshold(shadows.leaky), **options)
    scores = shadows.attack.scores(shadows.inputs(network.predict(tiles.all)))
    found.attack("learned on maps", tiles.audit(scores), shadows.planted, **options)
    return found


class ShadowGenerators:
    """Generators trained on halves of all patients of the fold, and the sets that they draw: the same for every card.

    Parameters
    ----------
    folder
        Where what they left is kept.
    """

    def __init__(self, study: Study, tiles: Tiles, folder: Path) -> None:
        self.study, self.tiles, self.folder = study, tiles, folder

    @property
    def same(self) -> bool:
        """Whether they are trained as the study's own generator of all classes is."""
        part = self.study.synthesis
        own = part.normal_from != "control" and part.epsilon is None
        return self.study.audit.shadow_generator_epochs is None and own

    @cached_property
    def sets(self) -> ShadowSets:
        """What they left; the tiles asked about are those of `Tiles.apart`, then the validation patient's."""
        study, tiles, part = self.study, self.tiles, self.study.synthesis
        quick = study.audit.shadow_generator_epochs
        pool = Pairs.join([tiles.real.all, tiles.validation])
        return train_shadows(
            pool,
            part.generator.model_copy(update={"kind": "joint"}) if quick is None else QUICK,
            n_shadows=study.audit.shadow_generators,
            epochs=quick or part.epochs,
            per_class=part.per_class if quick is None else min(part.per_class, QUICK_DRAWN),
            features=tiles.reconstruction.features,
            way_back=None
            if quick
            else {"steps": part.sampler_steps, "sampler": part.sampler, "guidance": part.guidance},
            asked=np.isin(pool.ids, [*tiles.apart.all.ids.tolist(), *tiles.held_out.ids.tolist()]),
            noise_draws=1 if quick else study.audit.noise_draws,
            seed=study.seed,
            folder=self.folder,
            fingerprint=study.hash("seed", "synthesis"),
        )

    @property
    def notes(self) -> list[str]:
        """What a reader of their figures has to know."""
        n = len(self.sets.inside)
        if self.same:
            return [f"{n} shadow generators were trained as the study's own, on halves of the patients."]
        return [
            f"{n} shadow generators were another, quicker training than the study's own: what they say of a repeated "
            "training is of theirs and decides nothing; with their help this very subject is attacked."
        ]

    def repeated(self, found: Found, name: str, attack: Callable[[np.ndarray], np.ndarray], positive: Judged) -> None:
        """Attack each shadow with the help of the others; ``attack`` and ``name`` as of `dealt_anew` and the card."""
        sets, settings = self.sets, self.study.audit
        if len(sets.patients) < 2 * FEWEST_PATIENTS:
            found.notes.append(
                f"Fewer than {2 * FEWEST_PATIENTS} patients: what a repeated training tells was not asked."
            )
            return
        unit = {"draws": settings.draws, "seed": self.study.seed}
        procedure = as_targets(attack(sets.inside), sets.inside, sets.patients, **unit)
        controls = Controls(positive, dealt_anew(attack, sets.inside, sets.patients, seed=self.study.seed), [])
        access = "white box" if found.subject.kind == "generator" else "synthetic set"
        named = f"{name}, training repeated"
        found.procedure(procedure, controls, access=access, attack=named, decides=self.same)
        found.dealt[named] = controls.negative  # sets differ as wholes, which an interval over patients does not show


def audit_generator(
    study: Study, subject: Subject, tiles: Tiles, *, folder: Path, shadows: ShadowGenerators | None = None
) -> Found:
    """Attack a generator by how well it tells the noise in a tile; who holds its weights could.

    Parameters
    ----------
    folder
        Where the generator is kept that is made to know `LEAKY_TILES` by heart: the positive control.
    shadows
        Whose losses say how well a generator tells it that did not see the tile; of the generator of all classes alone.
    """
    generator, seed, real, near = load_generator(subject.folder), study.seed, tiles.real, tiles.apart
    noise = {"draws": study.audit.noise_draws, "seed": seed}
    if generator.plan.kind == "control":
        real, near = (side.only(side.all.labels == side.all.scheme.control) for side in (real, near))
    found = Found(subject, _what(subject, real))
    loss = denoising_loss(generator, real.all, **noise)
    known, rows = _leaky_generator(generator, near, folder / f"leaky_{subject.name}", study.audit.leaky_epochs, seed)
    leaky = denoising_loss(known, near.all.subset(rows), **noise)
    options = {"access": "white box", "draws": study.audit.draws, "seed": seed}
    among = np.flatnonzero(np.isin(real.all.ids, near.all.ids))
    found.attack("denoising loss", real.audit(-loss), -leaky, rows=among[rows], **options)
    found.promised = _promised(generator.record["privacy"])
    if study.audit.generator_coin_runs:
        found.bound = generator_bound(generator, real.all, study=study, folder=folder / f"coins_{subject.name}")
    if shadows is not None and generator.plan.kind == "joint":
        sets, n = shadows.sets, len(near.all)
        unseen = in_and_out(sets.loss[:, :n], sets.tiles_inside[:, :n])[1]
        scores, planted = calibrated(loss[among], unseen), calibrated(leaky, unseen[:, rows])
        name = "denoising loss, by shadow generators"
        found.attack(name, near.audit(scores), planted, rows=rows, **options)
        of_patients = sets.by_patient(sets.loss)
        shadows.repeated(
            found, "denoising loss", lambda own: target_scores(of_patients, own), found.controls[name].positive
        )
        found.notes += shadows.notes
    return found


def generator_bound(generator: Generator, real: Pairs, *, study: Study, folder: Path) -> LowerBound:
    """Return what trainings of such a generator show of epsilon into which each patient goes by a coin.

    They are of its plan, epochs and privacy, so that each takes as long as the generator did.

    Parameters
    ----------
    generator
        Whose training is audited.
    real
        Tiles of all patients, members or not.
    study
        Its part `audit` says how many trainings, and how often noise is drawn for a tile's loss.
    folder
        Where finished runs are kept.
    """
    record = generator.record
    privacy = None if record["privacy"] is None else Privacy(**record["privacy"]["asked"])

    def train_one(mask: np.ndarray, seed: int) -> np.ndarray:
        with TemporaryDirectory() as home:
            made = train_generator(
                real.subset(mask),
                generator.plan,
                folder=Path(home),
                epochs=record["epochs"],
                seed=seed,
                device=generator.device,
                privacy=privacy,
            )
        return denoising_loss(made, real, draws=study.audit.noise_draws, seed=seed)

    scores, coins = coin_runs(
        train_one,
        real.patients,
        runs=study.audit.generator_coin_runs,
        seed=study.seed,
        folder=folder,
        fingerprint=f"{record['fingerprint']} {study.audit.noise_draws} {' '.join(real.ids.tolist())}",
    )
    return lower_bound(scores, coins, delta=0.0 if privacy is None else privacy.delta)


def _promised(privacy: dict[str, Any] | None) -> str:
    """Return what a generator's record says of its privacy, in words."""
    if privacy is None:
        return ""
    said = f"epsilon {privacy['epsilon']:.2f} at delta {privacy['delta']:g} for one {privacy['unit']}"
    if privacy["unit"] == "patient":
        return said
    most = str(privacy["largest_patient"])
    return f"{said}, {privacy['epsilon_by_group'][most]:.1f} for the patient with most tiles ({most})"


def _attack_set(study: Study, found: Found, drawn: np.ndarray, tiles: Tiles, shadows: ShadowGenerators) -> None:
    """Attack a set, and sets by shadow generators in turn, by what they look like beside one another."""
    sets, real, seed, n = shadows.sets, tiles.apart, study.seed, len(tiles.apart.all)
    if found.subject.name == "filtered":
        sets = sets.filtered(study.synthesis.novelty_quantile or 0.05)
        found.notes.append("Shadow sets were filtered by distance as well, and not for looking real.")
    largest = max(len(one) for one in sets.drawn)  # nearness and density grow with a set
    own = drawn[np.random.default_rng([seed, 24]).permutation(len(drawn))[:largest]]
    planted = copied_features(tiles.features["all"], real.member, seed=seed)
    looks, leaky = (sets.view.read([*sets.drawn, one]) for one in (own, planted))
    options = {"access": "synthetic set", "draws": study.audit.draws, "seed": seed}
    for name in ("closest record", "density ratio"):
        scores, control = (tile_scores(one, sets.inside, attack=name)[-1, :n] for one in (looks, leaky))
        found.attack(f"{name}, by shadow generators", real.audit(scores), control, **options)
    looks, leaky = (sets.view.read(one.drawn) for one in (sets, sets.planted(1.0, seed=seed)))
    people = np.tile(sets.patients, len(sets.inside))
    for name in ATTACKS:
        control = set_scores(leaky, sets.inside, attack=name).ravel()
        positive = judge(control, sets.inside.ravel(), people, draws=study.audit.draws, seed=seed)
        shadows.repeated(found, name, lambda own, name=name: set_scores(looks, own, attack=name), positive)
    found.notes += shadows.notes


def audit_set(
    study: Study, subject: Subject, tiles: Tiles, *, shadows: ShadowGenerators | None = None
) -> tuple[Found, Memorised]:
    """Ask a set of drawn tiles whom it gives away: by its likeness to sets with and without a patient, by nearness.

    Nearness decides nothing: see `shadow_sets`.
    """
    pairs, real, features, seed = tiles.drawn[subject.name], tiles.apart, tiles.features, study.seed
    found, drawn = Found(subject, f"{_what(subject, real)} {len(pairs)} tiles."), tiles.reconstruction.features(pairs)
    scores = -closest_record(drawn, features["all"])
    planted = -closest_record(copied_features(features["all"], real.member, seed=seed), features["all"])
    options = {"access": "synthetic set", "draws": study.audit.draws, "seed": seed}
    if shadows is not None:
        _attack_set(study, found, drawn.astype(np.float64), tiles, shadows)
    found.attack("closest record", real.audit(scores), planted, decides=False, **options)

    def copied(features_of: np.ndarray, ids: np.ndarray) -> Memorised:
        return memorised(
            features_of,
            features["train"],
            features["held_out"],
            ids=ids,
            records=real.train.ids,
            patients=real.train.patients,
            strangers=tiles.held_out.patients,
            quantile=study.synthesis.novelty_quantile or 0.05,
            seed=seed,
        )

    told = copied(drawn, pairs.ids)
    planted, unseen = copied(features["train"], real.train.ids), copied(features["test"], real.test.ids)
    found.asked.append(ask_memorised(told, planted, unseen, what="the reconstruction network's features"))
    if subject.name == "filtered":
        found.notes.append("The filter took the same features: of what it left, nearness in them says little.")
    return found, told


def _leaky_generator(
    generator: Generator, tiles: RealTiles, folder: Path, epochs: int, seed: int
) -> tuple[Generator, np.ndarray]:
    """Return a generator that knows some members by heart, and the rows of these and of as many others."""
    rng = np.random.default_rng([seed, 9])
    sides = [rng.permutation(np.flatnonzero(side))[:LEAKY_TILES] for side in (tiles.member, ~tiles.member)]
    plan = LEAKY.model_copy(update={"kind": generator.plan.kind})
    known = train_generator(tiles.all.subset(sides[0]), plan, folder=folder, epochs=epochs, seed=seed)
    rows = np.concatenate(sides)
    seen = np.isin(tiles.all.labels[rows], known.classes)  # of a class that was not among them it knows nothing
    return known, rows[seen]


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


def _what(subject: Subject, tiles: RealTiles) -> str:
    members, others = (len(np.unique(tiles.all.patients[side])) for side in (tiles.member, ~tiles.member))
    return (
        f"{subject.title}: learned from tiles of {patients_of(members)}, the members; non-members are "
        f"{patients_of(others)} that the fold holds out."
    )
