"""The whole way: compile, keys, encrypt, evaluate in another process, decrypt; and what each step refuses."""

import json
import shutil

import anndata
import numpy as np
import pytest
from PIL import Image
from tests.encrypted.serving import refuses

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.answers import Checked, write_result
from histocrypt.encrypted.bundle import load_bundle, load_client
from histocrypt.encrypted.evaluator import Session, evaluate_request
from histocrypt.encrypted.key_owner import (
    Keys,
    Request,
    decrypt,
    decrypt_response,
    encrypt,
    encrypt_section,
    keygen,
    prepare,
)
from histocrypt.errors import InputError
from histocrypt.evaluation.agreement import agreement
from histocrypt.pipeline.predict import predict_section


@pytest.fixture(scope="module")
def evaluating(world, answered):
    """Evaluate one message of the answered request."""
    bundle = load_bundle(world.bundle)
    session = Session(bundle, engine.load_model(bundle.model), world.keys / "evaluation.keys", workers=1)
    content = json.loads((answered / "request" / "request.json").read_text())

    def evaluate(data, *, index):
        return session.evaluate(data, file="message", index=index, request=content["request"], of=content["of"])

    evaluate.most = bundle.client.most_input_bytes
    yield evaluate
    session.close()


def test_encrypted_equals_clear(world, answered, tmp_path):
    predict_section(world.model, world.section, tmp_path / "clear.h5ad")
    decrypt_response(answered / "response", world.keys, tmp_path / "encrypted.h5ad", noise=0)
    clear, found = anndata.read_h5ad(tmp_path / "clear.h5ad"), anndata.read_h5ad(tmp_path / "encrypted.h5ad")
    assert list(clear.obs_names) == list(found.obs_names)
    assert list(clear.var_names) == list(found.var_names)
    assert np.array_equal(clear.obsm["spatial"], found.obsm["spatial"])
    assert set(clear.layers) == set(found.layers)
    statistics = json.loads((world.model / "model.json").read_text())["target_statistics"]
    for layer in clear.layers:
        sd = np.array([statistics[f"{layer}:{gene}"]["sd"] for gene in clear.var_names])
        error = np.abs(clear.layers[layer] - found.layers[layer]) / sd
        assert 0 < error.max() < 1e-2  # of a standardised output; never exactly equal: these were ciphertexts
    assert found.uns["prediction"]["encrypted"] == "CKKS"
    assert found.uns["prediction"]["security_bits"] >= 128


def test_noise_is_added_before_results_are_shared(world, answered, tmp_path):
    decrypt_response(answered / "response", world.keys, tmp_path / "a.h5ad", noise=1e-2)
    decrypt_response(answered / "response", world.keys, tmp_path / "b.h5ad", noise=0)
    noisy, exact = anndata.read_h5ad(tmp_path / "a.h5ad"), anndata.read_h5ad(tmp_path / "b.h5ad")
    share = (noisy.X - exact.X).std(axis=0) / exact.X.std(axis=0)
    assert (share > 0.5e-2).all()
    decrypt_response(answered / "response", world.keys, tmp_path / "c.h5ad", noise=1e-2)
    assert np.array_equal(anndata.read_h5ad(tmp_path / "c.h5ad").X, noisy.X)  # nothing averages out


def test_noise_does_not_vanish_with_one_spot(world, answered, tmp_path):
    """The spread over spots is zero there; what is shared must differ from the exact value all the same."""
    answers = request_of(world, answered)
    looked = {name: values[:1] for name, values in answers.note["looked_over"].items()}
    one = answers.note | {name: answers.note[name][:1] for name in ("names", "coords")} | {"looked_over": looked}
    request = Request(answers.name, answers.client, answers.bound, one)
    outputs = len(answers.client.about["outputs"])
    checked = Checked(np.ones((1, outputs)), np.full(outputs, 1e-9), 1.0)
    write_result(tmp_path / "one.h5ad", checked, request, noise=1e-2)
    assert (anndata.read_h5ad(tmp_path / "one.h5ad").X != 1).any()


def request_of(world, folder):
    keys = Keys(world.keys)
    name = json.loads((folder / "response" / "response.json").read_text())["request"]
    return Request(name, keys.client, keys.bound, json.loads(keys.note(name).read_text()))


