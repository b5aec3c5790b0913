"""Predictions for a fold's own training sections, by models that saw neither them nor the fold's test patients.

A stack learns how far to trust each model family, and it may learn that only where a family had to guess. So each fold
(the outer one) is split once more: its training patients are dealt into a few parts, and every family is trained once
without each part, which it then predicts. An inner fold's target statistics and stain reference come from its own
training patients. From the outer fold it has the panel, so that all inner models predict the same names, and the
number of epochs of networks, which the outer fold's validation patient chose. None of that ever saw a test patient.

What a stack sees of a spot is every family's prediction for it, put side by side by name, never by position: for
training sections those of the inner folds, for test sections those of the outer fold. Before anything is joined, the
record of every model that predicted is looked at: it must have learnt neither from the section that it predicts nor
from a patient that the outer fold holds out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.fold_statistics import PANEL, prepare_fold
from histocrypt.data.folds import FINAL, Fold, inner_parts, load_fold
from histocrypt.data.load import load_training, spot_names
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json
from histocrypt.pipeline.checkpoints import trained_about
from histocrypt.pipeline.predictions import read_prediction, some
from histocrypt.pipeline.train import TrainResult, train_one
from histocrypt.predictors.registry import BASELINES, MODELS, tile_side
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import output_names

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study import Study


@dataclass(frozen=True)
class InnerFolds:
    """How a fold's training sections are split once more."""

    outer: Fold
    folds: tuple[Fold, ...]
    """Without validation sections; their test sections are, together, the training sections of the outer fold."""
    by: str
    """``patient``, or ``section`` where one training patient is left (or the study holds out sections)."""

    @property
    def sentence(self) -> str:
        """What a reader has to know about the nesting."""
        parts = f"{len(self.folds)} parts"
        if self.by == "patient":
            return f"The training patients were dealt into {parts}; each family was trained once without each part."
        return (
            f"The training sections were dealt into {parts}, since they cannot be told apart by patient: the models "
            "that predicted a section for the stack had seen other sections of its patient, so the stack learnt from "
            "predictions that are better than those for a new patient."
        )


def inner_folds(study: Study, fold: str) -> InnerFolds:
    """Return the inner folds of a fold; the same for every call, whatever was trained.

    Raises
    ------
    InputError
        If the study does not stack, or the fold is unknown or ``final``.
    """
    if study.stacking is None:
        raise InputError("this study has no stack", field="stacking", fix="add `stacking: {}` to the study file")
    if fold == FINAL:
        raise InputError(
            "the fold final has no stack: nothing is held out from its models",
            field="fold",
            value=fold,
            fix="choose a fold that holds patients out",
        )
    outer = load_fold(study.run.folds, fold)
    patients = read_json(study.run.folds)["patients"]
    held_out, by = inner_parts(outer, patients, number=study.stacking.inner_folds, scheme=study.folds.scheme)
    folds = [
        Fold(
            name=study.run.inner(outer.name, number),
            test_patients=tuple(sorted({patients[section] for section in test})) if by == "patient" else (),
            train_sections=tuple(section for section in outer.training_sections if section not in test),
            validation_sections=(),
            test_sections=test,
        )
        for number, test in enumerate(held_out, start=1)
    ]
    return InnerFolds(outer, tuple(folds), by)


