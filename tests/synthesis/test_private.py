import sys

import numpy as np
import pytest
import torch

from histocrypt.errors import InputError
from histocrypt.synthesis.generator import (
    GeneratorPlan,
    Lesson,
    Privacy,
    PrivateLesson,
    build,
    epsilon_of_group,
    load_generator,
    train_generator,
)
from histocrypt.synthesis.manifest import TISSUE, Pairs

PLAN = GeneratorPlan(width=8, multipliers=(1, 2), blocks=1, objective="velocity", steps=100, dropout=0.0, batch=8)
N = 24


def tiles() -> Pairs:
    rng = np.random.default_rng(0)
    return Pairs(
        TISSUE,
        np.array([f"s:{i}" for i in range(N)]),
        np.where(np.arange(N) % 3 == 0, "tumour", "normal"),
        np.array([f"P{i % 4}" for i in range(N)]),
        rng.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8),
        rng.integers(0, 4, (N, 16, 16), dtype=np.uint8),
        np.ones(N, dtype=bool),
    )


def lesson_of(privacy: Privacy, *, steps: int = 12) -> PrivateLesson:
    torch.manual_seed(0)
    network = build(PLAN, TISSUE, side=16, colours=3)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    return PrivateLesson(Lesson(tiles(), PLAN, torch.device("cpu")), network, optimiser, privacy, steps=steps)


def change(lesson: PrivateLesson, rows: np.ndarray) -> torch.Tensor:
    before = [p.detach().clone() for p in lesson.module.parameters()]
    lesson.step(rows, torch.Generator().manual_seed(0))
    after = lesson.module.parameters()
    return torch.cat([(a.detach() - b).flatten() for a, b in zip(after, before, strict=True)])


def test_no_more_is_spent_than_was_asked_and_the_statement_says_for_whom(tmp_path):
    privacy = Privacy(epsilon=4.0, delta=1e-3)
    made = train_generator(tiles(), PLAN, folder=tmp_path, epochs=4, seed=0, device="cpu", privacy=privacy)
    said = made.record["privacy"]
    assert 3.9 < said["epsilon"] <= 4.0
    assert said["unit"] == "tile"
    assert said["steps"] == 12
    groups = said["epsilon_by_group"]
    assert list(groups) == ["1", "2", "4", "6"]
    assert groups["1"] == said["epsilon"]
    assert sorted(groups.values()) == list(groups.values())
    assert np.isfinite(list(groups.values())).all()
    assert load_generator(tmp_path).record["privacy"] == said


def test_two_private_trainings_differ_for_their_noise_is_secret(tmp_path):
    run = {"epochs": 1, "seed": 0, "device": "cpu", "privacy": Privacy(epsilon=4.0, delta=1e-3)}
    first, second = (train_generator(tiles(), PLAN, folder=tmp_path / name, **run) for name in "ab")
    pairs = zip(first.network.parameters(), second.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_the_noise_has_the_stated_size_and_an_empty_batch_is_noise_alone():
    lesson = lesson_of(Privacy(epsilon=2.0, delta=1e-3, clip=0.5))
    moved = change(lesson, np.array([], dtype=np.int64))
    expected = lesson.noise * 0.5 / (lesson.rate * N)  # of a step of 1, averaged over the expected batch
    assert moved.std().item() == pytest.approx(expected, rel=0.03)


def test_gradients_are_clipped_tile_by_tile():
    lesson = lesson_of(Privacy(epsilon=2.0, delta=1e-3, clip=1e-3))
    lesson.optimiser.noise_multiplier = 0.0
    one = change(lesson, np.array([3]))
    assert one.norm().item() == pytest.approx(1e-3 / (lesson.rate * N), rel=0.01)
    many = change(lesson, np.arange(20))  # in two parts
    assert many.norm().item() <= 20 * 1e-3 / (lesson.rate * N) * 1.01
    assert many.norm() > one.norm()


def test_a_smaller_epsilon_takes_more_noise():
    assert lesson_of(Privacy(1.0, 1e-3)).noise > lesson_of(Privacy(8.0, 1e-3)).noise


def test_a_group_is_promised_less_and_always_something():
    bound = {"delta": 1e-5, "noise": 20.0, "rate": 0.02, "steps": 1000}
    sizes = [epsilon_of_group(size, **bound) for size in (1, 2, 8, 130)]
    assert sizes == sorted(sizes)
    assert sizes[1] >= 2 * sizes[0] * 0.99
    assert np.isfinite(sizes).all()


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"epsilon": 1.0, "delta": 1.0}, {"epsilon": 1.0, "clip": 0.0}])
def test_promises_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="out of range"):
        Privacy(**wrong)


def test_a_delta_that_promises_nothing_is_refused():
    with pytest.raises(InputError, match="too large for 24 tiles"):
        lesson_of(Privacy(1.0, 0.1))


def test_without_opacus_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(InputError, match="needs opacus"):
        lesson_of(Privacy(1.0, 1e-3))


def test_a_patient_is_promised_what_a_tile_was_without_a_group(tmp_path):
    privacy = Privacy(epsilon=4.0, delta=1e-3, unit="patient")
    made = train_generator(tiles(), PLAN, folder=tmp_path, epochs=2, seed=0, device="cpu", privacy=privacy)
    said = made.record["privacy"]
    assert said["unit"] == "patient"
    assert 3.9 < said["epsilon"] <= 4.0
    assert (said["patients"], said["rate"], said["steps"]) == (4, 1.0, 2)
    assert load_generator(tmp_path).record["privacy"] == said
