"""Predictions as CSV files: a table of every head, a submission; what was written with a prediction is known again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.files import atomic_path, digest_of, read_table, write_table
from histocrypt.pipeline.predictions import is_loose_prediction, read_prediction

if TYPE_CHECKING:
    from anndata import AnnData

CSV_FILES = ("target_count_pred.csv", "aux_count_pred.csv", "tumor_pred.csv")


def made_with(prediction: Path) -> Callable[[Path], bool]:
    """Return what tells whether a file was written with the prediction that lies there: to the byte what it would be.

    Such a file may be replaced together with its prediction. One that somebody wrote or changed by hand is not such.
    """

    @cache
    def digests() -> set[str]:
        if not is_loose_prediction(prediction):
            return set()
        with tempfile.TemporaryDirectory(prefix="histocrypt-") as scratch:
            folder = Path(scratch)
            try:
                adata = read_prediction(prediction)
                written = _write_tables(folder, adata)
            except (InputError, LookupError):  # nothing that this version wrote
                return set()
            submission = folder / "submission.csv"
            _write_values(submission, np.asarray(adata.X), adata.obs["barcode"].astype(str), tuple(adata.var_names))
            return {digest_of(path, "sha256") for path in (*written, submission)}

    return lambda path: digest_of(path, "sha256") in digests()


def write_csv(folder: Path, prediction: Path) -> list[Path]:
    """Write a prediction as CSV files, one row per spot, in its order and with its gene names; return them.

    ``target_count_pred.csv`` and ``aux_count_pred.csv``: ``name`` and one column per gene. ``tumor_pred.csv``: ``name``
    and ``Annotation``, true where the probability of tumour is above 1/2. Only what the model has a head for.
    """
    return _write_tables(folder, read_prediction(prediction))


def _write_tables(folder: Path, adata: AnnData) -> list[Path]:
    import pandas as pd

    index = pd.Index(_csv_names(adata), name="name")
    tables: dict[str, Any] = {CSV_FILES[0]: pd.DataFrame(adata.X, index=index, columns=adata.var_names)}
    if "auxiliary" in adata.obsm:
        genes = list(map(str, adata.uns["auxiliary_names"]))
        tables[CSV_FILES[1]] = pd.DataFrame(adata.obsm["auxiliary"], index=index, columns=genes)
    if "tumour_probability" in adata.obs:
        above = adata.obs["tumour_probability"].to_numpy() > 0.5
        tables[CSV_FILES[2]] = pd.DataFrame({"Annotation": above}, index=index)
    written = []
    for name, table in tables.items():
        write_table(folder / name, table)
        written.append(folder / name)
    return written


def _csv_names(adata: AnnData) -> list[str]:
    """Return ``<section>_<barcode>``: the name of a patch's file, where there was one."""
    pairs = zip(adata.obs["section"].astype(str), adata.obs["barcode"].astype(str), strict=True)
    return [f"{section}_{barcode}" for section, barcode in pairs]


def check_submission(path: Path, dropped: dict[str, int], *, section: str) -> None:
    """Refuse a submission that cannot be whole, before any work.

    Parameters
    ----------
    path
        Where it is to go.
    dropped
        Reason -> spots that the reader dropped, which hence cannot be predicted.
    section
        Its id, for the error.
    """
    if path.suffix != ".csv":
        raise InputError(
            "a submission is written as .csv", file=path, field="submission", expected="a name that ends in .csv"
        )
    if any(dropped.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise InputError(
            f"a submission needs every spot of {section}, and some cannot be predicted ({reasons})",
            field="submission",
            fix="correct their coordinates, or predict without --submission",
        )


def write_submission(
    path: Path, values: np.ndarray, *, predicted: list[str], order: list[str], columns: tuple[str, ...]
) -> None:
    """Write ``ID`` and the panel's columns, and read the file back to check that it says what was predicted.

    Parameters
    ----------
    path
        Where it goes; written atomically.
    values
        (n, g) predictions.
    predicted
        The spot of each row of ``values``.
    order
        The spots as the section lists them; each becomes a row.
    columns
        The panel, as ``values`` has it.

    Raises
    ------
    InputError
        If a spot of the section has no prediction.
    """
    row = {spot: i for i, spot in enumerate(predicted)}
    missing = [spot for spot in order if spot not in row]
    if missing:
        raise InputError(
            f"a submission needs every spot, and {len(missing)} have no prediction, first {missing[0]}", file=path
        )
    chosen = np.asarray(values, dtype=np.float32)[[row[spot] for spot in order]]
    with atomic_path(path) as temporary:
        _write_values(temporary, chosen, order, columns)
        back = read_table(temporary, dtype={"ID": str}, keep_default_na=False)
        same = list(back.columns) == ["ID", *columns] and back["ID"].tolist() == order
        if not same or not np.array_equal(back[list(columns)].to_numpy(np.float32), chosen):
            raise InputError(
                "the submission does not read back as it was written",
                file=path,
                fix="look for spot or column names that a CSV cannot hold",
            )


def _write_values(path: Path, values: np.ndarray, spots: Iterable[str], columns: tuple[str, ...]) -> None:
    import pandas as pd

    table = pd.DataFrame(np.asarray(values, dtype=np.float32), columns=list(columns))
    table.insert(0, "ID", list(spots))
    write_table(path, table, index=False, float_format="%.9g")
