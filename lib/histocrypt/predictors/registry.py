"""The registry of predictors: a name, where its class lives, the options it takes. Imports nothing heavy.

A network that the loop trains is its module under `models` and a line here, with a class of its options if it has any.
A family with a training of its own has a `Predictor` besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from histocrypt.errors import InputError, unknown_name
from histocrypt.options import Part, Training, first_problem

if TYPE_CHECKING:
    from histocrypt.predictors.base import Predictor
    from histocrypt.targets.matrix import Label

Size = Annotated[int, Field(ge=1, le=10**6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]


class Options(Part):
    """A model's own options, beside the training settings: types are taken at their word, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def features(self) -> str:
        """Name of the frozen features that the model reads (`data.features`); empty where it reads tiles, or none."""
        return getattr(self, "encoder", "")


class EncoderOptions(Options):
    """Of what is fitted on frozen features."""

    encoder: str = Field("efficientnet_lite0", description="frozen encoder, a name in encoders.ENCODERS")
    components: Annotated[int, Field(ge=1)] = Field(256, description="principal components kept, at most")


class FheHeadOptions(EncoderOptions):
    """Of the encrypted head: an encoder that a laptop runs at tens of tiles a second."""

    encoder: str = Field("efficientnet_lite0_128", description="frozen encoder, a name in encoders.ENCODERS")


class FusionOptions(Options):
    """See `predictors.fusion_ridge.FusionRidge`."""

    families: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = Field(
        ("colour", "morphology", "efficientnet_lite0_middle"),
        description="of features: colour, morphology, frozen encoders by name",
    )
    context_um: Annotated[int, Field(ge=0, le=5000)] = Field(
        320, description="how far a spot's surroundings reach, micrometres; 0: the spot alone"
    )
    choose: bool = Field(False, description="choose families on training patients; else all count, in fixed shares")
    patients: Literal["new", "known"] = Field(
        "new", description="known: the patients that are predicted are trained on, by other sections of theirs"
    )

    @property
    def features(self) -> str:
        """Every family with its context."""
        around = [f"~{self.context_um}"] if self.context_um else []
        return "+".join(name + mark for name in self.families for mark in ("", *around))

    @field_validator("families")
    @classmethod
    def _plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value) or any(mark in name for name in value for mark in "~+@"):
            raise ValueError("each family once, by its plain name; context_um adds surroundings")
        return value


class VisionMLPOptions(Options):
    """See `models.vision_mlp.VisionMLP`."""

    width: Factor = Field(1.0, description="multiplies every channel and layer width")
    dropout: Share = Field(0.1, description="in the projections and the head")
    branches: Annotated[tuple[Literal["tile", "subtiles", "centre"], ...], Field(min_length=1, strict=False)] = Field(
        ("tile", "subtiles", "centre"),
        description="which scales are looked at, in any order; all lie within the tile (preprocessing.tile_um)",
    )

    @field_validator("branches")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each branch once")
        return value


class ResNet18Options(Options):
    """See `models.resnet18.ResNet18`."""

    average_pool: bool = Field(False, description="an average pool where torchvision has a max pool, for encryption")


class FheCnnOptions(Options):
    """See `models.fhe.FheCnn`."""

    depth: Literal[3, 5, 7, 9] = Field(5, description="multiplicative levels")
    width: Factor = Field(1.0, description="multiplies the channels of every convolution")
    pool: Size = Field(1, description="cells a side over which the last tensor is averaged; 1 keeps no place")


class FheResNet18Options(Options):
    """See `models.fhe.FheResNet18`."""

    width: Size = Field(64, description="channels of the first stage; each stage doubles them")
    blocks: Annotated[tuple[Size, ...], Field(min_length=1, strict=False)] = Field(
        (2, 2, 2, 2), description="blocks of each stage"
    )


