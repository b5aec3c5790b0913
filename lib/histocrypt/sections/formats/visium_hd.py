"""Visium HD: square bins of 2, 8 and 16 um, as they are or summed to bins of a stated size.

A run holds ``binned_outputs/square_002um``, ``square_008um`` and ``square_016um``, each with
``filtered_feature_bc_matrix.h5``, ``spatial/tissue_positions.parquet`` (barcode, in_tissue, array_row, array_col,
pxl_row_in_fullres, pxl_col_in_fullres) and ``spatial/scalefactors_json.json`` (``bin_size_um``,
``microns_per_pixel``, ``spot_diameter_fullres``, ``tissue_hires_scalef``, ...). A bin is called by its place:
``s_008um_00301_00321-1`` is row 301, column 321. Layout by 10x Genomics, "Space Ranger Spatial Outputs",
https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/spatial-outputs.

A run is read in bins of 16 um unless ``bin_um:`` says otherwise; ``square_008um`` named itself is read as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.sections.formats import space_ranger
from histocrypt.sections.identity import safe_id
from histocrypt.sections.pooling import lattice_section, pooled_counts, square_metadata
from histocrypt.sections.section import Format, Loaded, SectionFiles
from histocrypt.sections.stores import unpacked
from histocrypt.sections.tables import is_parquet

SQUARE = re.compile(r"^square_(\d{3})um$")
DEFAULT_UM = 16
"""Bins of a run where none are asked for: the coarsest that Space Ranger writes, with counts like a small spot's."""
MATRIX = "filtered_feature_bc_matrix.h5"
POSITIONS = tuple(
    f"{name}{end}"
    for name in ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
    for end in ("", ".gz")
)
MAX_SIDE = 8192
"""Rows or columns of an array: one of 11 mm has 5,500 of 2 um."""


def squares_in(folder: Path) -> dict[int, Path]:
    """Return bin size in um -> the folder of these bins, for a run, its ``binned_outputs``, or one such folder."""
    if _is_square(folder):
        return {int(SQUARE.match(folder.absolute().name)[1]): folder}
    for root in (folder, folder / "binned_outputs", folder / "outs", folder / "outs" / "binned_outputs"):
        found = {int(SQUARE.match(path.name)[1]): path for path in root.glob("square_*um") if _is_square(path)}
        if found:
            return dict(sorted(found.items()))
    return {}


def _is_square(folder: Path) -> bool:
    holds = (folder / name for name in ("spatial", MATRIX, MATRIX.removesuffix(".h5")))
    return SQUARE.match(folder.absolute().name) is not None and any(path.exists() for path in holds)


def _runs(folder: Path) -> list[Path]:
    if squares_in(folder):
        return [folder]
    return [path for path in sorted(folder.glob("[!.]*")) if squares_in(path)] if folder.is_dir() else []


def _recognises(path: Path) -> bool:
    """Return whether a folder is a run, or holds runs and no Visium of spots, which `space_ranger` then names."""
    if squares_in(path):
        return True
    return bool(_runs(path)) and not any(map(space_ranger.is_spots, path.glob("[!.]*")))


def _sections_in(folder: Path) -> list[SectionFiles]:
    """Return the one section of each run; its id is the nearest folder's name that is not Space Ranger's own."""
    sections = []
    for run in _runs(folder):
        place = run.absolute()
        while place.name in {"outs", "binned_outputs"} or SQUARE.match(place.name):
            place = place.parent
        sections.append(SectionFiles(safe_id(place.name), "visium_hd", run))
    return sections


@dataclass(frozen=True)
class Bins:
    """The bins that are read, and how they are summed."""

    folder: Path
    side_um: int
    """Side of a bin in the files."""
    fold: int
    """Bins of the files along the side of a bin of the section."""

    @property
    def positions(self) -> Path:
        """The table of positions."""
        spatial = self.folder / "spatial"
        found = [path for name in POSITIONS if (path := spatial / name).is_file()]
        if not found:
            raise InputError("bin positions are missing", file=spatial, expected=POSITIONS[0])
        return found[0]


