"""Whoever would send a slide knows first whether the model is for it, and reads how far to trust what comes back."""

import json
import re
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.commands import document

from histocrypt.answer import plain
from histocrypt.encrypted.bundle import load_client, parse_client, write_client
from histocrypt.encrypted.check import check_section, render
from histocrypt.encrypted.compile import compile_model
from histocrypt.encrypted.evaluator import evaluate_request
from histocrypt.encrypted.key_owner import Keys, Request, decrypt_response, encrypt_section, keygen, prepare
from histocrypt.encrypted.single import hash_of
from histocrypt.encrypted.told import told_of
from histocrypt.encrypted.trial import prepared_clear
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.predict import predict_section

NOT_OF_THE_MODEL = {"part", "encrypted", "security_bits", "noise", "share"}
"""What ``uns["prediction"]`` says of encryption, or otherwise of it."""


@pytest.fixture(scope="module")
def head(world, tmp_path_factory):
    """The head of frozen features, compiled: unlike the network it knows how far each gene is to be trusted."""
    bundle = tmp_path_factory.mktemp("head") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(world.outputs))
        compile_model(world.head, bundle)
    return bundle


def changed(client, **about):
    return replace(client, about={**client.about, **about})


def test_the_public_part_says_what_the_model_learnt_from(world):
    about, trained = load_client(world.bundle).about, read_json(world.model / "model.json")
    assert about["origin"] == trained["origin"]
    assert about["origin"]["simulated"] is False
    assert [one["colour"] for one in about["gate"].values()] == [one["colour"] for one in trained["gate"].values()]
    assert not any(name in str(about["gate"]) for name in (*trained["gate"], *trained["train_patients"]))


def test_a_model_of_simulated_tissue_is_refused_before_anything_is_encrypted(world, capsys):
    client = load_client(world.bundle)
    drawn = changed(client, origin={**client.about["origin"], "simulated": True})
    with pytest.raises(InputError) as caught:
        prepare(drawn, world.section)
    assert caught.value.field == "origin"
    prepared = prepare(drawn, world.section, anyway=True)
    assert "simulated" in prepared.about["origin"]
    assert "simulated" in capsys.readouterr().err


def test_one_party_refuses_what_two_refuse(world, tmp_path):
    """Before the engine is asked for anything: nobody waits to be refused."""
    loaded = load_model(world.head, device="cpu")
    drawn = replace(loaded, about={**loaded.about, "origin": {**loaded.about["origin"], "simulated": True}})
    with pytest.raises(InputError) as caught:
        prepared_clear(drawn, world.section, spots=1)
    assert caught.value.field == "origin"
    prepared, _ = prepared_clear(drawn, world.section, spots=1, anyway=True)
    assert prepared.values.shape[0] == 1


def test_a_slide_of_other_colours_is_refused_and_says_so_where_one_goes_on(world):
    client = load_client(world.bundle)
    gate = {name: {**said, "colour": [99.0, 80.0, 80.0, 1.0, 1.0, 1.0]} for name, said in client.about["gate"].items()}
    far = changed(client, gate=gate)
    with pytest.raises(InputError) as caught:
        prepare(far, world.section)
    assert (caught.value.field, caught.value.value) == ("slide", "do not use")
    told = prepare(far, world.section, anyway=True).about["slide"]
    assert told["verdict"] == "do not use"
    assert told["why"]
    assert prepare(client, world.section).about["slide"]["verdict"] != "do not use"


def test_what_is_decrypted_says_of_trust_what_a_plain_prediction_says(world, head, section, tmp_path):
    keygen(head / "client.json", tmp_path / "keys", spots=9)
    encrypt_section(section, tmp_path / "keys", tmp_path / "request")
    evaluate_request(tmp_path / "request", head, tmp_path / "keys" / "evaluation.keys", tmp_path / "response")
    decrypt_response(tmp_path / "response", tmp_path / "keys", tmp_path / "decrypted.h5ad")
    predict_section(world.head, section, tmp_path / "plain.h5ad")
    found, plain = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("decrypted", "plain"))
    assert {"training_pearson:log1p", "half_width:log1p", "half_width_within:log1p"} <= set(plain.var)
    assert {"sharpness", "out_of_focus"} <= set(plain.obs)
    pd.testing.assert_frame_equal(found.var, plain.var)
    pd.testing.assert_frame_equal(found.obs, plain.obs)
    np.testing.assert_array_equal(found.obsm["spatial"], plain.obsm["spatial"])
    said, due = (dict(one.uns["prediction"]) for one in (found, plain))
    assert set(said) - set(due) == NOT_OF_THE_MODEL - {"part"}
    slide = due.pop("slide")
    assert slide.keys() == said["slide"].keys() >= {"verdict", "why", "shift", "shift_limit"}
    for name in ("verdict", "colour", "colour_limit", "sharpness", "sharpness_limit"):
        assert said["slide"][name] == slide[name]
    assert "trained_on" not in said, "the public part names nobody"
    for name in set(due) - NOT_OF_THE_MODEL - {"trained_on"}:
        np.testing.assert_equal(said[name], due[name], err_msg=name)


