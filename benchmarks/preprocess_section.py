"""Preprocessing of one 9,270 x 9,920 px section, beside torchstain's whole-image stain normalisation.

    python benchmarks/preprocess_section.py [--section HER2ST_C2] [--skip-torch]
    python benchmarks/preprocess_section.py --features [--section HER2ST_C2]

With --features: what it takes from the files of a section to all that `fusion_ridge` reads of it (reading, mask,
alignment, stain, tiles, rings, colour, nuclei and tissue, middle layers of the encoder, each with its context), with an
empty cache, on the cores that OMP_NUM_THREADS allows; every section in HISTOCRYPT_DATA unless one is named.

Each line is one process of its own, so that its peak memory is its own; CPU seconds stand beside wall seconds because
they do not depend on what else the machine does. Ours reads the image, finds the tissue, aligns the spots, estimates
the stains, cuts and writes the tiles, and normalises them with Macenko's method; torchstain's normalises the pixels of
the decoded image in one call, to its own default reference. Last, both are compared on the same pixels, with the same
reference: our tiles, normalised with the statistics of the section, and torchstain's result on the tiles.
"""

import argparse
import json
import os
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


def with_features(section: str, folder: Path) -> dict:
    """Read and preprocess the section, and compute what `fusion_ridge` reads of it; nothing is found in a cache."""
    import torch  # noqa: F401  imports are not what is measured

    from histocrypt.data.features import reaches_of, section_features
    from histocrypt.data.load import spot_names
    from histocrypt.predictors.registry import checked_options
    from histocrypt.sections.read import read_path
    from histocrypt.tissue.preprocess import preprocess_section
    from histocrypt.tissue.ring import ring_reach
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.tissue.tiles import read_places, read_tiles

    names = checked_options("fusion_ridge", {}).features
    steps, start, cpu, last = {}, time.perf_counter(), time.process_time(), time.perf_counter()

    def done(step: str) -> None:
        nonlocal last
        steps[step] = steps.get(step, 0.0) + time.perf_counter() - last
        last = time.perf_counter()

    written = {"section_path": folder / "s.h5ad", "tiles_path": folder / "t.h5", "stain_path": folder / "s.json"}
    read = read_path(paths.data() / f"{section}.h5ad")
    done("read")
    settings, around = Preprocessing(min_counts=300), ring_reach(reaches_of(names))
    report = preprocess_section(read, settings=settings, around_um=around, progress=False, **written)
    done("preprocess")
    tiles, barcodes = read_tiles(written["tiles_path"])
    places, stain = read_places(written["tiles_path"]), StainStatistics.load(written["stain_path"])
    how = {"stain": stain, "method": "macenko", "names": spot_names(section, barcodes), "places": places}
    values = {}
    for name in names.split("+"):
        values[name] = section_features(tiles, encoder=name, **how)
        done(name.partition("~")[0])
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "mib": 1024 * peak_gib(),
        "steps": steps,
        "tiles": len(tiles),
        "ring": 0 if places.ring is None else len(places.ring.um),
        "numbers": sum(value.shape[1] for value in values.values()),
        "notes": report.notes,
    }


def features_table(sections: list[str]) -> None:
    print(f"from files to all that fusion_ridge reads, nothing cached; threads: {paths.threads()}")
    print(f"{'':<18}{'tiles':>6}{'ring':>6}{'wall':>9}{'CPU':>9}{'memory':>11}")
    for section in sections:
        with tempfile.TemporaryDirectory() as folder:
            waits = os.environ.get("OMP_WAIT_POLICY", "passive")  # else idle threads spin: twice the CPU, if shared
            empty = {"HISTOCRYPT_CACHE": f"{folder}/cache", "OMP_WAIT_POLICY": waits}
            found = in_subprocess("--section", section, "--part", "features", "--folder", folder, **empty)
        if found is None:
            sys.exit(f"{section} failed")
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in found["steps"].items())
        print(
            f"{section:<18}{found['tiles']:>6}{found['ring']:>6}{found['seconds']:>7.1f} s{found['cpu']:>7.1f} s"
            f"{found['mib']:>7.0f} MiB   {steps}",
            flush=True,
        )


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


def in_subprocess(*arguments: str, **environment: str) -> dict | None:
    """Run one part of this file in a process of its own; None where it was killed, e.g. for want of memory."""
    command, around = [sys.executable, __file__, *map(str, arguments)], {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
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
    parser.add_argument("--section", help="a section of HISTOCRYPT_DATA, with a whole image (HER2ST_C2)")
    parser.add_argument("--features", action="store_true", help="preprocessing and features of sections, ours alone")
    parser.add_argument("--skip-torch", action="store_true", help="leave out torchstain's torch back end")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.features:
        every = sorted(path.stem for path in paths.data().glob("*.h5ad"))
        features_table([given.section] if given.section else every)
    elif given.part == "features":
        print(json.dumps(with_features(given.section, given.folder)))
    elif given.part == "ours":
        print(json.dumps(ours(given.section, given.folder)))
    elif given.part == "agreement":
        print(json.dumps(agreement(given.folder)))
    elif given.part:
        print(json.dumps(torchstain_whole(given.section, given.part)))
    else:
        table(given.section or "HER2ST_C2", backends=["numpy"] if given.skip_torch else ["numpy", "torch"])


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
