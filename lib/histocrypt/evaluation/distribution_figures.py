"""Pictures of predicted distributions. Very specific, not for general use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histocrypt.evaluation import maps
from histocrypt.evaluation.distribution_scores import read_samples
from histocrypt.evaluation.figures import CYCLE, INK, LINE, canvas, style
from histocrypt.evaluation.scores import read_folds, title_of
from histocrypt.evaluation.truth import as_mapping, join, read_h5ad, read_prediction, transforms_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from histocrypt.study import Study


def variation_curves(study: Study, model: str, *, beside: str = "encoder_ridge") -> Figure:
    """Draw how much each gene varies over spots: measured, and as the model's mean, single draws and a regression say.

    Four panels: genes ordered by measured mean and by measured variance; absolute, and as a share of the measured
    variance, where 1 is right. All are means over held-out sections.
    """
    values = _variances(study, model, beside)
    measured = values.pop("measured")
    orders = {"mean": np.argsort(values.pop("mean")), "variance": np.argsort(measured)}
    with style():
        figure, axes = canvas(2, 2, figsize=(7.4, 4.6), sharex=True)
        for column, (name, order) in enumerate(orders.items()):
            absolute, share = axes[0, column], axes[1, column]
            absolute.plot(measured[order], color=INK, lw=2, label="measured")
            share.axhline(1, color=INK, lw=2)
            for i, (label, found) in enumerate(values.items()):
                look = {"color": CYCLE[i], "ms": 3, "mec": "none", "alpha": 0.8}
                absolute.plot(found[order], "os^"[i], label=label, **look)
                share.plot(found[order] / np.maximum(measured[order], 1e-9), "os^"[i], **look)
            absolute.set_title(f"genes ordered by measured {name}")
            share.set(xlabel=f"genes, by measured {name}", xticks=[])
            for one in (absolute, share):
                one.set_yscale("log")
                one.grid(axis="y", color=LINE, lw=0.6)
        axes[0, 0].set_ylabel("variance over spots")
        axes[1, 0].set_ylabel("share of measured variance")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=4, fontsize=8.5, loc="outside upper center")
    return figure


def _variances(study: Study, model: str, beside: str) -> dict[str, np.ndarray]:
    """Return (g,) means over sections by label; genes that only some folds predict are averaged over these."""
    sums: dict[str, dict[str, list[float]]] = {}
    for fold in read_folds(study):
        samples = read_samples(study.run.samples(model, fold["name"]))
        for section in fold["test_sections"]:
            clean = read_h5ad(study.run.section(section), what="cleaned section")
            for name in (model, beside):
                prediction = read_prediction(study.run.prediction(name, fold["name"]))
                main = transforms_of(prediction)[0]
                pair = join(prediction, clean, section, transforms=[main])
                found = {title_of(name): pair.predicted[main].var(axis=0)}
                if name == model:
                    mean = {"mean": pair.true[main].mean(axis=0), "measured": pair.true[main].var(axis=0)}
                    found = {f"{title_of(name)}, mean": found[title_of(name)], **mean}
                    found["single draws of it"] = _single(samples.of(pair))
                for label, values in found.items():
                    for gene, value in zip(pair.genes.tolist(), values.tolist(), strict=True):
                        sums.setdefault(label, {}).setdefault(gene, []).append(value)
    genes = list(sums["measured"])
    return {label: np.array([np.mean(of[gene]) for gene in genes]) for label, of in sums.items()}


def _single(samples: np.ndarray) -> np.ndarray:
    """Return the variance over spots of single draws, (g,): its mean over the draws (n, K, g)."""
    return samples.var(axis=0).mean(axis=0)


def marker_maps(study: Study, model: str, genes: list[str], *, fold: str, section: str) -> Figure:
    """Map genes in a held-out section: measured, the mean, one draw, and how unsure the model is (sd of the draws).

    ``genes`` are ids or symbols; those that are not in the panel are left out.
    """
    samples = read_samples(study.run.samples(model, fold))
    clean = read_h5ad(study.run.section(section), what="cleaned section")
    prediction = read_prediction(study.run.prediction(model, fold))
    main = transforms_of(prediction)[0]
    pair = join(prediction, clean, section, transforms=[main])
    known = {**{name: i for i, name in enumerate(pair.symbols)}, **{name: i for i, name in enumerate(pair.genes)}}
    columns = [known[gene] for gene in genes if gene in known]
    drawn, spacing = samples.of(pair), maps.pitch(pair.coords)
    low, high = maps.window(pair.coords, spacing)
    um = float(as_mapping(clean.uns.get("preprocessing")).get("um_per_px", 1.0))
    with style():
        figure, axes = canvas(len(columns), 4, figsize=(7.4, 1.75 * len(columns) + 0.3), squeeze=False)
        for row, column in zip(axes, columns, strict=True):
            true, mean = pair.true[main][:, column], pair.predicted[main][:, column]
            least, most, _ = maps.colour_limits(true, mean)
            shown = [true, mean, drawn[:, 0, column], drawn[:, :, column].std(axis=1, ddof=1)]
            for k, (one, value) in enumerate(zip(row, shown, strict=True)):
                unsure = k == 3
                spots = maps.spots(
                    one, pair.coords, value, diameter=maps.TOUCHING * spacing, cmap="cividis" if unsure else maps.VALUES
                )
                spots.set_clim(*((0, value.max()) if unsure else (least, most)))
                maps.frame(one, low, high)
                if k >= 2:
                    bar = figure.colorbar(spots, ax=one, shrink=0.75, pad=0.02, aspect=18)
                    bar.outline.set_visible(False)
                    bar.ax.tick_params(labelsize=7, length=2)
            row[0].set_ylabel(f"{pair.symbols[column]}", fontsize=9)
            maps.scale_bar(row[0], low, high, um)
        for one, name in zip(axes[0], ("measured", "mean of the draws", "one draw", "sd of the draws"), strict=True):
            one.set_title(name, fontsize=9)
    return figure
