"""What is predicted, fetched by name: raw counts in ``X``, or a named matrix such as ``obsm:celltype_prop_major``.

Training, truth and exploration all come here, so that a name means the same numbers everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.targets.transforms import COMPOSITIONS, transform

if TYPE_CHECKING:
    from anndata import AnnData

PREFIX = "obsm:"


def noun(matrix: str | None) -> str:
    """Return what one name of a panel is called."""
    return "gene" if matrix is None else "cell type"


def check_target(target: Any, panel: Any, file: Any) -> None:
    """Refuse transforms and ways of choosing a panel that do not fit the matrix that a study predicts.

    Parameters
    ----------
    target, panel
        The study's ``target`` and ``panel``.
    file
        The study file, for the error.

    Raises
    ------
    InputError
        One sentence that says what fits.
    """
    matrix = target.matrix
    if matrix is not None and (not matrix.startswith(PREFIX) or matrix == PREFIX):
        msg = "does not name a matrix"
        raise InputError(
            msg, file=file, field="target.matrix", value=matrix, expected="obsm:NAME, e.g. obsm:celltype_prop_major"
        )
    unfit = [name for name in target.transforms if (name in COMPOSITIONS) == (matrix is None)]
    if unfit:
        needs = "is of counts" if matrix is not None else "is of a named matrix"
        has = f"target.matrix {matrix} holds no counts" if matrix is not None else "no target.matrix is named"
        fit = ", ".join(COMPOSITIONS) if matrix is not None else "log1p_cp10k, log1p, log2p1, rank"
        msg = f"transform {unfit[0]} {needs}, and {has}"
        raise InputError(msg, file=file, field="target.transforms", expected=fit)
    if matrix is not None and panel.method not in ("all", "file"):
        msg = f"{panel.method} chooses genes by their counts, and target.matrix {matrix} holds none"
        raise InputError(msg, file=file, field="panel.method", expected="all, or file")
    if matrix is None and panel.method == "all":
        msg = "all takes every column of a named matrix, and no target.matrix is named"
        raise InputError(msg, file=file, field="panel.method", expected="hmhvg, hvg, top_mean or file")


def has_counts(adata: AnnData) -> bool:
    """Return whether a section has counts: a hackathon slide has none, and its depth is unknown, not zero."""
    if not adata.n_vars:
        return False
    return "total_counts" not in adata.obs or bool(np.isfinite(adata.obs["total_counts"].to_numpy(dtype=float)).all())


def depth(adata: AnnData) -> np.ndarray:
    """Return (n,) total counts over all genes; NaN throughout where the section has no counts."""
    if not has_counts(adata):
        return np.full(adata.n_obs, np.nan)
    if "total_counts" in adata.obs:
        return adata.obs["total_counts"].to_numpy(dtype=np.float64)
    return np.asarray(adata.X.sum(axis=1), dtype=np.float64).ravel()


def names_of(adata: AnnData, matrix: str | None = None, *, section: str) -> np.ndarray:
    """Return the (g,) names of what a section measured: genes, or the columns of a named matrix, in its order.

    A table in ``obsm`` names its columns; a plain array needs ``uns["<name>_names"]``.

    Raises
    ------
    InputError
        If the section has no such matrix, or its columns are not named, or not once each.
    """
    if matrix is None:
        return adata.var_names.to_numpy(dtype=str)
    key, field = matrix.removeprefix(PREFIX), f"obsm[{matrix.removeprefix(PREFIX)!r}]"
    if key not in adata.obsm:
        others = ", ".join(sorted(PREFIX + other for other in adata.obsm if other != "spatial")) or "none"
        msg = f"section {section} has no matrix {matrix}; the named matrices that it has: {others}"
        raise InputError(msg, field="target.matrix")
    table = adata.obsm[key]
    if hasattr(table, "columns"):
        names = [str(name) for name in table.columns]
    elif f"{key}_names" in adata.uns:
        names = [str(name) for name in np.ravel(adata.uns[f"{key}_names"])]
    else:
        msg = f"section {section}: the columns are not named, and nothing is ever joined by position"
        raise InputError(
            msg, field=field, fix=f"store a table with named columns there, or names in uns['{key}_names']"
        )
    if table.shape[1:] != (len(names),):
        msg = f"section {section}: {len(names)} names for values of shape {table.shape}"
        raise InputError(msg, field=field)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        msg = f"section {section}: two columns are called {twice[0]!r}"
        raise InputError(msg, field=field)
    return np.array(names, dtype=str)


def raw_values(adata: AnnData, names: Iterable[str], *, matrix: str | None = None, section: str) -> np.ndarray:
    """Return (n, g) counts or values of ``names``, in their order, before any transform.

    Raises
    ------
    InputError
        If a name is not measured, or a value of a named matrix is not a finite number.
    """
    names = list(names)
    position = {name: i for i, name in enumerate(names_of(adata, matrix, section=section).tolist())}
    missing = [name for name in names if name not in position]
    if missing:
        msg = f"section {section} does not measure {len(missing)} of {len(names)} {noun(matrix)}s: {missing[0]}"
        raise InputError(msg, field=matrix or "var_names")
    columns = [position[name] for name in names]
    if matrix is None:
        counts = adata.X[:, columns]
        return counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    table = adata.obsm[matrix.removeprefix(PREFIX)]
    table = table.toarray() if hasattr(table, "toarray") else table
    try:
        values = np.asarray(table)[:, columns].astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"section {section}: values are not numbers"
        raise InputError(msg, field=matrix) from error
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        msg = f"section {section}: {len(bad)} values are not finite, first that of {names[column]} at spot"
        raise InputError(f"{msg} {adata.obs_names[row]}", field=matrix, fix="correct them, or drop these spots")
    return values


def targets_of(
    adata: AnnData,
    names: Iterable[str],
    transforms: Iterable[str],
    *,
    matrix: str | None = None,
    section: str,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return what is predicted about a section, by transform.

    Parameters
    ----------
    adata
        The section.
    names
        The panel, in order. Ranks within a spot are ranks among these, so the whole panel has to be given.
    transforms
        See `targets.transforms.transform`.
    matrix
        Whose columns the names are; None for the counts in ``X``.
    section
        Its id, for errors.
    rows
        (m,) row numbers of the spots wanted, in order; all by default.

    Returns
    -------
    transform -> (m, g) float32

    Raises
    ------
    InputError
        If the section lacks the matrix or a name, or a transform does not fit the values.
    """
    names = list(names)
    values, totals = raw_values(adata, names, matrix=matrix, section=section), depth(adata)
    if rows is not None:
        values, totals = values[rows], totals[rows]
    if matrix is None and names and not has_counts(adata):
        msg = f"section {section} has no counts"
        raise InputError(msg, field="X", fix="name a matrix to predict, e.g. target.matrix: obsm:cell_types")
    try:
        return {name: transform(values, totals, name) for name in transforms}
    except InputError as error:
        where = f"section {section}: {error.problem}"
        raise InputError(where, field=matrix, expected=error.expected, fix=error.fix) from error