def bins_for(folder: Path, bin_um: float | None) -> Bins:
    """Return the coarsest bins of a folder that sum exactly to ``bin_um``.

    Raises
    ------
    InputError
        If none do, or there are no bins with counts.
    """
    squares = {side: path for side, path in squares_in(folder).items() if (path / MATRIX).is_file()}
    if not squares:
        raise InputError(
            "filtered count matrix is missing", file=folder, expected=f"{MATRIX} in square_008um or another square_*um"
        )
    named = SQUARE.match(folder.absolute().name)
    wanted = bin_um if bin_um is not None else (min(squares) if named or min(squares) > DEFAULT_UM else DEFAULT_UM)
    for side in sorted(squares, reverse=True):
        fold = round(wanted / side)
        if fold >= 1 and abs(fold * side - wanted) < 1e-9:
            return Bins(squares[side], side, fold)
    raise InputError(
        f"bins of {wanted:g} um cannot be made of what is there",
        file=folder,
        field="bin_um",
        value=wanted,
        expected="a multiple of " + " or ".join(f"{side}" for side in squares) + " um",
        setting="bin_um",
    )


def load_visium_hd(files: SectionFiles) -> Loaded:
    """Read counts, positions and scale factors of the bins, and the best image at hand."""
    bins = bins_for(files.path, files.bin_um)
    factors, factors_path = _scale_factors(bins)
    matrix, positions = bins.folder / MATRIX, bins.positions
    grid = _grid(positions, bins)
    width = grid.shape[2]

    def square_of(barcodes: np.ndarray) -> np.ndarray:
        row, column = _places(barcodes, bins, matrix)
        row, column = row // bins.fold, column // bins.fold
        bad = (row >= grid.shape[1]) | (column >= width)
        bad[~bad] = np.isnan(grid[0, row[~bad], column[~bad]])
        if bad.any():
            raise InputError(
                "bins of the count matrix have no position",
                file=positions,
                field="barcode",
                value=barcodes[bad.argmax()].decode(),
                fix="take both from one Space Ranger run",
            )
        return row * width + column

    counts, squares, genes, left_out = pooled_counts(matrix, square_of)
    row, column = np.divmod(squares, width)
    side = bins.side_um * bins.fold
    adata = lattice_section(counts, genes, row, column, np.ascontiguousarray(grid[:, row, column].T), side_um=side)
    image, image_files, pictures = space_ranger.best_image(
        files,
        _with_small_images(bins.folder),
        factors,
        candidates=_full_images(files.path),
        coords=adata.obsm["spatial"],
    )
    um_per_px, field = factors.get("microns_per_pixel"), f"{factors_path.name}: microns_per_pixel"
    if um_per_px is None and "spot_diameter_fullres" in factors:
        um_per_px = bins.side_um / factors["spot_diameter_fullres"]
        field = f"{factors_path.name}: spot_diameter_fullres ({bins.side_um} um)"
    adata.uns["spatial"] = {files.id: {"scalefactors": factors, "metadata": square_metadata(float(side))}}
    summed = f", {bins.fold} x {bins.fold} bins summed to {side} um" if bins.fold > 1 else f", bins of {side} um"
    return Loaded(
        adata,
        image,
        None,
        [matrix, positions, *([factors_path] if factors else []), *image_files],
        um_per_px=um_per_px,
        um_field=field,
        pitch_um=float(side),
        bin_um=float(side),
        technology="Visium HD",
        image_note="" if image is not None else f"image is missing: none beside {files.path} and none in spatial/",
        pictures=pictures,
        notes=[f"{matrix}: features that are no genes were left out: {left_out}."] if left_out else [],
        origins={
            "counts": f"{bins.folder.name}/{MATRIX}{summed}",
            "spots": f"{bins.folder.name}/spatial/{positions.name}",
        },
    )


def _inputs(files: SectionFiles) -> list[Path]:
    bins = bins_for(files.path, files.bin_um)
    spatial = _with_small_images(bins.folder) / "spatial"
    small = [spatial / name for _, name in space_ranger.SMALL_IMAGES]
    images = [files.image] if files.image else _full_images(files.path)
    factors = bins.folder / "spatial" / space_ranger.SCALE_FACTORS
    return sorted(
        {bins.folder / MATRIX, bins.positions, *images, *(path for path in (*small, factors) if path.is_file())}
    )


def _scale_factors(bins: Bins) -> tuple[dict[str, float], Path]:
    factors, path = space_ranger.scale_factors(bins.folder, ("bin_size_um", "microns_per_pixel"))
    if factors.get("bin_size_um", bins.side_um) != bins.side_um:
        raise InputError(
            f"gives another bin size than the folder {bins.folder.name}",
            file=path,
            field="bin_size_um",
            value=factors["bin_size_um"],
            expected=f"{bins.side_um}",
        )
    return factors, path


