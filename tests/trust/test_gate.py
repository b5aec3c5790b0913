"""The gate: a slide like those of training passes, others are warned of, and limits come from patients left out."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from histocrypt.sections.read import read_path
from histocrypt.tissue.focus import COARSE, sharpness
from histocrypt.tissue.stain import estimate
from histocrypt.tissue.tiles import iter_tiles
from histocrypt.trust.gate import Gate, Look, own_features, without_names

RNG = np.random.default_rng(0)


EOSIN, BROWN = np.array([0.4, 0.8, 0.45]), np.array([0.27, 0.57, 0.78])


def look(patient, laboratory="", *, at=0.0, colour=0.0, sharp=0.0, coarse=0.0, stained=True, second=EOSIN):
    about = {"second": second, "features": np.full(8, at), "patient": patient, "laboratory": laboratory}
    return Look(np.full(6, colour), sharp, stained, sharp - 1, coarse, **about)


def gate(*looks):
    return Gate({f"s{i}": one for i, one in enumerate(looks)}, np.ones(8))


TWO = (look("a", "A"), look("b", "A", at=0.5), look("c", "B", at=2.0, colour=4.0))


def test_limits_come_from_patients_whose_laboratory_is_shared():
    made = gate(*TWO)
    assert made.calibration == ["s0", "s1"]
    assert made.limits["shift"] == pytest.approx(0.5)
    assert gate(*(look(one.patient, at=one.features[0]) for one in TWO)).limits["shift"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (look("n", at=0.9), "fine"),
        (look("n", at=1.2), "with care"),
        (look("n", colour=-3.0), "with care"),
        (look("n", colour=-11.0), "with care"),
        (look("n", colour=-13.0), "do not use"),
        (look("n", sharp=-1.0), "with care"),
        (look("n", sharp=-4.0), "with care"),
        (look("n", sharp=-4.0, coarse=-1.3), "with care"),
        (look("n", sharp=-4.0, coarse=-1.5), "do not use"),
        (look("n", sharp=1.3), "with care"),
        (look("n", sharp=1.5), "do not use"),
        (look("n", coarse=1.5), "fine"),
        (look("n", stained=False), "do not use"),
        (look("n", second=BROWN), "do not use"),
    ],
)
def test_the_word_is_that_of_the_worst(seen, word):
    verdict = gate(*TWO).judge(seen)
    assert verdict.word == word
    assert bool(verdict.reasons) == (word != "fine")
    limited = {name + end for name in ("shift", "colour", "sharpness") for end in ("", "_limit")}
    assert set(verdict.measured) == limited | {"coarse"}


def test_a_model_of_brown_slides_may_be_used_on_them():
    assert gate(*(replace(one, second=BROWN) for one in TWO)).judge(look("n", second=BROWN)).word == "fine"


def test_what_a_model_reduces_before_it_reads_warns_only():
    assert gate(*TWO).judge(look("n", coarse=-2.0), reduced=True).word == "with care"


def test_a_gate_of_an_earlier_version_knows_less_and_judges():
    made = gate(*TWO)
    said = {
        name: {k: v for k, v in one.items() if k not in ("coarse", "second")} for name, one in made.to_dict().items()
    }
    older = Gate.from_dict(said, made.state())
    assert older.judge(look("n", coarse=-9.0, second=BROWN, sharp=-1.0)).word == "with care"
    assert older.judge(look("n", colour=-13.0)).word == "do not use"


def test_many_flawed_spots_ask_for_care():
    good = gate(*TWO).judge(look("n"))
    verdict = good.of_spots({"pen": np.arange(50) < 6, "fold": np.arange(50) < 2})
    assert (good.word, verdict.word) == ("fine", "with care")
    assert verdict.reasons == ("12% of its spots lie under pen",)
    assert verdict.measured["fold"] == pytest.approx(0.04)
    refused = gate(*TWO).judge(look("n", stained=False))
    assert refused.of_spots({"pen": np.ones(5, bool)}).word == "do not use"


def test_one_patient_says_nothing_of_others():
    made = gate(look("a"), look("a", at=0.1))
    assert (made.limits, made.judge(look("b")).word) == ({}, "with care")


def test_a_feature_that_does_not_vary_does_not_outweigh_the_rest():
    still = Gate({"s0": look("a"), "s1": look("b")}, np.array([1e-9, *np.ones(7)]))
    moved = Look(np.zeros(6), 0.0, stained=True, features=np.array([1.0, *np.zeros(7)]))
    assert still.judge(moved).measured["shift"] == pytest.approx(5 / 8**0.5)


def test_a_model_that_reads_tiles_has_no_shift_and_the_rest():
    made = Gate(
        {
            name: Look(one.colour, one.sharpness, stained=True, patient=one.patient)
            for name, one in zip("abc", TWO, strict=True)
        }
    )
    assert made.judge(look("n", colour=-20.0)).word == "do not use"
    assert "shift" not in made.judge(look("n")).measured


def test_a_gate_survives_its_file():
    made = gate(*TWO)
    again = Gate.from_dict(made.to_dict(), made.state())
    seen = look("n", at=1.2)
    assert again.judge(seen) == made.judge(seen)
    assert again.in_focus == made.in_focus == pytest.approx(-1.0)
    unnamed = Gate.from_dict(without_names(made.to_dict()), made.state())
    assert unnamed.limits == made.limits
    assert unnamed.judge(seen) == made.judge(seen)


def test_a_shift_is_told_from_a_centre_where_no_section_is():
    made = gate(*TWO)
    told = made.without_sections()
    assert told == {"centre": [0.8] * 8, "sd": [1.0] * 8, "limit": 1.25}  # of 0, .5 and 2; a from b and c
    public = Gate.from_told(without_names(made.to_dict()), told)
    assert all(one.features is None for one in public.looks.values())
    near, far = public.judge(look("n", at=2.0)), public.judge(look("n", at=2.1))
    assert (near.word, far.word) == ("fine", "with care")
    assert far.measured["shift"] == pytest.approx(1.3)
    assert far.measured["shift_limit"] == 1.25
    assert "shift" not in Gate.from_told(without_names(made.to_dict()), None).judge(look("n", at=9.0)).measured
    assert gate(look("a"), look("a", at=0.1)).without_sections() is None, "one patient says nothing of others"


def test_features_of_the_spots_themselves_are_looked_at():
    assert own_features("colour+colour~320+morphology@8") == "colour+morphology"
    assert own_features("places~100") == own_features("") == ""


@pytest.fixture(scope="module")
def tiles(demo_tissue):
    """Tiles of six simulated patients, of two centres in turn."""
    found = []
    for path in demo_tissue():
        section = read_path(path, for_prediction=True)
        where = section.coords[:: max(1, len(section.coords) // 24)]
        cut = iter_tiles(section.image, where, um_per_px=section.um_per_px, tile_um=150, tile_px=150)
        found.append((section, np.stack(list(cut))))
    return found


def seen(tiles, **about):
    about["coarse"] = sharpness(tiles, every=COARSE)
    return Look.of(estimate(tiles[:, ::2, ::2].reshape(-1, 3)), sharpness(tiles), **about)


@pytest.fixture(scope="module")
def of_others(tiles):
    """What a model of all patients but the first would know."""
    return Gate(
        {s.id: seen(cut, patient=s.patient, laboratory=s.adata.obs["laboratory"].iloc[0]) for s, cut in tiles[1:]}
    )


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (lambda one: one, "fine"),
        (lambda one: 255 - one, "do not use"),
        (lambda one: np.repeat(one.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1), "do not use"),
        (lambda one: np.stack([gaussian_filter(tile, (2, 2, 0)) for tile in one]), "with care"),
        (lambda one: np.stack([gaussian_filter(tile, (8, 8, 0)) for tile in one]), "do not use"),
        (
            lambda one: np.stack([np.asarray(Image.fromarray(t[56:94, 56:94]).resize((150, 150), 3)) for t in one]),
            "do not use",
        ),
    ],
    ids=["as it is", "inverted", "grey", "blurred", "out of focus", "pixels four times finer than said"],
)
def test_what_is_no_such_slide_is_warned_of(tiles, of_others, changed, word):
    assert len(of_others.calibration) == 5
    assert of_others.judge(seen(changed(tiles[0][1]))).word == word


@pytest.mark.parametrize("light", [(1, 1, 1), (0.8, 0.8, 0.8), (1.1, 1, 0.9), (0.9, 1, 1.1), (0.85, 1, 1), (1, 0.9, 1)])
@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.4])
def test_immunohistochemistry_is_no_haematoxylin_and_eosin_however_it_was_scanned(light, gamma):
    from skimage.data import immunohistochemistry

    scanned = (255 * (immunohistochemistry()[::2, ::2] / 255) ** gamma * np.array(light)).clip(0, 255).astype(np.uint8)
    assert Look.of(estimate(scanned.reshape(-1, 3))).brown


@pytest.mark.parametrize("light", [(1, 1, 1), (0.8, 0.8, 0.8), (1.1, 1, 0.9), (0.9, 1, 1.1), (0.85, 1, 1), (1, 0.9, 1)])
def test_simulated_haematoxylin_and_eosin_is_not_brown_however_it_was_scanned(tiles, light):
    for _, cut in tiles:
        pixels = (cut[::4, ::3, ::3].reshape(-1, 3) * np.array(light)).clip(0, 255).astype(np.uint8)
        assert not Look.of(estimate(pixels)).brown


def test_another_laboratory_is_warned_of(tiles):
    known = [one for one in tiles if one[0].adata.obs["laboratory"].iloc[0] == "north"]
    other = [one for one in tiles if one[0].adata.obs["laboratory"].iloc[0] == "south"]
    made = Gate({s.id: seen(cut, patient=s.patient) for s, cut in known})
    assert len(known) == len(other) == 3
    assert all(made.judge(seen(cut)).word != "fine" for _, cut in other)


def test_sharpness_says_which_spots_are_out_of_focus(tiles):
    cut = tiles[0][1]
    plain, blurred = sharpness(cut), sharpness(np.stack([gaussian_filter(tile, (2, 2, 0)) for tile in cut]))
    told = np.isfinite(plain)
    assert (blurred < np.nanquantile(plain, 0.01))[told].mean() > 0.9
    assert np.isnan(sharpness(np.full((1, 9, 9, 3), 200, np.uint8)))[0]
    enlarged = cut[:1, :40, :40].repeat(COARSE, 1).repeat(COARSE, 2)
    np.testing.assert_allclose(sharpness(enlarged, every=COARSE), sharpness(cut[:1, :40, :40]), rtol=1e-5)
