"""A trained model on a section that no study knows."""

import anndata
import numpy as np
import pytest
from PIL import Image

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.errors import InputError
from histocrypt.explore.survey import study_sections
from histocrypt.pipeline.predict import predict_section
from histocrypt.pipeline.train import train_fold
from histocrypt.sections.read import read_section
from histocrypt.study import parse_study
from histocrypt.tissue.preprocess import preprocess_section


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
        "models": {"vision_mlp": {"width": 0.1}},
    }
    study = parse_study(content)
    for found in study_sections(study):
        run = study.run
        preprocess_section(
            read_section(found), settings=study.preprocessing, section_path=run.section(found.id),
            tiles_path=run.tiles(found.id), stain_path=run.stain(found.id), seed=study.seed, progress=False,
        )  # fmt: skip
    fold = next(fold for fold in prepare_folds(study) if fold.test_patients == ("P_1",))
    for model in ("vision_mlp", "colour_ridge", "depth_only"):
        train_fold(study, model, fold.name, device="cpu")
    yield study, fold.name, files[0]
    patch.undo()


@pytest.mark.parametrize("model", ["vision_mlp", "colour_ridge", "depth_only"])
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


def test_wrong_outputs_and_models_are_said(trained, tmp_path):
    study, fold, section = trained
    model = study.run.model("vision_mlp", fold)
    with pytest.raises(InputError, match=".h5ad"):
        predict_section(model, section, tmp_path / "out.csv")
    with pytest.raises(InputError, match="over what is read"):
        predict_section(model, section, section)
    with pytest.raises(InputError, match="no trained model"):
        predict_section(tmp_path, section, tmp_path / "out.h5ad")
