"""How `evaluation.downstream` is shown: its pictures, and one sentence of conclusion each, filled from the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histocrypt.evaluation import maps, markers, metrics
from histocrypt.evaluation.downstream import (
    BASELINES,
    NUMBERS,
    TOP,
    After,
    coherence_of,
    domains,
    smoothed_to,
    told_from,
)
from histocrypt.evaluation.downstream_slides import Slide
from histocrypt.evaluation.figures import CYCLE, INK, LINE, MUTED, canvas, save, style
from histocrypt.evaluation.wording import number, percent, plural
from histocrypt.spatial import spot_pitch

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from IPython.display import Image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REACH = 2.0
"""Standard deviations of a score at the ends of its colours."""
MARKS = dict(zip(BASELINES, "oDsP^v", strict=True))
MEASURED = "measured"
UNCOMPARED = (
    "Nothing was measured here. All of this is as smooth as the picture: clean borders and strong patterns are no "
    "evidence, and no number below says how much of them is tissue."
)
"""What stands beside every result without counts."""


# Sentences.


def coherence_words(after: After) -> str:
    """Say how coherent predictions are beside tissue, and what follows for lists of spatial genes."""
    table = after.coherence
    if not after.compared:
        mean, share = (table[name].mean() for name in ("predicted", "varies_predicted"))
        return f"Mean Moran's I of predicted genes is {number(mean, 2)}, {percent(share)} 'vary in space'. {UNCOMPARED}"
    numeric = [name for name in table.columns if name not in ("section", "patient")]
    mean = after.means(table, numeric)
    known = table["tissue"].notna()
    beside = table["tissue"].where(known, table[MEASURED])
    above = int((table["predicted"] > beside).sum())
    tissue = f", what two halves of the counts share (tissue without noise) {number(mean['tissue'], 2)}"
    return (
        f"Predicted genes are smoother than tissue in {above} of {len(table)} sections: mean Moran's I "
        f"{number(mean['predicted'], 2)}, measured {number(mean[MEASURED], 2)}{tissue if known.any() else ''}. "
        f"{percent(mean['varies_predicted'])} of predicted and {percent(mean['varies_measured'])} of measured genes "
        f"'vary in space'; of the {percent(TOP)} that vary most {percent(mean['top_shared'])} are the same, by chance "
        f"{percent(TOP)}. Noise as smooth as that correlates with a measured gene by up to {number(mean['chance'], 2)} "
        f"(95 %); {percent(mean['beyond_chance'])} of the genes are beyond it."
    )


def domain_words(after: After) -> str:
    """Say whether predicted genes tell domains better than what holds no gene."""
    if not after.compared:
        return f"{len(NUMBERS)} divisions of each section were made. {UNCOMPARED}"
    table = after.domains
    names = [name for name in BASELINES if table[name].notna().any()]
    people = table.groupby("patient")[names].mean()
    mean, ours = people.mean(), people["predicted"]
    rivals = [name for name in names if name not in ("predicted", "halves")]
    best = max(rivals, key=lambda name: mean[name])
    won = int((ours > people[rivals].max(axis=1)).sum())
    beyond = int((table["predicted"] > table["noise_high"]).sum())
    again = f"; {BASELINES['halves']} agree by {number(mean['halves'], 2)}" if "halves" in names else ""
    return (
        f"Domains of predicted genes agree with measured ones by {number(mean['predicted'], 2)} (adjusted Rand index), "
        f"those of {BASELINES[best]} by {number(mean[best], 2)}{again}. They are better than everything that holds no "
        f"gene in {won} of {len(people)} patients, and than 95 % of smooth noise in {beyond} of {len(table)} sections."
    )


def marker_words(after: After) -> str:
    """Say which scores hold on these sections."""
    table = after.markers
    if table.empty:
        return f"No set has {markers.FEWEST} genes in the panel: none can be scored."
    if not after.compared:
        return f"{table['set'].nunique()} sets have {markers.FEWEST} genes or more in the panel. {UNCOMPARED}"
    known = table[table["pearson"].notna()]
    if known.empty:
        return "No score varies in what was measured: none can be compared."
    by_set = known.groupby(["set", "patient"])["pearson"].mean().groupby("set").mean().sort_values()
    beyond = (known["pearson"] > known["chance"]).groupby(known["set"]).agg(["sum", "count"]).loc[by_set.index[::-1]]
    held = [f"{name} in {own['sum']} of {own['count']} sections" for name, own in beyond.iterrows()]
    return (
        f"Scores agree with measured ones by r {number(by_set.iloc[-1], 2)} ({by_set.index[-1]}) down to "
        f"{number(by_set.iloc[0], 2)} ({by_set.index[0]}), those of random sets by "
        f"{number(known['random_sets'].mean(), 2)}. Beyond 95 % of smooth noise: {', '.join(held)}."
    )


def conclusion(after: After) -> str:
    """Say in one sentence what of all this holds on these sections."""
    if not after.compared:
        return UNCOMPARED
    rivals = [name for name in BASELINES if name not in ("predicted", "halves") and after.domains[name].notna().any()]
    people = after.domains.groupby("patient")[["predicted", *rivals]].mean()
    won = int((people["predicted"] > people[rivals].max(axis=1)).sum())
    known = after.markers[after.markers["pearson"].notna()] if len(after.markers) else after.markers
    scores = f"{int((known['pearson'] > known['chance']).sum())} of {len(known)}" if len(known) else "none"
    return (
        f"Domains of predicted genes show more of the tissue than anything that holds no gene in {won} of "
        f"{plural(len(people), 'patient')}; of the scores of cells {scores} are beyond 95 % of smooth noise. Clean "
        "borders and strong patterns alone are no evidence: predictions are smooth wherever the picture is."
    )


def marker_summary(after: After) -> pd.DataFrame:
    """Return the mean over patients of every number of a set, most alike first; with the number of sections."""
    table = after.markers
    columns = [name for name in table.columns if name not in ("section", "patient", "set", "genes")]
    means = table.groupby(["set", "patient"])[columns].mean().groupby("set").mean()
    means.insert(0, "sections", table.groupby("set")["section"].nunique())
    return means.sort_values("pearson" if "pearson" in means else "moran_predicted", ascending=False)


def most_varying(after: After, *, most: int = 10) -> pd.DataFrame:
    """Return the genes of the drawn section that vary most in space, as predicted and, where known, as measured."""
    import pandas as pd

    own = after.genes[after.genes["section"] == after.slide.name]
    lists = {}
    for name in ("predicted", MEASURED):
        if f"moran_{name}" in own and own[f"moran_{name}"].notna().any():
            first = own.sort_values(f"moran_{name}", ascending=False, kind="stable").head(most)
            lists[name] = first["symbol"].tolist()
            lists[f"Moran's I, {name}"] = first[f"moran_{name}"].round(2).tolist()
    return pd.DataFrame(lists)


# Pictures.


def shown(figure: Figure | None, path: Path) -> Image | None:
    """Write a figure and return it for a notebook; None where there is none."""
    from IPython.display import Image

    return None if figure is None else Image(filename=save(figure, path), width=900)


def coherence_figure(after: After) -> Figure:
    """Draw Moran's I of each gene of the drawn section, predicted against measured, and of all sections."""
    slide = after.slide
    genes = after.genes[after.genes["section"] == slide.name]
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(9.5, 3.6), width_ratios=[1, 1.35])
        if slide.measured is None:
            left.hist(genes["moran_predicted"], bins=20, color=CYCLE[0])
            left.set(xlabel="Moran's I, predicted", ylabel="genes", title=slide.name)
        else:
            left.plot(genes["moran_measured"], genes["moran_predicted"], ".", color=CYCLE[0], alpha=0.6, label="gene")
            left.axline((0, 0), slope=1, color=MUTED, lw=0.8)
            tissue = after.coherence.set_index("section").loc[slide.name, "tissue"]
            if np.isfinite(tissue):
                left.axhline(tissue, color=CYCLE[1], lw=1.2, ls="--", label="tissue without noise, mean")
            left.set(xlabel="Moran's I, measured", ylabel="Moran's I, predicted", title=slide.name)
            left.legend(fontsize=8, loc="lower right")
        for name, words, mark, colour in (
            (MEASURED, "measured", "o", INK),
            ("tissue", "tissue without noise", "D", CYCLE[1]),
            ("predicted", "predicted", "s", CYCLE[0]),
        ):
            if name in after.coherence:
                right.plot(after.coherence[name], np.arange(len(after.coherence)), mark, color=colour, label=words)
        _sections_down(right, after.coherence["section"].tolist(), "mean Moran's I over genes")
    return figure


