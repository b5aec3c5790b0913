"""What sections with counts say of a model of others, written beside its predictions of another section."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.evaluation.labelled import render, trust_from_labelled
from histocrypt.evaluation.score_file import score_files
from histocrypt.targets.transforms import transform

MAIN = "log1p_cp10k"


@pytest.fixture
def others(scored, tmp_path):
    """Return a function: what others would have written of a model's values of a section; its path, and the section."""
    study, _ = scored

    def write(section, *, model="vision_mlp", change=lambda values: values):
        ours = ad.read_h5ad(study.run.prediction(model, f"fold_{section[0]}"))
        mine = ours[ours.obs["section"] == section]
        names = mine.obs["barcode"].astype(str).to_numpy()
        var = pd.DataFrame({"gene_ids": mine.var_names}, index=mine.var["symbol"].astype(str).to_numpy())
        theirs = ad.AnnData(change(np.asarray(mine.layers[MAIN])), obs=pd.DataFrame(index=names), var=var)
        path = tmp_path / f"{model}_{section}.h5ad"
        theirs.write_h5ad(path)
        return path, str(study.run.section(section))

    return write


def trusted(others, labelled, tmp_path, **how):
    target, _ = others("B_1")
    output = tmp_path / "out.h5ad"
    words = render(trust_from_labelled(target, labelled, output, overwrite=True, **how))
    return ad.read_h5ad(output), words


def test_trust_is_the_score_of_the_labelled_section_beside_untouched_predictions(others, tmp_path):
    path, truth = others("B_3")
    found, _ = trusted(others, [(path, truth)], tmp_path)
    known = score_files(path, truth).per_gene[MAIN]
    r = dict(zip(found.var["gene_ids"], found.var[f"labelled_pearson:{MAIN}"], strict=True))
    assert {gene for gene, value in r.items() if np.isnan(value)} == {"ENSG00038", "ENSG00039"}
    assert {gene: r[gene] for gene in known} == pytest.approx({gene: row["pearson"] for gene, row in known.items()})
    inside = found.var.dropna()
    assert (inside[f"labelled_pearson_low:{MAIN}"] < inside[f"labelled_pearson:{MAIN}"]).all()
    assert (inside[f"labelled_pearson:{MAIN}"] < inside[f"labelled_pearson_high:{MAIN}"]).all()
    assert found.var[f"better_than_chance:{MAIN}"].sum() > 15
    before = ad.read_h5ad(others("B_1")[0])
    assert np.array_equal(found.X, before.X)
    assert list(found.obs_names) == list(before.obs_names)
    assert not [name for name in found.var if name.startswith("half_width")], "no interval without units"


def test_noise_is_not_better_than_chance(others, tmp_path):
    rng = np.random.default_rng(0)
    noise = others("B_3", change=lambda values: rng.normal(size=values.shape))
    found, _ = trusted(others, [noise], tmp_path)
    assert found.var[f"better_than_chance:{MAIN}"].sum() <= 1


def test_half_widths_hold_the_spots_of_the_worst_labelled_patient(scored, others, tmp_path):
    study, _ = scored
    labelled = [others(name) for name in ("A_1", "A_2", "B_3")]
    found, words = trusted(others, labelled, tmp_path, units=MAIN)
    assert found.uns["labelled"]["patients"] == 2
    assert "67%" in words
    gene = "ENSG00010"
    place = list(found.var["gene_ids"]).index(gene)
    width, within = (float(found.var[f"{name}:{MAIN}"].iloc[place]) for name in ("half_width", "half_width_within"))
    held = {}
    for path, truth in labelled:
        section, theirs = ad.read_h5ad(truth), ad.read_h5ad(path)
        measured = transform(section[:, gene].X, section.obs["total_counts"].to_numpy(), MAIN)[:, 0]
        measured = pd.Series(measured, index=section.obs_names)[theirs.obs_names].to_numpy()
        error = measured - np.asarray(theirs[:, (theirs.var["gene_ids"] == gene).to_numpy()].X)[:, 0]
        patient = section.obs["patient"].iloc[0]
        held.setdefault(patient, []).append((error, error - error.mean()))
    for which, bound in ((0, width), (1, within)):
        shares = [np.mean(np.abs(np.concatenate([one[which] for one in own])) <= bound + 1e-6) for own in held.values()]
        assert min(shares) == pytest.approx(0.9, abs=0.006)
    assert found.var[f"half_width:{MAIN}"].isna().sum() == 4, "a gene that one patient lacks has no interval"


def test_one_patient_is_said_to_promise_nothing(others, tmp_path):
    found, words = trusted(others, [others("B_2"), others("B_3")], tmp_path, units=MAIN)
    assert found.uns["labelled"]["patients"] == 1
    assert "promises nothing of another" in words


def test_what_cannot_be_used_is_named(others, tmp_path):
    target, _ = others("B_1")
    good = others("B_3")

    def refused(*arguments, **how):
        with pytest.raises(InputError) as error:
            trust_from_labelled(*arguments, **how)
        return error.value

    out = tmp_path / "out.h5ad"
    assert refused(target, [], out).field == "--labelled"
    assert refused(target, [good], tmp_path / "out.csv").field == "--output"
    assert refused(target, [good], target).field == "--output"
    renamed = ad.read_h5ad(target)
    renamed.var = pd.DataFrame(index=[f"Q{number}" for number in range(renamed.n_vars)])
    renamed.write_h5ad(tmp_path / "q.h5ad")
    assert refused(tmp_path / "q.h5ad", [good], out).field == "var_names"
    assert not out.exists()


def test_tiles_join_by_the_pixel_in_their_middle_and_not_by_their_corner(others, tmp_path):
    path, truth = others("B_3")
    known = score_files(path, truth).means[MAIN]["pearson"]
    section, theirs = ad.read_h5ad(truth), ad.read_h5ad(path)
    places = pd.DataFrame(section.obsm["spatial"], index=section.obs_names).loc[theirs.obs_names].to_numpy()

    def named(moved):
        tiles = theirs.copy()
        tiles.obs_names = [f"B_3_{x:.0f}_{y:.0f}.png" for x, y in places - moved]
        tiles.write_h5ad(path)
        return score_files(path, truth)

    assert named(0).means[MAIN]["pearson"] == known
    with pytest.raises(InputError) as refused:
        named(200)  # the corner of tiles as wide as two pitches is the middle of another spot
    assert refused.value.field == "obs_names"
    theirs.obs_names = [str(number) for number in range(theirs.n_obs)]
    theirs.obsm["spatial"] = places
    theirs.write_h5ad(path)
    assert score_files(path, truth).means[MAIN]["pearson"] == known


def test_the_command(others, tmp_path):
    target, _ = others("B_1")
    path, truth = others("B_3")
    said = ["trust", str(target), "-o", str(tmp_path / "out.h5ad"), "--labelled", str(path)]
    done = CliRunner().invoke(app, [*said, "--counts", truth, "--units", MAIN])
    assert done.exit_code == 0, done.output
    assert "22 of 24 genes" in done.output
    refused = CliRunner().invoke(app, said)
    assert refused.exception.field == "--counts"
