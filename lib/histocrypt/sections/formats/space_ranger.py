"""Space Ranger's output: counts, spot positions and images of one Visium section.

A run is the folder that holds ``spatial/`` (``outs``, or whatever it was renamed to) and the filtered count matrix. As
GEO hands sections out, all files of one or of several lie in one folder, each named after its sample
(``GSM5924030_s1_tissue_positions_list.csv.gz``); every file may be packed by gzip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.files import read_json
from histocrypt.hdf5 import open_h5
from histocrypt.sections.genes import expression_only
from histocrypt.sections.identity import safe_id
from histocrypt.sections.image import IMAGE_SUFFIXES, ImageSource, ScaledImage, image_beside, is_image, open_image
from histocrypt.sections.libraries import gem_wells
from histocrypt.sections.picture import Carried, alike, at_own_scale
from histocrypt.sections.resolution import SPOT_SIZES_UM, VISIUM_PITCH_UM, guess
from histocrypt.sections.section import Format, Loaded, SectionFiles
from histocrypt.sections.stores import h5_errors, unpacked
from histocrypt.sections.tables import BROKEN, is_parquet, numbers, opened_text, read_parquet, read_table, tissue_marks

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MATRIX = "filtered_feature_bc_matrix"
POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
"""Spot positions of Space Ranger 2 and later, of version 1 (no header), and of Visium HD."""
COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
SCALE_FACTORS = "scalefactors_json.json"
FACTORS = ("spot_diameter_fullres", "fiducial_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef")
SPOT_AREA_UM, SPOT_UM = SPOT_SIZES_UM["visium"]
"""What ``spot_diameter_fullres`` spans by 10x Genomics' definition; the printed spot is `SPOT_UM` wide."""
SMALL_IMAGES = (("hires", "tissue_hires_image.png"), ("lowres", "tissue_lowres_image.png"))
OWN_PICTURE = re.compile(r"(tissue_(hires|lowres)_image|(aligned|detected)_tissue_image|aligned_fiducials)$")
"""Pictures that Space Ranger writes into ``spatial/``, and some people beside it."""
FLAT = re.compile(r"^(?P<prefix>.*?)(spatial[_.-])?tissue_positions(_list)?\.(csv|parquet)(\.gz)?$")
HD = re.compile(r"^square_\d+um$")


# Which files there are, as far as names tell.


def _root(folder: Path) -> Path | None:
    """Return a folder, or its ``outs``, that holds something of Space Ranger's output."""
    for root in (folder, folder / "outs"):
        if (root / "spatial").is_dir() and (
            _matrices(root) or _positions(root) or (root / "spatial" / SCALE_FACTORS).is_file()
        ):
            return root
    return None


def _matrices(root: Path, prefix: str = "") -> list[Path]:
    """Return the filtered counts: ``.h5`` files, then MTX folders, then ``matrix.mtx.gz`` that lies among others."""
    names = [path for path in sorted(root.glob("*")) if path.name.startswith(prefix)]
    found = [path for path in names if path.name.endswith((f"{MATRIX}.h5", f"{MATRIX}.h5.gz"))]
    found += [path for path in names if path.name.endswith(MATRIX) and path.is_dir()]
    return found or ([] if (root / "spatial").is_dir() else _packed(root, f"{prefix}matrix.mtx"))


def _packed(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]


def _spatial(root: Path, name: str, prefix: str = "") -> list[Path]:
    """Return a file of ``spatial/``, packed or not, under its name or one that a sample's name stands before."""
    if not (root / "spatial").is_dir():
        return _packed(root, prefix + name) or _packed(root, f"{prefix}spatial_{name}")
    here = root / "spatial"
    return _packed(here, name) or [path for end in ("", ".gz") for path in sorted(here.glob(f"[!.]*_{name}{end}"))]


def _positions(root: Path, prefix: str = "") -> list[Path]:
    return [path for name in POSITIONS for path in _spatial(root, name, prefix)]


