"""What synthetic tiles teach of gene expression, where a teacher says what each of them would express.

A drawn tile was never measured. A teacher, fitted on the real training tiles, says what it would express; a student
learns that from drawn tiles alone and is tested on what was measured of patients that neither saw. Beside it stand the
same student on real tiles with measured values, and on real tiles with the teacher's values: the first step down is
the label's loss, the second the picture's. And on **noise** with the teacher's values: a word said of a picture carries
what the teacher knows, whatever the picture. What noise teaches as well is no merit of the drawn tissue; to hand on
drawn tiles with such values is to hand on the teacher, blurred. Last, without any teacher, a drawn tile has what real
tiles of its class express on average.

Teacher and students are the library's low-rank ridge regressions, averaged over penalties so that nothing is chosen
(`predictors.fusion_ridge`), on features that are standardised within sections; drawn tiles are a section of their own.
The teacher sees colour and a frozen encoder together, each student one of the two: a linear student with the teacher's
own eyes would only copy it. All look at tiles of the synthetic side, which is coarser than what predictors get.

Scores are Pearson's correlation of each gene over the spots of a section; the mean over genes, over the sections of a
patient, over patients. Intervals are bootstraps over blocks of tissue within sections, all rows on the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.correlation import pearson
from histocrypt.data.fold_statistics import PANEL, read_clean_section
from histocrypt.errors import InputError
from histocrypt.evaluation.bootstrap import block_sums, draw_weights, pearson_of_draws
from histocrypt.evaluation.metrics import finite_mean
from histocrypt.predictors.closed_form import mean_and_sd, standardise
from histocrypt.predictors.fusion_ridge import fit_families, shares
from histocrypt.synthesis.segmentation import over_patients
from histocrypt.synthesis.utility import add_worth, with_intervals, write_rows
from histocrypt.synthesis.worth import over_repeats, subsets
from histocrypt.targets.matrix import columns_of, targets_of
from histocrypt.targets.panels import Panel
from histocrypt.training.loop import mean_section_pearson

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.data.folds import Fold
    from histocrypt.study import Study
    from histocrypt.synthesis.manifest import Pairs

LESSONS = {
    "real": "Real, measured",
    "taught": "Real, teacher's values",
    "synthetic": "Drawn, teacher's values",
    "both": "Real, measured, and drawn",
    "class_means": "Drawn, mean of its class",
    "noise": "Noise, teacher's values",
}
"""What a student may learn from."""
COLOUR = {"real": "colour_only", "synthetic": "colour_synthetic", "taught": "colour_taught", "noise": "colour_noise"}
"""Names of the rows of students that see colour alone, by what they learn from."""
TEACHER, GUESS = "teacher", "mean_profile"
SIGHTS = ("colour", "encoder")
SCORE = "pearson"
GRAIN = (5.0, 40.0)
"""Standard deviations, in grey levels, that the grain of noise tiles lies between."""


@dataclass(frozen=True)
class Lesson:
    """Tiles as they are seen, and what is said of their expression."""

    seen: Mapping[str, np.ndarray]
    """(n, d) float32 by sight, see `utility.look`."""
    sections: np.ndarray
    """(n,) str."""
    values: np.ndarray
    """(n, g), in any unit of each gene; what differs between sections is taken off."""

    def with_values(self, values: np.ndarray) -> Lesson:
        """Return the same tiles with other values."""
        return replace(self, values=values)

    def subset(self, rows: np.ndarray) -> Lesson:
        """Return some of the tiles."""
        return Lesson({sight: seen[rows] for sight, seen in self.seen.items()}, self.sections[rows], self.values[rows])

    def joined(self, other: Lesson) -> Lesson:
        """Return the tiles of both."""
        seen = {sight: np.concatenate([own, other.seen[sight]]) for sight, own in self.seen.items()}
        return Lesson(
            seen, np.concatenate([self.sections, other.sections]), np.concatenate([self.values, other.values])
        )


@dataclass(frozen=True)
class Student:
    """Low-rank ridge regressions on one or several sights, added up in fixed shares."""

    scales: Mapping[str, tuple[np.ndarray, np.ndarray]]
    weights: Mapping[str, np.ndarray]
    spread: np.ndarray | float
    """(g,) what predictions are divided by: they then have deviation one on the tiles learned from."""

    @classmethod
    def of(cls, lesson: Lesson, sights: Sequence[str]) -> Student:
        """Fit; nothing is chosen, so no other tiles are needed.

        Raises
        ------
        InputError
            If there are fewer than two tiles.
        """
        if len(lesson.sections) < 2:
            raise InputError("expression cannot be learned from fewer than two tiles", value=len(lesson.sections))
        scales = {sight: mean_and_sd(lesson.seen[sight], lesson.sections, by_section=True) for sight in sights}
        blank = cls(scales, {}, 1.0)
        parts = {sight: blank._inputs(lesson.seen, lesson.sections, sight) for sight in sights}
        ends = np.cumsum([0, *(part.shape[1] for part in parts.values())]).tolist()
        where = {sight: slice(*ends[number : number + 2]) for number, sight in enumerate(parts)}
        values = centred(lesson.values, lesson.sections)
        whole = np.concatenate(list(parts.values()), axis=1)
        weights = fit_families(whole, values, where, columns=[np.arange(values.shape[1])], known=False)
        fitted = replace(blank, weights=weights)
        return replace(fitted, spread=np.maximum(fitted.predict(lesson.seen, lesson.sections).std(axis=0), 1e-9))

    def predict(self, seen: Mapping[str, np.ndarray], sections: np.ndarray) -> np.ndarray:
        """Return (n, g) predictions, about centred within sections."""
        added = shares(list(self.weights))
        parts = [added[one] * (self._inputs(seen, sections, one) @ weight) for one, weight in self.weights.items()]
        return np.sum(parts, axis=0) / self.spread

    def _inputs(self, seen: Mapping[str, np.ndarray], sections: np.ndarray, sight: str) -> np.ndarray:
        mean, sd = self.scales[sight]
        return standardise(seen[sight], sections, mean, sd, by_section=True) / np.sqrt(len(mean))


def centred(values: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Return (n, g) float64 values less the mean of their section."""
    found = np.array(values, dtype=np.float64)
    for section in np.unique(sections):
        found[sections == section] -= found[sections == section].mean(axis=0)
    return found


