"""Predictions that others made: any ``.h5ad`` of spots x genes, joined to a section by the names of spots and genes.

Nothing but names joins them, or the pixels by which tiles are named. Units that nobody states are not guessed: such
values are held against several transforms of what was measured, and only correlations mean something.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from histocrypt.errors import InputError, unknown_name
from histocrypt.pipeline.predictions import SUFFIX, check_prediction
from histocrypt.sections.genes import GeneNames, read_by_id
from histocrypt.targets.matrix import columns_of
from histocrypt.targets.transforms import TRANSFORMS

if TYPE_CHECKING:
    import pandas as pd

UNITS = tuple(name for name in TRANSFORMS if name != "rank")
"""What values can be said to be; ranks depend on which other genes there are."""
AGAINST = ("log1p_cp10k", "log1p")
"""Transforms of what was measured that values of unknown units are held against, the main one first."""
BETWEEN = ":_./-"
"""What may stand between a section's name and that of a spot."""
PIXELS = re.compile(r"(\d+)[^\d]+(\d+)(?:\.\w+)?$")
"""The place in a tile's name, such as ``S_1_2040_1310.png``."""
UNSTATED = "units_unstated"
"""Key of ``uns["prediction"]`` that is there where nobody said the units."""


def is_foreign(prediction: AnnData) -> bool:
    """Return whether a file is not of this project: it does not say which transforms it holds."""
    about = prediction.uns.get("prediction")
    return not isinstance(about, Mapping) or "transforms" not in about


def knows_units(prediction: AnnData) -> bool:
    """Return whether errors in the units of the target mean something."""
    return UNSTATED not in prediction.uns["prediction"]


def adopted(
    prediction: AnnData,
    section: AnnData,
    *,
    name: str,
    path: str | Path,
    units: str | None = None,
    against: Sequence[str] = AGAINST,
) -> tuple[AnnData, list[str]]:
    """Return a file as predictions of a section, as `predictions.join` takes them, and what was joined how.

    Parameters
    ----------
    prediction
        As read: one of this project's is checked and returned as it is.
    section
        Spots x genes with raw counts.
    name
        The section's id.
    path
        The file, for errors.
    units
        What the values are, of `UNITS`; None: unknown. This project's files state their own.
    against
        Transforms that values of unknown units stand for.

    Raises
    ------
    InputError
        If spots cannot be joined, one name is there twice, a value is not finite, values are the section's own counts,
        or no units are called so.
    """
    import pandas as pd

    if units is not None and units not in UNITS:
        raise unknown_name("units", units, UNITS, field="--units")
    if not is_foreign(prediction):
        check_prediction(prediction, Path(path))
        return prediction, []
    if prediction.X is None or not prediction.n_vars:
        layers = ", ".join(prediction.layers) or "none"
        raise InputError("has no values", file=path, field="X", fix=f"put the predictions into X (layers: {layers})")
    rows, barcodes, how = _spots(prediction, section, name, path)
    names = GeneNames.of(var_of(prediction, path))
    index = np.where(names.ids != "", names.ids, names.names).astype(str)
    index = index if len(set(index)) == len(index) else names.names.astype(str)
    symbols = np.where(names.symbols != "", names.symbols, index).astype(str)
    values = _values(prediction[rows], path)
    told = prediction.uns.get("prediction")
    told = told.get("transform") if isinstance(told, Mapping) else None  # of this project's other heads
    units = units or (told if told in UNITS else None)
    transforms = list(against) if units is None else [units]
    found = AnnData(
        values,
        obs=pd.DataFrame({"section": name, "barcode": barcodes}, index=[f"{name}:{barcode}" for barcode in barcodes]),
        var=pd.DataFrame({"symbol": symbols}, index=index),
        layers=dict.fromkeys(transforms, values),
    )
    found.uns["prediction"] = {
        "model": Path(path).stem,
        "transforms": transforms,
        **({UNSTATED: True} if not units else {}),
    }
    check_prediction(found, Path(path))
    columns = columns_of(section, index, symbols, section=name)
    _refuse_counts(values, barcodes, section, columns, path)
    notes = [
        f"{Path(path).name}: {how}; {int((columns >= 0).sum())} of {len(columns)} genes joined by name, id or symbol"
    ]
    if units is None:
        held = " and ".join(transforms)
        told = f"its units are not stated: held against {held}, whichever is its own, by correlations alone"
        notes.append(f"{Path(path).name}: {told}; --units says them")
    return found, notes


def var_of(prediction: AnnData, path: str | Path) -> pd.DataFrame:
    """Return ``var`` with names that join: ids, where what is there is repeated or row numbers.

    Raises
    ------
    InputError
        If genes have row numbers alone.
    """
    named = AnnData(var=prediction.var.copy())
    read_by_id(named, Path(path))
    return named.var


def _values(prediction: AnnData, path: str | Path) -> np.ndarray:
    values = prediction.X.toarray() if hasattr(prediction.X, "toarray") else np.asarray(prediction.X)
    try:
        return values.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError("values are not numbers", file=path, field="X", value=str(values.dtype)) from error


