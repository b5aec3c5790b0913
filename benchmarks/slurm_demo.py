"""A study through a SLURM of one machine, and without: ``python benchmarks/slurm_demo.py studies/demo.yaml``.

Starts SLURM by ``tests/workflow/slurm/start.sh`` (Debian: ``apt-get install --no-install-recommends slurm-wlm munge``),
runs the study through ``workflow/profiles/slurm`` with one thread a training, as on two cores, and ends SLURM.
The run without is that in ``outputs/``; where there is none it is made first. Prints what differs, and exits with 1 if
anything does.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from histocrypt import paths
from histocrypt.study import load_study

SCRIPTS = paths.repository() / "tests" / "workflow" / "slurm"
OWN = {"logs", ".snakemake", ".lock", "run.json"}
"""What tells of the run itself, and differs between any two."""


def differences(there: Path, here: Path) -> list[str]:
    """Return what differs between two run folders of one study.

    Compared are which files there are, the bytes of weights, folds and stain references, every number of sections,
    tiles and predictions, and the scores. What is encrypted holds fresh randomness and pages hold times: of those only
    that they are there.
    """
    ours, theirs = (_files(folder) for folder in (there, here))
    found = [f"{path}: only in {there}" for path in sorted(ours - theirs)]
    found += [f"{path}: only in {here}" for path in sorted(theirs - ours)]
    return found + [f"{path}: differs" for path in sorted(ours & theirs) if not _same(path, there / path, here / path)]


def _same(path: Path, one: Path, other: Path) -> bool:
    import numpy as np
    import pandas as pd

    kind = path.parts[0]
    if path.suffix in (".h5", ".h5ad") and kind in ("sections", "tiles", "predictions"):
        first, second = _datasets(one), _datasets(other)
        return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    if path == Path("evaluation/summary.csv"):
        return pd.read_csv(one).equals(pd.read_csv(other))
    if (kind == "models" and path.suffix == ".safetensors") or kind in ("folds", "folds.json", "stain"):
        return filecmp.cmp(one, other, shallow=False)
    return True


def _datasets(file: Path) -> dict:
    """Return all arrays of an HDF5 file, but for the notes in ``uns``, which hold paths and versions; NaN as bytes."""
    import h5py
    import numpy as np

    found = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("uns"):
            values = np.asarray(item[()])
            found[name] = values.view(np.uint8) if values.dtype.kind == "f" and values.ndim else values

    with h5py.File(file) as content:
        content.visititems(keep)
    return found


def compared(folder: Path) -> str:
    """Return how much there is to compare."""
    files = _files(folder)
    kinds = {"models": ".safetensors", "predictions": ".h5ad", "tiles": ".h5", "sections": ".h5ad"}
    counts = {kind: sum(path.parts[0] == kind and path.suffix == end for path in files) for kind, end in kinds.items()}
    return f"{len(files)} files: " + ", ".join(f"{count} of {kind}" for kind, count in counts.items())


def _files(folder: Path) -> set[Path]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in files if path.parts[0] not in OWN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--until", help="notebook to stop after")
    parser.add_argument("--here", type=Path, help="a finished run folder without SLURM to compare with")
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    until = ["--until", arguments.until] if arguments.until else []
    run = [sys.executable, "-m", "histocrypt", "run", str(arguments.study.resolve()), *until]
    here = arguments.here or study.run.root
    if not (here / "eda" / "summary.json").is_file():
        subprocess.run([*run, "--cores", "2"], check=True)

    with tempfile.TemporaryDirectory(prefix="slurm_") as folder:
        slurm, outputs, profile = (Path(folder) / name for name in ("slurm", "outputs", "profile"))
        profile.mkdir()
        content = yaml.safe_load((paths.repository() / "workflow/profiles/slurm/config.yaml").read_text())
        (profile / "config.yaml").write_text(yaml.safe_dump({**content, "max-threads": 1}))
        subprocess.run([SCRIPTS / "start.sh", slurm, "--cpus", "2"], check=True)
        try:
            environment = {
                **os.environ,
                "SLURM_CONF": str(slurm / "slurm.conf"),
                "PATH": f"{slurm / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "HISTOCRYPT_OUTPUTS": str(outputs),
            }
            began = time.monotonic()
            subprocess.run([*run, "--profile", str(profile)], env=environment, check=True)
            minutes = (time.monotonic() - began) / 60
        finally:
            subprocess.run([SCRIPTS / "stop.sh", slurm], check=False)
        there = outputs / study.name
        found = differences(there, here)
        print(f"\n{study.name} through SLURM: {minutes:.0f} min; {compared(there)}")
    print("\n".join(found) if found else f"all the same as in {here}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
