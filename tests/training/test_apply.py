"""A trained model on a section that no study knows."""

import shutil

import anndata
import numpy as np
import pytest
from PIL import Image, ImageFilter
from tests.visium_hd import write_visium_hd
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.errors import InputError
from histocrypt.evaluation.score_file import score_files
from histocrypt.explore.survey import study_sections
from histocrypt.files import read_json, write_json
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.compatibility import check_fit, unlike_training
from histocrypt.pipeline.inputs import prepare_section
from histocrypt.pipeline.predict import predict_section
from histocrypt.pipeline.train import train_fold
from histocrypt.sections.image import open_image
from histocrypt.sections.read import read_path, read_section
from histocrypt.study import parse_study
from histocrypt.targets.panels import Panel
from histocrypt.tissue.grid import grid_section
from histocrypt.tissue.preprocess import preprocess_section
from histocrypt.tissue.tiles import read_places


@pytest.fixture(scope="module")
def trained(tmp_path_factory, demo_tissue):
    """Three small demo sections, preprocessed as a study does it, with models of the fold that holds out P_1."""
    folder = tmp_path_factory.mktemp("apply")
    patch = pytest.MonkeyPatch()
    patch.setenv("HISTOCRYPT_OUTPUTS", str(folder / "outputs"))
    files = demo_tissue(folder / "tissue", sections=3, spots_per_side=6, genes=40)
    content = {
        "name": "small",
        "sections": [{"path": str(folder / "tissue")}],
        "preprocessing": {"tile_um": 150, "tile_px": 75, "min_counts": 0},
        "panel": {"method": "top_mean", "size": 8},
        "training": {"epochs": 1, "input_px": 36},
        "models": {"vision_mlp": {"width": 0.1}, "fusion_ridge": {"families": ["colour"]}},
    }
    study = parse_study(content)
    for found in study_sections(study):
        run = study.run
        preprocess_section(
            read_section(found), settings=study.preprocessing, section_path=run.section(found.id),
            tiles_path=run.tiles(found.id), stain_path=run.stain(found.id), seed=study.seed, progress=False,
            around_um=study.around_um,
        )  # fmt: skip
    fold = next(fold for fold in prepare_folds(study) if fold.test_patients == ("P_1",))
    for model in ("vision_mlp", "colour_ridge", "depth_only", "fusion_ridge"):
        train_fold(study, model, fold.name, device="cpu")
    yield study, fold.name, files[0]
    patch.undo()


@pytest.mark.parametrize("model", ["vision_mlp", "colour_ridge", "depth_only", "fusion_ridge"])
def test_a_section_from_its_files_is_predicted_as_in_the_study(trained, model, tmp_path):
    study, fold, section = trained
    said = predict_section(study.run.model(model, fold), section, tmp_path / "out.h5ad")
    found, known = anndata.read_h5ad(tmp_path / "out.h5ad"), anndata.read_h5ad(study.run.prediction(model, fold))
    assert list(found.obs_names) == list(known.obs_names)
    assert list(found.var_names) == list(known.var_names)
    np.testing.assert_array_equal(found.obsm["spatial"], known.obsm["spatial"])
    for transform in study.target.transforms:
        np.testing.assert_allclose(found.layers[transform], known.layers[transform], rtol=1e-5, atol=1e-5)
    assert found.uns["prediction"]["part"] == "new"
    assert f"{found.n_obs} spots x 8 genes of S_1" in said


@pytest.mark.parametrize("points", ["spots", "grid"])
def test_a_network_that_smooths_averages_over_the_surroundings_of_each_spot(trained, points, tmp_path):
    study, fold, section = trained
    plain, smooth = study.run.model("vision_mlp", fold), tmp_path / "smooth"
    shutil.copytree(plain, smooth)
    about = read_json(smooth / "model.json")
    about["training"]["smooth_um"] = reach = 250
    write_json(smooth / "model.json", about)
    how = {"spacing_um": 180.0} if points == "grid" else {}
    for folder, file in ((plain, "plain"), (smooth, "smooth")):
        predict_section(folder, section, tmp_path / f"{file}.h5ad", **how)
    one, other = (anndata.read_h5ad(tmp_path / f"{file}.h5ad") for file in ("plain", "smooth"))
    um = one.obsm["spatial"] * one.uns["prediction"]["um_per_px"]
    near = np.linalg.norm(um[:, None] - um[None], axis=2) <= reach
    near &= ~np.eye(len(um), dtype=bool)
    lonely = ~near.any(axis=1)
    assert near.any()
    near[lonely, lonely] = True
    for transform in study.target.transforms:
        own = np.asarray(one.layers[transform])
        expected = (own + near @ own / near.sum(axis=1, keepdims=True)) / 2
        np.testing.assert_allclose(other.layers[transform], expected, rtol=1e-4, atol=1e-4)


