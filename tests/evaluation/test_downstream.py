"""What people do with predictions: each number against a case whose answer is known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from histocrypt.errors import InputError
from histocrypt.evaluation import downstream as after
from histocrypt.evaluation import downstream_slides as slides
from histocrypt.evaluation import downstream_view as view
from histocrypt.evaluation import markers, metrics
from histocrypt.study import load_study
from histocrypt.targets.ceiling import halves
from histocrypt.targets.transforms import transform

SIDE = 20
COORDS = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2).astype(float)


def slide(predicted, measured=None, **more):
    names = np.array([f"G{at}" for at in range(predicted.shape[1])])
    return slides.Slide("S", "P", names, names, COORDS, predicted, measured, **more)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(3)


@pytest.fixture(scope="module")
def tissue(rng):
    """A section of 30 genes: smooth rates, what few molecules show of them, and two halves of these."""
    empty = slide(rng.normal(size=(SIDE**2, 30)))
    fields = after.smoothed_to(rng.normal(size=(SIDE**2, 30)), empty, 0.6)
    rates = np.exp(fields / fields.std(axis=0) * 0.6) * 1.5
    counts = rng.poisson(rates)
    totals = np.full(len(counts), counts.sum(axis=1).max() + 500)
    first, second = halves(counts, totals, np.random.default_rng(0))
    measured = [transform(*one, "log1p").astype(float) for one in ((counts, totals), first, second)]
    return np.log1p(rates), slide(np.log1p(rates), measured[0], halves=tuple(measured[1:]))


def test_the_coherence_of_tissue_is_told_from_counts_that_hide_it(tissue):
    rates, one = tissue
    truth, measured = (after.coherence_of(values, one.graph) for values in (rates, one.measured))
    found = after.coherence_without_noise(*one.halves, one.graph)
    assert measured < 0.6 * truth
    assert found == pytest.approx(truth, abs=0.06)


def test_maps_are_smoothed_to_what_is_asked_for(rng):
    one = slide(rng.normal(size=(SIDE**2, 12)))
    for level in (0.3, 0.7):
        assert after.coherence_of(after.smoothed_to(one.predicted, one, level), one.graph) == pytest.approx(level, 0.02)
    assert after.smoothed_to(one.predicted, one, -0.5) is one.predicted


def test_noise_has_the_smoothness_and_the_correlations_of_what_it_stands_for_and_knows_nothing(tissue, rng):
    rates, one = tissue
    rates = rates @ rng.normal(size=(30, 3)) @ rng.normal(size=(3, 30))  # genes of three maps
    drawn = [after.noise_like(rates, one, rng=rng) for _ in range(20)]
    assert np.mean([after.coherence_of(noise, one.graph) for noise in drawn]) == pytest.approx(
        after.coherence_of(rates, one.graph), abs=0.08
    )
    assert np.linalg.matrix_rank(drawn[0], tol=1e-6 * np.linalg.norm(drawn[0])) == 3
    assert abs(np.mean([metrics.pearson(rates, noise).mean() for noise in drawn])) < 0.05


def test_genes_that_vary_in_space_are_found_and_others_hardly_ever(tissue, rng):
    _, one = tissue
    assert after.varies_in_space(one.measured, one.graph).mean() > 0.9
    noise = rng.poisson(1.5, size=(SIDE**2, 400)).astype(float)
    assert after.varies_in_space(noise, one.graph).mean() < 0.02
    assert not after.varies_in_space(np.ones((SIDE**2, 2)), one.graph).any()


def test_moments_of_moran_are_those_of_shuffled_spots(rng):
    """What `varies_in_space` takes for chance is what chance does: p values of noise are spread evenly."""
    graph = slide(np.zeros((SIDE**2, 1))).graph
    noise = rng.normal(size=(SIDE**2, 4000))
    found = after.varies_in_space(noise[:, :1], graph, alpha=1.0)
    assert found.all()
    single = [after.varies_in_space(column[:, None], graph, alpha=0.1)[0] for column in noise.T[:1000]]
    assert np.mean(single) == pytest.approx(0.1, abs=0.03)


def test_the_rand_index_is_that_of_scikit_learn(rng):
    for first, second in ((3, 3), (6, 2), (1, 4), (1, 1)):
        labels = [rng.integers(0, most, 200) for most in (first, second)]
        assert after.adjusted_rand(*labels) == pytest.approx(adjusted_rand_score(*labels), abs=1e-12)


def planted(rng):
    where = (COORDS[:, 0] >= SIDE / 2) + 2 * (COORDS[:, 1] >= SIDE / 2)
    return where.astype(int), rng.normal(size=(4, 15))[where] + 0.7 * rng.normal(size=(SIDE**2, 15))


@pytest.mark.parametrize("largest", [after.LARGEST, 150])
def test_planted_domains_are_found_in_large_sections_too(rng, monkeypatch, largest):
    monkeypatch.setattr(after, "LARGEST", largest)
    where, values = planted(rng)
    (found,) = after.domains(values, slide(values), [4])
    assert set(found) == {0, 1, 2, 3}
    assert adjusted_rand_score(where, found) > 0.8


def test_a_good_prediction_agrees_and_noise_does_not(rng):
    _, values = planted(rng)
    one = slide(values + 0.5 * rng.normal(size=values.shape), values, colours=rng.normal(size=(SIDE**2, 5)))
    said = after.domain_agreement(one, draws=5, rng=rng)
    assert said["predicted"] > 0.6 > said["noise_high"] >= said["noise"]
    assert said["colour"] < 0.1
    assert np.isnan(said["random_genes"])
    assert np.isnan(said["halves"])


def test_sets_are_those_of_the_panel_and_scored_by_them(rng):
    symbols = ["COL1A1", "krt8", "COL1A2", "EPCAM", *(f"X{at}" for at in range(26)), "CD3D"]
    found = markers.sets_in([f"ENSG{at}" for at in range(31)], symbols)
    assert found == {"Stroma": [0, 2], "Epithelium": [3, 1]}
    values = rng.normal(size=(50, 31))
    values[:, [0, 2]] += 3 * rng.normal(size=(50, 1))
    score = markers.scores(values, found)["Stroma"]
    assert np.corrcoef(score, values[:, [0, 2]].mean(axis=1))[0, 1] > 0.98
    demo = markers.sets_in(["DEMO1", "DEMO2", "DEMO3"], ["TUM01", "TUM02", "IMM01"])
    assert demo == {"TUM": [0, 1]}


@pytest.mark.parametrize("spots", [1, 2, 3, 9])
@pytest.mark.parametrize("constant", [False, True])
def test_a_handful_of_spots_and_counts_that_do_not_vary_are_no_failure(rng, spots, constant):
    """A section that says nothing must not fail the run of a study."""
    names = np.array([f"DEMO{at}" for at in range(12)])
    symbols = np.array(["TUM", "IMM", "STR"] * 4)
    true = np.ones((spots, 12)) if constant else rng.normal(size=(spots, 12))
    one = slides.Slide("S", "P", names, symbols, COORDS[:spots], rng.normal(size=(spots, 12)), true, (true, true))
    found = after.look_at([one], draws=2)
    assert len(found.genes) == 12
    assert np.isnan(found.coherence["top_shared"][0]) == (constant or spots == 1)
    said = (view.coherence_words, view.domain_words, view.marker_words, view.conclusion)
    assert all(words(found) for words in said)
    for draw in (view.coherence_figure, view.domain_figure, view.marker_figure):
        draw(found)
    view.domain_maps(one)
    view.score_maps(one)
    plt.close("all")


@pytest.fixture(scope="module")
def study(small_run, module_environment):
    module_environment.setenv("HISTOCRYPT_OUTPUTS", str(small_run))
    module_environment.setenv("HISTOCRYPT_CACHE", str(small_run / "cache"))
    return load_study(small_run / "small.yaml")


@pytest.fixture(scope="module")
def module_environment():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def of_run(study):
    return after.look_at(slides.slides_of(study, "encoder_ridge"), draws=2)


def test_a_file_says_with_its_counts_what_its_run_says_and_without_them_nothing_is_compared(study, of_run, tmp_path):
    fold, section = "fold_1", of_run.coherence["section"][0]
    file = study.run.prediction("encoder_ridge", fold)
    held = after.look_at(slides.slides_in(file, str(study.run.section(section))), draws=2)
    same = ["spots", "predicted", "measured", "varies_measured", "rank_agreement", "pearson"]
    pd.testing.assert_frame_equal(held.coherence[same], of_run.coherence.loc[[0], same])
    alone = after.look_at(slides.slides_in(file), drawn=section, draws=2)
    assert not alone.compared
    assert {"measured", "pearson"}.isdisjoint([*alone.coherence, *alone.genes, *alone.markers, *alone.domains])
    assert alone.coherence["predicted"][0] == of_run.coherence["predicted"][0]
    for words in (view.coherence_words, view.domain_words, view.conclusion):
        assert view.UNCOMPARED in words(alone)
        assert view.UNCOMPARED not in words(of_run)
    assert view.domain_figure(alone) is None
    assert view.shown(view.domain_maps(alone.slide), tmp_path / "maps.png").data[1:4] == b"PNG"


def test_every_held_out_section_is_looked_at_once(study, of_run, tmp_path):
    sections = sorted(path.stem for path in study.run.root.glob("sections/*.h5ad"))
    for table in (of_run.coherence, of_run.domains):
        assert sorted(table["section"]) == sections
    assert of_run.domains[["random_genes", "colour", "place", "halves"]].notna().all().all()
    of_run.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "coherence.csv", "domains.csv", "genes.csv", "markers.csv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("look", "field"),
    [
        (lambda study: list(slides.slides_of(study, "resnet99")), "model"),
        (lambda study: after.look_at(slides.slides_in(study.run.prediction("knn", "fold_1")), drawn="S_99"), "section"),
    ],
)
def test_a_wrong_name_is_one_sentence(study, look, field):
    with pytest.raises(InputError) as found:
        look(study)
    assert found.value.field == field
