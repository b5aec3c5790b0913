"""A prediction file, read section by section: a fold may hold out many sections, and one at a time is enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from anndata import AnnData

from histocrypt.errors import InputError
from histocrypt.evaluation.truth import check_prediction, h5ad_errors


class PredictionFile:
    """Names, and where the values lie; values are read when a section is asked for.

    Parameters
    ----------
    path
        An ``.h5ad`` of predictions.
    fix
        What to do where it is missing, for the error.

    Raises
    ------
    InputError
        If it is missing, is not a prediction, names a spot or gene twice, or lacks a transform.
    """

    def __init__(self, path: Path, *, fix: str | None = None) -> None:
        import h5py
        from anndata.io import read_elem

        self.path = path
        if not Path(path).is_file():
            raise InputError("prediction file is missing", file=path, fix=fix)
        with h5ad_errors(path, what="prediction file", fix=fix), h5py.File(path) as file:
            parts = {name: read_elem(file[name]) for name in ("obs", "var", "uns")}
            self._coords = read_elem(file["obsm/spatial"]) if "obsm/spatial" in file else None
            layers = set(file["layers"])
        self._names = AnnData(**parts)
        check_prediction(self._names, path, layers)
        self._sections = self._names.obs["section"].astype(str).to_numpy()

    @property
    def genes(self) -> list[str]:
        """Every predicted gene, or column of a named matrix."""
        return self._names.var_names.tolist()

    def of(self, section: str) -> AnnData:
        """Return the predictions of one section, an AnnData of its spots alone.

        Raises
        ------
        InputError
            If a value is not finite.
        """
        import h5py

        rows = np.flatnonzero(self._sections == section)
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        found = self._names[rows].copy()
        with h5ad_errors(self.path, what="prediction file"), h5py.File(self.path) as file:
            for transform in np.atleast_1d(found.uns["prediction"]["transforms"]).tolist():
                found.layers[transform] = file["layers"][transform][first:last][rows - first]
        if self._coords is not None:
            found.obsm["spatial"] = np.asarray(self._coords)[rows]
        check_prediction(found, self.path)
        return found
