"""Pictures of synthetic tissue and of what it is good for. Very specific, not for general use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation.figures import CYCLE, INK, LINE, MUTED, canvas, log_scale, style
from histocrypt.evaluation.wording import number, plural, span
from histocrypt.synthesis.quality import DRAWN, MEASURES
from histocrypt.synthesis.utility import COMPARED, colours, title_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from histocrypt.synthesis.manifest import Pairs

REAL, SYNTHETIC, BOTH = CYCLE[0], CYCLE[1], CYCLE[2]
LOOK = {"real": (REAL, "o"), "synthetic": (SYNTHETIC, "s"), "both": (BOTH, "D")}
LEVELS = ("#D55E00", "#F0E442", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")
"""Colours of levels 2, 3, ...: those of what lies in the tissue. Background and tissue itself stay as they are."""


def tile_grid(rows: Mapping[str, Pairs], *, each: int = 5, seed: int = 0) -> Figure:
    """Draw tiles: a row for each set (e.g. ``real``, ``synthetic``), a block of columns for each class.

    Each row is followed by the same tiles with their masks outlined.

    Parameters
    ----------
    rows
        Sets of one scheme, by title.
    each
        Tiles of a class, drawn at random; where there are no more, all in their order.
    """
    rng = np.random.default_rng(seed)
    scheme = next(iter(rows.values())).scheme
    block = each + 1  # an empty column parts the classes
    ratios = ([1.0] * each + [0.25]) * len(scheme.classes)
    shape = (2 * len(rows), block * len(scheme.classes) - 1)
    with style():
        figure, axes = canvas(
            *shape, figsize=(7.4, 0.75 + 6.6 / sum(ratios) * shape[0]), squeeze=False, width_ratios=ratios[:-1]
        )
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        for one in axes.flat:
            one.set_axis_off()
        for number, (title, pairs) in enumerate(rows.items()):
            first = axes[2 * number, 0]
            first.text(-0.1, 0.5, f" {title}", transform=first.transAxes, ha="right", va="center", fontsize=9)
            for place, name in enumerate(scheme.classes):
                own = np.flatnonzero(pairs.labels == name)  # few enough for all: in their order, so that rows compare
                chosen = own if len(own) <= each else rng.permutation(own)[:each]
                for column, row in enumerate(chosen.tolist()):
                    for with_mask in (False, True):
                        one = axes[2 * number + with_mask, place * block + column]
                        one.imshow(colours(pairs.images[row : row + 1])[0], interpolation="nearest")
                        if with_mask and pairs.has_mask[row]:
                            _outline(one, pairs.masks[row], len(scheme.levels))
        for place, name in enumerate(scheme.classes):
            axes[0, place * block].set_title(name, fontsize=9, pad=5)
        if len(scheme.levels) > 2:
            _legend(figure, scheme.levels)
    return figure


def _outline(one: Axes, mask: np.ndarray, n_levels: int) -> None:
    """Colour what lies in the tissue, half through, and draw the rim of the tissue."""
    from matplotlib.colors import to_rgba

    colour = np.zeros((*mask.shape, 4))
    for level in range(2, n_levels):
        colour[mask == level] = to_rgba(LEVELS[(level - 2) % len(LEVELS)], 0.55)
    one.imshow(colour, interpolation="nearest")
    if 0 < (mask > 0).mean() < 1:
        one.contour(mask > 0, levels=[0.5], colors=[INK], linewidths=0.7)


def _legend(figure: Figure, levels: tuple[str, ...]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Line2D([], [], color=INK, lw=1, label=f"rim of {levels[0]}")]
    handles += [
        Patch(facecolor=LEVELS[number % len(LEVELS)], alpha=0.55, label=name) for number, name in enumerate(levels[2:])
    ]
    figure.legend(
        handles=handles, ncols=len(handles) if len(handles) <= 4 else 3, fontsize=8, loc="outside lower center"
    )


def loss_curves(losses: Mapping[str, pd.Series]) -> Figure:
    """Draw the training loss of each generator, by its name, over the epochs that index it."""
    with style():
        figure, axes = canvas(figsize=(5.2, 2.6))
        for (name, loss), dash in zip(losses.items(), ("-", "--"), strict=False):
            axes.plot(loss.index, loss, dash, color=SYNTHETIC, lw=1.6, label=name)
        log_scale(axes, "y")
        axes.set(xlabel="epoch", ylabel="error, training tiles")
        axes.legend(fontsize=8.5)
    return figure


def drawn_words(train: Pairs, drawn: Pairs, losses: Mapping[str, pd.Series]) -> str:
    """Say who was learned from, how far each generator (by its name) came, and what was drawn: one sentence."""
    learned = [
        f"the {name} generator's error went from {number(loss.iloc[0])} to {number(loss.iloc[-1])} in "
        f"{plural(len(loss), 'epoch')}"
        for name, loss in losses.items()
    ]
    people, classes = len(set(train.patients)), len(set(drawn.labels))
    return (
        f"On {len(train)} training tiles of {plural(people, 'patient')} {' and '.join(learned)}; {len(drawn)} tiles of "
        f"{plural(classes, 'kind')} of tissue were drawn."
    )


def use_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return `utility.utility_table` as text for readers: scores with intervals, and how they stand to real tiles'."""
    import pandas as pd

    scores = {"mean_dice": "mean Dice of masks", "auc": "AUC of the tissue label"}
    rows = table[table["role"] != "curve"]
    said: dict[str, Any] = {"images": [f"{count:.0f}" for count in rows["images"]]}
    for score, title in scores.items():
        if f"{score}_verdict" not in table:  # nothing to learn it from
            continue
        ends = zip(rows[score], rows[f"{score}_low"], rows[f"{score}_high"], strict=True)
        said[title] = [f"{number(value)} ({span(low, high)})" for value, low, high in ends]
        said[f"{title}: against real tiles"] = rows[f"{score}_verdict"].fillna("").tolist()
    return pd.DataFrame(said, index=rows["title"].tolist())


