"""All test spots together: scores that need every spot of a gene at once, without holding every gene at once.

A rank needs all values of a gene. Values of each section are set aside in an unnamed file of the cache folder, gene by
gene, and come back a few genes at a time: memory grows with the spots of one gene, not with all that was predicted.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pandas as pd

from histocrypt import paths
from histocrypt.evaluation import metrics
from histocrypt.evaluation.truth import Joined

POOLED = "pooled"
AT_ONCE = 2**20
"""Values (spots x genes) that are in memory at a time."""


@dataclass(frozen=True)
class _Block:
    """Where the values of one section lie: genes x spots."""

    offset: int
    genes: np.ndarray
    """(g,) str, sorted."""
    spots: int
    dtype: np.dtype


class Pool:
    """Measured and predicted values of every section, transform and model; use as a context manager."""

    def __init__(self) -> None:
        paths.cache().mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=paths.cache())
        # By section: one model may be scored on some sections only, as the ceiling is.
        self._true: dict[str, dict[str, _Block]] = {}
        self._predicted: dict[tuple[str, str], dict[str, _Block]] = {}
        self._symbols: dict[str, str] = {}
        self._last = np.empty(0, dtype=str)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, transform: str, model: str, pair: Joined, true: np.ndarray, predicted: np.ndarray) -> None:
        """Set aside one section under one model: (n, g) values, spots in the order that all models share."""
        measured = self._true.setdefault(transform, {})
        if pair.section not in measured:  # what was measured is the same for all models
            measured[pair.section] = self._written(pair.genes, true)
            for gene, symbol in zip(pair.genes.tolist(), pair.symbols.tolist(), strict=True):
                self._symbols.setdefault(gene, symbol)
        self._predicted.setdefault((transform, model), {})[pair.section] = self._written(pair.genes, predicted)

    def _written(self, genes: np.ndarray, values: np.ndarray) -> _Block:
        order = np.argsort(genes)
        names = genes[order]
        if np.array_equal(names, self._last):
            names = self._last  # one copy of the names for all that have the same
        self._last = names
        block = np.ascontiguousarray(values[:, order].T)
        single = block.astype(np.float32)
        if np.array_equal(single, block):  # as nearly always: targets and predictions are of single precision
            block = single
        offset = self._file.seek(0, 2)
        self._file.write(block.data)
        return _Block(offset, names, block.shape[1], block.dtype)

    def _values(self, blocks: list[_Block], genes: np.ndarray) -> np.ndarray:
        """Return (n, len(genes)) float64, spots section by section."""
        found = np.empty((sum(block.spots for block in blocks), len(genes)))
        start = 0
        for block in blocks:
            length = block.spots * block.dtype.itemsize
            for column, row in enumerate(np.searchsorted(block.genes, genes).tolist()):
                self._file.seek(block.offset + row * length)
                found[start : start + block.spots, column] = np.frombuffer(self._file.read(length), block.dtype)
            start += block.spots
        return found

    def common(self) -> list[str]:
        """Return the genes that every fold predicted and every section measured."""
        every = {id(block.genes): block.genes for blocks in self._true.values() for block in blocks.values()}
        return sorted(set.intersection(*(set(genes.tolist()) for genes in every.values()))) if every else []

    def tables(self) -> list[pd.DataFrame]:
        """Return the scores of all test spots together, one table a transform and model; none without a common gene."""
        common = np.array(self.common(), dtype=str)
        if not len(common):
            return []
        tables = []
        for (transform, model), predicted in self._predicted.items():
            true, blocks = [self._true[transform][section] for section in predicted], list(predicted.values())
            few = max(1, AT_ONCE // sum(block.spots for block in true))
            parts = [common[start : start + few] for start in range(0, len(common), few)]
            scored = [metrics.per_gene(self._values(true, part), self._values(blocks, part)) for part in parts]
            keys = {"model": model, "fold": "all", "section": POOLED, "patient": "all", "transform": transform}
            names = {"gene": common, "symbol": [self._symbols[gene] for gene in common.tolist()]}
            table = pd.DataFrame({name: np.concatenate([one[name] for one in scored]) for name in scored[0]})
            tables.append(table.assign(**keys, **names))
        return tables
