"""A whole-slide pyramid of 100,000 x 80,000 px: made without being held, and tiled without being loaded.

    python benchmarks/pyramid.py [FOLDER] [--width 100000] [--height 80000] [--spots 5000] [--json]

Made: a tiled TIFF (JPEG tiles of 256 px, levels reduced by 4) of stained texture on a white ground, with the
resolution in its tags, and a section file of spots on the tissue. Read, by the code that reads any slide: opened
through openslide, mask, alignment, stain estimate, and one tile for every spot. Each half runs in a process of its own,
so that its peak memory is its own; beside it stands what the pixels alone would take. Without FOLDER the slide is
deleted.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from histocrypt.machine import peak_gib

SIDE = 256
"""Pixels along a side of a JPEG tile, at every level."""
STEP = 4
"""How much smaller each level is than the one before."""
UM_PER_PX = 0.25
TEXTURES = 24
"""Different tiles of tissue; each place of the slide shows one of them."""
GENES = 50


def textures(rng: np.random.Generator) -> np.ndarray:
    """Return (TEXTURES, SIDE, SIDE, 3) uint8: nuclei and stroma in the published stain vectors."""
    from scipy.ndimage import gaussian_filter

    from histocrypt.tissue.stain import DEFAULT_MATRIX, INCIDENT_LIGHT

    found = np.empty((TEXTURES, SIDE, SIDE, 3), dtype=np.uint8)
    for tile in found:
        seeds = rng.random((SIDE, SIDE)) > 1 - 30 / SIDE**2
        nuclei = np.clip(gaussian_filter(seeds.astype(float), 9, mode="wrap") * 900, 0, 1)
        stroma = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 6, mode="wrap")
        stroma = 0.45 + 0.15 * stroma / stroma.std()
        grain = 0.04 * rng.standard_normal((SIDE, SIDE))
        density = np.stack([1.4 * nuclei + 0.05 + grain, np.clip(stroma, 0.1, None) * (1 - 0.6 * nuclei)], axis=-1)
        tile[:] = np.clip(INCIDENT_LIGHT * np.exp(-density @ DEFAULT_MATRIX.T), 0, 255)
    return found


class Slide:
    """The plan of the slide: which texture lies where, and how any tile of any level looks."""

    def __init__(self, width: int, height: int, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.width, self.height = width, height
        self.rows, self.columns = -(-height // SIDE), -(-width // SIDE)
        self.texture = rng.integers(TEXTURES, size=(self.rows, self.columns))
        self.texture[~self.tissue(*np.meshgrid(np.arange(self.columns) + 0.5, np.arange(self.rows) + 0.5))] = TEXTURES
        full = np.concatenate([textures(rng), np.full((1, SIDE, SIDE, 3), 244, dtype=np.uint8)])
        self.reduced = {}
        """How much smaller -> every texture and the empty ground at that size."""
        while SIDE // STEP ** len(self.reduced) >= 1:
            small = SIDE // STEP ** len(self.reduced)
            parts = full.reshape(len(full), small, SIDE // small, small, SIDE // small, 3)
            self.reduced[STEP ** len(self.reduced)] = np.rint(parts.mean(axis=(2, 4))).astype(np.uint8)
        self._encoded = [jpeg(tile) for tile in full]

    def tissue(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return whether places, in tiles of full resolution, are tissue: an ellipse with a wavy rim."""
        x, y = 2 * x / self.columns - 1, 2 * y / self.rows - 1
        return np.hypot(x / 0.8, y / 0.75) < 0.85 + 0.1 * np.sin(5 * np.arctan2(y, x))

    def levels(self) -> list[int]:
        """Return how much smaller each level is; the last fits a few tiles."""
        return [less for less in self.reduced if less == 1 or max(self.width, self.height) / less > SIDE]

    def shape(self, less: int) -> tuple[int, int, int]:
        """Return height, width and channels of a level."""
        return -(-self.height // less), -(-self.width // less), 3

    def tiles(self, less: int) -> Iterator[bytes]:
        """Yield the JPEG tiles of one level, row by row; one is in memory at a time."""
        if less == 1:
            yield from (self._encoded[texture] for texture in self.texture.ravel())
            return
        pieces, small = self.reduced[less], SIDE // less
        height, width, _ = self.shape(less)
        for top in range(0, -(-height // SIDE) * less, less):
            for left in range(0, -(-width // SIDE) * less, less):
                tile = np.full((less, small, less, small, 3), 244, dtype=np.uint8)
                part = self.texture[top : top + less, left : left + less]
                tile[: part.shape[0], :, : part.shape[1]] = pieces[part].swapaxes(1, 2)
                yield jpeg(tile.reshape(SIDE, SIDE, 3))


def jpeg(tile: np.ndarray) -> bytes:
    """Return a tile as a JPEG of its own."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=80, subsampling=2)
    return buffer.getvalue()


def write_pyramid(path: Path, slide: Slide) -> None:
    """Write a BigTIFF of ready-made JPEG tiles, level by level (tifffile passes them on only beside imagecodecs)."""
    kinds = {"short": ("H", 3), "long": ("I", 4), "rational": ("II", 5), "offset": ("Q", 16)}
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        link = 8  # where the offset of the next directory is written
        for less in slide.levels():
            places, sizes = [], []
            for tile in slide.tiles(less):
                places.append(file.tell())
                sizes.append(file.write(tile))
            height, width, _ = slide.shape(less)
            per_cm = (round(1e4 / UM_PER_PX / less * 1000), 1000)
            tags = [  # number, kind, values: in ascending order, as TIFF wants them
                (254, "long", [int(less > 1)]), (256, "long", [width]), (257, "long", [height]),
                (258, "short", [8, 8, 8]), (259, "short", [7]), (262, "short", [6]), (277, "short", [3]),
                (282, "rational", per_cm), (283, "rational", per_cm), (284, "short", [1]), (296, "short", [3]),
                (322, "long", [SIDE]), (323, "long", [SIDE]), (324, "offset", places), (325, "offset", sizes),
                (530, "short", [2, 2]),
            ]  # fmt: skip
            entries = []
            for number, kind, values in tags:
                letters, code = kinds[kind]
                content = struct.pack(f"<{len(values)}{letters[0]}", *values)
                if len(content) > 8:
                    place = file.tell()
                    file.write(content)
                    content = struct.pack("<Q", place)
                count = len(values) // len(letters)
                entries.append(struct.pack("<HHQ", number, code, count) + content.ljust(8, b"\0"))
            directory = file.tell()
            file.write(struct.pack("<Q", len(entries)) + b"".join(entries) + bytes(8))
            end = file.tell()
            file.seek(link)
            file.write(struct.pack("<Q", directory))
            file.seek(end)
            link = end - 8


def make(folder: Path, width: int, height: int, spots: int) -> dict[str, float]:
    """Write ``slide.tif`` and ``slide.h5ad``; return size and cost."""
    start = time.perf_counter()
    slide = Slide(width, height)
    write_pyramid(folder / "slide.tif", slide)
    write_spots(folder / "slide.h5ad", slide, spots)
    size = (folder / "slide.tif").stat().st_size
    return {"seconds": time.perf_counter() - start, "peak_gib": peak_gib(), "file_gib": size / 2**30}


def write_spots(path: Path, slide: Slide, spots: int) -> None:
    """Write a section with as many spots on the tissue of a slide."""
    import anndata
    import pandas as pd
    from scipy.sparse import random as sparse

    rng = np.random.default_rng(1)
    pitch = 3 * SIDE / 2
    while True:  # the widest square array with as many spots on tissue
        x, y = np.meshgrid(np.arange(pitch, slide.width, pitch), np.arange(pitch, slide.height, pitch))
        on_tissue = np.flatnonzero(slide.tissue(x.ravel() / SIDE, y.ravel() / SIDE))
        if len(on_tissue) >= spots:
            break
        pitch *= 0.97
    about = {"pixel_size_um": UM_PER_PX, "spot_diameter_um": 55.0, "inter_spot_um": pitch * UM_PER_PX}
    chosen = on_tissue[:: len(on_tissue) // spots][:spots]
    counts = sparse(spots, GENES, density=0.3, format="csr", random_state=0, data_rvs=lambda n: rng.integers(1, 99, n))
    adata = anndata.AnnData(
        counts.astype(np.int32),
        obs=pd.DataFrame({"patient": "P_1"}, index=[f"spot_{i}" for i in range(spots)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)]),
        obsm={"spatial": np.column_stack([x.ravel()[chosen], y.ravel()[chosen]])},
        uns={"spatial": {"slide": {"metadata": about}}},
    )
    adata.write_h5ad(path)


def read(folder: Path) -> dict[str, object]:
    """Preprocess the section, as notebook 20 does; return what was found and the cost."""
    from histocrypt.options import Preprocessing
    from histocrypt.sections.read import read_path
    from histocrypt.tissue.preprocess import preprocess_section
    from histocrypt.tissue.stain import DEFAULT_MATRIX, StainStatistics

    start = time.perf_counter()
    before = peak_gib()
    section = read_path(folder / "slide.h5ad", image=folder / "slide.tif", require_image=True)
    opened = time.perf_counter() - start
    report = preprocess_section(
        section,
        settings=Preprocessing(),
        section_path=folder / "section.h5ad",
        tiles_path=folder / "tiles.h5",
        stain_path=folder / "stain.json",
        progress=False,
    )
    estimated = StainStatistics.load(folder / "stain.json").stain_matrix
    true = DEFAULT_MATRIX / np.linalg.norm(DEFAULT_MATRIX, axis=0)
    angles = np.degrees(np.arccos(np.clip((estimated * true).sum(axis=0), -1, 1)))
    return {
        "image": f"{section.image.width:,} x {section.image.height:,} px, {type(section.image).__name__}",
        "pixels_gib": 3 * section.image.width * section.image.height / 2**30,
        "um_per_px": section.um_per_px,
        "seconds": time.perf_counter() - start,
        "steps": {"open and check": round(opened, 3), **report.seconds},
        "peak_gib": peak_gib(),
        "before_gib": before,
        "tiles": report.spots_out,
        "tissue_share": report.tissue_share,
        "alignment": report.alignment.reason,
        "stain_angle_deg": angles.tolist(),
    }


def measured(what: str, folder: Path, arguments: argparse.Namespace) -> dict:
    """Run one half in a process of its own."""
    size = ["--width", arguments.width, "--height", arguments.height, "--spots", arguments.spots]
    command = [sys.executable, __file__, str(folder), "--only", what, *map(str, size)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where the slide is made, and kept")
    parser.add_argument("--width", type=int, default=100_000)
    parser.add_argument("--height", type=int, default=80_000)
    parser.add_argument("--spots", type=int, default=5000)
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    parser.add_argument("--only", choices=("make", "read"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        size = (arguments.width, arguments.height, arguments.spots)
        print(json.dumps(make(arguments.folder, *size) if arguments.only == "make" else read(arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="pyramid-") as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        made, found = (measured(what, folder, arguments) for what in ("make", "read"))
    if arguments.json:
        print(json.dumps({"made": made, "read": found}))
        return
    print(
        f"made: {made['file_gib']:.2f} GiB on disk in {made['seconds']:.0f} s, peak memory {made['peak_gib']:.2f} GiB"
    )
    print(f"read: {found['image']}, {found['um_per_px']:.3f} µm/px; its pixels are {found['pixels_gib']:.1f} GiB")
    print(f"      {found['tiles']} tiles in {found['seconds']:.0f} s, peak memory {found['peak_gib']:.2f} GiB")
    print("      " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in found["steps"].items()))
    angles = " and ".join(f"{angle:.1f}°" for angle in found["stain_angle_deg"])
    print(
        f"      tissue {100 * found['tissue_share']:.0f} % of the slide; stain vectors within {angles} of the true ones"
    )


if __name__ == "__main__":
    main()
