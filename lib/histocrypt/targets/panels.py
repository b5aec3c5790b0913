"""Panels: which genes, or columns of a named matrix, are predicted. Chosen on training patients, joined by name.

Sections come one at a time and none is kept: of each, a few numbers a gene stay. A section that trains in many folds is
hence counted once, and memory does not grow with the counts of the sections.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import read_json, refuse_pipe, write_json
from histocrypt.sections.genes import SEVERAL, GeneNames, Interned, Keys, joined, meant_by, why_apart
from histocrypt.targets.matrix import columns_of, names_of, noun
from histocrypt.targets.transforms import transform

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from histocrypt.options import PanelChoice

STEM_CANDIDATES = 2000
"""Highly variable genes that each section puts forward for ``stem_hmhvg``."""

HOUSEKEEPING = re.compile(r"^(?:MT-|RPS|RPL)", re.IGNORECASE)
"""Symbols of mitochondrial and ribosomal genes, which ``stem_hmhvg`` never chooses."""


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

    def columns(self, adata: AnnData, *, section: str) -> np.ndarray:
        """Return (g,) int64: the column of each panel gene in a section.

        Raises
        ------
        InputError
            If a panel gene is not measured in the section; it is named.
        """
        columns = columns_of(adata, self.genes, self.symbols, matrix=self.matrix, section=section)
        if (columns < 0).any():
            both = zip(self.genes, self.symbols, columns < 0, strict=True)
            named = [gene if symbol == gene else f"{gene} ({symbol})" for gene, symbol, gone in both if gone]
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            what, field, fix = f"{noun(self.matrix)}s", self.matrix or "var_names", ""
            if self.matrix is None and 2 * len(named) > len(self):
                own = GeneNames.of(self.genes, self.symbols)
                said, fix = why_apart(own, "the panel", GeneNames.of(adata.var), f"section {section}")
                fix = f"{said}: {fix}" if own.kind != GeneNames.of(adata.var).kind else ""
            raise InputError(
                f"section {section} does not measure {len(named)} of the panel's {len(self)} {what}: "
                f"{', '.join(named[:5])}{more}",
                field=field,
                fix=fix or f"use a panel of {what} that every training section measures",
            )
        return columns

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able dictionary."""
        content = {name: list(getattr(self, name)) for name in ("genes", "symbols")}
        content |= {"method": self.method, "scores": list(self.scores)}
        return content if self.matrix is None else {**content, "matrix": self.matrix}

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
            raise InputError(
                "does not hold a panel", file=path, expected="the keys genes, symbols and method"
            ) from error


