"""``serve`` and ``send``: a real server process, real ciphertexts, and clients that mean it harm."""

import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress

import httpx
import numpy as np
import pytest
from tests.encrypted.serving import agree, refused, refuses, wait_for

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.answers import Answers
from histocrypt.encrypted.bundle import load_bundle, load_client
from histocrypt.encrypted.client import send_section
from histocrypt.encrypted.evaluator import Session
from histocrypt.encrypted.key_owner import Keys
from histocrypt.encrypted.messages import check_evaluation_keys
from histocrypt.errors import InputError
from histocrypt.http.access import read_tokens


@pytest.fixture(autouse=True)
def lives_on(request):
    """After every test that used the server, it still answers."""
    yield
    if "running" in request.fixturenames:
        assert request.getfixturevalue("running").is_well()


def test_send_predicts_as_in_the_clear(world, section, running, clear, tmp_path):
    """The command, from a section and no keys to a prediction; nothing stays on the server."""
    command = [sys.executable, "-m", "histocrypt", "fhe", "send", section, "--server", running.address]
    command += [
        "--token-file",
        running.token_file,
        "--client",
        "client-0",
        "--keys",
        tmp_path / "keys",
        "-o",
        tmp_path / "p.h5ad",
    ]
    done = subprocess.run([*map(str, command), "--noise", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    agree(world, tmp_path / "p.h5ad", clear)
    for stage in ("keys", "upload", "encrypt", "evaluate", "decrypt", "MiB up"):
        assert stage in done.stdout
    assert not (tmp_path / "keys").exists()  # they served this section
    assert not list(running.scratch.rglob("*.keys"))
    assert "ended by its client" in running.log.read_text().splitlines()[-1]
    assert "GiB of memory" in running.log.read_text()
    assert "opened by client-0" in running.log.read_text()
    assert running.token not in running.log.read_text() + done.stderr


def test_two_clients_at_once(world, section, running, clear, tmp_path):
    """Each gets its own right answer, and cannot use the other's session."""
    tokens = list(read_tokens(running.token_file).values())
    results = {}

    def client(number):
        token_file = tmp_path / f"token{number}"
        token_file.touch(mode=0o600)
        token_file.write_text(tokens[number])
        how = {"server": running.address, "token_file": token_file, "keys": tmp_path / f"keys{number}", "noise": 0}
        results[number] = send_section(section, output=tmp_path / f"{number}.h5ad", **how)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(2)]
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
    with pytest.raises(InputError, match="401") as error:
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
    header, start = messages.parse_header(data, "message")
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
    for old, new in (
        (b'"0x0d"]', b'"0xffffffff"]'),
        (b'"0x0d"]', b'"0x0d","0x0d"]'),
        (b'"IsBatched":"0x01"', b'"IsBatched":[[[[]]]]'),
        (b'"IsBatched":"0x01"', b'"IsBatched":"0x01","IsBatched":"0x00"'),
        (b'"IsBatched":"0x01"', b'"IsBatched":"\\ud800"'),
        (b'"IsBitReversed":"0x00"', b'"IsBitReversed":"0x01"'),
        (b'"IsMontgomery":"0x00"', b'"IsMontgomery":"0x01"'),
        (b'"IsNTT":"0x01"', b'"IsNTT":"0x00"'),
        (b'"Mod":"0.', b'"Mod":"7.'),
        (b'"Scale":{', b'"Scale":{"More":1,'),
        (b"e+09", b"e+10"),
        (b"e+09", b"e+400"),
        (b'"Value":"8', b'"Value":"-8'),
        (b'"Value":"8', b'"Value":"9'),
        (b'"Value":"8', b'"Value":"NaN'),
        (b'"Value":"8', b'"Value":"' + b"8" * 5000),
    ):
        assert old in ciphertext
        data = forged(first, payload=messages.pack_list([ciphertext.replace(old, new)]))
        refused(running.post(session, request, 0, data), 422, "not a ciphertext under these parameters")
    for more in ({"more": 1}, {"index": False}, {"of": float(request.batches)}, {"key": "\ud800" * 300}):
        refused(running.post(session, request, 0, forged(first, **more)), 422, "")
    header, start = messages.parse_header(first, "message")
    for text in (
        json.dumps({**header, "index": float("nan")}),
        json.dumps({**header, "index": "x" * 3000}),
        json.dumps(header)[:-1] + ', "index": 0}',
        json.dumps(header)[:-1] + ', "index": ' + "1" * 3400 + "}",
    ):
        data = messages.MAGIC + struct.pack("<I", len(text)) + text.encode() + first[start:]
        answer = running.post(session, request, 0, data)
        refused(answer, 422, "")
        assert len(answer.text) < 1000
    assert running.post(session, request, 0, first).content == good.content
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def evaluating(world):
    """A session of the evaluator, in this process."""
    bundle = load_bundle(world.bundle)
    session = Session(bundle, engine.load_model(bundle.model), world.keys / "evaluation.keys", workers=1)
    yield session
    session.close()


def test_every_byte_of_a_ciphertexts_form_is_checked(world, encrypted):
    """Whatever is said of the polynomials, and every length; no other than the one right form reaches the engine."""
    client = load_client(world.bundle)
    payload = messages.unpack(encrypted[1][0], file=0, kind="input")
    (good,) = messages.unpack_list(payload, count=1, file=0)

    def check(data):
        messages.check_ciphertext(data, client.parameters, client.moduli, client.level, file=0, fresh=True)

    check(good)
    check(memoryview(good))
    said, limb = good.index(b"}}") + 2, 1 + 2**client.parameters.logn
    polynomials = [said + 8 * (1 + number * (1 + (client.level + 1) * limb)) for number in range(2)]
    limbs = [at + 8 * (1 + number * limb) for at in polynomials for number in range(client.level + 1)]
    lengths = [place + byte for place in (said, *polynomials, *limbs) for byte in range(8)]
    for place in (*range(said), *lengths):
        for bit in (1, 32, 128):
            with refuses("metadata", "scale", "log2(slots)", "polynomials", "level", "degree"):
                check(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
    for data in (good[:-8], good + bytes(8), good[:said], good[:100], b""):
        with refuses("bytes", "metadata"):
            check(data)
    for number in range(client.level + 1):
        spoilt = bytearray(good)
        struct.pack_into("<Q", spoilt, limbs[number] + 8, client.moduli[number])
        with refuses("coefficients"):
            check(spoilt)


def test_what_the_engine_refuses_is_one_sentence(world, encrypted, evaluating, monkeypatch):
    """Without its words, which tell of the network."""
    request, (first, _) = encrypted
    client = load_client(world.bundle)
    place = {"request": request.name, "index": 0, "of": request.batches}
    lower = Keys(world.keys).encryptor().encrypt(np.zeros(client.parameters.slots), client.level - 1)
    monkeypatch.setattr(messages, "check_ciphertext", lambda *_, **__: None)
    with refuses("ciphertexts", file="it") as error:
        evaluating.evaluate(forged(first, payload=messages.pack_list([lower])), file="it", **place)
    assert "evaluating node" in str(error.value.__cause__)
    assert "evaluating node" not in str(error.value)


def test_a_message_in_a_file(world, encrypted, evaluating, tmp_path):
    """It is evaluated as one in memory is; so are the refusals."""
    request, (first, _) = encrypted
    place = {"file": "it", "request": request.name, "index": 0, "of": request.batches}
    path = tmp_path / "message"
    path.write_bytes(first)
    assert evaluating.evaluate(path, **place) == evaluating.evaluate(first, **place)
    path.write_bytes(first[:-1])
    with refuses("bytes", file="it"):
        evaluating.evaluate(path, **place)
    path.write_bytes(b"")
    with refuses("header", file="it"):
        evaluating.evaluate(path, **place)


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
    with refuses("slots", "spare slots"):
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
    header, start = messages.parse_header(good, "keys")

    def at(offset, value):
        return good[start : start + offset] + struct.pack("<Q", value) + good[start + offset + 8 :]

    garbage = np.random.default_rng(0).bytes(len(good) - start)
    refused(upload(running, running.open(keys), good[:start] + garbage), 422, "checksum")
    for payload in (garbage, at(41, 10**10)):
        data = messages.pack("evaluation keys", payload, **keys.bound)
        answer = running.http.post("/v1/sessions", json={"client": keys.client.hash, "bytes": len(data)})
        answer = upload(running, f"/v1/sessions/{answer.json()['session']}", data)
        refused(answer, 422, "evaluation keys for these parameters")
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
        with pytest.raises(InputError) as error:
            check_evaluation_keys(path, client.parameters, client.rotations, start=0)
        assert error.value.field.startswith("relinearisation key" if where < one else "rotation key")
    for data in (good[:-8], good + bytes(8), good[:100]):
        path.write_bytes(data)
        with refuses("bytes"):
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
        section, server=line.address, token_file=running.token_file, client="client-0", keys=tmp_path / "keys",
        output=tmp_path / "p.h5ad", noise=0,
    )  # fmt: skip
    assert not line.cuts
    agree(world, tmp_path / "p.h5ad", clear)
    line.hang_up()


def test_refused_before_any_key(world, section, running, tmp_path):
    how = {"server": running.address, "token_file": running.token_file, "client": "client-0"}
    how["output"] = tmp_path / "p.h5ad"
    panel, before = tmp_path / "panel.txt", len(running.log.read_text())
    panel.write_text("ENSG1\nENSG2\n")
    with refuses("panel"):
        send_section(section, keys=tmp_path / "keys", panel=panel, **how)
    assert not (tmp_path / "keys").exists()
    assert "opened" not in running.log.read_text()[before:]
    with refuses("secret.key"):  # these may have served a section
        send_section(section, keys=world.keys, **how)
