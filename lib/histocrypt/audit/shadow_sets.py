"""Shadow generators: what sets drawn by generators that saw a patient look like, beside sets by those that did not.

A generator is trained on each of several random halves of the patients and draws a set, so that the attacker knows
sets with and without each patient (the game of Stadler, Oprisanu and Troncoso, USENIX Security 2022). Three attacks
read a set alone, and score each patient:

* closest record: whether a tile of the patient lies nearer to the set than to sets without the patient;
* density ratio: whether the set lies more densely around the patient's tiles. DOMIAS (van Breugel et al., AISTATS 2023)
  divides by the density of real tissue, which is the same for every set; here sets without the patient give both the
  denominator and how far it varies;
* classifier of sets: whether mean, spread and kinds of tile lean towards the patient's, and how near and dense the set
  lies, weighed as they told members from others in the other sets.

Who holds a generator's weights has a fourth: how well it tells the noise in the patient's tiles
(`memorisation.denoising_loss`), beside generators without the patient (`shadow.target_scores`).

Each set in turn is attacked with the help of the others, and its complement is left out, as of all shadow models.

The distance from a drawn tile to the nearest real one decides none of this: a set whose tiles all lie at a proper
distance can lean towards its patients ("The DCR Delusion", arXiv 2505.01524). `benchmarks/shadow_sets.py` shows when.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.audit.membership import in_and_out, lira
from histocrypt.audit.memorisation import closest_record, denoising_loss
from histocrypt.audit.shadow import halves
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path
from histocrypt.options import GeneratorPlan
from histocrypt.synthesis.filtering import distances
from histocrypt.synthesis.generator import train_generator
from histocrypt.synthesis.sampling import sample

if TYPE_CHECKING:
    from histocrypt.synthesis.manifest import Pairs

ATTACKS = ("closest record", "density ratio", "classifier of sets")
"""What needs a set alone."""
QUICK = GeneratorPlan(
    width=32,
    multipliers=(1,),
    blocks=1,
    patch=4,
    objective="velocity",
    dropout=0.0,
    batch=64,
    learning_rate=5e-3,
    ema=0.95,
    balance=False,
)
"""A generator that trains within seconds, for who cannot repeat the audited one a dozen times."""
COMPONENTS = 8
"""Principal components of the features in which densities and summaries are taken."""
KINDS = 12
"""Kinds of tile, by nearness to as many centres, whose shares are counted."""
NEAREST = 1e-3
"""A smaller distance, or spread, counts as this: a copy must not become infinite evidence."""
FEWEST = 6
"""Shadows: two of each kind are left when one is attacked and its complement left out."""
COPY_NOISE = 0.1
"""Of planted copies, in standard deviations of each feature over the members."""
MOST = 30.0
"""Of a tile's score, either way: one tile says so much and no more."""


@dataclass(frozen=True)
class ShadowSets:
    """What shadow generators left, and the real tiles that are asked about."""

    inside: np.ndarray
    """(shadows, patients) bool, patients sorted; shadows 0 and 1, 2 and 3, ... are each other's complements."""
    drawn: tuple[np.ndarray, ...]
    """By shadow: (m, d) features of the tiles that it drew."""
    loss: np.ndarray
    """(shadows, n) denoising losses of the real tiles."""
    real: np.ndarray
    """(n, d) features of the real tiles."""
    owners: np.ndarray
    """(n,) str, whose these are."""

    @property
    def patients(self) -> np.ndarray:
        """(patients,) str, sorted."""
        return np.unique(self.owners)

    @property
    def tiles_inside(self) -> np.ndarray:
        """(shadows, n) bool."""
        return self.inside[:, np.searchsorted(self.patients, self.owners)]

    def by_patient(self, values: np.ndarray) -> np.ndarray:
        """Return (shadows, patients) means of (shadows, n)."""
        return np.stack([values[:, self.owners == name].mean(axis=1) for name in self.patients], axis=1)

    @cached_property
    def view(self) -> View:
        """What sets are compared by; fitted on the real tiles without looking at who was inside."""
        return View(self.real, self.owners)

    def filtered(self, quantile: float) -> ShadowSets:
        """Return the same with each set passed through a distance filter, as `synthesis.filtering` does.

        What lies nearer to a training tile than all but a share ``quantile`` of the tiles of patients outside is left
        out. A set of which nothing would remain stays as it is.
        """
        kept = []
        for drawn, inside in zip(self.drawn, self.tiles_inside, strict=True):
            limit = np.quantile(distances(self.real[~inside], self.real[inside])[0], quantile)
            far = distances(drawn, self.real[inside])[0] >= limit
            kept.append(drawn[far] if far.any() else drawn)
        return replace(self, drawn=tuple(kept))

    def planted(self, share: float, *, seed: int = 0) -> ShadowSets:
        """Return the same with a share of each set replaced by members' own tiles, a little disturbed: a control."""
        rng, made = np.random.default_rng([seed, 21]), []
        for drawn, inside in zip(self.drawn, self.tiles_inside, strict=True):
            own, places = self.real[inside], rng.permutation(len(drawn))[: round(share * len(drawn))]
            copies = own[rng.integers(len(own), size=len(places))]
            changed = drawn.copy()
            changed[places] = copies + rng.normal(0, COPY_NOISE, copies.shape) * own.std(axis=0)
            made.append(changed)
        return replace(self, drawn=tuple(made))


def train_shadows(
    pairs: Pairs,
    plan: GeneratorPlan,
    *,
    n_shadows: int,
    epochs: int,
    per_class: int,
    features: Callable[[Pairs], np.ndarray],
    way_back: dict[str, Any] | None = None,
    asked: np.ndarray | None = None,
    noise_draws: int = 1,
    seed: int,
    folder: Path,
    fingerprint: str = "",
) -> ShadowSets:
    """Train generators on random halves of the patients and let each draw a set.

    Parameters
    ----------
    pairs
        Real tiles with masks, of all patients that are dealt into halves.
    plan, epochs
        What is trained, and for how long.
    n_shadows
        How many, as for `shadow.halves`.
    per_class
        Tiles that each draws of every class that it saw.
    features
        From pairs to (n, d): what sets are seen by, the same for all.
    way_back
        Further options of `sampling.sample`: steps, sampler, guidance. Every set has noise of its own.
    asked
        (n,) bool, the tiles that are asked about; None: all that are trained on.
    noise_draws
        Of `memorisation.denoising_loss`.
    seed
        Of the halves; each shadow's own seed follows from it.
    folder
        Where features and losses of finished shadows are kept, so that a repeated call goes on where it ended. The
        generators themselves are deleted.
    fingerprint
        What the features depend on.
    """
    from tqdm.auto import tqdm

    inside = halves(pairs.patients, n_shadows, seed=seed)
    about_whom = pairs if asked is None else pairs.subset(asked)
    about = [
        fingerprint,
        plan.model_dump_json(),
        epochs,
        per_class,
        way_back,
        noise_draws,
        seed,
        pairs.ids.tolist(),
        about_whom.ids.tolist(),
    ]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(np.ascontiguousarray(pairs.images).tobytes())
    facts, drawn, losses = digest.hexdigest(), [], []
    for number, mask in enumerate(tqdm(inside, desc="shadow generators", unit="model")):
        file = Path(folder) / f"set_{number:03d}.safetensors"
        found = _kept(file, facts)
        if found is None:
            own_seed = int(np.random.SeedSequence([seed, 22, number]).generate_state(1)[0] >> 1)
            weights = Path(folder) / f"training_{number:03d}"
            generator = train_generator(pairs.subset(mask), plan, folder=weights, epochs=epochs, seed=own_seed)
            labels = np.repeat(generator.classes, per_class)
            tiles = sample(generator, labels=labels, seed=own_seed, **(way_back or {}))
            loss = denoising_loss(generator, about_whom, draws=noise_draws, seed=seed)
            found = {"drawn": np.asarray(features(tiles), np.float64), "loss": loss}
            _keep(file, found, facts)
            shutil.rmtree(weights)
        drawn.append(found["drawn"])
        losses.append(found["loss"])
    first = [int(np.flatnonzero(pairs.patients == name)[0]) for name in np.unique(pairs.patients)]
    real = np.asarray(features(about_whom), np.float64)
    return ShadowSets(inside[:, first], tuple(drawn), np.stack(losses), real, about_whom.patients)


def _keep(file: Path, found: dict[str, np.ndarray], facts: str) -> None:
    from safetensors.numpy import save_file

    with atomic_path(file) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in found.items()}, temporary, metadata={"facts": facts})


def _kept(file: Path, facts: str) -> dict[str, np.ndarray] | None:
    """Return what is kept in a file, or None if it is of other shadows or not there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as kept:
            if (kept.metadata() or {}).get("facts") != facts:
                return None
            return {name: kept.get_tensor(name) for name in ("drawn", "loss")}
    except (OSError, SafetensorError):
        return None


@dataclass(frozen=True)
class Read:
    """What was read off r sets."""

    near: np.ndarray
    """(r, n) logarithms of the distances from real tiles to the nearest drawn one."""
    dense: np.ndarray
    """(r, n) logarithms of the sets' densities at the real tiles."""
    leans: np.ndarray
    """(r, patients, 3) how far mean, spread and kinds lean towards a patient's."""
    person: np.ndarray
    """(n,) int, the column of each real tile's patient."""

    def by_patient(self, values: np.ndarray) -> np.ndarray:
        """Return (r, patients) means of (r, n)."""
        return np.stack([values[:, self.person == one].mean(axis=1) for one in range(self.person.max() + 1)], axis=1)


class View:
    """What sets are compared by: distances in all features, densities and summaries in their principal components.

    Parameters
    ----------
    real
        (n, d) features of the real tiles.
    owners
        (n,) str, whose they are.
    """

    def __init__(self, real: np.ndarray, owners: np.ndarray) -> None:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

        self.real, self.person = real, np.unique(owners, return_inverse=True)[1]
        self.components = PCA(min(COMPONENTS, *real.shape), whiten=True, random_state=0).fit(real)
        self.placed = self.components.transform(real)
        self.centres = KMeans(min(KINDS, len(real)), n_init=4, random_state=0).fit(self.placed).cluster_centers_
        own = [self._summary(self.placed[self.person == one]) for one in range(self.person.max() + 1)]
        towards = [np.stack(part) - np.mean(part, axis=0) for part in zip(*own, strict=True)]
        self.towards = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in towards]

    def read(self, sets: Sequence[np.ndarray]) -> Read:
        """Read (m, d) features of each of r sets."""
        from sklearn.neighbors import KernelDensity

        near = [np.log(closest_record(one, self.real) + NEAREST) for one in sets]
        dense, summaries = [], []
        for placed in (self.components.transform(one) for one in sets):
            width = len(placed) ** (-1 / (placed.shape[1] + 4))  # Scott's rule; the components have unit variance
            dense.append(KernelDensity(bandwidth=width).fit(placed).score_samples(self.placed))
            summaries.append(self._summary(placed))
        parts = [np.stack(part) - np.mean(part, axis=0) for part in zip(*summaries, strict=True)]
        leans = np.stack([part @ towards.T for part, towards in zip(parts, self.towards, strict=True)], axis=-1)
        return Read(np.stack(near), np.stack(dense), leans, self.person)

    def _summary(self, placed: np.ndarray) -> list[np.ndarray]:
        """Return the mean, the logarithm of the spread, and the square roots of the shares of kinds."""
        from scipy.spatial.distance import cdist

        kinds = np.exp(-0.5 * cdist(placed, self.centres) ** 2) + 1e-12
        shares = (kinds / kinds.sum(axis=1, keepdims=True)).mean(axis=0)
        return [placed.mean(axis=0), np.log(placed.std(axis=0) + NEAREST), np.sqrt(shares)]


def set_scores(read: Read, inside: np.ndarray, *, attack: str) -> np.ndarray:
    """Score every patient by what each set looks like, with the help of the other sets.

    Parameters
    ----------
    read
        Of the shadows' sets, in their order; sets that are not of shadows may follow, and are attacked with all.
    inside
        (shadows, patients) bool; what it says of the attacked shadow and of its complement is not looked at.
    attack
        One of `ATTACKS`.

    Returns
    -------
    (r, patients), higher: more likely a member.

    Raises
    ------
    InputError
        If there are fewer than six shadows, or no such attack.
    """
    if attack not in ATTACKS:
        raise unknown_name("attack", attack, ATTACKS)
    if attack == "closest record":
        each = tile_scores(read, inside, attack=attack).clip(-MOST, MOST)
        return np.log(read.by_patient(np.exp(each)))  # a single tile may be the one that was copied
    if attack == "density ratio":
        whole = Read(read.near, read.by_patient(read.dense), read.leans, np.arange(inside.shape[1]))
        return tile_scores(whole, inside, attack=attack)
    from sklearn.linear_model import LogisticRegression

    seen = [read.by_patient(part - part.mean(axis=0)) for part in (-read.near, read.dense)]
    told = np.concatenate([read.leans, np.stack(seen, axis=-1)], axis=-1)
    told /= np.maximum(told.std(axis=(0, 1)), 1e-12)
    scores = []
    for row, others in _others(read, inside):
        known = LogisticRegression().fit(told[others].reshape(-1, told.shape[-1]), inside[others].ravel())
        scores.append(known.decision_function(told[row]))
    return np.stack(scores)


def tile_scores(read: Read, inside: np.ndarray, *, attack: str) -> np.ndarray:
    """Return (r, n) by how many standard deviations a set lies nearer to, or more densely around, each tile.

    Than sets without the tile's patient: LiRA, offline. Sets with the patient would show how much nearer; where shadow
    generators copy less than the attacked one does, they would teach that there is nothing to see.
    """
    values = read.near if attack == "closest record" else -read.dense
    scores = []
    for row, others in _others(read, inside):
        unseen = in_and_out(values[others], inside[others][:, read.person])[1]
        scores.append(lira(values[row], None, unseen, scale="as_is"))
    return np.stack(scores)


def _others(read: Read, inside: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each row, and the shadows that are neither that row nor its complement."""
    if len(inside) < FEWEST:
        expected = f"at least {FEWEST}"
        raise InputError("is too few to attack each with the others", field="n", value=len(inside), expected=expected)
    for row in range(len(read.near)):
        yield row, np.flatnonzero(np.arange(len(inside)) // 2 != row // 2)
