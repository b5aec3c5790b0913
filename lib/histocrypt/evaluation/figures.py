"""The report's pictures. Very specific, not for general use. Each returns a matplotlib Figure; `save` writes it.

Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart; no picture relies on colour alone.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation.scores import CEILING, POOLED, title_of
from histocrypt.evaluation.wording import terms_of
from histocrypt.files import atomic_path
from histocrypt.predictors.registry import STACKS

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

    from histocrypt.evaluation.scores import Scores

# ---- backdrop
# The picture under a map: the section's own small image, else one put together from its tiles, else none.


LONGEST_SIDE = 640


def backdrop(section: AnnData, tiles: Path) -> tuple[np.ndarray | None, float]:
    """Return a picture of the section and its scale.

    Parameters
    ----------
    section
        A cleaned section; ``uns["spatial"]`` may hold a small image.
    tiles
        Its tile file, which may be absent.

    Returns
    -------
    (h, w, 3) uint8 and picture pixels per full-resolution pixel; (None, 1.0) where there is no picture.
    """
    found = _stored(section)
    if found is None and Path(tiles).is_file():
        found = _from_tiles(tiles)
    if found is None:
        return None, 1.0
    image, scale = found
    step = max(1, max(image.shape[:2]) // LONGEST_SIDE)
    return np.ascontiguousarray(image[::step, ::step]), scale / step


def _stored(section: AnnData) -> tuple[np.ndarray, float] | None:
    libraries = section.uns.get("spatial")
    for library in libraries.values() if isinstance(libraries, Mapping) else ():
        if not isinstance(library, Mapping):
            continue
        for name in ("hires", "lowres", "downscaled_fullres"):
            image = library.get("images", {}).get(name)
            scale = library.get("scalefactors", {}).get(f"tissue_{name}_scalef")
            if image is None or scale is None or np.ndim(image) != 3:
                continue
            image = np.asarray(image)[..., :3]
            if image.dtype != np.uint8:
                image = np.clip(image * (255 if image.max() <= 1 else 1), 0, 255).astype(np.uint8)
            return image, float(scale)
    return None


def _from_tiles(path: Path) -> tuple[np.ndarray, float]:
    import h5py

    with h5py.File(path) as file:
        coords = np.asarray(file["coords"], dtype=np.float64)
        side_px = float(file.attrs["tile_um"]) / float(file.attrs["um_per_px"])
        scale = LONGEST_SIDE / float((coords.max(axis=0) + side_px).max())
        side = max(1, round(side_px * scale))
        width, height = np.ceil((coords.max(axis=0) + side_px) * scale).astype(int) + 1
        canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        rows = np.linspace(0, file["img"].shape[1] - 1, side).astype(int)
        for tile, (x, y) in zip(file["img"], np.round(coords * scale).astype(int), strict=True):
            top, left = max(y, 0), max(x, 0)
            piece = tile[rows][:, rows][top - y :, left - x :][: height - top, : width - left]
            canvas[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return canvas, scale


# ---- embed
# Pictures inside a page, so that it is one file and opens without a network.


KINDS = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}
"""Media type of each picture a page may hold, by the ending of its file."""


def embed(path: Path) -> str:
    """Return a picture's file as the address that an ``img`` shows."""
    return embed_bytes(path.read_bytes(), path.suffix)


def embed_bytes(content: bytes, suffix: str) -> str:
    """Return the address of a picture that never was a file, e.g. a JPEG of ``suffix`` ``.jpg``."""
    return f"data:{KINDS[suffix]};base64,{base64.b64encode(content).decode()}"


# ---- figures


INK, MUTED, LINE = "#22313a", "#7b8a92", "#d9e0e3"
ROLE = {"model": "#0072B2", "baseline": "#8c9aa1", "ceiling": "#009E73"}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRAIN, VALIDATION, TEST = "#dfe7ea", "#E69F00", "#0072B2"
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "histocrypt",
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[Any]:
    """Apply the report's fonts and colours to what is drawn inside."""
    import matplotlib as mpl
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    fonts = [name for name in ("Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans") if name in there]
    with mpl.rc_context({**STYLE, "font.family": fonts}):
        yield mpl


