"""The gene selection of Stem: genes of high mean and high standard deviation among each section's variable genes.

Zhu et al., "Diffusion Generative Modeling for Spatially Resolved Gene Expression Inference from Histology Images",
ICLR 2025. There the genes are chosen on all slides, the test slide with them; here on training sections only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

VARIABLE_GENES = 2000
"""Highly variable genes that each section puts forward."""

HOUSEKEEPING = re.compile(r"^(?:MT-|RPS|RPL)", re.IGNORECASE)
"""Symbols of mitochondrial and ribosomal genes, which are never chosen."""


def stem_scores(
    put: list[tuple[np.ndarray, np.ndarray]], spots: int, total: np.ndarray, squares: np.ndarray, size: int
) -> np.ndarray:
    """Score genes so that the ``size`` largest scores are Stem's panel.

    Each section puts forward its `VARIABLE_GENES` highly variable genes (of depth-normalised ln(1 + x), on a copy);
    mitochondrial and ribosomal genes are struck out. Among these, genes are ranked by the mean and by the standard
    deviation of raw counts pooled over the sections. The panel is what lies among the first k of both lists, with k
    grown until there are enough: the worse of a gene's two places.

    Parameters
    ----------
    put
        What `put_forward` gave for each training section, all for the same genes.
    spots
        Number of spots of all sections.
    total, squares
        (g,) total of each gene's counts and of their squares, over all sections.
    size
        Number of genes wanted.

    Returns
    -------
    (g,) float64
        Minus the worse place, 0 for the best gene; ``-inf`` for a gene that is no candidate.

    Raises
    ------
    InputError
        If there are fewer candidates than ``size``.
    """
    candidates = np.flatnonzero(np.any([one[0] for one in put], axis=0) & np.all([one[1] for one in put], axis=0))
    if len(candidates) < size:
        msg = f"asks for {size} genes, but the training sections put forward {len(candidates)} highly variable ones"
        raise InputError(msg, field="panel.size", fix="ask for fewer")
    mean = total[candidates] / spots
    sd = np.sqrt(np.maximum(squares[candidates] / spots - mean**2, 0))
    scores = np.full(len(total), -np.inf)
    scores[candidates] = -np.maximum(_place(mean), _place(sd))
    return scores


def put_forward(section: AnnData, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of ``genes`` a section (raw counts) puts forward, and which are not struck out: (g,) bool each."""
    import scanpy

    variable = np.zeros(len(genes), dtype=bool)
    usual = np.ones(len(genes), dtype=bool)
    copy = section[:, genes].copy()
    if "symbol" in copy.var:
        usual &= ~copy.var["symbol"].astype(str).str.contains(HOUSEKEEPING).to_numpy()
    usual &= ~copy.var_names.astype(str).str.contains(HOUSEKEEPING)
    counted = np.flatnonzero(np.asarray(copy.X.sum(axis=0)).ravel() > 0)
    copy = copy[np.asarray(copy.X.sum(axis=1)).ravel() > 0, counted].copy()
    copy.X = copy.X.astype(np.float32)
    scanpy.pp.normalize_total(copy)
    scanpy.pp.log1p(copy)
    found = scanpy.pp.highly_variable_genes(copy, n_top_genes=min(VARIABLE_GENES, copy.n_vars), inplace=False)
    variable[counted[found["highly_variable"].to_numpy()]] = True
    return variable, usual


def _place(values: np.ndarray) -> np.ndarray:
    """Return each value's place from above (0 = largest); of equal values the first comes first."""
    place = np.empty(len(values))
    place[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return place
