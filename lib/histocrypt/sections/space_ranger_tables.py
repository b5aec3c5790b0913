"""The tables of a Space Ranger folder: which files it has, its count matrix, and where its spots lie."""

from __future__ import annotations

import gzip
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histocrypt.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MATRIX = "filtered_feature_bc_matrix"
POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
"""Spot positions of Space Ranger 2 and later, of version 1 (no header), and of Visium HD."""
COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
SCALE_FACTORS = "scalefactors_json.json"


@dataclass(frozen=True)
class SpaceRangerFolder:
    """The files of one Space Ranger output, as far as names tell."""

    root: Path
    """The folder that holds ``spatial/``: ``outs``, or whatever it was renamed to."""
    matrices: tuple[Path, ...]
    """``.h5`` files and MTX folders of filtered counts."""

    @property
    def spatial(self) -> Path:
        """Where positions, scale factors and small images lie."""
        return self.root / "spatial"

    @property
    def positions(self) -> tuple[Path, ...]:
        """The position tables that are there; one where all is well."""
        return tuple(self.spatial / name for name in POSITIONS if (self.spatial / name).is_file())


def space_ranger_folder(folder: Path) -> SpaceRangerFolder | None:
    """Return what a folder, or its ``outs``, holds of Space Ranger's output; None where that is nothing."""
    for root in (folder, folder / "outs"):
        if not (root / "spatial").is_dir():
            continue
        found = SpaceRangerFolder(root, tuple(sorted(root.glob(f"*{MATRIX}.h5"))) + tuple(_mtx_folders(root)))
        if found.matrices or found.positions or (root / "spatial" / SCALE_FACTORS).is_file():
            return found
    return None


def _mtx_folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob(f"*{MATRIX}")) if path.is_dir()]


def read_matrix(found: SpaceRangerFolder) -> tuple[AnnData, list[Path]]:
    """Read the filtered counts of gene expression, genes by their ids, and return the files read.

    An ``.h5`` and an MTX folder side by side are two forms of one matrix, as Space Ranger writes them; they must name
    the same spots.

    Raises
    ------
    InputError
        If there is no filtered matrix, or more than one, or it cannot be read.
    """
    h5 = [path for path in found.matrices if path.is_file()]
    mtx = [path for path in found.matrices if path.is_dir()]
    if len(h5) > 1 or len(mtx) > 1:
        msg = "folder holds several count matrices"
        names = [path.name for path in (h5 if len(h5) > 1 else mtx)]
        raise InputError(msg, file=found.root, value=names, expected="one section a folder", fix="move the others away")
    if not h5 and not mtx:
        raw = next((path.name for path in found.root.glob("*raw_feature_bc_matrix*")), None)
        msg = "filtered count matrix is missing" + (f"; {raw} holds spots beside the tissue too" if raw else "")
        raise InputError(msg, file=found.root, expected=f"{MATRIX}.h5, or {MATRIX}/ with matrix.mtx.gz")
    if not h5:
        return _read_mtx(mtx[0])
    adata = _read_h5(h5[0])
    if mtx:
        names = _lines(_member(mtx[0], "barcodes.tsv"))
        if set(names) != set(adata.obs_names):
            msg = f"two matrices with different spots: {len(adata.obs_names)} here, {len(names)} in {mtx[0].name}/"
            raise InputError(msg, file=h5[0], fix="remove the one that does not belong to this section")
    return adata, [h5[0]]


def read_positions(found: SpaceRangerFolder) -> tuple[pd.DataFrame, Path]:
    """Read where every spot of the array lies.

    Returns
    -------
    Indexed by barcode: ``in_tissue``, ``array_row``, ``array_col`` (int), ``pxl_row_in_fullres`` and
    ``pxl_col_in_fullres`` (float); and the file.
    """
    if not found.positions:
        msg = "spot positions are missing"
        raise InputError(msg, file=found.spatial, expected=" or ".join(POSITIONS))
    if len(found.positions) > 1:
        msg = "folder holds several tables of spot positions"
        names = [path.name for path in found.positions]
        raise InputError(msg, file=found.spatial, value=names, fix="keep the one of this section")
    path = found.positions[0]
    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        msg = "column is missing"
        raise InputError(msg, file=path, field=missing[0], expected=", ".join(COLUMNS))
    for name in COLUMNS[1:]:
        table[name] = _numbers(table, name, path)
    repeated = table["barcode"][table["barcode"].duplicated()]
    if len(repeated):
        msg = "spot is there twice"
        raise InputError(msg, file=path, field="barcode", value=str(repeated.iloc[0]))
    for name in COLUMNS[1:4]:
        table[name] = table[name].astype(int)
    return table[list(COLUMNS)].set_index("barcode"), path


