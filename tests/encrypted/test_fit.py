"""Whoever would send a slide knows first whether the model is for it: origin and gate are in the public part."""

from dataclasses import replace

import pytest

from histocrypt.encrypted.bundle import load_client
from histocrypt.encrypted.key_owner import prepare
from histocrypt.errors import InputError
from histocrypt.files import read_json


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
