"""Where the raw counts of a section lie: in ``X``, in a layer or in ``raw``, whichever holds whole numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from scipy.sparse import csr_matrix

LAYER = re.compile(r"count|raw|umi", re.IGNORECASE)
"""Names of layers that say that they hold counts; ``spliced`` and the like hold a part of them."""
EVEN = 0.02
"""Totals of real spots vary; where they vary less than by this share of their mean, something made them alike."""
ROWS = 20_000
"""Spots whose totals are taken at once."""
FEW = 10
"""Of fewer spots than this, nothing is said by how their totals vary."""


def counted(adata: AnnData, file: Path) -> tuple[AnnData, str, list[str]]:
    """Return a section whose ``X`` is its raw counts (CSR), where they were, and notes.

    ``X`` is taken where it is whole numbers; else a layer that is called so, ``counts`` first; else ``raw``, with its
    own genes where it has others than ``X``. What is plainly no count (0 and 1 alone, equal totals) is taken only
    where nothing else is whole, and noted.

    Raises
    ------
    InputError
        If no matrix is there, or the one that has to be taken is not a matrix of numbers. Whether its values are counts
        is judged by `check_counts`.
    """
    places = places_of(adata)
    if not places:
        raise InputError(
            "counts are missing", file=file, field="X", fix="store raw counts there, in layers['counts'] or raw"
        )
    found: dict[str, tuple[csr_matrix, str]] = {}
    first = None
    for place in places:
        matrix = _matrix(adata, place, file, must=place == places[0])
        first = matrix if place == places[0] else first
        if matrix is not None and are_counts(matrix):
            found[place] = matrix, why_no_counts(matrix)
            if not found[place][1]:
                break
    certain = (place for place, (_, doubt) in found.items() if not doubt)
    place = next(certain, next(iter(found), places[0]))
    counts = found[place][0] if found else first
    notes = [f"{file}: {other}: {doubt}." for other, (_, doubt) in found.items() if doubt]
    if place == "X" and place in found:
        notes += [
            f"{file}: {other} holds whole numbers too, and others than X, which was taken."
            for other in _rivals(adata, counts, file)
        ]
    if place != "X":
        why = "X is missing" if adata.X is None else "X does not hold counts"
        notes.append(f"{file}: {why}, so {place} was taken as the raw counts.")
    if place == "raw.X":
        adata, said = _of_raw(adata, counts)
        notes += [f"{file}: {said}."] if said else []
    else:
        if place.startswith("layers"):
            del adata.layers[_layer_of(place)]
        elif adata.raw is not None and adata.raw.n_vars > adata.n_vars:
            notes.append(
                f"{file}: raw has {adata.raw.n_vars} genes, X has {adata.n_vars}; X holds counts and was taken."
            )
        adata.X = counts
    return adata, place, notes


def places_of(adata: AnnData) -> list[str]:
    """Return where counts may lie, as `counted` looks for them."""
    layers = sorted((name for name in adata.layers if LAYER.search(name)), key=lambda name: (name != "counts", name))
    places = ["X"] * (adata.X is not None) + [f"layers[{name!r}]" for name in layers]
    return places + ["raw.X"] * (adata.raw is not None)


def _layer_of(place: str) -> str:
    """Return the name of the layer in a place of `places_of`."""
    return place[len("layers['") : -len("']")]


def _rivals(adata: AnnData, counts: csr_matrix, file: Path) -> list[str]:
    """Return which other places hold whole numbers of the same genes that are not those of ``X``."""
    found = []
    for place in places_of(adata)[1:]:
        if place == "raw.X" and list(adata.raw.var_names) != list(adata.var_names):
            continue
        matrix = _matrix(adata, place, file, must=False)
        if matrix is not None and matrix.shape == counts.shape and are_counts(matrix) and (matrix != counts).nnz:
            found.append(place)
    return found


def _matrix(adata: AnnData, place: str, file: Path, *, must: bool) -> csr_matrix | None:
    """Return one matrix of a section as CSR; None where it is none and need not be."""
    matrix = adata.X if place == "X" else adata.raw.X if place == "raw.X" else adata.layers[_layer_of(place)]
    try:
        return csr(matrix, file, place)
    except InputError:
        if must:
            raise
        return None


def _of_raw(adata: AnnData, counts: csr_matrix) -> tuple[AnnData, str]:
    """Return a section with the counts of ``raw``: of the same genes in their order, else of raw's own genes."""
    import anndata

    raw, names = adata.raw, adata.var_names
    if list(raw.var_names) == list(names):
        adata.X = counts
        return adata, ""
    if raw.var_names.is_unique and names.is_unique and set(raw.var_names) == set(names):
        adata.X = counts[:, raw.var_names.get_indexer(names)]
        return adata, ""
    parts = {"obs": adata.obs, "obsm": dict(adata.obsm), "uns": adata.uns}
    said = f"raw has {raw.n_vars} genes, X has {adata.n_vars}: raw was used"
    return anndata.AnnData(counts, var=raw.var.copy(), **parts), said


