"""What of a study can be audited, and the spots of members and non-members with what a predictor makes of them.

An auditor holds more than anybody else: the measured values of held-out patients are read here on purpose, to tell a
model's members from non-members. They flow into audit figures alone; nothing here writes a model, and shadow models
are thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.audit.card import SYNTHESIS
from histocrypt.data.fold_statistics import PANEL, read_clean_section
from histocrypt.data.folds import BY_SECTION, FINAL, load_fold
from histocrypt.data.load import load_spots
from histocrypt.errors import InputError, unknown_name
from histocrypt.pipeline.checkpoints import load_model, trained_about
from histocrypt.pipeline.predictions import as_mapping
from histocrypt.pipeline.train import mixed_targets
from histocrypt.predictors.registry import MODELS, build, tile_side
from histocrypt.sections.genes import GeneNames, places
from histocrypt.spatial import squares
from histocrypt.targets.matrix import names_of
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import TargetStatistics, output_names

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.data.folds import Fold
    from histocrypt.data.load import Spots
    from histocrypt.study import Study

CENTRES = ("centre", "center", "site", "dataset")
"""Where a section may say where it comes from, in ``obs`` or ``uns``; the first found counts."""
ASKED = ("predictors", "shadowed", "tiles")
"""Predictors that are attacked as they are; those that are also retrained as shadow models; what was made of tiles."""
RANKS = {"rank", "spot_rank"}
"""Transforms whose values depend on the whole panel."""


@dataclass(frozen=True)
class Records:
    """Rows belong together and are named."""

    names: np.ndarray
    """(n,) ``"<section>:<barcode>"``."""
    patients: np.ndarray
    """(n,) str: the unit of privacy."""
    sections: np.ndarray
    """(n,) str."""
    group: np.ndarray
    """(n,) str: centre or data set of the section, ``""`` where it does not tell."""
    blocks: np.ndarray
    """(n,) str: the square of tissue, of the study's ``evaluation.block_um``, that a spot lies in."""
    member: np.ndarray
    """(n,) bool: whether the weights were fitted on the spot's patient."""
    outputs: tuple[str, ...]
    """``"<transform>:<gene id>"``, the columns of the two below."""
    truth: np.ndarray
    """(n, outputs) float32: what was measured, in the units of the loss."""
    prediction: np.ndarray
    """(n, outputs) float32, in the same units."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.names)

    @property
    def loss(self) -> np.ndarray:
        """(n,) float64: see `losses`."""
        return losses(self.truth, self.prediction)

    def subset(self, keep: np.ndarray) -> Records:
        """Return the rows chosen by a boolean mask or by indices."""
        return replace(self, **{name: getattr(self, name)[keep] for name in _rows()})

    @classmethod
    def join(cls, parts: list[Records]) -> Records:
        """Return all rows of several with the same outputs, in order."""
        if any(part.outputs != parts[0].outputs for part in parts):
            raise ValueError("records of different outputs cannot be joined")
        return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _rows()})


def _rows() -> list[str]:
    return [field.name for field in fields(Records) if field.name != "outputs"]


def losses(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return (n,) mean squared errors over the standardised outputs, as models of a study are trained with."""
    return np.square(np.asarray(prediction, np.float64) - np.asarray(truth, np.float64)).mean(axis=1)


def group_of(section: AnnData) -> str:
    """Return the centre or data set that a cleaned section names, or ``""``."""
    for name in CENTRES:
        if name in section.obs and section.obs[name].nunique() == 1:
            return str(section.obs[name].iloc[0])
        if isinstance(section.uns.get(name), str):
            return section.uns[name]
    return ""


def blocks_of(section: AnnData, name: str, block_um: float) -> dict[str, str]:
    """Return the square of tissue that each spot of a cleaned section lies in, by the spot's name."""
    um_per_px = float(as_mapping(section.uns.get("preprocessing", {})).get("um_per_px", 1.0))
    labels = squares(np.asarray(section.obsm["spatial"], dtype=np.float64) * um_per_px, block_um)
    return {f"{name}:{spot}": f"{name}:{label}" for spot, label in zip(section.obs_names, labels, strict=True)}


