"""The parts of a study: what each key of its file may hold, with its default and what it means."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from histocrypt.errors import InputError, unknown_name

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
FORMATS = ("hackathon", "hest", "visium_hd", "xenium", "spatialdata", "space_ranger", "h5ad", "st_array")
"""Formats of sections, each read by the module of its name in ``sections/formats``; the first that recognises a path
reads it."""
DEMO = "demo"
TransformName = Literal["log1p", "log1p_cp10k", "log2p1", "rank", "proportion", "spot_rank"]


class Part(BaseModel):
    """A part of a study: unknown keys are errors, values cannot change once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    later: ClassVar[tuple[str, ...]] = ()
    """Keys that the first version did not have."""

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later keys that are at their defaults: hashes of what was finished before these existed stay."""
        unset = {key for key in self.later if getattr(self, key) == type(self).model_fields[key].default}
        return {key: value for key, value in handler(self).items() if key not in unset}


class SectionSource(Part):
    """Where sections come from: one entry may name one section, a folder or a glob of many."""

    later = ("bin_um", "laboratory")
    path: str = Field(
        description="file, folder or glob; `data:` stands for HISTOCRYPT_DATA; `demo` for the demo tissue"
    )
    format: Literal["auto", *FORMATS, "demo"] = "auto"
    image: str | None = Field(None, description="image file, where the section file does not name it")
    id: str | None = Field(None, description="section id, where the file does not name it")
    patient: str | None = Field(None, description="patient id, where the file does not name it")
    laboratory: str | None = Field(
        None, description="who cut, stained and sequenced it, where the file does not say (obs or uns `laboratory`)"
    )
    um_per_px: Positive | None = Field(
        None, description="micrometres per full-resolution pixel; else read or estimated"
    )
    bin_um: Positive | None = Field(
        None, description="side of the squares of Visium HD (default 16) and Xenium (default 100), micrometres"
    )


class Tissue(Part):
    """What the tissue of a study is, as far as its files do not say: a model tells it to whoever uses it."""

    organ: str = Field("", description="e.g. breast; a file's own `organ` (uns) stands where this is empty")
    stain: str = Field("", description="e.g. H&E")


class DemoTissue(Part):
    """The simulated sections of `path: demo`."""

    sections: Count = Field(6, description="sections, each of another patient")
    spots_per_side: Annotated[int, Field(ge=6)] = Field(14, description="spots along the side of the square array")
    genes: Annotated[int, Field(ge=40)] = Field(240, description="simulated genes")


class Preprocessing(Part):
    """From files to cleaned sections and tiles. Nothing here looks at labels, but for dropping near-empty spots."""

    min_counts: Annotated[int, Field(ge=0)] = Field(200, description="spots with fewer counts are dropped")
    min_tissue: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="least tissue share below a spot's disc")
    align: bool = Field(True, description="search for a shift of all spots that puts more of them on tissue")
    align_max_shift_um: Positive = Field(150.0, description="largest shift tried, micrometres")
    align_rotation_deg: Annotated[float, Field(ge=0, le=20)] = Field(0.0, description="largest rotation tried, degrees")
    align_scale: Annotated[float, Field(ge=0, le=0.2)] = Field(0.0, description="largest relative scaling tried")
    stain: Literal["macenko", "reinhard", "none"] = Field("macenko", description="stain normalisation of the tiles")
    tile_um: Positive = Field(150.0, description="side of a tile, micrometres")
    tile_px: Annotated[int, Field(ge=24)] = Field(
        222, description="side of a stored tile, pixels; divisible by 3 gives 3 x 3 subtiles"
    )

    @field_validator("tile_px")
    @classmethod
    def _divisible(cls, value: int) -> int:
        if value % 3:
            raise ValueError("must be divisible by 3, so that a tile splits into 3 x 3 subtiles")
        return value


class PanelChoice(Part):
    """Which genes are predicted; chosen on a fold's training patients only."""

    method: Literal["top_mean", "hvg", "hmhvg", "stem_hmhvg", "file", "all"] = Field(
        "hmhvg", description="file: one gene id a line, or JSON; all: every column of target.matrix"
    )
    size: Count = Field(200, description="number of genes; not heeded by file and all")
    file: str | None = Field(None, description="gene list, relative to the study file")