def _flat(folder: Path) -> list[str]:
    """Return what stands before the names of each section's files in a folder without ``spatial/``."""
    if not folder.is_dir() or (folder / "spatial").is_dir():
        return []
    found = {name["prefix"] for path in folder.glob("[!.]*") if (name := FLAT.match(path.name)) and path.is_file()}
    return sorted(prefix for prefix in found if _matrices(folder, prefix))


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder that may be the full-resolution one: none of Space Ranger's own pictures."""
    return [path for path in sorted(folder.glob("[!.]*")) if is_image(path) and not OWN_PICTURE.search(path.stem)]


def _full_images(root: Path, section: str, prefix: str = "") -> list[Path]:
    """Return the images that lie in the folder, and beside an ``outs`` under its section's name."""
    images = [path for path in images_in(root) if path.name.startswith(prefix)]
    if root.name == "outs" and section:
        images += image_beside(root.parent, ["image", section])
    return images


def _is_hd(folder: Path) -> bool:
    """Return whether a folder is of Visium HD: square bins of a few micrometres and no spots."""
    if HD.match(folder.absolute().name) and folder.is_dir():
        return True
    return any((root / "binned_outputs").is_dir() for root in (folder, folder / "outs"))


def _runs(folder: Path) -> list[Path]:
    """Return a folder that is a run, else the runs just below it."""
    return [folder] if _is_run(folder) else [path for path in sorted(folder.glob("[!.]*")) if _is_run(path)]


def is_spots(folder: Path) -> bool:
    """Return whether a folder is a run of Visium with spots."""
    return _root(folder) is not None and not _is_hd(folder)


def _is_run(folder: Path) -> bool:
    return _root(folder) is not None or _is_hd(folder) or bool(_flat(folder))


def _recognises(path: Path) -> bool:
    """Return whether a folder is a run, or holds some and no ``.h5ad``; a run may have results beside it."""
    return _is_run(path) or (not any(path.glob("[!.]*.h5ad")) and bool(_runs(path)))


def _sections_in(folder: Path) -> list[SectionFiles]:
    """Return the one section of each run; its id is the folder's name (of ``outs``: the parent's)."""
    sections = []
    for run in _runs(folder):
        if _is_hd(run):
            raise InputError(
                "is Visium HD beside Visium with spots",
                file=run,
                expected="runs of one kind in a folder",
                fix="name each run, or each kind by a glob",
            )
        root = _root(run)
        if root is None:
            for prefix in _flat(run):
                name = safe_id(prefix.rstrip("_.- ") or run.absolute().name)
                sections.append(SectionFiles(name, "space_ranger", run, part=prefix))
            continue
        name = (root.absolute().parent if root.name == "outs" else root.absolute()).name
        sections.append(SectionFiles(safe_id(name), "space_ranger", root))
    return sections


def _inputs(files: SectionFiles) -> list[Path]:
    root, prefix = _root(files.path) or files.path, files.part
    found = _matrices(root, prefix)
    matrices = [path for matrix in found for path in (matrix.glob("*") if matrix.is_dir() else [matrix])]
    small = [path for name in (SCALE_FACTORS, *dict(SMALL_IMAGES).values()) for path in _spatial(root, name, prefix)]
    images = [files.image] if files.image else _full_images(root, files.id, prefix)
    return sorted({*matrices, *_positions(root, prefix), *(path for path in (*small, *images) if path.is_file())})


