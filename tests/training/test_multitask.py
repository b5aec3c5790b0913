"""HE2Gene on the small study: masks, order of genes, symmetries, leaks, bad input."""

import anndata
import numpy as np
import pytest
import torch
from tests.training.conftest import GENES, make_study

from histocrypt.data.folds import load_fold
from histocrypt.data.load import load_training, scaled, scaling_of
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.base import AUXILIARY, TARGET, TUMOUR
from histocrypt.predictors.he2gene import Lesson, MultitaskPredictor
from histocrypt.predictors.registry import HE2GeneOptions
from histocrypt.targets.matrix import Label

OPTIONS = {"epochs": 1, "input_px": 36, "label": "obs:tumour", "spatial_weight": 0.1, "aux_rank": 3}


def annotate(study, patients="abcd", *, flip=False):
    """Give sections a label that the image shows: true in their right half."""
    for patient in patients:
        path = study.run.section(f"S_{patient}")
        adata = anndata.read_h5ad(path)
        adata.obs["tumour"] = (adata.obsm["spatial"][:, 0] > 250) != flip
        adata.write_h5ad(path)


def with_model(study, **options):
    return study.model_copy(update={"models": {"he2gene": {**OPTIONS, **options}}})


@pytest.fixture
def annotated(small_study):
    annotate(small_study)
    return with_model(small_study)


def fitted(study, fold="fold_a"):
    split = load_fold(study.run.folds, fold)
    data = load_training(study, split, side=36)
    settings, options = study.training_of("he2gene"), study.options_of("he2gene")
    predictor = MultitaskPredictor("he2gene", data.train.outputs, settings=settings, options=options, device="cpu")
    train = scaled(study, scaling_of(study, split), data.train)
    predictor.fit(train, None, seed=0)
    return predictor, train


def test_every_other_gene_and_the_label_are_learnt_by_name(annotated):
    predictor, train = fitted(annotated)
    panel = {name.split(":")[1] for name in train.outputs}
    every = [f"ENSG{i:03d}" for i in range(GENES)]
    assert list(predictor.genes) == [gene for gene in every if gene not in panel]
    heads = predictor.predict_heads(train)
    assert {name: values.shape for name, values in heads.items()} == {
        TARGET: (len(train), len(train.outputs)), AUXILIARY: (len(train), GENES - len(panel)), TUMOUR: (len(train), 1),
    }  # fmt: skip
    assert all(np.isfinite(values).all() for values in heads.values())
    assert ((heads[TUMOUR] > 0) & (heads[TUMOUR] < 1)).all()
    assert np.array_equal(predictor.predict(train), heads[TARGET])
    means = train.measured.expression(predictor.genes).toarray().mean(axis=0)
    assert np.allclose(predictor.means, means, atol=1e-5)
    assert np.abs(heads[AUXILIARY].mean(axis=0) - means).max() < 1.0


def test_the_whole_loss_is_what_its_parts_say(annotated):
    """Weights of 0 leave the target's loss; each part adds what it should."""
    predictor, train = fitted(annotated)
    lesson = predictor._images(train, fit=True)
    index = np.arange(8)
    images = lesson.batch(index, torch.device("cpu"))
    network = predictor.network.eval()
    target = torch.nn.functional.mse_loss(network(images), lesson.targets[:8])
    out = network.every_head(network.embed(images))
    auxiliary = lesson._auxiliary_loss(out[AUXILIARY], index)
    tumour = lesson._label_loss(out[TUMOUR], index)
    whole = lesson.loss(network, images, index)
    assert whole.item() > (target + auxiliary + tumour).item()
    plain = Lesson(**{**vars(lesson), "plan": HE2GeneOptions(spatial_weight=0)})
    assert plain.loss(network, images, index).item() == pytest.approx((target + auxiliary + tumour).item(), rel=1e-5)


