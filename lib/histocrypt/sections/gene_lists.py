"""Gene lists that lie beside arrays of counts: found, read, and joined only where their length agrees."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np

from histocrypt.errors import InputError

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".npy", ".json")
PICKLES = (".pkl", ".pickle", ".p")
HEADERS = {"gene", "genes", "gene_id", "gene_ids", "gene_name", "gene_names", "ensembl", "ensembl_id", "id", "name"}
SYMBOL_TABLE = re.compile(r"ensembl.*\.(tsv|csv)$|symbol.*\.(tsv|csv)$", re.IGNORECASE)


def genes_for(folder: Path, length: int, *, counts: Path) -> tuple[list[str], Path]:
    """Return the gene list that belongs to counts of this length, and its file.

    Looks below ``folder``, then beside it (in its parent and the parent's folders).

    Raises
    ------
    InputError
        If there is none, if none has the right length (both numbers are named), or if two different ones have.
    """
    candidates, pickles = _candidates(folder)
    if not candidates:
        fix = f"convert {pickles[0].name} to a text file: pickle is never read" if pickles else None
        msg = "gene list is missing"
        raise InputError(msg, file=folder, expected="a file such as genes.txt, one gene id a line", fix=fix)
    lists = {path: read_gene_list(path) for path in candidates}
    right = {path: genes for path, genes in lists.items() if len(genes) == length}
    if not right:
        path, genes = min(lists.items(), key=lambda item: abs(len(item[1]) - length))
        msg = f"gene list has the wrong length: {len(genes)} genes for {length} counts a spot"
        raise InputError(msg, file=path, value=len(genes), expected=f"{length} as in {counts}")
    path, genes = next(iter(right.items()))
    for other, its_genes in right.items():
        if its_genes != genes:
            msg = f"two gene lists of {length} genes differ, so neither can be trusted"
            raise InputError(msg, file=path, value=other.name, fix="leave only the one that belongs to the counts")
    if len(set(genes)) < len(genes):
        repeated = next(gene for gene in genes if genes.count(gene) > 1)
        msg = "gene list names a gene twice"
        raise InputError(msg, file=path, value=repeated)
    return genes, path


def read_gene_list(path: Path) -> list[str]:
    """Read gene ids: one a line, the gene column of a table, a JSON list or ``{"genes": [...]}``, or a text array."""
    try:
        if path.suffix == ".npy":
            genes = [str(gene) for gene in np.load(path, allow_pickle=False).ravel()]
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            genes = content.get("genes") if isinstance(content, dict) else content
        else:
            genes = _column(path)
    except (OSError, ValueError, csv.Error) as error:
        why = "it is an object array, and pickle is never read" if "allow_pickle" in str(error) else str(error)
        msg = f"gene list cannot be read ({why})"
        raise InputError(msg, file=path) from error
    if not isinstance(genes, list) or not all(isinstance(gene, str) and gene for gene in genes):
        msg = "is not a list of gene ids"
        raise InputError(msg, file=path)
    return genes


def gene_symbols(folder: Path) -> tuple[dict[str, str], Path | None]:
    """Return Ensembl id -> symbol from a table such as ``ensembl.tsv`` in the folder or beside it, if any."""
    for path in _beside(folder):
        if SYMBOL_TABLE.search(path.name):
            rows = [row for row in _rows(path) if len(row) > 1 and row[0].startswith("ENS") and row[1]]
            pairs = {row[0].split(".")[0]: row[1] for row in rows}
            if pairs:
                return pairs, path
    return {}, None


def _candidates(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that may be gene lists, nearest first, and those that only pickle could read."""
    found = [path for path in _beside(folder) if "gene" in path.name.lower() and not SYMBOL_TABLE.search(path.name)]
    lists = [path for path in found if path.suffix.lower() in LIST_SUFFIXES and "mean" not in path.name.lower()]
    inside = [path for path in lists if path.is_relative_to(folder)]
    return inside or lists, [path for path in found if path.suffix.lower() in PICKLES]


def _beside(folder: Path) -> list[Path]:
    """Return the small files in a folder and its subfolders, then in its parent and the parent's subfolders."""
    folder = folder.absolute()
    own = [path for path in sorted(folder.glob("*")) if path.is_file()]
    own += [
        path
        for sub in sorted(folder.iterdir())
        if sub.is_dir() and sub.name not in {"counts", "images"}
        for path in sorted(sub.glob("*"))
        if path.is_file()
    ]
    parent = [path for path in sorted(folder.parent.glob("*")) if path.is_file()]
    parent += [path for path in sorted(folder.parent.glob("*stats*/*")) if path.is_file()]
    return own + [path for path in parent if path not in own]


def _rows(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]


def _column(path: Path) -> list[str]:
    """Return the gene column of a table: the one whose header says so, else the first that is not a row number."""
    rows = _rows(path)
    if not rows:
        return []
    header = [cell.lower() for cell in rows[0]]
    named = [position for position, cell in enumerate(header) if cell in HEADERS]
    body = rows[1:] if named or header[0] in {"", "0"} else rows
    position = named[0] if named else 0
    if not named and body and len(body[0]) > 1 and all(row[0].isdigit() for row in body):
        position = 1
    return [row[position] for row in body if len(row) > position]
