"""Bootstrap draws of many sections: only their mean over sections is kept, of each model and of each pair of models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

Key = tuple[str, str, str]
"""Transform, metric, model."""


class Draws:
    """Means over sections of every draw; a section that a draw cannot score is left out of that draw.

    Parameters
    ----------
    pairs
        (model, baseline) pairs whose differences are wanted.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = list(pairs)
        self._total: dict[tuple[str, ...], np.ndarray] = {}
        self._known: dict[tuple[str, ...], np.ndarray] = {}

    def add(self, section: dict[Key, np.ndarray]) -> None:
        """Take in one section: (draws,) scores by transform, metric and model; NaN where a draw has none."""
        by_model: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)
        for (transform, metric, model), scores in section.items():
            self._take((transform, metric, model), scores)
            by_model[transform, metric][model] = scores
        for (transform, metric), scores in by_model.items():
            for model, baseline in self._pairs:
                if model in scores and baseline in scores:
                    self._take((transform, metric, model, baseline), scores[model] - scores[baseline])

    def _take(self, key: tuple[str, ...], scores: np.ndarray) -> None:
        known = ~np.isnan(scores)
        self._total[key] = self._total.get(key, 0.0) + np.where(known, scores, 0.0)
        self._known[key] = self._known.get(key, 0) + known

    def mean(self, transform: str, metric: str, model: str, baseline: str | None = None) -> np.ndarray:
        """Return (draws,) the mean over sections of a model's score, or of its difference to a baseline's."""
        key = (transform, metric, model) if baseline is None else (transform, metric, model, baseline)
        known = self._known[key]
        return np.where(known > 0, self._total[key] / np.maximum(known, 1), np.nan)