def use_words(table: pd.DataFrame) -> str:
    """Say how far drawn tiles alone teach what real tiles teach, by `utility.utility_table`: one sentence."""
    real, drawn = table.loc["real"], table.loc["synthetic"]
    said = [
        f"{what} of {number(drawn[score])} ({span(drawn[f'{score}_low'], drawn[f'{score}_high'])}), real tiles of "
        f"{number(real[score])}: {drawn[f'{score}_verdict']}"
        for score, what in (("mean_dice", "a mean Dice of masks"), ("auc", "an AUC of the tissue label"))
        if f"{score}_verdict" in table
    ]
    return (
        f"On patients that nothing saw, {int(drawn['images'])} drawn tiles alone (learned from "
        f"{int(real['images'])} real ones) teach {'; '.join(said)}."
    )


def filter_histograms(table: pd.DataFrame, summary: Mapping[str, Any], held_out: Mapping[str, np.ndarray]) -> Figure:
    """Draw how realism and novelty are spread, of synthetic tiles and of held-out real ones, and where the filter cuts.

    Parameters
    ----------
    table, summary
        Of `synthesis.filtering.Filtered`.
    held_out
        The same measures of the real tiles that the cuts come from: ``error`` (n,) and ``distance`` (n,).
    """
    cuts = {
        "error": ("reconstruction error", summary["most_error"], True),
        "distance": ("distance to the nearest training tile", summary["least_distance"], False),
    }
    with style():
        figure, axes = canvas(1, 2, figsize=(7.4, 2.7))
        for one, (measure, (title, cut, above)) in zip(axes, cuts.items(), strict=True):
            made, real = (np.asarray(each[measure], dtype=np.float64) for each in (table, held_out))
            edges = np.histogram_bin_edges(np.concatenate([made, real, [cut]]), 30)
            for values, look in (
                (made, {"histtype": "stepfilled", "color": SYNTHETIC, "alpha": 0.45, "label": "synthetic"}),
                (real, {"histtype": "step", "color": REAL, "lw": 1.6, "label": "held-out real"}),
            ):
                look["label"] += f" ({len(values)})"
                one.hist(values, edges, weights=np.full(len(values), 1 / len(values)), **look)
            one.axvline(cut, color=INK, lw=1.2, ls="--")
            low, high = one.get_xlim()
            one.axvspan(*((cut, high) if above else (low, cut)), color=LINE, alpha=0.6, zorder=0, lw=0)
            one.set_xlim(low, high)
            one.set_ylim(top=one.get_ylim()[1] * 1.14)
            fits = (high - cut if above else cut - low) > 0.3 * (high - low)
            said, side = " rejected \u2192 " if above else " \u2190 rejected ", "left" if above == fits else "right"
            where = {"va": "top", "ha": side, "transform": one.get_xaxis_transform()}
            one.text(cut, 0.985, said, fontsize=8, color=INK, **where)
            one.set_xlabel(title)
        axes[0].set_ylabel("share of tiles")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=len(labels), fontsize=8.5, loc="outside upper center")
    return figure


