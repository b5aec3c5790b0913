"""Weights that others published, as a model of a run: what they predict, whom they teach, what is refused."""

import io
import json
import pickle

import anndata
import numpy as np
import pytest
import torch
from PIL import Image
from tests.encrypted.serving import refuses
from tests.training.conftest import SIDE, make_study
from torch import nn

import histocrypt.torchvision_ops  # noqa: F401 - lets torchvision be imported beside a CPU-only torch
from histocrypt import cli
from histocrypt.data.folds import load_folds
from histocrypt.data.load import load_spots
from histocrypt.pipeline import published
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.predict import predict_section
from histocrypt.pipeline.train import start_of, train_fold
from histocrypt.targets.panels import Panel

from torchvision.models import resnet18  # isort: skip

OUTPUTS = 250
STATISTICS = "type,value\n" + "".join(f"image_mean,{v}\n" for v in (0.6, 0.61, 0.73))
STATISTICS += "".join(f"image_std,{v}\n" for v in (0.15, 0.14, 0.1))


def network(outputs=OUTPUTS, *, seed=0, average_pool=True):
    """A torchvision ResNet-18 with batch norms that have seen something."""
    torch.manual_seed(seed)
    made = resnet18(num_classes=outputs)
    if average_pool:
        made.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    with torch.no_grad():
        made.train()(torch.randn(16, 3, 48, 48))
    return made.eval()


@pytest.fixture
def files(tmp_path):
    """Weights of the published shape, wrapped as training scripts wrap them, with a list and means that differ."""
    rng = np.random.default_rng(0)
    state = {f"module.{key}": value for key, value in network().state_dict().items()}
    torch.save({"epoch": 11, "state_dict": state}, tmp_path / "net.pth")
    genes = [f"ENSG{number:011d}" for number in range(300)]
    means = dict(zip(genes, rng.gamma(1, 1, 300), strict=True))
    (tmp_path / "genes.txt").write_text("\n".join(genes))
    others = [f"ENSG{number:011d}" for number in range(900, 930)]
    rows = [(gene, means[gene]) for gene in rng.permutation(genes).tolist()[:280]] + [(gene, 9.0) for gene in others]
    (tmp_path / "means.csv").write_text("gene,mean\n" + "\n".join(f"{gene},{mean}" for gene, mean in rows))
    (tmp_path / "statistics.csv").write_text(STATISTICS)
    known = dict(rows)
    highest = sorted((gene for gene in genes if gene in known), key=lambda gene: -known[gene])[:OUTPUTS]
    names = {"genes": "genes.txt", "means": "means.csv", "statistics": "statistics.csv"}
    return tmp_path / "net.pth", {key: tmp_path / name for key, name in names.items()}, sorted(highest)


def test_predicts_what_torchvision_s_network_gives(small_study, files, tmp_path):
    weights, others, genes = files
    study = make_study()
    said = published.import_weights(weights, study, **others)
    assert "teaches nobody" in said
    model = load_model(study.run.imported("resnet18", "final"), device="cpu")
    assert Panel.from_dict(model.about["panel"]).genes == tuple(genes)
    fold = load_folds(study.run.folds)[0]
    spots = load_spots(study, fold, fold.train_sections, panel=Panel((), (), ""), with_targets=False, side=SIDE)
    found = model.predict(spots)
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in ((0.6, 0.61, 0.73), (0.15, 0.14, 0.1)))
    images = (torch.tensor(np.array(spots.tiles)).permute(0, 3, 1, 2) / 255 - mean) / sd
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found), network()(images), rtol=1e-4, atol=1e-4)
    (tmp_path / "patches").mkdir()
    for number, tile in enumerate(spots.tiles[:4]):
        Image.fromarray(tile).save(tmp_path / "patches" / f"S_{100 * number}_50.png")
    predict_section(model.folder, tmp_path / "patches", tmp_path / "out.h5ad", um_per_px=1)
    assert anndata.read_h5ad(tmp_path / "out.h5ad").var_names.tolist() == genes
    with refuses("--output"):
        published.import_weights(weights, study, **others)


