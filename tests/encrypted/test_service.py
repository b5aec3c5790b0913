"""``serve`` and ``send``: a real server process, real ciphertexts, and clients that mean it harm."""

import asyncio
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress

import anndata
import httpx
import numpy as np
import pytest
from tests.conftest import write_tiny_section
from tests.encrypted.serving import serving, wait_for

from histocrypt.encrypted import access, endpoints, messages, sessions
from histocrypt.encrypted.bundle import load_bundle, load_client
from histocrypt.encrypted.compile import compile_model
from histocrypt.encrypted.connection import Server
from histocrypt.encrypted.inputs import prepare
from histocrypt.encrypted.key_form import check_evaluation_keys
from histocrypt.encrypted.key_owner import Keys, keygen
from histocrypt.encrypted.remote import send_section
from histocrypt.encrypted.request import Answers, Request
from histocrypt.encrypted.service import serve
from histocrypt.errors import InputError
from histocrypt.training.apply import predict_section


@pytest.fixture(scope="module")
def running(world, tmp_path_factory):
    """A server for two clients."""
    with serving(world.bundle, tmp_path_factory.mktemp("serving"), tokens=2) as running:
        yield running


@pytest.fixture(autouse=True)
def lives_on(request):
    """After every test that used the server, it still answers."""
    yield
    if "running" in request.fixturenames:
        assert request.getfixturevalue("running").is_well()


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """A small one."""
    return write_tiny_section(tmp_path_factory.mktemp("section"), "A", "PA", n_side=3)


@pytest.fixture(scope="module")
def clear(world, section, tmp_path_factory):
    path = tmp_path_factory.mktemp("clear") / "clear.h5ad"
    predict_section(world.model, section, path)
    return anndata.read_h5ad(path)


@pytest.fixture(scope="module")
def other_keys(world, tmp_path_factory):
    """Another client's."""
    folder = tmp_path_factory.mktemp("other") / "keys"
    keygen(world.bundle / "client.json", folder)
    return folder


@pytest.fixture(scope="module")
def session(world, running):
    """An open session of the first client; its path."""
    with running.connect() as server, server.session(Keys(world.keys)) as opened:
        yield opened.path


@pytest.fixture(scope="module")
def encrypted(world, section):
    """A request and its first two input messages."""
    keys = Keys(world.keys)
    prepared = prepare(keys.client, section)
    request, owner = Request.of(prepared, keys.client, keys.bound), keys.encryptor()
    data = [
        messages.pack("input", request.encrypt(index, prepared.values, owner), **request.place(index))
        for index in range(2)
    ]
    return request, data


def agree(world, found, clear):
    """Check that a file's predictions are the clear ones but for the scheme's error, by name and in this order."""
    found = anndata.read_h5ad(found)
    assert list(clear.obs_names) == list(found.obs_names)
    assert list(clear.var_names) == list(found.var_names)
    statistics = json.loads((world.model / "model.json").read_text())["target_statistics"]
    for layer in clear.layers:
        sd = np.array([statistics[f"{layer}:{gene}"]["sd"] for gene in clear.var_names])
        assert 0 < (np.abs(clear.layers[layer] - found.layers[layer]) / sd).max() < 1e-2


def refused(answer: httpx.Response, status: int, says: str):
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert list(error) == ["error"]
    assert says in error["error"]
    assert "\n" not in error["error"]
    assert "Traceback" not in error["error"]