def canvas(*shape: int, **settings: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes."""
    import matplotlib.pyplot as plt

    return plt.subplots(*(shape or (1, 1)), **settings)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as its suffix says, SVG for lines, PNG (140 dpi) for pixels, and close it."""
    import matplotlib.pyplot as plt

    with atomic_path(path) as temporary, style():
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, dpi=140, metadata=metadata, facecolor="white")
    plt.close(figure)
    return path


def forest(scores: Scores, transform: str) -> Figure:
    """Draw each model's mean correlation with its interval, and each patient's own as a tick."""
    table, terms = scores.of(transform).sort_values("pearson"), terms_of(scores)
    with style():
        figure, axes = canvas(figsize=(7.4, 0.42 * len(table) + 1.0))
        for y, (model, row) in enumerate(table.iterrows()):
            colour = ROLE[row["role"]]
            rows = scores.sections
            mine = rows[(rows["model"] == model) & (rows["transform"] == transform)]
            patients = mine.groupby(terms.unit)["pearson"].mean()
            axes.plot(patients, np.full(len(patients), y), "|", color=colour, ms=11, mew=1, alpha=0.55)
            axes.plot([row["pearson_low"], row["pearson_high"]], [y, y], color=colour, lw=2.6, solid_capstyle="round")
            fill = "white" if row["role"] == "baseline" else colour
            axes.plot(row["pearson"], y, "o", ms=7.5, mfc=fill, mec=colour, mew=1.8)
        axes.axvline(0, color=LINE, lw=1, zorder=0)
        axes.set_yticks(range(len(table)), [_mark(row) for _, row in table.iterrows()])
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(
            f"mean correlation over {terms.many}, within sections{'' if terms.by_section else ' of unseen patients'}"
        )
        axes.grid(axis="x", color=LINE, lw=0.6)
    return figure


def _mark(row: pd.Series) -> str:
    return row["title"] + (" (baseline)" if row["role"] == "baseline" else "")


def gene_distribution(scores: Scores, transform: str) -> Figure:
    """Draw the spread of per-gene correlations (mean over sections) for every model."""
    each = scores.genes
    each = each[(each["transform"] == transform) & (each["section"] != POOLED)]
    table = scores.of(transform).sort_values("pearson")
    rng = np.random.default_rng(0)
    with style():
        figure, axes = canvas(figsize=(7.4, 0.5 * len(table) + 1.0))
        for y, (model, row) in enumerate(table.iterrows()):
            values = each[each["model"] == model].groupby("gene")["pearson"].mean().dropna().to_numpy()
            colour = ROLE[row["role"]]
            if np.ptp(values) > 1e-9:
                body = axes.violinplot(values, [y], orientation="horizontal", widths=0.85, showextrema=False)["bodies"]
                body[0].set(facecolor=colour, alpha=0.18, edgecolor="none")
            jitter = y + rng.uniform(-0.16, 0.16, len(values))
            axes.plot(values, jitter, ".", ms=3.5, color=colour, alpha=0.6, mec="none")
            axes.plot([np.median(values)] * 2, [y - 0.3, y + 0.3], color=INK, lw=1.6)
        axes.axvline(0, color=LINE, lw=1, zorder=0)
        axes.set_yticks(range(len(table)), [_mark(row) for _, row in table.iterrows()])
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"correlation of one {terms_of(scores).one}, mean over sections (bar: the median)")
        axes.grid(axis="x", color=LINE, lw=0.6)
    return figure