def test_takes_the_place_of_training_and_teaches(small_study, files, tmp_path):
    """With the fold's own genes in another order, outputs are joined by gene; the student starts from the weights."""
    teacher = {"average_pool": True, "input_px": SIDE}
    student = {"teacher": "resnet18", "replace_over": 0.3}
    study = make_study(target={"transforms": ["log1p"]}, models={"resnet18": teacher, "fhe_resnet18": student})
    from histocrypt.data.fold_statistics import prepare_folds

    fold = prepare_folds(study)[0]
    panel = Panel.load(study.run.fold(fold.name) / "panel.json")
    torch.save(network(len(panel)).state_dict(), tmp_path / "own.pth")
    genes = list(reversed(panel.genes))
    (tmp_path / "own.txt").write_text("\n".join(genes))
    given = {"genes": tmp_path / "own.txt", "statistics": files[1]["statistics"], "fold": fold.name}
    assert "takes the place" in published.import_weights(tmp_path / "own.pth", study, **given)
    train_fold(study, "resnet18", fold.name)
    model = load_model(study.run.model("resnet18", fold.name), device="cpu")
    assert model.about["imported"]["file"] == "own.pth"
    spots = load_spots(study, fold, fold.train_sections, panel=panel, with_targets=False, side=SIDE)
    images = model.predictor.inputs(spots)
    with torch.no_grad():
        says = network(len(panel))(images)
    expected = says.flip(1).numpy()  # the network's outputs are in the list's order
    np.testing.assert_allclose(model.predict(spots), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        start_of(study, "fhe_resnet18", fold).network.conv1.weight, network(len(panel)).conv1.weight
    )


class Code:
    def __reduce__(self):
        return print, ("code ran",)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (lambda state: saved({**state, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}), "layer1.0.conv1.weight"),
        (lambda state: saved({k: v for k, v in state.items() if k != "bn1.running_var"}), "state dict"),
        (lambda state: saved({**state, "layer1.0.conv3.weight": torch.zeros(1)}), "state dict"),
        (lambda state: saved({**state, "conv1.weight": state["conv1.weight"] * np.nan}), "conv1.weight"),
        (lambda state: saved({**state, "epoch": Code()}), "pickle"),
        (lambda state: pickle.dumps(Code()), "pickle"),
        (lambda state: saved(state)[:5000], None),
        (lambda state: saved([1, 2]), "state dict"),
        (lambda state: b"", None),
    ],
)
def test_weights_that_are_refused(content, fields, tmp_path, capsys):
    (tmp_path / "net.pth").write_bytes(content(network(3).state_dict()))
    with refuses(fields, file=tmp_path / "net.pth"):
        published.read_state_dict(tmp_path / "net.pth")
    assert not capsys.readouterr().out


def test_lists_that_are_refused(files, tmp_path):
    """A vector without names that has not one number a gene is what joined the reference's lists wrongly."""
    weights, others, _ = files
    vector = tmp_path / "vector.npy"
    np.save(vector, np.ones(299))
    short, twice, nothing = tmp_path / "short.txt", tmp_path / "twice.txt", tmp_path / "nothing.csv"
    short.write_text("\n".join(f"ENSG{number:011d}" for number in range(40)))
    twice.write_text("\n".join(["ENSG1"] * OUTPUTS))
    nothing.write_text("type,value\nimage_mean,0.5\n")
    for changed, field in (
        ({"means": vector}, "genes"),
        ({"means": None}, "genes"),
        ({"genes": short}, "genes"),
        ({"genes": twice}, "genes"),
        ({"statistics": nothing}, "image_mean"),
        ({"output_statistics": others["means"]}, "genes"),
    ):
        with refuses(field):
            published.read_published(weights, **{**others, **changed})
    np.save(vector, np.arange(300.0))
    assert published.read_published(weights, **{**others, "means": vector}).genes[0] == f"ENSG{50:011d}"


def test_command_refuses_in_one_sentence(small_study, files, tmp_path, monkeypatch, capsys):
    study, weights = tmp_path / "study.yaml", tmp_path / "net.pth"
    study.write_text(json.dumps(make_study().model_dump(mode="json")))
    weights.write_bytes(b"no weights")
    given = [str(part) for key, path in files[1].items() for part in (f"--{key}", path)]
    monkeypatch.setattr("sys.argv", ["histocrypt", "import-weights", str(weights), "--study", str(study), *given])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