@dataclass(frozen=True)
class Subject:
    """Something that was learned from patients."""

    kind: str
    """``predictor``, ``segmenter``, ``generator`` or ``synthetic set``."""
    name: str
    title: str
    fold: str
    """Its members are among this fold's training patients."""
    folder: Path


def audited(study: Study, fold: str, *, models: list[str] | str = "all", asked: str = "all") -> list[Subject]:
    """Return what of a fold was trained and can be audited: predictors, then what ``synthesis/<fold>`` holds.

    Stacks are not among them: they combine predictions and never see a spot's tile.

    Parameters
    ----------
    study
        A study that was run.
    fold
        A fold that holds patients out.
    models
        Names of predictors, or ``all``.
    asked
        One part of an audit, which is a job of its own and looks at no other's subjects: see `ASKED`; or ``all``.

    Raises
    ------
    InputError
        If the fold holds nobody out, a named model is not of the study, or a model was trained under other settings.
    """
    if asked not in ("all", *ASKED):
        raise unknown_name("part of an audit", asked, ("all", *ASKED), field="asked")
    split = _split(study, fold)
    names = study.model_names if models == "all" else list(models)
    for name in names:
        if name not in study.model_names:
            raise unknown_name("model of the study", name, study.model_names, field="audit.models")
    found, shadowed = [], study.audit.shadowed if study.audit else ()
    for name in names:
        if asked not in ("all", "shadowed" if name in shadowed else "predictors"):
            continue
        folder = study.run.model(name, fold)
        if (folder / "model.json").is_file() or models != "all":
            trained_about(study, name, split, why=f"{name} is to be audited")
            found.append(Subject("predictor", name, MODELS[name].title, fold, folder))
    home = study.run.synthesis(fold)
    for name, (kind, title) in SYNTHESIS.items() if asked in ("all", "tiles") else ():
        if (home / name).is_dir() and any((home / name).iterdir()):
            found.append(Subject(kind, name, title, fold, home / name))
    return found


@dataclass(frozen=True)
class Members:
    """Whose spots a model was fitted on, and whose it never saw."""

    members: tuple[str, ...]
    """Sections."""
    non_members: tuple[str, ...]
    """Sections of the fold's test patients."""
    left_out: tuple[str, ...]
    """Validation sections that steered a choice but gave no gradient: neither one nor the other."""


def members_of(study: Study, model: str, fold: str) -> Members:
    """Return a model's member and non-member sections.

    What is fitted in closed form, and networks whose settings say ``refit``, were fitted again on training and
    validation sections together: validation patients are members then. Of other networks they only chose the number of
    epochs, and are left out.

    Raises
    ------
    InputError
        If the fold holds nobody out, or the model is not trained, or was under other settings.
    """
    split = _split(study, fold)
    about = trained_about(study, model, split, why=f"{model} is to be audited")
    refitted = about["kind"] == "fitted" or about["training"].get("refit", False)
    validated = split.validation_sections
    members = (*split.train_sections, *(validated if refitted else ()))
    return Members(members, split.test_sections, () if refitted else validated)


class SharedSpots:
    """The spots that were loaded last, for predictors of one fold that take the same tiles of the same sections."""

    KEPT = 2

    def __init__(self) -> None:
        self._last: dict[tuple[Any, ...], Spots] = {}

    def load(self, study: Study, fold: Fold, sections: tuple[str, ...], panel: Panel, side: int | None) -> Spots:
        """Return spots with targets, as `data.load.load_spots` does."""
        key = (fold.name, sections, panel.genes, side)
        if key not in self._last:
            while len(self._last) >= self.KEPT:
                self._last.pop(next(iter(self._last)))
            self._last[key] = load_spots(study, fold, sections, panel=panel, with_targets=True, side=side)
        return self._last[key]


