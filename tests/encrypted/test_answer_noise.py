"""Noise that the evaluator adds: as large as it is asked for, the same in all copies, at the cost that is stated."""

from dataclasses import replace

import numpy as np
import pytest
from tests.encrypted.serving import refuses

from histocrypt.encrypted import engine, messages
from histocrypt.encrypted.answer_noise import AnswerNoise, score_left
from histocrypt.encrypted.answers import Answers
from histocrypt.encrypted.bundle import load_bundle
from histocrypt.encrypted.evaluator import Session
from histocrypt.encrypted.key_owner import Keys


def decrypted(world, encrypted, noise: AnswerNoise | None) -> np.ndarray:
    """Return what a key owner makes of the answers to one message, (answers, outputs); it checks each."""
    bundle, keys, (request, (data, _)) = load_bundle(world.bundle), Keys(world.keys), encrypted
    session = Session(bundle, engine.load_model(bundle.model), keys.folder / "evaluation.keys", workers=1, noise=noise)
    found, owner = [], keys.decryptor()
    for _ in range(1 if noise is None else 24):
        output = session.evaluate(data, file="it", request=request.name, index=0, of=request.batches)
        answers = Answers(request, owner)
        answers.add(0, messages.unpack(output, file="it", kind="output", **request.place(0)), file="it")
        found.append(answers._values[0].copy())
    session.close()
    return np.array(found)


def test_it_is_as_large_as_asked_for(world, encrypted):
    """On real ciphertexts, decrypted by the key owner, whose checks of copies it passes."""
    share = 0.05
    noise = AnswerNoise.of(load_bundle(world.bundle), share)
    clear = decrypted(world, encrypted, None)
    scaled = (decrypted(world, encrypted, noise) - clear) / (share * noise.spread)
    assert scaled.size > 200
    assert scaled.std() == pytest.approx(1, abs=5 / np.sqrt(2 * scaled.size))
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert np.abs(np.corrcoef(scaled)[~np.eye(len(scaled), dtype=bool)]).mean() < 0.5  # fresh each time


def test_what_it_costs(world):
    """The correlation with what was measured falls as stated."""
    chance = np.random.default_rng(0)
    noise = AnswerNoise.of(load_bundle(world.bundle), 0.3)
    measured = chance.normal(size=(len(noise.spread), 20_000)) * noise.spread[:, None]
    predicted = 0.5 * (0.6 * measured + 0.8 * chance.permuted(measured, axis=1))

    def score(values):
        return np.mean([np.corrcoef(pair)[0, 1] for pair in zip(values, measured, strict=True)])

    left = score(predicted + noise.draw(measured.shape[1])) / score(predicted)
    assert left == pytest.approx(score_left(0.3, 0.5), abs=0.02)
    assert score_left(0.3, 0.5) == pytest.approx(0.857, abs=1e-3)


def test_bundles_without_a_spread_are_refused(world):
    bundle = load_bundle(world.bundle)
    older = replace(bundle, server={name: said for name, said in bundle.server.items() if name != "output_sd"})
    with refuses("output_sd"):
        AnswerNoise.of(older, 0.1)
