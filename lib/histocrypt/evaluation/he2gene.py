"""What a multi-task model says beyond the panel, scored on held-out patients: genes with signal, tumour, smoothing.

A gene has signal where it is predicted better than chance. Permuting single spots would break the pattern of the tissue
and call every smooth prediction significant. Here the predicted map is moved as a whole over the measured one: every
shift of the array, wrapped round at its rim, of the map as it is and mirrored both ways. Each gene keeps its own
pattern and prediction keeps its own; only their places part. Tissue does not fill its array: spots that meet no spot
after a shift are left out of it, and shifts that keep fewer than half of the spots are not used. Correlations at all
shifts at once are cross-correlations, by Fourier transform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation import metrics
from histocrypt.evaluation.bootstrap import draw_weights, interval
from histocrypt.evaluation.metrics import is_constant, pearson
from histocrypt.files import read_json
from histocrypt.pipeline.predictions import as_mapping, join, read_h5ad, read_prediction
from histocrypt.spatial import array_of, spot_pitch, squares, touching
from histocrypt.targets.matrix import Label

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from histocrypt.paths import RunFolder

CP10K = "log1p_cp10k"
LEAST_OVERLAP = 0.5
"""Share of a section's spots that a shift has to keep."""
CHUNK = 256
"""Genes at a time."""
FLOOR = 1e-9
"""Variance, of z-scores, below which part of a map counts as constant."""


@dataclass(frozen=True)
class Pair:
    """One section's predictions beside its measurements."""

    section: str
    true: np.ndarray
    """(n, g)."""
    predicted: np.ndarray
    """(n, g)."""
    grid: np.ndarray
    """(n, 2) int: row and column of each spot on its array."""


