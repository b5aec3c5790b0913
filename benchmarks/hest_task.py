"""Writes own sections as a task of hest-bench, to try its protocol on: one fold a patient, tiles of 112 um.

    python benchmarks/hest_task.py FOLDER SECTION... [--genes 50]
    histocrypt hest-bench FOLDER

Genes are those whose ln(1 + count) varies most over **all** sections, which each measures: as the benchmark chose its
own. A score is hence of genes that were chosen with the test patients.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from scipy.sparse import csc_matrix

from histocrypt.errors import InputError
from histocrypt.files import write_json
from histocrypt.sections.read import read_path
from histocrypt.tissue.tiles import write_tiles

TILE = {"tile_um": 112.0, "tile_px": 224}


def write_task(folder: Path, paths: list[Path], *, genes: int = 50) -> None:
    """Write patches, counts, gene list and splits of sections of two patients or more."""
    patients: dict[str, str] = {}
    variances: dict[str, list[float]] = {}
    for part in ("adata", "patches", "splits"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for path in paths:
        section = read_path(path, require_image=True)
        where = {"um_per_px": section.um_per_px, **TILE}
        write_tiles(
            folder / "patches" / f"{section.id}.h5", section.image, section.adata.obs_names, section.coords, **where
        )
        section.image.release()
        section.adata.write_h5ad(folder / "adata" / f"{section.id}.h5ad")
        patients[section.id] = section.patient
        counts = csc_matrix(section.adata.X, dtype=np.float64).log1p()
        spread = np.asarray(counts.multiply(counts).mean(axis=0) - np.square(counts.mean(axis=0))).ravel()
        for gene, one in zip(section.adata.var_names, spread, strict=True):
            variances.setdefault(gene, []).append(float(one))
    if len(set(patients.values())) < 2:
        raise InputError("all sections are of one patient", field="SECTION", expected="two patients or more")
    shared = {gene: np.mean(each) for gene, each in variances.items() if len(each) == len(patients)}
    chosen = sorted(shared, key=lambda gene: -shared[gene])[:genes]
    write_json(folder / f"var_{len(chosen)}genes.json", {"genes": chosen})
    for number, patient in enumerate(sorted(set(patients.values()))):
        for half, inside in (("test", True), ("train", False)):
            rows = [name for name, whose in patients.items() if (whose == patient) == inside]
            with (folder / "splits" / f"{half}_{number}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["sample_id", "patches_path", "expr_path"])
                writer.writerows([name, f"patches/{name}.h5", f"adata/{name}.h5ad"] for name in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sections", type=Path, nargs="+")
    parser.add_argument("--genes", type=int, default=50)
    arguments = parser.parse_args()
    try:
        write_task(arguments.folder, arguments.sections, genes=arguments.genes)
    except InputError as error:
        sys.exit(f"hest_task: {error}")


if __name__ == "__main__":
    main()
