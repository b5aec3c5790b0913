"""Preprocessing of one 9,270 x 9,920 px section, beside torchstain's whole-image stain normalisation.

    python benchmarks/preprocess_section.py [--section HER2ST_C2] [--skip-torch]

Each line is one process of its own, so that its peak memory is its own; CPU seconds stand beside wall seconds because
they do not depend on what else the machine does. Ours reads the image, finds the tissue, aligns the spots, estimates
the stains, cuts and writes the tiles, and normalises them with Macenko's method; torchstain's normalises the pixels of
the decoded image in one call, to its own default reference. Last, both are compared on the same pixels, with the same
reference: our tiles, normalised with the statistics of the section, and torchstain's result on the tiles.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from histocrypt import paths
from histocrypt.machine import peak_gib
from histocrypt.options import Preprocessing


def ours(section: str, folder: Path) -> dict:
    """Preprocess the section, and normalise its tiles as training does."""
    import anndata as ad

    from histocrypt.sections.image import open_image
    from histocrypt.sections.section import Section
    from histocrypt.tissue.preprocess import preprocess_section
    from histocrypt.tissue.stain import DEFAULT_REFERENCE, StainStatistics, normalise
    from histocrypt.tissue.tiles import read_tiles

    file = paths.data() / f"{section}.h5ad"
    adata = ad.read_h5ad(file)
    metadata = adata.uns["spatial"][section]["metadata"]
    start, cpu = time.perf_counter(), time.process_time()
    image = open_image(paths.data() / metadata["source_image_path"])
    read = Section(section, "P", adata, image, float(metadata["pixel_size_um"]), "file", [file])
    report = preprocess_section(
        read,
        settings=Preprocessing(),
        section_path=folder / "section.h5ad",
        tiles_path=folder / "tiles.h5",
        stain_path=folder / "stain.json",
        progress=False,
    )
    steps = dict(report.seconds)
    before = time.perf_counter()
    tiles, _ = read_tiles(folder / "tiles.h5")
    normalised = normalise(tiles, source=StainStatistics.load(folder / "stain.json"), reference=DEFAULT_REFERENCE)
    end = time.perf_counter()
    steps["normalise"] = round(end - before, 3)
    np.save(folder / "normalised.npy", normalised)
    return {
        "seconds": end - start,
        "cpu": time.process_time() - cpu,
        "mib": 1024 * peak_gib(),
        "steps": steps,
        "tiles": len(tiles),
        "alignment": report.alignment.reason,
        "tiles_per_second": len(tiles) / steps["normalise"],
    }


def torchstain_whole(section: str, backend: str) -> dict:
    """Normalise the whole decoded image in one call of torchstain."""
    import torchstain

    from histocrypt.sections.image import open_image

    start, cpu = time.perf_counter(), time.process_time()
    pixels = open_image(paths.data() / f"{section}.jpg").pixels
    decoded = time.perf_counter() - start
    normaliser = torchstain.normalizers.MacenkoNormalizer(backend=backend)  # its own default reference
    if backend == "torch":
        import torch

        pixels = torch.from_numpy(pixels).permute(2, 0, 1)
    before = time.perf_counter()
    normaliser.normalize(I=pixels, stains=False)
    call = time.perf_counter() - before
    return {"seconds": decoded + call, "cpu": time.process_time() - cpu, "mib": 1024 * peak_gib()}


def agreement(folder: Path) -> dict:
    """Compare our normalised tiles with torchstain's result on the same pixels and the same reference."""
    import torchstain

    from histocrypt.tissue.tiles import read_tiles

    tiles, _ = read_tiles(folder / "tiles.h5")
    flat = tiles.reshape(-1, tiles.shape[2], 3)
    expected, _, _ = torchstain.normalizers.MacenkoNormalizer(backend="numpy").normalize(flat, stains=False)
    tissue = flat.min(axis=2) < 240
    difference = np.abs(np.load(folder / "normalised.npy").reshape(flat.shape).astype(int) - expected)[tissue]
    return {"mean": float(difference.mean()), "p99": float(np.percentile(difference, 99))}


def in_subprocess(*arguments: str) -> dict | None:
    """Run one part of this file in a process of its own; None where it was killed, e.g. for want of memory."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or done.returncode
        print(f"  {' '.join(arguments)} failed: {why}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(name: str, result: dict | None, base: dict) -> str:
    if result is None:
        return f"{name:<46}{'failed':>10}"
    cells = [f"{result[key]:>9.1f} {unit}" for key, unit in (("seconds", "s  "), ("cpu", "s  "), ("mib", "MiB"))]
    ratios = [f"{result[key] / base[key]:>7.1f} x" for key in ("seconds", "cpu", "mib")]
    return f"{name:<46}" + "".join(cells + ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", default="HER2ST_C2", help="a section of HISTOCRYPT_DATA with a whole image")
    parser.add_argument("--skip-torch", action="store_true", help="leave out torchstain's torch back end")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "ours":
        print(json.dumps(ours(given.section, given.folder)))
    elif given.part == "agreement":
        print(json.dumps(agreement(given.folder)))
    elif given.part:
        print(json.dumps(torchstain_whole(given.section, given.part)))
    else:
        table(given.section, backends=["numpy"] if given.skip_torch else ["numpy", "torch"])


def table(section: str, *, backends: list[str]) -> None:
    if not (paths.data() / f"{section}.jpg").exists():
        sys.exit(f"{section}.jpg is not in {paths.data()}: set HISTOCRYPT_DATA to the folder of real sections.")
    with tempfile.TemporaryDirectory() as folder:
        mine = in_subprocess("--section", section, "--part", "ours", "--folder", folder)
        if mine is None:
            sys.exit("our own preprocessing failed")
        others = {backend: in_subprocess("--section", section, "--part", backend) for backend in backends}
        same = in_subprocess("--part", "agreement", "--folder", folder)
    print(f"{section}, {mine['tiles']} tiles; threads: {paths.threads()}")
    print(f"{'':<46}{'wall':>11}  {'CPU':>11}  {'memory':>13}{'wall':>9}{'CPU':>9}{'memory':>9}")
    print(row("histocrypt: mask, alignment, Macenko, tiles", mine, mine))
    for backend, result in others.items():
        print(row(f"torchstain ({backend}): Macenko, whole image", result, mine))
    print("histocrypt's steps: " + ", ".join(f"{step} {seconds:.2f} s" for step, seconds in mine["steps"].items()))
    print(f"normalisation of tiles: {mine['tiles_per_second']:.0f} tiles/s; alignment: {mine['alignment']}")
    if same is not None:
        mean, p99 = same["mean"], same["p99"]
        print(f"difference to torchstain on the tiles' pixels: mean {mean:.2f}, 99th percentile {p99:.0f} grey levels")


if __name__ == "__main__":
    main()