def load_space_ranger(files: SectionFiles) -> Loaded:
    """Read counts, positions, scale factors and the best image at hand of one section."""
    root, prefix = _root(files.path) or files.path, files.part
    if not (root / "spatial").is_dir() and prefix not in _flat(root):
        raise InputError(
            "is not a Space Ranger output", file=files.path, expected="spatial/ and filtered_feature_bc_matrix.h5"
        )
    factors, factors_path = scale_factors(root, prefix=prefix)
    adata, read = _read_matrix(root, prefix)
    adata, left_out = expression_only(adata, read[0])
    adata.var = adata.var[["symbol"]]
    positions, positions_path = _read_positions(root, prefix)
    _join(adata, positions, positions_path)
    image, image_files, pictures = best_image(files, root, factors, coords=adata.obsm["spatial"])
    guessed = guess(adata, pitch_um=VISIUM_PITCH_UM)
    um_per_px, field = None, ""
    if "spot_diameter_fullres" in factors:
        um_per_px = SPOT_AREA_UM / factors["spot_diameter_fullres"]
        field = f"{factors_path.name}: spot_diameter_fullres ({SPOT_AREA_UM:g} um)"
        known = files.counts_only or files.um_per_px is not None
        if not known and guessed is not None and guessed.contradicts(um_per_px):
            raise InputError(
                f"spot diameter makes {um_per_px:.4g} um/px, but neighbouring spots lie {guessed.pitch_px:.1f} px "
                f"apart, {VISIUM_PITCH_UM:g} um on a Visium slide, which makes {guessed.um_per_px:.4g} um/px",
                file=factors_path,
                field="spot_diameter_fullres",
                fix="correct it, or give `um_per_px:`",
            )
    notes = [f"{read[0]}: {left_out}."] if left_out else []
    for path in sorted(root.glob(f"{escape(prefix)}*.gz")) if isinstance(image, ScaledImage) else ():
        if path.stem.lower().endswith(IMAGE_SUFFIXES) and not OWN_PICTURE.search(path.name.split(".")[0]):
            notes.append(f"{path} is packed: gunzip it to use it.")
    metadata = {
        "spot_diameter_um": SPOT_UM,
        "inter_spot_um": VISIUM_PITCH_UM,
        "lattice": "hexagonal",
        "neighbours": 6,
    }
    adata.uns["spatial"] = {files.id: {"scalefactors": factors, "metadata": metadata}}
    return Loaded(
        adata,
        image,
        None,
        [*read, positions_path, *([factors_path] if factors else []), *image_files],
        um_per_px=um_per_px,
        um_field=field,
        pitch_um=VISIUM_PITCH_UM,
        pitch_why="as it is Visium",
        technology="Visium",
        image_note="" if image is not None else f"image is missing: none in {root} and none in spatial/",
        notes=notes,
        pictures=pictures,
        origins={
            "counts": read[0].name,
            "spots": f"{positions_path.name}: pxl_col_in_fullres, pxl_row_in_fullres",
        },
    )


# Counts.


def _read_matrix(root: Path, prefix: str = "") -> tuple[AnnData, list[Path]]:
    """Read the filtered counts, features by their ids, and return the files read.

    An ``.h5`` and an MTX folder side by side are two forms of one matrix, as Space Ranger writes them; they must name
    the same spots.
    """
    matrices = _matrices(root, prefix)
    h5 = [path for path in matrices if path.name.endswith((".h5", ".h5.gz"))]
    mtx = [path for path in matrices if path not in h5]
    for several in (h5, mtx):
        if len(several) > 1:
            raise InputError(
                "folder holds several count matrices",
                file=root,
                value=[path.name for path in several],
                expected="one section per folder",
                fix="move the others away",
            )
    if not matrices:
        raw = next((path.name for path in root.glob("*raw_feature_bc_matrix*")), None)
        raise InputError(
            "filtered count matrix is missing" + (f"; {raw} holds spots beside the tissue too" if raw else ""),
            file=root,
            expected=f"{MATRIX}.h5, or {MATRIX}/ with matrix.mtx.gz",
        )
    if not h5:
        return _read_mtx(mtx[0]) if mtx[0].is_dir() else _read_mtx(root, prefix)
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


