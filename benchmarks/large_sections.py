"""Sections larger than most: what making and reading them costs.

    python benchmarks/large_sections.py [FOLDER] [--kinds hd xenium strips pyramid] [--bins 500000] [--cells 500000]
                                        [--strips 24000 20000] [--pyramid-gib 4] [--json]

- ``hd``: Visium HD, so many bins of 8 um on tissue, 18,000 genes, on a pyramid
- ``xenium``: so many cells, 400 genes, summed over squares of 100 um, on a pyramid with its alignment matrix
- ``strips``: a plain TIFF of strips, uncompressed and without smaller levels
- ``pyramid``: a tiled pyramid whose pixels take so many GiB

Each is made in one process and read in another: ``hd`` and ``xenium`` as ``histocrypt check`` reads them, with all
counts and the check of registration; ``strips`` and ``pyramid`` as notebook 20 does, with tissue mask, alignment, stain
and 1,000 tiles. Without FOLDER what was made is deleted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pyramid import SIDE, UM_PER_PX, Slide, read, write_pyramid, write_spots

from histocrypt.machine import peak_gib

KINDS = {"hd": "Visium HD", "xenium": "Xenium", "strips": "strip TIFF", "pyramid": "pyramid"}
BIN_UM = 8
HD_GENES, XENIUM_GENES = 18_000, 400
HD_VALUES, XENIUM_VALUES = 150, 80
"""Counts of a bin and of a cell that are not zero."""
CELLS_PER_MM2 = 10_000
MORPHOLOGY_UM = 0.2125
"""Pixel of Xenium's morphology image."""
TISSUE_SHARE = 0.33
"""Of a slide, a little less than there is."""
SPOTS = 1000
PIECE = 20_000
"""Barcodes whose counts are written at once."""


