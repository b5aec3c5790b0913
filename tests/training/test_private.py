import numpy as np
import pytest
import torch

from histocrypt.errors import InputError
from histocrypt.training.private import TILES, PatientSteps

PATIENTS = np.repeat(["a", "b", "c", "d"], [20, 3, 30, 1])
PROMISE = {"epsilon": 2.0, "delta": 1e-3, "clip": 0.5}


def steps_of(*, batch: int = 2, loss=None, **others) -> tuple[PatientSteps, torch.nn.Linear]:
    """Return steps over rows whose gradient is as large as the row's number."""
    network = torch.nn.Linear(400, 5, bias=False)
    known = torch.randn(len(PATIENTS), 400, generator=torch.Generator().manual_seed(0))

    def mean_loss(rows: np.ndarray, chance: torch.Generator) -> torch.Tensor:
        return 100 * network(known[rows]).square().sum(1).mean()

    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    promise = PROMISE | others
    return PatientSteps(network, optimiser, loss or mean_loss, PATIENTS, **promise, batch=batch, steps=10), network


def change(lesson: PatientSteps, network: torch.nn.Module, batch: list[np.ndarray]) -> torch.Tensor:
    before = network.weight.detach().clone()
    lesson.step(batch)
    return network.weight.detach() - before


def rows(*names: str) -> list[np.ndarray]:
    return [np.flatnonzero(PATIENTS == name) for name in names]


def test_a_patient_moves_a_step_by_one_clip_however_many_records_it_has():
    lesson, network = steps_of()
    lesson.optimiser.noise_multiplier = 0.0
    for name in ("c", "d"):
        assert change(lesson, network, rows(name)).norm().item() == pytest.approx(0.5 / 2, rel=0.01)
    assert change(lesson, network, rows("a", "b", "c", "d")).norm().item() <= 4 * 0.5 / 2 * 1.01


def test_the_sum_of_clipped_patients_is_what_a_step_descends_on():
    lesson, network = steps_of(clip=1e6)  # nothing is clipped: the plain gradient of the sum over the patients
    lesson.optimiser.noise_multiplier = 0.0
    batch = rows("a", "d")
    plain = torch.autograd.grad(sum(lesson._loss(own, None) for own in batch), network.weight)[0]
    torch.testing.assert_close(change(lesson, network, batch), -plain / 2, rtol=1e-4, atol=1e-4)


def test_a_step_without_patients_is_noise_of_the_stated_size():
    lesson, network = steps_of()
    assert change(lesson, network, []).std().item() == pytest.approx(lesson.noise * 0.5 / 2, rel=0.1)


def test_every_patient_has_a_coin_of_its_own_and_gives_a_few_records():
    lesson, _ = steps_of(batch=2)
    drawn = list(lesson.batches(400))
    assert {len(one) for one in drawn} >= {0, 1, 2, 3, 4}
    assert np.mean([len(one) for one in drawn]) == pytest.approx(2, abs=0.25)
    assert max(len(own) for one in drawn for own in one) == TILES
    assert all(len(set(PATIENTS[own])) == 1 and len(set(own.tolist())) == len(own) for one in drawn for own in one)


def test_no_known_seed_tells_what_is_drawn_for_records():
    seen = []

    def loss(own: np.ndarray, chance: torch.Generator) -> torch.Tensor:
        seen.append(torch.rand(4, generator=chance).tolist() + torch.rand(4).tolist())
        return network.weight.sum()

    for _ in range(2):
        lesson, network = steps_of(loss=loss)
        torch.manual_seed(0)
        lesson.step(rows("a"), torch.Generator().manual_seed(0))
    assert not set(seen[0]) & set(seen[1])


def test_what_is_promised_is_said_and_no_more_than_asked():
    said = steps_of(batch=4)[0].statement()
    assert said["unit"] == "patient"
    assert 1.9 < said["epsilon"] <= 2.0
    assert (said["rate"], said["patients"]) == (1.0, 4)


def test_a_delta_that_would_let_one_patient_be_published_is_refused():
    with pytest.raises(InputError) as error:
        steps_of(delta=0.25)
    assert error.value.field == "synthesis.delta"
