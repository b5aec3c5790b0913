"""From a run's artifacts to what a predictor sees: normalised tiles, targets, frozen features."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt import paths
from histocrypt.atomic import atomic_path
from histocrypt.errors import InputError
from histocrypt.models.spots import Spots
from histocrypt.targets.transforms import output_names
from histocrypt.training.multitask_data import Measured
from histocrypt.training.prepare import STAIN, read_clean_section, section_targets

if TYPE_CHECKING:
    from histocrypt.study import Study
    from histocrypt.targets.panels import Panel
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.training.folds import Fold

IN_MEMORY = 2**30
"""Tiles of more bytes than this are memory-mapped in the cache folder."""

CHUNK = 256
"""Tiles that are normalised and resized at a time."""


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
        The study, after `training.prepare.prepare_folds`.
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
        ``tiles`` in the stain of the fold's reference; ``features`` from tiles in one fixed published stain, the same
        for all folds (see `section_features`), computed on first use and cached by content.

    Raises
    ------
    InputError
        If an artifact is missing, tiles and spots do not match, or a section with targets lacks a gene of the panel.
    """
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import read_tiles

    run, sections = study.run, list(sections)
    method = study.preprocessing.stain
    reference = StainStatistics.load(run.fold(fold if isinstance(fold, str) else fold.name) / STAIN)
    every_barcode, patients, depths, learned = [], [], [], []
    for section in sections:  # one at a time: the counts of all sections together would not fit
        adata = read_clean_section(run.section(section))
        every_barcode.append(adata.obs_names.to_numpy().astype(str))
        patients.append(adata.obs["patient"].to_numpy().astype(str))
        depths.append(adata.obs["total_counts"].to_numpy(dtype=np.float64))
        if with_targets:
            learned.append(section_targets(adata, panel, study.target.transforms, section=section))
    stains = [StainStatistics.load(run.stain(section)) for section in sections]

    tiles: np.ndarray | None = None
    start, total = 0, sum(map(len, every_barcode))
    for section, barcodes, stain in zip(sections, every_barcode, stains, strict=True):
        raw = read_tiles(run.tiles(section), barcodes)[0]
        for chunk in normalised_chunks(raw, source=stain, reference=reference, method=method, side=side):
            if tiles is None:
                tiles = room((total, *chunk.shape[1:]))
            tiles[start : start + len(chunk)] = chunk
            start += len(chunk)
    if tiles is None:
        msg = "no spot is left"
        raise InputError(msg, field="sections", value=sections)

    known: dict[str, np.ndarray] = {}

    def features(encoder: str) -> np.ndarray:
        if encoder not in known:
            known[encoder] = np.concatenate(
                [
                    section_features(
                        read_tiles(run.tiles(section), barcodes)[0],
                        stain=stain,
                        method=method,
                        encoder=encoder,
                        names=spot_names(section, barcodes),
                    )
                    for section, barcodes, stain in zip(sections, every_barcode, stains, strict=True)
                ]
            )
        return known[encoder]

    targets = measured = None
    if with_targets:
        files = tuple((section, run.section(section)) for section in sections)
        measured = Measured(files, centred=study.target.centre_by_section)
        targets = np.concatenate(learned)
    return Spots(
        names=np.concatenate([spot_names(*pair) for pair in zip(sections, every_barcode, strict=True)]),
        sections=np.repeat(np.array(sections, dtype=object).astype(str), list(map(len, every_barcode))),
        patients=np.concatenate(patients),
        tiles=tiles,
        depth=np.concatenate(depths),
        outputs=output_names(study.target.transforms, panel.genes),
        targets=targets,
        features=features,
        measured=measured,
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
    import torch

    from histocrypt.encoders import resize
    from histocrypt.tissue.stain import normalise

    for start in range(0, len(tiles), CHUNK):
        chunk = np.ascontiguousarray(tiles[start : start + CHUNK])
        if side is not None and side != chunk.shape[1]:
            chunk = resize(torch.from_numpy(chunk).permute(0, 3, 1, 2), side).permute(0, 2, 3, 1).contiguous().numpy()
        yield normalise(chunk, source=source, reference=reference, method=method)


def section_features(
    tiles: np.ndarray, *, stain: StainStatistics, method: str, encoder: str, names: np.ndarray
) -> np.ndarray:
    """Return the frozen features of one section, from the cache where they are there.

    The encoder sees tiles in **one fixed stain**, a published reference that was learnt from no patient of any study
    (`tissue.stain.DEFAULT_REFERENCE`), not in the fold's. Features hence do not depend on the fold: they are computed
    once per section, and nothing of a training patient is in them, nor of a test patient.

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
        Name of an encoder, or of several joined: see `training.conditions`.
    names
        (n,) names of the spots; stored beside the features and checked when these are read.

    Returns
    -------
    (n, d) float32
    """
    from tqdm.auto import tqdm

    from histocrypt.encoders import encode, encoder_of
    from histocrypt.tissue.stain import DEFAULT_REFERENCE
    from histocrypt.training.conditions import condition_features, is_condition

    if is_condition(encoder):
        return condition_features(tiles, stain=stain, method=method, encoder=encoder, names=names)

    def normal(part: np.ndarray) -> Iterable[np.ndarray]:
        return normalised_chunks(part, source=stain, reference=DEFAULT_REFERENCE, method=method)

    entry = encoder_of(encoder)
    key = hashlib.sha256()
    how = [stain.to_dict(), DEFAULT_REFERENCE.to_dict(), method, encoder, entry.px, entry.weights_hash()]
    key.update(json.dumps([how, list(tiles.shape), list(map(str, names))], sort_keys=True, default=_plain).encode())
    for start in range(0, len(tiles), CHUNK):
        key.update(np.ascontiguousarray(tiles[start : start + CHUNK]).data)
    for tile in normal(tiles[:1]):
        key.update(np.ascontiguousarray(tile).data)
    path = paths.cache() / "features" / f"{key.hexdigest()}.h5"
    cached = _read_features(path, names)
    if cached is not None:
        return cached
    bar = tqdm(
        normal(tiles), total=-(-len(tiles) // CHUNK), desc=f"features {str(names[0]).split(':')[0]}", leave=False
    )
    computed = np.concatenate([encode(chunk, encoder, progress=False) for chunk in bar])
    _write_features(path, names, computed, encoder)
    return computed


def _read_features(path: Path, names: np.ndarray) -> np.ndarray | None:
    import h5py

    if not path.exists():
        return None
    try:
        with h5py.File(path, "r") as file:
            if list(file["names"].asstr()[:]) == list(map(str, names)):
                return file["features"][:]
    except (OSError, KeyError):
        print(f"{path} is damaged; its features are computed again", file=sys.stderr)
    return None


def _write_features(path: Path, names: np.ndarray, features: np.ndarray, encoder: str) -> None:
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["features"] = features
        file.create_dataset("names", data=list(map(str, names)), dtype=h5py.string_dtype())
        file.attrs["encoder"] = encoder


def _plain(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def room(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty uint8 array; a large one lies in an unnamed file of the cache folder, gone with the array."""
    if int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    paths.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=paths.cache()) as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