class Target(Part):
    """What is predicted about each gene. The first transform is the main one; models learn all of them at once."""

    later = ("matrix",)
    matrix: str | None = Field(
        None, description="named matrix to predict, e.g. obsm:celltype_prop_major; None: the counts in X"
    )
    transforms: Annotated[list[TransformName], Field(min_length=1)] = Field(
        ["log1p_cp10k", "log1p"], description="of a named matrix: proportion, spot_rank"
    )
    standardise: bool = Field(True, description="z-score each gene with training statistics inside the loss")
    centre_by_section: bool = Field(
        True, description="learn differences within a section: subtract each training section's own mean in the loss"
    )


class Folds(Part):
    """Who is held out together. A patient is never on two sides, unless sections are asked for."""

    later = ("splits",)
    scheme: Literal[
        "leave_one_patient_out", "group_k_fold", "leave_one_section_out", "leave_one_laboratory_out", "hest_splits"
    ] = Field(
        "leave_one_patient_out",
        description="leave_one_section_out also trains on the tested patient: it says nothing of a new one",
    )
    n: Annotated[int, Field(ge=2)] | None = Field(None, description="number of folds of group_k_fold")
    splits: str | None = Field(None, description="of hest_splits: task of hest-bench, relative to the study file")


class Training(Part):
    """How networks are trained; any model may override any of these."""

    later = (
        "teacher", "distil", "distil_held_out", "range_penalty", "replace_over", "augment_contrast",
        "seeds", "smooth_um",
    )  # fmt: skip
    epochs: Count = 40
    batch_size: Count = 32
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    patience: Count = Field(8, description="epochs without a better validation score before training stops")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(0.98, description="decay of the averaged weights; 0 switches off")
    input_px: Annotated[int, Field(ge=24)] | None = Field(
        None, description="tiles are resized to this; None: the model's own"
    )
    augment_flips: bool = Field(True, description="random flips and quarter turns")
    augment_stain: Annotated[float, Field(ge=0)] = Field(
        0.1, description="strength of random changes of stain in optical density; 0 switches off"
    )
    augment_contrast: Annotated[float, Field(ge=0)] = Field(
        0.0, description="random contrast (factors up to 1 + this) and brightness (sd) of tiles; 0 switches off"
    )
    normalise_by_section: bool = Field(
        True, description="inputs or features are standardised with the section's own pixels (no labels)"
    )
    refit: bool = Field(
        False, description="after early stopping, train again on training + validation for as many epochs"
    )
    teacher: str | None = Field(
        None, description="another model of the study, from which a network learns on top of the measured counts"
    )
    distil: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="with a teacher: its share of the targets of training tiles; the rest is measured"
    )
    distil_held_out: bool = Field(
        False,
        description="learn what a teacher fitted in closed form says of spots held out from it (whole patients, else "
        "sections), not of those that it was fitted to",
    )
    seeds: Annotated[int, Field(ge=1, le=20)] = Field(
        1, description="networks that are trained, with seeds that follow each other; predictions are their mean"
    )
    smooth_um: Annotated[int, Field(ge=0, le=5000)] = Field(
        0,
        description="predictions are half a spot's own and half the mean of those around it, within so many "
        "micrometres; 0: the spot's own",
    )
    replace_over: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the epochs over which ReLUs give way to squares; 0: squares from the start"
    )
    range_penalty: Annotated[float, Field(ge=0)] = Field(
        0.1, description="weight of the penalty on what enters a square beyond +-3; only networks with squares heed it"
    )