class HE2GeneOptions(Options):
    """Of the multi-task model, see `predictors.he2gene`."""

    backbone: str = Field("resnet18", description="resnet18 or resnet50, trained; or a frozen encoder by name")
    pretrained: bool = Field(False, description="start from ImageNet weights, where torch's cache folder has them")
    hidden: Size = Field(256, description="width of the shared layer on a frozen encoder")
    dropout: Share = 0.0
    start: Literal["low_rank", "none"] = Field(
        "low_rank",
        description="on a frozen encoder, what the panel's head starts from, and learns the rest of: fusion_ridge on "
        "the same features; or nothing",
    )
    aux_weight: Weight = Field(1.0, description="of the other genes; 0: no such head")
    aux_rank: Annotated[int, Field(ge=0)] = Field(128, description="of their head; 0: a full matrix")
    label: str | None = Field(None, description="obs:COLUMN, or obsm:MATRIX/COLUMN")
    label_is: tuple[str, ...] = Field((), description="values that mean tumour")
    label_above: float | None = Field(None, description="numbers above this mean tumour")
    tumour_weight: Weight = Field(1.0, description="of the label's head")
    spatial_weight: Weight = Field(0.01, description="of the spatial term; 0 switches it off")
    neighbours: Literal["label", "predicted", "image"] = Field(
        "label", description="by what neighbours count: the same label, the same predicted label, how alike they look"
    )
    patch: Size = Field(8, description="spots in a connected patch of a batch")
    average_symmetries: bool = Field(False, description="predictions are means over the eight symmetries of a tile")

    @field_validator("label_is", mode="before")
    @classmethod
    def _words(cls, value: object) -> tuple[str, ...]:
        return tuple(map(str, value if isinstance(value, list | tuple) else [value]))

    @model_validator(mode="after")
    def _go_together(self) -> HE2GeneOptions:
        for name in ("pretrained", "average_symmetries"):
            if getattr(self, name) and not self.is_trained:
                raise InputError(
                    f"is for a trained encoder, and {self.backbone} is frozen",
                    field=f"models.he2gene.{name}",
                    value=True,
                )
        self.where()
        return self

    @property
    def is_trained(self) -> bool:
        """Whether the encoder is trained."""
        return self.backbone in ("resnet18", "resnet50")

    @property
    def features(self) -> str:
        """The backbone, where it is a frozen encoder."""
        return "" if self.is_trained else self.backbone

    def where(self) -> Label | None:
        """Return where the label is found, if one is named."""
        from histocrypt.targets.matrix import Label

        return None if self.label is None else Label(self.label, self.label_is, self.label_above)


class StemOptions(Options):
    """Of the diffusion model, the published ones where nothing else is said, see `predictors.stem`."""

    encoder: str = Field(
        "efficientnet_lite0",
        description="frozen encoder, or several: uni+conch, prepared:<folder>#uni (see data.features)",
    )
    augmentations: Annotated[int, Field(ge=0, le=7)] = Field(
        7, description="turned and mirrored copies of each tile; every epoch draws one of them, or the tile itself"
    )
    components: Annotated[int, Field(ge=0)] = Field(
        0, description="principal components of the features that condition the network; 0: all features, as published"
    )
    start: Literal["low_rank", "none"] = Field(
        "low_rank",
        description="what is drawn is the rest beside a closed form on the same features, fusion_ridge; none: all of "
        "expression, as published",
    )
    mean: Literal["start", "drawn"] = Field(
        "start",
        description="where draws lie: about what they start from, the mean of each spot's own taken off; or where they "
        "fall, as published. With start none they lie where they fall",
    )
    width: Size = 384
    blocks: Size = 12
    heads: Size = 6
    samples: Annotated[int, Field(ge=2, le=10**6)] = Field(20, description="drawn for each spot")
    sampler: Literal["ancestral", "ddim", "dpm++"] = Field("dpm++", description="see predictors.stem_diffusion")
    sampler_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        10,
        description="of 1000; ancestral is meant to take all of them. Ten of dpm++ are the fastest whose scores lie "
        "within the ancestral sampler's own spread from seed to seed (benchmarks/stem_samplers.py)",
    )
    opposite: bool = Field(
        True,
        description="ddim and dpm++ start from noise in opposite pairs: the mean of few samples is near the mean of "
        "many; false: from independent noise, as published. ancestral draws are always independent",
    )


