"""Rank averaging: the mean of the families' ranks, given back in the units of the transform. Nothing is learnt.

Across a section's spots, each family ranks the spots for each gene; ranks are averaged over families, and the spot of
the k-th smallest average gets the mean of the families' k-th smallest predictions (the reference distribution of
quantile normalisation, Bolstad et al. 2003). So the order of spots is the ranks' own, and the values are in units that
errors can be computed in. Transforms that are ranks within a spot are averaged as they are: within the spot, as ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histocrypt.training.stacking_inputs import LevelOne

WITHIN_SPOT = ("rank", "spot_rank")
"""Transforms whose values are ranks over the panel within a spot."""


def rank_average(level: LevelOne) -> np.ndarray:
    """Return (n, n_outputs) float32: the rank average of all families, section by section.

    Parameters
    ----------
    level
        The families' predictions, in whole sections: a section's spots are ranked among themselves.
    """
    families = [level.families[name].astype(np.float64) for name in sorted(level.families)]
    within = np.array([output.split(":", 1)[0] in WITHIN_SPOT for output in level.outputs])
    averaged = np.empty((len(level), len(level.outputs)))
    for transform in dict.fromkeys(output.split(":", 1)[0] for output in level.outputs):
        columns = np.array([output.split(":", 1)[0] == transform for output in level.outputs])
        if within[columns].any():
            averaged[:, columns] = within_spots([family[:, columns] for family in families])
            continue
        for section in np.unique(level.sections):
            block = np.ix_(level.sections == section, columns)
            averaged[block] = across_spots([family[block] for family in families])
    return averaged.astype(np.float32)


def across_spots(families: list[np.ndarray]) -> np.ndarray:
    """Return the rank average of several (n, g) predictions for one section, ranked over spots, in their own units."""
    from scipy.stats import rankdata

    # Ranks are multiples of one half, so their sum is exact: ties stay ties, whatever the order of the families.
    ranks = rankdata(sum(rankdata(family, axis=0) for family in families), axis=0)
    quantiles = np.mean([np.sort(family, axis=0) for family in families], axis=0)
    places = np.arange(1, len(ranks) + 1)
    return np.column_stack([np.interp(ranks[:, j], places, quantiles[:, j]) for j in range(ranks.shape[1])])


def within_spots(families: list[np.ndarray]) -> np.ndarray:
    """Return the mean rank over families of several (n, g) predictions, ranked over the panel within each spot."""
    from scipy.stats import rankdata

    return np.mean([rankdata(family, axis=1) for family in families], axis=0)
