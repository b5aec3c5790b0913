"""Predictions as a submission: a CSV with one row a spot, in the section's own order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histocrypt.atomic import atomic_path
from histocrypt.errors import InputError


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
        msg = "a submission is written as .csv"
        raise InputError(msg, file=path, field="submission", expected="a name that ends in .csv")
    if path.is_dir():
        msg = "would be written over a folder"
        raise InputError(msg, file=path, field="submission")
    if any(dropped.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        msg = f"a submission needs every spot of {section}, and some cannot be predicted ({reasons})"
        raise InputError(msg, field="submission", fix="correct their coordinates, or predict without --submission")


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
    import pandas as pd

    row = {spot: i for i, spot in enumerate(predicted)}
    missing = [spot for spot in order if spot not in row]
    if missing:
        msg = f"a submission needs every spot, and {len(missing)} have no prediction, first {missing[0]}"
        raise InputError(msg, file=path)
    chosen = np.asarray(values, dtype=np.float32)[[row[spot] for spot in order]]
    table = pd.DataFrame(chosen, columns=list(columns))
    table.insert(0, "ID", order)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.9g")
        back = pd.read_csv(temporary, dtype={"ID": str}, keep_default_na=False)
        same = list(back.columns) == list(table.columns) and back["ID"].tolist() == order
        if not same or not np.array_equal(back[list(columns)].to_numpy(np.float32), chosen):
            msg = "the submission does not read back as it was written"
            raise InputError(msg, file=path, fix="look for spot or column names that a CSV cannot hold")
