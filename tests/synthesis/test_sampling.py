import numpy as np
import pytest
import torch

from histocrypt.synthesis import sampling
from histocrypt.synthesis.generator import Generator, GeneratorPlan, build
from histocrypt.synthesis.manifest import TISSUE, load_pairs
from histocrypt.synthesis.sampling import WayBack, sample

PLAN = GeneratorPlan(width=8, multipliers=(1, 2), blocks=1, steps=100)
LABELS = np.array(["normal", "tumour", "tumour", "normal", "tumour"])


@pytest.fixture
def untrained(monkeypatch) -> Generator:
    monkeypatch.setitem(sampling.BATCH, "cpu", 2)
    torch.manual_seed(0)
    network = build(PLAN, TISSUE, side=16, colours=3).eval()
    record = {"fingerprint": "0" * 64, "images": {"normal": 1, "tumour": 1}}
    return Generator(network, PLAN, TISSUE, 16, 3, record, torch.device("cpu"))


def test_a_folder_holds_the_samples_and_a_manifest(untrained, tmp_path):
    drawn = sample(untrained, labels=LABELS, seed=4, steps=3, folder=tmp_path)
    read = load_pairs(tmp_path / "manifest.json", scheme=TISSUE, side=16)
    for pairs in (read, sample(untrained, labels=LABELS, seed=4, steps=3, folder=tmp_path)):
        for name in ("ids", "labels", "patients", "images", "masks", "has_mask"):
            assert np.array_equal(getattr(pairs, name), getattr(drawn, name)), name
    assert not list(tmp_path.rglob("*.npz"))


def test_a_killed_drawing_goes_on_and_a_finished_one_is_read(untrained, tmp_path, monkeypatch):
    undisturbed = sample(untrained, labels=LABELS, seed=4, steps=3)
    draw, drawn = WayBack.draw, []

    def counted(way_back, generator, names, labels):
        if len(drawn) == 1 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt
        drawn.append(names.tolist())
        return draw(way_back, generator, names, labels)

    monkeypatch.setattr(WayBack, "draw", counted)
    run = {"labels": LABELS, "seed": 4, "steps": 3, "folder": tmp_path / "samples"}
    with pytest.raises(KeyboardInterrupt):
        sample(untrained, **run)
    resumed = sample(untrained, **run)
    assert drawn == [[f"synthetic:4:{i}" for i in each] for each in ([0, 1], [2, 3], [4])]
    assert np.array_equal(resumed.images, undisturbed.images)
    assert np.array_equal(resumed.masks, undisturbed.masks)
    sample(untrained, **run)
    assert len(drawn) == 3
    sample(untrained, **{**run, "seed": 5})  # other settings: drawn anew
    assert len(drawn) == 6
