"""What is there before anything is done to it: summaries and pictures of sections, one section in memory at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.figure_style import CYCLE, INK, LINE, MUTED, SPREAD, VALUES, bare, canvas, style
from histocrypt.sections.section import SectionSize, size_of

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from histocrypt.explore.batch import Sample
    from histocrypt.explore.confounding import Confounding
    from histocrypt.explore.registration import Registration
    from histocrypt.sections.section import Section, SectionFiles
    from histocrypt.spatial import Spacing
    from histocrypt.tissue.stain import StainStatistics

SHARES = 5000
"""Most abundant genes of a section whose shares are kept."""
CANDIDATES = 300
"""Most abundant genes of a section among which one with a pattern is looked for."""
CLEAREST = 30
"""Genes whose maps are kept, so that the section need not be read again for the one that is shown."""


@dataclass(frozen=True)
class Summary:
    """What a page needs to know about one section; small enough to keep for hundreds of them."""

    section: str
    patient: str
    genes: int
    um_per_px: float
    um_per_px_source: str
    counts: np.ndarray
    """(n_spots,) total counts."""
    detected: np.ndarray
    """(n_spots,) genes with at least one count."""
    coords: np.ndarray
    """(n_spots, 2) spot centres in thumbnail pixels."""
    thumbnail: np.ndarray
    """(h, w, 3) uint8."""
    thumbnail_um_per_px: float
    size: SectionSize
    gene_share: dict[str, float] = field(repr=False)
    """Share of all counts by gene symbol, largest first, the `SHARES` largest that were seen at all."""
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def summarise(section: Section, *, max_side: int = 500) -> Summary:
    """Summarise one section; the thumbnail has at most ``max_side`` pixels along its longer side."""
    counts = section.adata.X
    thumbnail, scale = section.image.thumbnail(max_side)
    per_gene = np.asarray(counts.sum(axis=0)).ravel()
    total, symbols = per_gene.sum(), _symbols(section)
    largest = np.argsort(-per_gene, kind="stable")[:SHARES]
    gene_share: dict[str, float] = {}
    for gene in largest[per_gene[largest] > 0]:  # several ids may share a symbol
        gene_share[str(symbols[gene])] = gene_share.get(str(symbols[gene]), 0) + float(per_gene[gene] / total)
    return Summary(
        section=section.id,
        patient=section.patient,
        genes=section.adata.n_vars,
        um_per_px=section.um_per_px,
        um_per_px_source=section.um_per_px_source,
        counts=np.asarray(counts.sum(axis=1)).ravel(),
        detected=np.asarray((counts > 0).sum(axis=1)).ravel(),
        coords=section.coords * scale,
        thumbnail=thumbnail,
        thumbnail_um_per_px=section.um_per_px / scale,
        size=size_of(section),
        gene_share=gene_share,
        dropped=dict(section.dropped),
        notes=list(section.notes),
    )


@dataclass(frozen=True)
class Look:
    """What one reading of a section gives; all of it is small."""

    summary: Summary
    registration: Registration
    spacing: Spacing | None
    """None for a section of one spot."""
    confounding: Confounding | None
    """None where there is too little to say."""
    sample: Sample
    """Spots kept to compare sections."""
    stain: StainStatistics
    """Stains as found on the thumbnail."""
    patterns: dict[str, float] = field(repr=False)
    """Gene id -> variance of its smoothed ranks, for the most abundant genes: high where neighbours agree."""
    ranks: dict[str, np.ndarray] = field(repr=False)
    """Gene id -> (n_spots,) smoothed ranks, for the `CLEAREST` genes of the clearest patterns."""


def look(section: Section, *, min_counts: int = 0, spots: int = 150, seed: int = 0) -> Look:
    """Look at one section: summary, registration, distances, confounding, and ``spots`` spots to compare it by.

    Looking is all that this is for: nothing of it is read by a later stage but the list of sections. Spots with fewer
    than ``min_counts`` counts take no part in confounding and comparison.
    """
    from histocrypt.explore.batch import sample
    from histocrypt.explore.confounding import confounding
    from histocrypt.explore.registration import at, haematoxylin, over_discs, registration
    from histocrypt.spatial import spacing
    from histocrypt.tissue.preprocess import spot_diameter_um

    summary, stained = summarise(section), haematoxylin(section)
    patterns, ranks = _patterns(section)
    density, _ = at(over_discs(stained, spot_diameter_um(section)), section.coords)
    return Look(
        summary=summary,
        registration=registration(section, stained, seed=seed),
        spacing=spacing(section.id, section.coords * section.um_per_px) if section.n_spots > 1 else None,
        confounding=confounding(section, density, min_counts=min_counts),
        sample=sample(section, spots=spots, min_counts=min_counts, seed=seed),
        stain=stained.statistics,
        patterns=patterns,
        ranks=ranks,
    )


def _patterns(section: Section) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    per_gene = np.asarray(section.adata.X.sum(axis=0)).ravel()
    chosen = np.argsort(-per_gene, kind="stable")[:CANDIDATES]
    if section.n_spots < 2 or not len(chosen):
        return {}, {}
    genes, ranks = section.genes[chosen].tolist(), _ranks(section, chosen)
    spread = ranks.var(axis=0)
    clearest = np.argsort(-spread, kind="stable")[:CLEAREST].tolist()
    return dict(zip(genes, spread.tolist(), strict=True)), {genes[place]: ranks[:, place].copy() for place in clearest}


def _ranks(section: Section, columns: np.ndarray) -> np.ndarray:
    """Return (n, g) smoothed ranks of the depth-normalised counts of some genes."""
    from histocrypt.spatial import smoothed_ranks
    from histocrypt.targets.transforms import transform

    totals = np.asarray(section.adata.X.sum(axis=1), dtype=np.float64).ravel()
    return smoothed_ranks(transform(section.adata.X[:, columns], totals, "log1p_cp10k"), section.coords)


def patterned_gene(looks: list[Look]) -> str:
    """Return the id of the gene with the clearest pattern: the largest mean variance of smoothed ranks.

    Only genes that are among the most abundant of every section take part; "" where there is none.
    """
    common = set.intersection(*(set(look.patterns) for look in looks)) if looks else set()
    return max(sorted(common), key=lambda gene: np.mean([look.patterns[gene] for look in looks]), default="")


def gene_ranks(section: Section, gene: str) -> np.ndarray | None:
    """Return the smoothed ranks of a gene, by id or symbol, over a section's spots, (n,).

    Ranks are of depth-normalised counts. None where the section did not measure the gene or has a single spot.
    """
    column = _column(section, gene)
    return None if column is None or section.n_spots < 2 else _ranks(section, np.array([column]))[:, 0]


def gene_name(section: Section, gene: str) -> str:
    """Return what people call a gene given by id or symbol: its symbol where the section knows one."""
    column = _column(section, gene)
    return gene if column is None else str(_symbols(section)[column])


def _column(section: Section, gene: str) -> int | None:
    places = np.concatenate([np.flatnonzero(names == gene) for names in (section.genes, _symbols(section))])
    return int(places[0]) if len(places) else None


def _symbols(section: Section) -> np.ndarray:
    var = section.adata.var
    return var["symbol"].to_numpy(dtype=str) if "symbol" in var else section.genes


def listing(summary: Summary, files: SectionFiles) -> dict[str, Any]:
    """Return what `listed` says of a section, and what its reader said."""
    return {**listed(files, summary.size), "dropped": summary.dropped, "notes": summary.notes}


def listed(files: SectionFiles, size: SectionSize) -> dict[str, Any]:
    """Return what the workflow must know of a section: who it is, its size, how it is read, which files to watch."""
    from histocrypt.sections.read import watched

    how = {key: str(value) for key, value in asdict(files).items()}
    if files.bin_um is None:  # which the first version did not have
        del how["bin_um"]
    if files.laboratory is None:
        del how["laboratory"]
    del how["counts_only"]  # which a study never asks for
    return {
        "section": files.id,
        "patient": files.patient,
        **({"laboratory": files.laboratory} if files.laboratory else {}),
        "size": asdict(size),
        "read_as": how,
        "files": [str(path) for path in watched(files)],
    }


def table(summaries: list[Summary], *, min_counts: int) -> pd.DataFrame:
    """Return one row per section: spots, genes, depth, and how many spots lie below ``min_counts`` counts."""
    import pandas as pd

    rows = [
        {
            "section": summary.section,
            "patient": summary.patient,
            "spots": len(summary.counts),
            "genes": summary.genes,
            "median counts": int(np.median(summary.counts)),
            "median genes": int(np.median(summary.detected)),
            f"spots under {min_counts} counts": int((summary.counts < min_counts).sum()),
            "dropped by the reader": ", ".join(f"{number} {why}" for why, number in summary.dropped.items()) or "none",
            "µm/px": round(summary.um_per_px, 4),
            "µm/px from": summary.um_per_px_source,
        }
        for summary in summaries
    ]
    return pd.DataFrame(rows).set_index("section")


def show(figure: Figure, path: Path) -> None:
    """Save a figure and show the file in a notebook: it is drawn once, not once for each."""
    import matplotlib.pyplot as plt
    from IPython.display import Image, display

    figure.savefig(path, dpi=110)
    plt.close(figure)
    display(Image(filename=str(path)))


def depth_figure(summaries: list[Summary], *, min_counts: int) -> Figure:
    """Draw counts per spot and genes per spot: a violin per section with its quartiles, a colour per patient."""
    patients = list(dict.fromkeys(one.patient for one in summaries))
    with style():
        figure, axes = canvas(1, 2, figsize=(7.4, 0.9 + 0.36 * len(summaries)), sharey=True)
        for axis, column in zip(axes, ("counts", "detected"), strict=True):
            for row, one in enumerate(summaries):
                values = np.log10(getattr(one, column) + 1)
                colour = CYCLE[patients.index(one.patient) % len(CYCLE)]
                if np.ptp(values) > 0:
                    body = axis.violinplot(values, [row], orientation="horizontal", widths=0.85, showextrema=False)
                    body["bodies"][0].set(facecolor=colour, alpha=0.3, edgecolor="none")
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
                axis.plot([low, high], [row, row], color=colour, linewidth=2.6, solid_capstyle="round")
                axis.plot(middle, row, "o", markersize=5, color=colour)
            axis.grid(axis="x", color=LINE, linewidth=0.6)
            axis.spines["left"].set_visible(False)
            axis.tick_params(axis="y", length=0)
            axis.xaxis.set_major_formatter(lambda value, _: f"{10**value:,.0f}")
        axes[0].set(xlabel=f"counts per spot (dashed: {min_counts})")
        axes[0].axvline(np.log10(min_counts + 1), color=INK, linestyle="--", linewidth=1)
        axes[0].set_yticks(range(len(summaries)), [f"{one.section} ({one.patient})" for one in summaries])
        axes[0].invert_yaxis()
        axes[1].set(xlabel="genes per spot")
    return figure


def spot_maps(summaries: list[Summary], *, min_counts: int, columns: int = 3) -> Figure:
    """Draw every section's H&E with its spots coloured by depth; spots under ``min_counts`` are crossed out."""
    with style():
        figure, axes = _tissues(summaries, columns=columns)
        most = max(np.log10(one.counts.max(initial=0) + 1) for one in summaries)
        least = min(np.log10(one.counts.min(initial=0) + 1) for one in summaries)
        points = None
        for axis, one in zip(axes, summaries, strict=True):
            low, depth = one.counts < min_counts, np.log10(one.counts + 1)
            how = {"cmap": VALUES, "vmin": least, "vmax": most, "linewidths": 0, "s": 14}
            points = axis.scatter(*one.coords[~low].T, c=depth[~low], **how)
            axis.scatter(*one.coords[low].T, c=CYCLE[1], marker="x", s=14, linewidths=1)
        bar = figure.colorbar(points, ax=figure.axes, shrink=0.6, label="counts per spot")
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{10**value:,.0f}")
        bar.outline.set_visible(False)
    return figure