def shifted_correlations(true: np.ndarray, predicted: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Pearson's r of every gene at every shift of the prediction over the measurement.

    Parameters
    ----------
    true, predicted
        (n, g) of one section.
    grid
        (n, 2) int, each spot at a place of its own.

    Returns
    -------
    (shifts, g) float64: mirrored in four ways, shifted over all places of the array; and (shifts,) spots that meet.
    """
    from scipy import fft

    grid = grid - grid.min(axis=0)
    shape = tuple(grid.max(axis=0) + 1)
    row, column = grid.T

    def on_array(values: np.ndarray) -> np.ndarray:
        placed = np.zeros((values.shape[1], *shape))
        placed[:, row, column] = values.T
        return placed

    def forward(placed: np.ndarray) -> np.ndarray:
        return fft.rfft2(placed, workers=1)

    def back(spectrum: np.ndarray) -> np.ndarray:
        return fft.irfft2(spectrum, s=shape, workers=1)

    true, predicted = _z(true), _z(predicted)
    there = on_array(np.ones((len(grid), 1)))
    y, yy, m = (forward(on_array(values)) for values in (true, true**2, np.ones((len(grid), 1))))
    p_placed, pp_placed = on_array(predicted), on_array(predicted**2)
    found, met = [], []
    for rows in (slice(None), slice(None, None, -1)):
        for columns in (slice(None), slice(None, None, -1)):
            p, pp, k = (np.conj(forward(part[:, rows, columns])) for part in (p_placed, pp_placed, there))
            n = np.rint(back(m * k))  # (1, R, C) spots that meet
            safe = np.maximum(n, 1)
            sum_y, sum_p = back(y * k), back(m * p)
            covariance = back(y * p) - sum_y * sum_p / safe
            variance = (back(yy * k) - sum_y**2 / safe) * (back(m * pp) - sum_p**2 / safe)
            r = np.where(variance > FLOOR * safe**2, covariance / np.sqrt(np.maximum(variance, FLOOR)), 0.0)
            found.append(r.reshape(len(r), -1).T)
            met.append(n.ravel())
    return np.concatenate(found), np.concatenate(met)


def _z(values: np.ndarray) -> np.ndarray:
    """Return z-scores of (n, g) values; a constant column is zero."""
    values = np.asarray(values, dtype=np.float64)
    sd = values.std(axis=0)
    flat = is_constant(values) | (sd == 0)
    return np.where(flat, 0.0, (values - values.mean(axis=0)) / np.where(flat, 1.0, sd))


def gene_signal(pairs: list[Pair], genes: np.ndarray, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Test whether every gene's mean correlation over a patient's sections is beyond what shifts give.

    Parameters
    ----------
    pairs
        The patient's sections, genes in one order.
    genes
        (g,) names.
    draws
        Random shifts, drawn for each section on its own.
    seed
        Of the draws.

    Returns
    -------
    One row per gene that varies somewhere: ``gene``, ``pearson``, ``null_mean``, ``null_sd``, ``p``, ``q`` (Benjamini
    and Hochberg's false discovery rate).
    """
    import pandas as pd
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(seed)
    chosen: dict[str, np.ndarray] = {}
    rows = []
    for start in range(0, len(genes), CHUNK):
        part = slice(start, start + CHUNK)
        observed, null, sections = 0.0, 0.0, 0.0
        for pair in pairs:
            own = pearson(pair.true[:, part], pair.predicted[:, part])
            moved, met = shifted_correlations(pair.true[:, part], pair.predicted[:, part], pair.grid)
            if pair.section not in chosen:
                usable = np.flatnonzero(met >= LEAST_OVERLAP * len(pair.grid))
                chosen[pair.section] = rng.choice(usable, size=draws)
            known = np.isfinite(own)
            sections = sections + known
            observed = observed + np.where(known, own, 0.0)
            null = null + np.where(known, moved[chosen[pair.section]], 0.0)
        count = np.maximum(sections, 1)
        observed, null = observed / count, null / count
        p = (1 + (null >= observed - 1e-12).sum(axis=0)) / (1 + draws)
        rows.append(
            pd.DataFrame(
                {
                    "gene": genes[part],
                    "pearson": observed,
                    "null_mean": null.mean(axis=0),
                    "null_sd": null.std(axis=0),
                    "p": p,
                }
            )[sections > 0]
        )
    table = pd.concat(rows, ignore_index=True)
    table["q"] = false_discovery_control(table["p"].to_numpy()) if len(table) else []
    return table


def array_or_nearest(section: object) -> np.ndarray:
    """Return (n, 2) int places of a section's spots: on its array, else on the square grid that their pitch spans."""
    grid = array_of(section)
    if grid is not None:
        return grid
    coords = np.asarray(section.obsm["spatial"], dtype=np.float64)
    return np.rint((coords - coords.min(axis=0)) / spot_pitch(coords))[:, ::-1].astype(np.int64)


def read_heads(path: Path) -> AnnData:
    """Read what a multi-task model predicts beside the panel, so that `join` takes it as a prediction."""
    heads = read_h5ad(path, what="file of auxiliary predictions", fix="train the model again")
    heads.layers[CP10K] = heads.X
    heads.uns["prediction"] = {**heads.uns["prediction"], "transforms": [CP10K]}
    return heads


def auxiliary_signal(
    heads: AnnData, sections: Mapping[str, AnnData], *, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return, for every patient of a fold, the test of every auxiliary gene that all the patient's sections measured.

    Parameters
    ----------
    heads
        From `read_heads`.
    sections
        Cleaned sections by id: those that ``heads`` predicts.
    draws, seed
        See `gene_signal`.

    Returns
    -------
    Columns of `gene_signal`, and ``patient``, ``symbol``, ``sections``.
    """
    import pandas as pd

    tables = []
    known = heads.obs[["patient", "section"]].astype(str).drop_duplicates()
    for patient, named in known.groupby("patient", sort=False)["section"]:
        joined = [join(heads, sections[name], name, transforms=[CP10K]) for name in named]
        shared = joined[0].genes[np.all([np.isin(joined[0].genes, pair.genes) for pair in joined], axis=0)]
        pairs = []
        for pair in joined:
            columns = pd.Index(pair.genes).get_indexer(shared)
            barcodes = [name.removeprefix(f"{pair.section}:") for name in pair.spots]
            grid = array_or_nearest(sections[pair.section])[sections[pair.section].obs_names.get_indexer(barcodes)]
            pairs.append(Pair(pair.section, pair.true[CP10K][:, columns], pair.predicted[CP10K][:, columns], grid))
        table = gene_signal(pairs, shared, draws=draws, seed=seed)
        symbols = dict(zip(joined[0].genes, joined[0].symbols, strict=True))
        table.insert(0, "patient", patient)
        table.insert(2, "symbol", [symbols[gene] for gene in table["gene"]])
        tables.append(table.assign(sections=len(named)))
    return pd.concat(tables, ignore_index=True)


def tumour_score(
    heads: AnnData, sections: Mapping[str, AnnData], *, block_um: float, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return how well tumour is told from the rest: the area under the curve, the mean over held-out sections.

    Returns
    -------
    dict
        ``auc``, ``low``, ``high`` (95 % interval over blocks of tissue), ``sections``, ``spots``, ``positive`` and
        ``proxy``; or ``why`` there is none.
    """
    if "tumour_probability" not in heads.obs:
        return {"why": "no training section has a label"}
    said = as_mapping(heads.uns["prediction"]["label"])
    positive = tuple(str(word) for word in np.atleast_1d(said.get("positive", ())))
    label = Label(str(said["source"]), positive, said.get("above"))
    rng, scores, drawn, count, yes = np.random.default_rng(seed), [], [], 0, 0
    for name in dict.fromkeys(heads.obs["section"].astype(str)):
        section = sections[name]
        mine = heads.obs[heads.obs["section"].astype(str) == name]
        rows = section.obs_names.get_indexer(mine["barcode"].astype(str))
        truth = label.of(section, section=name)[rows]
        known = np.isfinite(truth)
        if not 0 < truth[known].sum() < known.sum():
            continue
        truth, probability = truth[known], mine["tumour_probability"].to_numpy()[known]
        um = float(as_mapping(section.uns.get("preprocessing")).get("um_per_px", 1.0))
        labels = squares(np.asarray(section.obsm["spatial"])[rows][known] * um, block_um)
        weights = np.vstack([np.ones(labels.max() + 1), draw_weights(labels.max() + 1, draws, rng)])
        areas = area_of_draws(truth == 1, probability, labels, weights)
        scores.append(float(areas[0]))
        drawn.append(areas[1:])
        count, yes = count + int(known.sum()), yes + int(truth.sum())
    if not scores:
        return {"why": "no held-out section has a label with both answers"}
    varied = [one for one in drawn if np.isfinite(one).any()]  # a section of a single block has no draws
    low, high = interval(np.nanmean(varied, axis=0) if varied else np.array([]), float(np.mean(scores)))
    return {
        "auc": float(np.mean(scores)),
        "sections": len(scores),
        "low": max(low, 0.0) if varied else None,
        "high": min(high, 1.0) if varied else None,
        "spots": count,
        "positive": yes,
        "proxy": label.is_proxy,
        "label": label.source + ("" if label.above is None else f" above {label.above:g}"),
    }


def area_of_draws(yes: np.ndarray, score: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (draws,) the area under the ROC curve in every draw of blocks; NaN where a draw lacks an answer.

    The area is the share of pairs of a spot that is and one that is not in which the first scores higher, ties counting
    half; pairs are counted once for each two blocks, (n,) ``labels``, and a draw weighs them, (draws, blocks).
    """
    block = np.eye(weights.shape[1])[labels]
    wins = (score[yes, None] > score[~yes]) + 0.5 * (score[yes, None] == score[~yes])
    pairs = block[yes].T @ wins @ block[~yes]
    count = (weights @ block[yes].sum(axis=0)) * (weights @ block[~yes].sum(axis=0))
    won = np.einsum("da,ab,db->d", weights, pairs, weights, optimize=True)
    return np.divide(won, count, out=np.full(len(weights), np.nan), where=count > 0)


def smoothing(prediction: Path, sections: Mapping[str, AnnData]) -> dict[str, float]:
    """Return what shows whether predictions are blurred: means over the panel's genes, then over held-out sections.

    ``pearson``; ``variance_ratio``, predicted over measured; ``moran_predicted`` and ``moran_measured``, Moran's I.
    """
    file = read_prediction(prediction)
    rows = []
    for name in dict.fromkeys(file.obs["section"].astype(str)):
        one = join(file, sections[name], name)
        transform = next(iter(one.true))
        true, predicted = one.true[transform], one.predicted[transform]
        graph = touching(one.coords)
        variance = np.var(true, axis=0)
        ratio = np.divide(np.var(predicted, axis=0), variance, out=np.full(len(variance), np.nan), where=variance > 0)
        rows.append(
            {
                "pearson": np.nanmean(metrics.pearson(true, predicted)),
                "variance_ratio": np.nanmean(ratio),
                "moran_predicted": np.nanmean(metrics.morans_i(predicted, graph)),
                "moran_measured": np.nanmean(metrics.morans_i(true, graph)),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def summary_of(table: pd.DataFrame, *, level: float) -> list[dict[str, Any]]:
    """Return one line a patient: genes tested, genes better than chance at a false discovery rate of ``level``."""
    lines = []
    for patient, own in table.groupby("patient", sort=True):
        good = own[own["q"] <= level]
        lines.append(
            {
                "patient": str(patient),
                "sections": int(own["sections"].iloc[0]),
                "genes": len(own),
                "better": len(good),
                "share": len(good) / max(len(own), 1),
                "median_all": float(own["pearson"].median()),
                "median_better": float(good["pearson"].median()) if len(good) else None,
                "top": good.sort_values("pearson", ascending=False)["symbol"].head(8).tolist(),
            }
        )
    return lines


def words(
    signal: list[dict[str, Any]],
    tumour: list[dict[str, Any]],
    smoothed: Mapping[str, Mapping[str, float]],
    *,
    level: float,
) -> str:
    """Say in one sentence which genes beyond the panel are predicted, how well tumour is told, and what smoothing does.

    Parameters
    ----------
    signal, tumour
        Lines of `summary_of`, results of `tumour_score`.
    smoothed
        Results of `smoothing` for trainings ``without`` and ``with`` the spatial term.
    level
        False discovery rate.
    """
    shares = [line["share"] for line in signal]
    genes = (
        f"Of the genes beyond the panel, {min(shares):.0%} to {max(shares):.0%} per held-out patient are predicted "
        f"better than chance (false discovery rate {level:g})"
    )
    areas = [one["auc"] for one in tumour if "auc" in one]
    told = (
        f"tumour is told apart with an AUC of {min(areas):.2f} to {max(areas):.2f}" if areas else "no tumour is scored"
    )
    change = {name: smoothed["with"][name] - smoothed["without"][name] for name in ("pearson", "variance_ratio")}
    term = (
        f"changes the correlation by {change['pearson']:+.3f} and the variance ratio by {change['variance_ratio']:+.3f}"
    )
    return f"{genes}; {told}; the spatial term {term}."


def load_summary(run: RunFolder) -> dict[str, Any] | None:
    """Return ``multitask/summary.json``; None for a study without a multi-task model."""
    path = run.multitask / "summary.json"
    return read_json(path) if path.is_file() else None
