"""What a predictor sees of a run: spots with normalised tiles, targets and frozen features, joined by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt import paths
from histocrypt.data.features import normalised_chunks, section_features
from histocrypt.data.fold_statistics import PANEL, STAIN, TARGETS, read_clean_section, section_targets
from histocrypt.data.folds import Fold
from histocrypt.errors import InputError
from histocrypt.spatial import graph_of, section_edges
from histocrypt.targets.matrix import columns_of, depth, has_counts
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import TargetStatistics, output_names

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from histocrypt.study import Study
    from histocrypt.targets.matrix import Label
    from histocrypt.tissue.stain import StainStatistics

IN_MEMORY = 2**30
"""Tiles of more bytes than this are memory-mapped in the cache folder."""
UNCOUNTED = ("obs", "var", "obsm", "uns")
"""Parts of a section's file that are small: all but its counts."""


@dataclass(frozen=True)
class Spots:
    """Spots of one or several sections, in one order throughout.

    Arrays carry names: ``names[i]`` is ``"<section>:<barcode>"`` and ``outputs[j]`` names column ``j`` of ``targets``
    (``"<transform>:<gene id>"``).
    """

    names: np.ndarray
    """(n,) str."""
    sections: np.ndarray
    """(n,) str, section id of each spot."""
    patients: np.ndarray
    """(n,) str, patient id of each spot."""
    depth: np.ndarray
    """(n,) float, total counts. Only the depth-only baseline may read it."""
    outputs: tuple[str, ...]
    """Names of the predicted columns."""
    targets: np.ndarray | None = None
    """(n, len(outputs)) float32, or None where there is nothing to learn from."""
    pixels: Callable[[], np.ndarray] | None = field(default=None, repr=False)
    """Gives `tiles`: they are read and normalised when first asked for, since much learns from features alone."""
    features: Callable[[str], np.ndarray] | None = field(default=None, repr=False)
    """Frozen-encoder features by encoder name: (n, d) float32, computed once and cached."""
    measured: Measured | None = field(default=None, repr=False)
    """What else was measured of training spots, read on demand; None for spots without targets."""

    @property
    def tiles(self) -> np.ndarray:
        """Tiles, (n, side, side, 3) uint8, stain-normalised; may be memory-mapped."""
        return self.pixels()

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, index: np.ndarray) -> Spots:
        """Return the spots chosen by a boolean mask or integer index."""
        index = np.flatnonzero(index) if index.dtype == bool else index
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in ("names", "sections", "patients", "depth")},
            targets=None if self.targets is None else self.targets[index],
            pixels=None if self.pixels is None else cache(lambda: self.tiles[index]),
            features=None if self.features is None else (lambda encoder: self.features(encoder)[index]),
            measured=None if self.measured is None else self.measured.subset(index),
        )

    def with_tiles(self, tiles: np.ndarray) -> Spots:
        """Return the spots with other tiles."""
        return replace(self, pixels=lambda: tiles)

    def symmetries(self) -> Iterator[Spots]:
        """Yield the spots with their tiles in each of the eight symmetries of the square, upright first."""
        for turned in (self.tiles, np.swapaxes(self.tiles, 1, 2)):
            for tiles in (turned, turned[:, ::-1], turned[:, :, ::-1], turned[:, ::-1, ::-1]):
                yield self.with_tiles(tiles)


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
            if shared is not None and not own.keys() >= shared.keys():
                columns = columns_of(adata, shared, shared.values(), section=path.stem)
                own = {gene: name for (gene, name), at in zip(shared.items(), columns, strict=True) if at >= 0}
            shared = own if shared is None else {gene: name for gene, name in shared.items() if gene in own}
        return shared or {}

    def expression(self, genes: dict[str, str]) -> csr_matrix:
        """Return ln(1 + counts per 10,000) of genes (id -> symbol), (n, g) CSR float32; zero in a spot without counts.

        Raises
        ------
        InputError
            If a section does not measure one of them.
        """
        from scipy.sparse import csr_matrix

        parts = []
        for _, path in self.files:
            adata = read_clean_section(path)
            totals = depth(adata)
            counts = csr_matrix(adata.X)
            columns = columns_of(adata, genes, genes.values(), section=path.stem)
            if (columns < 0).any():
                absent = list(genes)[int((columns < 0).argmax())]
                raise InputError("lacks a gene that the model trains on", file=path, field="var_names", value=absent)
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
        parts = () if label.needs_counts else UNCOUNTED
        values = np.concatenate(
            [label.of(read_clean_section(path, parts=parts), section=section) for section, path in self.files]
        )
        return values if self.rows is None else values[self.rows]

    def graph(self) -> csr_matrix:
        """Return which spots are neighbours, (n, n) CSR; none across sections."""
        adatas = [read_clean_section(path, parts=UNCOUNTED) for _, path in self.files]
        graph = graph_of([section_edges(adata) for adata in adatas], [adata.n_obs for adata in adatas])
        return graph if self.rows is None else graph[self.rows][:, self.rows].tocsr()


