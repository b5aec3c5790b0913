"""A `send` that was killed, cut off or refused: what is kept, what goes on, and what is left behind."""

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.encrypted.serving import agree, refuses, serving
from tests.encrypted.test_service import Cutting

from histocrypt.encrypted import client, messages, remote
from histocrypt.encrypted.client import Way, send_section
from histocrypt.encrypted.key_owner import Keys, Request, prepare
from histocrypt.errors import InputError
from histocrypt.pipeline.predict import predict_section
from histocrypt.scratch import CLIENT, own_folder, scratch

SPOTS, MESSAGES = 2, 4
"""Few spots go one by one, each of them twice."""
AT = {
    "before any key is whole": "Kept.generate = die",
    "after keys": "Request.of = die",
    "while noting the request": "partial_of = Keys.note; Keys.note = lambda s, r: die_writing(partial_of(s, r))",
    "while encrypting": "Request.encrypt = some",
    "while sending": "client.Session.evaluate = die",
    "after some came back": "Way.keep = dies_at(2, Way.keep)",
    "before all are decrypted": "Way.open = die",
    "before predictions are written": "client.write_result = die",
}
"""Where the client dies, as what is done to it."""
KILLED = """
import os, signal, sys
from pathlib import Path
from histocrypt.encrypted import client
from histocrypt.encrypted.client import Way
from histocrypt.encrypted.engine import KeyOwner as Kept
from histocrypt.encrypted.key_owner import Keys, Request

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_writing(path):
    if "requests" in path.parts and path.parent.is_dir():
        (path.parent / f".{path.stem}.host.1.partial.json").write_text("{")
        die()
    return path

def some(*given, whole=Request.encrypt):
    pieces = whole(*given)
    if given[1] == given[0].batches - 1:
        yield next(pieces)
        die()
    yield from pieces

def dies_at(number, function):
    def counted(*given, **how):
        nonlocal number
        number -= 1
        if not number:
            die()
        return function(*given, **how)
    return counted

HOW
section, address, token, keys, output = sys.argv[1:]
line = {"server": address, "token_file": token, "client": "client-0"}
client.send_section(section, keys=keys, output=output, noise=0, spots=SPOTS, **line)
"""


