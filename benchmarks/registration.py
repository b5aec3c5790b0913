"""How often the registration check is right: demo tissue of seeds it was not set on, and counts that are noise.

    python benchmarks/registration.py [--seeds 11 12 13 14] [--noise 20]

Noise is a smooth random field (correlated over 0, 1, 2 or 4 pitches) plus as much white noise, exponentiated; "perhaps
shifted" and "registered" are both wrong there. Real sections, where present, are listed with what the check says.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from anndata import AnnData
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix
from tqdm.auto import tqdm

from histocrypt import paths
from histocrypt.demo.write import write_demo
from histocrypt.explore.registration import Haematoxylin, haematoxylin, registration
from histocrypt.sections.read import read_path
from histocrypt.sections.section import Section
from histocrypt.spatial import spacing

LENGTHS = (0, 1, 2, 4)  # pitches over which the noise is correlated


def opened(path: Path) -> tuple[Section, Haematoxylin]:
    section = read_path(path)
    stained = haematoxylin(section)
    section.image.release()
    return section, stained


def noisy(section: Section, length: float, rng: np.random.Generator) -> Section:
    """Return the section with total counts that the image knows nothing of."""
    where = section.coords * section.um_per_px / spacing(section.id, section.coords * section.um_per_px).pitch_um
    corner = where.min(axis=0) - 3
    field = rng.standard_normal(np.ceil(4 * (np.ptp(where, axis=0) + 6)).astype(int))
    field = gaussian_filter(field, 2 * length) if length else field
    values = field[tuple(np.rint(4 * (where - corner)).astype(int).T)]
    values = (values - values.mean()) / values.std() + rng.standard_normal(len(values))
    counts = csr_matrix(np.exp(8 + 0.28 * values).astype(np.int32)[:, None])
    adata = AnnData(counts, obs=section.adata.obs[[]], obsm={"spatial": section.coords})
    adata.uns["spatial"] = section.adata.uns.get("spatial", {})
    return replace(section, adata=adata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14], help="seeds of the demo tissue")
    parser.add_argument("--noise", type=int, default=20, help="noise fields a section and length")
    arguments = parser.parse_args()

    said: dict[str, Counter[str]] = {}
    errors, sections = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for path in write_demo(Path(folder) / str(seed), seed=seed):
                section, stained = opened(path)
                checked = registration(section, stained)
                kind = "demo, shifted" if any(checked.planted_um) else "demo, in place"
                said.setdefault(kind, Counter())[checked.verdict] += 1
                errors.append(float(np.hypot(*np.subtract(checked.best_um, checked.planted_um))))
                sections.append((section, stained))
    for path in sorted(paths.data().glob("*.h5ad")):
        section, stained = opened(path)
        print(f"{section.id}: {registration(section, stained).sentence}")
        sections.append((section, stained))
    rng = np.random.default_rng(0)
    for section, stained in tqdm(sections, desc="noise", unit="section"):
        for length in LENGTHS:
            for _ in range(arguments.noise):
                verdict = registration(noisy(section, length, rng), stained, seed=int(rng.integers(2**31))).verdict
                said.setdefault(f"noise over {length} pitches", Counter())[verdict] += 1
    print(f"\n| {'sections':20} | number | registered | perhaps shifted | cannot tell |\n|---|---|---|---|---|")
    for kind, counts in said.items():
        row = " | ".join(f"{counts[verdict]}" for verdict in ("registered", "perhaps shifted", "cannot tell"))
        print(f"| {kind:20} | {counts.total()} | {row} |")
    print(f"\nbest shift less the right one, demo: median {np.median(errors):.0f} µm, largest {max(errors):.0f} µm")


if __name__ == "__main__":
    main()
