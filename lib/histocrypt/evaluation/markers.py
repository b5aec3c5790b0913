"""Small published lists of genes that tell what a spot of breast tissue holds, and their score.

A panel of 200 genes holds few of them. What it does not hold is not predicted: a set is scored by the genes that are
there, and which these are stands beside every score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from histocrypt.demo.counts import PROGRAMMES

WU = "Wu et al., Nat Genet 53:1334 (2021), doi:10.1038/s41588-021-00911-1"
"""Single cells of human breast cancers; the markers by which its cell types are told."""
HALLMARK = "MSigDB hallmarks: Liberzon et al., Cell Syst 1:417 (2015), doi:10.1016/j.cels.2015.12.004"
AMPLICON = "Kauraniemi and Kallioniemi, Endocr Relat Cancer 13:39 (2006), doi:10.1677/erc.1.01147"
BREAST: dict[str, tuple[tuple[str, ...], str]] = {
    "Epithelium": (("EPCAM", "KRT7", "KRT8", "KRT18", "KRT19", "CDH1", "CLDN4", "CLDN7"), WU),
    "Stroma": (("COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "PDGFRB", "FAP", "POSTN", "SPARC"), WU),
    "Lymphocytes": (("PTPRC", "CD3D", "CD3E", "CD2", "MS4A1", "CD79A", "NKG7"), WU),
    "Plasma cells": (("JCHAIN", "MZB1", "IGKC", "IGHG1", "IGHG3", "IGHA1", "IGHM"), WU),
    "Macrophages": (("CD68", "CD14", "LYZ", "C1QA", "C1QB", "FCGR3A"), WU),
    "Endothelium": (("PECAM1", "VWF", "CLDN5", "PLVAP", "ENG"), WU),
    "HER2 amplicon": (("ERBB2", "GRB7", "STARD3", "MIEN1", "PGAP3"), AMPLICON),
    "Interferon response": (
        ("ISG15", "IFI27", "IFI44", "IFI44L", "IFITM1", "IFITM2", "IFITM3", "BST2", "STAT2", "ADAR", "MX1", "OAS1"),
        HALLMARK,
    ),
    "Oxidative phosphorylation": (
        ("NDUFA3", "NDUFA4", "NDUFB7", "CYC1", "UQCRC1", "UQCRH", "UQCRQ", "UQCR10", "UQCR11")
        + ("COX4I1", "COX5B", "COX6B1", "COX6C", "COX7A2", "COX7C"),
        HALLMARK,
    ),
}
"""Name -> symbols and source: cell types first, then pathways."""
FEWEST = 2
"""Genes of a set that must be there for it to be scored."""
DEMO = "DEMO"
"""What ids of simulated genes begin with; their symbols begin with the programme that drives them."""
A_BIN = 20
"""Genes of like expression among which the control genes of a score are drawn, about."""


def sets_in(genes: Sequence[str], symbols: Sequence[str]) -> dict[str, list[int]]:
    """Return which of the genes each set holds: name -> places, of sets with at least `FEWEST` of them.

    Parameters
    ----------
    genes, symbols
        (g,) ids and symbols. Of simulated tissue, the sets are the programmes that its genes were drawn from, the one
        that no image shows (``OFF``) among them.
    """
    if len(genes) and all(str(gene).startswith(DEMO) for gene in genes):
        found = {name: [at for at, one in enumerate(symbols) if str(one).startswith(name)] for name in PROGRAMMES}
    else:
        place = {str(symbol).upper(): at for at, symbol in enumerate(symbols)}
        found = {name: [place[one] for one in listed if one in place] for name, (listed, _) in BREAST.items()}
    return {name: places for name, places in found.items() if len(places) >= FEWEST}


def scores(values: np.ndarray, sets: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Score sets of genes as scanpy does: their mean less that of control genes of like expression.

    Parameters
    ----------
    values
        (n, g) expression, logarithmic.
    sets
        Name -> places of the genes.

    Returns
    -------
    dict
        Name -> (n,) float64; sets that leave no control gene are missing. Source: Tirosh et al., Science 352:189
        (2016), as `scanpy.tl.score_genes`.
    """
    import scanpy
    from anndata import AnnData

    names = [str(at) for at in range(values.shape[1])]
    found = {}
    for name, places in sets.items():
        if len(places) >= len(names):
            continue
        table = AnnData(np.asarray(values, dtype=np.float64))
        table.var_names = names
        how = {"n_bins": max(2, len(names) // A_BIN), "ctrl_as_ref": True, "random_state": 0}
        scanpy.tl.score_genes(table, [names[at] for at in places], **how)
        found[name] = table.obs["score"].to_numpy(dtype=np.float64)
    return found
