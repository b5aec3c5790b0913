"""Batch messages, keys and public parts that somebody spoilt or made up: one refusal each."""

import json
import shutil
import struct

import numpy as np
import pytest
from tests.encrypted.serving import refused, refuses

from histocrypt.encrypted import messages
from histocrypt.encrypted.batch.client import SEED, BatchClient
from histocrypt.encrypted.batch.packed import pack_residues, packed_bytes, unpack_residues
from histocrypt.encrypted.batch.ring import Ring
from histocrypt.encrypted.bundle import forms, hash_of, load_bundle, load_client, parse_client
from histocrypt.encrypted.evaluator import Model
from histocrypt.encrypted.key_owner import Answers, Keys, Request, keygen, prepare
from histocrypt.errors import InputError


@pytest.fixture(scope="module")
def sent(world):
    """A request of the whole section, which is one batch, and its input message."""
    keys = Keys(world.batch_keys)
    prepared = prepare(keys.client, world.section)
    request = Request.of(prepared, keys.client, keys.bound)
    assert (request.client.form, request.batches) == ("batch", 1)
    return request, messages.pack("input", b"".join(request.encrypt(0, prepared, keys.encryptor())), **request.place(0))


@pytest.fixture(scope="module")
def evaluating(world):
    """A session of the evaluator, in this process."""
    return Model(load_bundle(world.bundle)).session(world.batch_keys / "evaluation.keys", workers=1)


def remade(data: bytes, payload: bytes | None = None, **changes) -> bytes:
    """Return a message whose header claims to be right."""
    header, start = messages.parse_header(data, "message")
    rest = {key: value for key, value in header.items() if key not in ("kind", "bytes", "sha256")}
    return messages.pack("input", data[start:] if payload is None else payload, **{**rest, **changes})


def spoilt(request: Request, data: bytes) -> dict[str, tuple[bytes, str, str]]:
    """Return spoilt messages, each with the field that is at fault and some words of the refusal."""
    start = messages.parse_header(data, "message")[1]
    payload, ring = data[start:], request.client.ring
    all_of_one, limb = packed_bytes(ring.moduli, ring.n), 8 * ring.n

    def at(prime: int, place: int, value: int, *, end: bool = False) -> bytes:
        """Return the payload with another residue in its first ciphertext, or its last one."""
        begin = len(payload) - all_of_one if end else SEED
        values = unpack_residues(payload[begin : begin + all_of_one], ring.moduli, ring.n)
        values[prime, place] = value
        return payload[:begin] + pack_residues(values, ring.moduli) + payload[begin + all_of_one :]

    last = len(ring.moduli) - 1
    most = (1 << ring.moduli[last].bit_length()) - 1
    return {
        "another length": (remade(data, of=2), "of", "another length"),
        "one more field": (remade(data, more=1), "more", "not a field"),
        "short by a word": (remade(data, payload[:-8]), "bytes", "size of a batch"),
        "short by a byte": (remade(data, payload[:-1]), "bytes", "size of a batch"),
        "a ciphertext more": (remade(data, payload + bytes(2 * limb)), "bytes", "size of a batch"),
        "a seed alone": (remade(data, payload[:SEED]), "bytes", "size of a batch"),
        "nothing": (remade(data, b""), "bytes", "size of a batch"),
        "a residue that is the prime": (remade(data, at(0, 0, ring.moduli[0])), "coefficients", "not made of"),
        "the last residue": (remade(data, at(last, ring.n - 1, most, end=True)), "coefficients", "not made of"),
        "the second prime's": (remade(data, at(1, 0, ring.moduli[1])), "coefficients", "not made of"),
    }


def with_first(payload: bytes, value: int, ring: Ring) -> bytes:
    """Return an output's payload with another first residue."""
    size = packed_bytes(ring.moduli[:1], ring.n)
    values = unpack_residues(payload[:size], ring.moduli[:1], ring.n)
    values[0, 0] = value
    return pack_residues(values, ring.moduli[:1]) + payload[size:]