def measured(study: Study, fold: Fold, sides: Mapping[str, Pairs]) -> dict[str, np.ndarray]:
    """Return what was measured of real tiles, (n, g) float32 by side, in the study's first transform.

    The genes are those of the fold's panel that every section measures. Values of test tiles are for scores alone.

    Raises
    ------
    InputError
        If no gene of the panel is measured everywhere.
    """
    panel, transform = Panel.load(study.run.fold(fold.name) / PANEL), study.target.transforms[0]
    names = dict.fromkeys(name for pairs in sides.values() for name in pairs.sections.tolist())
    sections = {name: read_clean_section(study.run.section(name)) for name in names}
    known = np.ones(len(panel), dtype=bool)
    for name, adata in sections.items():
        known &= columns_of(adata, panel.genes, panel.symbols, matrix=panel.matrix, section=name) >= 0
    if not known.any():
        raise InputError("no gene of the panel is measured in every section", file=study.run.fold(fold.name) / PANEL)
    genes, symbols = (np.array(one)[known].tolist() for one in (panel.genes, panel.symbols))
    found = {}
    for side, pairs in sides.items():
        found[side] = np.empty((len(pairs), len(genes)), dtype=np.float32)
        for name in dict.fromkeys(pairs.sections.tolist()):
            rows, adata = np.flatnonzero(pairs.sections == name), sections[name]
            spots = adata.obs_names.get_indexer([one.split(":", 1)[1] for one in pairs.ids[rows].tolist()])
            how = {"matrix": panel.matrix, "section": name, "symbols": symbols, "rows": spots}
            found[side][rows] = targets_of(adata, genes, [transform], **how)[transform]
    return found