@dataclass(frozen=True)
class FoldData:
    """One fold's spots, targets in the transforms' units. The test part has no targets at all."""

    fold: Fold
    panel: Panel
    train: Spots
    validation: Spots | None
    test: Spots | None


def load_training(study: Study, fold: Fold, *, side: int | None = None) -> FoldData:
    """Load the training and validation spots of a fold; its test sections are not opened."""
    panel = Panel.load(study.run.fold(fold.name) / PANEL)

    def part(sections: tuple[str, ...]) -> Spots | None:
        return load_spots(study, fold, sections, panel=panel, with_targets=True, side=side) if sections else None

    return FoldData(fold, panel, part(fold.train_sections), part(fold.validation_sections), None)


def load_test(study: Study, data: FoldData, *, side: int | None = None, with_targets: bool = False) -> Spots:
    """Load the spots of a fold's test sections, without targets unless asked for them."""
    return load_spots(study, data.fold, data.fold.test_sections, panel=data.panel, with_targets=with_targets, side=side)


def load_spots(
    study: Study,
    fold: Fold | str,
    sections: Iterable[str],
    *,
    panel: Panel,
    with_targets: bool,
    side: int | None = None,
) -> Spots:
    """Load sections as one fold sees them.

    Parameters
    ----------
    study
        The study, after `data.fold_statistics.prepare_folds`.
    fold
        The fold, or its name: its stain reference is what tiles are normalised to.
    sections
        Section ids; spots come in this order, within a section in the order of its file.
    panel
        The fold's panel.
    with_targets
        Whether counts become targets. Leave False for test sections: then no count is looked at but the total, which
        only the depth-only baseline reads, and a section may lack genes of the panel.
    side
        Tiles are resized to this (pixels; bilinear, antialiased), before normalisation; stored size if not given.

    Returns
    -------
    Spots
        ``tiles`` in the stain of the fold's reference, made on first use; ``features`` from tiles in one fixed
        published stain, the same for all folds (see `section_features`), computed on first use and cached by content.

    Raises
    ------
    InputError
        If an artifact is missing, or a section with targets lacks a gene of the panel; on first use, if a spot has no
        tile.
    """
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import read_places, read_tiles

    run, sections, method = study.run, list(sections), study.preprocessing.stain
    reference = StainStatistics.load(run.fold(fold if isinstance(fold, str) else fold.name) / STAIN)
    stains = [StainStatistics.load(run.stain(section)) for section in sections]
    every_barcode, patients, depths, learned = [], [], [], []
    for section in sections:  # one at a time: the counts of all sections together would not fit
        adata = read_clean_section(run.section(section), parts=() if with_targets else ["obs"])
        every_barcode.append(adata.obs_names.to_numpy().astype(str))
        patients.append(adata.obs["patient"].to_numpy().astype(str))
        depths.append(adata.obs["total_counts"].to_numpy(dtype=np.float64))
        if with_targets:
            learned.append(section_targets(adata, panel, study.target.transforms, section=section))
    total = sum(map(len, every_barcode))
    if not total:
        raise InputError("no spot is left", field="sections", value=sections)

    def raw() -> Iterator[np.ndarray]:
        for section, barcodes in zip(sections, every_barcode, strict=True):
            yield read_tiles(run.tiles(section), barcodes)[0]

    @cache
    def pixels() -> np.ndarray:
        tiles, start = None, 0
        for own, stain in zip(raw(), stains, strict=True):
            for chunk in normalised_chunks(own, source=stain, reference=reference, method=method, side=side):
                tiles = room((total, *chunk.shape[1:])) if tiles is None else tiles
                tiles[start : start + len(chunk)] = chunk
                start += len(chunk)
        return tiles

    @cache
    def features(encoder: str) -> np.ndarray:
        def of(section: str, barcodes: np.ndarray, own: np.ndarray, stain: StainStatistics) -> np.ndarray:
            names, places = spot_names(section, barcodes), read_places(run.tiles(section), barcodes)
            return section_features(own, stain=stain, method=method, encoder=encoder, names=names, places=places)

        return np.concatenate(list(map(of, sections, every_barcode, raw(), stains)))

    measured = None
    if with_targets:
        files = tuple((section, run.section(section)) for section in sections)
        measured = Measured(files, centred=study.target.centre_by_section)
    return Spots(
        names=np.concatenate([spot_names(*pair) for pair in zip(sections, every_barcode, strict=True)]),
        sections=np.repeat(np.array(sections, dtype=object).astype(str), list(map(len, every_barcode))),
        patients=np.concatenate(patients),
        depth=np.concatenate(depths),
        outputs=output_names(study.target.transforms, panel.genes),
        targets=np.concatenate(learned) if with_targets else None,
        pixels=pixels,
        features=features,
        measured=measured,
    )


