"""A diffusion model behind the interface of all predictors: names, layers, resumption, no one held out learnt from."""

import anndata
import numpy as np
import pytest

from histocrypt.data.fold_statistics import prepare_folds
from histocrypt.data.load import load_test, load_training
from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.pipeline.checkpoints import load_model
from histocrypt.pipeline.train import train_fold
from histocrypt.predictors.registry import checked_options
from histocrypt.predictors.stem import QUANTILES
from histocrypt.study import parse_study
from histocrypt.training import loop

TINY = {
    "encoder": "efficientnet_lite0_128", "augmentations": 1, "components": 8, "width": 16, "blocks": 1, "heads": 2,
    "samples": 4, "sampler_steps": 5, "epochs": 3, "batch_size": 16, "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture
def study(small_study):
    content = small_study.model_dump(mode="json")
    return parse_study({**content, "models": {"stem": TINY}})


def test_a_fold_is_trained_predicted_and_predicted_again_from_its_folder(study):
    (result,) = train_fold(study, "stem", "fold_a", device="cpu")
    adata = anndata.read_h5ad(study.run.prediction("stem", "fold_a"))
    panel = read_json(study.run.fold("fold_a") / "panel.json")["genes"]
    section = anndata.read_h5ad(study.run.section("S_a"))
    assert adata.var_names.tolist() == panel
    assert adata.obs["barcode"].tolist() == section.obs_names.tolist()
    assert set(adata.layers) == {"log1p_cp10k", "log1p", "sd", *QUANTILES}
    assert adata.layers["sd"].mean() > 0
    assert (np.diff(np.stack([adata.layers[name] for name in QUANTILES]), axis=0) >= 0).all()
    assert adata.uns["prediction"]["sampler"] == "dpm++ 5"
    assert result.chosen["epochs"] >= 1

    data = load_training(study, _fold(study))
    test = load_test(study, data)
    again = load_model(result.folder, device="cpu")
    assert np.allclose(again.predict(test)[:, : len(panel)], adata.X, atol=1e-5)
    few = test.subset(np.arange(len(test))[::-1])
    assert np.allclose(again.predict(few)[::-1, : len(panel)], adata.X, atol=1e-3)
    drawn = again.predictor.samples(test)
    assert drawn.shape == (len(test), 4, len(panel))
    restored = drawn * again.scaling.sd[: len(panel)] + again.scaling.mean[: len(panel)]
    assert np.allclose(restored.mean(axis=1), adata.X, atol=1e-4)
    assert np.allclose(restored.std(axis=1, ddof=1), adata.layers["sd"], atol=1e-4)


def _fold(study, name="fold_a"):
    from histocrypt.data.folds import load_fold

    return load_fold(study.run.folds, name)


def test_after_a_kill_training_ends_with_the_same_bits(study, monkeypatch):
    folder = study.run.model("stem", "fold_a")
    train_fold(study, "stem", "fold_a", device="cpu")
    whole = (folder / "weights.safetensors").read_bytes()
    keep = loop.keep

    def killed(path, fingerprint, parts, progress):
        keep(path, fingerprint, parts, progress)
        if progress.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "KEEPING", 1e9)
    monkeypatch.setattr(loop, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        train_fold(study, "stem", "fold_a", device="cpu")
    assert (folder / "last" / "fit.safetensors").is_file()
    monkeypatch.setattr(loop, "keep", keep)
    train_fold(study, "stem", "fold_a", device="cpu")
    assert (folder / "weights.safetensors").read_bytes() == whole
    assert not (folder / "last").exists()


def outcome(study):
    prepare_folds(study)
    train_fold(study, "stem", "fold_a", device="cpu")
    weights = (study.run.model("stem", "fold_a") / "weights.safetensors").read_bytes()
    adata = anndata.read_h5ad(study.run.prediction("stem", "fold_a"))
    return weights, np.stack([adata.X, *(adata.layers[name] for name in ("sd", *QUANTILES))])


def test_nothing_is_learnt_from_who_is_held_out(study, rewrite):
    weights, predicted = outcome(study)
    rewrite("a", label_noise=1)
    now, again = outcome(study)
    assert now == weights
    assert np.array_equal(again, predicted)
    rewrite("a", label_noise=1, pixel_noise=1)
    now, again = outcome(study)
    assert now == weights
    assert not np.array_equal(again, predicted)
    rewrite("b", label_noise=1)  # the control: a training patient's labels do count
    assert outcome(study)[0] != weights


def test_the_model_file_is_checked(study):
    predictor = load_model(train_fold(study, "stem", "fold_a", device="cpu")[0].folder).predictor
    state = predictor.state()
    state.pop("mean")
    state["network.gene"] = state["network.gene"][:-1]
    with pytest.raises(InputError, match="the weights do not fit stem"):
        predictor.load_state(state)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"sampler": "dpm+"}, ".sampler"), ({"samples": 1}, ".samples"), ({"augmentations": 8}, ".augmentations"),
     ({"width": 3.5}, ".width"), ({"depth": 3}, "")],
)  # fmt: skip
def test_options_are_checked(options, field):
    with pytest.raises(InputError) as error:
        checked_options("stem", options)
    assert error.value.field == f"models.stem{field}"
    if field == ".sampler":
        assert error.value.fix == "did you mean 'dpm++'?"


