"""Attribute inference: what is planted is found, what the image tells is told apart, and few patients say nothing."""

import numpy as np
import pytest

from histocrypt.audit.attributes import BOTH, IMAGE, OUTPUTS, by_patient, infer, newcombe, sentence, table
from histocrypt.errors import InputError

FEW = {"repeats": 3, "deals": 39, "draws": 100}


@pytest.fixture
def chance():
    return np.random.default_rng(0)


def made(chance, has, *, outputs=0.0, image=0.0):
    """Return outputs and image of patients: ten numbers each, the first shifted where the attribute is had."""
    both = chance.normal(size=(2, len(has), 10))
    both[0, :, 0] += outputs * has
    both[1, :, 0] += image * has
    return both[0], {"colour": both[1]}


def test_what_outputs_tell_beyond_the_image(chance):
    has = np.arange(40) % 2
    found = infer(*made(chance, has, outputs=4.0), has, name="subtype", value="1", **FEW)
    assert found.told[OUTPUTS].auc > 0.9 > found.told[IMAGE].auc
    assert found.told[OUTPUTS].p_value == 1 / 40
    assert found.beyond["outputs - image"].low > 0
    assert found.beyond["both - image"].auc > 0.1
    assert found.controls_passed
    assert set(found.told) == {OUTPUTS, "colour", IMAGE, BOTH}
    assert found.patients == {"with": 20, "without": 20}


def test_what_the_image_tells_is_not_put_down_to_the_outputs(chance):
    has = np.arange(40) % 2
    outputs, image = made(chance, has, image=4.0)
    found = infer(outputs, image, has, name="laboratory", **FEW)
    assert found.told[IMAGE].auc > 0.9
    assert found.beyond["outputs - image"].high < 0
    assert found.beyond["both - image"].high <= 0.05


def test_an_attribute_of_nothing_is_not_found_too_often(chance):
    has = np.arange(24) % 2
    small = [infer(*made(chance, has), has, name="x", **FEW).told[OUTPUTS] for _ in range(8)]
    assert sum(one.p_value <= 0.05 for one in small) <= 3
    assert sum(not one.low <= 0.5 <= one.high for one in small) <= 3


def test_of_three_patients_nothing_can_be_said(chance):
    has = np.array(["HBCIS", "HER2ST", "HER2ST"])
    found = infer(*made(chance, np.array([1, 0, 0]), outputs=9.0), has, name="laboratory", **FEW)
    assert not found.told
    assert not found.beyond
    assert not found.controls_passed
    assert found.smallest_p == pytest.approx(1 / 3)
    assert len(found.notes) == 1
    assert "cannot be said" in table({"ridge": [found]}).iloc[0]["outputs"]
    assert "1 patients against 2 cannot be asked about" in sentence(found)


def test_six_patients_have_no_small_p(chance):
    has = np.arange(6) % 2
    found = infer(*made(chance, has, outputs=9.0), has, name="laboratory", **FEW)
    assert found.smallest_p == pytest.approx(1 / 20)
    assert found.told[OUTPUTS].p_value >= 1 / 40
    assert any("3 patients on a side" in note for note in found.notes)


def test_an_interval_has_a_width_where_all_are_told_apart():
    few, many = newcombe(1.0, 3, 3), newcombe(1.0, 40, 40)
    assert few[0] < 0.75 < 0.9 < many[0] < 1
    assert few[1] == many[1] == 1
    assert newcombe(0.0, 3, 3)[1] == pytest.approx(1 - few[0])
    low, high = newcombe(0.7, 30, 30)
    assert (low, high) == (pytest.approx(0.554, abs=0.02), pytest.approx(0.815, abs=0.02))


def test_a_row_for_each_patient():
    names, rows = by_patient(np.array([[1.0], [3.0], [5.0]]), np.array(["b", "b", "a"]))
    assert names.tolist() == ["a", "b"]
    assert rows.tolist() == [[5.0, 0.0], [2.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"attribute": np.zeros(4)}, "x"),
        ({"attribute": np.arange(4)}, "x"),
        ({"value": "7"}, "x"),
        ({"image": {}}, "image"),
        ({"image": {"colour": np.zeros((3, 2))}}, "colour"),
        ({"outputs": np.full((4, 2), np.nan)}, "outputs"),
    ],
)
def test_what_cannot_be_asked(change, field):
    given = {"outputs": np.eye(4), "image": {"colour": np.eye(4)}, "attribute": np.arange(4) % 2, **change}
    with pytest.raises(InputError) as error:
        infer(given.pop("outputs"), given.pop("image"), given.pop("attribute"), name="x", **given)
    assert error.value.field == field
