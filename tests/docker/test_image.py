"""The image, built and started: what `docker build` and `docker run` give, through buildah.

sudo bash tests/docker/build.sh
sudo venv/bin/python -m pytest -m slow tests/docker
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest
import websocket
import yaml
from tests.small_study import SMALL
from tests.test_docker import ROOT, status

IMAGE = os.environ.get("HISTOCRYPT_IMAGE", "localhost/histocrypt")
BUILD = "sudo bash tests/docker/build.sh"
SOMEBODY = 4321
"""Neither root nor the user of the image, as ``docker run --user`` may name."""
NOT_CODE = {".h5ad", ".h5", ".svs", ".tif", ".safetensors", ".pem", ".key", ".env"}


def buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def absent() -> str:
    if shutil.which("buildah") is None or os.geteuid() != 0:
        return "no buildah here, or not root: an image cannot be started"
    found = subprocess.run(["buildah", "inspect", "--type", "image", IMAGE], capture_output=True, check=False)
    return f"{IMAGE} is not built: {BUILD}" if found.returncode else ""


@pytest.fixture(scope="module")
def image() -> dict:
    """What the image says of itself."""
    if reason := absent():
        pytest.skip(reason)
    return json.loads(buildah("inspect", "--type", "image", IMAGE))


@dataclass
class Container:
    """The image with ``data/`` mounted for reading and ``outputs/`` for writing, as the README says."""

    name: str
    folder: Path
    user: int

    def command(self, *arguments: str, **settings: str) -> list[str]:
        lent = [f"{self.folder}/data:/histocrypt/data:ro", f"{self.folder}/outputs:/histocrypt/outputs"]
        given = [f"{name}={value}" for name, value in {"OMP_NUM_THREADS": "1", **settings}.items()]
        options = [option for value in lent for option in ("--volume", value)]
        options += [option for value in given for option in ("--env", value)]
        return [
            "buildah",
            "run",
            "--isolation",
            "chroot",
            "--user",
            str(self.user),
            *options,
            self.name,
            "--",
            *arguments,
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)


@pytest.fixture(params=[1000, SOMEBODY], ids=["its own user", "somebody"])
def container(request, image, tmp_path) -> Iterator[Container]:
    if image["Docker"]["config"]["User"] != "1000":
        pytest.fail("the image does not start as uid 1000")
    for name in ("data", "outputs"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, request.param, request.param)
    (tmp_path / "data" / "small.yaml").write_text(yaml.safe_dump({**SMALL, "name": "small"}))
    # pytest's folders are its user's alone.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    name = buildah("from", IMAGE)
    try:
        yield Container(name, tmp_path, request.param)
    finally:
        buildah("rm", name)


@contextmanager
def started(container: Container, image: dict) -> Iterator[tuple[str, Path]]:
    """Start what the image starts by itself; yield the server's address and what it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    printed = container.folder / "printed"
    default = image["Docker"]["config"]["Cmd"]
    command = container.command(*default, HISTOCRYPT_PORT=str(port), HISTOCRYPT_ADDRESS="127.0.0.1")
    with printed.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        for _ in range(1200):
            assert server.poll() is None, printed.read_text()
            if status(f"http://127.0.0.1:{port}/api") == 200:
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", printed
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answer(url: str, token: str, *, post: dict | None = None) -> dict | list:
    body = None if post is None else json.dumps(post).encode()
    with urlopen(Request(url, data=body, headers={"Authorization": f"token {token}"}), timeout=60) as found:
        return json.load(found)


def execute(url: str, token: str, code: str) -> str:
    """Return what ``code`` prints in a fresh kernel of the server, asked as a notebook's page asks."""
    kernel = answer(f"{url}/api/kernels", token, post={"name": "histocrypt"})["id"]
    address = f"{url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels?token={token}"
    said = ""
    channel = websocket.create_connection(address, timeout=120)
    header = {"msg_id": "1", "username": "", "session": "1", "msg_type": "execute_request", "version": "5.3"}
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    request = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    channel.send(json.dumps(request))
    while True:
        message = json.loads(channel.recv())
        if message["parent_header"].get("msg_id") != "1":
            continue
        assert message["msg_type"] != "error", message["content"]
        said += message["content"].get("text", "") if message["msg_type"] == "stream" else ""
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            channel.close()
            return said


