"""The image: safe by default, its layers in the right order, its start script tried for real."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).resolve().parents[1]


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions: comments dropped, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def first(keyword: str, containing: str) -> int:
    return next(i for i, (key, rest) in enumerate(instructions()) if key == keyword and containing in rest)


def test_ends_as_an_ordinary_user():
    users = [rest.strip() for key, rest in instructions() if key == "USER"]
    assert users
    assert users[-1].split(":")[0] not in {"root", "0"}


def test_layers_torch_then_lock_then_code():
    torch = first("RUN", "torch==$TORCH_VERSION")
    lock = first("RUN", "-r /tmp/requirements.lock")
    code = first("COPY", ". /histocrypt")
    package = first("RUN", "--no-deps --no-build-isolation -e .")
    assert torch < first("COPY", "requirements.lock") < lock < code < package
    # A file copied before it would reinstall torch whenever that file changes.
    assert not any(key == "COPY" for key, _ in instructions()[:torch])


def test_torch_versions_are_the_locked_ones():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    arguments = dict(rest.split("=", 1) for key, rest in instructions() if key == "ARG")
    assert f"torch=={arguments['TORCH_VERSION']}" in lock
    assert f"torchvision=={arguments['TORCHVISION_VERSION']}" in lock
    assert arguments["DEVICE"] == "cpu"


RULES = [
    line
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def pattern(rule: str) -> re.Pattern:
    """Return what a rule of a .dockerignore matches."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", rule.removeprefix("!"))
    signs = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(signs.get(part, re.escape(part)) for part in parts))


PATTERNS = [(not rule.startswith("!"), pattern(rule)) for rule in RULES]


def goes_in(path: str) -> bool:
    """Return whether a file goes to the builder: the last rule that matches it or a folder above it decides.

    Some builders do not look into a folder unless a rule names it, so that has to hold too.
    """
    above = [str(parent) for parent in Path(path).parents if str(parent) != "."]
    entered = all(any(f"{rule[1:]}/".startswith(f"{folder}/") for rule in RULES if rule[0] == "!") for folder in above)
    left_out = False
    for out, matching in PATTERNS:
        if any(matching.fullmatch(place) for place in (path, *above)):
            left_out = out
    return entered and not left_out


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_all_that_git_tracks_goes_into_the_image_and_history_stays_out():
    names = [name for name in tracked() if not (name.startswith(".") or name == "Dockerfile")]
    assert len(names) > 300
    missing = [name for name in names if not goes_in(name)]
    assert not missing, "name them in .dockerignore"
    assert not [name for name in (".git/config", ".ci/run", "venv/bin/python", ".env", "Dockerfile") if goes_in(name)]


def test_nothing_that_is_planted_goes_into_the_image():
    folders = {str(Path(name).parent) for name in tracked()} | {
        "data",
        "outputs",
        "outputs/demo",
        "notebooks/mine",
        "new",
    }
    planted = (
        *("patients.csv", "patients.tif", "patients.png", "patients.md", "patients.txt", "patients.json", "S_1.h5ad"),
        *(
            "99_mine.ipynb",
            "30_training-Copy1.ipynb",
            "secret.key",
            "token",
            "tokens.txt",
            "study.yaml",
            ".env",
            "a.npz",
        ),
        *(
            "scan.svs",
            "a.rds",
            "report.html",
            "requirements.txt",
            "README.md.bak",
            "id_rsa",
            "x.pem",
            "run.sh",
            "a.yml",
        ),
        *(".ipynb_checkpoints/30_training-checkpoint.ipynb", "mine/patients.py", "__pycache__/a.pyc", "README"),
    )
    known = set(tracked())
    places = [name if folder == "." else f"{folder}/{name}" for folder in sorted(folders) for name in planted]
    assert len(places) > 800
    assert not [place for place in places if place not in known and goes_in(place)]


