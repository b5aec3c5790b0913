"""How much of each gene sequencing depth and tissue density alone explain.

A spot with more molecules has more of every gene, and spots on dense tissue have more molecules. What depth and density
explain, a model can score with without knowing anything of the gene. The share explained is cross-validated over
blocks of neighbouring spots, so that smooth tissue does not count twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Literal

import numpy as np

from histocrypt.errors import InputError
from histocrypt.figure_style import CYCLE, MUTED, VALUES, canvas, style
from histocrypt.spatial import spot_pitch, squares
from histocrypt.targets.transforms import transform

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

    from histocrypt.sections.section import Section

RAW, NORMALISED = "log1p", "log1p_cp10k"
TITLES = {
    "mean_count": "mean count",
    f"{RAW}:depth": "raw: depth",
    f"{RAW}:depth_and_density": "raw: depth + density",
    f"{NORMALISED}:depth": "normalised: depth",
    f"{NORMALISED}:depth_and_density": "normalised: depth + density",
}
"""Columns of `over_sections` as people read them."""
BLOCK = 3.0
"""Side of a block, in pitches."""
FOLDS = 5
LEAST_SPOTS = 30
LEAST_DETECTED = 0.1
"""Share of a section's spots that must have a gene for it to take part."""
MOST_GENES = 2000
"""The most abundant ones of a section."""


@dataclass(frozen=True)
class Confounding:
    """Shares of variance explained in one section, by name of what is explained. Negative: worse than the mean."""

    section: str
    genes: pd.DataFrame
    """Index gene id; columns symbol, mean_count and ``<transform>:<depth or depth_and_density>``."""
    cells: pd.DataFrame
    """Index ``<matrix>:<cell type>``; columns depth and depth_and_density. Empty where the section carries none."""


def explained(features: np.ndarray, targets: np.ndarray, blocks: np.ndarray, *, folds: int = FOLDS) -> np.ndarray:
    """Return the cross-validated share of variance that a least-squares fit explains.

    Parameters
    ----------
    features
        (n, p) what explains; each enters with its square.
    targets
        (n, g) what is explained.
    blocks
        (n,) int; a block is never on two sides of a fold.
    folds
        Folds, fewer where there are fewer blocks.

    Returns
    -------
    (g,) float64: 1 - squared error / squared error of the training folds' mean; NaN for a constant target.

    Raises
    ------
    InputError
        If all spots lie in one block.
    """
    from sklearn.model_selection import GroupKFold

    number = len(np.unique(blocks))
    if number < 2:
        problem = "spots lie in one block, so that none can be held out"
        raise InputError(problem, field="blocks", value=number, expected="two or more")
    features, targets = (np.asarray(values, dtype=np.float64) for values in (features, targets))
    spread = features.std(axis=0)
    z = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    design = np.column_stack([np.ones(len(z)), z, z**2])
    error, total = np.zeros(targets.shape[1]), np.zeros(targets.shape[1])
    for train, held_out in GroupKFold(n_splits=min(folds, number)).split(design, groups=blocks):
        fitted = np.linalg.lstsq(design[train], targets[train], rcond=None)[0]
        error += np.square(targets[held_out] - design[held_out] @ fitted).sum(axis=0)
        total += np.square(targets[held_out] - targets[train].mean(axis=0)).sum(axis=0)
    constant = np.ptp(targets, axis=0) == 0
    return np.where(constant, np.nan, 1 - error / np.where(constant, 1, total))


def spatial_blocks(coords: np.ndarray, *, pitches: float = BLOCK) -> np.ndarray:
    """Return (n,) int: the square of tissue, ``pitches`` spots wide, in which each spot of one section lies."""
    return squares(coords, max(pitches * spot_pitch(coords), 1e-9))


def confounding(section: Section, density: np.ndarray, *, min_counts: int = 0) -> Confounding | None:
    """Measure what depth, and depth with tissue density, explain of a section's genes and cell types.

    Depth is the logarithm of a spot's total counts, as the depth-only baseline sees it; a gene that makes up much of
    the total is partly its own depth.

    Parameters
    ----------
    section
        The section as read.
    density
        (n,) local density of the tissue, e.g. the haematoxylin around each spot.
    min_counts
        Spots with fewer counts are left out, as preprocessing does: a near-empty one is an outlier in both.

    Returns
    -------
    None where the section has too few spots, too little tissue for two blocks, or no counts.

    Raises
    ------
    InputError
        If ``density`` is not one finite number a spot.
    """
    import pandas as pd

    density = np.asarray(density, dtype=np.float64)
    if density.shape != (section.n_spots,) or not np.isfinite(density).all():
        problem, shape = "density must be one finite number per spot", f"({section.n_spots},)"
        raise InputError(problem, field=section.id, value=density.shape, expected=shape)
    totals = np.asarray(section.adata.X.sum(axis=1), dtype=np.float64).ravel()
    kept = np.flatnonzero(totals >= max(min_counts, 1))
    if len(kept) < LEAST_SPOTS:
        return None
    adata, totals, density = section.adata[kept], totals[kept], density[kept]
    blocks = spatial_blocks(section.coords[kept])
    if blocks.max() < 1:
        return None
    depth = np.log1p(totals)[:, None]
    views = {"depth": depth, "depth_and_density": np.column_stack([depth, density])}

    mean = np.asarray(adata.X.mean(axis=0)).ravel()
    detected = np.asarray((adata.X > 0).mean(axis=0)).ravel() >= LEAST_DETECTED
    order = np.argsort(-mean, kind="stable")
    chosen = order[detected[order]][:MOST_GENES]
    symbols = np.asarray(adata.var["symbol"] if "symbol" in adata.var else adata.var_names)
    columns: dict[str, np.ndarray] = {"symbol": symbols[chosen], "mean_count": mean[chosen]}
    counts = adata.X[:, chosen]
    for name in (RAW, NORMALISED):
        targets = transform(counts, totals, name)
        for view, features in views.items():
            columns[f"{name}:{view}"] = explained(features, targets, blocks)
    genes = pd.DataFrame(columns, index=pd.Index(adata.var_names[chosen], name="gene"))

    parts = []
    for matrix, shares in compositions(adata).items():
        by_view = {view: explained(features, shares.to_numpy(), blocks) for view, features in views.items()}
        parts.append(pd.DataFrame(by_view, index=[f"{matrix}:{cell}" for cell in shares.columns]))
    cells = pd.concat(parts) if parts else pd.DataFrame(columns=list(views), dtype=float)
    return Confounding(section.id, genes, cells.rename_axis("cell type"))