def gene_maps(summaries: list[Summary], ranks: dict[str, np.ndarray | None], *, name: str, columns: int = 3) -> Figure:
    """Draw the smoothed ranks of a gene over every section's H&E.

    Parameters
    ----------
    summaries
        One a section.
    ranks
        Section id -> (n,) values in (0, 1) from `gene_ranks`, or None.
    name
        What the gene is called.

    Raises
    ------
    InputError
        If no section measured it.
    """
    if all(ranks.get(one.section) is None for one in summaries):
        raise InputError(
            f"no section measured {name!r}",
            field="gene",
            fix="give the id or the symbol of a gene that the sections carry",
        )
    with style():
        figure, axes = _tissues(summaries, columns=columns)
        points = None
        for axis, one in zip(axes, summaries, strict=True):
            values = ranks.get(one.section)
            if values is None:
                axis.set_title(f"{one.section}: not measured", fontsize=8.5)
                continue
            how = {"cmap": SPREAD, "vmin": 0, "vmax": 1, "linewidths": 0.2, "edgecolors": MUTED, "s": 20}
            points = axis.scatter(*one.coords.T, c=values, **how)
        bar = figure.colorbar(
            points, ax=figure.axes, shrink=0.6, ticks=[0.05, 0.5, 0.95], label=f"{name}: smoothed rank"
        )
        bar.ax.set_yticklabels(["low", "middle", "high"])
        bar.outline.set_visible(False)
    return figure