def _read_h5(path: Path) -> AnnData:
    import scanpy

    from histocrypt.sections.format_h5ad import unreadable

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gene symbols are not unique; ids are taken below
            adata = scanpy.read_10x_h5(path, gex_only=True)
            symbols, ids = adata.var_names.astype(str), adata.var["gene_ids"].astype(str)
    except unreadable() as error:
        detail = " ".join(str(error).split())[:160] or type(error).__name__
        msg = f"is not a readable 10x count matrix, it may be truncated ({detail})"
        raise InputError(msg, file=path, fix="copy it again from its source") from error
    adata.var = adata.var[[]].assign(symbol=symbols.to_numpy()).set_axis(ids.to_numpy(), axis=0)
    adata.var.index.name = "gene_id"
    return adata


def _read_mtx(folder: Path) -> tuple[AnnData, list[Path]]:
    import anndata
    import pandas as pd
    from scipy.io import mmread
    from scipy.sparse import csr_matrix

    matrix, barcodes = _member(folder, "matrix.mtx"), _member(folder, "barcodes.tsv")
    features = _member(folder, "features.tsv", "genes.tsv")
    rows = [line.split("\t") for line in _lines(features)]
    names = _lines(barcodes)
    try:
        counts = csr_matrix(mmread(matrix).T)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        detail = " ".join(str(error).split())[:160]
        msg = f"is not a readable matrix, it may be truncated ({detail})"
        raise InputError(msg, file=matrix, fix="copy it again from its source") from error
    if counts.shape != (len(names), len(rows)):
        msg = f"has {counts.shape[0]} spots and {counts.shape[1]} genes, where the tables beside it name {len(names)} "
        raise InputError(f"{msg}and {len(rows)}", file=matrix)
    kept = [number for number, row in enumerate(rows) if len(row) < 3 or row[2] == "Gene Expression"]
    ids = pd.Index([rows[number][0] for number in kept], name="gene_id")
    symbols = [rows[number][1] if len(rows[number]) > 1 else rows[number][0] for number in kept]
    adata = anndata.AnnData(
        counts if len(kept) == len(rows) else counts[:, kept],
        obs=pd.DataFrame(index=pd.Index(names, name="barcode")),
        var=pd.DataFrame({"symbol": symbols}, index=ids),
    )
    return adata, [matrix, barcodes, features]


def _member(folder: Path, *names: str) -> Path:
    """Return a file of an MTX folder, compressed or not."""
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    msg = "file of the count matrix is missing"
    raise InputError(msg, file=folder, expected=" or ".join(f"{name}.gz" for name in names))


def _lines(path: Path) -> list[str]:
    try:
        opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
        with opened as file:
            return [line.rstrip("\r\n") for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        msg = f"cannot be read, it may be truncated ({error})"
        raise InputError(msg, file=path, fix="copy it again from its source") from error


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a position table; whether it has a header is told by its first line, not by its name."""
    import pandas as pd

    lines = _lines(path)
    if not lines:
        msg = "table of spot positions is empty"
        raise InputError(msg, file=path)
    header = lines[0].lower().startswith("barcode")
    names = [name.strip() for name in lines[0].split(",")] if header else list(COLUMNS)
    rows = [line.split(",") for line in lines[header:]]
    for number, row in enumerate(rows, start=1 + header):
        if len(row) != len(names):
            msg = f"line {number} has {len(row)} values"
            raise InputError(msg, file=path, value=",".join(row)[:80], expected=f"{len(names)}: {', '.join(names)}")
    return pd.DataFrame(rows, columns=names)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        msg = f"is not readable as parquet ({error})"
        raise InputError(msg, file=path, fix="copy it again from its source") from error


def _numbers(table: pd.DataFrame, name: str, path: Path) -> pd.Series:
    import pandas as pd

    values = pd.to_numeric(table[name], errors="coerce")
    if values.isna().any():
        first = values.isna().to_numpy().argmax()
        msg = f"is not a number for spot {table['barcode'].iloc[first]}"
        raise InputError(msg, file=path, field=name, value=str(table[name].iloc[first]))
    return values
