"""Pictures of a stack: how its families do where nobody saw the answer, and which of them it relies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation.figures import INK, MUTED, ROLE, canvas, style
from histocrypt.evaluation.scores import title_of
from histocrypt.models.registry import STACKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def families(said: Mapping[str, Any]) -> Figure:
    """Draw, family by family, the validation score and what the stack loses without the family.

    Parameters
    ----------
    said
        The content of ``stacking/<fold>.json``.
    """
    scores, reliance = said["validation_pcc"], said["reliance"]
    names = sorted(scores, key=lambda name: scores[name])
    places = np.arange(len(names))
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(9, 0.34 * len(names) + 1.3), sharey=True)
        for place, name in zip(places, names, strict=True):
            stack = name in STACKS
            left.plot(scores[name], place, "D" if stack else "o", color=ROLE["model"] if stack else INK, markersize=6)
        left.axvline(0, color=MUTED, linewidth=0.8)
        left.set_yticks(places, [title_of(name) for name in names])
        left.set_title("On validation sections, predicted out of fold")
        left.set_xlabel("mean correlation (diamonds: stacks)")
        known = [name for name in names if name in reliance]
        right.barh([names.index(name) for name in known], [reliance[name] for name in known], 0.55, color=ROLE["model"])
        right.axvline(0, color=MUTED, linewidth=0.8)
        right.set_title("What the stack loses without the family")
        right.set_xlabel("mean correlation lost")
    return figure