def compositions(adata: AnnData) -> dict[str, pd.DataFrame]:
    """Return the matrices of a section that hold shares: named, not negative, summing to about one in every spot.

    Only tables with column names in ``obsm`` count; a plain array has no names to join by.
    """
    import pandas as pd

    def holds_shares(values: np.ndarray) -> bool:
        numbers = values.dtype.kind in "fiu" and np.isfinite(values).all() and (values >= 0).all()
        return bool(numbers and np.abs(values.sum(axis=1) - 1).max() < 0.05)

    tables = {name: table for name, table in adata.obsm.items() if isinstance(table, pd.DataFrame)}
    return {name: table for name, table in tables.items() if table.shape[1] > 1 and holds_shares(table.to_numpy())}


def over_sections(measured: list[Confounding], what: Literal["genes", "cells"] = "genes") -> pd.DataFrame:
    """Return the mean of every share over the sections that measured it, and in how many that was."""
    import pandas as pd

    tables = [getattr(section, what) for section in measured]
    stacked = pd.concat(tables) if tables else pd.DataFrame()
    if stacked.empty:
        return pd.DataFrame()
    grouped = stacked.groupby(level=0, sort=False)
    means = grouped.mean(numeric_only=True)
    if "symbol" in stacked:
        means.insert(0, "symbol", grouped["symbol"].first())
    means["sections"] = grouped.size()
    return means


def most_and_least(table: pd.DataFrame, column: str, *, n: int = 8) -> pd.DataFrame:
    """Return the ``n`` rows of `over_sections` most and least explained, among those measured in the most sections."""
    if table.empty:
        return table
    common = table[table["sections"] == table["sections"].max()].sort_values(column, ascending=False)
    if len(common) > 2 * n:
        import pandas as pd

        common = pd.concat([common.head(n), common.tail(n)])
    return common.round(2)


def confounding_figure(table: pd.DataFrame, cells: pd.DataFrame | None = None) -> Figure:
    """Draw the shares explained: left all genes sorted, right gene by gene raw against depth-normalised.

    Parameters
    ----------
    table
        Genes, from `over_sections`.
    cells
        Cell types, from `over_sections`; drawn as bars on the right where there are any.
    """
    with_cells = cells is not None and not cells.empty
    panels = 3 if with_cells else 2
    colours = {RAW: CYCLE[1], NORMALISED: CYCLE[0]}
    with style():
        figure, axes = canvas(1, panels, figsize=(7.4, 2.9))
        for name, colour in colours.items():
            for view, line in (("depth", "-"), ("depth_and_density", ":")):
                shares = np.sort(table[f"{name}:{view}"].dropna())[::-1]
                label = f"{name}, {view.replace('_and_', ' + ')}"
                axes[0].plot(
                    np.linspace(0, 100, len(shares)), np.clip(shares, -0.25, 1), line, color=colour, label=label
                )
        zero = {"color": MUTED, "linewidth": 0.8}
        axes[0].axhline(0, **zero)
        axes[0].set(xlabel="genes, most explained first, %", ylabel="share of variance explained", ylim=(-0.27, 1))
        axes[0].legend(fontsize=7)
        raw, normalised = (np.clip(table[f"{name}:depth"], -0.25, 1) for name in (RAW, NORMALISED))
        points = axes[1].scatter(raw, normalised, c=np.log10(table["mean_count"]), s=8, cmap=VALUES, linewidths=0)
        figure.colorbar(points, ax=axes[1], label="log10 mean count", shrink=0.8).outline.set_visible(False)
        axes[1].axhline(0, **zero)
        axes[1].axvline(0, **zero)
        axes[1].set(xlabel=f"explained by depth, {RAW}", ylabel=f"explained by depth, {NORMALISED}")
        if with_cells:
            shown = cells.sort_values("depth_and_density", ascending=False).head(15)[::-1]
            place = np.arange(len(shown))
            axes[2].barh(place + 0.2, shown["depth"], height=0.4, color=MUTED, label="depth")
            axes[2].barh(place - 0.2, shown["depth_and_density"], height=0.4, color=CYCLE[2], label="depth + density")
            axes[2].set_yticks(place, _short([str(name) for name in shown.index]), fontsize=7)
            axes[2].axvline(0, **zero)
            axes[2].set(xlabel="cell types: share explained", xlim=(max(-0.5, axes[2].get_xlim()[0]), None))
            axes[2].legend(fontsize=7)
    return figure


def _short(names: list[str]) -> list[str]:
    """Return cell types without what the names of their matrices share; the rest of it only where it tells apart."""
    matrices = sorted({name.split(":", 1)[0] for name in names})
    if len(matrices) < 2:
        return [name.split(":", 1)[1] for name in names]
    shared = len(commonprefix(matrices))
    return ["{1} ({0})".format(*name[shared:].split(":", 1)) for name in names]
