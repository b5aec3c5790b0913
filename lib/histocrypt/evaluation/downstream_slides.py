"""The sections that predictions are looked at on, with what was measured of them, from a study or from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.evaluation.maps import backdrop, picture
from histocrypt.evaluation.score_file import join_file
from histocrypt.evaluation.scores import read_folds
from histocrypt.pipeline.predictions import (
    Joined,
    h5ad_errors,
    join,
    matrix_of,
    read_h5ad,
    read_prediction,
    symbols_of,
    transforms_of,
)
from histocrypt.spatial import touching
from histocrypt.targets.ceiling import halves, why_no_halves
from histocrypt.targets.matrix import columns_of, depth, has_counts
from histocrypt.targets.transforms import TRANSFORMS, transform

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from histocrypt.study import Study

NEAREST = 8
"""Spots that surround one, when maps are smoothed and domains told: those of a square array."""


@dataclass(frozen=True)
class Slide:
    """One section: what was predicted of it and, where known, what was measured."""

    name: str
    patient: str
    genes: np.ndarray
    """(g,) str."""
    symbols: np.ndarray
    """(g,) str."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    predicted: np.ndarray
    """(n, g) float64, units of the main transform."""
    measured: np.ndarray | None = None
    """(n, g) float64, the same units; None where there are no counts."""
    halves: tuple[np.ndarray, np.ndarray] | None = None
    """(n, g) each, the same units: what two experiments of half the depth would have measured."""
    colours: np.ndarray | None = None
    """(n, d) colours of the tiles, where there are tiles."""
    features: np.ndarray | None = None
    """(n, d) features of the tiles, where there are tiles."""
    image: tuple[np.ndarray | None, float] = (None, 1.0)
    """A picture of the section and its pixels per full-resolution pixel."""

    @property
    def graph(self) -> csr_matrix:
        """Which spots touch."""
        return touching(self.coords)

    @property
    def around(self) -> csr_matrix:
        """What averages over the `NEAREST` spots around each, (n, n); rows of sum 1."""
        return nearest_mean(self.coords)


def nearest_mean(coords: np.ndarray, nearest: int = NEAREST) -> csr_matrix:
    """Return what averages over the nearest spots of each, (n, n) CSR, rows of sum 1, no spot with itself.

    Nearest, not touching: a spot that lies apart is averaged as far as any other.
    """
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    n, nearest = len(coords), min(nearest, len(coords) - 1)
    if nearest < 1:
        return csr_matrix(np.eye(n))
    near = cKDTree(coords).query(coords, k=nearest + 1)[1]
    near = np.stack([row[row != at][:nearest] for at, row in enumerate(near)])  # where two spots lie at one place
    starts = np.arange(0, n * nearest + 1, nearest)
    return csr_matrix((np.full(n * nearest, 1 / nearest), near.ravel(), starts), shape=(n, n))


def slides_of(study: Study, model: str = "") -> Iterator[Slide]:
    """Yield every held-out section of a study as a model that never saw its patient predicts it.

    Parameters
    ----------
    study
        A study that was run.
    model
        Name of a model; empty: the study's last.

    Raises
    ------
    InputError
        If the study has no such model, or a file is missing.
    """
    from histocrypt.encoders.described import colour_features
    from histocrypt.tissue.tiles import read_tiles

    model = model or study.model_names[-1]
    if model not in study.scored_names:
        raise unknown_name("model", model, study.scored_names, field="model")
    for fold in read_folds(study):
        prediction = read_prediction(study.run.prediction(model, fold["name"]), fix="run 30_training first")
        for section in fold["test_sections"]:
            clean = read_h5ad(study.run.section(section), what="cleaned section")
            pair = join(prediction, clean, section, transforms=transforms_of(prediction)[:1])
            tiles = study.run.tiles(section)
            colours = None
            if tiles.is_file():
                colours = colour_features(read_tiles(tiles, [one.removeprefix(f"{section}:") for one in pair.spots])[0])
            yield _slide(
                pair,
                clean,
                matrix_of(prediction),
                colours=colours,
                features=_features(study, fold["name"], pair) if tiles.is_file() else None,
                image=backdrop(clean, tiles),
            )


def slides_in(file: str | Path, truth: str = "") -> Iterator[Slide]:
    """Yield the sections of a prediction file, without counts unless ``truth`` is a section that has them.

    Raises
    ------
    InputError
        If a file cannot be read, or they share no spot or no gene.
    """
    path = Path(file).expanduser()
    if truth:
        from histocrypt.sections.read import read_path

        section = read_path(truth, counts_only=True)
        predicted, pair, _ = join_file(read_h5ad(path, what="prediction file"), section, file=path, name=None)
        image = picture(predicted.uns["prediction"])
        yield _slide(pair, section.adata, matrix_of(predicted), image=image)
        return
    predicted = read_prediction(path)
    if "spatial" not in predicted.obsm or "places" in predicted.uns["prediction"]:
        raise InputError("lacks the positions of its spots on a slide", file=path, field="obsm['spatial']")
    main = transforms_of(predicted)[0]
    with h5ad_errors(path, what="prediction file"):
        names = predicted.obs["section"].astype(str).to_numpy()
        for name in dict.fromkeys(names.tolist()):
            mine = np.flatnonzero(names == name)
            yield Slide(
                name=name,
                patient=str(predicted.obs["patient"].iloc[mine[0]]) if "patient" in predicted.obs else "",
                genes=predicted.var_names.to_numpy(dtype=str),
                symbols=symbols_of(predicted),
                coords=np.asarray(predicted.obsm["spatial"], dtype=np.float64)[mine],
                predicted=np.asarray(predicted.layers[main], dtype=np.float64)[mine],
                image=picture(predicted.uns["prediction"]),
            )


def _slide(pair: Joined, section: AnnData, matrix: str | None, **more: Any) -> Slide:
    (main,) = list(pair.true)[:1]
    values = (pair.true[main], pair.predicted[main])
    return Slide(
        name=pair.section,
        patient=pair.patient or pair.section,
        genes=pair.genes,
        symbols=pair.symbols,
        coords=pair.coords,
        measured=values[0],
        predicted=values[1],
        halves=_halves(pair, section, main) if matrix is None and main in TRANSFORMS else None,
        **more,
    )


def _halves(pair: Joined, section: AnnData, main: str) -> tuple[np.ndarray, np.ndarray] | None:
    if not has_counts(section):
        return None
    barcodes = [one.removeprefix(f"{pair.section}:") for one in pair.spots]
    rows = section.obs_names.astype(str).get_indexer(barcodes)
    counts = section.X[rows][:, columns_of(section, pair.genes, pair.symbols, section=pair.section)]
    totals = depth(section)[rows]
    if why_no_halves(counts, totals):
        return None
    one, other = halves(counts, totals, np.random.default_rng(0))
    return transform(*one, main).astype(np.float64), transform(*other, main).astype(np.float64)


def _features(study: Study, fold: str, pair: Joined) -> np.ndarray:
    """Return the features of the frozen encoder that the baselines see, (n, d), from the cache where they are there."""
    from histocrypt.data.fold_statistics import PANEL
    from histocrypt.data.load import load_spots
    from histocrypt.predictors.registry import checked_options
    from histocrypt.targets.panels import Panel

    panel = Panel.load(study.run.fold(fold) / PANEL)
    spots = load_spots(study, fold, [pair.section], panel=panel, with_targets=False)
    encoder = checked_options("encoder_ridge", study.options_of("encoder_ridge")).features
    place = {name: at for at, name in enumerate(spots.names.tolist())}
    return spots.features(encoder)[[place[name] for name in pair.spots.tolist()]]
