"""What the baselines share: one interface, and a standardisation that a section's own spots give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from histocrypt.models.spots import Spots

LEAST_SHARE = 0.25
"""A section's standard deviation counts as at least this share of the one within training sections."""


class Fitted(ABC):
    """A predictor that is fitted in closed form, without epochs.

    Arrays of the fitted state are named, and are used exactly as they are stored: a predictor rebuilt with
    ``cls(**config)`` and `load_state` gives the same predictions bit by bit.
    """

    def __init__(self, *, normalise_by_section: bool = True) -> None:
        self.normalise_by_section = normalise_by_section
        self._state: dict[str, np.ndarray] = {}

    @property
    def config(self) -> dict[str, Any]:
        """Constructor options, JSON-able."""
        return {"normalise_by_section": self.normalise_by_section}

    @abstractmethod
    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit to the training spots.

        Parameters
        ----------
        train
            Spots with targets.
        validation
            Not looked at: hyper-parameters come from inner cross-validation by patient (or section) on ``train``.
        seed
            Seed of whatever is random.
        chosen
            What an earlier fit chose; given in a refit on more spots, it is used instead of choosing again.

        Returns
        -------
        dict
            What was chosen, JSON-able.
        """

    @abstractmethod
    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32 predictions, in the units and the order of the targets it was fitted to.

        With ``normalise_by_section`` all spots of a section must be given at once: its own spots standardise it.
        """

    def state(self) -> dict[str, np.ndarray]:
        """Return the fitted arrays by name."""
        return dict(self._state)

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Take fitted arrays from `state`."""
        self._state = {name: np.ascontiguousarray(array) for name, array in state.items()}


def mean_and_sd(features: np.ndarray, sections: np.ndarray, *, by_section: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the (d,) float32 mean and standard deviation of training features, for `standardise`.

    With ``by_section`` the deviation is the one within sections, averaged over them.
    """
    values = np.asarray(features, dtype=np.float64)
    if by_section:
        variances = [values[sections == section].var(axis=0) for section in np.unique(sections)]
        sd = np.sqrt(np.mean(variances, axis=0))
    else:
        sd = values.std(axis=0)
    return values.mean(axis=0).astype(np.float32), np.where(sd > 1e-6, sd, 1.0).astype(np.float32)


def standardise(
    features: np.ndarray, sections: np.ndarray, mean: np.ndarray, sd: np.ndarray, *, by_section: bool
) -> np.ndarray:
    """Return (n, d) float32 z-scores of features.

    Parameters
    ----------
    features
        (n, d).
    sections
        (n,) section of each spot.
    mean, sd
        (d,), of the training spots: see `mean_and_sd`.
    by_section
        Whether each section is standardised with the mean and deviation of its own spots, which takes away what
        differs between centres and scanners and uses no label. A deviation below a quarter of the usual one is raised
        to it, so that a uniform section (or a section of one spot, which becomes zero) is not blown up.
    """
    if not by_section:
        return ((features - mean) / sd).astype(np.float32)
    scores = np.empty(features.shape, dtype=np.float32)
    for section in np.unique(sections):
        rows = sections == section
        own = features[rows].astype(np.float64)
        scores[rows] = (own - own.mean(axis=0)) / np.maximum(own.std(axis=0), LEAST_SHARE * sd)
    return scores


def inner_folds(spots: Spots, n: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, held out) index pairs for the choice of a hyper-parameter.

    Whole patients are held out; whole sections where there is one patient; runs of neighbouring spots (in the order of
    the file) where there is one section.
    """
    from sklearn.model_selection import GroupKFold, KFold

    for groups in (spots.patients, spots.sections):
        distinct = len(np.unique(groups))
        if distinct >= 2:
            return list(GroupKFold(n_splits=min(n, distinct)).split(groups, groups=groups))
    return list(KFold(n_splits=min(n, len(spots))).split(spots.names)) if len(spots) > 1 else []
