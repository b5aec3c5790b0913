"""Panels: which genes, or columns of a named matrix, are predicted. Chosen on training patients, joined by name."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.atomic import read_json, write_json
from histocrypt.errors import InputError, unknown_name
from histocrypt.targets.matrix import names_of, noun
from histocrypt.targets.stem_genes import stem_scores
from histocrypt.targets.transforms import transform

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.study_parts import PanelChoice


@dataclass(frozen=True)
class Panel:
    """An ordered panel of genes, or of columns of a named matrix."""

    genes: tuple[str, ...]
    """Identifiers (``var_names`` of the sections, or names of the matrix's columns)."""
    symbols: tuple[str, ...]
    """What people call them; the identifier itself where no symbol is known."""
    method: str
    """How they were chosen."""
    scores: tuple[float, ...] = field(default=(), compare=False)
    """The number that ordered them, for the reader; empty for a panel from a file."""
    matrix: str | None = None
    """Whose columns they are, e.g. ``obsm:celltype_prop_major``; None for the counts in ``X``."""

    def __len__(self) -> int:
        return len(self.genes)

    def columns(self, genes: np.ndarray, *, section: str) -> np.ndarray:
        """Return the column of each panel gene among a section's ``genes``.

        Raises
        ------
        InputError
            If a panel gene is not measured in the section; it is named.
        """
        position = {gene: i for i, gene in enumerate(genes)}
        missing = [gene for gene in self.genes if gene not in position]
        if missing:
            named = ", ".join(self._with_symbol(gene) for gene in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            what = f"{noun(self.matrix)}s"
            msg = f"section {section} does not measure {len(missing)} of the panel's {len(self)} {what}: {named}{more}"
            fix = f"use a panel of {what} that every training section measures"
            raise InputError(msg, field=self.matrix or "var_names", fix=fix)
        return np.array([position[gene] for gene in self.genes], dtype=np.int64)

    def _with_symbol(self, gene: str) -> str:
        symbol = self.symbols[self.genes.index(gene)]
        return gene if symbol == gene else f"{gene} ({symbol})"

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able dictionary."""
        return {
            "genes": list(self.genes),
            "symbols": list(self.symbols),
            "method": self.method,
            "scores": list(self.scores),
            **({} if self.matrix is None else {"matrix": self.matrix}),
        }

    @classmethod
    def from_dict(cls, content: dict) -> Panel:
        """Return the panel that `to_dict` wrote."""
        scores = tuple(content.get("scores", ()))
        genes, symbols = tuple(content["genes"]), tuple(content["symbols"])
        return cls(genes, symbols, content["method"], scores, content.get("matrix"))

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Panel:
        """Read what `save` wrote; anything else is an `InputError` that names the file."""
        content = read_json(path)
        try:
            return cls.from_dict(content)
        except (KeyError, TypeError, AttributeError) as error:
            msg = "does not hold a panel"
            raise InputError(msg, file=path, expected="the keys genes, symbols and method") from error


def choose_panel(
    sections: list[AnnData], choice: PanelChoice, *, file: Path | None = None, matrix: str | None = None
) -> Panel:
    """Choose the genes, or the columns of a named matrix, to predict from training sections.

    Only genes that every one of the sections measures are candidates. Mitochondrial and ribosomal genes are candidates
    like any other. Ties are broken by identifier, so the order never depends on the order of the sections' genes.

    * ``top_mean``: the largest mean raw count over all spots (the rule of BrSTNet: He et al. 2020).
    * ``hvg``: highly variable genes by normalised dispersion of ln(1 + counts per 10,000), found in each section and
      ranked by the number of sections they are highly variable in, then by their mean normalised dispersion
      (``scanpy.pp.highly_variable_genes``, flavour ``seurat``; Satija et al. 2015).
    * ``hmhvg``: high mean **and** high variance. Genes are ranked by the mean of counts per 10,000 and by the variance
      of ln(1 + counts per 10,000), both taken within each section and averaged over sections, so that differences
      between patients choose nothing; a gene's score is the worse of its two ranks. The panel is hence the smallest
      intersection of "the r largest by mean" and "the r largest by variance" that holds ``size`` genes.
    * ``stem_hmhvg``: the published selection of Stem: see `targets.stem_genes`. Raw counts pooled over spots, so that
      depth and differences between patients take part; mitochondrial and ribosomal genes are left out.
    * ``file``: the genes of a file, in its order: one a line, or JSON (a list, or ``{"genes": [...]}`` as in
      HEST's ``var_50genes.json``); each is an identifier, or a symbol that stands for one. ``size`` does not count.
    * ``all``: every column of ``matrix`` that each section has, in the order of the first. ``size`` does not count.

    Parameters
    ----------
    sections
        Training sections: raw counts in ``X``, spots x genes, ``obs["total_counts"]`` over all genes.
    choice
        The study's ``panel``.
    file
        The gene list, for ``file``.
    matrix
        The study's ``target.matrix``.

    Raises
    ------
    InputError
        If the method is unknown, the sections measure fewer common genes than asked for, or a listed gene is missing.
    """
    if choice.method == "file":
        return _from_file(sections, file, matrix)
    if choice.method == "all":
        return _every_column(sections, matrix)
    if choice.method not in _SCORES:
        raise unknown_name("panel method", choice.method, [*_SCORES, "file", "all"], field="panel.method")
    common = set(sections[0].var_names).intersection(*(section.var_names for section in sections[1:]))
    genes = np.array(sorted(common), dtype=object)
    if len(genes) < choice.size:
        msg = f"asks for {choice.size} genes, but the training sections have {len(genes)} genes in common"
        raise InputError(msg, field="panel.size", fix="ask for fewer, or leave out the section that measures few genes")
    scores = _SCORES[choice.method](sections, genes, choice.size)
    order = np.argsort(-scores, kind="stable")[: choice.size]  # stable: ties keep the order of identifiers
    chosen = tuple(str(gene) for gene in genes[order])
    return Panel(chosen, _symbols(sections, chosen), choice.method, tuple(float(score) for score in scores[order]))


def _top_mean(sections: list[AnnData], genes: np.ndarray, size: int) -> np.ndarray:
    totals = sum(np.asarray(section[:, genes].X.sum(axis=0), dtype=np.float64).ravel() for section in sections)
    return totals / sum(section.n_obs for section in sections)


def _hvg(sections: list[AnnData], genes: np.ndarray, size: int) -> np.ndarray:
    import anndata
    import pandas as pd
    import scanpy
    from scipy.sparse import csr_matrix

    normalised = [csr_matrix(_log_normalised(section, genes)) for section in sections]
    pooled = anndata.concat(
        {str(i): anndata.AnnData(values) for i, values in enumerate(normalised)}, label="batch", index_unique="-"
    )
    pooled.var_names = pd.Index(genes.astype(str))
    found = scanpy.pp.highly_variable_genes(pooled, n_top_genes=size, batch_key="batch", inplace=False)
    found = found.reindex(genes.astype(str))
    dispersion = found["dispersions_norm"].fillna(-np.inf).to_numpy(dtype=np.float64)
    place = np.empty(len(genes))
    place[np.lexsort((dispersion, found["highly_variable_nbatches"].to_numpy()))] = np.arange(len(genes))
    return place


def _hmhvg(sections: list[AnnData], genes: np.ndarray, size: int) -> np.ndarray:
    mean, variance = np.zeros(len(genes)), np.zeros(len(genes))
    for section in sections:
        values = _log_normalised(section, genes)
        mean += np.expm1(values.astype(np.float64)).mean(axis=0) / len(sections)
        variance += values.var(axis=0, dtype=np.float64) / len(sections)
    return np.minimum(_place(mean), _place(variance))


_SCORES = {"top_mean": _top_mean, "hvg": _hvg, "hmhvg": _hmhvg, "stem_hmhvg": stem_scores}


def _place(values: np.ndarray) -> np.ndarray:
    """Return each value's place from below (0 = smallest); of equal values the first has the higher place."""
    place = np.empty(len(values))
    place[np.argsort(-values, kind="stable")] = np.arange(len(values))[::-1]
    return place


def _log_normalised(section: AnnData, genes: np.ndarray) -> np.ndarray:
    return transform(section[:, genes].X, section.obs["total_counts"].to_numpy(), "log1p_cp10k")


def _symbols(sections: list[AnnData], genes: tuple[str, ...]) -> tuple[str, ...]:
    known: dict[str, str] = {}
    for section in sections:
        if "symbol" in section.var:
            for gene, symbol in zip(section.var_names, section.var["symbol"].astype(str), strict=True):
                known.setdefault(gene, symbol)
    return tuple(known.get(gene) or gene for gene in genes)


def _every_column(sections: list[AnnData], matrix: str | None) -> Panel:
    names = [names_of(s, matrix, section=_section_name(s, i)).tolist() for i, s in enumerate(sections)]
    common = set.intersection(*map(set, names))
    columns = tuple(name for name in names[0] if name in common)
    if not columns:
        msg = "the training sections have no column in common"
        raise InputError(msg, field=matrix)
    return Panel(columns, columns, "all", matrix=matrix)


def _from_file(sections: list[AnnData], file: Path | None, matrix: str | None = None) -> Panel:
    if file is None:
        msg = "panel.method is 'file', but no file is given"
        raise InputError(msg, field="panel.file", fix="name a gene list, relative to the study file")
    listed = read_gene_list(file)
    genes: list[str] = []
    by_section = [_names_of(section, matrix, _section_name(section, i)) for i, section in enumerate(sections)]
    for name in listed:
        meant = {names.get(name) for names in by_section}
        if None in meant:
            absent = [_section_name(s, i) for i, s in enumerate(sections) if by_section[i].get(name) is None]
            msg = f"{noun(matrix)} {name!r} is not measured in training section {absent[0]}"
            raise InputError(msg, file=file, fix="remove it from the list, or leave out that section")
        if len(meant) > 1 or "" in meant:
            msg = f"symbol {name!r} stands for more than one gene"
            raise InputError(msg, file=file, fix="list its gene id instead")
        genes.append(meant.pop())
    twice = [gene for gene, times in Counter(genes).items() if times > 1]
    if twice:
        msg = f"{noun(matrix)} {twice[0]!r} is listed twice"
        raise InputError(msg, file=file, fix="list each once, by id or by symbol")
    symbols = _symbols(sections, tuple(genes)) if matrix is None else tuple(genes)
    return Panel(tuple(genes), symbols, "file", matrix=matrix)


def _names_of(section: AnnData, matrix: str | None, name: str) -> dict[str, str]:
    """Return gene id by id and by symbol; an ambiguous symbol maps to the empty string. An id always wins."""
    if matrix is not None:
        return {column: column for column in names_of(section, matrix, section=name).tolist()}
    names: dict[str, str] = {}
    if "symbol" in section.var:
        for gene, symbol in zip(section.var_names, section.var["symbol"].astype(str), strict=True):
            names[symbol] = "" if symbol in names else gene
    names.update({gene: gene for gene in section.var_names})
    return names


def _section_name(section: AnnData, index: int) -> str:
    return str(section.obs["section"].iloc[0]) if "section" in section.obs and section.n_obs else f"number {index + 1}"


def read_gene_list(file: str | Path) -> list[str]:
    """Read gene names from a file: JSON (a list, or ``{"genes": [...]}``), else one a line; ``#`` starts a comment."""
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"gene list cannot be read ({error})"
        raise InputError(msg, file=file) from error
    if text.lstrip()[:1] in ("[", "{"):
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            msg = f"gene list is not valid JSON ({error})"
            raise InputError(msg, file=file) from error
        listed = content.get("genes") if isinstance(content, dict) else content
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            msg = "gene list has no list of names"
            raise InputError(msg, file=file, expected='["GENE", ...] or {"genes": ["GENE", ...]}')
        names = [name.strip() for name in listed]
    else:
        names = [line.split("#")[0].strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if not names:
        msg = "gene list is empty"
        raise InputError(msg, file=file)
    return names
