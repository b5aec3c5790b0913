"""How genes are scored for a panel: numbers of each training section, then what all of them say together.

Sections come one at a time and none is kept: of each, a few numbers a gene stay. A section that trains in many folds is
hence counted once, and memory does not grow with the counts of the sections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.targets.stem_genes import put_forward, stem_scores
from histocrypt.targets.transforms import transform

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix


@dataclass
class SectionNumbers:
    """What the choice of a panel knows of one section."""

    name: str
    codes: np.ndarray
    """(g,) int32: the number of each gene (or column) of the section among all that any section has, in its order."""
    symbols: np.ndarray
    """(g,) int32: the same of its symbols; empty where it has none."""
    spots: int
    own: dict[str, np.ndarray]
    """Numbers of each gene that do not depend on which other genes there are, (g,) float64 each."""
    meant: dict[str, str | None]
    """Listed name -> the gene it stands for here: None where there is none, empty where there are several."""
    read: Callable[[], AnnData]
    """Reads the section (again)."""
    among: dict[Any, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Numbers that depend on which genes are compared, by that choice."""

    def compared(self, genes: np.ndarray, key: Any, ask: Callable[[AnnData, np.ndarray], tuple]) -> tuple:
        """Return what ``ask`` finds among ``genes``; asked once for the same ``key``."""
        if key not in self.among:
            self.among[key] = ask(self.read(), genes)
        return self.among[key]


def totals(section: AnnData) -> dict[str, np.ndarray]:
    """Return each gene's total count."""
    return {"total": np.asarray(section.X.sum(axis=0), dtype=np.float64).ravel()}


def moments(section: AnnData) -> dict[str, np.ndarray]:
    """Return each gene's mean of counts per 10,000, and the variance of their logarithm.

    Only counts that are not zero are looked at: the dense matrix of a section would be ten times as large.
    """
    counts, spots = _sparse(section), section.n_obs
    gene = counts.indices
    depth = np.repeat(section.obs["total_counts"].to_numpy(dtype=np.float64), np.diff(counts.indptr))
    values = transform(counts.data[:, None], depth, "log1p_cp10k")[:, 0].astype(np.float64)
    mean = np.bincount(gene, weights=np.expm1(values), minlength=section.n_vars) / spots
    centre = np.bincount(gene, weights=values, minlength=section.n_vars) / spots
    zeros = spots - np.bincount(gene, minlength=section.n_vars)
    apart = np.bincount(gene, weights=np.square(values - centre[gene]), minlength=section.n_vars)
    return {"mean": mean, "variance": (apart + zeros * np.square(centre)) / spots}


def squares(section: AnnData) -> dict[str, np.ndarray]:
    """Return each gene's total count and total of squared counts."""
    counts = _sparse(section)
    values = counts.data.astype(np.float64)
    total, square = (np.bincount(counts.indices, weights=one, minlength=section.n_vars) for one in (values, values**2))
    return {"total": total, "squares": square}


def _sparse(section: AnnData) -> csr_matrix:
    from scipy.sparse import csr_matrix

    return csr_matrix(section.X)


def top_mean(sections: list[SectionNumbers], gather: Callable, genes: np.ndarray, size: int) -> np.ndarray:
    """Score by the mean raw count over all spots."""
    return gather("total") / sum(section.spots for section in sections)


def hmhvg(sections: list[SectionNumbers], gather: Callable, genes: np.ndarray, size: int) -> np.ndarray:
    """Score by the worse of two places: by mean, and by variance of the logarithm, both averaged over sections."""
    mean, variance = (gather(name, divided_by=len(sections)) for name in ("mean", "variance"))
    return np.minimum(_place(mean), _place(variance))


def hvg(sections: list[SectionNumbers], gather: Callable, genes: np.ndarray, size: int) -> np.ndarray:
    """Score by the number of sections a gene is highly variable in, then by its mean normalised dispersion."""
    key = ("hvg", size, _digest(genes))
    variable, known, total = np.zeros(len(genes), dtype=int), np.zeros(len(genes)), np.zeros(len(genes))
    for section in sections:
        highly, dispersion = section.compared(genes, key, lambda adata, among: _highly_variable(adata, among, size))
        there = np.isfinite(dispersion)
        variable, known, total = variable + highly, known + there, total + np.where(there, dispersion, 0)
    mean = np.where(known > 0, total / np.maximum(known, 1), -np.inf)
    place = np.empty(len(genes))
    place[np.lexsort((mean, variable))] = np.arange(len(genes))
    return place


def _highly_variable(section: AnnData, genes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    import anndata
    import pandas as pd
    import scanpy
    from scipy.sparse import csr_matrix

    chosen = section[:, genes]
    values = transform(chosen.X, section.obs["total_counts"].to_numpy(), "log1p_cp10k")
    one = anndata.AnnData(csr_matrix(values), obs=pd.DataFrame({"batch": pd.Categorical(["0"] * section.n_obs)}))
    one.var_names = pd.Index(genes.astype(str))
    # As one batch of a batched search, which leaves out genes that no spot of the section expresses.
    found = scanpy.pp.highly_variable_genes(one, n_top_genes=size, batch_key="batch", inplace=False)
    found = found.reindex(genes.astype(str))
    return found["highly_variable_nbatches"].to_numpy(), found["dispersions_norm"].to_numpy(dtype=np.float64)


def stem_hmhvg(sections: list[SectionNumbers], gather: Callable, genes: np.ndarray, size: int) -> np.ndarray:
    """Score as Stem does: see `targets.stem_genes`."""
    key = ("stem_hmhvg", _digest(genes))
    put = [section.compared(genes, key, put_forward) for section in sections]
    spots = sum(section.spots for section in sections)
    return stem_scores(put, spots, gather("total"), gather("squares"), size)


def _digest(genes: np.ndarray) -> str:
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()


def _place(values: np.ndarray) -> np.ndarray:
    """Return each value's place from below (0 = smallest); of equal values the first has the higher place."""
    place = np.empty(len(values))
    place[np.argsort(-values, kind="stable")] = np.arange(len(values))[::-1]
    return place


SCORES = {
    "top_mean": (totals, top_mean),
    "hvg": (lambda section: {}, hvg),
    "hmhvg": (moments, hmhvg),
    "stem_hmhvg": (squares, stem_hmhvg),
}
"""Method -> a section's own numbers, and the scores made of all sections' numbers."""