def _read_h5(path: Path) -> AnnData:
    """Read 10x's HDF5: one group ``matrix``, or before version 3 one group a genome; compressed by spot."""
    from scipy.sparse import csr_matrix

    what = "is not a readable 10x count matrix"
    with reading(what, *h5_errors(), file=path), unpacked(path) as plain, open_h5(plain, what=what, whole=True) as file:
        (group,) = [file["matrix"]] if "matrix" in file else file.values()
        features = group.get("features", group)
        ids, symbols = (
            features[name if name in features else old].asstr()[:]
            for name, old in (("id", "genes"), ("name", "gene_names"))
        )
        kinds = features["feature_type"].asstr()[:] if "feature_type" in features else None
        names = group["barcodes"].asstr()[:]
        values = (group["data"][:], group["indices"][:], group["indptr"][:])
        counts = csr_matrix(values, shape=(len(names), len(ids)))
        counts.check_format()
        if not np.issubdtype(counts.dtype, np.number):
            raise ValueError("counts are not numbers")
        if {len(symbols), len(ids if kinds is None else kinds)} != {len(ids)}:
            raise ValueError("features have names and kinds of other numbers than ids")
    return _expression(counts, names, ids, symbols, kinds)


def _read_mtx(folder: Path, prefix: str = "") -> tuple[AnnData, list[Path]]:
    from scipy.io import mmread
    from scipy.sparse import csr_matrix

    matrix, barcodes = (_member(folder, prefix + name) for name in ("matrix.mtx", "barcodes.tsv"))
    features = _member(folder, f"{prefix}features.tsv", f"{prefix}genes.tsv")
    rows = [line.split("\t") for line in _lines(features)]
    names = _lines(barcodes)
    with reading("is not a readable matrix", *BROKEN, ValueError, OverflowError, file=matrix):
        counts = csr_matrix(mmread(matrix).T)
    if counts.shape != (len(names), len(rows)):
        raise InputError(
            f"has {counts.shape[0]} spots and {counts.shape[1]} genes, where the tables beside it name {len(names)} "
            f"and {len(rows)}",
            file=matrix,
        )
    ids, symbols = [row[0] for row in rows], [row[min(1, len(row) - 1)] for row in rows]
    kinds = [row[2] if len(row) > 2 else "Gene Expression" for row in rows]
    return _expression(counts, names, ids, symbols, kinds), [matrix, barcodes, features]


def _expression(counts: object, names: object, ids: object, symbols: object, kinds: object) -> AnnData:
    """Return counts, features by their ids, with what each is in ``var["feature_types"]`` where the file says."""
    import anndata
    import pandas as pd

    adata = anndata.AnnData(
        counts,
        obs=pd.DataFrame(index=pd.Index(names, name="barcode", dtype=object)),
        var=pd.DataFrame({"symbol": symbols}, index=pd.Index(ids, name="gene_id", dtype=object)),
    )
    if kinds is not None:
        adata.var["feature_types"] = list(kinds)
    return adata


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
    with opened_text(path) as file:
        return [line.rstrip("\r\n") for line in file if line.strip()]


# Where spots lie.


def _read_positions(root: Path, prefix: str = "") -> tuple[pd.DataFrame, Path]:
    """Read where every spot of the array lies, indexed by barcode; and the file.

    A table may be there twice, as people copy it to the name that a tool of another version looks for.
    """
    tables = _positions(root, prefix)
    if not tables:
        raise InputError("spot positions are missing", file=root / "spatial", expected=" or ".join(POSITIONS))
    first = read_positions(tables[0])
    for other in tables[1:]:
        if not _same_places(first, read_positions(other)):
            raise InputError(
                "folder holds several tables of spot positions, which differ",
                file=root / "spatial",
                value=[tables[0].name, other.name],
                fix="keep the one of this section",
            )
    return first, tables[0]


def _same_places(one: pd.DataFrame, two: pd.DataFrame) -> bool:
    """Return whether two tables say the same of every spot, but for rounding."""
    if len(one) != len(two) or not one.index.isin(two.index).all():
        return False
    return bool(np.allclose(one.to_numpy(dtype=float), two.loc[one.index].to_numpy(dtype=float), rtol=0, atol=1e-3))


def read_positions(path: Path) -> pd.DataFrame:
    """Read one table of positions, indexed by barcode."""
    table = read_parquet(path) if is_parquet(path) else _read_csv(path)
    check_columns(table, path)
    table = checked_positions(table, path)
    repeated = table["barcode"][table["barcode"].duplicated()]
    if len(repeated):
        raise InputError("spot appears twice", file=path, field="barcode", value=str(repeated.iloc[0]))
    return table[list(COLUMNS)].set_index("barcode")


