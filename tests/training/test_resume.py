"""A training that is killed and started again ends with the same bits as one that nobody disturbed."""

import os
import shutil
import subprocess
import sys
import time

import anndata
import numpy as np
import yaml

from histocrypt.files import read_json
from histocrypt.pipeline.train import train_fold
from histocrypt.study import load_study

TRAIN = """
import sys, torch
torch.set_num_threads(1)
from histocrypt.study import load_study
from histocrypt.pipeline.train import train_fold
train_fold(load_study(sys.argv[1]), "vision_mlp", "fold_a", device="cpu")
"""


def test_killed_in_the_middle_then_equal_to_undisturbed(small_study, tmp_path, monkeypatch, capsys):
    content = small_study.model_dump(mode="json")
    content["training"] |= {"epochs": 6, "patience": 6, "refit": True}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    study = load_study(file)
    shutil.copytree(tmp_path / "outputs", tmp_path / "undisturbed")

    folder = study.run.model("vision_mlp", "fold_a")
    state = folder / "last" / "fit.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(file)], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not state.is_file():
            assert process.poll() is None, "training ended before it wrote a state"
            assert time.monotonic() < deadline, "no state after ten minutes"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "model.json").exists(), "it was killed in the middle"

    (resumed,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    assert "goes on after epoch" in capsys.readouterr().err
    assert not (folder / "last").exists()

    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "undisturbed"))
    (whole,) = train_fold(study, "vision_mlp", "fold_a", device="cpu")
    assert "goes on" not in capsys.readouterr().err
    assert resumed.folder != whole.folder
    assert (resumed.folder / "weights.safetensors").read_bytes() == (whole.folder / "weights.safetensors").read_bytes()
    one, other = (read_json(result.folder / "model.json") for result in (resumed, whole))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for ours, theirs in zip(resumed.predictions, whole.predictions, strict=True):
        np.testing.assert_array_equal(anndata.read_h5ad(ours).X, anndata.read_h5ad(theirs).X)
