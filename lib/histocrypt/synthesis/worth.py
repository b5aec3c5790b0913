"""How much real tissue drawn tissue is worth: a margin that is held or not, and a learning curve over real tiles.

"As good as real" is a claim about a difference. It is made only where the whole interval of the paired difference lies
above minus `MARGIN`, as in trials of non-inferiority; where the interval holds the margin, nothing is decided. Nor is
anything won where real tiles themselves teach next to nothing: what cannot be told from guessing is equalled by
anything. As in such trials (FDA, "Non-Inferiority Clinical Trials to Establish Effectiveness", 2016), the margin may be
at most half of what real tiles surely gain over a guess, the lower end of their interval.

The curve says the same in another coin: with how many real tiles the same learner would score as with drawn ones alone.
Tiles come by the slide, since that is how they come to a hospital: slides in random order, then tiles of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 0.03
"""What drawn tiles may lose beside real ones and still be said to do as well, in units of the score."""
HELD, SLIGHT, SHORT, OPEN, EMPTY, UNKNOWN = (
    f"within {MARGIN:g} of real",
    f"within {MARGIN:g}, but real gains too little over a guess",
    f"short of real by more than {MARGIN:g}",
    "not decided",
    "nothing to match: real does not beat guessing",
    "no score",
)
REAL, COLOUR_REAL = "real", "colour_only"
"""The rows that others are compared with."""
REPEAT = "/"
"""Parts the name of a row from the number of its repeat: ``real_10/2``."""


def against(name: str) -> str:
    """Return the row of real images that a row is compared with: what sees colour alone, with itself."""
    return COLOUR_REAL if name.startswith("colour_") and name != COLOUR_REAL else REAL


def verdict(low: float, high: float, *, real_low: float, guess: float) -> str:
    """Return in words whether drawn tiles do as well as real ones.

    Parameters
    ----------
    low, high
        Interval of the paired difference, drawn less real.
    real_low
        Lower end of the interval of the score of real tiles.
    guess
        What a guess scores: 0 of a correlation, 0.5 of an area under the curve.
    """
    if not np.isfinite([low, high, real_low]).all():
        return UNKNOWN
    if real_low <= guess:
        return EMPTY
    if low >= -MARGIN:
        return HELD if real_low - guess >= 2 * MARGIN else SLIGHT
    return SHORT if high < -MARGIN else OPEN


def subsets(sections: np.ndarray, sizes: Sequence[int], *, repeats: int, seed: int) -> dict[str, np.ndarray]:
    """Return the rows of random subsets of tiles, slide by slide, by name ``<size>/<repeat>``.

    Sizes that are not below the number of tiles are left out. Of one repeat, smaller subsets lie in larger ones.

    Parameters
    ----------
    sections
        (n,) str, the slide of each tile.
    """
    if any(size < 2 for size in sizes):
        raise InputError(
            "a learning curve needs at least two tiles", field="sizes", value=min(sizes), expected="2, ..."
        )
    found = {}
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        slides = rng.permutation(np.unique(sections))
        order = np.concatenate([rng.permutation(np.flatnonzero(sections == slide)) for slide in slides])
        for size in sizes:
            if size < len(sections):
                found[f"{size}{REPEAT}{repeat}"] = np.sort(order[:size])
    return {name: found[name] for name in sorted(found, key=lambda name: (size_of(name), name))}


def size_of(name: str) -> int:
    """Return the number of tiles in the name of a row, ``<learner>_<size>`` with or without a repeat."""
    return int(name.partition(REPEAT)[0].rpartition("_")[2])


def over_repeats(
    scores: Mapping[str, Mapping[str, float]], drawn: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Average the repeats of each row, in ``scores`` and in every draw; a repeat without a score is left out.

    Draws of a row then vary with the tested tiles alone; how much the choice of tiles matters is averaged away.
    """
    rows = dict.fromkeys(name.partition(REPEAT)[0] for name in scores)
    of = {row: [name for name in scores if name.partition(REPEAT)[0] == row] for row in rows}
    names = {row: dict.fromkeys(score for name in of[row] for score in scores[name]) for row in rows}

    def mean(parts: list[np.ndarray | float]) -> np.ndarray:
        stacked = np.asarray(parts, dtype=np.float64)
        known = np.isfinite(stacked)
        total = np.where(known, stacked, 0).sum(axis=0)
        return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)

    def each(values: Mapping[str, Mapping[str, np.ndarray | float]], row: str, score: str) -> np.ndarray:
        return mean([values[name][score] for name in of[row] if score in values[name]])

    return (
        {row: {score: float(each(scores, row, score)) for score in names[row]} for row in rows},
        {row: {score: each(drawn, row, score) for score in names[row]} for row in rows},
    )