@pytest.mark.parametrize("content", ["[]", '{"request": "a", "of": 1000000000000}', '{"request": 3, "of": 1}', "{"])
def test_what_is_no_request_is_refused_at_once(world, tmp_path, content):
    (tmp_path / "request.json").write_text(content)
    with refuses(None, file=tmp_path / "request.json"):
        evaluate_request(tmp_path, world.bundle, world.keys / "evaluation.keys", tmp_path / "response")
    assert not (tmp_path / "response").exists()


def test_evaluation_resumes(world, answered, tmp_path):
    shutil.copytree(answered / "response", tmp_path / "response")
    lost = sorted((tmp_path / "response").glob("*.ct"))
    lost[0].unlink()
    lost[1].write_bytes(lost[1].read_bytes()[:1000])
    kept = lost[2].stat().st_mtime_ns
    said = evaluate_request(
        answered / "request", world.bundle, world.keys / "evaluation.keys", tmp_path / "response", workers=1
    )
    assert said.split(": ")[1].startswith("2 messages")
    assert lost[2].stat().st_mtime_ns == kept
    assert (lost[0].read_bytes(), lost[1].read_bytes()) == tuple(
        (answered / "response" / path.name).read_bytes() for path in lost[:2]
    )


def test_request_tells_no_names(world, answered):
    """Headers and the list of a request hold what binds them together, and nothing of the section."""
    for path in (answered / "request").glob("*.ct"):
        assert set(messages.read_header(path)) == {
            "kind", "client", "key", "request", "index", "of", "bytes", "sha256"
        }  # fmt: skip
    assert set(json.loads((answered / "request" / "request.json").read_text())) == {
        "client",
        "key",
        "request",
        "of",
    }
    assert {path.suffix for path in (answered / "request").iterdir()} == {".ct", ".json"}


def spoil(path, how, other):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-100])
    elif how == "oversized":
        path.write_bytes(data + bytes(10_000_000))
    elif how == "damaged":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif how == "empty":
        path.write_bytes(b"")
    else:  # swapped with another one
        path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("how", "field"),
    [("truncated", "bytes"), ("oversized", "bytes"), ("damaged", "sha256"), ("empty", "header"), ("swapped", "index")],
)
def test_spoilt_ciphertexts_are_refused(world, answered, evaluating, tmp_path, how, field):
    shutil.copytree(answered / "response", tmp_path / "response")
    request, response = answered / "request", tmp_path / "response" / "00001.ct"
    spoil(response, how, response.with_name("00002.ct"))
    with refuses(field, file=response):
        decrypt_response(tmp_path / "response", world.keys, tmp_path / "p.h5ad")
    assert not (tmp_path / "p.h5ad").exists()
    sent = tmp_path / "00001.ct"
    shutil.copyfile(request / "00001.ct", sent)
    spoil(sent, how, request / "00002.ct")
    with refuses(field):
        evaluating(messages.read_whole(sent, most=evaluating.most), index=1)


def test_a_spoilt_request_is_refused(world, answered, tmp_path):
    shutil.copytree(answered / "request", tmp_path / "request")
    spoil(tmp_path / "request" / "00000.ct", "damaged", None)
    with refuses("sha256", file=tmp_path / "request" / "00000.ct"):
        evaluate_request(
            tmp_path / "request", world.bundle, world.keys / "evaluation.keys", tmp_path / "new", workers=1
        )
    assert not (tmp_path / "new" / "00000.ct").exists()


def forge(path, **changes):
    """Rewrite a message with a header that claims to be right."""
    header = messages.read_header(path)
    payload = messages.unpack(path.read_bytes(), file=path, kind=header["kind"])
    rest = {key: header[key] for key in header if key not in ("kind", "bytes", "sha256")}
    messages.write_message(path, header["kind"], changes.pop("payload", payload), **{**rest, **changes})


def test_ciphertext_of_other_parameters_is_refused(world, answered, evaluating, tmp_path):
    client, sent = load_client(world.bundle), tmp_path / "00000.ct"
    owner = Keys(world.keys).encryptor()
    lower = owner.encrypt(np.zeros(client.parameters.slots), client.level - 1)
    garbage = bytearray(owner.encrypt(np.zeros(client.parameters.slots), client.level))
    garbage[-8:] = b"\xff" * 8
    for payload, field in ((lower, "bytes"), (bytes(garbage), "coefficients")):
        shutil.copyfile(answered / "request" / sent.name, sent)
        forge(sent, payload=messages.pack_list([payload]))
        with refuses(field):
            evaluating(sent.read_bytes(), index=0)


