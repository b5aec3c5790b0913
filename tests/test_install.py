"""The set-up: a lock that is complete and closed, and a script that says clearly what it cannot do."""

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "install_host.sh"
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
ARM = LINUX | {"platform_machine": "aarch64"}
MAC = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"}
# The oldest of each minor version that is still about: Debian 12 has Python 3.11.2.
PYTHONS = {"3.11": "3.11.2", "3.12": "3.12.0"}


def requirements(name: str) -> list[Requirement]:
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


def locked(environment: dict[str, str]) -> dict[str, str]:
    """Return name -> version of what the lock installs in ``environment``."""
    chosen = [
        need for need in requirements("requirements.lock") if not need.marker or need.marker.evaluate(environment)
    ]
    return {canonicalize_name(need.name): str(need.specifier).removeprefix("==") for need in chosen}


@cache
def installed() -> dict:
    return {canonicalize_name(dist.metadata["Name"]): dist for dist in distributions()}


def test_every_line_of_the_lock_is_one_exact_version():
    for need in requirements("requirements.lock"):
        assert re.fullmatch(r"==[0-9][0-9a-zA-Z.]*", str(need.specifier)), need
        assert need.url is None


def test_the_lock_holds_what_is_asked_for_by_name():
    versions = locked(LINUX | {"python_version": "3.11"})
    for need in requirements("requirements.in"):
        name = canonicalize_name(need.name)
        assert name in versions, f"{name} is in requirements.in and not in requirements.lock"
        assert versions[name] in need.specifier
    # Encrypted inference needs scipy <= 1.14.1, which needs numpy 2.2.
    assert (versions["scipy"], versions["numpy"]) == ("1.14.1", "2.2.6")