def test_surroundings_mean_the_same_on_a_wide_grid_as_on_a_fine_one(trained, demo_tissue, tmp_path, capsys):
    """Of places 600 µm apart no neighbour is there, and what a grid of 200 µm has around them is cut for them."""
    study, fold, _ = trained
    model, (section,) = load_model(study.run.model("fusion_ridge", fold)), demo_tissue(sections=1, spots_per_side=12)
    found = {}
    for spacing in (200, 600):
        grid = grid_section(open_image(section.with_suffix(".png")), spacing_um=spacing, um_per_px=1.0, min_tissue=0.1)
        (folder := tmp_path / str(spacing)).mkdir()
        spots, coords, _ = prepare_section(
            model.about, grid, folder, model.scaling.outputs, align=False, around_um=study.around_um
        )
        kept = np.ones(len(spots), dtype=bool)
        if spacing == 600:
            kept = np.bincount(read_places(folder / "tiles.h5").ring.pairs[:, 0], minlength=len(spots)) == 8
        around = spots.features("colour~320")[kept]
        found[spacing] = dict(zip(map(tuple, coords[kept].round().tolist()), around, strict=True))
    assert found[600]
    for place, around in found[600].items():
        np.testing.assert_allclose(around, found[200][place], rtol=1e-5, atol=1e-6)
    capsys.readouterr()
    for windows in (False, True):
        how = {"spacing_um": 600.0, "um_per_px": 1.0, "average_windows": windows, "overwrite": True}
        predict_section(model.folder, section.with_suffix(".png"), tmp_path / "out.h5ad", **how)
        assert "have fewer than 3 others within 320 um" in capsys.readouterr().err
        values = anndata.read_h5ad(tmp_path / "out.h5ad")
        assert np.isfinite(values.layers["log1p"]).all()


def test_a_section_without_the_genes_is_predicted_with_a_note(trained, tmp_path, capsys):
    study, fold, section = trained
    bare = anndata.read_h5ad(section)
    gone = anndata.read_h5ad(study.run.prediction("vision_mlp", fold)).var_names[:3]
    bare = bare[:, ~bare.var_names.isin(gone)].copy()
    bare.write_h5ad(tmp_path / "S_1.h5ad")
    image = section.with_suffix(".png")
    predict_section(study.run.model("vision_mlp", fold), tmp_path / "S_1.h5ad", tmp_path / "out.h5ad", image=image)
    assert "3 of 8 genes are not measured in S_1" in capsys.readouterr().err
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert found.n_vars == 8
    assert sorted(found.uns["prediction"]["unmeasured_genes"]) == sorted(gone)


def test_too_coarse_an_image_is_said_before_work(trained, tmp_path):
    study, fold, section = trained
    adata = anndata.read_h5ad(section)
    um_per_px = 10.0
    with Image.open(section.with_suffix(".png")) as image:
        scale = 1.0 / um_per_px
        image.resize((round(image.width * scale), round(image.height * scale))).save(tmp_path / "S_1.png")
    adata.obsm["spatial"] = adata.obsm["spatial"] * scale
    if "spatial" in adata.uns:
        del adata.uns["spatial"]
    adata.write_h5ad(tmp_path / "S_1.h5ad")
    with pytest.raises(InputError, match=r"too coarse.*15 pixels.*um_per_px|um_per_px.*too coarse.*15 pixels"):
        predict_section(
            study.run.model("vision_mlp", fold), tmp_path / "S_1.h5ad", tmp_path / "out.h5ad",
            image=tmp_path / "S_1.png", um_per_px=um_per_px,
        )  # fmt: skip
    assert not (tmp_path / "out.h5ad").exists()


def with_hires(section, path, scale):
    """Write the same section with a reduced picture in the file and none beside it."""
    adata = anndata.read_h5ad(section)
    with Image.open(section.with_suffix(".png")) as image:
        small = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    metadata = next(iter(adata.uns["spatial"].values()))["metadata"]
    metadata = {name: value for name, value in metadata.items() if name != "source_image_path"}
    factors = {"tissue_hires_scalef": scale}
    hires = {"images": {"hires": np.asarray(small)}, "scalefactors": factors, "metadata": metadata}
    adata.uns["spatial"] = {"S_1": hires}
    adata.write_h5ad(path)
    return path


