"""DiffGuard's column: halves in manifests, an attack that finds what is planted, centres that are kept apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthesis.fabricated import SIDE, synthetic, tiles

from histocrypt.audit.diffguard import by_heart, judge_column, learn_attack, private_half, read_splits, write_splits
from histocrypt.audit.learned import MapAttack
from histocrypt.errors import InputError
from histocrypt.synthesis.manifest import TISSUE, save_pairs


@pytest.mark.parametrize("one", [True, False])
def test_halves_go_through_their_manifests(tmp_path, one):
    shadow = synthetic(tiles(["A"], each=12))
    written = write_splits(tmp_path, shadow, seed=0, one=one)
    assert len(written) == (1 if one else 2)
    pairs, private = read_splits(*written, scheme=TISSUE, side=SIDE)
    assert sorted(pairs.ids) == sorted(shadow.ids)
    assert {name: private[pairs.labels == name].sum() for name in TISSUE.classes} == {"normal": 3, "tumour": 3}
    expected = dict(zip(shadow.ids, private_half(shadow, seed=0), strict=True))
    assert all(expected[name] == own for name, own in zip(pairs.ids, private, strict=True))
    if not one:
        assert {entry["MIA_label"] for entry in json.loads(written[0].read_text())} == {1}


def test_halves_hold_whole_patients():
    pairs = tiles(["A", "B", "C", "D"], each=6)
    private = private_half(pairs, seed=3)
    assert len(set(pairs.patients[private])) == 2
    assert not set(pairs.patients[private]) & set(pairs.patients[~private])


def test_halves_that_say_nothing_are_refused(tmp_path):
    shadow = synthetic(tiles(["A"], each=8))
    private, public = write_splits(tmp_path / "two", shadow, seed=0)
    cases = {
        "MIA_label": [private],
        "id": [private, public, public],
        "record synthetic:0:0, MIA_label": [save_pairs(tmp_path / "plain", shadow)],
    }
    for field, manifests in cases.items():
        with pytest.raises(InputError) as refused:
            read_splits(*manifests, scheme=TISSUE, side=SIDE)
        assert refused.value.field == field


def honest(pairs, _=0):
    """A network without memory: dark is nucleus, the rest tumour region."""

    def predict(asked):
        return np.where(asked.images.mean(axis=3) < 130, 2, 3)

    return predict


class Agreement(torch.nn.Module):
    """An attack that has learned one thing: members' predictions agree with the truth."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, maps):
        truth, predicted = maps.chunk(2, dim=1)
        return (truth * predicted).mean(dim=(1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def column():
    """What a planted leak and an honest network give away; the other centre outlines no nuclei."""
    shadow = synthetic(tiles(["s"], each=100, seed=9))
    private = private_half(shadow, seed=0)
    members, internal, other = (tiles([a, b], each=24, seed=n) for n, (a, b) in enumerate(["AB", "CD", "EF"], 1))
    other = replace(other, masks=np.where(other.masks == 2, 1, other.masks).astype(np.uint8))
    learned = learn_attack(shadow, private, by_heart, epochs=12, learning_rate=3e-3)
    return {
        "planted": judge_column(learned, by_heart(members), members, internal, {"other": other}, draws=60),
        "honest": judge_column(
            MapAttack(Agreement(), SIDE), honest(members), members, internal, {"other": other}, draws=60
        ),
    }


def test_a_planted_leak_is_found(column):
    assert column["planted"]["internal"].auc > 0.85


def test_another_centre_is_not_taken_for_membership(column):
    rows = column["honest"]
    assert list(rows) == ["internal", "members against other", "internal non-members against other"]
    assert rows["internal"].auc_interval[0] <= 0.5 <= rows["internal"].auc_interval[1]
    assert rows["internal"].n_non_members == 24, "the other centre is no part of it; normal tiles are left out"
    apart = [abs(rows[name].auc - 0.5) for name in list(rows)[1:]]
    assert min(apart) > 0.3, "both rows show the centre"
    assert all(any("centre" in note for note in rows[name].notes) for name in list(rows)[1:])


def test_a_patient_on_two_sides_is_refused(column):
    members = tiles(["A"], each=4)
    with pytest.raises(InputError, match="patient A"):
        judge_column(None, honest(members), members, tiles(["A"], each=4, seed=1))
