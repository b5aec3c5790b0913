"""Predicting where nobody measured: single patches, a grid over a slide; averaging, every head, CSV, maps."""

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.tiny_section import PITCH_PX, write_tiny_section
from tests.training.conftest import make_study, write_section

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.errors import InputError
from histocrypt.evaluation.maps import write_map
from histocrypt.evaluation.score_file import score_files
from histocrypt.pipeline.predict import predict_section
from histocrypt.pipeline.train import train_fold

PREPROCESSING = {"tile_um": 144, "tile_px": 36, "min_counts": 1}
UM_PER_PX = 4.0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a trained he2gene, a folder of patches and a slide."""
    import torch

    folder = tmp_path_factory.mktemp("unmeasured")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(folder / "outputs"))
        patch.setenv("HISTOCRYPT_CACHE", str(folder / "cache"))
        options = {"epochs": 1, "input_px": 36, "label": "obs:tumour"}
        study = make_study(preprocessing=PREPROCESSING, models={"he2gene": options})
        for patient in "abcd":
            write_section(study.run, patient)
            path = study.run.section(f"S_{patient}")
            adata = anndata.read_h5ad(path)
            adata.obs["tumour"] = adata.obsm["spatial"][:, 0] > 250
            adata.write_h5ad(path)
        prepare_folds(study)
        for model in ("he2gene", "encoder_ridge"):
            train_fold(study, model, "fold_a", device="cpu")
        section = write_tiny_section(folder / "slides", "A")
        image = np.asarray(Image.open(folder / "slides" / "A.png"))
        patches = folder / "patches"
        patches.mkdir()
        for x in (2, 1, 10):
            for y in (1, 3):
                side, left, top = 48, (x % 5) * PITCH_PX, y * PITCH_PX
                Image.fromarray(image[top : top + side, left : left + side]).save(patches / f"B_{x}_{y}.tif")
        models = {name: study.run.model(name, "fold_a") for name in ("he2gene", "encoder_ridge")}
        yield {"models": models, "patches": patches, "slide": folder / "slides" / "A.png", "section": section}
    torch.set_num_threads(threads)


def test_any_batch_size_gives_the_same_file(world, tmp_path):
    files = {}
    for size in (1, 8, None):
        out = tmp_path / f"{size}.h5ad"
        said = predict_section(
            world["models"]["he2gene"],
            world["patches"],
            out,
            um_per_px=UM_PER_PX,
            batch_size=size,
            csv=tmp_path / "csv",
            overwrite=True,
        )
        assert "6 spots x 6 genes of B" in said
        files[size] = anndata.read_h5ad(out)
    one, eight, default = files.values()
    assert list(one.obs["barcode"]) == ["10_1", "10_3", "1_1", "1_3", "2_1", "2_3"], "every patch, in order of names"
    for other in (eight, default):
        assert list(one.obs_names) == list(other.obs_names)
        assert np.array_equal(one.X, other.X)
        assert np.array_equal(one.obsm["auxiliary"], other.obsm["auxiliary"])
        assert np.array_equal(one.obs["tumour_probability"], other.obs["tumour_probability"])
    assert len(np.unique(one.X[:, 0])) == 6

    tables = {name: pd.read_csv(tmp_path / "csv" / f"{name}.csv", index_col="name") for name in
              ("target_count_pred", "aux_count_pred", "tumor_pred")}  # fmt: skip
    assert list(tables["target_count_pred"].columns) == list(one.var_names)
    assert list(tables["aux_count_pred"].columns) == list(one.uns["auxiliary_names"])
    assert all(list(table.index) == [f"B_{one}" for one in one.obs["barcode"]] for table in tables.values())
    assert np.allclose(tables["aux_count_pred"], one.obsm["auxiliary"], rtol=1e-5)
    assert list(tables["tumor_pred"]["Annotation"]) == list(one.obs["tumour_probability"] > 0.5)


def test_a_grid_lies_on_the_tissue_at_its_spacing(world, tmp_path):
    out = tmp_path / "grid.h5ad"
    said = predict_section(world["models"]["he2gene"], world["slide"], out, um_per_px=UM_PER_PX, spacing_um=160)
    found = anndata.read_h5ad(out)
    coords = found.obsm["spatial"]
    assert f"{len(coords)} spots" in said
    assert len(coords) > 36
    steps = np.diff(np.unique(coords[:, 0]))
    assert np.allclose(steps, 160 / UM_PER_PX)
    assert np.isfinite(found.X).all()
    assert found.uns["prediction"]["image"] == str(world["slide"])
    with pytest.raises(InputError) as caught:  # points of a grid are called as spots of an array are
        score_files(out, str(world["section"]), name="A")
    assert (caught.value.file, caught.value.field) == (out, "uns['prediction']['points']")


def test_a_grid_over_a_slide_that_states_another_resolution_is_refused(world, tmp_path):
    slide, model = tmp_path / "A.tif", world["models"]["encoder_ridge"]
    Image.open(world["slide"]).save(slide, resolution=10_000 / UM_PER_PX, resolution_unit=3)
    with pytest.raises(InputError) as caught:
        predict_section(model, slide, tmp_path / "a.h5ad", um_per_px=UM_PER_PX / 4, spacing_um=400)
    assert (caught.value.file, caught.value.field) == (slide, "um_per_px as given")
    assert "A.tif" in str(caught.value).replace(str(slide), "")
    for given, source in ((None, "file"), (UM_PER_PX * 1.02, "given")):
        predict_section(model, slide, tmp_path / "a.h5ad", um_per_px=given, spacing_um=400)
        about = anndata.read_h5ad(tmp_path / "a.h5ad").uns["prediction"]
        assert (about["um_per_px"], about["um_per_px_source"]) == (given or UM_PER_PX, source)


def test_a_grid_over_a_section_says_what_its_section_says(world, tmp_path, capsys):
    adata = anndata.read_h5ad(world["section"])
    del adata.uns["spatial"], adata.uns["technology"]
    path = tmp_path / "A.h5ad"
    adata.write_h5ad(path)
    how = {"image": world["slide"], "spacing_um": 400}
    predict_section(world["models"]["encoder_ridge"], path, tmp_path / "a.h5ad", **how)
    assert "um/px estimated: spots lie" in capsys.readouterr().err
    about = anndata.read_h5ad(tmp_path / "a.h5ad").uns["prediction"]
    assert about["um_per_px"] == pytest.approx(UM_PER_PX)
    assert about["um_per_px_source"] == "spot pitch"


def test_each_switch_really_switches_and_says_what_was_left_out(world, tmp_path):
    predicted, said = {}, {}
    for name, switches in {
        "plain": {},
        "off": {"average_symmetries": False, "average_windows": False},
        "symmetries": {"average_symmetries": True},
        "windows": {"average_windows": True},
    }.items():
        given = {"um_per_px": UM_PER_PX, "spacing_um": 400, **switches}
        said[name] = predict_section(world["models"]["he2gene"], world["slide"], tmp_path / "a.h5ad", **given)
        predicted[name] = anndata.read_h5ad(tmp_path / "a.h5ad").X
    assert np.array_equal(predicted["plain"], predicted["off"])
    for name in ("symmetries", "windows"):
        assert not np.allclose(predicted["plain"], predicted[name])
    assert "windows of 1, 0.5, 1.5 tile widths" in said["windows"]
    here = {"um_per_px": UM_PER_PX, "average_windows": True}
    small = predict_section(world["models"]["he2gene"], world["patches"], tmp_path / "b.h5ad", **here)
    assert "windows of 1, 0.5 tile widths (left out, since the patches are too small: 1.5)" in small


def test_other_families_predict_on_patches_and_grids_too(world, tmp_path):
    model = world["models"]["encoder_ridge"]
    for source, given in ((world["patches"], {}), (world["slide"], {"spacing_um": 400})):
        predict_section(model, source, tmp_path / "a.h5ad", um_per_px=UM_PER_PX, csv=tmp_path / "csv", **given)
        found = anndata.read_h5ad(tmp_path / "a.h5ad")
        assert np.isfinite(found.X).all()
        assert "auxiliary" not in found.obsm
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["target_count_pred.csv"]


def test_csv_files_are_replaced_with_their_prediction_but_not_what_a_person_wrote(world, tmp_path):
    model, csv, out = world["models"]["he2gene"], tmp_path / "csv", tmp_path / "a.h5ad"
    predict_section(model, world["patches"], out, um_per_px=UM_PER_PX, csv=csv)
    assert len(list(csv.iterdir())) == 3
    predict_section(model, world["patches"], out, um_per_px=2 * UM_PER_PX, csv=csv)
    table = csv / "tumor_pred.csv"
    said = anndata.read_h5ad(out).obs["tumour_probability"].to_numpy() > 0.5
    assert list(pd.read_csv(table)["Annotation"]) == list(said)
    table.write_text(table.read_text().replace("\nB_", "\nseen_B_"))
    ours = out.read_bytes(), (csv / "target_count_pred.csv").read_bytes()
    for place in (out, tmp_path / "other.h5ad"):  # another prediction does not vouch for the tables either
        with pytest.raises(InputError) as caught:
            predict_section(model, world["patches"], place, um_per_px=UM_PER_PX, csv=csv)
        assert caught.value.field == "--csv"
    assert "seen_B_" in table.read_text()
    assert ours == (out.read_bytes(), (csv / "target_count_pred.csv").read_bytes())
    predict_section(model, world["patches"], out, um_per_px=UM_PER_PX, csv=csv, overwrite=True)
    assert "seen_B_" not in table.read_text()


def test_a_map_of_any_head_with_and_without_its_picture(world, tmp_path):
    out = tmp_path / "grid.h5ad"
    predict_section(world["models"]["he2gene"], world["slide"], out, um_per_px=UM_PER_PX, spacing_um=200)
    adata = anndata.read_h5ad(out)
    for gene in (adata.var_names[0], str(adata.uns["auxiliary_symbols"][0]).lower(), "tumour"):
        picture = tmp_path / f"{gene}.png"
        assert str(picture) in write_map(out, gene, picture)
        assert np.asarray(Image.open(picture)).std() > 10
    with pytest.raises(InputError, match="ESR1 is not predicted"):
        write_map(out, "ESR1")
    with pytest.raises(InputError, match="unknown section 'Z'"):
        write_map(out, "tumour", section="Z")
    with pytest.raises(InputError, match="this is not a prediction file"):
        write_map(world["section"], "GENE1")


@pytest.mark.parametrize(
    ("source", "given", "words"),
    [
        ("slide", {}, "does not say how large a pixel is"),
        ("slide", {"spacing_um": 100}, "does not say how large a pixel is"),
        ("slide", {"spacing_um": -1, "um_per_px": UM_PER_PX}, "is not a distance"),
        ("slide", {"spacing_um": 0.01, "um_per_px": UM_PER_PX}, "more than 1,000,000 spots"),
        ("patches", {"spacing_um": 100}, "a grid needs a slide"),
        ("patches", {"um_per_px": 1.0}, "are 48 µm wide, and the model looks at 144 µm"),
        ("slide", {"spacing_um": 100, "um_per_px": 0.0}, "is not a positive number"),
        ("patches", {"um_per_px": float("nan")}, "the model looks at 144 µm"),
        ("patches", {"um_per_px": UM_PER_PX, "batch_size": 0}, "is not a number of tiles"),
    ],
)
def test_bad_input_is_one_sentence(world, tmp_path, source, given, words):
    with pytest.raises(InputError, match=words) as caught:
        predict_section(world["models"]["he2gene"], world[source], tmp_path / "a.h5ad", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.h5ad").exists()


def test_symmetries_are_not_for_frozen_features(world, tmp_path):
    given = {"um_per_px": UM_PER_PX, "spacing_um": 400, "average_symmetries": True}
    with pytest.raises(InputError, match="reads frozen features of upright tiles"):
        predict_section(world["models"]["encoder_ridge"], world["slide"], tmp_path / "a.h5ad", **given)