def _tissues(summaries: list[Summary], *, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with the H&E of every section, a scale bar in each, and its axes."""
    rows = -(-len(summaries) // columns)
    figure, axes = canvas(rows, columns, figsize=(7.4, 0.2 + 6.8 / columns * rows), squeeze=False)
    for axis in axes.ravel():
        bare(axis)
    used = list(axes.ravel()[: len(summaries)])
    for axis, one in zip(used, summaries, strict=True):
        axis.imshow(one.thumbnail)
        bar = 1000 / one.thumbnail_um_per_px
        left, bottom = 0.04 * one.thumbnail.shape[1], 0.97 * one.thumbnail.shape[0]
        axis.plot([left, left + bar], [bottom, bottom], color=INK, linewidth=2.5, solid_capstyle="butt")
        axis.set_title(f"{one.section} ({one.patient})", fontsize=8.5)
    used[0].set_xlabel("bar: 1 mm", fontsize=7.5, loc="left")
    return figure, used


def words(summaries: list[Summary], checked: list[Registration], genes: pd.DataFrame, compared: pd.DataFrame) -> str:
    """Say in one sentence how deep sections are, whether spots lie right, what depth explains and how sections differ.

    Parameters
    ----------
    summaries, checked
        Of every section.
    genes
        From `confounding.over_sections`.
    compared
        From `batch.batch_table`.
    """
    medians = [np.median(one.counts) for one in summaries]
    patients = len({one.patient for one in summaries})
    verdicts = Counter(one.verdict for one in checked)
    said = [
        f"{len(summaries)} sections of {patients} patients have medians of {min(medians):,.0f} to {max(medians):,.0f} "
        "counts per spot",
        "the check of registration says " + ", ".join(f"{verdict}: {count}" for verdict, count in verdicts.items()),
    ]
    if len(genes):
        raw, normalised = (genes[f"{name}:depth"].median() for name in ("log1p", "log1p_cp10k"))
        said.append(
            f"depth alone explains {raw:.0%} of the variance of the median gene, and {normalised:.0%} after "
            "normalisation by depth"
        )
    apart = compared["explained by section"].dropna()
    if len(apart):
        said.append("sections explain " + ", ".join(f"{share:.0%} of {view}" for view, share in apart.items()))
    return "; ".join(said) + "."


def largest_genes(summaries: list[Summary], *, n: int = 15) -> pd.DataFrame:
    """Return the genes with the largest share of all counts, section by section, in percent."""
    import pandas as pd

    shares = pd.DataFrame({one.section: one.gene_share for one in summaries})
    order = shares.mean(axis=1).sort_values(ascending=False).index
    return (100 * shares.loc[order[:n]]).round(2)
