"""What is predicted, fetched by name: raw counts in ``X``, or a named matrix such as ``obsm:celltype_prop_major``.

Training, truth and exploration all come here, so that a name means the same numbers everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.genes import GeneNames, meant_by, places
from histocrypt.targets.transforms import COMPOSITIONS, transform

if TYPE_CHECKING:
    from anndata import AnnData

PREFIX = "obsm:"

TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
"""Words of a label's column."""
UNKNOWN = {"", "nan", "none", "na", "<na>", "undetermined"}


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
        example = "obsm:NAME, e.g. obsm:celltype_prop_major"
        raise InputError("does not name a matrix", file=file, field="target.matrix", value=matrix, expected=example)
    unfit = [name for name in target.transforms if (name in COMPOSITIONS) == (matrix is None)]
    if unfit:
        needs = "is of counts" if matrix is not None else "is of a named matrix"
        has = f"target.matrix {matrix} holds no counts" if matrix is not None else "no target.matrix is named"
        fit = ", ".join(COMPOSITIONS) if matrix is not None else "log1p_cp10k, log1p, log2p1, rank"
        raise InputError(f"transform {unfit[0]} {needs}, and {has}", file=file, field="target.transforms", expected=fit)
    where = {"file": file, "field": "panel.method"}
    if matrix is not None and panel.method not in ("all", "file"):
        problem = f"{panel.method} chooses genes by their counts, and target.matrix {matrix} holds none"
        raise InputError(problem, **where, expected="all, or file")
    if matrix is None and panel.method == "all":
        problem = "all takes every column of a named matrix, and no target.matrix is named"
        raise InputError(problem, **where, expected="hmhvg, hvg, top_mean or file")


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
        raise InputError(
            f"section {section} has no matrix {matrix}; the named matrices that it has: {others}", field="target.matrix"
        )
    table = adata.obsm[key]
    if hasattr(table, "columns"):
        names = [str(name) for name in table.columns]
    elif f"{key}_names" in adata.uns:
        names = [str(name) for name in np.ravel(adata.uns[f"{key}_names"])]
    else:
        raise InputError(
            f"section {section}: the columns are not named, and columns are never matched by position",
            field=field,
            fix=f"store a table with named columns there, or names in uns['{key}_names']",
        )
    if table.shape[1:] != (len(names),):
        raise InputError(f"section {section}: {len(names)} names for values of shape {table.shape}", field=field)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"section {section}: two columns are called {twice[0]!r}", field=field)
    return np.array(names, dtype=str)


def columns_of(
    adata: AnnData, names: Iterable[str], symbols: Iterable[str] = (), *, matrix: str | None = None, section: str
) -> np.ndarray:
    """Return (g,) int64: the column of each name in a section; -1 where it was not measured.

    Genes that are not all called alike are joined by id and symbol: see `sections.genes`. Columns of a named matrix are
    joined by name alone.

    Raises
    ------
    InputError
        If the section has no such matrix.
    """
    names = list(names)
    position = {name: i for i, name in enumerate(names_of(adata, matrix, section=section).tolist())}
    found = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    if matrix is not None or (found >= 0).all():
        return found
    return places(GeneNames.of(names, symbols), GeneNames.of(adata.var))


def raw_values(
    adata: AnnData, names: Iterable[str], symbols: Iterable[str] = (), *, matrix: str | None = None, section: str
) -> np.ndarray:
    """Return (n, g) counts or values of ``names``, in their order, before any transform.

    Raises
    ------
    InputError
        If a name is not measured, or a value of a named matrix is not a finite number.
    """
    names = list(names)
    columns = columns_of(adata, names, symbols, matrix=matrix, section=section)
    missing = [name for name, column in zip(names, columns, strict=True) if column < 0]
    if missing:
        raise InputError(
            f"section {section} does not measure {len(missing)} of {len(names)} {noun(matrix)}s: {missing[0]}",
            field=matrix or "var_names",
        )
    if matrix is None:
        counts = adata.X[:, columns]
        return counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    table = adata.obsm[matrix.removeprefix(PREFIX)]
    table = table.toarray() if hasattr(table, "toarray") else table
    try:
        values = np.asarray(table)[:, columns].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"section {section}: values are not numbers", field=matrix) from error
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"section {section}: {len(bad)} values are not finite, first that of {names[column]} at spot "
            f"{adata.obs_names[row]}",
            field=matrix,
            fix="correct them, or drop these spots",
        )
    return values


