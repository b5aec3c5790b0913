"""Tissue drawn from known stains and shapes, and crops of real sections."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix

from histocrypt.sections.image import PatchMosaic, ScannedImage, WholeImage
from histocrypt.sections.section import Section


class ArrayImage(ScannedImage):
    """An image that is an array; it remembers how many pixels were asked for at once."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.path, self.largest = pixels, Path("array"), 0
        self.height, self.width = pixels.shape[:2]

    def read_region(self, x, y, width, height):
        self.largest = max(self.largest, width * height)
        return super().read_region(x, y, width, height)

    def _inside(self, x0, y0, x1, y1):
        return self.pixels[y0:y1, x0:x1]

    def thumbnail(self, max_side):
        width, height, scale = self._thumbnail_size(max_side)
        return np.asarray(Image.fromarray(self.pixels).resize((width, height), Image.Resampling.BOX)), scale


@pytest.fixture(scope="session")
def array_image():
    return ArrayImage


def _blob(seed: int, *, side: int = 400) -> np.ndarray:
    """An irregular piece of tissue on a square; (side, side) bool."""
    rng = np.random.default_rng(seed)
    coarse, fine = (gaussian_filter(rng.normal(size=(side, side)), side * share) for share in (0.075, 0.02))
    y, x = np.mgrid[:side, :side]
    edge = 1 - np.hypot(x - side / 2, y - side / 2) / (side * 0.33)
    return edge + 0.18 * coarse / coarse.std() + 0.05 * fine / fine.std() > 0


@pytest.fixture(scope="session")
def blob():
    return _blob


STAINS = np.array([[0.65, 0.27], [0.70, 0.57], [0.29, 0.78]]) / np.linalg.norm(
    [[0.65, 0.27], [0.70, 0.57], [0.29, 0.78]], axis=0
)


def _stained(n: int, seed: int = 0, *, stains: np.ndarray = STAINS, strength: tuple[float, float] = (1.2, 0.8)):
    """Pixels (n, 3) uint8 of tissue: some nearly pure haematoxylin, some nearly pure eosin, most between."""
    rng = np.random.default_rng(seed)
    mixed = rng.beta(0.4, 0.4, size=n)
    amount = rng.uniform(0.3, 1.0, size=n)
    od = stains @ (np.stack([mixed * strength[0], (1 - mixed) * strength[1]]) * amount * 1.6)
    return np.clip(240 * np.exp(-od.T) + rng.normal(0, 1, (n, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def stained():
    return _stained


@pytest.fixture(scope="session")
def planted_stains():
    return STAINS


def _section(seed: int = 0, *, shift_um=(0.0, 0.0), um_per_px: float = 2.0, id: str = "A", image=None) -> Section:
    """A section of a stained blob (3200 µm wide) with Visium-like spots; two spots of low depth, two off tissue."""
    small = _blob(seed)
    side = round(3200 / um_per_px)
    tissue = np.asarray(Image.fromarray(small).resize((side, side)))
    pixels = np.full((side, side, 3), 244, dtype=np.uint8)
    pixels[tissue] = _stained(int(tissue.sum()), seed)
    ticks = np.arange(50, 3200, 100.0)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    share = gaussian_filter(small.astype(float), 4)[(grid[:, 1] / 8).astype(int), (grid[:, 0] / 8).astype(int)]
    grid = np.concatenate([grid[share > 0.55], [[60.0, 60.0], [3140.0, 60.0]]])
    counts = np.random.default_rng(seed).poisson(20, size=(len(grid), 30)).astype(np.int32)
    counts[:2] = 1
    adata = AnnData(csr_matrix(counts))
    adata.obs_names = [f"{x:.0f}x{y:.0f}" for x, y in grid]
    adata.var_names = [f"G{j}" for j in range(30)]
    adata.obs["tumour"] = np.arange(len(grid)) % 2 == 0
    adata.layers["image_signal"] = np.arange(len(grid) * 30, dtype=np.float32).reshape(-1, 30)
    adata.obsm["spatial"] = (grid + np.asarray(shift_um)) / um_per_px
    library = {"metadata": {"spot_diameter_um": 55.0}}
    adata.uns["spatial"] = {id: library}
    image = ArrayImage(pixels) if image is None else image
    return Section(id, "P", adata, image, um_per_px, "given", [Path(f"{id}.h5ad")], {"counts are not finite": 3})


@pytest.fixture
def section():
    return _section


@pytest.fixture(scope="session")
def real_crops(real_data) -> dict[str, np.ndarray]:
    """700 x 700 px of a raw scan, tissue and glass, and of a section stained elsewhere."""
    raw = WholeImage(real_data / "HER2ST_C2.jpg")
    other = PatchMosaic.from_h5(real_data / "HBCIS_BC23209_C1_patches.h5")
    return {"raw": raw.read_region(2300, 5400, 700, 700), "other": other.read_region(3000, 3000, 700, 700)}
