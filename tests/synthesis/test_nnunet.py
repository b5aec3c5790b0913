import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.synthesis.fabricated import SIDE, tiles

from histocrypt.errors import InputError
from histocrypt.synthesis.manifest import export_nnunet as export


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_nnunet(tmp_path, channels):
    train, test = (
        replace(pairs, images=pairs.images[..., :channels])
        for pairs in (tiles(["a"], each=6), tiles(["b"], each=4, seed=1))
    )
    train.has_mask[2] = False
    root = export(tmp_path, train, test, dataset_id=7, name="Tissue_1")
    assert root.name == "Dataset007_Tissue_1"
    about = json.loads((root / "dataset.json").read_text())
    assert about["channel_names"] == ({"0": "grey"} if channels == 1 else {"0": "R", "1": "G", "2": "B"})
    assert about["labels"] == {"background": 0, "stroma": 1, "nuclei": 2, "tumour region": 3}
    assert (about["numTraining"], about["file_ending"]) == (5, ".png")
    cases = json.loads((root / "cases.json").read_text())
    for part, pairs, n in (("Tr", train, 5), ("Ts", test, 4)):
        images = sorted(file.name for file in (root / f"images{part}").iterdir())
        labels = sorted(file.name for file in (root / f"labels{part}").iterdir())
        assert len(images) == n
        assert images == [name.replace(".png", "_0000.png") for name in labels]
        rows = {name: row for row, name in enumerate(pairs.ids.tolist())}
        for name in labels:
            row = rows[cases[name.removesuffix(".png")]["id"]]
            image = np.asarray(Image.open(root / f"images{part}" / name.replace(".png", "_0000.png")))
            np.testing.assert_array_equal(image.reshape(SIDE, SIDE, channels), pairs.images[row])
            np.testing.assert_array_equal(np.asarray(Image.open(root / f"labels{part}" / name)), pairs.masks[row])


def test_refusals(tmp_path):
    train, test = tiles(["a"], each=2), tiles(["b"], each=2, seed=1)
    for wrong, value in (({"dataset_id": 0, "name": "x"}, 0), ({"dataset_id": 1, "name": "../x"}, "../x")):
        with pytest.raises(InputError) as caught:
            export(tmp_path, train, test, **wrong)
        assert caught.value.value == value
    with pytest.raises(InputError, match="patient a is"):
        export(tmp_path, train, train, dataset_id=1, name="x")
    with pytest.raises(InputError, match="differ in scheme, side or channels"):
        export(tmp_path, train, replace(test, images=test.images[..., :1]), dataset_id=1, name="x")
    export(tmp_path, train, test, dataset_id=1, name="x")
    with pytest.raises(InputError, match="is not empty"):
        export(tmp_path, train, test, dataset_id=1, name="x")
