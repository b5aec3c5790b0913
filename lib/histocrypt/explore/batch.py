"""What tells sections apart: principal components of counts and of frozen image features, and who explains them.

Sections of other patients differ in their biology as well as in staining, scanning and sequencing; no number here can
part the two. It says how far apart sections lie, against labels that are shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.figure_style import CYCLE, canvas, style
from histocrypt.targets.transforms import transform

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from scipy.sparse import csr_matrix

    from histocrypt.sections.section import Section

COMPONENTS = 10
MOST_GENES = 2000
"""Shared genes that vary most."""
SHUFFLES = 100
_SILHOUETTE_SPOTS = 2000
_MARKERS = "os^Dvp*XP<>h"


@dataclass(frozen=True)
class Sample:
    """Some spots of one section, kept for comparison with those of others."""

    section: str
    patient: str
    rows: np.ndarray
    """(n,) int, which spots of the section, ascending."""
    names: np.ndarray
    """(n,) str, ``"<section>:<barcode>"``."""
    coords_px: np.ndarray
    """(n, 2) full-resolution pixels."""
    blocks: np.ndarray
    """(n,) int, the block of neighbouring spots that each lies in."""
    counts: csr_matrix
    """(n, g) raw counts."""
    totals: np.ndarray
    """(n,) total counts over all genes of the section."""
    genes: np.ndarray
    """(g,) str."""


@dataclass(frozen=True)
class Components:
    """Principal components of one view of all sections' spots."""

    view: str
    scores: np.ndarray
    """(n, k)."""
    share: np.ndarray
    """(k,) share of the variance of each."""
    sections: np.ndarray
    """(n,) str."""
    patients: np.ndarray
    """(n,) str."""
    blocks: np.ndarray
    """(n,) str, unique over sections."""


def sample(section: Section, *, spots: int = 150, min_counts: int = 0, seed: int = 0) -> Sample:
    """Draw spots of a section at random, at most ``spots``, with the blocks of neighbours that they lie in.

    Spots with fewer than ``min_counts`` counts are left out, unless the section has none with as many.
    """
    from histocrypt.explore.confounding import spatial_blocks

    totals = np.asarray(section.adata.X.sum(axis=1), dtype=np.float64).ravel()
    deep = np.flatnonzero(totals >= min_counts)
    deep = deep if len(deep) else np.arange(section.n_spots)
    rows = np.sort(np.random.default_rng(seed).permutation(deep)[:spots])
    barcodes = section.adata.obs_names.to_numpy(dtype=str)[rows]
    return Sample(
        section=section.id,
        patient=section.patient,
        rows=rows,
        names=np.array([f"{section.id}:{barcode}" for barcode in barcodes]),
        coords_px=section.coords[rows],
        blocks=spatial_blocks(section.coords)[rows],
        counts=section.adata.X[rows].tocsr(),
        totals=totals[rows],
        genes=section.genes,
    )


def sample_tiles(section: Section, drawn: Sample, *, tile_um: float, tile_px: int) -> np.ndarray:
    """Return the tiles of the drawn spots, (n, tile_px, tile_px, 3) uint8 in raw colours, read window by window.

    Raises
    ------
    InputError
        If the section has no image.
    """
    from histocrypt.tissue.tiles import iter_tiles

    image = section.picture()
    tiles = np.empty((len(drawn.rows), tile_px, tile_px, 3), dtype=np.uint8)
    windows = iter_tiles(image, drawn.coords_px, um_per_px=section.um_per_px, tile_um=tile_um, tile_px=tile_px)
    for index, tile in enumerate(windows):
        tiles[index] = tile
    section.image.release()  # a study's sections must not pile up in memory
    return tiles


def components_of_counts(samples: list[Sample]) -> Components | None:
    """Return the components of log1p_cp10k counts over shared genes; None where sections share fewer than two."""
    import pandas as pd

    measured = [pd.Index(sample.genes) for sample in samples]
    genes = measured[0][np.all([measured[0].isin(other) for other in measured], axis=0)]
    if len(genes) < 2:
        return None
    values = np.concatenate(
        [
            transform(sample.counts[:, own.get_indexer(genes)], sample.totals, "log1p_cp10k")
            for sample, own in zip(samples, measured, strict=True)
        ]
    )
    varying = np.sort(np.argsort(-values.var(axis=0), kind="stable")[:MOST_GENES])
    return components(f"counts, {len(varying)} shared genes", values[:, varying], samples)