def check_columns(names: Iterable[str], path: Path) -> None:
    """Refuse a table that lacks a column."""
    for name in COLUMNS:
        if name not in names:
            raise InputError("column is missing", file=path, field=name, expected=", ".join(COLUMNS))


def checked_positions(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table of positions as numbers."""
    import pandas as pd

    for name in COLUMNS[1:]:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if name == "in_tissue" and numbers.isna().any():
            numbers = pd.Series(tissue_marks(table[name]), index=table.index)
        if numbers.isna().any():
            first = numbers.isna().to_numpy().argmax()
            raise InputError(
                f"is not a number for spot {table['barcode'].iloc[first]}",
                file=path,
                field=name,
                value=str(table[name].iloc[first]),
            )
        table[name] = numbers.astype(int) if name in COLUMNS[1:4] else numbers
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a position table; whether it has a header is told by its first line, not by its name."""
    table = read_table(path, COLUMNS, headless=True)
    for name in table.columns.intersection(COLUMNS[1:]):
        own = numbers(table[name])
        table[name] = table[name].where(np.isnan(own), own)
    return table


def _join(adata: AnnData, positions: pd.DataFrame, path: Path) -> None:
    """Give every spot of the matrix its place, by barcode, and refuse an array that is not Visium's."""
    if wells := gem_wells(adata.obs_names):
        raise InputError(
            f"is of {len(wells)} slides combined by `spaceranger aggr`: barcodes end in {' and '.join(wells)}",
            file=path,
            field="barcode",
            value=str(adata.obs_names[0]),
            fix="name the folder of each slide's own run",
        )
    missing = adata.obs_names.difference(positions.index)
    if len(missing):
        suffixed = f"{missing[0]}-1" in positions.index or missing[0].removesuffix("-1") in positions.index
        raise InputError(
            f"{len(missing)} of {adata.n_obs} spots of the count matrix have no position",
            file=path,
            field="barcode",
            value=str(missing[0]),
            fix="barcodes end in -1 in one file only" if suffixed else "take both from one Space Ranger run",
        )
    own = positions.loc[adata.obs_names]
    adata.obs = own[["in_tissue", "array_row", "array_col"]].copy()
    adata.obs.index.name = "barcode"
    adata.obsm["spatial"] = own[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)  # x is the column
    odd = (adata.obs["array_row"] + adata.obs["array_col"]) % 2 == 1
    if odd.any():
        raise InputError(
            f"array is not the hexagonal one of Visium: row + column is odd for {int(odd.sum())} of {len(odd)} spots",
            file=path,
            field="array_row, array_col",
            value=str(odd.idxmax()),
        )


def scale_factors(root: Path, more: tuple[str, ...] = (), *, prefix: str = "") -> tuple[dict[str, float], Path]:
    """Return the numbers of the scale factors' file, empty where there is none; ``more``: names that Visium HD adds."""
    path = next(iter(_spatial(root, SCALE_FACTORS, prefix) or _packed(root, SCALE_FACTORS)), None)
    path = path or root / "spatial" / SCALE_FACTORS
    if not path.is_file():
        return {}, path
    with unpacked(path) as plain:
        content = read_json(plain)
    if not isinstance(content, dict):
        raise InputError(
            "has no scale factors", file=path, expected='{"spot_diameter_fullres": ..., "tissue_hires_scalef": ...}'
        )
    if "bin_size_um" in content and "bin_size_um" not in more:
        raise InputError(
            "is Visium HD, but its folder is not named after the bins",
            file=path,
            field="bin_size_um",
            value=content["bin_size_um"],
            fix=f"rename {root.name} to square_{int(content['bin_size_um']):03d}um"
            if isinstance(content["bin_size_um"], (int, float))
            else None,
        )
    factors = {}
    for name in (*FACTORS, *more):
        value = content.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
            raise InputError("scale factor is not a positive number", file=path, field=name, value=value)
        factors[name] = float(value)
    return factors, path


# Images.


def best_image(
    files: SectionFiles,
    root: Path,
    factors: dict[str, float],
    *,
    candidates: list[Path] | None = None,
    coords: np.ndarray | None = None,
) -> tuple[ImageSource | None, list[Path], list[Carried]]:
    """Return the full-resolution image, else a reduced one; its file; and reduced ones to compare the full one with.

    Parameters
    ----------
    root
        The folder that holds ``spatial/`` with the reduced images.
    candidates
        Images that may be the full-resolution one; default: those in ``root`` and beside it.
    coords
        Spot centres, by which a reduced image that has lost its fellows is known.

    Raises
    ------
    InputError
        If several may be the one, or the one is not of the size that the reduced images say.
    """
    if files.counts_only:
        return None, [], []
    given, full = files.image, None
    if given is None:
        candidates = _full_images(root, files.id, files.part) if candidates is None else candidates
        if len(candidates) > 1:  # as 10x names them: the microscope's image beside the CytAssist's
            candidates = [path for path in candidates if path.stem.endswith("tissue_image")] or candidates
        if len(candidates) > 1:
            raise InputError(
                "folder holds several images that may be the full-resolution one",
                file=root,
                value=[path.name for path in candidates],
                setting="image",
            )
        full = next(iter(candidates), None)
    small = _small_images(root, factors, prefix=files.part, needed=given is None and full is None)
    if given is not None and not given.exists():
        raise InputError("the given image does not exist", file=root, field="image", value=str(given))
    path = given or full
    for reduced, scale, _ in small:
        if path is None or path.samefile(reduced):
            return ScaledImage(open_image(reduced), scale), [reduced], []
    if path is None:
        return None, [], []
    pictures = [Carried(reduced.name, open_image(reduced), scale) for reduced, scale, _ in small]
    image = at_own_scale(open_image(path), pictures, factors, coords)
    if small and not alike((image.width, image.height), small[0][2]):
        reduced, _, (width, height) = small[0]
        raise InputError(
            "image is not the one that the coordinates refer to",
            file=path,
            value=f"{image.width} x {image.height} px",
            expected=f"about {width:.0f} x {height:.0f} px by {reduced.name} and its scale factor",
            fix="give the microscope's image, which Space Ranger was run on, and not the CytAssist's, as `image:`",
        )
    return image, [path], pictures


def _small_images(
    root: Path, factors: dict[str, float], *, prefix: str = "", needed: bool
) -> list[tuple[Path, float, tuple[float, float]]]:
    """Return reduced images: file, scale, and the full-resolution size that both imply; these must agree."""
    small = []
    for name, file in SMALL_IMAGES:
        path = next(iter(_spatial(root, file, prefix)), root / "spatial" / file)
        field = f"tissue_{name}_scalef"
        scale = factors.get(field)
        if not path.is_file():
            continue
        if scale is None:
            if needed and not small:
                raise InputError(
                    f"scale factor of {file} is missing, so that its pixels cannot be joined to spots",
                    file=root / "spatial" / SCALE_FACTORS,
                    field=field,
                )
            continue
        if scale > 1:
            raise InputError(
                "scale factor enlarges",
                file=root / "spatial" / SCALE_FACTORS,
                field=field,
                value=scale,
                expected="at most 1",
            )
        image = open_image(path)
        small.append((path, scale, (image.width / scale, image.height / scale)))
    if len(small) == 2 and not alike(small[0][2], small[1][2]):
        (path, _, (width, height)), (other, _, (other_width, other_height)) = small
        raise InputError(
            f"image size contradicts its scale factor: it makes a slide of {width:.0f} x {height:.0f} px, "
            f"where {other.name} makes {other_width:.0f} x {other_height:.0f} px",
            file=path,
            fix="take spatial/ whole from one Space Ranger run",
        )
    return small


FORMAT = Format(
    layout="Space Ranger's output (spatial/ and filtered_feature_bc_matrix.h5)",
    recognises=_recognises,
    sections_in=_sections_in,
    read=load_space_ranger,
    inputs=_inputs,
)
