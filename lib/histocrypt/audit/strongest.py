"""Several attacks on the same records: which is the strongest, and what its interval is once that is allowed for.

Who tries seven attacks and shows the best has seven chances to be lucky. So the intervals of all are widened together,
until all of them hold at once in 95 % of the draws, each by the same share of its own draws (Beran, "Balanced
simultaneous confidence sets", JASA 1988). They then hold of whichever attack is picked, however it is picked. Attacks
agree much, so this costs less than dividing 5 % by their number; no patient has to be kept apart to choose on. One
attack alone keeps its interval.

The draws must be the same patients for all attacks, as `membership.judge` and `shadow.as_targets` make them from the
same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from histocrypt.audit.controls import Shuffled

COVERAGE = 0.95


def simultaneous(drawn: Mapping[str, np.ndarray], *, coverage: float = COVERAGE) -> dict[str, tuple[float, float]]:
    """Return intervals that hold of all attacks at once.

    Parameters
    ----------
    drawn
        (draws,) figures of each attack, by name; draw by draw of the same patients.
    coverage
        Share of the draws in which no figure lies outside its interval.

    Raises
    ------
    InputError
        If there is none, or attacks have different numbers of draws.
    """
    sizes = {len(values) for values in drawn.values()}
    if len(sizes) != 1 or not min(sizes):
        raise InputError(
            "attacks differ in their number of draws", field="drawn", value=sorted(sizes), expected="one number"
        )
    values = np.stack(list(drawn.values()))  # (attacks, draws)
    tail = (1 - coverage) / 2
    if len(values) > 1:  # how far out each draw lies among its attack's own, on its nearer side; the farthest counts
        sides = np.concatenate([values, -values])
        out = np.stack([np.sort(side).searchsorted(side, "right") for side in sides]).min(axis=0) / values.shape[1]
        tail = min(tail, float(np.quantile(out, 1 - coverage)))
    low, high = np.quantile(values, [tail, 1 - tail], axis=1)
    return {name: (float(a), float(b)) for name, a, b in zip(drawn, low, high, strict=True)}


def best_dealt(real: Mapping[str, float], dealt: Mapping[str, Shuffled]) -> float:
    """Return the share of deals in which the best attack does as well as the best one really did, as a p-value.

    Parameters
    ----------
    real
        AUC of each attack.
    dealt
        Of each attack, from `controls.shuffled` on the same records with the same seed: deal by deal alike for all.
    """
    best = np.stack([dealt[name].aucs for name in real]).max(axis=0)
    at_least = int((best >= max(real.values()) - 1e-12).sum())
    # The list of all ways holds the real one; drawn ones need it added.
    listed = all(dealt[name].all_ways for name in real)
    return at_least / len(best) if listed else (at_least + 1) / (len(best) + 1)
