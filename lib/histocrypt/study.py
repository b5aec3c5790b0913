"""A study: one validated YAML file that says everything a run depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name
from histocrypt.models.registry import BASELINES, MODELS, NEEDS_COUNTS, STACKS
from histocrypt.study_checks import check_stacking, check_teachers
from histocrypt.targets.matrix import check_target

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
TransformName = Literal["log1p", "log1p_cp10k", "log2p1", "rank", "proportion", "spot_rank"]


class _Part(BaseModel):
    """A part of a study: unknown keys are errors, values cannot change once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SectionSource(_Part):
    """Where sections come from: one entry may name one section, a folder or a glob of many."""

    path: str = Field(
        description="file, folder or glob; `data:` stands for HISTOCRYPT_DATA; `demo` for the demo tissue"
    )
    format: Literal["auto", "h5ad", "hest", "st_array", "space_ranger", "hackathon", "demo"] = "auto"
    image: str | None = Field(None, description="image file, where the section file does not name it")
    id: str | None = Field(None, description="section id, where the file does not name it")
    patient: str | None = Field(None, description="patient id, where the file does not name it")
    um_per_px: Positive | None = Field(
        None, description="micrometres per full-resolution pixel; else read or estimated"
    )


class DemoTissue(_Part):
    """The simulated sections of `path: demo`."""

    sections: Count = Field(6, description="sections, each of another patient")
    spots_per_side: Annotated[int, Field(ge=6)] = Field(14, description="spots along the side of the square array")
    genes: Annotated[int, Field(ge=40)] = Field(240, description="simulated genes")


class Preprocessing(_Part):
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
            msg = "must be divisible by 3, so that a tile splits into 3 x 3 subtiles"
            raise ValueError(msg)
        return value


class PanelChoice(_Part):
    """Which genes are predicted; chosen on a fold's training patients only."""

    method: Literal["top_mean", "hvg", "hmhvg", "stem_hmhvg", "file", "all"] = Field(
        "hmhvg", description="file: one gene id a line, or JSON; all: every column of target.matrix"
    )
    size: Count = Field(200, description="number of genes; not heeded by file and all")
    file: str | None = Field(None, description="gene list, relative to the study file")


class Target(_Part):
    """What is predicted about each gene. The first transform is the main one; models learn all of them at once."""

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

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the matrix out where there is none: studies finished before it existed stay valid."""
        return {key: value for key, value in handler(self).items() if key != "matrix" or value is not None}


class Folds(_Part):
    """Who is held out together. A patient is never on two sides, unless sections are asked for."""

    scheme: Literal["leave_one_patient_out", "group_k_fold", "leave_one_section_out"] = Field(
        "leave_one_patient_out",
        description="leave_one_section_out also trains on the tested patient: it says nothing of a new one",
    )
    n: Annotated[int, Field(ge=2)] | None = Field(None, description="number of folds of group_k_fold")


LATER = ("teacher", "distil", "range_penalty", "replace_over", "augment_contrast")
"""Settings of training that did not exist in the first version."""


class Training(_Part):
    """How networks are trained; any model may override any of these."""

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
    replace_over: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the epochs over which ReLUs give way to squares; 0: squares from the start"
    )
    range_penalty: Annotated[float, Field(ge=0)] = Field(
        0.1, description="weight of the penalty on what enters a square beyond +-3; only networks with squares heed it"
    )

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later settings that are at their defaults: models trained before these existed stay valid."""
        content = handler(self)
        return {
            key: value
            for key, value in content.items()
            if key not in LATER or value != type(self).model_fields[key].default
        }


class Stacking(_Part):
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


