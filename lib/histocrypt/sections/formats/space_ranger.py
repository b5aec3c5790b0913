"""Space Ranger's output: counts, spot positions and images of one Visium section."""

from __future__ import annotations

import gzip
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.sections.identity import safe_id
from histocrypt.sections.image import ImageSource, ScaledImage, open_image
from histocrypt.sections.section import Format, Loaded, SectionFiles
from histocrypt.sections.validate import TOLERANCE, VISIUM_PITCH_UM, spot_pitch_px

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

# ---- space ranger tables
# The tables of a Space Ranger folder: which files it has, its count matrix, and where its spots lie.


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
        raise InputError(
            "filtered count matrix is missing" + (f"; {raw} holds spots beside the tissue too" if raw else ""),
            file=found.root,
            expected=f"{MATRIX}.h5, or {MATRIX}/ with matrix.mtx.gz",
        )
    if not h5:
        return _read_mtx(mtx[0])
    adata = _read_h5(h5[0])
    if mtx:
        names = _lines(_member(mtx[0], "barcodes.tsv"))
        if set(names) != set(adata.obs_names):
            raise InputError(
                f"two matrices with different spots: {len(adata.obs_names)} here, {len(names)} in {mtx[0].name}/",
                file=h5[0],
                fix="remove the one that does not belong to this section",
            )
    return adata, [h5[0]]


def read_positions(found: SpaceRangerFolder) -> tuple[pd.DataFrame, Path]:
    """Read where every spot of the array lies.

    Returns
    -------
    Indexed by barcode: ``in_tissue``, ``array_row``, ``array_col`` (int), ``pxl_row_in_fullres`` and
    ``pxl_col_in_fullres`` (float); and the file.
    """
    if not found.positions:
        raise InputError("spot positions are missing", file=found.spatial, expected=" or ".join(POSITIONS))
    if len(found.positions) > 1:
        msg = "folder holds several tables of spot positions"
        names = [path.name for path in found.positions]
        raise InputError(msg, file=found.spatial, value=names, fix="keep the one of this section")
    path = found.positions[0]
    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError("column is missing", file=path, field=missing[0], expected=", ".join(COLUMNS))
    for name in COLUMNS[1:]:
        table[name] = _numbers(table, name, path)
    repeated = table["barcode"][table["barcode"].duplicated()]
    if len(repeated):
        raise InputError("spot is there twice", file=path, field="barcode", value=str(repeated.iloc[0]))
    for name in COLUMNS[1:4]:
        table[name] = table[name].astype(int)
    return table[list(COLUMNS)].set_index("barcode"), path


def _read_h5(path: Path) -> AnnData:
    import scanpy

    from histocrypt.sections.formats.h5ad import unreadable

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gene symbols are not unique; ids are taken below
            adata = scanpy.read_10x_h5(path, gex_only=True)
            symbols, ids = adata.var_names.astype(str), adata.var["gene_ids"].astype(str)
    except unreadable() as error:
        detail = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"is not a readable 10x count matrix, it may be truncated ({detail})",
            file=path,
            fix="copy it again from its source",
        ) from error
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
        raise InputError(
            f"is not a readable matrix, it may be truncated ({detail})",
            file=matrix,
            fix="copy it again from its source",
        ) from error
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
    raise InputError(
        "file of the count matrix is missing", file=folder, expected=" or ".join(f"{name}.gz" for name in names)
    )


