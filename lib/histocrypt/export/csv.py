"""Plain CSV: one row per spot, with its section, name and place, and one column per gene."""

from __future__ import annotations

from pathlib import Path

from histocrypt.export.content import Content, Format
from histocrypt.files import write_table


def write(content: Content, path: Path) -> None:
    """Write ``section``, ``barcode``, ``x_px``, ``y_px``, a column for each gene, and what else is said of spots."""
    import pandas as pd

    places = {"section": content.section, "barcode": content.barcodes, "x_px": content.coords[:, 0]}
    values = pd.DataFrame(content.values, columns=content.names.astype(object))
    more = content.more.reset_index(drop=True)
    head = pd.DataFrame({**places, "y_px": content.coords[:, 1]})
    write_table(path, pd.concat([head, values, more], axis=1), index=False, float_format="%.6g")


FORMAT = Format(".csv", write)