def utility_bars(table: pd.DataFrame) -> Figure:
    """Draw each score of `utility.utility_table` with its interval: training sets as marks, baselines as lines."""
    scores = [name for name in table.columns if name.startswith("dice_") and f"{name}_low" in table.columns]
    groups = {"Masks: Dice": [*scores, "mean_dice"], "Tissue label": list(COMPARED[1:])}
    sizes = [len(names) for names in groups.values()]
    models = [name for name in table.index if table.loc[name, "role"] == "model"]
    with style():
        figure, axes = canvas(1, 2, figsize=(7.4, 3.1), width_ratios=sizes, sharey=True)
        for one, (title, names) in zip(axes, groups.items(), strict=True):
            for x, score in enumerate(names):
                for number, name in enumerate(models):
                    value, low, high = (float(table.loc[name, f"{score}{end}"]) for end in ("", "_low", "_high"))
                    colour, mark = LOOK[name]
                    at = x + 0.17 * (number - (len(models) - 1) / 2)
                    one.plot([at, at], [low, high], color=colour, lw=2.2, solid_capstyle="round")
                    one.plot(at, value, mark, color=colour, ms=6, label=table.loc[name, "title"] if x == 0 else None)
                for name, look in (("colour_only", "-"), ("colour_synthetic", "--"), ("majority", ":")):
                    if name in table.index and np.isfinite(table.loc[name, score]):
                        label = table.loc[name, "title"] if x == 0 else None
                        one.plot(
                            [x - 0.36, x + 0.36], [table.loc[name, score]] * 2, look, color=MUTED, lw=1.6, label=label
                        )
            one.set_xticks(range(len(names)), [_short(score) for score in names])
            one.set_xlim(-0.5, len(names) - 0.5)
            one.set_ylim(-0.03, 1.03)
            one.set_title(title)
            one.grid(axis="y", color=LINE, lw=0.6)
            one.tick_params(axis="x", length=0)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, fontsize=8.5, loc="outside lower center")
    return figure


