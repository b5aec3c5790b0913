"""What an evaluator could try with everything it holds, and what a key owner notices of an evaluator that lies."""

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.encrypted.serving import refuses

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.answers import Answers
from histocrypt.encrypted.bundle import load_client
from histocrypt.encrypted.client import send_section
from histocrypt.encrypted.key_owner import Keys, Request, encrypt_section, prepare
from histocrypt.encrypted.remote import Session
from histocrypt.errors import InputError


class Overheard:
    """A server after a whole section went through it, its session still open, and every message."""

    def __init__(self, world, section, running, session):
        self.running, self.keys = running, Keys(world.keys)
        self.prepared = prepare(self.keys.client, section)
        self.request = Request.of(self.prepared, self.keys.client, self.keys.bound)
        owner = self.keys.encryptor()
        self.sent, self.answers = [], []
        for index in range(self.request.batches):
            payload = b"".join(self.request.encrypt(index, self.prepared, owner))
            self.sent.append(messages.pack("input", payload, **self.request.place(index)))
            self.answers.append(session.evaluate(self.request, index, self.sent[-1], 10**7))

    def output(self, index):
        """The one ciphertext of an answer."""
        payload = messages.unpack(self.answers[index], file="answer", kind="output")
        return messages.unpack_list(payload, count=1, file="answer")[0]


@pytest.fixture(scope="module")
def overheard(world, section, running):
    with running.connect() as server, server.session(Keys(world.keys)) as session:
        yield Overheard(world, section, running, session)


def payload_of(path, kind):
    return messages.read_message(path, kind)


@pytest.fixture(scope="module")
def needles(world):
    """Pieces of the secret key as it is stored and held: two of it modulo every prime."""
    client = load_client(world.keys)
    secret = payload_of(world.keys / "secret.key", "secret key")
    degree = 1 << client.parameters.logn
    limbs = len(client.parameters.logq) + len(client.parameters.logp)
    pieces = [
        secret[start : start + 24]
        for limb in range(limbs)
        for start in (64 + 8 * (1 + degree) * limb, 8 * (1 + degree) * (limb + 1) - 2048)
    ]
    assert len(set(pieces)) == 2 * limbs
    return pieces


def found_in(data, needles):
    return [needle for needle in needles if needle in data]


def memory(process):
    """Yield what a process has in memory and may be read, region by region."""
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as held:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            start, stop, rights = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
            if rights[0] != "r" or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            at, stop = int(start, 16), int(stop, 16)
            while at < stop:
                held.seek(at)
                try:
                    chunk = held.read(min(stop - at, 64 << 20))
                except OSError:
                    break
                if not chunk:
                    break
                yield chunk
                at += len(chunk)


needs_proc = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="this system shows no process memory")


def test_no_secret_key_in_what_is_stored_or_sent(world, overheard, needles):
    running = overheard.running
    evaluator = [path for path in world.bundle.rglob("*") if path.is_file()]
    evaluator += [world.keys / "evaluation.keys", world.keys / "public.key", running.log]
    evaluator += [path for path in running.scratch.rglob("*") if path.is_file()]
    for path in evaluator:
        assert not found_in(path.read_bytes(), needles), path
    for data in overheard.sent + overheard.answers:
        assert not found_in(data, needles)
    assert len(found_in((world.keys / "secret.key").read_bytes(), needles)) == len(needles)  # they can be found
    assert (world.keys / "secret.key").stat().st_mode & 0o777 == 0o600


@needs_proc
def test_no_secret_key_and_no_pixel_in_the_servers_memory(world, overheard, needles):
    values = overheard.prepared.values[0]
    needles = [*needles[:2], *needles[-2:]]
    clear = [values[0, 5].astype("<f8").tobytes()[:32], str(world.keys).encode()]
    process = overheard.running.process.pid
    scanned = 0
    for region in memory(process):
        scanned += len(region)
        assert not found_in(region, needles + clear)
    assert scanned > 1 << 26
    mapped = Path(f"/proc/{process}/maps").read_text()
    assert "orion_evaluator" in mapped
    assert "lattigo" not in mapped  # the library that can decrypt
    assert str(world.keys) not in mapped


