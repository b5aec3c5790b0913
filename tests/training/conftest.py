"""A small study as preprocessing leaves it: four patients, one section each, tiles whose colour carries a signal."""

import shutil

import anndata
import h5py
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from histocrypt.study import parse_study

SIDE, SPOTS, GENES = 36, 25, 12


def write_section(run, patient, *, label_noise=0, pixel_noise=0):
    """Write the artifacts of one patient's section; the noises change its labels or its pixels and nothing else."""
    from histocrypt.tissue.stain import estimate

    seed = int.from_bytes(patient.encode(), "little") % 2**31
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(5), np.arange(5))
    signal = (x.ravel() / 4 + rng.random(SPOTS)) / 2
    haematoxylin = np.array([0.65, 0.70, 0.29]) * (0.3 + signal[:, None, None, None])
    eosin = np.array([0.07, 0.99, 0.11]) * rng.gamma(4, 0.1, (SPOTS, SIDE, SIDE, 1))
    nuclei = rng.random((SPOTS, SIDE, SIDE, 1)) < 0.2 + 0.6 * signal[:, None, None, None]
    tiles = (255 * np.exp(-(haematoxylin * (0.2 + nuclei) + eosin))).clip(0, 255).astype(np.uint8)
    if pixel_noise:
        noise = np.random.default_rng(pixel_noise).integers(-20, 20, tiles.shape)
        tiles = (tiles.astype(int) + noise).clip(0, 255).astype(np.uint8)
    weights = np.linspace(-2, 2, GENES)
    rates = 8 * np.exp(signal[:, None] * weights) * np.exp(rng.normal(0, 0.3, (SPOTS, 1)))
    counts = rng.poisson(rates).astype(np.int32)
    if label_noise:
        counts += np.random.default_rng(label_noise).integers(0, 9, counts.shape).astype(np.int32)
    section = f"S_{patient}"
    barcodes = [f"{i}x{j}" for i, j in zip(x.ravel(), y.ravel(), strict=True)]
    adata = anndata.AnnData(csr_matrix(counts))
    adata.obs_names, adata.var_names = barcodes, [f"ENSG{i:03d}" for i in range(GENES)]
    adata.var["symbol"] = [f"GENE{i}" for i in range(GENES)]
    adata.obs["section"], adata.obs["patient"] = section, patient
    adata.obs["total_counts"] = counts.sum(axis=1).astype(float)
    adata.obs["n_genes"] = (counts > 0).sum(axis=1)
    adata.obsm["spatial"] = 100.0 * np.column_stack([x.ravel(), y.ravel()]) + 50
    for path in (run.section(section), run.tiles(section)):
        path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(run.section(section))
    with h5py.File(run.tiles(section), "w") as file:
        file["img"] = tiles
        file["barcode"] = np.array([name.encode() for name in barcodes])[:, None]
        file["coords"] = adata.obsm["spatial"].astype(int) - SIDE // 2
        file.attrs.update({"section": section, "patient": patient, "um_per_px": 1.0, "tile_um": 36, "tile_px": SIDE})
    estimate(tiles[::2].reshape(-1, 3)).save(run.stain(section))
    return section


def make_study(**changes):
    """Return the study of these sections."""
    content = {
        "name": "small",
        "sections": [{"path": "nowhere"}],
        "preprocessing": {"tile_um": 36, "tile_px": SIDE, "min_counts": 1},
        "panel": {"method": "top_mean", "size": 6},
        "training": {"epochs": 3, "batch_size": 16, "patience": 3, "input_px": 36},
        "models": {"vision_mlp": {"width": 0.1}, "resnet18": {"average_pool": True, "epochs": 1}},
    }
    return parse_study({**content, **changes})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The outputs folder of the prepared study, made once; tests change copies of it."""
    from histocrypt.data.fold_statistics import prepare_folds

    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(folder))
        study = make_study()
        for patient in "abcd":
            write_section(study.run, patient)
        prepare_folds(study)
    return folder


@pytest.fixture
def small_study(prepared, tmp_path, monkeypatch):
    """A prepared study of four patients a, b, c, d in a folder of its own, on one thread."""
    import torch

    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "outputs"))
    shutil.copytree(prepared, tmp_path / "outputs")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_study()
    torch.set_num_threads(threads)


@pytest.fixture
def rewrite(small_study):
    """Return the function that writes a patient's section again, with other labels or pixels: see `write_section`."""
    return lambda patient, **noise: write_section(small_study.run, patient, **noise)


def colour_model(outputs):
    """Train a ridge of colours on three small sections, which needs no network; return its folder."""
    from histocrypt.data.fold_statistics import prepare_folds
    from histocrypt.pipeline.train import train_fold

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(outputs))
        study = make_study(preprocessing={"tile_um": 144, "tile_px": 36, "min_counts": 1})
        for patient in "abcd":
            write_section(study.run, patient)
        prepare_folds(study)
        train_fold(study, "colour_ridge", "fold_a", device="cpu")
        return study.run.model("colour_ridge", "fold_a")