@lru_cache(maxsize=256)
def _facts(
    path: Path, name: str, matrix: str | None, block_um: float, _changed: int
) -> tuple[GeneNames, str, dict[str, str]]:
    """Return what a cleaned section measures, its group, and the square of tissue of each spot, by the spot's name."""
    section = read_clean_section(path)
    genes = GeneNames.plain(names_of(section, matrix, section=name)) if matrix else GeneNames.of(section.var)
    return genes, group_of(section), blocks_of(section, name, block_um)


class Auditable:
    """A predictor of one fold with the spots of its members and non-members; reads them once.

    The test patients' measured values are read; see the top of this file. See `members_of` for who is left out.

    Parameters
    ----------
    study
        A study that was run.
    model
        A trained model of it.
    fold
        A fold that holds patients out.
    device
        Torch device of networks; the best one if not given.
    shared
        Spots that other predictors loaded.

    Raises
    ------
    InputError
        If the fold holds nobody out, the model is not trained or was under other settings, an artifact is missing, or
        no gene of the panel was measured in every section.
    """

    def __init__(
        self, study: Study, model: str, fold: str, *, device: str | None = None, shared: SharedSpots | None = None
    ) -> None:
        self.study, self.model, self.device, self._shared = study, model, device, shared or SharedSpots()
        self.sides = members_of(study, model, fold)
        self.fold = _split(study, fold)
        self.trained = load_model(study.run.model(model, fold), device=device)
        whole = Panel.load(study.run.fold(fold) / PANEL)
        self._matrix = whole.matrix
        wanted = GeneNames.of(whole.genes, whole.symbols) if whole.matrix is None else GeneNames.plain(whole.genes)
        lacking: set[str] = set()
        for name in self.sections:
            lacking.update(wanted.names[places(wanted, self._facts(name)[0]) < 0])
        self.unmeasured = tuple(gene for gene in whole.genes if gene in lacking)
        """Panel genes that a section of the test patients lacks: no truth, hence no loss; they are left out."""
        if lacking and RANKS & set(study.target.transforms):
            raise InputError(
                f"a section lacks {self.unmeasured[0]}, but ranks need the whole panel",
                field="target.transforms",
                expected="a panel of which every section measures all genes",
            )
        kept = np.array([gene not in lacking for gene in whole.genes])
        if not kept.any():
            raise InputError("no gene of the panel was measured in every section", field="fold", value=fold)
        genes, symbols = (tuple(np.array(names)[kept].tolist()) for names in (whole.genes, whole.symbols))
        self.panel = replace(whole, genes=genes, symbols=symbols, scores=())
        outputs, scaling = output_names(study.target.transforms, genes), self.trained.scaling
        self._columns = np.array([scaling.outputs.index(output) for output in outputs])
        self.scaling = TargetStatistics(outputs, scaling.mean[self._columns], scaling.sd[self._columns])

    @property
    def sections(self) -> tuple[str, ...]:
        """Sections of all records, in their order."""
        return (*self.sides.members, *self.sides.non_members)

    def _facts(self, section: str) -> tuple[GeneNames, str, dict[str, str]]:
        path, study = self.study.run.section(section), self.study
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        return _facts(path, section, self._matrix, study.evaluation.block_um, changed)

    def spots(self, model: str | None = None) -> Spots:
        """Return all spots with standardised targets, tiles as a model (this one, if none is named) takes them."""
        name = model or self.model
        side = tile_side(name, self.study.training_of(name))
        spots = self._shared.load(self.study, self.fold, self.sections, self.panel, side)
        sections = spots.sections if self.study.target.centre_by_section else None
        return replace(spots, targets=self.scaling.standardise(spots.targets, sections=sections))

    @cached_property
    def records(self) -> Records:
        """What the trained model makes of every spot."""
        spots = self.spots()
        groups, blocks = {}, {}
        for name in self.sections:
            _, groups[name], own = self._facts(name)
            blocks |= own
        return Records(
            names=spots.names,
            patients=spots.patients,
            sections=spots.sections,
            group=np.array([groups[section] for section in spots.sections.tolist()]),
            blocks=np.array([blocks[name] for name in spots.names.tolist()]),
            member=np.isin(spots.sections, self.sides.members),
            outputs=spots.outputs,
            truth=np.asarray(spots.targets, np.float32),
            prediction=np.asarray(self.trained.predictor.predict(spots)[:, self._columns], np.float32),
        )

    def predicted_by_shadow(self, keep: np.ndarray, *, seed: int) -> np.ndarray:
        """Train a shadow of the model on some of the records; return (n, outputs) what it predicts of every record.

        Units (panel, standardisation, stain reference) are the fold's own, as of `Records.truth`. What is fitted in
        closed form chooses its settings anew; a network trains for as many epochs as the attacked one. A model with a
        teacher gets a shadow teacher of the same records. Nothing is written.

        Parameters
        ----------
        keep
            (n,) bool, in the order of `records`: what the shadow learns from, in whole sections.
        seed
            Of whatever is random.

        Raises
        ------
        InputError
            If ``keep`` is empty or of another length, or splits a section; or the model takes over another one's
            weights.
        """
        return self._shadow(self.model, self._checked(keep), seed).predict(self.spots())

    def _shadow(self, model: str, keep: np.ndarray, seed: int) -> Any:
        settings = self.study.training_of(model)
        if settings.replace_over:
            raise InputError(
                "starts from another model's weights, and cannot be retrained as a shadow",
                field="audit.shadowed",
                value=model,
                fix="choose another model",
            )
        learnt = self.spots(model).subset(keep)
        if settings.teacher is not None:
            teacher, seen = self._shadow(settings.teacher, keep, seed), self.spots(settings.teacher).subset(keep)
            lesson = settings.teacher, teacher, settings.distil, seen, learnt.targets
            mixed = mixed_targets(self.study, *lesson, held_out=settings.distil_held_out)
            learnt = replace(learnt, targets=mixed)
        predictor = build(
            model, learnt.outputs, settings=settings, options=self.study.options_of(model), device=self.device
        )
        chosen = None
        if MODELS[model].kind == "network":
            why = f"a shadow of {model} takes over its number of epochs"
            chosen = trained_about(self.study, model, self.fold, why=why)["chosen"]
        predictor.fit(learnt, None, seed=seed, chosen=chosen)
        return predictor

    def _checked(self, keep: np.ndarray) -> np.ndarray:
        keep, sections = np.asarray(keep), self.spots().sections
        if keep.dtype != bool or keep.shape != sections.shape or not keep.any():
            raise InputError(
                "must say for every record whether a shadow model trains on it, and some must be used",
                field="keep",
                value=f"{keep.dtype} {keep.shape}",
                expected=f"bool ({len(sections)},)",
            )
        for section in np.unique(sections):
            own = keep[sections == section]
            if own.any() != own.all():
                raise InputError(
                    "splits a section, which is standardised by its own spots",
                    field="keep",
                    value=str(section),
                    expected="whole patients or sections",
                )
        return keep


def _split(study: Study, fold: str) -> Fold:
    if fold == FINAL:
        raise InputError(
            "nobody is held out from the models of this fold, so there is no non-member to compare with",
            field="fold",
            value=fold,
            fix="audit a fold that holds patients out",
        )
    if study.folds.scheme == BY_SECTION:
        raise InputError(
            "this study trains on other sections of the tested patient, so its test spots are members too",
            field="folds.scheme",
            value=BY_SECTION,
            fix="audit a study that holds patients out",
        )
    return load_fold(study.run.folds, fold)