def made_up(request: Request) -> bytes:
    """Return a payload of outputs that are nothing but noise."""
    client = request.client
    number = 2 * len(client.about["outputs"])
    values = np.random.default_rng(0).integers(0, client.moduli[0], (number, client.ring.n), dtype=np.uint64)
    return pack_residues(values, client.moduli[:1] * number)


def test_crafted_messages_are_refused(world, sent, evaluating, tmp_path):
    """In memory and from a file, whose name is nobody's business."""
    request, data = sent
    place = {name: request.place(0)[name] for name in ("request", "index", "of")}
    for name, (message, field, _) in spoilt(request, data).items():
        with refuses(field, file="it"):
            evaluating.evaluate(message, file="it", **place)
        if name in ("another length", "short by a byte", "the last residue"):
            (tmp_path / "message").write_bytes(message)
            with refuses(field, file="it"):
                evaluating.evaluate(tmp_path / "message", file="it", **place)


def test_a_server_answers_crafted_batches_in_one_sentence(world, sent, running):
    request, data = sent
    with running.connect() as server, server.session(Keys(world.batch_keys)) as opened:
        where = f"{opened.path}/requests/{request.name}/0"
        for message, _, says in spoilt(request, data).values():
            answer = running.http.post(where, params={"of": 1}, content=message)
            refused(answer, 413 if len(message) > request.client.most_input_bytes else 422, "")
            assert says in answer.text or answer.status_code == 413
            assert str(running.scratch) not in answer.text
        good = running.http.post(where, params={"of": 1}, content=data)
    assert good.status_code == 200, good.text
    assert running.is_well()
    assert "Traceback" not in running.log.read_text()
    answers = Answers(request, Keys(world.batch_keys).decryptor())
    payload = messages.unpack(good.content, file="answer", kind="output", **request.place(0))
    answers.add(0, payload, file="answer")
    assert len(answers.values(file="answer").values) == 36
    for wrong, field in (
        (payload[:-8], "bytes"),
        (payload + bytes(8), "bytes"),
        (b"", "bytes"),
        (payload[:-8] + b"\xff" * 8, "coefficients"),
        (with_first(payload, request.client.moduli[0], request.client.ring), "coefficients"),
        (made_up(request), "slots"),
    ):
        with refuses(field, file="answer"):
            answers.add(0, wrong, file="answer")


def test_crafted_keys_are_refused(world, tmp_path):
    """A public part out of its range, another size, another name, the other form's keys under this form's name."""
    model, keys, path = Model(load_bundle(world.bundle)), Keys(world.batch_keys), tmp_path / "keys"
    header, start = messages.open_message(world.batch_keys / "evaluation.keys", "evaluation keys")
    good = (world.batch_keys / "evaluation.keys").read_bytes()[start:]
    prime, limb = keys.client.moduli[0], keys.client.parameters.limb_bytes
    single = (world.keys / "evaluation.keys").read_bytes()
    single = single[messages.parse_header(single, "keys")[1] :]
    named = {"client": keys.client.hash, "key": keys.key}
    for payload, changes, fields in (
        (good[: -2 * limb] + struct.pack("<Q", prime) + good[8 - 2 * limb :], {}, ["public key"]),
        (good[:-8] + b"\xff" * 8, {}, ["public key"]),
        (good[:-8], {}, ["bytes"]),
        (good + bytes(8), {}, ["bytes"]),
        (good[:-8] + bytes(7), {}, ["bytes", "public key"]),
        (good[limb:], {}, ["bytes"]),
        (b"", {}, ["bytes"]),
        (bytes(len(good)), {}, ["relinearisation key"]),
        (single, {}, ["bytes", "public key"]),
        (good, {"key": "x"}, ["key"]),
        (good, {"key": None}, ["key"]),
        (good, {"client": "0" * 32}, ["client"]),
        (good, {"client": None}, ["client"]),
    ):
        messages.write_message(path, "evaluation keys", payload, **{**named, **changes})
        with refuses(*fields, file=path):
            model.session(path, workers=1)


