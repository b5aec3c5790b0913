"""`histocrypt predict --measured`: some spots of a section correct the others, and no score counts them."""

import anndata
import numpy as np
import pytest
from tests.tiny_section import PITCH_PX, write_tiny_section
from tests.training.conftest import make_study, write_section
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.errors import InputError
from histocrypt.evaluation.score_file import score_files
from histocrypt.files import read_json
from histocrypt.pipeline.measured import read_measured
from histocrypt.pipeline.predict import predict_section
from histocrypt.pipeline.train import train_fold
from histocrypt.sections.read import read_path
from histocrypt.targets.panels import Panel

MEASURED = 14


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a trained ridge, a section of 36 spots, and its file with some of them; genes are named as in training."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(folder / "outputs"))
        study = make_study(preprocessing={"tile_um": 144, "tile_px": 36, "min_counts": 1})
        for patient in "abcd":
            write_section(study.run, patient)
        prepare_folds(study)
        train_fold(study, "colour_ridge", "fold_a", device="cpu")
        section = write_tiny_section(folder / "slides", "A", n_genes=12)
        adata = anndata.read_h5ad(section)
        adata.var_names = [f"ENSG{i:03d}" for i in range(12)]
        adata.write_h5ad(section)
        some = folder / "some.h5ad"
        rows = np.random.default_rng(3).permutation(adata.n_obs)[:MEASURED]
        adata[rows].copy().write_h5ad(some)
        yield {"model": study.run.model("colour_ridge", "fold_a"), "section": section, "some": some, "folder": folder}


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_some_spots_correct_the_others_and_are_no_score(world, tmp_path):
    plain, out = tmp_path / "plain.h5ad", tmp_path / "out.h5ad"
    predict_section(world["model"], world["section"], plain, anyway=True)
    command = ("predict", world["section"], "--model", world["model"], "-o", out, "--measured", world["some"])
    done = run(*command, "--anyway")
    assert done.exit_code == 0, done.output
    before, after = anndata.read_h5ad(plain), anndata.read_h5ad(out)
    assert after.obs["measured"].sum() == MEASURED == after.uns["measured"]["spots"]
    assert after.uns["prediction"]["intervals"] == after.uns["measured"]["promise"]
    rest = ~after.obs["measured"].to_numpy()
    truth = read_path(world["section"]).adata[after.obs["barcode"]]
    true = np.log1p(truth[:, after.var_names].X.toarray())
    errors = [np.abs(values - true)[rest].mean() for values in (after.layers["raw:log1p"], after.layers["log1p"])]
    assert errors[1] < 0.7 * errors[0]  # the tiny section's genes have levels that no model can know
    for transform in ("log1p", "log1p_cp10k"):
        np.testing.assert_array_equal(after.layers[f"raw:{transform}"], before.layers[transform])
        width = after.var[f"half_width:{transform}"]
        assert (width > 0).all()
        if f"raw_half_width:{transform}" in after.var:
            np.testing.assert_array_equal(
                after.var[f"raw_half_width:{transform}"], before.var[f"half_width:{transform}"]
            )
    inside = np.abs(after.layers["log1p"] - true)[rest] <= after.var["half_width:log1p"].to_numpy()
    assert inside.mean() > 0.75
    scored = score_files(out, str(world["section"]))
    assert scored.spots == after.n_obs - MEASURED
    assert scored.means["log1p"]["mae"] == pytest.approx(errors[1], rel=1e-4)
    with pytest.raises(InputError) as error:
        score_files(out, str(world["some"]))
    assert (error.value.field, error.value.value) == ("obs['measured']", MEASURED)


def test_what_was_measured_of_a_spot_is_not_in_its_own_prediction(world, tmp_path):
    """One spot at a time: with fewer spots than folds, each is left out alone."""
    adata, values = anndata.read_h5ad(world["some"])[:8].copy(), []
    name = adata.obs_names[2]
    for number in range(2):
        adata.write_h5ad(tmp_path / "counts.h5ad")
        out = tmp_path / f"{number}.h5ad"
        how = {"measured": tmp_path / "counts.h5ad", "anyway": True}
        predict_section(world["model"], world["section"], out, **how)
        found = anndata.read_h5ad(out)
        values.append(found[found.obs["barcode"] == name].layers["log1p"])
        adata.X = adata.X.multiply(np.where(np.arange(8) == 2, 3, 1)[:, None]).tocsr()
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
    other = [anndata.read_h5ad(tmp_path / f"{number}.h5ad").layers["log1p"] for number in range(2)]
    assert np.abs(other[0] - other[1]).max() > 0.01  # of the others it is


