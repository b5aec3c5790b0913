"""Writes small runs in the layout of Xenium, with an H&E image and its alignment matrix."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from tests.space_ranger import write_h5
from tests.visium_hd import he

PIXEL_UM = 0.2125
HE_UM = 0.5
"""Micrometres per pixel of the H&E image."""
WIDTH_UM, HEIGHT_UM = 640.0, 480.0
GENES = 10
KINDS = ("Negative Control Probe", "Unassigned Codeword", "Protein Expression")


def alignment() -> np.ndarray:
    """Return H&E pixels -> morphology pixels: a quarter turn, as where the slide lay across in the scanner."""
    scale = HE_UM / PIXEL_UM
    return np.array([[0, scale, -20.0], [-scale, 0, HEIGHT_UM / PIXEL_UM + 60.0], [0, 0, 1]])


def truth(cells=900, seed=0):
    """Return centroids in um, (n, 2) x and y, and counts (n, genes)."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform((30, 30), (WIDTH_UM - 30, HEIGHT_UM - 30), (cells, 2))
    return centres, rng.poisson(2.0, (cells, GENES))


def write_xenium(folder: Path, *, prefix="", cells="parquet", image=True, seed=0) -> Path:
    """Write one run and return its folder; ``cells``: ``parquet``, ``csv.gz`` or ``csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    centres, counts = truth(seed=seed)
    names = [f"c{number:05d}-1" for number in range(len(centres))]
    table = pd.DataFrame({"cell_id": names, "x_centroid": centres[:, 0], "y_centroid": centres[:, 1]})
    table["transcript_counts"] = counts.sum(axis=1)
    path = folder / f"{prefix}cells.{cells}"
    if cells == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    features = [(f"ENSG{number:011d}", f"GENE{number}", "Gene Expression") for number in range(GENES)]
    features += [(f"odd_{kind[:3]}", f"odd_{kind[:3]}", kind) for kind in KINDS]
    values = np.column_stack([counts, np.full((len(counts), len(KINDS)), 5)])
    order = np.random.default_rng(1).permutation(len(names))
    write_h5(
        folder / f"{prefix}cell_feature_matrix.h5",
        [names[k] for k in order],
        features,
        sparse.csr_matrix(values[order]),
    )
    (folder / f"{prefix}experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL_UM, "run_name": "r"}))
    if image:
        # After the quarter turn, the H&E image is as wide as the morphology image is high.
        he(round(HEIGHT_UM / HE_UM) + 60, round(WIDTH_UM / HE_UM) + 60, seed).save(folder / f"{prefix}he_image.ome.tif")
        np.savetxt(folder / f"{prefix}he_imagealignment.csv", alignment(), delimiter=",")
    return folder