@pytest.mark.slow
def test_the_server_wants_the_token_that_it_printed(container, image):
    with started(container, image) as (url, printed):
        token = re.search(r"/lab\?token=([0-9a-f]{48})", printed.read_text())[1]
        assert status(f"{url}/api/status") == 403
        assert status(f"{url}/api/status?token=wrong") == 403
        assert status(f"{url}/api/contents?token={token}") == 200
        assert status(f"{url}/lab?token={token}") == 200
        # The address is in the log, and nowhere that another process could read it.
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert token.encode() not in process.read_bytes()
            except OSError:
                continue
        assert not any(token in file.read_text() for file in container.folder.rglob("*.json"))

        said = execute(url, token, "import os, sys, histocrypt; print(os.getuid(), sys.prefix, histocrypt.__file__)")
        assert said.split() == [str(container.user), "/usr/local", "/histocrypt/lib/histocrypt/__init__.py"]
        # Ctrl-S in a notebook.
        notebook = answer(f"{url}/api/contents/notebooks/72_viewer.ipynb", token)
        body = json.dumps({"type": "notebook", "format": "json", "content": notebook["content"]}).encode()
        saved = Request(f"{url}/api/contents/notebooks/72_viewer.ipynb", data=body, method="PUT")
        saved.add_header("Authorization", f"token {token}")
        with urlopen(saved, timeout=60) as done:
            assert done.status == 200
    assert status(f"{url}/api") is None


@pytest.mark.slow
def test_a_notebook_and_a_study_run_inside(container):
    outputs = container.folder / "outputs"
    done = container.run(
        "papermill", "notebooks/10_eda.ipynb", "outputs/10_eda.ipynb", "-p", "study", "/histocrypt/data/small.yaml"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert nbformat.read(outputs / "10_eda.ipynb", as_version=4).metadata["papermill"]["exception"] is None
    assert (outputs / "small" / "eda" / "summary.json").is_file()
    done = container.run("histocrypt", "run", "data/small.yaml", "--until", "10_eda", "--cores", "1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (outputs / "small" / "notebooks" / "10_eda.ipynb").is_file()
    assert {path.stat().st_uid for path in outputs.rglob("*")} == {container.user}


@pytest.mark.slow
def test_who_it_is_and_where_it_writes(container):
    assert container.run("id", "-u").stdout.strip() == str(container.user)
    for refused in ("data/x", "/usr/local/x", "/etc/x", "/x"):
        assert container.run("touch", refused).returncode != 0, refused
    for allowed in ("outputs/x", "/tmp/x", "/home/histocrypt/x", "notebooks/x.ipynb"):
        assert container.run("touch", allowed).returncode == 0, allowed


@pytest.mark.slow
def test_the_doctor_finds_nothing_amiss(container):
    done = container.run("histocrypt", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_nothing_private_is_in_the_layers(image):
    name = buildah("from", IMAGE)
    try:
        root = Path(buildah("mount", name))
        code = [path.relative_to(root / "histocrypt") for path in (root / "histocrypt").rglob("*") if path.is_file()]
        assert {path for path in code if path.parts[0] in {"data", "outputs"}} == {
            Path("data/README.md"),
            Path("outputs/README.md"),
        }
        # What an editable install leaves beside the code.
        code = [path for path in code if ".egg-info" not in str(path) and "__pycache__" not in path.parts]
        assert not [path for path in code if path.name.startswith(".") or path.suffix in NOT_CODE]
        assert not {"venv", ".git", ".ci"} & {path.parts[0] for path in code}
        assert Path("lib/histocrypt/cli.py") in code
        for secret in ("root/.netrc", "root/.git-credentials", "root/.ssh", "root/.config", "root/.cache/huggingface"):
            assert not (root / secret).exists()
        settings = root / "etc" / "pip.conf"
        assert not settings.exists() or settings.stat().st_size == 0
    finally:
        buildah("rm", name)

    about = json.dumps(image)
    assert not [variable for variable in image["Docker"]["config"]["Env"] if re.search("TOKEN|SECRET|PASS", variable)]
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        for word in ast.literal_eval(line.split("=", 1)[1]).split():
            assert len(word) < 6 or word not in about, f"pip's {line.split('=', 1)[0]} is in the image's history"


@pytest.mark.slow
def test_its_health_check_is_kept(image):
    check = image["Docker"]["config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    assert "/api" in check[-1]
    assert (ROOT / "docker" / "start.sh").is_file()
