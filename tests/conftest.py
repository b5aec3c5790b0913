"""Fixtures that every part of the tests may use.

The demo tissue is simulated once for all tests and workers, each size of it: ask for the fixture ``demo_tissue``.
``demo_tissue(sections=2)`` returns the shared ``.h5ad`` files, to be read only; ``demo_tissue(folder, sections=2)``
hard-links them into a folder of the test's own, where files may be deleted and replaced but never written into.
A study of ``path: demo`` finds its tissue in place after ``demo_tissue(outputs / name / "demo_tissue", ...)`` with the
sections, spots_per_side, genes and seed that it asks for; the defaults are those of `tests.small_study.SMALL`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.small_study import MODELS, SMALL, WINGS, histocrypt, write_study

from histocrypt import paths

PITCH_PX, PITCH_UM = 50, 200.0  # 4 um per pixel, an ST array


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real sections; a test that needs it is skipped where it is absent."""
    folder = paths.data()
    if not (folder / "HER2ST_C2.h5ad").exists():
        pytest.skip(f"no real sections in {folder}: set HISTOCRYPT_DATA to run this test")
    return folder


@pytest.fixture
def tiny_section() -> Callable[..., Path]:
    """Return a function that writes a small good section (``.h5ad`` and ``.png``) and returns the ``.h5ad``."""
    return write_tiny_section


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


@contextmanager
def shared_by_workers(tmp_path_factory, name: str) -> Iterator[Path]:
    """Give a folder that all test workers share, to one of them at a time."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def demo_tissue(tmp_path_factory) -> Callable[..., list[Path]]:
    """Return a function that gives the files of a small demo tissue, simulated once: see the top of this file."""
    from histocrypt.demo.write import demo_in

    def files(folder: Path | None = None, **changes: int) -> list[Path]:
        settings = {**SMALL["demo"], "seed": 0, **changes}
        with shared_by_workers(tmp_path_factory, "demo_tissue") as shared:
            shared_files = demo_in(shared / "-".join(map(str, settings.values())), **settings)
        if folder is None:
            return shared_files
        shutil.copytree(shared_files[0].parent, folder, copy_function=os.link)
        return [folder / file.name for file in shared_files]

    return files


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, demo_tissue) -> Path:
    """A finished run of a small demo study with a network; returns the outputs folder. Shared by all test workers."""
    with shared_by_workers(tmp_path_factory, "small_run") as shared:
        study = write_study(shared, "small", models=MODELS, **WINGS)
        if not (shared / "small" / "report.html").is_file():
            if not (shared / "small" / "demo_tissue").exists():
                demo_tissue(shared / "small" / "demo_tissue")
            finished = histocrypt("run", study, "--cores", "2", outputs=shared)
            assert finished.returncode == 0, finished.stdout + finished.stderr
    return shared