@pytest.fixture
def few(world, tmp_path):
    """A request of four spots, all of them sent twice."""
    prepared = prepare(load_client(world.bundle), world.section, spots=4)
    encrypt(prepared, Keys(world.keys), tmp_path / "request")
    return tmp_path / "request"


def test_another_clients_keys(world, answered, few, other_keys, tmp_path):
    with refuses("key"):
        evaluate_request(answered / "request", world.bundle, other_keys / "evaluation.keys", tmp_path / "r")
    with refuses("key"):
        decrypt_response(answered / "response", other_keys, tmp_path / "p.h5ad")
    # ... and with every header forged, what comes out is noise, and is recognised as such
    forged = tmp_path / "forged.keys"
    shutil.copyfile(other_keys / "evaluation.keys", forged)
    forge(forged, key=Keys(world.keys).key)
    evaluate_request(few, world.bundle, forged, tmp_path / "noise")
    with refuses("slots", "spare slots"):
        decrypt_response(tmp_path / "noise", world.keys, tmp_path / "p.h5ad")


def test_mixed_up_spots_are_noticed(world, few, tmp_path):
    """An evaluator that swaps results and rewrites their headers is caught where a spot was sent twice."""
    response = tmp_path / "response"
    evaluate_request(few, world.bundle, world.keys / "evaluation.keys", response)
    shutil.copytree(world.keys, tmp_path / "keys", ignore=shutil.ignore_patterns("evaluation.keys"))
    keys, name = Keys(tmp_path / "keys"), json.loads((few / "request.json").read_text())["request"]
    note = keys.request(name, file=response).note
    note.pop("answer", None)  # an honest one, of another test
    keys.note(name).write_text(json.dumps(note))
    first = response / "00000.ct"
    other = next(place for place, spot in enumerate(note["order"]) if spot != note["order"][0])
    second = response / f"{other:05d}.ct"
    payloads = [messages.unpack(path.read_bytes(), file=path, kind="output") for path in (first, second)]
    forge(first, payload=payloads[1])
    forge(second, payload=payloads[0])
    with pytest.raises(InputError) as error:
        decrypt(response, keys)
    assert error.value.field.startswith("spot ")


def test_replayed_response_is_refused(world, answered, few, tmp_path):
    shutil.copytree(answered / "response", tmp_path / "response")
    (tmp_path / "response" / "response.json").write_text((few / "request.json").read_text())
    with refuses("request"):
        decrypt_response(tmp_path / "response", world.keys, tmp_path / "p.h5ad")


