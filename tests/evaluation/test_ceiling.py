"""The noise ceiling against rates that are known: it must hold there, and say why where there is none."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from histocrypt.demo.counts import draw_counts, draw_genes
from histocrypt.errors import InputError
from histocrypt.evaluation.metrics import pearson
from histocrypt.targets.ceiling import beside_truth, corrected, halves, noise_ceiling, section_ceiling, share
from histocrypt.targets.transforms import transform

TRANSFORMS = ("log1p_cp10k", "log1p", "rank")
SPOTS, GENES = 250, 120


@pytest.fixture(scope="module")
def demo():
    """Counts and rates of a demo section, without its image."""
    rng = np.random.default_rng(5)
    drivers = np.column_stack([rng.dirichlet(np.full(5, 0.6), SPOTS), rng.normal(0, 1, (SPOTS, 3))])
    depth = rng.gamma(8, 2000 / 8, SPOTS)
    return draw_counts(draw_genes(GENES, rng), drivers, rng.normal(0, 1, (SPOTS, 6)), drivers[:, 5], rng, depth=depth)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_ceiling_is_what_the_true_rate_scores(demo, name):
    measured = transform(demo.counts, demo.counts.sum(axis=1), name)
    truth = pearson(measured, transform(demo.rate, demo.rate.sum(axis=1), name))
    estimate = noise_ceiling(demo.counts, demo.counts.sum(axis=1), [name], rng=np.random.default_rng(0))[name]
    assert abs(estimate.mean() - truth.mean()) < 0.03
    assert np.corrcoef(estimate, truth)[0, 1] > 0.8
    assert np.ptp(truth) > 0.3  # else a constant would pass


def test_nobody_who_knows_less_than_the_rate_passes_it(demo):
    counts, totals = demo.counts, demo.counts.sum(axis=1)
    estimate = noise_ceiling(counts, totals, ["log1p_cp10k"], rng=np.random.default_rng(0))["log1p_cp10k"]
    reached = pearson(transform(counts, totals, "log1p_cp10k"), demo.image_signal)
    assert (reached.mean(), (reached > estimate + 0.1).sum()) < (estimate.mean() - 0.1, 1)


def test_counting_noise_alone_leaves_what_chance_leaves_and_deep_counts_nearly_everything():
    rng = np.random.default_rng(1)
    flat = rng.poisson(5.0, (400, 100))
    deep = rng.poisson(np.exp(rng.normal(8, 0.5, (400, 100))))
    for counts, low, high in ((flat, 0.0, 0.2), (deep, 0.97, 1.0)):
        found = noise_ceiling(counts, counts.sum(axis=1), ["log1p"], rng=np.random.default_rng(0))["log1p"]
        assert low < found.mean() < high


def test_halves_sum_to_the_whole_and_a_seed_gives_the_same_ones(demo):
    totals = demo.counts.sum(axis=1) + 7  # molecules of genes outside the panel are split, too
    one, other = halves(csr_matrix(demo.counts), totals, np.random.default_rng(3))
    np.testing.assert_array_equal(one[0] + other[0], demo.counts)
    np.testing.assert_array_equal(one[1] + other[1], totals)
    for counts, total in (one, other):
        assert (total >= counts.sum(axis=1)).all()
    assert 0.48 < one[0].sum() / demo.counts.sum() < 0.52
    again, _ = halves(demo.counts, totals, np.random.default_rng(3))
    np.testing.assert_array_equal(one[0], again[0])
    assert (halves(demo.counts, totals, np.random.default_rng(4))[0][0] != one[0]).any()


def test_spearman_brown_and_its_square_root():
    np.testing.assert_allclose(corrected(np.array([0.5, 1.0, 0.0, -0.2])), [np.sqrt(2 / 3), 1, 0, 0])


def test_a_gene_that_does_not_vary_has_no_ceiling(demo):
    counts = demo.counts[:, :5].copy()
    counts[:, 2] = 0
    found = noise_ceiling(counts, demo.counts.sum(axis=1), ["log1p"], rng=np.random.default_rng(0))["log1p"]
    assert np.isnan(found).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("change", ["half", "negative", "short"])
def test_what_is_no_count_is_refused(demo, change):
    counts, totals = demo.counts[:, :5].copy(), demo.counts.sum(axis=1)
    if change == "short":
        totals = counts.sum(axis=1) - 1
    else:
        counts[3, 1] = 0.5 if change == "half" else -1
    with pytest.raises(InputError) as error:
        noise_ceiling(counts, totals, ["log1p"], rng=np.random.default_rng(0))
    assert error.value.field == "counts"


def test_a_section_without_counts_says_why(demo):
    names = [f"G{i}" for i in range(5)]

    def found(values, totals, **more):
        obs = pd.DataFrame({"total_counts": totals}, index=[str(i) for i in range(SPOTS)])
        section = ad.AnnData(csr_matrix(values), obs=obs, var=pd.DataFrame(index=names))
        rng = np.random.default_rng(0)
        return section_ceiling(section, names, names, ["log1p"], name="S", rng=rng, **more)

    counts, totals = demo.counts[:, :5], demo.counts.sum(axis=1).astype(float)
    values, why = found(counts, totals)
    assert (why, values["log1p"].shape) == ("", (5,))
    for given, more in (
        ((counts / 3, totals), {}),
        ((counts, totals * np.nan), {}),
        ((counts, totals), {"matrix": "obsm:x"}),
    ):
        values, why = found(*given, **more)
        assert not values
        assert why


def test_scores_hold_the_ceiling_and_the_share_of_it(scored):
    _, scores = scored
    table, sections, genes = scores.of("log1p_cp10k"), scores.sections, scores.by_gene("log1p_cp10k")
    assert np.ptp(table["noise_ceiling"]) < 1e-12  # one for all models
    assert table["noise_ceiling"].between(0.2, 1).all()
    np.testing.assert_allclose(table["share"], table["pearson"] / table["noise_ceiling"])
    np.testing.assert_allclose(sections["share"], sections["pearson"] / sections["noise_ceiling"])
    by_section = genes.groupby(["model", "section"])["noise_ceiling"].mean()
    one = sections[sections["transform"] == "log1p_cp10k"].set_index(["model", "section"])["noise_ceiling"]
    np.testing.assert_allclose(by_section.sort_index(), one.sort_index())
    people = scores.patients("log1p_cp10k").set_index(["model", "patient"])
    mine = sections[(sections["transform"] == "log1p_cp10k") & (sections["model"] == "vision_mlp")]
    expected = mine[mine["patient"] == "A"]
    assert people.loc[("vision_mlp", "A"), "share"] == pytest.approx(
        expected["pearson"].mean() / expected["noise_ceiling"].mean()
    )


def test_a_share_of_next_to_nothing_is_not_told():
    np.testing.assert_allclose(share(np.array([0.1, 0.1, 0.1]), np.array([0.5, 0.01, np.nan])), [0.2, np.nan, np.nan])


def test_the_truth_stands_beside_the_estimate_where_a_section_knows_its_rates(demo):
    names = [f"G{i}" for i in range(GENES)]
    obs = pd.DataFrame({"total_counts": demo.counts.sum(axis=1)}, index=[str(i) for i in range(SPOTS)])
    section = ad.AnnData(csr_matrix(demo.counts), obs=obs, var=pd.DataFrame(index=names), layers={"rate": demo.rate})
    panel = names[10:60]
    rng = np.random.default_rng(0)
    estimate = section_ceiling(section[:, panel].copy(), panel, panel, ["log1p"], name="S", rng=rng)[0]["log1p"]
    table = pd.DataFrame(
        {"section": "S", "transform": "log1p", "gene": panel, "symbol": panel, "noise_ceiling": estimate}
    )
    pooled = table.assign(section="pooled", noise_ceiling=np.nan)
    found = beside_truth(pd.concat([table, pooled]), {"S": section}.__getitem__)
    assert len(found) == 1
    assert abs(found["difference"].item()) < 0.03
    assert found["truth"].item() == pytest.approx(found["estimate"].item() - found["difference"].item())
    del section.layers["rate"]
    assert beside_truth(table, {"S": section}.__getitem__).empty