def train_inner(study: Study, model: str, fold: str, *, device: str | None = None) -> list[TrainResult]:
    """Train a model on a fold's inner folds and write ``predictions/<model>/<fold>/inner_<n>.test.h5ad``.

    Networks train for as many epochs as the outer fold chose, without validation. The models themselves are not kept,
    but for what ``model.json`` says of them, and for teachers, whose inner students need them. A call that was killed
    goes on, when repeated, after the last finished epoch.

    Parameters
    ----------
    study
        The study; ``fold`` is trained, and so are the inner folds of the model's teacher.
    model
        A model that takes part in the stack, or ``baselines`` for all baselines that do.
    fold
        Name of an outer fold.
    device
        Torch device of networks; the best one if not given.

    Returns
    -------
    list of TrainResult
        One per model and inner fold.

    Raises
    ------
    InputError
        If the fold is unknown or ``final``, the model takes no part, or the outer fold (or a teacher) is not trained.
    """
    from tqdm.auto import tqdm

    inner = inner_folds(study, fold)
    names = [name for name in study.inner_models if name == model or (model == "baselines" and name in BASELINES)]
    if not names:
        raise unknown_name("model of the stack", model, [*study.inner_models, "baselines"])
    chosen = {name: _epochs(study, name, inner.outer) for name in names}
    prepare_inner(study, inner)
    results = []
    for part in tqdm(inner.folds, desc=f"{model} without each part of {fold}", unit="part"):
        loaded: dict[int | None, Any] = {}
        for name in names:
            side = tile_side(name, study.training_of(name))
            if side not in loaded:
                loaded = {side: load_training(study, part, side=side)}
            data = loaded[side]
            results.append(train_one(study, name, data, chosen=chosen[name], device=device, keep_state=True))
    teachers = {study.teacher_of(name) for name in study.model_names}
    for result in results:
        shutil.rmtree(result.folder / "last", ignore_errors=True)
        if result.model not in teachers:
            (result.folder / "weights.safetensors").unlink()
    return results


def prepare_inner(study: Study, inner: InnerFolds) -> None:
    """Write ``folds/<fold>/inner_<n>/`` from the inner training patients' files; the panel is the outer fold's.

    Calls that run at the same time write the same bytes.
    """
    panel = Panel.load(study.run.fold(inner.outer.name) / PANEL)
    for part in inner.folds:
        prepare_fold(study, part, panel=panel)


def _epochs(study: Study, model: str, outer: Fold) -> dict[str, Any] | None:
    """Return what the outer fold chose for a network; what is fitted in closed form chooses for itself."""
    if MODELS[model].kind != "network":
        return None
    why = f"an inner training of {model} takes over its fold's number of epochs"
    return trained_about(study, model, outer, why=why)["chosen"]


@dataclass(frozen=True)
class LevelOne:
    """The families' predictions for the same spots and outputs, in the transforms' units."""

    names: np.ndarray
    """(n,) str, ``"<section>:<barcode>"``."""
    sections: np.ndarray
    """(n,) str."""
    patients: np.ndarray
    """(n,) str."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    outputs: tuple[str, ...]
    """``"<transform>:<name>"``."""
    families: dict[str, np.ndarray]
    """(n, len(outputs)) float32 by family."""

    def __len__(self) -> int:
        return len(self.names)

    def of(self, sections: Sequence[str]) -> LevelOne:
        """Return the spots of some sections."""
        rows = np.isin(self.sections, list(sections))
        parts = {key: getattr(self, key)[rows] for key in ("names", "sections", "patients", "coords")}
        return LevelOne(**parts, outputs=self.outputs, families={key: one[rows] for key, one in self.families.items()})


def level_one_of_training(study: Study, inner: InnerFolds, panel: Panel) -> LevelOne:
    """Return every family's out-of-fold predictions for the training sections of the outer fold.

    Raises
    ------
    InputError
        If a family is not trained on an inner fold, learnt from what it predicts, or lacks a spot or a name.
    """
    return _level_one(study, inner.outer, inner.folds, inner.outer.training_sections, panel)


def level_one_of_test(study: Study, inner: InnerFolds, panel: Panel) -> LevelOne:
    """Return every family's ordinary predictions for the test sections of the outer fold; no count is read."""
    return _level_one(study, inner.outer, (inner.outer,), inner.outer.test_sections, panel)


