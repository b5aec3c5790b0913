"""What a study's part `synthesis` asks for, on the small run that tests share."""

import numpy as np
import pytest
import yaml

from histocrypt.errors import InputError
from histocrypt.study import parse_study
from histocrypt.synthesis.manifest import TISSUE, load_pairs
from histocrypt.synthesis.pipeline import blocks_of, draw_synthetic, fold_of, real_pairs, train_generators


def study_of(small_run, **changes):
    content = yaml.safe_load((small_run / "small.yaml").read_text())
    content["synthesis"] |= {"epochs": 1, "per_class": 3, **changes}
    return parse_study(content, file=small_run / "small.yaml")


@pytest.fixture
def outputs(small_run, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(small_run))
    return small_run


def test_a_control_generator_draws_the_tiles_without_tumour(outputs, tmp_path):
    study = study_of(outputs, normal_from="control")
    real = real_pairs(study, fold_of(study, None))
    generators = train_generators(study, real["train"], tmp_path)
    drawn = draw_synthetic(study, generators, tmp_path)
    assert sorted(generators) == ["control", "joint"]
    assert sorted(drawn.labels) == ["normal"] * 3 + ["tumour"] * 3
    assert len(set(drawn.ids)) == 6
    assert drawn.has_mask.all()
    rule = drawn.masks[drawn.labels == "normal"]
    assert set(np.unique(rule)) <= {0, 1, 2}  # a rule finds no tumour
    again = load_pairs(tmp_path / "samples" / "control", scheme=TISSUE, side=16)
    assert np.array_equal(again.masks, rule)


def test_sides_of_a_fold_share_no_patient_and_tiles_know_their_square_of_tissue(outputs):
    study = study_of(outputs)
    real = real_pairs(study, fold_of(study, "fold_2"))
    people = [set(pairs.patients) for pairs in real.values()]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert len(blocks_of(study, real["test"])) == len(real["test"])


def test_a_privacy_budget_is_shared_by_the_generators(outputs, tmp_path):
    study = study_of(outputs, normal_from="control", epsilon=8.0)
    real = real_pairs(study, fold_of(study, None))
    generators = train_generators(study, real["train"], tmp_path)
    spent = [one.record["privacy"]["epsilon"] for one in generators.values()]
    assert sum(spent) <= 8.0


def test_a_label_that_nobody_has_is_said_in_one_sentence(outputs):
    study = study_of(outputs, label="obs:nowhere")
    with pytest.raises(InputError, match="label"):
        real_pairs(study, fold_of(study, None))