def variance_curves(scores: Scores, transform: str, models: list[str]) -> Figure:
    """Draw each gene's measured variance beside the predicted ones, genes ordered by measured variance."""
    each = scores.genes
    each = each[(each["transform"] == transform) & (each["section"] != POOLED) & ~each["constant_truth"].astype(bool)]
    mean = each.groupby(["model", "gene"])[["variance_true", "variance_predicted"]].mean()
    true = mean.loc[models[0], "variance_true"].sort_values()
    floor = true.min() / 1000
    with style():
        figure, axes = canvas(figsize=(7.4, 3.1))
        axes.plot(np.arange(len(true)), true, color=INK, lw=2.2, label="measured")
        for i, model in enumerate(models):
            found = mean.loc[model, "variance_predicted"].reindex(true.index).clip(lower=floor)
            marker = "os^Dv"[i % 5]
            axes.plot(found.to_numpy(), marker, ms=3.6, color=CYCLE[i], alpha=0.8, mec="none", label=title_of(model))
        axes.set_yscale("log")
        axes.set_xticks([])
        axes.set_xlabel(f"{terms_of(scores).many}, ordered by measured variance")
        axes.set_ylabel("variance within a section")
        axes.legend(ncols=3, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        axes.grid(axis="y", color=LINE, lw=0.6)
    return figure


LEGIBLE = 24
"""Sections, or folds, whose names can be read side by side."""


def fold_diagram(folds: list[dict[str, Any]], patients: Mapping[str, str]) -> Figure:
    """Draw who trains, validates and tests in every fold: sections across, grouped by patient."""
    sections = sorted(patients, key=lambda name: (patients[name], name))
    if max(len(sections), len(folds)) > LEGIBLE:
        return _fold_image(folds, sections)
    with style():
        width = min(7.4, 2.0 + 0.75 * len(sections))
        figure, axes = canvas(figsize=(max(width, 4.5), 0.38 * len(folds) + 1.5))
        for y, fold in enumerate(folds):
            for x, name in enumerate(sections):
                part = (
                    (TEST, "test")
                    if name in fold["test_sections"]
                    else (VALIDATION, "validate")
                    if name in fold["validation_sections"]
                    else (TRAIN, "train")
                )
                axes.barh(y, 0.94, left=x + 0.03, height=0.84, color=part[0])
                shade = "white" if part[1] == "test" else INK
                axes.text(x + 0.5, y, part[1], ha="center", va="center", fontsize=7.5, color=shade)
        for x in range(1, len(sections)):
            if patients[sections[x]] != patients[sections[x - 1]]:
                axes.axvline(x, color=INK, lw=1)
        axes.set_yticks(range(len(folds)), [fold["name"] for fold in folds])
        long = max(map(len, sections)) > 6
        turn = {"rotation": 30, "ha": "left"} if long else {}
        axes.set_xticks(np.arange(len(sections)) + 0.5, sections, **turn)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xlim(0, len(sections))
        axes.set_ylim(len(folds) - 0.45, -0.55)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _fold_image(folds: list[dict[str, Any]], sections: list[str]) -> Figure:
    """Draw the same for more sections or folds than have room for a name: a dot of colour each."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    place = {name: x for x, name in enumerate(sections)}
    part = np.zeros((len(folds), len(sections)))
    for row, fold in zip(part, folds, strict=True):
        row[[place[name] for name in fold["validation_sections"]]] = 1
        row[[place[name] for name in fold["test_sections"]]] = 2
    colours = [TRAIN, VALIDATION, TEST]
    with style():
        figure, axes = canvas(figsize=(7.4, min(5.6, 1.5 + 0.12 * len(folds))))
        axes.imshow(part, cmap=ListedColormap(colours), vmin=0, vmax=2, aspect="auto", interpolation="none")
        axes.set_xlabel(f"{len(sections)} sections, by patient")
        axes.set_ylabel(f"{len(folds)} folds")
        handles = [
            Patch(color=colour, label=label)
            for colour, label in zip(colours, ("train", "validate", "test"), strict=True)
        ]
        axes.legend(handles=handles, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8.5)
    return figure


def training_curves(curves: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure | None:
    """Draw loss and validation score by epoch: a row per network, a thin line per fold.

    Parameters
    ----------
    curves
        Model -> fold -> table with a column ``epoch``; columns named like a loss and like a score are drawn.
    """
    curves = {model: folds for model, folds in curves.items() if folds}
    if not curves:
        return None
    with style():
        figure, axes = canvas(len(curves), 2, figsize=(7.4, 2.1 * len(curves) + 0.3), squeeze=False)
        for row, (model, folds) in zip(axes, curves.items(), strict=True):
            for i, (fold, table) in enumerate(folds.items()):
                epochs = table["epoch"] if "epoch" in table else np.arange(1, len(table) + 1)
                for column in table.columns:
                    low = column.lower()
                    loss = "loss" in low
                    if not loss and not any(word in low for word in ("pearson", "pcc", "correlation", "score")):
                        continue
                    held = low.startswith("val") or not loss
                    label = fold if held and (not loss) else None
                    row[0 if loss else 1].plot(
                        epochs, table[column], "-" if held else ":", color=CYCLE[i % 6], lw=1.3, label=label
                    )
            row[0].set(title=title_of(model), ylabel="loss (dotted: training)")
            row[1].set(ylabel="validation score")
            for one in row:
                one.grid(color=LINE, lw=0.6)
            if row[1].get_legend_handles_labels()[0]:
                row[1].legend(fontsize=7.5, ncols=2)
        for one in axes[-1]:
            one.set_xlabel("epoch")
    return figure


def picture_order(scores: Scores, transform: str) -> list[str]:
    """Return the models worth a line in small figures: the best first, then colour ridge, mean profile left out."""
    table = scores.of(transform).sort_values("pearson", ascending=False)
    keep = [m for m in table.index if table.loc[m, "role"] == "model"][:3]
    keep += [m for m in ("encoder_ridge", "colour_ridge") if m in table.index]
    return [*keep, *([CEILING] if CEILING in table.index else [])]


# ---- maps
# Spots on their tissue: measured, predicted and residual side by side. For the report and the viewers.
#
# Values are drawn in viridis, residuals in purple and orange: both can be told apart by colour-blind readers.


VALUES, RESIDUALS = "viridis", "PuOr_r"
TOUCHING = 0.92  # of the spot pitch: spots drawn as large as they can be without overlapping
FADED = 0.35


def side_by_side(
    panels: list[dict[str, Any]],
    coords: np.ndarray,
    *,
    um_per_unit: float,
    spacing: float,
    image: np.ndarray | None,
    diameter: float | None = None,
    opacity: float = FADED,
) -> Figure:
    """Draw the section's picture beside measured, predicted and residual maps of a few genes.

    Parameters
    ----------
    panels
        One a gene: ``title``, ``true`` (n,), ``predicted`` (n,).
    coords
        (n, 2) x, y in picture pixels (or full-resolution pixels where there is no picture).
    um_per_unit
        Micrometres per unit of ``coords``.
    spacing
        Distance between neighbouring spots, in units of ``coords``.
    image
        (h, w, 3) uint8 picture, or None.
    diameter
        Diameter of a spot, in units of ``coords``; None draws them so large that they nearly touch.
    opacity
        Of the picture under the spots, 0 to 1.
    """
    low, high = window(coords, spacing)
    aspect = (high[1] - low[1]) / (high[0] - low[0])
    width = 7.4 / (3 if image is None else 4)
    with style():
        columns = 3 + (image is not None)
        figure, axes = canvas(
            len(panels), columns, figsize=(7.4, len(panels) * (width * aspect * 0.8 + 0.12) + 0.3), squeeze=False
        )
        for row, panel in zip(axes, panels, strict=True):
            values = [panel["true"], panel["predicted"], panel["predicted"] - panel["true"]]
            least, most, reach = colour_limits(panel["true"], panel["predicted"])
            scales = [(VALUES, least, most)] * 2 + [(RESIDUALS, -reach, reach)]
            if image is not None:
                row[0].imshow(image, interpolation="bilinear")
            for k, (one, value, (cmap, least, most)) in enumerate(zip(row[-3:], values, scales, strict=True)):
                if image is not None:
                    one.imshow(image, alpha=opacity, interpolation="bilinear")
                drawn = spots(one, coords, value, diameter=diameter or TOUCHING * spacing, cmap=cmap)
                drawn.set_clim(least, most)
                if k > 0:
                    bar = figure.colorbar(drawn, ax=one, shrink=0.75, pad=0.02, aspect=18)
                    bar.outline.set_visible(False)
                    bar.ax.tick_params(labelsize=7, length=2)
            for one in row:
                frame(one, low, high)
            row[0].set_ylabel(panel["title"], fontsize=9)
            scale_bar(row[0], low, high, um_per_unit)
        names = ["H&E"] * (image is not None) + ["measured", "predicted", "predicted − measured"]
        for one, name in zip(axes[0], names, strict=True):
            one.set_title(name, fontsize=9)
    return figure


def window(coords: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (x, y) of what is shown: all spots and a little around them."""
    return coords.min(axis=0) - 1.2 * spacing, coords.max(axis=0) + 1.2 * spacing


def frame(axes: Axes, low: np.ndarray, high: np.ndarray) -> None:
    """Show ``low`` to ``high`` with y downwards, without ticks or frame."""
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def spots(
    axes: Axes, coords: np.ndarray, values: np.ndarray, *, diameter: float, cmap: str, alpha: float = 1.0
) -> EllipseCollection:
    """Draw (n,) ``values`` as discs of ``diameter`` (in units of ``coords``) at their places on the tissue."""
    from matplotlib.collections import EllipseCollection

    size = np.full(len(coords), diameter)
    drawn = EllipseCollection(
        size,
        size,
        np.zeros(len(coords)),
        units="x",
        offsets=coords,
        offset_transform=axes.transData,
        array=values,
        cmap=cmap,
        alpha=alpha,
        linewidths=0.2,
        edgecolors=MUTED,
    )
    axes.add_collection(drawn)
    return drawn


def colour_limits(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Return least, most and reach: one scale for measured and predicted values, and +-reach for their difference.

    2 % of the values at each end are clipped, so that one odd spot does not wash out the others; where that leaves
    nothing (a gene that is zero nearly everywhere), nothing is clipped.
    """
    both = np.concatenate([true, predicted])
    least, most = np.quantile(both, [0.02, 0.98])
    if least == most:
        least, most = both.min(), both.max()
    away = np.abs(predicted - true)
    reach = np.quantile(away, 0.98) or away.max() or 1.0
    return float(least), float(most if most > least else least + 1.0), float(reach)


def scale_bar(axes: Axes, low: np.ndarray, high: np.ndarray, um_per_unit: float) -> None:
    """Draw a bar of a round length in the lower left corner of what is shown, ``low`` to ``high`` (x, y)."""
    length = bar_length((high[0] - low[0]) * um_per_unit)
    x0, y = low[0] + 0.04 * (high[0] - low[0]), high[1] - 0.03 * (high[1] - low[1])
    x1 = x0 + length / um_per_unit
    axes.plot([x0, x1], [y, y], color=INK, lw=2.5, solid_capstyle="butt")
    middle = ((x0 + x1) / 2, y)
    axes.annotate(length_words(length), middle, (0, 3), textcoords="offset points", ha="center", fontsize=7.5)


def bar_length(extent_um: float) -> int:
    """Return the length of a scale bar, micrometres: round, and at most a third of what is shown."""
    return max(step for step in (10, 50, 100, 200, 500, 1000, 2000, 5000) if step <= max(extent_um / 3, 10))


def length_words(length_um: int) -> str:
    """Return ``500 µm`` or ``2 mm``."""
    return f"{length_um} µm" if length_um < 1000 else f"{length_um // 1000} mm"


# ---- stack figures
# Pictures of a stack: how its families do where nobody saw the answer, and which of them it relies on.


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
