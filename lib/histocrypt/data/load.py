"""What a predictor sees of a run: spots with normalised tiles, targets and frozen features, joined by name.

A name says which features are wanted: ``a``, ``a+b`` (two families side by side), ``a+b@4`` (the first four of the
eight views of each tile). ``a~320`` is the context of a: its mean over the spots, or places of a grid, whose centres
lie within 320 um, the spot itself left out; where these are few, over a ring of tiles, too (`tissue.ring`).
``prepared:<folder>#<encoder>`` reads embeddings that were made elsewhere:
see `encoders.precomputed`. Features are cached by content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import paths
from histocrypt.data.fold_statistics import PANEL, STAIN, TARGETS, read_clean_section, section_targets
from histocrypt.data.folds import Fold
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import atomic_path
from histocrypt.spatial import graph_of, section_edges, surroundings
from histocrypt.targets.matrix import columns_of, depth, has_counts
from histocrypt.targets.panels import Panel
from histocrypt.targets.transforms import TargetStatistics, output_names

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from histocrypt.study import Study
    from histocrypt.targets.matrix import Label
    from histocrypt.tissue.ring import Ring
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import Places

VIEWS = 8
"""The tile as it is, and its seven turned and mirrored copies."""
IN_MEMORY = 2**30
"""Tiles of more bytes than this are memory-mapped in the cache folder."""
PLACES = "places"
"""Name of what is no feature of a tile: its centre x, y in micrometres; NaN where nobody knows."""
FARTHEST = 5000
"""Micrometres that a context may reach."""
CHUNK = 256
"""Tiles that are normalised and resized at a time."""
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
                raise InputError("lacks a gene that is learnt from", file=path, field="var_names", value=absent)
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
        values = np.concatenate(
            [label.of(read_clean_section(path, parts=UNCOUNTED), section=section) for section, path in self.files]
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
            "target statistics are of other outputs than the spots", field=TARGETS, fix="run preprocessing again"
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


def normalised_chunks(
    tiles: np.ndarray,
    *,
    source: StainStatistics,
    reference: StainStatistics,
    method: str,
    side: int | None = None,
) -> Iterable[np.ndarray]:
    """Yield tiles (n, S, S, 3) uint8 in chunks, resized to ``side`` and brought from one stain to another."""
    from histocrypt.tissue.resize import resize
    from histocrypt.tissue.stain import normalise

    for start in range(0, len(tiles), CHUNK):
        chunk = np.ascontiguousarray(tiles[start : start + CHUNK])
        chunk = chunk if side is None else resize(chunk, side)
        yield normalise(chunk, source=source, reference=reference, method=method)


def room(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty uint8 array; a large one lies in an unnamed file of the cache folder, gone with the array."""
    if int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    paths.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=paths.cache()) as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


