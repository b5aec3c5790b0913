"""Score one section under every model: gene by gene, within spots, and in every bootstrap draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from histocrypt.errors import InputError
from histocrypt.evaluation import bootstrap, metrics
from histocrypt.evaluation.draws import Draws
from histocrypt.evaluation.pooled import Pool
from histocrypt.evaluation.truth import Joined, as_mapping
from histocrypt.study import Study

CEILING = "image_signal"
CEILING_TRANSFORM = "log1p_cp10k"
FEW_BLOCKS = 4
WITHIN = "within_spot"
"""The correlation within a spot, over a panel of cell types."""


@dataclass
class Tally:
    """What is gathered section by section: tables, and what keeps values and draws without piling them up."""

    draws: Draws
    pool: Pool
    rows: list[pd.DataFrame] = field(default_factory=list)
    sections: list[dict] = field(default_factory=list)
    unscored: dict[str, list[str]] = field(default_factory=dict)
    few_blocks: dict[str, int] = field(default_factory=dict)


def score_section(
    study: Study, fold: str, section: Any, joined: dict[str, Joined], rankings: dict, rng: Any, tally: Tally
) -> None:
    """Score a test section under every model, all on the same bootstrap draws of its blocks, into ``tally``.

    Parameters
    ----------
    study
        The study.
    fold
        The fold that holds the section out.
    section
        The cleaned section.
    joined
        Model -> predictions beside measurements.
    rankings
        Model -> transform -> each gene's correlation on validation data.
    rng
        Of the draws.
    tally
        Where rows, draws and notes go.

    Raises
    ------
    InputError
        If two models predict different genes.
    """
    first = next(iter(joined.values()))
    um_per_px = float(as_mapping(section.uns.get("preprocessing", {})).get("um_per_px", 1.0))
    labels = bootstrap.block_labels(first.coords * um_per_px, study.evaluation.block_um)
    weights = bootstrap.draw_weights(labels.max() + 1, study.evaluation.bootstrap, rng)
    graph = metrics.neighbour_graph(first.coords)
    position = {spot: i for i, spot in enumerate(first.spots)}
    drawn: dict[tuple[str, str, str], np.ndarray] = {}
    if first.unscored_genes:
        tally.unscored[first.section] = first.unscored_genes
    if labels.max() + 1 < FEW_BLOCKS:
        tally.few_blocks[first.section] = int(labels.max() + 1)
    if CEILING in section.layers and CEILING_TRANSFORM in study.target.transforms:
        joined = {**joined, CEILING: _ceiling(section, first)}
    for transform in study.target.transforms:
        true_moran: pd.Series | None = None
        for model, pair in joined.items():
            if transform not in pair.predicted:
                continue
            if set(pair.genes) != set(first.genes):
                msg = f"fold {fold!r}: models {model!r} and {next(iter(joined))!r} predict different genes"
                raise InputError(msg, file=study.run.prediction(model, fold), fix="train both on the same panel")
            order = np.argsort([position[spot] for spot in pair.spots])  # all models in one order of spots
            true, predicted = pair.true[transform][order], pair.predicted[transform][order]
            if true_moran is None:
                true_moran = pd.Series(metrics.morans_i(true, graph), index=pair.genes)
            moran = metrics.morans_i(predicted, graph)
            known_moran = true_moran[pair.genes].to_numpy()
            table = pd.DataFrame(metrics.per_gene(true, predicted))
            table["moran_true"], table["moran_predicted"] = known_moran, moran
            table["moran_error"] = np.abs(moran - known_moran)
            ranking = rankings.get(model, {}).get(transform)
            rank = None if ranking is None else ranking.reindex(pair.genes).to_numpy()
            table["validation_pearson"] = np.nan if rank is None else rank
            keys = {"model": model, "fold": fold, "section": pair.section, "patient": pair.patient}
            names = {"transform": transform, "gene": pair.genes, "symbol": pair.symbols}
            tally.rows.append(table.assign(**keys, **names)[[*keys, *names, *table.columns]])
            sums = bootstrap.block_sums(true, predicted, labels)
            drawn[transform, "pearson", model] = bootstrap.pearson_of_draws(sums, weights)
            drawn[transform, "mse", model] = bootstrap.mse_of_draws(sums, weights)
            r = table["pearson"].to_numpy()
            usable = ~table["constant_truth"].to_numpy()
            row = {**keys, "transform": transform, "spots": len(true), "genes": int(usable.sum())}
            row |= {"blocks": int(labels.max() + 1), "pearson": r[usable].mean() if usable.any() else np.nan}
            row["mse"] = table["mse"].to_numpy()[usable].mean() if usable.any() else np.nan
            for k in study.evaluation.k:
                row[f"pcc_{k}_training"] = metrics.mean_of_top(r, rank, k) if rank is not None else np.nan
                row[f"pcc_{k}_published"] = metrics.mean_of_top(r, r, k)
            if study.target.matrix is not None:
                spots = metrics.within_spot(true, predicted)
                drawn[transform, WITHIN, model] = bootstrap.mean_of_draws(spots, labels, weights)
                known = np.isfinite(spots)
                row[WITHIN] = spots[known].mean() if known.any() else np.nan
                row[f"{WITHIN}_spots"], row[f"{WITHIN}_undefined"] = int(known.sum()), int((~known).sum())
            tally.sections.append(row)
            tally.pool.add(transform, model, pair, true, predicted)
    tally.draws.add(drawn)


def _ceiling(section: Any, like: Joined) -> Joined:
    """Return the simulator's noise-free, image-borne expression as if a model had predicted it."""
    rows = section.obs_names.get_indexer([spot.removeprefix(f"{like.section}:") for spot in like.spots])
    signal = section.layers[CEILING][rows][:, section.var_names.get_indexer(like.genes)]
    signal = signal.toarray() if hasattr(signal, "toarray") else np.asarray(signal)
    return Joined(**{**like.__dict__, "predicted": {CEILING_TRANSFORM: signal.astype(np.float64)}})
