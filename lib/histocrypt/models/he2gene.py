"""HE2Gene: one image encoder, several heads: the panel's genes, every other gene, and whether the spot is tumour.

Chen et al., "HE2Gene: image-to-RNA translation via multi-task learning for spatial transcriptomics data",
Bioinformatics 2024, btae343. Heads are declared, not written out, and the head of tens of thousands of genes may be of
low rank: their expression varies along few directions, and a full matrix outweighs the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

import histocrypt.torchvision_ops  # noqa: F401 - lets torchvision be imported beside a CPU-only torch; must come first
from histocrypt.errors import InputError, unknown_name

from torchvision import models as torchvision_models  # isort: skip

BACKBONES = {"resnet18": "ResNet18_Weights", "resnet50": "ResNet50_Weights"}
"""Encoders that are trained, as torchvision names them and their published weights."""


@dataclass(frozen=True)
class Head:
    """One head on the shared encoder."""

    name: str
    kind: Literal["genes", "label"]
    """What it predicts: values, or the logit of a label."""
    outputs: int
    loss: Literal["mse", "bce"]
    weight: float = 1.0
    """Share in the whole loss; the target head's is 1."""
    rank: int = 0
    """Inner width of a low-rank head; 0: one full matrix."""


class HE2Gene(nn.Module):
    """A shared encoder and its heads.

    Parameters
    ----------
    heads
        The first is the target head: what `forward` gives.
    backbone
        ``resnet18`` or ``resnet50``, trained here; ``features`` for the features of a frozen encoder.
    width
        With ``features``: their number.
    hidden
        With ``features``: width of the one shared layer.
    dropout
        Share of the embedding that is dropped in training.
    starts
        With ``features``: the target head starts at zero. It learns what is left of a prediction that stands in the
        columns behind the features, one for each of its outputs, and is added to what it says.
    """

    input_px = 96
    """Side of the input, pixels. Any side from 32 works; the publication uses 224."""

    def __init__(
        self,
        heads: Sequence[Head],
        *,
        backbone: str = "resnet18",
        width: int = 0,
        hidden: int = 256,
        dropout: float = 0.0,
        starts: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        if backbone == "features":
            self.encoder: nn.Module = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
            embedding = hidden
        elif backbone in BACKBONES:
            self.encoder = getattr(torchvision_models, backbone)(weights=None)
            embedding = self.encoder.fc.in_features  # 512 or 2048
            self.encoder.fc = nn.Identity()
        else:
            raise unknown_name("backbone", backbone, [*BACKBONES, "features"], field="backbone")
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({head.name: _linear(embedding, head) for head in heads})
        self.first = heads[0].name
        if starts:
            nn.init.zeros_(self.heads[self.first].weight)
            nn.init.zeros_(self.heads[self.first].bias)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, S, S), or frozen features (B, width) and what follows them, to their embedding (B, d)."""
        return self.dropout(self.encoder(images[:, : self.width] if self.width else images))

    def started(self, images: torch.Tensor) -> torch.Tensor | float:
        """Return what stands behind the features, (B, k): where the target head starts; 0 where nothing does."""
        return images[:, self.width :] if self.width and images.shape[1] > self.width else 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, S, S), or features, to the target head's (B, k)."""
        return self.heads[self.first](self.embed(images)) + self.started(images)

    def every_head(self, embedded: torch.Tensor, started: torch.Tensor | float = 0.0) -> dict[str, torch.Tensor]:
        """Map an embedding (B, d) to every head's (B, outputs), by name; labels as logits; see `started`."""
        out = {name: head(embedded) for name, head in self.heads.items()}
        return {**out, self.first: out[self.first] + started}


def _linear(width: int, head: Head) -> nn.Module:
    if not head.rank or head.rank >= min(width, head.outputs):
        return nn.Linear(width, head.outputs)
    return nn.Sequential(nn.Linear(width, head.rank, bias=False), nn.Linear(head.rank, head.outputs))


def take_imagenet(network: HE2Gene, backbone: str) -> None:
    """Load ImageNet weights from torch's own cache folder; nothing is downloaded.

    Raises
    ------
    InputError
        If they are not there.
    """
    weights = getattr(torchvision_models, BACKBONES[backbone]).IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not file.is_file():
        raise InputError(
            f"ImageNet weights of {backbone} are not on this machine",
            file=file,
            field="models.he2gene.pretrained",
            fix="put the file there, or set it to false",
        )
    found = torch.load(file, map_location="cpu", weights_only=True)
    network.encoder.load_state_dict({key: value for key, value in found.items() if not key.startswith("fc.")})