def test_a_width_that_does_not_split_into_heads_is_refused(study):
    content = study.model_dump(mode="json")
    wrong = parse_study({**content, "models": {"stem": {**TINY, "heads": 3}}})
    with pytest.raises(InputError, match="a width of 16 does not split into 3 heads"):
        train_fold(wrong, "stem", "fold_a", device="cpu")


def torchrun(study_file, *, processes=2):
    """Train fold_a by ``processes`` processes on the CPU, as a user would; return the running command."""
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command += ["-m", "histocrypt.pipeline.stem_samples", str(study_file), "stem", "fold_a"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_go_on_after_a_kill(study, tmp_path, monkeypatch):
    import time

    import psutil
    import yaml
    from safetensors.numpy import load_file

    monkeypatch.setenv("HISTOCRYPT_CACHE", str(tmp_path / "cache"))
    content = study.model_dump(mode="json")
    content["models"] = {"stem": {**TINY, "epochs": 150, "patience": 150}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    study = parse_study(content)
    folder = study.run.model("stem", "fold_a")

    train_fold(study, "stem", "fold_a", device="cpu")
    alone = load_file(folder / "weights.safetensors")
    epochs = read_json(folder / "model.json")["chosen"]["epochs"]
    (folder / "model.json").unlink()

    running = torchrun(file)
    while not (folder / "last" / "fit.safetensors").is_file() and running.poll() is None:
        time.sleep(0.05)
    family = psutil.Process(running.pid)
    for one in [*family.children(recursive=True), family]:
        one.kill()
    running.communicate()
    assert not (folder / "model.json").exists()
    begun = len((folder / "curves.csv").read_text().splitlines()) - 1
    assert 1 <= begun < 150

    output = (running := torchrun(file)).communicate()[0]
    assert running.returncode == 0, output[-3000:]
    assert "goes on after epoch" in output
    assert "2 processes with equal weights" in output
    together = load_file(folder / "weights.safetensors")
    if read_json(folder / "model.json")["chosen"]["epochs"] == epochs:  # else rounding moved the best epoch
        for name, value in alone.items():
            if not name.endswith("to_attention.bias"):  # a bias of keys cancels in the softmax: nothing holds it
                assert np.allclose(together[name], value, atol=1e-2), name
    assert anndata.read_h5ad(study.run.prediction("stem", "fold_a")).n_vars == 6


def test_other_models_are_not_trained_by_several_processes(study, tmp_path):
    import yaml

    from histocrypt.pipeline.stem_samples import train_together

    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    with pytest.raises(InputError) as refused:
        train_together(file, "resnet18", "fold_a")
    assert "stem" in refused.value.expected