@pytest.mark.parametrize("machine", [LINUX, ARM, MAC], ids=["linux", "linux-arm", "mac"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_is_closed_under_dependencies(machine, python):
    """`pip install --no-deps` of the lock leaves nothing missing; torch's own CUDA packages come with torch."""
    environment = machine | {"python_version": python, "python_full_version": PYTHONS[python], "extra": ""}
    versions = locked(environment)
    todo = [(canonicalize_name(need.name), "") for need in requirements("requirements.in")]
    seen, missing = set(), []
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name not in installed():
            continue
        seen.add((name, extra))
        for need in map(Requirement, installed()[name].requires or []):
            if need.marker and not need.marker.evaluate(environment | {"extra": extra}):
                continue
            other = canonicalize_name(need.name)
            if name == "torch" and other.startswith(("nvidia-", "cuda-", "triton")):
                continue
            if versions.get(other) is None or not need.specifier.contains(versions[other], prereleases=True):
                missing.append(f"{name} needs {need}, the lock has {versions.get(other)}")
            todo += [(other, "")] + [(other, wanted) for wanted in need.extras]
    assert not missing


@pytest.mark.parametrize("python", PYTHONS.values())
def test_every_locked_package_takes_the_oldest_python(python):
    refused = {}
    for name in locked(LINUX | {"python_version": "3.11"}):
        dist = installed().get(name)
        allowed = dist.metadata.get("Requires-Python") if dist else None
        if allowed and python not in Requirement(f"python{allowed}").specifier:
            refused[name] = allowed
    assert refused == {}


def test_conda_gets_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    by_conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    by_pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert by_conda == ["python=3.11", "pip"]
    versions = locked(LINUX | {"python_version": "3.11"})
    exact = [item.split("==") for item in by_pip if "==" in item]
    assert dict(exact) == {name: versions[name] for name in ("torch", "torchvision")}
    assert "-r requirements.lock" in by_pip


def test_a_conda_package_holds_the_same_versions():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert recipe["context"]["version"] == project["version"]
    about = recipe["about"]
    assert (about["license"], about["summary"]) == (project["license"], project["description"])
    steps = [step.removeprefix("python -m pip install ").split() for step in recipe["build"]["script"]]
    versions = locked(LINUX | {"python_version": "3.11"})
    exact = dict(word.split("==") for step in steps for word in step if "==" in word)
    assert exact == {name: versions[name] for name in ("torch", "torchvision")}
    files = [step[step.index("-r") + 1] for step in steps if "-r" in step]
    assert files == ["requirements.lock"]
    pythons = {need for part in ("host", "run") for need in recipe["requirements"][part] if need.startswith("python")}
    assert pythons == {"python 3.11.*"}


def call(*arguments: str, script: Path = SCRIPT, **settings: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **settings}
    return subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, cwd="/", check=False
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["demmo"], "'demmo'"),
        (["--fast"], "'--fast'"),
        (["--device", "tpu"], "'tpu'"),
        (["--device"], "--device"),
        (["demo", "test"], "'demo' and 'test'"),
    ],
)
def test_a_misspelt_command_is_one_sentence_and_exit_2(arguments, named):
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert named in done.stderr


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the set-up reads, in a folder with a space in its name, without a venv."""
    folder = tmp_path / "a check out"
    folder.mkdir()
    for name in ("install_host.sh", "requirements.lock", "pyproject.toml"):
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_python_that_cannot_be_used_is_named_with_the_reason(checkout, tmp_path):
    old = program(tmp_path / "old-python", "echo 3.9")
    bare = program(tmp_path / "bare-python", 'case "$*" in *version_info*) echo 3.12;; *) exit 1;; esac')
    for python, reason in ((old, "is Python 3.9"), (bare, "python3.12-venv"), ("no-such-python", "is not a program")):
        done = call(script=checkout / "install_host.sh", PYTHON=str(python))
        assert done.returncode == 1
        assert str(python) in done.stderr
        assert reason in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (checkout / "venv").exists()


def test_without_any_python_it_says_what_to_install(checkout, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "uname", "sed", "rm", "grep"):
        found = subprocess.run(["/bin/sh", "-c", f"command -v {tool}"], capture_output=True, text=True, check=True)
        (tools / tool).symlink_to(found.stdout.strip())
    program(tools / "python3", "echo 3.13")
    done = call(script=checkout / "install_host.sh", PATH=str(tools), PYTHON="")
    assert done.returncode == 1
    assert "no usable Python 3.11 or 3.12" in done.stderr
    assert "python3 is Python 3.13" in done.stderr


def offline(checkout: Path, tmp_path: Path) -> dict[str, str]:
    """Settings under which pip finds no package at all, and home is empty."""
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "home").mkdir(exist_ok=True)
    return {
        "PYTHON": sys.executable if sys.prefix == sys.base_prefix else str(Path(sys.base_prefix) / "bin" / "python3"),
        "HOME": str(tmp_path / "home"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "empty"),
        "PIP_CONFIG_FILE": os.devnull,
    }


def test_an_interrupted_set_up_is_recognised_and_mended(checkout, tmp_path):
    settings = offline(checkout, tmp_path)
    # A venv as a kill leaves it: folders, no pip.
    (checkout / "venv" / "bin").mkdir(parents=True)
    done = call(script=checkout / "install_host.sh", **settings)
    assert "venv/ is incomplete" in done.stdout
    assert done.returncode == 1
    assert "goes on from here" in done.stderr
    # Second run: the venv is whole and kept; a package that pip was killed in the middle of is swept away.
    packages = next((checkout / "venv" / "lib").glob("python3*")) / "site-packages"
    torn = packages / "torch-2.13.0.dist-info"
    torn.mkdir()
    (torn / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    (packages / "~umpy").mkdir()
    done = call(script=checkout / "install_host.sh", **settings)
    assert "1/5" not in done.stdout
    assert "2/5 torch" in done.stdout
    assert not torn.exists()
    assert not (packages / "~umpy").exists()
    # Nothing of Jupyter or Python was written to the home, and nothing half-made passes for complete.
    assert not {".ipython", ".jupyter", ".local"} & {path.name for path in (tmp_path / "home").iterdir()}
    assert not (checkout / "venv" / ".histocrypt-stamp").exists()
    # Moved: scripts in venv/bin name the old folder.
    moved = checkout.rename(tmp_path / "moved")
    stops = program(tmp_path / "stops", 'case "$*" in *version_info*) echo 3.11;; *"-m venv"*) exit 1;; esac')
    done = call(script=moved / "install_host.sh", **{**settings, "PYTHON": str(stops)})
    assert "venv/ is incomplete, moved" in done.stdout
    assert "could not make venv/" in done.stderr
