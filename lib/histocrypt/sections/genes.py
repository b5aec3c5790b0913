"""What genes are called: which kind of names a file has, and how lists of names of several kinds are joined.

A gene has a name as its file has it, and where they are known an id (without version and genome prefix) and a symbol.
Two genes are one by name, else by id, else by symbol where not both have an id of one catalogue. A symbol that two
genes of one file share joins nothing, and two genes of one file never become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "ensembl_gene_id", "feature_id", "ids")
"""Columns of ``var``, in lower case, that hold ids beside names of another kind; the first that is there counts."""
SYMBOL_COLUMNS = ("symbol", "symbols", "gene_symbol", "gene_symbols", "genesymbol", "hgnc_symbol", "gene_name")
SYMBOL_COLUMNS += ("gene_names", "feature_name")
KIND_COLUMNS = ("feature_types", "feature_type", "feature_biotype", "modality")
"""Columns of ``var`` that say what was measured."""

GENOME = re.compile(r"^(?:GRC[a-z]{1,2}\d+|hg\d{2}|mm\d{1,2}|rn\d|mRatBN\d[\w.]*?)[_-]+(?=.)")
ENSEMBL = re.compile(
    r"^(?:(?P<before>.+?)[_|:;, -]+)?(?P<id>ENS[A-Z]{0,6}G\d{11})(?P<version>\.\d+)?(?P<copy>[_-]PAR_Y)?"
    r"(?:[_|:;, -]+(?P<after>.+))?$",
    re.IGNORECASE,
)
ACCESSION = re.compile(r"^([A-Z]{3,}\d{5,})(\.\d+)?$")
"""Ids of other catalogues. Shorter ones such as AC011043.1 are names of clones, whose number after the dot counts."""
UNKNOWN = {"", "nan", "none", "na", "<na>", "-"}

OTHER_FEATURES = re.compile(
    r"antibody|antigen|\bprotein\b(?! coding)|\bprot\b|\batac\b|\bhto\b|\badt\b|\bcmo\b|crispr|multiplexing"
    r"|custom|hashtag|control|blank|codeword|peak|spike|vdj|genotype",
    re.IGNORECASE,
)
"""Kinds of features that are no gene, where a column of kinds does not speak of gene expression at all."""
PROBES = re.compile(
    r"^(?:BLANK_\d+|Blank-\d+|NegControl(?:Probe|Codeword)_\w+|(?:Unassigned|Deprecated)Codeword_\d+|Intergenic_Region_\d+"
    r"|NegPrb\d+|SystemControl\d+|FalseCode\d+|DEPRECATED_\S+)$"
)
"""Names of control probes, which some tables list among genes without saying of what kind they are."""


MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)"
SPOILT = re.compile(
    rf"^(?:\d{{1,2}}-{MONTH}|{MONTH}-\d\d|\d{{4}}-\d\d-\d\d(?: 00:00:00)?|\d{{1,2}}/\d{{1,2}}/\d{{2,4}}"
    r"|\d(?:\.\d+)?E\+\d+)(?:[.-]\d)?$"
)
"""What spreadsheets make of SEPT2, MARCH1, DEC1 and of 2310009E13."""
A_GENE = 0.75
"""Where rows have fewer different ids than this share of them, they are probes or isoforms, and no genes."""


@dataclass(frozen=True)
class GeneNames:
    """Genes of one file, in its order."""

    names: np.ndarray
    """(g,) str, as the file has them."""
    ids: np.ndarray
    """(g,) str, without version and genome prefix; empty where unknown, or where two of these genes share one."""
    symbols: np.ndarray
    """(g,) str, without genome prefix; empty where unknown."""

    @classmethod
    def of(cls, var: pd.DataFrame | Iterable[str], symbols: Iterable[str] = ()) -> GeneNames:
        """Return what ``var`` says, its index and its columns; or the names, and perhaps symbols, of a plain list."""
        columns = getattr(var, "columns", ())
        names = [str(name) for name in (var.index if hasattr(var, "columns") else var)]
        ids, own = (list(part) for part in zip(*map(_parts, names), strict=True)) if names else ([], [])
        matches = [ACCESSION.match(symbol) for symbol in own]
        if sum(match is not None for match in matches) > len(names) / 2:
            ids = [one or (match[1] if match else "") for one, match in zip(ids, matches, strict=True)]
            own = [match[1] if match else symbol for symbol, match in zip(own, matches, strict=True)]
        stated = column_of(var, ID_COLUMNS) if len(columns) else None
        if stated is not None:
            ids = [one or plain_id(value) for one, value in zip(ids, _words(var[stated]), strict=True)]
        called = column_of(var, SYMBOL_COLUMNS) if len(columns) else None
        given = _words(var[called]) if called is not None else [str(symbol) for symbol in symbols]
        for i, symbol in enumerate(given):
            if symbol and symbol != names[i]:
                own[i] = _parts(symbol)[1] or own[i]
        return cls(np.array(names, dtype=object), _once(ids), np.array(own, dtype=object))

    @classmethod
    def plain(cls, names: Sequence[str]) -> GeneNames:
        """Return names that are known by nothing else: columns of a named matrix."""
        none = np.full(len(names), "", dtype=object)
        return cls(np.array(list(names), dtype=object), none, none)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def kind(self) -> str:
        """What most names are, in words."""
        ensembl = [name.strip() for name in self.names if _parts(name)[0]]
        prefixes = [match[0] for name in self.names if (match := GENOME.match(name))]
        kinds = sorted(set(prefixes), key=lambda one: -prefixes.count(one))
        words = " and ".join(kinds) + (" prefixes" if len(kinds) > 1 else " prefix")
        prefix = f", {words}" if 2 * len(prefixes) > len(self) else ""
        if 2 * len(ensembl) > len(self):
            versioned = 2 * sum("." in name and bool(ENSEMBL.match(name)["version"]) for name in ensembl) > len(ensembl)
            return "Ensembl ids" + (", versioned" if versioned else "") + prefix
        plain = [GENOME.sub("", name) for name in self.names]
        accessions = [match for name in plain if (match := ACCESSION.match(name))]
        if 2 * len(accessions) > len(self):
            versioned = 2 * sum(bool(match[2]) for match in accessions) > len(accessions)
            return f"ids such as {accessions[0][1]}" + (", versioned" if versioned else "") + prefix
        if 2 * sum(name.isdigit() for name in plain) > len(self):
            return "numbers" + prefix
        return "symbols" + prefix

    @cached_property
    def species(self) -> str:
        """``human``, ``mouse``, another one's letters in Ensembl's ids, or empty where names do not tell."""
        letters = [match[1] for one in self.ids if (match := re.match(r"^ENS([A-Z]*)G\d", one))]
        if letters and 2 * len(letters) > len(self):
            most = max(set(letters), key=letters.count)
            return {"": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish"}.get(most, most)
        words = [symbol for symbol in self.symbols if len(re.findall("[A-Za-z]", symbol)) > 2]
        upper = sum(word.upper() == word or "orf" in word for word in words)
        title = sum(bool(re.match(r"^[A-Z][a-z]", word)) for word in words)
        if len(words) < 10:
            return ""
        return "human" if upper > 0.8 * len(words) else "mouse" if title > 0.6 * len(words) else ""


def column_of(var: pd.DataFrame, known: Sequence[str]) -> str | None:
    """Return the first of the known columns that ``var`` has, whatever its case."""
    there = {str(column).lower(): column for column in reversed(var.columns)}
    return next((there[name] for name in known if name in there), None)


def plain_id(name: str) -> str:
    """Return an id without version and genome prefix."""
    stated, rest = _parts(name)
    match = ACCESSION.match(rest)
    return stated or (match[1] if match else rest)


@lru_cache(2**17)
def _parts(name: str) -> tuple[str, str]:
    """Return the Ensembl id in a name, empty where there is none, and the symbol: ``ENSG00000141510.18_TP53``."""
    name = name.strip()
    match = ENSEMBL.match(name) if "ENS" in name.upper() else None  # which is slow to say no
    if match is None:
        return "", GENOME.sub("", name)
    before = match["before"] or ""
    before = "" if GENOME.match(f"{before}_x") else GENOME.sub("", before)
    return match["id"].upper() + (match["copy"] or "").upper().replace("-", "_"), match["after"] or before


def _words(column: pd.Series) -> list[str]:
    return ["" if word.lower() in UNKNOWN else word for word in (str(value).strip() for value in column)]


def _once(values: list[str]) -> np.ndarray:
    """Return values with those that occur twice left empty."""
    import pandas as pd

    values = pd.Series(values, dtype=object)
    return values.where(~values.duplicated(keep=False), "").to_numpy(dtype=object)


# Joins.


class Interned:
    """Numbers for names, so that many lists can be held and joined cheaply."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self.words: list[str] = []

    def __call__(self, words: Iterable[str]) -> np.ndarray:
        """Return (n,) int32: the number of each word; -1 for an empty one."""
        for word in words:
            if word and word not in self._number:
                self._number[word] = len(self.words)
                self.words.append(str(word))
        return np.array([self._number.get(word, -1) if word else -1 for word in words], dtype=np.int32)

    def keys(self, genes: GeneNames) -> Keys:
        """Return the numbers that a list is joined by."""
        letters = [re.match(r"ENS|[A-Za-z]*", one)[0] if one else "" for one in genes.ids]
        return Keys(self(genes.names), self(genes.ids), self(_once(list(genes.symbols))), self(letters))