@dataclass(frozen=True)
class Worth:
    """The number of real tiles that teach as much; `low` and `high` bound it over the draws of the tested tiles.

    0 stands for "fewer than the smallest set", infinity for "more than all of them".
    """

    tiles: float
    low: float
    high: float
    smallest: int
    all: int

    def __str__(self) -> str:
        """Return it in words, as tables show it."""
        value, low, high = (self._said(one) for one in (self.tiles, self.low, self.high))
        return value if value == low == high else f"{value} ({low} to {high})"

    def _said(self, tiles: float) -> str:
        if not np.isfinite(tiles):
            return "unknown" if np.isnan(tiles) else f"more than {self.all}"
        return f"fewer than {self.smallest}" if tiles < self.smallest else f"{tiles:.0f}"


def worth(
    sizes: Sequence[int], curve: np.ndarray, score: float, *, draws: tuple[np.ndarray, np.ndarray] | None = None
) -> Worth:
    """Return how many real tiles score as much.

    The curve is made to rise (its largest value so far), and is straight between sizes on a logarithmic scale.

    Parameters
    ----------
    sizes
        (k,) numbers of real tiles, rising; the last is all of them.
    curve
        (k,) scores of as many real tiles.
    score
        Of drawn tiles.
    draws
        The curve (draws, k) and the score (draws,) in every draw of the bootstrap; 95 % of what they say is the range.
    """
    value = _crossing(np.asarray(sizes, float), np.asarray(curve, float), score)
    low = high = float("nan")
    if draws is not None:
        each = np.array([_crossing(np.asarray(sizes, float), *one) for one in zip(*draws, strict=True)])
        each = each[~np.isnan(each)]
        if each.size:  # by order, not by interpolation: infinity cannot be interpolated
            low, high = np.quantile(each, [0.025, 0.975], method="nearest")
    return Worth(float(value), float(low), float(high), int(sizes[0]), int(sizes[-1]))


def _crossing(sizes: np.ndarray, curve: np.ndarray, score: float) -> float:
    known = np.isfinite(curve)
    if not known.any() or not np.isfinite(score):
        return float("nan")
    sizes, rising = sizes[known], np.maximum.accumulate(curve[known])
    if score < rising[0]:
        return 0.0
    if score > rising[-1]:
        return float("inf")
    first = int(np.argmax(rising >= score))
    if first == 0 or rising[first] == rising[first - 1]:
        return float(sizes[first])
    share = (score - rising[first - 1]) / (rising[first] - rising[first - 1])
    return float(np.exp(np.interp(share, [0, 1], np.log(sizes[first - 1 : first + 1]))))


def across(
    tables: Sequence[pd.DataFrame], patients: Sequence[int], scores: Sequence[str], *, guess: str
) -> pd.DataFrame:
    """Return one table of use for several folds, whose test patients are all different.

    Scores and differences are means over patients. Folds are independent given what was trained, so that the distances
    of an interval's ends add up as squares. Verdicts are those of the mean; worth, which depends on how many real tiles
    a fold has, is left to the folds.

    Parameters
    ----------
    tables
        Of `utility.utility_table` or `expression_use.expression_table`; rows that one of them lacks are left out.
    patients
        Tested in each.
    scores
        To keep.
    guess
        The row that guesses.
    """
    import pandas as pd

    share = np.array(patients, dtype=float) / np.sum(patients)
    names = [name for name in tables[0].index if all(name in table.index for table in tables)]
    first = tables[0].loc[names]
    counted = "images" if "images" in first else "tiles"
    found = pd.DataFrame({"title": first["title"], "role": first["role"]}, index=first.index)
    found[counted] = share @ np.stack([table.loc[names, counted].to_numpy(float) for table in tables])
    for score in (*scores, *(f"{one}_vs_real" for one in scores)):
        value, low, high = (
            np.stack([table.loc[names, f"{score}{end}"].to_numpy(float) for table in tables])
            for end in ("", "_low", "_high")
        )
        found[score] = share @ value
        found[f"{score}_low"] = found[score] - np.sqrt(share**2 @ (value - low) ** 2)
        found[f"{score}_high"] = found[score] + np.sqrt(share**2 @ (high - value) ** 2)
    for score in scores:
        asked = first[f"{score}_verdict"].notna()
        found[f"{score}_verdict"] = None
        for name in first.index[asked]:
            low, high = found.loc[name, f"{score}_vs_real_low"], found.loc[name, f"{score}_vs_real_high"]
            real_low, least = found.loc[against(name), f"{score}_low"], found.loc[guess, score]
            found.loc[name, f"{score}_verdict"] = verdict(low, high, real_low=real_low, guess=least)
    return found
