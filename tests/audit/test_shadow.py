import numpy as np
import pytest

from histocrypt.audit.shadow import ATTACKS, as_targets, dealt_anew, halves, shadow_losses, target_scores
from histocrypt.errors import InputError

PATIENTS = np.repeat([f"P{i}" for i in range(8)], 15)


def data(seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(PATIENTS), 20))
    return x, x[:, :2] + rng.normal(0, 1, (len(x), 2))


def nearest(x, y):
    """A model that remembers: the mean of what it knows of the three nearest records."""

    def train_one(mask, seed):
        known, said = x[mask], y[mask]
        order = np.argsort(((x[:, None] - known) ** 2).sum(axis=2), axis=1)[:, :3]
        return ((said[order].mean(axis=1) - y) ** 2).mean(axis=1)

    return train_one


def mean_only(x, y):
    def train_one(mask, seed):
        noise = np.random.default_rng(seed).normal(0, 0.05, y.shape)
        return ((y.mean(axis=0) + noise - y) ** 2).mean(axis=1)

    return train_one


@pytest.mark.parametrize(("n", "asked", "given"), [(2, 9, 2), (3, 9, 6), (4, 9, 6), (6, 8, 8), (6, 99, 20), (30, 7, 8)])
def test_halves_are_balanced_and_never_come_twice(n, asked, given):
    patients = np.repeat([f"P{i}" for i in range(n)], 3)
    inside = halves(patients, asked, seed=1)
    assert inside.shape == (given, 3 * n)
    assert len({row.tobytes() for row in inside}) == given
    assert (inside.sum(axis=0) == given / 2).all()
    assert (inside[::2] == ~inside[1::2]).all()
    assert (inside.reshape(given, n, 3).std(axis=2) == 0).all(), "a patient is never on two sides"
    assert np.isin(inside.sum(axis=1), [3 * (n // 2), 3 * (n - n // 2)]).all()


def test_what_a_procedure_remembers_is_found():
    loss, inside = shadow_losses(nearest(*data()), PATIENTS, 12, 0)
    for attack in ATTACKS:
        found = as_targets(target_scores(loss, inside, attack=attack), inside, PATIENTS, draws=100)
        assert found.aucs.shape == (12,)
        assert found.interval_over == "patients"
        assert 0.55 < found.interval[0] < found.auc < found.interval[1], attack
        assert found.auc > 0.6


def test_a_procedure_that_ignores_its_records_leaks_nothing():
    aucs = {attack: [] for attack in ATTACKS}
    for seed in range(6):  # few shadows, where unequal counts would tilt the ratio most
        loss, inside = shadow_losses(mean_only(*data(seed)), PATIENTS, 6, seed)
        for attack in ATTACKS:
            scores = target_scores(loss, inside, attack=attack)
            found = as_targets(scores, inside, PATIENTS, draws=50)
            aucs[attack].append(found.auc)
            assert found.interval[0] < 0.5 < found.interval[1] or abs(found.auc - 0.5) < 0.05
    for values in aucs.values():
        assert np.mean(values) == pytest.approx(0.5, abs=0.02)


def test_what_is_found_is_gone_when_the_patients_names_are_exchanged():
    loss, inside = shadow_losses(nearest(*data()), PATIENTS, 12, 0)
    dealt = dealt_anew(loss, inside, PATIENTS, deals=40)
    assert (
        dealt.interval[0]
        < 0.5
        < dealt.interval[1]
        < as_targets(target_scores(loss, inside), inside, PATIENTS, draws=20).auc
    )
    assert dealt.p_value == 1 / 41
    assert (dealt.by, dealt.deals) == ("patient", 40)
    harmless, inside = shadow_losses(mean_only(*data()), PATIENTS, 12, 0)
    assert dealt_anew(harmless, inside, PATIENTS, deals=40).p_value > 0.05


def test_a_killed_call_goes_on(tmp_path):
    trained = []

    def train_one(mask, seed):
        trained.append(seed)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return np.where(mask, 1.0, 2.0) + seed % 7

    with pytest.raises(KeyboardInterrupt):
        shadow_losses(train_one, PATIENTS, 4, 0, folder=tmp_path, fingerprint="a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shadow_000.safetensors", "shadow_001.safetensors"]
    whole = shadow_losses(train_one, PATIENTS, 4, 0, folder=tmp_path, fingerprint="a")
    assert len(trained) == 5, "two were kept"
    (tmp_path / "shadow_001.safetensors").write_bytes(b"cut off")
    again = shadow_losses(train_one, PATIENTS, 4, 0, folder=tmp_path, fingerprint="a")
    assert len(trained) == 6
    assert np.array_equal(whole[0], again[0])
    assert np.array_equal(whole[1], again[1])
    shadow_losses(train_one, PATIENTS, 4, 0, folder=tmp_path, fingerprint="b")
    assert len(trained) == 10, "losses of another model are not taken"


def test_few_patients_are_said(capfd):
    patients = np.repeat(["a", "b", "c", "d"], 10)
    loss, inside = shadow_losses(lambda mask, seed: np.where(mask, 1.0, 2.0), patients, 16, 0)
    assert len(loss) == 6
    assert "4 patients have 6 halves" in capfd.readouterr().err
    found = as_targets(target_scores(loss, inside), inside, patients, draws=20)
    assert found.auc == 1
    assert "halves of 4 patients" in found.notes[0]
    said = as_targets(target_scores(loss, inside), inside, patients, unit="section", draws=20).notes
    assert "halves of 4 sections" in said[0]
    assert found.interval_over == "records"


def test_defects_are_said():
    with pytest.raises(InputError) as alone:
        halves(np.array(["a", "a"]), 2, seed=0)
    assert "2" in alone.value.expected
    with pytest.raises(InputError, match="did you mean 'LiRA'"):
        target_scores(np.ones((2, 2)), np.eye(2, dtype=bool), attack="LiRa")
    with pytest.raises(InputError) as error:
        shadow_losses(lambda mask, seed: np.array([1.0, np.nan]), np.array(["a", "b"]), 2, 0)
    assert error.value.field == "train_one"
