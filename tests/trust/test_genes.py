"""Which genes are worth trusting: the test in space is right where the answer is known, and views put trusted first."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from histocrypt.correlation import error_by_chance, p_of, pearson
from histocrypt.errors import InputError
from histocrypt.evaluation.maps import write_map
from histocrypt.predictors.predictability import BY, Predictability
from histocrypt.report.slides import genes_drawn
from histocrypt.spatial import spot_pitch
from histocrypt.trust.genes import DOUBTED, columns, evidence, interval, promise, ranked, trusted, words

SIDE = 18
COORDS = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2) * 200.0
GENES = ("always", "mostly", "never")
OUTPUTS = tuple(f"log1p:{gene}" for gene in GENES)


def maps(count, smooth, rng):
    """Return (spots, count) unrelated maps, smooth over so many pitches."""
    drawn = rng.normal(size=(count, 3 * SIDE, 3 * SIDE))
    cut = gaussian_filter(drawn, (0, smooth, smooth)) if smooth else drawn
    return cut[:, SIDE : 2 * SIDE, SIDE : 2 * SIDE].reshape(count, -1).T


def test_the_error_by_chance_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    kept = rng.permutation(len(COORDS))[:200]  # tissue does not fill its array
    coords, true, predicted = COORDS[kept], maps(3, 2, rng)[kept], maps(3, 1, rng)[kept]
    distance = np.rint(np.linalg.norm(coords[:, None] - coords, axis=-1) / spot_pitch(coords))
    one, other = (values - values.mean(axis=0) for values in (true, predicted))
    total = 0.0
    for step in np.unique(distance):
        near = (distance == step).astype(float)
        total = total + (one * (near @ one)).sum(axis=0) * (other * (near @ other)).sum(axis=0) / near.sum()
    expected = np.sqrt(total / ((one**2).sum(axis=0) * (other**2).sum(axis=0)))
    # distances of half a pitch may round either way
    assert error_by_chance(true, predicted, coords) == pytest.approx(expected, rel=0.05)


def test_smooth_maps_that_are_unrelated_are_not_called_better_than_chance():
    rng = np.random.default_rng(1)
    true, predicted = maps(400, 2, rng), maps(400, 2, rng)
    r, error = pearson(true, predicted), error_by_chance(true, predicted, COORDS)
    assert 0.01 < (p_of(r, error) < 0.05).mean() < 0.1
    spots_alone = np.full(400, len(COORDS) ** -0.5)
    assert (p_of(r, spots_alone) < 0.05).mean() > 0.25  # as if neighbours told nothing of one another
    assert error_by_chance(maps(400, 0, rng), maps(400, 0, rng), COORDS).mean() == pytest.approx(
        len(COORDS) ** -0.5, rel=0.1
    )
    assert error_by_chance(np.ones((len(COORDS), 1)), predicted[:, :1], COORDS).tolist() == [1.0]


def told(patients, rng):
    """Return evidence of sections, one a patient: a gene that is always right, one wrong in the last, one never."""
    predicted = maps(3, 1, rng) if not patients else np.concatenate([maps(3, 1, rng) for _ in patients])
    noise = rng.normal(size=predicted.shape) * predicted.std()
    measured = predicted + noise
    measured[:, 2] = maps(len(patients), 1, rng).T.ravel()
    last = np.arange(len(measured)) >= len(measured) - len(COORDS)
    measured[last, 1] = (-0.2 * predicted + noise)[last, 1]
    sections = np.repeat([f"{name}_1" for name in patients], len(COORDS))
    each = {name: pearson(measured[sections == f"{name}_1"], predicted[sections == f"{name}_1"]) for name in patients}
    mean = np.mean(list(each.values()), axis=0)
    by = BY[0] if len(patients) > 1 else BY[1]
    owners = {f"{name}_1": name for name in patients}
    found = Predictability(by, len(patients), len(patients), mean, each, owners, predicted)
    ceilings = {name: np.array([0.9, 0.8, 0.01]) for name in owners}
    said = evidence(found, measured, sections, dict.fromkeys(owners, COORDS), ceilings, OUTPUTS)
    return found.to_dict(OUTPUTS) | said, each


def var_of(said):
    return pd.DataFrame(
        {f"{name}:log1p": values for name, values in columns(said, "log1p", GENES).items()}, index=GENES
    )


def test_a_gene_is_trusted_that_is_better_than_chance_and_wrong_in_no_patient():
    said, each = told("abcd", np.random.default_rng(2))
    var = var_of(said)
    assert var["better_than_chance:log1p"].tolist() == [True, True, False]
    assert trusted(var, "log1p").tolist() == [True, False, False]
    assert ranked(var, "log1p")[0] == 0
    assert var["training_patients:log1p"].tolist() == [4, 4, 4]
    lowest, highest = (bound(list(each.values()), axis=0) for bound in (np.min, np.max))
    assert (var["training_pearson_low:log1p"] < lowest).all()
    assert (var["training_pearson_high:log1p"] > highest).all()
    share = var["training_share:log1p"]
    assert share.iloc[0] == pytest.approx(var["training_pearson:log1p"].iloc[0] / 0.9, abs=1e-3)
    assert np.isnan(share.iloc[2])  # of hardly any ceiling nothing is told
    assert "80%" in promise(said)
    assert "60%" in promise(said)
    assert [words(var, "log1p", gene).startswith("worth trusting") for gene in GENES] == [True, False, False]


def test_views_show_the_trusted_first_and_doubt_the_rest(tmp_path):
    said, _ = told("abcd", np.random.default_rng(2))
    said["correlation"]["log1p:never"] = 0.99  # a high correlation that chance reaches is no reason to show it
    chosen, rule = genes_drawn({"panel": {"genes": list(GENES)}, "transforms": ["log1p"], "predictability": said}, 2)
    assert chosen == ["always", "never"]
    assert "1 that are trusted of 3" in rule
    var = var_of(said).assign(symbol=list(GENES))
    spots = anndata.AnnData(np.tile(np.arange(9, dtype=np.float32)[:, None], 3), var=var)
    spots.obs["section"], spots.obsm["spatial"] = "A", COORDS[:9]
    spots.uns["prediction"] = {"transform": "log1p", "model": "m", "um_per_px": 1.0}
    spots.write_h5ad(tmp_path / "p.h5ad")
    line = write_map(tmp_path / "p.h5ad", output=tmp_path / "m.png")
    assert "always at 9 spots; worth trusting" in line
    assert DOUBTED in write_map(tmp_path / "p.h5ad", "mostly", tmp_path / "m.png")
    spots.var = spots.var[["symbol"]]
    spots.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(InputError) as refused:
        write_map(tmp_path / "p.h5ad", output=tmp_path / "m.png")
    assert refused.value.field == "--gene"


def test_of_one_patient_nothing_follows_for_another():
    var = var_of(told("a", np.random.default_rng(3))[0])
    assert trusted(var, "log1p") is None
    assert ranked(var, "log1p") is not None


def test_a_model_of_an_earlier_version_tells_its_correlations_alone():
    said, _ = told("ab", np.random.default_rng(4))
    old = {name: said[name] for name in ("by", "patients", "sections", "correlation", "by_patient")}
    var = var_of(old)
    assert list(var) == ["training_pearson:log1p"]
    assert trusted(var, "log1p") is None
    assert ranked(var, "log1p").tolist() == np.argsort(-var["training_pearson:log1p"]).tolist()
    assert ranked(var.iloc[:, :0], "log1p") is None
    assert words(var.iloc[:, :0], "log1p", "always") == ""


def test_what_labelled_sections_say_of_a_model_of_others_ranks_its_genes_too():
    var = pd.DataFrame({"labelled_pearson:x": [0.1, 0.4, 0.3], "better_than_chance:x": [True, False, True]})
    assert ranked(var, "x").tolist() == [2, 0, 1]


def test_an_interval_holds_the_patients_that_it_was_made_of_and_is_nothing_of_none():
    each, errors = np.array([[0.1, np.nan], [0.5, np.nan]]), np.full((2, 2), 0.1)
    low, high = interval(each, errors)
    assert low[0] == pytest.approx(np.tanh(np.arctanh(0.1) - 0.196))
    assert high[0] == pytest.approx(np.tanh(np.arctanh(0.5) + 0.196))
    assert np.isnan([low[1], high[1]]).all()