class Evaluation(_Part):
    """How scores are made."""

    bootstrap: Count = Field(1000, description="bootstrap draws")
    block_um: Positive = Field(1000.0, description="side of the spatial blocks that are drawn, micrometres")
    k: list[Count] = Field([10, 50], description="k of PCC-k")
    markers: list[str] = Field([], description="names (symbol or id) that the report's viewer shows in any case")

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the markers out where none are named: studies finished before they could be stay valid."""
        return {key: value for key, value in handler(self).items() if key != "markers" or value}


class Study(_Part):
    """Everything a run depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    title: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    sections: Annotated[list[SectionSource], Field(min_length=1)]
    demo: DemoTissue = DemoTissue()
    preprocessing: Preprocessing = Preprocessing()
    panel: PanelChoice = PanelChoice()
    target: Target = Target()
    folds: Folds = Folds()
    training: Training = Training()
    models: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="models by registered name, each with overrides of `training` and its own options",
    )
    stacking: Stacking | None = Field(None, description="stack the models' predictions; null: no stack")
    evaluation: Evaluation = Evaluation()
    folder: str = Field("", exclude=True, description="folder of the study file; relative paths start there")

    @property
    def run(self) -> paths.RunFolder:
        """The run folder of this study."""
        return paths.RunFolder.of(self.name)

    @property
    def model_names(self) -> list[str]:
        """Baselines first, then the study's own models, in the order given."""
        return [*BASELINES, *(name for name in self.models if name not in BASELINES)]

    @property
    def families(self) -> list[str]:
        """The models whose predictions are stacked; none where the study does not stack."""
        if self.stacking is None:
            return []
        able = [name for name in self.model_names if name != NEEDS_COUNTS]
        return able if self.stacking.families == "all" else [name for name in able if name in self.stacking.families]

    @property
    def inner_models(self) -> list[str]:
        """The models that are trained on inner folds: the stacked families and their teachers."""
        wanted = set(self.families)
        for name in self.families:
            while (name := self.teacher_of(name)) is not None:
                wanted.add(name)
        return [name for name in self.model_names if name in wanted]

    @property
    def scored_names(self) -> list[str]:
        """Everything that makes predictions: the models, then what is stacked from them."""
        return [*self.model_names, *(STACKS if self.stacking is not None else ())]

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a later part that is not used: studies finished before it existed stay valid."""
        content = handler(self)
        return {key: value for key, value in content.items() if key != "stacking" or value is not None}

    def training_of(self, model: str) -> Training:
        """Return the training settings of a model, with the model's own overrides."""
        own = {key: value for key, value in self.models.get(model, {}).items() if key in Training.model_fields}
        return Training(**{**self.training.model_dump(), **own})

    def teacher_of(self, model: str) -> str | None:
        """Return the model that another one learns from, if any."""
        return self.training_of(model).teacher

    def options_of(self, model: str) -> dict[str, Any]:
        """Return the constructor options of a model: whatever it was given beyond training settings."""
        return {key: value for key, value in self.models.get(model, {}).items() if key not in Training.model_fields}

    def hash(self, *parts: str) -> str:
        """Return a short hash of the whole study, or of the named parts (`"preprocessing"`, `"panel"`, ...).

        A stage that depends on some parts only is rerun only when these change.
        """
        content = self.model_dump(mode="json")
        chosen = {part: content[part] for part in parts} if parts else content
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    def resolve(self, path: str) -> Path:
        """Return a path as an absolute one: `data:` is HISTOCRYPT_DATA, relative ones start at the study file."""
        if path.startswith("data:"):
            return paths.data() / path.removeprefix("data:")
        return Path(self.folder) / Path(path).expanduser()


def load_study(path: str | Path) -> Study:
    """Read and validate a study file; a relative path that is not there is looked for in the repository.

    (A notebook opened in JupyterLab runs in ``notebooks/``, not where ``studies/demo.yaml`` starts.)

    Raises
    ------
    InputError
        If the file is missing, is not YAML, has an unknown key (the known ones are listed) or a value out of range.
    """
    path = Path(path)
    if not path.is_file() and (paths.repository() / path).is_file():
        path = paths.repository() / path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"study cannot be read ({error.strerror})"
        raise InputError(msg, file=path, fix="studies/demo.yaml is an example") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"study is not valid YAML ({' '.join(str(error).split())})"
        raise InputError(msg, file=path) from error
    if not isinstance(content, dict):
        msg = "study is empty or not a mapping"
        raise InputError(msg, file=path, expected="keys such as name, sections, panel, models")
    return parse_study(content, file=path)


def parse_study(content: dict[str, Any], *, file: str | Path = "study") -> Study:
    """Validate the content of a study; ``file`` is what errors name."""
    content = {**content, "folder": str(Path(file).resolve().parent)}
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error, file) from error
    for name, options in study.models.items():
        _check_model(name, options, file)
    check_teachers(study, file)
    check_target(study.target, study.panel, file)
    check_stacking(study, file)
    return study


def _check_model(name: str, options: dict[str, Any], file: str | Path) -> None:
    if name in STACKS:
        msg = "is made from the other models"
        raise InputError(msg, file=file, field=f"models.{name}", fix="remove it, and add the part `stacking`")
    if name not in MODELS:
        raise unknown_name("model", name, MODELS, file=file, field="models")
    known = {*Training.model_fields, *MODELS[name].options}
    for key in options:
        if key not in known:
            raise unknown_name("option", key, known, file=file, field=f"models.{name}")
    try:
        Training(**{key: value for key, value in options.items() if key in Training.model_fields})
    except ValidationError as error:
        raise _first_problem(error, file, prefix=f"models.{name}.") from error


def _first_problem(error: ValidationError, file: str | Path, *, prefix: str = "") -> InputError:
    first = error.errors(include_url=False)[0]
    where = [part for part in first["loc"] if "[" not in str(part)] or [""]  # without the members of a union
    *parents, last = where
    field = prefix + ".".join(map(str, where))
    if first["type"] == "extra_forbidden":
        return unknown_name(
            "key", str(last), _known_keys(parents), file=file, field=".".join(map(str, parents)) or None
        )
    if first["type"] == "missing":
        return InputError("is missing", file=file, field=field, fix="add it to the study file")
    message = first["msg"].removeprefix("Value error, ")
    return InputError("has a wrong value", file=file, field=field, value=first["input"], expected=message)


def _known_keys(parents: list[str | int]) -> list[str]:
    part: Any = Study
    for name in parents:
        if isinstance(name, int):
            continue
        annotation = part.model_fields[name].annotation
        inner = [one for one in get_args(annotation) if one is not type(None)]
        part = inner[0] if inner else annotation  # a list of parts, or a part that may be null
    return [name for name in part.model_fields if name != "folder"]
