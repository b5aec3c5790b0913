"""Pictures of what a multi-task model says beyond the panel. Very specific, not for general use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation import maps
from histocrypt.evaluation.backdrop import backdrop
from histocrypt.evaluation.figures import CYCLE, INK, MUTED, canvas, style
from histocrypt.evaluation.multitask import CP10K
from histocrypt.evaluation.truth import as_mapping, join

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

BINS = np.linspace(-1, 1, 61)


def signal(table: pd.DataFrame, *, level: float) -> Figure:
    """Draw, patient by patient, the correlations of all auxiliary genes and of those better than chance."""
    patients = sorted(table["patient"].unique())
    with style():
        columns = min(3, len(patients))
        rows = -(-len(patients) // columns)
        figure, axes = canvas(rows, columns, figsize=(3.1 * columns, 2.2 * rows + 0.3), squeeze=False, sharex=True)
        for axis in axes.ravel()[len(patients) :]:
            axis.set_axis_off()
        for axis, patient in zip(axes.ravel(), patients, strict=False):
            own = table[table["patient"] == patient]
            good = own["q"] <= level
            axis.hist(own["pearson"], bins=BINS, color="#c9d3d8", label="all")
            axis.hist(own.loc[good, "pearson"], bins=BINS, color=CYCLE[0], label="better than chance")
            axis.axvline(0, color=MUTED, lw=0.8)
            axis.set_title(f"{patient}: {int(good.sum()):,} of {len(own):,}")
            reach = max(0.3, float(own["pearson"].abs().max()) * 1.05)
            axis.set_xlim(-reach, reach)
        axes[0, 0].legend(fontsize=7.5)
        figure.supxlabel("mean correlation over the patient's sections", fontsize=9)
        figure.supylabel("auxiliary genes", fontsize=9)
    return figure


def smoothing(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw correlation, variance ratio and Moran's I with and without the spatial term."""
    names = list(scores)
    shown = [
        ("pearson", "mean correlation"),
        ("variance_ratio", "variance, predicted / measured"),
        ("moran", "Moran's I"),
    ]
    with style():
        figure, axes = canvas(1, 3, figsize=(8.4, 2.3))
        for axis, (key, title) in zip(axes, shown, strict=True):
            values = [scores[name]["moran_predicted" if key == "moran" else key] for name in names]
            axis.bar(names, values, color=[MUTED, *CYCLE][: len(names)], width=0.55)
            for place, value in enumerate(values):
                axis.annotate(f"{value:.3f}", (place, max(value, 0)), (0, 2), textcoords="offset points", ha="center")
            if key == "moran":
                measured = scores[names[0]]["moran_measured"]
                axis.axhline(measured, color=INK, lw=1, ls="--", label=f"measured {measured:.3f}")
                axis.legend(loc="lower left", frameon=True, fontsize=8)
            axis.margins(y=0.18)
            axis.set_title(title)
    return figure


def marker_maps(
    heads: AnnData, section: AnnData, name: str, tiles: Path, table: pd.DataFrame, *, genes: int = 3
) -> Figure:
    """Map the auxiliary genes of a section that are predicted best, beside what was measured."""
    one = join(heads, section, name, transforms=[CP10K])
    ranked = table.sort_values("pearson", ascending=False)
    wanted = [gene for gene in ranked["gene"] if gene in set(one.genes)][:genes]
    panels: list[dict[str, Any]] = []
    for gene in wanted:
        column = int(np.flatnonzero(one.genes == gene)[0])
        r = float(ranked.set_index("gene").loc[gene, "pearson"])
        values = {"true": one.true[CP10K][:, column], "predicted": one.predicted[CP10K][:, column]}
        panels.append({"title": f"{one.symbols[column]}\nr = {r:.2f}", **values})
    image, scale = backdrop(section, tiles)
    um = float(as_mapping(section.uns.get("preprocessing")).get("um_per_px", 1.0))
    coords = one.coords * scale
    return maps.side_by_side(panels, coords, um_per_unit=um / scale, spacing=maps.pitch(coords), image=image)
