"""The data of one fold: spots with their targets, and what puts these into the units of the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.models.spots import Spots
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import TargetStatistics
from histocrypt.training.folds import Fold
from histocrypt.training.prepare import PANEL, TARGETS
from histocrypt.training.spots import load_spots

if TYPE_CHECKING:
    from histocrypt.study import Study


@dataclass(frozen=True)
class FoldData:
    """One fold's spots, targets in the transforms' units. The test part has no targets at all."""

    fold: Fold
    panel: Panel
    train: Spots
    validation: Spots | None
    test: Spots | None


def load_training(study: Study, fold: Fold, *, side: int | None = None) -> FoldData:
    """Load the training and validation spots of a fold; its test sections are not opened."""
    panel = Panel.load(study.run.fold(fold.name) / PANEL)

    def part(sections: tuple[str, ...]) -> Spots | None:
        return load_spots(study, fold, sections, panel=panel, with_targets=True, side=side) if sections else None

    return FoldData(fold, panel, part(fold.train_sections), part(fold.validation_sections), None)


def load_test(study: Study, data: FoldData, *, side: int | None = None, with_targets: bool = False) -> Spots:
    """Load the spots of a fold's test sections, without targets unless asked for them."""
    return load_spots(study, data.fold, data.fold.test_sections, panel=data.panel, with_targets=with_targets, side=side)


def scaling_of(study: Study, fold: Fold) -> TargetStatistics:
    """Return what puts targets into the loss's units; neutral where the study does not standardise."""
    found = TargetStatistics.load(study.run.fold(fold.name) / TARGETS)
    if study.target.standardise:
        return found
    mean = found.mean if study.target.centre_by_section else np.zeros_like(found.mean)
    return TargetStatistics(found.outputs, mean, np.ones_like(found.sd))


def scaled(study: Study, scaling: TargetStatistics, spots: Spots | None) -> Spots | None:
    """Return spots with their targets as the loss sees them."""
    if spots is None:
        return None
    if spots.outputs != scaling.outputs:
        msg = "target statistics are of other outputs than the spots"
        raise InputError(msg, field=TARGETS, fix="run preprocessing again")
    sections = spots.sections if study.target.centre_by_section else None
    return replace(spots, targets=scaling.standardise(spots.targets, sections=sections))


def joined(first: Spots, second: Spots) -> Spots:
    """Return the spots of both, first's before second's."""

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    fields = ("names", "sections", "patients", "tiles", "depth", "targets")
    features = None
    if first.features and second.features:

        def features(encoder: str) -> np.ndarray:
            return np.concatenate([first.features(encoder), second.features(encoder)])

    known = first.measured is not None and second.measured is not None
    measured = first.measured.joined(second.measured) if known else None
    return replace(first, **{name: both(name) for name in fields}, features=features, measured=measured)