@dataclass
class SectionNumbers:
    """What the choice of a panel knows of one section."""

    name: str
    keys: Keys
    """What genes (or columns) are joined by, in the section's order."""
    symbols: np.ndarray
    """(g,) int32: the numbers of what the section calls its symbols; empty where it has none."""
    spots: int
    own: dict[str, np.ndarray]
    """Numbers of each gene that do not depend on which other genes there are, (g,) float64 each."""
    meant: np.ndarray
    """(m,) int64: which gene each listed name stands for here; `ABSENT` where it is none, `SEVERAL` where several."""
    read: Callable[[], AnnData]
    """Reads the section (again)."""
    among: dict[Any, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Numbers that depend on which genes are compared, by that choice."""

    def compared(
        self, genes: np.ndarray, compare: Callable[..., tuple[np.ndarray, ...]], *settings: int
    ) -> tuple[np.ndarray, ...]:
        """Return ``compare(section, genes, *settings)`` of genes as the section calls them.

        The section is read again for genes not compared before.
        """
        key = (settings, hashlib.sha256("\n".join(genes).encode()).digest())
        if key not in self.among:
            self.among[key] = compare(self.read(), genes, *settings)
        return self.among[key]


@dataclass
class Together:
    """Genes of several sections, joined: each has a number."""

    own: list[np.ndarray]
    """Of each section, (g,) the number of each of its genes."""
    ids: np.ndarray
    """(genes,) the id of each gene, as a number of a word; -1 where unknown."""

    def common(self) -> np.ndarray:
        """Return the numbers of the genes that every section has."""
        times = np.zeros(len(self.ids), dtype=np.int64)
        for own in self.own:
            times[own] += 1
        return np.flatnonzero(times == len(self.own))

    def at(self, genes: np.ndarray) -> list[np.ndarray]:
        """Return where these genes are in each section, -1 where one is not."""
        found = []
        for own in self.own:
            place = np.full(len(self.ids), -1, dtype=np.int64)
            place[own] = np.arange(len(own))
            found.append(place[genes])
        return found


class PanelChooser:
    """Chooses panels from sections that are read one at a time, each once however many folds it trains in.

    Only genes that every one of the sections measures are candidates. Where sections call genes differently, these are
    joined as `sections.genes` says, and a gene that they do not call alike goes by its id. Where a section has less
    than half of the genes in common with the largest, the few names that agree choose nothing. Mitochondrial and
    ribosomal genes are candidates like any other. Ties are broken by identifier, so the order never depends on the
    order of the sections' genes.

    * ``top_mean``: the largest mean raw count over all spots (the rule of BrSTNet: He et al. 2020).
    * ``hvg``: highly variable genes by normalised dispersion of ln(1 + counts per 10,000), found in each section (see
      `highly_variable`) and ranked by the number of sections they are highly variable in, then by their mean
      normalised dispersion.
    * ``hmhvg``: high mean **and** high variance. Genes are ranked by the mean of counts per 10,000 and by the variance
      of ln(1 + counts per 10,000), both taken within each section and averaged over sections, so that differences
      between patients choose nothing; a gene's score is the worse of its two ranks. The panel is hence the smallest
      intersection of "the r largest by mean" and "the r largest by variance" that holds ``size`` genes.
    * ``stem_hmhvg``: the published selection of Stem (Zhu et al., "Diffusion Generative Modeling for Spatially Resolved
      Gene Expression Inference from Histology Images", ICLR 2025). Each section puts forward its `STEM_CANDIDATES`
      highly variable genes; mitochondrial and ribosomal genes are struck out. Among these, genes are ranked by the mean
      and by the standard deviation of raw counts pooled over spots, so that depth and differences between patients take
      part; the panel is what lies among the first k of both lists, with k grown until there are enough. There the genes
      are chosen on all slides, the test slide with them; here on training sections only.
    * ``file``: the genes of a file, in its order: one a line, or JSON (a list, or ``{"genes": [...]}`` as in
      HEST's ``var_50genes.json``); each is an identifier, or a symbol that stands for one. ``size`` does not count.
    * ``all``: every column of ``matrix`` that each section has, in the order of the first. ``size`` does not count.

    ``hvg`` and ``stem_hmhvg`` compare the genes that all training sections have, and read a section again where these
    are others in another fold.

    Parameters
    ----------
    read
        Returns a section by its id: raw counts in ``X``, ``obs["total_counts"]`` over all genes. For sections in
        memory, the ``__getitem__`` of a dictionary.
    choice
        The study's ``panel``.
    file
        The gene list, for ``file``.
    matrix
        The study's ``target.matrix``.

    Raises
    ------
    InputError
        If the method is unknown, or the gene list is not given or cannot be read.
    """

    def __init__(
        self,
        read: Callable[[str], AnnData],
        choice: PanelChoice,
        *,
        file: Path | None = None,
        matrix: str | None = None,
    ) -> None:
        self._read, self.choice, self.file, self.matrix = read, choice, file, matrix
        self._known: dict[str, SectionNumbers] = {}
        self._intern = Interned()
        self.note = ""
        """What the join of the last choice lost, and whether names had to be translated."""
        if choice.method not in (*SCORES, "file", "all"):
            raise unknown_name("panel method", choice.method, [*SCORES, "file", "all"], field="panel.method")
        self._listed: list[str] = []
        if choice.method == "file":
            if file is None:
                raise InputError(
                    "panel.method is 'file', but no file is given",
                    field="panel.file",
                    fix="name a gene list, relative to the study file",
                )
            self._listed = read_gene_list(file)

    def choose(self, sections: Iterable[str]) -> Panel:
        """Return the panel that these training sections choose.

        Raises
        ------
        InputError
            If the sections measure fewer common genes than asked for, or a listed gene is missing.
        """
        known = [self._section(section) for section in sections]
        together = Together(*joined([section.keys for section in known], len(self._intern.words)))
        if self.choice.method == "file":
            return self._from_file(known, together)
        common = together.common()
        if self.choice.method == "all":
            columns = tuple(self._called(known, together, together.own[0][np.isin(together.own[0], common)]))
            if not columns:
                raise InputError("the training sections have no column in common", field=self.matrix)
            return Panel(columns, columns, "all", matrix=self.matrix)
        _refuse_chance(known, together)
        size = self.choice.size
        names = self._called(known, together, common)
        times = Counter(names)
        named = sorted((name, gene) for name, gene in zip(names, common.tolist(), strict=True) if times[name] == 1)
        codes = np.array([gene for _, gene in named], dtype=np.int64)
        if len(codes) < size:
            raise InputError(
                f"asks for {size} genes, but the training sections have {len(codes)} genes in common",
                field="panel.size",
                fix="ask for fewer, or leave out the section that measures few genes",
            )
        genes = np.array([name for name, _ in named], dtype=object)
        at = together.at(codes)
        self.note = _lost(known, together, codes, at)

        def total(name: str, divided_by: int = 1) -> np.ndarray:
            """Return the (g,) sum over sections of one of their own numbers."""
            summed = np.zeros(len(codes))
            for section, places_ in zip(known, at, strict=True):
                summed += section.own[name][places_] / divided_by
            return summed

        words = np.array(self._intern.words, dtype=object)
        own_names = [words[section.keys.names[places_]] for section, places_ in zip(known, at, strict=True)]
        scores = SCORES[self.choice.method][1](known, total, own_names, size)
        order = np.argsort(-scores, kind="stable")[:size]  # stable: ties keep the order of identifiers
        chosen = tuple(map(str, genes[order]))
        symbols = self._symbols(known, together, codes[order], chosen)
        return Panel(chosen, symbols, self.choice.method, tuple(scores[order].tolist()))

    def _section(self, section: str) -> SectionNumbers:
        if section not in self._known:
            adata = self._read(section)
            named = "section" in adata.obs and adata.n_obs
            name = str(adata.obs["section"].iloc[0]) if named else f"number {len(self._known) + 1}"
            counted = self.matrix is None or self.choice.method in SCORES
            genes = GeneNames.of(adata.var) if counted else GeneNames.plain(names_of(adata, self.matrix, section=name))
            symbols = adata.var["symbol"].astype(str) if counted and "symbol" in adata.var else []
            self._known[section] = SectionNumbers(
                name=name,
                keys=self._intern.keys(genes),
                symbols=self._intern(symbols),
                spots=adata.n_obs,
                own=SCORES[self.choice.method][0](adata) if self.choice.method in SCORES else {},
                meant=meant_by(self._listed, genes),
                read=lambda: self._read(section),
            )
        return self._known[section]

    def _called(self, known: list[SectionNumbers], together: Together, genes: np.ndarray) -> list[str]:
        """Return the name of each gene that all sections have: theirs where they agree, else its id or symbol."""
        words, at = self._intern.words, together.at(genes)
        names = np.array([section.keys.names[place] for section, place in zip(known, at, strict=True)])
        alike, ids = (names == names[0]).all(axis=0), together.ids[genes]
        called = []
        for i, same in enumerate(alike.tolist()):
            symbols = (section.keys.symbols[place[i]] for section, place in zip(known, at, strict=True) if not same)
            symbol = next((number for number in symbols if number >= 0), -1)
            called.append(words[names[0, i] if same else next((n for n in (ids[i], symbol) if n >= 0), names[0, i])])
        return called

    def _symbols(
        self, known: list[SectionNumbers], together: Together, genes: np.ndarray, names: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return what people call genes: as the first section says that has a symbol of it."""
        symbols = np.full(len(genes), -1, dtype=np.int64)
        at = together.at(genes)
        for section, place in zip(known, at, strict=True):
            if len(section.symbols):
                symbols = np.where(symbols < 0, section.symbols[place], symbols)
        for section, place in zip(known, at, strict=True):  # a section that calls genes by symbol has no such column
            other = [self._intern.words[number] for number in section.keys.names[place]]
            differs = np.array([own != name for own, name in zip(other, names, strict=True)], dtype=bool)
            symbols = np.where((symbols < 0) & differs, section.keys.symbols[place], symbols)
        pairs = zip(names, symbols.tolist(), strict=True)
        return tuple(self._intern.words[number] if number >= 0 else name for name, number in pairs)

    def _from_file(self, known: list[SectionNumbers], together: Together) -> Panel:
        meant = np.array([section.meant for section in known])
        for own, place in zip(together.own, meant, strict=True):
            place[place >= 0] = own[place[place >= 0]]  # from here on numbers of all sections' genes
        chosen = meant.max(axis=0)  # a section may know a gene by another name than the list does
        several = (meant == SEVERAL).any(axis=0) | ((meant >= 0) & (meant != chosen)).any(axis=0)
        if several.any():
            name = self._listed[int(several.argmax())]
            raise InputError(
                f"symbol {name!r} stands for more than one gene", file=self.file, fix="list its gene id instead"
            )
        for section, place in zip(known, together.at(np.maximum(chosen, 0)), strict=True):
            absent = (chosen < 0) | (place < 0)
            if absent.any():
                raise self._absent(section, absent)
        names = tuple(self._called(known, together, chosen))
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise InputError(
                f"{noun(self.matrix)} {twice[0]!r} is listed twice",
                file=self.file,
                fix="list each once, by id or by symbol",
            )
        symbols = self._symbols(known, together, chosen, names) if self.matrix is None else names
        return Panel(names, symbols, "file", matrix=self.matrix)

    def _absent(self, section: SectionNumbers, absent: np.ndarray) -> InputError:
        """Return the error for listed names that a section did not measure."""
        first, lost = self._listed[int(absent.argmax())], int(absent.sum())
        if self.matrix is None and lost > 1 and 2 * lost > len(self._listed):
            pair = (GeneNames.of(self._listed), "the list", GeneNames.of(section.read().var))
            said, fix = why_apart(*pair, f"training section {section.name}")
            problem = f"{lost} of the list's {len(self._listed)} genes are not measured in training section "
            return InputError(f"{problem}{section.name}, first {first!r}; {said}", file=self.file, fix=fix)
        return InputError(
            f"{noun(self.matrix)} {first!r} is not measured in training section {section.name}",
            file=self.file,
            fix="remove it from the list, or leave out that section",
        )


def _refuse_chance(known: list[SectionNumbers], together: Together) -> None:
    """Refuse sections that have so few genes in common that they seem to be called differently."""
    sizes = [len(own) for own in together.own]
    largest = int(np.argmax(sizes))
    for section, own, size in zip(known, together.own, sizes, strict=True):
        both = len(np.intersect1d(own, together.own[largest]))
        if 2 * both < size:
            other = known[largest]
            pair = (GeneNames.of(other.read().var), f"section {other.name}", GeneNames.of(section.read().var))
            said, fix = why_apart(*pair, f"section {section.name}")
            raise InputError(
                f"the training sections {other.name} and {section.name} have only {both} genes in common, less than "
                f"half of {size}, and a panel chosen from so few would be arbitrary; {said}",
                field="panel",
                value=both,
                fix=fix,
            )


def _lost(known: list[SectionNumbers], together: Together, codes: np.ndarray, at: list[np.ndarray]) -> str:
    """Return in words how many genes the join loses, and for how many sections' names differ."""
    lost = len(together.ids) - len(codes)
    names = [section.keys.names[place] for section, place in zip(known, at, strict=True)]
    differ = int((~np.all([own == names[0] for own in names], axis=0)).sum())
    said = [f"{len(codes):,} genes are in all {len(known)} training sections"]
    said += [f"{lost:,} are in some only and are left out"] if lost else []
    said += [f"{differ:,} are called differently and were joined by id or symbol"] if differ else []
    return "; ".join(said) if len(said) > 1 else ""


def totals(section: AnnData) -> dict[str, np.ndarray]:
    """Return each gene's total count."""
    return {"total": np.asarray(section.X.sum(axis=0), dtype=np.float64).ravel()}


def moments(section: AnnData) -> dict[str, np.ndarray]:
    """Return each gene's mean of counts per 10,000, and the variance of their logarithm.

    Only counts that are not zero are looked at: the dense matrix of a section would be ten times as large.
    """
    counts, spots = _sparse(section), section.n_obs
    gene = counts.indices

    def total(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(gene, weights=values, minlength=section.n_vars)

    depth = np.repeat(section.obs["total_counts"].to_numpy(dtype=np.float64), np.diff(counts.indptr))
    values = transform(counts.data[:, None], depth, "log1p_cp10k")[:, 0].astype(np.float64)
    centre = total(values) / spots
    apart = total(np.square(values - centre[gene])) + (spots - total(None)) * np.square(centre)
    return {"mean": total(np.expm1(values)) / spots, "variance": apart / spots}


def squares(section: AnnData) -> dict[str, np.ndarray]:
    """Return each gene's total count and total of squared counts."""
    counts = _sparse(section)
    values = counts.data.astype(np.float64)
    total, square = (
        np.bincount(counts.indices, weights=weights, minlength=section.n_vars) for weights in (values, values**2)
    )
    return {"total": total, "squares": square}


def top_mean(sections: list[SectionNumbers], total: Callable, genes: list[np.ndarray], size: int) -> np.ndarray:
    """Score by the mean raw count over all spots."""
    return total("total") / sum(section.spots for section in sections)


def hmhvg(sections: list[SectionNumbers], total: Callable, genes: list[np.ndarray], size: int) -> np.ndarray:
    """Score by the worse of two places: by mean, and by variance of the logarithm, both averaged over sections."""
    mean, variance = (total(name, divided_by=len(sections)) for name in ("mean", "variance"))
    return len(mean) - 1.0 - np.maximum(_place(mean), _place(variance))


def hvg(sections: list[SectionNumbers], total: Callable, genes: list[np.ndarray], size: int) -> np.ndarray:
    """Score by the number of sections a gene is highly variable in, then by its mean normalised dispersion."""
    number = len(genes[0])
    variable, known, summed = np.zeros(number, dtype=int), np.zeros(number), np.zeros(number)
    for section, own in zip(sections, genes, strict=True):
        highly, dispersion = section.compared(own, _highly_variable_in, size)
        there = np.isfinite(dispersion)
        variable, known, summed = variable + highly, known + there, summed + np.where(there, dispersion, 0)
    mean = np.where(known > 0, summed / np.maximum(known, 1), -np.inf)
    place = np.empty(number)
    place[np.lexsort((mean, variable))] = np.arange(number)
    return place


def stem_hmhvg(sections: list[SectionNumbers], total: Callable, genes: list[np.ndarray], size: int) -> np.ndarray:
    """Score by minus the worse of two places, by mean and by standard deviation; ``-inf`` for what is no candidate."""
    put = [section.compared(own, _put_forward) for section, own in zip(sections, genes, strict=True)]
    spots = sum(section.spots for section in sections)
    forward, usual = (np.array(each) for each in zip(*put, strict=True))
    candidates = np.flatnonzero(forward.any(axis=0) & usual.all(axis=0))
    if len(candidates) < size:
        raise InputError(
            f"asks for {size} genes, but the training sections offer {len(candidates)} highly variable ones",
            field="panel.size",
            fix="ask for fewer",
        )
    mean = total("total")[candidates] / spots
    sd = np.sqrt(np.maximum(total("squares")[candidates] / spots - mean**2, 0))
    scores = np.full(len(genes[0]), -np.inf)
    scores[candidates] = -np.maximum(_place(mean), _place(sd))
    return scores


SCORES = {
    "top_mean": (totals, top_mean),
    "hvg": (lambda section: {}, hvg),
    "hmhvg": (moments, hmhvg),
    "stem_hmhvg": (squares, stem_hmhvg),
}
"""Method -> a section's own numbers, and the scores made of all sections' numbers."""


def _place(values: np.ndarray) -> np.ndarray:
    """Return each value's place from above (0 = largest); of equal values the first comes first."""
    place = np.empty(len(values))
    place[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return place


def _sparse(section: AnnData) -> csr_matrix:
    from scipy.sparse import csr_matrix

    return csr_matrix(section.X)


def highly_variable(values: csr_matrix, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which genes are highly variable, (g,) bool, and their normalised dispersions, (g,) float64.

    The dispersion (variance by mean) of each gene is compared with those of genes of about the same mean, in 20 bins;
    the ``size`` largest are highly variable. Flavour ``seurat`` of ``scanpy.pp.highly_variable_genes`` (Satija et al.,
    Nat Biotechnol 33:495, 2015), to the last bit of what it computes on one thread.

    Parameters
    ----------
    values
        (n, g) float32, ln(1 + normalised counts).
    size
        Number of genes wanted; of equal dispersions all are taken.
    """
    import pandas as pd

    spots, genes = values.shape
    counts = np.expm1(values.data)
    mean = np.bincount(values.indices, weights=counts, minlength=genes) / spots
    variance = np.bincount(values.indices, weights=counts * counts, minlength=genes) / spots - mean**2
    variance *= spots / max(spots - 1, 1)
    mean[mean == 0] = 1e-12
    ratio = variance / mean
    with np.errstate(invalid="ignore"):  # rounding may leave a constant gene below zero
        dispersion = pd.Series(np.log(np.where(ratio == 0, np.nan, ratio)))
    of_bin = dispersion.groupby(pd.cut(pd.Series(np.log1p(mean)), bins=20), observed=True)
    centre, spread = of_bin.transform("mean").to_numpy(), of_bin.transform("std").to_numpy()
    alone = np.isnan(spread)  # a gene alone in its bin: 1
    centre, spread = np.where(alone, 0, centre), np.where(alone, centre, spread)
    normalised = (dispersion.to_numpy() - centre) / spread
    ranked = np.sort(normalised[~np.isnan(normalised)])
    least = ranked[-min(size, len(ranked))] if len(ranked) else np.inf
    return np.nan_to_num(normalised, nan=-np.inf) >= least, normalised


def _highly_variable_in(section: AnnData, genes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `highly_variable` of a section; a gene that no spot expresses is not, and its dispersion counts as 0."""
    from scipy.sparse import csr_matrix

    values = csr_matrix(transform(section[:, genes].X, section.obs["total_counts"].to_numpy(), "log1p_cp10k"))
    expressed = values.getnnz(axis=0) > 0
    highly, dispersion = np.zeros(len(genes), dtype=bool), np.zeros(len(genes))
    highly[expressed], dispersion[expressed] = highly_variable(values[:, expressed], size)
    return highly, dispersion


def _put_forward(section: AnnData, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of ``genes`` a section (raw counts) puts forward, and which are not struck out: (g,) bool each."""
    names = section.var.loc[genes]
    struck_out = names.index.astype(str).str.contains(HOUSEKEEPING)
    if "symbol" in names:
        struck_out |= names["symbol"].astype(str).str.contains(HOUSEKEEPING).to_numpy()
    counts = _sparse(section[:, genes]).astype(np.float32)
    counted = np.flatnonzero(np.asarray(counts.sum(axis=0)).ravel() > 0)
    counts = counts[np.asarray(counts.sum(axis=1)).ravel() > 0][:, counted]
    spot = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    depth = np.bincount(spot, weights=counts.data, minlength=counts.shape[0]).astype(np.float32)
    counts.data = np.log1p(counts.data / (depth / np.median(depth))[spot])
    variable = np.zeros(len(genes), dtype=bool)
    variable[counted] = highly_variable(counts, STEM_CANDIDATES)[0]
    return variable, ~struck_out


def read_gene_list(file: str | Path) -> list[str]:
    """Read gene names from a file: JSON (a list, or ``{"genes": [...]}``), else one a line; ``#`` starts a comment."""
    file = Path(file)
    refuse_pipe(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"gene list cannot be read ({error})", file=file) from error
    if text.lstrip()[:1] in ("[", "{"):
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"gene list is not valid JSON ({error})", file=file) from error
        listed = content.get("genes") if isinstance(content, dict) else content
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise InputError(
                "gene list has no list of names", file=file, expected='["GENE", ...] or {"genes": ["GENE", ...]}'
            )
        names = [name.strip() for name in listed]
    else:
        names = [line.split("#")[0].strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if not names:
        raise InputError("gene list is empty", file=file)
    return names