def targets_of(
    adata: AnnData,
    names: Iterable[str],
    transforms: Iterable[str],
    *,
    matrix: str | None = None,
    section: str,
    symbols: Iterable[str] = (),
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
    symbols
        Those of the names, in their order, where sections call genes differently.
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
    values, totals = raw_values(adata, names, symbols, matrix=matrix, section=section), depth(adata)
    if rows is not None:
        values, totals = values[rows], totals[rows]
    if matrix is None and names and not has_counts(adata):
        raise InputError(
            f"section {section} has no counts",
            field="X",
            fix="name a matrix to predict, e.g. target.matrix: obsm:cell_types",
        )
    try:
        return {name: transform(values, totals, name) for name in transforms}
    except InputError as error:
        where = f"section {section}: {error.problem}"
        raise InputError(where, field=matrix, expected=error.expected, fix=error.fix) from error


@dataclass(frozen=True)
class Label:
    """A yes or no about each spot: a pathologist's annotation, or a proxy made by a threshold.

    A proxy is made from proportions, or, where no section has any, from the expression of genes: spots are ranked
    within their section by the mean of ln(1 + counts per 10,000) over the genes; neither depth nor laboratory decides.
    """

    source: str
    """``obs:COLUMN``, or with `above` ``obsm:MATRIX/COLUMN`` or ``genes:SYMBOL+SYMBOL``, a rank from 0 to 1."""
    positive: tuple[str, ...] = ()
    """Values of a column of words that count as yes; empty: the column holds yes and no, or 1 and 0."""
    above: float | None = None
    """Numbers above this count as yes."""
    field: str = "models.he2gene.label"
    """Where the study says so, for what errors say."""

    def __post_init__(self) -> None:
        kind, _, rest = self.source.partition(":")
        matrix, _, column = rest.partition("/")
        where = {"field": self.field, "value": self.source}
        if kind not in ("obs", "obsm", "genes") or not matrix or (kind == "obsm") != bool(column):
            expected = "obs:COLUMN, obsm:MATRIX/COLUMN, or genes:SYMBOL+SYMBOL"
            raise InputError("does not name a label", **where, expected=expected)
        if kind != "obs" and self.above is None:
            raise InputError("a proxy label needs a threshold, and none is given", **where, fix="set label_above")
        if self.above is not None and self.positive:
            raise InputError("takes label_is or label_above, not both", **where)

    @property
    def is_proxy(self) -> bool:
        """Whether the label is derived from proportions or genes, not given by a pathologist."""
        return not self.source.startswith("obs:")

    @property
    def needs_counts(self) -> bool:
        """Whether the counts of a section are looked at."""
        return self.source.startswith("genes:")

    def of(self, adata: AnnData, *, section: str) -> np.ndarray:
        """Return (n,) float32: 1, 0, or NaN where a spot has no label; NaN throughout where the section has none.

        Raises
        ------
        InputError
            If a value is neither yes nor no.
        """
        values = self._values(adata, section)
        if values is None:
            return np.full(adata.n_obs, np.nan, dtype=np.float32)
        where = {"field": self.source}
        if self.above is not None:
            try:
                numbers = np.asarray(values, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"section {section}: the label is not a number, and label_above needs one", **where
                ) from error
            return np.where(np.isfinite(numbers), numbers > self.above, np.nan).astype(np.float32)
        yes = {word.lower() for word in self.positive} or TRUE
        answer = dict.fromkeys(FALSE, 0.0) | dict.fromkeys(yes, 1.0) | dict.fromkeys(UNKNOWN, np.nan)
        words = [str(value).strip().lower() for value in values.tolist()]
        unclear = [] if self.positive else [row for row, word in enumerate(words) if word not in answer]
        if unclear:
            raise InputError(
                f"section {section}: a label is neither yes nor no",
                **where,
                value=str(values[unclear[0]]),
                fix="name the words for tumour in label_is",
            )
        return np.array([answer.get(word, 0.0) for word in words], dtype=np.float32)

    def _values(self, adata: AnnData, section: str) -> np.ndarray | None:
        """Return the (n,) values, or None where this section has no such column."""
        kind, _, rest = self.source.partition(":")
        if kind == "obs":
            return adata.obs[rest].to_numpy(dtype=object) if rest in adata.obs else None
        if kind == "genes":
            return self._ranks(adata, rest.split("+"), section)
        matrix, _, column = rest.partition("/")
        table = adata.obsm.get(matrix)
        if table is None:
            return None
        names = [str(one) for one in getattr(table, "columns", adata.uns.get(f"{matrix}_names", ()))]
        if column not in names:
            raise InputError(
                "has no such column", field=f"obsm[{matrix!r}]", value=column, expected="one of " + ", ".join(names)
            )
        return np.asarray(table)[:, names.index(column)]

    def _ranks(self, adata: AnnData, symbols: list[str], section: str) -> np.ndarray:
        """Return (n,) the share of the section's spots that express less of the genes, ties halved."""
        from scipy.stats import rankdata

        where = {"field": self.field, "value": self.source}
        if not has_counts(adata) or adata.X is None:
            raise InputError(f"section {section} has no counts to rank its spots by", **where)
        columns = meant_by(symbols, GeneNames.of(adata.var))
        if (columns < 0).any():
            absent = symbols[int((columns < 0).argmax())]
            raise InputError(
                f"section {section} has not exactly one gene {absent}", **where, fix="name genes that all measure"
            )
        values = transform(adata[:, columns].X, depth(adata), "log1p_cp10k").mean(axis=1)
        return (rankdata(values) - 0.5) / len(values)