def test_a_reduced_picture_counts_for_what_it_holds(trained, tmp_path, capsys):
    study, fold, section = trained
    model = study.run.model("vision_mlp", fold)
    about = load_model(model).about
    sees = 150 / 36
    assert about["geometry"]["detail_um"] == [1.0, 1.0]
    coarse = with_hires(section, tmp_path / "coarse.h5ad", 1 / 10)
    with pytest.raises(InputError) as caught:
        predict_section(model, coarse, tmp_path / "out.h5ad")
    assert (caught.value.field, caught.value.value) == ("um_per_px", 10.0)
    assert "--image" in caught.value.fix
    assert not (tmp_path / "out.h5ad").exists()
    capsys.readouterr()
    predict_section(model, with_hires(section, tmp_path / "less.h5ad", 1 / 7), tmp_path / "out.h5ad")
    assert f"holds 7 µm/px, coarser than what the model learnt from ({sees:.3g})" in capsys.readouterr().err
    predict_section(model, section, tmp_path / "out.h5ad")
    assert "learnt from" not in capsys.readouterr().err
    about["geometry"]["detail_um"] = [10.0, 10.0]  # as if it had learnt from such pictures
    check_fit(about, read_path(coarse, for_prediction=True), Panel.from_dict(about["panel"]))
    assert unlike_training(about, read_path(coarse, for_prediction=True)) == []
    assert "finer" in unlike_training(about, read_path(section, for_prediction=True))[0]


def test_a_patient_of_the_training_is_named_and_its_scores_are_doubted(trained, tmp_path, capsys):
    study, fold, section = trained
    for name, seen in (("S_1", False), ("S_2", True)):
        out, file = tmp_path / f"{name}.h5ad", section.with_name(f"{name}.h5ad")
        predict_section(study.run.model("colour_ridge", fold), file, out)
        assert ("was trained on this patient (P_2)" in capsys.readouterr().err) == seen
        assert any("trained on this patient" in note for note in score_files(out, str(file)).notes) == seen


def test_squares_of_another_size_than_the_models_are_said(trained, tmp_path, capsys):
    study, fold, section = trained
    model = study.run.model("vision_mlp", fold)
    about = load_model(model).about
    own = float(anndata.read_h5ad(study.run.section("S_1")).uns["preprocessing"]["spot_diameter_um"])
    assert about["geometry"]["spot_um"] == [own, own]
    run = write_visium_hd(tmp_path / "run", sides=(8, 16))
    slide = np.array(Image.open(run / "Sample_tissue_image.tif"))
    slide[:40], slide[-60:], slide[:, :40], slide[:, -60:] = 244, 244, 244, 244  # ground around the tissue
    Image.fromarray(slide).save(run / "Sample_tissue_image.tif")
    said = predict_section(model, run, tmp_path / "out.h5ad", bin_um=32, anyway=True)
    predicted = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert f"{predicted.n_obs} spots" in said
    assert predicted.obs["barcode"].str.startswith("s_032um_").all()
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "--bin-um" in line]
    assert f"spots of 32 µm, where the model learnt from spots of {own:.3g} µm" in note
    about["geometry"]["spot_um"] = [16.0, 16.0]
    about["geometry"]["detail_um"] = [0.5, 0.5]
    for side, notes in ((8, 1), (16, 0), (32, 1)):
        assert len(unlike_training(about, read_path(run, bin_um=side, for_prediction=True))) == notes
    with pytest.raises(InputError) as caught:
        score_files(tmp_path / "out.h5ad", str(run))
    assert "--bin-um 32" in caught.value.fix
    with pytest.raises(InputError) as caught:  # the same squares, and none of the genes
        score_files(tmp_path / "out.h5ad", str(run), bin_um=32)
    assert caught.value.field == "var"


@pytest.mark.parametrize("command", ["predict", "check", "score", "fhe encrypt"])
def test_every_command_names_the_option_for_squares(trained, tmp_path, command):
    study, fold, _ = trained
    run, model = write_visium_hd(tmp_path / "run", sides=(8,)), study.run.model("vision_mlp", fold)
    if command == "fhe encrypt":
        from histocrypt.cli import fhe

        (verb,) = [one for one in fhe.app.registered_commands if one.callback.__name__ == "encrypt"]
        assert "bin_um" in verb.callback.__annotations__
        return
    given = {
        "predict": [run, "--model", model, "-o", tmp_path / "out.h5ad"],
        "check": [run, "--json"],
        "score": [study.run.prediction("vision_mlp", fold), run],
    }[command]
    for wrong in ("20", "nan", "-8", "0"):
        found = CliRunner().invoke(app, [command, *map(str, given), "--bin-um", wrong])
        said = f"{found.exception} {found.output}"
        assert "bin_um" in said
        assert wrong != "20" or "--bin-um" in said
        assert found.exit_code