def components(view: str, values: np.ndarray, samples: list[Sample]) -> Components:
    """Return the principal components of (n, d) ``values``, whose rows are the spots of ``samples`` in their order.

    Raises
    ------
    InputError
        If the rows are not those of the samples, or fewer than three.
    """
    from sklearn.decomposition import PCA

    sizes = [len(sample.names) for sample in samples]
    if len(values) != sum(sizes) or len(values) < 3:
        rows = f"{max(sum(sizes), 3)} rows"
        raise InputError("rows are not the spots of the samples", field=view, value=len(values), expected=rows)
    values = np.asarray(values, dtype=np.float64)
    kept = min(COMPONENTS, len(values) - 1, values.shape[1])
    # An exact solver: the randomised one would make the picture depend on more than the data.
    solver = "covariance_eigh" if len(values) > values.shape[1] else "full"
    pca = PCA(n_components=kept, svd_solver=solver).fit(values)
    return Components(
        view=view,
        scores=pca.transform(values),
        share=pca.explained_variance_ratio_,
        sections=np.repeat([sample.section for sample in samples], sizes),
        patients=np.repeat([sample.patient for sample in samples], sizes),
        blocks=np.array([f"{sample.section}:{block}" for sample in samples for block in sample.blocks]),
    )


def explained_by(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of the scores' variance that lies between labels: 0 none, 1 all. NaN for a single label."""
    names, group = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    member = np.eye(len(names))[group]
    means = (member.T @ scores) / member.sum(axis=0)[:, None]
    centre = scores.mean(axis=0)
    total = np.square(scores - centre).sum()
    return float((member.sum(axis=0)[:, None] * np.square(means - centre)).sum() / total) if total > 0 else float("nan")


def batch_row(view: Components, *, seed: int = 0) -> dict[str, object]:
    """Return how much of the components sections and patients explain, each beside shuffled labels.

    Labels of sections are shuffled over blocks of neighbouring spots, which stay together: tissue is smooth, so that
    any compact piece of it differs from the next. Labels of patients are shuffled over whole sections, and left out
    where every patient has one section. The silhouette (-1 to 1) is that of sections on the same components.
    """
    from sklearn.metrics import pairwise_distances, silhouette_score

    rng = np.random.default_rng(seed)
    _, first, of_block = np.unique(view.blocks, return_index=True, return_inverse=True)
    names, one_spot = np.unique(view.sections, return_index=True)
    place = np.searchsorted(names, view.sections)
    by_section, by_patient = view.sections[first], view.patients[one_spot]
    chosen = np.sort(rng.permutation(len(view.scores))[:_SILHOUETTE_SPOTS])

    apart = pairwise_distances(view.scores[chosen])

    def silhouette(labels: np.ndarray) -> float:
        labels = labels[chosen]
        return float(silhouette_score(apart, labels, metric="precomputed")) if len(set(labels)) > 1 else float("nan")

    row: dict[str, object] = {
        "view": view.view,
        "variance in components": float(view.share.sum()),
        "explained by section": explained_by(view.scores, view.sections),
    }
    if len(names) > 1:
        shuffled = [rng.permutation(by_section)[of_block] for _ in range(SHUFFLES)]
        row |= {
            "by shuffled blocks": float(np.mean([explained_by(view.scores, labels) for labels in shuffled])),
            "silhouette of sections": silhouette(view.sections),
            "of shuffled blocks": float(np.mean([silhouette(labels) for labels in shuffled[:10]])),
        }
    if 1 < len(np.unique(by_patient)) < len(names):
        others = [explained_by(view.scores, rng.permutation(by_patient)[place]) for _ in range(SHUFFLES)]
        row |= {
            "explained by patient": explained_by(view.scores, view.patients),
            "by shuffled patients": float(np.mean(others)),
        }
    return row


def batch_table(views: list[Components], *, seed: int = 0) -> pd.DataFrame:
    """Return `batch_row` of every view."""
    import pandas as pd

    return pd.DataFrame([batch_row(view, seed=seed) for view in views]).set_index("view").astype(float).round(3)


def batch_figure(views: list[Components]) -> Figure:
    """Draw the first two components of every view: a colour per section, a marker per patient."""
    from textwrap import fill

    import matplotlib as mpl

    sections = list(dict.fromkeys(views[0].sections.tolist()))
    patients = list(dict.fromkeys(views[0].patients.tolist()))
    wide = mpl.colormaps["turbo"].resampled(max(len(sections), 2))
    colours = CYCLE if len(sections) <= len(CYCLE) else [wide(number) for number in range(len(sections))]
    with style():
        figure, axes = canvas(1, len(views), figsize=(7.4, 2.9 + 0.14 * -(-min(len(sections), 20) // 4)), squeeze=False)
        for axis, view in zip(axes.ravel(), views, strict=True):
            for number, section in enumerate(sections):
                rows = view.sections == section
                patient = view.patients[rows][0]
                axis.scatter(
                    *view.scores[rows, :2].T,
                    s=14,
                    linewidths=0,
                    alpha=0.7,
                    color=colours[number],
                    marker=_MARKERS[patients.index(patient) % len(_MARKERS)],
                    label=f"{section} ({patient})",
                )
            axis.set_title(fill(view.view, 26), fontsize=8.5)
            axis.set(xlabel=f"PC 1 ({view.share[0]:.0%})", ylabel=f"PC 2 ({view.share[1]:.0%})")
        if len(sections) <= 20:
            handles = axes[0, 0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure
