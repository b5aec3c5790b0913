"""Fusion of frozen features: context, low rank, what is chosen on training patients alone."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from histocrypt.data.features import check_families, parts_of, reaches_of, section_features, split_context
from histocrypt.data.load import Spots
from histocrypt.encrypted.compile import lowered_model
from histocrypt.encrypted.prepare import as_seen
from histocrypt.errors import InputError
from histocrypt.pipeline.predict import said_of_surroundings
from histocrypt.predictors.fusion_ridge import FusionRidge, candidates, low_rank
from histocrypt.predictors.registry import build
from histocrypt.spatial import surroundings
from histocrypt.tissue.ring import Ring
from histocrypt.tissue.stain import DEFAULT_REFERENCE
from histocrypt.tissue.tiles import Places

FAMILIES = ("good", "noise")


def made(patients=("a", "b", "c"), n=60, genes=12, seed=0):
    """Spots whose expression has two directions, both in the features of the family good."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(2, genes))
    loading = np.random.default_rng(98).normal(size=(2, 10))
    features, targets, sections, owners = {name: [] for name in FAMILIES}, [], [], []
    for patient in patients:
        hidden = rng.normal(size=(n, 2))
        features["good"].append(hidden @ loading + rng.normal(size=(n, 10)) + rng.normal(size=10) * 3)
        features["noise"].append(rng.normal(size=(n, 30)))
        targets.append(hidden @ mixing + rng.normal(size=(n, genes)) + rng.normal(size=genes))
        sections += [f"S_{patient}"] * n
        owners += [patient] * n
    found = {name: np.concatenate(parts).astype(np.float32) for name, parts in features.items()}

    def of(name):
        return np.concatenate([found[part.partition("~")[0]] for part in name.split("+")], axis=1)

    names = np.array([f"{section}:{i}" for i, section in enumerate(sections)])
    outputs = tuple(f"log1p:g{i}" for i in range(genes // 2)) + tuple(f"raw:g{i}" for i in range(genes // 2))
    return Spots(
        names=names,
        sections=np.array(sections),
        patients=np.array(owners),
        depth=np.ones(len(names)),
        outputs=outputs,
        targets=np.concatenate(targets).astype(np.float32),
        features=of,
    )


def correlation(predicted, spots):
    found = [np.corrcoef(predicted[:, j], spots.targets[:, j])[0, 1] for j in range(predicted.shape[1])]
    return float(np.mean(found))


def fitted(train, **options):
    predictor = FusionRidge(**{"families": FAMILIES, "context_um": 0, **options})
    return predictor, predictor.fit(train)


@pytest.fixture(scope="module")
def plain():
    """Fitted to what is made: the predictor, and what it chose."""
    return fitted(made())


@pytest.fixture(scope="module")
def choosing():
    """The same, of a predictor that may leave a family out."""
    return fitted(made(), choose=True)


def test_what_is_planted_is_found_on_another_patient(plain, choosing):
    train, test = made(), replace(made(("d",), seed=5), targets=None)
    truth = made(("d",), seed=5)
    predictor, chosen = plain
    assert chosen["log1p"]["weights"] == {"good": 2.0, "noise": 2.0}
    assert 0.25 < correlation(predictor.predict(test), truth) < 0.5  # half of it is noise
    better, told = choosing
    assert told["log1p"]["weights"] == {"good": 1.0}
    assert correlation(better.predict(test), truth) > 0.5
    assert len(better.predictability.correlation) == len(train.outputs)
    assert better.predictability.correlation.min() > 0.2
    assert (predictor.predictability.by, predictor.predictability.patients) == ("patient", 3)
    assert chosen["patients"] == "new"


def test_the_state_is_small_and_comes_back_bit_by_bit(plain, tmp_path):
    from safetensors.numpy import load_file, save_file

    test, predictor = made(("d",), seed=5), plain[0]
    save_file(predictor.state(), tmp_path / "state.safetensors")
    again = FusionRidge(families=FAMILIES, context_um=0)
    again.load_state(load_file(tmp_path / "state.safetensors"))
    assert np.array_equal(again.predict(test), predictor.predict(test))
    assert sum(array.nbytes for array in predictor.state().values()) < 10_000


def test_labels_of_the_predicted_section_change_nothing(plain):
    test, predictor = made(("d",), seed=5), plain[0]
    other = replace(test, targets=test.targets[::-1])
    assert np.array_equal(predictor.predict(test), predictor.predict(other))


def test_predictions_reach_as_far_as_held_out_spots_say(plain):
    train, (predictor, chosen) = made(), plain
    predicted = predictor.predict(train)
    for section in np.unique(train.sections):
        rows = train.sections == section
        share = predicted[rows].std(axis=0) / train.targets[rows].std(axis=0)
        assert (share < 1).all()
        assert share.mean() == pytest.approx(chosen["log1p"]["correlation"], abs=0.15)


@pytest.mark.parametrize("patients", [("a",), ("a", "b")])
def test_few_patients_and_tiny_sections(patients):
    predictor, _ = fitted(made(patients, n=40))
    one = made(("d",), n=1, seed=3)
    assert np.isfinite(predictor.predict(one)).all()
    assert np.allclose(predictor.predict(one), predictor.state()["intercept"], atol=1e-5)  # nothing to compare it with
    assert np.isfinite(predictor.predict(made(("d",), n=3, seed=3))).all()
    assert predictor.predictability.by == ("patient" if len(patients) > 1 else "part of a section")


def test_a_refit_judges_families_again(choosing):
    chosen = deepcopy(choosing[1])
    chosen["log1p"]["weights"] = {"noise": 1.0}
    again = FusionRidge(families=FAMILIES, context_um=0, choose=True).fit(made(), chosen=chosen)
    assert again["log1p"]["weights"] == {"good": 1.0}


def test_what_is_said_of_each_output_is_what_a_fit_without_the_patient_reaches(plain):
    train, predictor = made(), plain[0]
    for patient in np.unique(train.patients):
        out = train.patients == patient
        other, _ = fitted(train.subset(~out))
        own = train.subset(out)
        predicted = other.predict(own)
        reached = [
            [np.corrcoef(predicted[rows, j], own.targets[rows, j])[0, 1] for j in range(predicted.shape[1])]
            for rows in (own.sections == section for section in np.unique(own.sections))
        ]
        assert predictor.predictability.by_patient[patient] == pytest.approx(np.mean(reached, axis=0), abs=0.03)


def test_directions_have_one_sign_whatever_the_linear_algebra_library(plain):
    axes = plain[0].state()["axes"]
    used = axes[:, np.abs(axes).max(axis=0) > 0]
    assert (used[np.abs(used).argmax(axis=0), np.arange(used.shape[1])] > 0).all()


def test_known_patients_are_told_more():
    """Their own sections are trained on: directions that the next patient does not share are worth learning."""
    train, chosen = made(n=200), {}
    rich, chosen = fitted(train, patients="known")
    poor, _ = fitted(train)
    assert chosen["patients"] == "known"
    assert chosen["log1p"]["weights"] == {"all": 1.0}
    assert correlation(rich.predict(train), train) > correlation(poor.predict(train), train)


def test_low_rank_gives_directions_of_equal_spread():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 8)), rng.normal(size=(100, 20))
    weight = low_rank(x, y, [np.arange(20)], (0.01,), (2,))
    assert np.linalg.matrix_rank(weight) == 2
    assert np.allclose((x @ weight).std(axis=0), 1)
    wide = np.concatenate(
        [x, np.zeros((100, 200))], axis=1
    )  # more columns than rows: the same numbers by the other way
    assert np.allclose(low_rank(wide, y, [np.arange(20)], (0.01,), (2,))[:8], weight)


def test_every_set_of_families_may_be_chosen_all_of_them_first():
    tried = candidates(["colour", "morphology", "some_encoder"])
    assert tried[0] == {"colour": 0.5, "morphology": 1.0, "some_encoder": 2.0}
    assert len({tuple(one) for one in tried}) == 7
    assert {"morphology": 1.0} in tried


@pytest.mark.parametrize("pitch", [100.0, 200.0])
def test_surroundings_against_brute_force(pitch):
    rng = np.random.default_rng(1)
    um = np.stack(np.meshgrid(np.arange(7), np.arange(6)), axis=-1).reshape(-1, 2) * pitch
    um = np.concatenate([um, [[1e5, 1e5]], [[np.nan, np.nan]]])
    values = rng.normal(size=(len(um), 3))
    found = surroundings(um, 320.0) @ values
    for i in range(len(um)):
        away = np.linalg.norm(um - um[i], axis=1)
        near = np.flatnonzero((away > 0) & (away <= 320))
        assert np.allclose(found[i], values[near].mean(axis=0) if len(near) else values[i])


def test_names_of_surroundings():
    assert split_context("morphology~320") == ("morphology", 320.0)
    assert split_context("uni") == ("uni", 0.0)
    assert parts_of("uni+uni~200@2") == (["uni", "uni~200"], 2)
    for wrong in ("uni~", "~320", "uni~0", "uni~3.5", "uni~9999"):
        with pytest.raises(InputError) as error:
            parts_of(wrong)
        assert error.value.value == wrong


