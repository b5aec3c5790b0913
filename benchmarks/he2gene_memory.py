"""Train HE2Gene on simulated counts of a large study and print the peak memory of each kind of auxiliary head.

    python benchmarks/he2gene_memory.py --spots 30000 --genes 20000 --input-px 24 --batch 128

Counts lie in section files as a study's do (CSR), and are made dense a batch at a time. Every training is a process of
its own, whose peak resident memory (VmHWM) is what is printed. Images are noise: this is about memory, not accuracy.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SECTIONS = 10


def write_counts(folder: Path, spots: int, genes: int, detected: int) -> None:
    """Write `SECTIONS` sections with ``detected`` genes a spot, on square arrays."""
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    each = spots // SECTIONS
    side = int(np.ceil(np.sqrt(each)))
    for number in range(SECTIONS):
        indices = np.concatenate([np.sort(rng.choice(genes, detected, replace=False)) for _ in range(each)])
        data = rng.geometric(0.4, each * detected).astype(np.int32)
        counts = csr_matrix((data, indices.astype(np.int32), np.arange(each + 1) * detected), shape=(each, genes))
        adata = anndata.AnnData(counts)
        adata.var_names = [f"ENSG{gene:011d}" for gene in range(genes)]
        adata.obs_names = [f"{spot % side}x{spot // side}" for spot in range(each)]
        adata.obs["array_row"], adata.obs["array_col"] = np.arange(each) // side, np.arange(each) % side
        adata.obs["total_counts"] = np.asarray(counts.sum(axis=1)).ravel().astype(float)
        adata.obs["tumour"] = pd.array(rng.random(each) < 0.4)
        adata.obsm["spatial"] = np.column_stack([np.arange(each) % side, np.arange(each) // side]) * 100.0
        adata.write_h5ad(folder / f"S_{number}.h5ad")


def train(folder: Path, *, rank: int, px: int, input_px: int, panel: int, batch: int) -> dict[str, float]:
    """Train for one epoch on what lies in ``folder`` and return what it took."""
    import time

    from histocrypt.data.load import Measured, Spots
    from histocrypt.machine import peak_gib
    from histocrypt.options import Training
    from histocrypt.predictors.he2gene import MultitaskPredictor

    files = tuple((path.stem, path) for path in sorted(folder.glob("*.h5ad")))
    measured = Measured(files)
    genes = list(measured.genes())
    targets = measured.expression(genes[:panel]).toarray()
    n = len(targets)
    tiles = np.random.default_rng(0).integers(0, 255, (n, px, px, 3), dtype=np.uint8)
    sections = np.repeat([name for name, _ in files], n // len(files))
    spots = Spots(
        names=np.array([f"s{index}" for index in range(n)]), sections=sections, patients=sections,
        depth=np.ones(n), outputs=tuple(f"log1p_cp10k:{gene}" for gene in genes[:panel]), targets=targets,
        pixels=lambda: tiles, measured=measured,
    )  # fmt: skip
    settings = Training(epochs=1, batch_size=batch, input_px=input_px, augment_stain=0)
    options = {"aux_rank": rank, "label": "obs:tumour"}
    started = time.monotonic()
    predictor = MultitaskPredictor("he2gene", spots.outputs, settings=settings, options=options, device="cpu")
    predictor.fit(spots, None, seed=0)
    weights = sum(values.numel() for values in predictor.network.parameters())
    return {"peak_gib": peak_gib(), "seconds": time.monotonic() - started, "weights": weights, "loss": _last(predictor)}


def _last(predictor) -> float:
    return predictor.curves[-1]["train_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=30_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--detected", type=int, default=3_000, help="genes with counts in a spot")
    parser.add_argument("--panel", type=int, default=250)
    parser.add_argument("--px", type=int, default=64, help="side of a tile")
    parser.add_argument("--input-px", type=int, default=64, help="side of what the network sees")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rank", type=int, nargs="+", default=[128, 0], help="of the auxiliary head; 0: a full matrix")
    parser.add_argument("--within", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.within:
        said = train(
            Path(given.within),
            rank=given.rank[0],
            px=given.px,
            input_px=given.input_px,
            panel=given.panel,
            batch=given.batch,
        )
        print(json.dumps(said))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_counts(Path(folder), given.spots, given.genes, given.detected)
        print(
            f"{given.spots:,} spots x {given.genes:,} genes, {given.detected:,} detected a spot, {given.px} px tiles\n"
        )
        print("| auxiliary head | weights | peak memory | one epoch |\n|---|---|---|---|")
        for rank in given.rank:
            sizes = {
                "rank": rank,
                "px": given.px,
                "input-px": given.input_px,
                "panel": given.panel,
                "batch": given.batch,
            }
            options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
            command = [sys.executable, __file__, "--within", folder, *options]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            said = json.loads(done.stdout)
            kind = f"rank {rank}" if rank else "full"
            million = f"{said['weights'] / 1e6:.1f} million"
            print(f"| {kind} | {million} | {said['peak_gib']:.2f} GiB | {said['seconds']:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