def csr(matrix: object, file: Path, field: str) -> csr_matrix:
    """Return a matrix of numbers as CSR without repeated entries; anything else is an `InputError`."""
    from scipy.sparse import csr_matrix

    if matrix.dtype.kind not in "biuf":
        raise InputError("counts are not numbers", file=file, field=field, value=str(matrix.dtype))
    try:
        counts = csr_matrix(matrix)
        counts.check_format(full_check=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"counts are not a readable matrix ({error})", file=file, field=field) from error
    counts.sum_duplicates()
    return counts


def fractions(values: np.ndarray) -> np.ndarray:
    """Return which values are finite and not whole."""
    if not np.issubdtype(values.dtype, np.floating):
        return np.zeros(values.shape, dtype=bool)
    return np.isfinite(values) & (values != np.rint(values))


def why_no_counts(counts: csr_matrix) -> str:
    """Return why whole numbers are plainly no counts; empty where they may be."""
    there = counts.data != 0
    if there.any() and np.array_equal(there, counts.data == 1):
        return "holds 0 and 1 alone: presence, it seems, and no counts"
    totals = _totals(counts)
    if len(totals) >= FEW and np.isfinite(totals).all() and totals.mean() > 0 and totals.std() < EVEN * totals.mean():
        return f"every spot has about the same total ({totals.mean():.0f}): ranks or normalised values, it seems"
    return ""


def _totals(counts: csr_matrix) -> np.ndarray:
    """Return the total of each spot, float64 (n,); scipy's own sum makes a copy of all values."""
    pieces = (counts[first : first + ROWS] for first in range(0, counts.shape[0], ROWS))
    return np.concatenate([np.asarray(piece.sum(axis=1, dtype=np.float64)).ravel() for piece in pieces])


def normalised_to(counts: csr_matrix) -> float | None:
    """Return the total that every spot has once the logarithm is undone; None where that is not what was done."""
    from scipy.sparse import csr_matrix

    if not len(counts.data) or counts.data.min() < 0 or counts.data.max() > 25:
        return None
    undone = csr_matrix((np.expm1(counts.data.astype(np.float64)), counts.indices, counts.indptr), shape=counts.shape)
    totals = np.asarray(undone.sum(axis=1)).ravel()
    totals = totals[totals > 0]
    return float(np.median(totals)) if len(totals) > 1 and totals.std() < EVEN * totals.mean() else None


def rows_of(counts: csr_matrix, chosen: np.ndarray) -> np.ndarray:
    """Return which rows hold one of the chosen entries of ``data``."""
    rows = np.zeros(counts.shape[0], dtype=bool)
    rows[np.searchsorted(counts.indptr, np.flatnonzero(chosen), side="right") - 1] = True
    return rows


def are_counts(counts: csr_matrix) -> bool:
    """Return whether all finite values are whole and none is negative."""
    return not (fractions(counts.data).any() or (counts.data < 0).any())


def check_counts(counts: csr_matrix, keep: np.ndarray, adata: AnnData, file: Path) -> None:
    """Refuse negative, fractional and overlarge counts in the spots that are kept."""
    kept = np.repeat(keep, np.diff(counts.indptr))
    for bad, problem, expected in (
        (counts.data < 0, "counts are negative", "raw counts, zero or more"),
        (fractions(counts.data), "counts are not whole numbers", "raw, not normalised, counts"),
        (counts.data > np.iinfo(np.int32).max, "counts are beyond any sequencer", "at most 2147483647"),
    ):
        bad &= kept
        if bad.any():
            first = bad.argmax()
            spot, gene = adata.obs_names[rows_of(counts, bad).argmax()], adata.var_names[counts.indices[first]]
            more, fix = _elsewhere(counts, adata) if expected.startswith("raw") else ("", None)
            raise InputError(
                f"{problem}{more} in {int(bad.sum())} entries, first at gene {gene} of spot {spot}",
                file=file,
                field="X",
                value=counts.data[first].item(),
                expected=expected,
                fix=fix,
            )


def _elsewhere(counts: csr_matrix, adata: AnnData) -> tuple[str, str]:
    """Return what is known of values that are no counts, and where counts may come from."""
    looked = [place for place in places_of(adata) if place != "X"]
    more = f"; neither are those of {' and '.join(looked)}" if looked else ""
    total = normalised_to(counts)
    more += f"; they look like ln(1 + counts per {total:,.0f})" if total else ""
    for name in set(adata.layers) - set(map(_layer_of, looked)):
        layer = adata.layers[name]
        values = layer.data if hasattr(layer, "indptr") else np.asarray(layer)
        if values.dtype.kind in "biuf" and not fractions(values).any() and values.any():
            return more, f"layers[{name!r}] holds whole numbers: store it as layers['counts'] if it is all raw counts"
    return more, "give the file from before normalisation, or store its raw counts as X, as layers['counts'] or as raw"