def learning_curves(panels: Mapping[str, tuple[pd.DataFrame, str]]) -> Figure:
    """Draw what a learner scores with how many real tiles, and as a line across what it scores with drawn ones alone.

    Parameters
    ----------
    panels
        By title, a table of `utility.utility_table` or `expression_use.expression_table` (or `worth.across`) with its
        curve, and the score that is drawn.
    """
    looks = {"real": ("synthetic", REAL, "o", "-"), "colour_only": ("colour_synthetic", SYNTHETIC, "s", "--")}
    named = {"real": "network or encoder", "colour_only": "colour alone"}
    with style():
        figure, axes = canvas(1, len(panels), figsize=(7.4, 2.9), squeeze=False)
        for one, (title, (table, score)) in zip(axes[0], panels.items(), strict=True):
            counted = table["images" if "images" in table else "tiles"].astype(float)
            for real, (drawn, colour, mark, dash) in looks.items():
                prefix = "real_" if real == "real" else "colour_"
                curve = [name for name in table.index if name.startswith(prefix) and name[len(prefix) :].isdigit()]
                curve = [name for name in (*curve, real) if np.isfinite(table.loc[name, score])]
                value, low, high = (table.loc[curve, f"{score}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
                about = named[real]
                if len(curve) > 1:
                    spread = {"yerr": [value - low, high - value], "ms": 4.5, "lw": 1.4, "elinewidth": 1.2}
                    one.errorbar(
                        counted[curve], value, color=colour, fmt=mark + dash, label=f"real tiles, {about}", **spread
                    )
                    level, below, above = (float(table.loc[drawn, f"{score}{end}"]) for end in ("", "_low", "_high"))
                    one.axhline(level, color=colour, ls=dash, lw=1.2, alpha=0.8, label=f"drawn alone, {about}")
                    one.axhspan(below, above, color=colour, alpha=0.12, lw=0)
            log_scale(one, "x")
            one.set(xlabel="real tiles", title=title)
            one.grid(axis="y", color=LINE, lw=0.6)
        handles, labels = axes[0, -1].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=2, fontsize=8.5, loc="outside lower center")
    return figure


def _short(score: str) -> str:
    return title_of(score).removeprefix("Dice, ").replace(" ", "\n", 1).replace("Mean\nDice", "mean")


def quality_bars(table: pd.DataFrame) -> Figure:
    """Draw the measures of `quality.quality_table` with their intervals, a panel each: yardsticks above and below."""
    titles = {
        "kid": "kernel distance",
        "fd": "Fréchet distance",
        "precision": "precision",
        "recall": "recall",
    }
    places = np.arange(len(table))[::-1]
    with style():
        figure, axes = canvas(1, len(MEASURES), figsize=(7.4, 0.9 + 0.26 * len(table)), sharey=True)
        for one, measure in zip(axes, MEASURES, strict=True):
            for at, (name, row) in zip(places, table.iterrows(), strict=True):
                colour = SYNTHETIC if str(name).startswith(DRAWN) else MUTED if str(name).startswith("Spoilt") else REAL
                one.plot([row[f"{measure}_low"], row[f"{measure}_high"]], [at, at], color=colour, lw=2.2)
                one.plot(row[measure], at, "o", color=colour, ms=5)
            one.set_title(titles[measure], fontsize=8.5)
            one.grid(axis="x", color=LINE, lw=0.6)
            one.tick_params(axis="y", length=0)
            one.set_xlim(left=min(0, one.get_xlim()[0]))
            if measure in ("precision", "recall"):
                one.set_xlim(-0.03, 1.03)
        axes[0].set_yticks(places, table.index.tolist())
    return figure


def nearest_tiles(nearest: pd.DataFrame, drawn: Pairs, train: Pairs, held_out: Pairs, *, shown: int = 8) -> Figure:
    """Draw drawn tiles, from the nearest to a training tile to the farthest, above the real tiles nearest to each.

    The picture shows real tiles of patients: it is for those who may see them.

    Parameters
    ----------
    nearest
        Of `quality.Assessed`.
    drawn, train, held_out
        Sets that hold the ids of ``nearest``.
    """
    chosen = nearest.iloc[np.unique(np.linspace(0, len(nearest) - 1, min(shown, len(nearest))).round().astype(int))]
    rows = {
        "drawn": (drawn, chosen.index, None),
        "nearest\ntraining": (train, chosen["training"], chosen["training_distance"]),
        "nearest\nheld out": (held_out, chosen["held_out"], chosen["held_out_distance"]),
    }
    with style():
        figure, axes = canvas(len(rows), len(chosen), figsize=(0.85 * len(chosen) + 0.9, 3.2), squeeze=False)
        for line, (title, (pairs, names, distances)) in zip(axes, rows.items(), strict=True):
            place = {name: row for row, name in enumerate(pairs.ids.tolist())}
            for column, (one, name) in enumerate(zip(line, names, strict=True)):
                one.imshow(colours(pairs.images[place[name] : place[name] + 1])[0], interpolation="nearest")
                one.set(xticks=[], yticks=[])
                if distances is not None:
                    one.set_xlabel(f"{distances.iloc[column]:.1f}", fontsize=7.5)
            line[0].set_ylabel(title, fontsize=8.5)
    return figure


def nuclei_bars(table: pd.DataFrame) -> Figure:
    """Draw the differences of `quality.nuclei_table` with their intervals: features down, a mark for each set."""
    sets, features = (table.index.get_level_values(level).unique() for level in ("set", "feature"))
    marks = dict(zip(sets, ((REAL, "o"), (MUTED, "^"), (SYNTHETIC, "s"), (BOTH, "D")), strict=False))
    with style():
        figure, axes = canvas(figsize=(7.4, 0.9 + 0.3 * len(features)))
        for number, name in enumerate(sets):
            own, (colour, mark) = table.loc[name], marks[name]
            at = np.arange(len(features))[::-1] - 0.22 * (number - (len(sets) - 1) / 2)
            axes.hlines(at, own["difference_low"], own["difference_high"], color=colour, lw=1.6)
            axes.plot(own["difference"], at, mark, color=colour, ms=4.5, label=name)
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(np.arange(len(features))[::-1], features.tolist())
        axes.set_xlabel("difference from the reference, standard deviations of its tiles")
        axes.grid(axis="x", color=LINE, lw=0.6)
        figure.legend(*axes.get_legend_handles_labels(), ncols=len(sets), fontsize=8.5, loc="outside upper center")
    return figure