@dataclass(frozen=True)
class Keys:
    """(g,) int32 numbers of names, ids and symbols of one list of genes; -1 where there is none."""

    names: np.ndarray
    ids: np.ndarray
    symbols: np.ndarray
    catalogues: np.ndarray
    """Of whose making the ids are, as the letters say that they begin with."""

    @property
    def richness(self) -> int:
        """How many names of any kind are known."""
        return int((self.ids >= 0).sum() + (self.symbols >= 0).sum())


def joined(lists: Sequence[Keys], words: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the number of each list's genes among all genes of all lists, and (genes,) the number of each one's id.

    Lists that know most names come first, so that one with ids and symbols joins those that have only one of both.
    """
    by = {kind: np.full(words, -1, dtype=np.int64) for kind in ("names", "ids", "symbols")}
    gene_id, catalogue = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    found: list[np.ndarray | None] = [None] * len(lists)
    for number in sorted(range(len(lists)), key=lambda number: -lists[number].richness):
        keys = lists[number]
        own, taken = np.full(len(keys.names), -1, dtype=np.int64), np.zeros(len(gene_id), dtype=bool)
        for kind in by:
            words_of = getattr(keys, kind)
            open_ = np.flatnonzero((own < 0) & (words_of >= 0))
            meant = by[kind][words_of[open_]]
            free = meant >= 0
            free[free] = ~taken[meant[free]]
            if kind == "symbols":  # two ids of one catalogue are two genes, whatever they are called
                theirs = catalogue[meant[free]]
                free[free] = (theirs < 0) | (theirs != keys.catalogues[open_[free]])
            genes, first = np.unique(meant[free], return_index=True)
            own[open_[free][first]] = genes
            taken[genes] = True
        new = own < 0
        own[new] = len(gene_id) + np.arange(new.sum())
        more = np.full(new.sum(), -1, dtype=np.int64)
        gene_id, catalogue = np.concatenate([gene_id, more]), np.concatenate([catalogue, more])
        unknown = (gene_id[own] < 0) & (keys.ids >= 0)
        gene_id[own[unknown]], catalogue[own[unknown]] = keys.ids[unknown], keys.catalogues[unknown]
        for kind, place in by.items():
            words_of = getattr(keys, kind)
            known = words_of >= 0
            before = place[words_of[known]]
            place[words_of[known]] = np.where(
                (before == -1) | (before == own[known]), own[known], -2 if kind == "symbols" else before
            )
        found[number] = own
    return found, gene_id


def places(wanted: GeneNames, measured: GeneNames) -> np.ndarray:
    """Return (m,) int64: where each wanted gene is among the measured ones; -1 where it is not, or not certainly."""
    intern = Interned()
    lists = [intern.keys(wanted), intern.keys(measured)]
    (mine, theirs), _ = joined(lists, len(intern.words))
    place = np.full(max([-1, *mine, *theirs]) + 1, -1, dtype=np.int64)
    place[theirs] = np.arange(len(theirs))
    return place[mine]


ABSENT, SEVERAL = -1, -2
"""What a name means where no gene, or more than one, is called so."""


def meant_by(names: Iterable[str], genes: GeneNames) -> np.ndarray:
    """Return (m,) int64: which gene each name means, by name, else id, else symbol; `ABSENT`, `SEVERAL`.

    Unlike in `places`, two names may mean one gene.
    """
    ways: list[dict[str, int]] = []
    for words in (genes.names, genes.ids, genes.symbols):
        way: dict[str, int] = {}
        for place, word in enumerate(words.tolist()):
            way[word] = SEVERAL if word in way else place
        way.pop("", None)
        ways.append(way)
    found = []
    for name in names:
        identity, symbol = _parts(name)
        words = (name, identity or plain_id(name), symbol or name)
        found.append(next((way[word] for way, word in zip(ways, words, strict=True) if word in way), ABSENT))
    return np.array(found, dtype=np.int64)


def why_apart(one: GeneNames, first: str, two: GeneNames, second: str) -> tuple[str, str]:
    """Return which names each of two files uses, and what to do about it.

    Parameters
    ----------
    first, second
        What the files are called, e.g. ``section S_1``.
    """
    kinds = [names.kind + (f" ({names.species})" if names.species else "") for names in (one, two)]
    said = f"{first} seems to use {kinds[0]}, {second} {kinds[1]}"
    if one.species and two.species and one.species != two.species:
        return said, f"genes of {one.species} and of {two.species} are not the same genes: keep the two apart"
    if one.kind == two.kind:
        return said, "each measures mostly other genes: take files that were made with one list of genes"
    poor = second if (two.ids == "").mean() >= (one.ids == "").mean() else first
    return said, f"give {poor} the other names too: ids in var['gene_ids'], symbols in var['symbol']"


# What a section's file says.


def expression_only(adata: AnnData, file: Path) -> tuple[AnnData, str]:
    """Return the genes of a section without antibodies, control probes and other features, and what was left out.

    Raises
    ------
    InputError
        If no gene is left.
    """
    other, kinds = other_features(adata.var)
    if not other.any():
        return adata, ""
    listed = counted_kinds(other, kinds)
    column = column_of(adata.var, KIND_COLUMNS)
    field = f"var[{column!r}]" if column is not None else "var_names"
    if other.all():
        raise InputError(
            f"no gene is measured: all {len(other)} features are others ({listed})",
            file=file,
            field=field,
            expected="features of gene expression",
        )
    return adata[:, ~other].copy(), f"{field}: {int(other.sum())} of {len(other)} features are no genes: {listed}"


def counted_kinds(other: np.ndarray, kinds: np.ndarray) -> str:
    """Return in words how many features of each kind are no genes, of what `other_features` returned."""
    return ", ".join(f"{int((kinds[other] == kind).sum())} {kind}" for kind in sorted(set(kinds[other])))


def other_features(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return which features are no genes, (g,) bool, and what each is, (g,) str."""
    names = np.array([str(name) for name in var.index], dtype=object)
    probes = np.array([bool(PROBES.match(GENOME.sub("", name))) for name in names], dtype=bool)
    column = column_of(var, KIND_COLUMNS)
    if column is None:
        return probes, np.where(probes, "control probes", "")
    kinds = np.array(_words(var[column]), dtype=object)
    plain = np.array([re.sub(r"[\s_-]+", " ", kind).lower() for kind in kinds], dtype=object)
    if (plain == "gene expression").any():  # 10x Genomics' words, so that all else is no gene
        other = (plain != "gene expression") & (plain != "")
    else:
        other = np.array([bool(OTHER_FEATURES.search(kind)) for kind in plain], dtype=bool)
    return other | probes, np.where(other, kinds, np.where(probes, "control probes", ""))


def odd_names(var: pd.DataFrame, file: Path) -> list[str]:
    """Return what is odd about names of genes: of two genomes, or turned into dates by a spreadsheet.

    Raises
    ------
    InputError
        If rows are probes or isoforms, several of them to a gene.
    """
    names = [str(name) for name in var.index]
    stated = column_of(var, ID_COLUMNS)
    ids = [_parts(name)[0] for name in names]
    if stated is not None:
        ids = [one or _parts(word)[0] for one, word in zip(ids, _words(var[stated]), strict=True)]
    known = [one for one in ids if one]
    if len(names) == len(set(names)) and 1 < len(known) and len(set(known)) < A_GENE * len(known):
        raise InputError(
            f"rows are probes or isoforms, not genes: {len(known)} of them share {len(set(known))} ids of genes",
            file=file,
            field="var_names",
            value=names[0],
            expected="one row per gene",
            fix="add up the counts of each gene's rows, or give the filtered feature matrix of Space Ranger",
        )
    said = []
    genomes = [match[0].rstrip("_-") for name in names if (match := GENOME.match(name))]
    if len(set(genomes)) > 1:
        listed = ", ".join(f"{genomes.count(one)} of {one}" for one in sorted(set(genomes)))
        said.append(f"var_names: genes of {len(set(genomes))} genomes: {listed}")
    called = column_of(var, SYMBOL_COLUMNS)
    spoilt = sorted({word for word in (*names, *(_words(var[called]) if called else ())) if SPOILT.match(word)})
    if spoilt:
        said.append(
            f"{len(spoilt)} names of genes look as a spreadsheet spoils them ({', '.join(spoilt[:3])}): dates or "
            "numbers in the place of symbols, which join no gene of another file by name"
        )
    return said


def read_by_id(adata: AnnData, file: Path) -> str:
    """Call genes by their ids where their names are not unique, or mere row numbers; return what was done.

    The names stay as ``var["symbol"]``. A table of ids that does not name each gene once is left alone.

    Raises
    ------
    InputError
        If genes have row numbers alone: of two files, they would be joined by position.
    """
    names, var = adata.var_names.astype(str), adata.var
    numbered = len(names) > 1 and bool((names == [str(number) for number in range(len(names))]).all())
    if "symbol" not in var and not numbered:
        called = column_of(var, SYMBOL_COLUMNS)
        if called is not None and (GeneNames.of(names).ids != "").mean() > 0.5:
            var["symbol"] = [word or name for word, name in zip(_words(var[called]), names, strict=True)]
    if names.is_unique and not numbered:
        return ""
    for known in (ID_COLUMNS, *((SYMBOL_COLUMNS,) if numbered else ())):
        column = column_of(var, known)
        words = _words(var[column]) if column is not None else []
        if words and all(words) and len(set(words)) == len(words):
            why = "are row numbers" if numbered else f"are not unique ({names[names.duplicated()].nunique()} repeated)"
            if "symbol" not in var and not numbered:
                var["symbol"] = names.to_numpy(dtype=object)
            adata.var_names = words
            return f"var_names {why}, so that genes are called by var[{column!r}]"
    if numbered:
        raise InputError(
            "genes have no names, only row numbers",
            file=file,
            field="var_names",
            value=str(names[0]),
            expected="ids or symbols as var_names, or ids in var['gene_ids']",
        )
    return ""