@needs_proc
def test_the_same_search_finds_the_key_where_it_is(world, needles):
    program = (
        "import sys; from histocrypt.encrypted.key_owner import Keys\n"
        f"owner = Keys({str(world.keys)!r}).decryptor(); print('ready', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as owner:
        assert owner.stdout.readline() == b"ready\n"
        found = set()
        for region in memory(owner.pid):
            found.update(found_in(region, sorted({*needles[:2], *needles[-2:]} - found)))
        owner.stdin.close()
        owner.wait(300)
    assert found == {*needles[:2], *needles[-2:]}


def polynomials(world):
    """Yield (name, bytes of one polynomial modulo all primes) of all keys that an evaluator has or may have."""
    client = load_client(world.keys)
    limb = 8 * (1 + (1 << client.parameters.logn))
    q, p = len(client.parameters.logq), len(client.parameters.logp)
    size = 8 + q * limb + 8 + p * limb
    public = payload_of(world.keys / "public.key", "public key")
    keys = payload_of(world.keys / "evaluation.keys", "evaluation keys")
    for number in range(2):
        yield f"public key {number}", public[8 + size * number :][:size]
    digits = -(-q // p)
    for digit in range(digits):
        for number in range(2):
            start = 17 + digit * (16 + 2 * size) + 16 + size * number
            yield f"relinearisation key {digit} {number}", keys[start : start + size]
    for number in range(2):
        yield f"rotation key {number}", keys[len(keys) - size * (2 - number) :][:size]


def test_nothing_that_the_evaluator_has_decrypts(world, overheard):
    """Every polynomial of its keys, taken for the secret key, gives noise; so does no key at all."""
    client = load_client(world.keys)
    secret = payload_of(world.keys / "secret.key", "secret key")
    true = Keys(world.keys).decryptor().decrypt(overheard.output(0))
    candidates = dict(polynomials(world))
    zeros = struct.pack("<Q", 1 << client.parameters.logn) + bytes(8 << client.parameters.logn)
    chain = (len(client.parameters.logq), len(client.parameters.logp))
    candidates["zero"] = b"".join(struct.pack("<Q", limbs) + zeros * limbs for limbs in chain)
    assert len(candidates) > 6
    low, high = client.about["output_range"]
    for name, candidate in candidates.items():
        assert len(candidate) == len(secret), name
        got = engine.KeyOwner(client.parameters, secret=candidate).decrypt(overheard.output(0))
        assert np.median(np.abs(got)) > 100 * (high - low), name
        assert abs(np.corrcoef(got, true)[0, 1]) < 0.05, name
    # the same way of putting a key together decrypts where it is the right one
    assert np.allclose(engine.KeyOwner(client.parameters, secret=secret).decrypt(overheard.output(0)), true, atol=1e-3)


def test_ciphertexts_look_like_noise(overheard):
    """Two encryptions of one spot have nothing in common that could be seen, and are spread evenly."""
    keys, prepared = overheard.keys, overheard.prepared
    client, owner = keys.client, keys.encryptor()
    words = []
    for _ in range(2):
        data = owner.encrypt(client.input.pack(prepared.values[0])[0], client.level)
        degree = 1 << client.parameters.logn
        words.append(np.frombuffer(data[-8 * degree :], "<u8") / int(client.about["moduli"][client.level]))
    assert not (words[0] == words[1]).any()
    assert abs(np.corrcoef(*words)[0, 1]) < 0.05
    for found in words:
        counts = np.histogram(found, bins=16, range=(0, 1))[0]
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 45  # chi-squared, 15 degrees: p < 1e-4


def test_spare_slots_hold_copies_alone(overheard):
    """What is decrypted, slot by slot: the outputs again and again, nothing of the layers in between."""
    client = overheard.keys.client
    owner = overheard.keys.decryptor()
    low, high = client.about["output_range"]
    for index in range(3):
        slots = owner.decrypt(overheard.output(index))
        copies = slots.reshape(-1, client.output.span)
        assert len(copies) > 100
        assert np.abs(copies - copies[0]).max() < 1e-3 * (high - low)
        used = np.zeros(client.output.span, dtype=bool)
        used[client.output.index] = True
        assert np.abs(copies[:, ~used]).max(initial=0) < 1e-3 * (high - low)


@pytest.mark.parametrize("lie", ["shifted", "swapped", "repeated", "replayed"])
def test_a_server_that_lies_about_results(overheard, lie):
    """Results that belong to other spots, under headers that claim to be right."""
    request = overheard.request
    payloads = [messages.unpack(data, file="answer", kind="output") for data in overheard.answers]
    order = request.note["order"]
    twice = [place for place, spot in enumerate(order) if order.count(spot) == 2]
    if lie == "shifted":
        payloads = payloads[1:] + payloads[:1]
    elif lie == "swapped":  # a pair, one of them sent twice
        other = next(place for place in range(len(order)) if order[place] != order[twice[0]])
        payloads[twice[0]], payloads[other] = payloads[other], payloads[twice[0]]
    elif lie == "repeated":  # an input handed back as a result
        payloads[0] = messages.unpack(overheard.sent[0], file="sent", kind="input")
    answers = Answers(request, overheard.keys.decryptor())
    if lie == "replayed":
        new = request.place(0) | {"request": "0" * 32}
        with refuses("request"):
            messages.unpack(overheard.answers[0], file="answer", kind="output", **new)
        return

    def receive():
        for index, payload in enumerate(payloads):
            answers.add(index, payload, file=f"answer {index}")
        answers.values(file="answers")

    with pytest.raises(InputError) as error:
        receive()
    assert error.value.field == "bytes" if lie == "repeated" else error.value.field.startswith("spot ")


def test_send_refuses_a_lying_server(world, section, overheard, monkeypatch, tmp_path):
    """The whole command against a server that answers every spot with another one's result: no file is written."""
    honest, kept = Session.evaluate, []

    def lying(self, request, index, data, most, *, into):
        honest(self, request, index, data, most, into=into)
        kept.append(messages.read_message(into, "output"))
        messages.write_message(into, "output", kept[-1 if len(kept) < 3 else -3], **request.place(index))

    monkeypatch.setattr(Session, "evaluate", lying)
    running = overheard.running
    how = {"server": running.address, "token_file": running.token_file, "client": "client-0", "keys": tmp_path / "keys"}
    how["form"] = "single"  # a message for each spot
    with pytest.raises(InputError) as error:
        send_section(section, output=tmp_path / "p.h5ad", **how)
    assert error.value.field.startswith("spot ")
    assert not (tmp_path / "p.h5ad").exists()
    assert not (tmp_path / "keys").exists()  # a refusal tells a little of the key


def test_keys_that_others_can_read_are_not_used(world, section, tmp_path):
    shutil.copytree(world.keys, tmp_path / "keys", ignore=shutil.ignore_patterns("requests"))
    (tmp_path / "keys" / "secret.key").chmod(0o644)
    with refuses("mode"):
        encrypt_section(section, tmp_path / "keys", tmp_path / "request")