def test_wrong_outputs_and_models_are_said(trained, tmp_path):
    study, fold, section = trained
    model = study.run.model("vision_mlp", fold)
    with pytest.raises(InputError, match=".h5ad"):
        predict_section(model, section, tmp_path / "out.csv")
    with pytest.raises(InputError) as refused:
        predict_section(model, section, section)
    assert refused.value.file == section
    for given in (model.parent, study.run.root / "models", model / "model.json", study.run.root):
        with pytest.raises(InputError) as refused:
            predict_section(given, section, tmp_path / "out.h5ad")
        assert refused.value.file == given
        assert model.parent.name in refused.value.expected, "it names the models that are there"


@pytest.fixture
def as_real(tmp_path, demo_tissue):
    """A demo section whose file and image do not say that they are simulated."""
    (path, *_) = demo_tissue(tmp_path / "as_real", sections=3, spots_per_side=6, genes=40)
    adata = anndata.read_h5ad(path)
    del adata.uns["demo"]
    path.unlink()  # it is a link to what other tests read
    adata.write_h5ad(path)
    image = path.with_suffix(".png")
    pixels = Image.open(image).copy()
    image.unlink()
    pixels.info = {}
    pixels.save(image)
    return path


def test_a_model_of_simulated_tissue_is_refused_on_what_does_not_say_so(trained, as_real, tmp_path, capsys):
    study, fold, section = trained
    model, output = study.run.model("fusion_ridge", fold), tmp_path / "out.h5ad"
    assert load_model(model).about["origin"]["simulated"]
    for path in (as_real, as_real.with_suffix(".png")):
        given = ["predict", path, "--model", model, "-o", output, "--um-per-px", 1]
        refused = CliRunner().invoke(app, [*map(str, given)])
        assert isinstance(refused.exception, InputError)
        assert (refused.exception.field, refused.exception.expected) == ("origin", "simulated tissue")
        assert not output.exists()
    capsys.readouterr()
    predict_section(model, as_real, output, anyway=True)
    assert "simulated" in capsys.readouterr().err
    predict_section(model, section.with_suffix(".png"), output, um_per_px=1)  # the picture says that it is simulated


def test_a_section_that_measures_none_of_the_genes_is_refused(trained, tmp_path):
    study, fold, section = trained
    adata = anndata.read_h5ad(section)
    adata.var_names = [f"OTHER{number}" for number in range(adata.n_vars)]
    adata.var = adata.var[[]]
    adata.write_h5ad(tmp_path / "other.h5ad")
    shutil.copy(section.with_suffix(".png"), tmp_path)
    model = study.run.model("fusion_ridge", fold)
    with pytest.raises(InputError) as caught:
        predict_section(model, tmp_path / "other.h5ad", tmp_path / "out.h5ad")
    assert (caught.value.field, caught.value.value) == ("var_names", "S_1")
    predict_section(model, tmp_path / "other.h5ad", tmp_path / "out.h5ad", anyway=True)


def test_a_slide_out_of_focus_is_refused_before_it_is_predicted(trained, tmp_path):
    study, fold, section = trained
    shutil.copy(section, tmp_path / "S_1.h5ad")
    sharp = Image.open(section.with_suffix(".png")).convert("RGB")
    sharp.filter(ImageFilter.GaussianBlur(8)).save(tmp_path / "S_1.png")
    model, output = study.run.model("fusion_ridge", fold), tmp_path / "out.h5ad"
    with pytest.raises(InputError) as caught:
        predict_section(model, tmp_path / "S_1.h5ad", output)
    assert (caught.value.field, caught.value.value) == ("slide", "do not use")
    assert not output.exists()
    predict_section(model, tmp_path / "S_1.h5ad", output, anyway=True)
    told = anndata.read_h5ad(output).uns["prediction"]["slide"]
    assert told["verdict"] == "do not use"
    assert told["sharpness"] < -told["sharpness_limit"]
    assert len(told["why"])


def test_trust_stands_beside_what_is_predicted(trained, tmp_path):
    study, fold, section = trained
    model = load_model(study.run.model("fusion_ridge", fold))
    predict_section(model.folder, section, tmp_path / "out.h5ad", overwrite=True)
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert "simulated" in found.uns["prediction"]["origin"]
    said = model.about["intervals"]["value"]["by_patient"]
    assert set(said) == {"P_2", "P_3"}
    first = model.about["outputs"].index(f"log1p_cp10k:{found.var_names[0]}")
    assert found.var["half_width:log1p_cp10k"].iloc[0] == max(values[first] for values in said.values())
    assert "67%" in found.uns["prediction"]["intervals"]
    assert found.obs["sharpness"].notna().any()
    assert found.obs["out_of_focus"].dtype == bool
