"""The registry of predictors: a name, where its class lives, the options it takes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histocrypt.options import Training

# ---- registry


@dataclass(frozen=True)
class Entry:
    """One registered predictor."""

    target: str
    """``module:Class``; a `torch.nn.Module` (trained by the loop) or a class with ``fit`` and ``predict``."""
    kind: str
    """``network``, ``fitted`` or ``stack``."""
    title: str
    """How tables call it."""
    options: tuple[str, ...] = ()
    """Names of the constructor options that a study may set."""
    predictor: str = "histocrypt.predictors.network:NetworkPredictor"
    """Of a network: ``module:Class`` of what trains it and predicts with it."""


MODELS: dict[str, Entry] = {
    "mean_profile": Entry("histocrypt.predictors.closed_form:MeanProfile", "fitted", "Mean profile"),
    "depth_only": Entry("histocrypt.predictors.closed_form:DepthOnly", "fitted", "Sequencing depth only"),
    "colour_ridge": Entry("histocrypt.predictors.closed_form:ColourRidge", "fitted", "Colour-only ridge"),
    "encoder_ridge": Entry(
        "histocrypt.predictors.closed_form:EncoderRidge", "fitted", "Frozen-encoder ridge", ("encoder", "components")
    ),
    "knn": Entry(
        "histocrypt.predictors.closed_form:NearestNeighbours", "fitted", "Frozen-encoder kNN", ("encoder", "components")
    ),
    "vision_mlp": Entry(
        "histocrypt.models.vision_mlp:VisionMLP",
        "network",
        "VisionMLP (multi-scale CNN)",
        ("width", "dropout", "branches"),
    ),
    "resnet18": Entry("histocrypt.models.resnet18:ResNet18", "network", "ResNet-18", ("average_pool",)),
    "fhe_cnn": Entry("histocrypt.models.fhe:FheCnn", "network", "CNN for encryption", ("depth", "width", "pool")),
    "fhe_resnet18": Entry(
        "histocrypt.models.fhe:FheResNet18",
        "network",
        "ResNet-18 of squares, for encryption",
        ("width", "blocks"),
    ),
    "he2gene": Entry(
        "histocrypt.models.he2gene:HE2Gene",
        "network",
        "HE2Gene (multi-task)",
        (
            "backbone",
            "pretrained",
            "hidden",
            "dropout",
            "aux_weight",
            "aux_rank",
            "label",
            "label_is",
            "label_above",
            "tumour_weight",
            "spatial_weight",
            "neighbours",
            "patch",
            "average_symmetries",
        ),
        "histocrypt.predictors.he2gene:MultitaskPredictor",
    ),
    "stem": Entry(
        "histocrypt.models.stem:Stem",
        "network",
        "Stem (diffusion)",
        (
            "encoder",
            "augmentations",
            "components",
            "width",
            "blocks",
            "heads",
            "samples",
            "sampler",
            "sampler_steps",
        ),
        "histocrypt.predictors.stem:DiffusionPredictor",
    ),
    "fhe_head": Entry(
        "histocrypt.predictors.closed_form:FheHead",
        "fitted",
        "Head for encryption, frozen encoder",
        ("encoder", "components"),
    ),
}

BASELINES = ("mean_profile", "depth_only", "colour_ridge", "encoder_ridge", "knn")
"""Trained in every study, whether asked for or not: no score stands without them."""

STACKS: dict[str, Entry] = {
    "stacking_mlp": Entry("histocrypt.models.stacking_mlp:StackingMLP", "stack", "Stacked models (MLP)"),
    "rank_average": Entry("histocrypt.pipeline.stack:rank_average", "stack", "Rank average of models"),
}
"""What a study's `stacking` makes of its models' predictions; never trained on tiles."""

NEEDS_COUNTS = "depth_only"
"""Reads the total counts of the spots that it predicts; left out, and said so, where a section has none."""

ENCRYPTED = ("fhe_cnn", "fhe_head")
"""Can be evaluated on ciphertexts."""


def model_class(name: str) -> type:
    """Return the class of a registered predictor, importing its module now."""
    from histocrypt.errors import unknown_name

    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    module, attribute = MODELS[name].target.split(":")
    return getattr(import_module(module), attribute)


# ---- predictors
# Makes a predictor of any registered kind, all behind one interface.


def build(
    model: str,
    outputs: tuple[str, ...],
    *,
    settings: Training | dict[str, Any],
    options: dict[str, Any] | None = None,
    device: Any = None,
    folder: Path | None = None,
) -> Any:
    """Return an unfitted predictor with ``fit``, ``predict``, ``state`` and ``load_state``.

    Parameters
    ----------
    model
        Name in the registry.
    outputs
        Names of the predicted columns.
    settings
        Training settings; fitted baselines heed ``normalise_by_section`` only.
    options
        The model's own options.
    device, folder
        For networks: see `histocrypt.predictors.network.NetworkPredictor`.
    """
    from histocrypt.options import Training

    settings = Training(**settings) if isinstance(settings, dict) else settings
    if MODELS[model].kind == "network":
        module, name = MODELS[model].predictor.split(":")
        predictor = getattr(import_module(module), name)
        return predictor(model, outputs, settings=settings, options=options, device=device, folder=folder)
    return model_class(model)(normalise_by_section=settings.normalise_by_section, **(options or {}))


def tile_side(model: str, settings: Training) -> int | None:
    """Return the side in pixels that a model's tiles are resized to; None: as they are stored."""
    if MODELS[model].kind == "network":
        return settings.input_px or model_class(model).input_px
    return settings.input_px