class Stacking(Part):
    """How the models' predictions are put together: one input for each model family, nested by patient."""

    families: Literal["all"] | list[str] = Field(
        "all", description="models that take part, by name; all: every model but those that need measured counts"
    )
    inner_folds: Annotated[int, Field(ge=2)] = Field(
        3, description="parts of a fold's training patients; every family is trained once without each part"
    )
    epochs: Count = 250
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Positive = Field(1e-3, description="halved whenever the validation loss stands still")
    patience: Count = Field(20, description="epochs without a better validation score before training stops")


class Evaluation(Part):
    """How scores are made."""

    later = ("markers",)
    bootstrap: Count = Field(1000, description="bootstrap draws")
    block_um: Positive = Field(1000.0, description="side of the spatial blocks that are drawn, micrometres")
    k: list[Count] = Field([10, 50], description="k of PCC-k")
    markers: list[str] = Field([], description="names (symbol or id) that the report's viewer shows in any case")


class Others(Part):
    """Predictions that others made of the study's sections, to stand in the report beside its own models."""

    path: str = Field(
        description="an .h5ad for each section, {section} standing for its id; or one that says each spot's section"
    )
    units: Literal["log1p_cp10k", "log1p", "log2p1"] | None = Field(
        None, description="what its values are; null: not stated, and correlations alone are compared"
    )
    title: str = Field("", description="how the report calls it; default: its name")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Encrypted(Part):
    """How much of a study is predicted on ciphertexts, beside the same in the clear."""

    later = ("spots", "bootstrapped_spots", "engine", "beside_orion")
    sections: Count = Field(
        1,
        description="held-out sections that each network predicts, a job each: one of every fold first",
    )
    spots: Annotated[int, Field(ge=3)] | Literal["all"] = Field(
        "all", description="of each section, evenly spread in the order of its file"
    )
    bootstrapped_spots: Literal[0] | Annotated[int, Field(ge=3)] = Field(
        0, description="the same of fhe_resnet18, which takes minutes a spot and 12 GiB; 0: it is not tried"
    )
    engine: Literal["two_party", "orion"] = Field(
        "two_party",
        description="two_party: the evaluator holds no key that decrypts (50_fhe_inference); orion: one party, an "
        "experiment with orion-fhe that keeps nobody's tile secret (51_one_party), on a number of spots",
    )
    beside_orion: list[str] = Field(
        [], description="networks of which 50_fhe_inference puts one tile through orion-fhe, too: one party, beside two"
    )


