"""The registry of predictors: a name, where its class lives, the options it takes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


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
    predictor: str = "histocrypt.training.network:NetworkPredictor"
    """Of a network: ``module:Class`` of what trains it and predicts with it."""


MODELS: dict[str, Entry] = {
    "mean_profile": Entry("histocrypt.models.mean_profile:MeanProfile", "fitted", "Mean profile"),
    "depth_only": Entry("histocrypt.models.depth_only:DepthOnly", "fitted", "Sequencing depth only"),
    "colour_ridge": Entry("histocrypt.models.colour_ridge:ColourRidge", "fitted", "Colour-only ridge"),
    "encoder_ridge": Entry(
        "histocrypt.models.encoder_ridge:EncoderRidge", "fitted", "Frozen-encoder ridge", ("encoder", "components")
    ),
    "knn": Entry("histocrypt.models.knn:NearestNeighbours", "fitted", "Frozen-encoder kNN", ("encoder", "components")),
    "vision_mlp": Entry(
        "histocrypt.models.vision_mlp:VisionMLP",
        "network",
        "VisionMLP (multi-scale CNN)",
        ("width", "dropout", "branches"),
    ),
    "resnet18": Entry("histocrypt.models.resnet18:ResNet18", "network", "ResNet-18", ("average_pool",)),
    "fhe_cnn": Entry("histocrypt.models.fhe_cnn:FheCnn", "network", "CNN for encryption", ("depth", "width", "pool")),
    "fhe_resnet18": Entry(
        "histocrypt.models.fhe_resnet:FheResNet18",
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
        "histocrypt.training.multitask:MultitaskPredictor",
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
        "histocrypt.training.diffusion_predictor:DiffusionPredictor",
    ),
    "fhe_head": Entry(
        "histocrypt.models.fhe_head:FheHead", "fitted", "Head for encryption, frozen encoder", ("encoder", "components")
    ),
}

BASELINES = ("mean_profile", "depth_only", "colour_ridge", "encoder_ridge", "knn")
"""Trained in every study, whether asked for or not: no score stands without them."""

STACKS: dict[str, Entry] = {
    "stacking_mlp": Entry("histocrypt.models.stacking_mlp:StackingMLP", "stack", "Stacked models (MLP)"),
    "rank_average": Entry("histocrypt.training.stacking_ranks:rank_average", "stack", "Rank average of models"),
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