def section_features(
    tiles: np.ndarray,
    *,
    stain: StainStatistics,
    method: str,
    encoder: str,
    names: np.ndarray,
    places: Places | None = None,
) -> np.ndarray:
    """Return the frozen features of one section, from the cache where they are there.

    An encoder sees tiles in **one fixed stain**, a published reference that was learnt from no patient of any study
    (`tissue.stain.DEFAULT_REFERENCE`), not in the fold's. Features hence do not depend on the fold: they are computed
    once per section, and nothing of a training patient is in them, nor of a test patient. What is described by hand
    (`encoders.described`) sees the raw tile and the section's stain.

    They are found again by content: the key is a SHA-256 over the raw tiles, the section's stain statistics, the
    reference, the method, one tile as normalised (so that a change of the normalisation itself counts), the encoder and
    the hash of its weights.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8, raw colours; an array, or the data set of an open tile file, which is then read chunk by
        chunk. At least one.
    stain
        The section's own stain statistics.
    method
        ``macenko``, ``reinhard`` or ``none``.
    encoder
        Name of an encoder, or of several joined, or of views: see above. Every view of every encoder has a file of its
        own in the cache: a calculation that was stopped goes on with the view that it was at.
    names
        (n,) names of the spots; stored beside the features and checked when these are read.
    places
        Where the tiles lie; all spots of the section at once, since they are each other's context. Encoders' own
        features do without.

    Returns
    -------
    (n, d) float32, or (n, views, d) where views are asked for
    """
    from histocrypt.encoders.precomputed import PREPARED, prepared_features
    from histocrypt.tissue.tiles import Places

    encoders, views = parts_of(encoder)
    places = Places(np.full((len(tiles), 2), np.nan), float("nan")) if places is None else places

    def views_of(name: str) -> np.ndarray:
        """Return (n, views, d)."""
        name, around = split_context(name)
        if around and np.isnan(places.tile_um):
            raise InputError(
                "needs to know where tiles lie", field="encoder", value=f"{name}~{around:g}", fix="leave ~ out"
            )
        if around:  # the surroundings are not turned
            own = section_features(tiles, stain=stain, method=method, encoder=name, names=names, places=places)
            ring = ring_read(places, f"{name}~{around:g}")
            graph = surroundings(places.um, around, ring=None if ring is None else (ring.um, ring.pairs))
            if ring is not None:
                numbered = spot_names(str(names[0]).partition(":")[0], [f"ring {i}" for i in range(len(ring.um))])
                how = {"stain": stain, "method": method, "encoder": name, "names": numbered, "tile_um": places.tile_um}
                with ring.tiles() as cut:
                    own = np.concatenate([own, _encoded(cut, **how, of=tiles)])
            return np.repeat((graph @ own)[:, None].astype(np.float32), views or 1, axis=1)
        if name == PLACES:
            return np.repeat(places.um[:, None], views or 1, axis=1)
        if name.startswith(PREPARED):
            return prepared_features(name, names=names, views=views or 1)
        seen = (turned(np.asarray(tiles), view) if view else tiles for view in range(views or 1))
        how = {"stain": stain, "method": method, "encoder": name, "names": names, "tile_um": places.tile_um}
        return np.stack([_encoded(own, **how) for own in seen], axis=1)

    together = np.concatenate([views_of(name) for name in encoders], axis=-1)
    return together if views else together[:, 0]


def ring_read(places: Places, name: str) -> Ring | None:
    """Return the ring that the context ``a~320`` is read from; none where a tile of it cannot be described by a."""
    return places.ring if reaches_of(name) else None


