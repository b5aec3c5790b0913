"""What a multi-task model learns beside the panel: every other gene (sparse), labels, and who lies beside whom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.spatial import graph_of, section_edges
from histocrypt.targets.matrix import depth, has_counts

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from histocrypt.targets.matrix import Label

UNCOUNTED = ("obs", "var", "obsm", "uns")
"""Parts of a section's file that are small: all but its counts."""


@dataclass(frozen=True)
class Measured:
    """What was measured of the spots of training sections; files are read when asked, one at a time."""

    files: tuple[tuple[str, Path], ...]
    """Section ids and their cleaned sections, in the order of the spots."""
    rows: np.ndarray | None = None
    """(n,) which of all their spots, in order; None: all."""
    centred: bool = True
    """Whether each section's own mean is subtracted from what is learnt (``target.centre_by_section``)."""

    def subset(self, index: np.ndarray) -> Measured:
        """Return what was measured of some of the spots."""
        return replace(self, rows=np.asarray(index) if self.rows is None else self.rows[index])

    def joined(self, other: Measured) -> Measured:
        """Return what was measured of these spots, then of the other's."""
        files = self.files + other.files
        if self.rows is None and other.rows is None:
            return replace(self, files=files)
        sizes = [sum(read_clean_section(path, parts=["obs"]).n_obs for _, path in part.files) for part in (self, other)]
        first, second = (
            np.arange(size) if part.rows is None else part.rows for part, size in zip((self, other), sizes, strict=True)
        )
        return replace(self, files=files, rows=np.concatenate([first, second + sizes[0]]))

    def genes(self) -> dict[str, str]:
        """Return the genes that all sections measure, id -> symbol, in the order of the first; none without counts."""
        shared: dict[str, str] | None = None
        for _, path in self.files:
            adata = read_clean_section(path, parts=UNCOUNTED)
            if not has_counts(adata):
                return {}
            symbols = adata.var["symbol"] if "symbol" in adata.var else adata.var_names
            own = dict(zip(adata.var_names.astype(str), map(str, symbols), strict=True))
            shared = own if shared is None else {gene: name for gene, name in shared.items() if gene in own}
        return shared or {}

    def expression(self, genes: list[str]) -> csr_matrix:
        """Return ln(1 + counts per 10,000) of ``genes``, (n, g) CSR float32; a spot without counts is zero."""
        from scipy.sparse import csr_matrix

        parts = []
        for _, path in self.files:
            adata = read_clean_section(path)
            totals = depth(adata)
            counts = csr_matrix(adata.X)
            columns = adata.var_names.get_indexer(genes)
            if len(genes) < adata.n_vars or (columns != np.arange(adata.n_vars)).any():
                counts = counts[:, columns]
            counts = counts.astype(np.float32)
            scale = 1e4 / np.where(totals > 0, totals, np.inf)
            counts.data *= np.repeat(scale, np.diff(counts.indptr)).astype(np.float32)
            np.log1p(counts.data, out=counts.data)
            parts.append(counts)
        values = _stacked(parts)
        return values if self.rows is None else values[self.rows]

    def labels(self, label: Label) -> np.ndarray:
        """Return (n,) float32 labels: 1, 0, NaN where there is none."""
        values = np.concatenate(
            [label.of(read_clean_section(path, parts=UNCOUNTED), section=section) for section, path in self.files]
        )
        return values if self.rows is None else values[self.rows]

    def graph(self) -> csr_matrix:
        """Return which spots are neighbours, (n, n) CSR; none across sections."""
        adatas = [read_clean_section(path, parts=UNCOUNTED) for _, path in self.files]
        graph = graph_of([section_edges(adata) for adata in adatas], [adata.n_obs for adata in adatas])
        return graph if self.rows is None else graph[self.rows][:, self.rows].tocsr()


def _stacked(parts: list[csr_matrix]) -> csr_matrix:
    """Return the rows of all parts in one matrix; the parts are used up, so that memory is not needed twice."""
    from scipy.sparse import csr_matrix

    shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
    starts = np.cumsum([0, *(part.nnz for part in parts)])
    rows = [part.indptr[1:].astype(np.int64) + start for part, start in zip(parts, starts, strict=False)]
    joined = {}
    for name in ("data", "indices"):
        joined[name] = np.concatenate([getattr(part, name) for part in parts])
        for part in parts:
            setattr(part, name, np.empty(0, joined[name].dtype))
    values = csr_matrix(shape, dtype=np.float32)
    kind = np.int32 if starts[-1] < np.iinfo(np.int32).max else np.int64
    values.data, values.indices = joined["data"], joined["indices"].astype(kind, copy=False)
    values.indptr = np.concatenate([[0], *rows]).astype(kind)
    return values
