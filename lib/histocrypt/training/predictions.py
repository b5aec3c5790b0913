"""Predictions as files: spots x panel, every transform a layer, names and coordinates kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import atomic_path

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.models.spots import Spots
    from histocrypt.targets.panels import Panel
    from histocrypt.targets.transforms import TargetStatistics


def write_predictions(
    path: Path,
    predicted: np.ndarray,
    *,
    spots: Spots,
    coords: np.ndarray,
    panel: Panel,
    transforms: list[str],
    about: dict[str, Any],
    scaling: TargetStatistics | None = None,
    extra: Callable[[AnnData], None] | None = None,
) -> None:
    """Write predictions as ``.h5ad``, atomically.

    Parameters
    ----------
    predicted
        (n, len(transforms) * genes) in the transforms' units, columns as ``spots.outputs`` names them.
    spots
        Whose predictions these are.
    coords
        (n, 2) x, y in full-resolution pixels.
    panel
        The genes.
    transforms
        The first is the main one and becomes ``X``.
    about
        Becomes ``uns["prediction"]``.
    scaling
        Statistics of the training targets. Of a named matrix, the training mean of each column is kept as
        ``var["training_mean:<transform>"]``: scores within a spot say little without the mean composition beside them.
    extra
        Adds whatever else a model predicts, just before the file is written.
    """
    import anndata
    import pandas as pd

    column = {name: index for index, name in enumerate(spots.outputs)}
    layers = {
        transform: np.ascontiguousarray(predicted[:, [column[f"{transform}:{gene}"] for gene in panel.genes]])
        for transform in transforms
    }
    barcodes = [
        name.removeprefix(f"{section}:") for name, section in zip(spots.names.tolist(), spots.sections, strict=True)
    ]
    obs = pd.DataFrame(
        {"section": spots.sections.astype(str), "patient": spots.patients.astype(str), "barcode": barcodes},
        index=pd.Index(spots.names.astype(str), name="spot"),
    )
    var = pd.DataFrame({"symbol": list(panel.symbols)}, index=pd.Index(list(panel.genes), name="gene_id"))
    if panel.matrix is not None and scaling is not None and np.any(scaling.mean):  # not so without any standardisation
        mean = dict(zip(scaling.outputs, scaling.mean.tolist(), strict=True))
        for transform in transforms:
            var[f"training_mean:{transform}"] = [mean[f"{transform}:{gene}"] for gene in panel.genes]
    adata = anndata.AnnData(X=layers[transforms[0]].copy(), obs=obs, var=var, layers=layers)
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    about = about if panel.matrix is None else {**about, "matrix": panel.matrix}
    adata.uns["prediction"] = {**about, "transform": transforms[0], "transforms": np.array(transforms, dtype=str)}
    if extra is not None:
        extra(adata)
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
