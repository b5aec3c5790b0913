"""Predictions that others made: joined by names alone, scored and compared beside ours."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

from histocrypt.answer import plain
from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.evaluation.compare import compare_files, render
from histocrypt.evaluation.score_file import score_files


@pytest.fixture
def world(scored):
    """Return a path of ours and a section, and what others would have written of the same values."""
    study, _ = scored
    path, truth = study.run.prediction("vision_mlp", "fold_B"), study.run.section("B_3")
    ours = ad.read_h5ad(path)
    mine = ours[ours.obs["section"] == "B_3"]
    values = np.asarray(mine.layers["log1p_cp10k"], dtype=np.float64)
    theirs = ad.AnnData(csr_matrix(values), obs=pd.DataFrame(index=mine.obs["barcode"].astype(str).to_numpy()))
    theirs.var = pd.DataFrame({"gene_ids": mine.var_names}, index=mine.var["symbol"].astype(str).to_numpy())
    return path, truth, theirs


def put(adata, path):
    adata.write_h5ad(path)
    return path


def test_values_without_units_get_the_correlations_that_ours_get(world, tmp_path):
    path, truth, theirs = world
    known = score_files(path, str(truth))
    found = score_files(put(theirs[::-1], tmp_path / "deepspot.h5ad"), str(truth))
    assert found.model == "deepspot"
    assert (found.spots, found.genes) == (known.spots, known.genes)
    assert list(found.means) == ["log1p_cp10k", "log1p"]
    for metric in ("pearson", "spearman"):
        assert found.means["log1p_cp10k"][metric] == pytest.approx(known.means["log1p_cp10k"][metric], abs=1e-6)
    assert all(np.isnan(found.means["log1p_cp10k"][metric]) for metric in ("mse", "mae", "r2", "rvd", "moran_error"))
    assert any("144 of 144 spots joined by obs_names; 22 of 24 genes" in note for note in found.notes)
    assert any("--units" in note for note in found.notes)
    told = score_files(tmp_path / "deepspot.h5ad", str(truth), units="log1p_cp10k")
    assert list(told.means) == ["log1p_cp10k"]
    assert told.means["log1p_cp10k"] == pytest.approx(known.means["log1p_cp10k"], abs=1e-5)


def test_units_that_a_file_states_are_believed(world, tmp_path):
    _, truth, theirs = world
    theirs.uns["prediction"] = {"transform": "log1p_cp10k"}
    found = score_files(put(theirs, tmp_path / "heads.h5ad"), str(truth))
    assert list(found.means) == ["log1p_cp10k"]
    assert np.isfinite(found.means["log1p_cp10k"]["mse"])


def as_column(theirs):
    theirs.obs["spot_name"] = theirs.obs_names.to_numpy()
    theirs.obs_names = [str(number) for number in range(theirs.n_obs)]


def of_section(theirs):
    theirs.obs_names = [f"B_3_{name}" for name in theirs.obs_names]


def with_suffix(theirs):
    theirs.obs_names = [f"B_3:{name}-1" for name in theirs.obs_names]


@pytest.mark.parametrize("rename", [as_column, of_section, with_suffix])
def test_spots_are_found_by_whatever_names_them(rename, world, tmp_path):
    _, truth, theirs = world
    plain = score_files(put(theirs, tmp_path / "a.h5ad"), str(truth))
    rename(theirs)
    found = score_files(put(theirs, tmp_path / "b.h5ad"), str(truth))
    assert found.means["log1p"]["pearson"] == plain.means["log1p"]["pearson"]
    assert found.spots == 144


def test_a_column_tells_the_section_from_others_with_the_same_barcodes(world, tmp_path):
    _, truth, theirs = world
    plain = score_files(put(theirs, tmp_path / "a.h5ad"), str(truth))
    other = theirs.copy()
    other.X = other.X * 0 + csr_matrix(np.random.default_rng(0).random(other.shape))
    both = ad.concat({"B_2": other, "B_3": theirs}, label="sample_id", merge="same")
    both.obs["barcode"] = both.obs_names.to_numpy()
    both.obs_names_make_unique()
    assert score_files(put(both, tmp_path / "b.h5ad"), str(truth)).means["log1p"] == pytest.approx(
        plain.means["log1p"], nan_ok=True
    )
    del both.obs["sample_id"]
    with pytest.raises(InputError) as refused:
        score_files(put(both, tmp_path / "b.h5ad"), str(truth))
    assert refused.value.field == "obs"


def test_names_that_lack_are_errors_that_name_them(world, tmp_path):
    _, truth, theirs = world

    def refused(change, **how):
        changed = theirs.copy()
        changed = change(changed) or changed
        with pytest.raises(InputError) as error:
            score_files(put(changed, tmp_path / "p.h5ad"), str(truth), **how)
        return error.value

    def called(axis, names):
        return lambda adata: setattr(adata, axis, names)

    def put_nan(adata):
        dense = adata.X.toarray()
        dense[0, 0] = np.nan
        adata.X = dense

    numbers = [str(number) for number in range(theirs.n_obs)]
    assert refused(called("obs_names", numbers)).field == "obs_names"
    assert refused(called("obs_names", [f"x{number}" for number in numbers])).value == "x0"
    assert refused(put_nan).field.startswith("layers")
    assert refused(lambda adata: None, units="furlongs").field == "--units"
    assert refused(lambda adata: ad.AnnData(obs=adata.obs, var=adata.var)).field == "X"
    gone = refused(
        lambda adata: ad.AnnData(adata.X, obs=adata.obs, var=pd.DataFrame(index=[f"Q{n}" for n in range(24)]))
    )
    assert (gone.file, gone.field) == (tmp_path / "p.h5ad", "var")


def test_row_numbers_join_nothing_even_where_the_section_has_them_too(world, tmp_path):
    _, truth, theirs = world
    section = ad.read_h5ad(truth)
    section.obs_names = theirs.obs_names = [str(number) for number in range(theirs.n_obs)]
    with pytest.raises(InputError) as refused:
        score_files(put(theirs, tmp_path / "p.h5ad"), str(put(section, tmp_path / "B_3.h5ad")))
    assert refused.value.field == "obs_names"


def test_ours_say_their_units_themselves(world):
    path, truth, _ = world
    with pytest.raises(InputError) as refused:
        score_files(path, str(truth), units="log1p")
    assert refused.value.field == "--units"


def test_two_of_ours_are_compared_on_the_same_draws(scored):
    study, _ = scored
    truth = study.run.section("B_3")
    good, poor = (study.run.prediction(model, "fold_B") for model in ("vision_mlp", "resnet18"))
    found = compare_files(good, poor, str(truth), block=3.0)
    scores = [score_files(path, str(truth)).means for path in (good, poor)]
    assert (found.spots, found.genes, found.blocks) == (144, 22, 16)
    for row in found.rows:
        one, other = (means[row.transform][row.metric] for means in scores)
        assert (row.first, row.second, row.difference) == pytest.approx((one, other, one - other))
        assert row.low < row.difference < row.high
    by = {(row.transform, row.metric): row for row in found.rows}
    assert {metric for _, metric in by} == {"pearson", "spearman", "mse"}
    assert by["log1p_cp10k", "pearson"].low > 0
    back = compare_files(poor, good, str(truth), block=3.0).rows[0]
    assert (back.low, back.high) == pytest.approx((-found.rows[0].high, -found.rows[0].low))
    same = compare_files(good, good, str(truth))
    assert {(row.difference, row.low, row.high) for row in same.rows} == {(0.0, 0.0, 0.0)}
    text = render(found)
    assert "A is ahead on" in text
    assert f"{found.rows[0].difference:+.3f}" in text
    assert len(plain(found)["per_gene"]) == 22


def test_pairing_makes_the_interval_of_a_difference_narrow(world, tmp_path):
    """Of two predictions that differ by little noise, either's own interval is far wider than their difference's."""
    path, truth, theirs = world
    noisy = theirs.copy()
    noisy.X = noisy.X.toarray() + np.random.default_rng(1).normal(0, 0.02, noisy.shape)
    flat = theirs.copy()
    flat.X = np.ones(flat.shape)
    put(noisy, tmp_path / "noisy.h5ad")
    near = compare_files(path, tmp_path / "noisy.h5ad", str(truth), block=3.0).rows[0]
    alone = compare_files(path, put(flat, tmp_path / "flat.h5ad"), str(truth), block=3.0).rows[0]
    assert alone.second == 0  # a flat prediction counts as no correlation, so that this is the interval of A alone
    assert near.high - near.low < (alone.high - alone.low) / 5


def test_others_are_compared_on_what_both_have(world, tmp_path):
    path, truth, theirs = world
    part = put(theirs[10:, 4:].copy(), tmp_path / "part.h5ad")
    found = compare_files(path, part, str(truth))
    assert (found.spots, found.genes) == (134, 18)
    assert {row.metric for row in found.rows} == {"pearson", "spearman"}, "errors mean nothing without units"
    first = found.rows[0]
    assert first.transform == "log1p_cp10k"
    assert first.difference == pytest.approx(0, abs=1e-6)
    assert any("10 spots and 4 genes are left out" in note for note in found.notes)
    assert "mse" in {row.metric for row in compare_files(path, part, str(truth), units="log1p").rows}
    with pytest.raises(InputError) as refused:
        compare_files(put(theirs[:10].copy(), tmp_path / "rest.h5ad"), part, str(truth))
    assert (refused.value.file, refused.value.field) == (part, "obs_names")
    with pytest.raises(InputError) as refused:
        compare_files(path, part, str(truth), block=0.5)
    assert (refused.value.field, refused.value.value) == ("--block", 0.5)


def test_one_block_has_no_interval(world):
    path, truth, _ = world
    found = compare_files(path, path, str(truth), block=50.0)
    assert found.blocks == 1
    assert np.isnan(found.rows[0].low)
    assert "none: one block" in render(found)
    assert plain(found)["rows"][0]["low"] is None


def test_the_commands(world, tmp_path):
    path, truth, theirs = world
    put(theirs, tmp_path / "stpath.h5ad")
    for arguments in (
        ["score", str(tmp_path / "stpath.h5ad"), str(truth)],
        ["compare", str(path), str(tmp_path / "stpath.h5ad"), str(truth)],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert "144 of 144 spots joined by obs_names" in done.output