def _places(barcodes: np.ndarray, bins: Bins, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column that barcodes, bytes (n,), say."""
    text = np.frombuffer(np.ascontiguousarray(barcodes).tobytes(), dtype=np.uint8).reshape(len(barcodes), -1)
    start = f"s_{bins.side_um:03d}um_".encode()
    fits = text.shape[1] >= 21 and (text[:, :8] == np.frombuffer(start, np.uint8)).all(axis=1)
    digits = text[:, [8, 9, 10, 11, 12, 14, 15, 16, 17, 18]] - ord("0") if text.shape[1] >= 21 else text
    fits = fits & (digits <= 9).all(axis=1) if text.shape[1] >= 21 else np.zeros(len(barcodes), dtype=bool)
    if not np.all(fits):
        raise InputError(
            f"barcode is not that of a bin of {bins.side_um} um",
            file=path,
            field="barcode",
            value=bytes(barcodes[np.argmin(fits)]).decode(errors="replace"),
            expected=f"{start.decode()}00000_00000-1",
        )
    power = 10 ** np.arange(4, -1, -1, dtype=np.int64)
    return digits[:, :5].astype(np.int64) @ power, digits[:, 5:].astype(np.int64) @ power


def _grid(path: Path, bins: Bins) -> np.ndarray:
    """Return x and y of the centre of every bin of the section, float64 (2, rows, columns); NaN where there is none.

    The centre of summed bins is the mean of their centres.
    """
    size = MAX_SIDE // bins.fold + 1
    sums, seen = np.zeros((2, size * size)), np.zeros(size * size, dtype=np.int32)
    rows = columns = 0
    for table in _tables(path):
        row, column = (table[name].to_numpy() for name in ("array_row", "array_col"))
        said = _places(table["barcode"].to_numpy().astype("S"), bins, path)
        if (said[0] != row).any() or (said[1] != column).any():
            wrong = ((said[0] != row) | (said[1] != column)).argmax()
            raise InputError(
                "array row and column are not those of the barcode",
                file=path,
                field="array_row, array_col",
                value=f"{row[wrong]}, {column[wrong]} for {table['barcode'].iloc[wrong]}",
            )
        if row.max() >= MAX_SIDE or column.max() >= MAX_SIDE:
            raise InputError(
                "array is larger than any slide", file=path, field="array_row, array_col", value=int(row.max())
            )
        place = (row // bins.fold) * size + column // bins.fold
        for axis, name in enumerate(("pxl_col_in_fullres", "pxl_row_in_fullres")):  # x is the column
            np.add.at(sums[axis], place, table[name].to_numpy(dtype=float))
        np.add.at(seen, place, 1)
        rows, columns = max(rows, int(row.max()) // bins.fold + 1), max(columns, int(column.max()) // bins.fold + 1)
    seen = seen.reshape(size, size)[:rows, :columns]
    if seen.max(initial=0) > bins.fold**2:
        raise InputError("bin appears twice", file=path, field="barcode")
    with np.errstate(invalid="ignore"):
        return sums.reshape(2, size, size)[:, :rows, :columns] / seen


def _tables(path: Path):
    """Yield the table of positions in parts, checked to be numbers."""
    if is_parquet(path):
        import pyarrow.parquet as pq

        how = reading("is not readable as parquet", OSError, ValueError, file=path)
        with how, unpacked(path) as plain, pq.ParquetFile(plain) as file:
            space_ranger.check_columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(2**19, columns=list(space_ranger.COLUMNS)):
                yield space_ranger.checked_positions(batch.to_pandas(), path)
    else:
        yield space_ranger.read_positions(path).reset_index()


def _full_images(folder: Path) -> list[Path]:
    """Return the images beside the bins, of the whole run, and beside its ``outs``."""
    places, place = [], folder.absolute()
    for root in (place, place / "outs"):
        places += [root] if root.is_dir() else []
    while place.name in {"outs", "binned_outputs"} or SQUARE.match(place.name):
        place = place.parent
        places.append(place)
    return [image for root in dict.fromkeys(places) for image in space_ranger.images_in(root)]


def _with_small_images(folder: Path) -> Path:
    """Return the bins' folder, or the run's, whichever has ``spatial/tissue_hires_image.png``."""
    roots = (folder, folder.absolute().parent, folder.absolute().parent.parent)
    return next(
        (root for root in roots if any((root / "spatial" / name).is_file() for _, name in space_ranger.SMALL_IMAGES)),
        folder,
    )


FORMAT = Format(
    layout="Visium HD's output (binned_outputs/square_008um with filtered_feature_bc_matrix.h5 and spatial/)",
    recognises=_recognises,
    sections_in=_sections_in,
    read=load_visium_hd,
    inputs=_inputs,
)
