"""The frozen encoder: the published network with its own preprocessing, and the same numbers however it is fed."""

import re
from dataclasses import replace

import numpy as np
import pytest

from histocrypt import doctor
from histocrypt.encoders import encoders, networks, weights
from histocrypt.encoders.encoders import ENCODERS, encode, encoder_of
from histocrypt.encoders.registry import table
from histocrypt.errors import InputError
from histocrypt.paths import repository


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


@pytest.mark.parametrize("name", [name for name, entry in ENCODERS.items() if entry.network == "lite0"])
def test_weights_are_there_and_hashed(name):
    assert len(encoder_of(name).weights_hash()) == 64


def test_where_memory_runs_out_fewer_tiles_are_taken_at_a_time(tiles, monkeypatch):
    import torch

    taken = []

    class Greedy(torch.nn.Module):
        def forward(self, images):
            taken.append(len(images))
            if len(images) > 4:
                raise torch.OutOfMemoryError
            return images.mean((2, 3)).repeat(1, 427)[:, :1280]

    monkeypatch.setattr(encoders, "_network", lambda name, file: Greedy())
    found = encode(tiles, "efficientnet_lite0_128", device="cpu")
    assert taken == [16, 8, 4, 4, 4, 4, 2]
    assert np.isfinite(found).all()
    assert not np.allclose(found[0], found[17])


def test_the_documentation_shows_the_table():
    assert table() in (repository() / "docs" / "encoders.md").read_text(encoding="utf-8")


def test_gated_weights_are_asked_for_in_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="MahmoodLab/UNI.*HF_TOKEN") as refused:
        encoder_of("uni").weights()
    assert refused.value.field == "encoder"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights" / "uni2_h").mkdir(parents=True)
    return tmp_path / "weights"


def test_weights_of_a_folder_are_preferred_and_hashed(folder):
    from hashlib import sha256

    old, new = folder / "uni2_h" / "pytorch_model.bin", folder / "uni2_h" / "model.safetensors"
    old.write_bytes(b"old")
    entry = encoder_of("uni2_h")
    assert entry.weights() == old
    new.write_bytes(b"new")
    assert entry.weights() == new
    assert entry.weights_hash() == sha256(b"new").hexdigest()
    new.write_bytes(b"changed")
    assert entry.weights_hash() == sha256(b"changed").hexdigest()


def test_no_weights_are_read_from_outside_the_folder(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"weights")
    (folder / "uni2_h" / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError) as refused:
        encoder_of("uni2_h").weights()
    assert refused.value.field == "HISTOCRYPT_WEIGHTS"


def test_weights_that_no_hub_has_are_asked_for(folder):
    with pytest.raises(InputError) as refused:
        encoder_of("ctranspath").weights()
    assert refused.value.value == "ctranspath"
    assert str(folder / "ctranspath") in refused.value.fix


def test_a_folder_that_is_not_there_is_an_error_and_no_reason_to_look_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOCRYPT_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(InputError) as refused:
        encoder_of("uni").weights()
    assert refused.value.field == "HISTOCRYPT_WEIGHTS"


def test_the_doctor_names_whose_weights_are_in_the_folder(folder, monkeypatch):
    (folder / "uni2_h" / "pytorch_model.bin").write_bytes(b"weights")
    finding = doctor._weights()
    assert finding.status == "ok"
    assert finding.value.startswith("uni2_h, in ")
    monkeypatch.delenv("HISTOCRYPT_WEIGHTS")
    assert doctor._weights().status == "absent"


def test_nothing_in_a_file_of_weights_is_run(tmp_path):
    import torch

    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": tmp_path}, file)  # a path, which only a pickle that may run things gives back
    with pytest.raises(InputError) as refused:
        weights.read(file)
    assert str(refused.value.file) == str(file)
    torch.save({"state_dict": {"weight": torch.ones(2, dtype=torch.float16)}}, file)
    assert weights.read(file)["weight"].dtype == torch.float32


def timm_or_skip():
    import histocrypt.torchvision_ops  # noqa: F401 - before timm

    return pytest.importorskip("timm", reason="timm is optional, and not installed here")


@pytest.mark.parametrize("name", [name for name, entry in ENCODERS.items() if entry.network == "vit"])
def test_a_published_shape_gives_the_features_that_the_table_says(name, tmp_path):
    """No weights can be had here: the network has its published shape, and no numbers at all."""
    import torch

    timm_or_skip()
    entry = encoder_of(name)
    network = networks.plain_vit(entry)
    tokens = network.forward_features(torch.empty(1, 3, entry.px, entry.px, device="meta"))
    parts = 1 if entry.output == "class token" else 2
    assert tokens.shape[-1] * parts == entry.width
    assert sum(part.numel() for part in network.parameters()) / 1e6 == pytest.approx(entry.parameters, abs=0.06)


