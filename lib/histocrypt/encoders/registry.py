"""The table of frozen image encoders: what each is, expects and gives, and under which licence its weights come.

Facts are those of the pages of the weights (repository, licence, normalisation, options of ``timm.create_model``).
Licences change: the page of the weights counts, not this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from histocrypt.encoders.described import DESCRIBED
from histocrypt.errors import InputError, unknown_name

if TYPE_CHECKING:
    import torch

TIMM = "timm:"
"""What a name starts with that stands for a model of the package timm."""

Output = Literal[
    "class token",
    "class token + mean patch token",
    "mean over the map",
    "mean over the third stage",
    "mean and sd over the maps",
]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "sd": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "sd": (0.26862954, 0.26130258, 0.27577711)}
OPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "sd": (0.211883, 0.230117, 0.177517)}
HIBOU = {"mean": (0.7068, 0.5755, 0.722), "sd": (0.195, 0.2316, 0.1816)}
HALF = {"mean": (0.5, 0.5, 0.5), "sd": (0.5, 0.5, 0.5)}
LITE = {"mean": (127 / 255,) * 3, "sd": (128 / 255,) * 3}
"""What the lite networks were trained with; ImageNet's mean and deviation cost them accuracy."""

FREE, RESEARCH, UNCLEAR = "yes", "no", "ask"
NO_DERIVATIVES = "CC BY-NC-ND 4.0"


@dataclass(frozen=True)
class Encoder:
    """One encoder. Its network takes normalised (n, 3, px, px) float images and gives (n, width) float features."""

    name: str
    title: str
    """How tables call it."""
    network: Literal["lite0", "lite0_middle", "vit", "cnn", "ctranspath", "conch"]
    """Which function of `encoders.networks` builds it."""
    architecture: str
    """Name in timm; empty where timm does not have it."""
    width: int
    """Number of features."""
    output: Output
    parameters: float
    """Millions, of what gives the features."""
    licence: str
    """Of the weights."""
    free: Literal["yes", "no", "ask"]
    """Whether the licence lets a hospital or a company use the weights in its work."""
    repository: str = ""
    """On the Hugging Face hub; empty where the weights are not there."""
    gated: bool = True
    """Whether terms must be accepted on the page of the weights first."""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    """Names of the file of weights, the preferred one first."""
    px: int = 224
    """Side that tiles are resized to, pixels."""
    um_per_px: float | None = 0.5
    """What it was trained at; the tile it wants is ``px * um_per_px`` micrometres wide. None: no tissue."""
    mean: tuple[float, float, float] = IMAGENET["mean"]
    """Subtracted from intensities in [0, 1] ..."""
    sd: tuple[float, float, float] = IMAGENET["sd"]
    """... which are then divided by this."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of ``timm.create_model``; ``swiglu`` stands for the gated MLP, as a timm layer with its activation."""

    def weights(self) -> Path:
        """Return the file of weights; where it cannot be had, an `InputError` says how to get it."""
        from histocrypt.encoders.weights import find

        return find(self.name, repository=self.repository, files=self.files)

    def weights_hash(self) -> str:
        """Return the SHA-256 of the file of weights."""
        from histocrypt.encoders.weights import checksum

        return checksum(self.weights())

    def load(self, file: Path) -> torch.nn.Module:
        """Return the network with weights of a file, in evaluation mode.

        Raises
        ------
        InputError
            If a package is missing, or the file is damaged or of another architecture.
        """
        from histocrypt.encoders.networks import BUILDERS

        return BUILDERS[self.network](self, file).eval()


def _lite0(name: str, px: int) -> Encoder:
    return Encoder(
        name, f"EfficientNet-Lite0, {px} px", "lite0", "", 1280, "mean over the map", 3.4, "Apache-2.0", FREE,
        gated=False, px=px, um_per_px=None, **LITE,
    )  # fmt: skip


def _lite0_middle() -> Encoder:
    return Encoder(
        "efficientnet_lite0_middle", "EfficientNet-Lite0, middle layers", "lite0_middle", "", 768,
        "mean and sd over the maps", 2.3, "Apache-2.0", FREE, gated=False, px=160, um_per_px=None, **LITE,
    )  # fmt: skip


_CLASS, _BOTH = "class token", "class token + mean patch token"
_SCALE = {"init_values": 1e-5}
_PLAIN = {**_SCALE, "img_size": 224}
_UNI2 = {
    **_PLAIN, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True, "reg_tokens": 8, "swiglu": True,
}  # fmt: skip
_GIGAPATH = {**_PLAIN, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334}
_VIRCHOW2 = {**_PLAIN, "mlp_ratio": 5.3375, "reg_tokens": 4, "swiglu": True}
_GATED_BASE = {**_PLAIN, "mlp_ratio": 5.33334, "swiglu": True}
_GATED_LARGE = {**_PLAIN, "mlp_ratio": 5.34375, "swiglu": True}

