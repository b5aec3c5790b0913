"""All test spots together: scores that need every spot of a gene at once, without holding every gene at once.

A rank needs all values of a gene. Values of each section are set aside in an unnamed file of the cache folder, gene by
gene, and come back a few genes at a time: memory grows with the spots of one gene, not with all that was predicted.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histocrypt import paths
from histocrypt.evaluation import metrics
from histocrypt.pipeline.predictions import Joined

POOLED = "pooled"
AT_ONCE = 2**20
"""Values (spots x genes) of all sections that are in memory at a time."""


@dataclass(frozen=True)
class _Block:
    """Where the values of one section lie in the pool's file: genes x spots."""

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
        self._true: dict[str, dict[str, _Block]] = defaultdict(dict)
        self._predicted: dict[tuple[str, str], dict[str, _Block]] = defaultdict(dict)
        self._symbols: dict[str, str] = {}
        self._last = np.empty(0, dtype=str)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, transform: str, model: str, pair: Joined) -> None:
        """Set aside one section under one model, spots in the order that all models share."""
        if pair.section not in self._true[transform]:  # what was measured is the same for all models
            self._true[transform][pair.section] = self._written(pair.genes, pair.true[transform])
            self._symbols = {**dict(zip(pair.genes.tolist(), pair.symbols.tolist(), strict=True)), **self._symbols}
        self._predicted[transform, model][pair.section] = self._written(pair.genes, pair.predicted[transform])

    def _written(self, genes: np.ndarray, values: np.ndarray) -> _Block:
        order = np.argsort(genes)
        if not np.array_equal(genes[order], self._last):
            self._last = genes[order]  # one copy of the names for all that have the same
        block = np.ascontiguousarray(values[:, order].T)
        single = block.astype(np.float32)
        if np.array_equal(single, block):  # as nearly always: targets and predictions are of single precision
            block = single
        offset = self._file.seek(0, 2)
        self._file.write(block.data)
        return _Block(offset, self._last, block.shape[1], block.dtype)

    def _values(self, blocks: list[_Block], genes: np.ndarray) -> np.ndarray:
        """Return (n, len(genes)) float64, spots section by section."""
        self._file.flush()
        parts = []
        for block in blocks:
            shape = (len(block.genes), block.spots)
            stored = np.memmap(self._file, block.dtype, "r", block.offset, shape)
            parts.append(stored[np.searchsorted(block.genes, genes)].T.astype(np.float64))
        return np.concatenate(parts)

    def common(self) -> list[str]:
        """Return the genes that every fold predicted and every section measured."""
        every = {id(block.genes): block.genes for blocks in self._true.values() for block in blocks.values()}
        return sorted(set.intersection(*(set(genes.tolist()) for genes in every.values()))) if every else []

    def tables(self) -> list[pd.DataFrame]:
        """Return the scores of all test spots together, one table a transform and model; none without a common gene."""
        common = np.array(self.common(), dtype=str)
        tables = []
        for (transform, model), predicted in self._predicted.items() if len(common) else ():
            true, blocks = [self._true[transform][section] for section in predicted], list(predicted.values())
            parts = np.array_split(common, -(-len(common) // max(1, AT_ONCE // sum(block.spots for block in true))))
            scored = pd.concat(
                pd.DataFrame(metrics.per_gene(self._values(true, part), self._values(blocks, part))) for part in parts
            )
            keys = {"model": model, "fold": "all", "section": POOLED, "patient": "all", "transform": transform}
            symbols = [self._symbols[gene] for gene in common.tolist()]
            tables.append(scored.assign(**keys, gene=common, symbol=symbols))
        return tables