def write_counts(path: Path, barcodes: np.ndarray, genes: int, values: int) -> None:
    """Write a 10x count matrix with so many different genes for each barcode, piece by piece."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = barcodes
        matrix["shape"] = np.array([genes, len(barcodes)])
        matrix["indptr"] = np.arange(len(barcodes) + 1, dtype=np.int64) * values
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{number:011d}" for number in range(genes)], dtype="S")
        features["name"] = np.array([f"GENE{number}" for number in range(genes)], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * genes, dtype="S")
        features["genome"] = np.array(["GRCh38"] * genes, dtype="S")
        how = {"shape": (len(barcodes) * values,), "chunks": (2**16,), "compression": "gzip", "compression_opts": 1}
        data, indices = (matrix.create_dataset(name, dtype=kind, **how) for name, kind in
                         (("data", np.int32), ("indices", np.int64)))  # fmt: skip
        for first in range(0, len(barcodes), PIECE):
            rows = min(PIECE, len(barcodes) - first)
            # One gene of each of as many stretches: all different, and in order.
            edges = np.arange(values + 1) * genes // values
            place = slice(first * values, (first + rows) * values)
            indices[place] = rng.integers(edges[:-1], edges[1:], (rows, values)).ravel()
            data[place] = rng.geometric(0.6, rows * values)


def make_hd(folder: Path, bins: int) -> None:
    """Write a run with bins of 8 um."""
    import pandas as pd

    step = BIN_UM / UM_PER_PX
    side = int(np.ceil(np.sqrt(bins / TISSUE_SHARE)))
    slide = Slide(round(side * step), round(side * step))
    own = folder / "run" / "binned_outputs" / f"square_{BIN_UM:03d}um"
    (own / "spatial").mkdir(parents=True)
    write_pyramid(folder / "run" / "slide_image.tif", slide)
    row, column = (index.ravel() for index in np.indices((side, side)))
    x, y = (column + 0.5) * step, (row + 0.5) * step
    names = np.array([f"s_{BIN_UM:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)], dtype="S")
    chosen = np.flatnonzero(slide.tissue(x / SIDE, y / SIDE))[:bins]
    inside = np.zeros(len(names), dtype=int)
    inside[chosen] = 1
    table = {"barcode": names.astype(str), "in_tissue": inside, "array_row": row, "array_col": column}
    table |= {"pxl_row_in_fullres": y, "pxl_col_in_fullres": x}
    pd.DataFrame(table).to_parquet(own / "spatial" / "tissue_positions.parquet")
    factors = {"bin_size_um": float(BIN_UM), "microns_per_pixel": UM_PER_PX, "spot_diameter_fullres": step}
    (own / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    write_counts(own / "filtered_feature_bc_matrix.h5", names[chosen], HD_GENES, HD_VALUES)


def make_xenium(folder: Path, cells: int) -> None:
    """Write a run with cells all over the tissue, and its H&E image."""
    import pandas as pd

    side = round(np.sqrt(cells / CELLS_PER_MM2 / TISSUE_SHARE) * 1000 / UM_PER_PX)
    slide, rng, run = Slide(side, side), np.random.default_rng(0), folder / "run"
    run.mkdir(parents=True)
    write_pyramid(run / "he_image.tif", slide)
    scale = UM_PER_PX / MORPHOLOGY_UM
    np.savetxt(run / "he_imagealignment.csv", np.diag([scale, scale, 1.0]), delimiter=",")
    places = rng.uniform(0, side, (4 * cells, 2))
    places = places[slide.tissue(*(places / SIDE).T)][:cells]
    names = np.array([f"cell{number:07d}-1" for number in range(len(places))], dtype="S")
    centres = {"x_centroid": places[:, 0] * UM_PER_PX, "y_centroid": places[:, 1] * UM_PER_PX}
    pd.DataFrame({"cell_id": names.astype(str), **centres}).to_parquet(run / "cells.parquet")
    (run / "experiment.xenium").write_text(json.dumps({"pixel_size": MORPHOLOGY_UM}))
    write_counts(run / "cell_feature_matrix.h5", names, XENIUM_GENES, XENIUM_VALUES)


def make_strips(folder: Path, width: int, height: int) -> None:
    """Write a TIFF of strips as high as a tile of the slide, and spots on it."""
    import tifffile

    slide = Slide(width, height)
    tiles = slide.reduced[1]

    def strips():
        for number, textures in enumerate(slide.texture):
            yield tiles[textures].swapaxes(0, 1).reshape(SIDE, -1, 3)[: height - number * SIDE, :width]

    tifffile.imwrite(
        folder / "slide.tif",
        strips(),
        shape=(height, width, 3),
        dtype=np.uint8,
        rowsperstrip=SIDE,
        photometric="rgb",
        resolution=(1e4 / UM_PER_PX, 1e4 / UM_PER_PX),
        resolutionunit="CENTIMETER",
    )
    write_spots(folder / "slide.h5ad", slide, SPOTS)


def make_pyramid(folder: Path, gib: float) -> None:
    """Write a pyramid of 5 to 4, and spots on it."""
    width = round(np.sqrt(gib * 2**30 / 3 * 5 / 4))
    slide = Slide(width, round(width * 4 / 5))
    write_pyramid(folder / "slide.tif", slide)
    write_spots(folder / "slide.h5ad", slide, SPOTS)


def check(folder: Path, bin_um: float | None) -> str:
    """Read a run as ``histocrypt check`` does; return what was found."""
    from histocrypt.explore.registration import laid_otherwise
    from histocrypt.sections.read import read_path

    section = read_path(folder / "run", require_image=True, bin_um=bin_um)
    odd = [*section.notes, laid_otherwise(section)]
    image = f"{section.image.width:,} x {section.image.height:,} px at {section.um_per_px:.3g} µm"
    said = f", {len(list(filter(None, odd)))} notes" if any(odd) else ""
    counts = section.adata.X
    return f"{section.n_spots:,} squares x {counts.shape[1]:,} genes, {counts.nnz / 1e6:.0f} M counts, {image}{said}"


def tiled(folder: Path) -> str:
    """Read a section as notebook 20 does; return what was found."""
    found = read(folder)
    angle = max(found["stain_angle_deg"])
    return f"{found['image']}, {found['pixels_gib']:.1f} GiB, {found['tiles']:,} tiles, stain within {angle:.1f}°"


def done(kind: str, step: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Make or read one section in this process; return what it cost and what was found."""
    start, found = time.perf_counter(), ""
    if step == "make":
        sizes = {
            "hd": [arguments.bins],
            "xenium": [arguments.cells],
            "strips": arguments.strips,
            "pyramid": [arguments.pyramid_gib],
        }
        {"hd": make_hd, "xenium": make_xenium, "strips": make_strips, "pyramid": make_pyramid}[kind](
            folder, *sizes[kind]
        )
    else:
        found = tiled(folder) if kind in ("strips", "pyramid") else check(folder, BIN_UM if kind == "hd" else None)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "section": KINDS[kind],
        "step": step,
        "peak GiB": peak_gib(),
        "CPU s": time.process_time(),
        "wall s": time.perf_counter() - start,
        "disk GiB": size / 2**30,
        "found": found,
    }


def apart(kind: str, step: str, folder: Path, given: list[str]) -> dict[str, object]:
    """Do the same in a process of its own."""
    command = [sys.executable, __file__, str(folder), *given, "--only", kind, step]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where sections are made, and kept")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--bins", type=int, default=500_000)
    parser.add_argument("--cells", type=int, default=500_000)
    parser.add_argument("--strips", type=int, nargs=2, default=(24_000, 20_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--pyramid-gib", type=float, default=4.0, help="of pixels, as they would be in memory")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(done(*arguments.only, arguments.folder, arguments)))
        return
    sizes = [f"--bins={arguments.bins}", f"--cells={arguments.cells}", f"--pyramid-gib={arguments.pyramid_gib}"]
    sizes += ["--strips", *map(str, arguments.strips)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="large-") as scratch:
        for kind in arguments.kinds:
            folder = (arguments.folder or Path(scratch)) / kind
            folder.mkdir(parents=True)
            rows += [apart(kind, step, folder, sizes) for step in ("make", "read")]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'section':<12}{'step':<6}{'peak GiB':>10}{'CPU s':>8}{'wall s':>8}{'disk GiB':>10}  found")
    for row in rows:
        print(
            f"{row['section']:<12}{row['step']:<6}{row['peak GiB']:>10.2f}{row['CPU s']:>8.1f}{row['wall s']:>8.1f}"
            f"{row['disk GiB']:>10.2f}  {row['found']}".rstrip()
        )


if __name__ == "__main__":
    main()