def killed(where: str, *given, spots: int | None = SPOTS) -> None:
    """Send in a process that dies there."""
    script = KILLED.replace("HOW", AT[where]).replace("SPOTS", str(spots))
    done = subprocess.run([sys.executable, "-c", script, *map(str, given)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.fixture(scope="module")
def few(clear):
    """Predictions in the clear of those spots."""
    return clear[[0, 8]]


@pytest.fixture
def sending(running, tmp_path):
    """How a client sends, in this process; ``encrypted`` lists what it encrypted."""

    def send(section, **changes):
        how = {"server": running.address, "token_file": running.token_file, "client": "client-0", "noise": 0}
        how |= {"keys": tmp_path / "keys", "output": tmp_path / "p.h5ad", "spots": SPOTS}
        return send_section(section, **{**how, **changes})

    encrypted = []
    with pytest.MonkeyPatch.context() as patch:
        whole = Request.encrypt
        patch.setattr(Request, "encrypt", lambda *given: (encrypted.append(given[1]), whole(*given))[1])
        send.encrypted, send.keys, send.output = encrypted, tmp_path / "keys", tmp_path / "p.h5ad"
        yield send


def the_way(keys: Path) -> Path:
    """Return the one private folder in which a section is under way."""
    (folder,) = (path for path in keys.iterdir() if path.is_dir())
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        elif path.suffix == ".ct" or path.suffix == ".key":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return folder


@pytest.mark.parametrize(
    "where", [pytest.param(where, marks=[] if where == "after some came back" else pytest.mark.slow) for where in AT]
)
def test_a_killed_client_goes_on(world, section, running, few, sending, tmp_path, where):
    """It encrypts what is missing and no more; predictions are those of a call that nobody killed; nothing is left."""
    killed(where, section, running.address, running.token_file, sending.keys, sending.output)
    assert not sending.output.exists()
    folder = the_way(sending.keys)
    kept = len(list(folder.glob("re*/[0-9]*.ct"))) if (folder / "secret.key").exists() else 0
    came_back = len(list(folder.glob("response/[0-9]*.ct")))
    secret = (folder / "secret.key").read_bytes() if kept else b""
    if where != "while encrypting":  # the last message: others may have come back
        assert bool(came_back) == (where in list(AT)[-3:])
    assert bool(kept) == (where in list(AT)[-5:])

    used, forget = [], Way.forget

    def look(way):
        used.append((way.keys.folder / "secret.key").read_bytes())
        assert not list(way.keys.folder.rglob(".*.partial*"))
        forget(way)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Way, "forget", look)
        done = sending(section)
    assert len(sending.encrypted) == MESSAGES - kept
    assert not kept or used == [secret]
    assert done.spots == SPOTS
    agree(world, sending.output, few)
    assert not sending.keys.exists()


@pytest.mark.slow
def test_a_killed_client_of_a_batch_goes_on(world, running, sending, tmp_path):
    given = (world.section, running.address, running.token_file, sending.keys, sending.output)
    killed("while encrypting", *given, spots=None)
    assert list(the_way(sending.keys).glob("request/.*.partial*"))
    sending(world.section, spots=None)
    assert sending.encrypted == [0]
    assert not sending.keys.exists()


def test_a_cut_line_costs_what_was_under_way(world, section, running, few, sending, monkeypatch):
    """The line breaks for good after some answers; the same call over another line goes on."""
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "MOST_IN_FLIGHT", 1)
    line, came_back, keep = Cutting(running.port, []), [], Way.keep

    def cut(way, index, **how):
        keep(way, index, **how)
        came_back.append(index)
        line.hang_up()

    line.start()
    with monkeypatch.context() as patch:
        patch.setattr(Way, "keep", cut)
        with pytest.raises(InputError) as error:
            sending(section, server=line.address)
    assert error.value.file == line.address
    folder = the_way(sending.keys)
    kept = {path.stem for path in folder.glob("re*/[0-9]*.ct")}
    assert list(folder.glob("response/*.ct"))
    assert (folder / "session").is_file()
    first = len(sending.encrypted)
    assert first == len(kept) < MESSAGES
    sending(section)
    assert sorted(sending.encrypted) == list(range(MESSAGES))
    agree(world, sending.output, few)
    assert not sending.keys.exists()


