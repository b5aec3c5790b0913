"""Loupe Browser's CSV of categories: ``Barcode``, and one column per gene.

Loupe makes a group of spots of each different text in a column, so that values as they are would make as many groups as
spots. Each gene hence stands by fifths of its spots, ``1 of 5`` the lowest; ``--to csv`` has the values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histocrypt.export.content import Content, Format
from histocrypt.files import write_table

FIFTHS = 5


def write(content: Content, path: Path) -> None:
    """Write the fifth of its gene's spots that each spot is in; spots of one value are in one fifth."""
    import pandas as pd

    fifths = {name: groups(column) for name, column in zip(content.names.tolist(), content.values.T, strict=True)}
    table = pd.DataFrame({"Barcode": content.barcodes, **fifths})
    write_table(path, table, index=False)


def groups(values: np.ndarray) -> list[str]:
    """Return the fifth of (n,) values that each is in, by rank, ties together: ``1 of 5`` to ``5 of 5``."""
    from scipy.stats import rankdata

    share = (rankdata(values, method="average") - 0.5) / len(values)
    return [f"{int(one * FIFTHS) + 1} of {FIFTHS}" for one in share]


FORMAT = Format(".csv", write)
