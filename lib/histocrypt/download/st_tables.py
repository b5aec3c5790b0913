"""Published tables of an ST array section - counts, spots, one image - become one `.h5ad` beside its image."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.atomic import atomic_path
from histocrypt.errors import InputError
from histocrypt.sections.image import open_image

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.download.catalogue import Source

DAMAGED = (OSError, EOFError, UnicodeDecodeError, ValueError)


def read_selection(path: Path) -> pd.DataFrame:
    """Read HER2ST's table of spots below tissue: tab-separated ``x y ... pixel_x pixel_y selected``.

    Returns
    -------
    Indexed by ``<x>x<y>``: ``array_col``, ``array_row`` (int), ``x``, ``y`` (float, full-resolution pixels).
    """
    table = _table(path, "\t", ("x", "y", "pixel_x", "pixel_y"))
    if "selected" in table:
        table = table[table["selected"] == 1]
    return _spots(path, table["x"], table["y"], table["pixel_x"], table["pixel_y"])


def read_coordinates(path: Path) -> pd.DataFrame:
    """Read HBCIS's table of spots below tissue: comma-separated, indexed by ``<x>x<y>``, with ``X`` and ``Y``.

    Returns as `read_selection` does.
    """
    table = _table(path, ",", ("X", "Y"))
    index = table.iloc[:, 0].astype(str).str.extract(r"^(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)$").astype(float)
    return _spots(path, index[0], index[1], table["X"], table["Y"])


def write_section(
    counts_path: Path,
    spots: pd.DataFrame,
    image: Path,
    output: Path,
    *,
    section: str,
    patient: str,
    source: Source,
    subtype: str = "",
) -> Path:
    """Join counts and spots by name and write a section that `histocrypt check` reads.

    Parameters
    ----------
    counts_path
        Tab-separated, spots ``<x>x<y>`` x genes, raw counts; may be compressed.
    spots
        As `read_selection` and `read_coordinates` return them.
    image
        The whole section; it must lie beside ``output``.
    output
        The ``.h5ad`` to write.

    Raises
    ------
    InputError
        If a table cannot be read, counts are not whole numbers, a gene is there twice, or no spot is in both tables.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    if output.exists() and output.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in (counts_path, image)):
        return output
    genes = _header(counts_path)
    try:
        table = pd.read_csv(counts_path, sep="\t", index_col=0, header=0, names=["spot", *genes], dtype={"spot": str})
        values = table.to_numpy(dtype=np.float64)
    except DAMAGED as error:
        msg = f"counts cannot be read, the file may be truncated ({' '.join(str(error).split())[:120]})"
        raise InputError(msg, file=counts_path, fix="delete it and download it again") from error
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.rint(values)).any():
        msg = "counts are not whole numbers of zero or more"
        raise InputError(msg, file=counts_path)
    both = [name for name in spots.index if name in table.index]
    if not both:
        msg = "no spot is in both tables"
        raise InputError(msg, file=counts_path, value=str(table.index[0]), expected=f"e.g. {spots.index[0]!r}")
    rows, spots = table.index.get_indexer(both), spots.loc[both]
    picture = open_image(image)
    adata = anndata.AnnData(
        sparse.csr_matrix(values[rows].astype(np.int32)),
        obs=spots[["array_row", "array_col"]].assign(in_tissue=1, section=section, patient=patient),
        var=pd.DataFrame({"symbol": genes}, index=pd.Index(genes, name="gene_id")),
        obsm={"spatial": spots[["x", "y"]].to_numpy(dtype=np.float64)},
    )
    adata.obs.index.name = "barcode"
    adata.uns.update(
        technology="Spatial Transcriptomics", dataset=source.name, licence=source.licence, citation=source.citation,
        source=source.homepage, section=section, patient=patient, **({"subtype": subtype} if subtype else {}),
    )  # fmt: skip
    about = {"source_image_path": image.name, "fullres_width": picture.width, "fullres_height": picture.height}
    adata.uns["spatial"] = {section: {"metadata": {**about, "spot_diameter_um": 100.0, "inter_spot_um": 200.0}}}
    with atomic_path(output) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return output


def _header(path: Path) -> list[str]:
    """Return the gene names of a count table; pandas would rename those that are there twice."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            genes = file.readline().rstrip("\r\n").split("\t")[1:]
    except DAMAGED as error:
        msg = f"counts cannot be read, the file may be truncated ({error})"
        raise InputError(msg, file=path, fix="delete it and download it again") from error
    if not genes:
        msg = "table names no gene"
        raise InputError(msg, file=path)
    if len(set(genes)) < len(genes):
        seen: set[str] = set()
        repeated = next(gene for gene in genes if gene in seen or seen.add(gene))
        msg = "gene is there twice"
        raise InputError(msg, file=path, value=repeated)
    return genes


def _table(path: Path, separator: str, columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_csv(path, sep=separator)
    except DAMAGED as error:
        msg = f"table of spots cannot be read, it may be truncated ({' '.join(str(error).split())[:120]})"
        raise InputError(msg, file=path, fix="delete it and download it again") from error
    for name in columns:
        if name not in table:
            msg = "column is missing"
            raise InputError(msg, file=path, field=name, expected=", ".join(columns))
    return table


def _spots(path: Path, column: pd.Series, row: pd.Series, x: pd.Series, y: pd.Series) -> pd.DataFrame:
    import pandas as pd

    numbers = np.column_stack([pd.to_numeric(part, errors="coerce") for part in (column, row, x, y)])
    if not len(numbers) or not np.isfinite(numbers).all():
        msg = "table of spots is empty" if not len(numbers) else "spot has no place"
        bad = None if not len(numbers) else int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]) + 2
        raise InputError(msg, file=path, field=None if bad is None else f"line {bad}")
    index = np.rint(numbers[:, :2]).astype(int)
    names = pd.Index([f"{col}x{row}" for col, row in index], name="barcode")
    if not names.is_unique:
        msg = "spot is there twice"
        raise InputError(msg, file=path, value=str(names[names.duplicated()][0]))
    return pd.DataFrame(
        {"array_col": index[:, 0], "array_row": index[:, 1], "x": numbers[:, 2], "y": numbers[:, 3]}, index=names
    )