def panel_of(world):
    return Panel.from_dict(read_json(world["model"] / "model.json")["panel"])


@pytest.fixture
def joined(world, tmp_path):
    """Join a changed file of counts to the section."""

    def join(change, **how):
        adata = anndata.read_h5ad(world["section"])
        adata = change(adata)
        adata.write_h5ad(tmp_path / "counts.h5ad")
        section = read_path(world["section"], for_prediction=True)
        return read_measured(tmp_path / "counts.h5ad", [section], panel_of(world), ["log1p"], **how)

    return join


def moved(pixels):
    def change(adata):
        adata = adata[:10].copy()
        adata.obsm["spatial"] = adata.obsm["spatial"] + pixels
        return adata

    return change


def renamed(change):
    def both(adata):
        adata = change(adata)
        adata.obs_names = [f"spot {number}" for number in range(adata.n_obs)]
        adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
        return adata

    return both


def of_another_patient(adata):
    adata = adata[:10].copy()
    adata.obs["patient"] = "P9"
    return adata


def test_spots_without_counts_are_not_measured(joined):
    def change(adata):
        adata.X = adata.X.multiply((np.arange(adata.n_obs) < 10)[:, None]).tocsr()
        return adata

    assert len(joined(change).spots) == 10


def test_spots_of_other_names_join_by_place(joined):
    near = joined(renamed(moved(PITCH_PX / 5)))
    assert near.spots.tolist() == joined(moved(0)).spots.tolist()
    both = joined(
        renamed(lambda adata: anndata.concat([moved(0)(adata), moved(5)(adata)], merge="same", uns_merge="same"))
    )
    assert both.spots.tolist() == near.spots.tolist()  # the nearest spot of each point


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (renamed(moved(1000 * PITCH_PX)), "obsm['spatial']"),
        (moved(PITCH_PX / 10), "obsm['spatial']"),  # alike in name, not in place: another section of the array
        (of_another_patient, "patient"),
        (lambda adata: adata, "--measured"),  # all
        (lambda adata: adata[:5].copy(), "--measured"),
    ],
)
def test_spots_that_are_no_part_of_the_section_are_refused(joined, change, field):
    with pytest.raises(InputError) as error:
        joined(change)
    assert error.value.field == field
    assert error.value.file is not None


def test_names_of_another_genome_are_refused(joined):
    def mouse(adata):
        adata = adata[:10].copy()
        adata.var_names = [f"ENSMUSG{number:011d}" for number in range(adata.n_vars)]
        adata.var["symbol"] = [f"Gene{number}m" for number in range(adata.n_vars)]
        return adata

    with pytest.raises(InputError) as error:
        joined(mouse)
    assert error.value.field == "var"


@pytest.mark.parametrize(
    "how", [{"within_um": 0.0}, {"within_um": float("nan")}, {"submission": True}, {"kind": "patches"}]
)
def test_what_cannot_be_asked_for_is_refused(joined, how):
    with pytest.raises(InputError) as error:
        joined(moved(0), **how)
    assert error.value.field.startswith("--measured")


def test_of_many_slides_a_list_names_what_was_measured(world, tmp_path):
    listing, out = tmp_path / "slides.csv", tmp_path / "out"
    listing.write_text(f"path,measured\n{world['section']},{world['some']}\n")
    done = run("predict", listing, "--model", world["model"], "-o", out, "--anyway", "--cores", 1)
    assert done.exit_code == 0, done.output
    assert anndata.read_h5ad(out / "A" / "prediction.h5ad").obs["measured"].sum() == MEASURED
    state = read_json(out / "A" / "state.json")
    assert state["asked"]["measured"] == str(world["some"])
    assert str(world["some"]) in state["asked"]["files"]  # whose change makes it another


def test_one_file_of_counts_is_not_of_many_slides(world, tmp_path):
    done = run("predict", world["folder"] / "slides", "-o", tmp_path / "out", "--measured", world["some"])
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()
