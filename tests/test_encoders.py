"""The frozen encoder: the published network with its own preprocessing, and the same numbers however it is fed."""

import numpy as np
import pytest

from histocrypt.encoders.encoders import ENCODERS, encode, encoder_of
from histocrypt.errors import InputError


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(0).integers(0, 256, (18, 40, 40, 3)).astype(np.uint8)


def test_features_are_those_of_the_unfolded_network(tiles):
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = encoder_of("efficientnet_lite0_128").weights()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    images = torch.from_numpy(tiles[:3]).permute(0, 3, 1, 2)
    images = torch.nn.functional.interpolate(images, (128, 128), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = network.eval().extract_features((images.float() - 127) / 128).mean((2, 3)).numpy()
    assert np.allclose(encode(tiles[:3], "efficientnet_lite0_128", device="cpu"), expected, atol=1e-4)


def test_the_network_still_knows_what_it_was_trained_on():
    """An espresso is an espresso: preprocessing and weights belong together."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from skimage import data

    entry = encoder_of("efficientnet_lite0")
    photo = data.coffee()[:, 50:450]
    features = encode(photo[None], "efficientnet_lite0", device="cpu")
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(entry.weights(), map_location="cpu", weights_only=True))
    probability = torch.softmax(network._fc(torch.from_numpy(features)), dim=1)[0]
    assert int(probability.argmax()) == 967  # ImageNet's espresso
    assert probability.max() > 0.5


def test_a_tile_has_the_same_features_in_any_company(tiles):
    together = encode(tiles, "efficientnet_lite0_128", device="cpu")
    alone = encode(tiles[16:17], "efficientnet_lite0_128", device="cpu")
    assert together.shape == (18, 1280)
    assert together.dtype == np.float32
    assert np.allclose(together[16:17], alone, atol=1e-4)
    assert encode(tiles[:0], "efficientnet_lite0_128").shape == (0, 1280)


def test_what_is_not_a_tile_or_an_encoder_is_refused(tiles):
    with pytest.raises(InputError, match="unknown encoder 'efficientnet'.*efficientnet_lite0"):
        encode(tiles, "efficientnet")
    with pytest.raises(InputError, match="expected .n, S, S, 3. uint8"):
        encode(tiles.astype(float))


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_are_there_and_hashed(name):
    assert len(encoder_of(name).weights_hash()) == 64


def test_gated_weights_are_asked_for_in_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="MahmoodLab/UNI.*HF_TOKEN") as refused:
        encoder_of("uni").weights()
    assert refused.value.field == "encoder"


def test_a_timm_model_is_read_from_a_file_of_weights(tmp_path):
    import torch

    import histocrypt.torchvision_ops  # noqa: F401 - before timm

    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    whole = timm.create_model("resnet10t.c3_in1k", pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    entry = encoder_of("timm:resnet10t.c3_in1k")
    images = torch.rand(2, 3, 64, 64)
    card = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    mean, sd = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.inference_mode():
        found = entry.load(tmp_path / "model.safetensors")(images)
        expected = whole.forward_head(whole.forward_features((images - mean) / sd), pre_logits=True)
    assert found.shape == (2, entry.width)
    assert torch.allclose(found, expected, atol=1e-5)


def test_without_timm_its_models_are_refused_in_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm") as refused:
        encoder_of("timm:resnet18.a1_in1k")
    assert refused.value.field == "encoder"
