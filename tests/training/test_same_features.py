"""Networks on frozen features do not lose to closed forms on the very same ones by more than a little."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from histocrypt.data.load import Measured, Spots
from histocrypt.errors import InputError
from histocrypt.options import Training
from histocrypt.predictors.registry import build
from histocrypt.predictors.start import PREFIX

NAME = "efficientnet_lite0_128"
"""A registered encoder's name; the features themselves are drawn."""
LITTLE = 0.03
GENES, WIDTH, SPOTS = 12, 80, 64
HE2GENE = {"backbone": NAME, "hidden": 32, "spatial_weight": 0.0, "aux_weight": 0.0}
STEM = {"encoder": NAME, "augmentations": 0, "components": 8, "width": 16, "blocks": 1, "heads": 2, "samples": 8}
BRIEFLY = Training(epochs=6, learning_rate=3e-3, batch_size=32)


def made(folder, patients):
    """Spots of patients whose expression is linear in two hidden directions of the features, and mostly noise."""
    fixed = np.random.default_rng(1)
    loading, mixing = fixed.normal(size=(2, WIDTH)), fixed.normal(size=(2, GENES))
    features, targets, files = [], [], []
    for number, patient in enumerate(patients):
        rng = np.random.default_rng([2, ord(patient)])
        hidden = rng.normal(size=(SPOTS, 2))
        features.append(hidden @ loading + 3 * rng.normal(size=(SPOTS, WIDTH)) + number)
        noisy = 0.5 * hidden @ mixing + 1.5 * rng.normal(size=(SPOTS, GENES))
        targets.append(noisy - noisy.mean(axis=0))
        adata = anndata.AnnData(csr_matrix(np.ones((SPOTS, GENES), np.float32)))
        adata.obs_names, adata.var_names = [f"s{i}" for i in range(SPOTS)], [f"g{j}" for j in range(GENES)]
        adata.obsm["spatial"] = np.argwhere(np.ones((8, SPOTS // 8))) * 200.0
        adata.write_h5ad(folder / f"S_{patient}.h5ad")
        files.append((f"S_{patient}", folder / f"S_{patient}.h5ad"))
    values = np.concatenate(features).astype(np.float32)
    sections = np.repeat([f"S_{patient}" for patient in patients], SPOTS)

    def of(name):
        return values[:, None] if "@" in name else values

    return Spots(
        names=np.array([f"{section}:{i}" for i, section in enumerate(sections)]),
        sections=sections,
        patients=np.repeat(list(patients), SPOTS),
        depth=np.ones(len(sections)),
        outputs=tuple(f"log1p:g{j}" for j in range(GENES)),
        targets=np.concatenate(targets).astype(np.float32),
        features=of,
        measured=Measured(tuple(files)),
    )


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Two patients to learn from, one to stop by, one never seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sections")
    yield made(folder, "ab"), made(folder, "c"), made(folder, "d")
    torch.set_num_threads(threads)


def correlation(predicted, spots):
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, spots.targets.T, strict=True)]))


def fitted(model, patients, options, settings=BRIEFLY):
    train, validation, test = patients
    predictor = build(model, train.outputs, settings=settings, options=options, device="cpu")
    predictor.fit(train, validation, seed=0)
    return predictor, predictor.predict(replace(test, targets=None, measured=None))


@pytest.fixture(scope="module")
def multitask(patients):
    return fitted("he2gene", patients, HE2GENE)


@pytest.fixture(scope="module")
def diffusion(patients):
    return fitted("stem", patients, STEM)


def test_the_panels_head_does_not_lose_to_ridge_on_the_same_features(patients, multitask):
    _, ridge = fitted("encoder_ridge", patients, {"encoder": NAME})
    least = correlation(ridge, patients[2])
    assert least > 0.2, "there is something to find"
    assert correlation(multitask[1], patients[2]) > least - LITTLE


def test_from_nothing_it_loses_in_as_many_epochs(patients, multitask):
    """The control: it is the start that does it."""
    _, nothing = fitted("he2gene", patients, {**HE2GENE, "start": "none"})
    assert correlation(nothing, patients[2]) < correlation(multitask[1], patients[2]) - 0.02


def test_stem_does_not_lose_to_neighbours_on_the_same_features(patients, diffusion):
    _, near = fitted("knn", patients, {"encoder": NAME})
    assert correlation(near, patients[2]) > 0.2
    assert correlation(diffusion[1], patients[2]) > correlation(near, patients[2]) - LITTLE


def test_from_nothing_stem_loses_and_opposite_noise_cancels_from_its_mean(patients, diffusion):
    """The control: it is the start that does it; and where draws lie as they fall, pairs of opposite noise help."""
    _, nothing = fitted("stem", patients, {**STEM, "start": "none"})
    assert correlation(nothing, patients[2]) < correlation(diffusion[1], patients[2]) - 0.05
    found = [fitted("stem", patients, {**STEM, "mean": "drawn", "opposite": pairs})[1] for pairs in (True, False)]
    assert correlation(found[0], patients[2]) > correlation(found[1], patients[2]) + 0.05


@pytest.mark.parametrize("which", ["multitask", "diffusion"])
def test_a_file_holds_the_start_too(patients, which, request):
    predictor, predicted = request.getfixturevalue(which)
    state = predictor.state()
    options = predictor.plan.model_dump()
    again = build(predictor.model, predictor.outputs, settings=BRIEFLY, options=options, device="cpu")
    again.load_state(state)
    assert np.array_equal(again.predict(patients[2]), predicted)
    state.pop(f"{PREFIX}axes")
    with pytest.raises(InputError) as caught:
        again.load_state(state)
    assert caught.value.value == "axes"


def test_a_model_from_before_starts_from_nothing(patients):
    predictor, _ = fitted("he2gene", patients, {**HE2GENE, "start": "none"})
    state = predictor.state()
    assert not [name for name in state if name.startswith(PREFIX)]
    before = {name: value for name, value in state.items() if name != "starts"}
    again = build("he2gene", predictor.outputs, settings=BRIEFLY, options=HE2GENE, device="cpu")
    again.load_state(before)
    assert np.array_equal(again.predict(patients[2]), predictor.predict(patients[2]))


def test_what_is_added_to_draws_is_what_they_are_around(patients, diffusion):
    """Every draw is the start and a rest, whose mean over a spot's draws is nothing unless it is asked for."""
    predictor, predicted = diffusion
    drawn = predictor.samples(patients[2])
    started = predictor.started(patients[2])[..., 0]
    assert np.allclose(drawn.mean(axis=1), predicted, atol=1e-5)
    assert np.allclose(predicted, started, atol=1e-5)
    assert drawn.std(axis=1).mean() > 0.5
    where_they_fall = fitted("stem", patients, {**STEM, "mean": "drawn"})[0].samples(patients[2])
    rests = where_they_fall - started[:, None]
    assert np.abs(rests.mean(axis=1)).max() > 0.01
    assert np.allclose(rests - rests.mean(axis=1, keepdims=True), drawn - started[:, None], atol=1e-4)
