"""Frozen encoders whose weights come from the Hugging Face hub: any timm model, and gated ones by the user's licence.

Nothing is bundled and nothing is fetched without being asked for by name. Gated weights (UNI, CONCH, H-optimus,
Virchow2) come with the user's own token, after the user has accepted their licence on the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt import paths
from histocrypt.errors import InputError

if TYPE_CHECKING:
    import torch

    from histocrypt.encoders import Encoder

TIMM = "timm:"
"""What a name starts with that stands for a model of the package timm."""


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


def _swiglu() -> dict[str, Any]:
    import torch
    from timm.layers import SwiGLUPacked

    return {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}


GATED = {
    "uni": Gated(
        "UNI", "MahmoodLab/UNI", "pytorch_model.bin", 1024, "vit_large_patch16_224",
        options={"init_values": 1e-5, "dynamic_img_size": True},
    ),
    "conch": Gated(
        "CONCH", "MahmoodLab/CONCH", "pytorch_model.bin", 512, "", px=256,
        mean=(0.48145466, 0.4578275, 0.40821073), sd=(0.26862954, 0.26130258, 0.27577711),
    ),
    "h_optimus_0": Gated(
        "H-optimus-0", "bioptimus/H-optimus-0", "pytorch_model.bin", 1536, "vit_giant_patch14_reg4_dinov2",
        mean=(0.707223, 0.578729, 0.703617), sd=(0.211883, 0.230117, 0.177517),
        options={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    ),
    "virchow2": Gated(
        "Virchow2", "paige-ai/Virchow2", "pytorch_model.bin", 2560, "vit_huge_patch14_224",
        options={
            "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "dynamic_img_size": True,
            "global_pool": "",
        },
    ),
}  # fmt: skip
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
    from histocrypt.encoders import Encoder

    if name in GATED:
        known = GATED[name]
        return Encoder(
            known.title, known.px, known.width, 0.0, 255.0, _weights(known.repository, known.file), _loader(name, known)
        )
    if not name.startswith(TIMM):
        return None
    timm = _timm(name)
    model = name.removeprefix(TIMM)
    card = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if card is None or not card.hf_hub_id:
        msg = f"timm has no model {model!r} with weights"
        raise InputError(msg, field="encoder", value=name, expected="one of timm.list_models(pretrained=True)")
    width = timm.create_model(model, pretrained=False, num_classes=0).num_features

    def load(file: Path) -> torch.nn.Module:
        network = timm.create_model(
            model, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(file), "hf_hub_id": None}
        )
        return _normalised(network, card.mean, card.std)

    px = card.input_size[-1]
    return Encoder(f"{model} (timm)", px, width, 0.0, 255.0, _weights(card.hf_hub_id, "model.safetensors"), load)


def _timm(name: str) -> Any:
    import histocrypt.torchvision_ops  # noqa: F401 - lets timm import torchvision beside a CPU-only torch

    try:
        import timm
    except ImportError as error:
        msg = f"the encoder {name} needs the package timm, which is not installed"
        raise InputError(msg, field="encoder", fix="pip install timm") from error
    return timm


def _weights(repository: str, file: str) -> Callable[[], Path]:
    """Return what finds the weights: in the user's cache of the hub, or fetched with the user's token."""

    def find() -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repository, file, token=paths.hugging_face_token()))
        except Exception as error:  # the hub's errors have many bases; to the user they mean one thing
            why = str(error).strip().split("\n")[0][:160]
            msg = f"the weights of {repository} cannot be had ({why})"
            fix = (
                f"accept the licence at huggingface.co/{repository}, if it has one, and set HF_TOKEN to your own token"
            )
            raise InputError(msg, field="encoder", fix=fix) from error

    return find


def _loader(name: str, known: Gated) -> Callable[[Path], torch.nn.Module]:
    def load(file: Path) -> torch.nn.Module:
        import torch

        if name == "conch":
            return _conch(file, known)
        timm = _timm(name)
        special = _swiglu() if name == "virchow2" else {}
        network = timm.create_model(known.architecture, num_classes=0, **known.options, **special)
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return _normalised(network, known.mean, known.sd, tokens=name == "virchow2")

    return load


def _conch(file: Path, known: Gated) -> torch.nn.Module:
    try:
        from conch.open_clip_custom import create_model_from_pretrained
    except ImportError as error:
        msg = "the encoder conch needs the authors' package conch, which is not installed"
        raise InputError(msg, field="encoder", fix="pip install git+https://github.com/mahmoodlab/CONCH") from error
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
            found = self.network((images - self.mean) / self.sd)
            # Virchow2: the class token beside the mean of the patches; four register tokens lie between them.
            return torch.cat([found[:, 0], found[:, 5:].mean(dim=1)], dim=-1) if tokens else found

    return Normalised().eval()
