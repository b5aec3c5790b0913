"""How near a ring of tiles comes to measured surroundings: ``python benchmarks/ring_context.py [SECTION ...]``.

Of each section every third place of its array is kept, both ways, 600 um apart, and preprocessed anew: no spot has a
neighbour within 320 um. The context of those spots, read from rings of tiles, is compared with their context in the
whole section, and so is what stood for it before: the spot itself. Distances are root mean squares over spots and
numbers, in standard deviations of the context; the correlation over spots is the median of the numbers'.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from histocrypt import paths
from histocrypt.data.features import section_features
from histocrypt.data.load import spot_names
from histocrypt.options import Preprocessing
from histocrypt.predictors.fusion_ridge import CONTEXT_UM, FAMILIES
from histocrypt.sections.read import read_path
from histocrypt.tissue.preprocess import preprocess_section
from histocrypt.tissue.stain import StainStatistics
from histocrypt.tissue.tiles import read_places, read_tiles

EVERY = 3


def described(section, folder: Path) -> tuple[list[str], int, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return names of the spots kept, number of tiles in rings, and each family's context without and with them."""
    written = {"section_path": folder / "s.h5ad", "tiles_path": folder / "t.h5", "stain_path": folder / "s.json"}
    preprocess_section(section, settings=Preprocessing(min_counts=300), around_um=CONTEXT_UM, progress=False, **written)
    tiles, names = read_tiles(written["tiles_path"])
    places, stain = read_places(written["tiles_path"]), StainStatistics.load(written["stain_path"])
    how = {"stain": stain, "method": "macenko", "names": spot_names(section.id, names)}
    found = {}
    for family in FAMILIES:
        both = (replace(places, ring=None), places)
        found[family] = tuple(section_features(tiles, encoder=f"{family}~{CONTEXT_UM}", places=p, **how) for p in both)
    return names.tolist(), 0 if places.ring is None else len(places.ring.um), found


def compared(name: str) -> None:
    """Print one section's lines."""
    whole = read_path(paths.data() / f"{name}.h5ad")
    row, column = (whole.adata.obs[axis].to_numpy() % EVERY == 0 for axis in ("array_row", "array_col"))
    thin = replace(whole, adata=whole.adata[row & column].copy())
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        names, _, everywhere = described(whole, Path(one))
        kept, ring, found = described(thin, Path(other))
    at = [names.index(spot) for spot in kept]
    for family in FAMILIES:
        expected = everywhere[family][0][at]
        spread = np.maximum(expected.std(axis=0), 1e-9)
        cells = []
        for values in found[family]:
            away = np.sqrt((((values - expected) / spread) ** 2).mean())
            varies = (expected.std(axis=0) > 1e-6) & (values.std(axis=0) > 1e-6)
            r = [np.corrcoef(values[:, j], expected[:, j])[0, 1] for j in np.flatnonzero(varies)]
            cells.append(f"{away:>8.2f}{np.median(r):>8.2f}")
        print(f"{name:<12}{len(kept):>6}{ring:>6}  {family:<28}{''.join(cells)}", flush=True)


def main() -> None:
    print(f"{'':<12}{'spots':>6}{'ring':>6}  {'':<28}{'spot':>8}{'r':>8}{'ring':>8}{'r':>8}")
    for name in sys.argv[1:] or ["HER2ST_B4", "HER2ST_C2"]:
        compared(name)


if __name__ == "__main__":
    main()
