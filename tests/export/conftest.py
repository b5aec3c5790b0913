"""A prediction of a small section with its slide, written as `histocrypt predict` writes it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from histocrypt.data.load import Spots
from histocrypt.pipeline.predictions import write_predictions
from histocrypt.targets.panels import Panel

GENES = ("ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000000004")
SYMBOLS = ("ACTB", "ERBB2", "TWIN", "TWIN")
TRUST = (0.1, 0.6, None, 0.3)
TRANSFORMS = ("log1p_cp10k", "log1p")
COLUMNS, ROWS, PITCH, UM = 6, 4, 50.0, 2.0


@pytest.fixture
def make(tmp_path):
    """Return what writes a prediction: of spots, or as ``about`` says."""

    def written(name: str = "pred", *, sections: tuple[str, ...] = ("S1",), trust: bool = True, **about):
        slide = tmp_path / "slide.png"
        picture = np.full((260, 360, 3), 240, dtype=np.uint8)
        picture[20:240, 20:340] = (210, 140, 180)
        Image.fromarray(picture).save(slide)
        x, y = (axis.ravel() for axis in np.meshgrid(np.arange(COLUMNS), np.arange(ROWS)))
        coords = np.tile(np.column_stack([x + 0.5, y + 0.5]) * PITCH, (len(sections), 1))
        outputs = tuple(f"{transform}:{gene}" for transform in TRANSFORMS for gene in GENES)
        owners = np.repeat(sections, len(x))
        names = [f"{owner}:{a}x{b}" for owner in sections for a, b in zip(x, y, strict=True)]
        spots = Spots(
            names=np.array(names), sections=owners, patients=np.full(len(owners), "P1"),
            depth=np.full(len(owners), np.nan), outputs=outputs,
        )  # fmt: skip
        values = np.random.default_rng(0).gamma(2.0, 1.0, (len(owners), len(outputs))).astype(np.float32)
        told = {
            "by": "patient", "patients": 2, "sections": 5,
            "correlation": {f"log1p_cp10k:{gene}": value for gene, value in zip(GENES, TRUST, strict=True)},
        }  # fmt: skip
        said = {"model": "knn", "title": "Neighbours", "part": "new", "um_per_px": UM, "image": str(slide)}
        said |= {"spot_diameter_um": 60.0, **about}
        path = tmp_path / f"{name}.h5ad"
        write_predictions(
            path, values, spots=spots, coords=coords, panel=Panel(GENES, SYMBOLS, "file"), transforms=list(TRANSFORMS),
            about={key: value for key, value in said.items() if value is not None}, trust=told if trust else None,
            extra=lambda adata: adata.obs.insert(3, "tumour_probability", np.linspace(0, 1, adata.n_obs)),
        )  # fmt: skip
        return path

    return written
