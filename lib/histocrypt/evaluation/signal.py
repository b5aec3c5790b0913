"""Which genes are predicted better than chance, where neighbouring spots resemble one another.

Permuting single spots would break the pattern of the tissue and call every smooth prediction significant. Here the
predicted map is moved as a whole over the measured one: every shift of the array, wrapped round at its rim, of the map
as it is and mirrored both ways. Each gene keeps its own pattern and prediction keeps its own; only their places part.
Tissue does not fill its array: spots that meet no spot after a shift are left out of it, and shifts that keep fewer
than half of the spots are not used. Correlations at all shifts at once are cross-correlations, by Fourier transform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.evaluation.metrics import is_constant, pearson

if TYPE_CHECKING:
    import pandas as pd

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
    One row a gene that varies somewhere: ``gene``, ``pearson``, ``null_mean``, ``null_sd``, ``p``, ``q`` (Benjamini
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
                    "gene": genes[part], "pearson": observed, "null_mean": null.mean(axis=0),
                    "null_sd": null.std(axis=0), "p": p,
                }
            )[sections > 0]
        )  # fmt: skip
    table = pd.concat(rows, ignore_index=True)
    table["q"] = false_discovery_control(table["p"].to_numpy()) if len(table) else []
    return table


def array_or_nearest(section: object) -> np.ndarray:
    """Return (n, 2) int places of a section's spots: on its array, else on the square grid that their pitch spans."""
    from histocrypt.evaluation.maps import pitch
    from histocrypt.targets.neighbours import array_of

    grid = array_of(section)
    if grid is not None:
        return grid
    coords = np.asarray(section.obsm["spatial"], dtype=np.float64)
    return np.rint((coords - coords.min(axis=0)) / pitch(coords))[:, ::-1].astype(np.int64)
