"""A study through a SLURM of one machine, and without: ``python benchmarks/slurm_demo.py studies/demo.yaml``.

Starts SLURM by ``tests/workflow/slurm/start.sh`` (Debian: ``apt-get install --no-install-recommends slurm-wlm munge``),
runs the study through ``workflow/profiles/slurm`` with one thread a training, as on two cores, and ends SLURM.
The run without is that in ``outputs/``; where there is none it is made first. Prints what differs, and exits with 1 if
anything does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from compare_runs import compared, differences

from histocrypt import paths
from histocrypt.study import load_study

SCRIPTS = paths.repository() / "tests" / "workflow" / "slurm"


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
    if not (here / "study.json").is_file():
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
