"""Batches on a machine that the engine has no wheel for, and where other modules of POSIX are absent."""

import subprocess
import sys

import httpx
import numpy as np
from tests.encrypted.serving import wait_for

from histocrypt.encrypted import messages
from histocrypt.encrypted.bundle import load_client
from histocrypt.encrypted.key_owner import Answers, Keys, Request, decrypt, encrypt, prepare
from histocrypt.encrypted.remote import Server

ABSENT = """
import asyncio, os, psutil, sys  # the first and third import POSIX modules where they are at home
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lattigo", "orion_evaluator", "orion", "fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.metadata as metadata
known = metadata.version
def version(name):
    if name.startswith("orion"):
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
for name in ("fork", "forkpty", "geteuid", "getuid", "killpg", "setsid"):
    delattr(os, name)
os.environ["GOGC"] = "25"
from histocrypt.cli import main
sys.argv = ["histocrypt", *sys.argv[1:]]
main()
"""


def command(*arguments) -> list[str]:
    return [sys.executable, "-c", ABSENT, *map(str, arguments)]


def test_a_batch_is_evaluated_without_the_engine(world, tmp_path):
    keys = Keys(world.batch_keys)
    prepared = prepare(keys.client, world.section)
    encrypt(prepared, keys, tmp_path / "request")
    given = ("--bundle", world.bundle, "--evaluation-keys", world.batch_keys / "evaluation.keys")
    done = subprocess.run(
        command("fhe", "evaluate", tmp_path / "request", *given, "-o", tmp_path / "response"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    note, values = decrypt(tmp_path / "response", keys)
    assert values.shape == (36, len(keys.client.about["outputs"]))
    assert np.isfinite(values).all()
    assert note["names"] == prepared.names.tolist()


def test_what_needs_the_engine_says_so(world, tmp_path):
    """Tiles one by one: one sentence."""
    encrypt(prepare(load_client(world.bundle), world.section, spots=1), Keys(world.keys), tmp_path / "request")
    given = ("--bundle", world.bundle, "--evaluation-keys", world.keys / "evaluation.keys")
    done = subprocess.run(
        command("fhe", "evaluate", tmp_path / "request", *given, "-o", tmp_path / "other"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "engine" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_is_served_without_the_engine(world, tmp_path):
    keys = Keys(world.batch_keys)
    prepared = prepare(keys.client, world.section)
    request = Request.of(prepared, keys.client, keys.bound)
    log, tokens, scratch = tmp_path / "log", tmp_path / "token", tmp_path / "scratch"
    scratch.mkdir()
    given = ("--bundle", world.bundle, "--port", 0, "--token-file", tokens, "--scratch", scratch)
    with log.open("w") as written:
        process = subprocess.Popen(command("fhe", "serve", *given), stderr=written)
    try:
        assert wait_for(lambda: " at http" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        address = log.read_text().split(" at ")[-1].split(",")[0]
        with Server(address, tokens) as server, server.session(keys) as session:
            data = messages.pack("input", b"".join(request.encrypt(0, prepared, keys.encryptor())), **request.place(0))
            answer = session.evaluate(request, 0, data, keys.client.most_output_bytes)
        assert httpx.get(f"{address}/v1/health", trust_env=False).json() == {"status": "ok"}
    finally:
        process.terminate()
        process.wait(300)
    answers = Answers(request, keys.decryptor())
    answers.add(0, messages.unpack(answer, file="answer", kind="output", **request.place(0)), file="answer")
    assert np.isfinite(answers.values(file="answer").values).all()
