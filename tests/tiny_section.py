"""Writes small good sections, to be read, changed and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PITCH_PX, PITCH_UM = 50, 200.0  # 4 um per pixel, an ST array


def write_tiny_section(
    folder: Path, section: str = "A", patient: str = "P1", n_side: int = 6, n_genes: int = 30, seed: int = 0
) -> Path:
    """Write ``n_side`` x ``n_side`` spots, 200 um apart at 4 um per pixel, on pink tissue with dark nuclei.

    Two sections of different names differ in counts and pixels even where the seed is the same.
    """
    import anndata
    import pandas as pd
    from PIL import Image
    from scipy import sparse

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *section.encode()])
    side = (n_side + 1) * PITCH_PX
    pixels = np.clip(rng.normal((226, 160, 196), 8, (side, side, 3)), 0, 255)
    for x, y in rng.integers(6, side - 6, (n_side * n_side * 6, 2)):
        pixels[y - 3 : y + 4, x - 3 : x + 4] = rng.normal((96, 62, 140), 6, (7, 7, 3))
    border = PITCH_PX // 3
    pixels[:border], pixels[-border:], pixels[:, :border], pixels[:, -border:] = 244, 244, 244, 244
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{section}.png")

    columns, rows = (axis.ravel() for axis in np.meshgrid(np.arange(n_side), np.arange(n_side)))
    rates = rng.gamma(2.0, 6.0, n_genes) * rng.gamma(4.0, 0.25, (n_side * n_side, 1))
    adata = anndata.AnnData(
        sparse.csr_matrix(rng.poisson(rates).astype(np.float32)),
        obs=pd.DataFrame(
            {"array_row": rows, "array_col": columns, "in_tissue": 1, "section": section, "patient": patient},
            index=pd.Index([f"{x}x{y}" for x, y in zip(columns, rows, strict=True)], name="barcode"),
        ),
        var=pd.DataFrame(
            {"symbol": [f"GENE{number}" for number in range(n_genes)]},
            index=pd.Index([f"ENSG{number:011d}" for number in range(n_genes)], name="gene_id"),
        ),
    )
    adata.obsm["spatial"] = np.column_stack([columns + 1, rows + 1]) * float(PITCH_PX)
    adata.uns["technology"] = "Spatial Transcriptomics"
    adata.uns["spatial"] = {
        section: {
            "metadata": {
                "source_image_path": f"{section}.png",
                "fullres_width": side,
                "fullres_height": side,
                "pixel_size_um": PITCH_UM / PITCH_PX,
            }
        }
    }
    path = folder / f"{section}.h5ad"
    adata.write_h5ad(path)
    return path
