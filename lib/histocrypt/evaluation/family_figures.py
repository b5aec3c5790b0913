"""Pictures of what only some models have: encrypted inference, distributions, genes beyond the panel.

Very specific, not for general use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation import maps
from histocrypt.evaluation.figures import CYCLE, INK, LINE, MUTED, canvas, log_scale, style
from histocrypt.evaluation.he2gene import CP10K
from histocrypt.evaluation.scores import read_folds, title_of
from histocrypt.evaluation.stem import read_samples
from histocrypt.pipeline.predictions import as_mapping, join, read_h5ad, read_prediction, transforms_of
from histocrypt.spatial import spot_pitch

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

    from histocrypt.study import Study

STAGES = {
    "compile": "compile (model owner, once)",
    "keygen": "make keys (hospital, once)",
    "encrypt": "cut, check, encrypt (hospital)",
    "evaluate": "predict on ciphertexts (evaluator)",
    "decrypt": "decrypt (hospital)",
}


def journey(
    tile: np.ndarray,
    ciphertext: bytes,
    symbols: Sequence[str],
    clear: np.ndarray,
    encrypted: np.ndarray,
    *,
    places: int = 1,
) -> Figure:
    """Draw one spot before, encrypted, and after.

    Parameters
    ----------
    tile
        (S, S, 3) uint8, what the hospital sees.
    ciphertext
        What the evaluator sees; the lowest byte of its last 4,096 coefficients, those of one polynomial, is drawn as
        grey values.
    symbols
        Names of the genes.
    clear, encrypted
        (genes,) predictions of this spot.
    places
        Spots that share the ciphertext.
    """
    with style():
        figure, (left, middle, right) = canvas(1, 3, figsize=(9.5, 3.2), width_ratios=[1, 1, 1.35])
        left.imshow(tile)
        left.set_title("what the hospital sees")
        pixels = (np.frombuffer(ciphertext[-8 * 4096 :], dtype="<u8") & 255).reshape(64, 64)
        middle.imshow(pixels, cmap="gray", interpolation="nearest")
        among = f",\n{places} spots" if places > 1 else ""
        middle.set_title(f"what the evaluator sees ({len(ciphertext) / 2**20:.1f} MiB{among})")
        for axes in (left, middle):
            axes.set_xticks([])
            axes.set_yticks([])
        shown = np.argsort(-clear)[:12]
        rows = np.arange(len(shown))
        right.barh(rows, clear[shown], color=MUTED, label="in the clear")
        right.plot(encrypted[shown], rows, "D", color=CYCLE[1], markersize=5, label="decrypted")
        right.set_yticks(rows, [symbols[index] for index in shown])
        right.invert_yaxis()
        right.set_title("what the hospital gets")
        right.set_xlabel("predicted expression")
        right.legend(loc="lower right", fontsize=8)
    return figure


def agreement(genes: pd.DataFrame, clear: np.ndarray, encrypted: np.ndarray) -> Figure:
    """Draw encrypted against clear values, and the largest error of each gene.

    Parameters
    ----------
    genes
        From `evaluation.agreement.agreement`.
    clear, encrypted
        (n, genes) predictions.
    """
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(9.5, 3.4))
        left.plot(clear.ravel(), encrypted.ravel(), ".", color=CYCLE[0], markersize=2, alpha=0.4, rasterized=True)
        ends = [float(clear.min()), float(clear.max())]
        left.plot(ends, ends, color=INK, linewidth=0.8)
        left.set_xlabel("in the clear")
        left.set_ylabel("decrypted")
        left.set_title(f"{clear.size:,} predictions")
        errors = np.log10(np.maximum(genes["max_abs_error"], 1e-12))
        right.hist(errors, bins=20, color=CYCLE[0])
        right.axvline(-2, color=CYCLE[1], linewidth=1)
        right.annotate("limit", (-2, right.get_ylim()[1]), color=CYCLE[1], ha="right", va="top", rotation=90)
        right.set_xlabel("largest error of a gene, log10 of standard deviations")
        right.set_ylabel("genes")
    return figure


def cost(content: Mapping[str, Any]) -> Figure:
    """Draw seconds by step and memory by party; ``content`` as in ``agreement.json``."""
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(9.5, 2.4), width_ratios=[1.6, 1])
        seconds = [content["seconds"][name] for name in STAGES]
        left.barh(list(STAGES.values()), seconds, color=CYCLE[0])
        for row, value in enumerate(seconds):
            left.annotate(f" {value:.1f} s", (value, row), va="center")
        left.invert_yaxis()
        left.set_xlim(0, 1.15 * max(seconds))
        left.set_xlabel(f"seconds, {content['spots']} spots")
        parties = {name.replace("_", " "): value for name, value in content["peak_gib"].items()}
        right.barh(list(parties), list(parties.values()), color=CYCLE[2])
        for row, value in enumerate(parties.values()):
            right.annotate(f" {value:.1f} GiB", (value, row), va="center")
        right.set_xlim(0, 1.3 * max(parties.values()))
        right.set_xlabel("largest memory, GiB")
    return figure


def beside(table: pd.DataFrame) -> Figure:
    """Draw what a tile takes each way, and its error.

    Parameters
    ----------
    table
        A row for each way, with the columns ``parties``, ``a tile, s``, ``a tile, CPU s``, ``memory, GiB`` and
        ``largest error, sd``, from `encrypted.one_party`.
    """
    measures = {"a tile, s": ".2g", "a tile, CPU s": ".2g", "memory, GiB": ".1f", "largest error, sd": ".0e"}
    hues = {"in the clear": MUTED, "one party": CYCLE[1], "two parties": CYCLE[0]}
    with style():
        figure, axes = canvas(1, len(measures), figsize=(9.5, 0.8 + 0.4 * len(table)), sharey=True)
        for one, (name, form) in zip(axes, measures.items(), strict=True):
            values = table[name].clip(lower=1e-9)
            one.barh(list(table.index), values, color=[hues[parties] for parties in table["parties"]])
            one.set_xscale("log")
            one.set_xlim(values.min() / 3, values.max() * 30)
            for row, value in enumerate(table[name]):
                one.annotate(f" {value:{form}}", (max(value, 1e-9), row), va="center", fontsize=8)
            one.set_xlabel(name)
        axes[0].invert_yaxis()
        whose = {
            way: "" if parties == "in the clear" else f"\n({parties})" for way, parties in table["parties"].items()
        }
        axes[0].set_yticks(range(len(table)), [f"{way}{parties}" for way, parties in whose.items()])
    return figure


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
                log_scale(one, "y")
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
    drawn, spacing = samples.of(pair), spot_pitch(pair.coords)
    low, high = maps.window(pair.coords, spacing)
    um = float(as_mapping(clean.uns.get("preprocessing")).get("um_per_px", 1.0))
    with style():
        figure, axes = canvas(len(columns), 4, figsize=(7.4, 1.75 * len(columns) + 0.3), squeeze=False)
        for row, column in zip(axes, columns, strict=True):
            true, mean = pair.true[main][:, column], pair.predicted[main][:, column]
            least, most, _ = maps.colour_limits(true, mean)
            look = {"diameter": maps.TOUCHING * spacing, "limits": (least, most)}
            spread = drawn[:, :, column].std(axis=1, ddof=1)
            maps.spot_map(row[0], pair.coords, true, bar=False, **look)
            maps.spot_map(row[1], pair.coords, mean, bar=False, **look)
            maps.spot_map(row[2], pair.coords, drawn[:, 0, column], **look)
            look |= {"limits": (0, spread.max()), "cmap": "cividis"}
            maps.spot_map(row[3], pair.coords, spread, **look)
            for one in row:
                maps.frame(one, low, high)
            row[0].set_ylabel(f"{pair.symbols[column]}", fontsize=9)
            maps.scale_bar(row[0], low, high, um)
        for one, name in zip(axes[0], ("measured", "mean of the draws", "one draw", "sd of the draws"), strict=True):
            one.set_title(name, fontsize=9)
    return figure


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
            axis.hist(own["pearson"], bins=BINS, histtype="stepfilled", color="#c9d3d8", label="all")
            better = own.loc[good, "pearson"]
            axis.hist(better, bins=BINS, histtype="stepfilled", color=CYCLE[0], label="better than chance")
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


def panel_marker_maps(
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
    image, scale = maps.backdrop(section, tiles)
    um = float(as_mapping(section.uns.get("preprocessing")).get("um_per_px", 1.0))
    coords = one.coords * scale
    return maps.side_by_side(panels, coords, um_per_unit=um / scale, spacing=spot_pitch(coords), image=image)
