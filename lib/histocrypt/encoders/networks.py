"""From an entry of the table and a file of weights to the network that gives its features.

Everything but EfficientNet-Lite0 needs the optional package timm (CONCH: its authors' own). No code of a hub is run:
files that follow the names of the package transformers are renamed to timm's instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.encoders.weights import fit, read
from histocrypt.errors import InputError

if TYPE_CHECKING:
    import torch

    from histocrypt.encoders.registry import Encoder

RENAMED = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
"""Names of DINOv2 in transformers, and what timm calls the same tensors."""
MIDDLE = (7, 10, 14)
"""Blocks of EfficientNet-Lite0 whose maps are summarised: 80, 112, 192 channels. On new patients they tell more of
tissue than the last layer, which has learnt to tell dogs from cars (`docs/ablation.md`)."""
PARTS = re.compile(r"^(blocks\.\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


def timm_for(name: str) -> Any:
    """Return the package timm; where it is not installed, an `InputError` says that the encoder needs it."""
    import histocrypt.torchvision_ops  # noqa: F401 - lets timm import torchvision beside a CPU-only torch

    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"the encoder {name} needs the package timm, which is not installed",
            field="encoder",
            fix="pip install timm",
        ) from error
    return timm


def lite0(entry: Encoder, file: Path) -> torch.nn.Module:
    """Return EfficientNet-Lite0 up to the mean over its last map."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    _fold(network.eval())
    return _computing(network, lambda images: network.extract_features(images).mean((2, 3)))


def lite0_middle(entry: Encoder, file: Path) -> torch.nn.Module:
    """Return the mean and deviation over the maps of the blocks `MIDDLE` of EfficientNet-Lite0."""
    import torch

    whole = lite0(entry, file).network
    blocks = list(whole._blocks)[: max(MIDDLE) + 1]

    def features(images: torch.Tensor) -> torch.Tensor:
        seen, found = whole._swish(whole._bn0(whole._conv_stem(images))), []
        for number, block in enumerate(blocks):
            seen = block(seen)
            if number in MIDDLE:
                found += [seen.mean((2, 3)), seen.std((2, 3))]
        return torch.cat(found, dim=1)

    return _computing(whole, features)


def vit(entry: Encoder, file: Path) -> torch.nn.Module:
    """Return a vision transformer of timm: its class token, or that beside the mean of its patch tokens."""
    state = read(file)
    if "embeddings.cls_token" in state:
        state = of_transformers(state)
    network = plain_vit(entry, **_measured(state))
    _fit_places(network, state)
    fit(network, {name: value for name, value in state.items() if not name.startswith("head.")}, file)

    def features(images: torch.Tensor) -> torch.Tensor:
        import torch

        tokens = network.forward_features(images)
        if entry.output == "class token":
            return tokens[:, 0]
        # register tokens, which lie between the class token and the patches, are no part of the mean
        return torch.cat([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(dim=1)], dim=-1)

    return _computing(network, features)


def plain_vit(entry: Encoder, **changed: Any) -> torch.nn.Module:
    """Return a vision transformer without weights, on torch's meta device: it takes neither time nor memory.

    Parameters
    ----------
    changed
        Options of ``timm.create_model`` in place of the entry's.
    """
    import torch

    timm = timm_for(entry.name)
    options = {**entry.options, **changed}
    if options.pop("swiglu", False):
        options |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    with torch.device("meta"):
        return timm.create_model(entry.architecture, pretrained=False, num_classes=0, **options)


