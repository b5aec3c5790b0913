"""The report's pictures. Very specific, not for general use. Each returns a matplotlib Figure; `save` writes it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation.scores import CEILING, title_of
from histocrypt.evaluation.wording import terms_of
from histocrypt.figure_style import CYCLE, INK, LINE, MUTED, canvas, log_scale, style
from histocrypt.files import atomic_path
from histocrypt.predictors.registry import STACKS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from histocrypt.evaluation.scores import Scores

ROLE = {"model": "#0072B2", "baseline": "#8c9aa1", "ceiling": "#009E73"}
TRAIN, VALIDATION, TEST = "#dfe7ea", "#E69F00", "#0072B2"
LEGIBLE = 24
"""Sections, or folds, whose names can be read side by side."""
KINDS = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}
"""Media type of each picture a page may hold, by the ending of its file."""


def save(figure: Figure, path: Path, *, made: str = "") -> Path:
    """Write a figure as its suffix says, SVG for lines, PNG (140 dpi) for pixels, and close it.

    ``made`` is what the file says of its maker.
    """
    import matplotlib.pyplot as plt

    with atomic_path(path) as temporary, style():
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        if made:
            metadata["Software" if path.suffix == ".png" else "Creator"] = made
        figure.savefig(temporary, dpi=140, metadata=metadata or None, facecolor="white")
    plt.close(figure)
    return path


def embed(path: Path) -> str:
    """Return a picture's file as the address that an ``img`` shows."""
    return embed_bytes(path.read_bytes(), path.suffix)


def embed_bytes(content: bytes, suffix: str) -> str:
    """Return the address of a picture that never was a file, e.g. a JPEG of ``suffix`` ``.jpg``."""
    return f"data:{KINDS[suffix]};base64,{base64.b64encode(content).decode()}"


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
        unseen = "" if terms.by_section else " of unseen patients"
        _models_down(axes, table, f"mean correlation over {terms.many}, within sections{unseen}")
    return figure


def _models_down(axes: Axes, table: pd.DataFrame, words: str) -> None:
    """Give a figure one row a model, from below, and correlations across."""
    axes.axvline(0, color=LINE, lw=1, zorder=0)
    marks = table["title"] + np.where(table["role"] == "baseline", " (baseline)", "")
    axes.set_yticks(range(len(table)), marks)
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(words)
    axes.grid(axis="x", color=LINE, lw=0.6)


def gene_distribution(scores: Scores, transform: str) -> Figure:
    """Draw the spread of per-gene correlations (mean over sections) for every model."""
    each = scores.by_gene(transform)
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
        _models_down(axes, table, f"correlation of one {terms_of(scores).one}, mean over sections (bar: the median)")
    return figure


def variance_curves(scores: Scores, transform: str, models: list[str]) -> Figure:
    """Draw each gene's measured variance beside the predicted ones, genes ordered by measured variance."""
    mean = scores.by_gene(transform).groupby(["model", "gene"])[["variance_true", "variance_predicted"]].mean()
    true = mean.loc[models[0], "variance_true"].sort_values()
    floor = true.min() / 1000
    with style():
        figure, axes = canvas(figsize=(7.4, 3.1))
        axes.plot(np.arange(len(true)), true, color=INK, lw=2.2, label="measured")
        for i, model in enumerate(models):
            found = mean.loc[model, "variance_predicted"].reindex(true.index).clip(lower=floor)
            marker = "os^Dv"[i % 5]
            axes.plot(found.to_numpy(), marker, ms=3.6, color=CYCLE[i], alpha=0.8, mec="none", label=title_of(model))
        log_scale(axes, "y")
        axes.set_xticks([])
        axes.set_xlabel(f"{terms_of(scores).many}, ordered by measured variance")
        axes.set_ylabel("variance within a section")
        axes.legend(ncols=3, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        axes.grid(axis="y", color=LINE, lw=0.6)
    return figure


def fold_diagram(folds: list[dict[str, Any]], patients: Mapping[str, str]) -> Figure:
    """Draw who trains, validates and tests in every fold: sections across, grouped by patient.

    Up to `LEGIBLE` of both have their names; more are a dot of colour each.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    sections = sorted(patients, key=lambda name: (patients[name], name))
    legible = max(len(sections), len(folds)) <= LEGIBLE
    words, colours = ("train", "validate", "test"), (TRAIN, VALIDATION, TEST)
    part = np.array(
        [[1 * (n in f["validation_sections"]) + 2 * (n in f["test_sections"]) for n in sections] for f in folds]
    )
    width, height = max(min(7.4, 2.0 + 0.75 * len(sections)), 4.5), 0.38 * len(folds) + 1.5
    with style():
        figure, axes = canvas(figsize=(width, height) if legible else (7.4, min(5.6, 1.5 + 0.12 * len(folds))))
        axes.imshow(part, cmap=ListedColormap(colours), vmin=0, vmax=2, aspect="auto", interpolation="none")
        if not legible:
            axes.set(xlabel=f"{len(sections)} sections, by patient", ylabel=f"{len(folds)} folds")
            handles = [Patch(color=colour, label=word) for colour, word in zip(colours, words, strict=True)]
            axes.legend(handles=handles, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8.5)
            return figure
        for (y, x), kind in np.ndenumerate(part):
            shade = "white" if words[kind] == "test" else INK
            axes.text(x, y, words[kind], ha="center", va="center", fontsize=7.5, color=shade)
        for y in range(1, len(folds)):
            axes.axhline(y - 0.5, color="white", lw=3)
        for x in range(1, len(sections)):
            apart = patients[sections[x]] != patients[sections[x - 1]]
            axes.axvline(x - 0.5, color=INK if apart else "white", lw=1 if apart else 3)
        axes.set_yticks(range(len(folds)), [fold["name"] for fold in folds])
        turn = {"rotation": 30, "ha": "left"} if max(map(len, sections)) > 6 else {}
        axes.set_xticks(range(len(sections)), sections, **turn)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def training_curves(curves: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure | None:
    """Draw loss and validation score by epoch: a row per network, a thin line per fold.

    A network that is judged by its validation loss alone, such as Stem, has that loss in the score's place.

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
                losses = table.filter(regex="(?i)loss").columns
                scores = table.filter(regex="(?i)pearson|pcc|correlation|score").columns
                judged = scores if len(scores) else losses[losses.str.lower().str.startswith("val")]
                look = {"color": CYCLE[i % 6], "lw": 1.3}
                for column in losses:
                    row[0].plot(epochs, table[column], "-" if column.lower().startswith("val") else ":", **look)
                for column in judged:
                    row[1].plot(epochs, table[column], **look, label=fold)
                said = "validation score" if len(scores) else "validation loss"
            row[0].set(title=title_of(model), ylabel="loss (dotted: training)")
            row[1].set(ylabel=said)
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
