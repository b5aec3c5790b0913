"""Expression from drawn tiles: toy tissue in which a feature says all, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from tests.synthesis.toy_discs import discs

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.synthesis import expression_use as use
from histocrypt.synthesis.worth import HELD


def side(n, seed, name, patients, *, shown=1.0):
    """Return tiles, what is seen of them, and their expression; ``shown`` is the share of it that pictures show."""
    rng = np.random.default_rng(seed)
    pairs = replace(discs(n, seed, side=8), patients=np.array(patients)[np.arange(n) % len(patients)])
    pairs = replace(pairs, ids=np.array([f"{name}_{who}:{row}" for row, who in enumerate(pairs.patients)]))
    hidden = rng.normal(size=(n, 2))
    looks = {"encoder": (shown * hidden) @ np.array([[1.0, 0, 1, 0, 1], [0, 1, 1, 1, 0]]), "colour": hidden[:, :1]}
    seen = {sight: (one + rng.normal(0, 0.3, one.shape)).astype(np.float32) for sight, one in looks.items()}
    mix = np.random.default_rng(9).normal(size=(2, 6))
    return pairs, seen, (hidden @ mix + rng.normal(0, 0.5, (n, 6))).astype(np.float32)


@pytest.fixture(scope="module")
def toy():
    made = {
        "real": side(120, 0, "A", ("a", "b")),
        "validation": side(40, 1, "V", ("v",)),
        "synthetic": side(90, 2, "synthetic", ("",)),
        "noise": side(90, 3, "noise", ("",), shown=0.0),
        "test": side(80, 4, "T", ("t", "u")),
    }
    sets, looked, values = ({name: one[part] for name, one in made.items()} for part in range(3))
    return sets, {name: values[name] for name in ("real", "validation", "test")}, looked


def test_good_pictures_with_a_teachers_values_teach_as_real_ones_do(toy, tmp_path):
    sets, values, looked = toy
    blocks = np.array([f"{one}/{row // 8}" for row, one in enumerate(sets["test"].sections.tolist())])
    table = use.expression_table(sets, values, looked, blocks=blocks, draws=200, sizes=(10, 500), folder=tmp_path)
    assert [*use.LESSONS, *use.COLOUR.values(), "teacher", "mean_profile", "real_10", "colour_10"] == list(table.index)
    score = table["pearson"]
    assert score["real"] > 0.5
    assert table.loc["synthetic", "pearson_verdict"] == HELD
    assert score["mean_profile"] == 0
    assert score["real_10"] < score["real"]
    assert score["noise"] > 0.8 * score["real"]  # a linear teacher is found out whatever it is asked about
    assert score["colour_only"] < score["real"]  # one of the two hidden causes alone
    assert (table["pearson_low"] <= score).all()
    assert (score <= table["pearson_high"]).all()
    assert table.loc["colour_noise", "pearson_vs_real"] == pytest.approx(score["colour_noise"] - score["colour_only"])
    assert table.loc["both", "tiles"] == 210
    assert read_json(tmp_path / "expression.json")["test_patients"] == ["t", "u"]
    again = use.expression_table(sets, values, looked, blocks=blocks, draws=200, sizes=(10, 500))
    assert (again["pearson"] == score).all()
    flat = use.judge({"flat": np.zeros((80, 6)), "true": values["test"]}, values["test"], sets["test"], draws=20)[0]
    assert flat == {"flat": {"pearson": 0}, "true": {"pearson": pytest.approx(1)}}


def test_what_cannot_be_learned_or_told_apart_is_refused(toy):
    sets, values, looked = toy
    with pytest.raises(InputError) as raised:
        use.expression_table({**sets, "test": replace(sets["test"], patients=np.full(80, "a"))}, values, looked)
    assert raised.value.value == "a"
    lesson = use.Lesson(looked["real"], sets["real"].sections, values["real"])
    with pytest.raises(InputError) as raised:
        use.Student.of(lesson.subset(np.array([0])), ["encoder"])
    assert raised.value.value == 1


def test_noise_shows_nothing_of_the_tiles_it_stands_beside(toy):
    pairs = discs(6, 0, side=16)
    noise = use.noise_like(pairs, seed=0)
    assert noise.images.shape == pairs.images.shape
    assert set(noise.sections) == {"noise"}
    assert np.array_equal(noise.images, use.noise_like(replace(pairs, images=255 - pairs.images), seed=0).images)
    assert noise.images.mean(axis=(1, 2)).std() > 20  # colours differ
