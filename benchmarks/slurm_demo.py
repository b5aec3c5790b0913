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
    """Return what differs between two run folders of one study: files, bytes of weights, predictions, scores.

    What is encrypted holds fresh randomness and pages hold times: of those only that they are there is compared.
    """
    import anndata
    import numpy as np
    import pandas as pd

    ours, theirs = (_files(folder) for folder in (there, here))
    found = [f"{path}: only in {there}" for path in sorted(ours - theirs)]
    found += [f"{path}: only in {here}" for path in sorted(theirs - ours)]
    for path in sorted(ours & theirs):
        one, other = there / path, here / path
        if path.suffix == ".safetensors" and path.parts[0] == "models" and not filecmp.cmp(one, other, shallow=False):
            found.append(f"{path}: other weights")
        elif path.suffix == ".h5ad" and path.parts[0] == "predictions":
            first, second = anndata.read_h5ad(one), anndata.read_h5ad(other)
            named = first.obs_names.equals(second.obs_names) and first.var_names.equals(second.var_names)
            if not named or not np.array_equal(first.X, second.X, equal_nan=True):
                found.append(f"{path}: other predictions")
        elif path == Path("evaluation/summary.csv") and not pd.read_csv(one).equals(pd.read_csv(other)):
            found.append(f"{path}: other scores")
    return found


def compared(folder: Path) -> str:
    """Return how much there is to compare."""
    files = _files(folder)
    weights = sum(path.suffix == ".safetensors" and path.parts[0] == "models" for path in files)
    predictions = sum(path.suffix == ".h5ad" and path.parts[0] == "predictions" for path in files)
    return f"{len(files)} files, {weights} of them weights and {predictions} predictions"


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
    print("\n".join(found) if found else f"the same as {here}: files, bytes of weights, predictions, scores")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
