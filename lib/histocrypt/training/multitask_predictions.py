"""What a multi-task model predicts beside the panel, as files: every other gene, and how likely a spot is tumour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import atomic_path
from histocrypt.models.he2gene import AUXILIARY, TUMOUR

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.models.spots import Spots

PROBABILITY = "tumour_probability"
"""Column of ``obs``."""


def label_words(predictor: Any) -> dict[str, Any]:
    """Return where the label came from, for ``uns["prediction"]["label"]``; empty where none was learnt."""
    label = predictor.plan.where()
    if label is None or not predictor.has_label:
        return {}
    words = {"source": label.source, "proxy": label.is_proxy, "positive": np.array(label.positive, dtype=str)}
    return words if label.above is None else {**words, "above": label.above}


def write_heads(
    path: Path, predictor: Any, spots: Spots, *, coords: np.ndarray, about: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Write ``X`` (spots x every other gene, ln(1 + counts per 10,000)) and ``obs["tumour_probability"]``, atomically.

    Parameters
    ----------
    predictor
        A fitted `training.multitask.MultitaskPredictor`.
    spots
        Whole sections.
    coords
        (n, 2) x, y in full-resolution pixels.
    about
        Becomes ``uns["prediction"]``, with what is said of the label.

    Returns
    -------
    The heads' predictions by name.
    """
    import anndata
    import pandas as pd

    heads = predictor.predict_heads(spots)
    values = heads.get(AUXILIARY, np.zeros((len(spots), 0), np.float32))
    barcodes = [
        name.removeprefix(f"{section}:") for name, section in zip(spots.names.tolist(), spots.sections, strict=True)
    ]
    obs = pd.DataFrame(
        {"section": spots.sections.astype(str), "patient": spots.patients.astype(str), "barcode": barcodes},
        index=pd.Index(spots.names.astype(str), name="spot"),
    )
    if TUMOUR in heads:
        obs[PROBABILITY] = heads[TUMOUR][:, 0]
    var = pd.DataFrame(
        {"symbol": list(predictor.genes.values()), "head": AUXILIARY},
        index=pd.Index(list(predictor.genes), name="gene_id", dtype=object),
    )
    adata = anndata.AnnData(X=values, obs=obs, var=var)
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    label = label_words(predictor)
    adata.uns["prediction"] = {**about, "transform": "log1p_cp10k", **({"label": label} if label else {})}
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return heads


def add_heads(adata: AnnData, heads: dict[str, np.ndarray], predictor: Any) -> None:
    """Put every head into one prediction of the panel: other genes in ``obsm``, the probability in ``obs``.

    ``obsm["auxiliary"]`` is (n, g) in ln(1 + counts per 10,000), its columns named in ``uns["auxiliary_names"]`` and
    ``uns["auxiliary_symbols"]``. What reads ordinary predictions sees the panel alone.
    """
    adata.var["head"] = "target"
    if AUXILIARY in heads:
        adata.obsm[AUXILIARY] = heads[AUXILIARY]
        adata.uns[f"{AUXILIARY}_names"] = np.array(list(predictor.genes), dtype=str)
        adata.uns[f"{AUXILIARY}_symbols"] = np.array(list(predictor.genes.values()), dtype=str)
    if TUMOUR in heads:
        adata.obs[PROBABILITY] = heads[TUMOUR][:, 0]
        adata.uns["prediction"] = {**adata.uns["prediction"], "label": label_words(predictor)}