def _spots(prediction: AnnData, section: AnnData, name: str, path: str | Path) -> tuple[np.ndarray, list[str], str]:
    """Return the rows that are spots of a section, what the section calls them, and how they were joined."""
    rows, measured = _of_section(prediction, name), section.obs_names.astype(str)
    best: tuple[int, np.ndarray, list[str], str] = (0, rows, [], "")
    for words, where in _candidates(prediction, rows):
        if words == [str(number) for number in range(len(words))]:  # no names: they would join by position
            continue
        for mine, theirs, way in _ways(words, measured, name):
            place = {word: number for number, word in enumerate(theirs)}
            own = np.array([place.get(word, -1) for word in mine])
            if (own >= 0).sum() > best[0]:
                known = own >= 0
                barcodes = measured[own[known]].tolist()
                said = f"{known.sum()} of {len(own)} spots joined by {where}{way}"
                best = (int(known.sum()), rows[known], barcodes, said)
    if not best[0]:
        best = _by_places(prediction, rows, section) or best
    if not best[0]:
        own = prediction.obs_names.astype(str)
        raise InputError(
            f"no spot has a name from section {name!r}, neither in obs_names nor in a column of obs",
            file=path,
            field="obs_names",
            value=str(own[0]) if len(own) else None,
            expected=f"names as in the section, such as {str(measured[0])!r}",
            fix="write the section's barcodes into obs['barcode'], or the middle of each tile into obsm['spatial']",
        )
    if len(set(best[2])) < len(best[2]):
        twice = next(one for one in best[2] if best[2].count(one) > 1)
        problem = "a spot of the section is predicted twice"
        raise InputError(
            problem,
            file=path,
            field="obs",
            value=twice,
            fix="keep the rows of this section, or name it in a column of obs",
        )
    return best[1], best[2], best[3]


def says_section(prediction: AnnData, name: str) -> bool:
    """Return whether a file says of some spot that it is of a section: in a column, or before the spot's name."""
    if any((words == name).any() for _, words in _texts(prediction)):
        return True
    before = tuple(name + sign for sign in BETWEEN)
    return any(word.startswith(before) for words, _ in _candidates(prediction, slice(None)) for word in words)


def _by_places(
    prediction: AnnData, rows: np.ndarray, section: AnnData
) -> tuple[int, np.ndarray, list[str], str] | None:
    """Return what `_spots` looks for, of tiles that are named by the pixel in their middle; None where they are not.

    Every one of them has to be a spot's own, to the pixel: tiles that are named by their corner, or lie on a grid of
    their own, meet some spots by chance, and those would be the wrong ones.
    """
    if "spatial" not in section.obsm:
        return None
    places = np.rint(np.asarray(section.obsm["spatial"], dtype=np.float64)[:, :2]).astype(np.int64)
    spot = {tuple(place): number for number, place in enumerate(places.tolist())}
    if len(spot) < len(places):
        return None
    for found, where in _pixels(prediction, rows):
        own = [spot.get(place, -1) for place in found]
        if own and min(own) >= 0:
            names = section.obs_names.astype(str)[own].tolist()
            return len(own), rows, names, f"{len(own)} of {len(own)} spots joined by the pixels in {where}"
    return None


def _pixels(prediction: AnnData, rows: np.ndarray) -> Iterator[tuple[list[tuple[int, ...]], str]]:
    """Yield (x, y) of rows: the last two numbers of their names, then what the file says of places."""
    for words, where in _candidates(prediction, rows):
        found = [PIXELS.search(word) for word in words]
        if all(found):
            yield [(int(match[1]), int(match[2])) for match in found], where
    if "spatial" in prediction.obsm:
        places = np.asarray(prediction.obsm["spatial"], dtype=np.float64)[rows, :2]
        if np.isfinite(places).all():
            yield [tuple(place) for place in np.rint(places).astype(np.int64).tolist()], "obsm['spatial']"


def _of_section(prediction: AnnData, name: str) -> np.ndarray:
    """Return the rows that a column of words says to be of a section; all of them where no column names it."""
    for _, words in _texts(prediction):
        mine = words == name
        if mine.any():
            return np.flatnonzero(mine)
    return np.arange(prediction.n_obs)


def _texts(prediction: AnnData) -> Iterator[tuple[str, np.ndarray]]:
    from pandas.api.types import is_numeric_dtype

    for column in prediction.obs:
        if not is_numeric_dtype(prediction.obs[column]):
            yield str(column), prediction.obs[column].astype(str).to_numpy()


def _candidates(prediction: AnnData, rows: np.ndarray | slice) -> Iterator[tuple[list[str], str]]:
    yield prediction.obs_names.to_numpy(dtype=str)[rows].tolist(), "obs_names"
    for column, words in _texts(prediction):
        yield words[rows].tolist(), f"obs[{column!r}]"


def _ways(words: list[str], measured: pd.Index, name: str) -> Iterator[tuple[list[str], list[str], str]]:
    """Yield words and the section's names as they are, then without what programs add to them."""
    theirs = measured.tolist()
    bare = [re.sub(rf"^{re.escape(name)}[{BETWEEN}]", "", word) for word in words]
    yield words, theirs, ""
    yield bare, theirs, f" without {name!r} before them"
    plain = [re.sub(SUFFIX, "", word) for word in theirs]
    if len(set(plain)) == len(plain):
        yield [re.sub(SUFFIX, "", word) for word in bare], plain, " without suffixes such as -1"


def _refuse_counts(
    values: np.ndarray, barcodes: list[str], section: AnnData, columns: np.ndarray, path: str | Path
) -> None:
    """Refuse a section in the place of a prediction: scored on itself, it would be perfect."""
    known = np.flatnonzero(columns >= 0)
    rows = section.obs_names.astype(str).get_indexer(barcodes)
    measured = section.X[rows][:, columns[known]]
    measured = measured.toarray() if hasattr(measured, "toarray") else np.asarray(measured)
    if len(known) and np.array_equal(values[:, known], measured):
        problem = "values are the section's own counts, not predictions"
        raise InputError(problem, file=path, field="X", expected="a file of predictions")