def test_crafted_keys_of_a_head_are_refused(world, tmp_path):
    """It has a public key alone: its size is known to the byte."""
    from histocrypt.encrypted.compile import compile_model

    compile_model(world.head, tmp_path / "bundle")
    keygen(tmp_path / "bundle" / "client.json", tmp_path / "keys")
    model, keys, path = Model(load_bundle(tmp_path / "bundle")), Keys(tmp_path / "keys"), tmp_path / "spoilt"
    assert (keys.client.form, keys.client.squares) == ("batch", 0)
    data = (keys.folder / "evaluation.keys").read_bytes()
    good = data[messages.parse_header(data, "keys")[1] :]
    model.session(keys.folder / "evaluation.keys", workers=1).close()
    for payload in (good[:-8], good[:-1], good + bytes(8), good[: len(good) // 2], good * 2, b""):
        messages.write_message(path, "evaluation keys", payload, **keys.bound)
        with refuses("bytes", file=path):
            model.session(path, workers=1)


def changed(content: dict, **changes) -> dict:
    """Return a public part that a lying model owner made: its hash is right."""
    about = {key: value for key, value in content.items() if key not in ("format", "version", "hash")}
    about = {**about, "batch_form": {**about["batch_form"], **changes}}
    return {**content, **about, "hash": hash_of(about)}


def test_public_parts_that_do_not_fit_together_are_refused(world):
    content = json.loads((world.bundle / "client.json").read_text())
    parse_client(content, file="it")
    form = content["batch_form"]
    layout, prime = form["layouts"][0], form["moduli"][0]
    for wrong in (
        {"moduli": []},
        {"moduli": [prime]},
        {"moduli": ["x", prime]},
        {"moduli": [str(int(prime) + 1), prime]},
        {"moduli": [str(2**90 * 2**15 + 1), prime]},
        {"moduli": None},
        {"special": "0"},
        {"special": None},
        {"layouts": []},
        {"layouts": [{}]},
        {"layouts": [{**layout, "folded": 1}]},
        {"layouts": [{**layout, "folded": -1}]},
        {"layouts": [{**layout, "folded": "0"}]},
        {"layouts": [{**layout, "cost": 0}]},
        {"layouts": [{**layout, "cost": "x"}]},
        {"layouts": [layout] * 101},
        {"scale": 0},
        {"scale": -1.0},
        {"scale": "x"},
        {"parameters": None},
        {"parameters": {**form["parameters"], "ring": "standard"}},
        {"parameters": {**form["parameters"], "log_scale": 40}},
        {"parameters": {**form["parameters"], "logn": 14}},
    ):
        with pytest.raises(InputError) as error:
            parse_client(changed(content, **wrong), file="it")
        assert error.value.field.startswith(("batch_form", "parameters")), wrong
    about = {key: value for key, value in content.items() if key not in ("format", "version", "hash")}
    for wrong in ([], "x", 3, {}):
        with refuses("batch_form", file="it"):
            BatchClient.of({**about, "batch_form": wrong}, "it")


def test_primes_that_the_engine_does_not_make_are_refused_before_keys(world, tmp_path):
    content = json.loads((world.bundle / "client.json").read_text())
    form = content["batch_form"]
    for wrong in ({"moduli": form["moduli"][::-1]}, {"special": form["moduli"][0]}):
        (tmp_path / "client.json").write_text(json.dumps(changed(content, **wrong)))
        with refuses("moduli"):
            keygen(tmp_path / "client.json", tmp_path / "keys")
    assert not (tmp_path / "keys").exists()


def test_each_form_takes_its_own_keys(world, tmp_path):
    """Keys say which form they are for; relabelled, they are refused, and the secret key is, too."""
    single, batch = forms(load_client(world.bundle)).values()
    assert (Keys(world.keys).client.hash, Keys(world.batch_keys).client.hash) == (single.hash, batch.hash)
    shutil.copytree(world.keys, tmp_path / "keys")
    for name in ("public.key", "evaluation.keys"):
        shutil.copyfile(world.batch_keys / name, tmp_path / "keys" / name)
    with refuses("client", file=tmp_path / "keys" / "secret.key"):
        Keys(tmp_path / "keys").decryptor()