def _encoded(
    tiles: np.ndarray,
    *,
    stain: StainStatistics,
    method: str,
    encoder: str,
    names: np.ndarray,
    tile_um: float,
    of: np.ndarray | None = None,
) -> np.ndarray:
    """Return one family's features of one section, (n, d), from the cache where they are there.

    ``of`` are the tiles of the section's own spots, where these are others: what is described by hand takes its limits
    from them, so that a ring changes nothing of the spots and is described as they are.
    """
    from tqdm.auto import tqdm

    from histocrypt.encoders.described import DESCRIBED
    from histocrypt.encoders.encoders import encode, encoder_of
    from histocrypt.tissue.stain import DEFAULT_REFERENCE

    def normal(part: np.ndarray) -> Iterable[np.ndarray]:
        return normalised_chunks(part, source=stain, reference=DEFAULT_REFERENCE, method=method)

    described = DESCRIBED.get(encoder)
    key, how = hashlib.sha256(), [stain.to_dict(), encoder]
    if described is not None and np.isnan(tile_um):
        problem, fix = "is described by hand, and needs the size of tiles", "name an encoder"
        raise InputError(problem, field="encoder", value=encoder, fix=fix)
    if described is None:
        entry = encoder_of(encoder)
        how += [DEFAULT_REFERENCE.to_dict(), method, entry.px, entry.weights_hash()]
    else:
        how += [described.version, tile_um]
    key.update(json.dumps([how, list(tiles.shape), list(map(str, names))], sort_keys=True, default=_plain).encode())
    for part in (tiles, *([of] if of is not None and described is not None else [])):
        for start in range(0, len(part), CHUNK):
            key.update(np.ascontiguousarray(part[start : start + CHUNK]).data)
    for tile in normal(tiles[:1]) if described is None else ():
        key.update(np.ascontiguousarray(tile).data)
    path = paths.cache() / "features" / f"{key.hexdigest()}.h5"
    cached = _read_features(path, names)
    if cached is None:
        with _alone(path):  # jobs side by side want the same sections: one computes, the others wait and read
            cached = _read_features(path, names, quietly=True)
            if cached is None and described is not None:
                cached = described.describe(tiles, stain=stain, um_per_px=tile_um / tiles.shape[1], of=of)
                _write_features(path, names, cached, encoder)
            elif cached is None:
                section, chunks = str(names[0]).split(":")[0], -(-len(tiles) // CHUNK)
                bar = tqdm(normal(tiles), total=chunks, desc=f"features {section}", leave=False)
                cached = np.concatenate([encode(chunk, encoder, progress=False) for chunk in bar])
                _write_features(path, names, cached, encoder)
    return cached


def parts_of(name: str) -> tuple[list[str], int | None]:
    """Return the encoders that a name joins, and how many views it asks for (None: the tile as it is, without an axis).

    Raises
    ------
    InputError
        If an encoder is named twice or left empty, or the number of views is not 1 to 8.
    """
    joined, _, views = name.partition("@")
    encoders = joined.split("+")
    for encoder in encoders:
        split_context(encoder)
    if not all(encoders) or len(set(encoders)) < len(encoders):
        raise InputError(
            "names no encoder, or one twice",
            field="encoder",
            value=name,
            expected="e.g. efficientnet_lite0, or uni+conch",
        )
    if not views:
        return encoders, None
    if not views.isdigit() or not 1 <= int(views) <= VIEWS:
        raise InputError(
            "asks for an impossible number of views", field="encoder", value=name, expected=f"1 to {VIEWS} after @"
        )
    return encoders, int(views)


def split_context(name: str) -> tuple[str, float]:
    """Return a family's name and how far its surroundings reach, micrometres; 0: the spot itself."""
    family, mark, reach = name.partition("~")
    if not mark:
        return name, 0.0
    if not family or not reach.isdigit() or not 1 <= int(reach) <= FARTHEST:
        wanted = f"e.g. morphology~320: a whole number of micrometres, 1 to {FARTHEST}, after ~"
        raise InputError("names no surroundings", field="encoder", value=name, expected=wanted)
    return family, float(reach)


def check_families(name: str, **where: Any) -> None:
    """Refuse a name of features of which one is no encoder, nor described by hand, nor prepared elsewhere.

    Whether a model of timm is one is found out when it is loaded. ``where`` goes to the error.
    """
    from histocrypt.encoders.described import DESCRIBED
    from histocrypt.encoders.precomputed import PREPARED
    from histocrypt.encoders.registry import ENCODERS, TIMM

    for part in parts_of(name)[0]:
        family, _ = split_context(part)
        if family not in ENCODERS and family not in DESCRIBED and not family.startswith((PREPARED, TIMM)):
            raise unknown_name("encoder", family, [*ENCODERS, *DESCRIBED, f"{TIMM}<model>"], **where)


def reaches_of(name: str) -> list[float]:
    """Return how far the surroundings reach, micrometres, whose tiles a name of features asks for; empty: none.

    What was prepared elsewhere, and mere places, are known of the spots alone.
    """
    from histocrypt.encoders.precomputed import PREPARED

    parts = map(split_context, parts_of(name)[0]) if name else []
    return [reach for family, reach in parts if reach and not family.startswith((PREPARED, PLACES))]


def turned(tiles: np.ndarray, view: int) -> np.ndarray:
    """Return tiles (n, S, S, 3) seen the ``view``-th way: 0 as they are, 1-3 quarter turns, 4-7 those mirrored."""
    mirrored = tiles[:, :, ::-1] if view >= 4 else tiles
    return np.rot90(mirrored, view % 4, axes=(1, 2))


def _read_features(path: Path, names: np.ndarray, *, quietly: bool = False) -> np.ndarray | None:
    import h5py

    if not path.exists():
        return None
    try:
        with h5py.File(path, "r") as file:
            if list(file["names"].asstr()[:]) == list(map(str, names)):
                return file["features"][:]
    except (OSError, KeyError):
        if not quietly:
            print(f"{path} is damaged; its features are computed again", file=sys.stderr)
    return None


def _write_features(path: Path, names: np.ndarray, features: np.ndarray, encoder: str) -> None:
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["features"] = features
        file.create_dataset("names", data=list(map(str, names)), dtype=h5py.string_dtype())
        file.attrs["encoder"] = encoder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold back who else would write this file; where the file system knows no locks, nobody is held back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".lock_{path.name[0]}").open("w") as lock:  # a few files for all
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _plain(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)


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