def _lines(path: Path) -> list[str]:
    try:
        opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
        with opened as file:
            return [line.rstrip("\r\n") for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read, it may be truncated ({error})", file=path, fix="copy it again from its source"
        ) from error


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a position table; whether it has a header is told by its first line, not by its name."""
    import pandas as pd

    lines = _lines(path)
    if not lines:
        raise InputError("table of spot positions is empty", file=path)
    header = lines[0].lower().startswith("barcode")
    names = [name.strip() for name in lines[0].split(",")] if header else list(COLUMNS)
    rows = [line.split(",") for line in lines[header:]]
    for number, row in enumerate(rows, start=1 + header):
        if len(row) != len(names):
            raise InputError(
                f"line {number} has {len(row)} values",
                file=path,
                value=",".join(row)[:80],
                expected=f"{len(names)}: {', '.join(names)}",
            )
    return pd.DataFrame(rows, columns=names)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise InputError(
            f"is not readable as parquet ({error})", file=path, fix="copy it again from its source"
        ) from error


def _numbers(table: pd.DataFrame, name: str, path: Path) -> pd.Series:
    import pandas as pd

    values = pd.to_numeric(table[name], errors="coerce")
    if values.isna().any():
        first = values.isna().to_numpy().argmax()
        raise InputError(
            f"is not a number for spot {table['barcode'].iloc[first]}",
            file=path,
            field=name,
            value=str(table[name].iloc[first]),
        )
    return values


# ---- format space ranger


SPOT_AREA_UM = 65.0
"""What ``spot_diameter_fullres`` spans by 10x Genomics' definition; the printed spot is `SPOT_UM` wide."""
SPOT_UM = 55.0
IMAGE_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".mrxs", ".jpg", ".jpeg", ".png")
SMALL_IMAGES = (("hires", "tissue_hires_image.png"), ("lowres", "tissue_lowres_image.png"))
HD = re.compile(r"^square_\d+um$")
SAME_SIZE = 0.01
"""Largest relative difference in size of two pictures of one slide: small images are rounded to whole pixels."""


def _is_run(folder: Path) -> bool:
    """Return whether a folder, or its ``outs``, is Space Ranger's output."""
    return space_ranger_folder(folder) is not None or _is_hd(folder)


def _runs(folder: Path) -> list[Path]:
    """Return a folder that is a run, else the runs just below it."""
    return [folder] if _is_run(folder) else [path for path in sorted(folder.glob("[!.]*")) if _is_run(path)]


def _recognises(path: Path) -> bool:
    """Return whether a folder is a run, or holds some and no ``.h5ad``; a run may have results beside it."""
    return _is_run(path) or (not any(path.glob("[!.]*.h5ad")) and bool(_runs(path)))


def _sections_in(folder: Path) -> list[SectionFiles]:
    """Return the one section of each run; its id is the folder's name (of ``outs``: the parent's)."""
    return [_section(run) for run in _runs(folder)]


def _section(folder: Path) -> SectionFiles:
    if _is_hd(folder):
        raise InputError(
            "is Visium HD, whose bins are not supported",
            file=folder,
            expected="Visium with spots of 55 um, 100 um apart",
        )
    root = space_ranger_folder(folder).root
    name = root.absolute().parent.name if root.name == "outs" else root.absolute().name
    return SectionFiles(safe_id(name), "space_ranger", root)


def space_ranger_inputs(files: SectionFiles) -> list[Path]:
    """Return the files that a section is read from, as far as names tell."""
    found = space_ranger_folder(files.path)
    if found is None:
        return [files.path]
    matrices = [
        path for matrix in found.matrices for path in ([matrix] if matrix.is_file() else sorted(matrix.glob("*")))
    ]
    small = [found.spatial / name for name in (SCALE_FACTORS, *(name for _, name in SMALL_IMAGES))]
    images = [files.image] if files.image else _siblings(found.root, files.id)
    return sorted({*matrices, *found.positions, *(path for path in (*small, *images) if path.is_file())})