def _measured(state: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the ratio of the MLPs' width as the file has it: pages give that of gated ones in two ways."""
    first, token = state.get("blocks.0.mlp.fc1.weight"), state.get("cls_token")
    if first is None or token is None or len(first) % 2:
        return {}
    return {"mlp_ratio": (len(first) + 0.5) / token.shape[-1]}  # half: it is rounded down


def of_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a DINOv2 network (Oquab et al. 2023) of transformers under timm's names.

    Query, key and value become one tensor. With register tokens (Darcet et al. 2023) timm adds no place to the class
    token, so the class token's place is added to it here.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        if name == "embeddings.mask_token":  # of training alone
            continue
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        if part := PARTS.match(name):
            parts.setdefault(f"{part[1]}.attn.qkv.{part[3]}", {})[part[2]] = value
        else:
            found[name] = value
    found |= {name: torch.cat([three[one] for one in ("query", "key", "value")]) for name, three in parts.items()}
    if "reg_token" in found:
        places = found["pos_embed"]
        found |= {"cls_token": found["cls_token"] + places[:, :1], "pos_embed": places[:, 1:]}
    return found


def _fit_places(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Resample the places of patches in ``state`` where they are those of images of another size, as DINOv2 does."""
    from timm.layers import resample_abs_pos_embed

    places, wanted = state.get("pos_embed"), network.pos_embed
    if places is None or places.ndim != 3 or places.shape[1] == wanted.shape[1]:
        return
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    if round((places.shape[1] - prefix) ** 0.5) ** 2 + prefix == places.shape[1]:
        grid = list(network.patch_embed.grid_size)
        smooth = "reg_token" in state  # DINOv2 smooths since it has register tokens
        state["pos_embed"] = resample_abs_pos_embed(places, grid, num_prefix_tokens=prefix, antialias=smooth)


def cnn(entry: Encoder, file: Path) -> torch.nn.Module:
    """Return a network of timm without its classifier; for the third stage, the mean over that stage's map."""
    timm = timm_for(entry.name)
    # with its classifier at first: without, timm would take a file in which half of the network is missing
    classes = timm.get_pretrained_cfg(entry.architecture).num_classes
    network = timm.create_model(entry.architecture, pretrained=False, num_classes=classes, **entry.options)
    fit(network, read(file), file)
    network.reset_classifier(0)
    if entry.output != "mean over the third stage":
        return network

    def features(images: torch.Tensor) -> torch.Tensor:
        return network.forward_intermediates(images, indices=[3], intermediates_only=True)[0].mean((2, 3))

    network.layer4 = network.fc  # nothing, by now
    return _computing(network, features)


def ctranspath(entry: Encoder, file: Path) -> torch.nn.Module:
    """Return CTransPath (Wang et al. 2022): a small Swin transformer whose patches are embedded by convolutions."""
    network = plain_ctranspath(entry)
    from timm.models.swin_transformer import checkpoint_filter_fn

    state = checkpoint_filter_fn(read(file), network)
    return fit(network, {name: value for name, value in state.items() if not name.startswith("head.")}, file)


def plain_ctranspath(entry: Encoder) -> torch.nn.Module:
    """Return CTransPath without weights of its own."""
    import torch

    timm = timm_for(entry.name)

    class Stem(torch.nn.Module):
        """Two 3 x 3 convolutions of stride 2, each doubling the channels, then one of 1 x 1."""

        def __init__(self, *, img_size: Any, patch_size: Any, embed_dim: int, norm_layer: Any, **_: Any) -> None:
            super().__init__()
            image, self.patch_size = timm.layers.to_2tuple(img_size), timm.layers.to_2tuple(patch_size)
            self.grid_size = tuple(side // patch for side, patch in zip(image, self.patch_size, strict=True))
            layers, before = [], 3
            for channels in (embed_dim // 8, embed_dim // 4):
                convolution = torch.nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False)
                layers += [convolution, torch.nn.BatchNorm2d(channels), torch.nn.ReLU()]
                before = channels
            self.proj = torch.nn.Sequential(*layers, torch.nn.Conv2d(before, embed_dim, 1))
            self.norm = norm_layer(embed_dim)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(self.proj(images).permute(0, 2, 3, 1))

    return timm.create_model(entry.architecture, pretrained=False, num_classes=0, embed_layer=Stem)


def conch(entry: Encoder, file: Path) -> torch.nn.Module:
    """Return CONCH's image tower, before its contrastive projection."""
    try:
        from conch.open_clip_custom import create_model_from_pretrained
    except ImportError as error:
        raise InputError(
            "the encoder conch needs the authors' package conch, which is not installed",
            field="encoder",
            fix="pip install git+https://github.com/mahmoodlab/CONCH",
        ) from error
    network, _ = create_model_from_pretrained("conch_ViT-B-16", str(file))
    return _computing(network, lambda images: network.encode_image(images, proj_contrast=False, normalize=False))


BUILDERS: dict[str, Callable[[Encoder, Path], torch.nn.Module]] = {
    "lite0": lite0,
    "lite0_middle": lite0_middle,
    "vit": vit,
    "cnn": cnn,
    "ctranspath": ctranspath,
    "conch": conch,
}
"""By `Encoder.network`."""


def _computing(network: torch.nn.Module, features: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """Return a module that holds the network and gives what ``features`` computes with it."""
    import torch

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return features(images)

    return Features()


def _fold(network: torch.nn.Module) -> None:
    """Fold batch norms and even paddings into convolutions, let ReLU6 work in place: same numbers, twice as fast."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    def fold_norm(part: torch.nn.Module, convolution: str, norm: str) -> None:
        if hasattr(part, convolution):
            setattr(part, convolution, fuse_conv_bn_eval(getattr(part, convolution), getattr(part, norm)))
            setattr(part, norm, torch.nn.Identity())

    for block in network._blocks:
        for convolution, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            fold_norm(block, convolution, norm)
    fold_norm(network, "_conv_stem", "_bn0")
    fold_norm(network, "_conv_head", "_bn1")
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = True
        padding = getattr(getattr(module, "static_padding", None), "padding", None)
        if padding is not None and padding[::2] == padding[1::2]:  # left, right, top, bottom
            module.padding, module.static_padding = padding[::-2], torch.nn.Identity()
