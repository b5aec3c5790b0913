"""Genes worth trusting: whether training tells which are predicted well on patients that it did not see.

A model that carries its held-out correlations on training patients (`predictors.predictability`) says beforehand which
genes it predicts. Here it is held to that: by rank over genes, and by the mean of the genes that it puts first beside
the mean of the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histocrypt.evaluation import metrics
from histocrypt.evaluation.metrics import POOLED
from histocrypt.pipeline.predictions import PredictionFile

if TYPE_CHECKING:
    from histocrypt.paths import RunFolder

TRUSTED = 0.25
"""Share of a panel's genes that count as trusted: those that training predicts best. Set before any score was seen."""


def with_trust(run: RunFolder, folds: list[dict[str, Any]], models: list[str], genes: pd.DataFrame) -> pd.DataFrame:
    """Return the table of genes with ``training_pearson``, as far as models tell it of their fold."""
    told = {}
    for fold in folds:
        for model in models:
            file = PredictionFile(run.prediction(model, fold["name"]))
            for transform in dict.fromkeys(genes["transform"]):
                if (known := file.trust(transform)) is not None:
                    told |= {(model, fold["name"], transform, gene): value for gene, value in known.items()}
    keys = zip(genes["model"], genes["fold"], genes["transform"], genes["gene"], strict=True)
    return genes.assign(training_pearson=[told.get(key, np.nan) for key in keys])


def trust_table(run: RunFolder, genes: pd.DataFrame) -> pd.DataFrame:
    """Return how well training tells, model by model and section by section, which genes are predicted well."""
    names = ["model", "fold", "section", "patient", "transform"]
    values = ["genes", "left_out", "training_patients", "rank_agreement", "trusted", "rest"]
    usable = genes["training_pearson"].notna() & genes["pearson"].notna() & ~genes["constant_truth"].astype(bool)
    by_fold: dict[tuple[str, str], dict] = {}
    rows = []
    for keys, own in genes[usable & (genes["section"] != POOLED)].groupby(names, sort=False):
        if len(own) < 4:  # a quarter of fewer is no gene
            continue
        model, fold = keys[0], keys[1]
        if (model, fold) not in by_fold:
            by_fold[model, fold] = PredictionFile(run.prediction(model, fold)).trusted_by
        said = by_fold[model, fold]
        told, reached = own["training_pearson"].to_numpy(), own["pearson"].to_numpy()
        trusted = np.zeros(len(own), dtype=bool)
        trusted[np.argsort(-told, kind="stable")[: max(1, round(TRUSTED * len(own)))]] = True
        agreement = float(metrics.spearman(reached[:, None], told[:, None])[0])
        found = [len(own), said["by"], int(said["patients"]), agreement]
        means = [reached[trusted].mean(), reached[~trusted].mean()]
        rows.append(dict(zip([*names, *values], [*keys, *found, *means], strict=True)))
    return pd.DataFrame(rows, columns=[*names, *values])