def _level_one(study: Study, outer: Fold, folds: Sequence[Fold], sections: Sequence[str], panel: Panel) -> LevelOne:
    spots = [_spots_of(study.run.section(section)) for section in sections]
    names = np.concatenate([spot_names(section, one[0]) for section, one in zip(sections, spots, strict=True)])
    found = {}
    for family in study.families:
        parts = []
        for fold in folds:
            about = trained_about(study, family, fold, why=f"the stack of {outer.name} uses {family}")
            _check_unseen(study, family, about, outer, fold)
            fix = f"train {family} on {fold.name} again"
            path = study.run.prediction(family, fold.name)
            parts.append((path, read_prediction(path, fix=fix)))
        found[family] = joined_by_name(parts, names=names, panel=panel, transforms=study.target.transforms)
    return LevelOne(
        names=names,
        sections=np.repeat(np.array(sections, dtype=str), [len(one[0]) for one in spots]),
        patients=np.concatenate([one[1] for one in spots]),
        coords=np.concatenate([one[2] for one in spots]),
        outputs=output_names(study.target.transforms, panel.genes),
        families=found,
    )


def joined_by_name(
    parts: Sequence[tuple[Path, AnnData]], *, names: np.ndarray, panel: Panel, transforms: Sequence[str]
) -> np.ndarray:
    """Return one family's predictions as (n, len(transforms) * g) float32, whatever the order in its files.

    Parameters
    ----------
    parts
        Prediction files with their content; each spot in one of them.
    names
        (n,) the spots that are wanted, in the order wanted.
    panel
        The names that are wanted.
    transforms
        The layers that are wanted.

    Raises
    ------
    InputError
        If a spot is in none or in two of the files, or a panel name or a transform is missing.
    """
    import pandas as pd

    again = "train this model on this fold again"
    frames: list[pd.DataFrame] = []
    for path, prediction in parts:
        missing = [gene for gene in panel.genes if gene not in prediction.var_names]
        if missing:
            raise InputError(f"lacks names of the panel: {some(missing)}", file=path, field="var", fix=again)
        absent = [transform for transform in transforms if transform not in prediction.layers]
        if absent:
            raise InputError(f"lacks the transforms {some(absent)}", file=path, field="layers", fix=again)
        part = prediction[prediction.obs_names.isin(names), list(panel.genes)]
        twice = [name for frame in frames for name in frame.index.intersection(part.obs_names)]
        if twice:
            raise InputError(
                f"predicts spots that another inner fold also predicts: {some(twice)}", file=path, field="obs"
            )
        values = np.hstack([np.asarray(part.layers[transform]) for transform in transforms])
        frames.append(pd.DataFrame(values, index=part.obs_names))
    joined = pd.concat(frames).reindex(names)
    lost = joined.index[joined.isna().any(axis=1)]
    if len(lost):
        raise InputError(f"has no prediction for spots {some(lost)}", file=parts[0][0], field="obs", fix=again)
    return joined.to_numpy(np.float32)


def _check_unseen(study: Study, family: str, about: dict, outer: Fold, fold: Fold) -> None:
    """Refuse a model that learnt from a section it predicts for the stack, or from a held-out patient."""
    learnt_from = {*about.get("train_sections", []), *about.get("validation_sections", [])}
    seen = learnt_from & {*fold.test_sections, *outer.test_sections}
    if seen or not learnt_from:
        raise InputError(
            f"{family} was trained on spots that it predicts for the stack: {sorted(seen)}",
            file=study.run.model(family, fold.name),
            fix=f"train {family} on {fold.name} again",
        )


def _spots_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the barcodes, patients and coordinates of a cleaned section; its counts are not opened."""
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            obs = read_elem(file["obs"])
            coords = np.asarray(read_elem(file["obsm/spatial"]), dtype=np.float64)
    except (OSError, KeyError) as error:
        raise InputError(
            f"is not a preprocessed section ({error})", file=path, fix="run the preprocessing again"
        ) from error
    return obs.index.to_numpy().astype(str), obs["patient"].to_numpy().astype(str), coords
