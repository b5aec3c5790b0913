"""Writes small runs in the layout of Visium HD: bins of 2, 8 and 16 um of one lattice."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse
from tests.space_ranger import write_h5

UM_PER_PX = 0.5
SIDE_2UM = 96
"""Bins of 2 um along a side: 192 um, 12 bins of 16 um."""
GENES = 12
TURN = np.deg2rad(1.5)


def centre_px(row, column, side_um):
    """Return x, y in full-resolution pixels of bin centres: the array lies a little turned on the image."""
    along = (np.column_stack([column, row]) + 0.5) * side_um / UM_PER_PX
    turn = np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])
    return along @ turn.T + (20, 12)


def truth(seed=0):
    """Return counts of 2 um bins, int (rows, columns, genes), and which of them lie in tissue."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.3, (SIDE_2UM, SIDE_2UM, GENES))
    row, column = np.indices(counts.shape[:2])
    return counts, (row - SIDE_2UM / 2) ** 2 + (column - SIDE_2UM / 2) ** 2 < (0.45 * SIDE_2UM) ** 2


def summed(values, fold):
    """Return sums over squares of ``fold`` x ``fold`` bins."""
    side = values.shape[0] // fold
    return values[: side * fold, : side * fold].reshape(side, fold, side, fold, -1).sum(axis=(1, 3))


def write_visium_hd(folder: Path, *, sides=(2, 8, 16), image=True, seed=0) -> Path:
    """Write ``binned_outputs/square_*um`` of the given bin sizes, and return the folder."""
    counts, tissue = truth(seed)
    counts = counts * tissue[..., None]
    features = [(f"ENSG{number:011d}", f"GENE{number}", "Gene Expression") for number in range(GENES)]
    features.append(("CD3-protein", "CD3", "Antibody Capture"))
    for side in sides:
        own = folder / "binned_outputs" / f"square_{side:03d}um"
        (own / "spatial").mkdir(parents=True)
        fold = side // 2
        inside = summed(tissue[..., None].astype(int), fold)[..., 0] > 0
        row, column = (index.ravel() for index in np.indices(inside.shape))
        pixels = centre_px(row, column, side)
        names = np.array([f"s_{side:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)])
        table = {"barcode": names, "in_tissue": inside.ravel().astype(int), "array_row": row, "array_col": column}
        table |= {"pxl_row_in_fullres": pixels[:, 1], "pxl_col_in_fullres": pixels[:, 0]}
        pd.DataFrame(table).to_parquet(own / "spatial" / "tissue_positions.parquet")
        kept = np.random.default_rng(1).permutation(np.flatnonzero(inside.ravel()))
        values = summed(counts, fold).reshape(len(row), -1)[kept]
        values = np.column_stack([values, np.full(len(kept), 7)])
        write_h5(own / "filtered_feature_bc_matrix.h5", names[kept], features, sparse.csr_matrix(values))
        factors = {
            "bin_size_um": float(side),
            "microns_per_pixel": UM_PER_PX,
            "spot_diameter_fullres": side / UM_PER_PX,
        }
        factors |= {"tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.125}
        (own / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        picture = he(440, 420, seed)
        for name, scale in (("hires", 4), ("lowres", 8)):
            small = picture.resize((440 // scale, 420 // scale), Image.Resampling.BOX)
            small.save(own / "spatial" / f"tissue_{name}_image.png")
    if image:
        he(440, 420, seed).save(folder / "Sample_tissue_image.tif")
    return folder


def he(width, height, seed=0) -> Image.Image:
    """Return a picture like H&E."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal((226, 160, 196), 8, (height, width, 3)), 0, 255)
    for x, y in rng.integers(4, (width - 4, height - 4), (300, 2)):
        pixels[y - 3 : y + 4, x - 3 : x + 4] = (96, 62, 140)
    return Image.fromarray(pixels.astype(np.uint8))