@pytest.mark.slow
def test_a_killed_server_costs_what_was_under_way(world, section, few, sending, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    keep, number = Way.keep, []
    with serving(world.bundle, tmp_path / "first") as server, monkeypatch.context() as patch:

        def kill(way, index, **how):
            keep(way, index, **how)
            number.append(index)
            if len(number) == 2:
                os.kill(server.process.pid, signal.SIGKILL)

        patch.setattr(Way, "keep", kill)
        patch.setattr(remote, "MOST_IN_FLIGHT", 1)
        with pytest.raises(InputError):
            sending(section, server=server.address, token_file=server.token_file)
        left = list(server.scratch.iterdir())
        assert left  # a killed server leaves its folder ...
    with serving(world.bundle, tmp_path / "second", "--scratch", server.scratch) as server:
        assert not any(folder.exists() for folder in left)  # ... and the next one sweeps it
        sending(section, server=server.address, token_file=server.token_file)
    assert sorted(sending.encrypted) == list(range(MESSAGES))
    agree(world, sending.output, few)
    assert not sending.keys.exists()


def test_a_refused_answer_burns_the_keys(section, sending, monkeypatch):
    """Each refusal tells a liar a little: nothing is left that a next call could go on with."""
    honest = client.Session.evaluate

    def lie(session, request, index, message, most, *, into):
        """Give the first spot's result for the second one's."""
        honest(session, request, index, message, most, into=into)
        lie.payload = messages.read_message(into, "output") if index == 0 else lie.payload
        if index == 1:
            messages.write_message(into, "output", lie.payload, **request.place(index))

    monkeypatch.setattr(remote, "MOST_IN_FLIGHT", 1)  # one after the other
    monkeypatch.setattr("histocrypt.encrypted.key_owner.places_of", lambda *_, **__: np.array([0, 1, 0, 1]))
    monkeypatch.setattr(client.Session, "evaluate", lie)
    with pytest.raises(InputError) as error:
        sending(section)
    assert error.value.field.startswith("spot ")
    assert not sending.output.exists()
    assert not sending.keys.exists()


def test_a_section_is_under_way_once(world, section, few, sending, monkeypatch):
    go_on, under_way, honest = threading.Event(), threading.Event(), client.Session.evaluate

    def wait(*given, **how):
        under_way.set()
        go_on.wait(300)
        return honest(*given, **how)

    sending.keys.mkdir(mode=0o700)  # the user's own, which stays
    monkeypatch.setattr(client.Session, "evaluate", wait)
    first = threading.Thread(target=sending, args=(section,))
    first.start()
    try:
        assert under_way.wait(300)
        folder = the_way(sending.keys)
        with refuses("--keys", file=folder):
            sending(section, output=sending.output.with_name("other.h5ad"))
        assert folder.is_dir()
    finally:
        go_on.set()
        first.join()
    agree(world, sending.output, few)
    assert not list(sending.keys.iterdir())


def test_a_full_disk_is_one_sentence_and_costs_nothing(world, running, sending, tmp_path):
    """While a batch is encrypted; the same call goes on with the same keys once there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = Request.encrypt

    def fills(*given):
        for number, piece in enumerate(whole(*given)):
            if number == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
            yield piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Request, "encrypt", fills)
        try:
            with refuses("--keys") as error:
                sending(world.section, spots=None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = the_way(sending.keys)
    assert error.value.file == folder
    assert not list(folder.rglob("*.ct"))
    secret = (folder / "secret.key").stat().st_ino
    with pytest.MonkeyPatch.context() as patch:
        opened = Way.open
        patch.setattr(Way, "open", lambda way, **how: (same(way), opened(way, **how))[1])

        def same(way):
            assert (way.keys.folder / "secret.key").stat().st_ino == secret

        sending(world.section, spots=None)
    predict_section(world.model, world.section, tmp_path / "clear.h5ad")
    import anndata

    agree(world, sending.output, anndata.read_h5ad(tmp_path / "clear.h5ad"))
    assert not sending.keys.exists()


def test_tiles_in_the_clear_are_swept(world, tmp_path):
    """A killed process's folder is private, and goes when the next one starts; a living one's stays."""
    script = (
        "import os, sys, time\nfrom histocrypt.scratch import scratch\n"
        "with scratch(sys.argv[1]) as folder:\n"
        "    (folder / 'tiles.h5').write_bytes(bytes(1000))\n"
        "    print(folder, flush=True)\n    time.sleep(60)"
    )
    lives = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    killed = Path(lives.stdout.readline().strip())
    assert stat.S_IMODE(killed.stat().st_mode) == 0o700
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").write_text("of somebody else")
    (tmp_path / f"{CLIENT}link").symlink_to(elsewhere)
    being_made = tmp_path / f"{CLIENT}new"
    being_made.mkdir()
    with scratch(tmp_path) as mine:
        assert (killed / "tiles.h5").is_file()
        assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    assert not mine.exists()
    lives.kill()
    lives.wait()
    assert killed.exists()
    prepare(Keys(world.keys).client, world.section, folder=tmp_path)
    assert not killed.exists()
    assert being_made.exists()
    assert (elsewhere / "lock").read_text() == "of somebody else"
    folder, lock = own_folder(tmp_path, CLIENT)
    lock.release()
    shutil.rmtree(folder)