ENCODERS: dict[str, Encoder] = {
    entry.name: entry
    for entry in (
        _lite0("efficientnet_lite0", 224),
        _lite0("efficientnet_lite0_128", 128),
        _lite0_middle(),
        Encoder(
            "resnet50", "ResNet-50, third stage", "cnn", "resnet50.tv_in1k", 1024, "mean over the third stage", 8.5,
            "BSD-3-Clause", FREE, "timm/resnet50.tv_in1k", gated=False, files=("model.safetensors",), um_per_px=None,
        ),
        Encoder(
            "ctranspath", "CTransPath", "ctranspath", "swin_tiny_patch4_window7_224", 768, "mean over the map", 27.5,
            "GPL-3.0 (repository)", UNCLEAR, files=("ctranspath.pth",), um_per_px=1.0,
        ),
        Encoder(
            "conch", "CONCH", "conch", "", 512, _CLASS, 86.0, NO_DERIVATIVES, RESEARCH, "MahmoodLab/CONCH",
            files=("pytorch_model.bin",), px=256, **CLIP,
        ),
        Encoder(
            "uni", "UNI", "vit", "vit_large_patch16_224", 1024, _CLASS, 303.4, NO_DERIVATIVES, RESEARCH,
            "MahmoodLab/UNI", options=_SCALE,
        ),
        Encoder(
            "uni2_h", "UNI2-h", "vit", "vit_giant_patch14_224", 1536, _CLASS, 681.4, NO_DERIVATIVES, RESEARCH,
            "MahmoodLab/UNI2-h", options=_UNI2,
        ),
        Encoder(
            "h_optimus_0", "H-optimus-0", "vit", "vit_giant_patch14_reg4_dinov2", 1536, _CLASS, 1134.8, "Apache-2.0",
            FREE, "bioptimus/H-optimus-0", options=_PLAIN, **OPTIMUS,
        ),
        Encoder(
            "h_optimus_1", "H-optimus-1", "vit", "vit_giant_patch14_reg4_dinov2", 1536, _CLASS, 1134.8, NO_DERIVATIVES,
            RESEARCH, "bioptimus/H-optimus-1", options=_PLAIN, **OPTIMUS,
        ),
        Encoder(
            "h0_mini", "H0-mini", "vit", "vit_base_patch14_reg4_dinov2", 1536, _BOTH, 85.7, NO_DERIVATIVES, RESEARCH,
            "bioptimus/H0-mini", options=_GATED_BASE, **OPTIMUS,
        ),
        Encoder(
            "virchow2", "Virchow2", "vit", "vit_huge_patch14_224", 2560, _BOTH, 631.2, NO_DERIVATIVES, RESEARCH,
            "paige-ai/Virchow2", options=_VIRCHOW2,
        ),
        Encoder(
            "gigapath", "Prov-GigaPath, tiles", "vit", "vit_giant_patch14_dinov2", 1536, _CLASS, 1135.0,
            "Apache-2.0 tag; its card excludes deployment", RESEARCH, "prov-gigapath/prov-gigapath", options=_GIGAPATH,
        ),
        Encoder(
            "phikon_v2", "Phikon-v2", "vit", "vit_large_patch16_224", 1024, _CLASS, 303.4, "Owkin non-commercial",
            RESEARCH, "owkin/phikon-v2", gated=False, options=_SCALE,
        ),
        Encoder(
            "midnight", "Midnight-12k", "vit", "vit_giant_patch14_dinov2", 3072, _BOTH, 1134.8, "MIT", FREE,
            "kaiko-ai/midnight", gated=False, options=_PLAIN, **HALF,
        ),
        Encoder(
            "hibou_b", "Hibou-B", "vit", "vit_base_patch14_reg4_dinov2", 768, _CLASS, 85.7, "Apache-2.0", FREE,
            "histai/hibou-b", gated=False, options=_GATED_BASE, **HIBOU,
        ),
        Encoder(
            "hibou_l", "Hibou-L", "vit", "vit_large_patch14_reg4_dinov2", 1024, _CLASS, 303.7, "Apache-2.0", FREE,
            "histai/hibou-L", options=_GATED_LARGE, **HIBOU,
        ),
    )
}  # fmt: skip
"""Frozen encoders by name. EfficientNet-Lite0 (Liu and Tan 2020, trained on ImageNet) is installed with the library."""


def encoder_of(name: str) -> Encoder:
    """Return an encoder by name: of `ENCODERS`, or ``timm:<model>``, e.g. ``timm:resnet50.a1_in1k``.

    Raises
    ------
    InputError
        If the name is unknown (the known ones are listed), or timm does not have the model or is not installed.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if not name.startswith(TIMM):
        raise unknown_name("encoder", name, [*ENCODERS, *DESCRIBED, f"{TIMM}<model>"])
    from histocrypt.encoders.networks import timm_for

    timm, model = timm_for(name), name.removeprefix(TIMM)
    card = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if card is None or not card.hf_hub_id:
        problem, known = f"timm has no model {model!r} with weights", "one of timm.list_models(pretrained=True)"
        raise InputError(problem, field="encoder", value=name, expected=known)
    network = timm.create_model(model, pretrained=False, num_classes=0)
    return Encoder(
        name, f"{model} (timm)", "cnn", model, network.head_hidden_size, "mean over the map",
        round(sum(part.numel() for part in network.parameters()) / 1e6, 1), str(card.license or "see its page"),
        UNCLEAR, card.hf_hub_id, files=("model.safetensors",), px=card.input_size[-1], um_per_px=None, mean=card.mean,
        sd=card.std,
    )  # fmt: skip


def table() -> str:
    """Return `ENCODERS` as the Markdown table of ``docs/encoders.md``."""
    columns = "name|encoder|parameters, M|features|output|tile|normalisation (mean; sd)|weights|licence"
    heads = [*columns.split("|"), "free for hospitals"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for entry in ENCODERS.values():
        physical = f"{entry.px} px" + (f" at {entry.um_per_px:g} µm" if entry.um_per_px else "")
        normal = "; ".join(", ".join(f"{value:.3f}" for value in values) for values in (entry.mean, entry.sd))
        page = f"[{entry.repository}](https://huggingface.co/{entry.repository})" if entry.repository else "its authors"
        if entry.network.startswith("lite0"):
            page = "installed"
        page += ", gated" if entry.gated and entry.repository else ""
        cells = (f"`{entry.name}`", entry.title, f"{entry.parameters:g}", str(entry.width), entry.output)
        lines.append("| " + " | ".join([*cells, physical, normal, page, entry.licence, entry.free]) + " |")
    return "\n".join(lines)