@dataclass(frozen=True)
class Entry:
    """One registered predictor."""

    target: str
    """``module:Class``; a `torch.nn.Module` (trained by the loop) or a class with ``fit`` and ``predict``."""
    kind: str
    """``network``, ``fitted`` or ``stack``."""
    title: str
    """How tables call it."""
    options: type[Options] = Options
    """What a study may set."""
    predictor: str = "histocrypt.predictors.network:NetworkPredictor"
    """Of a network: ``module:Class`` of what trains it and predicts with it."""
    has_heads: bool = False
    """Whether it predicts more than the panel, see `Predictor.predict_heads`."""
    draws_samples: bool = False
    """Whether it predicts a distribution, see `Predictor.samples`."""
    averages: bool = False
    """Whether its predictions may be averaged, see `AVERAGES`."""
    many_processes: bool = False
    """Whether several processes may train it together, see `training.distributed`."""


MODELS: dict[str, Entry] = {
    "mean_profile": Entry("histocrypt.predictors.closed_form:MeanProfile", "fitted", "Mean profile"),
    "depth_only": Entry("histocrypt.predictors.closed_form:DepthOnly", "fitted", "Sequencing depth only"),
    "colour_ridge": Entry("histocrypt.predictors.closed_form:ColourRidge", "fitted", "Colour-only ridge"),
    "encoder_ridge": Entry(
        "histocrypt.predictors.closed_form:EncoderRidge", "fitted", "Frozen-encoder ridge", EncoderOptions
    ),
    "knn": Entry("histocrypt.predictors.closed_form:NearestNeighbours", "fitted", "Frozen-encoder kNN", EncoderOptions),
    "fusion_ridge": Entry(
        "histocrypt.predictors.fusion_ridge:FusionRidge", "fitted", "Fusion of frozen features", FusionOptions
    ),
    "vision_mlp": Entry(
        "histocrypt.models.vision_mlp:VisionMLP",
        "network",
        "VisionMLP (multi-scale CNN)",
        VisionMLPOptions,
        averages=True,
    ),
    "resnet18": Entry("histocrypt.models.resnet18:ResNet18", "network", "ResNet-18", ResNet18Options, averages=True),
    "fhe_cnn": Entry("histocrypt.models.fhe:FheCnn", "network", "CNN for encryption", FheCnnOptions),
    "fhe_resnet18": Entry(
        "histocrypt.models.fhe:FheResNet18", "network", "ResNet-18 of squares, for encryption", FheResNet18Options
    ),
    "he2gene": Entry(
        "histocrypt.models.he2gene:HE2Gene",
        "network",
        "HE2Gene (multi-task)",
        HE2GeneOptions,
        "histocrypt.predictors.he2gene:MultitaskPredictor",
        has_heads=True,
    ),
    "stem": Entry(
        "histocrypt.models.stem:Stem",
        "network",
        "Stem (diffusion)",
        StemOptions,
        "histocrypt.predictors.stem:DiffusionPredictor",
        draws_samples=True,
        many_processes=True,
    ),
    "fhe_head": Entry(
        "histocrypt.predictors.closed_form:FheHead", "fitted", "Head for encryption, frozen encoder", FheHeadOptions
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
"""Can be evaluated on ciphertexts, in a second a spot or less."""
BOOTSTRAPPED = ("fhe_resnet18",)
"""Can be evaluated on ciphertexts, in minutes a spot: ciphertexts are refreshed on the way."""


AVERAGES = {"seeds": 1, "smooth_um": 0}
"""Settings by which the predictions of several networks, or of neighbouring spots, are averaged, and what says: not."""
SEVERAL = "histocrypt.predictors.seeds:SeedAverage"
"""What trains a network with several seeds and predicts the mean."""


def register(name: str, network: type, *, title: str) -> None:
    """Register a network of one's own for this process, e.g. a class written in a notebook's cell.

    Parameters
    ----------
    name
        What studies call it.
    network
        A `torch.nn.Module` that takes the number of outputs and maps (B, 3, S, S) to (B, k); ``input_px`` is S.
    title
        What people read.

    Raises
    ------
    InputError
        If the name is that of another model, or the network does not say its ``input_px``.
    """
    target = f"{network.__module__}:{network.__qualname__}"
    if name in STACKS or (name in MODELS and MODELS[name].target != target):
        raise InputError("is the name of another model", field="name", value=name, fix="choose another name")
    if not isinstance(getattr(network, "input_px", None), int):
        raise InputError("does not give the side of its tiles", field="input_px", expected="a number of pixels")
    MODELS[name] = Entry(target, "network", title)


def model_class(name: str) -> type:
    """Return the class of a registered predictor, importing its module now."""
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return _class_of(MODELS[name].target)


def _class_of(target: str) -> type:
    module, name = target.split(":")
    return getattr(import_module(module), name)


def checked_options(model: str, given: dict[str, Any] | None) -> Options:
    """Return a model's options; an unknown one, or a wrong value, is an `InputError` that names it."""
    options = MODELS[model].options
    for name in given or {}:
        if name not in options.model_fields:
            raise unknown_name("option", name, options.model_fields, field=f"models.{model}")
    try:
        return options(**(given or {}))
    except ValidationError as error:
        raise first_problem(error, options, prefix=f"models.{model}.") from error


def check_averages(model: str, settings: Training, *, file: str | Path | None = None) -> None:
    """Refuse averages over seeds or surroundings of a network that has none; closed forms heed neither setting.

    Raises
    ------
    InputError
        If one is asked for.
    """
    if MODELS[model].kind != "network" or MODELS[model].averages:
        return
    why = "its family has a training of its own"
    if model in (*ENCRYPTED, *BOOTSTRAPPED):
        why = "only one network can be evaluated on ciphertexts"
    for name, none in AVERAGES.items():
        if (value := getattr(settings, name)) != none:
            raise InputError(
                f"{model} does not support this average: {why}",
                file=file,
                field=f"models.{model}.{name}",
                value=value,
                fix=f"set it to {none} there",
            )


def check_no_average(about: dict[str, Any], folder: Path) -> None:
    """Refuse a model whose predictions are averages, where only one network can be evaluated on ciphertexts.

    Parameters
    ----------
    about
        Its ``model.json``.
    folder
        Where that lies.

    Raises
    ------
    InputError
        If it averages over seeds or surroundings.
    """
    for name, none in AVERAGES.items() if MODELS[about["model"]].averages else ():
        if (value := about["training"].get(name, none)) != none:
            raise InputError(
                "averages several predictions, but only one network can be evaluated on ciphertexts",
                file=folder,
                field=f"training.{name}",
                value=value,
                fix=f"train it with {name}: {none}",
            )


def build(
    model: str,
    outputs: tuple[str, ...],
    *,
    settings: Training | dict[str, Any],
    options: dict[str, Any] | None = None,
    device: Any = None,
    folder: Path | None = None,
) -> Predictor:
    """Return an unfitted predictor.

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
    device
        Of networks; None: the best one present.
    folder
        Where a network writes ``curves.csv`` and, while training, ``last/``; None writes nothing.

    Raises
    ------
    InputError
        If an option is unknown or has a wrong value, or an average is asked of a family that has none.
    """
    settings = Training(**settings) if isinstance(settings, dict) else settings
    check_averages(model, settings)
    if MODELS[model].kind == "network":
        predictor = _class_of(SEVERAL if settings.seeds > 1 else MODELS[model].predictor)
        return predictor(model, outputs, settings=settings, options=options, device=device, folder=folder)
    own = checked_options(model, options).model_dump()
    return model_class(model)(normalise_by_section=settings.normalise_by_section, **own)


def tile_side(model: str, settings: Training) -> int | None:
    """Return the side in pixels that a model's tiles are resized to; None: as they are stored."""
    if MODELS[model].kind == "network":
        return settings.input_px or model_class(model).input_px
    return settings.input_px
