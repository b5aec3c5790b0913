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


def test_data_and_history_stay_out_of_the_image():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    # Nothing but what is named goes in: what somebody keeps beside the code may be called anything.
    assert rules[0] == "*"
    named = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert {name for name in named if name.startswith(("data", "outputs"))} == {"data/README.md", "outputs/README.md"}
    assert not {".git", ".ci", "venv"} & named
    assert {"lib", "notebooks", "workflow", "docker", "pyproject.toml"} <= named


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
        for _ in range(600):
            assert server.poll() is None, printed.read_text()
            if status(f"http://127.0.0.1:{port}/api") == 200:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the server did not answer within a minute:\n" + printed.read_text())
        yield port, printed, environment
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def status(url: str, **headers: str) -> int | None:
    """Return the HTTP status of ``url``, or None where nobody listens."""
    try:
        with urlopen(Request(url, headers=headers), timeout=20) as answer:
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