def _as_written(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Keep 0 as 0, not 0.0: hashes of finished studies depend on it."""
    checked = check(value)
    return value if isinstance(value, int) else checked


Whole = Annotated[int, Field(gt=0, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1), WrapValidator(_as_written)]


class GeneratorPlan(Part):
    """A generator of synthetic tiles: which of the two it is, how large, and how it is trained; as published."""

    kind: Literal["joint", "control"] = Field(
        "joint",
        description="joint: image and mask, of all classes whose images have masks; control: images of that class",
    )
    width: Whole = Field(64, description="channels at the finest level")
    multipliers: Annotated[tuple[Whole, ...], Field(min_length=1)] = Field(
        (1, 2, 4, 8), description="of the width, a level each; every level halves the side"
    )
    blocks: Whole = Field(2, description="residual blocks a level")
    patch: Whole = Field(
        1, description="pixels a side that the network sees as one: 2 is faster, and leaves grain in small pictures"
    )
    steps: Whole = Field(2000, description="of the noise schedule")
    objective: Literal["noise", "velocity"] = Field(
        "noise", description="what the network says: noise, as published, or velocity"
    )
    signal: Literal["range", "whitened"] = Field(
        "range",
        description="what is noised: pixels from -1 to 1, as published, or patches as components of variance 1, which "
        "small networks and short trainings need",
    )
    components: Whole | None = Field(None, description="of a whitened patch that are kept; None: all")
    evenness: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="of whitened components' variances; 1: all are 1; lower, the later ones count less"
    )
    stain: bool = Field(False, description="whether the tile's colours are told; drawn tiles draw theirs by class")
    mask_given: Share = Field(
        0.0, description="share of training images whose mask is told, so that pictures can be drawn to a given mask"
    )
    dropout: Share = 0.2
    batch: Whole = 12
    learning_rate: Annotated[float, Field(gt=0), WrapValidator(_as_written)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0), WrapValidator(_as_written)] = 1e-5
    ema: Share = Field(0.9999, description="decay of the averaged weights; 0: none, as published")
    conditional: bool = Field(
        True, description="whether the class is told; the published joint network reads it from the mask"
    )
    guidance_dropout: Share = Field(
        0.1, description="share of training images whose class is hidden; 0: sampling cannot be guided"
    )
    balance: bool = Field(True, description="rarer classes are repeated to the size of the largest")
    augment: bool = Field(True, description="images are mirrored and turned at random, masks with them")

    @property
    def least_side(self) -> int:
        """Pixels that the side of an image must be a multiple of."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class Synthesis(Part):
    """Synthetic tiles with masks, learned from the training patients of one fold."""

    later = ("privacy_unit", "quality_tiles", "masks")
    label: str = Field(
        "obs:tumour", description="what makes a tile tumour: obs:COLUMN, obsm:MATRIX/COLUMN, or genes:SYMBOL+SYMBOL"
    )
    label_is: list[str] = Field([], description="values of a column of words that mean tumour")
    label_above: float | None = Field(
        None, description="numbers (of genes: the rank in the section, 0 to 1) above this mean tumour: a proxy"
    )
    fold: str | None = Field(None, description="fold whose training patients are learned from; None: the first")
    side: Annotated[int, Field(ge=16)] = Field(32, description="pixels of a synthetic tile; its width in um stays")
    generator: GeneratorPlan = Field(GeneratorPlan(), description="options of the generator")
    normal_from: Literal["joint", "control"] = Field(
        "joint",
        description="generator of tiles without tumour: the joint one, or one of its own, whose masks are made by rule",
    )
    epochs: Count = Field(200, description="of the generators")
    per_class: Count = Field(200, description="synthetic tiles drawn of each class, before filtering")
    sampler: Literal["ancestral", "ddim", "dpm++"] = "dpm++"
    sampler_steps: Count = 25
    guidance: Annotated[float, Field(ge=0)] = Field(1.0, description="classifier-free guidance; 1: none")
    masks: Literal["with", "first"] = Field(
        "with", description="masks are drawn with the pictures, or first, and pictures to them (generator.mask_given)"
    )
    reconstruction_epochs: Count = Field(60, description="of the network that judges realism, over the real tiles")
    realism_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="rejected: reconstructed worse than this share of held-out real tiles"
    )
    novelty_quantile: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="rejected: nearer to a training tile than this share of held-out real tiles"
    )
    network: Literal["unet", "vit_hybrid"] = "unet"
    segmentation_epochs: Count = Field(40, description="passes over the real training tiles; as many steps for others")
    quality_tiles: Annotated[int, Field(ge=10)] = Field(
        1000, description="tiles of each set whose quality is measured; nuclei on a third of them"
    )
    epsilon: Positive | None = Field(
        None, description="differential privacy of a tile (or patient), all generators together; None: none"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="with epsilon")
    privacy_unit: Literal["tile", "patient"] = Field(
        "tile", description="with epsilon: whose presence is hidden; of a patient all tiles together"
    )

    @field_serializer("generator")
    def _given(self, generator: GeneratorPlan) -> dict[str, Any]:
        """Keep only what the study says: its hash does not change with our defaults."""
        return {name: value for name, value in generator if name in generator.model_fields_set}