def test_a_study_names_its_families():
    predictor = build("fusion_ridge", ("log1p:a",), settings={}, options={"families": ["colour"], "context_um": 100})
    assert predictor.encoder == "colour+colour~100"
    for wrong in ([], ["colour", "colour"], ["colour~320"], ["colour+morphology"]):
        with pytest.raises(InputError) as error:
            build("fusion_ridge", ("log1p:a",), settings={}, options={"families": wrong})
        assert error.value.field == "models.fusion_ridge.families"


def test_families_are_known_by_name_and_their_reach():
    for good in ("colour", "morphology~320+efficientnet_lite0_middle", "prepared:somewhere#uni"):
        check_families(good)
    with pytest.raises(InputError, match="unknown encoder 'coluor'.*did you mean 'colour'"):
        check_families("colour+coluor")
    assert reaches_of("colour+colour~320+morphology~100") == [320, 100]
    assert reaches_of("colour") == reaches_of("") == reaches_of("places~320+prepared:here#uni~320") == []


def test_nothing_is_read_of_surroundings_where_nobody_knows_them():
    tiles = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    for name in ("efficientnet_lite0_128~320", "morphology"):
        with pytest.raises(InputError) as error:
            section_features(
                tiles, stain=DEFAULT_REFERENCE, method="none", encoder=name, names=np.array(["S:a", "S:b"])
            )
        assert error.value.field == "encoder"


def test_spots_that_stand_for_their_surroundings_are_counted():
    places = Places(np.array([[0.0, 0], [200, 0], [4500, 0]]), 150.0)
    assert said_of_surroundings("colour", "S", places) == said_of_surroundings("", "S", places) == []
    (note,) = said_of_surroundings("colour+colour~320", "S", places)
    assert note.startswith("S: 1 of 3 spots")
    (note,) = said_of_surroundings("colour~320", "S", Places(np.full((3, 2), np.nan), 150.0))
    assert note.startswith("S: 3 of 3 patches")
    ring = Ring(np.array([[4500.0, 200]]), np.array([[2, 0]]), nullcontext)
    (note,) = said_of_surroundings("colour+colour~320", "S", replace(places, ring=ring))
    assert note.startswith("S: 3 of 3 spots have fewer than 3 others within 320 um; for 1 of them")
    (note,) = said_of_surroundings("prepared:here#uni~320", "S", replace(places, ring=ring))
    assert note.startswith("S: 1 of 3 spots")  # nobody prepared what lies around


def test_it_is_compiled_as_a_head_of_one_linear_map(plain):
    test, predictor = made(("d",), seed=5), plain[0]
    about = {"model": "fusion_ridge", "kind": "fitted", "training": {"normalise_by_section": True}}
    scaling = SimpleNamespace(mean=np.zeros(12), sd=np.ones(12))
    model = SimpleNamespace(about=about, predictor=predictor, scaling=scaling, folder="model")
    described, lowered = lowered_model(model)
    assert described["input"]["encoder"] == "good+noise"
    standardised, _ = as_seen(test.features("good+noise"), "features", described["normalisation"])
    assert np.allclose(lowered(standardised.astype(float)), predictor.predict(test), atol=1e-4)
