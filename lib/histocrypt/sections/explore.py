"""What is there before anything is done to it: summaries and pictures of sections, one section in memory at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from histocrypt.sections.section import Section, SectionFiles


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
    gene_share: dict[str, float] = field(repr=False)
    """Share of all counts by gene symbol, largest first, the fifty largest."""
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def summarise(section: Section, *, max_side: int = 500) -> Summary:
    """Summarise one section; the thumbnail has at most ``max_side`` pixels along its longer side."""
    counts = section.adata.X
    thumbnail, scale = section.image.thumbnail(max_side)
    per_gene = np.asarray(counts.sum(axis=0)).ravel()
    symbols = np.asarray(section.adata.var["symbol"] if "symbol" in section.adata.var else section.adata.var_names)
    largest = np.argsort(-per_gene, kind="stable")[:50]
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
        gene_share={str(symbols[i]): float(per_gene[i] / max(per_gene.sum(), 1)) for i in largest},
        dropped=dict(section.dropped),
        notes=list(section.notes),
    )


def listing(summary: Summary, files: SectionFiles) -> dict[str, Any]:
    """Return what the workflow must know of a section: who it is, how it is read, and which files to watch."""
    from histocrypt.sections.read import watched

    return {
        "section": summary.section,
        "patient": summary.patient,
        "dropped": summary.dropped,
        "notes": summary.notes,
        "read_as": {key: str(value) for key, value in asdict(files).items()},
        "files": [str(path) for path in watched(files)],
    }


def table(summaries: list[Summary], *, min_counts: int) -> pd.DataFrame:
    """Return one row per section: spots, genes, depth, and how many spots lie below ``min_counts`` counts."""
    import pandas as pd

    rows = [
        {
            "section": one.section,
            "patient": one.patient,
            "spots": len(one.counts),
            "genes": one.genes,
            "median counts": int(np.median(one.counts)),
            "median genes": int(np.median(one.detected)),
            f"spots under {min_counts} counts": int((one.counts < min_counts).sum()),
            "dropped by the reader": ", ".join(f"{number} {why}" for why, number in one.dropped.items()) or "none",
            "µm/px": round(one.um_per_px, 4),
            "µm/px from": one.um_per_px_source,
        }
        for one in summaries
    ]
    return pd.DataFrame(rows).set_index("section")


def depth_figure(summaries: list[Summary], *, min_counts: int) -> Figure:
    """Draw counts per spot and genes per spot, one violin a section, coloured by patient."""
    import matplotlib.pyplot as plt
    import pandas as pd
    import seaborn as sns

    spots = pd.DataFrame(
        {
            "section": np.repeat([one.section for one in summaries], [len(one.counts) for one in summaries]),
            "patient": np.repeat([one.patient for one in summaries], [len(one.counts) for one in summaries]),
            "log10 counts per spot": np.log10(np.concatenate([one.counts for one in summaries]) + 1),
            "genes per spot": np.concatenate([one.detected for one in summaries]),
        }
    )
    height = 0.8 + 0.4 * len(summaries)
    figure, axes = plt.subplots(1, 2, figsize=(10, height), sharey=True, layout="constrained")
    for axis, column in zip(axes, ("log10 counts per spot", "genes per spot"), strict=True):
        sns.violinplot(
            spots, x=column, y="section", hue="patient", ax=axis, cut=0, inner="quart", linewidth=0.8, legend=False
        )
        axis.set_ylabel("")
    axes[0].axvline(np.log10(min_counts + 1), color="0.3", linestyle="--", linewidth=1)
    axes[0].set_title(f"dashed: {min_counts} counts", fontsize=9)
    return figure


def spot_maps(summaries: list[Summary], *, min_counts: int, columns: int = 3) -> Figure:
    """Draw every section's H&E with its spots coloured by depth; spots under ``min_counts`` are crossed out."""
    import matplotlib.pyplot as plt

    rows = -(-len(summaries) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3.6 * rows), layout="constrained", squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, one in zip(axes.ravel(), summaries, strict=False):
        axis.imshow(one.thumbnail)
        low = one.counts < min_counts
        axis.scatter(*one.coords[~low].T, c=np.log10(one.counts[~low] + 1), s=18, cmap="viridis", linewidths=0)
        axis.scatter(*one.coords[low].T, c="crimson", marker="x", s=16, linewidths=1)
        bar = 1000 / one.thumbnail_um_per_px
        left, bottom = 0.04 * one.thumbnail.shape[1], 0.97 * one.thumbnail.shape[0]
        axis.plot([left, left + bar], [bottom, bottom], color="black", linewidth=3, solid_capstyle="butt")
        axis.set_title(f"{one.section} ({one.patient}), bar 1 mm", fontsize=9)
    return figure


def largest_genes(summaries: list[Summary], *, n: int = 15) -> pd.DataFrame:
    """Return the genes with the largest share of all counts, section by section, in percent."""
    import pandas as pd

    shares = pd.DataFrame({one.section: one.gene_share for one in summaries})
    order = shares.mean(axis=1).sort_values(ascending=False).index
    return (100 * shares.loc[order[:n]]).round(2)
