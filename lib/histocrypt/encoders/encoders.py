"""From tiles to the features of frozen encoders, which no study has trained.

`encoders.registry` says which there are. Of the Hugging Face hub nothing is bundled, and nothing is fetched without
being asked for by name.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.encoders.registry import ENCODERS, TIMM, Encoder, encoder_of
from histocrypt.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["ENCODERS", "TIMM", "Encoder", "encode", "encoder_of", "resize"]

LARGE = 50
"""Millions of parameters above which a network computes in half precision on a GPU, and on fewer tiles at a time."""


@lru_cache(maxsize=1)
def _network(name: str, file: Path) -> torch.nn.Module:
    return encoder_of(name).load(file)


def encode(
    tiles: np.ndarray, encoder: str = "efficientnet_lite0", *, device: str | None = None, progress: bool = True
) -> np.ndarray:
    """Compute frozen features of tiles.

    On an NVIDIA GPU, networks of more than 50 million parameters compute in bfloat16 (float16 where the GPU has none):
    features differ from those of a CPU by about a hundredth of their spread. Where a batch does not fit, half as many
    tiles are taken at a time.

    Parameters
    ----------
    tiles
        (n, S, S, 3) uint8. Resized to the encoder's own side (bilinear, antialiased).
    encoder
        Name in `ENCODERS`, or ``timm:<model>``.
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
        If the encoder is unknown, its weights cannot be had, or the tiles are not (n, S, S, 3) uint8.
    """
    import torch
    from tqdm.auto import tqdm

    from histocrypt.machine import choose_device

    entry = encoder_of(encoder)
    if tiles.ndim != 4 or tiles.shape[-1] != 3 or tiles.dtype != np.uint8:
        raise InputError("tiles cannot be encoded", value=f"{tiles.shape} {tiles.dtype}", expected="(n, S, S, 3) uint8")
    where = torch.device(device) if device else choose_device()
    network = _network(encoder, entry.weights()).to(where, memory_format=torch.channels_last)
    large = entry.parameters > LARGE
    batch = 16 if where.type == "cpu" else 64 if large else 256  # 16: the first activations still fit a core's cache
    # in grey levels 0-255, which saves one division of every pixel
    mean, sd = (
        torch.tensor([255 * v for v in values], device=where)[:, None, None] for values in (entry.mean, entry.sd)
    )
    features = np.empty((len(tiles), entry.width), dtype=np.float32)
    quiet = {} if progress else {"disable": True}  # else as the environment says
    with (
        torch.inference_mode(),
        _precision(where, half=large),
        tqdm(total=len(tiles), desc=encoder, unit="tile", leave=False, **quiet) as bar,
    ):
        start = 0
        while start < len(tiles):
            chunk = torch.from_numpy(np.array(tiles[start : start + batch])).to(where).permute(0, 3, 1, 2)
            images = (resize(chunk, entry.px).float() - mean) / sd
            try:
                found = network(images.contiguous(memory_format=torch.channels_last))
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2
                continue
            features[start : start + batch] = found.float().cpu().numpy()
            start += len(chunk)
            bar.update(len(chunk))
    return features


def _precision(where: torch.device, *, half: bool) -> Any:
    import torch

    if where.type != "cuda" or not half:
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return (n, 3, side, side) images of (n, 3, S, S) ones: bilinear, antialiased; unchanged where sizes agree."""
    import torch

    if images.shape[-1] == side:
        return images
    if images.device.type != "cpu":  # antialiased resizing of bytes exists on the CPU only
        images = images.float()
    return torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