def test_send_predicts_as_in_the_clear(world, section, running, clear, tmp_path):
    """The command, from a section and no keys to a prediction; nothing stays on the server."""
    command = [sys.executable, "-m", "histocrypt", "fhe", "send", section, "--server", running.address]
    command += ["--token-file", running.token_file, "--keys", tmp_path / "keys", "-o", tmp_path / "p.h5ad"]
    done = subprocess.run([*map(str, command), "--noise", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    agree(world, tmp_path / "p.h5ad", clear)
    for stage in ("keys", "upload", "encrypt", "evaluate", "decrypt", "MiB up"):
        assert stage in done.stdout
    assert (tmp_path / "keys" / "secret.key").stat().st_mode & 0o777 == 0o600
    assert not list((tmp_path / "keys").glob("requests/*"))
    assert not list(running.scratch.rglob("*.keys"))
    assert "ended by its client" in running.log.read_text().splitlines()[-1]
    assert "GiB of memory" in running.log.read_text()
    assert running.token not in running.log.read_text() + done.stderr


def test_two_clients_at_once(world, section, running, clear, other_keys, tmp_path):
    """Each gets its own right answer, and cannot use the other's session."""
    tokens = running.token_file.read_text().split()
    results = {}

    def client(number, keys):
        token_file = tmp_path / f"token{number}"
        token_file.touch(mode=0o600)
        token_file.write_text(tokens[number])
        how = {"server": running.address, "token_file": token_file, "keys": keys, "noise": 0}
        results[number] = send_section(section, output=tmp_path / f"{number}.h5ad", **how)

    threads = [threading.Thread(target=client, args=one) for one in enumerate((world.keys, other_keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        agree(world, tmp_path / f"{number}.h5ad", clear)
    theirs = running.open(Keys(world.keys))
    second = {"Authorization": f"Bearer {tokens[1]}"}
    refused(running.http.get(theirs, headers=second), 404, "no such session")
    refused(running.http.delete(theirs, headers=second), 404, "no such session")
    assert running.http.delete(theirs).status_code == 204


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic {}", "Bearer", "{}"])
def test_no_token(running, given):
    headers = {} if given is None else {"Authorization": given.format(running.token)}
    with httpx.Client(base_url=running.address, headers=headers, trust_env=False) as stranger:
        assert stranger.get("/v1/health").json() == {"status": "ok"}
        for method, path in (("GET", "/v1/client"), ("POST", "/v1/sessions"), ("GET", "/docs"), ("PUT", "/")):
            refused(stranger.request(method, path), 401, "token")


def test_send_with_a_wrong_token(section, running, tmp_path):
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("x" * 32)
    with pytest.raises(InputError, match="needs the server's token") as error:
        send_section(
            section, server=running.address, token_file=tmp_path / "token", keys=tmp_path / "keys",
            output=tmp_path / "p.h5ad",
        )  # fmt: skip
    assert "x" * 32 not in str(error.value)
    assert not (tmp_path / "keys").exists()


def test_unknown_requests(running, session):
    refused(running.http.get("/v1/nothing"), 404, "Not Found")
    refused(running.http.get("/openapi.json"), 404, "Not Found")
    refused(running.http.get("/v1/sessions/guessed"), 404, "no such session")
    refused(running.http.patch(session), 405, "Not Allowed")
    refused(running.http.post(f"{session}/requests/short/0", params={"of": 1}), 422, "pattern")
    refused(running.http.post("/v1/sessions", content=b"[" * 4000), 422, "must be")
    refused(running.http.post("/v1/sessions", json={"client": "0" * 32, "bytes": 1}), 409, "another compiled model")


def forged(data, **changes):
    """Return a message whose header claims to be right."""
    header, start = messages._header(data, "message")
    payload = changes.pop("payload", data[start:])
    rest = {key: value for key, value in header.items() if key not in ("kind", "bytes", "sha256")}
    return messages.pack("input", payload, **{**rest, **changes})


def test_spoilt_ciphertexts(world, running, session, encrypted, other_keys):
    request, (first, second) = encrypted
    good = running.post(session, request, 0, first)
    assert good.status_code == 200
    refused(running.post(session, request, 0, first[:-100]), 422, "cut short")
    refused(running.post(session, request, 0, b""), 422, "cut short")
    refused(running.post(session, request, 0, np.random.default_rng(0).bytes(len(first))), 422, "not a message")
    refused(running.post(session, request, 0, first[:-9] + bytes([first[-9] ^ 1]) + first[-8:]), 422, "checksum")
    refused(running.post(session, request, 0, second), 422, "out of its place")
    refused(running.post(session, request, 0, first, name="0" * 32), 422, "another request")
    header = first[:12] + struct.pack("<I", 4000) + b"[" * 4000
    refused(running.post(session, request, 0, header), 422, "header is damaged")
    theirs = Keys(other_keys)
    refused(running.post(session, request, 0, forged(first, key=theirs.key)), 422, "under another key")
    client = load_client(world.bundle)
    lower = Keys(world.keys).encryptor().encrypt(np.zeros(client.parameters.slots), client.level - 1)
    data = forged(first, payload=messages.pack_list([lower]))
    refused(running.post(session, request, 0, data), 422, "not a ciphertext under these parameters")
    (ciphertext,) = messages.unpack_list(messages.unpack(first, file=0, kind="input"), count=1, file=0)
    for old, new in ((b'"0x0d"]', b'"0xffffffff"]'), (b'"IsBatched":"0x01"', b'"IsBatched":[[[[]]]]')):
        assert old in ciphertext
        data = forged(first, payload=messages.pack_list([ciphertext.replace(old, new)]))
        refused(running.post(session, request, 0, data), 422, "not a ciphertext under these parameters")
    assert running.post(session, request, 0, first).content == good.content


def test_oversized_bodies_are_not_read(running, session, encrypted):
    """Neither where the size is stated, nor where it comes in chunks without end."""
    request, _ = encrypted
    where = f"{session}/requests/{request.name}/0?of={request.batches}"
    for headers, body in (
        ("Content-Length: 5000000000", b""),
        ("Transfer-Encoding: chunked", b"100000\r\n" + bytes(1 << 20) + b"\r\n"),
    ):
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as line:
            head = f"POST {where} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.token}\r\n{headers}\r\n\r\n"
            line.sendall(head.encode())
            try:
                for _ in range(64 if body else 0):
                    line.sendall(body)
            except OSError:  # it hung up: what it said may be lost
                continue
            assert b"413" in line.recv(4096).split(b"\r\n")[0]


def test_replayed_in_another_session(world, running, session, encrypted, other_keys):
    """A ciphertext that was overheard is of no use in another client's session."""
    request, (first, _) = encrypted
    with running.connect() as server, server.session(Keys(other_keys)) as theirs:
        refused(running.post(theirs.path, request, 0, first), 422, "under another key")
    refused(running.post(theirs.path, request, 0, first), 404, "no such session")
    assert running.post(session, request, 0, first).status_code == 200


def test_swapped_keys_give_noise_that_is_recognised(world, running, encrypted, other_keys, tmp_path):
    """Another client's evaluation keys, relabelled: the server cannot know, the key owner notices."""
    mine, request = Keys(world.keys), encrypted[0]
    shutil.copytree(world.keys, tmp_path / "keys", ignore=shutil.ignore_patterns("requests"))
    header, start = messages.open_message(other_keys / "evaluation.keys", "evaluation keys")
    payload = (other_keys / "evaluation.keys").read_bytes()[start:]
    messages.write_message(tmp_path / "keys" / "evaluation.keys", "evaluation keys", payload, **mine.bound)
    with running.connect() as server, server.session(Keys(tmp_path / "keys")) as opened:
        result = opened.evaluate(request, 0, encrypted[1][0], 10**7)
    payload = messages.unpack(result, file="answer", kind="output", **request.place(0))
    with pytest.raises(InputError, match="plausible|copies"):
        Answers(request, mine.decryptor()).add(0, payload, file="answer")


def upload(running, path, data, chunk=4 << 20):
    for start in range(0, len(data), chunk):
        answer = running.http.put(f"{path}/keys/{start}", content=data[start : start + chunk])
        if answer.status_code != 200:
            break
    return answer


def test_spoilt_keys(world, running):
    """Lengths in them are checked before the engine reads them: it would ask for terabytes, and die."""
    keys = Keys(world.keys)
    good = (world.keys / "evaluation.keys").read_bytes()
    header, start = messages._header(good, "keys")

    def at(offset, value):
        return good[start : start + offset] + struct.pack("<Q", value) + good[start + offset + 8 :]

    garbage = np.random.default_rng(0).bytes(len(good) - start)
    refused(upload(running, running.open(keys), good[:start] + garbage), 422, "checksum")
    for payload in (garbage, at(41, 10**10)):
        data = messages.pack("evaluation keys", payload, **keys.bound)
        answer = running.http.post("/v1/sessions", json={"client": keys.client.hash, "bytes": len(data)})
        answer = upload(running, f"/v1/sessions/{answer.json()['session']}", data)
        refused(answer, 422, "no evaluation keys for these parameters")
        assert str(running.scratch) not in answer.text
    size = {"client": keys.client.hash, "bytes": 2 * len(good)}
    refused(running.http.post("/v1/sessions", json=size), 413, "at most")
    assert not list(running.scratch.rglob("*.keys"))


def test_every_length_in_keys_is_checked(world, tmp_path):
    client, path = load_client(world.bundle), tmp_path / "keys"
    good = (world.keys / "evaluation.keys").read_bytes()[-sum(_sizes(client)) :]
    path.write_bytes(good)
    check_evaluation_keys(path, client.parameters, client.rotations, start=0)
    one = 1 + _sizes(client)[1]  # what the relinearisation key takes
    for where in (0, 1, 9, 17, 25, 33, 41, one, one + 1, one + 5, one + 13, one + 21, one + 29, len(good) - 8 * 8193):
        spoilt = bytearray(good)
        spoilt[where] ^= 2
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match="no evaluation keys for these parameters"):
            check_evaluation_keys(path, client.parameters, client.rotations, start=0)
    for data in (good[:-8], good + bytes(8), good[:100]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="bytes"):
            check_evaluation_keys(path, client.parameters, client.rotations, start=0)


def _sizes(client):
    """Bytes of what comes before, of the relinearisation key, between, and of all rotation keys."""
    p = client.parameters
    digits = -(-len(p.logq) // len(p.logp))
    polynomials = 2 * digits * (2 + (len(p.logq) + len(p.logp)) * (1 + 2**p.logn))
    key = 8 * (2 + 2 * digits + polynomials)
    return 1, key, 5, len(client.rotations) * (24 + key)


def test_chunks_of_keys(world, running, encrypted):
    """Out of turn, larger than announced, cut off by a client that dies; then it goes on where it stopped."""
    good = (world.keys / "evaluation.keys").read_bytes()
    path = running.open(Keys(world.keys))
    assert running.http.put(f"{path}/keys/0", content=good[:1000]).json()["received"] == 1000
    refused(running.http.put(f"{path}/keys/0", content=good[:1000]), 409, "starts at byte 1000")
    refused(running.http.put(f"{path}/keys/5000", content=good[:1000]), 409, "starts at byte 1000")
    refused(running.http.put(f"{path}/keys/1000", content=bytes(5 << 20)), 413, "at most")
    refused(running.post(path, encrypted[0], 0, encrypted[1][0]), 409, "not there yet")
    with socket.create_connection(("127.0.0.1", running.port)) as line:
        head = f"PUT {path}/keys/1000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.token}\r\n"
        line.sendall(head.encode() + b"Content-Length: 1000000\r\n\r\n" + bytes(300_000))
    assert wait_for(lambda: running.http.put(f"{path}/keys/1000", content=good[1000:2000]).status_code == 200)
    assert running.http.get(path).json()["received"] == 2000
    answer = None
    for start in range(2000, len(good), 4 << 20):
        answer = running.http.put(f"{path}/keys/{start}", content=good[start : start + (4 << 20)])
    assert answer.json()["state"] == "ready"
    refused(running.http.put(f"{path}/keys/{len(good)}", content=b"x"), 409, "no more keys (ready)")
    assert running.post(path, encrypted[0], 0, encrypted[1][0]).status_code == 200
    running.http.delete(path)


class Cutting(threading.Thread):
    """A line that breaks: the first connections are cut after some bytes, and the server's end is not told."""

    def __init__(self, port, cuts):
        super().__init__(daemon=True)
        self.ends = []
        self.target, self.cuts = port, list(cuts)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def run(self):
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            self.ends += [near, far]
            left = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self.forward, args=(near, far, left), daemon=True).start()
            threading.Thread(target=self.forward, args=(far, near, None), daemon=True).start()

    def hang_up(self):
        for end in (self.listening, *self.ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def forward(source, target, left):
        try:
            while data := source.recv(65536):
                target.sendall(data)
                left = None if left is None else left - len(data)
                if left is not None and left < 0:
                    source.shutdown(socket.SHUT_RDWR)
                    return
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def test_send_survives_dropped_connections(world, section, running, clear, tmp_path):
    line = Cutting(running.port, [9_000_000, 300_000, 2_000_000])
    line.start()
    send_section(
        section, server=line.address, token_file=running.token_file, keys=world.keys,
        output=tmp_path / "p.h5ad", noise=0,
    )  # fmt: skip
    assert not line.cuts
    agree(world, tmp_path / "p.h5ad", clear)
    line.hang_up()


def test_refused_before_any_key(world, section, running, tmp_path):
    how = {"server": running.address, "token_file": running.token_file, "output": tmp_path / "p.h5ad"}
    panel, before = tmp_path / "panel.txt", len(running.log.read_text())
    panel.write_text("ENSG1\nENSG2\n")
    with pytest.raises(InputError, match="another panel"):
        send_section(section, keys=tmp_path / "keys", panel=panel, **how)
    assert not (tmp_path / "keys").exists()
    assert "opened" not in running.log.read_text()[before:]
    shutil.copytree(world.keys, tmp_path / "keys")
    content = json.loads((tmp_path / "keys" / "client.json").read_text())
    about = {key: value for key, value in content.items() if key not in ("format", "version", "hash")}
    from histocrypt.encrypted.bundle import write_client

    write_client(tmp_path / "keys" / "client.json", {**about, "title": "Another model"})
    with pytest.raises(InputError, match="another compiled model"):
        send_section(section, keys=tmp_path / "keys", **how)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    return folder / "cert.pem", folder / "key.pem"


def test_strict_server(world, encrypted, certificate, tmp_path):
    """TLS, quotas, expiry, a full disk, and nothing left when it stops."""
    good = (world.keys / "evaluation.keys").read_bytes()
    options = ["--certificate", certificate[0], "--private-key", certificate[1], "--sessions", "1"]
    options += ["--ciphertexts", "3", "--per-minute", "2", "--idle-minutes", "0.04"]
    with serving(world.bundle, tmp_path / "a", *options, largest_file=len(good) + 1000) as strict:
        assert strict.address.startswith("https://")
        with (
            Server(strict.address, strict.token_file) as stranger,
            pytest.raises(InputError, match="cannot be reached.*certificate"),
        ):
            stranger.ask("GET", "/v1/client", most=1000, patient=False)
        with strict.connect() as server, server.session(Keys(world.keys)) as opened:
            keys = Keys(world.keys)
            size = {"client": keys.client.hash, "bytes": len(good)}
            refused(strict.http.post("/v1/sessions", json=size), 429, "sessions are taken")
            request, (first, second) = encrypted
            assert strict.post(opened.path, request, 0, first).status_code == 200
            refused(strict.post(opened.path, request, 1, b"nonsense"), 422, "not a message")  # counts, too
            refused(strict.post(opened.path, request, 1, second), 429, "a minute")
            assert wait_for(lambda: strict.http.get("/v1/health") and "expired" in strict.log.read_text())
            refused(strict.post(opened.path, request, 0, first), 404, "expired")
        (folder,) = strict.scratch.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert strict.is_well()
    assert not list(strict.scratch.iterdir())  # stopped by a signal


def test_full_disk(world, tmp_path):
    """The kernel refuses to store more; the client is told, and the server lives."""
    keys = Keys(world.keys)
    with serving(world.bundle, tmp_path / "a", largest_file=5_000_000) as small:
        path = small.open(keys)
        good = (world.keys / "evaluation.keys").read_bytes()
        assert small.http.put(f"{path}/keys/0", content=good[: 4 << 20]).status_code == 200
        refused(small.http.put(f"{path}/keys/{4 << 20}", content=good[4 << 20 : 8 << 20]), 507, "cannot store keys")
        assert small.http.get(path).json()["received"] == 4 << 20
        assert small.http.delete(path).status_code == 204
        assert small.is_well()


def test_room_is_asked_for_before_keys_come(world, tmp_path, monkeypatch):
    store = sessions.Store(
        load_bundle(world.bundle), None, workers=1, holders=1, limits=sessions.Limits(), scratch=tmp_path
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(sessions.Refused, match="no room") as error:
        store.open(0, client=store.client.hash, size=1000)
    assert error.value.status == 507
    store.stop()


def test_sessions_are_shared_out(world, tmp_path):
    """One client's token cannot take the sessions of another's."""
    limits = sessions.Limits(sessions=2)
    store = sessions.Store(load_bundle(world.bundle), None, workers=1, holders=2, limits=limits, scratch=tmp_path)
    first = store.open(0, client=store.client.hash, size=1000)
    with pytest.raises(sessions.Refused, match="has 1 open sessions already"):
        store.open(0, client=store.client.hash, size=1000)
    store.open(1, client=store.client.hash, size=1000)
    store.end(first)
    store.open(0, client=store.client.hash, size=1000)
    store.stop()
    assert not list(tmp_path.iterdir())


def test_slow_bodies(monkeypatch):
    """A client that never gets to the end is not waited for."""
    from starlette.requests import Request as Incoming

    monkeypatch.setattr(endpoints, "BODY_SECONDS", 0.1)

    async def never():
        await asyncio.sleep(60)

    with pytest.raises(sessions.Refused, match="did not arrive") as error:
        asyncio.run(endpoints._body(Incoming({"type": "http", "headers": []}, never), 10))
    assert error.value.status == 408


def test_what_a_killed_server_left_is_deleted(tmp_path):
    left = tmp_path / f"{sessions.PREFIX}abc"
    left.mkdir()
    (left / "lock").touch()
    (left / "1.keys").touch()
    folder, lock = sessions._own_folder(tmp_path)
    other, second = sessions._own_folder(tmp_path)  # the first one is in use
    assert sorted(tmp_path.iterdir()) == sorted([folder, other])
    lock.close()
    second.close()


def test_addresses(world, tmp_path):
    """Others are let in, and sent to, with a token and TLS alone."""
    token = tmp_path / "token"
    with pytest.raises(InputError, match="others can reach"):
        serve(world.bundle, host="0.0.0.0")
    with pytest.raises(InputError, match="others can reach"):
        serve(world.bundle, host="::", token_file=token)
    assert not token.exists()
    with pytest.raises(InputError, match="TLS"):
        serve(world.bundle, host="0.0.0.0", token_file=token, certificate=world.section)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen"):
        serve(world.bundle, port=taken.getsockname()[1], token_file=token)
    assert token.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="unencrypted"):
        Server("http://192.0.2.1:8423", token)
    Server("http://192.0.2.1:8423", token, insecure_http=True)
    for wrong in ("ftp://x", "localhost:8423", "http://", "http://x:y"):
        with pytest.raises(InputError, match="not the address of a server"):
            Server(wrong, token)
    with Server("http://127.0.0.1:9", token) as nobody, pytest.raises(InputError, match="cannot be reached"):
        nobody.ask("GET", "/", most=10, patient=False)


def test_token_files(tmp_path):
    path = tmp_path / "token"
    assert len(access.read_tokens(path, make=True)[0]) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert access.read_tokens(path, make=True) == access.read_tokens(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match="read by others"):
        access.read_tokens(path)
    path.chmod(0o600)
    path.write_text("password\n")
    with pytest.raises(InputError, match="guessed") as error:
        access.read_tokens(path)
    assert "password" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        access.read_tokens(tmp_path / "none")


@pytest.mark.slow
def test_send_to_a_head(world, section, tmp_path):
    """Features are computed here, several spots share a ciphertext."""
    compile_model(world.head, tmp_path / "head")
    predict_section(world.head, section, tmp_path / "clear.h5ad")
    with serving(tmp_path / "head", tmp_path / "a") as server:
        sent = send_section(
            section, server=server.address, token_file=server.token_file, keys=tmp_path / "keys",
            output=tmp_path / "p.h5ad", noise=0,
        )  # fmt: skip
    clear, found = anndata.read_h5ad(tmp_path / "clear.h5ad"), anndata.read_h5ad(tmp_path / "p.h5ad")
    assert list(clear.obs_names) == list(found.obs_names)
    assert 0 < np.abs(clear.X - found.X).max() < 1e-2 * clear.X.std()
    assert sent.spots == len(found)
