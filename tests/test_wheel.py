"""A wheel works outside the clone: notebooks, workflow and studies come along."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from tests.small_study import write_study

from histocrypt import paths

pytestmark = pytest.mark.slow


def test_a_wheel_in_an_empty_environment_runs_a_study_from_any_folder(tmp_path):
    """What the wheel needs is borrowed from this environment, since a whole set-up takes a gigabyte."""
    built = tmp_path / "wheels"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HISTOCRYPT", "PYTHONPATH"))}
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(built), "."]
    subprocess.run(build, cwd=paths.repository(), check=True)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *built.glob("*.whl")], check=True, env=clean)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "work"
    work.mkdir()
    study = write_study(work, "small")
    command = [python, "-m", "histocrypt", "run", study, "--until", "22_folds"]
    done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "outputs" / "small" / "folds.json").is_file()
    where = [python, "-c", "from histocrypt import paths; print(paths.repository())"]
    said = subprocess.run(where, cwd=work, env=clean, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(said) == site / "histocrypt" / "checkout"
