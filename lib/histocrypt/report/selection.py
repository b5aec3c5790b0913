"""Spots inside a lasso: what was measured there and what was predicted, as a summary, a table and a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.evaluation import wording
from histocrypt.evaluation.metrics import pearson
from histocrypt.evaluation.scores import title_of
from histocrypt.files import write_table

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.report.views import View

FEWEST = 3
"""Spots below which no correlation is given: of two it is 1 or -1 whatever they are."""


def inside(coords: np.ndarray, polygon: np.ndarray | None) -> np.ndarray:
    """Return which of (n, 2) places lie within the polygon of (k, 2) corners, as their numbers; without one, none."""
    from matplotlib.path import Path as Outline

    if polygon is None:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(Outline(polygon, closed=False).contains_points(coords))


def summary(view: View, rows: np.ndarray) -> pd.DataFrame:
    """Return one row for the spots inside and one for all of the section: how many, means, and Pearson's r."""
    import pandas as pd

    def of(which: np.ndarray) -> dict[str, float]:
        true, predicted = view.true[which], view.predicted[which]
        enough = len(which) >= FEWEST
        return {
            "spots": len(which),
            "mean measured": true.mean(),
            "mean predicted": predicted.mean(),
            "mean difference": (predicted - true).mean(),
            "r": float(pearson(true[:, None], predicted[:, None])[0]) if enough else np.nan,
        }

    return pd.DataFrame({"inside the lasso": of(rows), "whole section": of(np.arange(len(view.true)))}).T.astype(
        {"spots": int}
    )


def table(view: View, rows: np.ndarray) -> pd.DataFrame:
    """Return the spots inside, one a row; ``x_px`` and ``y_px`` are full-resolution pixels of the slide.

    ``transform`` names the units of ``measured`` and ``predicted``.
    """
    import pandas as pd

    x, y = (view.coords[rows] / view.tissue.scale).T
    names = {"section": view.section, "patient": view.patient, "barcode": view.barcodes[rows], "x_px": x, "y_px": y}
    names |= {"gene": view.gene, "symbol": view.symbol, "model": view.model, "transform": view.transform}
    return pd.DataFrame({**names, "measured": view.true[rows], "predicted": view.predicted[rows]})


def write(view: View, rows: np.ndarray, folder: Path) -> Path:
    """Write the spots inside as CSV into a folder and return the file: a new one each time, nothing is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{view.section}_{view.symbol}_{view.model}")
    number = 1
    while True:
        path = folder / f"{stem}_{number}.csv"
        try:
            path.open("x").close()  # taken before it is written, so that two viewers never share a name
        except FileExistsError:
            number += 1
            continue
        write_table(path, table(view, rows), index=False)
        return path


def sentence(view: View, rows: np.ndarray) -> str:
    """Return what the spots inside say, in words."""
    if not len(rows):
        return "No spot lies inside the lasso."
    own = summary(view, rows).iloc[0]
    few = f" Of fewer than {FEWEST} spots no correlation is given." if len(rows) < FEWEST else ""
    measured, predicted, r = (wording.number(own[name], 2) for name in ("mean measured", "mean predicted", "r"))
    return (
        f"Inside the lasso: {wording.plural(len(rows), 'spot')} of {len(view.true)}. Mean of {view.symbol}: {measured} "
        f"measured, {predicted} predicted by {title_of(view.model)}; r = {r}.{few}"
    )