def noise_like(pairs: Pairs, *, seed: int) -> Pairs:
    """Return as many tiles that show nothing: each of one random colour, with random grain. No image is looked at."""
    rng, n = np.random.default_rng(seed), len(pairs)
    colour = rng.uniform(60, 255, (n, 1, 1, pairs.images.shape[-1]))
    grain = rng.uniform(*GRAIN, (n, 1, 1, 1)) * rng.standard_normal(pairs.images.shape)
    names = np.array([f"noise:{number}" for number in range(n)], dtype=str)
    return replace(pairs, ids=names, images=np.clip(colour + grain, 0, 255).astype(np.uint8))


def expression_table(
    sets: Mapping[str, Pairs],
    values: Mapping[str, np.ndarray],
    looked: Mapping[str, Mapping[str, np.ndarray]],
    *,
    blocks: np.ndarray | None = None,
    draws: int = 500,
    sizes: Sequence[int] = (10, 30, 100),
    repeats: int = 5,
    seed: int = 0,
    folder: Path | None = None,
) -> pd.DataFrame:
    """Teach expression with real tiles, drawn tiles and noise; test on real tiles of other patients.

    Parameters
    ----------
    sets
        ``real`` (training), ``validation``, ``synthetic``, ``noise`` (see `noise_like`) and ``test``. On the
        validation tiles it is measured how far the teacher reaches: what weight its word has beside measured values.
    values
        Of ``real``, ``validation`` and ``test``, see `measured`.
    looked
        What `utility.look` gives of all five.
    blocks
        (n_test,) names of test tiles that are drawn together, see `utility.spatial_blocks`; None: tile by tile.
    draws
        Of the bootstrap.
    sizes, repeats
        Of the learning curve over real tiles: see `worth.subsets`.
    folder
        Where ``expression.json`` is written; None writes nothing.

    Returns
    -------
    DataFrame
        Index: `LESSONS` (students that see through the encoder), `COLOUR` (students that see colour), ``teacher``,
        ``mean_profile``, and the curves ``real_<size>``, ``colour_<size>``. Columns as of `utility.utility_table`, of
        the score ``pearson``.

    Raises
    ------
    InputError
        If a patient is on two sides.
    """
    import pandas as pd

    people = {side: set(sets[side].patients.tolist()) for side in values}
    for side, other in (("real", "test"), ("validation", "test"), ("real", "validation")):
        if both := sorted(people[side] & people[other] - {""}):
            raise InputError(f"a patient appears on two sides, {side} and {other}", value=both[0])
    _, unit = mean_and_sd(values["real"], sets["real"].sections, by_section=True)
    real = Lesson(looked["real"], sets["real"].sections, centred(values["real"], sets["real"].sections) / unit)
    teacher, lessons = Student.of(real, SIGHTS), {"real": real}
    side = sets["validation"].sections
    known = mean_section_pearson(teacher.predict(looked["validation"], side), values["validation"], side)
    for name, source in (("taught", "real"), ("synthetic", "synthetic"), ("noise", "noise")):
        slides = sets[source].sections
        said = max(known, 0.0) * teacher.predict(looked[source], slides)
        lessons[name] = Lesson(looked[source], slides, said)
    lessons["both"] = real.joined(lessons["synthetic"])
    means = {name: real.values[sets["real"].labels == name].mean(axis=0) for name in np.unique(sets["real"].labels)}
    told = np.array([means.get(name, np.zeros_like(unit)) for name in sets["synthetic"].labels.tolist()])
    lessons["class_means"] = lessons["synthetic"].with_values(told)
    fewer = subsets(real.sections, sizes, repeats=repeats, seed=seed)
    names = {name: (lessons[name], "encoder") for name in LESSONS}
    names |= {row: (lessons[name], "colour") for name, row in COLOUR.items()}
    for name, rows in fewer.items():
        names |= {f"real_{name}": (real.subset(rows), "encoder"), f"colour_{name}": (real.subset(rows), "colour")}
    tested, slides = looked["test"], sets["test"].sections
    said = {row: Student.of(lesson, [sight]).predict(tested, slides) for row, (lesson, sight) in names.items()}
    said |= {TEACHER: teacher.predict(tested, slides), GUESS: np.zeros(values["test"].shape)}
    scores, drawn = over_repeats(*judge(said, values["test"], sets["test"], blocks=blocks, draws=draws, seed=seed))
    about = {name: {"title": title, "tiles": len(lessons[name].sections)} for name, title in LESSONS.items()}
    about |= {row: about[name] | {"title": f"Colour: {LESSONS[name].lower()}"} for name, row in COLOUR.items()}
    about |= {TEACHER: {"title": "The teacher itself", "tiles": len(real.sections)}}
    about |= {GUESS: {"title": "Mean profile", "tiles": len(real.sections)}}
    counted = [size for size in sizes if size < len(real.sections)]
    for size in counted:
        about[f"real_{size}"] = {"title": f"{size} real, measured", "tiles": size}
        about[f"colour_{size}"] = {"title": f"Colour: {size} real, measured", "tiles": size}
    compared = {"compared": [SCORE], "guess": GUESS, "least": -1.0}
    rows = [
        {**one, "role": role_of(name), **with_intervals(scores, drawn, name, **compared)} for name, one in about.items()
    ]
    table = pd.DataFrame(rows, index=pd.Index(list(about), name="learned_from"))
    curves = {"synthetic": [*(f"real_{n}" for n in counted), "real"]}
    curves |= {COLOUR["synthetic"]: [*(f"colour_{n}" for n in counted), COLOUR["real"]]}
    add_worth(table, scores, drawn, curves if counted else {}, [*counted, len(real.sections)], [SCORE])
    if folder is not None:
        notes = {"seed": seed, "draws": draws, "genes": values["test"].shape[1], "repeats": repeats}
        notes |= {"test_patients": sorted(people["test"]), "teacher_on_validation": known}
        write_rows(Path(folder) / "expression.json", table, notes)
    return table


