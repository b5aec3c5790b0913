"""What a stack sees of a spot: every family's prediction for it, put side by side by name, never by position.

For training sections these are the predictions of the inner folds, for test sections those of the outer fold. Before
anything is joined, the record of every model that predicted is looked at: it must have learnt neither from the section
that it predicts nor from a patient that the outer fold holds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.targets.transforms import output_names
from histocrypt.training.lineage import trained_about
from histocrypt.training.spots import spot_names
from histocrypt.training.stacking_inner import InnerFolds

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study import Study
    from histocrypt.targets.panels import Panel
    from histocrypt.training.folds import Fold


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
    from histocrypt.evaluation.truth import read_prediction

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
    from histocrypt.evaluation.truth import some

    values = np.full((len(names), len(transforms) * len(panel)), np.nan, dtype=np.float32)
    known = {name: row for row, name in enumerate(names.tolist())}
    filled = np.zeros(len(names), dtype=bool)
    for path, prediction in parts:
        columns = prediction.var_names.get_indexer(list(panel.genes))
        missing = [gene for gene, column in zip(panel.genes, columns, strict=True) if column < 0]
        if missing:
            msg = f"lacks names of the panel: {some(missing)}"
            raise InputError(msg, file=path, field="var", fix="train this model on this fold again")
        rows = np.array([known.get(name, -1) for name in prediction.obs_names.tolist()], dtype=int)
        wanted = rows >= 0
        if filled[rows[wanted]].any():
            msg = f"predicts spots that another inner fold predicts, too: {some(names[rows[wanted]])}"
            raise InputError(msg, file=path, field="obs")
        for i, transform in enumerate(transforms):
            if transform not in prediction.layers:
                msg = f"values of the transform {transform!r} are missing"
                raise InputError(msg, file=path, field="layers", fix="train this model on this fold again")
            layer = np.asarray(prediction.layers[transform])[wanted][:, columns]
            values[rows[wanted], i * len(panel) : (i + 1) * len(panel)] = layer
        filled[rows[wanted]] = True
    if not filled.all():
        msg = f"has no prediction for spots {some(names[~filled])}"
        raise InputError(msg, file=parts[0][0], field="obs", fix="train this model on this fold again")
    return values


def _check_unseen(study: Study, family: str, about: dict, outer: Fold, fold: Fold) -> None:
    """Refuse a model that learnt from a section it predicts for the stack, or from a held-out patient."""
    learnt_from = {*about.get("train_sections", []), *about.get("validation_sections", [])}
    seen = learnt_from & {*fold.test_sections, *outer.test_sections}
    if seen or not learnt_from:
        msg = f"{family} learnt from what it predicts for the stack: {sorted(seen)}"
        raise InputError(msg, file=study.run.model(family, fold.name), fix=f"train {family} on {fold.name} again")


def _spots_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the barcodes, patients and coordinates of a cleaned section; its counts are not opened."""
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            obs = read_elem(file["obs"])
            coords = np.asarray(read_elem(file["obsm/spatial"]), dtype=np.float64)
    except (OSError, KeyError) as error:
        msg = f"is not a preprocessed section ({error})"
        raise InputError(msg, file=path, fix="run the preprocessing again") from error
    return obs.index.to_numpy().astype(str), obs["patient"].to_numpy().astype(str), coords
