from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from histocrypt.audit import shadow_sets
from histocrypt.audit.membership import auc
from histocrypt.audit.shadow import as_targets, dealt_anew, halves
from histocrypt.audit.shadow_sets import ATTACKS, ShadowSets, set_scores, tile_scores, train_shadows
from histocrypt.errors import InputError
from histocrypt.options import Audit, GeneratorPlan
from histocrypt.synthesis.filtering import distances
from histocrypt.synthesis.manifest import TISSUE, Pairs

PATIENTS, TILES, DRAWN, COLUMNS = 12, 12, 60, 6


def made(*, lean: float = 0.0, seed: int = 0) -> ShadowSets:
    """Tiles of patients who differ; sets of nobody's tiles, whose middle leans towards that of their members."""
    rng = np.random.default_rng([seed, 77])
    names = np.repeat([f"P{i:02d}" for i in range(PATIENTS)], TILES)
    middles = rng.normal(size=(PATIENTS, COLUMNS))
    real = middles.repeat(TILES, axis=0) + rng.normal(size=(len(names), COLUMNS))
    inside = halves(names, 12, seed=seed)[:, ::TILES]
    drawn = [lean * middles[own].mean(axis=0) + 2 * rng.normal(size=(DRAWN, COLUMNS)) for own in inside]
    return ShadowSets(inside, tuple(drawn), rng.random((12, len(names))), real, names)


def found(sets: ShadowSets, attack: str):
    scores = set_scores(sets.view.read(sets.drawn), sets.inside, attack=attack)
    return as_targets(scores, sets.inside, sets.patients, draws=100)


@pytest.mark.parametrize("attack", ATTACKS)
def test_planted_copies_are_found(attack):
    silent, loud = made(), made().planted(1.0)
    assert found(silent, attack).interval[0] < 0.5
    assert found(loud, attack).auc > 0.9
    assert found(silent.planted(0.3), attack).auc < found(loud, attack).auc + 0.02


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_a_leak_guessing_is_all_there_is(attack):
    aucs = [found(made(seed=seed), attack).auc for seed in range(4)]
    assert abs(np.mean(aucs) - 0.5) < 0.1
    sets = made()
    read = sets.view.read(sets.drawn)
    told = dealt_anew(lambda own: set_scores(read, own, attack=attack), sets.inside, sets.patients, deals=10)
    assert told.interval[0] < 0.5 < told.interval[1]
    assert told.p_value > 0.09


def test_a_set_that_passes_the_distance_filter_tells_who_was_in_it():
    sets = made(lean=2.0)
    near = []
    for drawn, inside in zip(sets.drawn, sets.tiles_inside, strict=True):
        limit = np.quantile(distances(sets.real[~inside], sets.real[inside])[0], 0.05)
        near.append((distances(drawn, sets.real[inside])[0] < limit).mean())
    assert np.mean(near) <= 0.05
    assert found(sets.filtered(0.05), "classifier of sets").interval[0] > 0.5
    read = sets.view.read(sets.drawn)
    nearest = -read.by_patient(np.exp(read.near))
    alone = as_targets(nearest, sets.inside, sets.patients, draws=20).auc
    assert alone < found(sets, "classifier of sets").auc - 0.1


def test_a_filter_takes_out_what_is_too_near_and_leaves_no_set_empty():
    copies = made().planted(0.5)
    kept = copies.filtered(0.2)
    assert max(len(one) for one in kept.drawn) <= DRAWN // 2 + 3
    exact = replace(copies, drawn=tuple(copies.real[inside] for inside in copies.tiles_inside))
    assert [len(one) for one in exact.filtered(0.2).drawn] == [len(one) for one in exact.drawn]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_attacked_does_not_tell_who_was_in_it(attack):
    sets = made(lean=1.0)
    read, other = sets.view.read(sets.drawn), sets.inside.copy()
    other[[4, 5]] = ~other[[4, 5]]
    before, after = (set_scores(read, inside, attack=attack) for inside in (sets.inside, other))
    assert np.allclose(before[[4, 5]], after[[4, 5]])
    assert not np.allclose(before[:4], after[:4])


def test_another_set_is_attacked_with_all_shadows():
    sets = made()
    member = sets.inside[0, np.searchsorted(sets.patients, sets.owners)]
    read = sets.view.read([*sets.drawn, sets.real[member]])
    scores = tile_scores(read, sets.inside, attack="closest record")
    assert scores.shape == (13, len(sets.owners))
    assert auc(scores[-1], member)[0] > 0.95


def test_too_few_shadows_and_unknown_attacks_are_refused():
    sets = made()
    read = sets.view.read(sets.drawn[:4])
    with pytest.raises(InputError) as error:
        set_scores(read, sets.inside[:4], attack="closest record")
    assert (error.value.field, error.value.value) == ("n", 4)
    with pytest.raises(InputError, match="guess"):
        set_scores(read, sets.inside[:4], attack="guess")
    with pytest.raises(ValidationError):
        Audit(shadow_generators=3)
    assert Audit(shadow_generators=0).shadow_generators == 0


def test_shadows_go_on_where_they_ended_and_leave_no_generator(tmp_path, monkeypatch):
    rng, names = np.random.default_rng(0), np.arange(24).astype(str)
    images, masks = rng.integers(256, size=(24, 16, 16, 3), dtype=np.uint8), np.ones((24, 16, 16), np.uint8)
    labels, people = np.tile(["normal", "tumour"], 12), np.repeat(["P1", "P2"], 12)
    pairs = Pairs(TISSUE, names, labels, people, images, masks, np.ones(24, bool))
    plan = GeneratorPlan(width=8, multipliers=(1,), blocks=1, patch=4, batch=16, balance=False)
    options = {
        "n_shadows": 2, "epochs": 1, "per_class": 3, "seed": 0, "folder": tmp_path, "way_back": {"steps": 2},
        "features": lambda tiles: tiles.images.mean(axis=(1, 2)),
    }  # fmt: skip
    asked = np.arange(24) % 3 > 0
    first = train_shadows(pairs, plan, asked=asked, **options)
    assert [one.shape for one in first.drawn] == [(6, 3), (6, 3)]
    assert first.loss.shape == (2, 16)
    assert (first.inside[0] == ~first.inside[1]).all()
    assert not np.allclose(first.drawn[0], first.drawn[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set_000.safetensors", "set_001.safetensors"]
    monkeypatch.setattr(shadow_sets, "train_generator", lambda *_, **__: pytest.fail("trained again"))
    again = train_shadows(pairs, plan, asked=asked, **options)
    assert np.array_equal(again.loss, first.loss)
    monkeypatch.setattr(shadow_sets, "train_generator", lambda *_, **__: (_ for _ in ()).throw(KeyError("trained")))
    with pytest.raises(KeyError):
        train_shadows(pairs, plan, asked=asked, **options | {"epochs": 2})