def tiles_of(study: Study, fold: Fold, names: Iterable[str], *, side: int | None = None) -> np.ndarray:
    """Return the tiles of a few spots by name, (n, side, side, 3) uint8, as the fold sees them; no other is read.

    ``names`` are ``"<section>:<barcode>"`` as in `Spots.names`.
    """
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import read_tiles

    run, found = study.run, []
    reference = StainStatistics.load(run.fold(fold.name) / STAIN)
    for section, barcode in (name.split(":", 1) for name in names):
        stain = {"source": StainStatistics.load(run.stain(section)), "reference": reference}
        own = read_tiles(run.tiles(section), [barcode])[0]
        found += normalised_chunks(own, method=study.preprocessing.stain, side=side, **stain)
    return np.concatenate(found)


def scaling_of(study: Study, fold: Fold) -> TargetStatistics:
    """Return what puts targets into the loss's units; neutral where the study does not standardise."""
    measured = TargetStatistics.load(study.run.fold(fold.name) / TARGETS)
    if study.target.standardise:
        return measured
    mean = measured.mean if study.target.centre_by_section else np.zeros_like(measured.mean)
    return TargetStatistics(measured.outputs, mean, np.ones_like(measured.sd))


def scaled(study: Study, scaling: TargetStatistics, spots: Spots | None) -> Spots | None:
    """Return spots with their targets as the loss sees them."""
    if spots is None:
        return None
    if spots.outputs != scaling.outputs:
        raise InputError(
            "target statistics and spots have different outputs", field=TARGETS, fix="run preprocessing again"
        )
    sections = spots.sections if study.target.centre_by_section else None
    return replace(spots, targets=scaling.standardise(spots.targets, sections=sections))


def joined(first: Spots, second: Spots) -> Spots:
    """Return the spots of both, first's before second's."""
    fields = ("names", "sections", "patients", "depth", "targets")
    return replace(
        first,
        **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in fields},
        pixels=cache(lambda: np.concatenate([first.tiles, second.tiles])),
        features=lambda encoder: np.concatenate([first.features(encoder), second.features(encoder)]),
        measured=first.measured.joined(second.measured),
    )


def spot_names(section: str, barcodes: np.ndarray) -> np.ndarray:
    """Return ``"<section>:<barcode>"``, unique within a study."""
    return np.array([f"{section}:{barcode}" for barcode in barcodes])


def room(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty uint8 array; a large one lies in an unnamed file of the cache folder, gone with the array."""
    if int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    paths.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=paths.cache()) as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


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