def coarser(path, folder, factor):
    """Write the same section at a lower resolution."""
    adata = anndata.read_h5ad(path)
    about = next(iter(adata.uns["spatial"].values()))["metadata"]
    image = Image.open(path.with_suffix(".png"))
    image.reduce(factor).save(folder / path.with_suffix(".png").name)
    about["fullres_width"], about["fullres_height"] = -(-image.width // factor), -(-image.height // factor)
    about["pixel_size_um"] *= factor
    adata.obsm["spatial"] = adata.obsm["spatial"] / factor
    adata.write_h5ad(folder / path.name)
    return folder / path.name


def test_refused_at_the_client_before_any_key(world, tmp_path):
    client = load_client(world.bundle)
    with refuses("um_per_px"):
        prepare(client, coarser(world.section, tmp_path, 8))
    wrong = tmp_path / "panel.txt"
    wrong.write_text("\n".join(reversed(client.about["panel"]["genes"])))
    with refuses("panel"):
        prepare(client, world.section, panel=wrong)
    narrow = client.about | {"input_range": [-0.1, 0.1]}
    with refuses(*prepare(client, world.section).names[:1]):
        prepare(type(client)(narrow, client.parameters, client.file), world.section)


def test_out_of_range_spots_can_be_left_out(world):
    client = load_client(world.bundle)
    every = prepare(client, world.section)
    top = np.sort(every.values.reshape(len(every.names), -1).max(axis=1))[-3]
    narrow = client.about | {"input_range": [client.about["input_range"][0], float(top)]}
    some = prepare(type(client)(narrow, client.parameters, client.file), world.section, skip_out_of_range=True)
    assert 0 < len(some.names) < len(every.names)
    assert some.about["without_prediction"]["out of range"] == len(every.names) - len(some.names)


def test_some_spots_alone(world, tmp_path):
    """So many, evenly spread, as they are among all; beside the clear section only where fewer were asked for."""
    every = prepare(load_client(world.bundle), world.section)
    some = prepare(load_client(world.bundle), world.section, spots=5)
    assert some.names.tolist() == every.names[[0, 9, 18, 26, 35]].tolist()
    assert np.array_equal(some.values, every.values[np.isin(every.names, some.names)])
    assert some.about["without_prediction"] == {**every.about["without_prediction"], "not asked for": 31}
    keys = tmp_path / "keys"
    keygen(world.bundle / "client.json", keys, spots=5)
    encrypt_section(world.section, keys, tmp_path / "request", spots=5)
    evaluate_request(tmp_path / "request", world.bundle, keys / "evaluation.keys", tmp_path / "response")
    decrypt_response(tmp_path / "response", keys, tmp_path / "p.h5ad", noise=0)
    predict_section(world.model, world.section, tmp_path / "clear.h5ad")
    statistics = json.loads((world.model / "model.json").read_text())["target_statistics"]
    files = (tmp_path / "p.h5ad", tmp_path / "clear.h5ad", world.outputs / "tiny" / "sections" / world.section.name)
    sd = {name: found["sd"] for name, found in statistics.items()}
    summary, _ = agreement(*files, sd, spots=5)
    assert (summary["spots"], summary["section_spots"]) == (5, 36)
    assert 0 < summary["max_abs_error"] < 1e-2
    with refuses(None, file=files[0]):
        agreement(*files, sd)


def test_changed_client_part_is_refused(world, tmp_path):
    content = json.loads((world.bundle / "client.json").read_text())
    content["level"] += 1
    (tmp_path / "client.json").write_text(json.dumps(content))
    with refuses("hash"):
        keygen(tmp_path / "client.json", tmp_path / "keys")
    assert not (tmp_path / "keys").exists()


def test_keys_are_never_overwritten(world):
    with refuses("secret.key"):
        keygen(world.bundle / "client.json", world.keys)


def test_secret_key_stays_private(world):
    assert (world.keys / "secret.key").stat().st_mode & 0o777 == 0o600
    assert world.keys.stat().st_mode & 0o777 == 0o700
    assert (world.bundle / "server").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (world.bundle / "server").iterdir()} == {0o600}


def test_readable_secret_key_is_refused(world, tmp_path):
    shutil.copytree(world.keys, tmp_path / "keys")
    (tmp_path / "keys" / "secret.key").chmod(0o644)
    with refuses("mode"):
        Keys(tmp_path / "keys")


def test_stated_memory_and_levels(world):
    bundle = load_bundle(world.bundle)
    assert bundle.client.level == 3
    assert (
        bundle.evaluation_bytes(2, bundle.client)
        > bundle.evaluation_bytes(1, bundle.client)
        > bundle.server["encoded_bytes"]
    )


def test_engine_version_is_pinned(monkeypatch):
    monkeypatch.setattr(engine, "VERSIONS", {**engine.VERSIONS, "orion-v2-evaluator": "2.1.4"})
    with refuses("orion-v2-evaluator"):
        engine.check()


def test_keys_go_into_a_folder_that_exists_as_it_is(world, tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    keygen(world.bundle / "client.json", tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "open" / "secret.key").stat().st_mode & 0o777 == 0o600
    keygen(world.bundle / "client.json", tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_no_folder_of_somebody_elses_is_written_into(world, answered, tmp_path):
    (tmp_path / "mine").mkdir()
    for name, content in (("client.json", "{}"), ("public.key", "a key of mine")):
        (tmp_path / "mine" / name).write_text(content)
        with pytest.raises(InputError) as caught:
            keygen(world.bundle / "client.json", tmp_path / "mine")
        assert caught.value.file == tmp_path / "mine" / name
        (tmp_path / "mine" / name).unlink()
    shutil.copytree(answered / "request", tmp_path / "request")
    before = (tmp_path / "request" / "00000.ct").read_bytes()
    with pytest.raises(InputError):  # a response in place of its request
        evaluate_request(
            tmp_path / "request", world.bundle, world.keys / "evaluation.keys", tmp_path / "request", workers=1
        )
    assert (tmp_path / "request" / "00000.ct").read_bytes() == before
    with pytest.raises(InputError):  # a request beside the secret key would be sent with it
        encrypt_section(world.section, world.keys, world.keys)
    with pytest.raises(InputError) as caught:
        decrypt_response(answered / "response", world.keys, world.section)
    assert caught.value.file == world.section