def load_space_ranger(files: SectionFiles) -> Loaded:
    """Read counts, positions, scale factors and the best image at hand of one section."""
    found = space_ranger_folder(files.path)
    if found is None:
        raise InputError(
            "is no Space Ranger output", file=files.path, expected="spatial/ and filtered_feature_bc_matrix.h5"
        )
    adata, read = read_matrix(found)
    positions, positions_path = read_positions(found)
    _join(adata, positions, positions_path)
    _check_lattice(adata, positions_path)
    factors, factors_path = _scale_factors(found)
    um_per_px, field = None, ""
    if "spot_diameter_fullres" in factors:
        um_per_px = SPOT_AREA_UM / factors["spot_diameter_fullres"]
        field = f"{factors_path.name}: spot_diameter_fullres ({SPOT_AREA_UM:g} um)"
    image, image_files, notes = _image(files, found, factors)
    adata.uns["spatial"] = {
        files.id: {
            "scalefactors": dict(factors),
            "metadata": {
                "spot_diameter_um": SPOT_UM,
                "inter_spot_um": VISIUM_PITCH_UM,
                "lattice": "hexagonal",
                "neighbours": 6,
            },
        }
    }
    loaded = Loaded(
        adata,
        image,
        None,
        [*read, positions_path, *([factors_path] if factors else []), *image_files],
        um_per_px=um_per_px,
        um_field=field,
        pitch_um=VISIUM_PITCH_UM,
        technology="Visium",
        image_note="" if image is not None else f"image is missing: none in {found.root} and none in spatial/",
        notes=notes,
    )
    if files.um_per_px is None:
        _check_pitch(loaded, factors_path)
    if isinstance(image, ScaledImage):
        known = files.um_per_px or um_per_px or VISIUM_PITCH_UM / (spot_pitch_px(loaded) or np.nan)
        loaded.notes.append(
            f"{image.path}: a reduced image of {known / image.scale:.1f} um per pixel stands for the full-resolution "
            f"one ({known:.2f} um per pixel): tiles hold no finer detail."
        )
    return loaded


def _is_hd(folder: Path) -> bool:
    """Return whether a folder is of Visium HD: square bins of a few micrometres and no spots."""
    if HD.match(folder.absolute().name) and folder.is_dir():
        return True
    return any((root / "binned_outputs").is_dir() for root in (folder, folder / "outs"))


def _join(adata: Any, positions: pd.DataFrame, path: Path) -> None:
    """Give every spot of the matrix its place, by barcode."""
    missing = adata.obs_names.difference(positions.index)
    if len(missing):
        suffixed = f"{missing[0]}-1" in positions.index or missing[0].removesuffix("-1") in positions.index
        msg = f"{len(missing)} of {adata.n_obs} spots of the count matrix have no position"
        hint = "barcodes end in -1 in one file only" if suffixed else "take both from one Space Ranger run"
        raise InputError(msg, file=path, field="barcode", value=str(missing[0]), fix=hint)
    own = positions.loc[adata.obs_names]
    adata.obs = own[["in_tissue", "array_row", "array_col"]].copy()
    adata.obs.index.name = "barcode"
    adata.obsm["spatial"] = own[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)  # x is the column


def _check_lattice(adata: Any, path: Path) -> None:
    """Refuse an array index that is not Visium's, where row and column are both even or both odd."""
    odd = (adata.obs["array_row"] + adata.obs["array_col"]) % 2 == 1
    if odd.any():
        raise InputError(
            f"array is not the hexagonal one of Visium: row + column is odd for {int(odd.sum())} of {len(odd)} spots",
            file=path,
            field="array_row, array_col",
            value=str(odd.idxmax()),
        )


def _scale_factors(found: SpaceRangerFolder) -> tuple[dict[str, float], Path]:
    """Return the numbers of the scale factors' file, empty where there is none."""
    path = found.spatial / SCALE_FACTORS
    if not path.is_file():
        return {}, path
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(
            "holds no scale factors", file=path, expected='{"spot_diameter_fullres": ..., "tissue_hires_scalef": ...}'
        )
    if "bin_size_um" in content:
        raise InputError(
            "is Visium HD, whose bins are not supported", file=path, field="bin_size_um", value=content["bin_size_um"]
        )
    factors = {}
    for name in ("spot_diameter_fullres", "fiducial_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef"):
        value = content.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
            raise InputError("scale factor is not a positive number", file=path, field=name, value=value)
        factors[name] = float(value)
    return factors, path


def _check_pitch(loaded: Loaded, path: Path) -> None:
    """Refuse a spot diameter that contradicts the distance of neighbouring spots."""
    pitch_px = spot_pitch_px(loaded)
    if loaded.um_per_px is None or pitch_px is None:
        return
    estimate = VISIUM_PITCH_UM / pitch_px
    if abs(loaded.um_per_px / estimate - 1) > TOLERANCE:
        raise InputError(
            f"spot diameter makes {loaded.um_per_px:.4g} um/px, but neighbouring spots lie {pitch_px:.1f} px apart, "
            f"{VISIUM_PITCH_UM:g} um on a Visium slide, which makes {estimate:.4g} um/px",
            file=path,
            field="spot_diameter_fullres",
            fix="correct it, or give `um_per_px:`",
        )


