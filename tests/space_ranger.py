"""Writes small folders in exactly the layout of Space Ranger's output."""

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy import sparse
from scipy.io import mmwrite

PITCH_PX = 40.0  # 100 um: 2.5 um a pixel
UM_PER_PX = 100 / PITCH_PX
ROWS, COLUMNS = 12, 10
HEADER = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
WIDTH, HEIGHT = 480, 460


def lattice() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return barcodes, array (row, col) and pixel (row, col) of the whole slide: as on Visium, col steps by two."""
    index = np.array([(row, 2 * col + row % 2) for row in range(ROWS) for col in range(COLUMNS)])
    barcodes = ["".join("ACGT"[number // 4**place % 4] for place in range(16)) + "-1" for number in range(len(index))]
    pixels = np.column_stack([30 + index[:, 0] * PITCH_PX * np.sqrt(3) / 2, 40 + index[:, 1] * PITCH_PX / 2])
    return barcodes, index, pixels


def tissue(seed: int = 0) -> np.ndarray:
    """Return a full-resolution picture, uint8 (HEIGHT, WIDTH, 3): pink tissue with dark nuclei on white."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal((226, 160, 196), 8, (HEIGHT, WIDTH, 3)), 0, 255)
    for x, y in rng.integers(15, (WIDTH - 15, HEIGHT - 15), (500, 2)):
        pixels[y - 3 : y + 4, x - 3 : x + 4] = (96, 62, 140)
    pixels[:10], pixels[-10:], pixels[:, :10], pixels[:, -10:] = 244, 244, 244, 244
    return pixels.astype(np.uint8)


def write_space_ranger(
    folder: Path,
    *,
    positions: str = "v2",
    matrix: str = "h5",
    image: bool = True,
    off_tissue: int = 0,
    hires_scale: float = 0.5,
    seed: int = 0,
) -> Path:
    """Write one run and return the folder that a user would name.

    Parameters
    ----------
    positions
        ``v1`` (no header), ``v2`` (header) or ``parquet``.
    matrix
        ``h5``, ``mtx.gz``, ``mtx`` (gunzipped), ``legacy`` (``genes.tsv``), or ``both`` (h5 and mtx.gz).
    image
        Whether the full-resolution ``image.tif`` is there.
    off_tissue
        How many spots of the matrix are not in tissue: Space Ranger's own matrix has none.
    """
    folder = Path(folder)
    spatial = folder / "spatial"
    spatial.mkdir(parents=True, exist_ok=True)
    barcodes, index, pixels = lattice()
    inside = np.ones(len(barcodes), bool)
    inside[-COLUMNS:] = False  # the last row lies beside the tissue
    marked = inside.copy()
    marked[:off_tissue] = False
    rows = [
        f"{name},{int(mark)},{row},{col},{y:.6f},{x:.6f}"
        for name, mark, (row, col), (y, x) in zip(barcodes, marked, index, pixels, strict=True)
    ]
    if positions == "v1":
        (spatial / "tissue_positions_list.csv").write_text("\n".join(rows) + "\n")
    elif positions == "v2":
        (spatial / "tissue_positions.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    else:
        import pandas as pd

        table = pd.DataFrame([row.split(",") for row in rows], columns=HEADER.split(","))
        numbers = {name: float if name.startswith("pxl") else int for name in HEADER.split(",")[1:]}
        table.astype(numbers).to_parquet(spatial / "tissue_positions.parquet")

    rng = np.random.default_rng(seed)
    genes = 30
    rates = rng.gamma(2.0, 6.0, genes) * rng.gamma(4.0, 0.25, (int(inside.sum()), 1))
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.int32))
    names = [name for name, kept in zip(barcodes, inside, strict=True) if kept]
    order = rng.permutation(len(names))  # the matrix has an order of its own
    names, counts = [names[number] for number in order], counts[order]
    features = [(f"ENSG{number:011d}", f"GENE{number // 2}", "Gene Expression") for number in range(genes)]
    features.append(("CD3-protein", "CD3", "Antibody Capture"))
    counts = sparse.hstack([counts, sparse.csr_matrix(np.full((len(names), 1), 7, np.int32))], format="csr")
    if matrix in {"h5", "both"}:
        write_h5(folder / "filtered_feature_bc_matrix.h5", names, features, counts)
    if matrix != "h5":
        write_mtx(folder / "filtered_feature_bc_matrix", names, features, counts, form=matrix)

    full = tissue(seed)
    if image:
        Image.fromarray(full).save(folder / "image.tif")
    scales = {"hires": hires_scale, "lowres": hires_scale / 2}
    for name, scale in scales.items():
        size = (round(WIDTH * scale), round(HEIGHT * scale))
        Image.fromarray(full).resize(size, Image.Resampling.BOX).save(spatial / f"tissue_{name}_image.png")
    factors = {"spot_diameter_fullres": 65 / UM_PER_PX, "fiducial_diameter_fullres": 105 / UM_PER_PX}
    factors |= {f"tissue_{name}_scalef": scale for name, scale in scales.items()}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    return folder


def write_h5(path: Path, names, features, counts) -> None:
    """Write 10x's HDF5: features x barcodes, compressed by column, which is spots x features by row."""
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(names, dtype="S")
        matrix["shape"] = np.array([counts.shape[1], counts.shape[0]], dtype=np.int32)
        for name in ("data", "indices", "indptr"):
            dtype = np.int32 if name == "data" else np.int64
            matrix[name] = getattr(counts, name).astype(dtype)
        group = matrix.create_group("features")
        for name, place in (("id", 0), ("name", 1), ("feature_type", 2)):
            group[name] = np.array([feature[place] for feature in features], dtype="S")
        group["genome"] = np.array(["GRCh38"] * len(features), dtype="S")
        group["_all_tag_keys"] = np.array([b"genome"])


def write_mtx(folder: Path, names, features, counts, *, form: str) -> None:
    """Write a folder of matrix, features and barcodes."""
    folder.mkdir(parents=True)
    table = "\n".join("\t".join(row[:2] if form == "legacy" else row) for row in features) + "\n"
    texts = {"genes.tsv" if form == "legacy" else "features.tsv": table, "barcodes.tsv": "\n".join(names) + "\n"}
    mmwrite(folder / "matrix.mtx", counts.T.tocoo(), field="integer")
    texts["matrix.mtx"] = (folder / "matrix.mtx").read_text()
    for name, text in texts.items():
        if form in {"mtx", "legacy"}:
            (folder / name).write_text(text)
        else:
            (folder / name).unlink(missing_ok=True)
            with gzip.open(folder / f"{name}.gz", "wt") as file:
                file.write(text)