class Audit(Part):
    """What is asked about the patients behind the models of one fold."""

    later = (
        "learned_epochs",
        "learned_network",
        "learned_rounds",
        "noise_draws",
        "decrypted_sections",
        "embedded_tiles",
        "decoder_epochs",
        "coin_runs",
        "generator_coin_runs",
        "shadow_generators",
        "shadow_generator_epochs",
    )
    fold: str | None = Field(None, description="fold whose models are attacked; None: the first")
    models: list[str] | Literal["all"] = Field("all", description="predictors that are attacked, by name")
    shadowed: list[str] = Field(["encoder_ridge"], description="of these, the ones retrained as shadow models")
    shadows: Annotated[int, Field(ge=6)] = Field(16, description="shadow models, each of a random half of the patients")
    shadow_epochs: Count = Field(10, description="of each shadow of a segmentation network; at most 8 of these")
    leaky_epochs: Count = Field(1500, description="of the generator that is made to leak, over a dozen tiles")
    shadow_generators: Annotated[int, Field(ge=0)] = Field(
        0,
        description="generators trained with and without each patient; 0: none, and cards of drawn sets decide nothing",
    )
    shadow_generator_epochs: Count | None = Field(
        None,
        description="of a small network, for speed; None: the study's own generator, for as long as it was trained",
    )
    learned_epochs: Count = Field(30, description="of the learned attack on maps")
    learned_network: Literal["small", "resnet50"] = Field(
        "small", description="of the learned attack on maps; resnet50: DiffGuard's, with maps at 256 px: wants a GPU"
    )
    learned_rounds: Count = Field(100, description="trees of the learned attack on predicted expression")
    noise_draws: Count = Field(4, description="of noise, at each of four levels, by which a generator's loss is taken")
    decrypted_spots: Count = Field(40, description="of each section, sent through real ciphertexts")
    decrypted_sections: Count | None = Field(None, description="that many of members, and of non-members; None: all")
    embedded_tiles: Count = Field(100, description="of each section, asked back from their embeddings")
    decoder_epochs: Count = Field(8, description="of the network that draws tiles from embeddings")
    coin_runs: Annotated[int, Field(ge=0)] = Field(
        0, description="trainings of a shadowed model, patients in or out by coins: a lower bound on epsilon; 0: none"
    )
    generator_coin_runs: Annotated[int, Field(ge=0)] = Field(0, description="the same of each generator")
    draws: Count = Field(1000, description="bootstrap draws")

    @field_validator("shadow_generators")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < 6:
            msg = "0 (none), or at least 6: each is attacked with the help of the others"
            raise ValueError(msg)
        return value


def first_problem(
    error: ValidationError, part: type[Part], *, file: str | Path | None = None, prefix: str = ""
) -> InputError:
    """Return the first of a part's mistakes as an error that names the field.

    Parameters
    ----------
    error
        What pydantic says.
    part
        The part that was validated.
    file
        The file that it is written in.
    prefix
        Where the part stands in the file, e.g. ``"models.stem."``.
    """
    first = error.errors(include_url=False)[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return inner if file is None else inner.of_file(file)
    unions = ("int", "float")  # members of a union stand in the place, too
    where = [name for name in first["loc"] if "[" not in str(name) and name not in unions] or [""]
    *parents, last = where
    owner = (prefix + ".".join(map(str, parents))).rstrip(".") or None
    field = (prefix + ".".join(map(str, where))).rstrip(".")
    if first["type"] == "extra_forbidden":
        return unknown_name("key", str(last), _known_keys(part, parents), file=file, field=owner)
    if first["type"] == "missing":
        return InputError("is missing", file=file, field=field, fix="add it to the study file")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    fix = None
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        meant = get_close_matches(first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]), n=1)
        fix = f"did you mean {meant[0]!r}?" if meant else None
    return InputError("has a wrong value", file=file, field=field, value=first["input"], expected=message, fix=fix)


def _known_keys(part: Any, parents: list[str | int]) -> list[str]:
    for name in parents:
        if isinstance(name, int) or name not in part.model_fields:  # a place in a list; a name that the study gives
            continue
        annotation = part.model_fields[name].annotation
        inner = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, Part)]
        part = inner[0] if inner else annotation  # a list of parts, parts by name, or a part that may be null
    return [name for name in part.model_fields if name != "folder"]