SMALL = {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 14}


@pytest.mark.parametrize("name", ["uni2_h", "h0_mini", "virchow2", "midnight"])
def test_random_weights_of_a_small_shape_go_in_and_features_come_out(name, tmp_path):
    import torch
    from safetensors.torch import save_file

    timm_or_skip()
    entry = encoder_of(name)
    entry = replace(entry, options={**entry.options, **SMALL})
    plain = networks.plain_vit(entry).to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for part in plain.parameters():
        torch.nn.init.normal_(part, std=0.2)
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(3, 3, 28, 28)
    with torch.inference_mode():
        tokens = plain.forward_features(images)
        found = entry.load(tmp_path / "model.safetensors")(images)
    assert torch.allclose(found[:, :48], tokens[:, 0], atol=1e-5)
    if entry.output != "class token":
        assert torch.allclose(found[:, 48:], tokens[:, -4:].mean(dim=1), atol=1e-5)
    with pytest.raises(InputError) as refused:
        replace(entry, options={**entry.options, "depth": 3}).load(tmp_path / "model.safetensors")
    assert refused.value.field == "encoder"


@pytest.mark.parametrize("name", ["midnight", "phikon_v2", "hibou_b"])
@pytest.mark.parametrize("side", [28, 56])
def test_a_file_with_the_names_of_transformers_gives_what_transformers_gives(name, side, tmp_path):
    import torch

    timm_or_skip()
    transformers = pytest.importorskip("transformers", reason="transformers is optional, and not installed here")
    kind = "Dinov2WithRegisters" if name.startswith("hibou") else "Dinov2"
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": side}
    config = getattr(transformers, f"{kind}Config")(use_swiglu_ffn=name != "phikon_v2", **shape)
    published = getattr(transformers, f"{kind}Model")(config).eval()
    for part in published.parameters():
        torch.nn.init.normal_(part, std=0.2)
    published.save_pretrained(tmp_path)
    entry = encoder_of(name)
    entry = replace(entry, options={**entry.options, **SMALL}, output="class token + mean patch token")
    images = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        tokens = published(images).last_hidden_state
        found = entry.load(tmp_path / "model.safetensors")(images)
    expected = torch.cat([tokens[:, 0], tokens[:, -4:].mean(dim=1)], dim=-1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_ctranspath_takes_a_file_of_the_authors_layout(tmp_path):
    import torch

    timm_or_skip()
    entry = encoder_of("ctranspath")
    plain = networks.plain_ctranspath(entry).eval()
    assert sum(part.numel() for part in plain.parameters()) / 1e6 == pytest.approx(entry.parameters, abs=0.06)
    # the authors' fork counts the stage that halves the map with the stage before
    state = {
        re.sub(r"layers\.(\d)\.downsample", lambda at: f"layers.{int(at[1]) - 1}.downsample", name): value
        for name, value in plain.state_dict().items()
    }
    state |= {"layers.0.blocks.1.attn_mask": torch.zeros(1), "head.weight": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "ctranspath.pth")
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        found = entry.load(tmp_path / "ctranspath.pth")(images)
        assert torch.allclose(found, plain(images), atol=1e-5)
    assert found.shape == (1, entry.width)


@pytest.mark.parametrize(("name", "width"), [("timm:resnet10t.c3_in1k", 512), ("resnet50", 1024)])
def test_a_timm_model_is_read_from_a_file_of_weights(name, width, tmp_path):
    import torch
    from safetensors.torch import save_file

    timm = timm_or_skip()
    entry = encoder_of(name)
    whole = timm.create_model(entry.architecture, pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found = entry.load(tmp_path / "model.safetensors")(images)
        if name == "resnet50":
            expected = torch.nn.Sequential(*list(whole.children())[:7])(images).mean((2, 3))  # to the third stage
        else:
            expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
    assert found.shape == (2, width) == (2, entry.width)
    assert torch.allclose(found, expected, atol=1e-5)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError) as refused:
        entry.load(tmp_path / "other.safetensors")
    assert refused.value.field == "encoder"


def test_without_timm_its_models_are_refused_in_one_sentence(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    for name in ("timm:resnet18.a1_in1k", "ctranspath"):
        with pytest.raises(InputError, match="timm") as refused:
            encoder_of(name).load(tmp_path)
        assert refused.value.field == "encoder"