def test_a_masked_label_gives_no_gradient(annotated):
    predictor, train = fitted(annotated)
    lesson = predictor._images(train, fit=True)
    lesson.labels[:4] = torch.nan
    logits = torch.zeros(6, 1, requires_grad=True)
    lesson._label_loss(logits, np.arange(6)).backward()
    assert logits.grad[:4].abs().sum() == 0
    assert (logits.grad[4:] != 0).all()
    logits.grad = None
    lesson._label_loss(logits, np.arange(4).repeat(2)[:6]).backward()
    assert torch.equal(logits.grad, torch.zeros(6, 1))


def test_sections_without_the_label_or_any_label_at_all(small_study):
    annotate(small_study, "c")
    predictor, train = fitted(with_model(small_study))
    assert TUMOUR in predictor.predict_heads(train)
    predictor, train = fitted(with_model(small_study, label="obs:elsewhere"))
    assert TUMOUR not in predictor.predict_heads(train)
    assert np.isfinite(predictor.predict(train)).all()


def test_symmetric_averaging_of_an_invariant_model_is_the_plain_prediction(annotated):
    predictor, train = fitted(annotated)
    spots = train.subset(np.arange(10))

    class Invariant(torch.nn.Module):
        def forward(self, images):
            return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)

    predictor.network.encoder = Invariant()
    width = 6
    predictor.network.heads = torch.nn.ModuleDict(
        {head.name: torch.nn.Linear(width, head.outputs) for head in predictor.heads}
    )
    plain = predictor.predict_heads(spots)
    predictor.averages_symmetries = True
    averaged = predictor.predict_heads(spots)
    for name, values in plain.items():
        assert np.allclose(values, averaged[name], atol=1e-5), name


def test_symmetric_averaging_really_switches(annotated):
    predictor, train = fitted(annotated)
    plain = predictor.predict(train)
    predictor.averages_symmetries = True
    averaged = predictor.predict(train)
    assert not np.allclose(plain, averaged)
    turned = train.tiles.swapaxes(1, 2)[:, ::-1].copy()

    assert np.allclose(predictor.predict(train.with_tiles(turned)), averaged, atol=1e-4)


def test_one_tile_at_a_time_gives_the_same_bits(annotated):
    predictor, train = fitted(annotated)
    predictor.settings = predictor.settings.model_copy(update={"normalise_by_section": False})
    whole = predictor.predict_heads(train)
    for rows in ([0], range(8), range(40, 45)):
        part = predictor.predict_heads(train.subset(np.array(rows)))
        for name, values in part.items():
            assert np.allclose(values, whole[name][list(rows)], atol=1e-6)


def test_files_hold_genes_in_the_order_of_their_names_and_load_again(annotated):
    (result,) = train_fold(annotated, "he2gene", "fold_a", device="cpu")
    target = anndata.read_h5ad(annotated.run.prediction("he2gene", "fold_a"))
    heads = anndata.read_h5ad(annotated.run.heads("he2gene", "fold_a"))
    assert list(heads.obs_names) == list(target.obs_names)
    assert not set(heads.var_names) & set(target.var_names)
    model = load_model(result.folder, device="cpu")
    assert list(model.predictor.genes) == list(heads.var_names)
    assert heads.obs["tumour_probability"].between(0, 1).all()
    again = load_training(annotated, load_fold(annotated.run.folds, "fold_b"), side=36)
    assert np.isfinite(model.predict(again.train)).all()


def test_held_out_labels_and_counts_change_no_weight(annotated, rewrite):
    annotated = with_model(annotated, backbone="efficientnet_lite0_128", hidden=16)
    train_fold(annotated, "he2gene", "fold_a", device="cpu")
    folder = annotated.run.model("he2gene", "fold_a")
    before = (folder / "weights.safetensors").read_bytes()
    rewrite("a", label_noise=1)
    annotate(annotated, "a", flip=True)
    train_fold(annotated, "he2gene", "fold_a", device="cpu")
    assert (folder / "weights.safetensors").read_bytes() == before
    annotate(annotated, "bcd", flip=True)  # the control: a training label is noticed
    train_fold(annotated, "he2gene", "fold_a", device="cpu")
    assert (folder / "weights.safetensors").read_bytes() != before
    assert read_json(folder / "model.json")["chosen"] == {"epochs": 1}