def _sections_down(axes: Axes, names: list[str], words: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(words)
    axes.grid(axis="x", color=LINE, lw=0.6)
    axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))


def domain_maps(slide: Slide, *, count: int = 4, seed: int = 0) -> Figure:
    """Draw one section's domains by what they are told from; those that overlap most with the measured share a colour.

    Parameters
    ----------
    slide
        The section.
    count
        How many domains.
    seed
        Of the noise and the random genes.
    """
    sources = told_from(slide, rng=np.random.default_rng(seed))
    first = {} if slide.measured is None else {MEASURED: slide.measured}
    drawn = {name: domains(values, slide, [count])[0] for name, values in (first | sources).items()}
    reference = next(iter(drawn.values()))
    with style() as mpl:
        rows = -(-len(drawn) // 3)
        figure, axes = canvas(rows, 3, figsize=(9.5, (3.1 * _aspect(slide) + 0.4) * rows), squeeze=False)
        colours = mpl.colors.ListedColormap([CYCLE[at % len(CYCLE)] for at in range(count)])
        for one in axes.ravel()[len(drawn) :]:
            one.set_axis_off()
        for one, (name, labels) in zip(axes.ravel(), drawn.items(), strict=False):
            _spots(one, slide, _matched(labels, reference, count), cmap=colours, limits=(-0.5, count - 0.5))
            one.set_title(MEASURED if name == MEASURED else BASELINES[name])
    return figure


def _matched(labels: np.ndarray, reference: np.ndarray, count: int) -> np.ndarray:
    """Return labels renumbered so that as many spots as can be have the reference's."""
    from scipy.optimize import linear_sum_assignment

    shared = np.zeros((count, count))
    np.add.at(shared, (labels, reference), 1)
    return np.asarray(linear_sum_assignment(-shared)[1])[labels]


def _aspect(slide: Slide) -> float:
    """Return the height of what is shown of a slide over its width."""
    low, high = maps.window(slide.coords, spot_pitch(slide.coords))
    return float((high[1] - low[1]) / (high[0] - low[0]))


def _spots(axes: Axes, slide: Slide, values: np.ndarray, **look: object) -> None:
    image, scale = slide.image
    coords = slide.coords * scale
    pitch = spot_pitch(coords)
    maps.spot_map(axes, coords, values, diameter=maps.TOUCHING * pitch, image=image, bar=False, **look)
    maps.frame(axes, *maps.window(coords, pitch))


def domain_figure(after: After) -> Figure | None:
    """Draw how well domains agree with measured ones, by what they are told from; None without counts."""
    table = after.domains
    if not after.compared:
        return None
    with style():
        figure, axes = canvas(figsize=(8, 0.36 * len(table) + 1.6))
        for at, name in enumerate(one for one in BASELINES if table[one].notna().any()):
            colour = INK if name == "halves" else CYCLE[at % len(CYCLE)]
            axes.plot(table[name], range(len(table)), MARKS[name], color=colour, alpha=0.85, label=BASELINES[name])
        axes.plot(table["noise_high"], range(len(table)), "|", color=MUTED, ms=12, label="95 % of the noise")
        words = f"adjusted Rand index, mean over {', '.join(map(str, NUMBERS))} domains"
        _sections_down(axes, table["section"].tolist(), words)
        axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def score_maps(slide: Slide, *, most: int = 3) -> Figure | None:
    """Draw scores of one section as measured, as measured and smoothed, and as predicted; None where none is scored.

    Parameters
    ----------
    slide
        The section.
    most
        Sets that are drawn: the first.
    """
    sets = markers.sets_in(slide.genes, slide.symbols)
    predicted = markers.scores(slide.predicted, dict(list(sets.items())[:most]))
    if not predicted:
        return None
    same = {name: sets[name] for name in predicted}
    measured = {} if slide.measured is None else markers.scores(slide.measured, same)
    rows: list[dict[str, np.ndarray]] = [predicted]  # side by side where there is nothing beside them
    if measured:
        rows = [_beside(slide, measured[name], score) for name, score in predicted.items()]
    with style():
        shape = (len(rows), len(rows[0]))
        figure, axes = canvas(*shape, figsize=(3.2 * shape[1], (3.0 * _aspect(slide) + 0.4) * shape[0]), squeeze=False)
        for row, words, name in zip(axes, rows, predicted, strict=False):
            for one, (title, values) in zip(row, words.items(), strict=True):
                standard = (values - values.mean()) / (values.std() or 1.0)
                _spots(one, slide, standard, limits=(-REACH, REACH))
                one.set_title(title if measured else f"{title}, predicted")
            row[0].set_ylabel(name if measured else "")
    return figure


def _beside(slide: Slide, truth: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is drawn of one set, by its title: (n,) each."""
    level = coherence_of(score[:, None], slide.graph)
    return {
        MEASURED: truth,
        "measured, smoothed": smoothed_to(truth[:, None], slide, level)[:, 0],
        f"predicted (r {number(metrics.pearson(truth[:, None], score[:, None])[0], 2)})": score,
    }


def marker_figure(after: After) -> Figure | None:
    """Draw the agreement of each set's scores, a mark a section, beside what smooth noise and random sets reach."""
    table = after.markers
    if table.empty or "pearson" not in table:
        return None
    names = marker_summary(after).index.tolist()
    with style():
        figure, axes = canvas(figsize=(8, 0.4 * len(names) + 1.4))
        place = table["set"].map({name: at for at, name in enumerate(names)})
        axes.plot(table["chance"], place, "|", color=MUTED, ms=11, label="95 % of smooth noise")
        axes.plot(table["random_sets"], place - 0.18, ".", color=CYCLE[1], alpha=0.7, label="random sets")
        axes.plot(table["pearson"], place, "o", color=CYCLE[0], alpha=0.8, mec="none", label="predicted")
        axes.axvline(0, color=LINE, lw=1, zorder=0)
        _sections_down(axes, names, "correlation with the measured score, a mark a section")
    return figure