def test_what_notebooks_show_is_cleared_before_it_becomes_a_layer(tmp_path):
    cell = {"cell_type": "code", "source": "x", "metadata": {}, "execution_count": 7}
    secret = {"output_type": "stream", "text": "patient 4711"}
    notebook = {
        "cells": [
            {**cell, "outputs": [secret]},
            {"cell_type": "markdown", "source": "y", "metadata": {}, "attachments": {"a.png": "4711"}},
        ],
        "metadata": {"kernelspec": {"name": "k"}, "widgets": {"state": "4711"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "a.ipynb"
    file.write_text(json.dumps(notebook))
    subprocess.run([sys.executable, "-I", ROOT / "docker" / "clear_outputs.py", tmp_path], check=True)
    assert "4711" not in file.read_text()
    found = json.loads(file.read_text())
    assert [one["source"] for one in found["cells"]] == ["x", "y"]
    assert found["metadata"] == {"kernelspec": {"name": "k"}}
    (cleared,) = (i for i, (key, rest) in enumerate(instructions()) if key == "RUN" and "clear_outputs.py" in rest)
    copied = [i for i, (key, rest) in enumerate(instructions()) if key == "COPY" and "/histocrypt" in rest]
    stages = [i for i, (key, _) in enumerate(instructions()) if key == "FROM"]
    assert copied[0] < cleared < stages[-1] < copied[1]
    assert "--from=code" in instructions()[copied[1]][1]


def test_documented_ports_are_published_on_loopback_only():
    published = re.findall(r"-p (\S*\d)", (ROOT / "docs" / "docker.md").read_text(encoding="utf-8"))
    assert len(published) >= 3
    assert all(port.startswith("127.0.0.1:") for port in published)


@contextmanager
def started(tmp_path: Path, **settings: str):
    """Start ``docker/start.sh`` on a free loopback port; yield its port, what it printed, and its environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "HISTOCRYPT_PORT": str(port),
        "HISTOCRYPT_ADDRESS": "127.0.0.1",
        **settings,
    }
    printed = tmp_path / "printed"
    command = ["bash", str(ROOT / "docker" / "start.sh"), f"--ServerApp.root_dir={home}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    with printed.open("w") as out:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=out, stderr=out, start_new_session=True)
    try:
        for _ in range(6000):
            assert server.poll() is None, printed.read_text()
            if status(f"http://127.0.0.1:{port}/api") == 200:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the server did not answer within ten minutes:\n" + printed.read_text())
        yield port, printed, environment
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def status(url: str, **headers: str) -> int | None:
    """Return the HTTP status of ``url``, or None where nobody listens."""
    try:
        with urlopen(Request(url, headers=headers), timeout=120) as answer:
            return answer.status
    except HTTPError as error:
        return error.code
    except OSError:
        return None


def health_check() -> list[str]:
    command = next(rest for key, rest in instructions() if key == "HEALTHCHECK").split(" CMD ", 1)[1]
    return json.loads(command)


def test_a_fresh_token_is_made_printed_and_required(tmp_path):
    with started(tmp_path) as (port, printed, environment):
        opened = re.search(rf"http://127\.0\.0\.1:{port}/lab\?token=([0-9a-f]{{48}})", printed.read_text())
        assert opened, printed.read_text()
        url = f"http://127.0.0.1:{port}/api/status"
        assert status(url) == 403
        assert status(f"{url}?token=wrong") == 403
        assert status(url, Authorization=f"token {opened[1]}") == 200
        # The command of the image's own health check, as Docker would run it.
        _, *arguments = health_check()
        assert subprocess.run([sys.executable, *arguments], env=environment, check=False).returncode == 0


def test_tokenless_only_by_name_with_a_warning_and_for_local_names_only(tmp_path):
    with started(tmp_path, HISTOCRYPT_NO_TOKEN="1", JUPYTER_TOKEN="unused") as (port, printed, _):
        assert "WARNING: HISTOCRYPT_NO_TOKEN=1" in printed.read_text()
        url = f"http://127.0.0.1:{port}/api/status"
        assert status(url) == 200
        assert status(url, Host="attacker.example") == 403


def test_the_health_check_fails_where_nothing_answers():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, *arguments = health_check()
    assert program == "python"
    assert shlex.join(arguments).count("/api")
    environment = {**os.environ, "HISTOCRYPT_PORT": str(port)}
    done = subprocess.run([sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode != 0