def test_a_frozen_encoders_features_serve_as_well(small_study, monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOCRYPT_CACHE", str(tmp_path / "cache"))
    annotate(small_study)
    study = with_model(small_study, backbone="efficientnet_lite0_128", neighbours="image")
    (result,) = train_fold(study, "he2gene", "fold_a", device="cpu")
    heads = anndata.read_h5ad(study.run.heads("he2gene", "fold_a"))
    assert np.isfinite(heads.X).all()
    assert load_model(result.folder, device="cpu").predictor.width == 1280


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"backbone": "vgg"}, None),
        ({"neighbours": "friends"}, "neighbours"),
        ({"aux_rank": -1}, "aux_rank"),
        ({"spatial_weight": "much"}, "spatial_weight"),
        ({"average_symmetries": "False"}, "average_symmetries"),
        ({"backbone": "efficientnet_lite0", "average_symmetries": True}, "average_symmetries"),
        ({"label": "tumour"}, "label"),
        ({"label": 5}, "label"),
        ({"dropout": 1}, "dropout"),
        ({"label": "obsm:celltype_prop_major/Epithelial"}, "label"),
        ({"neighbours": "predicted", "label": "obs:elsewhere"}, "neighbours"),
    ],
)
def test_bad_options_are_named_in_one_sentence(annotated, options, field):
    with pytest.raises(InputError) as caught:
        fitted(with_model(annotated, **options))
    assert caught.value.field == (field and f"models.he2gene.{field}")
    assert "\n" not in str(caught.value)


def test_labels_of_words_numbers_and_gaps():
    adata = anndata.AnnData(np.zeros((4, 1)))
    adata.obs["words"] = ["Invasive cancer", "stroma", "undetermined", "In situ"]
    adata.obs["yes"] = ["True", "0", "nan", "1"]
    import pandas as pd

    adata.obsm["share"] = pd.DataFrame({"E": [0.6, 0.5, np.nan, 0.1]}, index=adata.obs_names)
    expected = np.array([1, 0, np.nan, 1])
    words = Label("obs:words", ("invasive cancer", "in situ"))
    assert np.array_equal(words.of(adata, section="A"), expected, equal_nan=True)
    assert np.array_equal(Label("obs:yes").of(adata, section="A"), expected, equal_nan=True)
    share = Label("obsm:share/E", above=0.5)
    assert np.array_equal(share.of(adata, section="A"), [1, 0, np.nan, 0], equal_nan=True)
    assert share.is_proxy
    with pytest.raises(InputError, match="neither yes nor no"):
        Label("obs:words").of(adata, section="A")
    with pytest.raises(InputError, match="one of E"):
        Label("obsm:share/F", above=0.5).of(adata, section="A")
    genes = Label("genes:G_1+G_2", above=0.5)
    adata = anndata.AnnData(
        np.array([[9.0, 9, 0], [1, 1, 90], [5, 5, 0], [2, 2, 40]], dtype=np.float32),
        var=pd.DataFrame(index=["G_1", "G_2", "G_3"]),
    )
    assert genes.is_proxy
    assert genes.of(adata, section="A").tolist() == [1, 0, 1, 0]
    with pytest.raises(InputError) as raised:
        Label("genes:G_9", above=0.5).of(adata, section="A")
    assert raised.value.value == "genes:G_9"


def test_the_study_takes_its_options_by_name():
    with pytest.raises(InputError, match="unknown option 'aux'"):
        make_study(models={"he2gene": {"aux": 1}})