@pytest.mark.parametrize("of", ["head", "bundle"])
def test_the_public_part_names_no_patient_and_no_section_of_training(world, head, of):
    bundle, model = {"head": (head, world.head), "bundle": (world.bundle, world.model)}[of]
    about, trained = load_client(bundle).about, read_json(model / "model.json")
    assert ("predictability" in about, "intervals" in about) == (of == "head",) * 2
    assert ("shift" in about, "mean" in about["normalisation"]) == (of == "head", False)
    told = {name: about.get(name) for name in ("origin", "gate", "shift", "predictability", "intervals")}
    words = set(re.findall(r'"([^"]*)"', json.dumps(told)))
    assert words & {"simulated", "colour"}
    assert not words & {*trained["train_patients"], *trained["train_sections"], "by_patient"}


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("origin", {"simulated": False}),
        ("gate", {"section 1": {"colour": [1.0]}}),
        ("gate", []),
        ("shift", {"centre": [0.0, 1.0], "sd": [1.0], "limit": 1.0}),
        ("shift", {"centre": [float("nan")], "sd": [1.0], "limit": 1.0}),
        ("predictability", {"correlation": {}}),
        ("intervals", {"value": {"share": 0.9, "patients": 2, "half_widths": [1.0]}}),
        ("intervals", {"value": 3}),
    ],
)
def test_words_on_trust_that_cannot_be_read_are_refused(head, field, said):
    about = {**load_client(head).about, field: said}
    content = {**read_json(head / "client.json"), **about, "hash": hash_of(about)}
    with pytest.raises(InputError) as caught:
        parse_client(content, file="client.json")
    assert caught.value.field == field


@pytest.mark.parametrize("form", ["single", "batch"])
def test_what_sending_takes_is_told_before_and_nothing_is_left(world, section, tmp_path, form):
    client = tmp_path / "client.json"
    client.write_bytes((world.bundle / "client.json").read_bytes())
    said = check_section(client, section, form=form)
    assert list(tmp_path.iterdir()) == [client]
    keys = Keys(world.keys if form == "single" else world.batch_keys)
    request = Request.of(prepare(keys.client, section), keys.client, keys.bound)
    assert (said["spots"], said["messages"], said["form"]) == (9, request.batches, form)
    assert said["spots_per_message"] == keys.client.places
    assert said["up_mib"] == request.batches * keys.client.input_bytes / 2**20
    size = (keys.folder / "evaluation.keys").stat().st_size / 2**20
    assert said["keys_mib"] == pytest.approx(size, abs=0.1)
    shown = render(said)
    assert all(f"{said[name]:.1f} MiB" in shown for name in ("keys_mib", "up_mib", "down_mib_at_most"))
    assert document("fhe", "check", section, "--client", client, "--form", form) == plain(said)


def test_what_training_slides_looked_like_can_be_kept_back(world):
    model = load_model(world.head, device="cpu")
    open_, kept = (told_of(model.about, model.gate, looks=looks) for looks in (True, False))
    assert {*open_} - {*kept} == {"gate", "shift"}


def test_a_check_refuses_as_sending_does(world, tmp_path):
    about = load_client(world.bundle).about
    write_client(tmp_path / "client.json", {**about, "origin": {**about["origin"], "simulated": True}})
    with pytest.raises(InputError) as caught:
        check_section(tmp_path / "client.json", world.section)
    assert caught.value.field == "origin"
    assert "simulated" in check_section(tmp_path / "client.json", world.section, anyway=True)["trained_on"]
