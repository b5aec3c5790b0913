"""Scores of one section under every model, all on the same bootstrap draws of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histocrypt.evaluation import bootstrap, metrics
from histocrypt.spatial import squares, touching
from histocrypt.targets.ceiling import share

if TYPE_CHECKING:
    from histocrypt.pipeline.predictions import Joined

NOISE_CEILING, SHARE = "noise_ceiling", "share"
"""The correlation that the noise of counting leaves (`targets.ceiling`), and the part of it that a model reaches."""
WITHIN = "within_spot"
"""The correlation within a spot, over a panel of cell types."""


@dataclass(frozen=True)
class SectionScores:
    """What one section says of every model."""

    genes: list[pd.DataFrame]
    """A table for each model and transform, one row per gene: every metric, its name and its rank in training."""
    rows: list[dict[str, Any]]
    """One for each model and transform: means over genes."""
    draws: dict[bootstrap.Key, np.ndarray]
    """(draws,) scores by transform, metric and model."""
    blocks: int
    """Squares of tissue that were drawn."""


def score_section(
    joined: Mapping[str, Joined],
    *,
    um_per_px: float,
    block_um: float,
    draws: int,
    rng: np.random.Generator,
    k: Sequence[int] = (),
    rankings: Mapping[str, Mapping[str, pd.Series]] | None = None,
    within: bool = False,
    ceilings: Mapping[str, pd.Series] | None = None,
) -> SectionScores:
    """Score one section under every model, all on the same bootstrap draws of its blocks.

    Parameters
    ----------
    joined
        Model -> predictions beside measurements, spots in one order.
    um_per_px
        Micrometres per unit of their coordinates.
    block_um, draws, rng
        Side of the blocks, how often they are drawn, and by which generator.
    k
        Of the means over the k best genes.
    rankings
        Model -> transform -> each gene's correlation on validation data.
    within
        Score the order of names within each spot, too: for panels of cell types.
    ceilings
        Transform -> each gene's noise ceiling, where the section has one.
    """
    first = next(iter(joined.values()))
    labels = squares(first.coords * um_per_px, block_um)
    blocks = int(labels.max() + 1)
    weights = bootstrap.draw_weights(blocks, draws, rng)
    graph = touching(first.coords)
    tables, rows, drawn = [], [], {}
    for transform, measured in first.true.items():
        own_moran = pd.Series(metrics.morans_i(measured, graph), index=first.genes)
        for model, pair in joined.items():
            if transform not in pair.predicted:
                continue
            true, predicted = pair.true[transform], pair.predicted[transform]
            moran_true = own_moran.reindex(pair.genes).to_numpy()
            scores = metrics.per_gene(true, predicted, graph, moran_true=moran_true)
            ranking = (rankings or {}).get(model, {}).get(transform)
            rank = np.full(len(pair.genes), np.nan) if ranking is None else ranking.reindex(pair.genes).to_numpy()
            keys = {"model": model, "section": pair.section, "patient": pair.patient, "transform": transform}
            names = {"gene": pair.genes, "symbol": pair.symbols}
            own = (ceilings or {}).get(transform)
            ceiling = np.full(len(pair.genes), np.nan) if own is None else own.reindex(pair.genes).to_numpy()
            last = {"validation_pearson": rank, NOISE_CEILING: ceiling, SHARE: share(scores["pearson"], ceiling)}
            tables.append(pd.DataFrame({**keys, **names, **scores, **last}))
            sums = bootstrap.block_sums(true, predicted, labels)
            for name, of in bootstrap.OF_DRAWS.items():
                drawn[transform, name, model] = of(sums, weights)
            usable = ~scores["constant_truth"]
            row = {**keys, "spots": len(true), "genes": int(usable.sum()), "blocks": blocks}
            row |= {name: scores[name][usable].mean() if usable.any() else np.nan for name in bootstrap.OF_DRAWS}
            row[NOISE_CEILING] = metrics.finite_mean(ceiling[usable])
            row[SHARE] = share(row["pearson"], row[NOISE_CEILING])
            for n in k:
                chosen = metrics.mean_of_top(scores["pearson"], rank, n)
                row[f"pcc_{n}_training"] = chosen if ranking is not None else np.nan
                row[f"pcc_{n}_published"] = metrics.mean_of_top(scores["pearson"], scores["pearson"], n)
            if within:
                spots = metrics.within_spot(true, predicted)
                drawn[transform, WITHIN, model] = bootstrap.mean_of_draws(spots, labels, weights)
                known = int(np.isfinite(spots).sum())
                row |= {WITHIN: metrics.finite_mean(spots), f"{WITHIN}_spots": known}
                row[f"{WITHIN}_undefined"] = len(spots) - known
            rows.append(row)
    return SectionScores(tables, rows, drawn, blocks)