def role_of(name: str) -> str:
    """Return whether a row is a ``model``, a ``baseline`` or part of a ``curve``."""
    if name.rpartition("_")[2].isdigit():
        return "curve"
    return "model" if name in LESSONS and name != "noise" else "baseline"


def judge(
    said: Mapping[str, np.ndarray],
    truth: np.ndarray,
    test: Pairs,
    *,
    blocks: np.ndarray | None = None,
    draws: int = 500,
    seed: int = 0,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Score predictions (n, g) of the test tiles, by name, against what was measured.

    Returns
    -------
    Scores by row and name (`SCORE`); and the same in every draw of the bootstrap, each (draws,).
    """
    rng, whole, each = np.random.default_rng(seed), [], []
    for patient in np.unique(test.patients).tolist():
        own, own_draws = [], []
        for section in np.unique(test.sections[test.patients == patient]).tolist():
            rows = np.flatnonzero(test.sections == section)
            labels = np.unique(rows if blocks is None else blocks[rows], return_inverse=True)[1].ravel()
            weights = draw_weights(labels.max() + 1, draws, rng)
            own.append([finite_mean(pearson(truth[rows], one[rows])) for one in said.values()])
            sums = [block_sums(truth[rows], one[rows], labels) for one in said.values()]
            own_draws.append([pearson_of_draws(one, weights) for one in sums])
        whole.append(over_patients(np.array(own)))
        each.append(over_patients(np.array(own_draws)))
    found, drawn = over_patients(np.array(whole)), over_patients(np.array(each))
    names = list(said)
    return (
        {name: {SCORE: float(found[number])} for number, name in enumerate(names)},
        {name: {SCORE: drawn[number]} for number, name in enumerate(names)},
    )