def _image(
    files: SectionFiles, found: SpaceRangerFolder, factors: dict[str, float]
) -> tuple[ImageSource | None, list[Path], list[str]]:
    """Return the full-resolution image where there is one, else a reduced one, with its scale factor."""
    full = _sibling(found.root, files.id) if files.image is None else None
    small = _small_images(found, factors, needed=files.image is None and full is None)
    full_size = small[0][2] if small else None
    given = files.image
    if given is not None and not given.exists():
        raise InputError("image as given is missing", file=found.root, field="image", value=str(given))
    if given is not None:
        for path, scale, _ in small:
            if path.samefile(given):
                return ScaledImage(open_image(path), scale), [path], []
    path = given or full
    if path is not None:
        image = open_image(path)
        if full_size is not None and not _alike((image.width, image.height), full_size):
            raise InputError(
                "image is not the one that the coordinates refer to",
                file=path,
                value=f"{image.width} x {image.height} px",
                expected=f"about {full_size[0]:.0f} x {full_size[1]:.0f} px by {small[0][0].name} and its scale factor",
                fix="give the image that Space Ranger was run on as `image:`",
            )
        return image, [path], []
    if small:
        path, scale, _ = small[0]
        return ScaledImage(open_image(path), scale), [path], []
    return None, [], []


def _small_images(
    found: SpaceRangerFolder, factors: dict[str, float], *, needed: bool
) -> list[tuple[Path, float, tuple[float, float]]]:
    """Return reduced images: file, scale, and the full-resolution size that both imply; these must agree."""
    small = []
    for name, file in SMALL_IMAGES:
        path, scale = found.spatial / file, factors.get(f"tissue_{name}_scalef")
        if not path.is_file():
            continue
        if scale is None:
            if needed and not small:
                raise InputError(
                    f"scale factor of {file} is missing, so that its pixels cannot be joined to spots",
                    file=found.spatial / SCALE_FACTORS,
                    field=f"tissue_{name}_scalef",
                )
            continue
        if scale > 1:
            raise InputError(
                "scale factor enlarges",
                file=found.spatial / SCALE_FACTORS,
                field=f"tissue_{name}_scalef",
                value=scale,
                expected="at most 1",
            )
        image = open_image(path)
        small.append((path, scale, (image.width / scale, image.height / scale)))
    if len(small) == 2 and not _alike(small[0][2], small[1][2]):
        one, two = small
        raise InputError(
            f"image has another size than its scale factor says: it makes a slide of {one[2][0]:.0f} x {one[2][1]:.0f} "
            f"px, where {two[0].name} makes {two[2][0]:.0f} x {two[2][1]:.0f} px",
            file=one[0],
            fix="take spatial/ whole from one Space Ranger run",
        )
    return small


def _alike(one: tuple[float, float], two: tuple[float, float]) -> bool:
    return all(abs(a / b - 1) <= SAME_SIZE for a, b in zip(one, two, strict=True))


def _siblings(root: Path, section: str) -> list[Path]:
    """Return the images that lie in the folder, and beside an ``outs`` under its section's name."""
    found = [path for path in sorted(root.glob("[!.]*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if root.name == "outs" and section:
        beside = [root.parent / f"{stem}{suffix}" for stem in ("image", section) for suffix in IMAGE_SUFFIXES]
        found += [path for path in beside if path.is_file()]
    return found


def _sibling(root: Path, section: str) -> Path | None:
    """Return the one image that can only be the full-resolution one; two candidates are an error."""
    found = _siblings(root, section)
    if len(found) > 1:
        raise InputError(
            "folder holds several images that may be the full-resolution one",
            file=root,
            value=[path.name for path in found],
            fix="name one as `image:` in the study",
        )
    return found[0] if found else None


FORMAT = Format(
    layout="Space Ranger's output (spatial/ and filtered_feature_bc_matrix.h5)",
    recognises=_recognises,
    sections_in=_sections_in,
    read=load_space_ranger,
    inputs=space_ranger_inputs,
)
