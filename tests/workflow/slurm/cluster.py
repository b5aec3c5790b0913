"""A SLURM of one machine for tests: started and ended by the scripts that stand here."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.small_study import environment, interruptible

from histocrypt import paths

HERE = Path(__file__).parent


class Slurm:
    """A running SLURM and what a user does with it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        started = subprocess.run([HERE / "start.sh", folder, *options], capture_output=True, text=True, check=False)
        if "not installed" in started.stderr:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stdout + started.stderr

    def stop(self) -> None:
        subprocess.run([HERE / "stop.sh", self.folder], check=True)

    def environment(self, outputs: Path) -> dict[str, str]:
        ours = {**environment(outputs), "SLURM_CONF": str(self.folder / "slurm.conf")}
        return {**ours, "PATH": f"{self.folder / 'bin'}{os.pathsep}{ours['PATH']}"}

    def said(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment(self.folder), capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout

    def jobs(self, state: str = "all") -> list[tuple[str, str, str]]:
        """Return number, state and rule of the jobs in a state, or of all that are remembered."""
        listed = self.said("squeue", "--noheader", f"--states={state}", "--format=%i|%T|%k")
        return [tuple(line.split("|", 2)) for line in listed.splitlines()]

    def running(self, rule: str) -> str | None:
        """Return the number of a running job of a rule whose name begins so (``30_training__vision_mlp__fold_1``)."""
        return next((job for job, _, what in self.jobs("RUNNING") if what.startswith(f"rule_{rule}")), None)

    def start(self, study: Path, outputs: Path, profile: Path, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "histocrypt", "run", study, "--profile", profile, *arguments]
        return subprocess.Popen(
            list(map(str, command)),
            env=self.environment(outputs),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=interruptible,
        )

    def run(self, study: Path, outputs: Path, profile: Path, *arguments: str) -> tuple[int, str]:
        process = self.start(study, outputs, profile, *arguments)
        said, _ = process.communicate(timeout=3600)
        return process.returncode, said


def profile(folder: Path, **changes: object) -> Path:
    """Write the profile of the repository with a few words changed, as a lab does, and return its folder."""
    content = yaml.safe_load((paths.repository() / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return folder


def wait_for(what: Callable[[], object], process: subprocess.Popen, seconds: float = 1200) -> object:
    """Return what ``what`` returns as soon as it is anything, while a run goes on."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, f"the run ended first: {process.stdout.read()}"
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.5)
    return found


def processes_of(job: str) -> list[int]:
    """Return the processes of a job that run a notebook's kernel; they are on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if (
                folder.name.isdigit()
                and f"\0SLURM_JOB_ID={job}\0".encode() in b"\0" + (folder / "environ").read_bytes()
                and b"ipykernel" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
